"""Bytes to and from Stripe over HTTP. The only file that knows aiohttp and its exceptions.

`Wire.send` makes one try and returns what came of it as a value: an `Answer`, or `Broken` with the
reason in words. Nothing of aiohttp's gets out: its exceptions carry the request's headers, and with
them the key. It follows no redirect, keeps no cookie and tries nothing twice by itself; who asks
again, and when, is `session`. It vouches for the body having arrived whole.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import aiohttp
import yarl
from isal import isal_zlib

# The proxy and whoever else lets aiohttp unpack gets the fast one too.
aiohttp.set_zlib_backend(isal_zlib)

# isal's type stub declares its exception class as if it were an instance.
_IsalError = cast("type[Exception]", isal_zlib.error)

_GZIP = 31  # zlib's window bits, for a gzip wrapper
_MOST_UNPACKED = 256 * 2**20
"""Of one answer. A page of 100 objects has up to a few MB; 1 MB of gzip can be 1 GB."""
_MOST_RATIO = 1032  # deflate packs no tighter (https://www.zlib.net/zlib_tech.html)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. `read_s` is the longest silence; `total_s` bounds a whole try, body included."""

    connect_s: float = 5.0
    read_s: float = 30.0
    total_s: float = 80.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Some HTTP answer, complete; not necessarily Stripe's. Header names in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    elapsed_s: float
    """From just before sending until the headers were there."""
    received_at: float
    """When the headers were there, by the local clock, Unix seconds."""


@dataclass(frozen=True, slots=True)
class Broken:
    """No answer. `sent`: Stripe may have seen, and run, the request."""

    reason: str
    sent: bool


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
    ) -> None:
        self._headers = dict(headers)
        self._timeouts = timeouts
        self._proxy = proxy
        self._clock = clock
        self._wall_clock = wall_clock
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the pool. How many connections it holds is the budget's affair: no limit here."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, keepalive_timeout=30),
            headers={**self._headers, "Accept-Encoding": "gzip"},
            timeout=aiohttp.ClientTimeout(
                total=self._timeouts.total_s,
                sock_connect=self._timeouts.connect_s,
                sock_read=self._timeouts.read_s,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=2**18,
            max_field_size=2**16,
            proxy=self._proxy,
        )
        # aiohttp sends a GET again, by itself, when a kept connection turns out dead: past our
        # budget and our count. There is no public switch; a test in flows watches this one.
        self._session._retry_connection = False

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(
        self, method: str, url: str, *, body: bytes | None, headers: Mapping[str, str]
    ) -> Answer | Broken:
        """One try. `url` is sent as it is: fully quoted by the caller."""
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
                packed = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return self._broken(error)
        encoding = lower.get("content-encoding", "").lower()
        if encoding in ("", "identity"):
            return Answer(status, lower, packed, elapsed_s, received_at)
        if encoding != "gzip":
            return Broken(f"it came packed as {encoding!r}, which was not asked for", sent=True)
        try:
            return Answer(status, lower, _unpack(packed), elapsed_s, received_at)
        except _IsalError:
            return Broken("the gzip body is cut short or damaged", sent=True)

    def _broken(self, error: Exception) -> Broken:
        """`error` in words. Its own text is left out on purpose: it may quote the request."""
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
                return Broken(f"no connection within {self._timeouts.connect_s:g} s", sent=False)
            case aiohttp.SocketTimeoutError():
                return Broken(f"silence for {self._timeouts.read_s:g} s", sent=True)
            case aiohttp.ServerDisconnectedError():
                return Broken("the connection was closed before an answer came", sent=True)
            case aiohttp.ClientPayloadError():
                return Broken("the body was cut short", sent=True)
            case aiohttp.ClientResponseError():
                return Broken("the answer is not valid HTTP", sent=True)
            case aiohttp.InvalidURL():
                return Broken("the URL is not valid", sent=False)
            case TimeoutError():
                return Broken(f"not finished after {self._timeouts.total_s:g} s", sent=True)
            case OSError():
                return Broken(f"the connection broke: {_words(error)}", sent=True)
        return Broken(f"the connection broke ({type(error).__name__})", sent=True)


def _words(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "the host name cannot be resolved"
    # By the number: asyncio puts the address into the text ("Connect call failed").
    return os.strerror(error.errno).lower() if error.errno else type(error).__name__


def _unpack(packed: bytes) -> bytes:
    """The body, whole: the one call checks the trailer's length and CRC, which a stream cut in the
    middle never gets to. It also costs half of what unpacking piece by piece does.
    """
    if len(packed) * _MOST_RATIO <= _MOST_UNPACKED:
        return isal_zlib.decompress(packed, _GZIP) if packed else b""
    unpacking = isal_zlib.decompressobj(_GZIP)
    unpacked: bytes = unpacking.decompress(packed, _MOST_UNPACKED)
    if not unpacking.eof:
        raise _IsalError("cut short, or larger than any page")
    return unpacked
