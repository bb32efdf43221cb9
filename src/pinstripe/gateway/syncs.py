"""The syncs of a gateway: open ones (`OpenSync`), and the protocol that manages them (`SyncControl`).

`Syncs` holds the open syncs, which requests name by id or by a key of their account, and the platforms,
each of whose accounts is an `OpenSync` of its own, opened when a request names it (`PlatformAccounts`). A
gateway holds no lease: it writes responses of Stripe's, and the guarded upsert decides which rows they
replace. What it reads of their databases is bounded in time: `Reads`, `PatientVersions`.

`serving` implements `SyncControl`, so that the gateway stands below it. Its errors are `UnknownSync`
for an unknown id, `Misconfigured` for what the caller must change, `Unreachable` where Postgres or
Stripe is down, `WrongKey` and `Refused` where Stripe rejects the key. No value here holds a secret,
except `NewSync`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Annotated, Literal, Protocol, TypeAlias

import msgspec
import structlog
from msgspec import UNSET, Meta, UnsetType

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import Table, tables
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient, meet
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.response import Margins
from pinstripe.errors import Misconfigured, PinstripeError, Refused, Unreachable
from pinstripe.mirror import Mirror, open_mirror
from pinstripe.rows.extract import RowKey
from pinstripe.rows.personal import Personal
from pinstripe.source.refusals import remember_refusals
from pinstripe.source.resolve import resolve
from pinstripe.source.source import Source
from pinstripe.store.migrate import effective_tables
from pinstripe.store.pool import Connection, Pool, connect, open_pool, sqlstate
from pinstripe.store.rewrite import check_policy
from pinstripe.store.syncs import Sync, load_syncs, load_table_names, refuse_other

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OpenSync:
    """One sync, ready to be read and written. `id` is the name in wait and webhook addresses."""

    id: str
    schema: str
    account_id: str | None
    """None where the key may not tell."""
    livemode: bool
    source: Source = field(repr=False)
    """Stripe with the sync's own key, the mirror, and the pool."""
    webhook_secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def mirror(self) -> Mirror:
        return self.source.mirror

    @property
    def pool(self) -> Pool:
        return self.source.pool


class Named(Protocol):
    """A sync, or an account of a platform, that a request names."""

    @property
    def id(self) -> str: ...
    @property
    def account_id(self) -> str | None: ...
    @property
    def livemode(self) -> bool: ...


class PlatformAccounts(Protocol):
    """The accounts of one platform, each opened when a request first names it."""

    @property
    def id(self) -> str: ...
    @property
    def account_id(self) -> str:
        """The platform's own account, which is one of them."""
        ...

    @property
    def livemode(self) -> bool: ...
    @property
    def webhook_secrets(self) -> tuple[str, ...]: ...

    def has_key(self, key: bytes) -> bool:
        """Whether this is the platform's key. In constant time."""
        ...

    def opened(self, account_id: str) -> OpenSync | None:
        """The account if it is open."""
        ...

    async def open(self, account_id: str) -> OpenSync | None:
        """The account; None if the platform does not have it, or lost its authorization.

        Raises Unreachable.
        """
        ...

    def wake_soon(self, account_id: str, *, is_new: bool) -> None:
        """Have the account polled, and added if it is new. Returns immediately; calls are coalesced."""
        ...


@dataclass(frozen=True, slots=True)
class AccountPlace:
    """An account that a request names as one of a platform's. Whether it is, `platform` tells."""

    platform: PlatformAccounts
    account_id: str

    @property
    def id(self) -> str:
        return account_sync_id(self.platform.id, self.account_id)

    @property
    def livemode(self) -> bool:
        return self.platform.livemode


def account_sync_id(platform_id: str, account_id: str) -> str:
    """Return the id of an account of a platform among the syncs; ids of syncs have no `@`."""
    return f"{platform_id}@{account_id}"


