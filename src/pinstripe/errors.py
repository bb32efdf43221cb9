"""Every exception of Pinstripe, one class for each remedy.

Imports nothing, so that every layer may raise from here. Each error carries a `hint` (the remedy, one
sentence) and the facts that an operator needs (table, id, request id). No message holds a secret: `redact`
leaves `sk_test_…1234` of a key at most.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# Keys with a mode, webhook secrets, and the oldest keys, which have no mode. The words `sk_test_` and
# `sk_live_` alone are no secret: hints name them.
_KEY = re.compile(
    # What stands behind /apikeys/ in a link of the dashboard is a key's id, not the key.
    r"(?<!/apikeys/)\b((?:sk|rk|pk|ek)_(?:org_)?(?:live|test)_|whsec_|(?:sk|rk)_(?!live_|test_|org_))[A-Za-z0-9]{4,}"
)
# Texts that are recognisably secret, in any place. Shapes: `whsec_…` and keys as in
# https://docs.stripe.com/keys; client secrets begin with the id of what they belong to, or with the type's
# prefix (`pi_…_secret_…`, `src_client_secret_…`, `cuss_secret_…`: seen in Stripe's published fixtures).
# A name of the user's (`top_secret_plan`) has none of these beginnings.
_LOOK = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?P<key>(?:whsec|(?:[ser]k|pst)(?:_org)?_(?:live|test))_)[A-Za-z0-9+/=,._-]{4,}"
    r"|(?P<of>(?:(?:accs|acctsess|cs|cuss|fcsess|in|pi|seti|src|vs)_[A-Za-z0-9._]*?"
    r"|[a-z]{2,12}_(?:test_|live_)?[A-Za-z0-9]{14,}_)secret_|client_secret(?:=|%3D))"
    r"[^\s\"'&<>#;]+)"
)
_URL_PASSWORD = re.compile(r"(://[^:/@\s]+):[^@\s]*@")


def redact(text: str) -> str:
    """`text` with every Stripe secret and every password in a URL blanked out.

    >>> redact("key sk_test_abcdef1234567 at postgres://u:pw@h/db")
    'key sk_test_… at postgres://u:…@h/db'
    >>> redact("keys begin with sk_live_ or sk_test_")
    'keys begin with sk_live_ or sk_test_'
    """
    return _URL_PASSWORD.sub(r"\1:…@", _KEY.sub(r"\1…", cut_secrets(text)))


def cut_secrets(text: str) -> str:
    """`text` without what is recognisably secret: client secrets, signing secrets, secret keys.

    >>> cut_secrets("https://h.example/a?client_secret=src_client_secret_9Hx&id=1")
    'https://h.example/a?client_secret=…&id=1'
    >>> cut_secrets("pi_1PgafyB7_secret_Dm43xiq1 of top_secret_project")
    'pi_1PgafyB7_secret_… of top_secret_project'
    """
    return _LOOK.sub(lambda found: f"{found['key'] or found['of']}…", text)


Scope = Literal["row", "table", "server", "passing"]
"""How far the cause of a database's refusal reaches, and so what may go on beside it.

- `row`: this row is refused (a constraint, a trigger, its size). Part of its batch may well be written.
- `table`: every write to the table is refused until the user acts. Other tables go on.
- `server`: nothing is written anywhere until the user acts.
- `passing`: a retry of the same work may succeed without the user.
"""


@dataclass(frozen=True, slots=True)
class DatabaseFault:
    """What Postgres reported, without values: they are customers' data.

    Names are "" where Postgres did not give them: it names tables and columns for constraints, rarely else.
    """

    sqlstate: str
    scope: Scope
    schema: str = ""
    table: str = ""
    column: str = ""
    constraint: str = ""


class PinstripeError(Exception):
    """The root. `message` says what is wrong, `hint` what to do about it."""

    exit_code = 1
    slug = "error"
    """Names the class for programs: bookkeeping, API and metrics carry it, and decisions go by it."""
    is_answer = False
    """Whether it is Stripe's definite answer to the request: only then may the request be given up. After
    any other error the request stays pending and is retried.
    """

    fault: DatabaseFault | None = None
    """What Postgres reported, if the error is the database's."""

    @property
    def is_of_rows(self) -> bool:
        """Whether Postgres refuses rows or a table; the rest of a batch can be written then."""
        return self.fault is not None and self.fault.scope in ("row", "table")

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = redact(message)
        self.hint = redact(hint)
        super().__init__(f"{self.message} {self.hint}".strip())


