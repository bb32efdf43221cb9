"""A platform: the first copy of many accounts by several workers, changes with webhooks, and rest.

    python -m benchmarks platform             PLATFORM_ACCOUNTS=200 PLATFORM_IDLE=1000 PLATFORM_WORKERS=2

Changes are made one after another in accounts chosen by turns, and each is told of at once, as the Connect
webhook endpoint does it; then some more, of which nothing tells: the sweep finds them. The lag counts from
before the change until its event is a row. Rest is measured with accounts that have hardly any objects: it
does not depend on them. PLATFORM_RATE: the limit of the first copy, requests a second. PLATFORM_LATENCY_MS:
what the simulator adds to each answer.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

from benchmarks import watch
from benchmarks.figures import Figure
from benchmarks.stage import UNTIL, Stage, command
from pinstripe.config.config import read_config
from pinstripe.encryption import Encryptor
from pinstripe.platforms.vault import NewPlatform, PlatformVault
from pinstripe.store.cursors import READY, Checkpoint, followed, save_checkpoints
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.platforms.stored import add_accounts
from pinstripe.store.platforms.sweep import wake
from pinstripe.store.pool import Pool, connect, open_pool
from pinstripe_simulator.account import Settings
from pinstripe_simulator.nastiness import CALM
from pinstripe_simulator.process import SimulatorProcess

_ACCOUNTS = int(os.environ.get("PLATFORM_ACCOUNTS", "200"))
_IDLE = int(os.environ.get("PLATFORM_IDLE", "1000"))
_WORKERS = int(os.environ.get("PLATFORM_WORKERS", "2"))
_CHANGES = int(os.environ.get("PLATFORM_CHANGES", "300"))
_CHANGES_PER_S = float(os.environ.get("PLATFORM_CHANGES_PER_S", "10"))
_SWEPT = int(os.environ.get("PLATFORM_SWEPT", "60"))
_RATE = os.environ.get("PLATFORM_RATE", "none")
_LATENCY_S = float(os.environ.get("PLATFORM_LATENCY_MS", "0")) / 1000
_OBJECTS = 100
_REST_S = 60.0
_NOBODY = {"rate_limit": "none", "endpoint_rate_limit": "none"}
_PLATFORM = "shops"


@dataclass(slots=True)
class Workers:
    """Processes of `pinstripe worker` on one database."""

    at: Stage
    database: str
    processes: list[subprocess.Popen[bytes]]

    def cpu_s(self) -> float:
        return sum(watch.cpu_s(process.pid) for process in self.processes)

    def peak_mb(self) -> float:
        return max(watch.peak_rss_mb(process.pid) for process in self.processes)

    async def sessions(self) -> float:
        """How many sessions one of them has."""
        async with connect(self.database) as connection:
            found: int = await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name LIKE 'pinstripe %'"
            )
        return found / len(self.processes)


async def platform() -> AsyncIterator[Figure]:
    """The first copy, the lag with webhooks, then rest."""
    if _ACCOUNTS:
        limit = {"rate_limit": _RATE}
        async with _stage(_ACCOUNTS, _OBJECTS) as at, _workers(at, limit) as workers:
            async for figure in _copy(workers, _ACCOUNTS + 1):
                yield figure
            if _CHANGES:
                await _at_rest(workers)
            for count, webhooks in ((_CHANGES, True), (_SWEPT if _CHANGES else 0, False)):
                if count:
                    async for figure in _lag(workers, count, webhooks=webhooks):
                        yield figure
    if _IDLE:
        async for figure in _idle():
            yield figure


async def _idle() -> AsyncIterator[Figure]:
    few = {"tables": "customer,event"}
    async with _stage(_IDLE, 5) as at, _workers(at, few, copied=True) as workers:
        await _looked(workers)
        await _at_rest(workers)
        workers_s, postgres_s, began = workers.cpu_s(), at.postgres_cpu_s(), time.monotonic()
        await asyncio.sleep(_REST_S)
        span_s = time.monotonic() - began
        a_thousand = 100 / span_s / _IDLE * 1000
        took_s = workers.cpu_s() - workers_s
        yield Figure(
            "platform",
            f"{_WORKERS} workers at rest, of one core, per 1,000",
            took_s * a_thousand,
            "%",
        )
        took_s = at.postgres_cpu_s() - postgres_s
        yield Figure(
            "platform", "Postgres at rest, of one core, per 1,000", took_s * a_thousand, "%"
        )
        memory = max(watch.rss_mb(process.pid) for process in workers.processes)
        yield Figure("platform", f"memory of a worker with {_IDLE:,} accounts", memory, "MB", 150)


async def _copy(workers: Workers, accounts: int) -> AsyncIterator[Figure]:
    began, at = time.monotonic(), workers.at
    postgres_s = at.postgres_cpu_s()
    await _copied(workers, accounts)
    wall_s = time.monotonic() - began
    state = await at.state()
    requests = state["requests"]
    yield Figure("platform", f"first copy of {accounts:,} accounts", wall_s, "s")
    yield Figure("platform", "accounts", accounts / wall_s, "1/s")
    count = sum(requests.values()) if isinstance(requests, dict) else float(requests)
    yield Figure("platform", "requests", count / wall_s, "1/s")
    if _RATE != "none":
        yield Figure(
            "platform", f"of the limit of {_RATE}/s", count / wall_s / float(_RATE) * 100, "%"
        )
    yield Figure(
        "platform", "most in a second, counted by the simulator", state["most_per_second"], ""
    )
    yield Figure("platform", "CPU of the workers", workers.cpu_s() / accounts * 1000, "ms/account")
    took_s = at.postgres_cpu_s() - postgres_s
    yield Figure("platform", "CPU of Postgres", took_s / accounts * 1000, "ms/account")
    yield Figure("platform", "peak memory of a worker", workers.peak_mb(), "MB")
    yield Figure("platform", "sessions of a worker", await workers.sessions(), "", 10)


async def _lag(workers: Workers, count: int, *, webhooks: bool) -> AsyncIterator[Figure]:
    """Each change is of its own account; its newest event is looked for in the rows."""
    lags: list[float] = []
    accounts: list[str] = await workers.at.simulator.control("accounts")
    async with _arrivals(workers.database) as arrivals:
        took_s, began = workers.cpu_s() + workers.at.postgres_cpu_s(), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                account = accounts[number % len(accounts)]
                group.create_task(_change(workers, arrivals, account, lags, webhooks=webhooks))
                due = began + (number + 1) / _CHANGES_PER_S
                await asyncio.sleep(max(due - time.monotonic(), 0.0))
        took_s = workers.cpu_s() + workers.at.postgres_cpu_s() - took_s
    how = "webhooks" if webhooks else "no webhooks"
    what = f"lag, {_CHANGES_PER_S:g} changes/s, {how}, median"
    yield Figure("platform", what, median(lags), "s", 0.6 if webhooks else None)
    last = quantiles(lags, n=100)[98]
    yield Figure("platform", "99th percentile", last, "s", 2.0 if webhooks else None)
    yield Figure("platform", "CPU of workers and Postgres", took_s / count * 1000, "ms/change")


async def _change(
    workers: Workers, arrivals: Arrivals, account: str, lags: list[float], *, webhooks: bool
) -> None:
    control = workers.at.simulator.control
    there = await control("events", account=account)
    before, began = (await arrivals.events([account])).get(account, 0), time.monotonic()
    await control("mutate", account=account, count=1)
    if await control("events", account=account) == there:
        return  # A change without an event: lists that are read again bring it.
    if webhooks:
        async with arrivals.pool.transaction() as connection:
            await wake(connection, _PLATFORM, _PLATFORM, account)
    async with asyncio.timeout(600):
        await arrivals.more_than(account, before)
    lags.append(time.monotonic() - began)


@dataclass(slots=True)
class Arrivals:
    """How many events of accounts are rows: one query for all that are waited for.

    One for each would be most of what Postgres does as soon as many are late.
    """

    pool: Pool
    waiting: Counter[str] = field(default_factory=Counter)
    rows: dict[str, int] = field(default_factory=dict)
    looked: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def events(self, accounts: list[str]) -> dict[str, int]:
        async with self.pool.acquire() as connection:
            rows = await connection.fetch(_EVENTS, accounts)
        return {row[0]: row[1] for row in rows}

    async def more_than(self, account: str, before: int) -> None:
        self.waiting[account] += 1
        async with self.looked:
            await self.looked.wait_for(lambda: self.rows.get(account, 0) > before)
        self.waiting[account] -= 1

    async def look(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            found = await self.events(list(+self.waiting))
            async with self.looked:
                self.rows.update(found)
                self.looked.notify_all()


@asynccontextmanager
async def _arrivals(database: str) -> AsyncIterator[Arrivals]:
    async with await open_pool(database, min_size=1, max_size=4) as pool:
        arrivals = Arrivals(pool)
        looks = asyncio.create_task(arrivals.look())
        try:
            yield arrivals
        finally:
            looks.cancel()
            await asyncio.wait([looks])


_EVENTS = (
    f"SELECT _account_id, count(*) FROM {_PLATFORM}.event WHERE _account_id = ANY($1) GROUP BY 1"
)


async def _copied(workers: Workers, accounts: int) -> None:
    async with connect(workers.database) as connection:
        while True:
            done = await connection.fetchval(
                "SELECT count(*) FROM pinstripe.cursor WHERE stream = $1", READY
            )
            if done == accounts:
                return
            if any(process.poll() is not None for process in workers.processes):
                raise RuntimeError("a worker has ended")
            await asyncio.sleep(0.25)


async def _looked(workers: Workers) -> None:
    """Wait until each account was looked at and polled once."""
    async with connect(workers.database) as connection:
        while await connection.fetchval(  # noqa: ASYNC110
            "SELECT count(*) FROM pinstripe.platform_account WHERE newest_event IS NULL"
            " OR owed_at <= clock_timestamp()"
        ):
            await asyncio.sleep(1.0)


async def _at_rest(workers: Workers) -> None:
    async with connect(workers.database) as connection:
        # Previews are filled after the copy, and the list of accounts is read by the way.
        while await connection.fetchval(  # noqa: ASYNC110
            "SELECT count(*) FROM pinstripe_tasks.procrastinate_jobs WHERE status IN ('todo', 'doing')"
            " AND lock LIKE '%@%'"
        ):
            await asyncio.sleep(1.0)


async def _seed(database: str, accounts: list[str]) -> None:
    now = time.time()
    async with connect(database) as connection:
        await add_accounts(connection, _PLATFORM, accounts)
        await connection.execute("DELETE FROM pinstripe_tasks.procrastinate_jobs")
        for row in await connection.fetch(
            "SELECT schema FROM pinstripe.sync WHERE schema LIKE '%@%'"
        ):
            done = [Checkpoint(READY, "done", as_of=now), followed(now)]
            await save_checkpoints(connection, row[0], done)


@asynccontextmanager
async def _stage(accounts: int, objects: int) -> AsyncIterator[Stage]:
    settings = Settings(
        scale=objects, until=UNTIL, nastiness=CALM, connected=accounts, connected_scale=objects
    )
    with tempfile.TemporaryDirectory(prefix="pinstripe-bench-") as directory:
        async with (
            EmbeddedPostgres(Path(directory) / "postgres") as postgres,
            SimulatorProcess(settings) as simulator,
        ):
            await simulator.control("latency", fixed_s=_LATENCY_S)
            yield Stage(simulator, postgres)


@asynccontextmanager
async def _workers(
    at: Stage, settings: dict[str, str], *, copied: bool = False
) -> AsyncIterator[Workers]:
    """`copied`: all accounts are taken for copied, with nothing in them."""
    database = await at.database()
    with tempfile.TemporaryDirectory(prefix="pinstripe-bench-") as directory:
        base = read_config({"database_url": database, "data_dir": directory}, {})
        vault = PlatformVault(database, Encryptor((), Path(directory) / "secret.key"), base)
        await vault.add(
            NewPlatform(
                _PLATFORM,
                at.simulator.key,
                stripe_url=at.simulator.url,
                settings={**_NOBODY, **settings},
            )
        )
        if copied:
            await _seed(database, await at.simulator.control("accounts"))
        processes = [
            command(at, database, "worker", "--data-dir", directory, quiet=True)
            for _ in range(_WORKERS)
        ]
        try:
            yield Workers(at, database, processes)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                await asyncio.to_thread(process.wait)
