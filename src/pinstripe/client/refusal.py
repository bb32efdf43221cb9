"""Stripe's no, as the error that names the remedy.

Pure. Reads the body of an error answer (`{"error": {"type", "code", "message", "param"}}`) and
picks one of the classes in `errors`. Stripe has no code for "this product is not enabled": only the
sentences tell, so their patterns stand here, in one table.
"""

from __future__ import annotations

import re

import msgspec

from pinstripe.client.key import ApiKey
from pinstripe.errors import (
    NotEnabled,
    NotExpandable,
    NotFound,
    NotPermitted,
    Refused,
    WrongAccount,
    WrongKey,
)

# Fragments of what Stripe says (400, sometimes 404) where an account lacks a product.
# Sentences differ by product and change over time: keep each fragment as short as is safe.
_NOT_ENABLED = re.compile(
    r"""
      \bnot\ (?:been\ )?(?:enabled|activated|onboarded)\b  # "Treasury is not enabled for ..."
    | \bn['’]t\ (?:been\ )?(?:enabled|activated|onboarded)\b
    | \bnot\ (?:currently\ )?set\ up\ to\ use\b            # "... is not set up to use Issuing."
    | \b(?:is|are)(?:\ not|n['’]t)\ (?:currently\ |yet\ )?available\b
    | \bnot\ supported\ (?:for|in|on|by)\ your\b
    | \bmust\ (?:first\ )?(?:be\ enrolled|enroll|activate|enable|be\ onboarded)\b
    | \bneeds?\ to\ (?:be\ enrolled|enroll|activate|enable|be\ onboarded)\b
    | \b(?:does\ not|do\ not|doesn['’]t|don['’]t)\ (?:currently\ )?have\ access\ to\b
    | \bonly\ works?\ (?:on|with|for)\ Connect\b           # "This endpoint only works on Connect"
    | \bsigned\ up\ for\ (?:Stripe\ )?Connect\b            # "... if you've signed up for Connect"
    | \b(?:request|sign\ up\ for|apply\ for)\ (?:early\ |beta\ )?access\b
    | \bnot\ (?:a\ )?(?:part\ of|in)\ the\ .{0,40}\b(?:beta|preview)\b
    """,
    re.VERBOSE | re.IGNORECASE,
)
# What Stripe says to a `Stripe-Account` for which the key may not act (seen; some without a code).
_OTHER_ACCOUNT = re.compile(
    r"""
      \bonly\ Stripe\ Connect\ platforms\ can\ work\ with\ other\ accounts\b
    | \bdoes\ not\ have\ access\ to\ account\b
    | \bcannot\ access\ the\ connected\ accounts\ of\b
    | \bapplication\ access\ may\ have\ been\ revoked\b
    """,
    re.VERBOSE | re.IGNORECASE,
)
# "This property cannot be expanded (sources). You may want to try expanding 'data.sources' instead.", and
# of too many levels: "You cannot expand more than 4 levels of a property (...)".
_EXPAND = re.compile(
    r"\bcannot\b[^.(]*\bexpand(?:ed)?\b[^(]*(?:\((?P<names>[^)]*)\))?", re.IGNORECASE
)
_UNKNOWN_PATH = "unrecognized request url"
_PERMISSION = re.compile(r"\brak_[a-z0-9_]+\b")

_BY_STATUS: dict[int, type[Refused]] = {401: WrongKey, 403: NotPermitted, 404: NotFound}


class _Error(msgspec.Struct):
    type: str | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None


class _Body(msgspec.Struct):
    error: _Error


_decoder = msgspec.json.Decoder(_Body)


def read_error(body: bytes) -> _Error | None:
    """The error in `body`; None if it is not in Stripe's shape, and so not Stripe's."""
    try:
        error = _decoder.decode(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return error if error.type or error.message else None


def missing_permission(message: str) -> str | None:
    """The permission that Stripe's 403 names.

    >>> missing_permission("Having the 'rak_charge_read' permission would allow this request.")
    'rak_charge_read'
    """
    found = _PERMISSION.search(message)
    return found[0] if found else None


def refusal(
    status: int,
    error: _Error,
    *,
    request_id: str,
    key: ApiKey,
    said_at: tuple[float, float] | None = None,
) -> Refused:
    """The error to raise for a final answer of Stripe's."""
    kind = _kind(status, error)
    message = (error.message or error.type or "").strip()
    refused = kind(
        f"Stripe refused ({status}): {message}",
        status=status,
        code=error.code or "",
        type=error.type or "",
        param=error.param or "",
        request_id=request_id,
        hint=_hint(kind, message, key, request_id),
        said_at=said_at,
    )
    if isinstance(refused, NotExpandable):
        named = _EXPAND.search(message)
        refused.properties = tuple(re.findall(r"[\w.]+", (named and named["names"]) or ""))
    return refused


def _kind(status: int, error: _Error) -> type[Refused]:
    message, code = error.message or "", error.code or ""
    if status == 400 and _EXPAND.search(message):
        return NotExpandable
    if code == "account_invalid" or (status in (400, 403) and _OTHER_ACCOUNT.search(message)):
        return WrongAccount
    if status == 404 and message.lower().startswith(_UNKNOWN_PATH):
        # Not a missing object: Stripe hides the whole path from accounts without the product.
        return NotEnabled
    if code == "resource_missing":
        return NotFound
    if status in (400, 404) and not code.startswith("parameter_") and _NOT_ENABLED.search(message):
        return NotEnabled
    return _BY_STATUS.get(status, Refused)


def _hint(kind: type[Refused], message: str, key: ApiKey, request_id: str) -> str:
    if kind is WrongAccount:
        return (
            f"Check --stripe-account (STRIPE_ACCOUNT): it must name an account that is connected to "
            f"that of the key {key}. If it is not set, or right, the key's access has been revoked."
        )
    if kind is WrongKey:
        return (
            f"Check the API key ({key}): it may be mistyped, expired or rolled. Keys are at "
            "https://dashboard.stripe.com/apikeys."
        )
    if kind is NotPermitted:
        permission = missing_permission(message)
        if permission:
            return f"Give the restricted key the permission {permission} in the Stripe dashboard."
        return "Use a key that may read this; in the Stripe dashboard, edit the key's permissions."
    if kind is NotEnabled:
        return "Nothing to do unless you use this Stripe product; then enable it for the account."
    if kind is NotFound:
        return f"It was deleted, or it belongs to another account or mode than the key {key}."
    logs = "https://dashboard.stripe.com/" + ("test/logs" if key.mode == "test" else "logs")
    return f"Stripe's log of the request has the details: {logs}/{request_id}"
