"""Sends one small request to Stripe and returns the result as a value.

A refusal is a result here, not an error. Errors that end a check (an unknown key) are left to the
caller, which knows which request was the first.

`ClockDifference` narrows down how far Stripe's clock is ahead. Each response has its time in whole
seconds and was made between request and response: one gives the difference to a second or so, the
intersection of a hundred is narrow.

`look_at` reports the proxy and the TLS certificate on the way to Stripe, from the handshake alone.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from pinstripe.client.api_errors import NO_PERMISSION, Permission, permission_of
from pinstripe.client.api_key import proxy_for
from pinstripe.client.client import Params, StripeClient
from pinstripe.client.response import Response, http_time
from pinstripe.doctor.report import Network, ResourceState
from pinstripe.errors import NotEnabled, NotPermitted, PinstripeError, Refused, Unreachable, redact


@dataclass(slots=True)
class ClockDifference:
    """Bounds on (their clock - ours), in seconds."""

    least: float = -math.inf
    most: float = math.inf

    def heard(self, said: float, *, resolution: float, asked: float, came: float) -> None:
        """They said `said`, cut to `resolution`, between `asked` and `came` of our clock."""
        self.least = max(self.least, said - came)
        self.most = min(self.most, said + resolution - asked)

    @property
    def known(self) -> bool:
        return math.isfinite(self.least) and math.isfinite(self.most)

    @property
    def ahead_s(self) -> float:
        """The middle of the possible range."""
        return (self.least + self.most) / 2

    @property
    def within_s(self) -> float:
        """The error bound of `ahead_s`; 0 if Stripe's servers disagree among themselves."""
        return max(0.0, (self.most - self.least) / 2)


PRIORITY = 5
"""After what is live, before a backfill: an operator waits for the report."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What came of one request. `reply` where Stripe answered, else the words and the remedy."""

    state: ResourceState
    response: Response | None = None
    message: str = ""
    remedy: str = ""
    lacking: Permission = NO_PERMISSION
    error: PinstripeError | None = None


@dataclass(slots=True)
class Prober:
    """Sends requests, counts them, and reads Stripe's clock from every response. Calls `heard` after
    each.
    """

    stripe: StripeClient
    heard: Callable[[], None] = lambda: None
    wall_clock: Callable[[], float] = time.time
    clock: ClockDifference = field(default_factory=ClockDifference)

    async def get(self, path: str, params: Params = (), *, endpoint: str) -> ProbeResult:
        """A GET. Raises nothing of Stripe's."""
        return await self._said(
            lambda: self.stripe.get(path, params, endpoint=endpoint, priority=PRIORITY)
        )

    async def post(self, path: str, params: Params, *, endpoint: str) -> ProbeResult:
        """A POST that changes nothing. Raises nothing of Stripe's."""
        return await self._said(
            lambda: self.stripe.post(
                path, params, endpoint=endpoint, repeatable=True, priority=PRIORITY
            )
        )

    async def _said(self, ask: Callable[[], Awaitable[Response]]) -> ProbeResult:
        asked = self.wall_clock()
        try:
            response = await ask()
        except (Refused, Unreachable) as error:
            return said_no(error)
        finally:
            self.heard()
        stamped = http_time(response.headers.get("date"))
        if stamped is not None:
            self.clock.heard(stamped, resolution=1.0, asked=asked, came=self.wall_clock())
        return ProbeResult("readable", response)


def said_no(error: PinstripeError) -> ProbeResult:
    """An answer that is none, or no."""
    state: ResourceState = "failed"
    if isinstance(error, NotPermitted):
        state = "not_permitted"
    elif isinstance(error, NotEnabled):
        state = "not_enabled"
    elif isinstance(error, Refused):
        state = "refused"
    lacking = permission_of(error.message) if state == "not_permitted" else NO_PERMISSION
    return ProbeResult(state, None, error.message, error.hint, lacking, error)


_HANDSHAKE_S = 5.0


async def look_at(base_url: str) -> Network:
    """Through a proxy, only the proxy is reported: the handshake is behind it."""
    parts = urlsplit(base_url)
    proxy = redact(proxy_for(base_url) or "")
    if parts.scheme != "https" or proxy or parts.hostname is None:
        return Network(base_url, proxy)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_HANDSHAKE_S):
            _, writer = await asyncio.open_connection(
                parts.hostname, parts.port or 443, ssl=ssl.create_default_context()
            )
        try:
            tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
            return Network(base_url, "", tls.version() or "", _issuer(tls))
        finally:
            writer.transport.abort()
    return Network(base_url)


def _issuer(tls: ssl.SSLObject) -> str:
    """The organisation that signed the certificate: a company's inspection shows here."""
    certificate = tls.getpeercert() or {}
    # Tuples of tuples of pairs: (((name, value),), ((name, value),), ...).
    parts = cast("tuple[tuple[tuple[str, str], ...], ...]", certificate.get("issuer", ()))
    found = dict(pair for part in parts for pair in part)
    return found.get("organizationName", found.get("commonName", ""))
