"""A connection of one's own that listens: made when it is needed, dropped when it breaks.

What it waits for, it may miss (while the connection is away, or never sent): whoever rests on it looks
again after a while anyway.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import asyncpg

from pinstripe.store.pool import connect_dedicated, hang_up, translated

_HANG_UP_S = 1.0
_LEAST_S = 0.05


class Line:
    """Listens on `channel` for NOTIFY with `payload`. Not for two tasks at once."""

    def __init__(self, url: str, channel: str, payload: str, *, name: str) -> None:
        """`name` is the session's application_name."""
        self._url = url
        self._channel = channel
        self._payload = payload
        self._name = name
        self._rung = asyncio.Event()
        self._connection: asyncpg.Connection | None = None

    async def connection(self) -> asyncpg.Connection:
        """The connection, made anew if it broke. Raises Unreachable."""
        if self._connection is None or self._connection.is_closed():
            await self.close()
            self._connection = await connect_dedicated(self._url, application_name=self._name)
            with translated():
                await self._connection.add_listener(self._channel, self._ring)
        return self._connection

    def _ring(self, _: object, __: int, ___: str, payload: object) -> None:
        if payload == self._payload:
            self._rung.set()

    async def rest(self, pause_s: float) -> None:
        """Waits until it is rung, but at most so long; never less than `_LEAST_S`, if that is not more.

        Any user of the database may ring: it must not make us ask and write without end.
        """
        await asyncio.sleep(min(_LEAST_S, pause_s))
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s - min(_LEAST_S, pause_s)):
                await self._rung.wait()
        self._rung.clear()

    async def close(self) -> None:
        """Lets the connection go; `connection` makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await hang_up(connection, timeout_s=_HANG_UP_S)
