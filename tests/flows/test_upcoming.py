"""Upcoming invoices against the simulator and a real Postgres: filled, refreshed, removed, refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import msgspec
import pytest
from tests.flows import nasty_server as nasty
from tests.flows.nasty_server import NastyServer

from pinstripe.catalog.load import spec
from pinstripe.catalog.tables import tables
from pinstripe.client.key import ApiKey
from pinstripe.client.limits import Budget
from pinstripe.client.retry import Patience
from pinstripe.client.session import Stripe
from pinstripe.errors import Unreachable
from pinstripe.mirror import Truth, open_mirror
from pinstripe.rows.extract import Found
from pinstripe.simulator.account import Settings
from pinstripe.simulator.server import Running, running
from pinstripe.store.cursors import load_checkpoints
from pinstripe.store.migrate import effective_tables, migrate
from pinstripe.store.pool import connect, open_pool
from pinstripe.sync.source import Source
from pinstripe.sync.upcoming import Upcoming
from pinstripe.sync.upcoming_fill import UpcomingFill
from pinstripe.sync.upcoming_preview import Preview
from pinstripe.sync.upcoming_rows import LINES, Place

NOON = 1_790_000_000
ACACIA = "2025-02-24.acacia"
TABLES = (
    "coupon",
    "customer",
    "discount",
    "invoice_item",
    "plan",
    "price",
    "product",
    "promotion_code",
    "subscription",
    "subscription_item",
    "tax_rate",
    "test_helpers_test_clock",
    "upcoming_customer_invoice",
    "upcoming_invoice_line_item",
    "upcoming_subscription_invoice",
)
COPIED = ("coupon", "customer", "price", "product", "subscription", "invoiceitem", "tax_rate")

Object = dict[str, Any]
Params = dict[str, Any]


@dataclass(frozen=True)
class Copy:
    """A mirror of some tables, and what asks for upcoming invoices."""

    source: Source
    upcoming: Upcoming
    pg: asyncpg.Connection

    async def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.pg.fetch(statement, *values)]

    async def lines(self, owner: str) -> list[tuple[str, int]]:
        found = await self.rows(
            "SELECT id, amount FROM stripe.upcoming_invoice_line_item"
            " WHERE coalesce(upcoming_customer_id, upcoming_subscription_id) = $1"
            " ORDER BY length(id), id",
            owner,
        )
        return [(key, amount) for key, amount in found]

    async def totals(self, owner: str) -> dict[str, int]:
        found = await self.rows(
            f"SELECT {owner}_id, total FROM stripe.upcoming_{owner}_invoice ORDER BY 1"
        )
        return dict(found)

    async def take(self, objects: list[Object]) -> None:
        """Mirrors objects, as the backfill or an event would."""
        found = self.source.extract(objects, {})
        now = self.source.now()
        await self.source.mirror.put(found, Truth(now, now + 1))

    async def apply(self, events: list[Object]) -> list[tuple[str, str]]:
        """What `Live` does with a page of events; the refreshes that it caused, done."""
        todos = await self.upcoming.todos(events)
        await self.take([e["data"]["object"] for e in events if "id" in e["data"]["object"]])
        for todo in todos:
            await self.upcoming.refreshers()[todo.kind](todo.id)
        return [(todo.kind.removeprefix("upcoming_"), todo.id) for todo in todos]


@asynccontextmanager
async def copying(
    database: str,
    url: str,
    key: str,
    *,
    api_version: str = "",
    names: tuple[str, ...] = TABLES,
) -> AsyncIterator[Copy]:
    version = api_version or spec().api_version
    stripe = Stripe(
        ApiKey.parse(key),
        api_version=version,
        budget=Budget(account_rate=None, endpoint_rate=None),
        base_url=url,
        patience=Patience(attempts=2, first_contact=2),
    )
    wanted = {name: tables()[name] for name in names}
    async with connect(database) as pg, stripe:
        await migrate(
            pg, "stripe", wanted, sdk_version=spec().sdk_version, api_version=spec().api_version
        )
        effective = await effective_tables(pg, "stripe", wanted)
        pool = await open_pool(database, min_size=1, max_size=4)
        async with pool, open_mirror(database, "stripe", effective, api_version=version) as mirror:
            source = Source(stripe, mirror, effective, pool)
            yield Copy(source, Upcoming(source), pg)


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    few = dict.fromkeys(("customer", "subscription", "price", "product", "invoiceitem"), 0)
    async with running(Settings(mix=few, until=NOON, connected=False)) as started:
        yield started


@pytest.fixture
async def copy(sim: Running, database: str) -> AsyncIterator[Copy]:
    async with copying(database, sim.url, sim.key) as made:
        yield made


# --- the account ---------------------------------------------------------------------------------


def post(sim: Running, path: str, params: Params | None = None, *, method: str = "POST") -> Object:
    return sim.control.mutator.deeds.post(path, dict(params or {}), method=method)


def customer(sim: Running, **params: object) -> str:
    return str(post(sim, "/v1/customers", {"email": "a@example.com", **params})["id"])


def price(sim: Running, amount: int, interval: str = "month") -> str:
    product = post(sim, "/v1/products", {"name": "A thing"})["id"]
    params = {"product": product, "unit_amount": amount, "currency": "usd"}
    return str(post(sim, "/v1/prices", params | {"recurring": {"interval": interval}})["id"])


def subscribe(sim: Running, owner: str, *prices: str, **params: object) -> str:
    items = [{"price": p} for p in prices]
    given = {"customer": owner, "items": items, "payment_behavior": "default_incomplete"}
    return str(post(sim, "/v1/subscriptions", given | params)["id"])


def extra(sim: Running, owner: str, amount: int) -> str:
    params = {"customer": owner, "amount": amount, "currency": "usd"}
    return str(post(sim, "/v1/invoiceitems", params)["id"])


def events_since(sim: Running, mark: int) -> list[Object]:
    """Newest first, as Stripe lists them."""
    return list(reversed(sim.control.truth("event")[mark:]))


async def copy_all(copy: Copy, sim: Running) -> None:
    for name in COPIED:
        await copy.take(list(sim.control.truth(name)))


async def fill(copy: Copy, sim: Running) -> UpcomingFill:
    await copy_all(copy, sim)
    filling = UpcomingFill(copy.upcoming)
    await filling.run()
    return filling


# --- filling -------------------------------------------------------------------------------------


async def test_fill_brings_every_owner_that_may_be_invoiced(copy: Copy, sim: Running) -> None:
    monthly, yearly = price(sim, 1000), price(sim, 9000, "year")
    one, both, items_only, nothing = (customer(sim) for _ in range(4))
    first = subscribe(sim, one, monthly)
    late, soon = subscribe(sim, both, yearly), subscribe(sim, both, monthly, monthly)
    extra(sim, items_only, 77)
    ended = subscribe(sim, nothing, monthly)
    post(sim, f"/v1/subscriptions/{ended}", method="DELETE")

    filling = await fill(copy, sim)

    assert await copy.totals("subscription") == {first: 1000, late: 9000, soon: 2000}
    assert await copy.totals("customer") == {one: 1000, both: 2000, items_only: 77}
    assert await copy.lines(both) == [(f"{both}:0", 1000), (f"{both}:1", 1000)]
    assert await copy.lines(soon) == [(f"{soon}:0", 1000), (f"{soon}:1", 1000)]
    # One request for each subscription, and one for items alone.
    assert copy.upcoming.requests == 4
    done = {table: (f.state, f.done, f.total) for table, f in filling.progress.items()}
    assert done == {
        "upcoming_customer_invoice": ("done", 3, 3),
        "upcoming_subscription_invoice": ("done", 1, 1),
    }


async def test_a_row_is_what_stripe_previews_column_by_column(copy: Copy, sim: Running) -> None:
    owner = customer(sim)
    made = subscribe(sim, owner, price(sim, 1234))
    await fill(copy, sim)
    reply = await copy.source.stripe.post(
        "/v1/invoices/create_preview", [("subscription", made)], endpoint="x", repeatable=True
    )
    said = msgspec.json.decode(reply.body)
    (row,) = await copy.pg.fetch("SELECT * FROM stripe.upcoming_subscription_invoice")
    for column in ("amount_due", "subtotal", "total", "currency", "status", "billing_reason"):
        assert row[column] == said[column]
    assert (row["customer_id"], row["id"], row["_extra"]) == (owner, None, None)
    (row,) = await copy.pg.fetch("SELECT * FROM stripe.upcoming_customer_invoice")
    assert (row["total"], row["_extra"], row["deleted"]) == (1234, None, False)
    assert abs(row["_as_of"].timestamp() - reply.not_before) < 5


async def test_a_fill_that_was_cut_goes_on_where_it_was(copy: Copy, sim: Running) -> None:
    monthly = price(sim, 500)
    subscriptions = sorted(subscribe(sim, customer(sim), monthly) for _ in range(6))
    await copy_all(copy, sim)
    sim.control.fault(kind="error_500", path="/v1/invoices/create_preview")
    with pytest.raises(Unreachable):
        await UpcomingFill(copy.upcoming, chunk=2).run()
    sim.control.clear_faults()
    half = UpcomingFill(copy.upcoming, chunk=2)
    sim.account.faults.add(_after(4))
    with pytest.raises(Unreachable):
        await half.run()
    sim.control.clear_faults()
    asked = copy.upcoming.requests
    again = UpcomingFill(copy.upcoming, chunk=2)
    await again.run()
    assert sorted(await copy.totals("subscription")) == subscriptions
    assert len(await copy.totals("customer")) == 6
    assert copy.upcoming.requests - asked <= 4
    await UpcomingFill(copy.upcoming).run()
    assert copy.upcoming.requests - asked <= 4
