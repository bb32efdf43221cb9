"""Wraps every request but the proxied ones: limits on the way in, headers and errors on the way out.

Starlette's routes are below it. Above it is only the dispatch to the proxy, whose responses are Stripe's
and stay untouched. Whatever fails inside, the caller gets the one error shape.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from http import HTTPStatus
from typing import TypeVar

import structlog
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pinstripe.concurrency import cancel
from pinstripe.errors import PinstripeError
from pinstripe.gateway.http.errors import HTTPError, failure, failure_of
from pinstripe.gateway.http.metrics import Meters, status_class

_T = TypeVar("_T")

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

BODY_BYTES = 2 * 1024 * 1024
"""The largest body that anything but the proxy takes: a webhook's event, a form."""
BODY_S = 20.0
"""How long a body may take to arrive."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""On each answer that does not say otherwise. There is no CORS: no other site may read us."""


_ONCE = frozenset(
    {
        *(b"authorization", b"content-type", b"host", b"idempotency-key", b"origin"),
        *(b"sec-fetch-dest", b"sec-fetch-mode", b"sec-fetch-site"),
        *(b"stripe-account", b"stripe-context", b"stripe-signature", b"stripe-version"),
    }
)
"""Headers that grant access, or mean something: of two, one in front might check one and we the other."""


class EdgeMiddleware:
    """An ASGI app around `app`."""

    def __init__(self, app: ASGIApp, meters: Meters, *, https: bool = False) -> None:
        self._app = app
        self._meters = meters
        self._headers = dict(HEADERS)
        if https:
            self._headers["Strict-Transport-Security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = whole = False
        taken = 0
        deadline = asyncio.get_running_loop().time() + BODY_S

        async def limited() -> Message:
            nonlocal taken, whole
            if whole:
                return await receive()  # Only a disconnect can follow.
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPError(
                    408, "too_slow", f"The body did not come within {BODY_S:.0f} s."
                ) from None
            taken += len(message.get("body", b""))
            if taken > BODY_BYTES:
                raise _too_large()
            whole = not message.get("more_body", False)
            return message

        async def dressed(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._meters.api.labels(status_class(message["status"])).inc()
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            _check(scope)
            await self._app(scope, limited, dressed)
        except Exception as error:
            answer = _answer(error)
            if begun or answer is None:
                raise
            await answer(scope, receive, dressed)


def _check(scope: Scope) -> None:
    """Reject what no route of ours accepts."""
    if "\0" in scope["path"] or b"%00" in scope["query_string"] or b"\0" in scope["query_string"]:
        raise HTTPError(400, "bad_request", "The address holds the character NUL.")
    seen: set[bytes] = set()
    for name, value in scope["headers"]:
        if name in _ONCE and name in seen:
            raise HTTPError(400, "bad_request", f"The header {name.decode()} is there twice.")
        seen.add(name)
        if name == b"content-length" and value.isdigit() and int(value[:20]) > BODY_BYTES:
            raise _too_large()


def _too_large() -> HTTPError:
    return HTTPError(
        413, "too_large", f"The body is larger than {BODY_BYTES // 1024 // 1024} MB.", hint=""
    )


_NO_ROUTE = "The console is at /, the API under /api/, the proxy under /v1/ and /api.stripe.com/."


def _answer(error: Exception) -> Response | None:
    if isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        return _answer(error.exceptions[0])
    if isinstance(error, HTTPError):
        return error.response()
    if isinstance(error, PinstripeError):
        return failure_of(error)
    if isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_").replace("-", "_")
        hint = _NO_ROUTE if error.status_code == HTTPStatus.NOT_FOUND else ""
        return failure(error.status_code, code, f"{phrase}.", hint, headers=error.headers)
    # A bug ends this request and no other.
    _log.error("gateway.bug", error=type(error).__name__, exc_info=error)
    return failure(
        500, "internal", "The gateway made a mistake.", "Its log says more; please report it."
    )


async def unless(gone: Awaitable[None], work: Awaitable[_T]) -> _T | None:
    """The outcome of `work`; None if `gone` returns first, which cancels it."""
    working, going = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait((working, going), return_when=asyncio.FIRST_COMPLETED)
        # What is gone may have cancelled it already.
        return working.result() if working.done() and not working.cancelled() else None
    finally:
        await cancel(working, going)


async def disconnected(receive: Receive) -> None:
    """Return when the caller disconnects. What is left of the body is read and dropped."""
    while (await receive())["type"] != "http.disconnect":
        pass
