"""The versions of rows just before a write of theirs is sent: what comes back is surely newer.

Stripe's clock has seconds; two writes of one object within the same one could not be told apart
without this. Reads that come while one is under way share the next, so that many writers cost few
statements. It is an aid: where Postgres does not answer at once, the write goes without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from time import monotonic

import structlog

from pinstripe.errors import PinstripeError
from pinstripe.gateway.answers import Place
from pinstripe.gateway.syncs import OpenSync
from pinstripe.store.ddl import qualified
from pinstripe.store.pool import Connection

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

PATIENCE_S = 0.25
_PAUSE_S = 1.0
"""How long no version is read after it took too long."""
_IDLE_S = 1.0
"""How long a connection is kept for the next one who asks."""
_HUNG_S = 10.0
"""A statement that takes longer has met a server that is gone without a goodbye."""

Seen = dict[Place, datetime]


class RowVersions:
    """`_synced_at` of rows, as they are now."""

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        # By identity: a sync that is opened anew has another pool.
        self._readers: dict[int, _Reader] = {}
        self._not_before = 0.0

    async def read(self, sync: OpenSync, places: Sequence[Place]) -> Seen:
        """The versions of those of the rows that are there; none if that cannot be told soon."""
        if sync.mirror.trouble or self._clock() < self._not_before:
            return {}
        wanted = [p for p in places if p[0] in sync.mirror.tables]
        if not wanted:
            return {}
        reader = self._readers.get(id(sync))
        if reader is None:
            reader = self._readers[id(sync)] = _Reader()
            reader.task = asyncio.create_task(self._run(sync, reader))
        coming = reader.ask(wanted)
        await asyncio.wait((coming,), timeout=PATIENCE_S)
        if not coming.done():
            self._not_before = self._clock() + _PAUSE_S
            return {}
        seen = coming.result()
        return {place: seen[place] for place in wanted if place in seen}

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = [reader.task for reader in self._readers.values() if reader.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, sync: OpenSync, reader: _Reader) -> None:
        """Reads as long as somebody asks. The connection is kept meanwhile: taking one out of the
        pool and giving it back costs more than the statement.
        """
        try:
            async with sync.pool.acquire() as connection:
                while await reader.is_asked():
                    wanted, coming = reader.take()
                    try:
                        async with asyncio.timeout(_HUNG_S):
                            coming.set_result(await _versions(connection, sync.schema, wanted))
                    finally:
                        _give_up(coming)
                # Before the connection is given back: who asks meanwhile gets a reader of their own.
                del self._readers[id(sync)]
        except PinstripeError as error:
            _log.debug("proxy.unseen", error=error.message)
            self._not_before = self._clock() + _PAUSE_S
        finally:
            if self._readers.get(id(sync)) is reader:
                del self._readers[id(sync)]
            _give_up(reader.coming)


class _Reader:
    """What is wanted of one sync, and who is told: all that ask before the next statement share it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.wanted: set[Place] = set()
        self.coming: asyncio.Future[Seen] | None = None
        self._asked = asyncio.Event()

    def ask(self, places: Sequence[Place]) -> asyncio.Future[Seen]:
        if self.coming is None:
            self.coming = asyncio.get_running_loop().create_future()
            self._asked.set()
        self.wanted.update(places)
        return self.coming

    def take(self) -> tuple[set[Place], asyncio.Future[Seen]]:
        assert self.coming is not None  # noqa: S101 (`is_asked` said so)
        taken = (self.wanted, self.coming)
        self.wanted, self.coming = set(), None
        self._asked.clear()
        return taken

    async def is_asked(self) -> bool:
        """Waits to be asked; False if that does not happen for a while."""
        if self.coming is None:
            try:
                async with asyncio.timeout(_IDLE_S):
                    await self._asked.wait()
            except TimeoutError:
                return self.coming is not None
        return True


def _give_up(coming: asyncio.Future[Seen] | None) -> None:
    if coming is not None and not coming.done():
        coming.set_result({})


async def _versions(connection: Connection, schema: str, wanted: set[Place]) -> Seen:
    keys: dict[str, list[str]] = {}
    for table, key in wanted:
        keys.setdefault(table, []).append(key)
    seen: Seen = {}
    for table, ids in keys.items():
        rows = await connection.fetch(
            f"SELECT id, _synced_at FROM {qualified(schema, table)} WHERE id = ANY($1)", ids
        )
        seen |= {(table, row[0]): row[1] for row in rows}
    return seen
