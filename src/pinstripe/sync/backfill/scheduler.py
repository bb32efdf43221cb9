"""Hands free requests to the lists that have most left to read.

One loop, not a pool of workers: it starts a request when the rate limit lets it go without a wait. First
come the lists that others wait for or that can only be read in sequence (`ListReader.urgent`), then the
list with most left. So the longest list runs at its endpoint's full rate from the beginning, and short
ones fill the gaps. A list is split into one more slice only when a request is free that no other list
could use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from pinstripe.catalog.endpoints import ListEndpoint
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.concurrency import wait_for
from pinstripe.source.source import BACKFILL
from pinstripe.store.cursors import Checkpoint, State

MAX_IN_FLIGHT = 64
"""Requests and pages under way: at 100/s enough for answers that take 300 ms and as much time again until
they are durable."""
MAX_IN_FLIGHT_UNLIMITED = 32
"""Without a rate limit: each may hold a page, and more would only wait for Postgres."""
_RESERVED = 16
"""More of them for urgent lists, so that they never wait for places that pages hold."""
MAX_PER_LIST = 16
"""Of one list: at 25/s enough for answers that take 640 ms."""
MAX_PER_LIST_UNLIMITED = 4
"""Without a rate limit: more slices would only cost pages that are not full."""


class ListReader(Protocol):
    """One list that a run reads: `ListStream`, `ChildListStream`."""

    endpoint: ListEndpoint
    table: str
    """The table of what it lists."""
    state: State
    reason: str
    code: str
    remedy: str
    rows: int
    in_flight: int
    has_children: bool
    """Whether lists by parent wait for what this one lists."""

    @property
    def finished(self) -> bool: ...

    @property
    def urgent(self) -> bool:
        """Cheap, but slow (its pages come in sequence only), or other lists wait for it."""

    def remaining(self) -> float:
        """Estimated requests left."""

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` when a page was received and the next can be requested, before it is durable."""

    def claim(self) -> Callable[[], asyncio.Task[None]] | None:
        """Return what starts the next request, or None if there is none now."""

    def end(self, state: State, reason: str, *, code: str) -> None:
        """Stop reading; the cursor keeps the state and the reason."""

    def final(self) -> Checkpoint:
        """Return the cursor as of the last durable page."""


class Scheduler:
    """Runs list readers to their end."""

    def __init__(self, budget: RateLimiter, *, max_in_flight: int | None = None) -> None:
        """`max_in_flight`: fewer than usual, for work that must not slow the rest."""
        self._budget = budget
        self._max = max_in_flight
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(
        self,
        works: Sequence[ListReader],
        *,
        more: Callable[[], Awaitable[Sequence[ListReader]]] | None = None,
    ) -> None:
        """Return when all are finished. `more` is called for further lists whenever a request ends.

        An error that ends a request's task ends the run: all others are cancelled first.
        """
        active: list[ListReader] = []
        added = works
        try:
            while True:
                self._changed.clear()
                added = [*added, *(await more() if more else ())]
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
        """Start what can go now; return the seconds until more can, None if a request must end first."""
        soonest: float | None = None
        usual = MAX_IN_FLIGHT if self._budget.rate() else MAX_IN_FLIGHT_UNLIMITED
        limit = self._max or usual
        for work in sorted(active, key=lambda w: (w.urgent, w.remaining()), reverse=True):
            name = work.endpoint.name
            most = MAX_PER_LIST if self._budget.rate(name) else MAX_PER_LIST_UNLIMITED
            places = limit + (_RESERVED if work.urgent else 0)
            while len(self._tasks) < places and work.in_flight < most:
                wait_s = self._budget.ready_in(name, priority=BACKFILL)
                # Urgent lists queue: on a busy account they would never find the rate limit free.
                if wait_s > 0 and not (work.urgent and work.in_flight == 0):
                    soonest = wait_s if soonest is None else min(soonest, wait_s)
                    break
                start = work.claim()
                if start is None:
                    break
                task = start()
                self._tasks.add(task)
                task.add_done_callback(self._ended)
                # Let it take its permit, so that the rate limiter counts it.
                await asyncio.sleep(0)
        return soonest if len(self._tasks) < limit else None

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._changed.set()

    async def _wait(self, delay_s: float | None) -> None:
        await wait_for(self._changed, delay_s if delay_s is not None else 1.0)
        for task in [t for t in self._tasks if t.done()]:
            self._tasks.discard(task)
            task.result()
