"""Turns asyncpg's errors into ours, by remedy and with a hint. The only file that knows them.

`sqlstates` says what each code means. Errors keep the names of tables, columns and constraints that
Postgres gives (`fault`), and no values: those are customers' data.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import asyncpg

from pinstripe.errors import DatabaseFault, Misconfigured, PinstripeError, Unreachable, Unwritable
from pinstripe.store.database_url import pairs, split_url
from pinstripe.store.sqlstates import (
    ALTERED,
    AT_START,
    REMEDIES,
    RESTRICTED,
    UNKNOWN,
    WRITABLE_HINT,
    Remedy,
)

_ASYNCPG = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


@contextmanager
def translated() -> Iterator[None]:
    """Turns what asyncpg raises in the block into our errors.

    A lost connection shows as ConnectionError or TimeoutError too: a block should hold nothing but
    statements, or the loss of another connection would be taken for Postgres's.
    """
    try:
        yield
    except (*_ASYNCPG, ConnectionError, TimeoutError) as error:
        found = translate(error)
        if found is None:
            raise
        raise found from error


def translate(error: Exception) -> PinstripeError | None:
    """Our error for one of asyncpg's; None for what is a mistake in our own code.

    Codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    if isinstance(error, asyncpg.PostgresError):
        return _by_code(error)
    if isinstance(error, asyncpg.ClientConfigurationError):
        return Misconfigured(f"The database URL is wrong: {error}.", hint="See DATABASE_URL.")
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return Unwritable(f"No server is of the kind asked for: {error}.", hint=WRITABLE_HINT)
    # "connection is closed", "pool is closing": InterfaceErrors that only their text tells.
    # InternalClientError: a connection lost between Prepare and Bind; asyncpg says then that it
    # "cannot switch to state 12". (A real mix-up of ours is an InterfaceError.)
    lost = isinstance(error, (ConnectionError, TimeoutError, asyncpg.InternalClientError))
    if lost or "is clos" in str(error):
        found = Unreachable(
            f"The connection to Postgres broke off: {error or 'no answer in time'}.",
            hint="The work is tried again when the server is back.",
        )
        found.fault = DatabaseFault("", "passing")
        return found
    return None


def sqlstate(error: BaseException) -> str:
    """Postgres's code behind `error` (asyncpg's, or ours made of it); "" if there is none."""
    for candidate in (error, error.__cause__):
        if isinstance(candidate, asyncpg.PostgresError):
            return candidate.sqlstate or ""
    return ""


def is_transient(error: BaseException) -> bool:
    """Whether the same work, tried again, may succeed without anyone doing something."""
    if isinstance(error, PinstripeError):
        return isinstance(error, Unreachable)
    return isinstance(error, Exception) and isinstance(translate(error), Unreachable)


def _by_code(error: asyncpg.PostgresError) -> PinstripeError:
    remedy = _remedy(error)
    hint = _OF_A_FUNCTION if _in_function(error) and remedy.scope == "table" else remedy.hint
    found = remedy.kind(f"Postgres ({error.sqlstate}): {_said(error)}.", hint=hint)
    found.fault = DatabaseFault(
        error.sqlstate or "",
        remedy.scope,
        schema=_text(error, "schema_name"),
        table=_text(error, "table_name"),
        column=_text(error, "column_name"),
        constraint=_text(error, "constraint_name"),
    )
    return found


def _remedy(error: asyncpg.PostgresError) -> Remedy:
    """By code; by the server's own function where one code means two things. Texts are translated
    on some servers, the names of functions never.
    """
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return ALTERED
    if error.sqlstate == "42501" and _text(error, "server_source_function") == _POLICIES:
        return RESTRICTED
    unknown = REMEDIES["P0001"] if _is_raised(error) else UNKNOWN
    return REMEDIES.get(error.sqlstate or "", unknown)


