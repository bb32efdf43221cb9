"""A request to the proxy, checked: what may be passed on to Stripe, and the body as it comes.

Pure but for the reading of bodies, which has a limit of size and of silence. The HTTP parser in front
refuses malformed requests; what it lets through and two servers could read differently is refused
here again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from pinstripe.gateway.upstream_headers import OURS, Headers, end_to_end

Message = dict[str, Any]
"""Of ASGI."""
Receive = Callable[[], Awaitable[Message]]

METHODS = ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS")
SILENCE_S = 30.0
"""How long a caller may send nothing of a body that it has announced."""
LEAST_BYTES_S = 1024
"""And how much must come in a second, on the whole: a body that drips holds a connection for ever."""
_AT_ONCE = 256 * 1024
"""Bodies up to this size are read before Stripe is asked; larger ones are passed on as they come."""

_ONE_VALUE = frozenset({b"authorization", b"stripe-account", b"stripe-context", b"stripe-version"})
"""Neither twice nor a list: servers on the way may join two headers of one name with a comma."""
_ONCE = _ONE_VALUE | {
    b"content-encoding",
    b"content-length",
    b"content-type",
    b"host",
    b"idempotency-key",
    b"transfer-encoding",
}
"""What would be read differently by whoever takes the first and whoever takes the last."""
_DROPPED = frozenset({b"host", b"expect"})
"""`Host` is Stripe's; `Expect` is answered by the server in front."""


class Turned(Exception):
    """The request is refused: an HTTP status and why, in words for the caller."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class HungUp(Exception):
    """The caller went away before the body was complete: nothing is run."""


def checked(method: str, headers: Headers, *, body_limit: int) -> list[tuple[str, str]]:
    """The headers for Stripe. Raises Turned."""
    if method not in METHODS:
        raise Turned(405, f"The method {method[:20]} is not passed on; {', '.join(METHODS)} are.")
    seen: set[bytes] = set()
    for name, value in headers:
        if name in _ONCE:
            if name in seen:
                raise Turned(400, f"The header {name.decode('latin-1')} is there twice.")
            if name in _ONE_VALUE and b"," in value:
                raise Turned(400, f"The header {name.decode('latin-1')} has several values.")
        elif b"_" in name and _is_ours_to_judge(name.replace(b"_", b"-")):
            raise Turned(400, f"The header {name.decode('latin-1')} is spelt with an underscore.")
        seen.add(name)
        if b"\r" in value or b"\n" in value or b"\0" in value:
            raise Turned(400, "A header has a line break or NUL in it.")
    if b"content-length" in seen and b"transfer-encoding" in seen:
        raise Turned(400, "Content-Length and Transfer-Encoding exclude each other.")
    if {b"stripe-account", b"stripe-context"} <= seen:
        _agree(dict(headers))
    length = announced(headers)
    if length is not None and length > body_limit:
        raise Turned(413, f"The body has more than {body_limit} bytes, the most that is passed on.")
    try:
        return [
            (name.decode("ascii"), value.decode())
            for name, value in end_to_end(headers)
            if name not in _DROPPED
        ]
    except UnicodeDecodeError:
        raise Turned(400, "A header is not UTF-8, and could not be passed on as it is.") from None


def _is_ours_to_judge(name: bytes) -> bool:
    """Whether this is a header that must not come in disguise: CGI and Rack take _ for -."""
    return name in _ONCE or name.startswith(OURS)


def _agree(headers: dict[bytes, bytes]) -> None:
    """A context supersedes an account (https://docs.stripe.com/context); both must mean the same."""
    account, context = headers[b"stripe-account"], headers[b"stripe-context"]
    if account != context.rpartition(b"/")[2]:
        raise Turned(400, "Stripe-Account and Stripe-Context name different accounts.")


def announced(headers: Headers) -> int | None:
    """The length of the body, None if it is not told. Raises Turned for what is no number."""
    told = next((value for name, value in headers if name == b"content-length"), None)
    if told is None:
        return None
    if not told.isdigit() or len(told) > 18:
        raise Turned(400, "The Content-Length is no number.")
    return int(told)


def has_body(headers: Headers) -> bool:
    """Whether a body follows the headers (RFC 9112, 6.3)."""
    return any(
        (name == b"content-length" and value != b"0") or name == b"transfer-encoding"
        for name, value in headers
    )


async def body_of(headers: Headers, receive: Receive, *, limit: int) -> bytes | Upload | None:
    """The body: whole if it is small, else as it comes. Raises Turned, HungUp."""
    if not has_body(headers):
        return None
    incoming = _parts(receive, limit, announced(headers))
    begun: list[bytes] = []
    size = 0
    async for part in incoming:
        begun.append(part)
        size += len(part)
        if size > _AT_ONCE:
            return Upload(b"".join(begun), incoming)
    return begun[0] if len(begun) == 1 else b"".join(begun)


class Upload:
    """A large body on its way. `failure`: why it broke off, if it did; `is_over`: it came whole."""

    def __init__(self, begun: bytes, rest: AsyncIterator[bytes]) -> None:
        self.failure: Turned | HungUp | None = None
        self.is_over = False
        self._begun = begun
        self._rest = rest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._begun
        self._begun = b""
        try:
            async for part in self._rest:
                yield part
            self.is_over = True
        except (Turned, HungUp) as failure:
            # Remembered here: the HTTP client tells only that the sending failed.
            self.failure = failure
            raise


async def _parts(receive: Receive, limit: int, length: int | None) -> AsyncIterator[bytes]:
    size = 0
    clock = asyncio.get_running_loop().time
    began = clock()
    while True:
        try:
            by = min(clock() + SILENCE_S, began + SILENCE_S + size / LEAST_BYTES_S)
            async with asyncio.timeout_at(by):
                message = await receive()
        except TimeoutError:
            raise Turned(408, "The body did not come within reasonable time.") from None
        if message["type"] == "http.disconnect":
            raise HungUp
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise Turned(413, "The body is larger than what is passed on.")
        if part:
            yield part
        if not message.get("more_body"):
            if length is not None and size != length:
                # The server in front lost some of it: what is left might be another order.
                raise Turned(400, "The body is not as long as its Content-Length says.")
            return
