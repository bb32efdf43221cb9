"""The examination of a database: whether a sync could live there, tried rather than read off catalogs.

    report = await examine_database(url, "stripe", owner=("acct_...", False))

What is tried happens in transactions that are rolled back: nothing stays behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import asyncpg

from pinstripe.doctor.clock import ClockDifference
from pinstripe.doctor.findings import DatabaseReport, Finding
from pinstripe.doctor.rights import try_rights
from pinstripe.doctor.sessions import try_sessions
from pinstripe.errors import Misconfigured, PinstripeError
from pinstripe.store.pool import MINIMUM_VERSION, connect, translated
from pinstripe.store.syncs import check_owner, load_syncs
from pinstripe.store.translate import place_of

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
    """What the server tells of itself."""

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
    """Never raises for what the database is or refuses: that is a finding.

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
            "Use a newer server, or none: without DATABASE_URL Pinstripe brings its own.",
            _WRONG,
        )
    if facts.standby:
        yield Finding(
            "primary",
            "problem",
            "This server is a standby: it can only be read.",
            "Connect to the primary.",
            _UNWRITABLE,
        )
    elif facts.read_only:
        yield Finding(
            "primary",
            "problem",
            "The database is read-only for us: default_transaction_read_only is on.",
            "Switch it off for the server, the database or the user.",
            _UNWRITABLE,
        )
    else:
        yield Finding("primary", "ok", "a primary, and writable")
    if facts.encoding != "UTF8":
        yield Finding(
            "encoding",
            "problem",
            f"The database's encoding is {facts.encoding}: not every text of Stripe's fits in.",
            "Create a database WITH ENCODING 'UTF8' TEMPLATE template0.",
            _WRONG,
        )
    if facts.free < _CONNECTIONS:
        yield Finding(
            "connections",
            "warning",
            f"Only {facts.free} connections are free; a sync with its gateway takes up to "
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
            "Set both clocks, best by NTP.",
        )
