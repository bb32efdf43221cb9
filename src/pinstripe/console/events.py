"""What happened: the events of Stripe's log, one event with its payload and effects, and the change feed.

The feed shows which rows changed, in which columns, and which event or request caused it. The first page of
each list is updated live.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

import msgspec
from starlette.responses import Response

from pinstripe.catalog.tables import table_of_object
from pinstripe.console import templating
from pinstripe.console.page_context import PageContext
from pinstripe.console.templating import Notice, Pages, path_of
from pinstripe.gateway.deps import Gateway
from pinstripe.store.changes import Change, ChangeFilter, changes_before, changes_of_event
from pinstripe.store.events import EventFilter, EventLine, has_events, list_events, load_event

_PAGE = 50
_KEPT = 200
_LAST = 2**63 - 1
_MOST_FILTERS = 64
_MISSING = "(absent)"


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One changed field of the event. `before` and `after` are JSON."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class _Look:
    """The events of a filter at one refresh of the status board."""

    at: datetime
    lines: list[EventLine]


class Events:
    """The pages below `/syncs/{sync}/events`."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._looks: dict[tuple[str, EventFilter], _Look] = {}

    async def show(self, visit: PageContext) -> Response:
        """Return a page of the list. The first page is updated live."""
        wanted, wrong = _filter(visit)
        async with visit.gateway.reads.connection() as connection:
            if not await has_events(connection, visit.sync.schema):
                return visit.not_found("The event log has not been synced into this schema (yet).")
            found = await list_events(connection, visit.sync.schema, wanted, limit=_PAGE + 1)
        lines = found[:_PAGE]
        query = {n: visit.text(n) for n in ("type", "object", "request", "since") if visit.text(n)}
        more = {**query, "after": lines[-1].id} if len(found) > _PAGE else None
        return visit.page(
            "events.html",
            messages=wrong,
            events=lines,
            query=query,
            live=f"{path_of(visit.sync.id, 'events')}/live?{urlencode(query)}",
            is_first=not wanted.after,
            more=f"?{urlencode(more)}" if more else None,
            table_of=table_of_object(),
        )

    async def live(self, visit: PageContext) -> Response:
        """Stream new events."""
        wanted, _ = _filter(visit)
        return templating.stream(visit.gateway, self._news(visit.gateway, visit.sync.id, wanted))

    async def one(self, visit: PageContext) -> Response:
        schema = visit.sync.schema
        async with visit.gateway.reads.connection() as connection:
            there = await has_events(connection, schema)
            detail = await load_event(connection, schema, visit.named("event")) if there else None
            if detail is None:
                return visit.not_found("This event is not in the database.")
            changes = await changes_of_event(connection, schema, detail.event.id)
            request = detail.event.request_id
            beside = EventFilter(request_id=request or "")
            siblings = await list_events(connection, schema, beside, limit=50) if request else []
        obj = _decoded(detail.object)
        return visit.page(
            "event.html",
            event=detail.event,
            applied=detail.applied,
            differences=_differences(obj, _decoded(detail.previous_attributes)),
            pretty=_pretty(obj),
            changes=[(change, columns_of(change)) for change in changes],
            siblings=[e for e in siblings if e.id != detail.event.id],
            table_of=table_of_object(),
        )

    async def _news(
        self, gateway: Gateway, sync_id: str, wanted: EventFilter
    ) -> AsyncIterator[bytes]:
        known: set[str] | None = None
        async with aclosing(gateway.board.watch()) as looks:
            async for board in looks:
                live = board.get(sync_id)
                if live is None:
                    return
                lines = await self._look(gateway, sync_id, live.schema, live.at, wanted)
                new = [e for e in lines if known is not None and e.id not in known]
                known = {e.id for e in lines} | (
                    known or set() if len(known or ()) < 5000 else set()
                )
                if not new:
                    yield templating.ALIVE
                    continue
                html = self._pages.piece(
                    "events_rows.html", events=new, sync_id=sync_id, table_of=table_of_object()
                )
                yield templating.prepend("events", html, keep=_KEPT)

    async def _look(
        self, gateway: Gateway, sync_id: str, schema: str, at: datetime, wanted: EventFilter
    ) -> list[EventLine]:
        """Read the newest events of a filter, once for all clients with the same page open."""
        place = (sync_id, wanted)
        seen = self._looks.get(place)
        if seen is None or seen.at != at:
            async with gateway.reads.connection(longest_s=3.0) as connection:
                lines = await list_events(connection, schema, wanted, limit=_PAGE)
            if len(self._looks) >= _MOST_FILTERS:
                self._looks.clear()
            seen = self._looks[place] = _Look(at, lines)
        return seen.lines


