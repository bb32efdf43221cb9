"""The to-dos of one process: which wait, which are being asked, which are to be asked once more."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence, Set
from contextlib import contextmanager

from pinstripe.store.todo import Todo

Place = tuple[str, str, str]


class Line:
    """First come, first served; each place is served by one at a time."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Place] = asyncio.Queue()
        self._todos: dict[Place, Todo] = {}
        self._running: set[Place] = set()
        self._again: set[Place] = set()
        self._fetches: dict[str, set[str]] = {}
        """By table: keys of what waits to be fetched."""
        self._held: dict[str, list[Place]] = {}
        """By table of which many are being fetched together: what came to its turn meanwhile."""
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._todos)

    def __contains__(self, place: Place) -> bool:
        return place in self._todos

    def add(self, todos: Sequence[Todo]) -> None:
        """Takes them in. One that waits already is there once; one that is being asked is asked again."""
        for todo in todos:
            place = todo.place
            known = place in self._todos
            self._todos[place] = todo
            if place in self._running:
                self._again.add(place)
            elif not known:
                self._wait(place)
        if self._todos:
            self._idle.clear()

    async def next(self) -> Todo:
        """Whose turn it is. Bring it back with `done` or `put_back`."""
        while True:
            place = await self._queue.get()
            # Others of a bunch may have been answered, or are being asked, since they came.
            if place not in self._todos or place in self._running:
                continue
            kind, table, _ = place
            if kind == "fetch" and table in self._held:
                self._held[table].append(place)
                continue
            return self._take(place)

    def waiting(self, table: str) -> Set[str]:
        """Keys of the table's rows that wait to be fetched."""
        return self._fetches.get(table, frozenset())

    def take(self, table: str, keys: Collection[str]) -> list[Todo]:
        """Those of these that wait to be fetched: it is their turn now."""
        mine = sorted(self.waiting(table) & set(keys))
        return [self._take(("fetch", table, key)) for key in mine]

    @contextmanager
    def holding(self, table: str) -> Iterator[None]:
        """For the block no other row of the table comes to its turn: most are fetched in it together."""
        self._held[table] = []
        try:
            yield
        finally:
            for place in self._held.pop(table):
                self._queue.put_nowait(place)

    def done(self, place: Place) -> None:
        """Answered. If it was asked for again meanwhile, it waits again."""
        if place in self._again:
            self.put_back(place)
            return
        self._running.discard(place)
        self._todos.pop(place, None)
        if not self._todos:
            self._idle.set()

    def put_back(self, place: Place) -> None:
        """Not answered: it waits again."""
        self._running.discard(place)
        self._again.discard(place)
        self._wait(place)

    async def idle(self) -> None:
        """Returns when nothing is left."""
        await self._idle.wait()

    def _wait(self, place: Place) -> None:
        kind, table, key = place
        if kind == "fetch":
            self._fetches.setdefault(table, set()).add(key)
        self._queue.put_nowait(place)

    def _take(self, place: Place) -> Todo:
        kind, table, key = place
        if kind == "fetch":
            self._fetches[table].discard(key)
        self._running.add(place)
        return self._todos[place]
