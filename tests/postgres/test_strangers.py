"""Other roles of the database: what they send, hold and plant takes nothing from us."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from structlog.testing import capture_logs
from tests.postgres.writing import make_schema

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import tables
from pinstripe.client.response import AsOf
from pinstripe.errors import Unreachable
from pinstripe.gateway.syncs import OpenSync
from pinstripe.gateway.wait.waiter import SyncRequester
from pinstripe.mirror.mirror import Mirror, open_mirror
from pinstripe.rows.extract import RowSet
from pinstripe.store import migrate as migration
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.events import (
    ACKS,
    REQUESTS,
    SyncAck,
    acknowledge,
    last_request,
    request_sync,
)
from pinstripe.store.leases import Lease
from pinstripe.store.locks import naming_holders
from pinstripe.store.migrate import create_indexes_beside, ensure_bookkeeping, migrate
from pinstripe.store.pool import connect, open_pool
from pinstripe.store.roles import renew_reader
from pinstripe.sync.events.poller import SyncRequestListener

CHANNELS = (REQUESTS, ACKS, "pinstripe", "pinstripe_change", "pinstripe_lease")
FORGED = (
    "stripe",
    "",
    "x",
    "9223372036854775807 nan stripe",
    "999999999999999999999999 inf stripe",
    "7 -1e308 stripe",
    "1 4102444800.000 stripe",
    "stripe nan",
    "stripe 9223372036854775807",
    "stripe stripe stripe",
    " \t ",
    "\N{SNOWMAN} 1 2 stripe",
)


@pytest.fixture
async def stranger(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A session of the read-only role, as anybody's program opens it."""
    await make_schema(database, ["customer"])
    reader = await renew_reader(database, "stripe", expect=False)
    connection = await asyncpg.connect(reader.url)
    yield connection
    await connection.close()


async def forge(stranger: asyncpg.Connection) -> None:
    for channel in CHANNELS:
        for payload in FORGED:
            await stranger.execute("SELECT pg_notify($1, $2)", channel, payload)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# --- notices


async def test_forged_rings_are_not_heard(database: str, stranger: asyncpg.Connection) -> None:
    """The number and the lookback come from our row, whatever a notification says."""
    async with await open_pool(database, min_size=1, max_size=2) as pool, connect(database) as ours:
        request_listener = SyncRequestListener(pool, "stripe", complete=lambda: True)
        running = asyncio.create_task(request_listener.run())
        try:
            number = await request_sync(ours, "stripe", 0.25)
            await until(lambda: request_listener.begin() is not None)
            await forge(stranger)
            later = await request_sync(ours, "stripe", 0.5)
            await until(
                lambda: (
                    (heard := request_listener.begin()) is not None
                    and heard.request.number == later
                )
            )
            heard = request_listener.begin()
            assert heard is not None
            assert (number, heard.request.number, heard.request.lookback_s) == (
                later - 1,
                later,
                0.5,
            )
            request_listener.done(heard, 1_700_000_000.0)
            async with asyncio.timeout(10):
                while await last_request(ours, "stripe") is not None:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            assert not running.done()
        finally:
            running.cancel()


