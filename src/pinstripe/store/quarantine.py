"""The table `pinstripe.quarantine`: rows and tables that Postgres refuses, and the refetches owed for them.

A user's index, constraint, trigger or policy may refuse a row; a missing right or a dropped column
refuses a table. Everything else is written without them. Each entry has the name, the reason and the
remedy, never a value of the row. A refetch is queued (`pinstripe.pending`) in the same commit as the page
that held the row, so the cursor may cover that page. `mirror.quarantine` decides what is refused and
retries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pinstripe.errors import DatabaseFault, PinstripeError
from pinstripe.store.pool import Connection

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
        return self.fault.sqlstate in _GONE


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
  (schema, kind, "table", id, since, code, reason, remedy, attempts, next_try_at)
SELECT $1, 'fetch', u.tab, u.id, to_timestamp(0), '{QUARANTINED}', u.reason, u.remedy, 3,
  clock_timestamp() + make_interval(secs => CASE WHEN (SELECT count(*) FROM pinstripe.quarantine q
    WHERE q.schema = $1) > {MOST_HELD} THEN least(u.wait, {UNHELD_S}) ELSE u.wait END)
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::float8[])
  AS u (tab, id, reason, remedy, wait)
ON CONFLICT (schema, kind, "table", left(id, 500), hashtextextended(id, 0)) DO UPDATE SET
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
    connection: Connection, schema: str, entries: Sequence[tuple[str, str, Why, float]]
) -> None:
    """Queue a refetch for each (table, key, why, seconds until it is due); the last of a key counts."""
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
    """Make the refetches of these rows, or of the whole table, due: Postgres accepts them now.

    A table whose lists must be read again stays noted until `lost_tables.relisted`.
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


async def reopen(connection: Connection, schema: str) -> list[tuple[str, bool]]:
    """Empty the quarantine at a start; return (table, whether its lists must be read again).

    Refetches of rows become due. The caller handles the lists in the same transaction.
    """
    rows = await connection.fetch(
        'DELETE FROM pinstripe.quarantine WHERE schema = $1 RETURNING "table", relist', schema
    )
    await connection.execute(
        f"UPDATE pinstripe.pending SET next_try_at = NULL WHERE schema = $1 AND code = '{QUARANTINED}'",
        schema,
    )
    return sorted({(row[0], row[1]) for row in rows})
