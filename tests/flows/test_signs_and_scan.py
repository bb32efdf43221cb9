"""Lists by parent: the first copy reads those with a sign, the scan the rest; ready waits for no list."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import asyncpg
import pytest
from tests.flows.harness.account import Copy, copying, make_schema, open_account, until
from tests.flows.harness.truth import differences

from pinstripe.catalog.endpoints import ListEndpoint, list_endpoints
from pinstripe.catalog.tables import tables
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.store import confirmations
from pinstripe.store.confirmations import Confirmation
from pinstripe.store.cursors import SCAN_OF, Checkpoint, load_checkpoints, save_checkpoints
from pinstripe.store.quarantine import find_lost
from pinstripe.store.status import read_status
from pinstripe.sync.backfill.backfill import Backfill
from pinstripe.sync.backfill.child_lists import ChildListStream
from pinstripe.sync.refetch.worker import RefetchWorker
from pinstripe.sync.relist import Intervals, Relist
from pinstripe.sync.scan import Scan
from pinstripe_simulator.account import Settings
from pinstripe_simulator.nastiness import STRIPE
from pinstripe_simulator.server import Running, running

pytestmark = pytest.mark.migrated

NOON = 1_790_000_000
MANY_CUSTOMERS = Settings(
    until=NOON,
    mix={"customer": 700, "customer_balance_transaction": 60, "invoice": 80},
    connected=False,
)
BALANCES = "GET /v1/customers/{customer}/balance_transactions"
SIGNED = (
    "SELECT count(*) FROM stripe.customer c WHERE c.deleted IS NOT TRUE AND (c.balance <> 0"
    " OR EXISTS (SELECT FROM stripe.invoice i WHERE i.customer_id = c.id"
    " AND (i.starting_balance <> 0 OR i.ending_balance <> 0))"
    " OR EXISTS (SELECT FROM stripe.credit_note n WHERE n.customer_id = c.id"
    " AND n.customer_balance_transaction_id IS NOT NULL))"
)
ENTITLED = (
    "SELECT count(DISTINCT s.customer_id) FROM stripe.subscription s"
    " JOIN stripe.customer c ON c.id = s.customer_id AND c.deleted IS NOT TRUE"
    " JOIN stripe.subscription_item i ON i.subscription_id = s.id"
    " JOIN stripe.price p ON p.id = i.price_id"
    " JOIN stripe.product_feature f ON f.product_id = p.product_id"
    " WHERE s.status NOT IN ('canceled', 'incomplete', 'incomplete_expired')"
)


BY_PARENT = [e for e in list_endpoints() if e.parent]


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=600, until=NOON, connected=False)) as started:
        yield started


def fast() -> RateLimiter:
    """A budget of which the scan's fifth costs a test no time."""
    return RateLimiter(account_rate=20_000.0, endpoint_rate=None)


def slow_customers() -> RateLimiter:
    """A budget with which the pages of customers take seconds, and all else no time."""
    rates = {"GET /v1/customers": 2.0}
    return RateLimiter(account_rate=20_000.0, endpoint_rate=None, own_rates=rates)


def is_listed(backfill: Backfill) -> bool:
    """Whether the plain list of customers was read to its end."""
    (work,) = [w for w in backfill.works if w.endpoint.stream == "/v1/customers"]
    return work.finished


async def nobody(_: ListEndpoint, __: float) -> None:
    """Nobody notes the end of a round here."""


def scan_of(copy: Copy) -> Scan:
    return Scan(copy.source, copy.budget, round_s=lambda: 86_400.0, ended=nobody)


