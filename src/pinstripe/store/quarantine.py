"""Rows and tables that Postgres refuses to hold: `pinstripe.quarantine`, and what is owed for them.

A user's index, constraint, trigger or policy may refuse a row, a missing right or a dropped column a table.
Whatever else is written goes on without them: here stands, by name, what was left out, why, and what to do.
Never a value of a row. For each row a request is owed (`pinstripe.pending`), so a cursor may vouch for the
page that held it: both are committed together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pinstripe.errors import DatabaseFault, PinstripeError
from pinstripe.rows.as_of import Cause
from pinstripe.rows.extract import Row
from pinstripe.store.pool import Connection
from pinstripe.store.refetch import Conflict

QUARANTINED = "quarantined"
"""Code of a request that waits until Postgres takes the row."""
# undefined_table, undefined_column, invalid_schema_name
_GONE = frozenset({"42P01", "42703", "3F000"})
_HELD_BYTES = 1_000_000
LARGEST_BYTES = 200_000_000
"""Postgres holds a text of 1 GB, a jsonb of 256 MB, and takes messages of 1 GB."""


@dataclass(frozen=True, slots=True)
class Why:
    """What Postgres said of a refusal."""

    fault: DatabaseFault
    reason: str
    remedy: str

    @property
    def name(self) -> str:
        """Of the constraint, index or column, if Postgres gave it."""
        return self.fault.constraint or self.fault.column

    @property
    def is_gone(self) -> bool:
        """Whether a table, or a part of it, has to be made again, and what it held to be read again."""
        return self.fault.sqlstate in _GONE


def why(error: PinstripeError) -> Why:
    assert error.fault is not None  # noqa: S101 (only errors of the database's get here)
    return Why(error.fault, error.message, error.hint)


TOO_LARGE = Why(
    DatabaseFault("54000", "row"),
    "The row is larger than Postgres takes.",
    "Make the object smaller at Stripe; it is fetched again once a day.",
)


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that was left out of a commit; with the interval in its tail."""

    table: str
    key: str
    row: Row
    why: Why
    cause: Cause | None = None

    @property
    def can_be_held(self) -> bool:
        """Whether it may be kept in memory, to be tried again without Stripe."""
        return size_of(self.row) <= _HELD_BYTES


@dataclass(slots=True)
class Parted:
    """A batch that was written without what Postgres refuses. `tables`: those of which nothing was."""

    conflicts: list[Conflict] = field(default_factory=list)
    rows: list[Refused] = field(default_factory=list)
    tables: dict[str, Why] = field(default_factory=dict)
    left_out: list[Refused] = field(default_factory=list)
    """The rows of those tables."""
    owners: list[tuple[str, str]] = field(default_factory=list)
    """(table, key) of objects whose lists could not be compared with the rows under them."""


def size_of(row: Row) -> int:
    """Characters of its texts."""
    return sum(len(value) for value in row if isinstance(value, str))


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
  (schema, kind, "table", id, since, code, reason, remedy, attempts, next_try_at)
SELECT $1, 'fetch', u.tab, u.id, to_timestamp(0), '{QUARANTINED}', u.reason, u.remedy, 3,
  clock_timestamp() + make_interval(secs => u.wait)
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::float8[])
  AS u (tab, id, reason, remedy, wait)
ON CONFLICT (schema, kind, "table", left(id, 500), hashtextextended(id, 0)) DO UPDATE SET
  code = EXCLUDED.code, reason = EXCLUDED.reason, remedy = EXCLUDED.remedy,
  attempts = greatest(p.attempts, 3), next_try_at = EXCLUDED.next_try_at,
  asked_at = clock_timestamp()
