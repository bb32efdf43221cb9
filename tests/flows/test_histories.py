"""Any history of any type that has events, delivered in any way, ends in Stripe's own state.

One copy lives through all examples: each adds to what the earlier ones left. Late events, duplicates,
readers that are cut off and started anew, ties within a second.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random
from typing import cast

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.flows.harness.account import Copy, open_copy, quiet
from tests.flows.harness.histories import (
    Histories,
    event_types,
    keep_journal,
    lively_types,
    steps_back,
)
from tests.flows.harness.truth import differences

from pinstripe.client.decode import StripeObject, decode
from pinstripe.mirror import LIVE_LANE
from pinstripe.rows.as_of import AsOf
from pinstripe.store.pool import connect
from pinstripe.sync.events.poller import EventPoller
from pinstripe.sync.refetch.worker import RefetchWorker
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

pytestmark = pytest.mark.migrated

EXAMPLES = int(os.environ.get("HISTORY_EXAMPLES", "2"))
LATE_S = 30.0


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=300, future_fields=False)) as simulator:
        yield simulator


@dataclass
class Reader:
    """A live reader that may be cut off at any moment, and started anew from what is in the database."""

    copy: Copy
    since: float
    cuts: int = 0
    live: EventPoller = field(init=False)
    refetches: RefetchWorker = field(init=False)
    _working: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.stop()
        self.live, self.refetches = self.copy.live(self.since)
        self._working = asyncio.create_task(self.refetches.run())

    async def stop(self) -> None:
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)

    async def cut(self, seconds: float) -> None:
        """Looks, and dies while it does."""
        self.cuts += 1
        looking = asyncio.create_task(self.live.read_lookback(self.since))
        await asyncio.wait([looking], timeout=seconds)
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        # What it had handed over is written or not, before the next one begins: as if both had died.
        await self.copy.mirror.write([], lane=LIVE_LANE)
        await self.start()


async def _example(
    sim: Running, copy: Copy, made: Histories, dice: Random, names: list[str]
) -> dict[str, str]:
    """One history, delivered as the dice fall; gives what differs in the end."""
    made.touched.clear()
    sim.control.clock(step_s=1000.0)
    start = sim.account.clock.now()
    sim.control.late_events(share=0.3, delay_s=LATE_S / 2)
    reader = Reader(copy, start)
    await reader.start()
    try:
        for name in names:
            made.life(name, dice, dice.randrange(1, 6))
            await _deliver(sim, reader, dice, start)
        sim.control.clock(step_s=LATE_S + 2)
        await reader.live.read_lookback(start)
        await quiet(copy, reader.refetches)
    finally:
        await reader.stop()
    return await differences(copy.url, sim, among=made.touched)


async def _deliver(sim: Running, reader: Reader, dice: Random, start: float) -> None:
    lot = dice.random()
    if lot < 0.25:
        await reader.live.poll()
    elif lot < 0.35:
        await reader.live.read_lookback(start)
    elif lot < 0.45:
        await reader.cut(dice.uniform(0.0, 0.03))
    elif lot < 0.65:
        # Some of what the list shows, whatever was seen before.
        some = [e for e in _shown(sim, int(start)) if dice.random() < 0.4]
        await reader.live.apply(some, AsOf(start, sim.account.clock.now() + 1.0))


def _shown(sim: Running, since: int) -> list[StripeObject]:
    """What the event list shows since then, newest first."""
    world, log = sim.account.world, sim.account.events
    table = world.tables["event"]
    positions = range(table.rank(since), table.total)
    told = [world.objects.load(table, p) for p in reversed(positions) if log.visible(p)]
    return cast("list[StripeObject]", decode(msgspec.json.encode(told)))


async def test_any_history_of_any_type_with_events_ends_in_stripes_own_state(
    sim: Running, database: str
) -> None:
    every = lively_types()
    made = Histories(sim)
    sim.control.clock(freeze=True)
    async with open_copy(sim, database) as copy, connect(database) as connection:
        await keep_journal(connection, every)
        loop = asyncio.get_running_loop()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # a seed does not shrink
            database=None,
        )
        @given(
            # What comes before has changed the account, so the same dice may fall otherwise.
            seed=st.integers(0, 2**32),
            names=st.permutations(every),
        )
        def holds(seed: int, names: list[str]) -> None:
            told = asyncio.run_coroutine_threadsafe(
                _example(sim, copy, made, Random(seed), names), loop
            )
            assert told.result(120) == {}

        await asyncio.to_thread(holds)
        back = await steps_back(connection, made)
        assert back == [], "\n".join(back)
    known = {e for name in every for e in event_types(name)}
    assert len(made.happened) > 0.5 * len(known)
