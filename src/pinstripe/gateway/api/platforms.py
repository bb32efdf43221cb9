"""The API of platforms: how the work on their accounts goes, and the accounts, by pages.

All of it is read from the bookkeeping, so it is the same on every machine.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pinstripe.gateway.api.endpoint import Call
from pinstripe.gateway.api.syncs import Addresses, addresses
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.store.platforms.status import (
    PlatformStatus,
    WorkerStatus,
    read_platform,
    read_platforms,
)
from pinstripe.store.platforms.stored import PlatformAccount, load_accounts, load_platforms
from pinstripe.store.pool import Connection


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
