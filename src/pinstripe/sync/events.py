"""Applies what the event log says happened since a moment: creations, changes, deletions.

Newest first: the first event seen of an object holds its newest state, older ones add nothing. Where two
events of one object share the newest second, the order in the list does not decide alone: the object
is fetched. So is an object whose event was rendered in another API version than ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import structlog

from pinstripe.catalog.endpoints import Param
from pinstripe.catalog.tables import table_of_object
from pinstripe.client.reply import Reply
from pinstripe.errors import NotFound, PinstripeError
from pinstripe.mirror import Truth
from pinstripe.rows.decode import StripeObject
from pinstripe.rows.extract import Found
from pinstripe.source.account import FOLLOW, LIVE, Source, parent_of
from pinstripe.source.page import PAGE, read_list, truth_of
from pinstripe.source.settle import bury
from pinstripe.store.cursors import Checkpoint

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

EVENTS = "/v1/events"
RETENTION_S = 30 * 86400
"""Stripe keeps events for 30 days (https://docs.stripe.com/api/events)."""
FOLLOWED = "events"
"""The stream whose `as_of` says up to when all events are applied."""
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


def followed(until: float) -> Checkpoint:
    """The cursor that says: all events up to this second on Stripe's clock are applied."""
    return Checkpoint(FOLLOWED, "running", position={"table": "event"}, as_of=float(until))


async def ask(
    source: Source, params: Sequence[Param], after: str | None, *, limit: int = PAGE
) -> Reply:
    """One page of the event log, `after` the event with that id."""
    asked = [*params, ("limit", str(limit))]
    if after is not None:
        asked.append(("starting_after", after))
    reply = await source.stripe.get(EVENTS, asked, endpoint=f"GET {EVENTS}", priority=FOLLOW)
    source.heard(reply)
    return reply


class Events:
    """Reads the event log of one account."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._table_of = table_of_object()

    async def apply_since(self, since: int) -> Applied:
        """Applies all events with `created >= since`, to the end of the list."""
        done = Applied()
        after: str | None = None
        while True:
            reply = await ask(self._source, [("created[gte]", str(since))], after)
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
                done._fetch.setdefault(place, parent_of(obj))
            return
        done._seen[place] = created
        if event.get("api_version") != self._source.mirror.api_version:
            done._fetch[place] = parent_of(obj)
            return
        if str(event.get("type")).endswith(".deleted") and self._source.wanted[table].deletable:
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
