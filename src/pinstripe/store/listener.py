"""One connection to Postgres that listens, for the whole gateway, and is made anew when it breaks.

What it hears goes to one function for each channel. Statements whose answers hold for one session only
(the numbers of rings) go over it too, one at a time.

A connection of one's own that listens: made when it is needed, dropped when it breaks.

What it waits for, it may miss (while the connection is away, or never sent): whoever rests on it looks
again after a while anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import asyncpg
import structlog

from pinstripe.concurrency import backoff, wait_for
from pinstripe.errors import PinstripeError, Unreachable
from pinstripe.store.pool import Connection, close_quietly, connect_dedicated, translated

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_PAUSE_S = (0.1, 0.5, 1.0)

_READY_S = 1.0

_STATEMENT_S = 10.0
"""A statement that takes longer has met a server that is there no more."""


class Listener:
    """`session` counts the connections so far: what one has told does not hold for the next."""

    def __init__(
        self, url: Callable[[], str | None], channels: Mapping[str, Callable[[str], None]]
    ) -> None:
        """`url` gives None while there is no database."""
        self.session = 0
        self._url = url
        self._channels = channels
        self._connection: asyncpg.Connection | None = None
        self._lock = asyncio.Lock()
        self._ready = asyncio.Event()
        self._lost = asyncio.Event()
        self._trouble: PinstripeError = Unreachable("The gateway is not connected to Postgres yet.")

    @property
    def is_ready(self) -> bool:
        """Whether there is a connection."""
        return self._ready.is_set()

    async def run(self) -> None:
        """Keeps a connection until cancelled."""
        attempt = 0
        while True:
            try:
                connection = await self._connect()
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
                self._ready.clear()
                self._connection = None
                connection.remove_termination_listener(self._on_lost)
                connection.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """The connection, alone for the block. Raises Unreachable where there is none for a while."""
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
                # Cut off or failed halfway, a session is worth no more trust.
                self._lost.set()
                self._ready.clear()
                if isinstance(error, TimeoutError):
                    raise Unreachable("Postgres does not answer the gateway.") from error
                raise

    async def _connect(self) -> asyncpg.Connection:
        self._lost.clear()
        url = self._url()
        if url is None:
            raise Unreachable("There is no database yet.")
        connection = await connect_dedicated(url, application_name="pinstripe gateway")
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
        return connection

    def _on_lost(self, _: object) -> None:
        self._ready.clear()
        self._lost.set()

    def _notified(self, _: object, __: int, channel: str, payload: object) -> None:
        self._channels[channel](str(payload))


_HANG_UP_S = 1.0

_LEAST_S = 0.05


class SharedListener:
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
        await wait_for(self._rung, pause_s - min(_LEAST_S, pause_s))
        self._rung.clear()

    async def close(self) -> None:
        """Lets the connection go; `connection` makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await close_quietly(connection, timeout_s=_HANG_UP_S)
