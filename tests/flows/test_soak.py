"""Faults of every kind while the account changes; at the end the copy must equal it, row by row.

`make test` runs it for some seconds, `make soak` for minutes (SOAK_SECONDS). The sync is the real
command in a process of its own, killed and started again, with a wall clock that steps; Stripe is the
simulator in its own process, whose clock leaps; Postgres a server of its own that loses its sessions and
is killed. What was injected is printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
from tests.flows.harness.skewed import set_skew

from pinstripe.catalog.endpoints import list_endpoints
from pinstripe.catalog.model import spec
from pinstripe.catalog.relations import announced
from pinstripe.catalog.tables import table_of_object
from pinstripe.errors import PinstripeError
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.pool import connect
from pinstripe_simulator.account import Settings
from pinstripe_simulator.process import SimulatorProcess

SECONDS = float(os.environ.get("SOAK_SECONDS", "14"))
SEED = int(os.environ.get("SOAK_SEED", "11"))
FAULTS = (
    "error_500",
    "error_503",
    "error_409",
    "rate_limit",
    "reset_before",
    "reset_after",
    "reset_in_body",
    "cut",
    "gzip_garbage",
    "html",
    "half_json",
)
# Longer than any of it, Stripe's own clock is trusted: it never runs backwards.
_MOST_SKEW_S = 4000.0
_MOST_LEAP_S = 20.0
_SPARED_S = 65.0
"""A server of ours that dies again and again within a minute is given up, and rightly."""


def told_of() -> list[str]:
    """Tables of which every birth and every edit has an event; what else is edited passes find."""
    edited = {n for e in spec().events if e.name.endswith(".updated") for n in e.carries}
    listed = {n for e in list_endpoints() if not e.parent for n in e.objects}
    return sorted(table_of_object()[name] for name in edited & announced() & listed)


@dataclass
class Sync:
    """`pinstripe sync`, which may die at any time."""

    environment: dict[str, str]
    skew: Path
    process: asyncio.subprocess.Process | None = None
    starts: int = 0

    async def start(self) -> None:
        self.starts += 1
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.flows.harness.skewed",
            str(self.skew),
            "sync",
            env=self.environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(how)
            await self.process.wait()


@dataclass
class Soak:
    """What was done to them."""

    simulator: SimulatorProcess
    server: EmbeddedPostgres
    sync: Sync
    chance: random.Random
    injected: Counter[str] = field(default_factory=Counter)
    spared_until: float = 0.0

    async def torment(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self._once()
            await asyncio.sleep(self.chance.uniform(0.1, 0.7))

    async def _once(self) -> None:
        lot = self.chance.random()
        if lot < 0.05:
            kind = "our clock stepped"
            set_skew(self.sync.skew, self.chance.uniform(-_MOST_SKEW_S, _MOST_SKEW_S))
        elif lot < 0.08:
            kind = "Stripe's clock leapt"
            await self.simulator.control("clock", step_s=self.chance.uniform(1.0, _MOST_LEAP_S))
        elif lot < 0.60:
            kind = self.chance.choice(FAULTS)
            await self.simulator.control("fault", kind=kind, count=self.chance.randint(1, 6))
        elif lot < 0.70:
            kind = "hang"
            await self.simulator.control("fault", kind=kind, count=1, seconds=3.0)
        elif lot < 0.80:
            kind = "burst"
            await self.simulator.control("burst", count=25)
        elif lot < 0.88 or (lot < 0.92 and time.monotonic() < self.spared_until):
            kind = "sessions ended"
            await self._end_sessions()
        elif lot < 0.92:
            kind = "postgres killed"
            self.spared_until = time.monotonic() + _SPARED_S
            with suppress(ProcessLookupError):  # It may be dead already.
                if self.server.pid is not None:
                    os.kill(self.server.pid, signal.SIGKILL)
        else:
            kind = "sync killed"
            await self.sync.kill()
            await self.sync.start()
        self.injected[kind] += 1

    async def _end_sessions(self) -> None:
        try:
            async with connect(self.server.url) as connection:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
        except (PinstripeError, asyncpg.PostgresError, OSError):
            return  # It was just killed.


@asynccontextmanager
async def soaking() -> AsyncIterator[Soak]:
    with tempfile.TemporaryDirectory(prefix="pinstripe-soak-") as directory:
        async with (
            EmbeddedPostgres(Path(directory) / "postgres") as server,
            SimulatorProcess(Settings(scale=400, future_fields=False)) as simulator,
        ):
            environment = {
                **os.environ,
                "STRIPE_API_KEY": simulator.key,
                "STRIPE_API_BASE": simulator.url,
                "DATABASE_URL": server.url,
                "PINSTRIPE_RATE_LIMIT": "none",
                "PINSTRIPE_ENDPOINT_RATE_LIMIT": "none",
            }
            skew = Path(directory) / "skew"
            set_skew(skew, 0.0)
            sync = Sync(environment, skew)
            await sync.start()
            try:
                yield Soak(simulator, server, sync, random.Random(SEED))
            finally:
                await sync.kill()


async def test_whatever_breaks_the_copy_ends_as_stripe_is() -> None:
    async with soaking() as soak:
        await soak.simulator.control("late_events", share=0.2, delay_s=1.0)
        await soak.simulator.control("traffic", per_second=15)
        await soak.torment(SECONDS)
        await soak.simulator.control("traffic", per_second=0)
        await soak.simulator.control("clear_faults")
        if soak.sync.process is None or soak.sync.process.returncode is not None:
            await soak.sync.start()
        events = await caught_up(soak)
        differences, output = await verified(soak, "--tables", ",".join(told_of()))
        # Edits that no event tells of, a pass finds, or whoever looks.
        await verified(soak, "--repair")
        left, all_output = await verified(soak)
        sys.stdout.write(
            f"\n{SECONDS:.0f} s: {sum(soak.injected.values())} faults {dict(soak.injected)}, "
            f"{events} events, {soak.sync.starts} starts, {differences} differences in "
            f"{len(told_of())} tables that events tell of, {left} in all after a repair\n"
        )
        assert differences == 0, output
        assert left == 0, all_output


_STANDING = """
SELECT (SELECT extract(epoch FROM as_of) FROM pinstripe.cursor WHERE stream = 'events') AS as_of,
  (SELECT array_agg(kind || ' ' || "table" || ' ' || id) FROM pinstripe.pending) AS pending,
  (SELECT array_agg(stream || ' ' || state || ' ' || coalesce(reason, '')) FROM pinstripe.cursor
   WHERE stream LIKE '/%' AND state NOT IN ('done', 'refused')) AS unlisted,
  (SELECT count(*) FROM pinstripe.cursor WHERE stream LIKE '/%') AS lists,
  (SELECT count(*) FROM stripe.event) AS events
