"""After a proxied write: requests a sync, and holds the response for `Pinstripe-Wait`.

    write answered -> sync request -> worker reads the write's events -> rows

What a write changed beside the object in its response (a new subscription's invoice) arrives by events.
The sync request is not awaited, and `SyncRequester` coalesces concurrent ones. If it fails, the next
regular poll reads the events.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from time import monotonic

import structlog

from pinstripe.client.response import Margins
from pinstripe.errors import PinstripeError
from pinstripe.gateway.proxy.mirroring import ProxyRequest
from pinstripe.gateway.proxy.objects import measured_response
from pinstripe.gateway.proxy.request import Headers
from pinstripe.gateway.proxy.upstream import UpstreamResponse
from pinstripe.gateway.syncs import OpenSync
from pinstripe.store.cursors import load_as_of
from pinstripe.store.daily_counts import Write, note_writes

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

RequestSync = Callable[[OpenSync], Awaitable[object]]
WaitForRequest = Callable[[OpenSync, str, float], Awaitable[bool]]
"""(sync, request id, timeout in seconds) -> whether the request's events are applied."""

WAIT_S = 30.0
MAX_WAIT_S = 300.0
_AS_OF_AGE_S = 0.5
"""How old the `as_of` in a header may be. It only grows, so an older one is true as well."""
_HUNG_S = 10.0
_MEASURE_S = 30.0
"""How often the clocks of writes and their events are compared."""
_MOST_WRITES = 1000
"""Writes that are compared each time, of a busy proxy."""


class AfterWrite:
    """Sync requests after writes, waits for their events, and the `as_of` of each sync."""

    def __init__(
        self, request_sync: RequestSync | None, wait_for_request: WaitForRequest | None
    ) -> None:
        self._request_sync = request_sync
        self._wait = wait_for_request
        self._as_of: dict[str, datetime] = {}
        # Infinite while a read is running, so that there is one at a time.
        self._read_at: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writes: dict[str, deque[Write]] = {}
        self._measured_at: dict[str, float] = {}

    def written(self, sync: OpenSync | None, response: UpstreamResponse) -> None:
        """Request a sync, unless the status says that Stripe rejected the write."""
        if response.status not in (401, 403, 404, 429):
            self._request_soon(sync)
        request_id = response.header(b"request-id").decode("latin-1")
        if sync is not None and request_id and 200 <= response.status < 300:
            measured = measured_response(response, Margins(0.0, 0.0))
            lo, hi = measured.write_interval()
            writes = self._writes.setdefault(sync.id, deque(maxlen=_MOST_WRITES))
            writes.append(Write(request_id, lo, hi))
            if monotonic() - self._measured_at.get(sync.id, float("-inf")) >= _MEASURE_S:
                self._measured_at[sync.id] = monotonic()
                self._start(self._measure(sync, writes))

    def unanswered(self, sync: OpenSync | None, request: ProxyRequest) -> None:
        """Request a sync: Stripe may have executed a write that got no response."""
        if request.writes:
            self._request_soon(sync)

    def wait_of(self, headers: Headers) -> float:
        """Seconds that the caller wants the response to be held for its events; 0 for not at all.

        `Pinstripe-Wait: true`, or a number of seconds.
        """
        value = next((value for name, value in headers if name == b"pinstripe-wait"), b"").lower()
        if value in (b"true", b"yes", b"1"):
            return WAIT_S
        return min(float(value), MAX_WAIT_S) if value.isdigit() and len(value) < 10 else 0.0

    async def waited(
        self,
        sync: OpenSync | None,
        request: ProxyRequest,
        response: UpstreamResponse,
        wait_s: float,
    ) -> bool | None:
        """Whether a write's events were applied within `wait_s`; None if there is nothing to wait for."""
        if not wait_s or not request.writes or not 200 <= response.status < 300:
            return None
        # A replayed response names the request that did the work.
        request_id = response.header(b"original-request") or response.header(b"request-id")
        if sync is None or self._wait is None or not request_id:
            return False
        try:
            applied = await self._wait(sync, request_id.decode("latin-1"), wait_s)
        except PinstripeError as error:
            _log.warning("proxy.unwaited", error=error.message)
            return False
        await self._read_as_of(sync)
        return applied

    def as_of(self, sync: OpenSync | None) -> datetime | None:
        """All events up to this moment are applied; None until it is first read."""
        if sync is None:
            return None
        if monotonic() - self._read_at.get(sync.id, float("-inf")) >= _AS_OF_AGE_S:
            self._read_at[sync.id] = float("inf")
            self._start(self._read_as_of(sync))
        return self._as_of.get(sync.id)

    async def _measure(self, sync: OpenSync, writes: deque[Write]) -> None:
        """Compare the writes of a while with their events, once those are applied."""
        await asyncio.sleep(_MEASURE_S)
        mine = list(writes)
        writes.clear()
        try:
            async with sync.pool.acquire() as connection, asyncio.timeout(_HUNG_S):
                await note_writes(connection, sync.schema, mine)
        except (PinstripeError, TimeoutError) as error:
            _log.debug("proxy.unmeasured", error=str(error))

    async def close(self) -> None:
        """Cancel requests and reads that are still running."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read_as_of(self, sync: OpenSync) -> None:
        try:
            async with sync.pool.acquire() as connection, asyncio.timeout(_HUNG_S):
                as_of = await load_as_of(connection, sync.schema)
        except PinstripeError as error:
            _log.debug("proxy.as_of", error=error.message)
            return
        finally:
            self._read_at[sync.id] = monotonic()
        if as_of is not None:
            self._as_of[sync.id] = as_of

    def _request_soon(self, sync: OpenSync | None) -> None:
        if sync is not None and self._request_sync is not None:
            self._start(self._request(sync, self._request_sync))

    async def _request(self, sync: OpenSync, request_sync: RequestSync) -> None:
        try:
            await request_sync(sync)
        except PinstripeError as error:
            _log.debug("proxy.unrung", error=error.message)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
