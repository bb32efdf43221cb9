"""What of a caller's request goes to Stripe, and its sending: byte for byte, or not at all.

    /api.stripe.com/v1/customers   a host of Stripe's before the path
    /v1/customers, /v2/...         for SDKs whose base URL is ours

The host is taken from a table, never from the request, and the path is sent byte for byte. A path that
a server on the way might resolve into another one (`..`, a backslash) is rejected, and so is a request
that two servers could parse differently. Hop-by-hop headers (RFC 9110, 7.6.1), our own headers and the
console's cookies are dropped in both directions; a `Connection` header cannot drop what Stripe reads,
such as an idempotency key. Bodies have a limit of size and of silence. All of this is pure, apart from
reading the body.

Unlike `client.transport`, `Upstream` neither decompresses nor changes other headers. It follows no redirect
and keeps no cookie. A request is sent once; only a GET or HEAD on a connection that Stripe had closed
meanwhile is sent again. Body and response are streamed.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import unquote_to_bytes

import aiohttp
import yarl

from pinstripe.client.transport import Timeouts, describe_error, open_session

Message = dict[str, Any]
"""Of ASGI."""

Receive = Callable[[], Awaitable[Message]]

METHODS = ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS")

SILENCE_S = 30.0
"""How long a caller may send nothing of an announced body."""

LEAST_BYTES_S = 1024
"""Bytes a second on average: a slower body would hold a connection for ever."""

READ_AT_ONCE = 256 * 1024
"""Bodies up to this size are read before the request is sent; larger ones are streamed."""

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
"""Of two, one server would read the first and another the last."""

_DROPPED = frozenset({b"host", b"expect"})
"""`Host` is Stripe's; `Expect` is answered by the server in front."""


