"""What is known of rows without a word in them: `pinstripe.confirmation` and `pinstripe.member_set`.

    mirror.writer: same content -> `note`: one entry a snapshot and table, the keys as hashes
    an older snapshot of other content comes later -> `of_keys`: the row's interval is moved forward first
    a list was read to its end -> `of_keys`: the rows that it did not show

    a set that an event showed, or that took rows out -> `note_sets`: when the list of a parent was whole
    a row of an older page comes later -> `newer_than`: no row, if the set did not have it

A confirmation costs 8 bytes a row, where moving the interval in the row costs a kilobyte of WAL
(docs/decisions/025-confirmations.md). It is of use while an older snapshot may still arrive, and until the
pass that made it has looked for rows that it did not show: see `forget`.

A row that is gone without a trace (a line of a draft), or that was never there, has no interval that an
older page could be compared with. Its parent's set has one. Writers that note sets and writers that insert
members wait for each other (`lock_sets`): else neither would see what the other has not committed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pinstripe.store.ddl import literal, scope_value
from pinstripe.store.pool import Connection

KEPT_S = 3600.0
"""No response is under way for so long: Stripe's answers are given up after minutes."""

_FEW = 20
"""Entries of fewer rows stem from events and single requests, and are not needed by passes: a pass that
misses so few of its rows fetches them."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Rows of one table that a snapshot of [lo, hi) showed as they are; `keys` are hashes."""

    table: str
    lo: float
    hi: float
    keys: Sequence[int]


def key_hash(key: str) -> str:
    """Return the SQL of a key's hash. 64 bits: among a million rows one in 10^7 shares its hash."""
    return f"pg_catalog.hashtextextended({key}, 0)"


async def note(connection: Connection, schema: str, found: Sequence[Confirmation]) -> None:
    """Add these confirmations, in the transaction that compared the rows."""
    await connection.executemany(
        'INSERT INTO pinstripe.confirmation (schema, "table", as_of, as_of_latest, keys)'
        " VALUES ($1, $2, to_timestamp($3), to_timestamp($4), $5)",
        [(schema, c.table, c.lo, c.hi, c.keys) for c in found],
    )


async def is_any(connection: Connection, schema: str, table: str, since: float) -> bool:
    """Return whether rows of the table were confirmed later than this second on Stripe's clock."""
    found: bool = await connection.fetchval(
        'SELECT EXISTS (SELECT FROM pinstripe.confirmation WHERE schema = $1 AND "table" = $2'
        " AND as_of_latest > to_timestamp($3))",
        schema,
        table,
        since,
    )
    return found


def of_keys(schema: str, table: str, since: str) -> str:
    """Return SQL of (key, as_of, as_of_latest, noted_at), one row for each row that was confirmed.

    Each argument is SQL: the schema, the table, and the moment after which confirmations are wanted.
    """
    return (
        "SELECT k.key, c.as_of, c.as_of_latest, c.noted_at FROM pinstripe.confirmation c, "
        f'unnest(c.keys) AS k (key) WHERE c.schema = {schema} AND c."table" = {table} '
        f"AND c.as_of_latest > {since}"
    )


async def forget(
    connection: Connection,
    schema: str,
    *,
    now: float,
    passes_since: float,
    scans_since: Mapping[str, float],
) -> None:
    """Delete confirmations that are of no more use. Times are Unix seconds on Stripe's clock.

    Kept are those of the last hour, those after the position of the events (an event behind it is still to
    come), and those of lists since `passes_since`, the beginning of the oldest pass that counts. Of a table
    in `scans_since` all are kept since then: a list under one parent shows few rows.
    """
    await connection.execute(
        "DELETE FROM pinstripe.confirmation WHERE schema = $1"
        " AND as_of_latest < least(to_timestamp($2), (SELECT as_of - interval '15 minutes'"
        "   FROM pinstripe.cursor WHERE schema = $1 AND stream = 'events'))"
        " AND (cardinality(keys) < $3 OR as_of_latest < to_timestamp($4))"
        " AND NOT EXISTS (SELECT FROM unnest($5::text[], $6::float8[]) AS s (tab, since)"
        '   WHERE s.tab = "table" AND as_of_latest >= to_timestamp(s.since))',
        schema,
        now - KEPT_S,
        _FEW,
        min(passes_since, now - KEPT_S),
        list(scans_since),
        list(scans_since.values()),
    )


async def lock_sets(connection: Connection, schema: str, *, notes: bool) -> None:
    """Wait, until the end of the transaction, for writers that note sets; with `notes`, for those that
    insert members too. To be called before any row is locked.
    """
    strength = "NO KEY UPDATE" if notes else "SHARE"
    await connection.execute(f"SELECT FROM pinstripe.sync WHERE schema = $1 FOR {strength}", schema)


async def note_sets(
    connection: Connection, schema: str, sets: Sequence[tuple[str, str, float, float]]
) -> None:
    """Note sets, in the transaction that applies them: (table of the children, parent's id, lo, hi)."""
    latest: dict[tuple[str, str], tuple[float, float]] = {}
    for child, parent, lo, hi in sets:
        known = latest.get((child, parent), (lo, hi))
        latest[child, parent] = (max(lo, known[0]), max(hi, known[1]))
    places = sorted(latest)
    await connection.execute(
        "INSERT INTO pinstripe.member_set AS m (schema, child, parent_id, as_of, as_of_latest)"
        " SELECT $1, u.child, u.parent, to_timestamp(u.lo), to_timestamp(u.hi)"
        " FROM unnest($2::text[], $3::text[], $4::float8[], $5::float8[]) AS u (child, parent, lo, hi)"
        " ON CONFLICT (schema, child, left(parent_id, 500), hashtextextended(parent_id, 0)) DO UPDATE"
        " SET as_of = greatest(m.as_of, EXCLUDED.as_of),"
        " as_of_latest = greatest(m.as_of_latest, EXCLUDED.as_of_latest),"
        " noted_at = clock_timestamp()",
        schema,
        [child for child, _ in places],
        [parent for _, parent in places],
        [latest[place][0] for place in places],
        [latest[place][1] for place in places],
    )


def newer_than(schema: str, child: str, parent: str) -> str:
    """Return SQL that joins to staged rows `s` the set `m` of their parent that they are not surely newer
    than.

    `parent`: SQL of the parent's id. What was noted before `s._known` is older than the row.
    """
    return (
        f"pinstripe.member_set m ON m.schema = {scope_value(schema)} AND m.child = {literal(child)} "
        f"AND left(m.parent_id, 500) = left({parent}, 500) "
        f"AND hashtextextended(m.parent_id, 0) = hashtextextended({parent}, 0) "
        f"AND m.as_of_latest > to_timestamp(s._lo) AND (m.noted_at <= s._known) IS NOT TRUE"
    )


async def forget_sets(connection: Connection, schema: str, loading: Collection[str]) -> None:
    """Delete sets that no page under way can contradict. Those of tables that are `loading` stay."""
    await connection.execute(
        "DELETE FROM pinstripe.member_set WHERE schema = $1 AND child <> ALL ($2::text[])"
        " AND noted_at < clock_timestamp() - make_interval(secs => $3)",
        schema,
        list(loading),
        KEPT_S,
    )