async def test_the_first_copy_reads_lists_by_parent_where_a_row_shows_a_sign(
    database: str, pg: asyncpg.Connection, sim: Running
) -> None:
    await make_schema(database)
    async with copying(database, sim, deep=False) as backfill:
        outcome = await backfill.run()
        asked = backfill._source.stripe.requests[BALANCES]
        entitled = backfill._source.stripe.requests["GET /v1/entitlements/active_entitlements"]
    assert outcome.complete
    assert asked == await pg.fetchval(SIGNED)
    # Subscribers of a product without features are entitled to nothing.
    assert entitled == await pg.fetchval(ENTITLED)
    subscribers = "SELECT count(DISTINCT customer_id) FROM stripe.subscription"
    assert 0 < entitled < await pg.fetchval(subscribers)
    alive = await pg.fetchval("SELECT count(*) FROM stripe.customer WHERE deleted IS NOT TRUE")
    assert 0 < asked < alive
    found = (await read_status(pg, schema="stripe"))[0]
    assert found.ready
    assert all(table.ready for table in found.tables)
    balances = next(s for s in found.scan if s.table == "customer_balance_transaction")
    assert (balances.owed, balances.rounds) == (balances.of, 0)
    # A second run goes by the events: no list by parent is read again.
    async with copying(database, sim, deep=False) as backfill:
        await backfill.run()
        assert not backfill._source.stripe.requests[BALANCES]


async def test_parents_with_a_sign_are_read_while_the_others_are_still_listed(
    database: str, pg: asyncpg.Connection
) -> None:
    """Their lists take a minute for each 1,500, which must not begin when all parents are there."""
    await make_schema(database)
    async with (
        running(MANY_CUSTOMERS) as sim,
        copying(database, sim, deep=False, budget=slow_customers()) as backfill,
    ):
        run = asyncio.create_task(backfill.run())
        asked = backfill._source.stripe.requests
        await until(lambda: asked[BALANCES] > 0)
        assert not is_listed(backfill)
        outcome = await run
    assert outcome.complete
    signed = {row[0] for row in await pg.fetch(SIGNED.replace("count(*)", "c.id"))}
    assert asked[BALANCES] == len(signed)
    made = sim.account.world.truth("customer_balance_transaction")
    stored = await pg.fetchval("SELECT count(*) FROM stripe.customer_balance_transaction")
    assert stored == sum(entry["customer"] in signed for entry in made) > 0


async def test_what_was_read_early_is_not_read_early_again_after_a_restart(
    database: str,
) -> None:
    """Nobody remembers it; a platform's copy is made in steps, which would each begin with it."""
    await make_schema(database)
    async with running(MANY_CUSTOMERS) as sim:
        async with copying(database, sim, deep=False) as begun:
            await begun.prepare()
        async with copying(database, sim, deep=False, budget=slow_customers()) as backfill:
            run = asyncio.create_task(backfill.run())
            await until(lambda: backfill._source.stripe.requests[BALANCES] > 0)
            assert is_listed(backfill)
            await run


async def test_parents_are_found_without_a_join_on_tables_of_unknown_size(
    database: str, pg: asyncpg.Connection, sim: Running
) -> None:
    """For two rows Postgres joins as for one, and reads the signs anew for each of a million parents."""
    await make_schema(database)
    async with copying(database, sim, deep=False) as backfill:
        await backfill.prepare()
        works = [w for w in backfill.works if isinstance(w, ChildListStream)]
        balances = next(w for w in works if w.endpoint.name == BALANCES)
        found = balances.passes._from(["invoice", "credit_note"], ["customer"])
    for is_analyzed in (False, True):
        if is_analyzed:
            await pg.execute("ANALYZE stripe.customer, stripe.invoice, stripe.credit_note")
        plan = "\n".join(r[0] for r in await pg.fetch(f"EXPLAIN SELECT p.id FROM {found}"))
        assert "InitPlan" in plan
        assert not re.search("Nested Loop|Join|SubPlan", plan), plan


