"""Which tables have been copied whole: the rows of `pinstripe.copied`.

Until then a table is quiet in the change feed, but for what events caused: the first copy of an account
is no change. A restart in the middle of it is not its end.
"""

from __future__ import annotations

from collections.abc import Sequence

from pinstripe.store.pool import Connection, translated


async def load_copied(connection: Connection, schema: str) -> set[str]:
    """The tables whose first copy is complete."""
    with translated():
        rows = await connection.fetch(
            'SELECT "table" FROM pinstripe.copied WHERE schema = $1', schema
        )
    return {row[0] for row in rows}


async def note_copied(connection: Connection, schema: str, tables: Sequence[str]) -> None:
    """From now on these are complete."""
    with translated():
        await connection.execute(
            'INSERT INTO pinstripe.copied (schema, "table") SELECT $1, unnest($2::text[])'
            " ON CONFLICT DO NOTHING",
            schema,
            tables,
        )
