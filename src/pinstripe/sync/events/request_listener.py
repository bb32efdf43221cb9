"""Listens for sync requests, has the poller poll, and acknowledges them when the poll is committed.

    NOTIFY -> the row -> begin() at the start of a poll -> done() at its end -> acknowledgement, NOTIFY

A poll serves the requests that were received before it began. Requests are acknowledged only once the
initial load is complete, since before that the events are not all there is. A NOTIFY only means that the
row is worth reading: any user of the database may send one. A request whose NOTIFY was lost is found within
a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from pinstripe.concurrency import wait_for
from pinstripe.errors import PinstripeError
from pinstripe.store.events import REQUESTS, SyncAck, SyncRequest, acknowledge, last_request
from pinstripe.store.pool import Connection, Pool

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_NET_S = 1.0
"""How often the row is read: the cost of a lost NOTIFY."""
_PAUSE_S = 1.0
_SPACING_S = 0.01
"""Between two reads of the row. Requests of one gateway are 50 ms apart."""


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request that a poll may acknowledge. `session`: numbers are valid for the connection that read
    them.
    """

    request: SyncRequest
    session: int


class SyncRequestListener:
    """The listener of the worker that syncs a schema."""

    def __init__(
        self,
        pool: Pool,
        schema: str,
        *,
        complete: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`complete`: whether the initial load is; until then requests are received and not
        acknowledged.
        """
        self.on_ring: Callable[[], None] = lambda: None
        self._pool = pool
        self._schema = schema
        self._complete = complete
        self._clock = clock
        self._session = 0
        self._latest: SyncRequest | None = None
        self._looked: SyncAck | None = None
        self._wake = asyncio.Event()
        self._hinted = False

    def begin(self) -> PendingRequest | None:
        """Return the latest request that no poll has served. Call it before Stripe is requested."""
        return PendingRequest(self._latest, self._session) if self._latest is not None else None

    def done(self, heard: PendingRequest, as_of: float) -> None:
        """The poll that began after this request is done: what Stripe showed at `as_of` is committed."""
        if heard.session != self._session:
            return
        if self._latest is not None and self._latest.number <= heard.request.number:
            self._latest = None
        self._looked = SyncAck(heard.request.number, as_of)
        self._wake.set()

    async def run(self) -> None:
        """Run until cancelled; reconnects."""
        while True:
            try:
                async with self._pool.dedicated() as connection:
                    await self._listen(connection)
            except PinstripeError as error:
                _log.debug("hearing.lost", error=error.message)
            await asyncio.sleep(_PAUSE_S)

    async def _listen(self, connection: Connection) -> None:
        self._session += 1
        self._latest = self._looked = None
        await connection.add_listener(REQUESTS, self._notified)
        net_at = read_at = 0.0
        while True:
            self._wake.clear()
            if self._clock() >= net_at or self._hinted:
                # However many NOTIFYs arrive, the row is read no more often than this.
                await asyncio.sleep(max(read_at + _SPACING_S - self._clock(), 0.0))
                self._hinted = False
                await self._net(connection)
                read_at = self._clock()
                net_at = read_at + _NET_S
            await self._answer(connection)
            await wait_for(self._wake, max(net_at - self._clock(), 0.0))

    async def _net(self, connection: Connection) -> None:
        ring = await last_request(connection, self._schema)
        if ring is not None and (self._looked is None or ring.number > self._looked.number):
            self._requested(ring)

    async def _answer(self, connection: Connection) -> None:
        said = self._looked
        if said is None or not self._complete():
            return
        await acknowledge(connection, self._schema, said)
        if self._looked == said:
            self._looked = None

    def _notified(self, _: object, __: int, ___: str, payload: object) -> None:
        if payload == self._schema:
            self._hinted = True
            self._wake.set()

    def _requested(self, ring: SyncRequest) -> None:
        if self._latest is None or ring.number > self._latest.number:
            lookback_s = max(ring.lookback_s, self._latest.lookback_s if self._latest else 0.0)
            self._latest = SyncRequest(ring.number, lookback_s)
        self.on_ring()
