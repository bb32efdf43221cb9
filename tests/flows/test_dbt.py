"""The public dbt package for Stripe on the views of `--compat fivetran`: it builds, and its MRR is ours,
but for what the docs name.

PINSTRIPE_TEST_DBT: the command. PINSTRIPE_TEST_DBT_PACKAGES: a folder with fivetran/dbt_stripe as `stripe`
and what it needs (`fivetran_utils`, `dbt_utils`; before 1.0 `stripe_source`). Skipped without them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from random import Random
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import pytest
from tests.flows.harness.account import copying
from tests.flows.harness.lives import EMPTY, Lives
from tests.flows.test_metrics import BILLING
from tests.postgres.writing import SCHEMA, writing

from pinstripe.catalog.tables import tables
from pinstripe.store.compat import set_compat
from pinstripe.store.pool import connect
from pinstripe_simulator.server import running

DBT = os.environ.get("PINSTRIPE_TEST_DBT", "")
PACKAGES = os.environ.get("PINSTRIPE_TEST_DBT_PACKAGES", "")
EXAMPLES = json.loads((Path(__file__).parents[1] / "data" / "examples.json").read_text())

PAGE = Path(__file__).parents[2] / "docs/concepts/metrics.md"

pytestmark = [
    pytest.mark.migrated,
    pytest.mark.skipif(not (DBT and PACKAGES), reason="PINSTRIPE_TEST_DBT, _PACKAGES name no dbt"),
]

Key = tuple[date, str]
"""(month, subscription)."""


async def dbt(database: str, where: Path, *command: str, **settings: object) -> str:
    """What dbt prints. `settings`: variables of the project."""
    url, host, port = urlsplit(database), "", ""
    for key, value in parse_qsl(url.query):
        host, port = (value, port) if key == "host" else (host, value if key == "port" else port)
    named = {"stripe_schema": "stripe_fivetran", "stripe_database": url.path[1:]}
    project = {"name": "probe", "version": "1.0.0", "config-version": 2, "profile": "probe"}
    output = {
        "type": "postgres",
        "host": host or url.hostname,
        "port": int(port or url.port or 5432),
        "user": url.username,
        "password": url.password or "none",
        "dbname": url.path[1:],
        "schema": "dbt",
        "threads": 2,
    }
    # JSON is YAML.
    said = {**project, "packages-install-path": PACKAGES, "vars": {**named, **settings}}
    (where / "dbt_project.yml").write_text(json.dumps(said))
    profile = {"probe": {"target": "dev", "outputs": {"dev": output}}}
    (where / "profiles.yml").write_text(json.dumps(profile))
    done = await asyncio.to_thread(
        subprocess.run,
        [DBT, *command, "--profiles-dir", "."],
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


async def test_dbt_builds_its_stripe_package_on_the_views(database: str, tmp_path: Path) -> None:
    async with writing(database, *tables()) as w:
        await set_compat(w.pg, SCHEMA, tables(), ["fivetran"])
        await w.put(*((obj, 0, 1) for obj in EXAMPLES.values()))
    said = await dbt(database, tmp_path, "build", stripe__using_credit_notes=True)
    assert "ERROR=0 SKIP=0" in said


def _next(month: date) -> date:
    count = month.year * 12 + month.month
    return date(count // 12, count % 12 + 1, 1)


class Rows:
    """What the synced tables say of subscriptions, for the causes of `docs/concepts/metrics.md`."""

    def __init__(self, found: dict[str, list[asyncpg.Record]]) -> None:
        self.subscriptions = {s["id"]: s for s in found["subscription"]}
        self.prices = {p["id"]: p for p in found["price"]}
        self.coupons = {c["id"]: c for c in found["coupon"]}
        self.status = {i["id"]: i["status"] for i in found["invoice"]}
        self.items: dict[str, list[asyncpg.Record]] = defaultdict(list)
        for item in found["subscription_item"]:
            if not item["deleted"]:
                self.items[item["subscription_id"]].append(item)
        self.discounts: dict[str, list[asyncpg.Record]] = defaultdict(list)
        for discount in found["discount"]:
            self.discounts[discount["subscription_id"]].append(discount)
        self.lines: dict[str, list[asyncpg.Record]] = defaultdict(list)
        for line in (*found["line_item"], *found["invoice_item"]):
            self.lines[line["subscription_id"]].append(line)

    def causes(self, month: date, id: str) -> Iterator[str]:
        """Why dbt_stripe and `metrics` may differ about a subscription in a month."""
        now = datetime.now(UTC)
        end = _next(month)
        at = min(datetime(end.year, end.month, end.day, tzinfo=UTC), now)
        one, items = self.subscriptions[id], self.items[id]
        covering = [
            x
            for x in self.lines[id]
            if x["period_start"] and x["period_start"] < at <= x["period_end"]
        ]
        if one["ended_at"] is not None and one["ended_at"] <= at:
            yield "ended"
        if one["trial_end"] is not None and one["trial_end"] >= at:
            yield "trial"
        if any(self.prices[i["price_id"]]["recurring_interval"] in ("week", "day") for i in items):
            yield "weeks"
        for discount in self.discounts[id]:
            coupon = self.coupons[discount["source_coupon_id"]]
            if coupon["duration"] != "forever":
                yield "coupon"
            if coupon["currency"] not in (None, one["currency"]):
                yield "coupon's currency"
        if any(x["proration"] for x in covering):
            yield "change"
        known = {i["id"] for i in items}
        if {x["subscription_item_id"] for x in covering} - known - {None}:
            yield "removed item"
        invoices = {self.status.get(x["invoice_id"]) for x in covering if not x["proration"]}
        if invoices & {"void", "draft", "uncollectible"}:
            yield "pause"
        if one["status"] in ("incomplete", "incomplete_expired"):
            yield "never paid"
        if one["current_period_end"] is not None and one["current_period_end"].date() < _next(
            month
        ):
            yield "last month"


@pytest.mark.parametrize("seed", [1, 2])
async def test_its_mrr_differs_from_ours_only_for_the_causes_that_the_page_names(
    database: str, tmp_path: Path, seed: int
) -> None:
    """`stripe__subscription_item_mrr_report` of dbt_stripe 1.10.1 and `metrics.subscription_month`."""
    async with running(EMPTY) as sim:
        Lives(sim, Random(seed)).live(customers=30, months=14)
        async with copying(database, sim, chosen=BILLING) as backfill:
            await backfill.run()
    async with connect(database) as pg:
        await set_compat(pg, SCHEMA, tables(), ["fivetran"])
    model = "stripe__subscription_item_mrr_report"
    await dbt(database, tmp_path, "run", "--select", f"+{model}", stripe__using_livemode=False)
    theirs: dict[Key, Decimal] = defaultdict(Decimal)
    async with connect(database) as pg:
        for row in await pg.fetch(f"SELECT * FROM dbt_stripe.{model}"):
            theirs[row["subscription_month"], row["subscription_id"]] += (
                row["month_billed_mrr"] or 0
            )
        ours = {
            (row["month"], row["subscription_id"]): row["mrr"]
            for row in await pg.fetch("SELECT * FROM metrics.subscription_month")
        }
        rows = Rows({name: await pg.fetch(f"SELECT * FROM stripe.{name}") for name in BILLING})
    unexplained: list[object] = []
    seen, same = set[str](), 0
    for key in sorted(theirs.keys() | ours.keys()):
        amount = int(theirs[key].quantize(Decimal(1), ROUND_HALF_UP)) if key in theirs else 0
        causes = set(rows.causes(*key))
        if amount == ours.get(key, 0):
            same += amount > 0
            continue
        seen |= causes
        if not causes:
            unexplained.append((key, amount, ours.get(key, 0)))
    assert not unexplained
    assert same > 60
    named = set(re.findall(r"^\| ([^|]+) \|", PAGE.read_text().split("dbt_stripe\n")[1], re.M))
    assert len(seen) >= 7
    assert seen <= named