class Syncs:
    """The open syncs by id. Who opens and closes them puts them in and takes them out."""

    def __init__(self) -> None:
        self.platforms: dict[str, PlatformAccounts] = {}
        self.expected: frozenset[str] = frozenset()
        """Those to be served here, open or not: Postgres may be away, or their tables not made."""
        self._by_id: dict[str, OpenSync] = {}
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[OpenSync]:
        return iter(list(self._by_id.values()))

    @property
    def are_open(self) -> bool:
        """Whether all that are expected are."""
        return self.expected <= self._by_id.keys()

    def add(self, sync: OpenSync) -> None:
        self._by_id[sync.id] = sync
        self._tell()

    def remove(self, sync_id: str) -> None:
        self._by_id.pop(sync_id, None)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def get(self, sync_id: str) -> OpenSync | None:
        platform_id, _, account_id = sync_id.partition("@")
        if account_id:
            platform = self.platforms.get(platform_id)
            return None if platform is None else platform.opened(account_id)
        return self._by_id.get(sync_id)

    def named(self, sync_id: str, account_id: str) -> Named | None:
        """What a request names by an id and, if it is a platform's, an account; "" is its own."""
        platform = self.platforms.get(sync_id)
        if platform is not None:
            return AccountPlace(platform, account_id or platform.account_id)
        return self._by_id.get(sync_id)

    async def opened(self, sync_id: str, timeout_s: float) -> OpenSync | None:
        """The sync as soon as it is open; None if it is not expected, or not open in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while sync_id in self.expected and sync_id not in self._by_id:
                    await self._changed.wait()
        return self._by_id.get(sync_id)

    async def closed(self, sync: OpenSync) -> None:
        """Returns when this one is not open any more; it may be opened anew."""
        while self.get(sync.id) is sync:
            await self._changed.wait()

    async def reach(self, sync_id: str) -> OpenSync | None:
        """The sync, or the account of a platform, which is opened; None if it is not served here any more.

        Raises Unreachable where it is not open for the moment.
        """
        platform_id, _, account_id = sync_id.partition("@")
        if account_id and platform_id in self.platforms:
            return await self.platforms[platform_id].open(account_id)
        if sync_id in self.expected and sync_id not in self._by_id:
            raise Unreachable("The tables of this sync are not open here for the moment.")
        return self._by_id.get(sync_id)

    def of_account(self, account_id: str, *, livemode: bool) -> OpenSync | None:
        """The sync of this account in this mode, if one is served here."""
        for sync in self._by_id.values():
            if (sync.account_id, sync.livemode) == (account_id, livemode):
                return sync
        return None


@asynccontextmanager
async def open_sync(
    sync_id: str,
    database_url: str,
    schema: str,
    key: ApiKey,
    *,
    budget: RateLimiter,
    stripe_url: str,
    stripe_account: str | None = None,
    webhook_secrets: tuple[str, ...] = (),
    proxy: str | None = None,
    changes: bool = False,
    writers: int = 2,
    margins: Margins = Margins(),  # noqa: B008 (frozen)
    personal: Personal | None = None,
) -> AsyncIterator[OpenSync]:
    """The parts of a sync whose schema is there already, open for the block.

    Raises Misconfigured while no process has made the schema, and for a key of another account or mode;
    Unreachable where Postgres is away.
    """
    known, effective = await _there(database_url, schema, personal)
    async with StripeClient(
        key,
        api_version=spec().api_version,
        budget=budget,
        base_url=stripe_url,
        account=stripe_account,
        proxy=proxy,
        margins=margins,
    ) as stripe:
        await _check_key(stripe, key, known)
        async with (
            await open_pool(database_url, min_size=1, max_size=8, application_name=_NAME) as pool,
            open_mirror(
                database_url,
                schema,
                effective,
                api_version=spec().api_version,
                writers=writers,
                changes=changes,
                session_name=_NAME,
                personal=personal,
            ) as mirror,
        ):
            source = Source(stripe, mirror, mirror.tables, pool)
            await remember_refusals(source, leads=False)
            mirror.conflicts.resolve = partial(resolve, source)
            livemode = bool(known.livemode)
            yield OpenSync(sync_id, schema, known.account_id, livemode, source, webhook_secrets)


async def _check_key(stripe: StripeClient, key: ApiKey, known: Sync) -> None:
    """Raises Misconfigured for a key of another account or mode: what it fetches for a wait would be mixed
    with the rows, and what it does not find flagged as deleted. Without Stripe it fetches nothing.
    """
    account_id: str | None = None
    with suppress(Unreachable, Refused, TimeoutError):
        async with asyncio.timeout(_ASKED_S):
            account_id = (await meet(stripe, key)).id
    refuse_other(known, account_id, key.mode == "live")


_ASKED_S = 5.0
_NAME = "pinstripe gateway"


async def _there(
    database_url: str, schema: str, personal: Personal | None
) -> tuple[Sync, dict[str, Table]]:
    """Whose schema it is, and its tables as they stand there. Raises where `personal` is not its policy."""
    async with connect(database_url) as connection:
        await check_policy(connection, schema, personal)
        known = next((s for s in await load_syncs(connection) if s.schema == schema), None)
        if known is None or known.livemode is None:
            raise Misconfigured(
                f'The schema "{schema}" is not there yet.',
                hint="`pinstripe sync` makes it; a moment later it is served here.",
            )
        there = await load_table_names(connection, schema)
        chosen = {name: table for name, table in tables().items() if name in there}
        return known, await effective_tables(connection, schema, chosen)


_LONGEST_S = 10.0
_QUERY_CANCELED = "57014"
_READ_ONLY = "SET LOCAL transaction_read_only = on; SET LOCAL statement_timeout = "


class Reads:
    """Read-only transactions for HTTP endpoints. `pool` gives None while there is no database: then, and
    while Postgres is down, a read raises `Unreachable`, and the gateway goes on.
    """

    def __init__(self, pool: Callable[[], Pool | None]) -> None:
        self._pool = pool

    @asynccontextmanager
    async def connection(self, *, longest_s: float = _LONGEST_S) -> AsyncIterator[Connection]:
        """One read-only transaction whose statements take `longest_s` each at most."""
        pool = self._pool()
        if pool is None:
            raise Unreachable(
                "The database is not there yet.", hint="It starts, or cannot be reached; try again."
            )
        try:
            # Around the block too: a server that hangs does not enforce its statement timeout.
            async with asyncio.timeout(longest_s + 1.0), pool.transaction() as connection:
                await connection.execute(f"{_READ_ONLY}{int(longest_s * 1000)}")
                yield connection
        except TimeoutError as error:
            raise Unreachable(
                f"Postgres did not answer within {longest_s:.0f} s.", hint="Try again later."
            ) from error
        except Unreachable as error:
            if sqlstate(error) != _QUERY_CANCELED:
                raise
            raise Unreachable(
                f"The database took longer than {longest_s:.0f} s to answer.",
                hint="Ask for less: a later `since`, one type or one table.",
            ) from error


_PATIENCE_S = 0.25
_PAUSE_S = 1.0
"""How long no version is read after a read took longer than the patience."""


class PatientVersions:
    """Reads row versions, and Postgres's clock, if Postgres answers fast. Requests go without otherwise."""

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._not_before = 0.0

    async def read(self, sync: OpenSync, rows: Iterable[RowKey]) -> dict[RowKey, datetime]:
        """The versions of those `rows` that exist; empty if Postgres is slow or unreachable."""
        if self._is_slow(sync):
            return {}
        try:
            return await sync.source.row_versions(rows, patience_s=_PATIENCE_S)
        except PinstripeError as error:
            self._note(error)
            return {}

    async def now(self, sync: OpenSync) -> datetime | None:
        """Postgres's clock before a write is sent to Stripe; None if Postgres is slow or unreachable.

        Stripe's clock counts seconds: only ours shows which of two writes within one second is newer.
        """
        if self._is_slow(sync):
            return None
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await sync.pool.time()
        except (PinstripeError, TimeoutError) as error:
            self._note(error)
            return None

    def _is_slow(self, sync: OpenSync) -> bool:
        return bool(sync.mirror.trouble) or self._clock() < self._not_before

    def _note(self, error: Exception) -> None:
        _log.debug("proxy.unseen", error=str(error))
        self._not_before = self._clock() + _PAUSE_S


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


