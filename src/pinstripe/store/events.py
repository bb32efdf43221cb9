"""The event log in Postgres: requests to poll it, which events are applied, and pages of the copied events.

    request_sync -> NOTIFY -> worker: last_request, poll, acknowledge -> NOTIFY -> last_acks

A request is a number in `pinstripe.bell`, so no clocks are compared: the worker reads the number before it
polls Stripe, and its acknowledgement covers all requests up to it. A lost NOTIFY costs time only, since
both sides poll the row too. Numbers hold for one session, because a killed server may give some out again:
both sides use their listening connection and forget the numbers when it is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import msgspec

from pinstripe.store.ddl import like, qualified, quote
from pinstripe.store.platforms.sweep import wake
from pinstripe.store.pool import Connection, translated
from pinstripe.store.session import account_of, schema_of

APPLIED = "pinstripe"
"""NOTIFY channel of applied events; the payload is `schema as_of`."""


async def notify_applied(connection: Connection, schema: str, as_of: float) -> None:
    """Notify the gateways, when the transaction commits, that events up to `as_of` are applied."""
    await connection.execute("SELECT pg_notify($1, $2)", APPLIED, f"{schema} {as_of:.3f}")


async def add_applied(
    connection: Connection, schema: str, events: Sequence[tuple[str, int, str]]
) -> None:
    """Note (id, created, request id) of applied events."""
    await connection.execute(
        "INSERT INTO pinstripe.applied_event (schema, id, created, request_id)"
        " SELECT $1, u.id, to_timestamp(u.created), nullif(u.request, '')"
        " FROM unnest($2::text[], $3::float8[], $4::text[]) AS u (id, created, request)"
        " ON CONFLICT DO NOTHING",
        schema,
        [e[0] for e in events],
        [float(e[1]) for e in events],
        [e[2] for e in events],
    )


async def load_applied(connection: Connection, schema: str, since: float) -> dict[str, int]:
    """Return id -> second of the applied events created since then."""
    rows = await connection.fetch(
        "SELECT id, extract(epoch FROM created)::bigint FROM pinstripe.applied_event"
        " WHERE schema = $1 AND created >= $2",
        schema,
        datetime.fromtimestamp(since, UTC),
    )
    return {row[0]: row[1] for row in rows}


async def which_applied(
    connection: Connection, schema: str, column: Literal["id", "request_id"], values: Sequence[str]
) -> set[str]:
    """Return those of the event ids, or request ids, of which an event is applied."""
    rows = await connection.fetch(
        f"SELECT DISTINCT {quote(column)} FROM pinstripe.applied_event"
        f" WHERE schema = $1 AND {quote(column)} = ANY($2::text[])",
        schema,
        values,
    )
    return {row[0] for row in rows}


async def is_of_old_event(
    connection: Connection, schema: str, request_id: str, *, old_s: float
) -> bool:
    """Return whether an event of the request is from more than `old_s` before what is followed, so that its
    id may be forgotten; of one from before the first copy, its lists have what it did.
    """
    found: bool = await connection.fetchval(
        f"SELECT EXISTS (SELECT FROM {qualified(schema, 'event')} e JOIN pinstripe.cursor c"
        " ON c.schema = $1 AND c.stream = 'events' AND e.created < c.as_of - make_interval(secs => $3)"
        " WHERE e.request_id = $2)",
        schema,
        request_id,
        old_s,
    )
    return found


async def forget_applied(connection: Connection, schema: str, before: float) -> None:
    """Delete applied events older than the look-back window."""
    await connection.execute(
        "DELETE FROM pinstripe.applied_event WHERE schema = $1 AND created < $2",
        schema,
        datetime.fromtimestamp(before, UTC),
    )


class EventLine(msgspec.Struct, frozen=True):
    """An event without its object."""

    id: str
    type: str | None
    created: datetime | None
    object_id: str | None
    object_type: str | None
    request_id: str | None
    """The API request that caused it, if one did."""
    api_version: str | None
    synced_at: datetime
    """When it was written here."""


class EventDetail(msgspec.Struct, frozen=True):
    """An event with its object."""

    event: EventLine
    object: msgspec.Raw | None
    previous_attributes: msgspec.Raw | None
    applied: bool | None
    """Whether its states are in the tables; null for events that are too old to tell."""


@dataclass(frozen=True, slots=True)
class EventFilter:
    """`types` are exact, or end in `*`; `since` and `until` Unix seconds, both inclusive."""

    types: Sequence[str] = ()
    object_id: str = ""
    request_id: str = ""
    since: int | None = None
    until: int | None = None
    after: str = ""
    """The id of the event behind which the page begins."""


_LINE = (
    "e.id, e.type, e.created, e.data_object ->> 'id', e.data_object ->> 'object', e.request_id,"
    " e.api_version, e._synced_at"
)


async def has_events(connection: Connection, schema: str) -> bool:
    """Return whether the event log is copied into this schema."""
    name = qualified(schema, "event")
    return await connection.fetchval("SELECT to_regclass($1)", name) is not None


async def list_events(
    connection: Connection, schema: str, wanted: EventFilter, *, limit: int
) -> list[EventLine]:
    """Newest first."""
    name = qualified(schema, "event")
    rows = await connection.fetch(
        # Every event has a time; saying so lets the partial index be used.
        f"SELECT {_LINE} FROM {name} e WHERE e.created IS NOT NULL"
        " AND ($1::text[] IS NULL OR e.type LIKE ANY($1))"
        " AND ($2 = '' OR e.data_object ->> 'id' = $2)"
        " AND ($3 = '' OR e.request_id = $3)"
        " AND ($4::float8 IS NULL OR e.created >= to_timestamp($4))"
        " AND ($5::float8 IS NULL OR e.created <= to_timestamp($5))"
        f" AND ($6 = '' OR (e.created, e.id) < (SELECT l.created, l.id FROM {name} l WHERE l.id = $6))"
        " ORDER BY e.created DESC, e.id DESC LIMIT $7",
        [_pattern(t) for t in wanted.types] or None,
        wanted.object_id,
        wanted.request_id,
        wanted.since,
        wanted.until,
        wanted.after,
        limit,
    )
    return [EventLine(*row) for row in rows]


async def has_event(connection: Connection, schema: str, event_id: str) -> bool:
    found: bool = await connection.fetchval(
        f"SELECT EXISTS (SELECT FROM {qualified(schema, 'event')} WHERE id = $1)", event_id
    )
    return found


async def load_event(connection: Connection, schema: str, event_id: str) -> EventDetail | None:
    row = await connection.fetchrow(
        f"SELECT {_LINE}, e.data_object::text, e.data_previous_attributes::text,"
        " EXISTS (SELECT FROM pinstripe.applied_event a WHERE a.schema = $2 AND a.id = e.id),"
        " e.created >= (SELECT min(created) FROM pinstripe.applied_event WHERE schema = $2)"
        f" FROM {qualified(schema, 'event')} e WHERE e.id = $1",
        event_id,
        schema,
    )
    if row is None:
        return None
    applied = True if row[10] else (False if row[11] else None)
    return EventDetail(EventLine(*row[:8]), _raw(row[8]), _raw(row[9]), applied)


def _raw(text: str | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text.encode())


def _pattern(kind: str) -> str:
    """As LIKE wants it: only a `*` stands for anything.

    >>> _pattern("invoice.*"), _pattern("payment_intent.created")
    ('invoice.%', 'payment\\\\_intent.created')
    """
    return like(kind).replace("*", "%")


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
    """All requests up to `number` are done: the database holds what Stripe's event list had, and all that
    Stripe had at `as_of` (Unix seconds on its clock; 0.0 until the first copy is complete).
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
  UPDATE pinstripe.bell
  SET heard = $2, as_of = to_timestamp(nullif($3::float8, 0)), heard_at = clock_timestamp()
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
