"""Reads what waiting calls compare with: applied events, pending refetches, `as_of`, and obstacles.

Concurrent reads are coalesced into one query (`Coalescer`), so a thousand waiting calls cost what one does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pinstripe.concurrency import Coalescer
from pinstripe.gateway.syncs import OpenSync
from pinstripe.rows.extract import RowKey
from pinstripe.store.cursors import load_checkpoints
from pinstripe.store.events import load_acked_as_of, which_applied
from pinstripe.store.leases import load_lease
from pinstripe.store.platforms.stored import load_account
from pinstripe.store.platforms.workers import live_workers
from pinstripe.store.pool import Connection
from pinstripe.store.refetch import Pending, load_open_since, load_pending
from pinstripe.store.scopes import account_of

_SPACING_S = 0.02
_LAST_SPACING_S = 0.005
"""For the reads at the end of a wait: a longer pause would be most of a wait for an object."""


class WaitProgress:
    """The coalesced reads of one sync."""

    def __init__(self, sync: OpenSync) -> None:
        self._sync = sync
        self._requests = Coalescer(self._applied("request_id"), spacing_s=_SPACING_S)
        self._events = Coalescer(self._applied("id"), spacing_s=_SPACING_S)
        self._pending = Coalescer(self._read_pending, spacing_s=_SPACING_S)
        self._open_since = Coalescer(self._read_open_since, spacing_s=_LAST_SPACING_S)
        self._as_of = Coalescer(self._read_as_of, spacing_s=_LAST_SPACING_S)

    async def has_request(self, request_id: str) -> bool:
        """Whether an event of this request is applied."""
        return await self._requests.get(request_id)

    async def has_event(self, event_id: str) -> bool:
        """Whether this event is applied."""
        return await self._events.get(event_id)

    async def pending(self) -> Pending:
        """The refetches that events requested and that are not done."""
        return await self._pending.get(None)

    async def open_since(self, table: str, key: str) -> tuple[datetime, datetime | None]:
        """(now, since when the row waits for a fetch of its object; None if it does not)."""
        return await self._open_since.get((table, key))

    async def as_of(self) -> datetime | None:
        """The moment, on Stripe's clock, up to which the database is known to be true."""
        return await self._as_of.get(None)

    async def close(self) -> None:
        """Cancel the queries that are running."""
        for each in (self._requests, self._events, self._pending, self._open_since, self._as_of):
            await each.close()

    def _applied(
        self, column: Literal["id", "request_id"]
    ) -> Callable[[Collection[str]], Awaitable[Mapping[str, bool]]]:
        async def read(values: Collection[str]) -> Mapping[str, bool]:
            async with self._sync.pool.acquire() as connection:
                applied = await which_applied(connection, self._sync.schema, column, list(values))
            return {value: value in applied for value in values}

        return read

    async def _read_pending(self, _: Collection[None]) -> Mapping[None, Pending]:
        async with self._sync.pool.acquire() as connection:
            return {None: await load_pending(connection, self._sync.schema)}

    async def _read_as_of(self, _: Collection[None]) -> Mapping[None, datetime | None]:
        async with self._sync.pool.acquire() as connection:
            return {None: await load_acked_as_of(connection, self._sync.schema)}

    async def _read_open_since(
        self, rows: Collection[RowKey]
    ) -> Mapping[RowKey, tuple[datetime, datetime | None]]:
        async with self._sync.pool.acquire() as connection:
            now, since = await load_open_since(connection, self._sync.schema, list(rows))
        return {row: (now, since.get(row)) for row in rows}


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why the worker does not make progress. `code` is for programs."""

    code: str
    message: str
    hint: str


async def find_obstacle(connection: Connection, schema: str) -> Obstacle | None:
    """Return what keeps a wait from ending, as far as the database knows it."""
    if account_of(schema):
        obstacle = await _obstacle_of_account(connection, schema)
    else:
        obstacle = await _obstacle_of_sync(connection, schema)
    if obstacle is not None:
        return obstacle
    checkpoints = dict(await load_checkpoints(connection, schema))
    events = checkpoints.pop("events", None)
    if events is not None and events.reason:
        return Obstacle("sync_in_trouble", events.reason, events.remedy)
    running = sorted(c.stream for c in checkpoints.values() if c.state == "running")
    if running:
        some = ", ".join(running[:3]) + (" ..." if len(running) > 3 else "")
        return Obstacle(
            "copying",
            f"The first copy is not complete: {len(running)} lists are still being read ({some}).",
            "`pinstripe status` shows how far it is. The exact forms of waiting work meanwhile.",
        )
    return None


async def _obstacle_of_sync(connection: Connection, schema: str) -> Obstacle | None:
    lease = await load_lease(connection, schema)
    if lease is None or not lease.is_held:
        return Obstacle(
            "not_syncing",
            "No process syncs this account now.",
            "Start `pinstripe sync` or `pinstripe serve`, or resume the sync.",
        )
    return None


async def _obstacle_of_account(connection: Connection, scope: str) -> Obstacle | None:
    """What the platform's bookkeeping knows: no task of the account runs between two of its tasks."""
    account = await load_account(connection, scope)
    if account is not None and account.reason:
        code = "not_syncing" if account.state == "revoked" else "sync_in_trouble"
        return Obstacle(code, account.reason, account.remedy or "")
    if not await live_workers(connection):
        return Obstacle(
            "not_syncing", "No worker of platforms runs now.", "Start `pinstripe worker`."
        )
    return None
