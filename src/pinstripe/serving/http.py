"""The HTTP server: uvicorn on one port, with bounds on what a caller may cost before any route sees it.

    async with listening(app, "127.0.0.1", 8377) as url: ...

A head has a size and a time in which it must be complete; a connection that idles is closed; so many
connections are taken and no more. No access log: addresses and paths of a billing system are no log lines.
Leaving the block ends what is under way in order, and after some seconds anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from asyncio import Transport
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pinstripe.errors import Misconfigured, PinstripeError
from pinstripe.gateway.failures import failure

_HEAD_BYTES = 64 * 1024
"""Stripe takes less; cursors and search queries are the longest."""
_HEAD_S = 20.0
_KEEP_ALIVE_S = 75
"""Longer than the pools of HTTP clients keep an idle connection (60 s), so that they close it first."""
_CONNECTIONS = 4000
_END_S = 4.0
"""How long requests that are under way may take when the service ends."""
_CUT_S = 1.0
_BACKLOG = 1024
_TOO_LARGE = (
    b'{"error": {"code": "head_too_large", "message": "The head of the request is too large.", '
    b'"hint": ""}}'
)
_TOO_LARGE_HEAD = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(_TOO_LARGE)
)


class _Guarded(HttpToolsProtocol):
    """uvicorn's protocol with a limit on the head of each request, in bytes and in time."""

    _head_bytes = 0
    _in_head = True
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > _CONNECTIONS:
            transport.abort()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            if self._deadline is None:
                self._await_head()
            self._head_bytes += len(data)
        super().data_received(data)
        # What came with the end of the head was counted too; only a head that goes on is refused.
        if self._in_head and self._head_bytes > _HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE_HEAD + _TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._forget()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head, self._head_bytes = True, 0

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(_HEAD_S, self._late)

    def _late(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises Misconfigured, with the remedy, where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, the loop sets TCP_NODELAY on what is accepted; without it each answer
    # waits 40 ms for the delayed acknowledgement of its head.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        # Now, not when the server starts: two that bind to one port must not both think it theirs.
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise Misconfigured(
            f"Cannot listen on {host}:{port}: {error.strerror}.",
            hint="Another program has the port, or the address is not this machine's: choose others "
            "with --port and --host (0 takes a free port).",
        ) from error
    return sock


def address_of(sock: socket.socket) -> str:
    """The URL of what listens there.

    >>> with listen("127.0.0.1", 0) as sock:
    ...     address_of(sock).rpartition(":")[0]
    'http://127.0.0.1'
    """
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def answering(app: ASGIApp, sock: socket.socket) -> AsyncIterator[None]:
    """Serves `app` on the socket for the block."""
    server = uvicorn.Server(
        uvicorn.Config(
            _Ending(app),
            http=_Guarded,
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            log_level="error",
            date_header=False,  # The proxy passes on Stripe's own.
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            backlog=_BACKLOG,
        )
    )
    # What `uvicorn.Server.serve` does, without its signal handlers and its ticking main loop.
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[sock])
    if server.lifespan.should_exit:
        raise PinstripeError("The gateway did not start; its log lines say why.")
    try:
        yield
    finally:
        await _end(server, sock)


async def _end(server: uvicorn.Server, sock: socket.socket) -> None:
    """Takes no more, and lets what is under way end: it may be a payment. After some seconds cuts it."""
    ending = asyncio.create_task(server.shutdown(sockets=[sock]))
    done, _ = await asyncio.wait((ending,), timeout=_END_S)
    if not done:
        for task in server.server_state.tasks:
            task.cancel()
        done, _ = await asyncio.wait((ending,), timeout=_CUT_S)
    if not done:
        # Somebody who does not read holds a connection open.
        server.force_exit = True
        await asyncio.wait((ending,), timeout=_CUT_S)
    ending.cancel()


class _Ending:
    """Answers a request that is cut off because the service ends, if it has no answer yet."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            # Only `_end` cancels requests. One whose answer has begun is broken off by uvicorn.
            with contextlib.suppress(RuntimeError):
                await failure(
                    503, "ending", "The gateway is ending.", "Ask again in some seconds."
                )(scope, receive, send)