def _filter(visit: PageContext) -> tuple[EventFilter, list[Notice]]:
    """The filter that the query describes, and what of it cannot be understood."""
    since: int | None = None
    wrong: list[Notice] = []
    if text := visit.text("since"):
        try:
            at = datetime.fromisoformat(text)
            since = int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
        except (ValueError, OverflowError):
            wrong.append(
                Notice(f'"{text}" is not a valid time.', "Use the format 2026-01-31 14:30.", "warn")
            )
    types = tuple(visit.text("type").replace(",", " ").split())
    found = EventFilter(
        types=types[:20],
        object_id=visit.text("object").replace("\0", ""),
        request_id=visit.text("request").replace("\0", ""),
        since=since,
        after=visit.text("after").replace("\0", ""),
    )
    return found, wrong


def _decoded(raw: msgspec.Raw | None) -> dict[str, object]:
    value: object = msgspec.json.decode(raw) if raw is not None else {}
    return value if isinstance(value, dict) else {}


def _pretty(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _differences(obj: dict[str, object], previous: dict[str, object]) -> list[FieldChange]:
    """Return the fields in `previous_attributes` with their old and new values."""
    return [
        FieldChange(name, _short(before), _short(obj[name]) if name in obj else _MISSING)
        for name, before in previous.items()
    ]


def columns_of(change: Change) -> list[FieldChange]:
    """The columns of an entry of the change feed, before and after."""
    columns = msgspec.json.decode(change.changes, type=dict[str, tuple[object, object]])
    return [FieldChange(name, _short(b), _short(a)) for name, (b, a) in columns.items()]


def _short(value: object) -> str:
    text = _pretty(value) if isinstance(value, dict | list) else msgspec.json.encode(value).decode()
    return text if len(text) <= 2000 else text[:2000] + " …"


class Changes:
    """The page `/syncs/{sync}/changes`."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def show(self, visit: PageContext) -> Response:
        """Return a page of the feed, newest first. The first page is updated live."""
        wanted = _wanted(visit)
        before = visit.text("before")
        position = min(int(before), _LAST) if before.isdecimal() and before.isascii() else _LAST
        async with visit.gateway.reads.connection() as connection:
            found = await changes_before(
                connection, visit.sync.schema, position, wanted=wanted, limit=_PAGE + 1
            )
        shown = found[:_PAGE]
        query = {n: visit.text(n) for n in ("table", "id") if visit.text(n)}
        more = {**query, "before": str(shown[-1].position)} if len(found) > _PAGE else None
        return visit.page(
            "changes.html",
            changes=[(change, columns_of(change)) for change in shown],
            query=query,
            live=f"{path_of(visit.sync.id, 'changes')}/live?{urlencode(query)}",
            is_first=not before,
            more=f"?{urlencode(more)}" if more else None,
        )

    async def live(self, visit: PageContext) -> Response:
        """Stream new changes."""
        pieces = self._news(visit.gateway, visit.sync.id, visit.sync.schema, _wanted(visit))
        return templating.stream(visit.gateway, pieces)

    async def _news(
        self, gateway: Gateway, sync_id: str, schema: str, wanted: ChangeFilter
    ) -> AsyncIterator[bytes]:
        async with aclosing(gateway.feed.follow(schema, after=None, wanted=wanted)) as entries:
            async for entry in entries:
                if entry is None:
                    yield templating.ALIVE
                    continue
                html = self._pages.piece(
                    "changes_rows.html",
                    changes=[(entry.change, columns_of(entry.change))],
                    sync_id=sync_id,
                )
                yield templating.prepend("changes", html, keep=_KEPT)


def _wanted(visit: PageContext) -> ChangeFilter:
    return ChangeFilter(visit.text("table").replace("\0", ""), visit.text("id").replace("\0", ""))
