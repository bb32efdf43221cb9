"""All syncs of this service: read from the database, applied to the supervisor and the gateway.

The default sync comes from flags and environment, the others are stored. Every change is announced on
`store.syncs.CHANNEL`; the registry then reads all of them again, and every five seconds anyway. While
Postgres is unreachable, the last known syncs keep running.

`SyncOpener` opens them for the gateway once their tables exist, and again when the tables change. A sync
may be configured before it can be opened: Postgres is unreachable, or its worker has not created the
schema. Until then the gateway forwards requests for it and says so in a header.

`Control` implements `gateway.syncs.SyncControl`. It stores each change first and applies it before it
returns; other services apply it when they are notified.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import structlog
from msgspec import structs

from pinstripe.client.api_key import ApiKey, proxy_for
from pinstripe.client.response import Margins
from pinstripe.concurrency import KeptTasks, backoff, wait_for
from pinstripe.config.config import Config
from pinstripe.errors import Misconfigured, PinstripeError
from pinstripe.gateway.syncs import NewSync, StoredSync, SyncChange, Syncs, SyncState, open_sync
from pinstripe.platforms.gateway import PlatformSpec, serve_platform
from pinstripe.platforms.vault import PlatformVault
from pinstripe.service import budget_for, personal_of, rate_shares
from pinstripe.serving.supervisor import Supervisor, WorkerSpec
from pinstripe.serving.vault import Vault
from pinstripe.store.listener import Listener
from pinstripe.store.migrate import ensure_bookkeeping
from pinstripe.store.platforms.stored import SealedPlatform, load_platforms
from pinstripe.store.pool import check_sessions, connect
from pinstripe.store.syncs import (
    CHANNEL,
    DEFAULT_ID,
    SealedSync,
    is_paused,
    load_stored,
    load_table_names,
    unknown,
)

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)
_LOOK_S = 5.0
_AWAY_S = 1.0
_BEGIN_S = 2.0
"""How long the service waits for Postgres before it answers without."""
_RETRY_S = (0.25, 0.5, 1.0, 2.0, 5.0)
_TABLES_S = 10.0
"""How soon a table that was added is seen."""


@dataclass(frozen=True, slots=True)
class GatewaySyncSpec:
    """What the gateway needs of one sync; in `config` the rates are the gateway's share."""

    config: Config
    database_url: str = field(repr=False)
    webhook_secrets: tuple[str, ...] = field(default=(), repr=False)


class SyncOpener:
    """Keeps `syncs` as is wanted."""

    def __init__(self, syncs: Syncs) -> None:
        self._syncs = syncs
        self._tasks = KeptTasks(self._keep)
        self._stirred = asyncio.Event()

    async def want(self, wishes: Mapping[str, GatewaySyncSpec]) -> None:
        """From now on exactly these. Returns when those that are gone are closed."""
        self._syncs.expected = frozenset(wishes)
        await self._tasks.want(wishes)

    def stir(self) -> None:
        """Something has changed: what could not be opened is tried again now."""
        self._stirred.set()

    async def _keep(self, name: str, options: GatewaySyncSpec) -> None:
        """Until cancelled: open, or trying to be."""
        attempt = 0
        while True:
            try:
                await self._open(name, options)
                attempt = 0
                continue
            except (PinstripeError, ExceptionGroup) as error:
                # Of a group: the mirror's writers, which end only on what nobody has thought of.
                _log.info("gateway.closed", sync=name, reason=str(error), attempt=attempt)
            await wait_for(self._stirred, backoff(_RETRY_S, attempt))
            self._stirred.clear()
            attempt += 1

    async def _open(self, name: str, options: GatewaySyncSpec) -> None:
        """Open for as long as the tables stay the same."""
        config, key = options.config, ApiKey.parse(options.config.api_key or "")
        async with open_sync(
            name,
            options.database_url,
            config.schema,
            key,
            budget=budget_for(config, key),
            stripe_url=config.stripe_url,
            stripe_account=config.stripe_account,
            webhook_secrets=options.webhook_secrets,
            proxy=proxy_for(config.stripe_url),
            changes=config.changes,
            margins=Margins(config.clock_margin, config.replica_lag),
            personal=personal_of(config),
        ) as opened:
            self._syncs.add(opened)
            _log.info("gateway.open", sync=name, schema=config.schema)
            try:
                await _until_other_tables(
                    options.database_url, config.schema, set(opened.mirror.tables)
                )
            finally:
                self._syncs.remove(name)


async def _until_other_tables(url: str, schema: str, tables: set[str]) -> None:
    """Returns when the schema holds other tables of the catalog than these."""
    while True:
        await asyncio.sleep(_TABLES_S)
        with suppress(PinstripeError):
            async with connect(url, application_name="pinstripe gateway") as connection:
                if await load_table_names(connection, schema) != tables:
                    return


