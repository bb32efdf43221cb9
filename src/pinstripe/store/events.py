"""The event log in Postgres: pages of the copied events, newest first, and which of them are applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import msgspec

from pinstripe.store.ddl import like, qualified, quote
from pinstripe.store.pool import Connection

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
    """One event, with its object."""
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
