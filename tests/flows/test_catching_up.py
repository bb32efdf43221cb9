"""A reader that was away for weeks catches up slice by slice, and is where it was after any kill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest
from tests.flows.harness.account import Copy, open_copy
from tests.flows.harness.scripted_stripe import Answer, Params, ScriptedStripe, scripted_stripe

from pinstripe.client.retry import Patience
from pinstripe.store.cursors import load_as_of
from pinstripe.sync.events.poller import EventPoller

pytestmark = pytest.mark.migrated

_DAY_S = 86_400
_AWAY_S = 29 * _DAY_S
_EVENTS = 900


@pytest.fixture
async def stripe() -> AsyncIterator[ScriptedStripe]:
    """29 days of events; half of them within one hour, as after an import."""
    async with scripted_stripe() as stub:
        now = int(time.time())
        for number in range(_EVENTS):
            spread = number * _AWAY_S // _EVENTS
            created = (
                now - _AWAY_S + (spread if number % 2 else 20 * _DAY_S + number * 3600 // _EVENTS)
            )
            stub.event("product.updated", product(number), created=created)
        stub.events.sort(key=lambda e: -e["created"])  # type: ignore[index]
        yield stub


@pytest.fixture
async def copy(stripe: ScriptedStripe, database: str) -> AsyncIterator[Copy]:
    patience = Patience(attempts=3, base_s=0.01)  # What fails here fails again.
    async with open_copy(stripe, database, patience=patience) as opened:
        yield opened


def product(number: int) -> dict[str, object]:
    return {"id": f"prod_{number % 50}", "object": "product", "name": f"as of event {number}"}


def newest_states(stripe: ScriptedStripe) -> dict[str, str]:
    states: dict[str, str] = {}
    for event in reversed(stripe.events):
        obj = event["data"]["object"]  # type: ignore[index]
        states[obj["id"]] = obj["name"]
    return states


async def states(pg: asyncpg.Connection) -> dict[str, str]:
    return {row[0]: row[1] for row in await pg.fetch("SELECT id, name FROM stripe.product")}


async def arrived(pg: asyncpg.Connection, key: str) -> None:
    while key not in await states(pg):  # noqa: ASYNC110 (rows have no event)
        await asyncio.sleep(0.005)


async def queued(pg: asyncpg.Connection) -> list[tuple[str, str, str]]:
    return [tuple(row) for row in await pg.fetch('SELECT kind, "table", id FROM pinstripe.pending')]


async def position(pg: asyncpg.Connection) -> float:
    found = await load_as_of(pg, "stripe")
    return found.timestamp() if found is not None else 0.0


def follower(copy: Copy, since: float) -> EventPoller:
    return copy.live(since)[0]


async def test_the_position_moves_from_old_to_new_and_no_more_is_remembered_than_a_slice(
    stripe: ScriptedStripe,
    copy: Copy,
    pg: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pinstripe.sync.events.poller._SLICE_EVENTS", 50)
    start = time.time() - _AWAY_S - 60
    poller = follower(copy, start)
    remembered: list[int] = []
    positions: list[float] = []
    commit = poller._commit

    async def counted(*args: object) -> None:
        await commit(*args)  # type: ignore[arg-type]
        remembered.append(await pg.fetchval("SELECT count(*) FROM pinstripe.applied_event"))
        positions.append(await position(pg))

    monkeypatch.setattr(poller, "_commit", counted)
    await poller.catch_up(600.0)
    assert await states(pg) == newest_states(stripe)
    assert await pg.fetchval("SELECT count(*) FROM stripe.event") == _EVENTS
    assert positions == sorted(positions)
    assert len(set(positions)) > 10
    assert max(remembered) < _EVENTS * 0.6
    assert time.time() - positions[-1] < 700  # Without a `Date`, five minutes of doubt, twice.


async def test_a_reader_that_is_killed_while_it_catches_up_goes_on_where_it_was(
    stripe: ScriptedStripe,
    copy: Copy,
    pg: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pinstripe.sync.events.poller._SLICE_EVENTS", 50)
    start = time.time() - _AWAY_S - 60
    reached = asyncio.Event()

    def cut(_: Params) -> Answer | None:
        if len(stripe.asked) > 60:
            reached.set()
        return None

    stripe.answers["/v1/events"] = cut
    reading = asyncio.create_task(follower(copy, start).catch_up(600.0))
    await reached.wait()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    saved, asked = await position(pg), len(stripe.asked)
    assert saved > start + _DAY_S
    await follower(copy, saved).catch_up(600.0)
    begins = [int(dict(params).get("created[gte]", "0")) for _, params in stripe.asked[asked:]]
    assert min(begins) >= int(saved - 600.0)
    assert await states(pg) == newest_states(stripe)
    assert await pg.fetchval("SELECT count(*) FROM stripe.event") == _EVENTS


async def test_an_event_that_fails_in_a_slice_does_not_let_the_position_pass_it(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    start = time.time() - _AWAY_S - 60
    cut_off = int(start) + 15 * _DAY_S

    def broken(params: Params) -> Answer | None:
        late = int(dict(params).get("created[lt]", "0")) > cut_off
        return (500, {"error": {"message": "down"}}) if late else None

    stripe.answers["/v1/events"] = broken
    with pytest.raises(Exception, match="down"):
        await follower(copy, start).catch_up(600.0)
    assert await position(pg) <= cut_off
    del stripe.answers["/v1/events"]
    await follower(copy, await position(pg) or start).catch_up(600.0)
    assert await states(pg) == newest_states(stripe)


async def test_after_a_restart_new_events_do_not_wait_for_the_windows_pages(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    """The log of ten minutes is 30 pages. What came late while no process ran is found beside the polls."""
    stripe.events.clear()
    stripe.date_ahead_s = 0.0
    now = int(time.time())
    for number in range(3000):
        stripe.event("product.updated", product(number), created=now - 580 + number // 6)
    stripe.events.sort(key=lambda e: -e["created"])  # type: ignore[index]
    await follower(copy, now - 600).catch_up(600.0)
    stripe.event("product.updated", {**product(0), "id": "prod_late"}, created=now - 300)
    stripe.event("product.updated", {**product(0), "id": "prod_new"}, created=int(time.time()))
    stripe.events.sort(key=lambda e: -e["created"])  # type: ignore[index]
    asked = len(stripe.asked)
    poller, _ = copy.live(await position(pg))
    task = asyncio.create_task(poller.run())
    try:
        async with asyncio.timeout(20):
            await arrived(pg, "prod_new")
            assert len(stripe.asked) - asked < 10
            await arrived(pg, "prod_late")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_events_from_before_a_first_copy_are_left_to_its_lists(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    """But those that a replica may have been behind are applied. One that shows up late is a hint: what
    came after it may be among those that were left.
    """
    stripe.events.clear()
    stripe.date_ahead_s = 0.0
    now = int(time.time())

    def tell(key: str, age_s: int) -> None:
        stripe.event("product.updated", {**product(0), "id": key}, created=now - age_s)
        stripe.events.sort(key=lambda e: -e["created"])  # type: ignore[index]

    tell("prod_old", 60)
    tell("prod_young", 0)  # This account's margins are 0.
    copy.source.mirror.began_empty = True
    poller, _ = copy.live(float(now))
    copy.source.mirror.began_empty = False
    task = asyncio.create_task(poller.run())
    try:
        async with asyncio.timeout(20):
            await arrived(pg, "prod_young")
            tell("prod_late", 40)
            while ("fetch", "product", "prod_late") not in await queued(pg):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert set(await states(pg)) == {"prod_young"}
    applied = "SELECT count(*) FROM pinstripe.applied_event"
    assert await pg.fetchval(applied) == 2
    await poller.note_listed()
    assert await pg.fetchval(applied) == 3
    assert not poller._listed
