"""Waits until the database holds what a call needs, in four ways:

    plain     a poll of the event log that began after the call and the settling time is applied
    request   an event of the request is applied, and so is a poll that began the settling time later
    event     this event is applied
    object    the object was fetched after the call, and is written with those inside of it

Each also waits for the refetches that events so far requested (a list's next page, another API version,
a conflict): without them a row could still be old. All but the plain form wait, too, for those that are
made once more because a replica may have been behind; and those for a request or an event for what keeps
failing of it, or is refused by Postgres. Unreachable is retried; callers set the time limit.
`ObjectFetches` coalesces concurrent fetches of one object into one GET that begins after all of the
calls, and `WaitProgress` concurrent reads into one query: a thousand waiting calls cost what one does.

    SyncRequester: request -> NOTIFY -> worker polls Stripe -> acknowledgement -> NOTIFY -> all waiters

`SyncRequester` has the worker poll now; requests for one sync are at most 20 NOTIFYs a second. A NOTIFY
carries no values, since any user of the database may send one: it triggers a read of the row in
`pinstripe.bell`, which is polled too, so that a lost one costs a second.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, repeat
from typing import Literal, TypeVar

import structlog

from pinstripe.catalog.endpoints import retrieve_endpoint
from pinstripe.catalog.tables import table_of_object
from pinstripe.client.client import quote_id
from pinstripe.client.response import read_object
from pinstripe.concurrency import Coalescer, cancel
from pinstripe.errors import Misconfigured, NotFound, PinstripeError, Unreachable, Unwritable
from pinstripe.gateway.syncs import OpenSync
from pinstripe.rows.event import created_of, payload
from pinstripe.rows.extract import RowKey, key_of
from pinstripe.source.resolve import refetch_row
from pinstripe.source.source import LIVE
from pinstripe.store.events import (
    ACKS,
    APPLIED,
    SyncAck,
    is_of_old_event,
    last_acks,
    load_acked_as_of,
    request_sync,
    which_applied,
)
from pinstripe.store.listener import Listener
from pinstripe.store.refetch import Pending, PendingCount, load_open_since, load_pending

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_T = TypeVar("_T")
_PAUSES_S = (0.02, 0.03, 0.05, 0.1, 0.2, 0.25)
"""Between two reads of the pending refetches."""

_REQUESTS_S = (0.0, 0.1, 0.2, 0.5, 1.0)
"""Before the first, second, ... sync request for what Stripe's list does not have yet."""

_MOST_READ = 1_000
"""Syncs whose reads are kept; a wait under way keeps its own."""
_RETRY_S = 0.25
_COPYING_S = 1.0
"""Between two polls of a plain wait until the first copy is complete."""
_OLD_S = 120.0
"""An older event that no poll finds new was applied long ago, and its id is no longer stored."""

_HUNG_S = 10.0
"""A read of the bookkeeping that takes longer has met a server that is gone without a word."""

_SPACING_S = 0.02
_LAST_SPACING_S = 0.005
"""For the reads at the end of a wait: a longer pause would be most of a wait for an object."""


@dataclass(slots=True)
class WaitState:
    """What one call waits for now, for the report when its time is over.

    `what`: "poll", "pending", "request", "event" or "object"; "" when it is done.
    """

    what: str
    id: str = ""
    previews: bool = True
    """Whether previews of upcoming invoices count as pending."""
    exact: bool = True
    """Whether second requests do, that are made because a replica of Stripe's may have been behind."""
    pending: list[PendingCount] = field(default_factory=list)
    error: str = ""
    """The error of the last try."""