_OF_A_FUNCTION = (
    "It failed within a function, of a trigger of your own, say: mend or drop it. Our sessions have "
    "search_path = pg_catalog: give the function a search_path of its own (ALTER FUNCTION ... SET)."
)
_POLICIES = "ExecWithCheckOptions"
_FUNCTION = re.compile(r"[\w.\"$]+\([^()]*\)")
_VALUE = re.compile(r":\s*[\"'«„“].*")


def _said(error: asyncpg.PostgresError) -> str:
    """Postgres's first line without customers' data, which DETAIL, statement and CONTEXT hold.

    The text of a RAISE is the user's own and may hold anything: the function that raised it is named
    instead. What asyncpg refuses to send is an error of its own, without a message, that shows the value.
    """
    code = error.sqlstate or ""
    message = _text(error, "message")
    if not message and code.startswith("22"):
        return "a value does not fit its type"
    message = message or str(error)
    if _is_raised(error):
        function = _FUNCTION.search(_text(error, "context").partition("\n")[0])
        where = function.group() if function else "a function"
        return f"{where} raised an error, whose words are in the server's log"
    first = message.splitlines()[0].rstrip(".")
    # `invalid input syntax for type bigint: "..."`, in whichever quotes the server's language has.
    return _VALUE.sub("", first) if code.startswith("22") else first


def _in_function(error: asyncpg.PostgresError) -> bool:
    """Whether functions of the user's were at work: we have none of our own."""
    context = _text(error, "context")
    return bool(_FUNCTION.search(context)) and not context.startswith("COPY ")


def _is_raised(error: asyncpg.PostgresError) -> bool:
    return _text(error, "server_source_function") == "exec_stmt_raise"


def _text(error: asyncpg.PostgresError, field: str) -> str:
    return getattr(error, field, None) or ""


@contextmanager
def connecting(url: str) -> Iterator[None]:
    """As `translated`, for the start of a connection: names the server, never the password."""
    try:
        yield
    except _ASYNCPG as error:
        found = translate(error)
        if found is None:
            raise
        remedy = AT_START.get(found.fault.sqlstate) if found.fault else None
        kind, hint = (remedy.kind, remedy.hint) if remedy else (type(found), found.hint)
        at_start = kind(f"{place_of(url)}: {found.message}", hint=hint)
        if found.fault:
            at_start.fault = replace(
                found.fault, scope=remedy.scope if remedy else found.fault.scope
            )
        raise at_start from error
    except TimeoutError as error:
        raise Unreachable(
            f"Postgres at {place_of(url)} does not answer in time.",
            hint="Is the host right, and no firewall between? connect_timeout in the URL gives more time.",
        ) from error
    except ssl.SSLCertVerificationError as error:
        raise Misconfigured(
            f"The certificate of Postgres at {place_of(url)} is not trusted: {error.verify_message}.",
            hint="Name the authority that signed it: sslrootcert=FILE, or sslrootcert=system. "
            "channel_binding=require verifies it too.",
        ) from error
    except OSError as error:
        if "rejected SSL upgrade" in str(error):  # the driver's words; it has no class for it
            raise Misconfigured(
                f"Postgres at {place_of(url)} does not speak TLS, and the database URL asks for it.",
                hint="Switch TLS on at the server (ssl = on), or lower sslmode; channel_binding=require "
                "needs TLS too.",
            ) from error
        raise Unreachable(
            f"Cannot reach Postgres at {place_of(url)}: {error.strerror or error}.",
            hint="Is the server running, and are host and port of DATABASE_URL right?",
        ) from error


def place_of(url: str) -> str:
    """Where `url` leads: host, port and database, without user and password."""
    try:
        parts = split_url(url)
    except Misconfigured:
        return "an address that cannot be read"
    query = dict(pairs(parts.query))
    host = parts.hosts or query.get("host") or query.get("hostaddr") or "localhost"
    return f"{host}/{parts.path or query.get('dbname', '')}"