class Misconfigured(PinstripeError):
    """The user must change a setting, a key, a right, a directory. Never retried."""

    exit_code = 2
    slug = "misconfigured"


class UnknownSync(Misconfigured):
    """There is no sync of this id."""


class ErasedMeanwhile(PinstripeError):
    """A customer was erased while a batch was made: nothing of it is written before that is respected."""

    slug = "erased_meanwhile"


class Unreachable(PinstripeError):
    """Stripe or Postgres cannot be reached, or the connection broke. A later retry may succeed."""

    exit_code = 3
    slug = "unreachable"


class Refused(PinstripeError):
    """Stripe answered with an error body in its own shape.

    An instance of this very class is an error that Pinstripe does not understand: it is retried. Subclasses
    with `is_answer` are definite answers about the requested object or list.

    Attributes: `status` (HTTP), `code` and `type` (Stripe's, "" where absent), `param`,
    `request_id` (`req_…` or ""), `permission` (what the key lacks, as Stripe names it). `said_at`: the
    interval in which it was true, [lo, hi) on Stripe's clock, Unix seconds.
    """

    exit_code = 4
    slug = "refused"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str = "",
        type: str = "",
        param: str = "",
        request_id: str = "",
        hint: str = "",
        said_at: tuple[float, float] | None = None,
        permission: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.said_at = said_at
        self.permission = permission
        self.status = status
        self.code = code
        self.type = type
        self.param = param
        self.request_id = request_id


class NotPermitted(Refused):
    """403: the key lacks a permission; `message` is Stripe's and names it."""

    slug = "not_permitted"
    is_answer = True


class NotEnabled(Refused):
    """400: the account has not enabled the product behind the endpoint."""

    slug = "not_enabled"
    is_answer = True


class NotFound(Refused):
    """404, or code `resource_missing`: Stripe has no such object (any more)."""

    slug = "not_found"
    is_answer = True


class BadParameter(Refused):
    """400 with a code `parameter_…`: Stripe refuses the request in this form; a retry cannot succeed."""

    slug = "bad_parameter"
    is_answer = True


class MissingParent(Refused):
    """400: Stripe lists these objects only under a parent ("Missing required param: customer.")."""

    slug = "missing_parent"
    is_answer = True


class WrongKey(Refused):
    """401: the key is unknown, expired or revoked. Also 403: it may not be used from this address."""

    exit_code = 2
    slug = "wrong_key"


class NotExpandable(Refused):
    """400: a property that `expand[]` names cannot be expanded. `properties`: those that Stripe names."""

    slug = "not_expandable"
    is_answer = True
    properties: tuple[str, ...] = ()


class WrongAccount(WrongKey):
    """403 or 400: the key may not act at all for the account that `Stripe-Account` names."""


class Drifted(PinstripeError):
    """Stripe or the database differs from the catalog in a way that Pinstripe cannot repair."""

    slug = "drifted"


class Oversized(Drifted):
    """A response is larger than Pinstripe takes. It would be as large again: it is not retried."""

    slug = "oversized"


class Unwritable(PinstripeError):
    """Postgres refuses the write: it is read-only, its disk is full, or a privilege is missing."""

    exit_code = 5
    slug = "unwritable"


class LostLease(PinstripeError):
    """Another process holds the lease of this schema. Nothing was written; stand by again."""

    exit_code = 7


class FellBehind(PinstripeError):
    """Stripe's event log no longer reaches back to the sync's position: a new backfill is needed."""

    exit_code = 7
