"""Answers that say again what Postgres already holds: not written a second time.

Applications GET the same objects over and over. Once an answer has been seen twice, the versions of the
rows that it made are remembered; as long as the very same bytes come back and those rows still have
these versions, the rows are what the answer says, and reading their versions is all that is needed.

A version is only remembered where our own transaction wrote it and nothing of a later moment came on
top in the same one (`xmin`, `_as_of`). It is forgotten after some seconds, so that a row's interval
does not lag far behind what is known.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from time import monotonic

from pinstripe.gateway.answers import Place
from pinstripe.gateway.hosts import Target
from pinstripe.gateway.proxy_versions import RowVersions
from pinstripe.gateway.syncs import OpenSync
from pinstripe.mirror import Truth
from pinstripe.rows.extract import Found
from pinstripe.store.batch import Effect
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
    rows: dict[Place, datetime] = field(default_factory=dict)


class Unchanged:
    """What has been answered lately, by a digest of what was asked and answered."""

    def __init__(self, versions: RowVersions, *, clock: Callable[[], float] = monotonic) -> None:
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

    def effect(self, sync: OpenSync, digest: bytes, found: Found, truth: Truth) -> Effect | None:
        """What, run in the transaction that writes the rows, learns their versions; None if not yet."""
        if found.again or found.count() > _MOST_ROWS:
            return None
        memory = self._memories.get(digest)
        if memory is None or memory.until < self._clock():
            self._keep(digest, _Memory(self._clock() + KEPT_S))
            return None
        tables = {t: list(group) for t, group in found.rows.items() if t in sync.mirror.tables}

        async def learn(connection: Connection) -> None:
            rows: dict[Place, datetime] = {}
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
