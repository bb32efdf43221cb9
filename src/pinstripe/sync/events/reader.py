"""Reads the event log, page after page, and hands on what is new.

Two readings, which may go on at the same time: the top of the log, down to the first event that is known
(`top`), and a whole window of it (`window`). The next page is asked for while the last one is applied. A
long stretch of new events is handed on in large pieces; what came late, between known ones, page by page,
since a window of a busy account is many pages.

Which events are applied, and which of them say that everything below them is applied too.

Two read the log at the same time: the poll reads its top down to the first event that it knows, sweeps
read whole windows. Both apply long stretches in pieces, newest first. What is applied of a stretch that is
not read to its end is *loose*: whoever meets it must not stop there. If that reading fails halfway, its
events stay loose, and the next poll goes on below them.

The event log of an account: where it is, how far it reaches back, one page of it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from pinstripe.catalog.endpoints import Param
from pinstripe.client.decode import StripeObject
from pinstripe.client.pagination import PAGE, PageIds, read_ids, read_list
from pinstripe.client.response import Response
from pinstripe.rows.as_of import AsOf, as_of_response
from pinstripe.rows.event import created_of
from pinstripe.source.source import FOLLOW, Source
from pinstripe.store.cursors import Checkpoint

_MOST_EVENTS = 1000
"""Applied in one commit: a burst costs less in large pieces, what is live waits less in small ones."""

_LONGEST_ID = 255
"""An event's id is Stripe's own, of some 30 characters."""

_Over = Callable[[PageIds, Sequence[StripeObject]], bool]


class Apply(Protocol):
    """Applies events, newest first, that the list showed at `truth`.

    `as_of`: everything that the list showed at this moment on Stripe's clock is applied then; None
    while the reading goes on.
    """

    async def __call__(
        self, events: Sequence[StripeObject], truth: AsOf, *, as_of: float | None = None
    ) -> None: ...


class EventLogReader:
    """Reads the log of one account. `known` says what is new."""

    def __init__(self, source: Source, known: AppliedEvents) -> None:
        self._source = source
        self._applied = known

    async def top(self, back_to: float, *, limit: int, apply: Apply) -> bool:
        """Reads down to the first known event, or to a second before which nothing can be new.

        `limit`: how many events the first page has. Gives whether anything was new.
        """
        news = False

        def over(page: PageIds, events: Sequence[StripeObject]) -> bool:
            nonlocal news
            self._applied.touch(page.ids)
            news = news or bool(self._applied.fresh(events))
            goes_back = bool(events) and created_of(events[-1]) < back_to
            return goes_back or self._applied.is_reached(page.ids)

        await self._read((), over, apply, first=limit)
        return news

    async def window(self, since: float, *, priority: int, apply: Apply) -> None:
        """Reads everything since a second on Stripe's clock."""
        window = [("created[gte]", str(int(since)))]
        await self._read(window, lambda *_: False, apply, priority=priority)

    async def _read(
        self,
        params: Sequence[Param],
        over: _Over,
        apply: Apply,
        *,
        first: int = PAGE,
        priority: int = FOLLOW,
    ) -> None:
        """`first`: how many events the first page has."""
        gathered: list[StripeObject] = []
        truth: AsOf | None = None
        last: str | None = None
        loose: set[str] = set()
        began: float | None = None

        def asked(after: str | None, limit: int) -> asyncio.Task[Response]:
            query = [*params, ("limit", str(limit))]
            return asyncio.create_task(list_events(self._source, query, after, priority=priority))

        asking = asked(None, first)
        try:
            while True:
                response = await asking
                began = response.not_before if began is None else began
                page = read_ids(response, EVENTS)
                # Hardly ever is anything new: only then are the events themselves decoded.
                events = (
                    [] if self._has_all(page) else _sensible(read_list(response, EVENTS).objects)
                )
                # A list that goes on from where it began would never end.
                is_last = over(page, events) or not page.has_more or page.after in (None, last)
                last = page.after
                if not is_last:
                    asking = asked(last, PAGE)
                loose |= self._applied.unanchored(page.ids)
                page_as_of = as_of_response(response)
                truth = truth.union(page_as_of) if truth and gathered else page_as_of
                gathered += self._applied.fresh(events)
                is_ripe = len(gathered) >= _MOST_EVENTS or self._applied.is_reached(page.ids)
                if is_last or (gathered and is_ripe):
                    await apply(gathered, truth, as_of=began if is_last else None)
                    loose |= self._applied.unanchored(str(event.get("id")) for event in gathered)
                    gathered = []
                if is_last:
                    self._applied.anchor(loose)
                    return
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    def _has_all(self, page: PageIds) -> bool:
        return self._applied.has_all(key for key in page.ids if key is not None)


