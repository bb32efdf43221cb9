"""One worker a schema: its lease, with a fence, on Postgres's clock; and its heartbeat.

    lease = Lease(url, "stripe")
    async with lease.held() as held:      # stands by until the lease is free or has expired
        mirror.always.append(held.check)  # a holder that was overtaken cannot commit
        await held.watch()                # raises LostLease when that happens

The holder renews its lease. If it dies or hangs, the lease expires and a standby takes over; only
Postgres's clock decides when. Each take-over raises the fence, and each writing transaction checks it
under a lock that a take-over waits for, so an earlier holder cannot commit after a take-over. `leading`
does the same for the command line: it reports which process it waits for, and ends its block when the
lease is lost.

What the holder reports of itself is one row of `pinstripe.process`, written every two seconds. That table
is unlogged, so it is empty after a crash of the server until the next heartbeat.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

import asyncpg
import msgspec
import structlog

from pinstripe.concurrency import end
from pinstripe.errors import Drifted, LostLease, PinstripeError, Unreachable
from pinstripe.store.cursors import FOLLOWED
from pinstripe.store.listener import Listener
from pinstripe.store.pool import Connection, Pool, translated

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

CHANNEL = "pinstripe_lease"
"""NOTIFY channel; the payload is the schema whose lease changed hands or was let go."""

TTL_S = 6.0
"""A holder that has not renewed for so long may be replaced."""

RENEW_S = 2.0
_LOCK_S = 2.0
_SESSION = "pinstripe "
_NAME_BYTES = 63
"""Postgres cuts an application_name after so many."""

_STATE = """
SELECT holder, fence, expires_at, extract(epoch FROM expires_at - clock_timestamp())::float8
FROM pinstripe.lease WHERE schema = $1
"""

# Free leases are dated 1970: infinite times cannot be subtracted before Postgres 17.
_FIRST = """
INSERT INTO pinstripe.lease (schema, holder, fence, expires_at)
SELECT schema, '', 0, to_timestamp(0) FROM pinstripe.sync WHERE schema = $1
ON CONFLICT DO NOTHING
"""

# A holder that was stopped (SIGSTOP, a frozen machine) may hold row locks for ever.
_CUT_OFF = f"""
SELECT count(pg_terminate_backend(a.pid))
FROM pinstripe.lease l JOIN pg_stat_activity a ON a.application_name = '{_SESSION}' || l.holder
WHERE l.schema = $1 AND l.holder <> '' AND l.expires_at <= clock_timestamp()
  AND a.datname = current_database() AND a.usename = current_user AND a.pid <> pg_backend_pid()
"""

# FOR UPDATE waits for writers in their last step (`_CHECK`); the UPDATE alone would not.
_LOCK = """
SELECT fence FROM pinstripe.lease WHERE schema = $1 AND expires_at <= clock_timestamp() FOR UPDATE
"""

_TAKE = f"""
WITH taken AS (
  UPDATE pinstripe.lease SET holder = $2, fence = fence + 1,
    expires_at = clock_timestamp() + make_interval(secs => $3)
  WHERE schema = $1 RETURNING fence)
SELECT fence, pg_notify('{CHANNEL}', $1) FROM taken
"""

_RENEW = """
UPDATE pinstripe.lease SET expires_at = clock_timestamp() + make_interval(secs => $4)
WHERE schema = $1 AND holder = $2 AND fence = $3 RETURNING true
"""

_RELEASE = f"""
WITH freed AS (
  UPDATE pinstripe.lease SET holder = '', expires_at = to_timestamp(0)
  WHERE schema = $1 AND holder = $2 AND fence = $3 RETURNING schema)
SELECT pg_notify('{CHANNEL}', schema) FROM freed
"""

# Skips a row that a writer of the earlier holder has locked in its last step (`_CHECK`): see `_CUT_OFF`.
_TAKE_NOW = """
UPDATE pinstripe.lease l SET holder = $2, fence = l.fence + 1,
  expires_at = clock_timestamp() + make_interval(secs => $3)
FROM (SELECT schema FROM pinstripe.lease WHERE schema = $1 AND expires_at <= clock_timestamp()
      FOR UPDATE SKIP LOCKED) AS free
