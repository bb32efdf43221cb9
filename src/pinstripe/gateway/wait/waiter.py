"""Waits until the database holds what it should: four ways, each with its own promise.

    plain     a look at Stripe's event list that began after the call and the settling time is applied
    request   an event of the request is applied, and so is a look that began the settling time later
    event     this event is applied
    object    the object was fetched after the call, and is written

Each also waits for what the events so far made us ask of Stripe (a page further, another API version,
two states that only Stripe can tell apart): without those answers a row could still be old. Trouble with
Postgres is waited out; who has no more time puts a limit around it.

What Stripe says of one event: when it was made, and which object it speaks of.

Fetches an object now and writes it; callers of the same moment share one GET.

Who comes while a GET is under way gets the next one: the answer he is given began after he came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, repeat
from typing import TypeVar

from pinstripe.catalog.tables import table_of_object
from pinstripe.client.client import quote_id
from pinstripe.client.pagination import read_object
from pinstripe.concurrency import Coalescer
from pinstripe.errors import Misconfigured, NotFound, PinstripeError, Unreachable
from pinstripe.gateway.syncs import OpenSync
from pinstripe.gateway.wait.progress import WaitProgress
from pinstripe.gateway.wait.sync_requester import SyncRequester
from pinstripe.source.resolve import refetch_row
from pinstripe.source.source import LIVE, retrieve_endpoint
from pinstripe.store.refetch import PendingCount

_T = TypeVar("_T")

_PAUSES_S = (0.02, 0.03, 0.05, 0.1, 0.2, 0.25)
"""Between two looks at what is still to be asked of Stripe."""

_RINGS_S = (0.0, 0.1, 0.2, 0.5, 1.0)
"""Before a ring for what Stripe's list does not show yet: the first, the second, ..."""

_RETRY_S = 0.25

_FORGOTTEN_S = 120.0
"""An event this old that no look shows as new was applied long ago, and is not remembered."""


@dataclass(slots=True)
class WaitState:
    """What one caller waits for now, for whoever is told that the time is over.

    `what`: "poll", "pending", "request", "event" or "object"; "" when it is done.
    """

    what: str
    id: str = ""
    previews: bool = True
    """Whether previews of upcoming invoices count among what was asked of Stripe."""
    pending: list[PendingCount] = field(default_factory=list)
    error: str = ""
    """What was in the way when it was last tried."""


