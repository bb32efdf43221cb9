"""`pinstripe syncs`, `platform` and `worker`: stored syncs, platforms, and the processes of the latter.

A running service applies each change of a sync immediately; a platform's accounts are copied on as many
machines as run a worker.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

from msgspec import UNSET, structs

from pinstripe.cli.runtime import show, tell
from pinstripe.cli.status import with_data
from pinstripe.cli.summary import counted
from pinstripe.concurrency import cancel
from pinstripe.config.config import Config
from pinstripe.encryption import FILE, Encryptor
from pinstripe.errors import Misconfigured
from pinstripe.gateway.syncs import NewSync, SyncChange
from pinstripe.platforms.vault import NewPlatform, PlatformVault
from pinstripe.platforms.worker import open_worker
from pinstripe.service import open_database
from pinstripe.serving.vault import Vault
from pinstripe.store.migrate import make_tenant_views
from pinstripe.store.platforms.stored import SealedPlatform, get_platform, load_platforms
from pinstripe.store.platforms.sweep import Pace, account_standing, sweep_pace
from pinstripe.store.platforms.tasks import waiting_tasks
from pinstripe.store.platforms.workers import live_workers
from pinstripe.store.pool import connect
from pinstripe.store.syncs import SealedSync, get_stored, load_stored

_V = TypeVar("_V")


async def list_syncs(config: Config, *, as_json: bool) -> int:
    """Print the stored syncs, without secrets."""
    async with (
        open_vault(Vault, config, new=False) as vault,
        connect(vault.database_url) as connection,
    ):
        found = await load_stored(connection)
    if as_json:
        show(json.dumps({"syncs": [_as_object(sync) for sync in found]}))
        return 0
    if not found:
        tell("No stored syncs. Add one with `pinstripe syncs add ID`.")
        return 0
    show(f"{'id':<20} {'schema':<20} {'state':<8} {'mode':<5} {'account':<24} key")
    for sync in found:
        mode = "live" if sync.livemode else "test"
        state = "paused" if sync.paused else "running"
        account = sync.account_id or "unknown"
        show(f"{sync.id:<20} {sync.schema:<20} {state:<8} {mode:<5} {account:<24} {sync.key_hint}")
    return 0


async def add(
    config: Config,
    sync_id: str,
    *,
    schema: str | None,
    settings: Mapping[str, str],
    paused: bool,
    as_json: bool,
) -> int:
    """Store a sync. Its key is read from the environment or a prompt."""
    key = config.api_key or asked_key()
    async with open_vault(Vault, config, new=True) as vault:
        sync = await vault.add(
            NewSync(
                sync_id,
                key,
                schema=schema,
                stripe_url=config.stripe_url,
                stripe_account=config.stripe_account,
                settings=settings,
                webhook_secrets=config.webhook_secret,
                paused=paused,
            )
        )
    then = "A `pinstripe serve` that runs on this database starts it now; if none does, run one."
    if sync.paused:
        then = f"It is paused; `pinstripe syncs resume {sync.id}` starts it."
    return _say_stored("sync", sync, then, as_json=as_json)


async def change(
    config: Config, sync_id: str, settings: dict[str, str], *, key: bool, as_json: bool
) -> int:
    """Stores other settings, webhook secrets, or, with `key`, another key."""
    async with open_vault(Vault, config, new=False) as vault:
        async with connect(vault.database_url) as connection:
            before = await get_stored(connection, sync_id)
        options = SyncChange(
            api_key=(config.api_key or asked_key()) if key else UNSET,
            settings={**before.settings, **settings} if settings else UNSET,
            webhook_secrets=config.webhook_secret or UNSET,
        )
        sync = await vault.change(sync_id, options)
    return _say("sync", _as_object(sync), f'Changed "{sync_id}".', as_json=as_json)


async def pause(config: Config, sync_id: str, *, paused: bool, as_json: bool) -> int:
    """From now on no service syncs it, or again some do."""
    async with open_vault(Vault, config, new=False) as vault:
        await (vault.pause if paused else vault.resume)(sync_id)
    return _say("sync", None, _paused("syncs", sync_id, paused), as_json=as_json)


async def remove(config: Config, sync_id: str, *, drop_tables: bool, as_json: bool) -> int:
    """Forgets it and its key."""
    async with open_vault(Vault, config, new=False) as vault:
        await vault.remove(sync_id, drop_tables=drop_tables)
    return _say("sync", None, _removed(sync_id, drop_tables), as_json=as_json)


async def rekey(config: Config, *, as_json: bool) -> int:
    """Re-encrypt every stored key."""
    async with open_vault(Vault, config, new=False) as vault:
        count = await vault.rekey()
        where = "the new key in " + str(config.data_dir / FILE)
        where = where if vault.encryptor.in_file else "the first key of PINSTRIPE_SECRET_KEY"
    counted = "1 stored key is" if count == 1 else f"{count} stored keys are"
    return _say("sync", None, f"{counted} now encrypted with {where}.", as_json=as_json)


@asynccontextmanager
async def open_vault(
    kind: Callable[[str, Encryptor, Config], _V], config: Config, *, new: bool
) -> AsyncIterator[_V]:
    """Open the vault of syncs or platforms. With `new`, create a database if there is none."""
    try:
        config = with_data(config)
    except Misconfigured:
        if not new:
            raise
    async with open_database(config) as database:
        encryptor = Encryptor(config.secret_key, config.data_dir / FILE)
        yield kind(database.url, encryptor, config)


def asked_key() -> str:
    """Read the key from the terminal without echo, or the first line of stdin."""
    if sys.stdin.isatty():
        return getpass.getpass("Stripe API key (hidden): ")
    return sys.stdin.readline().strip()


def _say(what: str, shown: Mapping[str, object] | None, text: str, *, as_json: bool) -> int:
    """Print what was done; return the exit code."""
    if as_json:
        show(json.dumps({what: shown, "done": True}))
        tell(text)
    else:
        show(text)
    return 0


def _paused(command: str, name: str, paused: bool) -> str:
    resume = f'Paused "{name}". Resume with `pinstripe {command} resume {name}`.'
    return resume if paused else f'Resumed "{name}".'


def _removed(name: str, dropped: bool) -> str:
    return f'Removed "{name}" and its key. Its tables were {"dropped" if dropped else "kept"}.'


def _say_stored(what: str, stored: SealedSync | SealedPlatform, then: str, *, as_json: bool) -> int:
    mode = "live" if stored.livemode else "test"
    text = f'Stored "{stored.id}": {stored.account_id or "an account"} in {mode} mode, key '
    text += f"{stored.key_hint}, schema {stored.schema}. {then}"
    return _say(what, _as_object(stored), text, as_json=as_json)


def _as_object(stored: SealedSync | SealedPlatform) -> dict[str, object]:
    """A stored sync or platform without its secrets."""
    shown = structs.asdict(stored)
    del shown["api_key"]
    return shown | {
        "settings": dict(stored.settings),
        "webhook_secrets": len(stored.webhook_secrets),
        "created_at": None if stored.created_at is None else stored.created_at.isoformat(),
    }


async def add_platform(
    config: Config,
    platform_id: str,
    *,
    schema: str | None,
    settings: Mapping[str, str],
    partitions: int,
    paused: bool,
    as_json: bool,
) -> int:
    """Store a platform. Its key is read from the environment or a prompt."""
    key = config.api_key or asked_key()
    async with open_vault(PlatformVault, config, new=True) as vault:
        platform = await vault.add(
            NewPlatform(
                platform_id,
                key,
                schema=schema,
                partitions=partitions,
                stripe_url=config.stripe_url,
                settings=settings,
                webhook_secrets=config.webhook_secret,
                paused=paused,
            )
        )
    then = "`pinstripe worker` copies its accounts, on as many machines as run it."
    return _say_stored("platform", platform, then, as_json=as_json)


async def list_platforms(config: Config, *, as_json: bool) -> int:
    """Print the platforms with the pace of their sweeps, and the workers."""
    async with (
        open_vault(PlatformVault, config, new=False) as vault,
        connect(vault.database_url) as connection,
    ):
        found = [(p, await sweep_pace(connection, p.id)) for p in await load_platforms(connection)]
        workers = await live_workers(connection)
        waiting = await waiting_tasks(connection)
    if as_json:
        show(
            json.dumps(
                {
                    "platforms": [
                        _as_object(p) | {"accounts": dict(pace._asdict())} for p, pace in found
                    ],
                    "workers": [{"name": w.name, "running": w.running} for w in workers],
                    "tasks": waiting,
                }
            )
        )
        return 0
    if not found:
        tell("No platforms. Add one with `pinstripe platform add ID`.")
        return 0
    show(f"{'id':<20} {'schema':<20} {'state':<8} {'mode':<5} accounts")
    for platform, pace in found:
        state = "paused" if platform.paused else "active"
        mode = "live" if platform.livemode else "test"
        show(f"{platform.id:<20} {platform.schema:<20} {state:<8} {mode:<5} {_pace(pace)}")
    tasks = ", ".join(f"{count} {name}" for name, count in sorted(waiting.items())) or "none"
    show(f"{counted(len(workers), 'worker')}; tasks that wait or run: {tasks}")
    return 0


async def pause_platform(config: Config, platform_id: str, *, paused: bool, as_json: bool) -> int:
    """From now on no worker works for it, or again some do."""
    async with open_vault(PlatformVault, config, new=False) as vault:
        platform = await vault.pause(platform_id, paused=paused)
    text = _paused("platform", platform_id, paused)
    return _say("platform", _as_object(platform), text, as_json=as_json)


async def remove_platform(
    config: Config, platform_id: str, *, drop_tables: bool, as_json: bool
) -> int:
    """Forgets it and its key."""
    async with open_vault(PlatformVault, config, new=False) as vault:
        platform = await vault.remove(platform_id, drop_tables=drop_tables)
    text = _removed(platform_id, drop_tables)
    return _say("platform", _as_object(platform), text, as_json=as_json)


async def make_views(
    config: Config, platform_id: str, account_id: str, target: str, *, as_json: bool
) -> int:
    async with (
        open_vault(PlatformVault, config, new=False) as vault,
        connect(vault.database_url) as connection,
    ):
        platform = await get_platform(connection, platform_id)
        if await account_standing(connection, platform.id, account_id) is None:
            raise Misconfigured(
                f"The platform has no account {account_id}.",
                hint="The console and `/api/platforms/ID/accounts` list the accounts.",
            )
        names = await make_tenant_views(connection, platform.schema, account_id, target)
    if as_json:
        show(json.dumps({"schema": target, "views": names}))
    else:
        show(
            f'Made {len(names)} views of the rows of {account_id} in the schema "{target}". Grant USAGE on '
            "it and SELECT on its views; repeat this after an upgrade for new tables and columns."
        )
    return 0


async def work(config: Config) -> int:
    """Run a worker until cancelled."""
    async with open_vault(PlatformVault, config, new=True) as vault, open_worker(vault) as worker:
        tell(f"Worker {worker.holder} has joined. It leaves in order at SIGTERM or Ctrl-C.")
        async with connect(vault.database_url) as connection:
            if not await load_platforms(connection):
                tell("No platform is stored yet: `pinstripe platform add ID` adds one.")
        running = asyncio.create_task(worker.run())
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            await cancel(running)
            raise
    return 0


def _pace(pace: Pace) -> str:
    """How a sweep goes, in a line.

    >>> _pace(Pace(12, 1, 2, 3.25, 70.4, 0))
    '12 active, 1 revoked, 2 in trouble; 3.2 polls/s, the oldest 70 s ago, 0 late'
    """
    oldest_s = 0.0 if pace.oldest_look_s is None else pace.oldest_look_s
    return (
        f"{pace.active} active, {pace.revoked} revoked, {pace.troubled} in trouble; "
        f"{pace.looks_per_s:.1f} polls/s, the oldest {oldest_s:.0f} s ago, {pace.late} late"
    )
