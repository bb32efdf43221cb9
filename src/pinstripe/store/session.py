"""Sessions: how one is started, and for which account of a platform it works.

    scope_of("stripe", "acct_1")   ->  "stripe@acct_1"
    relations("stripe@acct_1")     ->  "stripe_of_account": the views that show the rows of one account
    relations("shop")              ->  "shop": the tables of a sync that has its schema for itself

A platform keeps all its accounts in one schema, keyed `(_account_id, id)`. The bookkeeping names one of
them by its scope where it names a sync by its schema, and statements read and write the account's rows
through views (`ddl.create_view`). So every statement works for both, and its text is the same for all
accounts of a platform. Which account a session works for is the setting `SETTING`; without it, the views
raise an error or have no rows (docs/decisions/033-platforms.md).

Roles, databases and URLs set parameters of their own (`ALTER ROLE ... SET statement_timeout`, `options`).
Ours are set by one statement after the login, since a pooler refuses startup parameters that it does not
know. The statement does nothing if the backend is not the one of the login: then a pooler in transaction
mode is in between, and it would change the sessions of other clients. Such a pooler is refused before
anything is set or written.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from dataclasses import replace
from typing import Any

import asyncpg

from pinstripe.errors import Misconfigured
from pinstripe.store.database_url import DatabaseTarget, read_url
from pinstripe.store.sqlstates import POOLER_HINT

ACCOUNT = "_account_id"
"""The first column of a platform's tables, and of every key."""

SETTING = "pinstripe.account"
"""The setting of a session that says for which account it works."""

CURRENT = f"pg_catalog.current_setting('{SETTING}')"
"""The account of the session, in SQL. An error where the session has never set one."""

SCOPES_OF = (
    "(SELECT s.schema FROM pinstripe.sync s WHERE s.schema = $1 OR s.platform_id ="
    " (SELECT p.id FROM pinstripe.platform p WHERE p.schema = $1))"
)
"""The schema $1 and, if it is a platform's, the scopes of its accounts, in SQL."""

_AT = "@"
_VIEWS = "_of_account"
_PARTITIONS = "_partitions"
NAME_BYTES = 63 - len(_VIEWS)
"""The longest name of a platform's schema: the names made of it have to fit into Postgres's 63 bytes."""


def scope_of(schema: str, account_id: str) -> str:
    return f"{schema}{_AT}{account_id}"


def schema_of(scope: str) -> str:
    """Return the schema of the tables.

    >>> schema_of("stripe@acct_1"), schema_of("stripe")
    ('stripe', 'stripe')
    """
    return scope.partition(_AT)[0]


def account_of(scope: str) -> str:
    """Return the account of a platform that the scope names; "" for a sync with its own schema."""
    return scope.partition(_AT)[2]


def relations(scope: str) -> str:
    """Return the schema in which statements find the rows of a scope: its tables, or its views."""
    return views_of(schema_of(scope)) if account_of(scope) else scope


def views_of(schema: str) -> str:
    """Return the schema of the views that show a platform's rows by account."""
    return schema + _VIEWS


def partitions_of(schema: str) -> str:
    """Return the schema of the partitions of a platform's tables."""
    return schema + _PARTITIONS


CONNECT_S = 15.0
"""How long the start of a connection may take, if the URL does not say."""

_SETTINGS: dict[str, str] = {
    # Long work is ours to limit: a copy, an index of a large table, a session that listens for days.
    "statement_timeout": "0",
    # No wait for a lock lasts for ever; `locks` says whose it is.
    "lock_timeout": "1min",
    # A process that is stopped in a transaction (SIGSTOP, a frozen machine) would keep its locks: none of
    # ours waits for anything but Postgres in one.
    "idle_in_transaction_session_timeout": "30s",
    # Names are found in pg_catalog or as we write them, never in a schema where others may create.
    "search_path": "pg_catalog",
    # What our texts and casts are read by.
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    # Names of types, which the driver reads, would have quotes.
    "quote_all_identifiers": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "row_security": "on",
    "exit_on_error": "off",
    # Short statements: compiling them costs more than they take.
    "jit": "off",
}
"""Not among them: `default_transaction_read_only`, which providers set when a disk is full; and
`synchronous_commit`, `role`, `session_replication_role` and tablespaces, which are the administrator's.
"""
_SETTINGS_SINCE = {"idle_session_timeout": ("0", 14), "transaction_timeout": ("0", 17)}

