"""Reads the event log, page after page, and hands on what is new.

Two readings, which may go on at the same time: the top of the log, down to the first event that is known
(`top`), and a whole window of it (`window`). The next page is asked for while the last one is applied. A
long stretch of new events is handed on in large pieces; what came late, between known ones, page by page,
since a window of a busy account is many pages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from pinstripe.catalog.endpoints import Param
from pinstripe.client.pages import Page, last_id, read_page
from pinstripe.client.reply import Reply
from pinstripe.mirror import Truth
from pinstripe.rows.decode import StripeObject
from pinstripe.source.account import FOLLOW, Source
from pinstripe.source.page import PAGE, read_list, spanning, truth_of
from pinstripe.sync.events import EVENTS, ask
from pinstripe.sync.known import Known
from pinstripe.sync.order import created_of

_MOST_EVENTS = 1000
"""Applied in one commit: a burst costs less in large pieces, what is live waits less in small ones."""

_LONGEST_ID = 255
"""An event's id is Stripe's own, of some 30 characters."""

_Over = Callable[[Page, Sequence[StripeObject]], bool]


class Apply(Protocol):
    """Applies events, newest first, that the list showed at `truth`.

    `as_of`: everything that the list showed at this moment on Stripe's clock is applied then; None
    while the reading goes on.
    """

    async def __call__(
        self, events: Sequence[StripeObject], truth: Truth, *, as_of: float | None = None
    ) -> None: ...


class Reader:
    """Reads the log of one account. `known` says what is new."""

    def __init__(self, source: Source, known: Known) -> None:
        self._source = source
        self._known = known

    async def top(self, back_to: float, *, limit: int, apply: Apply) -> bool:
        """Reads down to the first known event, or to a second before which nothing can be new.

        `limit`: how many events the first page has. Gives whether anything was new.
        """
        news = False

        def over(page: Page, events: Sequence[StripeObject]) -> bool:
            nonlocal news
            self._known.shown(page.ids)
            news = news or bool(self._known.fresh(events))
            goes_back = bool(events) and created_of(events[-1]) < back_to
            return goes_back or self._known.is_reached(page.ids)

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
        truth: Truth | None = None
        last: str | None = None
        loose: set[str] = set()
        began: float | None = None

        def asked(after: str | None, limit: int) -> asyncio.Task[Reply]:
            query = [*params, ("limit", str(limit))]
            return asyncio.create_task(ask(self._source, query, after, priority=priority))

        asking = asked(None, first)
        try:
            while True:
                reply = await asking
                began = reply.not_before if began is None else began
                page = read_page(reply, EVENTS)
                # Hardly ever is anything new: only then are the events themselves decoded.
                events = [] if self._has_all(page) else _sensible(read_list(reply, EVENTS).objects)
                after = last_id(page.ids)
                # A list that goes on from where it began would never end.
                is_last = over(page, events) or not page.has_more or after in (None, last)
                last = after
                if not is_last:
                    asking = asked(after, PAGE)
                loose |= self._known.loose(page.ids)
                truth = spanning(truth if gathered else None, truth_of(reply))
                gathered += self._known.fresh(events)
                is_ripe = len(gathered) >= _MOST_EVENTS or self._known.is_reached(page.ids)
                if is_last or (gathered and is_ripe):
                    await apply(gathered, truth, as_of=began if is_last else None)
                    loose |= self._known.loose(str(event.get("id")) for event in gathered)
                    gathered = []
                if is_last:
                    self._known.fasten(loose)
                    return
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    def _has_all(self, page: Page) -> bool:
        return self._known.has_all(key for key in page.ids if key is not None)


def _sensible(events: Sequence[StripeObject]) -> list[StripeObject]:
    """Without entries that have no id: they cannot be told from those that are applied."""
    return [e for e in events if isinstance(e.get("id"), str) and len(str(e["id"])) <= _LONGEST_ID]
