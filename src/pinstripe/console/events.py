"""Events: a live list with filters, and the page of one event with its payload and its effects."""

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
from pinstripe.store.changes import Change, changes_of_event
from pinstripe.store.events import EventFilter, EventLine, has_events, list_events, load_event

_PAGE = 50
_KEPT = 200
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
        assert visit.sync is not None  # noqa: S101 (its route names it)
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
        assert visit.sync is not None  # noqa: S101 (its route names it)
        wanted, _ = _filter(visit)
        return templating.stream(visit.gateway, self._news(visit.gateway, visit.sync.id, wanted))

    async def one(self, visit: PageContext) -> Response:
        """One event."""
        assert visit.sync is not None  # noqa: S101 (its route names it)
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
            table=table_of_object().get(detail.event.object_type or ""),
            differences=_differences(obj, _decoded(detail.previous_attributes)),
            pretty=_pretty(obj),
            changes=[(change, columns_of(change)) for change in changes],
            siblings=[e for e in siblings if e.id != detail.event.id],
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
                    "events_rows.html",
                    events=new,
                    sync_id=sync_id,
                    table_of=table_of_object(),
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
