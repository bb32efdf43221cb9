"""The console: how long a page takes on a large copy, and what fifty open pages cost.

The gateway runs in a process of its own beside the sync of a small simulated account that changes twice
a second; the copy is filled up to two million rows by SQL. A page's time is from the request to its last
byte, on this machine. CPU of the open pages is what the gateway and Postgres use beyond what they use with
none open.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from benchmarks import watch
from benchmarks.account import mix
from benchmarks.figures import Figure
from benchmarks.stage import Stage, command, stage
from pinstripe.store.pool import connect

OPEN = 50
_OBJECTS = 2_000
_ROWS = 2_000_000
_MEASURED_S = 20.0
_WARM_S = 3.0
_VISITS = 15
_CHANGES_PER_S = 2
_PATIENCE_S = 120.0
_HERE = "/syncs/default"
_UNLIMITED = ("--rate-limit", "none", "--endpoint-rate-limit", "none", "--changes")
_PAGES = {
    "overview": "",
    "events": "/events",
    "changes": "/changes",
    "connect": "/connect",
    "keys": "/keys",
}
_TABLES = {"charge": "ch", "customer": "cus", "event": "evt", "invoice": "in"}


async def console(rows: int = _ROWS) -> AsyncIterator[Figure]:
    """Pages first, then the open ones."""
    async with stage(mix(_OBJECTS)) as at:
        database = await at.database()
        async with (
            _running(command(at, database, "sync", *_UNLIMITED)) as sync,
            _running(
                command(at, database, "serve", "--gateway-only", "--json", "--port", "0")
            ) as it,
        ):
            await asyncio.to_thread(_line, sync)  # It prints its summary when the copy is complete.
            url = json.loads(await asyncio.to_thread(_line, it))["url"]
            tables = await _fill(database, rows)
            yield Figure("console", "tables of the copy", tables, "")
            async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as http:
                for name, path in _PAGES.items():
                    ms = await _page_ms(http, _HERE + path)
                    yield Figure("console", f"{name}: median of {_VISITS}", ms, "ms", 100)
                async for figure in _open_pages(at, it, http):
                    yield figure


async def _open_pages(
    at: Stage, gateway: subprocess.Popen[bytes], http: aiohttp.ClientSession
) -> AsyncIterator[Figure]:
    await at.simulator.control("traffic", per_second=_CHANGES_PER_S)
    alone = await _shares(at, gateway)
    streams = [_HERE + ("/live" if n % 2 else "/events/live") for n in range(OPEN)]
    heard = [0] * OPEN
    readers = [asyncio.create_task(_read(http, path, heard, n)) for n, path in enumerate(streams)]
    await asyncio.sleep(_WARM_S)
    heard[:] = [0] * OPEN
    watched = await _shares(at, gateway)
    told = min(heard)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    yield Figure("console", f"bytes to the quietest of {OPEN} pages", told, "", 1, "more")
    cost = (watched[0] - alone[0]) * 100
    yield Figure("console", f"{OPEN} pages: CPU of the gateway, of one core", cost, "%", 5)
    cost = (watched[1] - alone[1]) * 100
    yield Figure("console", f"{OPEN} pages: CPU of Postgres, of one core", cost, "%")


async def _shares(at: Stage, gateway: subprocess.Popen[bytes]) -> tuple[float, float]:
    """CPU of the gateway and of Postgres, in cores."""
    before = watch.cpu_s(gateway.pid), at.postgres_cpu_s()
    began = time.monotonic()
    await asyncio.sleep(_MEASURED_S)
    wall_s = time.monotonic() - began
    after = watch.cpu_s(gateway.pid), at.postgres_cpu_s()
    return (after[0] - before[0]) / wall_s, (after[1] - before[1]) / wall_s


async def _read(http: aiohttp.ClientSession, path: str, heard: list[int], n: int) -> None:
    forever = aiohttp.ClientTimeout(total=None)
    async with http.get(path, timeout=forever) as answer:
        answer.raise_for_status()
        async for piece in answer.content.iter_any():
            heard[n] += len(piece)


async def _page_ms(http: aiohttp.ClientSession, path: str) -> float:
    times: list[float] = []
    for _ in range(_VISITS + 1):
        began = time.monotonic()
        async with http.get(path) as answer:
            answer.raise_for_status()
            await answer.read()
        times.append((time.monotonic() - began) * 1000)
    return sorted(times[1:])[_VISITS // 2]  # The first one loads the template.


async def _fill(database: str, rows: int) -> int:
    """Adds rows until the copy is large; gives the number of its tables."""
    each = rows // len(_TABLES)
    async with connect(database) as connection:
        for table, prefix in _TABLES.items():
            await connection.execute(
                f'INSERT INTO stripe."{table}" (id, created, _as_of, _as_of_latest, _synced_at)'
                f" SELECT '{prefix}_bench_' || n, now() - n * interval '1 second', now(), now(),"
                f" now() FROM generate_series(1, {each}) n",
                timeout=_PATIENCE_S * 4,
            )
        await connection.execute("ANALYZE", timeout=_PATIENCE_S)
        count: int = await connection.fetchval(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'stripe'"
        )
        return count


def _line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    if not line:
        raise RuntimeError("A process of the benchmark ended early.")
    return line


@asynccontextmanager
async def _running(process: subprocess.Popen[bytes]) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Drains what it says; ends it with the block."""
    drain = asyncio.create_task(asyncio.to_thread(process.stderr.read if process.stderr else bytes))
    try:
        yield process
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)
        await drain
        if process.stdout is not None:
            process.stdout.close()
        if process.stderr is not None:
            process.stderr.close()