def _sensible(events: Sequence[StripeObject]) -> list[StripeObject]:
    """Without entries that have no id: they cannot be told from those that are applied."""
    return [e for e in events if isinstance(e.get("id"), str) and len(str(e["id"])) <= _LONGEST_ID]


_MOST_SHOWN = 500
"""Five whole pages: the page of a look is larger while the account is busy."""


class AppliedEvents:
    """Events by id, with the second in which they were created."""

    def __init__(self) -> None:
        self._created: dict[str, int] = {}
        self._unanchored: set[str] = set()
        self._shown: OrderedDict[str, None] = OrderedDict()

    def load(self, created: Mapping[str, int]) -> None:
        """Begins anew with what an earlier run applied. All of it is loose: nobody knows how it ended."""
        self._created = dict(created)
        self._unanchored = set(created)

    def has_all(self, keys: Iterable[str | None]) -> bool:
        """Whether nothing is new."""
        return all(key in self._created for key in keys)

    def is_reached(self, keys: Iterable[str | None]) -> bool:
        """Whether one of these is known, and with it everything below."""
        return any(key in self._created and key not in self._unanchored for key in keys)

    def unanchored(self, keys: Iterable[str | None]) -> set[str]:
        """Those that are loose."""
        return self._unanchored.intersection(key for key in keys if key is not None)

    def fresh(self, events: Sequence[StripeObject]) -> list[StripeObject]:
        """Those that are not applied yet."""
        return [event for event in events if event.get("id") not in self._created]

    def add(self, created: Mapping[str, int], *, loose: bool) -> None:
        """These are applied. `loose`: the reading that they are of goes on below them."""
        self._created.update(created)
        if loose:
            self._unanchored.update(created)

    def touch(self, keys: Iterable[str | None]) -> None:
        """The top of the log shows these. Of a quiet account they are days old, and stay there: they are
        remembered, lest they be taken for new again. (No look at their seconds says that they are old
        news: what test clocks make may be of any second.)
        """
        for key in keys:
            if key is not None:
                self._shown[key] = None
                self._shown.move_to_end(key)
        while len(self._shown) > _MOST_SHOWN:
            self._shown.popitem(last=False)

    def anchor(self, keys: Collection[str]) -> None:
        """The reading that showed these has come to its end: nothing below them is missing."""
        self._unanchored.difference_update(keys)

    def forget(self, before: float) -> None:
        """Drops what was created before, unless the top of the log has shown it lately."""
        self._created = {
            key: at for key, at in self._created.items() if at >= before or key in self._shown
        }
        self._unanchored &= self._created.keys()


EVENTS = "/v1/events"

RETENTION_S = 30 * 86400
"""Stripe keeps events for 30 days (https://docs.stripe.com/api/events)."""

FOLLOWED = "events"
"""The stream whose `as_of` says up to when all events are applied."""


def followed(until: float) -> Checkpoint:
    """The cursor that says: all events up to this second on Stripe's clock are applied."""
    return Checkpoint(FOLLOWED, "running", position={"table": "event"}, as_of=float(until))


async def list_events(
    source: Source, params: Sequence[Param], after: str | None, *, priority: int = FOLLOW
) -> Response:
    """One page of the event log, `after` the event with that id."""
    asked = list(params) if after is None else [*params, ("starting_after", after)]
    response = await source.stripe.get(EVENTS, asked, endpoint=f"GET {EVENTS}", priority=priority)
    source.observe_clock(response)
    return response
