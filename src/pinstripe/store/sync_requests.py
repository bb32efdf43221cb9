"""Rings: somebody asks the process that syncs to look at Stripe now, and it says when it has.

A ring is a number out of one row (`pinstripe.bell`), so it needs no clocks: who rings came before his
number; the process that syncs hears the number before it begins to look; what it then answers covers
every ring up to that number. A NOTIFY carries both ways, and the row is there for whoever missed it.

Numbers hold for one session only: a server that was killed may give out some of them again. Who hears
or rings uses the connection that listens, and forgets what it knew when that one breaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pinstripe.store.pool import Connection, translated

REQUESTS = "pinstripe_ring"
"""NOTIFY channel of rings; the payload is the schema, whose row says the rest."""
ACKS = "pinstripe_heard"
"""NOTIFY channel of answers; the payload is the schema, whose row says the rest."""


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """The latest ring. `lookback_s`: how late events may be that it must not miss."""

    number: int
    lookback_s: float


@dataclass(frozen=True, slots=True)
class SyncAck:
    """All rings up to `number` are answered: the database holds what Stripe's event list showed at
    `as_of` (Unix seconds on Stripe's clock; 0.0 where there is no answer yet).
    """

    number: int
    as_of: float


# Not waited for on disk: a ring that a crash of the server loses is rung again.
_RING = f"""
WITH rung AS (
  INSERT INTO pinstripe.bell AS b (schema, rung, lookback_s) VALUES ($1, 1, $2)
  ON CONFLICT (schema) DO UPDATE SET
    rung = b.rung + 1,
    lookback_s = CASE WHEN b.heard < b.rung THEN greatest(b.lookback_s, $2) ELSE $2 END,
    rung_at = clock_timestamp()
  RETURNING rung
)
SELECT rung, set_config('synchronous_commit', 'off', true),
       pg_notify('{REQUESTS}', $1)
FROM rung
"""
_ANSWER = f"""
WITH heard AS (
  UPDATE pinstripe.bell SET heard = $2, as_of = to_timestamp($3), heard_at = clock_timestamp()
  WHERE schema = $1 AND heard < $2
  RETURNING heard
)
SELECT set_config('synchronous_commit', 'off', true),
       pg_notify('{ACKS}', $1)
FROM heard
"""


async def request_sync(connection: Connection, schema: str, lookback_s: float) -> int:
    """Rings; gives the number that an answer must reach."""
    with translated():
        number: int = await connection.fetchval(_RING, schema, lookback_s)
    return number


async def acknowledge(connection: Connection, schema: str, said: SyncAck) -> None:
    """Answers all rings up to `said.number`."""
    with translated():
        await connection.execute(_ANSWER, schema, said.number, said.as_of)


async def last_request(connection: Connection, schema: str) -> SyncRequest | None:
    """The latest ring if it is not answered yet."""
    with translated():
        row = await connection.fetchrow(
            "SELECT rung, lookback_s FROM pinstripe.bell WHERE schema = $1 AND heard < rung", schema
        )
    return None if row is None else SyncRequest(row[0], row[1])


async def last_acks(connection: Connection, schemas: Sequence[str]) -> dict[str, SyncAck]:
    """The latest answer of each schema that was ever rung."""
    with translated():
        rows = await connection.fetch(
            "SELECT schema, heard, coalesce(extract(epoch FROM as_of), 0)::float8"
            " FROM pinstripe.bell WHERE schema = ANY($1)",
            list(schemas),
        )
    return {row[0]: SyncAck(row[1], row[2]) for row in rows}


async def load_acked_as_of(connection: Connection, schema: str) -> datetime | None:
    """Return the later of the cursor's `as_of` and that of the latest acknowledgement."""
    as_of: datetime | None = await connection.fetchval(
        "SELECT greatest(max(b.as_of), max(c.as_of)) FROM pinstripe.cursor AS c"
        " LEFT JOIN pinstripe.bell AS b USING (schema)"
        " WHERE c.schema = $1 AND c.stream = 'events'",
        schema,
    )
    return as_of
