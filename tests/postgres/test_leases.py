"""One reader a schema: two real processes, one of them killed, frozen or merely slow."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from pinstripe.errors import Drifted, LostLease
from pinstripe.store.leases import Held, Lease, LeaseState, load_lease, new_holder
from pinstripe.store.migrate import ensure_bookkeeping
from pinstripe.store.pool import connect, open_pool

TTL_S, RENEW_S = 1.0, 0.2

_HOLDER = """
import asyncio, sys
import structlog
from pinstripe.errors import PinstripeError
from pinstripe.store.leases import Lease
from pinstripe.store.pool import connect

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

async def main(url):
    lease = Lease(url, "stripe", ttl_s=1.0, renew_s=0.2)
    async with lease.held() as held:
        print("held", held.fence, flush=True)
        while True:
            word = (await asyncio.to_thread(sys.stdin.readline)).strip()
            try:
                async with connect(url, application_name=lease.session_name) as connection:
                    async with connection.transaction():
                        await connection.execute("UPDATE public.t SET n = n + 1")
                        if word == "hang":
                            print("hanging", flush=True)
                            await asyncio.to_thread(sys.stdin.readline)
                        await held.check(connection)
                print("written", flush=True)
            except PinstripeError as error:
                print(type(error).__name__, flush=True)

asyncio.run(main(sys.argv[1]))
"""


class Other:
    """Another process that holds the lease, and writes when it is told to."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            return (await self.process.stdout.readline()).decode().strip()

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)


@asynccontextmanager
async def other_holder(url: str) -> AsyncIterator[Other]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _HOLDER,
        url,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Other(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
async def url(database: str) -> str:
    """A database with a sync `stripe` and a table to write to."""
    async with connect(database) as connection:
        await ensure_bookkeeping(connection)
        await connection.execute(
            "INSERT INTO pinstripe.sync (schema, api_version, sdk_version) VALUES"
            " ('stripe', 'v', 's'), ('other', 'v', 's');"
            "CREATE TABLE public.t (n int); INSERT INTO public.t VALUES (0)"
        )
    return database


def lease(url: str, schema: str = "stripe") -> Lease:
    return Lease(url, schema, ttl_s=TTL_S, renew_s=RENEW_S)


async def _write(url: str, held: Held) -> None:
    async with connect(url) as connection, connection.transaction():
        await connection.execute("UPDATE public.t SET n = n + 1")
        await held.check(connection)


async def until(look: Callable[[], Awaitable[bool]]) -> None:
    """What other processes and the server do is seen only by looking again."""
    async with asyncio.timeout(10):
        while not await look():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def standing_by(lease: Lease) -> bool:
    return lease.standing_by is not None


async def blocked(connection: asyncpg.Connection, session: str) -> bool:
    return bool(
        await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
            " AND wait_event_type = 'Lock'",
            session,
        )
    )


async def renewed(connection: asyncpg.Connection, since: LeaseState, *, by_s: float = 0.0) -> bool:
    now = await load_lease(connection, "stripe")
    assert now is not None
    assert now.is_held
    return (now.expires_at - since.expires_at).total_seconds() > by_s


async def _written(url: str) -> int:
    async with connect(url) as connection:
        n: int = await connection.fetchval("SELECT n FROM public.t")
    return n


async def test_the_holder_writes_and_renews_for_longer_than_one_term(url: str) -> None:
    async with lease(url).held() as held:
        async with connect(url) as connection:
            first = await load_lease(connection, "stripe")
            assert first is not None
            await until(lambda: renewed(connection, first, by_s=TTL_S))
        await _write(url, held)
        assert not held.lost.is_set()
    assert await _written(url) == 1


async def test_a_lease_that_is_let_go_is_taken_at_once(url: str) -> None:
    patient = Lease(url, "stripe", ttl_s=60, renew_s=30)
    taken = asyncio.Event()

    async def stand_by() -> int:
        async with patient.held() as held:
            taken.set()
            return held.fence

    async with Lease(url, "stripe", ttl_s=60, renew_s=30).held() as held:
        waiting = asyncio.create_task(stand_by())
        await until(lambda: standing_by(patient))
        assert patient.standing_by is not None
        assert patient.standing_by.holder == held.holder
        assert not taken.is_set()
    async with asyncio.timeout(5):  # far less than the term: the NOTIFY did it
        assert await waiting == held.fence + 1


async def test_two_schemas_have_two_holders(url: str) -> None:
    async with asyncio.timeout(10), lease(url).held() as one, lease(url, "other").held() as two:
        await _write(url, one)
        await _write(url, two)
    assert await _written(url) == 2


async def test_a_killed_holder_is_replaced_within_seconds(url: str) -> None:
    async with other_holder(url) as other:
        assert await other.says() == "held 1"
        other.send(signal.SIGKILL)
        async with asyncio.timeout(TTL_S + 2), lease(url).held() as held:
            assert held.fence == 2
            await _write(url, held)
    assert await _written(url) == 1