"""


async def caught_up(soak: Soak) -> int:
    """Waits until all events are applied and nothing is left to ask; gives the number of events."""
    start = float((await soak.simulator.control("state"))["now"])
    row: asyncpg.Record | None = None
    for _ in range(150):
        await asyncio.sleep(1.0)
        if soak.sync.process is not None and soak.sync.process.returncode is not None:
            # Started while Postgres was away: who meets nobody at the very first ends, by design.
            await soak.sync.start()
        try:
            async with connect(soak.server.url) as connection:
                row = await connection.fetchrow(_STANDING)
        except (PinstripeError, asyncpg.PostgresError):
            continue
        assert row is not None
        # Late events show up within two seconds; the near window is read again every five.
        known = row["as_of"] is not None and row["as_of"] > start + 9
        if known and row["lists"] and not row["unlisted"] and not row["pending"]:
            return int(row["events"])
    ended = soak.sync.process.returncode if soak.sync.process is not None else None
    raise AssertionError(f"never caught up with {start}: {row}, the sync ended with {ended}")


async def verified(soak: Soak, *words: str) -> tuple[int, str]:
    """How many differences it found, and what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pinstripe",
        "verify",
        "--all",
        "--json",
        *words,
        env=soak.sync.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    told = json.loads(out)
    return int(told.get("differences", -1)), f"{out.decode()[:3000]}\n{err.decode()[-2000:]}"
