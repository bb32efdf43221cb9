"""A platform under faults: workers killed, sessions cut, webhooks lost and doubled, an account revoked.

Each account's rows are its own state at Stripe in the end, and none is starved. `make soak` runs it for
minutes (SOAK_SECONDS).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.flows.harness.truth import born_since
from tests.flows.harness.workers import (
    add_platform,
    agrees,
    copied,
    news_of,
    state_of,
    worker_process,
)

from pinstripe.store.platforms.tasks import request_discovery
from pinstripe.store.pool import connect
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

SECONDS = float(os.environ.get("SOAK_SECONDS", "10"))
ACCOUNTS = int(os.environ.get("SOAK_ACCOUNTS", "3"))
SOME = "customer,product,price,subscription*,invoice,charge,refund,payment_intent,coupon,event"
CHANGES_PER_S = 8.0
SETTLE_S = 120.0


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

    async def change(self, until: float) -> None:
        """Changes, of which a webhook tells once, twice or not at all."""
        while time.monotonic() < until:
            account = self.dice.choice(self.sim.control.accounts())
            self.changes += await self.sim.control.of(account).mutate(1)
            for _ in range(self.dice.choice((0, 1, 1, 2))):
                await news_of(self.url, account)
            await asyncio.sleep(1 / CHANGES_PER_S)

    async def kill(self, until: float, every_s: float) -> None:
        """Workers that are killed, and others in their place."""
        async with AsyncExitStack() as stack:
            workers = [await self._worker(stack) for _ in range(2)]
            while time.monotonic() < until:
                await asyncio.sleep(min(every_s, max(until - time.monotonic(), 0.1)))
                victim = self.dice.randrange(2)
                workers[victim].send_signal(signal.SIGKILL)
                await workers[victim].wait()
                self.killed += 1
                workers[victim] = await self._worker(stack)
            for account in self.sim.control.accounts():
                one = Running(
                    self.sim.url,
                    self.sim.account.connected[account],
                    self.sim.control.of(account),
                    self.sim.key,
                )
                await agrees(
                    self.url, self.sim, account, among=born_since(one, 0), timeout_s=SETTLE_S
                )

    async def _worker(self, stack: AsyncExitStack) -> asyncio.subprocess.Process:
        return await stack.enter_async_context(worker_process(self.url, self.directory))

    async def cut_sessions(self, until: float) -> None:
        """Sessions of the workers that end at any moment."""
        while time.monotonic() < until:
            await asyncio.sleep(self.dice.uniform(0.5, 3.0))
            async with connect(self.url) as pg:
                self.cut += await pg.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name LIKE 'pinstripe %'"
                    " ORDER BY random() LIMIT 2) AS chosen"
                )

    async def revoke(self, until: float) -> None:
        """An account that takes its authorisation back, and gives it again before the end."""
        self.revoked = self.sim.control.deauthorize()
        await news_of(self.url, self.revoked)
        while await state_of(self.url, self.revoked) == "active":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        await asyncio.sleep(max((until - time.monotonic()) / 2, 0.0))
        self.sim.control.authorize(self.revoked)
        async with connect(self.url) as pg:
            await request_discovery(pg)
        while await state_of(self.url, self.revoked) == "revoked":  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_every_account_is_right_after_a_storm(database: str, tmp_path: Path) -> None:
    settings = Settings(scale=60, connected=ACCOUNTS, connected_scale=60, future_fields=False)
    async with running(settings) as sim:
        await add_platform(database, sim, tmp_path, tables=SOME)
        async with worker_process(database, tmp_path):
            await copied(database, sim.control.accounts())
        chaos = Chaos(database, tmp_path, sim, Random(1))
        until = time.monotonic() + SECONDS
        async with asyncio.TaskGroup() as group:
            group.create_task(chaos.change(until))
            group.create_task(chaos.kill(until, every_s=max(SECONDS / 6, 5.0)))
            group.create_task(chaos.cut_sessions(until))
            group.create_task(chaos.revoke(until))
        assert chaos.killed > 0
        assert chaos.cut > 0
        assert await state_of(database, chaos.revoked) == "active"
