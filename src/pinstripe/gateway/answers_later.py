"""Rows whose answer could not be kept: they are fetched again when Postgres can be written to.

Where an answer itself waits for a writer (`Mirror` waits out a lost connection), nothing is needed
here. This is for what comes beyond: a full queue, a full disk. Only the requests that show them are
remembered, a few dozen bytes each, up to a bound; what exceeds it comes by its events.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable

import structlog

from pinstripe.errors import Misconfigured, PinstripeError, Unreachable, Unwritable
from pinstripe.gateway.answers_fetched import Way
from pinstripe.gateway.syncs import Syncs

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

MOST = 100_000
_PAUSE_S = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)

Fetch = Callable[[str, Way], Awaitable[None]]
"""(sync id, request) -> make it and mirror what it shows."""


class Later:
    """Requests to make, oldest first. `lost` counts those beyond the bound."""

    def __init__(
        self,
        syncs: Syncs,
        fetch: Fetch,
        *,
        most: int = MOST,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.lost = 0
        self._syncs = syncs
        self._fetch = fetch
        self._most = most
        self._sleep = sleep
        self._ways: OrderedDict[tuple[str, Way], None] = OrderedDict()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ways)

    def add(self, sync_id: str, ways: Iterable[Way]) -> None:
        """Remembers requests for a sync."""
        for way in ways:
            if len(self._ways) >= self._most:
                self.lost += 1
                continue
            self._ways[sync_id, way] = None
        if self._ways:
            self._wake.set()

    async def run(self) -> None:
        """Works until cancelled."""
        failures = 0
        while True:
            if not self._ways:
                self._wake.clear()
                await self._wake.wait()
            (sync_id, way), _ = self._ways.popitem(last=False)
            if self._syncs.get(sync_id) is None:
                continue  # It was removed. Its tables are nobody's here.
            try:
                await self._fetch(sync_id, way)
                failures = 0
            except (Unreachable, Unwritable, Misconfigured) as error:
                self.add(sync_id, [way])
                if failures == 0:
                    _log.warning("proxy.later", waiting=len(self._ways), error=error.message)
                await self._sleep(_PAUSE_S[min(failures, len(_PAUSE_S) - 1)])
                failures += 1
            except PinstripeError as error:
                # Stripe says no, and would again; or the value fits no column.
                _log.warning("proxy.unmirrored", table=way.table, error=error.message)
