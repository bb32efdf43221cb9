"""The table `pinstripe.quarantine`: rows and tables that Postgres refuses, and the refetches owed for them.

A user's index, constraint, trigger or policy may refuse a row; a missing right or a dropped column
refuses a table. Everything else is written without them. Each entry has the name, the reason and the
remedy, never a value of the row. A refetch is queued (`pinstripe.pending`) in the same commit as the page
that held the row, so the cursor may cover that page. `mirror.quarantine` decides what is refused and
retries it.

Tables that another role emptied or dropped are found, and their lists read again:

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
from dataclasses import dataclass

from pinstripe.catalog.embedded import holders
from pinstripe.catalog.endpoints import list_endpoints
from pinstripe.catalog.model import spec
from pinstripe.catalog.relations import parents
from pinstripe.catalog.tables import Table, table_name, tables
from pinstripe.client.response import Cause
from pinstripe.errors import DatabaseFault, PinstripeError
from pinstripe.store.cursors import FOLLOWED
from pinstripe.store.ddl import literal, qualified
from pinstripe.store.pool import Connection, translated
from pinstripe.store.session import SCOPES_OF, relations

QUARANTINED = "quarantined"
"""Code of a refetch that waits until Postgres accepts the row."""
MOST_HELD = 1000
"""Rows that are kept in memory and retried without Stripe."""
UNHELD_S = 86400.0
"""Seconds until a refused row is fetched that is not kept in memory."""
# undefined_table, undefined_column, invalid_schema_name
_GONE = frozenset({"42P01", "42703", "3F000"})


@dataclass(frozen=True, slots=True)
class Why:
    """Why Postgres refused a row or a table."""

    fault: DatabaseFault
    reason: str
    remedy: str

    @property
    def name(self) -> str:
        """The constraint, index or column, if Postgres named it."""
        return self.fault.constraint or self.fault.column

    @property
    def is_gone(self) -> bool:
        """Whether a table or column is gone: it has to be created, and its lists read again."""
        return self.fault.sqlstate in _GONE and self.fault.scope == "table"


def why(error: PinstripeError) -> Why:
    assert error.fault is not None  # noqa: S101 (only errors of the database's get here)
    return Why(error.fault, error.message, error.hint)


_NOTE = """
INSERT INTO pinstripe.quarantine AS q (schema, "table", id, sqlstate, name, reason, remedy, relist)
SELECT $1, u.tab, u.id, u.code, nullif(u.name, ''), u.reason, u.remedy, u.relist
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::boolean[])
  AS u (tab, id, code, name, reason, remedy, relist)
ON CONFLICT (schema, "table", left(id, 500), hashtextextended(id, 0)) DO UPDATE SET
  sqlstate = EXCLUDED.sqlstate, name = EXCLUDED.name, reason = EXCLUDED.reason,
  remedy = EXCLUDED.remedy, relist = q.relist OR EXCLUDED.relist, tries = q.tries + 1,
  tried_at = clock_timestamp()
"""
_OWE = f"""
INSERT INTO pinstripe.pending AS p
  (schema, kind, "table", id, since, request_id, event_id, code, reason, remedy, attempts, next_try_at)
SELECT $1, 'fetch', u.tab, u.id, to_timestamp(0), nullif(u.request, ''), nullif(u.event, ''),
  '{QUARANTINED}', u.reason, u.remedy, 3,
  clock_timestamp() + make_interval(secs => CASE WHEN (SELECT count(*) FROM pinstripe.quarantine q
    WHERE q.schema = $1) > {MOST_HELD} THEN least(u.wait, {UNHELD_S}) ELSE u.wait END)
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::float8[], $7::text[], $8::text[])
  AS u (tab, id, reason, remedy, wait, request, event)
ON CONFLICT (schema, kind, "table", left(id, 500), hashtextextended(id, 0)) DO UPDATE SET
  request_id = coalesce(EXCLUDED.request_id, p.request_id),
  event_id = coalesce(EXCLUDED.event_id, p.event_id),
  code = EXCLUDED.code, reason = EXCLUDED.reason, remedy = EXCLUDED.remedy,
  attempts = greatest(p.attempts, 3), next_try_at = EXCLUDED.next_try_at,
  asked_at = clock_timestamp()