_ROUNDS = 3
_silent: dict[tuple[str, int], float] = {}  # Hosts that did not answer: until when they come last.
_SILENT_S = 60.0
_lasting: set[str] = set()
"""URLs behind which a pooler stands that has been found to let sessions last."""


class Session(asyncpg.Connection):
    """A connection that knows for which account of a platform it works: see `SETTING`."""

    account: str | None = ""
    """None while it is being changed, and after that failed: Postgres may have done it or not."""
    plans: str = ""
    """Its `plan_cache_mode`, where that was set."""

    async def work_for(self, account: str, *, plans: str = "") -> None:
        """Show the rows of this account in a platform's views, and of no other; "" for none.

        Not in a transaction: its rollback would bring the earlier account back. `plans`: as in
        `Pool.of_account`.
        """
        if (account, plans) != (self.account, self.plans):
            self.account = None
            await self.execute(
                "SELECT pg_catalog.set_config($1, $2, false), pg_catalog.set_config($3, $4, false)",
                SETTING,
                account,
                "plan_cache_mode",
                plans or "auto",
            )
            self.account, self.plans = account, plans

    async def begin(self, account: str, first: str = "") -> str:
        """Begin a transaction that works for this account. Where it does not commit, end the session.

        `first`: a statement of it, in the same message. Returns the status of the last one.
        """
        set_account = ""
        if account != self.account:
            self.account = None
            value = account.replace("'", "''")
            set_account = f"; SELECT pg_catalog.set_config('{SETTING}', '{value}', false)"
        status = await self.execute(f"BEGIN{set_account}{'; ' * bool(first)}{first}")
        self.account = account
        return status


async def open_session(url: str, *, application_name: str, **driver: Any) -> Session:
    """A connection that is ready for use. Its errors are the driver's: see `translate.connecting`.

    Raises Misconfigured for a pooler that does not let sessions last. `driver`: further arguments of
    `asyncpg.connect`.
    """
    target = read_url(url)
    if target.requirepeer:
        await asyncio.to_thread(_check_peer_of, target)
    connection = await _connect(target, application_name, **driver)
    try:
        _set_socket(connection, target)
        # A pooler lets a client in, and has its first statement wait for a server that is free.
        limit_s = (target.timeout_s or 0.0) * len(target.hosts or [""])
        async with asyncio.timeout(max(limit_s, CONNECT_S)):
            if not await _set(connection, only_where_logged_in=url not in _lasting):
                await _check_pooler(connection, target)
                _lasting.add(url)
                await _set(connection, only_where_logged_in=False)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _connect(
    target: DatabaseTarget,
    application_name: str,
    *,
    connection_class: type[Session] = Session,
    **driver: Any,
) -> Session:
    now, places = time.monotonic(), list(zip(target.hosts or (), target.ports or (), strict=False))
    places.sort(key=lambda place: _silent.get(place, now) > now)
    try:
        return await asyncpg.connect(  # type: ignore[misc]  # too many unions for the stubs
            target.tls.dsn,
            host=[host for host, _ in places] or None,
            port=[port for _, port in places] or target.ports,
            user=target.user,
            password=target.password,
            passfile=target.passfile,
            database=target.database,
            ssl=target.tls.ssl,
            direct_tls=target.tls.direct,
            target_session_attrs=target.target_session_attrs,  # type: ignore[arg-type]  # checked
            krbsrvname=target.krbsrvname,
            gsslib=target.gsslib,  # type: ignore[arg-type]  # checked
            timeout=target.timeout_s or CONNECT_S / max(len(places), 1),
            server_settings={"application_name": application_name, **target.settings},
            connection_class=connection_class,
            **driver,
        )
    except TimeoutError:
        if len(places) < 2:
            raise
    # The driver has one limit for all hosts: the first may have used it up.
    _silent[places[0]] = now + _SILENT_S
    rest = replace(target, hosts=[h for h, _ in places[1:]], ports=[p for _, p in places[1:]])
    return await _connect(rest, application_name, connection_class=connection_class, **driver)


