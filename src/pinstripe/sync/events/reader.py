"""Reads the event log page after page, and tracks which events are applied.

Two reads may run at the same time: a poll reads the top of the log down to the first anchored event, a
lookback reads a whole window (`LookbackWindows`: from where). The next page is requested while the last one
is applied. A long stretch of new events is handed on in large pieces; late events, between applied ones,
page by page.

An event is anchored if it is applied and everything below it is too. Long reads commit in pieces, newest
first, so their events stay unanchored until the read comes to its end. If it fails halfway, the next poll
passes them and fills the gap.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from pinstripe.catalog.endpoints import PAGE, Param
from pinstripe.client.response import (
    AsOf,
    PageIds,
    Response,
    StripeObject,
    as_of_response,
    read_ids,
    read_list,
)
from pinstripe.concurrency import cancel, for_each
from pinstripe.rows.event import EVENTS, created_of, request_of
from pinstripe.source.source import FOLLOW, LIVE, Source

_MOST_EVENTS = 1000
"""Events in one commit: large pieces make a burst cheap, small ones keep the latency of live events low."""
_PARTS = 4
"""Windows of one slice that are read together: a page of a hundred each 50 ms is 2,000 events/s, and Stripe
takes longer."""
_PART_EVENTS = 300
"""Events in one commit of a part: all parts together are in memory."""

_LONGEST_ID = 255
"""Stripe's ids of events have some 30 characters."""

_Over = Callable[[PageIds, Sequence[StripeObject]], bool]


class Apply(Protocol):
    """Applies events, newest first, that the list showed at `listed_at`.

    `as_of`: with them, everything that the list showed at this second is applied; None while the read goes
    on.
    """

    async def __call__(
        self, events: Sequence[StripeObject], listed_at: AsOf, *, as_of: float | None = None
    ) -> None: ...