class Waiter:
    """The waits of one gateway."""

    def __init__(
        self, requester: SyncRequester, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._requester = requester
        self._sleep = sleep
        self._reads: dict[str, tuple[OpenSync, WaitProgress]] = {}
        self._fetching = ObjectFetches()

    async def request_applied(self, sync: OpenSync, request_id: str, timeout_s: float) -> bool:
        """Whether the events of a request were applied in time; for the proxy, without previews."""
        waiting = WaitState("request", request_id, previews=False)
        try:
            async with asyncio.timeout(timeout_s):
                await self.request(sync, waiting, settle_s=0.0)
        except (TimeoutError, PinstripeError):
            return False
        return True

    async def plain(self, sync: OpenSync, waiting: WaitState, *, settle_s: float) -> None:
        """Returns when all that Stripe had when the call came is in the database, as far as its event
        list shows it within the settling time.
        """
        await self._sleep(settle_s)
        await self._look(sync, waiting, settle_s)
        await self._work_off(sync, waiting)

    async def request(self, sync: OpenSync, waiting: WaitState, *, settle_s: float) -> None:
        """Returns when the events of a request are applied, as far as they show up within the settling
        time after the first of them.
        """
        reads = self.reads(sync)
        key = waiting.id
        await self._seen(sync, waiting, lambda: reads.has_request(key), settle_s)
        if settle_s > 0:
            await self.plain(sync, waiting, settle_s=settle_s)
        else:
            await self._work_off(sync, waiting)

    async def event(self, sync: OpenSync, waiting: WaitState, *, settle_s: float) -> None:
        """Returns when an event is applied. Raises NotFound where Stripe does not know it."""
        reads = self.reads(sync)
        key = waiting.id
        if not await self._retry_while_unreachable(waiting, lambda: reads.has_event(key)):
            carried = await self._retry_while_unreachable(waiting, lambda: fetch_event(sync, key))
            if carried.created < sync.source.now() - _FORGOTTEN_S:
                await self._old_event(sync, waiting, carried, settle_s)
            else:
                await self._seen(sync, waiting, lambda: reads.has_event(key), settle_s)
        await self._work_off(sync, waiting)

    async def object(self, sync: OpenSync, waiting: WaitState, table: str) -> None:
        """Returns when the object is in its table as Stripe has it now, or flagged as gone there.

        Raises what `Fetching.fetch` raises.
        """
        key = waiting.id
        await self._retry_while_unreachable(waiting, lambda: self._fetching.fetch(sync, table, key))
        reads = self.reads(sync)
        moment: datetime | None = None
        for pause_s in _forever(_PAUSES_S):
            now, since = await self._retry_while_unreachable(
                waiting, lambda: reads.open_since(table, key)
            )
            moment = moment or now
            if since is None or since > moment:
                break
            await self._sleep(pause_s)
        waiting.what = ""

    def reads(self, sync: OpenSync) -> WaitProgress:
        """The questions to the database of this sync, shared by all who wait."""
        known = self._reads.get(sync.id)
        if known is None or known[0] is not sync:
            known = self._reads[sync.id] = (sync, WaitProgress(sync))
        return known[1]

    async def close(self) -> None:
        """Ends what is being asked for those who waited."""
        await self._fetching.close()
        for _, reads in self._reads.values():
            await reads.close()

    async def _look(self, sync: OpenSync, waiting: WaitState, settle_s: float) -> None:
        waiting.what = "poll"
        await self._retry_while_unreachable(
            waiting, lambda: self._requester.acked(sync, lookback_s=settle_s)
        )

    async def _seen(
        self,
        sync: OpenSync,
        waiting: WaitState,
        is_there: Callable[[], Awaitable[bool]],
        settle_s: float,
    ) -> None:
        """Rings until something is applied: Stripe's list may show it a little late."""
        pauses = _forever(_RINGS_S)
        look: asyncio.Task[None] | None = None
        try:
            while True:
                stirred = self._requester.changed(sync.schema)
                if await self._retry_while_unreachable(waiting, is_there):
                    return
                if look is not None and look.done():
                    look.result()
                if look is None or look.done():
                    look = asyncio.create_task(
                        self._sync_requested(sync, waiting, next(pauses), settle_s)
                    )
                await asyncio.wait((stirred, look), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if look is not None:
                look.cancel()
                await asyncio.gather(look, return_exceptions=True)

    async def _sync_requested(
        self, sync: OpenSync, waiting: WaitState, pause_s: float, settle_s: float
    ) -> None:
        await self._sleep(pause_s)
        await self._retry_while_unreachable(
            waiting, lambda: self._requester.acked(sync, lookback_s=settle_s)
        )

    async def _old_event(
        self, sync: OpenSync, waiting: WaitState, carried: CarriedObject, settle_s: float
    ) -> None:
        """It was applied long ago, or it is very late: the object that it speaks of is fetched."""
        reads = self.reads(sync)
        key = waiting.id
        await self._look(sync, waiting, settle_s)
        waiting.what = "event"
        if carried.table and not await self._retry_while_unreachable(
            waiting, lambda: reads.has_event(key)
        ):
            with suppress(NotFound):
                await self._retry_while_unreachable(
                    waiting, lambda: self._fetching.fetch(sync, carried.table, carried.key)
                )

    async def _work_off(self, sync: OpenSync, waiting: WaitState) -> None:
        """Returns when what the events so far made us ask of Stripe is answered."""
        waiting.what = "pending"
        reads = self.reads(sync)
        moment: datetime | None = None
        for pause_s in _forever(_PAUSES_S):
            pending = await self._retry_while_unreachable(waiting, reads.pending)
            moment = moment or pending.now
            waiting.pending = pending.before(moment, previews=waiting.previews)
            if not waiting.pending:
                break
            await self._sleep(pause_s)
        waiting.what = ""

    async def _retry_while_unreachable(
        self, waiting: WaitState, work: Callable[[], Awaitable[_T]]
    ) -> _T:
        """Does it again while Postgres or Stripe cannot be reached."""
        while True:
            try:
                done = await work()
            except Unreachable as error:
                waiting.error = error.message
                await self._sleep(_RETRY_S)
            else:
                waiting.error = ""
                return done


def _forever(pauses_s: Sequence[float]) -> Iterator[float]:
    """The pauses one after another, the last again and again."""
    return chain(pauses_s, repeat(pauses_s[-1]))


@dataclass(frozen=True, slots=True)
class CarriedObject:
    """`table` is "" where the object is not synced, or cannot be fetched by its id."""

    created: float
    table: str
    key: str


async def fetch_event(sync: OpenSync, event_id: str) -> CarriedObject:
    """Asks Stripe for an event. Raises NotFound where it does not know it (any more)."""
    path = "/v1/events/{id}"
    response = await sync.source.stripe.get(
        path.replace("{id}", quote_id(event_id)), endpoint=f"GET {path}", priority=LIVE
    )
    event = read_object(response, path)
    created, data = event.get("created"), event.get("data")
    carried = data.get("object") if isinstance(data, dict) else None
    name, key = (
        (carried.get("object"), carried.get("id")) if isinstance(carried, dict) else ("", "")
    )
    table = table_of_object().get(str(name), "")
    is_known = isinstance(key, str) and table in sync.source.wanted
    if not is_known or retrieve_endpoint(table) is None:
        table = ""
    return CarriedObject(float(created) if isinstance(created, int) else 0.0, table, str(key))


_Place = tuple[str, str, str]
"""(id of the sync, table, id of the object)"""


class ObjectFetches:
    """What is being fetched for callers of the gateway."""

    def __init__(self) -> None:
        self._places: dict[_Place, Coalescer[None, None]] = {}

    async def fetch(self, sync: OpenSync, table: str, key: str) -> None:
        """Returns when the object, as Stripe has it after this call, is written; a row of an object
        that is gone there is flagged.

        Raises NotFound where neither Stripe nor the table has it, Misconfigured where Stripe shows no
        object of this type by its id alone.
        """
        place = (sync.id, table, key)
        questions = self._places.get(place)
        if questions is None:

            async def ask(_: Collection[None]) -> Mapping[None, None]:
                await _fetch(sync, table, key)
                return {None: None}

            questions = self._places[place] = Coalescer(ask)
        try:
            await questions.get(None)
        finally:
            if questions.is_idle and self._places.get(place) is questions:
                del self._places[place]

    async def close(self) -> None:
        """Ends what is under way."""
        await asyncio.gather(*(questions.close() for questions in self._places.values()))


async def _fetch(sync: OpenSync, table: str, key: str) -> None:
    version = await sync.source.version(table, key)
    if not await refetch_row(sync.source, table, key, over=version):
        raise Misconfigured(
            f"Stripe shows no {sync.source.wanted[table].object_type} by its id alone.",
            hint="Wait for the request or the event that changed it, or without parameters.",
        )
    if version is None and await sync.source.version(table, key) is None:
        raise NotFound(
            f"Stripe has no {sync.source.wanted[table].object_type} {key!r}, nor has the table.",
            status=404,
            code="resource_missing",
            hint="Does it belong to the account and the mode of this sync?",
        )