"""
_HELD_S = 10 * 365 * 86400.0
"""A row that is held is not fetched before Postgres takes it."""
_UNHELD_S = 86400.0


async def note_parted(connection: Connection, schema: str, parted: Parted) -> None:
    """Notes what was refused, in the transaction of what was not."""
    entries = [(r.table, r.key, r.why, False) for r in parted.rows]
    entries += [(table, "", w, w.is_gone) for table, w in parted.tables.items()]
    await note_refused(connection, schema, entries)
    await owe_rows(connection, schema, [*parted.rows, *parted.left_out])
    if parted.owners and (parted.rows or parted.left_out):
        first = (parted.rows or parted.left_out)[0].why
        await _owe(connection, schema, [(t, k, first, _HELD_S) for t, k in set(parted.owners)])


async def note_refused(
    connection: Connection, schema: str, entries: Sequence[tuple[str, str, Why, bool]]
) -> None:
    """Notes (table, key, why, whether its lists are to be read anew); the key "" is the whole table."""
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


async def owe_rows(connection: Connection, schema: str, rows: Iterable[Refused]) -> None:
    """A request is owed for each of these rows, to be made when Postgres takes it."""
    entries = [(r.table, r.key, r.why, _HELD_S if r.can_be_held else _UNHELD_S) for r in rows]
    await _owe(connection, schema, entries)


async def _owe(
    connection: Connection, schema: str, entries: Sequence[tuple[str, str, Why, float]]
) -> None:
    latest = {entry[:2]: entry for entry in entries}
    if not latest:
        return
    ordered = [latest[place] for place in sorted(latest)]
    await connection.execute(
        _OWE,
        schema,
        [e[0] for e in ordered],
        [e[1] for e in ordered],
        [e[2].reason for e in ordered],
        [e[2].remedy for e in ordered],
        [e[3] for e in ordered],
    )


async def release(
    connection: Connection, schema: str, table: str, keys: Sequence[str] | None = None
) -> None:
    """Postgres takes these rows, or the table: what is owed for them may be fetched now.

    A table whose lists are to be read anew stays noted until that is done (`relisted`).
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


async def to_relist(connection: Connection, schema: str) -> list[str]:
    """Tables whose lists are to be read anew."""
    rows = await connection.fetch(
        "SELECT \"table\" FROM pinstripe.quarantine WHERE schema = $1 AND id = '' AND relist ORDER BY 1",
        schema,
    )
    return [row[0] for row in rows]


_EMPTIED = """
SELECT t.name, to_regclass(format('%I.%I', $1::text, t.name)) IS NULL
FROM unnest($2::text[]) AS t (name)
LEFT JOIN pg_class c ON c.oid = to_regclass(format('%I.%I', $1::text, t.name))
WHERE c.oid IS NULL OR (c.relkind = 'r' AND pg_relation_size(c.oid) = 0 AND EXISTS (
  SELECT FROM pinstripe.cursor k WHERE k.schema = $1 AND k.position ->> 'table' = t.name
  AND k.state = 'done' AND k.rows > 0))
"""


async def find_lost(
    connection: Connection, schema: str, tables: Iterable[str]
) -> list[tuple[str, bool]]:
    """(table, whether it is gone) of those that somebody dropped, or emptied though lists filled them.

    From the catalog alone: a table of which only the rows were deleted is found when they are vacuumed.
    """
    rows = await connection.fetch(_EMPTIED, schema, sorted(tables))
    return [(row[0], row[1]) for row in rows]


async def relisted(connection: Connection, schema: str, table: str) -> None:
    """The lists of the table have been read anew."""
    await connection.execute(
        "DELETE FROM pinstripe.quarantine WHERE schema = $1 AND \"table\" = $2 AND id = ''",
        schema,
        table,
    )


async def reopen(connection: Connection, schema: str) -> list[tuple[str, bool]]:
    """For a start: everything in quarantine is tried anew. Gives (table, whether its lists must be).

    What is owed for rows is due now. The caller sees to the lists in the same transaction.
    """
    rows = await connection.fetch(
        'DELETE FROM pinstripe.quarantine WHERE schema = $1 RETURNING "table", relist', schema
    )
    await connection.execute(
        f"UPDATE pinstripe.pending SET next_try_at = NULL WHERE schema = $1 AND code = '{QUARANTINED}'",
        schema,
    )
    return sorted({(row[0], row[1]) for row in rows})
