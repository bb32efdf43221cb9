"""How long it takes to wait: beside one request to Stripe by hand, and a thousand at once."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from itertools import cycle

from benchmarks.account import mix
from benchmarks.caller import Caller, calling
from benchmarks.figures import Figure
from benchmarks.service import UNLIMITED, serving
from benchmarks.stage import stage
from pinstripe_simulator.process import SimulatorProcess

_ROUNDS = 100
_WAITERS = 1_000
_OBJECTS = 50
_APART_S = 0.6
"""Between two plain waits: looks that are rung for keep half the poll interval between them."""
_POLL = "/v1/events?limit=100"
_CALM_S = 3.0
"""After the first copy: what the events so far made the sync ask for is asked."""
_WAIT = "/wait/stripe/default"


async def waits(objects: int) -> AsyncIterator[Figure]:
    """Plain, by object, by request; then many at once. `objects`: about so many are in the account."""
    async with (
        stage(mix(objects)) as at,
        serving(at, await at.database(), *UNLIMITED) as service,
    ):
        await service.until("following")
        await asyncio.sleep(_CALM_S)
        rounds = max(40, int(_ROUNDS * min(1.0, objects / 20_000)))
        async for figure in _alone(at.simulator, service.url, rounds):
            yield figure
        async for figure in _at_once(at.simulator, service.url):
            yield figure


async def _alone(simulator: SimulatorProcess, url: str, rounds: int) -> AsyncIterator[Figure]:
    async with (
        calling(simulator.url, simulator.key) as (direct,),
        calling(url, simulator.key) as (gateway,),
    ):
        both = (direct, gateway)
        keys = [await _made(direct) for _ in range(_OBJECTS)]
        poll, plain = await _pairs(
            both, keys, (_POLL, f"{_WAIT}?settle=0"), rounds, pause_s=_APART_S
        )
        yield Figure("waits", f"plain, beyond one poll ({poll:.1f} ms)", plain - poll, "ms", 50)
        _, often = await _pairs(both, keys, (_POLL, f"{_WAIT}?settle=0"), rounds)
        yield Figure("waits", "plain, one right after the other: median", often, "ms")
        get, exact = await _pairs(both, keys, ("/v1/customers/{}", _WAIT + "?object={}"), rounds)
        yield Figure("waits", f"by object, beyond one GET ({get:.1f} ms)", exact - get, "ms", 10)
        yield await _by_request(direct, gateway, keys[0], rounds)


async def _at_once(simulator: SimulatorProcess, url: str) -> AsyncIterator[Figure]:
    async with calling(url, simulator.key, count=_WAITERS) as callers:
        before = (await simulator.control("state"))["by_endpoint"]
        began = time.monotonic()
        answers = await asyncio.gather(
            *(one.ask("GET", f"{_WAIT}?settle=0&timeout=30") for one in callers)
        )
        took_ms = (time.monotonic() - began) * 1000
        after = (await simulator.control("state"))["by_endpoint"]
    if any(answer.status != 200 for answer in answers):
        raise RuntimeError("a waiter was not answered")
    yield Figure("waits", f"{_WAITERS} at once: the last is answered after", took_ms, "ms")
    polls = after.get("GET /v1/events", 0) - before.get("GET /v1/events", 0)
    yield Figure("waits", f"{_WAITERS} at once: polls meanwhile", polls, "")


async def _made(direct: Caller) -> str:
    answer = await direct.ask("POST", "/v1/customers", {"name": "new"})
    made: str = json.loads(answer.body)["id"]
    return made


async def _pairs(
    both: tuple[Caller, Caller],
    keys: Sequence[str],
    paths: tuple[str, str],
    rounds: int,
    *,
    pause_s: float = 0.0,
) -> tuple[float, float]:
    """Medians in ms of a request by hand and of a wait, in turns; each right after a write at Stripe.

    `both`: the caller of Stripe, the caller of the gateway; `paths`: what they ask for, of one object.
    """
    took: tuple[list[float], list[float]] = ([], [])
    key = cycle(keys)
    for n in range(rounds):
        for one, path, ms in zip(both, paths, took, strict=True):
            mine = next(key)
            await both[0].ask("POST", f"/v1/customers/{mine}", {"name": f"w{n}"})
            ms.append(await _timed(one, path.format(mine)))
        await asyncio.sleep(pause_s)
    return statistics.median(took[0]), statistics.median(took[1])


async def _by_request(direct: Caller, gateway: Caller, key: str, rounds: int) -> Figure:
    took: list[float] = []
    for n in range(rounds):
        answer = await direct.ask("POST", f"/v1/customers/{key}", {"name": f"r{n}"})
        head = answer.head.decode("latin-1").lower()
        request = head.partition("\r\nrequest-id: ")[2].partition("\r\n")[0]
        # In lower case the id of a request is another id: it is read as it came.
        at = head.index(request)
        request = answer.head.decode("latin-1")[at : at + len(request)]
        took.append(await _timed(gateway, f"{_WAIT}?request={request}&settle=0"))
    return Figure("waits", "by request: median", statistics.median(took), "ms")


async def _timed(caller: Caller, path: str) -> float:
    began = time.perf_counter()
    answer = await caller.ask("GET", path)
    if answer.status != 200:
        raise RuntimeError(f"no wait to measure: {answer.body[:300]!r}")
    return (time.perf_counter() - began) * 1000