async def test_what_hears_ends_when_it_is_cancelled_at_the_moment_that_postgres_answers(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`asyncio.wait_for` loses the cancellation then, and a service never ends (Python 3.11)."""
    running: asyncio.Task[None]

    async def answered(*_: object) -> None:
        asyncio.get_running_loop().call_soon(running.cancel)

    monkeypatch.setattr("pinstripe.sync.events.poller.last_request", answered)
    async with await open_pool(database, min_size=1, max_size=1) as pool:
        listener = SyncRequestListener(pool, "stripe", complete=lambda: True)
        running = asyncio.create_task(listener.run())
        ended, _ = await asyncio.wait([running], timeout=2)
        running.cancel()
    assert ended


async def test_a_ring_is_heard_at_once(database: str, stranger: asyncpg.Connection) -> None:
    async with await open_pool(database, min_size=1, max_size=2) as pool, connect(database) as ours:
        request_listener = SyncRequestListener(pool, "stripe", complete=lambda: True)
        running = asyncio.create_task(request_listener.run())
        try:
            await request_sync(ours, "stripe", 0)
            await until(lambda: request_listener.begin() is not None)
            took: list[float] = []
            for _ in range(5):
                number = await request_sync(ours, "stripe", 0)
                began = time.monotonic()
                await until(
                    lambda n=number: (
                        (h := request_listener.begin()) is not None and h.request.number == n
                    )  # type: ignore[misc]
                )
                took.append(time.monotonic() - began)
            assert min(took) < 0.2  # the net alone takes up to a second
        finally:
            running.cancel()


@asynccontextmanager
async def ringing(database: str) -> AsyncIterator[tuple[SyncRequester, OpenSync]]:
    requester = SyncRequester(lambda: database)
    running = asyncio.create_task(requester.run())

    class Opened:
        schema = "stripe"

    try:
        yield requester, Opened()  # type: ignore[misc]  # a bell reads the schema and nothing else
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_forged_answer_is_none(database: str, stranger: asyncpg.Connection) -> None:
    """`/wait` says ok when the row says so, not when anybody does."""
    async with ringing(database) as (requester, sync), connect(database) as ours:
        waiting = asyncio.create_task(requester.acked(sync))
        async with asyncio.timeout(10):
            while await last_request(ours, "stripe") is None:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        for _ in range(3):
            await forge(stranger)
            await asyncio.sleep(0.1)
        assert not waiting.done()
        rung = await last_request(ours, "stripe")
        assert rung is not None
        await acknowledge(ours, "stripe", SyncAck(rung.number, 1_700_000_000.0))
        async with asyncio.timeout(10):
            assert await waiting == SyncAck(rung.number, 1_700_000_000.0)


async def test_forged_notices_do_not_wear_a_lease_out(
    database: str, stranger: asyncpg.Connection
) -> None:
    lease = Lease(database, "stripe", ttl_s=5, renew_s=1)
    async with lease.held() as held, connect(database) as ours:
        before = await ours.fetchval("SELECT xmin::text::bigint FROM pinstripe.lease")
        for _ in range(400):
            await stranger.execute("SELECT pg_notify('pinstripe_lease', 'stripe')")
        after = await ours.fetchval("SELECT xmin::text::bigint FROM pinstripe.lease")
        assert not held.lost.is_set()
        assert after - before < 450  # the notices are transactions themselves


# --- locks


async def hold_advisory_locks(stranger: asyncpg.Connection) -> None:
    """All that earlier versions took, and more."""
    for key in (0x70696E63, 0x70696E73, *range(64)):
        await stranger.execute("SELECT pg_advisory_lock($1)", key)


def truth() -> AsOf:
    now = time.time()
    return AsOf(now - 1, now)


def customer(mirror: Mirror, key: str) -> RowSet:
    found = RowSet()
    mirror.extractor.object({"id": key, "object": "customer", "created": 1_700_000_000}, found)
    return found


async def put(url: str, key: str) -> None:
    async with open_mirror(
        url,
        "stripe",
        {"customer": tables()["customer"]},
        api_version=spec().api_version,
        changes=True,
    ) as mirror:
        await mirror.write([(customer(mirror, key), truth())])


async def test_advisory_locks_of_others_hold_nothing_up(
    database: str, stranger: asyncpg.Connection
) -> None:
    await hold_advisory_locks(stranger)
    async with asyncio.timeout(20), connect(database) as ours:
        await ensure_bookkeeping(ours)
        await put(database, "cus_1")
        assert await ours.fetchval("SELECT count(*) FROM stripe.customer") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT FROM pinstripe.lock FOR UPDATE",
        "LOCK TABLE pinstripe.lock IN ACCESS SHARE MODE",
        "LOCK TABLE stripe.customer IN ROW EXCLUSIVE MODE",
        "SELECT FROM stripe.customer FOR SHARE",
    ],
)
async def test_a_reader_can_hold_no_lock_of_ours(
    stranger: asyncpg.Connection, statement: str
) -> None:
    await stranger.execute("SET default_transaction_read_only = off")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with stranger.transaction():
            await stranger.execute(statement)


async def test_a_writer_that_waits_for_a_lock_gives_up_and_names_the_holder(
    database: str, pg: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinstripe.mirror.writer.WAIT_S", 3)
    await make_schema(database, ["customer"])
    async with open_mirror(
        database, "stripe", {"customer": tables()["customer"]}, api_version=spec().api_version
    ) as mirror:
        transaction = pg.transaction()
        await transaction.start()
        await pg.execute("SET application_name = 'somebody'")
        await pg.execute("LOCK TABLE stripe.customer IN EXCLUSIVE MODE")
        writing = asyncio.create_task(mirror.write([(customer(mirror, "cus_1"), truth())]))
        await until(lambda: bool(mirror.trouble))
        assert "somebody" in mirror.trouble
        assert str(await pg.fetchval("SELECT pg_backend_pid()")) in mirror.trouble
        await transaction.rollback()
        async with asyncio.timeout(20):
            await writing
        assert mirror.trouble == ""


async def test_a_session_of_ours_that_looks_for_holders_is_none(
    database: str, pg: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index beside writers waits for it as well, and the log of a first start named it."""
    monkeypatch.setattr("pinstripe.store.locks._PATIENCE_S", 0.05)
    await pg.execute("CREATE TABLE public.held (a int)")
    async with (
        connect(database) as waiting,
        connect(database) as looking,
        connect(database) as other,
    ):
        pid = await waiting.fetchval("SELECT pg_backend_pid()")
        await looking.execute("SET application_name = 'pinstripe locks'")
        await other.execute("SET application_name = 'another'")
        began = time.monotonic()
        async with looking.transaction(), other.transaction():
            for holder in (looking, other):
                await holder.execute("LOCK TABLE public.held IN SHARE MODE")
            dropping = asyncio.create_task(waiting.execute("DROP TABLE public.held"))
            with capture_logs() as lines:
                async with naming_holders(database, pid):
                    await until(lambda: bool(lines))
            (held_by,) = lines[0]["held_by"]
            assert "(another)" in held_by
            # An index waits for each of our own short transactions, too: none of them is in its way.
            assert time.monotonic() - began >= 1
        await dropping


async def test_an_upgrade_never_makes_readers_queue_behind_an_idle_one(
    database: str, pg: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "_TRIES", 2)
    old = tables()["customer"]
    old = replace(old, columns=tuple(c for c in old.columns if c.name != "email"))
    upgrade = partial(migrate, sdk_version=spec().sdk_version, api_version=spec().api_version)
    async with connect(database) as ours, connect(database) as reader:
        await upgrade(ours, "stripe", {"customer": old})
        transaction = pg.transaction()
        await transaction.start()
        await pg.fetch("SELECT * FROM stripe.customer")
        new = {"customer": tables()["customer"]}
        upgrading = asyncio.create_task(upgrade(ours, "stripe", new))
        slowest = 0.0
        while not upgrading.done():
            began = time.monotonic()
            await reader.fetch("SELECT id FROM stripe.customer")
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.02)
        with pytest.raises(Unreachable, match=str(await pg.fetchval("SELECT pg_backend_pid()"))):
            await upgrading
        assert slowest < 2.5
        await transaction.rollback()
        done = await upgrade(ours, "stripe", new)
        assert done.added == [("customer", "email")]


