"""Answers that say again what Postgres already holds: not written a second time.

Applications GET the same objects over and over. Once an answer has been seen twice, the versions of the
rows that it made are remembered; as long as the very same bytes come back and those rows still have
these versions, the rows are what the answer says, and reading their versions is all that is needed.

A version is only remembered where our own transaction wrote it and nothing of a later moment came on
top in the same one (`xmin`, `_as_of`). It is forgotten after some seconds, so that a row's interval
does not lag far behind what is known.

The versions of rows just before a write of theirs is sent: what comes back is surely newer.

Stripe's clock has seconds; two writes of one object within the same one could not be told apart
without this. Reads that come while one is under way share the next, so that many writers cost few
statements. It is an aid: where Postgres does not answer at once, the write goes without.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from time import monotonic

import structlog

from pinstripe.concurrency import wait_for
from pinstripe.errors import PinstripeError
from pinstripe.gateway.proxy.objects import ObjectKey
from pinstripe.gateway.proxy.request import Target
from pinstripe.gateway.syncs import OpenSync
from pinstripe.mirror.batch import Effect
from pinstripe.rows.as_of import AsOf
from pinstripe.rows.extract import RowSet
from pinstripe.store.ddl import qualified
from pinstripe.store.pool import Connection

KEPT_S = 10.0

MOST = 4096

_MOST_ROWS = 120
"""Rows of one answer: beyond a page of plain objects writing costs little more than looking."""


@dataclass(slots=True)
class _Memory:
    """`rows` is empty while the answer has been seen only once."""

    until: float
    rows: dict[ObjectKey, datetime] = field(default_factory=dict)


class ResponseCache:
    """What has been answered lately, by a digest of what was asked and answered."""

    def __init__(
        self, versions: CachedRowVersions, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self.spared = 0
        """Answers that were not written again."""
        self._versions = versions
        self._clock = clock
        # Oldest first.
        self._memories: OrderedDict[bytes, _Memory] = OrderedDict()

    def digest(self, sync: OpenSync, target: Target, body: bytes) -> bytes:
        """The name of an answer. The path is part of it: it may tell of a parent."""
        told = f"{sync.id} {sync.schema} {target.path}?{target.query}\n".encode()
        return blake2b(body, key=blake2b(told, digest_size=64).digest(), digest_size=16).digest()

    async def holds(self, sync: OpenSync, digest: bytes) -> bool:
        """Whether the rows of this answer are in Postgres as it says."""
        memory = self._memories.get(digest)
        if memory is None or not memory.rows or memory.until < self._clock():
            return False
        if await self._versions.read(sync, list(memory.rows)) != memory.rows:
            del self._memories[digest]
            return False
        self.spared += 1
        return True

    def effect(self, sync: OpenSync, digest: bytes, found: RowSet, truth: AsOf) -> Effect | None:
        """What, run in the transaction that writes the rows, learns their versions; None if not yet."""
        if found.variants or found.count() > _MOST_ROWS:
            return None
        memory = self._memories.get(digest)
        if memory is None or memory.until < self._clock():
            self._keep(digest, _Memory(self._clock() + KEPT_S))
            return None
        tables = {t: list(group) for t, group in found.rows.items() if t in sync.mirror.tables}

        async def learn(connection: Connection) -> None:
            rows: dict[ObjectKey, datetime] = {}
            for table, keys in tables.items():
                written = await connection.fetch(
                    f"SELECT id, _synced_at FROM {qualified(sync.schema, table)} WHERE id = ANY($1)"
                    " AND xmin = pg_current_xact_id()::xid AND _as_of = to_timestamp($2::float8)",
                    keys,
                    truth.lo,
                )
                rows |= {(table, row[0]): row[1] for row in written}
            whole = len(rows) == sum(map(len, tables.values()))
            self._keep(digest, _Memory(self._clock() + KEPT_S, rows if whole else {}))

        return learn

    def forget(self, digest: bytes) -> None:
        """The rows were contested, or not written after all."""
        self._memories.pop(digest, None)

    def _keep(self, digest: bytes, memory: _Memory) -> None:
        self._memories[digest] = memory
        self._memories.move_to_end(digest)
        while len(self._memories) > MOST:
            self._memories.popitem(last=False)


_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

PATIENCE_S = 0.25

_PAUSE_S = 1.0
"""How long no version is read after it took too long."""

_IDLE_S = 1.0
"""How long a connection is kept for the next one who asks."""

_HUNG_S = 10.0
"""A statement that takes longer has met a server that is gone without a goodbye."""

Seen = dict[ObjectKey, datetime]


class CachedRowVersions:
    """`_synced_at` of rows, as they are now."""

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        # By identity: a sync that is opened anew has another pool.
        self._readers: dict[int, _Reader] = {}
        self._not_before = 0.0

    async def read(self, sync: OpenSync, places: Sequence[ObjectKey]) -> Seen:
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
        self.wanted: set[ObjectKey] = set()
        self.coming: asyncio.Future[Seen] | None = None
        self._asked = asyncio.Event()

    def ask(self, places: Sequence[ObjectKey]) -> asyncio.Future[Seen]:
        if self.coming is None:
            self.coming = asyncio.get_running_loop().create_future()
            self._asked.set()
        self.wanted.update(places)
        return self.coming

    def take(self) -> tuple[set[ObjectKey], asyncio.Future[Seen]]:
        assert self.coming is not None  # noqa: S101 (`is_asked` said so)
        taken = (self.wanted, self.coming)
        self.wanted, self.coming = set(), None
        self._asked.clear()
        return taken

    async def is_asked(self) -> bool:
        """Waits to be asked; False if that does not happen for a while."""
        return self.coming is not None or await wait_for(self._asked, _IDLE_S)


def _give_up(coming: asyncio.Future[Seen] | None) -> None:
    if coming is not None and not coming.done():
        coming.set_result({})


async def _versions(connection: Connection, schema: str, wanted: set[ObjectKey]) -> Seen:
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
