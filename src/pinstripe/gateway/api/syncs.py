"""The API of syncs: list, add, change, pause, resume, remove.

A key comes in and never goes out: responses have its hint only (`sk_test_…1234`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Meta, UnsetType

from pinstripe.errors import UnknownSync
from pinstripe.gateway.api.endpoint import Call
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.gateway.live.status_board import SyncStatus
from pinstripe.gateway.syncs import NewSync, StoredSync, SyncChange, SyncState

SyncId = Annotated[str, Meta(pattern="^[a-z0-9-]{1,40}$")]
Secret = Annotated[str, Meta(min_length=1, max_length=1000)]
Settings = Annotated[dict[str, str], Meta(max_length=100)]


class Addresses(msgspec.Struct, frozen=True):
    """Where this sync is reached."""

    proxy: str
    """Put in place of https://api.stripe.com; the caller's key tells the account."""
    wait: str
    webhook: str


class Sync(msgspec.Struct, frozen=True, kw_only=True):
    """One sync. Its key and its webhook secrets are never shown."""

    id: str
    schema: str
    key_hint: str
    stripe_url: str
    stripe_account: str | None
    settings: Mapping[str, str]
    paused: bool
    stored: bool
    """False for `default`, which flags and environment describe: it cannot be changed or removed here."""
    webhook_secrets: int
    account_id: str | None
    livemode: bool | None
    created_at: datetime | None
    state: SyncState
    addresses: Addresses
    live: SyncStatus | None
    """Its status, some seconds old at most; null before the first update of the status board."""


class SyncList(msgspec.Struct, frozen=True):
    """All syncs of this service."""

    syncs: list[Sync]


class SyncWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A sync to be added."""

    id: SyncId
    api_key: Secret
    schema: Annotated[str, Meta(min_length=1, max_length=63)] | None = None
    """The Postgres schema of its tables; by default the id, with _ for -."""
    stripe_url: Annotated[str, Meta(max_length=500)] = ""
    stripe_account: Annotated[str, Meta(max_length=100)] | None = None
    settings: Settings = {}
    """As on the command line, by name: {"tables": "-event"}."""
    webhook_secrets: Annotated[list[Secret], Meta(max_length=10)] = []
    paused: bool = False


class SyncPatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to change; what is not named stays."""

    api_key: Secret | UnsetType = UNSET
    settings: Settings | UnsetType = UNSET
    """All of them, anew."""
    webhook_secrets: Annotated[list[Secret], Meta(max_length=10)] | UnsetType = UNSET


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


async def add_sync(call: Call, body: SyncWish) -> Sync:
    """Adds a sync and starts it.

    Stripe is asked first whose key it is. The key is kept encrypted and never shown again.
    """
    options = NewSync(
        body.id,
        body.api_key,
        schema=body.schema,
        stripe_url=body.stripe_url,
        stripe_account=body.stripe_account,
        settings=body.settings,
        webhook_secrets=tuple(body.webhook_secrets),
        paused=body.paused,
    )
    added = await call.gateway.parts.control.add(options)
    await call.gateway.board.update()
    return _sync_of(call, added)


async def change_sync(call: Call, body: SyncPatch) -> Sync:
    """Changes the key, settings or webhook secrets of a stored sync, and starts it anew.

    A new key must be of the same account and mode.
    """
    await find_sync(call)
    secrets = body.webhook_secrets
    change = SyncChange(
        api_key=None if body.api_key is UNSET else body.api_key,
        settings=None if body.settings is UNSET else body.settings,
        webhook_secrets=None if secrets is UNSET else tuple(secrets),
    )
    return _sync_of(call, await call.gateway.parts.control.change(call.path["id"], change))


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
        id=sync.id,
        schema=sync.schema,
        key_hint=sync.key_hint,
        stripe_url=sync.stripe_url,
        stripe_account=sync.stripe_account,
        settings=sync.settings,
        paused=sync.paused,
        stored=sync.stored,
        webhook_secrets=sync.webhook_secrets,
        account_id=sync.account_id,
        livemode=sync.livemode,
        created_at=sync.created_at,
        state=sync.state,
        addresses=addresses(root, sync.id),
        live=call.gateway.board.syncs.get(sync.id),
    )
