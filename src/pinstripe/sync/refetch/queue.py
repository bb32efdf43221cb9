"""The refetches of one process in memory: waiting, in progress, and to be made once more.

Each class of work (`WorkClass`) has a queue of its own, so nothing waits behind a lower class. Within a
class the owners of the refetches take turns: the 100,000 invoices of one customer delay nobody else's. What
events cause besides rows in doubt may gather for a moment first, so that many of them become one request.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from pinstripe.client.rate_limit import WorkClass
from pinstripe.store.refetch import Refetch, class_name, merged

RefetchKey = tuple[str, str, str]

_WHOLE_ROWS = frozenset({"fetch", "relate"})
"""The kinds that ask for one object: many of a table may be one page of its list."""


class _Turns:
    """Keys by owner; the owners take turns, and each is served in order of arrival."""

    def __init__(self) -> None:
        self._owners: OrderedDict[str, deque[RefetchKey]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, item: tuple[str, RefetchKey]) -> None:
        owner, place = item
        self._owners.setdefault(owner, deque()).append(place)
        self._count += 1

    def popleft(self) -> RefetchKey:
        owner, places = self._owners.popitem(last=False)
        place = places.popleft()
        if places:
            self._owners[owner] = places
        self._count -= 1
        return place


class RefetchQueue:
    """By class, and within a class by owner in turns; one request at a time for each key."""

    def __init__(self) -> None:
        self._turns: dict[WorkClass, _Turns] = {work: _Turns() for work in WorkClass}
        self._filled: dict[WorkClass, asyncio.Event] = {work: asyncio.Event() for work in WorkClass}
        self._refetches: dict[RefetchKey, Refetch] = {}
        self._running: set[RefetchKey] = set()
        self._again: set[RefetchKey] = set()
        self._whole: dict[str, dict[str, RefetchKey]] = {}
        """By table: the ids that wait for one object to be fetched."""
        self._held: dict[tuple[str, WorkClass], list[RefetchKey]] = {}
        """By table and class in which many are being fetched together: what came to its turn meanwhile."""
        self._later: dict[RefetchKey, asyncio.TimerHandle] = {}
        """Failed refetches, until their next try."""
        self._gathering: dict[RefetchKey, None] = {}
        """Those that wait for more of their kind; a timer ends that."""
        self._gathered_at: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    def __len__(self) -> int:
        return len(self._refetches)

    def __contains__(self, place: RefetchKey) -> bool:
        return place in self._refetches

    def waits(self, place: RefetchKey) -> bool:
        """Return whether it waits for its next try."""
        return place in self._later

    def counts(self) -> dict[str, int]:
        """Return how many there are by the name of their class."""
        found: dict[str, int] = {}
        for refetch in self._refetches.values():
            name = class_name(refetch.work_class)
            found[name] = found.get(name, 0) + 1
        return found

    def add(self, refetches: Sequence[Refetch], *, gather_s: float = 0.0) -> None:
        """Add refetches. One that waits already is there once; one in progress is made again.

        `gather_s`: those of lower classes than contested rows wait so long for more of them. A wait that
        runs is not prolonged.
        """
        for refetch in refetches:
            self._add(refetch, gathers=gather_s > 0 and refetch.work_class > WorkClass.CONTESTED)
        if self._gathering and self._gathered_at is None:
            loop = asyncio.get_running_loop()
            self._gathered_at = loop.call_later(gather_s, self.end_gathering)
        self._note()

    def _add(self, refetch: Refetch, *, gathers: bool) -> None:
        place = refetch.key
        known = self._refetches.get(place)
        is_raised = known is not None and refetch.work_class < known.work_class
        refetch = self._refetches[place] = merged(known, refetch)
        if place in self._running:
            self._again.add(place)
        elif known is None and gathers:
            self._gathering[place] = None
            self._remember(place)
        elif known is None or is_raised:
            self._gathering.pop(place, None)
            timer = self._later.pop(place, None)
            if timer is not None:
                timer.cancel()
            self._wait(place)
        else:
            self.wake([place])

    def end_gathering(self) -> None:
        """Let those that wait for more have their turn."""
        if self._gathered_at is not None:
            self._gathered_at.cancel()
            self._gathered_at = None
        gathered, self._gathering = self._gathering, {}
        for place in gathered:
            self._enqueue(place)

    async def next(self, work: WorkClass = WorkClass.CONTESTED) -> Refetch:
        """Wait for the next refetch of this class. Bring it back with `done` or `put_back`."""
        turns, filled = self._turns[work], self._filled[work]
        while True:
            if not turns:
                filled.clear()
                await filled.wait()
                continue
            place = turns.popleft()
            # Others of a batch may have been completed, or be in progress, since they were queued.
            if (
                place not in self._refetches
                or place in self._running
                or place in self._later
                or place in self._gathering
            ):
                continue
            kind, table, _ = place
            if kind in _WHOLE_ROWS and (table, work) in self._held:
                self._held[table, work].append(place)
                continue
            return self._take(place)

    def waiting(self, table: str) -> dict[str, Refetch]:
        """Return the refetches of the table's objects that have their turn or wait for it, by id."""
        return {key: self._refetches[place] for key, place in self._whole.get(table, {}).items()}

    def take(self, table: str, keys: Collection[str]) -> list[Refetch]:
        """Take those of these ids that wait for a fetch."""
        waiting = self._whole.get(table, {})
        return [self._take(waiting[key]) for key in sorted(waiting.keys() & set(keys))]

    @contextmanager
    def holding(self, table: str, work: WorkClass = WorkClass.CONTESTED) -> Iterator[None]:
        """Within the block no other row of the table gets its turn in this class: most are in the batch."""
        held = self._held.setdefault((table, work), [])
        try:
            yield
        finally:
            self._held.pop((table, work), None)
            for place in held:
                if place in self._refetches and place not in self._running:
                    self._enqueue(place)

    def done(self, place: RefetchKey) -> None:
        """Complete it. If it was added again meanwhile, it waits again."""
        if place in self._again:
            self.put_back(place)
            return
        self._running.discard(place)
        self._refetches.pop(place, None)
        self._note()

    def put_back(self, place: RefetchKey) -> None:
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
            self._gathering.pop(place, None)
            self._forget(place)
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
        self.wake(list(self._later))
        self.end_gathering()

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
        self._remember(place)
        self._enqueue(place)

    def _remember(self, place: RefetchKey) -> None:
        """It may be taken with others of its table."""
        kind, table, key = place
        if kind in _WHOLE_ROWS:
            self._whole.setdefault(table, {}).setdefault(key, place)

    def _enqueue(self, place: RefetchKey) -> None:
        refetch = self._refetches[place]
        self._turns[refetch.work_class].append((refetch.owner, place))
        self._filled[refetch.work_class].set()

    def _forget(self, place: RefetchKey) -> None:
        """It is no longer among those that may be taken with others."""
        kind, table, key = place
        waiting = self._whole.get(table, {})
        if kind in _WHOLE_ROWS and waiting.get(key) == place:
            del waiting[key]

    def _take(self, place: RefetchKey) -> Refetch:
        self._gathering.pop(place, None)
        self._forget(place)
        self._running.add(place)
        return self._refetches[place]
