"""Reads the version of a row, and Postgres's clock, before a request to Stripe.

A response to a later request is surely newer than that version, and completes every refetch noted before
that moment. Concurrent callers share one query (`Coalescer`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import NamedTuple

from pinstripe.catalog.tables import Table
from pinstripe.concurrency import Coalescer
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.pool import Pool

_Place = tuple[str, str]


class VersionAt(NamedTuple):
    """Postgres's clock, and the version (`_synced_at`) of a row, None if there is none."""

    at: datetime
    version: datetime | None


class RowVersions:
    """Reads from the tables `wanted` of one schema."""

    def __init__(self, pool: Pool, schema: str, wanted: Mapping[str, Table]) -> None:
        self._pool = pool
        self._schema = schema
        self._wanted = wanted
        self._coalescer: Coalescer[_Place, VersionAt] = Coalescer(self._read)

    async def read(self, table: str, key: str) -> VersionAt:
        """Returns the result of a query that starts after this call. Raises Unreachable."""
        return await self._coalescer.get((table, key))

    async def _read(self, places: Collection[_Place]) -> dict[_Place, VersionAt]:
        keys: dict[str, list[str]] = {}
        for table, key in places:
            keys.setdefault(table, []).append(key)
        texts = ["SELECT '', '', clock_timestamp()"]
        for at, table in enumerate(keys, 1):
            name = quote(self._wanted[table].key[0])
            rows = qualified(self._schema, table)
            texts.append(
                f"SELECT '{table}', {name}, _synced_at FROM {rows} WHERE {name} = ANY(${at})"
            )
        async with self._pool.acquire() as connection:
            found = await connection.fetch(" UNION ALL ".join(texts), *keys.values())
        at_of = {(row[0], row[1]): row[2] for row in found}
        return {place: VersionAt(at_of["", ""], at_of.get(place)) for place in places}
