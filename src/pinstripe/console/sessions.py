"""Sessions of the console: a cookie, and the token that each form carries.

A session is a random name kept in this process; the cookie holds nothing else. It is HttpOnly and
SameSite=Strict, so no other site's page can use it. The form token protects browsers without SameSite.
If the service requires no admin token, every caller that reaches it is admitted, but forms still need
their token.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import HTTPConnection
from starlette.responses import Response

COOKIE = "pinstripe_session"
LASTS_S = 12 * 3600.0
_MOST = 1000
"""Sessions kept of each kind; the oldest of the kind go first. So visits to the login page neither fill the
memory nor log anyone out."""


@dataclass(slots=True)
class Session:
    """One browser. `csrf` is what its forms carry; `expires_at` is on the clock of `Sessions`."""

    name: str
    csrf: str
    logged_in: bool
    expires_at: float


class Sessions:
    """The sessions of this process; a restart ends them."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[str, Session] = {}

    def of(self, request: HTTPConnection) -> Session | None:
        """The session that the request's cookie names, unless it is over."""
        session = self._open.get(request.cookies.get(COOKIE, ""))
        if session is None:
            return None
        if session.expires_at <= self._clock():
            self.end(session)
            return None
        return session

    def begin(self, *, logged_in: bool) -> Session:
        """A new session. A login always begins one, so that a name known before is worth nothing."""
        now = self._clock()
        alike = [s for s in self._open.values() if s.logged_in is logged_in]
        for old in alike[: max(0, len(alike) - _MOST + 1)]:
            self.end(old)
        session = Session(
            secrets.token_urlsafe(32), secrets.token_urlsafe(24), logged_in, now + LASTS_S
        )
        self._open[session.name] = session
        return session

    def end(self, session: Session) -> None:
        """Logs out."""
        self._open.pop(session.name, None)

    def is_genuine(self, session: Session | None, token: object) -> bool:
        """Return whether a form's token is of this session."""
        return (
            session is not None
            and isinstance(token, str)
            and hmac.compare_digest(session.csrf.encode(), token.encode())
        )


def set_cookie(response: Response, session: Session, *, secure: bool) -> None:
    """Hands the session to the browser. `secure`: the page came over HTTPS."""
    response.set_cookie(
        COOKIE,
        session.name,
        max_age=int(LASTS_S),
        httponly=True,
        samesite="strict",
        secure=secure,
        path="/",
    )


def drop_cookie(response: Response) -> None:
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
