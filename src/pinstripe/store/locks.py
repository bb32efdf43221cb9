"""Locks on rows of our own tables, and the names of the sessions that hold up a statement.

Advisory locks need no right at all, so a read-only role could hold ours for ever; a row lock needs the
right to write to its table. Every session has a `lock_timeout` (see `session`). While a statement waits,
`naming_holders` logs the session that holds the lock, and names it in the error if the wait times out.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Literal

import structlog

from pinstripe.concurrency import end
from pinstripe.errors import PinstripeError, Unreachable
from pinstripe.store.pool import Connection, connect, translated
from pinstripe.store.session import Session

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Name = Literal["migration", "change"]
"""`migration`: processes that start at once migrate one after the other. `change`: positions of the change
feed are drawn in the order of commits.
"""

WAIT_S = 10
"""How long a writer waits for a lock before it rolls back, says whose it is, and tries again."""
_PATIENCE_S = 1.0
_TIMED_OUT = "55P03"
_LOOKING = "pinstripe locks"  # An index beside writers waits for the sessions that look, too: for a moment.

_MAKE = """
CREATE TABLE IF NOT EXISTS pinstripe.lock (name text PRIMARY KEY);
INSERT INTO pinstripe.lock (name) VALUES ('migration'), ('change') ON CONFLICT DO NOTHING;
INSERT INTO pinstripe.lock (name) SELECT 'link ' || n FROM generate_series(0, 63) n
ON CONFLICT DO NOTHING;
"""
_BUCKETS = 64
_LOCK = "SELECT true FROM pinstripe.lock WHERE name = $1 FOR UPDATE"
_FEW = 4
PREPARE = f"PREPARE pinstripe_lock (text) AS {_LOCK}"
"""What a session runs once, before `begin`: up to `_FEW` locks one by one take half as long as all by one
statement, which sorts them."""
_SHOWN = """
  'session ' || a.pid || ' of ' || coalesce(a.usename::text, 'another user')
  || coalesce(' (' || nullif(a.application_name, '') || ')', '')
  || coalesce(', ' || a.state, '') || coalesce(', in a transaction since ' || a.xact_start, '')
"""
_HOLDERS = f"""
SELECT {_SHOWN} FROM pg_stat_activity AS a WHERE a.pid = ANY (pg_blocking_pids($1))
AND (a.usename, a.application_name) <> (session_user, '{_LOOKING}')
AND a.xact_start < clock_timestamp() - interval '{_PATIENCE_S} s' ORDER BY a.xact_start
"""
_HOLDERS_IN = f"""
SELECT DISTINCT {_SHOWN} FROM pg_locks AS l
JOIN pg_class AS c ON c.oid = l.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.granted AND l.pid <> pg_backend_pid() AND n.nspname = ANY ($1::text[])
"""


async def make_locks(connection: Connection) -> None:
    """Makes the rows. The schema `pinstripe` must be there."""
    await connection.execute(_MAKE)


async def lock_row(connection: Connection, name: Name) -> None:
    """Lock the row until the end of the transaction."""
    if not await connection.fetchval(_LOCK, name):
        await make_locks(connection)  # the table was emptied
        await connection.fetchval(_LOCK, name)


async def begin(connection: Session, account: str, ids: Iterable[str]) -> None:
    """Begin a transaction that holds the rows into which these ids fall by hash, locked in one order.

    In one message: a round trip takes Python twice as long as the locks take Postgres.
    """
    names = sorted({f"'link {zlib.crc32(one.encode()) % _BUCKETS}'" for one in ids})
    rows = f"FROM pinstripe.lock WHERE name IN ({', '.join(names)}) ORDER BY name FOR UPDATE"
    lock, locked = f"SELECT {rows}", len(names)
    if locked <= _FEW:
        lock, locked = "; ".join(f"EXECUTE pinstripe_lock ({name})" for name in names), 1
    status = await connection.begin(account, lock)
    if names and status != f"SELECT {locked}":
        await make_locks(connection)  # made by an earlier version, or emptied
        await connection.execute(lock)


@asynccontextmanager
async def naming_holders(url: str, pid: int) -> AsyncIterator[None]:
    """Name the sessions that the session `pid` waits for during the block: in the log, and in the error if
    the wait times out. Connects only if the wait is longer than `_PATIENCE_S`.
    """
    holders: list[str] = []
    looking = asyncio.create_task(_look(url, pid, holders))
    try:
        yield
    except Unreachable as error:
        if holders and error.fault is not None and error.fault.sqlstate == _TIMED_OUT:
            raise _held(error, holders) from error
        raise
    finally:
        await end(looking)


async def _look(url: str, pid: int, holders: list[str]) -> None:
    while True:
        await asyncio.sleep(_PATIENCE_S)
        with suppress(PinstripeError):
            async with connect(url, application_name=_LOOKING) as connection:
                found = [row[0] for row in await connection.fetch(_HOLDERS, pid)]
            if found and found != holders:
                _log.warning("lock.waits", held_by=found)
            holders[:] = found or holders


async def holders_in(connection: Connection, schemas: Sequence[str]) -> list[str]:
    """Return the other sessions that hold locks on tables of these schemas."""
    with translated():
        return [row[0] for row in await connection.fetch(_HOLDERS_IN, list(schemas))]


def held_by(error: PinstripeError, holders: Sequence[str]) -> PinstripeError:
    """Return `error` with the names of the lock's holders, if it was a lock timeout."""
    timed_out = error.fault is not None and error.fault.sqlstate == _TIMED_OUT
    return _held(error, holders) if holders and timed_out else error


def _held(error: PinstripeError, holders: Sequence[str]) -> Unreachable:
    named = Unreachable(
        f"{error.message} It is held by {'; '.join(holders)}.",
        hint="End that transaction, or the session: SELECT pg_terminate_backend(PID). We try again.",
    )
    named.fault = error.fault
    return named


async def server_pid(connection: Connection) -> int:
    """Return the backend's pid as Postgres has it: a pooler invents the one that it sends at login."""
    pid: int = await connection.fetchval("SELECT pg_backend_pid()")
    return pid
