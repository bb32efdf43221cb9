"""Connections and the translation of errors, on a real server."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from pinstripe.errors import Drifted, Misconfigured, Unreachable, Unwritable
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.pool import (
    Pool,
    check_server,
    close_quietly,
    connect,
    connect_dedicated,
    open_pool,
    translated,
)


async def test_a_fresh_server_is_fit_for_use(pg: asyncpg.Connection) -> None:
    facts = await check_server(pg)
    assert facts.writable
    assert facts.database.startswith("test_")
    assert int(facts.version.split(".")[0]) >= 13


async def test_the_facts_of_a_user_with_few_rights_say_so(pg: asyncpg.Connection) -> None:
    async with pg.transaction():
        await pg.execute("SET LOCAL ROLE pg_monitor")
        await pg.execute("SET LOCAL default_transaction_read_only = on")
        facts = await check_server(pg)
    assert not facts.writable


async def test_a_transaction_is_kept_whole_or_not_at_all(database: str) -> None:
    async def half(pool: Pool) -> None:
        async with pool.transaction() as connection:
            await connection.execute("INSERT INTO public.t VALUES (1)")
            await connection.execute("SELECT no_such_column FROM public.t")

    async with await open_pool(database, min_size=1, max_size=2) as pool:
        async with pool.transaction() as connection:
            await connection.execute("CREATE TABLE public.t (n int)")
        with pytest.raises(Drifted):
            await half(pool)
        async with pool.acquire() as connection:
            assert await connection.fetchval("SELECT count(*) FROM public.t") == 0


async def test_a_session_is_named_in_utc_and_without_jit(database: str) -> None:
    async with (
        await open_pool(database, min_size=0, max_size=1, application_name="reader") as pool,
        pool.acquire() as connection,
    ):
        shown = [
            await connection.fetchval(f"SHOW {name}")
            for name in ("application_name", "timezone", "jit")
        ]
    assert shown == ["reader", "UTC", "off"]


async def test_plans_are_kept_for_all_accounts_but_for_large_ones(database: str) -> None:
    async with await open_pool(database, min_size=1, max_size=1) as pool:
        large = pool.of_account("acct_1", is_large=lambda: True)
        for one, mode in ((large, "force_custom_plan"), (pool.of_account("acct_2"), "auto")):
            async with one.acquire() as connection:
                assert await connection.fetchval("SHOW plan_cache_mode") == mode


async def test_a_pool_outlives_the_loss_of_its_connections(database: str) -> None:
    async with await open_pool(database, min_size=1, max_size=1) as pool:
        with pytest.raises(Unreachable):
            async with pool.acquire() as connection:
                await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        async with pool.acquire() as connection:
            assert await connection.fetchval("SELECT 1") == 1


async def test_a_pool_does_not_wait_for_ever_for_who_keeps_a_connection(database: str) -> None:
    async with (
        await open_pool(database, min_size=1, max_size=1) as pool,
        pool.acquire() as connection,
    ):
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        await pool.close(timeout_s=0.05)
    async with connect(database) as other, asyncio.timeout(10):
        gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)"
        while not await other.fetchval(gone, pid):
            pass


async def test_a_server_killed_at_any_moment_shows_as_unreachable(tmp_path: Path) -> None:
    """Between its messages asyncpg has states in which it blames itself for the loss."""
    async with EmbeddedPostgres(tmp_path / "postgres", fsync=False) as server:

        async def work_until_it_breaks() -> None:
            writer = await connect_dedicated(server.url)
            try:
                with translated():
                    for number in itertools.count():
                        await writer.execute("SELECT $1::bigint", number)
            finally:
                await close_quietly(writer)

        for _ in range(3):
            workers = [asyncio.create_task(work_until_it_breaks()) for _ in range(8)]
            await asyncio.sleep(0.1)
            restarts = server.restarts
            assert server.pid
            os.kill(server.pid, signal.SIGKILL)
            errors = await asyncio.gather(*workers, return_exceptions=True)
            assert {type(error) for error in errors} == {Unreachable}
            async with asyncio.timeout(20):
                while server.restarts == restarts:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


async def test_who_is_cancelled_while_postgres_goes_away_ends(database: str) -> None:
    """And is not told of the loss: what is tried again after one would go on for ever."""
    began = asyncio.Event()

    async def work() -> None:
        while True:
            with suppress(Unreachable):
                async with connect(database) as connection:
                    try:
                        began.set()
                        await asyncio.sleep(60)
                    finally:  # What tidies up meets the loss.
                        connection.terminate()
                        await connection.execute("SELECT 1")

    task = asyncio.create_task(work())
    await began.wait()
    task.cancel()
    ended, _ = await asyncio.wait([task], timeout=2)
    task.cancel()
    assert ended


async def test_a_statement_on_a_lost_writer_is_unreachable(database: str) -> None:
    writer = await connect_dedicated(database)
    async with connect(database) as other:
        await other.fetchval("SELECT pg_terminate_backend($1, 5000)", writer.get_server_pid())
    with pytest.raises(Unreachable), translated():
        await writer.execute("SELECT 1")
    await close_quietly(writer)
    assert writer.is_closed()


async def test_a_statement_that_takes_too_long_is_unreachable(pg: asyncpg.Connection) -> None:
    with pytest.raises(Unreachable), translated():
        await pg.execute("SELECT pg_sleep(60)", timeout=0.01)


async def test_a_read_only_server_is_unwritable(pg: asyncpg.Connection) -> None:
    await pg.execute("SET default_transaction_read_only = on")
    with pytest.raises(Unwritable, match="read-only"), translated():
        await pg.execute("CREATE TABLE t ()")


async def test_a_missing_right_is_unwritable(pg: asyncpg.Connection) -> None:
    await pg.execute("CREATE TABLE t (); SET ROLE pg_monitor")
    with pytest.raises(Unwritable, match="permission denied"), translated():
        await pg.execute("SELECT * FROM t")


async def test_a_message_holds_no_customers_data(pg: asyncpg.Connection) -> None:
    await pg.execute("CREATE TABLE t (email text UNIQUE); INSERT INTO t VALUES ('a@example.com')")
    with pytest.raises(Drifted) as caught, translated():
        await pg.execute("INSERT INTO t VALUES ('a@example.com')")
    assert "example.com" not in str(caught.value)


async def test_a_mistake_of_ours_is_not_dressed_up(pg: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.InterfaceError), translated():
        await pg.fetchval("SELECT $1::int")


async def test_a_missing_database_is_named(postgres_url: str) -> None:
    url = postgres_url.replace("/pinstripe?", "/no_such_database?")
    with pytest.raises(Misconfigured, match="no_such_database") as caught:
        async with await open_pool(url, min_size=1, max_size=1):
            pass
    assert "CREATE DATABASE" in caught.value.hint


async def test_a_refused_connection_is_unreachable_and_keeps_the_password() -> None:
    with socket.socket() as probe:  # bound, but nobody listens
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(Unreachable, match=f"127.0.0.1:{port}/db") as caught:
            async with connect(f"postgresql://user:pa55word@127.0.0.1:{port}/db"):
                pass
    assert "pa55word" not in str(caught.value)


async def test_an_unknown_host_is_unreachable() -> None:
    with pytest.raises(Unreachable, match=r"no-such-host\.invalid"):
        async with connect("postgresql://user:pa55word@no-such-host.invalid/db"):
            pass


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:pa55word@host/db",
        "postgresql://user:pa55word@host:port/db",
        "postgresql://user:pa55/word@host/db",
        "postgresql://user:pa55word@host/db?sslmode=perhaps",
    ],
)
async def test_an_odd_url_is_misconfigured_and_keeps_the_password(url: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        async with connect(url):
            pass
    assert "pa55" not in str(caught.value)


@asynccontextmanager
async def silent_after(url: str, statement: bytes) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A relay to the server that hangs once it has read `statement`, and greets nobody from then on.

    So does a pooler whose places are all taken: the driver's request to cancel is never answered.
    """
    socket_path = url_socket(url)
    hung, over = asyncio.Event(), asyncio.Event()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ask: bool) -> None:
        while data := await reader.read(65536):
            if ask and statement in data:
                hung.set()
            if hung.is_set():
                return
            writer.write(data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        if not hung.is_set():
            up, down = await asyncio.open_unix_connection(socket_path)
            writers.append(down)
            await asyncio.gather(copy(reader, down, True), copy(up, writer, False))
        await over.wait()
        for each in writers:
            each.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    parts = urlsplit(url)
    try:
        yield f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}?sslmode=disable", hung
    finally:
        server.close()
        over.set()
        await asyncio.sleep(0)


