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
from datetime import datetime

from pinstripe.store.platforms.sweep import wake
from pinstripe.store.pool import Connection, translated
from pinstripe.store.scopes import account_of, schema_of

REQUESTS = "pinstripe_ring"
"""NOTIFY channel of requests; the payload is the schema, whose row has the rest."""
ACKS = "pinstripe_heard"
"""NOTIFY channel of acknowledgements; the payload is the schema, whose row has the rest."""


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """The latest request. `lookback_s`: how late events may be that the poll must not miss."""

    number: int
    lookback_s: float


@dataclass(frozen=True, slots=True)
class SyncAck:
    """All requests up to `number` are done: the database holds what Stripe's event list had at `as_of`
    (Unix seconds on Stripe's clock; 0.0 if nothing is acknowledged yet).
    """

    number: int
    as_of: float


# Asynchronous commit: a request that a crash of the server loses is sent again.
_REQUEST = f"""
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
_ACKNOWLEDGE = f"""
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
    """Request a sync; return the number that an acknowledgement must reach.

    For an account of a platform, no process listens: the poll is requested as a task of its workers.
    """
    with translated():
        if not account_of(schema):
            return int(await connection.fetchval(_REQUEST, schema, lookback_s))
        async with connection.transaction():
            number: int = await connection.fetchval(_REQUEST, schema, lookback_s)
            platform_id = await connection.fetchval(
                "SELECT platform_id FROM pinstripe.sync WHERE schema = $1", schema
            )
            await wake(connection, platform_id, schema_of(schema), account_of(schema))
    return number


async def acknowledge(connection: Connection, schema: str, ack: SyncAck) -> None:
    """Acknowledge all requests up to `ack.number`."""
    with translated():
        await connection.execute(_ACKNOWLEDGE, schema, ack.number, ack.as_of)


async def last_request(connection: Connection, schema: str) -> SyncRequest | None:
    """Return the latest request if it is not acknowledged yet."""
    with translated():
        row = await connection.fetchrow(
            "SELECT rung, lookback_s FROM pinstripe.bell WHERE schema = $1 AND heard < rung", schema
        )
    return None if row is None else SyncRequest(row[0], row[1])


async def last_acks(connection: Connection, schemas: Sequence[str]) -> dict[str, SyncAck]:
    """Return the latest acknowledgement of each schema that ever had a request."""
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
