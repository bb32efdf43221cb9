"""The API's events and changes, in pages.

Events come newest first, as Stripe lists them. Changes have positions: behind one (`after`) oldest first,
for programs that work them off; before one, or without either, newest first, for people.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from pinstripe.gateway.api.endpoint import Call
from pinstripe.gateway.api.syncs import find_sync
from pinstripe.gateway.http.errors import HTTPError
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