class RequestRejected(Exception):
    """The request is refused: an HTTP status and why, in words for the caller."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class ClientDisconnected(Exception):
    """The caller went away before the body was complete: nothing is run."""


def checked(method: str, headers: Headers, *, body_limit: int) -> list[tuple[str, str]]:
    """The headers for Stripe. Raises RequestRejected."""
    if method not in METHODS:
        raise RequestRejected(
            405, f"The method {method[:20]} is not passed on; {', '.join(METHODS)} are."
        )
    seen: set[bytes] = set()
    for name, value in headers:
        if name in _ONCE:
            if name in seen:
                raise RequestRejected(400, f"The header {name.decode('latin-1')} is there twice.")
            if name in _ONE_VALUE and b"," in value:
                raise RequestRejected(
                    400, f"The header {name.decode('latin-1')} has several values."
                )
        elif b"_" in name and _is_ours_to_judge(name.replace(b"_", b"-")):
            raise RequestRejected(
                400, f"The header {name.decode('latin-1')} is spelt with an underscore."
            )
        seen.add(name)
        if b"\r" in value or b"\n" in value or b"\0" in value:
            raise RequestRejected(400, "A header has a line break or NUL in it.")
    if b"content-length" in seen and b"transfer-encoding" in seen:
        raise RequestRejected(400, "Content-Length and Transfer-Encoding exclude each other.")
    if {b"stripe-account", b"stripe-context"} <= seen:
        _agree(dict(headers))
    length = announced(headers)
    if length is not None and length > body_limit:
        raise RequestRejected(
            413, f"The body has more than {body_limit} bytes, the most that is passed on."
        )
    try:
        return [
            (name.decode("ascii"), value.decode())
            for name, value in end_to_end(headers)
            if name not in _DROPPED
        ]
    except UnicodeDecodeError:
        raise RequestRejected(
            400, "A header is not UTF-8, and could not be passed on as it is."
        ) from None


def _is_ours_to_judge(name: bytes) -> bool:
    """Whether this is a header that must not come in disguise: CGI and Rack take _ for -."""
    return name in _ONCE or name.startswith(OURS)


def _agree(headers: dict[bytes, bytes]) -> None:
    """A context supersedes an account (https://docs.stripe.com/context); both must mean the same."""
    account, context = headers[b"stripe-account"], headers[b"stripe-context"]
    if account != context.rpartition(b"/")[2]:
        raise RequestRejected(400, "Stripe-Account and Stripe-Context name different accounts.")


def announced(headers: Headers) -> int | None:
    """The length of the body, None if it is not given. Raises RequestRejected if it is no number."""
    value = next((value for name, value in headers if name == b"content-length"), None)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise RequestRejected(400, "The Content-Length is no number.")
    return int(value)


def has_body(headers: Headers) -> bool:
    """Whether a body follows the headers (RFC 9112, 6.3)."""
    return any(
        (name == b"content-length" and value != b"0") or name == b"transfer-encoding"
        for name, value in headers
    )


async def body_of(headers: Headers, receive: Receive, *, limit: int) -> bytes | Upload | None:
    """The body: whole if it is small, else as it comes. Raises RequestRejected, ClientDisconnected."""
    if not has_body(headers):
        return None
    incoming = _parts(receive, limit, announced(headers))
    begun: list[bytes] = []
    size = 0
    async for part in incoming:
        begun.append(part)
        size += len(part)
        if size > READ_AT_ONCE:
            return Upload(b"".join(begun), incoming)
    return begun[0] if len(begun) == 1 else b"".join(begun)


class Upload:
    """A large body on its way. `failure`: why it broke off, if it did; `is_over`: it came whole."""

    def __init__(self, begun: bytes, rest: AsyncIterator[bytes]) -> None:
        self.failure: RequestRejected | ClientDisconnected | None = None
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
        except (RequestRejected, ClientDisconnected) as failure:
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
            raise RequestRejected(408, "The body did not come within reasonable time.") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise RequestRejected(413, "The body is larger than what is passed on.")
        if part:
            yield part
        if not message.get("more_body"):
            if length is not None and size != length:
                # The server in front lost some of it: what is left might be another order.
                raise RequestRejected(400, "The body is not as long as its Content-Length says.")
            return


API = "api.stripe.com"

FILES = "files.stripe.com"

STRIPE: Mapping[str, str] = {
    host: f"https://{host}"
    for host in (API, FILES, "connect.stripe.com", "meter-events.stripe.com", "uploads.stripe.com")
}
"""All that can be reached, and where it is."""

MIRRORED = frozenset({API, FILES, "uploads.stripe.com"})
"""Hosts whose answers hold objects that have tables."""

_PLAIN = (b"/v1/", b"/v2/")

# Printable ASCII, as RFC 3986 wants it sent; a fragment is never sent.
_PATH = re.compile(rb"/[\x21\x22\x24-\x3e\x40-\x5b\x5d-\x7e]*")

_QUERY = re.compile(rb"[\x21\x22\x24-\x7e]*")

# A percent sign that begins no escape is read differently by different servers.
_STRAY_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")

_LONGEST = 16 * 1024
"""Bytes of path and query. Stripe's own limit is about as much."""


@dataclass(frozen=True, slots=True)
class Target:
    """`path` and `query` as the caller wrote them; `url` is all of it."""

    host: str
    path: str
    query: str
    url: str


def hosts_at(base_url: str) -> dict[str, str]:
    """The table with `base_url` as the API (a simulator has all hosts at one address).

    >>> hosts_at("https://api.stripe.com")["files.stripe.com"]
    'https://files.stripe.com'
    >>> hosts_at("http://127.0.0.1:4242/")["files.stripe.com"]
    'http://127.0.0.1:4242'
    """
    base = base_url.rstrip("/")
    return dict(STRIPE) if base == STRIPE[API] else dict.fromkeys(STRIPE, base)


def is_for_proxy(path: str) -> bool:
    """Whether a path (raw, or as ASGI decodes it) is the proxy's.

    >>> is_for_proxy("/v1/customers"), is_for_proxy("/api.stripe.com/x"), is_for_proxy("/api/syncs")
    (True, True, False)
    """
    first = path[1:].partition("/")[0]
    return first in ("v1", "v2") or first.endswith(".stripe.com")


def target_of(raw_path: bytes, query: bytes, hosts: Mapping[str, str]) -> Target:
    """Where a request goes, by its path as it came. Raises RequestRejected.

    >>> target_of(b"/v1/plans/a%2Fb", b"expand[]=product", STRIPE).url
    'https://api.stripe.com/v1/plans/a%2Fb?expand[]=product'
    """
    if raw_path.startswith(_PLAIN):
        host, path = API, raw_path
    else:
        first, slash, rest = raw_path[1:].partition(b"/")
        host, path = first.decode("latin-1"), slash + rest
    base = hosts.get(host)
    if base is None or raw_path[:1] != b"/":
        known = ", ".join(hosts)
        raise RequestRejected(404, f"Only Stripe's hosts can be reached here: {known}.")
    _check(path, query)
    sent_path = path.decode("ascii")
    asked = query.decode("ascii")
    return Target(
        host, sent_path, asked, f"{base}{sent_path}?{asked}" if asked else base + sent_path
    )


def _check(path: bytes, query: bytes) -> None:
    if len(path) + len(query) > _LONGEST:
        raise RequestRejected(414, f"Path and query are longer than {_LONGEST} bytes.")
    if not _PATH.fullmatch(path) or not _QUERY.fullmatch(query):
        reason = "The path or query has characters that must be percent-encoded."
        raise RequestRejected(400, reason)
    if _STRAY_PERCENT.search(path):
        raise RequestRejected(400, "The path has a % that begins no escape.")
    if b"." in path or b"%2" in path:
        # Decoded twice: a server in between may do so once before Stripe does.
        once = unquote_to_bytes(path)
        for seen in (path, once, unquote_to_bytes(once)):
            if {b".", b".."} & set(seen.replace(b"\\", b"/").split(b"/")):
                raise RequestRejected(400, "The path has a segment . or .. in it.")


Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case."""

OURS = b"pinstripe-"
"""Headers of ours begin so. None of a caller's goes to Stripe, none comes from there."""

_OUR_COOKIES = b"pinstripe"
"""And our cookies."""

_COOKIES = frozenset({b"cookie", b"set-cookie"})

_CONNECTION = frozenset(
    {
        *(b"connection", b"http2-settings", b"keep-alive", b"proxy-authenticate"),
        *(b"proxy-authorization", b"proxy-connection", b"te", b"trailer"),
        *(b"transfer-encoding", b"upgrade"),
    }
)

_USUAL = frozenset({b"keep-alive", b"close"})
"""Values of `Connection` that name no header that would be passed on."""

_NEVER_LOST = (b"authorization", b"idempotency-", b"stripe-", b"content-", b"accept", b"request-")


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers that are passed on, in their order.

    >>> end_to_end([(b"connection", b"close, x-hop"), (b"x-hop", b"1"), (b"date", b"now")])
    [(b'date', b'now')]
    """
    kept: list[tuple[bytes, bytes]] = []
    named: set[bytes] = set()
    for header in headers:
        name, value = header
        if name in _CONNECTION:
            if name == b"connection" and value.lower() not in _USUAL:
                named |= {item.strip().lower() for item in value.split(b",")}
        elif name in _COOKIES and _OUR_COOKIES in value:
            value = _without_our_cookies(name, value)
            if value:
                kept.append((name, value))
        elif not name.startswith(OURS):
            kept.append(header)
    dropped = {name for name in named if not name.startswith(_NEVER_LOST)}
    return [(n, v) for n, v in kept if n not in dropped] if dropped else kept


def _without_our_cookies(name: bytes, value: bytes) -> bytes:
    """The value of a cookie header; b"" if nothing of it is left.

    >>> _without_our_cookies(b"cookie", b"a=b; pinstripe_session=secret; c=d")
    b'a=b; c=d'
    """
    if name == b"set-cookie":
        return b"" if value.startswith(_OUR_COOKIES) else value
    pairs = [pair.strip() for pair in value.split(b";")]
    return b"; ".join(pair for pair in pairs if not pair.startswith(_OUR_COOKIES))


_TIMEOUTS = Timeouts(connect_s=10.0, read_s=80.0, total_s=None)
"""Stripe's own SDKs bear a silence of 80 s too. A transfer may last as long as it moves."""

# Headers that aiohttp would add.
_SKIPPED = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
_REPEATABLE = frozenset({"GET", "HEAD"})

Body = bytes | AsyncIterable[bytes] | None


class UpstreamError(Exception):
    """No answer, or not all of it. `sent`: Stripe may have seen, and run, the request."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


@dataclass(slots=True)
class UpstreamResponse:
    """An answer whose head has come. Read its body or `close` it."""

    status: int
    headers: Headers
    """As they came, without those of the connection; names in lower case."""
    elapsed_s: float
    """From just before sending until the head was there."""
    received_at: float
    _response: aiohttp.ClientResponse = field(repr=False)

    def header(self, name: bytes) -> bytes:
        """The first header of this name (in lower case), b"" if there is none."""
        return next((value for key, value in self.headers if key == name), b"")

    async def read(
        self, most: int, may_hold: Callable[[int, int], bool] = lambda _, __: True
    ) -> tuple[bytes, bool]:
        """(body, whether that is all of it), of not much more than `most` bytes. Raises UpstreamError.

        `may_hold` is told of each part, with the size of all of them, and says whether there may be more.
        """
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            parts.append(chunk)
            size += len(chunk)
            if not may_hold(len(chunk), size) or size > most:
                return b"".join(parts), False
        return parts[0] if len(parts) == 1 else b"".join(parts), True

    async def chunks(self) -> AsyncIterator[bytes]:
        """What of the body has not been read, as it comes. Raises UpstreamError if it breaks off."""
        content = self._response.content
        try:
            while chunk := await content.readany():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.close()
            raise _upstream_error(error, sent=True) from None
        self._response.release()

    def close(self) -> None:
        """Hang up on Stripe."""
        self._response.close()


class Upstream:
    """Kept-alive connections to Stripe's hosts. An async context manager."""

    def __init__(
        self,
        *,
        proxy: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._proxy = proxy
        self._clock = clock
        self._wall_clock = wall_clock
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = open_session(_TIMEOUTS, skip_auto_headers=_SKIPPED, proxy=self._proxy)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: Body = None
    ) -> UpstreamResponse:
        """One request; returns when the head of the answer is there. Raises UpstreamError.

        `url` is sent unchanged. What the body's iterator raises is not translated.
        """
        try:
            return await self._try(method, url, headers, body)
        except aiohttp.ServerDisconnectedError as error:
            if method not in _REPEATABLE:
                raise _upstream_error(error) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _upstream_error(error) from None
        try:
            return await self._try(method, url, headers, body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _upstream_error(error) from None

    async def _try(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: Body
    ) -> UpstreamResponse:
        if self._session is None:
            raise RuntimeError("the connections are not open")
        started = self._clock()
        response = await self._session.request(
            method, yarl.URL(url, encoded=True), data=body, headers=headers, allow_redirects=False
        )
        return UpstreamResponse(
            response.status,
            end_to_end((name.lower(), value) for name, value in response.raw_headers),
            self._clock() - started,
            self._wall_clock(),
            response,
        )


def _upstream_error(error: Exception, *, sent: bool = False) -> UpstreamError:
    broken = describe_error(error, _TIMEOUTS)
    return UpstreamError(broken.reason, sent=sent or broken.sent)
