"""Tables that somebody emptied or dropped since the last run: they are to be read again.

Cursors say that a list was read to its end, whatever became of its rows. So the tables that have rows are
noted at the end of each copy (`pinstripe.filled`); one of them that is empty at the next start has lost
them by another hand. What is gone in part only is found by `verify`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pinstripe.catalog.carriers import holders
from pinstripe.catalog.endpoints import list_endpoints
from pinstripe.catalog.tables import Table, table_name
from pinstripe.store.ddl import literal, qualified
from pinstripe.store.pool import Connection, translated


async def note_filled(connection: Connection, schema: str, tables: Mapping[str, Table]) -> None:
    """Notes which of `tables` have rows now."""
    with translated():
        await connection.execute(
            'DELETE FROM pinstripe.filled WHERE schema = $1 AND "table" = ANY($2::text[])',
            schema,
            sorted(tables),
        )
        await connection.execute(
            'INSERT INTO pinstripe.filled (schema, "table") SELECT $1, unnest($2::text[])',
            schema,
            sorted(await _with_rows(connection, schema, tables)),
        )


async def forget_emptied(
    connection: Connection, schema: str, tables: Mapping[str, Table]
) -> list[str]:
    """Gives the tables that had rows and have none, once nothing vouches for them any more.

    The lists that bring their rows are read again by the next copy, and the change feed takes that for a
    first copy.
    """
    with translated():
        async with connection.transaction():
            noted = await connection.fetch(
                'SELECT "table" FROM pinstripe.filled WHERE schema = $1', schema
            )
            here = {row[0]: tables[row[0]] for row in noted if row[0] in tables}
            emptied = sorted(here.keys() - await _with_rows(connection, schema, here))
            if not emptied:
                return []
            around = {
                t for name in emptied if not _is_listed(name) for t in holders().get(name, ())
            }
            await connection.execute(
                "DELETE FROM pinstripe.cursor WHERE schema = $1"
                " AND position ->> 'table' = ANY($2::text[])",
                schema,
                [*emptied, *around],
            )
            for book in ("copied", "filled", "missing"):
                await connection.execute(
                    f'DELETE FROM pinstripe.{book} WHERE schema = $1 AND "table" = ANY($2::text[])',
                    schema,
                    emptied,
                )
    return emptied


async def _with_rows(connection: Connection, schema: str, tables: Iterable[str]) -> set[str]:
    found = [
        f"SELECT {literal(name)} WHERE EXISTS (SELECT FROM {qualified(schema, name)})"
        for name in tables
    ]
    rows = await connection.fetch(" UNION ALL ".join(found)) if found else ()
    return {row[0] for row in rows}


def _is_listed(name: str) -> bool:
    return any(name in map(table_name, e.objects) for e in list_endpoints())
