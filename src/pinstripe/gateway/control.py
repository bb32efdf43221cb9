"""Syncs as things: what the API and the console may do with them, and what they see of them.

The service layer does it (`serving`); here is the protocol that it keeps, so that the gateway stands
below it. Errors are those of `errors`: `UnknownSync` for an id that is not there, `Misconfigured` for
what the caller must change, `Unreachable` where Postgres or Stripe is away, `WrongKey` and `Refused`
where Stripe does not take the key. No value here holds a secret, except a `NewSync` on its way in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol, TypeAlias

from pinstripe.store.stored_syncs import DEFAULT_ID

__all__ = [
    "DEFAULT_ID",
    "Activity",
    "NewSync",
    "StoredSync",
    "SyncChange",
    "SyncControl",
    "SyncState",
]

Activity: TypeAlias = Literal[
    "starting", "backfilling", "following", "waiting", "failed", "paused", "elsewhere"
]
"""`waiting`: for Stripe or Postgres, or to be started again after it ended. `failed`: its settings or its
key must be changed. `elsewhere`: this service does not sync it."""


@dataclass(frozen=True, slots=True)
class SyncState:
    """What its process does, as far as this service knows. `since` is when `activity` began."""

    activity: Activity
    since: datetime
    reason: str = ""
    """The last trouble: why it waits or failed. "" when all is well."""
    remedy: str = ""
    pid: int | None = None
    restarts: int = 0
    """How often its process was started again since the service began."""
    served: bool = False
    """Whether its tables are open to the proxy and to waits."""


@dataclass(frozen=True, slots=True)
class StoredSync:
    """One sync, without its secrets. `settings` has what differs from the defaults, by name."""

    id: str
    schema: str
    key_hint: str
    """`sk_test_…1234`; "" where there is no key."""
    stripe_url: str
    stripe_account: str | None
    settings: Mapping[str, str]
    paused: bool
    webhook_secrets: int
    """How many signing secrets it has."""
    account_id: str | None
    livemode: bool | None
    created_at: datetime | None
    """None for the default, which is not stored."""
    state: SyncState

    @property
    def stored(self) -> bool:
        return self.id != DEFAULT_ID


@dataclass(frozen=True, slots=True)
class NewSync:
    """The wish for a sync. `settings` as on the command line, by name: {"tables": "-event"}."""

    id: str
    api_key: str = field(repr=False)
    schema: str | None = None
    """The id, with _ for -, if None."""
    stripe_url: str = ""
    """Stripe itself if ""."""
    stripe_account: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    webhook_secrets: tuple[str, ...] = field(default=(), repr=False)
    paused: bool = False


@dataclass(frozen=True, slots=True)
class SyncChange:
    """What of a stored sync is to change; None leaves it."""

    api_key: str | None = field(default=None, repr=False)
    settings: Mapping[str, str] | None = None
    """All of them, anew."""
    webhook_secrets: tuple[str, ...] | None = field(default=None, repr=False)


class SyncControl(Protocol):
    """All syncs of this service."""

    async def list(self) -> list[StoredSync]:
        """The default first, if there is one; then by id."""
        ...

    async def get(self, sync_id: str) -> StoredSync:
        """Raises UnknownSync."""
        ...

    async def add(self, wish: NewSync) -> StoredSync:
        """Asks Stripe whose key it is, stores the sync, and starts it.

        Raises Misconfigured: a bad or taken id or schema, an unknown setting, a key of another shape.
        """
        ...

    async def change(self, sync_id: str, change: SyncChange) -> StoredSync:
        """Stores it and starts the sync anew with it. The key must be of the same account and mode."""
        ...

    async def pause(self, sync_id: str) -> StoredSync:
        """Stops its process until `resume`. What goes through the proxy is still mirrored."""
        ...

    async def resume(self, sync_id: str) -> StoredSync: ...

    async def remove(self, sync_id: str, *, drop_tables: bool) -> None:
        """Forgets the sync and its key. Its schema stays unless `drop_tables`."""
        ...
