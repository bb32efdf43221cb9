"""The API of syncs: list, add, change, pause, resume, remove.

A key comes in and never goes out: responses have its hint only (`sk_test_…1234`).
"""

from __future__ import annotations

from urllib.parse import quote

import msgspec
from msgspec.structs import asdict

from pinstripe.errors import UnknownSync
from pinstripe.gateway.api.endpoint import Call
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.gateway.live.status_board import SyncStatus
from pinstripe.gateway.syncs import NewSync, StoredSync, SyncChange


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
