"""Connections to Postgres: a pool, one for a block, one to keep; asyncpg's errors become ours.

Blocks of `connect` and `Pool` raise our errors only. A connection from `connect_dedicated` is bare: put
`translated()` around its statements. `sqlstates` says what each code means; an error keeps the names of
tables, columns and constraints (`fault`) and no values, which are customers' data.

`cancel_on_disconnect` ends a block when its connection is lost. asyncpg fails pending queries then, but
not a COPY that waits to send: that one waits for ever (asyncpg 0.32, session ended during a COPY).
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TypeAlias, cast

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from asyncpg.transaction import Transaction

from pinstripe.errors import DatabaseFault, Misconfigured, PinstripeError, Unreachable, Unwritable
from pinstripe.store import session
from pinstripe.store.database_url import pairs, split_url
from pinstripe.store.session import Session, open_session
from pinstripe.store.sqlstates import (
    ALTERED,
    AT_START,
    ENDED,
    REMEDIES,
    RESTRICTED,
    UNKNOWN,
    WRITABLE_HINT,
    Remedy,
)

MINIMUM_VERSION = 13
"""Older ones are out of support, and lack what the statements use."""

Connection: TypeAlias = asyncpg.Connection | PoolConnectionProxy
"""What a block gets: of its own (`connect`) or out of a pool."""


@dataclass(frozen=True)
class ServerFacts:
    """What a server and the rights of our user allow."""

    version: str
    writable: bool
    database: str


_RELEASE_S = 2.0
"""How long a block waits at its end for a server that hangs; then the connection is terminated.