async def test_a_holder_that_was_frozen_can_write_no_more(url: str) -> None:
    async with other_holder(url) as other:
        assert await other.says() == "held 1"
        other.tell("write")
        assert await other.says() == "written"
        other.send(signal.SIGSTOP)
        async with asyncio.timeout(TTL_S + 2), lease(url).held() as held:
            other.tell("write")
            other.send(signal.SIGCONT)
            assert await other.says() == "LostLease"
            await _write(url, held)
            other.tell("write")
            assert await other.says() == "LostLease"
    assert await _written(url) == 2


async def test_a_transaction_frozen_halfway_neither_blocks_its_successor_nor_is_committed(
    url: str,
) -> None:
    async with other_holder(url) as other:
        assert await other.says() == "held 1"
        other.tell("hang")
        assert await other.says() == "hanging"  # it holds the row's lock
        other.send(signal.SIGSTOP)
        async with asyncio.timeout(TTL_S + 2), lease(url).held() as held:
            await _write(url, held)
        other.tell("go on")
        other.send(signal.SIGCONT)
        assert await other.says() == "Unreachable"  # its session was ended
        other.tell("write")
        assert await other.says() in ("LostLease", "written")  # free again: it may not know better
    async with connect(url) as connection:
        state = await load_lease(connection, "stripe")
    assert state is not None
    assert state.fence == 2


async def test_a_take_over_waits_for_a_write_that_has_been_checked(url: str) -> None:
    first = Held("stripe", "slow", 1)
    async with connect(url) as connection:
        await connection.execute(
            "INSERT INTO pinstripe.lease VALUES ('stripe', 'slow', 1, clock_timestamp())"
        )
    successor = lease(url)
    taken = asyncio.Event()

    async def succeed() -> None:
        async with successor.held():
            taken.set()

    async with connect(url) as writer, connect(url) as watcher:
        async with writer.transaction():
            await writer.execute("UPDATE public.t SET n = n + 1")
            await first.check(writer)
            waiting = asyncio.create_task(succeed())
            await until(lambda: blocked(watcher, successor.session_name))
            assert not taken.is_set()
        async with asyncio.timeout(5):
            await waiting
        with pytest.raises(LostLease):
            async with writer.transaction():
                await first.check(writer)
    assert await _written(url) == 1


async def test_renewing_does_not_wait_for_writers(url: str) -> None:
    async with lease(url).held() as held, connect(url) as writer, connect(url) as watcher:
        async with writer.transaction():
            await held.check(writer)
            before = await load_lease(watcher, "stripe")
            assert before is not None
            await until(lambda: renewed(watcher, before))
        await _write(url, held)


async def test_the_holder_is_told_when_it_was_overtaken(url: str) -> None:
    async with lease(url).held() as held:
        async with connect(url) as connection:
            await connection.execute(
                "UPDATE pinstripe.lease SET holder = 'else', fence = fence + 1,"
                " expires_at = now() + interval '1 hour'"
            )
        with pytest.raises(LostLease):
            async with asyncio.timeout(5):
                await held.watch()
    async with connect(url) as connection:
        state = await load_lease(connection, "stripe")
    assert state is not None
    assert state.holder == "else"  # leaving does not let go of what is another's


async def test_a_tenure_stays_lost_though_its_process_holds_the_lease_again(url: str) -> None:
    ours = lease(url)
    async with ours.held() as first:
        pass
    async with ours.held() as second:
        await _write(url, second)
        with pytest.raises(LostLease):
            await _write(url, first)
    assert await _written(url) == 1


async def test_a_holder_cut_off_from_postgres_renews_when_it_is_back(
    url: str, pg: asyncpg.Connection
) -> None:
    ours = lease(url)
    async with ours.held() as held:
        before = await load_lease(pg, "stripe")
        assert before is not None
        await pg.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1",
            ours.session_name,
        )
        await until(lambda: renewed(pg, before, by_s=RENEW_S * 2))
        assert not held.lost.is_set()
        await _write(url, held)


async def test_a_schema_without_a_sync_is_refused(url: str) -> None:
    with pytest.raises(Drifted):
        async with lease(url, "nowhere").held():
            pass


async def test_a_pool_transaction_of_a_lost_tenure_is_rolled_back(url: str) -> None:
    async with await open_pool(url, min_size=1, max_size=1) as pool:
        async with lease(url).held() as held, held.transaction(pool) as connection:
            await connection.execute("UPDATE public.t SET n = n + 1")
        with pytest.raises(LostLease):
            async with lease(url).held(), held.transaction(pool) as connection:
                await connection.execute("UPDATE public.t SET n = n + 1")
    assert await _written(url) == 1


def test_names_of_holders_differ_and_fit_into_a_session_name() -> None:
    names = {new_holder() for _ in range(100)}
    assert len(names) == 100
    assert all(len(f"pinstripe {name}") <= 63 and name.isascii() for name in names)
