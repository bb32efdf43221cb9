"""The API of syncs and platforms: list, add, change, pause, resume, remove; the accounts of a platform.

A key comes in and never goes out: responses have its hint only (`sk_test_…1234`). What is said of platforms
is read from the bookkeeping, so it is the same on every machine.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta
from msgspec.structs import asdict

from pinstripe.errors import UnknownSync
from pinstripe.gateway.api.endpoint import Call
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.gateway.live.status_board import SyncStatus
from pinstripe.gateway.syncs import NewSync, StoredSync, SyncChange
from pinstripe.store.platforms.status import PlatformStatus, read_platform, read_platforms
from pinstripe.store.platforms.stored import PlatformAccount, load_accounts, load_platforms
from pinstripe.store.platforms.workers import WorkerStatus
from pinstripe.store.pool import Connection


class Addresses(msgspec.Struct, frozen=True):
    """Where this sync is reached."""

    proxy: str
    """Put in place of https://api.stripe.com; the caller's key tells the account."""
    wait: str
    webhook: str


class Sync(StoredSync, frozen=True, kw_only=True):
    """One sync. Its key and its webhook secrets are never shown."""

    addresses: Addresses
    live: SyncStatus | None
    """Its status, some seconds old at most; null before the first update of the status board."""


class SyncList(msgspec.Struct, frozen=True):
    """All syncs of this service."""

    syncs: list[Sync]


class RemoveQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to remove."""

    drop_tables: bool = False
    """Drop its schema with all tables too."""


async def list_syncs(call: Call) -> SyncList:
    """All syncs of this service.

    The default first, if there is one; then by id.
    """
    return SyncList([_sync_of(call, sync) for sync in await call.gateway.parts.control.list()])


async def get_sync(call: Call) -> Sync:
    """One sync, and how it stands now."""
    return _sync_of(call, await find_sync(call))


async def add_sync(call: Call, body: NewSync) -> Sync:
    """Adds a sync and starts it.

    Stripe is asked first whose key it is. The key is kept encrypted and never shown again.
    """
    added = await call.gateway.parts.control.add(body)
    await call.gateway.board.update()
    return _sync_of(call, added)


async def change_sync(call: Call, body: SyncChange) -> Sync:
    """Changes the key, settings or webhook secrets of a stored sync, and starts it anew.

    A new key must be of the same account and mode.
    """
    await find_sync(call)
    return _sync_of(call, await call.gateway.parts.control.change(call.path["id"], body))


async def pause_sync(call: Call) -> Sync:
    """Stops the process of a sync until it is resumed.

    What goes through the proxy is still mirrored.
    """
    await find_sync(call)
    paused = await call.gateway.parts.control.pause(call.path["id"])
    await call.gateway.board.update()
    return _sync_of(call, paused)


async def resume_sync(call: Call) -> Sync:
    """Starts a paused sync again; it goes on where it stopped."""
    await find_sync(call)
    resumed = await call.gateway.parts.control.resume(call.path["id"])
    await call.gateway.board.update()
    return _sync_of(call, resumed)


async def remove_sync(call: Call, query: RemoveQuery) -> None:
    """Forgets a stored sync and its key.

    Its tables stay unless drop_tables is true.
    """
    await find_sync(call)
    await call.gateway.parts.control.remove(call.path["id"], drop_tables=query.drop_tables)
    await call.gateway.board.update()


async def find_sync(call: Call) -> StoredSync:
    """The sync that the path names; 404 if there is none."""
    try:
        return await call.gateway.parts.control.get(call.path["id"])
    except UnknownSync as error:
        raise HTTPError(
            404, "unknown_sync", error.message, hint="GET /api/syncs lists the ids."
        ) from error


def addresses(public_url: str, sync_id: str) -> Addresses:
    """Of a gateway that is reached at `public_url`."""
    root, name = public_url.rstrip("/"), quote(sync_id, safe="")
    return Addresses(
        proxy=f"{root}/api.stripe.com",
        wait=f"{root}/wait/stripe/{name}",
        webhook=f"{root}/webhooks/stripe/{name}",
    )


def _sync_of(call: Call, sync: StoredSync) -> Sync:
    root = call.gateway.parts.public_url or str(call.request.base_url)
    return Sync(
        **asdict(sync),
        addresses=addresses(root, sync.id),
        live=call.gateway.board.syncs.get(sync.id),
    )


class Platform(PlatformStatus, frozen=True, kw_only=True):
    """One platform. Its key and its webhook secrets are never shown."""

    addresses: Addresses
    served: bool
    """Whether this gateway writes and waits for its accounts."""


class PlatformList(msgspec.Struct, frozen=True):
    """All platforms, and the workers of all of them."""

    platforms: list[Platform]
    workers: list[WorkerStatus]
    tasks: dict[str, int]


StateFilter = Literal["", "active", "revoked", "troubled"]


class AccountsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which accounts."""

    search: Annotated[str, Meta(max_length=100)] = ""
    """A part of the id."""
    state: StateFilter = ""
    """`troubled`: active ones whose last look or task failed."""
    after: Annotated[str, Meta(max_length=100)] = ""
    """The last id of the page before."""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class AccountList(msgspec.Struct, frozen=True):
    """A page of accounts, by id."""

    accounts: list[PlatformAccount]
    next: str | None
    """`after` of the next page; null on the last one."""


async def list_platforms(call: Call) -> PlatformList:
    """All platforms, the live workers, and the tasks that wait or run."""
    async with call.gateway.reads.connection() as connection:
        found = await read_platforms(connection)
    return PlatformList([_shown(call, p) for p in found.platforms], found.workers, found.tasks)


async def get_platform(call: Call) -> Platform:
    """One platform: its accounts by state, the pace of the sweep and the oldest look."""
    async with call.gateway.reads.connection() as connection:
        found = await find_platform(connection, call.path["id"])
    return _shown(call, found)


async def list_accounts(call: Call, query: AccountsQuery) -> AccountList:
    """The accounts of a platform, by id: state, last look, next look, and the trouble there is."""
    async with call.gateway.reads.connection() as connection:
        found = await find_platform(connection, call.path["id"])
        return await read_accounts(connection, found.id, query)


async def read_accounts(
    connection: Connection, platform_id: str, query: AccountsQuery
) -> AccountList:
    """Return a page of a platform's accounts."""
    found = await load_accounts(
        connection,
        platform_id,
        after=query.after,
        limit=query.limit + 1,
        search=query.search,
        state=query.state or None,
    )
    shown = found[: query.limit]
    return AccountList(shown, shown[-1].account_id if len(found) > query.limit else None)


async def find_platform(connection: Connection, platform_id: str) -> PlatformStatus:
    """Return how the platform of this id stands. Raises HTTPError (404)."""
    for platform in await load_platforms(connection):
        if platform.id == platform_id:
            return await read_platform(connection, platform)
    raise HTTPError(
        404,
        "unknown_platform",
        "There is no platform of this id.",
        hint="GET /api/platforms lists the ids.",
    )


def _shown(call: Call, found: PlatformStatus) -> Platform:
    root = call.gateway.parts.public_url or str(call.request.base_url)
    return Platform(
        **msgspec.structs.asdict(found),
        addresses=addresses(root, found.id),
        served=found.id in call.gateway.parts.syncs.platforms,
    )
