"""The gateway's own connections to the database, for the API and the console; made when it can be."""

from __future__ import annotations

import asyncio

import structlog

from pinstripe.errors import PinstripeError
from pinstripe.store.pool import Pool, open_pool

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_RETRY_S = (0.25, 0.5, 1.0, 2.0)
_MOST = 6


class OwnPool:
    """`current` gives None until the database was there once; from then on the pool mends itself."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: Pool | None = None

    def current(self) -> Pool | None:
        """The pool, if there is one."""
        return self._pool

    async def run(self) -> None:
        """Opens the pool and keeps it until cancelled."""
        attempt = 0
        while self._pool is None:
            try:
                self._pool = await open_pool(
                    self._url, min_size=0, max_size=_MOST, application_name="pinstripe gateway"
                )
            except PinstripeError as error:
                _log.info("gateway.no_database", error=error.message)
                await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
                attempt += 1
        try:
            await asyncio.Event().wait()
        finally:
            pool, self._pool = self._pool, None
            await pool.close(timeout_s=2.0)
