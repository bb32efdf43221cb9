"""Sends one HTTP request to Stripe and returns what came back as a value.

    Wire.send(method, url, ...) -> Response | Broken

Only this module and the proxy's `Upstream` know aiohttp; both take their session, the words for an error
and `gunzip` from here. No exception of aiohttp's leaves it: they carry the request's headers, and with them
the key. A session follows no redirect, keeps no cookie and repeats nothing: `client.client` decides on
retries. A `Response` has its whole body: a body that is shorter than announced, or damaged, is `Broken`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import aiohttp
import yarl
from isal import isal_zlib

from pinstripe.client.response import Margins, Response

# For every session: three to four times faster than zlib.
aiohttp.set_zlib_backend(isal_zlib)

# isal's type stub declares its exception class as if it were an instance.
_GUNZIP_ERROR = cast("type[Exception]", isal_zlib.error)

# zlib's window bits, by what the header `Content-Encoding` says.
_WINDOW_BITS = {"gzip": 31, "deflate": zlib.MAX_WBITS}

_MAX_BODY = 256 * 2**20
"""Bytes of one response, unpacked. A page of 100 objects has up to a few MB; 1 MB of gzip can be 1 GB."""

_STEP_BYTES = 2**20
"""Unpacked at a time. The first step, some 2 ms, runs in the event loop, the others in a thread."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. `read_s` is the longest silence; `total_s` bounds a whole try, body included."""

    connect_s: float = 5.0
    read_s: float = 30.0
    total_s: float | None = 80.0


@dataclass(frozen=True, slots=True)
class Broken:
    """No response. `sent`: Stripe may have received, and run, the request. `too_large`: there is one, of
    more bytes than are taken.
    """

    reason: str
    sent: bool
    too_large: bool = False


class Unreadable(Exception):
    """A body that cannot be read; the text says why, and quotes nothing of it."""


class TooLarge(Unreadable):
    """A body of more bytes than the caller takes."""


class Wire:
    """A pool of kept-alive connections. An async context manager."""

    def __init__(
        self,
        *,
        headers: Mapping[str, str],
        timeouts: Timeouts,
        proxy: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        margins: Margins = Margins(),  # noqa: B008 (frozen)
    ) -> None:
        self._margins = margins
        self._headers = dict(headers)
        self._timeouts = timeouts
        self._proxy = proxy
        self._clock = clock
        self._wall_clock = wall_clock
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        headers = {**self._headers, "Accept-Encoding": "gzip"}
        self._session = open_session(self._timeouts, headers=headers, proxy=self._proxy)

    async def close(self) -> None:
        """Closes every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(
        self, method: str, url: str, *, body: bytes | None, headers: Mapping[str, str]
    ) -> Response | Broken:
        """Sends the request once. `url` is sent byte for byte: the caller has quoted it."""
        if self._session is None:
            raise RuntimeError("the connection pool is not open")
        started = self._clock()
        try:
            async with self._session.request(
                method,
                yarl.URL(url, encoded=True),
                data=body,
                headers=headers,
                allow_redirects=False,
            ) as response:
                elapsed_s = self._clock() - started
                received_at = self._wall_clock()
                lower = {name.lower(): value for name, value in response.headers.items()}
                packed = await _read(response)
                status = response.status
            encoding = lower.get("content-encoding", "")
            whole = await gunzip(packed, encoding, max_bytes=_MAX_BODY)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return describe_error(error, self._timeouts)
        except TooLarge as error:
            return Broken(str(error), sent=True, too_large=True)
        except Unreadable as error:
            return Broken(str(error), sent=True)
        return Response(status, lower, whole, elapsed_s, received_at, self._margins)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body as it came. Raises TooLarge, which closes the connection, before more is in memory."""
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > _MAX_BODY:
            response.close()
            raise _too_large(_MAX_BODY)
        parts.append(part)
    return b"".join(parts)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the body is larger than {max_bytes // 2**20} MB")


def open_session(
    timeouts: Timeouts,
    *,
    headers: Mapping[str, str] | None = None,
    skip_auto_headers: Sequence[str] = (),
    proxy: str | None = None,
) -> aiohttp.ClientSession:
    """A session that passes bytes on unchanged and sends each request once.

    It has no limit of connections: the rate limiter, or the gateway, bounds the requests. Connections are
    kept for less than the minute after which Stripe closes them: a write into a closing one cannot be sent
    again.
    """
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, keepalive_timeout=30),
        headers=headers,
        skip_auto_headers=skip_auto_headers,
        timeout=aiohttp.ClientTimeout(
            total=timeouts.total_s, sock_connect=timeouts.connect_s, sock_read=timeouts.read_s
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=2**18,
        max_field_size=2**16,
        proxy=proxy,
    )
    # aiohttp repeats GET and DELETE when a kept connection turns out dead, past our rate limit and count.
    # There is no public switch; a test in tests/flows/test_client.py fails if this one stops working.
    session._retry_connection = False
    return session