def url_socket(url: str) -> str:
    query = parse_qs(urlsplit(url).query)
    return f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"


@pytest.mark.parametrize("in_transaction", [True, False], ids=["transaction", "statement"])
async def test_a_limit_holds_where_the_server_and_its_cancel_hang(
    database: str, in_transaction: bool
) -> None:
    async with silent_after(database, b"pg_sleep") as (url, hung):
        pool = await open_pool(url, min_size=1, max_size=1)
        block = pool.transaction if in_transaction else pool.acquire
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5), block() as connection:
                await connection.execute("SELECT pg_sleep(60)")
        assert hung.is_set()
        assert time.monotonic() - began < 15  # 2 s each for the rollback and the release
        assert pool.size == 0
        await pool.close(timeout_s=1)


async def test_a_transaction_whose_session_is_ended_raises_our_error(database: str) -> None:
    """The pool has taken the lost connection back by then: there is nothing left to end."""
    async with (
        await open_pool(database, min_size=1, max_size=1) as pool,
        connect(database) as other,
    ):
        with pytest.raises(Unreachable):  # noqa: PT012
            async with pool.transaction() as connection:
                pid = await connection.fetchval("SELECT pg_backend_pid()")
                ended = other.execute("SELECT pg_terminate_backend($1)", pid)
                await asyncio.gather(connection.execute("SELECT pg_sleep(60)"), ended)
