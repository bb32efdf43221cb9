"""Whether a session is one: settings, locks, prepared statements and LISTEN must outlive a transaction.

A pooler in transaction mode (pgbouncer and its kin) gives each transaction whichever server is free. It
shows when another client takes the server that we had.
"""

from __future__ import annotations

import asyncio
import secrets

import asyncpg

from pinstripe.doctor.findings import Finding
from pinstripe.errors import PinstripeError
from pinstripe.store.pool import connect, translated

_NOTICE_S = 5.0
_WRONG = 2
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
    """We mark our session, the other holds a server by a transaction, and we look for our mark."""
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
            "A connection pooler in transaction mode stands between: sessions do not last.",
            _REMEDY,
            _WRONG,
        )
    return Finding("sessions", "ok", "sessions last: no pooler in transaction mode")


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
            f"{_REMEDY} Without notices waits and the console fall back on polling.",
        )
    return Finding("notices", "ok", "LISTEN and NOTIFY work")
