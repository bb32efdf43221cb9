"""The end of a copy: its tables and all that is remembered of it.

Only tables of the catalog are dropped; a view or a table of the user's own in the same schema stays, and
with it the schema. Nothing is dropped while a process still syncs: its lease is taken first.
"""

from __future__ import annotations

import asyncio

import asyncpg

from pinstripe.catalog.tables import tables
from pinstripe.errors import Misconfigured
from pinstripe.store import ddl
from pinstripe.store.leases import Lease
from pinstripe.store.pool import Connection, connect
from pinstripe.store.syncs import load_syncs

_WAIT_S = 30.0
"""A process that was told to stop needs seconds; one that died is given up after the lease's life."""


async def drop_copy(database_url: str, schema: str) -> None:
    """Waits until nobody syncs the schema, then drops its tables. Raises Misconfigured if it cannot."""
    async with connect(database_url) as connection:
        if schema not in {sync.schema for sync in await load_syncs(connection)}:
            return
    lease = Lease(database_url, schema)
    held = lease.held()
    try:
        async with asyncio.timeout(_WAIT_S):
            await held.__aenter__()
    except TimeoutError:
        who = lease.standing_by.holder if lease.standing_by is not None else "another process"
        raise Misconfigured(
            f'The schema "{schema}" is still being synced ({who}); its tables were left.',
            hint="Stop that process, then drop the schema.",
        ) from None
    try:
        async with connect(database_url) as connection:
            await _drop(connection, schema)
    finally:
        await held.__aexit__(None, None, None)


async def _drop(connection: Connection, schema: str) -> None:
    try:
        async with connection.transaction():
            ours = await connection.fetch(
                "SELECT tablename::text FROM pg_tables WHERE schemaname = $1"
                " AND tablename = ANY ($2::text[])",
                schema,
                list(tables()),
            )
            if ours:
                names = (f"{ddl.quote(schema)}.{ddl.quote(row[0])}" for row in ours)
                await connection.execute(f"DROP TABLE {', '.join(names)}")
            await connection.execute("DELETE FROM pinstripe.change WHERE schema = $1", schema)
            await connection.execute("DELETE FROM pinstripe.sync WHERE schema = $1", schema)
    except asyncpg.DependentObjectsStillExistError as error:
        raise Misconfigured(
            f'Views or tables of your own rest on the tables of the schema "{schema}"; it was left.',
            hint="Drop those first, or drop all at once: DROP SCHEMA ... CASCADE.",
        ) from error
    try:
        async with connection.transaction():
            await connection.execute(f"DROP SCHEMA IF EXISTS {ddl.quote(schema)}")
    except asyncpg.DependentObjectsStillExistError:
        return  # What is left in it is the user's.
