"""Turns Stripe's error body into the exception that names the remedy. Pure.

    {"error": {"type", "code", "message", "param"}} -> read_error -> refusal -> NotFound, NotPermitted, ...

Stripe has no code for "this product is not enabled": only its sentences say so, and one table here holds
their patterns. An error that matches nothing stays a plain `Refused`, which is retried.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from pinstripe.client.api_key import ApiKey
from pinstripe.client.response import decode
from pinstripe.errors import (
    BadParameter,
    MissingParent,
    NotEnabled,
    NotExpandable,
    NotFound,
    NotPermitted,
    Refused,
    WrongAccount,
    WrongKey,
)

# Fragments of Stripe's sentences (400, sometimes 404) for an account that lacks a product.
# Sentences differ by product and change over time: keep each fragment as short as is safe.
_NOT_ENABLED = re.compile(
    r"""
      \bnot\ (?:been\ )?(?:enabled|activated|onboarded|enrolled)\b  # "Treasury is not enabled for ..."
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
    | \b(?:only\ (?:available|supported)|not)\ in\ (?:test|live)\ ?mode\b  # Test clocks, to a live key.
    | \bnot\ (?:authorized\ to\ (?:send|use)|(?:approved|eligible)\ for)\b  # Forwarding, Climate.
    """,
    re.VERBOSE | re.IGNORECASE,
)
# "This property cannot be expanded (sources). You may want to try expanding 'data.sources' instead.", and
# of too many levels: "You cannot expand more than 4 levels of a property (...)".
_EXPAND = re.compile(
    r"\bcannot\b[^.(]*\bexpand(?:ed)?\b[^(]*(?:\((?P<names>[^)]*)\))?", re.IGNORECASE
)
# Of lists that the SDK types as free ("Missing required param: customer."; wordings differ by list).
_WANTS_CUSTOMER = re.compile(
    r"\b(?:missing|must|required?|requires|provide|specify|without)\b.*\bcustomer\b", re.IGNORECASE
)
_UNKNOWN_PATH = "unrecognized request url"
_AGED = "aged out of our retention"
# Said without a code of what is gone: an event of more than 30 days, a source that is no customer's.
_GONE = re.compile(rf"{_AGED}|\bsource must be attached to a customer\b")

# The account of the header is not the key's, or not reachable with it. The first two come without a code,
# to keys of accounts that are no platforms and of connected ones; without the header they mean that
# Connect is not in use.
_NO_PLATFORM = re.compile(
    r"\bonly stripe connect platforms can work with\b"
    r"|\bcannot access the connected accounts of your platform",
    re.IGNORECASE,
)
_NO_ACCESS = re.compile(
    r"\bdoes not have access to account\b"
    r"|\bapplication access may have been revoked\b|\bcan only be used with (?:test|live)mode keys\b",
    re.IGNORECASE,
)

# "The API key provided does not allow requests from your IP address (203.0.113.7)." Seen with 403 and 401.
_WRONG_PLACE = re.compile(r"\bnot allow requests? from (?:your|this) IP\b", re.IGNORECASE)

# The part of a 403 that names permissions. Until January 2025: "Having the 'rak_charge_read' permission
# would allow this request to continue."; since then: 'Enabling "Charges Read" ('charge_read') permissions
# on this key would allow ...', with a link to the key in the dashboard (both from recorded responses).
_NAMING = re.compile(
    r"\b(?:enabling|enable|having|adding|add|granting|grant)\b"
    r"(?P<names>(?:[\"“][^\"”]*[\"”]|[^\"“])*?)\bpermissions?\b",
    re.IGNORECASE | re.DOTALL,
)
_TITLE = r"[\"“”«](?P<title>[^\"“”«»]{1,100})[\"“”»]"
_SLUG = r"['‘’`](?P<slug>[A-Za-z0-9][A-Za-z0-9_.:/-]{1,100})['‘’`]"
_NAMED = re.compile(
    rf"{_TITLE}\s*(?:\(\s*['‘’`]?(?P<inside>[\w.:/-]{{2,100}})['‘’`]?\s*\))?|{_SLUG}"
)
_RAK = re.compile(r"\brak_[a-z0-9_]+\b")
_LOOSE = re.compile(r"['‘’`\"“”](?P<slug>[a-z][a-z0-9_.:-]*[_.:-](?:read|write))['‘’`\"“”]")
_BARE = re.compile(r"\b[a-z][a-z0-9_]*_(?:read|write)\b")
_EDIT = re.compile(r"https://dashboard\.stripe\.com/[^\s\"'<>\\]*[^\s\"'<>\\.,;:!?)\]]")
_ACCOUNT = re.compile(r"\bacct_\w+")
# The sentence before either, which also stands alone (persons of a Standard account, seen); and what is
# said of the bank accounts of an account whose dashboard is its own.
_LACKS = re.compile(r"\brequired permissions?\b|\bdo not have Platform Controls\b")

_BY_STATUS: dict[int, type[Refused]] = {401: WrongKey, 404: NotFound}


class _Error(msgspec.Struct):
    type: str | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None


class _Body(msgspec.Struct):
    error: _Error


def read_error(body: bytes) -> _Error | None:
    """The error in `body`; None if it does not have the shape of Stripe's errors."""
    try:
        error = msgspec.convert(decode(body), _Body).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return error if error.type or error.message else None