asyncpg cancels a statement through a second connection and waits without a limit until both have
answered. A server that hangs, or a pooler without a free place, answered after 60 s or never.
"""


class Pool:
    """Connections that are ready. A thin coat over asyncpg's pool that translates its errors."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        url: str,
        name: str,
        account: str = "",
        is_large: Callable[[], bool] = lambda: False,
    ) -> None:
        self._pool = pool
        self.url = url
        self._name = name
        self._account = account
        self._is_large = is_large

    def of_account(self, account: str, *, is_large: Callable[[], bool] = lambda: False) -> Pool:
        """Return the same pool; its connections work for one account of a platform (`Session`).

        `is_large`: whether its statements are planned each time. Plans are kept for all accounts, and one
        for an account with few rows may read each of many rows again and again.
        """
        return Pool(self._pool, self.url, self._name, account, is_large)

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def acquire(self, *, is_growing: bool = False) -> AsyncIterator[Connection]:
        """A connection for the block, and `translated()` around it: keep other I/O outside.

        `is_growing`: its statements are planned each time: a plan from when the tables had few rows may be
        slow now.
        """
        with translated():
            with connecting(self.url):  # It may be a new one.
                connection = await self._pool.acquire()
            try:
                plans = "force_custom_plan" if is_growing or self._is_large() else ""
                await work_for(connection, self._account, plans=plans)
                yield connection
            finally:
                # A statement that was cancelled is waited for, but not for ever: see `_RELEASE_S`.
                with suppress(TimeoutError):
                    await self._pool.release(connection, timeout=_RELEASE_S)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """As `acquire`, in one transaction: committed at the block's end, rolled back on error."""
        async with self.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                yield connection
            except BaseException:
                await _roll_back(connection, transaction)
                raise
            await transaction.commit()

    async def time(self) -> datetime:
        """Postgres's clock."""
        async with self.acquire() as connection:
            found: datetime = await connection.fetchval("SELECT clock_timestamp()")
        return found

    def dedicated(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """A connection outside of the pool for a long block, such as one that listens. See `connect`."""
        return connect(self.url, application_name=self._name, account=self._account)

    @property
    def size(self) -> int:
        """Connections that are open now."""
        return self._pool.get_size()

    @property
    def idle(self) -> int:
        """Idle connections of the pool."""
        return self._pool.get_idle_size()

    async def close(self, *, timeout_s: float = 10.0) -> None:
        """Waits for connections in use, then cuts them off."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


async def open_pool(
    url: str,
    *,
    min_size: int,
    max_size: int,
    application_name: str = "pinstripe",
    statements: int = 100,
) -> Pool:
    """A pool, to be closed: it is an async context manager.

    `statements`: how many each session keeps prepared.
    """
    with connecting(url):
        pool = await asyncpg.create_pool(
            url,
            min_size=min_size,
            max_size=max_size,
            connect=partial(open_session, application_name=application_name),
            connection_class=Session,
            statement_cache_size=statements,
            max_cacheable_statement_size=0 if statements > 100 else 15 * 1024,
            reset=_as_it_is,
        )
    return Pool(pool, url, application_name)


@asynccontextmanager
async def connect(
    url: str, *, application_name: str = "pinstripe", account: str = ""
) -> AsyncIterator[asyncpg.Connection]:
    """One connection for the block, outside of any pool. `account`: see `Session`."""
    connection = await connect_dedicated(url, application_name=application_name, account=account)
    try:
        with translated():
            yield connection
    finally:
        await close_quietly(connection)


async def connect_dedicated(
    url: str, *, application_name: str = "pinstripe", account: str = ""
) -> Session:
    """A connection that the caller owns and ends (`hang_up`); wrap its use in `translated()`.

    It keeps every prepared statement that it is given: upserts of wide tables are long, and
    preparing one costs milliseconds.
    """
    with connecting(url):
        session = await open_session(
            url,
            application_name=application_name,
            statement_cache_size=512,
            max_cacheable_statement_size=0,
        )
        try:
            await session.work_for(account)
        except BaseException:
            session.terminate()
            raise
        return session


async def work_for(connection: Connection, account: str, *, plans: str = "") -> None:
    """Have a connection of ours show the rows of this account of a platform: see `Session`."""
    # A pool's connection passes on what it does not know.
    await cast(Session, connection).work_for(account, plans=plans)


async def close_quietly(connection: asyncpg.Connection, *, timeout_s: float = 5.0) -> None:
    """Closes a connection; without a goodbye if the server is gone or does not answer."""
    try:
        async with asyncio.timeout(timeout_s):
            await connection.close()
    except (*_ASYNCPG, *_LOST, RuntimeError):
        connection.terminate()


async def check_sessions(url: str) -> None:
    """Raises Misconfigured where a pooler does not let sessions last. Writes and sets nothing."""
    with connecting(url):
        await session.check_sessions(url)


async def check_server(connection: Connection) -> ServerFacts:
    """What may be done here; `Misconfigured` if the server is too old or the database not in UTF-8."""
    with translated():
        row = await connection.fetchrow(
            """
            SELECT current_setting('server_version_num')::int / 10000 AS major,
                   split_part(current_setting('server_version'), ' ', 1) AS version,
                   current_setting('server_encoding') AS encoding,
                   NOT pg_is_in_recovery()
                       AND current_setting('default_transaction_read_only') = 'off' AS writable,
                   current_database()::text AS database
            """
        )
    assert row is not None  # noqa: S101 (a SELECT without FROM has one row)
    if row["major"] < MINIMUM_VERSION:
        raise Misconfigured(
            f"The server is Postgres {row['version']}; Pinstripe needs {MINIMUM_VERSION} or newer.",
            hint="Use a newer server, or none: without DATABASE_URL Pinstripe brings its own.",
        )
    if row["encoding"] != "UTF8":
        raise Misconfigured(
            f'The database "{row["database"]}" is in the encoding {row["encoding"]}, which cannot hold '
            "every text of Stripe's. Nothing was written.",
            hint="Make one that can: CREATE DATABASE ... WITH ENCODING 'UTF8' TEMPLATE template0.",
        )
    return ServerFacts(version=row["version"], writable=row["writable"], database=row["database"])


async def _roll_back(connection: Connection, transaction: Transaction) -> None:
    """Roll back, or end a connection that does not answer: Postgres rolls back then."""
    try:
        async with asyncio.timeout(_RELEASE_S):
            await transaction.rollback()
    except (*_ASYNCPG, *_LOST):
        # The error that ends the block is the one to report. A lost connection is no longer the pool's.
        with suppress(asyncpg.InterfaceError):
            connection.terminate()


async def _as_it_is(_: asyncpg.Connection) -> None:
    """What was open is rolled back by now. Nothing else is to be undone: who listens, or changes its
    session otherwise, has a connection of its own. (A RESET for each use costs as much as a small read.)
    """


_ASYNCPG = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_LOST = (ConnectionError, FileNotFoundError, TimeoutError)
"""FileNotFoundError: a server that stops removes its Unix socket."""


@contextmanager
def translated() -> Iterator[None]:
    """Turns what asyncpg raises in the block into our errors.

    A lost connection shows as ConnectionError or TimeoutError too: a block should hold nothing but
    statements, or the loss of another connection would be taken for Postgres's.
    """
    try:
        yield
    except (*_ASYNCPG, *_LOST, RuntimeError) as error:
        found = translate(error)
        if found is None:
            raise
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # What is tried again after trouble with Postgres would never end.
            raise asyncio.CancelledError from error
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
        return Unwritable("No server is as target_session_attrs asks.", hint=WRITABLE_HINT)
    # "connection is closed", "pool is closing": InterfaceErrors that differ in their text only. "the
    # handler is closed": a RuntimeError of uvloop's, where asyncio's transports ignore what is written.
    # InternalClientError: a connection lost between Prepare and Bind; asyncpg says then that it
    # "cannot switch to state 12". (A real mix-up of ours is an InterfaceError.)
    lost = isinstance(error, (*_LOST, asyncpg.InternalClientError))
    if lost or "is clos" in str(error):
        found = Unreachable(
            f"The connection to Postgres broke off: {str(error) or 'no answer in time'}.",
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


def _by_code(error: asyncpg.PostgresError) -> PinstripeError:
    remedy = _remedy(error)
    scope, hint = remedy.scope, remedy.hint
    if scope == "table" and _in_function(error):
        scope, hint = "row", _OF_A_FUNCTION  # It may fail for some rows only.
    found = remedy.kind(f"Postgres ({error.sqlstate}): {_said(error)}.", hint=hint)
    found.fault = DatabaseFault(
        error.sqlstate or "",
        scope,
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
    is_end = error.sqlstate in ("08P01", "XX000") and _text(error, "severity") == "FATAL"
    if is_end and not _OF_SETTINGS.search(_text(error, "message")):
        return ENDED
    unknown = REMEDIES["P0001"] if _is_raised(error) else UNKNOWN
    return REMEDIES.get(error.sqlstate or "", unknown)


_OF_A_FUNCTION = (
    "It failed within a function, of a trigger of your own, say: mend or drop it. Our sessions have "
    "search_path = pg_catalog: give the function a search_path of its own (ALTER FUNCTION ... SET)."
)

_POLICIES = "ExecWithCheckOptions"

_OF_SETTINGS = re.compile("startup parameter|pooling mode")
"""What pgbouncer says of a parameter that it does not take, and of a mode that is the wrong one."""

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
        asked = found.fault is not None and found.fault.scope != "passing"
        remedy = AT_START.get(sqlstate(error)) if asked else None
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
            hint="Is the host right, and no firewall between? Has a pooler, if there is one, servers for "
            "all of our connections? connect_timeout in the URL gives more time.",
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
                hint="Switch TLS on at the server (ssl = on), or lower sslmode; requiressl, ssl, "
                "sslaccept=strict, sslrootcert=system and channel_binding=require need TLS too.",
            ) from error
        raise Unreachable(
            f"Cannot reach Postgres at {place_of(url)}: "
            f"{error.strerror or str(error) or 'the connection was closed'}.",
            hint="Is the server running, and are host (hostaddr) and port of DATABASE_URL right?",
        ) from error


def place_of(url: str) -> str:
    """Where `url` leads: host, port and database, without user and password."""
    try:
        parts = split_url(url)
    except Misconfigured:
        return "an address that cannot be read"
    read = f"{parts.hosts}/{parts.path}?{parts.query.partition('=')[0]}"
    if "@" in read:  # A bare `/` or `?` in the password has cut it.
        return read.rpartition("@")[2].partition("?")[0]
    query = dict(pairs(parts.query))
    host = parts.hosts or query.get("host") or query.get("hostaddr") or "localhost"
    return f"{host}/{parts.path or query.get('dbname', '')}"


@asynccontextmanager
async def cancel_on_disconnect(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """The block raises Unreachable as soon as `connection` is gone, wherever it waits."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 (a coroutine runs in a task)
    inside, lost = True, False

    def on_lost(_: object) -> None:
        nonlocal lost
        if inside:
            lost = True
            task.cancel()

    connection.add_termination_listener(on_lost)
    try:
        yield
    except (asyncio.CancelledError, RuntimeError) as error:
        # A RuntimeError: asyncpg tells a COPY's end to a transport that is closed, see `translate`.
        if lost and task.uncancel() == 0:
            raise Unreachable(
                "The connection to Postgres broke off.",
                hint="The work is tried again when the server is back.",
            ) from error
        raise
    finally:
        inside = False
        connection.remove_termination_listener(on_lost)
