"""A schema with a few tables and a writer on it, for tests of the guarded upsert."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import asyncpg

from pinstripe.catalog.tables import Table, tables
from pinstripe.client.response import AsOf, StripeObject
from pinstripe.mirror.batch import Batch, Conflict
from pinstripe.mirror.writer import Writer
from pinstripe.rows.extract import Extractor, RowSet
from pinstripe.store.cursors import Checkpoint
from pinstripe.store.migrate import migrate
from pinstripe.store.pool import connect

VERSION = "2026-10-28.endive"
SCHEMA = "stripe"
T0 = 1_790_000_000.0

Snapshot = tuple[StripeObject, float, float]
"""(object, lo, hi): true for a moment in [T0 + lo, T0 + hi)."""


async def make_schema(url: str, names: Sequence[str], *, schema: str = SCHEMA) -> None:
    async with connect(url) as connection:
        await migrate(
            connection,
            schema,
            {n: tables()[n] for n in names},
            sdk_version="16.1.0",
            api_version=VERSION,
        )


@dataclass
class Writing:
    """A writer and what it takes to feed it."""

    writer: Writer
    extractor: Extractor
    pg: asyncpg.Connection

    async def put(
        self,
        *snapshots: Snapshot,
        checkpoints: Sequence[Checkpoint] = (),
        known_until: datetime | None = None,
    ) -> list[Conflict]:
        """Writes the snapshots in one batch. `known_until`: see `AsOf`."""
        batch = Batch(VERSION, self.writer._tables, checkpoints=list(checkpoints))
        for obj, lo, hi in snapshots:
            found = RowSet()
            self.extractor.object(obj, found)
            batch.add(found, AsOf(T0 + lo, T0 + hi, known_until=known_until))
        return await self.writer.write(batch)

    async def row(self, table: str, key: str) -> asyncpg.Record:
        found = await self.pg.fetchrow(f'SELECT * FROM {SCHEMA}."{table}" WHERE id = $1', key)
        assert found is not None
        return found

    async def place(self, table: str, key: str) -> tuple[object, object]:
        """Where the row physically stands, and who wrote it: both change when it is written."""
        row = await self.pg.fetchrow(
            f'SELECT ctid::text, xmin::text FROM {SCHEMA}."{table}" WHERE id = $1', key
        )
        assert row is not None
        return row[0], row[1]


@asynccontextmanager
async def writing(
    url: str,
    *names: str,
    schema: str = SCHEMA,
    effective: Mapping[str, Table] | None = None,
) -> AsyncIterator[Writing]:
    """A writer on tables that exist."""
    chosen = effective or {n: tables()[n] for n in names}
    extractor = Extractor(chosen)
    async with connect(url) as connection:
        writer = Writer(url, schema, chosen, extractor.shapes)
        try:
            yield Writing(writer, extractor, connection)
        finally:
            await writer.close()


def at(seconds: float) -> datetime:
    """The moment on Stripe's clock, as the database gives it."""
    return datetime.fromtimestamp(T0 + seconds, UTC)