WHERE l.schema = free.schema RETURNING l.fence
"""

_RENEW_ALL = """
UPDATE pinstripe.lease l SET expires_at = clock_timestamp() + make_interval(secs => $4)
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS u (schema, holder, fence)
WHERE l.schema = u.schema AND l.holder = u.holder AND l.fence = u.fence
RETURNING l.schema, l.fence
"""

_LET_GO = """
UPDATE pinstripe.lease SET holder = '', expires_at = to_timestamp(0)
WHERE schema = $1 AND holder = $2 AND fence = $3
"""

# The weakest lock: renewals pass it, other writers share it, only a take-over waits for it.
_CHECK = """
SELECT true FROM pinstripe.lease WHERE schema = $1 AND holder = $2 AND fence = $3 FOR KEY SHARE
"""


@dataclass(frozen=True, slots=True)
class LeaseState:
    """The lease, for `status`. `holder` is "" after a release; `left_s` may be negative."""

    holder: str
    fence: int
    expires_at: datetime
    left_s: float

    @property
    def is_held(self) -> bool:
        return self.left_s > 0


async def load_lease(connection: Connection, schema: str) -> LeaseState | None:
    """Return the lease of a schema; None if it was never taken."""
    with translated():
        row = await connection.fetchrow(_STATE, schema)
    return None if row is None else LeaseState(*row)


async def is_followed(connection: Connection, schema: str) -> bool:
    """Whether a process holds the lease, or saved the cursor of the events within 15 s."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pinstripe.lease WHERE schema = $1 AND expires_at > now())"
        " OR EXISTS (SELECT FROM pinstripe.cursor WHERE schema = $1 AND stream = $2"
        " AND updated_at > now() - interval '15 s')",
        schema,
        FOLLOWED,
    )
    return found


def new_holder() -> str:
    """Return a unique name for this process, `host-pid-random`, fit for an application_name."""
    host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())[:30]
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


def session_name(holder: str) -> str:
    """Return the name that the sessions of this holder have: see `Lease`."""
    return _SESSION + holder


async def take_lease(
    connection: Connection, scope: str, holder: str, *, ttl_s: float = TTL_S
) -> Held | None:
    """Take the lease of one account of a platform, in one statement; None if another worker holds it.

    It is for the length of a task: see `Held.let_go` and `renew_leases`. Sessions of a holder whose lease
    has expired, and who is in its last step of a transaction, are ended.
    """
    with translated():
        fence = await connection.fetchval(_TAKE_NOW, scope, holder, ttl_s)
        if fence is None and await connection.fetchval(_CUT_OFF, scope):
            fence = await connection.fetchval(_TAKE_NOW, scope, holder, ttl_s)
    return None if fence is None else Held(scope, holder, fence)


async def renew_leases(
    connection: Connection, leases: Collection[Held], *, ttl_s: float = TTL_S
) -> None:
    """Renew all leases that a worker holds, in one statement; `lost` is set of those that it has lost."""
    held = list(leases)
    with translated():
        rows = await connection.fetch(
            _RENEW_ALL,
            [one.schema for one in held],
            [one.holder for one in held],
            [one.fence for one in held],
            ttl_s,
        )
    kept = {(row[0], row[1]) for row in rows}
    for one in held:
        if (one.schema, one.fence) not in kept:
            _log.warning("lease.lost", schema=one.schema, fence=one.fence)
            one.lost.set()


