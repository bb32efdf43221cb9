"""Nothing is written for nothing: what Stripe shows unchanged touches no row, and counts as seen."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import asyncpg
import pytest
from tests.flows.harness.account import Copy, open_copy
from tests.flows.harness.scripted_stripe import ScriptedStripe, error, scripted_stripe

from pinstripe.catalog.tables import tables
from pinstripe.source.source import Source
from pinstripe.store.cursors import load_freshness
from pinstripe.sync.backfill.backfill import Backfill
from pinstripe.sync.backfill.references import queue_missing
from pinstripe.sync.refetch.worker import RefetchWorker
from pinstripe.sync.relist import Intervals, Relist

pytestmark = pytest.mark.migrated

_TABLES = ("customer", "event", "subscription", "subscription_item")
_PLACES = " UNION ALL ".join(
    f"SELECT '{name}', id, ctid::text, xmin::text, _synced_at::text FROM stripe.{name}"
    for name in _TABLES
)
_YEARS_AGO = 1_700_000_000


@pytest.fixture
async def stripe() -> AsyncIterator[ScriptedStripe]:
    async with scripted_stripe() as stub:
        stub.lists["/v1/customers"] = [customer(n) for n in range(120, 0, -1)]
        stub.lists["/v1/subscriptions"] = [subscription("si_1", "si_2")]
        stub.lists["/v1/subscription_items"] = [item("si_1"), item("si_2")]
        yield stub


@pytest.fixture
async def copy(stripe: ScriptedStripe, database: str) -> AsyncIterator[Copy]:
    async with open_copy(stripe, database) as opened:
        yield opened


def customer(number: int, **fields: object) -> dict[str, object]:
    made = {"id": f"cus_{number}", "object": "customer", "created": _YEARS_AGO + number}
    return made | {"metadata": {"b": "1", "a": "2"}, "name": f"Ada {number}", **fields}


def item(key: str) -> dict[str, object]:
    made = {"id": key, "object": "subscription_item", "created": _YEARS_AGO}
    return made | {"subscription": "sub_1", "quantity": 1}


def subscription(*items: str) -> dict[str, object]:
    held = {"object": "list", "data": [item(i) for i in items], "has_more": False}
    held["url"] = "/v1/subscription_items?subscription=sub_1"
    made = {"id": "sub_1", "object": "subscription", "created": _YEARS_AGO, "status": "active"}
    return made | {"customer": "cus_1", "items": held}


async def copied(copy: Copy, pg: asyncpg.Connection) -> Relist:
    """The schedule of an account whose first copy is done, all of which was true an hour ago."""
    wanted = {name: tables()[name] for name in _TABLES}
    source = Source(copy.source.stripe, copy.mirror, wanted, copy.source.pool)
    await Backfill(source, copy.source.pool, copy.budget, now=time.time()).run()
    for name in _TABLES:
        await pg.execute(
            f"UPDATE stripe.{name} SET _as_of = now() - interval '61 min',"
            " _as_of_latest = now() - interval '60 min'"
        )
    refetches = RefetchWorker(source)
    return Relist(source, refetches, copy.budget, intervals=Intervals())


async def passed(relist: Relist, *paths: str) -> None:
    await relist.full_refresh([e for e in relist._endpoints() if e.path in paths])


async def queued(pg: asyncpg.Connection) -> list[str]:
    rows = await pg.fetch("SELECT id FROM pinstripe.pending ORDER BY id")
    return [row[0] for row in rows]


async def test_a_pass_over_what_has_not_changed_touches_no_row_and_is_known(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    relist = await copied(copy, pg)
    before, began = await pg.fetch(_PLACES), time.time()
    assert len(before) == 123
    await passed(relist, "/v1/customers", "/v1/subscriptions")
    assert await pg.fetch(_PLACES) == before
    assert await queued(pg) == []
    fresh = {f.table: f.known_to for f in await load_freshness(pg, "stripe") if f.how == "pass"}
    assert fresh["customer"] > began - 3


async def test_a_pass_finds_what_no_list_shows_among_rows_that_have_not_changed(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    relist = await copied(copy, pg)
    del stripe.lists["/v1/customers"][7]
    stripe.lists["/v1/customers"][11]["name"] = "Grace"
    await passed(relist, "/v1/customers")
    assert await queued(pg) == ["cus_113"]
    assert await pg.fetchval("SELECT name FROM stripe.customer WHERE id = 'cus_108'") == "Grace"


async def test_where_lists_leave_many_rows_out_each_pass_asks_for_others(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    """Else those behind the first thousands that no list ever shows would never have their turn."""
    await copied(copy, pg)
    found: set[str] = set()
    for second in range(40):
        since = time.time() + second
        found.update(r.id for r in await queue_missing(copy.source, ["customer"], since, most=9))
    assert len(found) > 50


async def test_a_pass_that_does_not_come_to_its_end_says_nothing_of_any_row(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    """Where the account has not enabled a product any more, a GET of what belongs to it is a plain 404."""
    relist = await copied(copy, pg)
    refused = error(400, "Your account is not set up to use Customers.")
    gone = error(404, "No such object", "resource_missing")
    stripe.hooks.append(lambda path, _: refused if path == "/v1/customers" else None)
    stripe.hooks.append(lambda path, _: gone if path.startswith("/v1/customers/") else None)
    await passed(relist, "/v1/customers")
    await RefetchWorker(copy.source).drain()
    assert not await pg.fetchval("SELECT count(*) FROM stripe.customer WHERE deleted")
    assert [f for f in await load_freshness(pg, "stripe") if f.how == "pass"] == []


async def test_members_that_have_not_changed_are_not_taken_for_gone(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    relist = await copied(copy, pg)
    query = "SELECT id FROM stripe.subscription_item WHERE deleted IS NOT TRUE ORDER BY id"
    await passed(relist, "/v1/subscriptions")
    assert [row[0] for row in await pg.fetch(query)] == ["si_1", "si_2"]
    # The next pass is later, however little is known of Stripe's clock.
    await pg.execute(
        "UPDATE pinstripe.confirmation SET as_of = as_of - interval '20 min',"
        " as_of_latest = as_of_latest - interval '20 min'"
    )
    stripe.lists["/v1/subscriptions"] = [subscription("si_2")]
    await passed(relist, "/v1/subscriptions")
    assert [row[0] for row in await pg.fetch(query)] == ["si_2"]


async def test_an_object_fetched_again_unchanged_touches_no_row_and_is_settled(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    await copied(copy, pg)
    before = await pg.fetch(_PLACES)
    worker = RefetchWorker(copy.source)
    await pg.execute(
        'INSERT INTO pinstripe.pending (schema, kind, "table", id, since)'
        " VALUES ('stripe', 'fetch', 'customer', 'cus_5', now())"
    )
    await worker.drain()
    assert "/v1/customers/cus_5" in stripe.paths()
    assert await pg.fetch(_PLACES) == before
    assert await queued(pg) == []


async def test_the_event_list_is_followed_and_never_read_again(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    relist = await copied(copy, pg)
    relist._passed_at = dict.fromkeys(relist._passed_at, -float("inf"))
    stripe.asked.clear()
    for _ in relist._endpoints():
        await relist.run_due()
    assert "/v1/customers" in stripe.paths()
    assert "/v1/events" not in stripe.paths()


async def test_a_start_of_a_complete_account_reads_no_event_that_it_has(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    relist = await copied(copy, pg)
    stripe.asked.clear()
    await Backfill(relist._source, copy.source.pool, copy.budget, now=time.time()).run()
    begins = [dict(params).get("created[gte]", "0") for p, params in stripe.asked if p == _EVENTS]
    assert begins
    assert min(map(int, begins)) > time.time() - 3600


_EVENTS = "/v1/events"
