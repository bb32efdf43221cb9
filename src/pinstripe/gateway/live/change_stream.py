"""Streams the change feed to many readers: one LISTEN, and one read for each change.

    NOTIFY -> new changes read -> tail, encoded once -> all readers

A reader has a position and nothing else. Recent changes are in a tail that all readers share; a reader that
has fallen behind it, or resumes at an old position, reads pages from the database until it has caught up.
So a slow reader costs no memory, and none skips a change.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from itertools import takewhile

import msgspec
import structlog

from pinstripe.concurrency import wait_for
from pinstripe.errors import PinstripeError
from pinstripe.gateway.syncs import Reads
from pinstripe.store.changes import CHANNEL, Change, ChangeFilter, changes_after, newest_position
from pinstripe.store.listener import Listener

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_PAGE = 200
_TAIL_ENTRIES = 2000
_TAIL_BYTES = 4 * 1024 * 1024
_EMPTIED = b"[null, null]"  # Of an erasure, which has emptied earlier changes too.
_NET_S = 5.0
"""A NOTIFY can be lost with a connection, so the feed is polled too."""
_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A change, with its JSON."""

    change: Change
    json: bytes


@dataclass(slots=True)
class _Tail:
    """The latest changes of one schema: all after `begin`, up to `end`."""

    begin: int = 0
    end: int = 0
    readers: int = 0
    entries: deque[Entry] = field(default_factory=deque)
    size: int = 0
    pump: asyncio.Task[None] | None = None
    closed: bool = False
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def behind(self, position: int) -> list[Entry]:
        """Oldest first."""
        found = list(takewhile(lambda e: e.change.position > position, reversed(self.entries)))
        return found[::-1]

    def add(self, entries: list[Entry]) -> None:
        for entry in entries:
            self.entries.append(entry)
            self.size += len(entry.json)
            self.end = entry.change.position
        if any(_EMPTIED in entry.json for entry in entries):
            self.entries.clear()
            self.size, self.begin = 0, self.end
        while len(self.entries) > _TAIL_ENTRIES or self.size > _TAIL_BYTES:
            gone = self.entries.popleft()
            self.size -= len(gone.json)
            self.begin = gone.change.position
        self.grown.set()
        self.grown = asyncio.Event()


class ChangeStream:
    """`run` it once beside the server. Without that, readers get changes by polling only."""

    def __init__(self, reads: Reads, database_url: Callable[[], str | None]) -> None:
        self._reads = reads
        self._tails: dict[str, _Tail] = {}
        self._listener = Listener(
            database_url,
            {CHANNEL: self._notified},
            name="pinstripe changes",
            on_connected=self._wake_all,
        )
        self._wanted = asyncio.Event()

    async def run(self) -> None:
        """Listen while there are readers, until cancelled."""
        while True:
            await self._wanted.wait()
            async with asyncio.TaskGroup() as group:
                listening = group.create_task(self._listener.run())
                while self._tails:  # noqa: ASYNC110 (a reader that returns soon finds it connected)
                    await asyncio.sleep(_NET_S)
                listening.cancel()

    async def follow(
        self, schema: str, *, after: int | None, wanted: ChangeFilter
    ) -> AsyncGenerator[Entry | None]:
        """Yield every wanted change after `after`, or from now on; None now and then if there is none.

        Raises Unreachable when the database is away: the reader comes back with its position.
        """
        tail = await self._join(schema)
        try:
            # From the moment of the call on, not from what others have read so far.
            position = await self.newest(schema) if after is None else after
            loop = asyncio.get_running_loop()
            sent_at = loop.time()
            while not tail.closed:
                grown, begin = tail.grown, tail.begin
                if position < begin:
                    entries = await self._page(schema, position, wanted)
                    if len(entries) < _PAGE:
                        # All that is wanted up to what the tail has; the tail itself comes next.
                        entries = [e for e in entries if e.change.position <= begin]
                    reached = begin if len(entries) < _PAGE else entries[-1].change.position
                else:
                    entries = [e for e in tail.behind(position) if wanted.takes(e.change)]
                    reached = max(position, tail.end)
                for entry in entries:
                    yield entry
                position = reached
                if tail.grown is grown and position >= tail.end:
                    await wait_for(grown, _NET_S)
                if entries:
                    sent_at = loop.time()
                elif loop.time() - sent_at >= _NET_S and not tail.closed:
                    yield None
                    sent_at = loop.time()
        finally:
            self._leave(schema, tail)

    def close(self) -> None:
        """End every reader."""
        for tail in self._tails.values():
            tail.closed = True
            tail.add([])

    async def newest(self, schema: str) -> int:
        """The last position of the schema."""
        async with self._reads.connection() as connection:
            return await newest_position(connection, schema)

    async def _page(self, schema: str, position: int, wanted: ChangeFilter) -> list[Entry]:
        async with self._reads.connection() as connection:
            found = await changes_after(connection, schema, position, wanted=wanted, limit=_PAGE)
        return [Entry(change, msgspec.json.encode(change)) for change in found]

    async def _join(self, schema: str) -> _Tail:
        tail = self._tails.get(schema)
        if tail is None:
            newest = await self.newest(schema)
            tail = self._tails.setdefault(schema, _Tail(begin=newest, end=newest))
        tail.readers += 1
        if tail.pump is None:
            tail.pump = asyncio.create_task(self._pump(schema, tail), name=f"changes {schema}")
        self._wanted.set()
        return tail

    def _leave(self, schema: str, tail: _Tail) -> None:
        tail.readers -= 1
        if tail.readers == 0:
            if tail.pump is not None:
                tail.pump.cancel()
            del self._tails[schema]
            if not self._tails:
                self._wanted.clear()

    async def _pump(self, schema: str, tail: _Tail) -> None:
        """Read each new change once. Errors of the database are retried."""
        while True:
            tail.wake.clear()
            try:
                while entries := await self._page(schema, tail.end, ChangeFilter()):
                    tail.add(entries)
            except PinstripeError as error:
                _log.info("feed.trouble", error=error.message)
                await asyncio.sleep(_RETRY_S)
            await wait_for(tail.wake, _NET_S)

    def _wake_all(self) -> None:
        for tail in self._tails.values():
            tail.wake.set()

    def _notified(self, payload: str) -> None:
        tail = self._tails.get(payload.rpartition(" ")[0])
        if tail is not None:
            tail.wake.set()
