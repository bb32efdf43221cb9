"""The API's events and changes: in pages, and as server-sent events beside the status of syncs.

Events come newest first, as Stripe lists them. Changes have positions: behind one (`after`) oldest first,
for programs that work them off; before one, or without either, newest first, for people.

A browser's EventSource and `curl -N` read the streams. A client that reconnects sends its position
(`Last-Event-ID`, automatic in browsers) and misses nothing. Comments keep the connection alive. A client
that does not read costs no memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.responses import Response, StreamingResponse

from pinstripe.errors import PinstripeError
from pinstripe.gateway.api.endpoint import Call
from pinstripe.gateway.api.syncs import find_sync
from pinstripe.gateway.deps import Gateway
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.gateway.live.status_board import SyncStatus
from pinstripe.gateway.syncs import StoredSync
from pinstripe.store.changes import Change, ChangeFilter, changes_after, changes_before
from pinstripe.store.events import (
    EventDetail,
    EventFilter,
    EventLine,
    has_event,
    has_events,
    list_events,
    load_event,
)
from pinstripe.store.pool import Connection

MOST = 500
LAST_POSITION = 2**63 - 1
_LAST_SECOND = 253402300799
"""The end of the year 9999, which is where times in JSON end."""

Limit = Annotated[int, Meta(ge=1, le=MOST)]
Id = Annotated[str, Meta(max_length=255)]
Second = Annotated[int, Meta(ge=0, le=_LAST_SECOND)]
Position = Annotated[int, Meta(ge=0, le=LAST_POSITION)]


class EventsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which events."""

    type: Annotated[tuple[Id, ...], Meta(max_length=20)] = ()
    """A type, or its beginning and a *: `invoice.*`. May be given repeatedly."""
    object: Id = ""
    """Only events about the object with this id."""
    request: Id = ""
    """Only events that this API request caused."""
    since: Second | None = None
    """Only events created at this second (Unix time) or later."""
    until: Second | None = None
    starting_after: Id = ""
    """The id of the last event of the page before."""
    limit: Limit = 50


class EventPage(msgspec.Struct, frozen=True):
    """Events, newest first."""

    events: list[EventLine]
    has_more: bool


class ChangesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which changes. `after` and `before` exclude each other."""

    after: Position | None = None
    """Behind this position, oldest first."""
    before: Position | None = None
    """Before this position, newest first."""
    table: Id = ""
    id: Id = ""
    """Of the row with this key."""
    limit: Limit = 100


class ChangePage(msgspec.Struct, frozen=True):
    """Changes of rows."""

    changes: list[Change]
    has_more: bool
    next: int | None
    """The `after` or `before` of the next page; null where this one is empty."""


async def events(call: Call, query: EventsQuery) -> EventPage:
    """Events that were copied, newest first.

    Pages follow each other by starting_after.
    """
    sync = await find_sync(call)
    wanted = EventFilter(
        types=query.type,
        object_id=query.object,
        request_id=query.request,
        since=query.since,
        until=query.until,
        after=query.starting_after,
    )
    async with call.gateway.reads.connection() as connection:
        await _check_events(connection, sync)
        if wanted.after and not await has_event(connection, sync.schema, wanted.after):
            raise HTTPError(
                400, "bad_request", "starting_after names an event that is not there.", hint=""
            )
        found = await list_events(connection, sync.schema, wanted, limit=query.limit + 1)
    return EventPage(found[: query.limit], len(found) > query.limit)


async def event(call: Call) -> EventDetail:
    """One event: its object, what it says has changed, and whether it has been applied."""
    sync = await find_sync(call)
    async with call.gateway.reads.connection() as connection:
        await _check_events(connection, sync)
        found = await load_event(connection, sync.schema, call.path["event"])
    if found is None:
        raise HTTPError(404, "unknown_event", "There is no such event in the copy.")
    return found


async def changes(call: Call, query: ChangesQuery) -> ChangePage:
    """Changes of rows: what was inserted, updated and deleted, with columns before and after.

    There are some only while the change feed is on (PINSTRIPE_CHANGES).
    """
    sync = await find_sync(call)
    if query.after is not None and query.before is not None:
        raise HTTPError(400, "bad_request", "Give either after or before, not both.")
    wanted = ChangeFilter(query.table, query.id)
    async with call.gateway.reads.connection() as connection:
        if query.after is not None:
            found = await changes_after(
                connection, sync.schema, query.after, wanted=wanted, limit=query.limit + 1
            )
        else:
            before = LAST_POSITION if query.before is None else query.before
            found = await changes_before(
                connection, sync.schema, before, wanted=wanted, limit=query.limit + 1
            )
    page = found[: query.limit]
    return ChangePage(page, len(found) > query.limit, page[-1].position if page else None)


async def _check_events(connection: Connection, sync: StoredSync) -> None:
    if not await has_events(connection, sync.schema):
        raise HTTPError(
            404,
            "no_events",
            f'The event log is not copied into the schema "{sync.schema}".',
            hint="The table event is made by the first sync, unless --tables leaves it out.",
        )


MEDIA = "text/event-stream"
MOST_STREAMS = 500
"""Open streams; beyond it a request gets a 503 with `Retry-After`."""

_HEADERS = {"X-Accel-Buffering": "no"}
"""Reverse proxies must not buffer a stream."""
_AGAIN = b"retry: 2000\n\n"
_ALIVE = b": \n\n"


class LiveBoard(msgspec.Struct, frozen=True):
    """All syncs at one moment."""

    syncs: list[SyncStatus]


class StreamQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which changes, and from where on."""

    after: (
        Annotated[Position, Meta(description="Behind this position; without it: from now on.")]
        | None
    ) = None
    table: Id = ""
    id: Id = ""
    """Of the row with this key."""


