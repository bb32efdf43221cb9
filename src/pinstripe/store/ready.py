"""What must stand in a database before a process leads there, or looks on beside the one that does.

Only the holder of the lease migrates: one that stands by may be of another version, and the tables are
in use. All that it may make is the place for the very first lease.
"""

from __future__ import annotations

from collections.abc import Mapping

from pinstripe.catalog.tables import Table
from pinstripe.errors import Misconfigured
from pinstripe.store.migrate import ensure_bookkeeping
from pinstripe.store.pool import Connection, translated


async def reserve(
    connection: Connection, schema: str, *, sdk_version: str, api_version: str
) -> None:
    """A place for the lease of the schema. Where there is one already nothing is touched."""
    if await _is_reserved(connection, schema):
        return
    await ensure_bookkeeping(connection)
    with translated():
        await connection.execute(
            "INSERT INTO pinstripe.sync (schema, api_version, sdk_version) VALUES ($1, $2, $3)"
            " ON CONFLICT (schema) DO NOTHING",
            schema,
            api_version,
            sdk_version,
        )


async def _is_reserved(connection: Connection, schema: str) -> bool:
    with translated():
        there: bool = await connection.fetchval(
            "SELECT to_regclass('pinstripe.sync') IS NOT NULL"
            " AND to_regclass('pinstripe.lease') IS NOT NULL"
        )
        if not there:
            return False
        known: bool = await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pinstripe.sync WHERE schema = $1)", schema
        )
    return known


async def check_tables(connection: Connection, schema: str, wanted: Mapping[str, Table]) -> None:
    """Raises Misconfigured where the schema lacks a table or a column of this version's catalog."""
    with translated():
        rows = await connection.fetch(
            "SELECT c.relname, a.attname FROM pg_attribute a"
            " JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = $1 AND a.attnum > 0 AND NOT a.attisdropped",
            schema,
        )
    there = {(row[0], row[1]) for row in rows}
    lacking = [
        f"{name}.{column.name}"
        for name, table in wanted.items()
        for column in table.columns
        if (name, column.name) not in there
    ]
    if lacking:
        some = ", ".join(lacking[:3]) + (" ..." if len(lacking) > 3 else "")
        raise Misconfigured(
            f'The schema "{schema}" lacks what this version knows: {some}.',
            hint="Start `pinstripe sync` of this version: it brings the tables up to date.",
        )
