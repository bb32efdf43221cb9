"""Server-sent events: the change feed, and the status of syncs.

A browser's EventSource and `curl -N` read them. A client that reconnects sends its position
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
from pinstripe.gateway.api.events import LAST_POSITION, Id, Position
from pinstripe.gateway.api.syncs import find_sync
from pinstripe.gateway.deps import Gateway
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.gateway.live.status_board import SyncStatus
from pinstripe.store.changes import ChangeFilter

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
    return StreamingResponse(_counted(gateway, entries), media_type=MEDIA, headers=_HEADERS)


async def _counted(gateway: Gateway, entries: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    gateway.meters.streams += 1
    try:
        async for entry in entries:
            yield entry
            if gateway.closing:
                return
    except PinstripeError:
        # The client reconnects with its position; the status is already sent.
        return
    finally:
        gateway.meters.streams -= 1


async def _board(gateway: Gateway, sync_id: str | None) -> AsyncIterator[bytes]:
    yield _AGAIN
    async with aclosing(gateway.board.watch()) as looks:
        async for _ in looks:
            frame = gateway.board.encoded(sync_id)
            if frame is None:
                return
            yield b"event: live\ndata: %b\n\n" % frame


async def _changes(
    gateway: Gateway, schema: str, after: int, wanted: ChangeFilter
) -> AsyncIterator[bytes]:
    yield _AGAIN + b"event: position\nid: %d\ndata: %d\n\n" % (after, after)
    async with aclosing(gateway.feed.follow(schema, after=after, wanted=wanted)) as entries:
        async for entry in entries:
            if entry is None:
                yield _ALIVE
            else:
                yield b"id: %d\nevent: change\ndata: %b\n\n" % (entry.change.position, entry.json)
