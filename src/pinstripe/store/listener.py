"""The connection that listens for notifications: LISTEN, dispatch by channel, connect again when it breaks.

    NOTIFY -> Listener -> the channel's function, and `rest` if that returns True

`run` keeps the connection in the background (the gateway). A loop that needs the session itself, such as a
lease, calls `connect` and `rest` instead. A notification may be lost while there is no connection, and any
role of the database may send one: callers treat it as a hint, and poll their tables as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import asyncpg
import structlog

from pinstripe.concurrency import backoff
from pinstripe.errors import PinstripeError, Unreachable
from pinstripe.store.pool import Connection, close_quietly, connect_dedicated, translated

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_PAUSE_S = (0.1, 0.5, 1.0)
_READY_S = 1.0
_STATEMENT_S = 10.0
"""A statement that takes longer was sent to a server that is gone."""
_CLOSE_S = 1.0
_LEAST_S = 0.05
"""The shortest `rest`: a role that notifies without end must not make its owner query without end."""


class Listener:
    """`session` counts the connections so far: numbers that one returned do not hold for the next."""

    def __init__(
        self,
        url: Callable[[], str | None],
        channels: Mapping[str, Callable[[str], bool | None]],
        *,
        name: str,
        on_connected: Callable[[], None] = lambda: None,
    ) -> None:
        """`url` returns None while there is no database. `name` is the session's application_name."""
        self.session = 0
        self._url = url
        self._channels = channels
        self._name = name
        self._on_connected = on_connected
        self._connection: asyncpg.Connection | None = None
        self._lock = asyncio.Lock()
        self._ready = asyncio.Event()
        self._lost = asyncio.Event()
        self._wake = asyncio.Event()
        self._trouble: PinstripeError = Unreachable("The gateway is not connected to Postgres yet.")

    async def run(self) -> None:
        """Keep a connection until cancelled."""
        attempt = 0
        while True:
            try:
                await self.connect()
            except PinstripeError as error:
                self._trouble = error
                await asyncio.sleep(backoff(_PAUSE_S, attempt))
                attempt += 1
                continue
            attempt = 0
            try:
                await self._lost.wait()
                _log.info("listening.lost")
                self._trouble = Unreachable("The gateway has lost its connection to Postgres.")
            finally:
                if (connection := self._detach()) is not None:
                    connection.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend the connection that `run` keeps, for this block alone.

        Raises Unreachable if there is none for `_READY_S`.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_READY_S):
                await self._ready.wait()
        async with self._lock:
            if self._connection is None or not self._ready.is_set():
                raise Unreachable(self._trouble.message, hint=self._trouble.hint)
            try:
                with translated():
                    async with asyncio.timeout(_STATEMENT_S):
                        yield self._connection
            except BaseException as error:
                # The state of a session that was cut off or failed halfway is unknown.
                self._on_lost(None)
                if isinstance(error, TimeoutError):
                    raise Unreachable("Postgres does not answer the gateway.") from error
                raise

    async def connect(self) -> asyncpg.Connection:
        """Return the connection, made again if it was lost. Not for two tasks. Raises Unreachable."""
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        await self.close()
        url = self._url()
        if url is None:
            raise Unreachable("There is no database yet.")
        connection = await connect_dedicated(url, application_name=self._name)
        try:
            connection.add_termination_listener(self._on_lost)
            with translated():
                for channel in self._channels:
                    await connection.add_listener(channel, self._notified)
        except BaseException:
            await close_quietly(connection)
            raise
        self.session += 1
        self._connection = connection
        self._ready.set()
        self._on_connected()
        return connection

    async def rest(self, pause_s: float) -> None:
        """Return when a channel's function returned True, or after `pause_s`."""
        least_s = min(_LEAST_S, pause_s)
        await asyncio.sleep(least_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s - least_s):
                await self._wake.wait()
        self._wake.clear()

    async def close(self) -> None:
        """Close the connection; `connect` makes a new one."""
        if (connection := self._detach()) is not None:
            await close_quietly(connection, timeout_s=_CLOSE_S)

    def _detach(self) -> asyncpg.Connection | None:
        connection, self._connection = self._connection, None
        self._ready.clear()
        self._lost.clear()
        if connection is not None:
            connection.remove_termination_listener(self._on_lost)
        return connection

    def _on_lost(self, _: object) -> None:
        self._ready.clear()
        self._lost.set()

    def _notified(self, _: object, __: int, channel: str, payload: object) -> None:
        if self._channels[channel](str(payload)):
            self._wake.set()