@dataclass(frozen=True, slots=True)
class Permission:
    """What a key lacks, as Stripe's 403 names it; "" for what it does not name.

    `slug` is for machines (`plan_read`), several joined by ", "; `title` is what the dashboard calls it
    ("Prices Read"); `edit_url` leads to the key in the dashboard.
    """

    slug: str = ""
    title: str = ""
    edit_url: str = ""

    def __bool__(self) -> bool:
        return bool(self.slug or self.title)

    def __str__(self) -> str:
        """For people: `Prices Read (plan_read)`."""
        return (
            f"{self.title} ({self.slug})" if self.title and self.slug else self.title or self.slug
        )


NO_PERMISSION = Permission()


def permission_of(message: str) -> Permission:
    """The permissions that Stripe's 403 names, by either of its sentences.

    Slugs do not follow from paths: that of prices is `plan_read`.

    >>> permission_of("Having the 'rak_charge_read' permission would allow this request.").slug
    'rak_charge_read'
    >>> str(permission_of("Enabling 'Prices Read' (plan_read) permissions on".replace("'", '"')))
    'Prices Read (plan_read)'
    """
    slugs: list[str] = []
    titles: list[str] = []
    bare: list[str] = []
    for clause in _NAMING.finditer(message):
        bare += _BARE.findall(clause["names"])
        for found in _NAMED.finditer(clause["names"]):
            slug, title = found["inside"] or found["slug"], found["title"]
            slugs += [slug] if slug else []
            titles += [title.strip()] if title else []
    if titles and not slugs and all(_LOOSE.fullmatch(f"'{title}'") for title in titles):
        slugs, titles = titles, []
    slugs = slugs or _RAK.findall(message) or bare
    slugs = slugs or [found["slug"] for found in _LOOSE.finditer(message)]
    link = _EDIT.search(message)
    return Permission(
        ", ".join(dict.fromkeys(slugs)), ", ".join(dict.fromkeys(titles)), link[0] if link else ""
    )


def missing_permission(message: str) -> str | None:
    r"""The permission that Stripe's 403 names: its slug, or its title where it has none.

    >>> missing_permission("Having the 'rak_charge_read' permission would allow this request.")
    'rak_charge_read'
    >>> missing_permission('Enabling "Prices Read" (\'plan_read\') permissions on this key would allow it.')
    'plan_read'
    """
    found = permission_of(message)
    return found.slug or found.title or None


def account_named(message: str) -> str | None:
    """The account that Stripe's 403 names: "... for this endpoint on account 'acct_...'"."""
    found = _ACCOUNT.search(message)
    return found[0] if found else None


