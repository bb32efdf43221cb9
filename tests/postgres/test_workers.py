"""One budget over all workers: the sum of the requests in any second, while workers come, leave and die."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import pairwise

import asyncpg
import pytest

from pinstripe.client.rate_limit import RateLimiter
from pinstripe.platforms.budget import Membership
from pinstripe.store.migrate import ensure_bookkeeping
from pinstripe.store.platforms.workers import beat, join, leave, live_workers
from pinstripe.store.pool import Pool, open_pool

RATE = 40
ENDPOINT = "GET /v1/events"
TTL_S, LOST_S = 3.0, 1.5


@pytest.fixture
async def pool(database: str, pg: asyncpg.Connection) -> AsyncIterator[Pool]:
    await ensure_bookkeeping(pg)
    async with await open_pool(database, min_size=1, max_size=6) as pool:
        yield pool


class Sender:
    """A worker that sends as fast as its share lets it."""

    def __init__(
        self, pool: Pool, name: str, sent: list[tuple[float, str]], *, beat_s: float = 0.2
    ) -> None:
        self.member = Membership(pool, name, beat_s=beat_s, lost_s=LOST_S, ttl_s=TTL_S)
        self.limiter = RateLimiter(account_rate=RATE, endpoint_rate=None, burst_s=0.25)
        self.member.add(self.limiter)
        self.name = name
        self._sent = sent
        self.beating = asyncio.create_task(self.member.run())
        self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while True:
            with await self.limiter.acquire(ENDPOINT):
                self._sent.append((time.monotonic(), self.name))

    async def has(self, parts: int) -> None:
        async with asyncio.timeout(20):
            while not (self.member.is_in and self.member.parts == parts):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        for task in (self.beating, self._sending):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def count(self) -> int:
        return sum(name == self.name for _, name in self._sent)


def most_in_a_second(sent: list[tuple[float, str]]) -> int:
    times, first, most = [at for at, _ in sent], 0, 0
    for last, at in enumerate(times):
        while times[first] < at - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


async def test_no_second_has_more_than_the_rate_whoever_comes_goes_or_falls_silent(
    pool: Pool,
) -> None:
    sent: list[tuple[float, str]] = []
    # The first hears of others late, and sends at the full rate until then.
    a = Sender(pool, "a", sent, beat_s=1.0)
    await a.has(1)
    await asyncio.sleep(1.2)
    b = Sender(pool, "b", sent)
    await b.has(2)
    c = Sender(pool, "c", sent)
    await c.has(3)
    assert a.member.parts == b.member.parts == 3
    # c falls silent, as if its loop hung: it goes on as long as it believes in its share.
    c.beating.cancel()
    await a.has(2)
    before = c.count()
    assert not c.member.is_in
    b.beating.cancel()
    await b.member.leave()
    await a.has(1)
    await asyncio.sleep(1.2)
    assert c.count() == before, "it was silent for longer than its share lasts"
    for sender in (a, b, c):
        await sender.end()
    # A permit that was late by a timer stands closer to the one a second after it.
    assert most_in_a_second(sent) <= RATE + 1
    assert all(later[0] >= earlier[0] for earlier, later in pairwise(sent))
    assert a.count() > RATE


async def test_a_silent_worker_joins_anew(pool: Pool) -> None:
    async with pool.acquire() as connection:
        old = await join(connection, "x")
        assert (await beat(connection, old, seen=old)).is_member
        await connection.execute(
            "UPDATE pinstripe.platform_worker SET heartbeat_at = now() - interval '8 s'"
        )
        view = await beat(connection, old, seen=old)
        assert not view.is_member
        assert view.live == 1, "its share is given to no one before it is surely over"
        await leave(connection, old)
        assert await live_workers(connection) == []


async def test_a_newcomer_waits_for_the_slowest(pool: Pool) -> None:
    async with pool.acquire() as connection:
        first, second = await join(connection, "a"), await join(connection, "b")
        await beat(connection, first, seen=second)
        third = await join(connection, "c")
        await beat(connection, second, seen=third)
        assert (await beat(connection, third, seen=third)).older_seen == second
        view = await beat(connection, first, seen=third)
        assert (view.older_seen, view.live, view.newest) == (None, 3, third)
        assert (await beat(connection, third, seen=third)).older_seen == third
