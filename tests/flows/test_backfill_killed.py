"""kill -9 at any moment: the next run goes on, and the copy is right."""

from __future__ import annotations

import asyncio
from random import Random

import asyncpg
import pytest
from tests.flows.harness.command import pinstripe, started
from tests.flows.harness.truth import differences

from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import running

pytestmark = pytest.mark.migrated

NOON = 1_790_000_000


async def test_a_process_that_is_killed_again_and_again_ends_in_a_right_copy(
    database: str, pg: asyncpg.Connection
) -> None:
    dice = Random(11)
    async with running(Settings(scale=600, until=NOON, connected=False)) as sim:
        env = {
            "STRIPE_API_KEY": sim.key,
            "STRIPE_API_BASE": sim.url,
            "DATABASE_URL": database,
        }
        rates = ("--rate-limit", "100", "--endpoint-rate-limit", "25")
        killed = 0
        for _ in range(4):
            async with started("sync", "--once", *rates, env=env) as process:
                wanted = dice.randrange(10, 250)
                # The simulator has no event for its n-th request.
                while process.returncode is None and sim.account.meter.requests.total() < wanted:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                if process.returncode is None:
                    process.kill()
                    killed += 1
                await process.communicate()
            sim.control.reset_counters()
        assert killed
        ended = await pinstripe("sync", "--once", *rates, env=env)
        assert ended.code == 0, ended.text
        assert await differences(database, sim) == {}
        left = await pg.fetchval("SELECT count(*) FROM pinstripe.cursor WHERE state = 'failed'")
        assert left == 0
