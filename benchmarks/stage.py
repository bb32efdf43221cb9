"""Where a benchmark plays: a simulated Stripe, a Postgres, and the real command between them.

Each in a process of its own, as on a user's machine. Postgres is the product's own, with fsync on and
the settings that users get; the command gets it as a DATABASE_URL, so that its own memory and CPU can
be told from Postgres's.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from benchmarks import watch
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.pool import connect
from pinstripe_simulator.account import Settings
from pinstripe_simulator.nastiness import CALM
from pinstripe_simulator.process import SimulatorProcess

FOREIGN = ("STRIPE_", "PINSTRIPE_", "DATABASE_URL", "PG", "PYTHONDONTWRITEBYTECODE")
"""Without bytecode each start would compile two hundred modules, which no installation does."""
_LOOK_S = 0.05
UNTIL = 1_795_392_000
"""When the simulated account ends: the same account every day."""

State = dict[str, Any]
"""What the simulator tells of itself."""


@dataclass(slots=True)
class Stage:
    """A simulator, and a Postgres with one fresh database after the other."""

    simulator: SimulatorProcess
    postgres: EmbeddedPostgres
    _databases: int = 0

    async def database(self) -> str:
        """The URL of a new, empty database."""
        self._databases += 1
        name = f"bench_{self._databases}"
        async with connect(self.postgres.url) as admin:
            await admin.execute(f"CREATE DATABASE {name}")
        return self.postgres.url.replace("/pinstripe?", f"/{name}?")

    async def state(self) -> State:
        return cast(State, await self.simulator.control("state"))

    async def counts(self) -> dict[str, int]:
        return cast("dict[str, int]", await self.simulator.control("counts"))

    def postgres_cpu_s(self) -> float:
        return watch.tree_cpu_s(self.postgres.pid or 0)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of `pinstripe sync --once`. CPU in seconds."""

    rows: int
    wall_s: float
    backfill_s: float
    requests: int
    client_cpu_s: float
    postgres_cpu_s: float
    simulator_cpu_s: float
    peak_rss_mb: float
    summary: Mapping[str, Any] = field(repr=False)
    state: State = field(repr=False)

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.backfill_s

    def us_a_row(self, cpu_s: float) -> float:
        return cpu_s / self.rows * 1e6


@asynccontextmanager
async def stage(mix: Mapping[str, int], *, seed: int = 1) -> AsyncIterator[Stage]:
    """Both servers, gone at the end of the block."""
    settings = Settings(seed=seed, until=UNTIL, mix=mix, nastiness=CALM)
    with tempfile.TemporaryDirectory(prefix="pinstripe-bench-") as directory:
        async with (
            EmbeddedPostgres(Path(directory) / "postgres") as postgres,
            SimulatorProcess(settings) as simulator,
        ):
            yield Stage(simulator, postgres)


def command(at: Stage, database: str, *words: str, quiet: bool = False) -> subprocess.Popen[bytes]:
    """Starts `pinstripe ...` on this stage. Its stdout is a pipe, so is its stderr unless `quiet`."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    given = {
        "STRIPE_API_KEY": at.simulator.key,
        "STRIPE_API_BASE": at.simulator.url,
        "DATABASE_URL": database,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "pinstripe", *words],
        env={**clean, **given},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if quiet else subprocess.PIPE,
    )


async def sync_once(at: Stage, *words: str, database: str = "") -> Run:
    """Runs `pinstripe sync --once` to its end, watching it."""
    url = database or await at.database()
    await at.simulator.control("reset_counters")
    postgres_before = at.postgres_cpu_s()
    simulator_before = watch.cpu_s(at.simulator.pid)
    started = time.monotonic()
    process = command(at, url, "sync", "--once", "--json", *words)
    reader = asyncio.create_task(asyncio.to_thread(process.communicate))
    cpu_s = peak_mb = 0.0
    try:
        while not reader.done():
            cpu_s = max(cpu_s, watch.cpu_s(process.pid))
            peak_mb = max(peak_mb, watch.peak_rss_mb(process.pid))
            await asyncio.sleep(_LOOK_S)
    finally:
        if process.poll() is None:
            process.kill()
    wall_s = time.monotonic() - started
    out, err = await reader
    if process.returncode != 0:
        raise RuntimeError(
            f"pinstripe sync ended with {process.returncode}: {err.decode()[-2000:]}"
        )
    summary = json.loads(out)
    return Run(
        rows=summary["rows"],
        wall_s=wall_s,
        backfill_s=summary["seconds"],
        requests=summary["requests"],
        client_cpu_s=cpu_s,
        postgres_cpu_s=at.postgres_cpu_s() - postgres_before,
        simulator_cpu_s=watch.cpu_s(at.simulator.pid) - simulator_before,
        peak_rss_mb=peak_mb,
        summary=summary,
        state=await at.state(),
    )
