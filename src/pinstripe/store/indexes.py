"""The indexes of synced tables: made when the first backfill is done, alone or beside writers."""

from __future__ import annotations

from pinstripe.catalog.tables import Table
from pinstripe.store import ddl
from pinstripe.store.pool import Connection, translated


async def create_indexes(connection: Connection, schema: str, table: Table) -> None:
    """The table's indexes. Made when its first backfill is done: that is many times cheaper."""
    with translated():
        # In one transaction a table: each commit waits for the disk.
        statements = [text for _, text in ddl.indexes(schema, table)]
        statements += ddl.replaced_indexes(schema, table)
        if statements:
            await connection.execute("\n".join(statements))


async def create_indexes_beside(connection: Connection, schema: str, table: Table) -> None:
    """As `create_indexes`, while others write to the table: slower, and nobody waits.

    Not in a transaction. An index that an interrupted build left invalid is made anew.
    """
    with translated():
        rows = await connection.fetch(
            "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE i.indrelid = $1::regclass",
            ddl.qualified(schema, table.name),
        )
        valid = {row[0]: row[1] for row in rows}
        for name, statement in ddl.indexes(schema, table):
            if valid.get(name):
                continue
            if name in valid:
                await connection.execute(f"DROP INDEX {ddl.qualified(schema, name)}")
            await connection.execute(
                statement.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY", 1)
            )
        for statement in ddl.replaced_indexes(schema, table):
            await connection.execute(statement.replace("DROP INDEX", "DROP INDEX CONCURRENTLY", 1))
