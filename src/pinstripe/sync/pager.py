"""Pages one list: makes the request of a claim, writes the page, and keeps the pages in order.

A page is free to be followed by the next as soon as it is decoded, before it is durable; but within a
range pages are handed to the mirror strictly one after the other, since a cursor vouches for all
before it. An answer of Stripe's that refuses the list ends it. Trouble is none: the same page is requested
again after growing pauses, and a list that meets it again and again ends as failed, alone and visibly,
where it stands; `Relist` goes on from there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from pinstripe.catalog.endpoints import ListEndpoint
from pinstripe.errors import LostLease, NotFound, PinstripeError, Unwritable, WrongKey
from pinstripe.mirror import Truth
from pinstripe.rows.extract import Found
from pinstripe.source.account import BACKFILL, Source
from pinstripe.source.page import read_list, truth_of
from pinstripe.sync.listing import Claim, Listing, Step
from pinstripe.sync.ranges import Range

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)
_PAUSES_S = (1.0, 2.0, 5.0)
"""After trouble, on top of the client's own tries."""
_MOST_FOLLOWING = 3
"""Pages whose nested lists are being read: enough to keep that endpoint busy; more would only take the
places of other lists' requests."""


class Pager:
    """Work on one `Listing`, for the dispatcher."""

    def __init__(
        self,
        listing: Listing,
        source: Source,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.listing = listing
        self._source = source
        self._clock = clock
        self._submitted: dict[int, asyncio.Future[None]] = {}
        self.feeds = False
        """Whether lists under parents wait for what this one lists."""
        self._following = 0
        self._nests = False
        self._troubles = 0
        self._not_before = float("-inf")
        self._changed: Callable[[], None] = lambda: None

    @property
    def endpoint(self) -> ListEndpoint:
        return self.listing.endpoint

    @property
    def in_flight(self) -> int:
        return self.listing.in_flight

    @property
    def finished(self) -> bool:
        return self.listing.finished

    @property
    def failed(self) -> bool:
        return self.listing.state == "failed"

    @property
    def urgent(self) -> bool:
        return self.feeds or self._nests or not self.endpoint.created

    def _priority(self) -> int:
        """A list that can only be read page after page must never wait for its turn as well."""
        if not self.endpoint.created:
            return BACKFILL - 2
        return BACKFILL - 1 if self.urgent else BACKFILL

    def remaining(self) -> float:
        return self.listing.remaining()

    def tell(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def claim(self, *, cut: bool) -> Callable[[], asyncio.Task[None]] | None:
        """Starts the next request when called; None if there is nothing to ask now."""
        if self._following >= _MOST_FOLLOWING or self._clock() < self._not_before:
            return None
        claim = self.listing.claim(cut=cut)
        if claim is None:
            return None
        return lambda: asyncio.create_task(self._run(claim))

    async def _run(self, claim: Claim) -> None:
        listing, started = self.listing, self._clock()
        try:
            await self._page(claim)
        except (WrongKey, Unwritable, LostLease):
            # Not this list's trouble: nothing else can go on either.
            listing.state = "failed"
            raise
        except asyncio.CancelledError:
            if listing.state == "running":
                raise
            # An earlier page of this range failed and has said so; this one cannot count any more.
        except PinstripeError as error:
            if error.is_answer:
                self._refused(claim, error)
            else:
                self._troubled(claim, error)
        finally:
            listing.seconds += self._clock() - started

    def _troubled(self, claim: Claim, error: PinstripeError) -> None:
        """The page is requested again after a pause, unless it had come and could not be written."""
        listing, now = self.listing, self._clock()
        is_paused = now < self._not_before  # By another of the requests under way.
        if not claim.is_received and (is_paused or self._troubles < len(_PAUSES_S)):
            if not is_paused:
                self._not_before = now + _PAUSES_S[self._troubles]
                self._troubles += 1
            _log.info("backfill.trouble", stream=listing.endpoint.stream, error=error.message)
            return
        _log.warning("backfill.failed", stream=listing.endpoint.stream, error=error.message)
        listing.refuse(error, "failed")

    def _refused(self, claim: Claim, error: PinstripeError) -> None:
        listing = self.listing
        if any(name == "expand[]" for name, _ in claim.params):
            # The list itself may be readable, only not what it was asked to expand. Several requests
            # may be told so: the first one changes what is asked, all are asked again.
            if listing.expand:
                listing.note = f"Without {', '.join(listing.expand)}: {error.message}"
                listing.expand = ()
            return
        listing.refuse(error, "refused")

    async def _page(self, claim: Claim) -> None:
        listing, wanted = self.listing, claim.range
        try:
            found, truth, step = await self._receive(claim)
        except NotFound as error:
            if error.param != "starting_after" or wanted.after is None:
                raise
            listing.restart(wanted)
            return
        finally:
            wanted.busy = False
            listing.in_flight -= 1
            self._changed()
        self._troubles, claim.is_received = 0, True
        await self._write(wanted, found, truth, step)

    async def _receive(self, claim: Claim) -> tuple[Found, Truth, Step]:
        """Asks for a page and makes rows of it: its bytes and objects are not kept while rows wait."""
        listing = self.listing
        listing.requests += 1
        reply = await self._source.stripe.get(
            claim.path,
            claim.params,
            endpoint=listing.endpoint.name,
            priority=self._priority(),
        )
        page = read_list(reply, claim.path)
        found = self._source.extract(page.objects, {})
        step = listing.received(claim.range, page.objects, has_more=page.has_more, after=page.after)
        listing.undurable += 1
        return found, truth_of(reply), step

    async def _write(self, wanted: Range, found: Found, truth: Truth, step: Step) -> None:
        """Hands a page to the mirror after the one before it, and waits until it is durable."""
        listing = self.listing
        before = self._submitted.get(wanted.number)
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._submitted[wanted.number] = mine
        try:
            # What a nested list holds must be there before a cursor vouches for this page.
            listing.requests += await self._follow(found)
            if before is not None:
                await before
            # Room is taken last: whoever is stopped while waiting must not hold any.
            await self._source.mirror.room(found)
            durable = self._source.mirror.submit(
                found,
                truth,
                lane=listing.endpoint.stream,
                progress=listing,
                step=step,
            )
            mine.set_result(None)
            await durable
        except BaseException:
            mine.cancel()
            raise
        finally:
            listing.undurable -= 1
            if step.done and self._submitted.get(wanted.number) is mine:
                del self._submitted[wanted.number]

    async def _follow(self, found: Found) -> int:
        if not found.lists:
            return 0
        self._nests = True
        self._following += 1
        try:
            return await self._source.follow_all(found)
        finally:
            self._following -= 1
