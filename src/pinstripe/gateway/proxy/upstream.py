"""Sends requests to Stripe as the caller made them: one try, byte for byte, body and response streamed.

Unlike `client.transport`, it neither decompresses nor changes headers, apart from those of the
connection (RFC 9110, 7.6.1). It follows no redirect and keeps no cookie. A request is sent once; only a
GET or HEAD on a connection that Stripe had closed meanwhile is sent again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import aiohttp
import yarl

from pinstripe.client.transport import Timeouts, describe_error, open_session
from pinstripe.gateway.proxy.request import Headers, end_to_end

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
            method,
            yarl.URL(url, encoded=True),
            data=body,
            headers=headers,
            allow_redirects=False,
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