async def live(call: Call) -> Response:
    """How all syncs stand, now and again every second.

    Entries are `event: live`, their data a LiveBoard.
    """
    return _stream(call.gateway, _board(call.gateway, None))


async def live_sync(call: Call) -> Response:
    """How one sync stands, now and again every second.

    Entries are `event: live`, their data a SyncStatus. The stream ends when the sync is removed.
    """
    sync = await find_sync(call)
    return _stream(call.gateway, _board(call.gateway, sync.id))


async def change_stream(call: Call, query: StreamQuery) -> Response:
    """Changes of rows as they happen.

    Entries are `event: change` with the position as id and a Change as data. Without `after` or
    Last-Event-ID it begins now, and says where that is (`event: position`).
    """
    sync = await find_sync(call)
    after = _resumed(call.request.headers.get("last-event-id"))
    after = query.after if after is None else after
    newest = await call.gateway.feed.newest(sync.schema)
    if after is not None and after > newest:
        raise HTTPError(
            400, "bad_request", f"There is no position {after} yet: the last one is {newest}."
        )
    wanted = ChangeFilter(query.table, query.id)
    return _stream(
        call.gateway,
        _changes(call.gateway, sync.schema, newest if after is None else after, wanted),
    )


def _resumed(header: str | None) -> int | None:
    if not header:
        return None
    if not (header.isascii() and header.isdigit()) or int(header[:20]) > LAST_POSITION:
        raise HTTPError(400, "bad_request", "Last-Event-ID is no position of the change feed.")
    return int(header)


def _stream(gateway: Gateway, entries: AsyncIterator[bytes]) -> Response:
    if gateway.meters.streams >= MOST_STREAMS:
        raise HTTPError(
            503,
            "too_many_streams",
            f"{MOST_STREAMS} streams are open.",
            hint="Close some, or read pages.",
            headers={"Retry-After": "10"},
        )
    return StreamingResponse(counted(gateway, entries), media_type=MEDIA, headers=_HEADERS)


async def counted(gateway: Gateway, entries: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The entries as a stream that is counted, and ends when the gateway does."""
    gateway.meters.streams += 1
    try:
        yield _AGAIN
        async for entry in entries:
            yield entry
            if gateway.closing:
                return
    except PinstripeError:
        # The client reconnects, with its position if it has one; the status is already sent.
        return
    finally:
        gateway.meters.streams -= 1


async def _board(gateway: Gateway, sync_id: str | None) -> AsyncIterator[bytes]:
    async with aclosing(gateway.board.watch()) as looks:
        async for _ in looks:
            frame = gateway.board.encoded(sync_id)
            if frame is None:
                return
            yield b"event: live\ndata: %b\n\n" % frame


async def _changes(
    gateway: Gateway, schema: str, after: int, wanted: ChangeFilter
) -> AsyncIterator[bytes]:
    yield b"event: position\nid: %d\ndata: %d\n\n" % (after, after)
    async with aclosing(gateway.feed.follow(schema, after=after, wanted=wanted)) as entries:
        async for entry in entries:
            if entry is None:
                yield _ALIVE
            else:
                yield b"id: %d\nevent: change\ndata: %b\n\n" % (entry.change.position, entry.json)
