"""Requests an immediate sync from the worker and waits for its acknowledgement.

    request -> NOTIFY -> worker polls Stripe -> acknowledgement -> NOTIFY -> all waiters

Concurrent requests for one sync are coalesced: a thousand waiters cost at most 20 NOTIFYs a second. A
NOTIFY carries no values, since any user of the database may send one; it only triggers a read of the
row. A lost NOTIFY delays the acknowledgement by up to one second, since the row in `pinstripe.bell` is
polled too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

import structlog

from pinstripe.concurrency import Coalescer
from pinstripe.errors import PinstripeError
from pinstripe.gateway.syncs import OpenSync
from pinstripe.store.events import ACKS, APPLIED, SyncAck, last_acks, request_sync
from pinstripe.store.listener import Listener

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_SPACING_S = 0.05
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
            database_url,
            {ACKS: self._on_ack, APPLIED: self._on_applied},
            name="pinstripe gateway",
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

            coalescer = self._coalescers[schema] = Coalescer(send, spacing_s=_SPACING_S)
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