class EventLogReader:
    """Reads the log of one account. `applied` decides which events are new."""

    def __init__(self, source: Source, known: AppliedEvents) -> None:
        self._source = source
        self._applied = known

    async def top(self, back_to: float, *, limit: int, apply: Apply) -> int:
        """Read down to the first anchored event, or to a second before which nothing can be new.

        `limit`: the number of events on the first page. Returns how many events were new.
        """
        new = 0

        def over(page: PageIds, events: Sequence[StripeObject]) -> bool:
            nonlocal new
            self._applied.touch(page.ids)
            new += len(self._applied.fresh(events))
            goes_back = bool(events) and created_of(events[-1]) < back_to
            return goes_back or self._applied.is_reached(page.ids)

        await self._read((), over, apply, first=limit)
        return new

    async def window(self, since: float, *, priority: int, apply: Apply) -> str | None:
        """Read everything since a second on Stripe's clock; return the id on top of the list.

        Beside polls (`priority` LIVE) it is applied page by page: new events wait for no more than one.
        """
        window = [("created[gte]", str(int(since)))]
        top: list[str | None] = []

        def over(page: PageIds, _: Sequence[StripeObject]) -> bool:
            top.extend(page.ids[:1])
            return False

        most = PAGE if priority == LIVE else _MOST_EVENTS
        await self._read(window, over, apply, most=most, priority=priority)
        return top[0] if top else None

    async def slice(self, since: int, until: int, apply: Apply) -> None:
        """Read what was created in the seconds [since, until), several parts of it at a time.

        The end of the slice is not an end of the read: `apply` gets no `as_of`.
        """

        async def unended(
            events: Sequence[StripeObject], listed_at: AsOf, *, as_of: float | None = None
        ) -> None:
            if events:
                await apply(events, listed_at)

        step = max(-(-(until - since) // _PARTS), 1)

        async def read(first: int) -> None:
            last = min(first + step, until)
            part = [("created[gte]", str(first)), ("created[lt]", str(last))]
            await self._read(part, lambda *_: False, unended, most=_PART_EVENTS)

        await for_each(range(since, until, step), read, limit=_PARTS)

    async def _read(
        self,
        params: Sequence[Param],
        over: _Over,
        apply: Apply,
        *,
        first: int = PAGE,
        most: int = _MOST_EVENTS,
        priority: int = FOLLOW,
    ) -> None:
        """`first`: the number of events on the first page; `most`: about how many are applied together."""
        gathered: list[StripeObject] = []
        listed_at: AsOf | None = None
        passed: set[str] = set()
        began, last, is_below = None, None, False

        def asked(after: str | None, limit: int) -> asyncio.Task[Response]:
            query, source = [*params, ("limit", str(limit))], self._source
            return asyncio.create_task(list_events(source, query, after, priority=priority))

        asking = asked(None, first)
        try:
            while True:
                response = await asking
                began = response.not_before if began is None else began
                page = read_ids(response, EVENTS)
                # Hardly ever is anything new: only then are the events themselves decoded.
                shown = () if self._has_all(page) else read_list(response, EVENTS).objects
                events = _sensible(shown)
                # A list that goes on from where it began would never end.
                is_last = over(page, events) or not page.has_more or page.after in (None, last)
                last = page.after
                if not is_last:
                    asking = asked(last, PAGE)
                passed |= self._applied.unanchored(page.ids)
                page_as_of = as_of_response(response)
                listed_at = listed_at.union(page_as_of) if listed_at and gathered else page_as_of
                gathered += self._applied.fresh(events, is_below=is_below)
                is_below = is_below or self._applied.has_any(page.ids)
                ripe = gathered if is_last else self._ripe(gathered, page, most)
                if is_last or ripe:
                    await apply(ripe, listed_at, as_of=began if is_last else None)
                    passed |= self._applied.unanchored(str(event.get("id")) for event in ripe)
                    gathered = gathered[len(ripe) :]
                if is_last:
                    self._applied.anchor(passed)
                    return
        finally:
            await cancel(asking)

    def _has_all(self, page: PageIds) -> bool:
        return self._applied.has_all(key for key in page.ids if key is not None)

    def _ripe(self, events: list[StripeObject], page: PageIds, most: int) -> list[StripeObject]:
        """The events to apply before the next page, which may have others of the last second: whoever
        waits for a request sees all of them, or none, unless that second has very many.
        """
        if not events or (len(events) < most and not self._applied.is_reached(page.ids)):
            return []
        seconds = list(map(created_of, events))
        last = seconds.index(seconds[-1])
        return events if len(events) - last >= _MOST_EVENTS else events[:last]


def _sensible(events: Sequence[StripeObject]) -> list[StripeObject]:
    """Drop entries without an id: they cannot be told from applied ones."""
    return [e for e in events if isinstance(e.get("id"), str) and len(str(e["id"])) <= _LONGEST_ID]


_MOST_SHOWN = 500
"""Five whole pages: the first page of a poll is larger while the account is busy."""


def applied_lines(events: Iterable[StripeObject]) -> list[tuple[str, int, str]]:
    """Return (id, second, request id) of each, as `store.events.add_applied` takes them."""
    return [(str(e.get("id")), created_of(e), request_of(e)) for e in events]


class AppliedEvents:
    """Events by id, with the second in which they were created."""

    def __init__(self) -> None:
        self._created: dict[str, int] = {}
        self._unanchored: set[str] = set()
        self._shown: OrderedDict[str, None] = OrderedDict()
        self._late: set[str] = set()
        """Those that the list showed behind applied ones, until they are applied themselves."""

    def load(self, created: Mapping[str, int]) -> None:
        """Load what an earlier run applied. All of it is unanchored: that run may have been killed."""
        self._created = dict(created)
        self._unanchored = set(created)

    def has_all(self, keys: Iterable[str | None]) -> bool:
        """Whether nothing is new."""
        return all(key in self._created for key in keys)

    def is_reached(self, keys: Iterable[str | None]) -> bool:
        """Whether one of these is anchored."""
        return any(key in self._created and key not in self._unanchored for key in keys)

    def unanchored(self, keys: Iterable[str | None]) -> set[str]:
        return self._unanchored.intersection(key for key in keys if key is not None)

    def has_any(self, keys: Iterable[str | None]) -> bool:
        """Whether one of these is applied."""
        return any(key in self._created for key in keys)

    def fresh(
        self, events: Sequence[StripeObject], *, is_below: bool = False
    ) -> list[StripeObject]:
        """Return those that are not applied yet. `is_below`: they stand behind some that are."""
        found: list[StripeObject] = []
        for event in events:
            if event.get("id") in self._created:
                is_below = True
                continue
            found.append(event)
            if is_below:
                self._late.add(str(event.get("id")))
        return found

    def late(self, events: Sequence[StripeObject]) -> set[str]:
        """Return the ids of those that the list showed behind applied ones."""
        return self._late.intersection(str(event.get("id")) for event in events)

    def add(self, created: Mapping[str, int], *, unanchored: bool) -> None:
        """Add applied events. `unanchored`: the read that applied them goes on below them."""
        self._created.update(created)
        self._late.difference_update(created)
        if unanchored:
            self._unanchored.update(created)

    def touch(self, keys: Iterable[str | None]) -> None:
        """Remember ids at the top of the log, lest `forget` make them new again.

        On a quiet account they are days old. Their seconds prove nothing: test clocks make events of any
        second.
        """
        for key in keys:
            if key is not None:
                self._shown[key] = None
                self._shown.move_to_end(key)
        while len(self._shown) > _MOST_SHOWN:
            self._shown.popitem(last=False)

    def anchor(self, keys: Collection[str]) -> None:
        """The read of these has come to its end: nothing below them is missing."""
        self._unanchored.difference_update(keys)

    def anchor_all(self) -> None:
        """Nothing is missing below any of these but what came late."""
        self._unanchored.clear()

    def forget(self, before: float) -> None:
        """Drop what was created before, unless it was at the top of the log lately."""
        self._created = {
            key: at for key, at in self._created.items() if at >= before or key in self._shown
        }
        self._unanchored &= self._created.keys()


RETENTION_S = 30 * 86400
"""Stripe keeps events for 30 days (https://docs.stripe.com/api/events)."""
REACH_S = RETENTION_S - 6 * 3600.0
"""The longest absence that is caught up by events. The oldest are read first, so the rest of the 30 days is
for the way there: a start that takes long, and trouble."""

LATE_S = 120
"""An event can appear so long after its `created`, behind newer ones: not measured; Stripe's own sync
engine holds back 60 s. Events that are read twice are dropped by their time, so a wide margin only costs
a page."""


async def list_events(
    source: Source, params: Sequence[Param], after: str | None, *, priority: int = FOLLOW
) -> Response:
    """Fetch one page of the event log, `after` the event with that id."""
    asked = list(params) if after is None else [*params, ("starting_after", after)]
    response = await source.stripe.get(EVENTS, asked, endpoint=f"GET {EVENTS}", priority=priority)
    source.observe_clock(response)
    return response


MARGIN_S = 2.0
"""`created` is cut to the second, and Stripe's clock is known to about one."""


class LookbackWindows:
    """When lookbacks began, on Stripe's clock, by the lateness (seconds) that they cover.

    A read of everything since `began - late_s`, where `began` is when the last such read began, misses no
    event that appears at most `late_s` after its creation. Reads for longer lateness count for shorter ones
    too, so frequent ones read little.

    >>> windows = LookbackWindows(1000.0)
    >>> windows.since(300.0)
    698.0
    >>> windows.note(1060.0, 300.0)
    >>> windows.note(1065.0, 30.0)
    >>> windows.since(300.0), windows.since(0.5)
    (758.0, 1062.5)
    """

    def __init__(self, began: float) -> None:
        """Up to `began` everything has been read, however late."""
        self._began = {float("inf"): began}

    def since(self, late_s: float, newest: float = float("inf"), clock_s: float = 0.0) -> float:
        """Return where the next lookback for this lateness begins. `Date`, by which we know when one began,
        may be `clock_s` ahead of the clock of events, of which the second of the `newest` event tells.
        """
        began = max(when for late, when in self._began.items() if late >= late_s)
        return max(min(began, newest + 1.0), began - clock_s) - late_s - MARGIN_S

    def note(self, began: float, late_s: float) -> None:
        """A read from `since(late_s)` or earlier to the end of the list, which began then."""
        # An older read that covers less lateness is of no more use.
        self._began = {
            late: when for late, when in self._began.items() if late > late_s or when > began
        }
        self._began[late_s] = began
