"""Following live: how long after Stripe's list shows an event its row is committed in Postgres.

The lag counts from before the change was asked for, so that it is never told too short, until the
NOTIFY that Postgres sends with the commit. Changes are made fifty times a second, with a backfill beside
and without; then many at one moment; then none at all.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import median

import aiohttp
import asyncpg

from benchmarks import watch
from benchmarks.account import mix
from benchmarks.figures import Figure
from benchmarks.stage import Stage, command, stage
from pinstripe.store.pool import connect

CHANGES_PER_S = 50
_MEASURED_S = 25.0
_BURST_EVENTS = 5_000
_BURST_CHANGES = 1_000
_BURSTS = 3
_BETWEEN_BURSTS_S = 5.0
_REST_S = 20.0
_POLLS_PER_S = 3
"""Two of the event list, and now and then another list."""
_PATIENCE_S = 120.0
_NEAR_WINDOW_S = 60.0
_LONGEST_COMMIT = timedelta(seconds=5)
_LATENCY_S = 0.05
_DEFAULT = ("--rate-limit", "50", "--endpoint-rate-limit", "12.5")
_UNLIMITED = ("--rate-limit", "none", "--endpoint-rate-limit", "none")
_LIMITED = ("--rate-limit", "100", "--endpoint-rate-limit", "25")


@dataclass(slots=True)
class Arrivals:
    """When each event was committed, by the clock of this process; ids of the account's own past aside."""

    at: dict[str, float] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


async def live(objects: int) -> AsyncIterator[Figure]:
    """Lag, burst, rest; then the lag beside a backfill."""
    async with stage(mix(objects)) as at:
        database = await at.database()
        async with _syncing(at, database, *_UNLIMITED) as process:
            await asyncio.to_thread(_summary, process)
            async with _arrivals(database) as arrivals:
                async for figure in _in_proportion(at, database, arrivals, "no limits"):
                    yield figure
                await at.simulator.control("latency", fixed_s=0.0)
                rates: list[float] = []
                for _ in range(_BURSTS):
                    rates.append(await _burst(at, arrivals))
                    await asyncio.sleep(_BETWEEN_BURSTS_S)
                told = f"a burst drains at, median of {_BURSTS}"
                yield Figure("live", told, median(rates), "events/s", 2000, "more")
            await _at_rest(at)
            before, started = watch.cpu_s(process.pid), time.monotonic()
            await asyncio.sleep(_REST_S)
            share = (watch.cpu_s(process.pid) - before) / (time.monotonic() - started)
            yield Figure("live", "CPU at rest, of one core", share * 100, "%", 2)
            yield Figure("live", "memory at rest", watch.rss_mb(process.pid), "MB", 120)
        async with _syncing(at, database, *_DEFAULT) as process, _arrivals(database) as arrivals:
            await asyncio.to_thread(_summary, process)
            async for figure in _in_proportion(at, database, arrivals, "default of live keys"):
                yield figure
        database = await at.database()
        async with _syncing(at, database, *_LIMITED), _arrivals(database) as arrivals:
            await _following(database)
            for figure in _lag("lag beside a backfill", await _lags(at, arrivals)):
                yield figure


async def _in_proportion(
    at: Stage, database: str, arrivals: Arrivals, limits: str
) -> AsyncIterator[Figure]:
    """The lag, how many requests an event costs, and how long they go on after the last event."""
    await at.simulator.control("latency", fixed_s=_LATENCY_S)
    async with connect(database) as reader:
        await _settled(reader)
        await at.simulator.control("reset_counters")
        lags = await _lags(at, arrivals)
        started = time.monotonic()
        await _settled(reader)
    took_s = time.monotonic() - started
    for figure in _lag(f"lag, {limits}", lags):
        yield figure
    # Each change was looked up in the list by us, and the list was read once before.
    ours = int(_MEASURED_S * CHANGES_PER_S) + 1
    requests = (await at.state())["requests"] - ours
    yield Figure("live", f"requests for each event, {limits}", requests / len(lags), "", 0.5)
    yield Figure("live", f"settled after the last event, {limits}", took_s, "s", 10)


async def _settled(reader: asyncpg.Connection) -> None:
    """Returns when no request that events made necessary is open, but for those that met trouble."""
    statement = "SELECT count(*) FROM pinstripe.pending WHERE attempts = 0"
    async with asyncio.timeout(_PATIENCE_S):
        while await reader.fetchval(statement):  # noqa: ASYNC110 (it is another process that ends it)
            await asyncio.sleep(0.2)


