"""Checks whether a sync can run in a database, by trying it in transactions that are rolled back.

    report = await examine_database(url, "stripe", owner=("acct_...", False))

Catalogs show rights; only trying shows a full disk, an event trigger, or a server that is read-only for
another reason.

Sessions are checked too: settings, locks, prepared statements and LISTEN must outlive a transaction. A
pooler in transaction mode (pgbouncer) gives each transaction any free server, which shows when another
client takes ours.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import asyncpg

from pinstripe.catalog.tables import tables
from pinstripe.doctor.probe import ClockDifference
from pinstripe.doctor.report import DatabaseReport, Finding
from pinstripe.errors import Misconfigured, PinstripeError
from pinstripe.store.ddl import quote
from pinstripe.store.pool import MINIMUM_VERSION, connect, place_of, translated
from pinstripe.store.syncs import check_owner, load_syncs

_CONNECTIONS = 30
"""What one sync and the gateway hold at most: pools of 8 and 6, writers, a lease; and the gateway's."""

_CLOCK_S = 30.0
_WRONG, _UNWRITABLE = 2, 5

_FACTS = """
    SELECT split_part(current_setting('server_version'), ' ', 1) AS version,
           current_setting('server_version_num')::int / 10000 AS major,
           current_user::text AS "user",
           pg_is_in_recovery() AS standby,
           current_setting('default_transaction_read_only') = 'on' AS read_only,
           current_setting('server_encoding') AS encoding,
           -- LEAST leaves NULLs out. Of other users' sessions pg_stat_activity tells only the superuser.
           LEAST(
               current_setting('max_connections')::int
                   - current_setting('superuser_reserved_connections')::int
                   - coalesce(current_setting('reserved_connections', true), '0')::int
                   - (SELECT sum(numbackends) FROM pg_stat_database),
               (SELECT nullif(rolconnlimit, -1) - (
                   SELECT count(*) FROM pg_stat_activity WHERE usename = current_user
               ) FROM pg_roles WHERE rolname = current_user),
               (SELECT nullif(datconnlimit, -1) - numbackends
                FROM pg_database d JOIN pg_stat_database s ON s.datid = d.oid
                WHERE d.datname = current_database())
           )::int AS free
"""


@dataclass(frozen=True, slots=True)
class _Facts:
    """Facts that the server reports."""

    version: str
    major: int
    user: str
    standby: bool
    read_only: bool
    encoding: str
    free: int

    @property
    def writable(self) -> bool:
        return not (self.standby or self.read_only)


