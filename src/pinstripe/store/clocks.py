"""The table `pinstripe.clock`: by day, how far Stripe's clocks were apart, and how often a read was stale.

    proxied write -> its `Date` -> its event's `created`   `note_writes`
    contradiction -> one request after the margin          `note_contradiction`

The margins (`client.response.Margins`) are guesses; `status` and the metrics show what they are up against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from pinstripe.store.pool import Connection

_KEPT = "interval '30 days'"


class Clocks(msgspec.Struct, frozen=True):
    """What was measured in the last 30 days."""

    writes: int = 0
    """Proxied writes whose events were seen."""
    date_ahead_s: float = 0.0
    """How far `Date` was ahead of `created` at most, beyond what the duration of the request explains."""
    date_behind_s: float = 0.0
    """The same, behind."""
    contradictions: int = 0
    """Snapshots that contradicted a row without being surely newer or older."""
    stale: int = 0
    """Those of them after which the row stayed: they had shown an older state."""


@dataclass(frozen=True, slots=True)
class Write:
    """A proxied write that Stripe answered in [lo, hi), Unix seconds by its `Date`."""

    request_id: str
    lo: float
    hi: float


async def note_writes(connection: Connection, schema: str, writes: Sequence[Write]) -> None:
    """Compare these writes with their events, as far as those are applied."""
    await connection.execute(
        "WITH pair AS (SELECT u.lo, u.hi, extract(epoch FROM min(a.created))::float8 AS created"
        "   FROM unnest($2::text[], $3::float8[], $4::float8[]) AS u (request, lo, hi)"
        "   JOIN pinstripe.applied_event a ON a.schema = $1 AND a.request_id = u.request"
        "   GROUP BY u.request, u.lo, u.hi),"
        " found AS (SELECT count(*) AS writes, coalesce(max(lo - created - 1), 0) AS ahead,"
        "   coalesce(max(created - hi), 0) AS behind FROM pair HAVING count(*) > 0)"
        " INSERT INTO pinstripe.clock AS c (schema, day, writes, ahead_s, behind_s)"
        " SELECT $1, current_date, writes, greatest(ahead, 0), greatest(behind, 0) FROM found"
        " ON CONFLICT (schema, day) DO UPDATE SET writes = c.writes + EXCLUDED.writes,"
        " ahead_s = greatest(c.ahead_s, EXCLUDED.ahead_s),"
        " behind_s = greatest(c.behind_s, EXCLUDED.behind_s)",
        schema,
        [w.request_id for w in writes],
        [w.lo for w in writes],
        [w.hi for w in writes],
    )


async def note_contradiction(connection: Connection, schema: str, *, is_stale: bool) -> None:
    """Count a contradiction that was resolved; `is_stale`: the row was right."""
    await connection.execute(
        "INSERT INTO pinstripe.clock AS c (schema, day, contradictions, stale)"
        " VALUES ($1, current_date, 1, $2) ON CONFLICT (schema, day) DO UPDATE"
        " SET contradictions = c.contradictions + 1, stale = c.stale + EXCLUDED.stale",
        schema,
        int(is_stale),
    )


async def load_clocks(connection: Connection) -> dict[str, Clocks]:
    """Return schema -> what was measured in the last 30 days."""
    rows = await connection.fetch(
        "SELECT schema, sum(writes)::bigint, max(ahead_s), max(behind_s),"
        " sum(contradictions)::bigint, sum(stale)::bigint FROM pinstripe.clock"
        f" WHERE day >= current_date - {_KEPT} GROUP BY schema"
    )
    return {row[0]: Clocks(*row[1:]) for row in rows}