def describe_error(error: Exception, timeouts: Timeouts) -> Broken:
    """An error of aiohttp's in words. Its own text is left out on purpose: it may quote the request."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return Broken("the host name cannot be resolved", sent=False)
        case aiohttp.ClientConnectorCertificateError():
            return Broken("its TLS certificate is not trusted", sent=False)
        case aiohttp.ClientSSLError():
            return Broken("no TLS connection can be made", sent=False)
        case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
            return Broken("the HTTP proxy cannot be used", sent=False)
        case aiohttp.ClientConnectorError():
            return Broken(f"no connection: {_words(error.os_error)}", sent=False)
        case aiohttp.ConnectionTimeoutError():
            return Broken(f"no connection within {timeouts.connect_s:g} s", sent=False)
        case aiohttp.SocketTimeoutError():
            return Broken(f"silence for {timeouts.read_s:g} s", sent=True)
        case aiohttp.ServerDisconnectedError():
            return Broken("the connection was closed before an answer came", sent=True)
        case aiohttp.ClientPayloadError():
            return Broken("the body was cut short", sent=True)
        case aiohttp.ClientResponseError():
            return Broken("the answer is not valid HTTP", sent=True)
        case aiohttp.InvalidURL():
            return Broken("the URL is not valid", sent=False)
        case TimeoutError() if timeouts.total_s is not None:
            return Broken(f"not finished after {timeouts.total_s:g} s", sent=True)
        case OSError():
            return Broken(f"the connection broke: {_words(error)}", sent=True)
    return Broken(f"the connection broke ({type(error).__name__})", sent=True)


def _words(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "the host name cannot be resolved"
    # By the number: asyncio puts the address into the text ("Connect call failed").
    return os.strerror(error.errno).lower() if error.errno else type(error).__name__


async def gunzip(body: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """The whole body without its compression (`encoding`: the header `Content-Encoding`).

    Raises Unreadable where it is damaged or cut short, TooLarge beyond `max_bytes`. Its length and CRC are
    checked. No more than `max_bytes` and a step are ever in memory.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity") or not body:
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        return body
    steps = _unpacked(body, encoding, max_bytes)
    first = next(steps)
    if len(first) < _STEP_BYTES:
        return first + b"".join(steps)
    # isal releases the interpreter's lock while it unpacks.
    return first + await asyncio.to_thread(b"".join, steps)


def _unpacked(body: bytes, encoding: str, max_bytes: int) -> Iterator[bytes]:
    """The body in steps. Raises as `gunzip`."""
    if encoding not in _WINDOW_BITS:
        raise Unreadable(f"the body is packed as {encoding!r}, which was not asked for")
    unpacking = isal_zlib.decompressobj(_WINDOW_BITS[encoding])
    size = 0
    while not unpacking.eof:
        try:
            step = unpacking.decompress(body, _STEP_BYTES)
        except _GUNZIP_ERROR as error:
            raise Unreadable("the packed body is damaged") from error
        if not step and not unpacking.eof:
            raise Unreadable("the packed body is cut short")
        size += len(step)
        if size > max_bytes:
            raise _too_large(max_bytes)
        yield step
        body = unpacking.unconsumed_tail