def refusal(
    status: int,
    error: _Error,
    *,
    request_id: str,
    key: ApiKey,
    account: str | None = None,
    said_at: tuple[float, float] | None = None,
) -> Refused:
    """The exception for an error of Stripe's that is not retried now.

    What is not understood (a 403 that names no permission, a 400 with words that we do not know) is a
    plain `Refused`: trouble, not an answer. `account` is what `Stripe-Account` named.
    """
    kind = _kind(status, error, account)
    message = (error.message or error.type or "").strip()
    refused = kind(
        f"Stripe refused ({status}): {message}",
        status=status,
        code=error.code or "",
        type=error.type or "",
        param="starting_after" if status == 400 and _AGED in message else error.param or "",
        request_id=request_id,
        hint=_hint(kind, message, key, request_id, account),
        said_at=said_at,
        permission=(missing_permission(message) or "") if status == 403 else "",
    )
    if isinstance(refused, NotExpandable):
        named = _EXPAND.search(message)
        refused.properties = tuple(re.findall(r"[\w.]+", (named and named["names"]) or ""))
    return refused


def _kind(status: int, error: _Error, account: str | None) -> type[Refused]:
    message, code = error.message or "", error.code or ""
    if status == 400 and _EXPAND.search(message):
        return NotExpandable
    if status in (401, 403) and _WRONG_PLACE.search(message):
        return WrongKey
    if status in (400, 403) and _NO_PLATFORM.search(message):
        return WrongAccount if account else NotEnabled
    if code == "account_invalid" or (status in (400, 403) and _NO_ACCESS.search(message)):
        named = _ACCOUNT.findall(message)
        # A path can name an account too; that one alone is out of reach then.
        return WrongAccount if not named or account in named else NotPermitted
    if status in (400, 404) and message.lower().startswith(_UNKNOWN_PATH):
        # Not a missing object: Stripe hides the whole path from accounts without the product.
        return NotEnabled
    if code == "resource_missing" or _GONE.search(message):
        return NotFound
    if status == 400 and (error.param == "customer" or _WANTS_CUSTOMER.search(message)):
        return MissingParent
    if status == 400 and code.startswith("parameter_"):
        return BadParameter  # https://docs.stripe.com/error-codes
    is_lacking = code == "more_permissions_required" or missing_permission(message)
    if status == 403 and (is_lacking or _LACKS.search(message)):
        return NotPermitted
    if status in (400, 403, 404) and _NOT_ENABLED.search(message):
        return NotEnabled
    return _BY_STATUS.get(status, Refused)


def _hint(
    kind: type[Refused], message: str, key: ApiKey, request_id: str, account: str | None
) -> str:
    if kind is WrongAccount and account:
        return (
            f"Check --stripe-account (STRIPE_ACCOUNT), now {account}: it must be an account that is "
            f"connected to the one of the key {key}, in the same mode. Leave it out to sync the "
            "key's own."
        )
    if kind is WrongAccount:
        return f"The account is not connected to the one of the key {key}, or no longer."
    if kind is WrongKey and _WRONG_PLACE.search(message):
        return f"Add this machine to the allow list of {key}: https://dashboard.stripe.com/apikeys."
    if kind is WrongKey:
        return (
            f"Check the API key ({key}): it may be mistyped, expired or rolled. Keys are at "
            "https://dashboard.stripe.com/apikeys."
        )
    if kind is NotPermitted:
        lacking = permission_of(message)
        if lacking:
            where = f": {lacking.edit_url}" if lacking.edit_url else " in the Stripe dashboard."
            return f"Give the restricted key the permission {lacking}{where}"
        return "Use a key that may read this; in the Stripe dashboard, edit the key's permissions."
    if kind is NotEnabled:
        return "Nothing to do unless you use this Stripe product; then enable it for the account."
    if kind is NotFound:
        return f"It was deleted, or it belongs to another account or mode than the key {key}."
    logs = "https://dashboard.stripe.com/" + ("test/logs" if key.mode == "test" else "logs")
    return f"Stripe's log of the request has the details: {logs}/{request_id}"
