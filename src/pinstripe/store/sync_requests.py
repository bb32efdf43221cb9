"""Requests for an immediate sync, and their acknowledgements: the table `pinstripe.bell`.

    request_sync -> NOTIFY -> worker: last_request, poll, acknowledge -> NOTIFY -> last_acks

A request is a number from one row, so no clocks are compared: the worker reads the number before it polls
Stripe, and its acknowledgement covers all requests up to it. A lost NOTIFY costs time only, since both
sides poll the row too. Numbers hold for one session, because a killed server may give some out again:
both sides use their listening connection and forget the numbers when it is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
