"""The refetches of one process in memory: waiting, in progress, and to be made once more."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager

from pinstripe.store.refetch import Refetch

RefetchKey = tuple[str, str, str]


class RefetchQueue:
    """First come, first served; one request at a time for each key."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[RefetchKey] = asyncio.Queue()
        self._refetches: dict[RefetchKey, Refetch] = {}
        self._running: set[RefetchKey] = set()
        self._again: set[RefetchKey] = set()
        self._fetches: dict[str, set[str]] = {}
        """By table: keys that wait for a fetch."""
        self._held: dict[str, list[RefetchKey]] = {}
        """By table in which many are being fetched together: what came to its turn meanwhile."""
        self._later: dict[RefetchKey, asyncio.TimerHandle] = {}
        """Failed refetches, until their next try."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    def __len__(self) -> int:
        return len(self._refetches)

    def __contains__(self, place: RefetchKey) -> bool:
        return place in self._refetches

    def add(self, refetches: Sequence[Refetch]) -> None:
        """Add refetches. One that waits already is there once; one in progress is made again."""
        for refetch in refetches:
            place = refetch.key
            known = place in self._refetches
            self._refetches[place] = refetch
            if place in self._running:
                self._again.add(place)
            elif not known:
                self._wait(place)
            else:
                self.wake([place])
        self._note()

    async def next(self) -> Refetch:
        """Wait for the next refetch. Bring it back with `done` or `put_back`."""
        while True:
            place = await self._queue.get()
            # Others of a batch may have been completed, or be in progress, since they were queued.
            if place not in self._refetches or place in self._running or place in self._later:
                continue
            kind, table, _ = place
            if kind == "fetch" and table in self._held:
                self._held[table].append(place)
                continue
            return self._take(place)

    def waiting(self, table: str) -> Set[str]:
        """Return the keys of the table's rows that wait for a fetch."""
        return self._fetches.get(table, frozenset())

    def take(self, table: str, keys: Collection[str]) -> list[Refetch]:
        """Take those of these keys that wait for a fetch."""
        mine = sorted(self.waiting(table) & set(keys))
        return [self._take(("fetch", table, key)) for key in mine]

    @contextmanager
    def holding(self, table: str) -> Iterator[None]:
        """Within the block no other row of the table gets its turn: most are fetched in the batch."""
        self._held[table] = []
        try:
            yield
        finally:
            for place in self._held.pop(table):
                self._queue.put_nowait(place)

    def done(self, place: RefetchKey) -> None:
        """Complete it. If it was added again meanwhile, it waits again."""
        if place in self._again:
            self.put_back(place)
            return
        self._running.discard(place)
        self._refetches.pop(place, None)
        self._note()

    def put_back(self, place: RefetchKey) -> None:
        """Return it to the queue."""
        self._running.discard(place)
        self._again.discard(place)
        self._wait(place)

    def later(self, refetch: Refetch, pause_s: float) -> None:
        """It failed: it waits again after a pause. If it was added again meanwhile, without one."""
        place = refetch.key
        if place in self._again:
            self.put_back(place)
            return
        self._running.discard(place)
        self._refetches[place] = refetch
        loop = asyncio.get_running_loop()
        self._later[place] = loop.call_later(pause_s, self.wake, [place])
        self._note()

    def put_off(self, place: RefetchKey, pause_s: float) -> None:
        """It waits for its next try, after a pause."""
        refetch = self._refetches.get(place)
        if refetch is not None and place not in self._running:
            kind, table, key = place
            if kind == "fetch":
                self._fetches[table].discard(key)
            self.later(refetch, pause_s)

    def wake(self, places: Iterable[RefetchKey]) -> None:
        """Drop those of these that wait for their next try."""
        for place in places:
            timer = self._later.pop(place, None)
            if timer is not None:
                timer.cancel()
                self._wait(place)
        self._note()

    def close(self) -> None:
        """Make every failed refetch wait for its turn without a further pause."""
        for timer in self._later.values():
            timer.cancel()
        self._later.clear()

    async def idle(self) -> None:
        """Return when nothing is left."""
        await self._idle.wait()

    async def at_rest(self) -> None:
        """Return when nothing is left but failed ones that wait for their next try."""
        await self._at_rest.wait()

    def _note(self) -> None:
        left, later = len(self._refetches), len(self._later)
        for event, is_so in ((self._idle, not left), (self._at_rest, left == later)):
            if is_so:
                event.set()
            else:
                event.clear()

    def _wait(self, place: RefetchKey) -> None:
        kind, table, key = place
        if kind == "fetch":
            self._fetches.setdefault(table, set()).add(key)
        self._queue.put_nowait(place)

    def _take(self, place: RefetchKey) -> Refetch:
        kind, table, key = place
        if kind == "fetch":
            self._fetches[table].discard(key)
        self._running.add(place)
        return self._refetches[place]
