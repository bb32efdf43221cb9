"""Applies what the event log says happened since a moment: creations, changes, deletions.

Newest first: the first event seen of an object holds its newest state, older ones add nothing. Where two
events of one object share the newest second, the order in the list does not decide alone: the object
is fetched. So is an object whose event was rendered in another API version than ours.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast

import structlog

from pinstripe.catalog.tables import table_of_object
from pinstripe.errors import NotFound, PinstripeError
from pinstripe.mirror import Truth
from pinstripe.rows.decode import StripeObject
from pinstripe.rows.extract import Found
from pinstripe.sync.page import read_list, truth_of
from pinstripe.sync.ranges import PAGE
from pinstripe.sync.source import LIVE, Source

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

EVENTS = "/v1/events"
RETENTION_S = 30 * 86400
"""Stripe keeps events for 30 days (https://docs.stripe.com/api/events)."""
_FETCHERS = 8


@dataclass(slots=True)
class Applied:
    """`newest` is the `created` of the newest event seen, Unix seconds."""

    events: int = 0
    objects: int = 0
    fetched: int = 0
    newest: int = 0
    _seen: dict[tuple[str, str], int] = field(default_factory=dict)
    _fetch: dict[tuple[str, str], str] = field(default_factory=dict)


class Events:
    """Reads the event log of one account."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._table_of = table_of_object()

    async def newest(self) -> int | None:
        """`created` of the newest event; None if there is none."""
        reply = await self._source.stripe.get(
            EVENTS, [("limit", "1")], endpoint=f"GET {EVENTS}", priority=LIVE
        )
        page = read_list(reply, EVENTS)
        created = page.objects[0].get("created") if page.objects else None
        return created if isinstance(created, int) else None

    async def apply_since(self, since: int) -> Applied:
        """Applies all events with `created >= since`, to the end of the list."""
        done = Applied()
        after: str | None = None
        while True:
            params = [("created[gte]", str(since)), ("limit", str(PAGE))]
            if after is not None:
                params.append(("starting_after", after))
            reply = await self._source.stripe.get(
                EVENTS, params, endpoint=f"GET {EVENTS}", priority=LIVE
            )
            page = read_list(reply, EVENTS)
            await self._page(page.objects, truth_of(reply), done)
            if not page.has_more or page.after is None or page.after == after:
                break
            after = page.after
        await self._fetch_all(done)
        return done

    async def _page(self, events: list[StripeObject], truth: Truth, done: Applied) -> None:
        whole = Found()
        for event in events:
            self._source.mirror.extractor.object(event, whole)
        await self._source.mirror.put(whole, truth)
        for event in events:
            await self._event(event, done)

    async def _event(self, event: StripeObject, done: Applied) -> None:
        done.events += 1
        created = event.get("created")
        data = event.get("data")
        obj = data.get("object") if isinstance(data, dict) else None
        if not isinstance(created, int) or not isinstance(obj, dict):
            return
        done.newest = max(done.newest, created)
        obj = cast("StripeObject", obj)
        table = self._table_of.get(str(obj.get("object")))
        key = obj.get("id")
        if table is None or not isinstance(key, str) or table not in self._source.wanted:
            return
        place = (table, key)
        if place in done._seen:
            if done._seen[place] == created:
                done._fetch.setdefault(place, _parent_of(obj))
            return
        done._seen[place] = created
        if event.get("api_version") != self._source.mirror.api_version:
            done._fetch[place] = _parent_of(obj)
            return
        if str(event.get("type")).endswith(".deleted") and _is_deletable(self._source, table):
            obj = {**obj, "deleted": True}
        found = Found()
        self._source.mirror.extractor.object(obj, found)
        done.objects += 1
        await self._source.follow_all(found, priority=LIVE)
        await self._source.mirror.put(found, Truth(float(created), created + 1.0))

    async def _fetch_all(self, done: Applied) -> None:
        queue = iter(list(done._fetch.items()))

        async def worker() -> None:
            for (table, key), parent in queue:
                await self._fetch(table, key, parent, done)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(_FETCHERS, len(done._fetch))):
                group.create_task(worker())

    async def _fetch(self, table: str, key: str, parent: str, done: Applied) -> None:
        try:
            version = await self._source.version(table, key)
            await self._source.fetch(table, key, parent=parent, over=version)
            done.fetched += 1
        except NotFound:
            await bury(self._source, table, key, over=version)
        except PinstripeError as error:
            _log.warning("events.unfetched", table=table, id=key, error=error.message)


async def bury(source: Source, table: str, key: str, *, over: datetime | None) -> None:
    """Stripe does not have the object any more: its row is flagged.

    `over` is the version of the row that was seen before Stripe was asked.
    """
    if over is None or not _is_deletable(source, table):
        return
    found = Found()
    object_type = source.wanted[table].object_type
    source.mirror.extractor.object({"id": key, "object": object_type, "deleted": True}, found)
    now = source.now()
    await source.mirror.put(found, Truth(now - 1.0, now), over={(table, key): over})


def _is_deletable(source: Source, table: str) -> bool:
    return any(c.read == "deleted" for c in source.wanted[table].columns)


def _parent_of(obj: StripeObject) -> str:
    """The id of the object under which this one is retrieved, if it names it."""
    for name in ("account", "customer", "fee", "transfer"):
        value = obj.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, dict) and isinstance(value.get("id"), str):
            return str(value["id"])
    return ""
