"""The HTTP server: uvicorn on one port, with limits that apply before any route is called.

    async with listening(app, "127.0.0.1", 8377) as url: ...

A request head has a size limit and a time limit, idle connections are closed, and the number of
connections is bounded (docs/decisions/023-http-server.md). There is no access log: paths of a billing
system do not belong in one. Leaving the block lets running requests finish, for some seconds at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import re
import socket
from asyncio import Transport
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import httptools
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pinstripe.errors import Misconfigured, PinstripeError
from pinstripe.gateway.http.errors import failure
from pinstripe.gateway.http.middleware import BODY_BYTES
from pinstripe.gateway.proxy.upstream import READ_AT_ONCE, is_for_proxy

_HEAD_BYTES = 64 * 1024
"""Stripe takes less; cursors and search queries are the longest."""
_HEAD_S = 20.0
_KEEP_ALIVE_S = 75
"""Longer than the pools of HTTP clients keep an idle connection (60 s), so that they close it first."""
_CONNECTIONS = 4000
"""At the same time. Beyond it room is made: see `_make_room`."""
_SHARE = 0.9
"""Of the places that others leave free, one address takes at most this share, whatever it does with
them: 4,000 requests that wait are no reason to refuse the next address."""
_FREED = 64
"""Connections that are closed at a time, so that a flood does not cost a search for each of its own."""
_HELD_BYTES = 64 * 2**20
"""Of requests that are not complete and answers that are not read, of all connections together. Beyond it
room is made: see `_weigh`."""
_UNREAD_S = 60
"""How long a caller may read nothing of an answer."""
_LINGER_S = 1.0
"""How long what a caller sends after a refusal is read and dropped."""
_END_S = 4.0
"""How long requests that are under way may take when the service ends."""
_CUT_S = 1.0
_BACKLOG = 1024


class _Refused(Exception):
    """What came is not read any further. `answer` is sent if no other answer is due; then all ends."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self.answer = answer


def _refusal(status: str, code: str, message: str) -> bytes:
    # `type` is for callers of the proxy, who know Stripe's errors; `code` and `hint` are ours.
    error = {"type": "invalid_request_error", "code": code, "message": message, "hint": ""}
    body = json.dumps({"error": error})
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}"
    ).encode()


