"""Decides who may call what: by the admin token, by the wait token, or from this machine only.

Without an admin token the gateway listens on loopback only (`refuse_public`) and requires none. The danger
then is a browser on this machine: a foreign page could point a name of its own at 127.0.0.1 (DNS
rebinding) or post a form across sites. So `Host` must be a loopback name, and `Origin` and `Sec-Fetch-Site`
must name us. A token needs no such check; a session of the console does, since browsers send its cookie
with every request.

Tokens are compared in constant time. The response to a wrong token is delayed, longer each time; a right
token is never delayed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import time
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from pinstripe.client.api_key import is_loopback
from pinstripe.errors import Misconfigured
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.gateway.syncs import Named

Owns = Callable[[Sequence[tuple[bytes, bytes]], Named | None], Awaitable[bool]]
"""Whether the Stripe key in the headers is valid for a sync's account (`AccountResolver.may_use`)."""

_SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 2.0
_FORGIVEN_S = 60.0
_MOST_DELAYED = 64
"""Wrong tokens being delayed at a time; beyond it requests get a 429."""
_PUBLIC_TOKEN = 16
"""Characters of a token that may be tried from anywhere."""


def refuse_public(host: str, admin_token: str | None) -> None:
    """Raises Misconfigured where the gateway would listen beyond this machine for everybody."""
    if is_loopback(host):
        return
    if not admin_token:
        raise Misconfigured(
            f"Listening on {host or 'all addresses'} would open the gateway to everybody who reaches it.",
            hint="Set PINSTRIPE_ADMIN_TOKEN to a long random text, or listen on 127.0.0.1.",
        )
    if len(admin_token) < _PUBLIC_TOKEN:
        raise Misconfigured(
            f"The admin token is too short to listen on {host}.",
            hint=f"Use at least {_PUBLIC_TOKEN} characters: "
            "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )


def _no_session(_: HTTPConnection) -> bool:
    return False


class Auth:
    """The rules of one gateway. `session` is the console's: whether a request carries a valid one."""

    def __init__(
        self,
        *,
        admin_token: str | None = None,
        wait_token: str | None = None,
        public_url: str = "",
        owns: Owns | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session: Callable[[HTTPConnection], bool] = _no_session
        self._admin = admin_token or None
        self._wait = wait_token or None
        self._public = urlsplit(public_url).netloc.lower()
        self._owns = owns
        self._sleep = sleep
        self._clock = clock
        self._failures = 0
        self._failed_at = 0.0
        self._delayed = 0

    @property
    def is_open(self) -> bool:
        """No admin token is set: every caller on this machine is an admin."""
        return self._admin is None

    def is_admin(self, request: HTTPConnection) -> bool:
        """Whether the caller is an admin, for responses with more detail. Never delays."""
        try:
            self.check_page(request)
        except HTTPError:
            return False
        return self.is_open or _same(token_of(request), self._admin) or self.session(request)

    async def require_admin(self, request: HTTPConnection) -> None:
        """Return for an admin; raises HTTPError otherwise."""
        if self._admin is None:
            self._check_host(request)
            self._check_browser(request)
            return
        token = token_of(request)
        if _same(token, self._admin):
            return
        if not token and self.session(request):
            self._check_browser(request)
            return
        await self._refuse("the admin token", "PINSTRIPE_ADMIN_TOKEN", was_tried=bool(token))

    async def accepts(self, token: str) -> bool:
        """Whether this is the admin token, for a login form. Delays a wrong one."""
        if self._admin is None or _same(token, self._admin):
            return self._admin is not None
        await self._slow_down()
        return False

    def check_page(self, request: HTTPConnection) -> None:
        """Raises HTTPError for a cross-site request; for pages and forms without a token (a login)."""
        if self._admin is None:
            self._check_host(request)
        self._check_browser(request)

    async def allows_wait(self, request: HTTPConnection, named: Named | None) -> bool:
        """Whether the caller may wait for what it names: by token, or by a Stripe key of its account.

        For a sync that is not there (None) only by what holds for all of them: a stranger gets the same
        answer in the same time as for one that is.
        """
        if self._admin is None and self._wait is None:
            self._check_host(request)
            self._check_browser(request)
            return True
        token = token_of(request)
        if _same(token, self._wait) or _same(token, self._admin):
            return True
        if not token:
            return self.session(request)
        if self._owns is not None and await self._owns(request.scope["headers"], named):
            return True
        await self._slow_down()
        return False

    def _check_host(self, request: HTTPConnection) -> None:
        """Reject a foreign name that points at this machine (DNS rebinding)."""
        host = request.headers.get("host", "")
        if is_loopback(_hostname(host)) or (self._public and host.lower() == self._public):
            return
        raise HTTPError(
            403,
            "wrong_host",
            "Without an admin token the gateway answers to this machine's own names only.",
            hint="Call it as 127.0.0.1 or localhost, set PINSTRIPE_PUBLIC_URL to the address that you "
            "use, or set PINSTRIPE_ADMIN_TOKEN.",
        )

    def _check_browser(self, request: HTTPConnection) -> None:
        """Reject what a browser sends for a page that is not ours."""
        headers = request.headers
        safe = request.scope["method"] in _SAFE
        site = headers.get("sec-fetch-site", "none")
        if site in ("same-origin", "none"):
            crossed = False
        else:
            # A link or a bookmark from elsewhere may open a page; it may not post or read.
            crossed = not (
                safe
                and headers.get("sec-fetch-mode") == "navigate"
                and headers.get("sec-fetch-dest", "document") == "document"
            )
        origin = headers.get("origin")
        if origin is not None and not (safe and origin == "null"):
            netloc = origin.partition("://")[2].lower()
            ours = {headers.get("host", "").lower(), self._public} - {""}
            crossed = crossed or netloc not in ours
        if crossed:
            raise HTTPError(
                403,
                "cross_site",
                "A page of another site may not call the gateway.",
                hint="Call it from a program, or open the gateway's own pages.",
            )

    async def _refuse(self, what: str, setting: str, *, was_tried: bool) -> None:
        if was_tried:
            await self._slow_down()
        raise HTTPError(
            401,
            "unauthorized",
            f"This is not {what}." if was_tried else f"This needs {what}.",
            hint=f"Send Authorization: Bearer with the value of {setting}.",
            headers={"WWW-Authenticate": 'Bearer realm="pinstripe"'},
        )

    async def _slow_down(self) -> None:
        """Delay after a wrong token, longer each time; reset after a minute without one."""
        now = self._clock()
        if now - self._failed_at > _FORGIVEN_S:
            self._failures = 0
        self._failures, self._failed_at = self._failures + 1, now
        if self._delayed >= _MOST_DELAYED:
            raise HTTPError(
                429,
                "too_many_failures",
                "Too many wrong tokens are being tried.",
                hint="Wait some seconds.",
                headers={"Retry-After": "5"},
            )
        self._delayed += 1
        try:
            await self._sleep(
                min(_FIRST_DELAY_S * 2 ** min(self._failures - 1, 10), _LONGEST_DELAY_S)
            )
        finally:
            self._delayed -= 1


def token_of(request: HTTPConnection) -> str:
    """The token in `Authorization`: a bearer token, or a user name as with Stripe's keys."""
    scheme, _, value = request.headers.get("authorization", "").strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return ""
    return ""


def _same(given: str, wanted: str | None) -> bool:
    """Compare in constant time."""
    return bool(wanted) and hmac.compare_digest(given.encode(), str(wanted).encode())


def _hostname(host: str) -> str:
    """The name in a Host header, without its port.

    >>> _hostname("localhost:8377"), _hostname("[::1]:8377"), _hostname("127.0.0.1")
    ('localhost', '::1', '127.0.0.1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
