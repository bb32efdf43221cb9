"""The one shape of every error that the gateway itself answers with.

    {"error": {"code": "not_found", "message": "There is no sync \"x\".", "hint": "GET /api/syncs ..."}}

`code` is for programs and never changes its meaning; `message` says what is wrong and `hint` what to do
about it, "" where there is nothing. Only the proxy answers otherwise: with Stripe's own bytes, or in
Stripe's shape where there are none. No message holds a secret (`errors.redact`).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from pinstripe.errors import (
    Misconfigured,
    NotFound,
    PinstripeError,
    Refused,
    UnknownSync,
    Unreachable,
    Unwritable,
    WrongKey,
    redact,
)

JSON = "application/json"


class ErrorDetail(msgspec.Struct, frozen=True):
    """What is wrong."""

    code: str
    """For programs: `not_found`, `bad_request`, `unauthorized`, ..."""
    message: str
    hint: str = ""
    """What to do about it; "" where there is nothing."""


class ErrorBody(msgspec.Struct, frozen=True):
    """Every error of the gateway has this shape."""

    error: ErrorDetail


class HTTPError(Exception):
    """Raised by an endpoint to answer with a failure, from however deep below it."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        hint: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.hint = status, code, message, hint
        self.headers = dict(headers or {})

    def response(self) -> Response:
        return failure(self.status, self.code, self.message, self.hint, headers=self.headers)


def failure(
    status: int,
    code: str,
    message: str,
    hint: str = "",
    *,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer that says so, in the one shape. Never to be kept by a cache."""
    return Response(
        msgspec.json.encode(ErrorBody(ErrorDetail(code, redact(message), redact(hint)))),
        status,
        {"Cache-Control": "no-store", **(headers or {})},
        media_type=JSON,
    )


def failure_of(error: PinstripeError) -> Response:
    """The answer for one of our own errors that an endpoint could not mend."""
    status, code = _status(error)
    return failure(status, code, error.message, error.hint)


def _status(error: PinstripeError) -> tuple[int, str]:
    match error:
        case UnknownSync():
            return 404, "unknown_sync"
        case NotFound():
            return 404, "not_found"
        case WrongKey():
            return 400, "wrong_key"
        case Refused():
            # Not Stripe's own status: a 401 or 403 here would speak of the caller's rights with us.
            return 502, "stripe_refused"
        case Misconfigured():
            return 400, "misconfigured"
        case Unreachable() | Unwritable():
            return 503, "unavailable"
        case _:
            return 500, "internal"