async def test_an_index_that_is_built_again_makes_no_reader_queue(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_schema(database, ["customer"])
    async with connect(database) as ours:
        await migration.create_indexes(ours, "stripe", tables()["customer"])
    await pg.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indrelid = 'stripe.customer'::regclass"
        " AND NOT indisprimary"
    )
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid = $1"
    async with connect(database) as ours, connect(database) as reader:
        transaction = pg.transaction()
        await transaction.start()
        await pg.fetch("SELECT * FROM stripe.customer")
        building = asyncio.create_task(create_indexes_beside(ours, "stripe", tables()["customer"]))
        async with asyncio.timeout(20):
            pid = ours.get_server_pid()
            while not await reader.fetchval(waits, pid):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await reader.execute("SET statement_timeout = '5s'")
            await reader.fetch("SELECT id FROM stripe.customer")
            await transaction.rollback()
            await building
        assert await pg.fetchval("SELECT bool_and(indisvalid) FROM pg_index")


async def test_processes_that_start_at_once_migrate_one_after_the_other(database: str) -> None:
    async def start() -> None:
        async with connect(database) as connection:
            await ensure_bookkeeping(connection)

    async with asyncio.timeout(30):
        await asyncio.gather(*(start() for _ in range(6)))


# --- names


async def test_functions_and_tables_planted_in_public_are_not_met(
    database: str, pg: asyncpg.Connection
) -> None:
    """Until Postgres 14, everybody may create in `public` (CVE-2018-1058)."""
    name = await pg.fetchval("SELECT current_database()")
    await pg.execute(
        f"""
        ALTER DATABASE {name} SET search_path = public, pg_catalog;
        CREATE TABLE public.caught (what text);
        CREATE FUNCTION public.lower(text) RETURNS text LANGUAGE plpgsql AS
          $$ BEGIN INSERT INTO public.caught VALUES ('lower'); RETURN $1; END $$;
        CREATE FUNCTION public.to_timestamp(float8) RETURNS timestamptz LANGUAGE plpgsql AS
          $$ BEGIN INSERT INTO public.caught VALUES ('to_timestamp'); RETURN now(); END $$;
        CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
          $$ BEGIN INSERT INTO public.caught VALUES ('clock_timestamp'); RETURN now(); END $$;
        CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS
          $$ BEGIN INSERT INTO public.caught VALUES ('pg_notify'); END $$;
        CREATE TABLE public.stage_customer (LIKE public.caught);
        CREATE TABLE public.pinstripe_before (LIKE public.caught);
        CREATE TABLE public.pg_class (relname text);
        """
    )
    await make_schema(database, ["customer"])
    await put(database, "cus_1")
    async with connect(database) as ours:
        await request_sync(ours, "stripe", 0.5)
        await acknowledge(ours, "stripe", SyncAck(1, datetime.now(UTC).timestamp()))
        assert await ours.fetchval("SELECT count(*) FROM stripe.customer") == 1
        assert await ours.fetch("SELECT DISTINCT what FROM public.caught") == []


# --- the server that we bring


async def test_in_our_own_server_a_reader_writes_nothing_at_all(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path / "postgres", fsync=False) as server:
        await make_schema(server.url, ["customer"])
        reader = await renew_reader(server.url, "stripe", expect=False)
        connection = await asyncpg.connect(reader.url)
        try:
            await connection.execute("SET default_transaction_read_only = off")
            for statement in (
                "SELECT lo_create(0)",
                "SELECT lo_creat(-1)",
                "SELECT lo_from_bytea(0, 'x')",
                "SELECT pg_logical_emit_message(false, 'x', 'y')",
                "SELECT pg_logical_emit_message(true, 'x', 'y'::bytea)",
                "CREATE TEMP TABLE t (n int)",
                "CREATE TABLE public.t (n int)",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)
            assert await connection.fetchval("SELECT count(*) FROM customer") == 0
        finally:
            await connection.close()
