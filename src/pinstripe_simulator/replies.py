"""Stripe's answers: the error bodies word for word, and the value that becomes an HTTP response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pinstripe_simulator.template import pretty

_DOCS = "https://stripe.com/docs/error-codes/"
_LOGS = "https://dashboard.stripe.com/test/logs/"

# How recorded answers name a type in "No such ...", where it is not the type's own last word.
_WORDS = {
    "checkout.session": "checkout.session",
    "payment_method": "PaymentMethod",
    "setup_intent": "setupintent",
    "payment_intent": "payment_intent",
    "test_helpers.test_clock": "billing clock",
}
# Types whose retrieve names `id` as the parameter, whatever the path calls it; all others name the
# path's own parameter (`intent`, `plan`). Seen in recorded answers: customer, charge, product,
# subscription, event.
_NAMED_ID = frozenset({"customer", "charge", "product", "subscription", "event", "refund"})


@dataclass
class Reply:
    """One HTTP response before transport: status, JSON text, extra headers."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    anonymous: bool = False
    """Without Request-Id and Stripe-Version: Stripe refused before it knew the account."""


class StripeError(Exception):
    """An answer that says no. Behaviours raise it; the app prints it.

    `logged`: the body carries `request_log_url`. `anonymous`: neither that nor `Request-Id` and
    `Stripe-Version`; recorded 401s and 403s `account_invalid` have none of the three.
    """

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
        logged: bool = True,
        anonymous: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        self.more = dict(more or {})
        self.logged = logged and not anonymous
        self.anonymous = anonymous

    def reply(self, request_id: str) -> Reply:
        """As Stripe prints it: keys in order, absent ones left out, a line break at the end."""
        error: dict[str, object] = dict(self.more)
        if self.code:
            error |= {"code": self.code, "doc_url": _DOCS + self.code.replace("_", "-")}
        error["message"] = self.message
        if self.param:
            error["param"] = self.param
        if request_id and self.logged:
            error["request_log_url"] = f"{_LOGS}{request_id}?t=0"
        error["type"] = self.type
        body = pretty({"error": dict(sorted(error.items()))}) + b"\n"
        return Reply(body, self.status, dict(self.headers), anonymous=self.anonymous)


def missing(type_name: str, id: str, *, param: str = "id", status: int = 404) -> StripeError:
    """The error for an id that names nothing: 404 in paths, 400 in parameters."""
    plain = type_name.rpartition(".")[2].replace("_", " ")
    word = _WORDS.get(type_name, plain)
    return StripeError(status, f"No such {word}: '{id}'", code="resource_missing", param=param)


def missing_at(type_name: str, id: str, place: str) -> StripeError:
    """The 404 of a path; `place` is the name of the path's parameter (`intent`)."""
    return missing(type_name, id, param="id" if type_name in _NAMED_ID or not place else place)


def no_access(key: str, account: str) -> StripeError:
    """403 for an account that is unknown or has ended the platform's authorization; `key` masked."""
    return StripeError(
        403,
        f"The provided key '{key}' does not have access to account '{account}' (or that account "
        "does not exist). Application access may have been revoked.",
        code="account_invalid",
        anonymous=True,
    )


def unrecognized(method: str, path: str) -> StripeError:
    """404 for an address that Stripe does not have."""
    advice = ""
    if path.endswith("/"):  # As quoted in stripe/stripe-php#598 and fjordllc/bootcamp#7626.
        advice = (
            "If you are trying to list objects, remove the trailing slash. If you are trying to "
            "retrieve an object, make sure you passed a valid (non-empty) identifier in your code. "
        )
    return StripeError(
        404,
        f"Unrecognized request URL ({method}: {path}). {advice}Please see https://stripe.com/docs or "
        "we can help at https://support.stripe.com/.",
    )


def refused(message: str, *, code: str = "", param: str = "") -> StripeError:
    """A 400."""
    return StripeError(400, message, code=code, param=param)


def declined(message: str, *, decline_code: str, **more: object) -> StripeError:
    """402: the card said no. `more` is what the error holds: the charge's id, the whole intent."""
    held = {"decline_code": decline_code} | {k: v for k, v in more.items() if v}
    return StripeError(402, message, type="card_error", code="card_declined", more=held)
