"""Turns asyncpg's errors into ours, by remedy and with a hint. The only file that knows them.

Sessions must be sessions: temp tables, prepared statements and LISTEN do not survive a pooler in
transaction mode (pgbouncer and its kin). Such a one gives itself away by refusing `jit` at the
start or by losing a prepared statement, and is answered with `Misconfigured`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import asyncpg

from pinstripe.errors import Drifted, Misconfigured, PinstripeError, Unreachable, Unwritable

CONNECT_S = 15.0
"""How long the start of a connection may take."""

_ASYNCPG = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_POOLER_HINT = (
    "This looks like a connection pooler in transaction mode: connect to Postgres directly, or to "
    "the pooler in session mode with ignore_startup_parameters = jit."
)


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
        return Unwritable(f"No server is of the kind asked for: {error}.", hint=_WRITABLE_HINT)
    # "connection is closed", "pool is closing": InterfaceErrors that only their text tells.
    # InternalClientError: a connection lost between Prepare and Bind; asyncpg says then that it
    # "cannot switch to state 12". (A real mix-up of ours is an InterfaceError.)
    lost = isinstance(error, (ConnectionError, TimeoutError, asyncpg.InternalClientError))
    if lost or "is clos" in str(error):
        return Unreachable(
            f"The connection to Postgres broke off: {error or 'no answer in time'}.",
            hint="The work is tried again when the server is back.",
        )
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


_WRITABLE_HINT = "Connect to the primary, and see default_transaction_read_only."

_REMEDIES: dict[str, tuple[type[PinstripeError], str]] = {
    "28P01": (Misconfigured, "Correct user and password in DATABASE_URL."),
    "28": (Misconfigured, "See the server's pg_hba.conf, and user and password in DATABASE_URL."),
    "3D000": (Misconfigured, "Create it (CREATE DATABASE ...), or correct DATABASE_URL."),
    "08P01": (Misconfigured, _POOLER_HINT),
    "26000": (Misconfigured, _POOLER_HINT),
    "42P05": (Misconfigured, _POOLER_HINT),
    "25006": (Unwritable, _WRITABLE_HINT),
    "42501": (Unwritable, "Give the user of DATABASE_URL the right, see the how-to on rights."),
    "53100": (Unwritable, "Make room on the server's disk."),
    "53200": (Unwritable, "Give the server more memory."),
    "53300": (Unreachable, "Raise max_connections, or close other connections."),
    "55P03": (Unreachable, "Another session holds a lock; see pg_locks."),
    "57P04": (Misconfigured, "The database was dropped."),
    "57": (Unreachable, "The server shuts down, starts or ended the session; we try again."),
    "40": (Unreachable, "It was rolled back in favour of another transaction; we try again."),
    "08": (Unreachable, "The work is tried again when the server is back."),
    "58": (Unwritable, "The server's disk or files are in trouble; see its log."),
    "XX": (Unwritable, "The server found its own data damaged or erred; see its log."),
    "53": (Unwritable, "The server lacks a resource; see its log."),
    "54": (Drifted, "A row or statement is larger than Postgres allows."),
    "22": (Drifted, "Stripe sent a value that the column cannot hold."),
    "23": (Drifted, "A constraint that Pinstripe did not make stands on the table: drop it."),
    "42": (Drifted, "Tables differ from the catalog: run the migration."),
    "3F000": (Drifted, "The schema is missing: run the migration."),
}
"""By whole code, then by class (its first two characters)."""


def _by_code(error: asyncpg.PostgresError) -> PinstripeError | None:
    code = error.sqlstate or ""
    remedy = _REMEDIES.get(code) or _REMEDIES.get(code[:2])
    if remedy is None:
        return None
    kind, hint = remedy
    # Neither DETAIL nor the statement: they hold a customer's data.
    message = str(getattr(error, "message", None) or error.args[0])
    return kind(f"Postgres ({code}): {message.splitlines()[0].rstrip('.')}.", hint=hint)


@contextmanager
def connecting(url: str) -> Iterator[None]:
    """As `translated`, for the start of a connection: names the server, never the password."""
    try:
        yield
    except _ASYNCPG as error:
        found = translate(error)
        if found is None:
            raise
        raise type(found)(f"{place_of(url)}: {found.message}", hint=found.hint) from error
    except TimeoutError as error:
        raise Unreachable(
            f"Postgres at {place_of(url)} does not answer within {CONNECT_S:.0f} s.",
            hint="Is the host right, and no firewall between?",
        ) from error
    except OSError as error:
        raise Unreachable(
            f"Cannot reach Postgres at {place_of(url)}: {error.strerror or error}.",
            hint="Is the server running, and are host and port of DATABASE_URL right?",
        ) from error
    except ValueError as error:  # a port that is no number; urllib's text quotes the URL's part
        raise Misconfigured(
            "The database URL cannot be read.",
            hint="Its form: postgresql://USER:PASSWORD@HOST:PORT/DATABASE; quote odd characters.",
        ) from error


def place_of(url: str) -> str:
    """Where `url` leads: host, port and database, without user and password."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2] or parse_qs(parts.query).get("host", ["localhost"])[0]
    return f"{host}{parts.path}"