class Lease:
    """The right to write to one schema; `holder` names this process and must be unique.

    Give `session_name` to every connection that writes: when this process hangs and is replaced,
    sessions of that name are ended, so that their locks do not outlive it.
    """

    def __init__(
        self,
        url: str,
        schema: str,
        *,
        holder: str = "",
        ttl_s: float = TTL_S,
        renew_s: float = RENEW_S,
    ) -> None:
        self.schema = schema
        self.holder = holder or new_holder()
        self.session_name = session_name(self.holder)
        if not self.session_name.isascii() or len(self.session_name) > _NAME_BYTES:
            raise ValueError("the holder's name must be ASCII and short")
        self.standing_by: LeaseState | None = None
        """The holder that this process waits for; None while it holds the lease or has not read it yet."""
        self.trouble = ""
        self._url = url
        self._ttl_s = ttl_s
        self._renew_s = renew_s

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Held]:
        """Wait for the lease and hold it for the block; then release it.

        Retries while Postgres is unreachable. Raises Drifted if the schema has no sync.
        """
        listener = Listener(
            lambda: self._url,
            {CHANNEL: lambda payload: payload == self.schema},
            name=self.session_name,
        )
        try:
            held = Held(self.schema, self.holder, await self._acquire(listener))
            renewing = asyncio.create_task(held._renew(listener, self._ttl_s, self._renew_s))
            try:
                yield held
            finally:
                await end(renewing)
                await held._release(listener)
        finally:
            await listener.close()

    async def _acquire(self, listener: Listener) -> int:
        """Wait for the lease; return its fence."""
        while True:
            try:
                with translated():
                    async with asyncio.timeout(self._ttl_s + _LOCK_S):
                        fence = await self._try(listener)
            except Unreachable as error:
                if error.message != self.trouble:
                    _log.warning("lease.trouble", schema=self.schema, error=error.message)
                self.trouble = error.message
                await listener.close()
                await asyncio.sleep(min(self._renew_s, 0.5))
                continue
            self.trouble = ""
            if fence is not None:
                self.standing_by = None
                _log.info("lease.held", schema=self.schema, fence=fence)
                return fence
            left_s = self.standing_by.left_s if self.standing_by else 0.0
            # A little late rather than early, and never long, in case a NOTIFY is lost.
            await listener.rest(min(max(left_s, 0.0) + 0.02, self._renew_s))

    async def _try(self, listener: Listener) -> int | None:
        """Take the lease if it is free; return its fence, or None and set `standing_by`."""
        connection = await listener.connect()
        state = await load_lease(connection, self.schema)
        if state is None:
            if (await connection.execute(_FIRST, self.schema)).endswith(" 0"):
                await self._refuse_unknown(connection)
            return await self._take(connection)
        if state.is_held:
            if self.standing_by is None or self.standing_by.fence != state.fence:
                _log.info("lease.standing_by", schema=self.schema, holder=state.holder)
            self.standing_by = state
            return None
        cut_off = await connection.fetchval(_CUT_OFF, self.schema)
        if cut_off:
            _log.warning("lease.cut_off", schema=self.schema, holder=state.holder, n=cut_off)
        return await self._take(connection)

    async def _take(self, connection: asyncpg.Connection) -> int | None:
        async with connection.transaction(isolation="read_committed"):
            await connection.execute(f"SET LOCAL lock_timeout = '{int(_LOCK_S * 1000)}ms'")
            if await connection.fetchval(_LOCK, self.schema) is None:
                return None  # Another process was faster, or the holder renewed it.
            fence: int = await connection.fetchval(_TAKE, self.schema, self.holder, self._ttl_s)
            return fence

    async def _refuse_unknown(self, connection: asyncpg.Connection) -> None:
        known = await connection.fetchval(
            "SELECT true FROM pinstripe.sync WHERE schema = $1", self.schema
        )
        if known is None:
            raise Drifted(
                f'Nothing is synced into the schema "{self.schema}".',
                hint="Run the migration before a process reads into it.",
            )


class Held:
    """One tenure. `fence` is larger than that of every earlier one."""

    def __init__(self, schema: str, holder: str, fence: int) -> None:
        self.schema = schema
        self.holder = holder
        self.fence = fence
        self.lost = asyncio.Event()
        """Set when another process is known to have taken over (and when the block is left)."""
        self.trouble = ""

    async def check(self, connection: Connection) -> None:
        """For `Mirror.always`: raise LostLease in a transaction that must not commit.

        Call it late in the transaction: a take-over waits from here to the commit.
        """
        if not await connection.fetchval(_CHECK, self.schema, self.holder, self.fence):
            self.lost.set()
            raise self._loss()

    @asynccontextmanager
    async def transaction(self, pool: Pool) -> AsyncIterator[Connection]:
        """A transaction of the pool that commits only while we hold the lease."""
        async with pool.transaction() as connection:
            yield connection
            await self.check(connection)

    async def let_go(self, connection: Connection) -> None:
        """Release what `take_lease` took. A lease that is lost already stays with its new holder."""
        self.lost.set()
        with translated():
            await connection.execute(_LET_GO, self.schema, self.holder, self.fence)

    async def watch(self) -> NoReturn:
        """Wait, and raise LostLease when another process has taken over."""
        await self.lost.wait()
        raise self._loss()

    def _loss(self) -> LostLease:
        return LostLease(
            f'Another process has taken over the schema "{self.schema}".',
            hint="This one was silent for too long; it writes nothing more and stands by.",
        )

    async def _renew(self, listener: Listener, ttl_s: float, renew_s: float) -> None:
        """Renew until the lease is lost."""
        try:
            while True:
                # A NOTIFY wakes us too: most likely another process has taken it.
                await listener.rest(renew_s if not self.trouble else min(renew_s, 0.5))
                try:
                    if not await self._renewed(listener, ttl_s):
                        _log.warning("lease.lost", schema=self.schema, fence=self.fence)
                        return
                except PinstripeError as error:
                    # The holder is unknown; the fence protects the rows until we can read it.
                    if not self.trouble:
                        _log.warning("lease.trouble", schema=self.schema, error=error.message)
                    self.trouble = error.message
                    await listener.close()
        finally:
            self.lost.set()

    async def _renewed(self, listener: Listener, ttl_s: float) -> bool:
        connection = await listener.connect()
        with translated():
            ours = await connection.fetchval(
                _RENEW, self.schema, self.holder, self.fence, ttl_s, timeout=ttl_s
            )
        self.trouble = ""
        return bool(ours)

    async def _release(self, listener: Listener) -> None:
        try:
            async with asyncio.timeout(_LOCK_S):
                connection = await listener.connect()
                with translated():
                    await connection.execute(_RELEASE, self.schema, self.holder, self.fence)
        except (PinstripeError, TimeoutError) as error:
            # Then it expires.
            _log.warning("lease.unreleased", schema=self.schema, error=str(error))


