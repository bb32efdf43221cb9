"""Upcoming invoices against the simulator and a real Postgres: filled, refreshed, removed, refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count as counting
from typing import Any, get_args

import asyncpg
import msgspec
import pytest
from tests.flows.harness import nasty_server as nasty
from tests.flows.harness.account import make_schema, open_account
from tests.flows.harness.nasty_server import NastyServer

from pinstripe.catalog.tables import tables
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.response import AsOf
from pinstripe.client.retry import Patience
from pinstripe.errors import Drifted
from pinstripe.source.source import Source
from pinstripe.store.cursors import load_checkpoints
from pinstripe.store.pool import connect
from pinstripe.store.status import read_status
from pinstripe.sync.refetch.worker import RefetchWorker
from pinstripe.sync.relist import Relist
from pinstripe.sync.upcoming.fill import UpcomingFill
from pinstripe.sync.upcoming.preview import LINES, Preview, UpcomingRow
from pinstripe.sync.upcoming.rules import Affected, OwnerKey, Relation, affected, origins
from pinstripe.sync.upcoming.upcoming import Upcoming
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

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
    seconds: Iterator[int] = field(default_factory=lambda: counting(NOON))
    """Each snapshot is surely newer than the one before."""

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
        now = next(self.seconds)
        await self.source.mirror.write([(found, AsOf(now, now + 1))])

    async def apply(self, events: list[Object]) -> list[tuple[str, str]]:
        """What `Live` does with a page of events; the refreshes that it caused, done."""
        refetches = await self.upcoming.refetches(events)
        await self.take([e["data"]["object"] for e in events if "id" in e["data"]["object"]])
        for refetch in refetches:
            await self.upcoming.refreshers()[refetch.kind](refetch.id)
        return [(refetch.kind.removeprefix("upcoming_"), refetch.id) for refetch in refetches]


@asynccontextmanager
async def copying(
    database: str,
    url: str,
    key: str,
    *,
    api_version: str = "",
    names: tuple[str, ...] = TABLES,
) -> AsyncIterator[Copy]:
    chosen = {name: tables()[name] for name in names}
    await make_schema(database, chosen=chosen)
    async with (
        open_account(
            url,
            key,
            database,
            chosen=chosen,
            api_version=api_version,
            patience=Patience(attempts=2, first_contact=2),
        ) as account,
        connect(database) as pg,
    ):
        yield Copy(account.source, Upcoming(account.source), pg)


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


def price(sim: Running, amount: int, interval: str = "month", *, usage: str = "licensed") -> str:
    product = post(sim, "/v1/products", {"name": "A thing"})["id"]
    params = {"product": product, "unit_amount": amount, "currency": "usd"}
    recurring = {"interval": interval, "usage_type": usage}
    return str(post(sim, "/v1/prices", params | {"recurring": recurring})["id"])


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
    async with copy.source.pool.acquire() as connection:
        (status,) = await read_status(connection)
    assert not [table.table for table in status.tables if table.since]


async def test_a_row_is_what_stripe_previews_column_by_column(copy: Copy, sim: Running) -> None:
    owner = customer(sim)
    made = subscribe(sim, owner, price(sim, 1234))
    await fill(copy, sim)
    response = await copy.source.stripe.post(
        "/v1/invoices/create_preview", [("subscription", made)], endpoint="x", repeatable=True
    )
    said = msgspec.json.decode(response.body)
    (row,) = await copy.pg.fetch("SELECT * FROM stripe.upcoming_subscription_invoice")
    for column in ("amount_due", "subtotal", "total", "currency", "status", "billing_reason"):
        assert row[column] == said[column]
    assert (row["customer_id"], row["id"], row["_extra"]) == (owner, None, None)
    (row,) = await copy.pg.fetch("SELECT * FROM stripe.upcoming_customer_invoice")
    assert (row["total"], row["_extra"], row["deleted"]) == (1234, None, False)
    assert abs(row["_as_of"].timestamp() - response.not_before) < 10


async def test_a_fill_owes_the_owners_that_met_trouble_and_asks_for_nobody_twice(
    copy: Copy, sim: Running
) -> None:
    monthly = price(sim, 500)
    subscriptions = sorted(subscribe(sim, customer(sim), monthly) for _ in range(8))
    await copy_all(copy, sim)
    sim.control.fault(kind="error_500", path="/v1/invoices/create_preview", share=0.6)
    await UpcomingFill(copy.upcoming, chunk=1).run()
    sim.control.clear_faults()
    owed = await copy.rows("SELECT count(*) FROM pinstripe.pending WHERE code = 'unreachable'")
    assert owed[0][0] > 0
    refetches = RefetchWorker(copy.source, upcoming=copy.upcoming.refreshers())
    await copy.pg.execute("UPDATE pinstripe.pending SET next_try_at = NULL")
    await refetches.drain()
    assert sorted(await copy.totals("subscription")) == subscriptions
    assert len(await copy.totals("customer")) == 8
    requests = copy.upcoming.requests
    await UpcomingFill(copy.upcoming).run()
    assert copy.upcoming.requests == requests


async def aged(copy: Copy, hours: float) -> None:
    """As if so much time had passed since all previews."""
    for table in ("upcoming_customer_invoice", "upcoming_subscription_invoice"):
        await copy.pg.execute(
            f"UPDATE stripe.{table} SET _as_of = _as_of - $1 * interval '1 hour',"
            " _as_of_latest = _as_of_latest - $1 * interval '1 hour'",
            hours,
        )


async def test_old_previews_of_metered_usage_are_asked_for_anew_and_others_are_not(
    copy: Copy, sim: Running
) -> None:
    metered = subscribe(sim, customer(sim), price(sim, 500, usage="metered"))
    for _ in range(3):
        subscribe(sim, customer(sim), price(sim, 500))
    await fill(copy, sim)
    whole = copy.upcoming.requests
    assert copy.upcoming.filling.oldest_s() == 3600.0
    await copy.upcoming.filling.refill()
    assert copy.upcoming.requests == whole
    await aged(copy, 1)
    await copy.upcoming.filling.refill()
    assert copy.upcoming.requests == whole + 1
    fresh = await copy.rows(
        "SELECT subscription_id FROM stripe.upcoming_subscription_invoice"
        " WHERE _as_of > now() - interval '30 minutes'"
    )
    assert fresh == [(metered,)]
    await aged(copy, 30 * 24)
    await copy.upcoming.filling.refill()
    assert copy.upcoming.requests == whole + 1 + 4


async def test_previews_that_were_emptied_are_filled_again(copy: Copy, sim: Running) -> None:
    subscribe(sim, customer(sim), price(sim, 500))
    subscribe(sim, customer(sim), price(sim, 700))
    await fill(copy, sim)
    before = await copy.totals("customer"), await copy.totals("subscription")
    budget = RateLimiter(account_rate=None, endpoint_rate=None)
    relist = Relist(copy.source, RefetchWorker(copy.source), budget)
    names = ", ".join(f"stripe.{name}" for name in TABLES if name.startswith("upcoming"))
    await copy.pg.execute(f"ANALYZE {names}")
    await relist._watch()
    await copy.pg.execute(f"TRUNCATE {names}")
    await copy.pg.execute("SELECT pg_stat_force_next_flush()")
    await relist._watch()
    await copy.upcoming.filling.refill()
    assert (await copy.totals("customer"), await copy.totals("subscription")) == before
    assert len(before[1]) == 2
    assert await copy.pg.fetchval("SELECT count(*) FROM stripe.upcoming_invoice_line_item") == 4
    requests = copy.upcoming.requests
    await copy.pg.execute("UPDATE pinstripe.cursor SET rows = 100 WHERE stream LIKE 'upcoming%'")
    await copy.pg.execute(f"DELETE FROM {names.replace(', ', '; DELETE FROM ')}")
    await copy.pg.execute("SELECT pg_stat_force_next_flush()")
    await Relist(copy.source, RefetchWorker(copy.source), budget)._watch()
    await copy.upcoming.filling.refill()
    assert copy.upcoming.requests == requests, "owners of whom nothing is upcoming are no loss"


async def test_a_moment_that_passes_without_an_event_refreshes_a_preview_once(
    copy: Copy, sim: Running
) -> None:
    """The end of a period, a trial or a discount, and whether anything was upcoming before it or not."""
    keys = [subscribe(sim, customer(sim), price(sim, 500)) for _ in range(5)]
    await fill(copy, sim)
    whole = copy.upcoming.requests
    await aged(copy, 2)
    past = "now() - interval '1 hour'"
    await copy.pg.execute(
        f"UPDATE stripe.subscription_item SET current_period_end = {past} WHERE subscription_id = $1",
        keys[0],
    )
    await copy.pg.execute(
        f"UPDATE stripe.subscription SET trial_end = {past} WHERE id = $1", keys[1]
    )
    await copy.take([{"id": "di_1", "object": "discount", "subscription": keys[2], "end": 1}])
    await copy.pg.execute(f'UPDATE stripe.discount SET "end" = {past}')
    await copy.pg.execute(
        f"UPDATE stripe.subscription SET pause_collection_resumes_at = {past} WHERE id = $1",
        keys[3],
    )
    await copy.pg.execute(
        "DELETE FROM stripe.upcoming_subscription_invoice WHERE subscription_id = $1", keys[3]
    )
    await copy.pg.execute(
        "UPDATE pinstripe.cursor SET position = position || jsonb_build_object('refilled',"
        " extract(epoch FROM now()) - 7200) WHERE stream = 'upcoming_subscription_invoice'"
    )
    await copy.upcoming.filling.refill()
    assert copy.upcoming.requests == whole + 4
    assert sorted(await copy.totals("subscription")) == sorted(keys)
    await copy.upcoming.filling.refill()
    assert copy.upcoming.requests == whole + 4


async def test_test_clocks_are_included(copy: Copy, sim: Running) -> None:
    clock = post(sim, "/v1/test_helpers/test_clocks", {"frozen_time": NOON})["id"]
    owner = customer(sim, test_clock=clock)
    made = subscribe(sim, owner, price(sim, 300))
    await fill(copy, sim)
    assert await copy.totals("subscription") == {made: 300}
    mark = sim.control.events()
    post(sim, f"/v1/test_helpers/test_clocks/{clock}/advance", {"frozen_time": NOON + 60})
    assert ("subscription", made) in await copy.apply(events_since(sim, mark))


# --- events --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shop:
    """Two customers with a subscription each, of different products."""

    customer: str
    subscription: str
    price: str
    product: str
    other: str

    @property
    def first(self) -> list[tuple[str, str]]:
        """The one refresh that serves the rows of subscription and customer."""
        return [("subscription", self.subscription)]


@pytest.fixture
async def shop(copy: Copy, sim: Running) -> Shop:
    one, other = customer(sim), customer(sim)
    cheap, dear = price(sim, 1000), price(sim, 5000)
    made = Shop(
        one,
        subscribe(sim, one, cheap),
        cheap,
        str(sim.control.truth("price")[-2]["product"]),
        subscribe(sim, other, dear),
    )
    await fill(copy, sim)
    return made


async def happened(
    copy: Copy, sim: Running, path: str, params: Params | None = None, *, method: str = "POST"
) -> list[tuple[str, str]]:
    """The refreshes that one request causes, done."""
    mark = sim.control.events()
    post(sim, path, params, method=method)
    return await copy.apply(events_since(sim, mark))


async def test_a_changed_subscription_refreshes_it_and_its_customer(
    copy: Copy, sim: Running, shop: Shop
) -> None:
    path = f"/v1/subscriptions/{shop.subscription}"
    item = sim.control.truth("subscription_item")[-2]["id"]
    caused = await happened(
        copy, sim, path, {"items": [{"id": item, "quantity": 3}], "proration_behavior": "none"}
    )
    assert caused == shop.first
    assert (await copy.totals("subscription"))[shop.subscription] == 3000
    assert (await copy.totals("customer"))[shop.customer] == 3000


async def test_an_invoice_item_goes_into_the_preview_and_out_of_it_again(
    copy: Copy, sim: Running, shop: Shop
) -> None:
    params = {"customer": shop.customer, "amount": 25, "currency": "usd"}
    assert await happened(copy, sim, "/v1/invoiceitems", params) == shop.first
    assert (await copy.totals("customer"))[shop.customer] == 1025
    assert [amount for _, amount in await copy.lines(shop.subscription)] == [1000, 25]
    item = sim.control.truth("invoiceitem")[-1]["id"]
    assert await happened(copy, sim, f"/v1/invoiceitems/{item}", method="DELETE") == shop.first
    assert (await copy.totals("customer"))[shop.customer] == 1000
    assert [amount for _, amount in await copy.lines(shop.subscription)] == [1000]


async def test_an_item_for_a_customer_without_subscription_is_previewed_at_once(
    copy: Copy, sim: Running, shop: Shop
) -> None:
    fresh = customer(sim)
    params = {"customer": fresh, "amount": 25, "currency": "usd"}
    assert await happened(copy, sim, "/v1/invoiceitems", params) == [("customer", fresh)]
    assert (await copy.totals("customer"))[fresh] == 25


async def test_a_changed_customer_refreshes_all_subscriptions_but_only_if_there_are_any(
    copy: Copy, sim: Running, shop: Shop
) -> None:
    assert await happened(copy, sim, f"/v1/customers/{shop.customer}", {"name": "B"}) == shop.first
    fresh = customer(sim)
    assert await happened(copy, sim, f"/v1/customers/{fresh}", {"name": "B"}) == []


_edits = counting(1)


def edit() -> Params:
    """A change that no other is like: what changes nothing makes no event."""
    return {"metadata": {"edit": str(next(_edits))}}


def rename() -> Params:
    """A change of what previews show."""
    return {"name": f"Renamed {next(_edits)}"}


async def test_a_price_a_product_and_a_tax_rate_lead_to_the_subscriptions_that_have_them(
    copy: Copy, sim: Running, shop: Shop
) -> None:
    price = f"/v1/prices/{shop.price}"
    assert await happened(copy, sim, price, {"tax_behavior": "inclusive"}) == shop.first
    assert await happened(copy, sim, price, edit()) == []
    assert await happened(copy, sim, f"/v1/products/{shop.product}", rename()) == shop.first
    assert await happened(copy, sim, f"/v1/products/{shop.product}", edit()) == []
    rate = {"display_name": "VAT", "percentage": 19, "inclusive": False}
    tax = post(sim, "/v1/tax_rates", rate)
    path = f"/v1/tax_rates/{tax['id']}"
    assert await happened(copy, sim, path, edit()) == []
    sim.control.edit("subscription", shop.subscription, {"default_tax_rates": [tax]})
    await copy_all(copy, sim)
    assert await happened(copy, sim, path, edit()) == shop.first


async def test_a_coupon_leads_to_its_discounts_and_to_discounts_that_are_not_known(
    copy: Copy, sim: Running, shop: Shop
) -> None:
    coupon = post(sim, "/v1/coupons", {"percent_off": 10, "duration": "forever"})["id"]
    path = f"/v1/coupons/{coupon}"
    assert await happened(copy, sim, path, rename()) == []
    discount = {
        "id": "di_1",
        "object": "discount",
        "customer": shop.customer,
        "subscription": shop.subscription,
        "source": {"type": "coupon", "coupon": coupon},
        "promotion_code": "promo_1",
    }
    await copy.take([discount])
    assert await happened(copy, sim, path, rename()) == shop.first
    promotion: Object = {"type": "promotion_code.updated", "data": {"object": {"id": "promo_1"}}}
    assert len(await copy.upcoming.refetches([promotion])) == 1
    on_item = {"id": "di_2", "object": "discount", "customer": None, "subscription": None}
    coupon_of = {"source": {"type": "coupon", "coupon": "other"}}
    item = sim.control.truth("subscription_item")[-1]["id"]
    await copy.take([on_item | coupon_of | {"subscription_item": item}])
    other: Object = {"type": "coupon.deleted", "data": {"object": {"id": "other"}}}
    assert [refetch.id for refetch in await copy.upcoming.refetches([other])] == [shop.other]
    sim.control.edit("subscription", shop.other, {"discounts": ["di_unseen"]})
    await copy_all(copy, sim)
    assert ("subscription", shop.other) in await happened(copy, sim, path, rename())


async def test_a_cancelled_subscription_has_nothing_upcoming(
    copy: Copy, sim: Running, shop: Shop
) -> None:
    path = f"/v1/subscriptions/{shop.subscription}"
    assert await happened(copy, sim, path, method="DELETE") == shop.first
    assert list(await copy.totals("subscription")) == [shop.other]
    assert shop.customer not in await copy.totals("customer")
    assert await copy.lines(shop.customer) == await copy.lines(shop.subscription) == []


async def test_a_deleted_customer_has_nothing_upcoming(
    copy: Copy, sim: Running, shop: Shop
) -> None:
    await happened(copy, sim, f"/v1/customers/{shop.customer}", method="DELETE")
    assert list(await copy.totals("subscription")) == [shop.other]
    assert shop.customer not in await copy.totals("customer")


async def test_a_paid_invoice_refreshes_and_todos_name_the_newest_event_and_its_request(
    copy: Copy, sim: Running, shop: Shop
) -> None:
    item = post(
        sim, "/v1/invoiceitems", {"customer": shop.customer, "amount": 9, "currency": "usd"}
    )
    mark = sim.control.events()
    params = {"customer": shop.customer, "pending_invoice_items_behavior": "include"}
    invoice = post(sim, "/v1/invoices", params)["id"]
    post(sim, f"/v1/invoices/{invoice}/finalize")
    events = events_since(sim, mark)
    refetches = await copy.upcoming.refetches(events)
    assert [(t.kind, t.table, t.id, t.parent) for t in refetches] == [
        (
            "upcoming_subscription",
            "upcoming_subscription_invoice",
            shop.subscription,
            shop.customer,
        ),
    ]
    newest = next(e for e in events if e["type"].startswith("invoice.") and e["request"]["id"])
    assert {t.request_id for t in refetches} == {newest["request"]["id"]}
    assert {t.since for t in refetches} == {float(newest["created"])}
    assert item["id"]


async def test_a_product_that_many_subscribe_to_costs_a_request_for_each_subscription(
    copy: Copy, sim: Running
) -> None:
    """Also where a customer has several, and the one that invoices first has nothing upcoming."""
    monthly, yearly = price(sim, 1000), price(sim, 9000, "year")
    product = next(p["product"] for p in sim.control.truth("price") if p["id"] == monthly)
    owners = [customer(sim) for _ in range(12)]
    subscriptions = {subscribe(sim, owner, monthly): owner for owner in owners}
    for owner in owners[:3]:
        subscribe(sim, owner, yearly)
        subscriptions[subscribe(sim, owner, monthly)] = owner
    ending = subscribe(sim, owners[4], yearly, cancel_at_period_end=True)
    await fill(copy, sim)
    before = copy.upcoming.requests
    caused = await happened(copy, sim, f"/v1/products/{product}", rename())
    assert sorted(caused) == sorted(("subscription", key) for key in subscriptions)
    assert copy.upcoming.requests - before == len(subscriptions)
    assert ending not in await copy.totals("subscription")
    # Each customer's row is as new as that of the subscription which it is the preview of.
    old = await copy.rows(
        "SELECT c.customer_id FROM stripe.upcoming_customer_invoice c"
        " JOIN stripe.upcoming_subscription_invoice s ON s.subscription_id"
        " = c.parent_subscription_details ->> 'subscription'"
        " WHERE c._as_of IS DISTINCT FROM s._as_of OR c.total IS DISTINCT FROM s.total"
    )
    assert old == []
    assert len(await copy.totals("customer")) == len(owners)


async def test_the_customers_preview_is_that_of_whichever_subscription_is_first_now(
    copy: Copy, sim: Running
) -> None:
    owner = customer(sim)
    yearly = subscribe(sim, owner, price(sim, 9000, "year"))
    monthly = subscribe(sim, owner, price(sim, 1000))
    await fill(copy, sim)
    assert await copy.totals("customer") == {owner: 1000}
    path = f"/v1/subscriptions/{monthly}"
    assert await happened(copy, sim, path, method="DELETE") == [("subscription", monthly)]
    assert await copy.totals("customer") == {owner: 9000}
    assert await copy.totals("subscription") == {yearly: 9000}
    later = subscribe(sim, owner, price(sim, 500))
    mark = sim.control.events()
    await copy.take(list(sim.control.truth("subscription")))
    post(sim, f"/v1/subscriptions/{later}", edit())
    await copy.apply(events_since(sim, mark))
    assert await copy.totals("customer") == {owner: 500}


async def test_events_that_change_no_invoice_ask_for_nothing(copy: Copy, shop: Shop) -> None:
    for name in ("charge.succeeded", "invoice.sent", "payout.paid", "customer.created"):
        event: Object = {"type": name, "data": {"object": {"id": "x", "customer": shop.customer}}}
        assert await copy.upcoming.refetches([event]) == []


async def test_customers_without_subscriptions_cost_no_request(copy: Copy, sim: Running) -> None:
    await copy.upcoming.refresh("customer", customer(sim))
    assert copy.upcoming.requests == 0


async def _owners(copy: Copy, change: Affected) -> set[OwnerKey]:
    """Those behind the relations of an event."""
    mirror = copy.upcoming.source.mirror
    found = await origins(copy.pg, change, schema=mirror.schema, tables=mirror.tables)
    return set(change.owners).union(*found.values())


async def test_a_fan_out_gives_the_owners_by_kind(copy: Copy, shop: Shop) -> None:
    event: Object = {
        "type": "price.updated",
        "data": {"object": {"id": shop.price, "object": "price"}},
    }
    found = await _owners(copy, affected(event))
    assert found == {
        ("upcoming_customer", shop.customer),
        ("upcoming_subscription", shop.subscription),
    }


async def test_every_way_from_a_relation_to_owners_runs(copy: Copy, shop: Shop) -> None:
    relations: tuple[Relation, ...] = get_args(Relation)
    everything = Affected(through=frozenset((name, "x") for name in relations))
    assert await _owners(copy, everything) == set()
    known = Affected(through=frozenset({("customer", shop.customer), ("subscription", shop.other)}))
    found = await _owners(copy, known)
    assert {key for _, key in found} > {shop.customer, shop.subscription, shop.other}


async def test_everyone_with_automatic_tax_is_affected_by_the_tax_settings(
    copy: Copy, sim: Running, shop: Shop
) -> None:
    event: Object = {"type": "tax.settings.updated", "data": {"object": {"object": "tax.settings"}}}
    for made, enabled in ((shop.subscription, True), (shop.other, False)):
        sim.control.edit("subscription", made, {"automatic_tax": {"enabled": enabled}})
    await copy_all(copy, sim)
    assert [refetch.id for refetch in await copy.upcoming.refetches([event])] == [
        shop.subscription,
    ]


# --- keys and versions ---------------------------------------------------------------------------


async def test_a_key_that_may_not_preview_is_recorded_once_and_not_asked_again(
    database: str, sim: Running
) -> None:
    sim.control.key("rk_test_reader0001", denied=["invoice_write"])
    owners = [customer(sim) for _ in range(20)]
    made = [subscribe(sim, owner, price(sim, 100)) for owner in owners]
    async with copying(database, sim.url, "rk_test_reader0001") as copy:
        await fill(copy, sim)
        saved = await load_checkpoints(copy.pg, "stripe")
        for table in ("upcoming_customer_invoice", "upcoming_subscription_invoice"):
            assert saved[table].state == "refused"
            assert "invoice_write" in saved[table].reason
            assert "invoice_write" in saved[table].remedy
        asked = copy.upcoming.requests
        assert asked < 40
        await copy.upcoming.refresh("customer", owners[0])
        await copy.upcoming.refresh("subscription", made[0])
        event: Object = {
            "type": "price.updated",
            "data": {"object": sim.control.truth("price")[-1]},
        }
        assert await copy.upcoming.refetches([event]) == []
        assert copy.upcoming.requests == asked
    async with copying(database, sim.url, sim.key) as copy:
        await copy.upcoming.fill()
        assert len(await copy.totals("customer")) == len(await copy.totals("subscription")) == 20
        saved = await load_checkpoints(copy.pg, "stripe")
        assert saved["upcoming_customer_invoice"].state == "done"
        assert saved["upcoming_customer_invoice"].reason == ""


async def test_up_to_acacia_the_upcoming_endpoint_is_asked(database: str, sim: Running) -> None:
    owner, items_only, nobody = customer(sim), customer(sim), customer(sim)
    made = subscribe(sim, owner, price(sim, 1500))
    extra(sim, owner, 20)
    extra(sim, items_only, 30)
    async with copying(database, sim.url, sim.key, api_version=ACACIA) as copy:
        await fill(copy, sim)
        await copy.upcoming.refresh("customer", nobody)
        asked = copy.source.stripe.requests
        assert set(asked) == {"GET /v1/invoices/upcoming"}
        assert await copy.totals("subscription") == {made: 1520}
        assert sorted(await copy.totals("customer")) == sorted([owner, items_only])
        (version,) = {
            v
            for (v,) in await copy.rows(
                "SELECT _api_version FROM stripe.upcoming_subscription_invoice"
            )
        }
        assert version == ACACIA


async def test_without_the_subscriptions_nothing_is_asked(database: str, sim: Running) -> None:
    names = ("upcoming_customer_invoice", "upcoming_subscription_invoice")
    async with copying(database, sim.url, sim.key, names=names) as copy:
        await copy.upcoming.fill()
        await copy.upcoming.refresh("customer", customer(sim))
        assert copy.upcoming.requests == 0


async def test_the_other_tables_are_not_needed(database: str, sim: Running) -> None:
    owner = customer(sim)
    subscribe(sim, owner, price(sim, 1500))
    names = ("subscription", "upcoming_customer_invoice")
    async with copying(database, sim.url, sim.key, names=names) as copy:
        await fill(copy, sim)
        assert await copy.totals("customer") == {owner: 1500}


# --- what is newer -------------------------------------------------------------------------------


def preview_of(total: int, count: int, at: float) -> Preview:
    lines = tuple({"object": "line_item", "amount": total + n} for n in range(count))
    invoice: dict[str, object] = {"object": "invoice", "total": total}
    return Preview(invoice, lines, AsOf(at, at + 1))


@pytest.mark.parametrize(("older", "newer"), [(5, 3), (3, 5)])
async def test_an_older_preview_overwrites_neither_the_row_nor_the_lines_of_a_newer(
    copy: Copy, older: int, newer: int
) -> None:
    place = UpcomingRow("stripe", copy.source.mirror.tables, "subscription", "sub_1")
    before = await copy.pg.fetchval("SELECT clock_timestamp()")
    assert await copy.upcoming.write(place, preview_of(200, newer, NOON + 60), before)
    assert not await copy.upcoming.write(place, preview_of(100, older, NOON), before)
    assert await copy.totals("subscription") == {"sub_1": 200}
    assert [amount for _, amount in await copy.lines("sub_1")] == [200 + n for n in range(newer)]


async def test_what_was_asked_for_after_the_row_was_seen_is_newer_in_the_same_second(
    copy: Copy,
) -> None:
    place = UpcomingRow("stripe", copy.source.mirror.tables, "subscription", "sub_1")
    for total, lines in ((100, 3), (200, 5), (300, 1)):
        seen = await copy.pg.fetchval("SELECT clock_timestamp()")
        assert await copy.upcoming.write(place, preview_of(total, lines, NOON), seen)
        assert await copy.totals("subscription") == {"sub_1": total}
        assert len(await copy.lines("sub_1")) == lines
    seen = await copy.pg.fetchval("SELECT clock_timestamp()")
    assert await copy.upcoming.write(place, None, seen)
    assert await copy.rows(f"SELECT id FROM stripe.{LINES}") == []
    assert await copy.totals("subscription") == {}


async def test_nothing_upcoming_does_not_remove_a_preview_that_came_after_it(copy: Copy) -> None:
    place = UpcomingRow("stripe", copy.source.mirror.tables, "customer", "cus_1")
    before = await copy.pg.fetchval("SELECT clock_timestamp()")
    await copy.upcoming.write(place, preview_of(200, 2, NOON), before)
    assert not await copy.upcoming.write(place, None, before)
    assert await copy.totals("customer") == {"cus_1": 200}
    assert len(await copy.lines("cus_1")) == 2


async def test_previews_of_many_owners_may_share_a_transaction(copy: Copy, sim: Running) -> None:
    monthly = price(sim, 700)
    owners = [customer(sim) for _ in range(30)]
    for owner in owners:
        subscribe(sim, owner, monthly, monthly)
    await fill(copy, sim)
    assert await copy.totals("customer") == dict.fromkeys(sorted(owners), 1400)
    (lines,) = (await copy.rows(f"SELECT count(*) FROM stripe.{LINES}"))[0]
    assert lines == 30 * 2 * 2


# --- long invoices -------------------------------------------------------------------------------


def long_preview(length: int) -> list[nasty.Act]:
    """What Stripe answers for `length` lines: ten of them, then pages."""
    url = "/v1/invoices/upcoming_in_1/lines"
    lines = [
        {"id": f"il_tmp{n}", "object": "line_item", "amount": n, "invoice": "upcoming_in_1"}
        for n in range(length)
    ]
    first = {"object": "list", "data": lines[:10], "has_more": length > 10, "url": url}
    invoice = {"id": "upcoming_in_1", "object": "invoice", "total": length, "lines": first}
    acts = [nasty.good(invoice)]
    for at in range(0, length if length > 10 else 0, 100):
        more = length > at + 100
        page = {"object": "list", "data": lines[at : at + 100], "has_more": more, "url": url}
        acts.append(nasty.good(page))
    return acts


@pytest.mark.parametrize("length", [10, 11, 100, 101, 250])
async def test_lines_are_followed_to_their_end(database: str, length: int) -> None:
    async with (
        NastyServer(*long_preview(length)) as server,
        copying(database, server.url, "sk_test_anything123456") as copy,
    ):
        await copy.upcoming.refresh("subscription", "sub_1")
        assert await copy.lines("sub_1") == [(f"sub_1:{n}", n) for n in range(length)]
        assert await copy.rows(f"SELECT DISTINCT invoice_id FROM stripe.{LINES}") == [(None,)]
        assert server.requests[0].target == "/v1/invoices/create_preview"
        assert server.requests[0].body == b"subscription=sub_1"
        pages = [r.target for r in server.requests[1:]]
        assert len(pages) == (0 if length == 10 else (length + 99) // 100)
        for at, target in enumerate(pages):
            assert target.startswith("/v1/invoices/upcoming_in_1/lines?limit=100")
            assert ("starting_after" in target) == (at > 0)


@pytest.mark.parametrize(
    "trouble",
    [
        nasty.error(404, "resource_missing"),
        nasty.error(400, message="No."),
        nasty.good({"object": "invoice"}),
        nasty.good({"object": "list", "data": [], "has_more": True}),
    ],
)
async def test_a_preview_whose_later_lines_cannot_be_read_stands_and_says_so(
    database: str, trouble: nasty.Act
) -> None:
    acts = [*long_preview(3), long_preview(30)[0], trouble, *long_preview(30)]
    async with (
        NastyServer(*acts) as server,
        copying(database, server.url, "sk_test_anything123456") as copy,
    ):
        unread = "SELECT _extra -> 'lines' FROM stripe.upcoming_subscription_invoice"
        await copy.upcoming.refresh("subscription", "sub_1")
        with pytest.raises(Drifted, match="sub_1"):
            await copy.upcoming.refresh("subscription", "sub_1")
        assert await copy.totals("subscription") == {"sub_1": 30}
        assert len(await copy.lines("sub_1")) == 10
        assert await copy.rows(unread) == [('{"has_more": true}',)]
        await copy.upcoming.refresh("subscription", "sub_1")
        assert len(await copy.lines("sub_1")) == 30
        assert await copy.rows(unread) == [(None,)]


async def test_what_stripe_cannot_compute_is_removed_and_counted(database: str) -> None:
    acts = [*long_preview(3), nasty.error(400, "customer_tax_location_invalid")]
    async with (
        NastyServer(*acts) as server,
        copying(database, server.url, "sk_test_anything123456") as copy,
    ):
        await copy.upcoming.refresh("subscription", "sub_1")
        await copy.upcoming.refresh("subscription", "sub_1")
        assert await copy.totals("subscription") == {}
        assert copy.upcoming.unpreviewable == 1


async def test_refreshes_of_one_owner_wait_for_each_other(copy: Copy, sim: Running) -> None:
    made = subscribe(sim, customer(sim), price(sim, 100))
    await copy_all(copy, sim)
    await asyncio.gather(*(copy.upcoming.refresh("subscription", made) for _ in range(10)))
    assert await copy.totals("subscription") == {made: 100}
    assert copy.upcoming.requests == 10
    assert copy.source.mirror.conflicts.count == 0