def _lag(what: str, lags: list[float]) -> list[Figure]:
    lags.sort()
    ms = [lag * 1000 for lag in lags]
    return [
        Figure("live", f"{what}: events", len(ms), ""),
        Figure("live", f"{what}: median", ms[len(ms) // 2], "ms", 300),
        Figure("live", f"{what}: 99th percentile", ms[int(len(ms) * 0.99)], "ms", 800),
    ]


async def _lags(at: Stage, arrivals: Arrivals) -> list[float]:
    """Seconds from each change until its events were committed, at an even rate of changes."""
    shown: dict[str, float] = {}
    async with aiohttp.ClientSession() as session:
        await _newest(at, session, shown, time.monotonic())
        past = set(shown)
        started = time.monotonic()
        # The list is looked at beside the changes: where Stripe is slow, they would come more seldom.
        async with asyncio.TaskGroup() as looks:
            for number in range(int(_MEASURED_S * CHANGES_PER_S)):
                pause_s = started + number / CHANGES_PER_S - time.monotonic()
                await asyncio.sleep(max(pause_s, 0))
                asked = time.monotonic()
                await at.simulator.control("mutate", count=1)
                looks.create_task(_newest(at, session, shown, asked))
    mine = {key: asked for key, asked in shown.items() if key not in past}
    await _until_arrived(arrivals, set(mine))
    return [arrivals.at[key] - asked for key, asked in mine.items()]


async def _newest(
    at: Stage, session: aiohttp.ClientSession, shown: dict[str, float], asked: float
) -> None:
    """Notes when the events at the top of the list were asked for: at the latest then, of many looks."""
    async with session.get(
        f"{at.simulator.url}/v1/events?limit=20", auth=aiohttp.BasicAuth(at.simulator.key)
    ) as answer:
        for event in (await answer.json())["data"]:
            shown[event["id"]] = min(asked, shown.get(event["id"], asked))


async def _burst(at: Stage, arrivals: Arrivals) -> float:
    """Events a second, from the moment that all are in the list until all are committed."""
    before = await at.simulator.control("events")
    total = before
    already = len(arrivals.at)
    while total - before < _BURST_EVENTS:
        await at.simulator.control("burst", count=_BURST_CHANGES)
        total = await at.simulator.control("events")
    started = time.monotonic()
    waiting = total - before - (len(arrivals.at) - already)
    async with asyncio.timeout(_PATIENCE_S):
        while len(arrivals.at) - already < total - before:
            arrivals.changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(arrivals.changed.wait(), 1)
    return float(waiting / (max(arrivals.at.values()) - started))


async def _following(database: str) -> None:
    """Returns when the reader has looked at the list: what is measured is not the start of a process."""
    first: float | None = None
    async with connect(database) as connection, asyncio.timeout(_PATIENCE_S):
        while True:
            await asyncio.sleep(0.2)
            with suppress(asyncpg.UndefinedTableError):
                as_of = await connection.fetchval(
                    "SELECT extract(epoch FROM as_of)::float8 FROM pinstripe.cursor"
                    " WHERE stream = 'events'"
                )
                if first is not None and as_of is not None and as_of > first:
                    return
                first = as_of


async def _at_rest(at: Stage) -> None:
    """Returns when what the events made the reader ask for is asked: only polls are left.

    The window that is read again every few seconds must have left the burst behind, too.
    """
    await asyncio.sleep(_NEAR_WINDOW_S)
    async with asyncio.timeout(_PATIENCE_S):
        requests = -_BURST_EVENTS
        while (now := (await at.state())["requests"]) - requests > 2 * _POLLS_PER_S:
            requests = now
            await asyncio.sleep(2)


async def _until_arrived(arrivals: Arrivals, wanted: set[str]) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while not wanted <= arrivals.at.keys():
            arrivals.changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(arrivals.changed.wait(), 1)


@asynccontextmanager
async def _arrivals(database: str) -> AsyncIterator[Arrivals]:
    """Notes when events arrive, for the block. The tables may not be there yet."""
    found = Arrivals()
    async with connect(database) as listener, connect(database) as reader:
        # Another process makes the table: there is nothing to wait for but the table itself.
        while await reader.fetchval("SELECT to_regclass('stripe.event')") is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        last = await reader.fetchval("SELECT coalesce(max(_synced_at), now()) FROM stripe.event")
        heard = asyncio.Event()

        def note(*_: object) -> None:
            heard.set()

        async def read() -> None:
            nonlocal last
            while True:
                await heard.wait()
                heard.clear()
                # What this query sees was committed at the latest when it was asked.
                now = time.monotonic()
                # Of two writers the one that wrote first may commit last.
                rows = await reader.fetch(
                    "SELECT id, _synced_at FROM stripe.event WHERE _synced_at >= $1",
                    last - _LONGEST_COMMIT,
                )
                for row in rows:
                    found.at.setdefault(row["id"], now)
                    last = max(last, row["_synced_at"])
                found.changed.set()

        await listener.add_listener("pinstripe", note)
        task = asyncio.create_task(read())
        try:
            yield found
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, asyncpg.InterfaceError):
                await task
            await listener.remove_listener("pinstripe", note)


@asynccontextmanager
async def _syncing(at: Stage, database: str, *words: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """`pinstripe sync`, running for the block."""
    process = command(at, database, "sync", "--json", *words, quiet=True)
    try:
        yield process
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 20)


def _summary(process: subprocess.Popen[bytes]) -> None:
    """Returns when the backfill has ended well."""
    if process.stdout is None:
        raise RuntimeError("no stdout")
    line = process.stdout.readline()
    if not line or not json.loads(line)["complete"]:
        raise RuntimeError("the backfill before the live benchmark did not end well")
