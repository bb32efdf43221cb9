"""Stripe's answers: the error bodies word for word, and the value that becomes an HTTP response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pinstripe.simulator.template import pretty

_DOCS = "https://stripe.com/docs/error-codes/"
_LOGS = "https://dashboard.stripe.com/test/logs/"


@dataclass
class Reply:
    """One HTTP response before transport: status, JSON text, extra headers."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


class StripeError(Exception):
    """An answer that says no. Behaviours raise it; the app prints it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str = "",
        param: str = "",
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        self.more = dict(more or {})

    def reply(self, request_id: str) -> Reply:
        """As Stripe prints it: absent keys are left out, not null."""
        error: dict[str, object] = dict(self.more)
        if self.code:
            error |= {"code": self.code, "doc_url": _DOCS + self.code.replace("_", "-")}
        error["message"] = self.message
        if self.param:
            error["param"] = self.param
        if request_id:
            error["request_log_url"] = f"{_LOGS}{request_id}?t=0"
        error["type"] = self.type
        return Reply(pretty({"error": error}) + b"\n", self.status, dict(self.headers))


def missing(type_name: str, id: str, *, param: str = "id", status: int = 404) -> StripeError:
    """The error for an id that names nothing: 404 in paths, 400 in parameters."""
    words = type_name.rpartition(".")[2].replace("_", " ")
    words = {"payment intent": "payment_intent", "payment method": "PaymentMethod"}.get(
        words, words
    )
    return StripeError(status, f"No such {words}: '{id}'", code="resource_missing", param=param)


def unrecognized(method: str, path: str) -> StripeError:
    """404 for an address that Stripe does not have."""
    return StripeError(
        404,
        f"Unrecognized request URL ({method}: {path}). Please see https://stripe.com/docs or we "
        "can help at https://support.stripe.com/.",
    )


def refused(message: str, *, code: str = "", param: str = "") -> StripeError:
    """A 400."""
    return StripeError(400, message, code=code, param=param)


def declined(message: str, *, decline_code: str, charge: str = "") -> StripeError:
    """402: the card said no."""
    more: dict[str, object] = {"decline_code": decline_code}
    if charge:
        more["charge"] = charge
    return StripeError(402, message, type="card_error", code="card_declined", more=more)
