"""Many objects that are to be fetched are a page of their list, and what it does not show is asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.flows.harness.account import Copy, followed, open_copy
from tests.flows.harness.truth import differences

from pinstripe.store.pool import connect
from pinstripe.store.refetch import Refetch, add_refetches, load_refetches
from pinstripe.sync.refetch import batch_fetch
from pinstripe_simulator.account import Settings
from pinstripe_simulator.faults import Fault
from pinstripe_simulator.server import Running, running

pytestmark = pytest.mark.migrated

LIST, ONE = "GET /v1/customers", "GET /v1/customers/{customer}"
MANY = 60


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=300, future_fields=False)) as simulator:
        yield simulator


def asked(sim: Running) -> dict[str, int]:
    return sim.account.meter.requests


async def made(copy: Copy, count: int = MANY) -> list[str]:
    """So many customers, one after the other; their events are applied and nothing is fetched yet."""
    response = [
        await copy.source.stripe.post(
            "/v1/customers", [("name", f"n{n}")], endpoint="POST /v1/customers"
        )
        for n in range(count)
    ]
    return [r.body.split(b'"id": "', 1)[1].split(b'"', 1)[0].decode() for r in response]


async def test_objects_made_together_are_fetched_together(sim: Running, database: str) -> None:
    start = time.time()
    async with open_copy(sim, database) as copy:
        keys = await made(copy)
        sim.account.meter.reset()
        await followed(copy, start)
        assert asked(sim)[LIST] >= 1
        assert asked(sim)[LIST] + asked(sim).get(ONE, 0) < MANY / 3
        # With what only an expanded answer shows.
        assert await differences(database, sim, among={"customer": set(keys)}) == {}
        async with connect(database) as pg:
            assert await load_refetches(pg, "stripe") == []


async def test_what_the_list_does_not_show_is_asked_for(sim: Running, database: str) -> None:
    start = time.time()
    async with open_copy(sim, database) as copy:
        keys = await made(copy)
        for key in keys[:3]:
            sim.control.delete("customer", key, silent=True)
        sim.account.meter.reset()
        await followed(copy, start)
        assert asked(sim)[ONE] >= 3
        async with connect(database) as pg:
            flagged = await pg.fetch("SELECT id FROM stripe.customer WHERE deleted")
            assert {row[0] for row in flagged} == set(keys[:3])
            assert await load_refetches(pg, "stripe") == []


async def test_a_list_that_cannot_be_read_leaves_them_to_be_asked_for_singly(
    sim: Running, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = replace(batch_fetch._lists()["customer"], path="/v1/customers_of_yore")
    monkeypatch.setattr(batch_fetch, "_lists", lambda: {"customer": unknown})
    start = time.time()
    async with open_copy(sim, database) as copy:
        keys = await made(copy)
        sim.account.meter.reset()
        await followed(copy, start)
        assert sim.account.meter.answers[404] == 2  # Once more without what it expands.
        assert asked(sim)[ONE] >= MANY
        assert await differences(database, sim, among={"customer": set(keys)}) == {}


async def test_many_of_one_second_are_found_whichever_comes_first(
    sim: Running, database: str
) -> None:
    async with open_copy(sim, database) as copy:
        keys = await made(copy)
        await followed(copy, time.time() - 60)
        async with connect(database) as pg:
            await pg.execute(
                "INSERT INTO stripe.customer (id, created, _as_of, _as_of_latest, _synced_at)"
                " SELECT 'cus_a' || n, c.created, now(), now(), now()"
                " FROM generate_series(1, 900) n, stripe.customer c WHERE c.id = $1",
                keys[-1],
            )
            refetches = [Refetch("fetch", "customer", key, since=time.time()) for key in keys[::-1]]
            await add_refetches(pg, "stripe", refetches)
            _, line = copy.live(int(time.time()))
            await line.drain()
            assert await load_refetches(pg, "stripe") == []


async def test_objects_of_different_days_are_asked_for_singly(sim: Running, database: str) -> None:
    async with open_copy(sim, database) as copy:
        keys = await made(copy, 20)
        await followed(copy, time.time() - 60)
        async with connect(database) as pg:
            # Each has hundreds of others, of no interest, between itself and the next.
            await pg.execute(
                "INSERT INTO stripe.customer (id, created, _as_of, _as_of_latest, _synced_at)"
                " SELECT 'cus_other' || n, now() - n * interval '1 h', now(), now(), now()"
                " FROM generate_series(1, 4000) n"
            )
            await pg.execute(
                "UPDATE stripe.customer c SET created = now() - u.n * interval '190 h'"
                " FROM unnest($1::text[]) WITH ORDINALITY AS u (id, n) WHERE c.id = u.id",
                keys,
            )
            # So long ago that no replica is behind it: what is asked twice is of one day by then.
            refetches = [Refetch("fetch", "customer", key, since=time.time() - 60) for key in keys]
            await add_refetches(pg, "stripe", refetches)
        sim.account.meter.reset()
        _, line = copy.live(int(time.time()))
        await line.drain()
        assert asked(sim).get(LIST, 0) <= 2  # Two of them may share a page.
        assert asked(sim)[ONE] >= 18


async def test_who_is_asked_for_again_meanwhile_is_asked_again(sim: Running, database: str) -> None:
    async with open_copy(sim, database) as copy:
        keys = await made(copy)
        await followed(copy, time.time() - 60)
        refetches = [Refetch("fetch", "customer", key, since=time.time()) for key in keys]
        async with connect(database) as pg:
            await add_refetches(pg, "stripe", refetches)
            sim.account.faults.add(
                Fault("hang", count=1, path="/v1/customers", method="GET", seconds=1.0)
            )
            _, line = copy.live(int(time.time()))
            draining = asyncio.create_task(line.drain())
            await asyncio.sleep(0.5)  # The list is being asked for.
            later = [replace(refetch, since=time.time()) for refetch in refetches]
            await add_refetches(pg, "stripe", later)
            line.add(later)
            sim.account.meter.reset()
            await draining
            assert asked(sim)[LIST] + asked(sim).get(ONE, 0) >= 2
            assert await load_refetches(pg, "stripe") == []
