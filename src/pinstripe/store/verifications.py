"""Proofs that the copy equals Stripe: what they say of the rows, and where they are kept.

The digest of a schema is the SHA-256 over these lines, tables and keys in the order of their bytes:

    <table>\\t<key>\\t<MD5 of the row's text>\\n

for every row of the tables that it covers, those flagged deleted too. The row's text is Postgres's, of
all columns but the bookkeeping ones, ordered by name, and `_extra`. So two copies of one account that hold
the same rows have the same digest, whenever and in whatever order they were written. Tables that could
not be verified are not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

import msgspec

from pinstripe.catalog.tables import Table
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.pool import Connection, translated

_FETCH = 5000


@dataclass(frozen=True, slots=True)
class Certificate:
    """One run of `verify`. `tables` has its counts by table; `differences` are those that remain."""

    started_at: datetime
    finished_at: datetime
    tables: Mapping[str, Mapping[str, object]]
    differences: int
    repaired: int
    digest: str


async def digest(connection: Connection, schema: str, tables: Iterable[Table]) -> str:
    """The digest of these tables as one moment shows them, in hexadecimal."""
    running = sha256()
    with translated():
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            for table in sorted(tables, key=lambda t: t.name.encode()):
                cursor = connection.cursor(_hashes(schema, table), prefetch=_FETCH)
                head = table.name + "\t"
                async for key, content in cursor:
                    running.update(f"{head}{key}\t{content}\n".encode())
    return running.hexdigest()


def _hashes(schema: str, table: Table) -> str:
    key = quote(table.key[0])
    columns = [quote(c.name) for c in sorted(table.columns, key=lambda c: c.name)]
    return (
        f"SELECT {key}, md5(ROW({', '.join(columns)}, _extra)::text) "
        f'FROM {qualified(schema, table.name)} ORDER BY {key} COLLATE "C"'
    )


async def save_certificate(connection: Connection, schema: str, made: Certificate) -> None:
    """Adds it to those of the schema."""
    with translated():
        await connection.execute(
            "INSERT INTO pinstripe.certificate"
            " (schema, started_at, finished_at, tables, differences, repaired, digest)"
            " VALUES ($1, $2, $3, $4::jsonb, $5, $6, $7)",
            schema,
            made.started_at,
            made.finished_at,
            msgspec.json.encode(made.tables).decode(),
            made.differences,
            made.repaired,
            made.digest,
        )


async def next_verification(connection: Connection, schema: str, every: timedelta) -> datetime:
    """When a verification is due: `every` after the last one, or after the sync was created."""
    with translated():
        due: datetime = await connection.fetchval(
            "SELECT greatest(s.created_at, max(c.finished_at)) + $2::interval FROM pinstripe.sync s"
            " LEFT JOIN pinstripe.certificate c ON c.schema = s.schema"
            " WHERE s.schema = $1 GROUP BY s.created_at",
            schema,
            every,
        )
    return due


async def plan_verification(
    connection: Connection, schema: str, due: datetime | None, note: str
) -> None:
    """Store when the next verification is due, or why there is none, for `status`."""
    with translated():
        await connection.execute(
            "UPDATE pinstripe.sync SET verify_at = $2, verify_note = $3 WHERE schema = $1"
            " AND (verify_at, verify_note) IS DISTINCT FROM ($2, $3)",
            schema,
            due,
            note,
        )


async def load_plan(connection: Connection, schema: str) -> tuple[datetime | None, str]:
    """(when the next verification is due, why there is none)."""
    with translated():
        row = await connection.fetchrow(
            "SELECT verify_at, coalesce(verify_note, '') FROM pinstripe.sync WHERE schema = $1",
            schema,
        )
    return (None, "") if row is None else (row[0], row[1])


async def load_verified(
    connection: Connection, schemas: Sequence[str]
) -> dict[str, tuple[float, int]]:
    """Schema -> (age in seconds, differences that remain) of its newest verification."""
    with translated():
        rows = await connection.fetch(
            "SELECT DISTINCT ON (schema) schema,"
            " extract(epoch FROM clock_timestamp() - finished_at)::double precision, differences"
            " FROM pinstripe.certificate WHERE schema = ANY($1::text[]) ORDER BY schema, id DESC",
            list(schemas),
        )
    return {row[0]: (row[1], row[2]) for row in rows}


async def load_certificate(connection: Connection, schema: str) -> Certificate | None:
    """The newest one."""
    with translated():
        row = await connection.fetchrow(
            "SELECT started_at, finished_at, tables::text, differences, repaired, digest"
            " FROM pinstripe.certificate WHERE schema = $1 ORDER BY id DESC LIMIT 1",
            schema,
        )
    if row is None:
        return None
    tables = msgspec.json.decode(row[2], type=dict[str, dict[str, object]])
    return Certificate(row[0], row[1], tables, row[3], row[4], row[5])