async def test_what_a_list_by_parent_brings_instead_of_a_refused_one_is_not_fetched_one_by_one(
    database: str, pg: asyncpg.Connection
) -> None:
    """Stripe refuses the plain list of payment methods; that of each customer shows the same ones."""
    listed, single = "GET /v1/payment_methods", "GET /v1/payment_methods/{payment_method}"
    settings = Settings(scale=600, until=NOON, connected=False, nastiness=STRIPE)
    await make_schema(database)
    async with running(settings) as nasty, copying(database, nasty, deep=False) as backfill:
        outcome = await backfill.run()
        asked = backfill._source.stripe.requests
    assert outcome.complete
    assert asked[listed] > 10
    hidden = await pg.fetchval(
        "SELECT count(*) FROM stripe.payment_method p LEFT JOIN stripe.customer c"
        " ON c.id = p.customer_id WHERE c.id IS NULL OR c.deleted OR c.test_clock_id IS NOT NULL"
    )
    assert asked[single] <= hidden < await pg.fetchval("SELECT count(*) FROM stripe.payment_method")


async def test_a_list_that_is_refused_without_a_parent_waits_only_for_its_parents(
    database: str, sim: Running
) -> None:
    sim.control.nastiness(lists_by_customer=["/v1/payment_methods"])
    await make_schema(database)
    sim.control.fault(kind="hang", path="/v1/charges", seconds=60.0)
    async with copying(database, sim, deep=False) as backfill:
        task = asyncio.create_task(backfill.run())
        asked = backfill._source.stripe.requests
        await until(lambda: asked["GET /v1/payment_methods"] > 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def begun_scan(database: str, sim: Running) -> tuple[ListEndpoint, int]:
    """A copy whose scan of customers' balances was ended in its first round: the list, and the requests."""
    await make_schema(database)
    async with copying(database, sim, deep=False) as backfill:
        await backfill.run()
    balances = next(e for e in list_endpoints() if e.name == BALANCES)
    async with open_account(sim.url, sim.key, database, budget=fast()) as copy:
        task = asyncio.create_task(scan_of(copy).round(balances, None))
        await until(lambda: copy.source.stripe.requests[BALANCES] >= 12)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return balances, copy.source.stripe.requests[BALANCES]


async def test_the_scan_finds_what_no_sign_has_shown_and_goes_on_where_it_was(
    database: str, pg: asyncpg.Connection, sim: Running
) -> None:
    balances, asked = await begun_scan(database, sim)
    saved = (await load_checkpoints(pg, "stripe"))[SCAN_OF + balances.stream]
    assert isinstance(saved.position, dict)
    done = saved.position["done"]
    assert 0 < done <= asked
    shown = (await read_status(pg, schema="stripe"))[0].scan
    here = next(s for s in shown if s.table == "customer_balance_transaction")
    assert (here.done, here.owed) == (done, here.of - done)
    assert here.left_s is not None
    async with open_account(sim.url, sim.key, database, budget=fast()) as copy:
        scan = scan_of(copy)
        await scan.round(balances, saved)
        assert copy.source.stripe.requests[BALANCES] == here.of - done
        for endpoint in list_endpoints():
            if endpoint.parent and endpoint is not balances:
                await scan.round(endpoint, None)
    assert await differences(database, sim) == {}
    found = (await read_status(pg, schema="stripe"))[0]
    assert {s.rounds for s in found.scan} == {1}
    assert not sum(s.owed for s in found.scan)


async def test_what_a_scan_of_days_has_shown_is_known_until_its_end(
    database: str, pg: asyncpg.Connection, sim: Running
) -> None:
    """A list under one parent shows few rows, and each is noted apart. Restarts forget none."""
    await make_schema(database)
    persons = next(e for e in list_endpoints() if e.path == "/v1/accounts/{account}/persons")
    async with open_account(sim.url, sim.key, database, budget=fast()) as copy:
        began = copy.source.now() - 86_400.0
        position = {"table": "person", "parent": "account", "after": "acct_1", "began": began}
        async with copy.source.transaction() as connection:
            saved = Checkpoint(SCAN_OF + persons.stream, "done", position)
            await save_checkpoints(connection, "stripe", [saved])
            shown = [
                Confirmation(table, began + at_s, began + at_s + 1.0, [1])
                for table, at_s in (("person", -60.0), ("person", 60.0), ("charge", 60.0))
            ]
            await confirmations.note(connection, "stripe", shown)
        relist = Relist(copy.source, RefetchWorker(copy.source), copy.budget)
        await relist._remember()
        await relist._trim()
    rows = await pg.fetch('SELECT "table", as_of FROM pinstripe.confirmation')
    assert [(row[0], row[1].timestamp() > began) for row in rows] == [("person", True)]


async def test_a_table_that_was_scanned_several_times_is_not_taken_for_emptied(
    database: str, pg: asyncpg.Connection, sim: Running
) -> None:
    """Each round lists the same rows: half of what three rounds have listed is more than there is."""
    await make_schema(database)
    balances = next(e for e in list_endpoints() if e.name == BALANCES)
    async with open_account(sim.url, sim.key, database, budget=fast()) as copy:
        async with copying(database, sim, deep=True) as backfill:
            await backfill.run()
        scan = Scan(copy.source, copy.budget, round_s=lambda: 0.0, ended=nobody)
        for _ in range(3):
            assert await scan.run_due([balances], most_s=60.0)
    assert await pg.fetchval("SELECT count(*) FROM stripe.customer_balance_transaction") > 0
    assert await find_lost(pg, "stripe", ["customer_balance_transaction"], {}) == []


async def test_a_deep_run_reads_what_an_earlier_one_has_left_to_the_scan(
    database: str, pg: asyncpg.Connection, sim: Running
) -> None:
    await make_schema(database)
    async with copying(database, sim, deep=False) as backfill:
        await backfill.run()
    async with copying(database, sim, deep=True) as backfill:
        await backfill.run()
    assert await differences(database, sim) == {}
    assert {s.rounds for s in (await read_status(pg, schema="stripe"))[0].scan} == {1}
    # Once read, they are read no more.
    async with copying(database, sim, deep=True) as backfill:
        await backfill.run()
        assert not backfill._source.stripe.requests[BALANCES]


async def test_what_a_deep_run_has_read_is_not_left_to_the_scan_by_a_plain_one(
    database: str, pg: asyncpg.Connection, sim: Running
) -> None:
    await make_schema(database)
    for deep in (True, False):
        async with copying(database, sim, deep=deep) as backfill:
            await backfill.run()
    shown = (await read_status(pg, schema="stripe"))[0].scan
    assert shown
    assert {(s.rounds, s.owed) for s in shown} == {(1, 0)}
    async with open_account(sim.url, sim.key, database, budget=fast()) as copy:
        assert await scan_of(copy).run_due(BY_PARENT, most_s=60.0)
        assert not copy.source.stripe.requests[BALANCES]


async def test_a_deep_run_is_a_round_for_a_scan_that_is_under_way(
    database: str, pg: asyncpg.Connection, sim: Running
) -> None:
    await begun_scan(database, sim)
    sim.account.clock.step(1)
    async with copying(database, sim, deep=True) as backfill:
        await backfill.run()
    shown = (await read_status(pg, schema="stripe"))[0].scan
    assert {(s.rounds, s.owed) for s in shown} == {(1, 0)}
    async with open_account(sim.url, sim.key, database, budget=fast()) as copy:
        assert await scan_of(copy).run_due(BY_PARENT, most_s=60.0)
        assert not copy.source.stripe.requests[BALANCES]


async def test_a_restart_of_a_complete_copy_is_ready_before_it_reads_any_list(
    database: str, sim: Running
) -> None:
    await make_schema(database)
    async with copying(database, sim, deep=False) as backfill:
        await backfill.run()
    async with copying(database, sim, deep=False) as backfill:
        requests = backfill._source.stripe.requests
        before_ready: list[int] = []
        await backfill.run(followed=True, on_ready=lambda: before_ready.append(requests.total()))
        assert before_ready[0] == 0
        again = [name for name, count in requests.items() if count and name != "GET /v1/events"]
    # `relist` reads lists at their own pace; only singletons and refused lists are tried again here.
    assert not [name for name in again if name.startswith("GET /v1/c")], again


async def test_a_first_copy_is_not_ready_before_its_lists_are_read(
    database: str, sim: Running
) -> None:
    await make_schema(database)
    async with copying(database, sim, deep=False) as backfill:
        rows: list[int] = []
        written = backfill._source.mirror.written
        await backfill.run(followed=True, on_ready=lambda: rows.append(written.total()))
        assert rows == [written.total()]


async def test_with_a_start_date_older_objects_come_only_where_rows_refer_to_them(
    database: str, pg: asyncpg.Connection, sim: Running
) -> None:
    await make_schema(database)
    since = NOON - 120 * 86_400

    async def older(table: str) -> int:
        found: int = await pg.fetchval(
            f"SELECT count(*) FROM stripe.{table} WHERE created < to_timestamp($1)", since
        )
        return found

    async with copying(database, sim, deep=False) as backfill:
        backfill._source.since = dict.fromkeys(backfill._source.wanted, since)
        assert (await backfill.run()).complete
    some = await pg.fetchval("SELECT count(*) FROM stripe.charge")
    assert some
    unreferred = await pg.fetchval(
        "SELECT count(*) FROM stripe.customer u WHERE created < to_timestamp($1)"
        " AND NOT EXISTS (SELECT FROM stripe.charge c WHERE c.customer_id = u.id)"
        " AND NOT EXISTS (SELECT FROM stripe.invoice i WHERE i.customer_id = u.id)"
        " AND NOT EXISTS (SELECT FROM stripe.payment_method p WHERE p.customer_id = u.id)"
        " AND NOT EXISTS (SELECT FROM stripe.subscription s WHERE s.customer_id = u.id)"
        " AND NOT EXISTS (SELECT FROM stripe.payment_intent s WHERE s.customer_id = u.id)"
        " AND test_clock_id IS NULL",
        since,
    )
    assert not unreferred
    assert not await pg.fetchval(
        "SELECT count(*) FROM stripe.charge c LEFT JOIN stripe.customer u ON u.id = c.customer_id"
        " WHERE c.customer_id IS NOT NULL AND u.id IS NULL AND c.customer_id NOT IN"
        " (SELECT id FROM pinstripe.missing WHERE \"table\" = 'customer')"
    )
    status = {t.table: t for t in (await read_status(pg, schema="stripe"))[0].tables}
    since_of_charges = status["charge"].since
    assert since_of_charges is not None
    assert since_of_charges.timestamp() == since
    before = await older("charge")
    # An earlier date reads what was left out, and nothing twice.
    async with copying(database, sim, deep=False) as backfill:
        assert (await backfill.run()).complete
        assert backfill._source.stripe.requests["GET /v1/charges"] < 10
    assert await older("charge") > before
    listed = await pg.fetchval("SELECT count(*) FROM stripe.charge")
    assert listed == sim.account.world.counts()["charge"]


async def test_newest_pages_keep_their_pace_while_a_list_is_read_to_its_end(
    database: str, sim: Running
) -> None:
    chosen = {name: tables()[name] for name in ("balance_transaction", "coupon")}
    await make_schema(database, chosen=chosen)
    # Stripe does not answer for this list, of which no newest page is read.
    sim.control.fault(kind="hang", path="/v1/coupons", seconds=300.0)
    async with open_account(sim.url, sim.key, database, chosen=chosen) as copy:
        intervals = Intervals(head_s=0.05, tick_s=0.01, pass_s=0.1)
        relist = Relist(copy.source, RefetchWorker(copy.source), copy.budget, intervals=intervals)
        task = asyncio.create_task(relist.run())
        try:
            requests = copy.source.stripe.requests
            await until(lambda: requests["GET /v1/coupons"] > 0, timeout_s=120)
            assert relist.refreshing == "/v1/coupons"
            seen = requests["GET /v1/balance_transactions"]
            await until(lambda: requests["GET /v1/balance_transactions"] >= seen + 5, timeout_s=60)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
