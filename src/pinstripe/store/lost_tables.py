"""Tables that another role emptied or dropped: finds them, and makes their lists be read again.

    at the start    empty, and noted in `pinstripe.filled`: `forget_emptied`, before the backfill
                    empty, though a cursor says that rows came: `with_rows`, by the backfill's plan
    while running   gone, or not half of what there was: `find_lost` -> quarantine -> `to_relist`
                    -> `relisted`

A cursor says that a list was read to its end, whatever became of the rows. So the tables that have rows are
noted at the end of each backfill. Each way reads the same lists again: those of the table and those of
`around_of`. A table that lost a smaller part of its rows is found by `verify`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pinstripe.catalog.embedded import holders
from pinstripe.catalog.endpoints import list_endpoints
from pinstripe.catalog.model import spec
from pinstripe.catalog.relations import parents
from pinstripe.catalog.tables import Table, table_name, tables
from pinstripe.errors import DatabaseFault
from pinstripe.store.ddl import literal, qualified
from pinstripe.store.pool import Connection, translated
from pinstripe.store.quarantine import Why
from pinstripe.store.session import SCOPES_OF, relations

GONE = Why(
    DatabaseFault("42P01", "table"),
    "The table is gone.",
    "Pinstripe makes it again by itself, and reads its lists.",
)
EMPTIED = Why(
    DatabaseFault("02000", "table"),
    "The table was emptied by somebody else.",
    "Pinstripe reads its lists again by itself.",
)
_SIZES = """
SELECT t.name, c.oid IS NULL,
  CASE c.relkind WHEN 'v' THEN -1 ELSE coalesce(pg_stat_get_live_tuples(c.oid), 0) END,
  (SELECT coalesce(max(k.rows), 0)::bigint FROM pinstripe.cursor k
   WHERE k.schema = $1 AND k.position ->> 'table' = t.name AND k.state = 'done')
FROM unnest($2::text[]) AS t (name)
LEFT JOIN pg_class c ON c.oid = to_regclass(format('%I.%I', $3::text, t.name))
WHERE c.oid IS NULL OR c.relkind IN ('r', 'v')
"""
"""Whether each table is gone, how many rows the statistics count, and how many were listed. The views
of a platform's account have no statistics, which is -1: their rows are counted up to `_COUNTED`."""
_COUNTED = 100_000
_SHRINKING = frozenset({"entitlements_active_entitlement"})
"""Rows that are removed when they end: only an empty table is suspect."""


async def note_filled(connection: Connection, schema: str, synced: Mapping[str, Table]) -> None:
    """Note which of these tables have rows now."""
    with translated():
        await connection.execute(
            'DELETE FROM pinstripe.filled WHERE schema = $1 AND "table" = ANY($2::text[])',
            schema,
            sorted(synced),
        )
        await connection.execute(
            'INSERT INTO pinstripe.filled (schema, "table") SELECT $1, unnest($2::text[])',
            schema,
            sorted(await with_rows(connection, schema, synced)),
        )


async def forget_emptied(
    connection: Connection, schema: str, synced: Mapping[str, Table]
) -> list[str]:
    """Return the tables that had rows and have none, after deleting the cursors that cover them.

    The next backfill reads their lists again, and the change feed takes it for an initial load.
    """
    with translated():
        async with connection.transaction():
            noted = await connection.fetch(
                'SELECT "table" FROM pinstripe.filled WHERE schema = $1', schema
            )
            here = {row[0] for row in noted if row[0] in synced}
            emptied = sorted(here - await with_rows(connection, schema, here))
            await forget_streams(connection, schema, emptied)
            for book in ("copied", "filled", "missing") if emptied else ():
                await connection.execute(
                    f'DELETE FROM pinstripe.{book} WHERE schema = $1 AND "table" = ANY($2::text[])',
                    schema,
                    emptied,
                )
    return emptied


async def with_rows(connection: Connection, schema: str, names: Iterable[str]) -> set[str]:
    """Return those of the tables that have rows."""
    parts = [
        f"SELECT {literal(name)} WHERE EXISTS (SELECT FROM {qualified(schema, name)})"
        for name in names
    ]
    rows = await connection.fetch(" UNION ALL ".join(parts)) if parts else ()
    return {row[0] for row in rows}


async def forget_streams(connection: Connection, schema: str, relist: Sequence[str]) -> None:
    """Delete the cursors of the lists that bring rows of these tables, so that they are read again.

    Rows inside others (invoice lines) have no list of their own: then it is the lists of `around_of`.
    """
    if relist:
        around = [name for one in relist for name in around_of(one)]
        await connection.execute(
            f"DELETE FROM pinstripe.cursor WHERE schema IN {SCOPES_OF}"
            " AND position ->> 'table' = ANY($2)",
            schema,
            [*relist, *around],
        )


def around_of(name: str) -> Sequence[str]:
    """Return the tables whose objects contain the rows of this table, if it has no list of its own."""
    known = tables().get(name)
    if known is None or any(known.object_type in e.objects for e in list_endpoints()):
        return ()
    above = {table_name(p) for p in parents(spec()).get(known.object_type, ())}
    return sorted(above | holders().get(name, frozenset()))


async def to_relist(connection: Connection, schema: str) -> list[str]:
    """Return the tables whose lists have to be read again."""
    rows = await connection.fetch(
        "SELECT \"table\" FROM pinstripe.quarantine WHERE schema = $1 AND id = '' AND relist ORDER BY 1",
        schema,
    )
    return [row[0] for row in rows]


async def find_lost(
    connection: Connection, schema: str, tables: Iterable[str], counted: dict[str, int]
) -> list[tuple[str, bool]]:
    """Return (table, whether it is gone) of those that were dropped, or that lost most of their rows.

    Stripe takes no row away: what is deleted there stays, flagged. So half of what was listed, or of what
    `counted` has from the last call, is too few, though events may go on writing rows meanwhile.
    `counted` is updated. A count takes milliseconds, and only of tables that look too small.
    """
    found: list[tuple[str, bool]] = []
    for name, is_gone, estimate, listed in await connection.fetch(
        _SIZES, schema, sorted(tables), relations(schema)
    ):
        expected = max(listed, counted.get(name, 0))
        # Statistics are empty after a crash: count, but no further than it takes.
        least = min(expected, 1) if name in _SHRINKING else (expected + 1) // 2
        rows = estimate
        if not is_gone and estimate < least:
            most = _COUNTED if estimate < 0 else least
            rows = await connection.fetchval(_COUNT.format(qualified(schema, name)), most)
        counted[name] = rows
        if is_gone or rows < least:
            found.append((name, is_gone))
    return found


_COUNT = "SELECT count(*) FROM (SELECT FROM {} LIMIT $1) AS t"


async def relisted(connection: Connection, schema: str, table: str) -> None:
    """Note that the lists of the table were read again, and how many rows that left."""
    count = await connection.fetchval(f"SELECT count(*) FROM {qualified(schema, table)}")
    # Fewer may be right, if Stripe shows fewer by now: they are not missed again.
    await connection.execute(
        "UPDATE pinstripe.cursor SET rows = least(rows, $3)"
        " WHERE schema = $1 AND position ->> 'table' = $2 AND state = 'done'",
        schema,
        table,
        count,
    )
    await connection.execute(
        "DELETE FROM pinstripe.quarantine WHERE schema = $1 AND \"table\" = $2 AND id = ''",
        schema,
        table,
    )
