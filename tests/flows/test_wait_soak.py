"""Writes, exact waits and reads by many writers at once; how many is set by the environment.

PINSTRIPE_WAIT_SOAK=10000 for the long form. Prints what it found.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time

import pytest
from tests.flows.harness.waiting import gateway, made_customer, renamed, syncing

from pinstripe.store.pool import open_pool
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import running

pytestmark = pytest.mark.migrated

WAITS = int(os.environ.get("PINSTRIPE_WAIT_SOAK", "200"))
WRITERS = 20


async def test_no_exact_wait_is_followed_by_a_stale_read(database: str) -> None:
    stale: list[str] = []
    took_ms: dict[str, list[float]] = {"object": [], "request": []}
    async with (
        running(Settings(scale=300, future_fields=False)) as sim,
        gateway(sim, database) as here,
        syncing(sim, database) as follower,
        await open_pool(database, min_size=1, max_size=4) as pool,
    ):
        sim.control.late_events(share=0.2, delay_s=0.5)
        left = iter(range(WAITS))

        async def write(writer: int) -> None:
            chance = random.Random(writer)
            key, _ = await made_customer(here.stripe, "new")
            for n in left:
                request = await renamed(here.stripe, key, f"{writer} {n}")
                form = chance.choice(("object", "request"))
                began = time.perf_counter()
                answer = await here.wait(f"{form}={key if form == 'object' else request}")
                took_ms[form].append((time.perf_counter() - began) * 1000)
                async with pool.acquire() as connection:
                    name = await connection.fetchval(
                        "SELECT name FROM stripe.customer WHERE id = $1", key
                    )
                if answer.status_code != 200 or name != f"{writer} {n}":
                    stale.append(f"{form} {n}: {answer.status_code}, {name!r}")

        await asyncio.gather(*(write(n) for n in range(WRITERS)))
        medians = {form: round(statistics.median(ms)) for form, ms in took_ms.items()}
        print(
            f"waits={WAITS} stale={len(stale)} median_ms={medians} looks={follower.poller.stats.polls}"
        )
    assert stale == []


async def test_no_plain_wait_that_lets_late_events_settle_is_followed_by_a_stale_read(
    database: str,
) -> None:
    stale: list[str] = []
    delay_s = 0.15
    settle_s = 2 * delay_s + 0.05  # Late events come up to twice the delay late.
    async with (
        running(Settings(scale=300, future_fields=False)) as sim,
        gateway(sim, database, settle_s=settle_s) as here,
        syncing(sim, database),
        await open_pool(database, min_size=1, max_size=4) as pool,
    ):
        sim.control.late_events(share=0.2, delay_s=delay_s)
        left = iter(range(WAITS))

        async def write(writer: int) -> None:
            key, _ = await made_customer(here.stripe, "new")
            for n in left:
                await renamed(here.stripe, key, f"{writer} {n}")
                answer = await here.wait()
                async with pool.acquire() as connection:
                    name = await connection.fetchval(
                        "SELECT name FROM stripe.customer WHERE id = $1", key
                    )
                if answer.status_code != 200 or name != f"{writer} {n}":
                    stale.append(f"{n}: {answer.status_code}, {name!r}")

        began = time.perf_counter()
        await asyncio.gather(*(write(n) for n in range(WRITERS)))
        print(f"plain waits={WAITS} stale={len(stale)} seconds={time.perf_counter() - began:.0f}")
    assert stale == []