class Waiter:
    """The waits of one gateway."""

    def __init__(
        self,
        requester: SyncRequester,
        *,
        settle_s: float = 0.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.settle_s = settle_s
        """How late events may be, where the call does not say."""
        self._requester = requester
        self._sleep = sleep
        self._reads: dict[str, tuple[OpenSync, WaitProgress]] = {}
        self._fetches = ObjectFetches()

    async def request_applied(self, sync: OpenSync, request_id: str, timeout_s: float) -> bool:
        """Whether the events of a request were applied in time; for the proxy, without previews."""
        state = WaitState("request", request_id, previews=False)
        try:
            async with asyncio.timeout(timeout_s):
                await self.request(sync, state, settle_s=self.settle_s)
        except (TimeoutError, PinstripeError):
            return False
        return True

    async def plain(self, sync: OpenSync, state: WaitState, *, settle_s: float) -> None:
        """Returns when all that Stripe had when the call came is in the database, as far as its event
        list shows it within the settling time.
        """
        await self._sleep(settle_s)
        await self._poll(sync, state, settle_s)
        await self._drain(sync, state)

    async def request(self, sync: OpenSync, state: WaitState, *, settle_s: float) -> None:
        """Returns when the events of a request are applied, as far as they show up within the settling
        time after the first of them.
        """
        reads = self.reads(sync)
        key = state.id
        if await self._retry_while_unreachable(state, lambda: reads.is_old_request(key)):
            state.exact = False  # What it did is older than any doubt, or than the first copy.
        else:
            await self._applied(sync, state, lambda: reads.has_request(key), settle_s)
        if settle_s > 0 or not state.exact:
            await self.plain(sync, state, settle_s=settle_s)
        else:
            await self._drain(sync, state)

    async def event(self, sync: OpenSync, state: WaitState, *, settle_s: float) -> None:
        """Returns when an event is applied. Raises NotFound where Stripe does not know it."""
        reads = self.reads(sync)
        key = state.id
        if not await self._retry_while_unreachable(state, lambda: reads.has_event(key)):
            event_object = await self._asked_twice(sync, state, lambda: fetch_event(sync, key))
            if event_object.created < sync.source.now() - _OLD_S:
                await self._old_event(sync, state, event_object, settle_s)
            else:
                await self._applied(sync, state, lambda: reads.has_event(key), settle_s)
        await self._drain(sync, state)

    async def object(self, sync: OpenSync, state: WaitState, table: str) -> None:
        """Returns when the object is in its table as Stripe has it now, or flagged as gone there.

        Raises what `ObjectFetches.fetch` raises.
        """
        key = state.id
        await self._asked_twice(sync, state, lambda: self._fetches.fetch(sync, table, key))
        reads = self.reads(sync)
        moment: datetime | None = None
        for pause_s in _forever(_PAUSES_S):
            now, since = await self._retry_while_unreachable(
                state, lambda: reads.open_since(table, key)
            )
            moment = moment or now
            if since is None or since > moment:
                break
            await self._sleep(pause_s)
        state.what = ""

    async def as_of(self, sync: OpenSync) -> datetime | None:
        """The moment, on Stripe's clock, up to which the database is known to be true."""
        return await self._retry_while_unreachable(WaitState(""), self.reads(sync).as_of)

    def reads(self, sync: OpenSync) -> WaitProgress:
        """The coalesced reads of this sync, shared by all its waits."""
        known = self._reads.get(sync.id)
        if known is None or known[0] is not sync:
            known = self._reads[sync.id] = (sync, WaitProgress(sync))
            while len(self._reads) > _MOST_READ:  # Of a platform's accounts there may be thousands.
                del self._reads[next(iter(self._reads))]
        return known[1]

    async def close(self) -> None:
        """Cancel fetches and reads that are running."""
        await self._fetches.close()
        for _, reads in self._reads.values():
            await reads.close()

    async def _poll(self, sync: OpenSync, state: WaitState, settle_s: float) -> None:
        """Returns when a poll is applied that began after this call; of the plain form, to a whole copy."""
        state.what = "poll"
        while True:
            ack = await self._retry_while_unreachable(
                state, lambda: self._requester.acked(sync, lookback_s=settle_s)
            )
            if ack.as_of or state.exact:
                return
            await self._sleep(_COPYING_S)

    async def _applied(
        self,
        sync: OpenSync,
        state: WaitState,
        is_there: Callable[[], Awaitable[bool]],
        settle_s: float,
    ) -> None:
        """Request syncs until `is_there` holds: Stripe's list may have an event a little late."""
        pauses = _forever(_REQUESTS_S)
        polling: asyncio.Task[None] | None = None
        try:
            while True:
                changed = self._requester.changed(sync.schema)
                if await self._retry_while_unreachable(state, is_there):
                    return
                if polling is not None and polling.done():
                    polling.result()
                if polling is None or polling.done():
                    polling = asyncio.create_task(
                        self._sync_requested(sync, state, next(pauses), settle_s)
                    )
                await asyncio.wait((changed, polling), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if polling is not None:
                await cancel(polling)

    async def _sync_requested(
        self, sync: OpenSync, state: WaitState, pause_s: float, settle_s: float
    ) -> None:
        await self._sleep(pause_s)
        await self._retry_while_unreachable(
            state, lambda: self._requester.acked(sync, lookback_s=settle_s)
        )

    async def _old_event(
        self, sync: OpenSync, state: WaitState, event_object: EventObject, settle_s: float
    ) -> None:
        """Fetch the object of an event that was applied long ago, or is very late."""
        reads = self.reads(sync)
        key = state.id
        await self._poll(sync, state, settle_s)
        state.what = "event"
        if event_object.table and not await self._retry_while_unreachable(
            state, lambda: reads.has_event(key)
        ):
            with suppress(NotFound):
                await self._retry_while_unreachable(
                    state, lambda: self._fetches.fetch(sync, event_object.table, event_object.key)
                )

    async def _drain(self, sync: OpenSync, state: WaitState) -> None:
        """Return when the refetches that events requested so far are done."""
        state.what = "pending"
        reads = self.reads(sync)
        moment: datetime | None = None
        for pause_s in _forever(_PAUSES_S):
            pending = await self._retry_while_unreachable(state, lambda: reads.pending(state.id))
            moment = moment or pending.now
            state.pending = pending.before(moment, previews=state.previews, exact=state.exact)
            if not state.pending:
                break
            await self._sleep(pause_s)
        state.what = ""

    async def _asked_twice(
        self, sync: OpenSync, state: WaitState, work: Callable[[], Awaitable[_T]]
    ) -> _T:
        """Ask once more where Stripe does not have it: it may be so new that a replica has not."""
        with suppress(NotFound):
            return await self._retry_while_unreachable(state, work)
        await self._sleep(sync.source.replica_lag.total_seconds())
        return await self._retry_while_unreachable(state, work)

    async def _retry_while_unreachable(
        self, state: WaitState, work: Callable[[], Awaitable[_T]]
    ) -> _T:
        """Retry while Postgres or Stripe cannot be reached."""
        while True:
            try:
                done = await work()
            except Unreachable as error:
                state.error = error.message
                await self._sleep(_RETRY_S)
            else:
                state.error = ""
                return done


def _forever(pauses_s: Sequence[float]) -> Iterator[float]:
    """Yield the pauses in order, and the last one for ever."""
    return chain(pauses_s, repeat(pauses_s[-1]))


@dataclass(frozen=True, slots=True)
class EventObject:
    """`table` is "" where the object is not synced, or cannot be fetched by its id."""

    created: float
    table: str
    key: str


async def fetch_event(sync: OpenSync, event_id: str) -> EventObject:
    """Fetch an event. Raises NotFound if Stripe does not have it (any more)."""
    path = "/v1/events/{id}"
    response = await sync.source.stripe.get(
        path.replace("{id}", quote_id(event_id)), endpoint=f"GET {path}", priority=LIVE
    )
    sync.source.observe_clock(response)
    event = read_object(response, path)
    event_object = payload(event)
    name = str(event_object.get("object"))
    key, table = key_of(name, event_object), table_of_object().get(name, "")
    is_known = key is not None and table in sync.source.wanted
    if not is_known or retrieve_endpoint(table) is None:
        table = ""
    return EventObject(float(created_of(event)), table, str(key))


_FetchKey = tuple[str, str, str]
"""(id of the sync, table, id of the object)"""


class ObjectFetches:
    """Coalesced fetches of single objects."""

    def __init__(self) -> None:
        self._coalescers: dict[_FetchKey, Coalescer[None, None]] = {}

    async def fetch(self, sync: OpenSync, table: str, key: str) -> None:
        """Returns when the object, as Stripe has it after this call, is written; a row of an object
        that is gone there is flagged.

        Raises NotFound where neither Stripe nor the table has it, Unwritable where Postgres refuses its
        row, Misconfigured where Stripe shows no object of this type by its id alone.
        """
        fetch_key = (sync.id, table, key)
        coalescer = self._coalescers.get(fetch_key)
        if coalescer is None:

            async def fetch(_: Collection[None]) -> Mapping[None, None]:
                await _fetch(sync, table, key)
                return {None: None}

            coalescer = self._coalescers[fetch_key] = Coalescer(fetch)
        try:
            await coalescer.get(None)
        finally:
            if coalescer.is_idle and self._coalescers.get(fetch_key) is coalescer:
                del self._coalescers[fetch_key]

    async def close(self) -> None:
        """Cancel fetches that are running."""
        await asyncio.gather(*(coalescer.close() for coalescer in self._coalescers.values()))


async def _fetch(sync: OpenSync, table: str, key: str) -> None:
    started, version = await sync.source.row_version(table, key)
    shown = await refetch_row(sync.source, table, key, started=started)
    if shown is None:
        raise Misconfigured(
            f"Stripe shows no {sync.source.wanted[table].object_type} by its id alone.",
            hint="Wait for the request or the event that changed it, or without parameters.",
        )
    # What was read may contradict the row, those inside of it, or which there are (a set goes by the id of
    # its parent), and not be surely newer.
    places = {name: {key, *shown.rows.get(name, ())} for name in sync.mirror.tables}
    if resolving := sync.mirror.conflicts.resolving(places):
        await asyncio.wait(resolving)
    if sync.mirror.quarantine.refuses(shown):
        raise Unwritable(
            f"Postgres refuses the row of {key!r}, or of an object inside of it.",
            hint="`pinstripe status` names the row, the reason and the remedy.",
        )
    if version is None and await sync.source.version(table, key) is None:
        raise NotFound(
            f"Stripe has no {sync.source.wanted[table].object_type} {key!r}, nor has the table.",
            status=404,
            code="resource_missing",
            hint="Does it belong to the account and the mode of this sync?",
        )


class WaitProgress:
    """The coalesced reads of one sync."""

    def __init__(self, sync: OpenSync) -> None:
        self._sync = sync
        self._requests = Coalescer(self._applied("request_id"), spacing_s=_SPACING_S)
        self._events = Coalescer(self._applied("id"), spacing_s=_SPACING_S)
        self._pending = Coalescer(self._read_pending, spacing_s=_SPACING_S)
        self._open_since = Coalescer(self._read_open_since, spacing_s=_LAST_SPACING_S)
        self._as_of = Coalescer(self._read_as_of, spacing_s=_LAST_SPACING_S)

    async def has_request(self, request_id: str) -> bool:
        return await self._requests.get(request_id)

    async def is_old_request(self, request_id: str) -> bool:
        """Whether its events are too old for `has_request` to know them."""
        if "event" not in self._sync.mirror.tables or await self.has_request(request_id):
            return False
        async with self._sync.pool.acquire() as connection, asyncio.timeout(_HUNG_S):
            return await is_of_old_event(connection, self._sync.schema, request_id, old_s=_OLD_S)

    async def has_event(self, event_id: str) -> bool:
        return await self._events.get(event_id)

    async def pending(self, cause: str) -> Pending:
        """The refetches that are not done; `cause`: the request or event of the call, "" for none."""
        return await self._pending.get(cause)

    async def open_since(self, table: str, key: str) -> tuple[datetime, datetime | None]:
        """(now, since when the row waits for a fetch of its object; None if it does not)."""
        return await self._open_since.get((table, key))

    async def as_of(self) -> datetime | None:
        return await self._as_of.get(None)

    async def close(self) -> None:
        """Cancel the queries that are running."""
        for each in (self._requests, self._events, self._pending, self._open_since, self._as_of):
            await each.close()

    def _applied(
        self, column: Literal["id", "request_id"]
    ) -> Callable[[Collection[str]], Awaitable[Mapping[str, bool]]]:
        async def read(values: Collection[str]) -> Mapping[str, bool]:
            async with self._sync.pool.acquire() as connection, asyncio.timeout(_HUNG_S):
                applied = await which_applied(connection, self._sync.schema, column, list(values))
            return {value: value in applied for value in values}

        return read

    async def _read_pending(self, causes: Collection[str]) -> Mapping[str, Pending]:
        async with self._sync.pool.acquire() as connection, asyncio.timeout(_HUNG_S):
            return await load_pending(connection, self._sync.schema, causes)

    async def _read_as_of(self, _: Collection[None]) -> Mapping[None, datetime | None]:
        async with self._sync.pool.acquire() as connection, asyncio.timeout(_HUNG_S):
            return {None: await load_acked_as_of(connection, self._sync.schema)}

    async def _read_open_since(
        self, rows: Collection[RowKey]
    ) -> Mapping[RowKey, tuple[datetime, datetime | None]]:
        async with self._sync.pool.acquire() as connection, asyncio.timeout(_HUNG_S):
            now, since = await load_open_since(connection, self._sync.schema, list(rows))
        return {row: (now, since.get(row)) for row in rows}


_REQUEST_SPACING_S = 0.05
"""Between two requests for one sync. The worker polls no more often than that."""
_POLL_S = 1.0
_READ_SPACING_S = 0.002
"""Between two reads of acknowledgements, however many NOTIFYs arrive."""


class SyncRequester:
    """One per gateway. `run` has to run beside it."""

    def __init__(self, database_url: Callable[[], str | None]) -> None:
        """`database_url` gives None while there is no database."""
        self.requests_sent: Counter[str] = Counter()
        """Sync requests sent so far, by schema."""
        self._listener = Listener(
            database_url, {ACKS: self._on_ack, APPLIED: self._on_applied}, name="pinstripe gateway"
        )
        self._coalescers: dict[str, Coalescer[float, tuple[int, int]]] = {}
        self._acks: dict[str, SyncAck] = {}
        self._session = 0
        self._changed: dict[str, asyncio.Future[None]] = {}
        self._hinted: set[str] = set()
        self._hint = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled; outlives lost connections."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listener.run())
                group.create_task(self._poll_acks())
                group.create_task(self._read_acks())
        finally:
            await asyncio.gather(*(coalescer.close() for coalescer in self._coalescers.values()))

    async def request_sync(self, sync: OpenSync, *, lookback_s: float = 0.0) -> int:
        """Request a poll of Stripe that begins after this call; return the number of the request.

        `lookback_s`: how late events may be that the poll must not miss. Raises Unreachable.
        """
        return (await self._request(sync, lookback_s))[0]

    def request_sync_soon(self, sync: OpenSync) -> None:
        """Like `request_sync`, but fire and forget. Errors are ignored."""
        self._coalescer(sync.schema).trigger(0.0)

    async def acked(self, sync: OpenSync, *, lookback_s: float = 0.0) -> SyncAck:
        """Request a poll, and return the acknowledgement of one that began after this call.

        Waits without limit: the caller sets one. Raises Unreachable.
        """
        number, session = await self._request(sync, lookback_s)
        while True:
            changed = self.changed(sync.schema)
            if session != self._listener.session:
                number, session = await self._request(sync, lookback_s)
            ack = self._ack(sync.schema)
            if ack is not None and ack.number >= number:
                return ack
            await changed

    def changed(self, schema: str) -> asyncio.Future[None]:
        """Done when the next event is applied or request acknowledged. Shared; safe to cancel."""
        future = self._changed.get(schema)
        if future is None or future.done():
            future = self._changed[schema] = asyncio.get_running_loop().create_future()
        return asyncio.shield(future)

    async def _request(self, sync: OpenSync, lookback_s: float) -> tuple[int, int]:
        return await self._coalescer(sync.schema).get(lookback_s)

    def _coalescer(self, schema: str) -> Coalescer[float, tuple[int, int]]:
        coalescer = self._coalescers.get(schema)
        if coalescer is None:

            async def send(lookbacks: Collection[float]) -> Mapping[float, tuple[int, int]]:
                sent = await self._send(schema, max(lookbacks))
                return dict.fromkeys(lookbacks, sent)

            coalescer = self._coalescers[schema] = Coalescer(send, spacing_s=_REQUEST_SPACING_S)
        return coalescer

    async def _send(self, schema: str, lookback_s: float) -> tuple[int, int]:
        """Return (number, session in which it holds)."""
        async with self._listener.connection() as connection:
            number = await request_sync(connection, schema, lookback_s)
            self.requests_sent[schema] += 1
            return number, self._listener.session

    def _ack(self, schema: str) -> SyncAck | None:
        """The latest acknowledgement of this session."""
        return self._acks.get(schema) if self._session == self._listener.session else None

    def _on_ack(self, payload: str) -> None:
        if payload in self._coalescers:  # only schemas that this process requested
            self._hinted.add(payload)
            self._hint.set()

    async def _read_acks(self) -> None:
        """Read the rows that NOTIFYs named, in one query for all that arrived meanwhile."""
        while True:
            await self._hint.wait()
            self._hint.clear()
            hinted, self._hinted = self._hinted, set()
            with suppress(PinstripeError):
                async with self._listener.connection() as connection:
                    self._take(await last_acks(connection, list(hinted)))
            await asyncio.sleep(_READ_SPACING_S)

    def _take(self, acks: Mapping[str, SyncAck]) -> None:
        if self._session != self._listener.session:
            self._acks.clear()
            self._session = self._listener.session
        for schema, ack in acks.items():
            known = self._acks.get(schema)
            if known is None or ack.number > known.number:
                self._acks[schema] = ack
            self._notify(schema)

    def _on_applied(self, payload: str) -> None:
        self._notify(payload.rpartition(" ")[0])

    def _notify(self, schema: str) -> None:
        future = self._changed.pop(schema, None)
        if future is not None and not future.done():
            future.set_result(None)

    async def _poll_acks(self) -> None:
        """Read what a lost NOTIFY would have announced, while a caller waits."""
        while True:
            await asyncio.sleep(_POLL_S)
            waiting = list(self._changed)
            if not waiting:
                continue
            with suppress(PinstripeError):
                async with self._listener.connection() as connection:
                    self._take(await last_acks(connection, waiting))
            for schema in waiting:
                self._notify(schema)  # Waits for something else check again, too.
