"""Reads versions of rows (`_synced_at`) and Postgres's clock, in batches.

    at, version = await row_versions.read("customer", "cus_1")

A response to a request that is sent after such a read answers everything that was asked for before `at`; it
is newer than the version only if that is older than a replica may lag. Concurrent reads are coalesced into
one statement that begins after all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import NamedTuple

from pinstripe.catalog.tables import Table
from pinstripe.concurrency import Coalescer
from pinstripe.errors import Unreachable
from pinstripe.rows.extract import RowKey
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.pool import Pool

_HUNG_S = 10.0
"""A read by primary key that takes longer has met a server that is gone without closing the connection."""


class VersionAt(NamedTuple):
    """Postgres's clock, and the version (`_synced_at`) of a row, None if there is none."""

    at: datetime
    version: datetime | None


class RowVersions:
    """Versions of rows in the tables `wanted` of one schema."""

    def __init__(self, pool: Pool, schema: str, wanted: Mapping[str, Table]) -> None:
        self._pool = pool
        self._schema = schema
        self._wanted = wanted
        self._coalescer: Coalescer[tuple[RowKey, ...], tuple[datetime, dict[RowKey, datetime]]]
        self._coalescer = Coalescer(self._query)

    async def read(self, table: str, key: str) -> VersionAt:
        """The version of one row, read after this call. Raises Unreachable."""
        at, versions = await self._coalescer.get(((table, key),))
        return VersionAt(at, versions.get((table, key)))

    async def read_many(
        self, rows: Collection[RowKey], *, patience_s: float | None = None
    ) -> dict[RowKey, datetime]:
        """The versions of those `rows` that exist, read after this call.

        Raises Unreachable, also where Postgres takes longer than `patience_s`.
        """
        if not rows:
            return {}
        try:
            async with asyncio.timeout(patience_s):
                _, versions = await self._coalescer.get(tuple(rows))
        except TimeoutError:
            raise Unreachable(f"Postgres takes longer than {patience_s} s.") from None
        return {row: versions[row] for row in rows if row in versions}

    async def _query(
        self, calls: Collection[tuple[RowKey, ...]]
    ) -> dict[tuple[RowKey, ...], tuple[datetime, dict[RowKey, datetime]]]:
        keys: dict[str, set[str]] = {}
        for table, key in (row for rows in calls for row in rows):
            keys.setdefault(table, set()).add(key)
        texts = ["SELECT '', '', clock_timestamp()"]
        for at, table in enumerate(keys, 1):
            name = quote(self._wanted[table].key[0])
            rows = qualified(self._schema, table)
            texts.append(
                f"SELECT '{table}', {name}, _synced_at FROM {rows} WHERE {name} = ANY(${at})"
            )
        async with self._pool.acquire() as connection, asyncio.timeout(_HUNG_S):
            found = await connection.fetch(" UNION ALL ".join(texts), *map(list, keys.values()))
        versions = {(row[0], row[1]): row[2] for row in found}
        now = versions.pop(("", ""))
        return dict.fromkeys(calls, (now, versions))