async def examine_database(
    url: str,
    schema: str,
    *,
    owner: tuple[str | None, bool] | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> DatabaseReport:
    """Return a report; what the database is or rejects is a finding, not an error.

    `owner` is (account, live mode) of the key, if it is known: whose schema it should be.
    """
    clock = ClockDifference()
    try:
        async with connect(url, application_name="pinstripe check") as connection:
            facts = await _facts(connection, clock, wall_clock)
            findings = [
                Finding("connection", "ok", f"Postgres {facts.version}, as {facts.user}"),
                *_of_server(facts),
                *await try_rights(connection, schema, writable=facts.writable),
                *await try_sessions(connection, url),
                *await _of_owner(connection, schema, owner),
                *_of_clock(clock),
            ]
    except PinstripeError as error:
        wrong = Finding("connection", "problem", error.message, error.hint, error.exit_code)
        return DatabaseReport(place_of(url), schema, None, None, None, None, (wrong,))
    return DatabaseReport(
        place_of(url),
        schema,
        facts.version,
        facts.user,
        round(clock.ahead_s, 3),
        facts.free,
        tuple(findings),
    )


async def _facts(
    connection: asyncpg.Connection, clock: ClockDifference, wall_clock: Callable[[], float]
) -> _Facts:
    row = await connection.fetchrow(_FACTS)
    assert row is not None  # noqa: S101 (a SELECT without FROM has one row)
    for _ in range(3):
        asked = wall_clock()
        said = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
        clock.heard(said, resolution=0.0, asked=asked, came=wall_clock())
    return _Facts(
        row["version"],
        row["major"],
        row["user"],
        row["standby"],
        row["read_only"],
        row["encoding"],
        max(0, row["free"]),
    )


def _of_server(facts: _Facts) -> Iterator[Finding]:
    if facts.major < MINIMUM_VERSION:
        yield Finding(
            "version",
            "problem",
            f"Pinstripe needs Postgres {MINIMUM_VERSION} or newer; this is {facts.version}.",
            "Use a newer server, or unset DATABASE_URL to use Pinstripe's own.",
            _WRONG,
        )
    if facts.standby:
        yield Finding(
            "primary",
            "problem",
            "This server is a read-only standby.",
            "Connect to the primary.",
            _UNWRITABLE,
        )
    elif facts.read_only:
        yield Finding(
            "primary",
            "problem",
            "The database is read-only for this user: default_transaction_read_only is on.",
            "Turn it off for the server, the database or the user.",
            _UNWRITABLE,
        )
    else:
        yield Finding("primary", "ok", "primary, writable")
    if facts.encoding != "UTF8":
        yield Finding(
            "encoding",
            "problem",
            f"The database's encoding is {facts.encoding}: it cannot hold all of Stripe's text.",
            "Create a database WITH ENCODING 'UTF8' TEMPLATE template0.",
            _WRONG,
        )
    if facts.free < _CONNECTIONS:
        yield Finding(
            "connections",
            "warning",
            f"Only {facts.free} connections are free; a sync with its gateway uses up to "
            f"{_CONNECTIONS}.",
            "Raise max_connections or the limit of the user, or close other connections.",
        )
    else:
        yield Finding("connections", "ok", f"{facts.free} connections are free")


async def _of_owner(
    connection: asyncpg.Connection, schema: str, owner: tuple[str | None, bool] | None
) -> list[Finding]:
    if owner is None:
        return []
    try:
        with translated():
            account_id, livemode = owner
            await check_owner(connection, schema, account_id=account_id, livemode=livemode)
    except Misconfigured as error:
        return [Finding("owner", "problem", error.message, error.hint, _WRONG)]
    except PinstripeError as error:
        return [Finding("owner", "warning", error.message, error.hint)]
    held = any(sync.schema == schema for sync in await load_syncs(connection))
    whose = "holds this account" if held else "is free for this account"
    return [Finding("owner", "ok", f'the schema "{schema}" {whose}')]


def _of_clock(clock: ClockDifference) -> Iterator[Finding]:
    if abs(clock.ahead_s) > _CLOCK_S:
        way = "ahead of" if clock.ahead_s > 0 else "behind"
        yield Finding(
            "clock",
            "warning",
            f"The server's clock is {abs(clock.ahead_s):,.0f} s {way} ours.",
            "Synchronize both clocks, preferably with NTP.",
        )


_BOOKKEEPING = "pinstripe"
_HOWTO = "See the how-to on your own Postgres."

# Only tables with our names: others in the schema are not ours.
_STANDING = """
    SELECT n.nspname AS schema,
           count(c.oid) FILTER (WHERE NOT pg_has_role(c.relowner, 'USAGE')) AS of_others,
           count(c.oid) FILTER (WHERE n.nspname <> 'pinstripe' AND NOT EXISTS (
               SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = '_as_of'
           )) AS strange
    FROM pg_namespace n
    LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind = 'r'
        AND (n.nspname = 'pinstripe' OR c.relname = ANY($2::text[]))
    WHERE n.nspname = ANY($1::text[])
    GROUP BY n.nspname
"""


@dataclass(frozen=True, slots=True)
class _Trial:
    """Statements that must all pass, what it means if so, and what helps if not."""

    about: str
    statements: tuple[str, ...]
    passed: str
    failed: str
    remedy: str


async def try_rights(
    connection: asyncpg.Connection, schema: str, *, writable: bool
) -> list[Finding]:
    """Schemas, tables, temporary tables. Not `writable`, nothing is tried: nothing could pass."""
    if not writable:
        return []
    rows = await connection.fetch(_STANDING, _both(schema), list(tables()))
    standing = [row["schema"] for row in rows]
    missing = [name for name in _both(schema) if name not in standing]
    trials = [_temporary()]
    if missing:
        trials.append(_new_schema(missing))
    trials += [_table_in(name) for name in standing]
    found = [await _try(connection, trial) for trial in trials]
    for row in rows:
        found += _of_tables(row["schema"], of_others=row["of_others"], strange=row["strange"])
    return found


def _of_tables(schema: str, *, of_others: int, strange: int) -> Iterator[Finding]:
    if of_others:
        yield Finding(
            "ownership",
            "problem",
            f'{of_others} tables in the schema "{schema}" belong to another user: they cannot be '
            "extended.",
            f"Sync as their owner, or REASSIGN OWNED. {_HOWTO}",
            _UNWRITABLE,
        )
    if strange:
        yield Finding(
            "strange tables",
            "problem",
            f'{strange} tables in the schema "{schema}" have names of ours, but Pinstripe did not make '
            "them.",
            "Choose another schema with --schema, or move these tables away.",
            _WRONG,
        )


def _both(schema: str) -> list[str]:
    return [_BOOKKEEPING, schema]


def _temporary() -> _Trial:
    name = _unused()
    return _Trial(
        "temporary tables",
        (f"CREATE TEMP TABLE {name} (a int) ON COMMIT DELETE ROWS",),
        "temporary tables can be created",
        "Temporary tables cannot be created",
        "GRANT TEMPORARY ON DATABASE ... TO the user.",
    )


def _new_schema(missing: list[str]) -> _Trial:
    name = _unused()
    return _Trial(
        "schemas",
        (f"CREATE SCHEMA {name}", *_filling(f"{name}.trial")),
        f"schemas and tables can be created ({' and '.join(missing)} will be)",
        f"The schemas {' and '.join(missing)} cannot be created",
        f"GRANT CREATE ON DATABASE ... TO the user. {_HOWTO}",
    )


def _table_in(schema: str) -> _Trial:
    return _Trial(
        f"tables in {schema}",
        _filling(f"{quote(schema)}.{_unused()}"),
        f'tables can be created and written in "{schema}"',
        f'Tables cannot be created or written in the schema "{schema}"',
        f"GRANT CREATE, USAGE ON SCHEMA {quote(schema)} TO the user. {_HOWTO}",
    )


def _filling(table: str) -> tuple[str, ...]:
    """A table, a row and an index: what a sync does, as small as can be."""
    return (
        f"CREATE TABLE {table} (id text PRIMARY KEY, at timestamptz)",
        f"INSERT INTO {table} VALUES ('a', now()) ON CONFLICT (id) DO NOTHING",
        f"CREATE INDEX ON {table} (at)",
    )


async def _try(connection: asyncpg.Connection, trial: _Trial) -> Finding:
    transaction = connection.transaction()
    await transaction.start()
    try:
        with translated():
            for statement in trial.statements:
                await connection.execute(statement)
    except PinstripeError as error:
        lacks_right = error.fault is not None and error.fault.sqlstate == "42501"
        remedy = trial.remedy if lacks_right else error.hint
        return Finding(
            trial.about, "problem", f"{trial.failed}. {error.message}", remedy, _UNWRITABLE
        )
    finally:
        await transaction.rollback()
    return Finding(trial.about, "ok", trial.passed)


def _unused() -> str:
    """A name that nobody has taken."""
    return f"pinstripe_check_{secrets.token_hex(6)}"


_NOTICE_S = 5.0
_MARK = "pinstripe.check"
_REMEDY = "Connect to Postgres directly, or to the pooler in session mode."


async def try_sessions(connection: asyncpg.Connection, url: str) -> list[Finding]:
    """Opens a second connection for as long as it takes."""
    try:
        async with connect(url, application_name="pinstripe check") as other:
            found = await _try_pooler(connection, other)
            if found.state == "problem":
                return [found]
            return [found, await _try_notices(connection, other)]
    except PinstripeError as error:
        return [Finding("sessions", "problem", error.message, error.hint, error.exit_code)]


async def _try_pooler(connection: asyncpg.Connection, other: asyncpg.Connection) -> Finding:
    """Mark our session, let another session hold a server with a transaction, and check for our mark."""
    mark = secrets.token_hex(8)
    server = await connection.fetchval(
        f"SELECT pg_backend_pid() FROM set_config('{_MARK}', $1, false)", mark
    )
    async with other.transaction():
        await other.execute("SELECT 1")
        again = await connection.fetchrow(
            f"SELECT pg_backend_pid(), current_setting('{_MARK}', true)"
        )
    if again is None or tuple(again) != (server, mark):
        return Finding(
            "sessions",
            "problem",
            "There is a connection pooler in transaction mode: sessions do not persist.",
            _REMEDY,
            _WRONG,
        )
    return Finding("sessions", "ok", "sessions persist: no pooler in transaction mode")


async def _try_notices(connection: asyncpg.Connection, other: asyncpg.Connection) -> Finding:
    channel = f"pinstripe_check_{secrets.token_hex(6)}"
    came = asyncio.Event()

    def heard(*_: object) -> None:
        came.set()

    try:
        with translated():
            await connection.add_listener(channel, heard)
            try:
                await other.execute("SELECT pg_notify($1, '')", channel)
                async with asyncio.timeout(_NOTICE_S):
                    await came.wait()
            finally:
                await connection.remove_listener(channel, heard)
    except PinstripeError as error:
        return Finding(
            "notices",
            "warning",
            f"LISTEN and NOTIFY do not work: {error.message}",
            f"{_REMEDY} Without notifications, waits and the console fall back to polling.",
        )
    return Finding("notices", "ok", "LISTEN and NOTIFY work")
