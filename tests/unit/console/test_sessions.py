"""Sessions of the console: who only visits logs nobody out."""

from __future__ import annotations

from starlette.requests import Request

from pinstripe.console.sessions import COOKIE, Session, Sessions


def _request(session: Session) -> Request:
    cookie = f"{COOKIE}={session.name}".encode()
    return Request({"type": "http", "headers": [(b"cookie", cookie)]})


def test_visits_of_the_login_end_no_session_of_an_admin() -> None:
    sessions = Sessions()
    admin = sessions.begin(logged_in=True)
    first = sessions.begin(logged_in=False)
    for _ in range(1100):
        last = sessions.begin(logged_in=False)
    assert sessions.of(_request(admin)) is admin
    assert sessions.of(_request(first)) is None
    assert sessions.of(_request(last)) is last


def test_the_oldest_of_many_logins_ends_first() -> None:
    sessions = Sessions()
    first = sessions.begin(logged_in=True)
    second = sessions.begin(logged_in=True)
    for _ in range(999):
        sessions.begin(logged_in=True)
    assert sessions.of(_request(first)) is None
    assert sessions.of(_request(second)) is second