async def _set(connection: asyncpg.Connection, *, only_where_logged_in: bool) -> bool:
    """Set the session's parameters; return False, with nothing set, if the backend is another one.

    A pooler makes up the process number that it gives at the login.
    """
    settings = settings_for(connection.get_server_version().major)
    calls = ", ".join(f"pg_catalog.set_config('{n}', '{v}', false)" for n, v in settings.items())
    pid = connection.get_server_pid() if only_where_logged_in else None
    where = f" WHERE pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) {pid}" if pid else ""
    return (await connection.execute(f"SELECT {calls}{where}")).endswith(" 1")


def settings_for(major: int) -> dict[str, str]:
    """What a session sets, on a server of this version."""
    return _SETTINGS | {n: v for n, (v, since) in _SETTINGS_SINCE.items() if major >= since}


async def check_sessions(url: str) -> None:
    """Raises Misconfigured where a pooler in transaction or statement mode stands before Postgres.

    Its errors are the driver's: see `translate.connecting`.
    """
    target = read_url(url)
    connection = await _connect(target, "pinstripe")
    try:
        await _check_pooler(connection, target)
    finally:
        await _close(connection)


async def _check_pooler(connection: asyncpg.Connection, target: DatabaseTarget) -> None:
    """Whether each transaction gets whichever server is free. Sets nothing.

    Another client takes a server for a transaction: it is ours, or we get another than before. pgbouncer
    in statement mode ends the connection at the BEGIN: "not allowed in statement pooling mode".
    """
    other = await _connect(target, "pinstripe")
    try:
        for _ in range(_ROUNDS):
            before = await _server(connection)
            async with other.transaction():
                shared = await _server(other) == before
                moved = not shared and await _server(connection) != before
            if shared or moved:
                raise _no_sessions("transaction")
    except asyncpg.PostgresError as error:
        if error.sqlstate in ("08P01", "25P01") or "pooling mode" in str(error):
            raise _no_sessions("statement") from error
        raise
    finally:
        await _close(other)


def _no_sessions(mode: str) -> Misconfigured:
    return Misconfigured(
        f"A connection pooler in {mode} mode stands before Postgres: sessions do not last. Nothing was "
        "written.",
        hint=POOLER_HINT,
    )


async def _close(connection: asyncpg.Connection) -> None:
    try:
        await connection.close(timeout=5)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


async def _server(connection: asyncpg.Connection) -> int:
    """The server process, by a statement that leaves nothing behind in it."""
    for response in await connection.fetch("SELECT pg_catalog.pg_backend_pid()"):
        return int(response[0])
    return 0


def _set_socket(connection: asyncpg.Connection, target: DatabaseTarget) -> None:
    """Keepalives, as the URL wants them; the peer of a socket once more, now that it is the one in use."""
    transport: asyncio.Transport = connection._transport  # type: ignore[attr-defined]
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    if sock.family != socket.AF_UNIX:
        for level, option, value in target.socket_options:
            sock.setsockopt(level, option, value)
    elif target.requirepeer:
        _check_peer(sock, target.requirepeer)


def _check_peer_of(target: DatabaseTarget) -> None:
    """Before anything is said: whose process listens at each socket that can be reached."""
    for host, port in zip(target.hosts or [], target.ports or [], strict=True):
        if host.startswith("/"):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(f"{host}/.s.PGSQL.{port}")
                except OSError:
                    continue
                _check_peer(probe, target.requirepeer)


def _check_peer(sock: socket.socket, user: str) -> None:
    import pwd

    if not hasattr(socket, "SO_PEERCRED"):
        raise Misconfigured(
            "Of the database URL, requirepeer cannot be met.",
            hint="This system does not tell: take it out.",
        )
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        wanted = pwd.getpwnam(user).pw_uid
    except KeyError:
        wanted = -1
    if uid != wanted:
        raise Misconfigured(
            f"Of the database URL, requirepeer is not met: the server runs as uid {uid}.",
            hint="Correct requirepeer, or see who listens at that socket.",
        )
