"""The views of `metrics` against an independent calculation over lives in the simulator, to the cent."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
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
        wanted = {"churn": churn(lives), "lifetime_value": lifetime_value(lives)}
        wanted |= {"cohort": cohort(lives), "trial_conversion": trials(sim)}
        assert any(row[3] for row in wanted["lifetime_value"].values())
        assert any(row[2] for row in wanted["trial_conversion"].values())
        assert await differences(pg, wanted) == {}
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


Sums = dict[tuple[object, ...], tuple[object, ...]]
"""Key of a row -> its numbers."""


@dataclass
class Left:
    """What came and went of the customers of a currency within a month."""

    customers: list[dict[date, int]]  # each: month -> amount
    month: date

    def __post_init__(self) -> None:
        before = (self.month - timedelta(days=1)).replace(day=1)
        self.pairs = [(c.get(before, 0), c.get(self.month, 0)) for c in self.customers]
        self.start = sum(a for a, _ in self.pairs)
        self.started = sum(1 for a, _ in self.pairs if a)
        self.stopped = sum(1 for a, b in self.pairs if a and not b)
        self.lost = sum(a - b for a, b in self.pairs if a > b)
        first = [min(month for month in c if c[month]) for c in self.customers]
        self.more = sum(b - a for a, b in self.pairs if a and b > a) + sum(
            b
            for (a, b), began in zip(self.pairs, first, strict=True)
            if b and not a and began < self.month
        )


def by_currency(lives: Lives) -> dict[str, list[dict[date, int]]]:
    found: dict[str, list[dict[date, int]]] = defaultdict(list)
    for (_, currency), paid in by_customer(lives).items():
        found[currency].append(paid)
    return found


def churn(lives: Lives) -> Sums:
    found: Sums = {}
    for currency, customers in by_currency(lives).items():
        for month in _months_of(lives):
            one = Left(customers, month)
            if any(any(pair) for pair in one.pairs):
                found[month, currency] = (
                    _share(one.stopped, one.started),
                    _share(one.lost, one.start),
                    _share(one.lost - one.more, one.start),
                )
    return found


def lifetime_value(lives: Lives) -> Sums:
    """By the twelve finished months before the present one."""
    *finished, last = _months_of(lives)
    found: Sums = {}
    for currency, customers in by_currency(lives).items():
        paying = [paid[last] for paid in customers if paid.get(last)]
        if paying:
            months = [Left(customers, month) for month in finished[-12:]]
            stopped, started = sum(m.stopped for m in months), sum(m.started for m in months)
            each = Fraction(sum(paying), len(paying))
            worth = _rounded(each * started / stopped) if stopped else None
            share = _share(stopped, started)
            found[(currency,)] = (len(paying), _rounded(each), share, worth)
    return found


def cohort(lives: Lives) -> Sums:
    months, found = _months_of(lives), Sums()
    for currency, customers in by_currency(lives).items():
        for number, month in enumerate(months):
            began = [c for c in customers if min(m for m in c if c[m]) == month]
            first = sum(c[month] for c in began)
            for since, later in enumerate(months[number:]):
                still = [c[later] for c in began if c.get(later)]
                if still:
                    kept = (_share(len(still), len(began)), _share(sum(still), first))
                    found[month, currency, since] = (len(still), sum(still), *kept)
    return found


def _rounded(amount: Fraction) -> int:
    return int(amount + Fraction(1, 2))


def _share(part: int, whole: int) -> Decimal | None:
    """With six digits, half away from zero."""
    if not whole:
        return None
    return (Decimal(part) / Decimal(whole)).quantize(Decimal("0.000001"), ROUND_HALF_UP)


def trials(sim: Running) -> Sums:
    """Of Stripe's objects: an invoice paid for a time after the trial makes it converted."""
    world, now = sim.account.world, time.time()
    invoices = {i["id"]: i for i in world.truth("invoice")}
    rows: dict[tuple[object, ...], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for one in world.truth("subscription"):
        if one["trial_start"] is None:
            continue
        month = datetime.fromtimestamp(one["trial_start"], UTC).date().replace(day=1)
        row = rows[month, one["currency"]]
        row[0] += 1
        if one["status"] == "trialing" and one["trial_end"] > now:
            row[1] += 1
            continue
        paid_for = any(
            invoice["status"] == "paid"
            and invoice["amount_paid"] > 0
            and line["amount"] > 0
            and line["period"]["end"] > one["trial_end"]
            for invoice in invoices.values()
            for line in invoice["lines"]["data"]
            if line["parent"]["subscription_item_details"]["subscription"] == one["id"]
        )
        row[2 if paid_for else 3] += 1
    return {key: (*row, _share(row[2], row[2] + row[3])) for key, row in rows.items()}


async def differences(pg: asyncpg.Connection, wanted: dict[str, Sums]) -> dict[str, object]:
    """View -> row -> (what it says, what was wanted)."""
    wrong: dict[str, object] = {}
    for view, mine in wanted.items():
        key, numbers = COLUMNS[view]
        rows = await pg.fetch(f"SELECT * FROM metrics.{view}")
        found = {tuple(r[k] for k in key): tuple(r[n] for n in numbers) for r in rows}
        differ = {
            k: (found.get(k), mine.get(k))
            for k in found.keys() | mine.keys()
            if found.get(k) != mine.get(k)
        }
        if differ:
            wrong[view] = differ
    return wrong


COLUMNS = {
    "churn": (
        ("month", "currency"),
        ("customer_churn", "gross_revenue_churn", "net_revenue_churn"),
    ),
    "lifetime_value": (
        ("currency",),
        ("customers", "mrr_per_customer", "customer_churn", "lifetime_value"),
    ),
    "cohort": (
        ("cohort", "currency", "months_since"),
        ("customers", "mrr", "customers_kept", "revenue_kept"),
    ),
    "trial_conversion": (
        ("month", "currency"),
        ("started", "running", "converted", "not_converted", "conversion"),
    ),
}
"""View -> (key, numbers) of those that the lives decide."""


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