_MALFORMED = _refusal(
    "400 Bad Request", "malformed", "The request is not well-formed HTTP/1.1: nothing was done."
)
_TOO_LARGE = _refusal(
    "431 Request Header Fields Too Large", "head_too_large", "The head of the request is too large."
)
_TUNNEL = _refusal("405 Method Not Allowed", "no_tunnel", "There are no tunnels here.")
_VERSION = _refusal("505 HTTP Version Not Supported", "http_version", "Send HTTP/1.1.")
_HOST = _refusal(
    "400 Bad Request", "host", "The request names several hosts, or its address another than Host."
)
_CODING = _refusal(
    "400 Bad Request",
    "transfer_encoding",
    "The only Transfer-Encoding is chunked, and only in HTTP/1.1: nothing was done.",
)
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class _Guarded(HttpToolsProtocol):
    """uvicorn's protocol with a limit on the head of each request, in bytes and in time.

    And strict where its parser is not (decision 023): a request that offers an upgrade is read by its
    framing and is the last of its connection, as is whatever is refused. Trailers are no headers.
    """

    _head_bytes = 0
    _head = b""
    """What has come of a head that is not complete, in as many pieces as it came."""
    _in_head = True
    _offers = False
    """Whether the request that is being read offers an upgrade."""
    _deaf = False
    """Nothing more is read: what comes after a last request is no request."""
    _keeps_alive = False
    _deadline: asyncio.TimerHandle | None = None

    _held: ClassVar[Counter[str]] = Counter()
    """Connections by address, of all servers in this process."""
    _network = ""

    _held_bytes: ClassVar[int] = 0
    _weight = 0
    """What this connection has added to `_held_bytes`."""
    _body_bytes = 0
    _dry_bytes = 0
    """What has come since the last byte of a body: extensions of chunks, trailers."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._network = _network(self.client)
        self._held[self._network] += 1
        held = self._held[self._network]
        others = len(self.connections) - held
        too_many = held > max(1, _SHARE * (_CONNECTIONS - others))
        is_full = too_many or len(self.connections) > _CONNECTIONS
        if is_full and not self._make_room(self._network if too_many else None):
            transport.abort()
            return
        self._await_head()

    def _make_room(self, network: str | None) -> bool:
        """Closes idle connections of `network`, else of the one that has the most; False if there are none.

        So nobody who fills the house shuts others out. Behind a server in front all come from one
        address, and that server opens a connection anew that was closed while it idled.
        """
        idle: dict[str, list[_Guarded]] = {}
        for other in self.connections:
            if not isinstance(other, _Guarded) or other is self:
                continue
            if other.is_idle and network in (None, other._network):
                idle.setdefault(other._network, []).append(other)
        if not idle:
            return False
        for other in max(idle.values(), key=len)[:_FREED]:
            # Not listed any more: asyncio reports its loss only in the next round of the loop.
            self.connections.discard(other)
            other.transport.abort()  # It may have an answer that it does not read.
        return True

    @property
    def _holds(self) -> int:
        """Bytes in memory for this connection: of a request that has not come whole, or of answers."""
        size = self.transport.get_write_buffer_size()
        if self._in_head:
            return size + 2 * self._head_bytes  # The parser keeps another copy.
        most = READ_AT_ONCE if is_for_proxy(self.scope["path"]) else BODY_BYTES
        return size + min(self._body_bytes, most)

    def _weigh(self) -> None:
        """Count what is held anew. Beyond the limit, the address that holds the most loses its largest."""
        held = self._holds
        _Guarded._held_bytes += held - self._weight
        self._weight = held
        if _Guarded._held_bytes <= _HELD_BYTES or not held:
            return
        heavy: dict[str, list[_Guarded]] = {}
        for each in self.connections:
            if isinstance(each, _Guarded) and each._weight:
                heavy.setdefault(each._network, []).append(each)
        worst = max(heavy.values(), key=lambda g: sum(each._weight for each in g), default=[])
        for each in sorted(worst, key=lambda each: -each._weight)[:_FREED]:
            each._unweigh()
            each.transport.abort()

    def _unweigh(self) -> None:
        _Guarded._held_bytes -= self._weight
        self._weight = 0

    def pause_writing(self) -> None:
        super().pause_writing()
        self._weigh()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._weigh()

    @property
    def is_idle(self) -> bool:
        """No request is under way: at most part of a head has come."""
        return self.cycle is None or self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._unweigh()
        self._held[self._network] -= 1
        if not self._held[self._network]:
            del self._held[self._network]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._in_head:
            if self._deadline is None:
                self._await_head()
            self._head = self._head + data if self._head_bytes else data
            self._head_bytes += len(data)
        else:
            self._head = data  # The next head may begin in it.
            self._dry_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._read(data)
            # What came with the end of the head was counted too; only a head that goes on is refused.
            if (self._head_bytes if self._in_head else self._dry_bytes) > _HEAD_BYTES:
                raise _Refused(_TOO_LARGE)
            if not self._in_head or not self._head_bytes:
                self._head = b""
            if self._head_bytes or self._weight:
                self._weigh()
        except _Refused as refused:
            self._refuse(refused.answer)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause.answer if isinstance(cause, _Refused) else _MALFORMED)

    def _read(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            # It stops after the head, whatever length that announces, and would take the body for the
            # next request. A parser that knows of no offer reads the body, and nothing after it.
            self.parser = httptools.HttpRequestParser(_OnlyBody(self))
            framing = [n + b": " + v + b"\r\n" for n, v in self.headers if n in _FRAMING]
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n")
            if not self._deaf:
                self.parser.feed_data(data[offer.args[0] :])

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # Trailers come after the request has been judged by its headers.
            super().on_header(name, value)
            if self.headers[-1][0] == b"upgrade":
                self._offers = True

    def on_headers_complete(self) -> None:
        if self._deaf:
            raise _Refused(b"")
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise _Refused(_VERSION)
        if self.parser.get_method() == b"CONNECT":
            raise _Refused(_TUNNEL)
        if version == "1.0" and b" HTTP/1.0\r\n" not in self._head:
            raise _Refused(_VERSION)  # RTSP or ICE, which the parser takes too.
        hosts = []
        for name, value in self.headers:
            if name == b"transfer-encoding" and (value.lower() != b"chunked" or version == "1.0"):
                raise _Refused(_CODING)
            if name == b"host":
                hosts.append(value.lower())
        if len(hosts) > 1 or (self.url[:1] != b"/" and hosts and _authority(self.url) not in hosts):
            raise _Refused(_HOST)
        self._in_head = False
        self._forget()
        if version == "1.0":
            self.expect_100_continue = False  # RFC 9110, 10.1.1
        super().on_headers_complete()
        if self._offers:
            self.cycle.keep_alive = False
        self._keeps_alive = self.cycle.keep_alive
        if self.expect_100_continue:
            # An answer that comes before the body was asked for: what the caller sends next may be the
            # body, or not.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._dry_bytes = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # Only this parser thinks so; the next one goes on.
        super().on_message_complete()
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keeps_alive
        self._in_head, self._head_bytes, self._body_bytes, self._dry_bytes = True, 0, 0, 0
        self._deaf = self._offers

    def _refuse(self, answer: bytes) -> None:
        """Answers what was read whole, then ends. What was not read whole is not run."""
        self._deaf = True
        self._forget()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            cycle.keep_alive = False
        elif self.pipeline:
            # Its turn has not come: those before it are answered first.
            cycle.disconnected = True
            self.pipeline[0] = (cycle, _BrokenOff(answer, self.transport))  # type: ignore[assignment]
        elif not self.transport.is_closing():
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
            if answer and (cycle is None or cycle.response_complete or not cycle.response_started):
                self.transport.write(answer)
                self._linger()
            else:
                self.transport.close()

    def _linger(self) -> None:
        """Close our side, and drop for a while what the caller still sends.

        A close with unread bytes resets the connection, and the caller never sees the answer
        (RFC 9112, 9.6).
        """
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(_HEAD_S, self._late)

    def _late(self) -> None:
        self._deadline = None
        self._refuse(b"")

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _network(client: tuple[str, int] | None) -> str:
    """Whose it is: an address, or the 64 bits of IPv6 that one subscriber has all of."""
    if client is None:
        return ""
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0])
    except ValueError:
        return client[0]
    return client[0] if address.version == 4 else address.packed[:8].hex()


def _authority(url: bytes) -> bytes | None:
    """The host in an address that has one; None for `*`, which has none."""
    _, found, rest = url.partition(b"://")
    return re.split(b"[/?#]", rest, maxsplit=1)[0].lower() if found else None


class _OnlyBody:
    """Callbacks for a parser that reads one body for a `_Guarded`."""

    def __init__(self, protocol: _Guarded) -> None:
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete


class _BrokenOff:
    """The app for a request that turned out to be malformed while it waited for its turn."""

    def __init__(self, answer: bytes, transport: Transport) -> None:
        self._answer = answer
        self._transport = transport

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._transport.write(self._answer)
        self._transport.close()


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises Misconfigured, with the remedy, where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, the loop sets TCP_NODELAY on what is accepted; without it each answer
    # waits 40 ms for the delayed acknowledgement of its head.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Of Linux; what is accepted inherits it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_S * 1000)
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
