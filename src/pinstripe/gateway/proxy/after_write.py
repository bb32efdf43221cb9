"""After a write: the event reader is rung, and who asks for it waits for the write's events.

What a write changed beside the object it answers with (a new subscription's invoice) comes by events.
Rings of one sync coalesce: while one is under way, the writes that come meanwhile share the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from time import monotonic

import structlog

from pinstripe.errors import PinstripeError
from pinstripe.gateway.proxy.mirroring import ProxyRequest
from pinstripe.gateway.proxy.request import Headers
from pinstripe.gateway.proxy.upstream import UpstreamResponse
from pinstripe.gateway.syncs import OpenSync

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Ring = Callable[[OpenSync], Awaitable[object]]
WaitForRequest = Callable[[OpenSync, str, float], Awaitable[bool]]
"""(sync, request id, timeout in seconds) -> whether the request's events are applied."""

WAIT_S = 30.0
MOST_S = 300.0
_LOOK_S = 0.5
"""How old the answer to "as of when" may be: it only grows, so an old one is true as well."""
_HUNG_S = 10.0

_AS_OF = "SELECT as_of FROM pinstripe.cursor WHERE schema = $1 AND stream = 'events'"


class AfterWrite:
    """Rings, waits, and how far the database is true."""

    def __init__(self, ring: Ring | None, wait_for_request: WaitForRequest | None) -> None:
        self._ring = ring
        self._wait = wait_for_request
        self._ringing: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._as_of: dict[str, datetime] = {}
        self._looked: dict[str, float] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}

    def written(self, sync: OpenSync | None, came: UpstreamResponse) -> None:
        """A write was answered. Nothing happened where Stripe did not let it in."""
        if came.status not in (401, 403, 404, 429):
            self._ring_soon(sync)

    def unanswered(self, sync: OpenSync | None, asked: ProxyRequest) -> None:
        """A write may have happened: its events will tell."""
        if asked.writes:
            self._ring_soon(sync)

    def wait_of(self, headers: Headers) -> float:
        """Seconds that the request wants to be held for its events; 0 for not at all.

        `Pinstripe-Wait: true`, or a number of seconds.
        """
        told = next((value for name, value in headers if name == b"pinstripe-wait"), b"").lower()
        if told in (b"true", b"yes", b"1"):
            return WAIT_S
        return min(float(told), MOST_S) if told.isdigit() and len(told) < 10 else 0.0

    async def waited(
        self, sync: OpenSync | None, asked: ProxyRequest, came: UpstreamResponse, wait_s: float
    ) -> bool | None:
        """Holds a write until its events are applied; None where there is nothing to wait for."""
        if not wait_s or not asked.writes or not 200 <= came.status < 300:
            return None
        # A replayed answer speaks of the request that did the work.
        request_id = came.header(b"original-request") or came.header(b"request-id")
        if sync is None or self._wait is None or not request_id:
            return False
        try:
            applied = await self._wait(sync, request_id.decode("latin-1"), wait_s)
        except PinstripeError as error:
            _log.warning("proxy.unwaited", error=error.message)
            return False
        await self._look(sync)
        return applied

    def as_of(self, sync: OpenSync | None) -> datetime | None:
        """Up to when all events are applied, as seen lately; None while that is not known."""
        if sync is None:
            return None
        if monotonic() - self._looked.get(sync.id, -_LOOK_S) >= _LOOK_S:
            self._looked[sync.id] = monotonic()
            if sync.id not in self._looking:
                task = asyncio.create_task(self._look(sync))
                self._looking[sync.id] = task
                task.add_done_callback(lambda _: self._looking.pop(sync.id, None))
        return self._as_of.get(sync.id)

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = [*self._ringing.values(), *self._looking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, sync: OpenSync) -> None:
        try:
            async with sync.pool.acquire() as connection, asyncio.timeout(_HUNG_S):
                found: datetime | None = await connection.fetchval(_AS_OF, sync.schema)
        except PinstripeError as error:
            _log.debug("proxy.as_of", error=error.message)
            return
        if found is not None:
            self._as_of[sync.id] = found

    def _ring_soon(self, sync: OpenSync | None) -> None:
        if sync is None or self._ring is None:
            return
        if sync.id in self._ringing:
            self._again.add(sync.id)
        else:
            self._ringing[sync.id] = asyncio.create_task(self._ring_now(sync))

    async def _ring_now(self, sync: OpenSync) -> None:
        assert self._ring is not None  # noqa: S101 (`_ring_soon` looked)
        try:
            while True:
                self._again.discard(sync.id)
                try:
                    await self._ring(sync)
                except PinstripeError as error:
                    # The reader looks by itself, a moment later.
                    _log.debug("proxy.unrung", error=error.message)
                if sync.id not in self._again:
                    return
        finally:
            del self._ringing[sync.id]