@dataclass(frozen=True, slots=True)
class _Entry:
    """One sync: its public view and its config. `config` is None if `trouble` says why."""

    shown: StoredSync
    config: Config | None
    webhook_secrets: tuple[str, ...]
    trouble: PinstripeError | None


class SyncRegistry:
    """`supervisor` is None if another service syncs."""

    def __init__(
        self,
        vault: Vault,
        syncs: Syncs,
        supervisor: Supervisor | None,
        *,
        talks: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`talks`: the default's worker prints progress on the terminal."""
        self.vault = vault
        self._syncs = syncs
        self._supervisor = supervisor
        self._opener = SyncOpener(syncs)
        self._platforms: KeptTasks[PlatformSpec]
        self._platforms = KeptTasks(lambda _, spec: serve_platform(syncs, spec))
        self._platform_vault = PlatformVault(vault.database_url, vault.encryptor, vault.base)
        self._talks = talks
        self._began = now()
        self._entries: dict[str, _Entry] = {}
        self._reading = asyncio.Lock()

    async def begin(self) -> None:
        """Start the stored syncs if Postgres responds in time; else the default alone, until it does."""
        try:
            async with asyncio.timeout(_BEGIN_S):
                await self.read()
        except (PinstripeError, TimeoutError):
            await self._want([], default_paused=False)

    def stir(self) -> None:
        """Retry opening syncs: a worker has created its schema."""
        self._opener.stir()

    async def run(self) -> None:
        """Until cancelled; then everything has ended."""
        listener = Listener(
            lambda: self.vault.database_url,
            {CHANNEL: lambda payload: payload == ""},
            name="pinstripe gateway",
        )
        prepared, trouble = False, ""
        try:
            while True:
                pause_s = _LOOK_S
                try:
                    if not prepared:
                        await check_sessions(self.vault.database_url)
                        async with connect(self.vault.database_url) as connection:
                            await ensure_bookkeeping(connection)
                        prepared = True
                    # Listen first, then read: a change in between is notified.
                    await listener.connect()
                    await self.read()
                    trouble = ""
                except PinstripeError as error:
                    if error.message != trouble:
                        _log.warning("roster.trouble", error=error.message)
                    trouble, pause_s = error.message, _AWAY_S
                await listener.rest(pause_s)
        finally:
            await listener.close()
            await self.close()

    async def close(self) -> None:
        """Ends all processes and closes all syncs."""
        await asyncio.gather(
            self._opener.want({}),
            self._platforms.want({}),
            *([] if self._supervisor is None else [self._supervisor.close()]),
        )

    async def read(self) -> None:
        """Read all syncs and apply them. Raises Unreachable."""
        async with self._reading:
            async with connect(self.vault.database_url) as connection:
                stored = await self.vault.bind(connection, await load_stored(connection))
                paused = await is_paused(connection, self.vault.base.schema)
                platforms = await load_platforms(connection)
            await self._want(stored, default_paused=paused)
            await self._platforms.want(self._specs(platforms))

    def _specs(self, platforms: list[SealedPlatform]) -> dict[str, PlatformSpec]:
        """What the gateway needs of the platforms; one whose key is lost is left out."""
        specs: dict[str, PlatformSpec] = {}
        vault = self._platform_vault
        for platform in platforms:
            try:
                config = vault.config_of(platform)
                secrets = vault.webhook_secrets_of(platform)
            except PinstripeError as error:
                _log.warning("platform.unfit", platform=platform.id, error=error.message)
                continue
            shares = rate_shares(config, ApiKey.parse(config.api_key or ""))
            specs[platform.id] = PlatformSpec(
                platform.id, platform.account_id, platform.livemode, shares.gateway, secrets
            )
        return specs

    def all(self) -> list[StoredSync]:
        """Return all syncs with their current state: the default first, then by id."""
        return [self._now(entry) for entry in self._entries.values()]

    def get(self, sync_id: str) -> StoredSync | None:
        """Return the sync with its current state."""
        entry = self._entries.get(sync_id)
        return None if entry is None else self._now(entry)

    def _now(self, entry: _Entry) -> StoredSync:
        opened = self._syncs.get(entry.shown.id)
        state = None if self._supervisor is None else self._supervisor.state(entry.shown.id)
        state = state or SyncState("elsewhere", self._began)
        if entry.trouble is not None and self._supervisor is None:
            reason, remedy = entry.trouble.message, entry.trouble.hint
            state = replace(state, reason=reason, remedy=remedy)
        return structs.replace(
            entry.shown,
            state=replace(state, served=opened is not None),
            account_id=entry.shown.account_id or (opened.account_id if opened else None),
        )

    async def _want(self, stored: list[SealedSync], *, default_paused: bool) -> None:
        entries: dict[str, _Entry] = {}
        if self.vault.base.api_key is not None:
            entries[DEFAULT_ID] = self._default(self.vault.base, paused=default_paused)
        for sync in stored:
            entries[sync.id] = self._stored(sync)
        self._entries = entries
        jobs: dict[str, WorkerSpec] = {}
        wishes: dict[str, GatewaySyncSpec] = {}
        for name, entry in entries.items():
            paused, config = entry.shown.paused, entry.config
            if config is None:
                jobs[name] = WorkerSpec(self.vault.base, paused, trouble=entry.trouble)
                continue
            shares = rate_shares(config, ApiKey.parse(config.api_key or ""))
            talks = self._talks and name == DEFAULT_ID
            jobs[name] = WorkerSpec(shares.worker, paused, talks)
            url = self.vault.database_url
            wishes[name] = GatewaySyncSpec(shares.gateway, url, entry.webhook_secrets)
        if self._supervisor is not None:
            await self._supervisor.want(jobs)
        await self._opener.want(wishes)

    def _default(self, config: Config, *, paused: bool) -> _Entry:
        key = ApiKey.parse(config.api_key or "")
        shown = StoredSync(
            id=DEFAULT_ID,
            schema=config.schema,
            key_hint=str(key),
            stripe_url=config.stripe_url,
            stripe_account=config.stripe_account,
            settings={},
            paused=paused,
            stored=False,
            webhook_secrets=len(config.webhook_secret),
            account_id=None,
            livemode=key.mode == "live",
            created_at=None,
            state=SyncState("starting", self._began),
        )
        config = replace(config, database_url=self.vault.database_url)
        return _Entry(shown, config, config.webhook_secret, None)

    def _stored(self, sync: SealedSync) -> _Entry:
        shown = shown_of(sync, SyncState("starting", self._began))
        base = self.vault.base
        try:
            if base.api_key is not None and sync.schema == base.schema:
                raise Misconfigured(
                    f'The schema "{sync.schema}" is that of the sync that flags and environment '
                    "configure.",
                    hint="Remove this sync, or start the service without STRIPE_API_KEY.",
                )
            config = self.vault.config_of(sync)
            return _Entry(shown, config, self.vault.webhook_secrets_of(sync), None)
        except PinstripeError as error:
            return _Entry(shown, None, (), error)


def shown_of(sync: SealedSync, state: SyncState) -> StoredSync:
    """A stored sync without its secrets."""
    public = {
        n: v for n, v in structs.asdict(sync).items() if n not in ("api_key", "webhook_secrets")
    }
    return StoredSync(**public, stored=True, webhook_secrets=len(sync.webhook_secrets), state=state)


class Control:
    """The syncs of a running service."""

    def __init__(self, registry: SyncRegistry) -> None:
        self._roster = registry
        self._vault = registry.vault

    async def list(self) -> builtins.list[StoredSync]:
        return self._roster.all()

    async def get(self, sync_id: str) -> StoredSync:
        found = self._roster.get(sync_id)
        if found is None:
            raise unknown(sync_id)
        return found

    async def add(self, options: NewSync) -> StoredSync:
        schema = options.schema or options.id.replace("-", "_")
        if self._vault.base.api_key is not None and schema == self._vault.base.schema:
            raise Misconfigured(
                f'The schema "{schema}" is that of the sync "{DEFAULT_ID}".',
                hint="Choose another schema for this one.",
            )
        sync = await self._vault.add(options)
        return await self._carried_out(sync.id)

    async def change(self, sync_id: str, change: SyncChange) -> StoredSync:
        if sync_id == DEFAULT_ID:
            raise _not_stored()
        await self._vault.change(sync_id, change)
        return await self._carried_out(sync_id)

    async def pause(self, sync_id: str) -> StoredSync:
        await self._existing(sync_id)
        await self._vault.pause(sync_id)
        return await self._carried_out(sync_id)

    async def resume(self, sync_id: str) -> StoredSync:
        await self._existing(sync_id)
        await self._vault.resume(sync_id)
        return await self._carried_out(sync_id)

    async def remove(self, sync_id: str, *, drop_tables: bool) -> None:
        if sync_id == DEFAULT_ID:
            raise _not_stored()
        # Its worker ends on the notification, which precedes the drop.
        await self._vault.remove(sync_id, drop_tables=drop_tables)
        await self._roster.read()

    async def _existing(self, sync_id: str) -> None:
        if sync_id == DEFAULT_ID:
            await self.get(sync_id)  # Without a key there is no default.

    async def _carried_out(self, sync_id: str) -> StoredSync:
        await self._roster.read()
        return await self.get(sync_id)


def _not_stored() -> Misconfigured:
    return Misconfigured(
        f'The sync "{DEFAULT_ID}" is configured by flags and environment, not stored.',
        hint="Change STRIPE_API_KEY and the other settings of the service, then restart it.",
    )
