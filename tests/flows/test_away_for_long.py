"""Nobody followed for more than 30 days: events are gone, so everything is listed anew, and it is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from tests.flows.harness.truth import born_since, differences

from pinstripe.config.config import Config
from pinstripe.errors import FellBehind
from pinstripe.service import Service, open_service
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

DAY_S = 86_400.0
EDITED = ("customer", "charge", "product", "subscription", "invoice", "payment_intent", "coupon")
DELETED = ("customer", "coupon", "product")
TABLES = (
    *EDITED,
    "price",
    "plan",
    "subscription_item",
    "line_item",
    "test_helpers_test_clock",
    "event",
)


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=300, future_fields=False)) as simulator:
        yield simulator


def config_of(sim: Running, database: str) -> Config:
    return Config(
        api_key=sim.key,
        stripe_url=sim.url,
        database_url=database,
        tables=TABLES,
        rate_limit="none",
        endpoint_rate_limit="none",
    )


def while_away(sim: Running) -> dict[str, list[str]]:
    """Changes and deletions whose events are gone when somebody looks; type -> ids."""
    touched: dict[str, list[str]] = {name: [] for name in EDITED}
    sim.control.clock(step_s=DAY_S)
    for name in EDITED:
        touched[name] += [sim.control.edit(name, silent=False) for _ in range(3)]
    for name in DELETED:
        touched[name].append(sim.control.delete(name))
    touched["price"] = [sim.control.edit("price", silent=False)]
    sim.control.clock(step_s=40 * DAY_S)
    return touched


async def test_after_more_than_thirty_days_everything_is_listed_anew_and_it_is_said(
    sim: Running, database: str, pg: asyncpg.Connection
) -> None:
    config = config_of(sim, database)
    async with open_service(config) as service:
        assert (await service.backfilled(followed=False)).complete
    touched = while_away(sim)
    async with open_service(config) as service:
        assert (await service.backfilled(followed=False)).complete
        assert "too long ago" in service.backfill.note
    assert await differences(database, sim, among=touched) == {}
    async with open_service(config) as service:
        await service.backfilled(followed=False)
        assert service.backfill.note == ""


async def test_a_run_that_dies_while_it_lists_anew_is_taken_up_by_the_next(
    sim: Running, database: str
) -> None:
    config = config_of(sim, database)
    async with open_service(config) as service:
        await service.backfilled(followed=False)
    touched = while_away(sim)
    async with open_service(config) as service:
        await _cut_in_the_lists(service)
    async with open_service(config) as service:
        await service.backfilled(followed=False)
        assert "too long ago" in service.backfill.note
    assert await differences(database, sim, among=touched) == {}


async def _cut_in_the_lists(service: Service) -> None:
    """Where the new position is saved, and hardly anything is listed."""
    asked = service.stripe.requests.total()
    run = asyncio.create_task(service.backfilled(followed=False))
    while service.stripe.requests.total() < asked + 6:  # noqa: ASYNC110 (nothing tells of it)
        await asyncio.sleep(0)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)


async def test_a_follower_that_was_away_for_long_ends_in_the_same_state(
    sim: Running, database: str
) -> None:
    config = config_of(sim, database)
    async with open_service(config) as service:
        await service.backfilled(followed=False)
    touched = while_away(sim)
    start = int(sim.account.clock.now())
    async with open_service(config) as service:
        follower = await service.follow()
        following = asyncio.create_task(follower.run())
        try:
            assert (await service.backfilled(followed=True)).complete
            follower.backfilled()
            sim.control.edit("customer", silent=False)
            await follower.poller.read_lookback(start)
            await follower.refetches.idle()
            await service.source.mirror.conflicts.wait_resolved()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
    assert await differences(database, sim, among=touched) == {}
    assert await differences(database, sim, among=born_since(sim, start)) == {}


async def test_a_follower_that_stood_still_for_too_long_begins_again(
    sim: Running, database: str
) -> None:
    config = config_of(sim, database)
    async with open_service(config) as service:
        follower = await service.follow()
        following = asyncio.create_task(follower.run())
        await service.backfilled(followed=True)
        follower.backfilled()
        while_away(sim)
        with pytest.raises(BaseExceptionGroup) as ended:
            await following
        assert ended.group_contains(FellBehind)
    async with open_service(config) as service:
        await service.follow()
        assert "too long ago" in service.backfill.note