class StoredSync(msgspec.Struct, frozen=True, kw_only=True):
    """One sync, without its secrets."""

    id: str
    schema: str
    key_hint: str
    """`sk_test_…1234`; "" where there is no key."""
    stripe_url: str
    stripe_account: str | None
    settings: Mapping[str, str]
    """Settings that differ from the defaults, by name."""
    paused: bool
    stored: bool
    """False for `default`, which flags and environment describe: it cannot be changed or removed here."""
    webhook_secrets: int
    """How many signing secrets it has."""
    account_id: str | None
    livemode: bool | None
    created_at: datetime | None
    """Null for the default, which is not stored."""
    state: SyncState


SyncId = Annotated[str, Meta(pattern="^[a-z0-9-]{1,40}$")]
Secret = Annotated[str, Meta(min_length=1, max_length=1000)]
Secrets = Annotated[tuple[Secret, ...], Meta(max_length=10)]
Settings = Annotated[Mapping[str, str], Meta(max_length=100)]


class NewSync(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sync to be added. Only decoding checks the limits below; the vault checks what matters."""

    id: SyncId
    api_key: Secret
    schema: Annotated[str, Meta(min_length=1, max_length=63)] | None = None
    """The Postgres schema of its tables; by default the id, with _ for -."""
    stripe_url: Annotated[str, Meta(max_length=500)] = ""
    stripe_account: Annotated[str, Meta(max_length=100)] | None = None
    settings: Settings = {}
    """As on the command line, by name: {"tables": "-event"}."""
    webhook_secrets: Secrets = ()
    paused: bool = False

    def __repr__(self) -> str:
        return f"NewSync({self.id!r})"  # No secret in a traceback or a log line.


class SyncChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Changes to a stored sync; what is not set stays."""

    api_key: Secret | UnsetType = UNSET
    settings: Settings | UnsetType = UNSET
    """Replaces all settings."""
    webhook_secrets: Secrets | UnsetType = UNSET

    def __repr__(self) -> str:
        return "SyncChange(...)"


class SyncControl(Protocol):
    """All syncs of this service."""

    async def list(self) -> list[StoredSync]:
        """The default first, if there is one; then by id."""
        ...

    async def get(self, sync_id: str) -> StoredSync:
        """Raises UnknownSync."""
        ...

    async def add(self, options: NewSync) -> StoredSync:
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
