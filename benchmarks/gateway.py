"""The gateway beside direct calls: what the proxy adds, what it bears, what a backfill does to it.

`pinstripe serve` as users run it: the sync in a process of its own follows every write by its events.
Direct and proxied calls take turns in one run, so that a busy machine slows both.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from itertools import count, cycle

from benchmarks import watch
from benchmarks.account import mix
from benchmarks.caller import Answer, Caller, calling
from benchmarks.figures import Figure
from benchmarks.service import UNLIMITED, Service, serving
from benchmarks.stage import Stage, stage

_ROUNDS = 1_000
_WRITES = 10_000
_CALLERS = (20, 50, 100)
_TAIL = 2_000
_OBJECTS = 300
"""That are updated in turn: who writes one row again and again waits for the sync that writes it too."""
_UPDATED = 500
"""Objects that all callers together update in turn: Stripe itself lets one be written once at a time."""
_OURS = ("the gateway", "the sync that follows", "Postgres")
_LIMITED = ("--rate-limit", "100", "--endpoint-rate-limit", "25")


async def gateway(objects: int) -> AsyncIterator[Figure]:
    """Everything of the proxy. `objects`: about so many are in the account."""
    share = min(1.0, objects / 20_000)
    async with stage(mix(objects)) as at:
        # First: each customer that the others make is requests of a backfill.
        async for figure in _beside_a_backfill(at, max(200, int(_TAIL * share))):
            yield figure
        database, writes = await at.database(), max(1_000, int(_WRITES * share))
        async with serving(at, database, *UNLIMITED) as service:
            await service.until("following")
            async for figure in _latency(at, service, max(100, int(_ROUNDS * share))):
                yield figure
            for callers in _CALLERS:
                async for figure in _sustained(at, service, writes, callers, what="all followed"):
                    yield figure
        # The same database: its rows are there, and nobody follows their events beside.
        async with serving(at, database, "--gateway-only") as service:
            await service.until("elsewhere")
            for callers in _CALLERS:
                async for figure in _sustained(at, service, writes, callers, what="proxy alone"):
                    yield figure


async def _latency(at: Stage, service: Service, rounds: int) -> AsyncIterator[Figure]:
    """What the proxy adds to a request at one caller: the difference of medians."""
    number = count()
    async with (
        calling(at.simulator.url, at.simulator.key) as (direct,),
        calling(service.url, at.simulator.key) as (proxied,),
    ):
        both = (direct, proxied)
        ids = [await _made(proxied, next(number)) for _ in range(_OBJECTS)]
        nothing = [("GET", "/v1/events?limit=1&created[gt]=4102444800", None)]
        again = [("GET", f"/v1/customers/{key}", None) for key in ids[:20]]
        for what, requests, target in (
            ("a GET without objects", nothing, 1.0),
            ("a GET of an object that is known", again, 1.0),
        ):
            yield await _added(what, both, [requests] * 2, rounds, target)
        fresh = [
            [("GET", f"/v1/customers/{await _made(one, next(number))}", None) for _ in range(100)]
            for one in (direct, direct)
        ]
        yield await _added("a GET seen for the first time (a commit)", both, fresh, 100)
        creates = [
            [("POST", "/v1/customers", {"email": f"{next(number)}@example.com"})] * 50
            for _ in range(2)
        ]
        yield await _added("a create, mirrored", both, creates, rounds, 4.0)
        updates = [
            [("POST", f"/v1/customers/{key}", {"name": f"n{next(number)}"}) for key in mine]
            for mine in (ids[::2], ids[1::2])
        ]
        yield await _added("an update, mirrored", both, updates, rounds, 4.0)


Request = tuple[str, str, dict[str, str] | None]


async def _added(
    what: str,
    callers: tuple[Caller, Caller],
    requests: Sequence[Sequence[Request]],
    rounds: int,
    target: float | None = None,
) -> Figure:
    """Milliseconds. `callers`: the direct one, the proxied one; `requests`: of each, taken in turn."""
    took: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for caller, mine, ms in zip(callers, requests, took, strict=True):
            method, path, form = mine[turn % len(mine)]
            began = time.perf_counter()
            answer = await caller.ask(method, path, form)
            ms.append((time.perf_counter() - began) * 1000)
            _check(
                answer, mirrored=caller is callers[1] and (method != "GET" or "/events" not in path)
            )
    added = _quantile(took[1], 0.5) - _quantile(took[0], 0.5)
    told = f"added to {what} ({_quantile(took[0], 0.5):.2f} direct)"
    return Figure("gateway", told, added, "ms", target)


async def _sustained(
    at: Stage, service: Service, writes: int, callers: int, *, what: str
) -> AsyncIterator[Figure]:
    """Mirrored writes a second, half creates and half updates; and who used the CPU."""
    child = (await service.state())["pid"] or 0
    async with calling(service.url, at.simulator.key, count=callers) as connections:
        made = zip(cycle(connections), range(_UPDATED))
        ids = [await _made(one, n) for one, n in made]
        left = iter(range(writes))

        async def write(mine: Caller) -> None:
            for n in left:
                path = f"/v1/customers/{ids[n // 2 % _UPDATED]}" if n % 2 else "/v1/customers"
                answer = await mine.ask("POST", path, {"name": f"n{n}"})
                _check(answer, mirrored=True)

        before = _used(at, service, int(str(child)))
        began = time.monotonic()
        await asyncio.gather(*map(write, connections))
        took_s = time.monotonic() - began
    told = f"{what} at {callers} callers"
    yield Figure("gateway", f"mirrored writes, {told}", writes / took_s, "/s", 1000, "more")
    used = {name: s - before[name] for name, s in _used(at, service, int(str(child))).items()}
    for name, spent_s in used.items():
        yield Figure("gateway", f"  CPU of {name} a write", spent_s / writes * 1e6, "us")
    yield Figure("gateway", "  CPU of all, of two cores", sum(used.values()) / took_s * 50, "%")
    # The simulator and the load generator stand for machines that are elsewhere.
    ours = sum(used[name] for name in _OURS)
    yield Figure(
        "gateway", "  writes that two cores of our own would bear", writes / ours * 2, "/s"
    )


def _used(at: Stage, service: Service, child: int) -> dict[str, float]:
    """Seconds of CPU so far."""
    return {
        "the gateway": watch.cpu_s(service.process.pid),
        "the sync that follows": watch.cpu_s(child) if child else 0.0,
        "Postgres": at.postgres_cpu_s(),
        "the simulator": watch.cpu_s(at.simulator.pid),
        "the load generator": time.process_time(),
    }


async def _beside_a_backfill(at: Stage, writes: int) -> AsyncIterator[Figure]:
    """What a backfill in the same service adds to the slowest in a hundred of the writes.

    Beside direct writes: the simulator serves the backfill too, and whoever asks it waits for that.
    """
    async with serving(at, await at.database(), *_LIMITED) as service:
        await service.until("backfilling")
        beside = await _tail(at, service, writes, "backfilling")
        await service.until("following")
        alone = await _tail(at, service, len(beside[0]), "following")
    yield Figure("gateway", "writes measured beside a backfill", len(beside[0]), "")
    for what, (direct, proxied) in (("alone", alone), ("beside a backfill", beside)):
        for took, name in ((direct, "direct"), (proxied, "proxied")):
            told = f"99th percentile of a write, {name}, {what}"
            yield Figure("gateway", told, _quantile(took, 0.99), "ms")
    for share, name, target in ((0.99, "99th percentile", 5), (0.5, "median", None)):
        added = [
            _quantile(proxied, share) - _quantile(direct, share)
            for direct, proxied in (alone, beside)
        ]
        yield Figure(
            "gateway",
            f"a backfill adds to the proxy's share of the {name}",
            added[1] - added[0],
            "ms",
            target,
        )


async def _tail(
    at: Stage, service: Service, writes: int, activity: str
) -> tuple[list[float], list[float]]:
    """Milliseconds of each direct and each proxied write, in turn, while the sync does this."""
    took: tuple[list[float], list[float]] = ([], [])
    async with (
        calling(at.simulator.url, at.simulator.key) as (direct,),
        calling(service.url, at.simulator.key) as (proxied,),
    ):
        keys = [await _made(proxied, n) for n in range(min(_OBJECTS, writes // 5))]
        half = len(keys) // 2
        for n in range(writes):
            for caller, mine, ms in zip(
                (direct, proxied), (keys[:half], keys[half:]), took, strict=True
            ):
                began = time.perf_counter()
                await caller.ask("POST", f"/v1/customers/{mine[n % half]}", {"name": f"n{n}"})
                ms.append((time.perf_counter() - began) * 1000)
                await asyncio.sleep(0.005)
            if n % 50 == 49 and (await service.state())["activity"] != activity:
                break
    return took


async def _made(caller: Caller, number: int) -> str:
    answer = await caller.ask("POST", "/v1/customers", {"email": f"made{number}@example.com"})
    _check(answer, mirrored=False)
    made: str = json.loads(answer.body)["id"]
    return made


def _check(answer: Answer, *, mirrored: bool) -> None:
    """A wrong answer is no measurement."""
    if answer.status != 200 or (mirrored and not answer.is_mirrored):
        raise RuntimeError(f"not an answer to measure: {answer.head.decode()}")


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int((len(values) - 1) * share)]
