"""How all syncs of a database stand, in one look that costs the same whatever they hold.

For what asks every second. Who wants to know more of one sync reads its status (`pinstripe.status`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pinstripe.store.pool import Connection


@dataclass(frozen=True, slots=True)
class Standing:
    """`as_of`: the Unix second, on Stripe's clock, up to which all events are applied; `now`: Postgres's.

    `running`, `failed`, `refused`: streams of lists in that state.
    """

    schema: str
    now: float
    as_of: float | None
    trouble: str
    remedy: str
    running: int
    failed: int
    refused: int
    to_ask: int
    ask_since: float | None
    """When the oldest of those requests was asked for, on Postgres's clock."""
    owed: int = 0
    """Those of them that met trouble."""
    quarantined: int = 0
    """Rows and tables that Postgres refuses to hold."""

    @property
    def lag_s(self) -> float | None:
        """How long ago the copy was surely true; None before the first look at the event log."""
        return None if self.as_of is None else max(self.now - self.as_of, 0.0)


_STANDINGS = """
SELECT s.schema, extract(epoch FROM clock_timestamp())::float8,
       extract(epoch FROM c.as_of)::float8, coalesce(c.reason, ''), coalesce(c.remedy, ''),
       l.running, l.failed, l.refused, p.open, p.since, p.owed,
       (SELECT count(*) FROM pinstripe.quarantine q WHERE q.schema = s.schema)
FROM pinstripe.sync s
LEFT JOIN pinstripe.cursor c ON c.schema = s.schema AND c.stream = 'events'
CROSS JOIN LATERAL (
  SELECT count(*) FILTER (WHERE state = 'running') AS running,
         count(*) FILTER (WHERE state = 'failed') AS failed,
         count(*) FILTER (WHERE state = 'refused') AS refused
  FROM pinstripe.cursor l WHERE l.schema = s.schema AND l.stream <> 'events') l
CROSS JOIN LATERAL (
  SELECT count(*) AS open, extract(epoch FROM min(asked_at))::float8 AS since,
         count(*) FILTER (WHERE code <> 'quarantined') AS owed
  FROM pinstripe.pending p WHERE p.schema = s.schema) p
"""
# Of tables that nobody has analyzed the statistics know, and after a crash the other way round.
_ESTIMATES = """
SELECT n.nspname, c.relname,
       greatest(c.reltuples, pg_stat_get_live_tuples(c.oid), 0)::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY($1::text[]) AND c.relkind IN ('r', 'p')
"""


async def load_standings(connection: Connection) -> dict[str, Standing]:
    """Schema -> how it stands; empty where Pinstripe never wrote."""
    if await connection.fetchval("SELECT to_regclass('pinstripe.quarantine')") is None:
        return {}
    return {row[0]: Standing(*row) for row in await connection.fetch(_STANDINGS)}


async def estimate_rows(
    connection: Connection, schemas: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Schema -> table -> about how many rows, without counting; of all tables that stand there."""
    found: dict[str, dict[str, int]] = {schema: {} for schema in schemas}
    for schema, table, rows in await connection.fetch(_ESTIMATES, list(schemas)):
        found[schema][table] = rows
    return found