"""


async def note_refused(
    connection: Connection, schema: str, entries: Sequence[tuple[str, str, Why, bool]]
) -> None:
    """Note (table, key, why, whether its lists must be read again); the key "" is the whole table."""
    ordered = sorted(entries, key=lambda e: e[:2])
    if not ordered:
        return
    await connection.execute(
        _NOTE,
        schema,
        [e[0] for e in ordered],
        [e[1] for e in ordered],
        [e[2].fault.sqlstate for e in ordered],
        [e[2].name for e in ordered],
        [e[2].reason for e in ordered],
        [e[2].remedy for e in ordered],
        [e[3] for e in ordered],
    )


async def owe_fetches(
    connection: Connection,
    schema: str,
    entries: Sequence[tuple[str, str, Why, float]],
    causes: Mapping[tuple[str, str], Cause] = {},
) -> None:
    """Queue a refetch for each (table, key, why, seconds until it is due); the last of a key counts."""
    latest = {entry[:2]: entry for entry in entries}
    if not latest:
        return
    ordered = [latest[place] for place in sorted(latest)]
    known = [causes.get(entry[:2], Cause()) for entry in ordered]
    await connection.execute(
        _OWE,
        schema,
        [e[0] for e in ordered],
        [e[1] for e in ordered],
        [e[2].reason for e in ordered],
        [e[2].remedy for e in ordered],
        [e[3] for e in ordered],
        [c.request_id for c in known],
        [c.event_id for c in known],
    )


async def release(
    connection: Connection, schema: str, table: str, keys: Sequence[str] | None = None
) -> None:
    """Make the refetches of these rows, or of the whole table, due: Postgres accepts them now.

    A table whose lists must be read again stays noted until `relisted`.
    """
    await connection.execute(
        "UPDATE pinstripe.pending SET next_try_at = clock_timestamp(), asked_at = clock_timestamp()"
        f" WHERE schema = $1 AND code = '{QUARANTINED}' AND \"table\" = $2"
        " AND ($3::text[] IS NULL OR id = ANY($3::text[]))",
        schema,
        table,
        keys,
    )
    await connection.execute(
        'DELETE FROM pinstripe.quarantine WHERE schema = $1 AND "table" = $2'
        " AND CASE WHEN $3::text[] IS NULL THEN id = '' AND NOT relist"
        " ELSE id = ANY($3::text[]) END",
        schema,
        table,
        keys,
    )


async def reopen(
    connection: Connection, schema: str, synced: Sequence[str]
) -> list[tuple[str, bool]]:
    """Empty the quarantine at a start; return (table, whether its lists must be read again): also those
    that were not `synced` for a time. Which are not now is noted as `-table`.

    Refetches of rows become due. The caller handles the lists in the same transaction.
    """
    rows = await connection.fetch(
        'DELETE FROM pinstripe.quarantine WHERE schema = $1 RETURNING "table", relist', schema
    )
    rows += await connection.fetch(
        'DELETE FROM pinstripe.copied WHERE schema = $1 AND "table" = ANY($2::text[])'
        ' RETURNING substr("table", 2), true',
        schema,
        [f"-{table}" for table in synced],
    )
    await connection.execute(
        "INSERT INTO pinstripe.copied (schema, \"table\") SELECT $1, '-' || c.name"
        ' FROM (SELECT "table" FROM pinstripe.copied WHERE schema = $1 UNION'
        "  SELECT position ->> 'table' FROM pinstripe.cursor WHERE schema = $1) AS c (name)"
        " WHERE c.name <> ALL ($2::text[]) AND c.name !~ '^[-*]' ON CONFLICT DO NOTHING",
        schema,
        synced,
    )
    await connection.execute(
        f"UPDATE pinstripe.pending SET next_try_at = NULL WHERE schema = $1 AND code = '{QUARANTINED}'",
        schema,
    )
    return sorted({(row[0], row[1]) for row in rows})


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
   WHERE k.schema = $1 AND k.position ->> 'table' = t.name AND k.state = 'done' AND k.stream <> t.name)
FROM unnest($2::text[]) AS t (name)
LEFT JOIN pg_class c ON c.oid = to_regclass(format('%I.%I', $3::text, t.name))
WHERE c.oid IS NULL OR c.relkind IN ('r', 'v')
"""
"""Whether each table is gone, how many rows the statistics count, and how many were listed (the cursor of
previews, which has the name of their table, counts owners, and many have nothing upcoming). The views
of a platform's account have no statistics, which is -1: their rows are counted up to `_COUNTED`."""
_COUNTED = 100_000
_SHRINKING = frozenset(
    {
        "entitlements_active_entitlement",
        "event",
        "line_item",
        "upcoming_customer_invoice",
        "upcoming_invoice_line_item",
        "upcoming_subscription_invoice",
    }
)
"""Rows that are removed when they end, or are old: only an empty table is suspect."""


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
    """Delete the cursors of the lists that bring rows of these tables, so that they are read again: not how
    far the events are applied, which is no list of the table `event`. Of a platform all accounts read them.

    Rows inside others (invoice lines) have no list of their own: then it is the lists of `around_of`.
    """
    if relist:
        around = [name for one in relist for name in around_of(one)]
        await connection.execute(
            f"DELETE FROM pinstripe.cursor WHERE schema IN {SCOPES_OF}"
            f" AND position ->> 'table' = ANY($2) AND stream <> {literal(FOLLOWED)}",
            schema,
            [*relist, *around],
        )
        await connection.execute(_GO_ON, schema, _SPREAD_S)


_SPREAD_S = 3600.0
_GO_ON = """
INSERT INTO pinstripe.platform_task (scope, task, due_at)
SELECT s.schema, 'backfill', clock_timestamp() + make_interval(secs => random() * $2)
FROM pinstripe.sync s JOIN pinstripe.platform p ON p.id = s.platform_id
WHERE p.schema = $1 AND s.schema <> p.schema ON CONFLICT DO NOTHING
"""
"""Of a platform's schema: within this time the first copies of all accounts go on, and read what lacks."""


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


async def relisted(connection: Connection, schema: str, table: str, listed: int) -> None:
    """Note that the lists of the table were read again, and how many rows they have; of previews, which
    have none, that they are to be filled again.
    """
    if (known := tables().get(table)) is not None and known.virtual:
        await connection.execute(
            "DELETE FROM pinstripe.cursor WHERE schema = $1 AND stream LIKE 'upcoming%'", schema
        )
    # Fewer may be right, if Stripe shows fewer by now: they are not missed again. The table is not counted:
    # somebody may have emptied it a second time by now.
    await connection.execute(
        "UPDATE pinstripe.cursor SET rows = least(rows, $3)"
        " WHERE schema = $1 AND position ->> 'table' = $2 AND state = 'done'",
        schema,
        table,
        listed,
    )
    await connection.execute(
        "DELETE FROM pinstripe.quarantine WHERE schema = $1 AND \"table\" = $2 AND id = ''",
        schema,
        table,
    )
