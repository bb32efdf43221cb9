"""Hands free requests to the lists that have most to come.

One loop, not a pool of workers: it starts a request when the budget would let it go at once. First come
the lists that others wait for or that time alone makes long (see `Work.urgent`), then the list with the
largest estimated rest, so that the longest list runs at its endpoint's full rate from the beginning and
the short ones fill the gaps. A list is cut into one more range only when a request is free that no other
list could use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from pinstripe.catalog.endpoints import ListEndpoint
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.concurrency import wait_for

MAX_IN_FLIGHT = 64
"""Requests and pages under way at once: at 100/s enough for answers that take 300 ms and as much time
again until they are durable."""
MAX_IN_FLIGHT_UNLIMITED = 32
"""Where no rate holds them back: each may hold a page, and more would only wait for Postgres."""
_RESERVED = 16
"""More of them for what is urgent, so that it never waits for places that pages hold."""
MAX_PER_LIST = 16
"""Of one list: at 25/s enough for answers that take 640 ms."""
MAX_PER_LIST_UNLIMITED = 4
"""Where no rate holds it back: more ranges would only cost pages that are not full."""


class ListReader(Protocol):
    """A list that wants requests: `Pager`, `UnderParents`."""

    @property
    def endpoint(self) -> ListEndpoint: ...

    @property
    def in_flight(self) -> int: ...

    @property
    def finished(self) -> bool: ...

    @property
    def urgent(self) -> bool:
        """Cheap itself, but it takes long (pages in sequence only), or other lists wait for it."""

    def remaining(self) -> float:
        """Estimated requests to come."""

    def on_change(self, changed: Callable[[], None]) -> None:
        """Whom to tell when a page has come and the next may be asked for, before it is durable."""

    def claim(self, *, cut: bool) -> Callable[[], asyncio.Task[None]] | None:
        """Something that starts the next request, or None if there is none now."""


class Scheduler:
    """Runs works to their end. `arrived` may be called to add more while it runs."""

    def __init__(self, budget: RateLimiter, *, max_in_flight: int | None = None) -> None:
        """`max_in_flight`: fewer than usual, for work that must not be in the way."""
        self._budget = budget
        self._max = max_in_flight
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(
        self, works: Sequence[ListReader], *, more: Callable[[], Sequence[ListReader]]
    ) -> None:
        """Returns when all are finished. `more` is asked for further works whenever one ends.

        An error that ends a request's task ends the run: all others are cancelled first.
        """
        active: list[ListReader] = []
        added = works
        try:
            while True:
                self._changed.clear()
                added = [*added, *more()]
                for work in added:
                    work.on_change(self._changed.set)
                active = [w for w in (*active, *added) if not w.finished]
                added = ()
                if not active and not self._tasks:
                    return
                delay_s = await self._start_all(active)
                await self._wait(delay_s)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start_all(self, active: list[ListReader]) -> float | None:
        """Starts what can go now; gives the seconds until more could, None if only an end can help."""
        soonest: float | None = None
        usual = MAX_IN_FLIGHT if self._budget.rate() else MAX_IN_FLIGHT_UNLIMITED
        limit = self._max or usual
        for work in sorted(active, key=lambda w: (w.urgent, w.remaining()), reverse=True):
            name = work.endpoint.name
            most = MAX_PER_LIST if self._budget.rate(name) else MAX_PER_LIST_UNLIMITED
            places = limit + (_RESERVED if work.urgent else 0)
            while len(self._tasks) < places and work.in_flight < most:
                wait_s = self._budget.ready_in(name)
                # What is urgent queues: it would never find the budget of a busy account free.
                if wait_s > 0 and not (work.urgent and work.in_flight == 0):
                    soonest = wait_s if soonest is None else min(soonest, wait_s)
                    break
                start = work.claim(cut=True)
                if start is None:
                    break
                task = start()
                self._tasks.add(task)
                task.add_done_callback(self._ended)
                # Let it take its permit, so that the budget counts it.
                await asyncio.sleep(0)
        return soonest if len(self._tasks) < limit else None

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._changed.set()

    async def _wait(self, delay_s: float | None) -> None:
        await wait_for(self._changed, delay_s if delay_s is not None else 1.0)
        for task in [t for t in self._tasks if t.done()]:
            self._tasks.discard(task)
            task.result()
