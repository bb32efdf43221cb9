"""Skips the write when a GET returns what Postgres already holds.

    response -> digest -> versions remembered for it == versions in Postgres -> no write

From the second identical response on, the `_synced_at` of every row that it shows is remembered. While the
same bytes come back and those versions still match, one SELECT replaces the write. A version is remembered
only if this transaction wrote the row and merged nothing newer (`xmin`, `_as_of`), or confirmed it. It
expires after 10 s, so that what is known of a row does not lag far behind.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from time import monotonic

import structlog

from pinstripe.client.response import AsOf
from pinstripe.gateway.proxy.upstream import Target
from pinstripe.gateway.syncs import OpenSync, PatientVersions
from pinstripe.mirror.batch import Effect
from pinstripe.rows.extract import RowKey, RowSet
from pinstripe.store.confirmations import key_hash, of_keys
from pinstripe.store.ddl import qualified
from pinstripe.store.pool import Connection

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

KEPT_S = 10.0
_LIMIT = 4096
"""Responses remembered."""
_MAX_ROWS = 120
"""Rows of one response: beyond a page of plain objects writing costs little more than comparing."""


@dataclass(slots=True)
class _Memory:
    """`rows` is empty after the first response with this digest."""

    until: float
    rows: dict[RowKey, datetime] = field(default_factory=dict)


class ResponseCache:
    """The versions of the rows of recent responses, by a digest of request and response."""

    def __init__(
        self, versions: PatientVersions, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._versions = versions
        self._clock = clock
        # Oldest first.
        self._memories: OrderedDict[bytes, _Memory] = OrderedDict()

    def digest(self, sync: OpenSync, target: Target, body: bytes) -> bytes:
        """The key of a response. The path is part of it, since it may name a parent."""
        request = f"{sync.id} {sync.schema} {target.path}?{target.query}\n".encode()
        key = blake2b(request, digest_size=64).digest()
        return blake2b(body, key=key, digest_size=16).digest()

    async def holds(self, sync: OpenSync, digest: bytes) -> bool:
        """Whether Postgres still holds the rows of this response as it has them."""
        memory = self._memories.get(digest)
        if memory is None or not memory.rows or memory.until < self._clock():
            return False
        versions = await self._versions.read(sync, memory.rows)
        if {place: versions.get(place) for place in memory.rows} != memory.rows:
            del self._memories[digest]
            return False
        return True

    def effect(self, sync: OpenSync, digest: bytes, row_set: RowSet, as_of: AsOf) -> Effect | None:
        """Remembers the rows' versions when run in the transaction that writes them.

        None for the first response with this digest, and for one that is too large.
        """
        if row_set.variants or row_set.count() > _MAX_ROWS:
            return None
        memory = self._memories.get(digest)
        if memory is None or memory.until < self._clock():
            self._keep(digest, _Memory(self._clock() + KEPT_S))
            return None
        tables = {t: list(group) for t, group in row_set.rows.items() if t in sync.mirror.tables}

        async def remember(connection: Connection) -> None:
            rows: dict[RowKey, datetime] = {}
            for table, keys in tables.items():
                written = await connection.fetch(
                    f"SELECT t.id, t._synced_at FROM {qualified(sync.schema, table)} t"
                    " WHERE t.id = ANY($1) AND ((t.xmin = pg_current_xact_id()::xid"
                    " AND t._as_of = to_timestamp($2::float8)) OR EXISTS (SELECT FROM"
                    f" ({of_keys('$3', '$4', 'to_timestamp($2::float8)')}) c"
                    f" WHERE c.key = {key_hash('t.id')} AND c.as_of = to_timestamp($2::float8)))",
                    keys,
                    as_of.lo,
                    sync.schema,
                    table,
                )
                rows |= {(table, row[0]): row[1] for row in written}
            is_complete = len(rows) == sum(map(len, tables.values()))
            self._keep(digest, _Memory(self._clock() + KEPT_S, rows if is_complete else {}))

        return remember

    def forget(self, digest: bytes) -> None:
        """Drop what is remembered: a row was in conflict, or was not written."""
        self._memories.pop(digest, None)

    def _keep(self, digest: bytes, memory: _Memory) -> None:
        self._memories[digest] = memory
        self._memories.move_to_end(digest)
        while len(self._memories) > _LIMIT:
            self._memories.popitem(last=False)
