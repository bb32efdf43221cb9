"""The views of `metrics` against an independent calculation over lives in the simulator, to the cent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import date
from random import Random

import asyncpg
import pytest
from tests.flows.harness.account import copying
from tests.flows.harness.lives import EMPTY, Lives

from pinstripe.catalog.tables import tables
from pinstripe.store.metrics import views
from pinstripe.store.pool import connect
from pinstripe_simulator.server import Running, running

BILLING = {
    name: tables()[name]
    for name in (
        *(
            "customer",
            "subscription",
            "subscription_item",
            "price",
            "product",
            "coupon",
            "discount",
        ),
        *("invoice", "line_item", "invoice_item"),
    )
}

pytestmark = pytest.mark.migrated


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(EMPTY) as simulator:
        yield simulator


Monthly = dict[tuple[str, str], dict[date, int]]
"""(customer, currency) -> month -> amount."""


def by_customer(lives: Lives) -> Monthly:
    found: Monthly = defaultdict(lambda: defaultdict(int))
    for (month, _), (customer, currency, amount) in lives.worth.items():
        found[customer, currency][month] += amount
    return found


def movements(lives: Lives) -> dict[tuple[date, str], dict[str, int]]:
    """(month, currency) -> kind -> amount, as anyone would add it up by hand."""
    months = _months_of(lives)
    found: dict[tuple[date, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for (_, currency), paid in by_customer(lives).items():
        before, has_paid = 0, False
        for month in months:
            now = paid.get(month, 0)
            kind = "expansion" if now > before else "contraction"
            if before == 0:
                kind = "reactivation" if has_paid else "new"
            elif now == 0:
                kind = "churn"
            if now != before:
                found[month, currency][kind] += now - before
            found[month, currency]["ending"] += now
            before, has_paid = now, has_paid or now > 0
    return {key: dict(kinds) for key, kinds in found.items() if any(kinds.values())}


def _months_of(lives: Lives) -> list[date]:
    """Every month of the lives, those in which nobody paid included."""
    counts = [month.year * 12 + month.month - 1 for month, _ in lives.worth]
    return [date(n // 12, n % 12 + 1, 1) for n in range(min(counts), max(counts) + 1)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_revenue_of_every_subscription_in_every_month_is_that_of_its_life(
    sim: Running, database: str, seed: int
) -> None:
    lives = Lives(sim, Random(seed))
    lives.live(customers=30, months=14)
    assert {"coupon", "schedule", "pause", "resume", "quantity", "price", "more"} <= set(lives.done)
    assert len({currency for _, currency, _ in lives.worth.values()}) == 4
    async with copying(database, sim, chosen=BILLING) as backfill:
        await backfill.run()
    async with connect(database) as pg:
        rows = await pg.fetch("SELECT * FROM metrics.subscription_month")
        moved = await pg.fetch("SELECT * FROM metrics.mrr_movement")
        now = await pg.fetch("SELECT currency, mrr, customers FROM metrics.mrr")
    found = {
        (r["month"], r["subscription_id"]): (r["customer_id"], r["currency"], r["mrr"])
        for r in rows
    }
    assert found == lives.worth
    kinds = ("new", "expansion", "reactivation", "contraction", "churn", "ending")
    assert {(r["month"], r["currency"]): {k: r[k] for k in kinds if r[k]} for r in moved} == {
        key: {k: v for k, v in m.items() if v} for key, m in movements(lives).items()
    }
    for r in moved:
        assert r["starting"] + sum(r[k] for k in kinds[:-1]) == r["ending"]
    last = max(month for month, _ in lives.worth)
    paying = {k: paid[last] for k, paid in by_customer(lives).items() if paid.get(last)}
    for row in now:
        mine = {
            c: amount for (c, currency), amount in paying.items() if currency == row["currency"]
        }
        assert (row["mrr"], row["customers"]) == (sum(mine.values()), len(mine))


@pytest.mark.parametrize("view", [v.name for v in views()])
async def test_every_view_reads_an_empty_account_and_explains_its_columns(
    pg: asyncpg.Connection, view: str
) -> None:
    assert await pg.fetch(f'SELECT * FROM metrics."{view}"') is not None
    silent = await pg.fetchval(
        "SELECT count(*) FROM pg_attribute a WHERE a.attrelid = $1::regclass AND a.attnum > 0"
        " AND col_description(a.attrelid, a.attnum) IS NULL",
        f"metrics.{view}",
    )
    assert silent == 0
