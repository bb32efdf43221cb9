"""A platform under faults: workers killed, sessions cut, webhooks lost and doubled, an account revoked.

Each account's rows are its own state at Stripe in the end, and none is starved. `make soak` runs it for
minutes (SOAK_SECONDS), and ends Postgres meanwhile too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar

from tests.flows.harness.command import Command
from tests.flows.harness.truth import FOLLOWED, born_since
from tests.flows.harness.workers import (
    PLATFORM,
    add_platform,
    agrees,
    copied,
    news_of,
    state_of,
    worker_process,
)

from pinstripe.errors import Unreachable
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.platforms.sweep import sweep_pace
from pinstripe.store.platforms.tasks import request_discovery
from pinstripe.store.pool import connect
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

SECONDS = float(os.environ.get("SOAK_SECONDS", "10"))
ACCOUNTS = int(os.environ.get("SOAK_ACCOUNTS", "3"))
SOME = "customer,product,price,subscription*,invoice,charge,refund,payment_intent,coupon,event"
TOLD = sorted({*FOLLOWED} - {"payment_intent"})
"""What is compared: of these all has events. An edit of a payment intent has none, and waits for a pass."""
CHANGES_PER_S = 8.0
SETTLE_S = 120.0
LONG_S = 60.0
"""A run so long has a Postgres of its own, which is ended three times."""
RATE = 40
"""Of all workers, requests a second."""
JITTER = 1.25
"""Requests leave evenly and may arrive less so: a simulator that stalls for a quarter of a second counts
those of it together with those of the second after."""

T = TypeVar("T")


async def insist(work: Callable[[], Awaitable[T]]) -> T:
    """Do it, and again where Postgres is away or has ended our session."""
    while True:
        try:
            return await work()
        except Unreachable:
            await asyncio.sleep(0.2)


@asynccontextmanager
async def postgres(
    shared: str, directory: Path
) -> AsyncIterator[tuple[str, EmbeddedPostgres | None]]:
    """The URL, and the server if it may be ended."""
    if SECONDS < LONG_S:
        yield shared, None
        return
    async with EmbeddedPostgres(directory / "postgres") as own:
        yield own.url, own


@dataclass
class Chaos:
    """What happens to the accounts and to the workers until the time is over."""

    url: str
    directory: Path
    sim: Running
    dice: Random
    killed: int = 0
    cut: int = 0
    changes: int = 0
    revoked: str = ""
    is_back: asyncio.Event = field(default_factory=asyncio.Event)
    """The account that was revoked is active again, which takes workers."""
    ended: int = 0

    async def end_postgres(self, server: EmbeddedPostgres) -> None:
        """Three crashes of the server, which its supervisor starts again."""
        for _ in range(3):
            await asyncio.sleep(SECONDS / 4)
            os.kill(server.pid or 0, signal.SIGQUIT)
            self.ended += 1

    async def change(self, until: float) -> None:
        """Changes, of which a webhook tells once, twice or not at all."""
        while time.monotonic() < until:
            account = self.dice.choice(self.sim.control.accounts())
            self.changes += await self.sim.control.of(account).mutate(1)
            for _ in range(self.dice.choice((0, 1, 1, 2))):
                await insist(lambda account=account: news_of(self.url, account))  # type: ignore[misc]
            await asyncio.sleep(1 / CHANGES_PER_S)

    async def kill(self, until: float, every_s: float) -> None:
        """Workers that are killed, and others in their place."""
        async with AsyncExitStack() as stack:
            workers = [await self._worker(stack) for _ in range(2)]
            while time.monotonic() < until:
                await asyncio.sleep(min(every_s, max(until - time.monotonic(), 0.1)))
                victim = self.dice.randrange(2)
                for number, worker in enumerate(workers):
                    # One that began while Postgres was away has ended: an init system starts it again.
                    if number == victim or worker.returncode is not None:
                        with suppress(ProcessLookupError):
                            worker.send_signal(signal.SIGKILL)
                        await worker.wait()
                        workers[number] = await self._worker(stack)
                self.killed += 1
            await self.is_back.wait()
            for account in self.sim.control.accounts():
                one = Running(
                    self.sim.url,
                    self.sim.account.connected[account],
                    self.sim.control.of(account),
                    self.sim.key,
                )
                await agrees(
                    self.url, self.sim, account, among=born_since(one, 0, TOLD), timeout_s=SETTLE_S
                )

    async def _worker(self, stack: AsyncExitStack) -> Command:
        return await stack.enter_async_context(worker_process(self.url, self.directory))

    async def cut_sessions(self, until: float) -> None:
        """Sessions of the workers that end at any moment."""
        while time.monotonic() < until:
            await asyncio.sleep(self.dice.uniform(0.5, 3.0))
            await insist(self._cut)

    async def _cut(self) -> None:
        async with connect(self.url) as pg:
            self.cut += await pg.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE 'pinstripe %'"
                " ORDER BY random() LIMIT 2) AS chosen"
            )

    async def revoke(self, until: float) -> None:
        """An account that takes its authorisation back, and gives it again before the end."""
        self.revoked = self.sim.control.deauthorize()
        await insist(lambda: news_of(self.url, self.revoked))
        while await insist(lambda: state_of(self.url, self.revoked)) == "active":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        await asyncio.sleep(max((until - time.monotonic()) / 2, 0.0))
        self.sim.control.authorize(self.revoked)
        await insist(self._discover)
        while await insist(lambda: state_of(self.url, self.revoked)) == "revoked":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        self.is_back.set()

    async def _discover(self) -> None:
        async with connect(self.url) as pg:
            await request_discovery(pg)


async def test_every_account_is_right_after_a_storm(database: str, tmp_path: Path) -> None:
    settings = Settings(scale=60, connected=ACCOUNTS, connected_scale=60, future_fields=False)
    async with running(settings) as sim, postgres(database, tmp_path) as (url, server):
        await add_platform(url, sim, tmp_path, tables=SOME, rate_limit=str(RATE))
        async with worker_process(url, tmp_path):
            await copied(url, sim.control.accounts(), timeout_s=SETTLE_S)
        chaos = Chaos(url, tmp_path, sim, Random(1))
        until = time.monotonic() + SECONDS
        async with asyncio.TaskGroup() as group:
            group.create_task(chaos.change(until))
            group.create_task(chaos.kill(until, every_s=max(SECONDS / 6, 5.0)))
            group.create_task(chaos.cut_sessions(until))
            group.create_task(chaos.revoke(until))
            if server is not None:
                group.create_task(chaos.end_postgres(server))
        assert chaos.killed > 0
        assert chaos.cut > 0
        assert await state_of(url, chaos.revoked) == "active"
        most = sim.account.meter.all.most
        async with connect(url) as pg:
            pace = await sweep_pace(pg, PLATFORM)
    print(
        f"{chaos.changes} changes, {chaos.killed} workers killed, {chaos.cut} sessions cut, Postgres"
        f" ended {chaos.ended} times; most requests in a second: {most} of {RATE}; {pace}"
    )
    assert most <= RATE * JITTER
    assert (pace.revoked, pace.troubled) == (0, 0)
