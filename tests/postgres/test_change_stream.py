"""The shared feed of changes: no reader is skipped, however slow, late or cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

import asyncpg
import pytest

from pinstripe.gateway.live import change_stream as module
from pinstripe.gateway.live.change_stream import ChangeStream
from pinstripe.gateway.syncs import Reads
from pinstripe.store.changes import CHANNEL, ChangeFilter
from pinstripe.store.migrate import ensure_bookkeeping
from pinstripe.store.pool import open_pool

# For what would never end; that the machine is busy is no reason to fail.
_PATIENCE_S = 120.0


@asynccontextmanager
async def feeding(database: str, pg: asyncpg.Connection) -> AsyncIterator[ChangeStream]:
    await ensure_bookkeeping(pg)
    async with await open_pool(database, min_size=1, max_size=4) as pool:
        feed = ChangeStream(Reads(lambda: pool), lambda: database)
        running = asyncio.create_task(feed.run())
        try:
            yield feed
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


async def change(pg: asyncpg.Connection, count: int, *, table: str = "customer") -> None:
    """So many changes in one commit, as the mirror makes them."""
    await pg.execute(
        'WITH w AS (INSERT INTO pinstripe.change (schema, "table", id, kind, changes)'
        " SELECT 'stripe', $2, 'x_' || n, 'update', '{\"name\": [null, \"a\"]}'"
        " FROM generate_series(1, $1) n RETURNING position)"
        f" SELECT pg_notify('{CHANNEL}', 'stripe ' || max(position)) FROM w",
        count,
        table,
    )


async def read(
    feed: ChangeStream,
    after: int | None,
    count: int,
    *,
    wanted: ChangeFilter | None = None,
    pause_s: float = 0.0,
) -> list[int]:
    """The positions of the next `count` changes."""
    got: list[int] = []
    entries = feed.follow("stripe", after=after, wanted=wanted or ChangeFilter())
    async with aclosing(entries), asyncio.timeout(_PATIENCE_S):
        async for entry in entries:
            if entry is not None:
                got.append(entry.change.position)
            if len(got) == count:
                break
            if pause_s:
                await asyncio.sleep(pause_s)
    return got


async def test_readers_at_different_places_each_see_every_change_once(
    database: str, pg: asyncpg.Connection
) -> None:
    async with feeding(database, pg) as feed:
        await change(pg, 500)
        readers = [asyncio.create_task(read(feed, after, 2500 - after)) for after in (0, 100, 499)]
        for _ in range(20):
            await change(pg, 100)
            await asyncio.sleep(0)
        there = [r[0] for r in await pg.fetch("SELECT position FROM pinstripe.change ORDER BY 1")]
        assert len(there) == 2500
        for after, reader in zip((0, 100, 499), readers, strict=True):
            assert await reader == [position for position in there if position > after]


async def test_a_reader_that_falls_behind_the_tail_catches_up_from_the_database(
    database: str, pg: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TAIL_ENTRIES", 50)
    async with feeding(database, pg) as feed:
        await change(pg, 1)
        keeper = asyncio.create_task(read(feed, 1, 1000))
        entries = feed.follow("stripe", after=0, wanted=ChangeFilter())
        async with aclosing(entries):
            first = await anext(entries)
            for _ in range(10):
                await change(pg, 100)
            assert await keeper == list(range(2, 1002))
            got = [first]
            while len(got) < 1001:
                entry = await anext(entries)
                got += [entry] if entry is not None else []
        assert [e.change.position for e in got if e is not None] == list(range(1, 1002))


async def test_a_reader_of_one_table_is_not_held_up_by_the_others(
    database: str, pg: asyncpg.Connection
) -> None:
    async with feeding(database, pg) as feed:
        reader = asyncio.create_task(read(feed, 0, 3, wanted=ChangeFilter(table="invoice")))
        await change(pg, 300)
        await change(pg, 2, table="invoice")
        await change(pg, 300)
        await change(pg, 1, table="invoice")
        assert await reader == [301, 302, 603]


async def test_a_lost_connection_costs_no_change(database: str, pg: asyncpg.Connection) -> None:
    async with feeding(database, pg) as feed:
        reader = asyncio.create_task(read(feed, 0, 20))
        await change(pg, 10)
        await asyncio.sleep(0.2)
        await pg.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'pinstripe changes' AND datname = current_database()"
        )
        await change(pg, 10)
        assert await reader == list(range(1, 21))


async def test_close_ends_every_reader(database: str, pg: asyncpg.Connection) -> None:
    async with feeding(database, pg) as feed:
        readers = [asyncio.create_task(read(feed, None, 1)) for _ in range(3)]
        while sum(tail.readers for tail in feed._tails.values()) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        feed.close()
        async with asyncio.timeout(2):
            assert await asyncio.gather(*readers) == [[], [], []]


async def test_no_reader_gets_what_an_erasure_has_emptied(
    database: str, pg: asyncpg.Connection
) -> None:
    async with feeding(database, pg) as feed, asyncio.timeout(_PATIENCE_S):
        await change(pg, 1)
        async with aclosing(feed.follow("stripe", after=0, wanted=ChangeFilter())) as early:
            await anext(early)
            await change(pg, 1)
            while (told := await anext(early)) is None:
                pass
            assert b'"a"' in told.json
            async with pg.transaction():
                await change(pg, 1)
                await pg.execute("UPDATE pinstripe.change SET changes = '{\"name\": [null, null]}'")
            while await anext(early) is None:
                pass
            async with aclosing(feed.follow("stripe", after=1, wanted=ChangeFilter())) as late:
                found = [await anext(late) for _ in range(2)]
    assert [e.change.position for e in found if e is not None] == [2, 3]
    assert not [e for e in found if e is not None and b'"a"' in e.json]
