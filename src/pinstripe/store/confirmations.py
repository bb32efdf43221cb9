"""The table `pinstripe.confirmation`: snapshots that showed rows as they are, so that nothing was written.

    mirror.writer: same content -> `note`: one entry a snapshot and table, the keys as hashes
    an older snapshot of other content comes later -> `of_keys`: the row's interval is moved forward first
    a list was read to its end -> `of_keys`: the rows that it did not show

An entry costs 8 bytes a row, where moving the interval in the row costs a kilobyte of WAL
(docs/decisions/025-confirmations.md). It is of use while an older snapshot may still arrive, and until the
pass that made it has looked for rows that it did not show: see `forget`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
