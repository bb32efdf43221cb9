"""The first copy of an account equals the account."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from random import Random

import asyncpg
import pytest
from tests.flows.harness.account import copy, copying, make_schema, until
from tests.flows.harness.truth import differences

from pinstripe.catalog.tables import tables
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.store import session
from pinstripe.store.cursors import load_checkpoints
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

pytestmark = pytest.mark.migrated

NOON = 1_790_000_000
SCALE = int(os.environ.get("BACKFILL_SCALE", "1000"))


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=SCALE, until=NOON, connected=False)) as started:
        yield started


@pytest.fixture
async def small() -> AsyncIterator[Running]:
    async with running(Settings(scale=600, until=NOON, connected=False)) as started:
        yield started


async def test_every_row_equals_stripes_own_object(
    database: str, pg: asyncpg.Connection, sim: Running
) -> None:
    await make_schema(database)
    outcome = await copy(database, sim)
    assert outcome.complete, [s for s in outcome.streams if s.state not in ("done", "refused")]
    assert await differences(database, sim) == {}
    # What lists hide and cut, one by one.
    one = pg.fetchval
    # The planner knows the rows before autovacuum comes by.
    assert (
        await one(
            "SELECT count(*) FROM pg_stats WHERE schemaname = 'stripe' AND attname = 'status'"
            " AND tablename IN ('charge', 'invoice', 'subscription')"
        )
        == 3
    )
    assert await one("SELECT count(*) FROM stripe.subscription WHERE status = 'canceled'")
    assert await one("SELECT count(*) FROM stripe.price WHERE NOT active")
    assert await one("SELECT count(*) FROM stripe.customer WHERE test_clock_id IS NOT NULL")
    assert await one("SELECT count(*) FROM stripe.customer WHERE deleted")
    lines = "SELECT count(*) AS n FROM stripe.line_item GROUP BY invoice_id"
    assert await one(f"SELECT max(n) FROM ({lines}) AS by_invoice") > 10
    # Nothing refers into nothing, save for what Stripe does not have.
    dangling = await one(
        "SELECT count(*) FROM stripe.charge c LEFT JOIN stripe.customer u ON u.id = c.customer_id"
        " WHERE c.customer_id IS NOT NULL AND u.id IS NULL AND c.customer_id NOT IN"
        " (SELECT id FROM pinstripe.missing WHERE \"table\" = 'customer')"
    )
    assert dangling == 0


async def test_a_second_run_over_a_complete_copy_asks_little(
    database: str, pg: asyncpg.Connection, small: Running
) -> None:
    await make_schema(database)
    first = await copy(database, small)
    missing = await pg.fetch("SELECT * FROM pinstripe.missing")
    second = await copy(database, small)
    assert second.complete
    assert second.requests < first.requests * 0.6
    assert second.references is not None
    assert (second.references.fetched, second.references.missing) == ({}, {})
    assert await pg.fetch("SELECT * FROM pinstripe.missing") == missing


async def test_a_run_that_is_cancelled_anywhere_is_resumed(database: str, sim: Running) -> None:
    await make_schema(database)
    dice = Random(3)
    async with running(Settings(scale=SCALE, until=NOON, connected=False)) as other:
        await make_schema(database, "whole")
        whole = (await copy(database, other, schema="whole")).requests
    asked = 0
    cancelled = 0
    for _ in range(8):
        async with copying(database, sim) as backfill:
            requests = backfill._source.stripe.requests
            wanted = dice.uniform(0.02, 0.2) * whole
            task = asyncio.create_task(backfill.run())
            await until(lambda: task.done() or requests.total() >= wanted, timeout_s=60)  # noqa: B023
            task.cancel()
            await asyncio.wait([task])
            asked += requests.total()
            if not task.cancelled():
                break
            cancelled += 1
    outcome = await copy(database, sim)
    asked += outcome.requests
    assert cancelled > 3
    assert outcome.complete
    assert await differences(database, sim) == {}
    assert asked < 2 * whole


@pytest.mark.parametrize("seed", [1, 2])
async def test_trouble_on_the_way_leaves_no_trace(database: str, small: Running, seed: int) -> None:
    await make_schema(database)
    kinds = ["error_500", "error_409", "rate_limit", "reset_before", "reset_in_body", "cut"]
    kinds += ["half_json", "html", "gzip_garbage"]
    for kind in kinds:
        small.control.fault(kind=kind, share=0.02)
    outcome = await copy(database, small)
    small.control.clear_faults()
    assert outcome.complete, [s for s in outcome.streams if s.state not in ("done", "refused")]
    assert await differences(database, small) == {}


async def test_what_a_key_may_not_read_is_told_and_the_rest_is_copied(
    database: str, pg: asyncpg.Connection, small: Running
) -> None:
    await make_schema(database)
    small.control.key("rk_test_some0001", denied=["dispute_read", "balance_read", "line_item_read"])
    small.control.not_enabled(["issuing", "treasury"])
    outcome = await copy(database, small, key="rk_test_some0001")
    assert outcome.complete
    cursors = await load_checkpoints(pg, "stripe")
    refused = {s: c for s, c in cursors.items() if c.state == "refused"}
    assert "dispute_read" in refused["/v1/disputes"].reason
    assert "dispute_read" in refused["/v1/disputes"].remedy
    assert "not set up to use Issuing" in refused["/v1/issuing/cards"].reason
    assert "balance_read" in refused["/v1/balance"].reason
    assert {s.stream for s in outcome.streams if s.state == "refused"} == set(refused)
    wrong = await differences(database, small)
    told = {c.position["table"] for c in refused.values() if isinstance(c.position, dict)}
    assert set(wrong) <= told, wrong


async def test_a_nested_list_that_may_not_be_read_costs_only_its_own_rows(
    database: str, pg: asyncpg.Connection, sim: Running
) -> None:
    await make_schema(database)
    sim.control.key("rk_test_some0002", denied=["line_item_read"])
    outcome = await copy(database, sim, key="rk_test_some0002")
    assert outcome.complete
    cursors = await load_checkpoints(pg, "stripe")
    gap = cursors["/v1/invoices/{invoice}/lines"]
    assert gap.state == "refused"
    assert "line_item_read" in gap.reason
    assert set(await differences(database, sim)) == {"line_item"}
    # With the permission the next run fills the gap, also if one before it is killed as it begins.
    async with copying(database, sim) as killed:
        await killed.prepare()
    assert (await copy(database, sim)).complete
    assert await differences(database, sim) == {}


async def test_without_events_what_came_meanwhile_is_found_by_a_second_look(
    database: str, small: Running
) -> None:
    await make_schema(database)
    small.control.key("rk_test_some0003", denied=["event_read"])
    async with copying(database, small, key="rk_test_some0003") as backfill:
        task = asyncio.create_task(backfill.run())
        while backfill.phase in ("starting", "lists") and not task.done():
            small.control.mutator.deeds.create_customer()
            await asyncio.sleep(0.02)
        outcome = await task
    assert outcome.events is None
    assert "event_read" in backfill.note
    wrong = await differences(database, small)
    assert "missing" not in wrong.get("customer", ""), wrong


async def test_what_changes_while_it_runs_is_neither_lost_nor_looped_over(
    database: str, sim: Running
) -> None:
    await make_schema(database)
    sim.control.latency(fixed_s=0.005)
    async with copying(database, sim) as backfill, asyncio.timeout(60):
        task = asyncio.create_task(backfill.run())
        changes = 0
        while backfill.phase in ("starting", "lists") and not task.done():
            # Few enough that a slow machine, where the lists take long, is not given ever more to do.
            for _ in range(2 if changes < 400 else 0):
                sim.control.mutator.one()
                changes += 1
            await asyncio.sleep(0.01)
        outcome = await task
    assert outcome.complete
    assert outcome.events is not None
    assert outcome.events > 20
    # Of other types Stripe does not tell every change.
    heard = {"charge", "coupon", "customer", "invoice", "plan", "price", "product", "subscription"}
    wrong = await differences(database, sim)
    assert {t: w for t, w in wrong.items() if t in heard} == {}


async def test_two_schemas_of_one_database_are_filled_at_once(
    database: str, small: Running
) -> None:
    async with running(Settings(seed=9, scale=600, until=NOON, connected=False)) as other:
        await make_schema(database, "one")
        await make_schema(database, "two")
        await asyncio.gather(
            copy(database, small, schema="one"), copy(database, other, schema="two")
        )
        assert await differences(database, small, schema="one") == {}
        assert await differences(database, other, schema="two") == {}


async def test_a_long_list_under_limits_takes_few_requests_more_than_it_needs(
    database: str,
) -> None:
    mix = {"customer": 300, "charge": 12_000, "v2.core.account": 250}
    chosen = {name: tables()[name] for name in ("customer", "charge", "v2_core_account", "event")}
    async with running(Settings(until=NOON, mix=mix, connected=False)) as sim:
        await make_schema(database, chosen=chosen)
        budget = RateLimiter(account_rate=400, endpoint_rate=200)
        async with copying(database, sim, chosen=chosen, budget=budget) as backfill:
            outcome = await backfill.run()
    [charges] = [s for s in outcome.streams if s.stream == "/v1/charges"]
    assert charges.rows >= 12_000
    assert charges.requests <= 120 * 1.05 + 5
    # A list of v2 names its next page itself.
    [accounts] = [s for s in outcome.streams if s.stream == "/v2/core/accounts"]
    assert (accounts.rows, accounts.requests) == (250, 3), accounts


async def test_an_index_beside_writers_waits_for_a_long_transaction_and_ends_nothing(
    database: str, pg: asyncpg.Connection, small: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup holds its snapshot for hours, and Postgres waits for it however little it touches."""
    monkeypatch.setitem(session._SETTINGS, "lock_timeout", "200ms")
    await make_schema(database)
    await pg.execute("DROP INDEX stripe.charge_customer_id_idx")
    backup = await asyncpg.connect(database)
    await backup.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class")
    waits = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%'"
        " AND wait_event = 'virtualxid' AND query_start < clock_timestamp() - interval '500 ms')"
    )
    async with copying(database, small) as run, asyncio.timeout(60):
        following = asyncio.create_task(run.run(followed=True))
        while not await pg.fetchval(waits) and not following.done():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await backup.close()
        await following
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'stripe.charge_customer_id_idx'::regclass"
    assert await pg.fetchval(valid)