@asynccontextmanager
async def leading(lease: Lease, tell: Callable[[str], None]) -> AsyncIterator[Held]:
    """Hold the lease for the block: report the holder that it waits for, and end the block on its loss."""
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_tell_standing_by(lease, tell))
        async with lease.held() as held:
            waiting.cancel()
            watching = group.create_task(held.watch())
            try:
                yield held
            finally:
                watching.cancel()


async def _tell_standing_by(lease: Lease, tell: Callable[[str], None]) -> None:
    while lease.standing_by is None:  # noqa: ASYNC110 (the lease has no event for it)
        await asyncio.sleep(0.2)
    tell(
        f'Another process syncs the schema "{lease.schema}" ({lease.standing_by.holder}). This one '
        "stands by and takes over when that one ends."
    )


STALE_S = 10.0
"""An older heartbeat, by several times its interval, is of a worker that has ended or hangs."""


class TableProgress(msgspec.Struct, frozen=True):
    """The first copy of one table: the sum over its lists."""

    table: str
    rows: int
    rows_per_s: float
    requests_left: float
    """An estimate; 0 where it is done."""
    state: str
    """"running", "done", "refused" or "failed"."""


class QuotaReport(msgspec.Struct, frozen=True):
    """Stripe's read allowance: GETs of ours in the last 30 days, and how many Stripe allows."""

    used: int
    allowed: int
    by_kind: dict[str, int]
    transactions: int | None
    poll_s: float
    slowed: bool
    held: bool
    over: bool


class WorkerHeartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """Totals are since the process began; rates are means over the last interval."""

    version: str
    pid: int
    host: str
    started_at: datetime
    phase: str
    """Of the first copy: "starting", "lists", "events", "references", "indexes", "done"."""
    rows: int
    rows_per_s: float
    requests: dict[str, int]
    """By method and kind of endpoint: "GET list", "GET retrieve", "GET events", "POST"."""
    requests_per_s: float
    rate_limited: dict[str, int]
    """429s, by the same kinds."""
    account_rate: float | None
    """Requests a second that the budget gives now; None: no limit."""
    queue_rows: int
    """Rows that wait for Postgres."""
    queue_most: int
    contested: int
    """Rows that had to be fetched once more to know which state is newer."""
    events: int
    polls: int
    late_events: int
    memory_bytes: int
    cpu_s: float
    left_s: float | None
    """Until the first copy is complete, at the present rate; None if that is not known."""
    tables: list[TableProgress]
    """Of the first copy; empty when it is done."""
    allowance: QuotaReport | None
    trouble: str = ""
    remedy: str = ""


_SAVE = """
INSERT INTO pinstripe.process AS p (schema, state, at)
SELECT schema, $2::jsonb, clock_timestamp() FROM pinstripe.sync WHERE schema = $1
ON CONFLICT (schema) DO UPDATE SET state = EXCLUDED.state, at = EXCLUDED.at
"""


async def save_heartbeat(connection: Connection, schema: str, state: WorkerHeartbeat) -> None:
    """Replaces the row of the schema."""
    await connection.execute(_SAVE, schema, msgspec.json.encode(state).decode())


async def load_heartbeats(connection: Connection) -> dict[str, tuple[WorkerHeartbeat, float]]:
    """Return schema -> (state, its age in seconds), without rows that another version wrote otherwise.

    Empty in a database of an older version, which has no such table.
    """
    if await connection.fetchval("SELECT to_regclass('pinstripe.process')") is None:
        return {}
    rows = await connection.fetch(
        "SELECT schema, state::text, extract(epoch FROM clock_timestamp() - at)::float8"
        " FROM pinstripe.process"
    )
    found: dict[str, tuple[WorkerHeartbeat, float]] = {}
    for schema, text, age_s in rows:
        try:
            found[schema] = (msgspec.json.decode(text, type=WorkerHeartbeat), max(age_s, 0.0))
        except msgspec.ValidationError:
            continue
    return found
