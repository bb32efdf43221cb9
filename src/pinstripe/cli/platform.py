"""`pinstripe platform` and `pinstripe worker`: connected accounts, and the processes that copy them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

from pinstripe.cli.sync import show, tell
from pinstripe.cli.syncs import asked_key, open_vault
from pinstripe.config.config import Config
from pinstripe.errors import Misconfigured
from pinstripe.platforms.vault import NewPlatform, PlatformVault
from pinstripe.platforms.worker import open_worker
from pinstripe.store.migrate import make_tenant_views
from pinstripe.store.platforms.stored import SealedPlatform, get_platform, load_platforms
from pinstripe.store.platforms.sweep import Pace, account_standing, sweep_pace
from pinstripe.store.platforms.tasks import waiting_tasks
from pinstripe.store.platforms.workers import live_workers
from pinstripe.store.pool import connect


@dataclass(frozen=True, slots=True)
class PlatformOptions:
    """A platform to be stored; its key comes from elsewhere."""

    id: str
    schema: str | None
    settings: Mapping[str, str]
    partitions: int
    paused: bool


async def add(config: Config, options: PlatformOptions, *, as_json: bool) -> int:
    """Store a platform. Its key is read from the environment or a prompt."""
    key = config.api_key or asked_key()
    async with open_vault(PlatformVault, config, new=True) as vault:
        platform = await vault.add(
            NewPlatform(
                options.id,
                key,
                schema=options.schema,
                partitions=options.partitions,
                stripe_url=config.stripe_url,
                settings=options.settings,
                webhook_secrets=config.webhook_secret,
                paused=options.paused,
            )
        )
    mode = "live" if platform.livemode else "test"
    _say(
        platform,
        f'Stored "{platform.id}": {platform.account_id} in {mode} mode, key {platform.key_hint}, '
        f"schema {platform.schema}. `pinstripe worker` copies its accounts, on as many machines as run it.",
        as_json=as_json,
    )
    return 0


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
                    "platforms": [_as_object(p, pace) for p, pace in found],
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
    show(f"{len(workers)} workers; tasks that wait or run: {tasks}")
    return 0


async def pause(config: Config, platform_id: str, *, paused: bool, as_json: bool) -> int:
    """From now on no worker works for it, or again some do."""
    async with open_vault(PlatformVault, config, new=False) as vault:
        platform = await vault.pause(platform_id, paused=paused)
    text = f'Resumed "{platform_id}".'
    if paused:
        text = f'Paused "{platform_id}". Resume with `pinstripe platform resume {platform_id}`.'
    _say(platform, text, as_json=as_json)
    return 0


async def remove(config: Config, platform_id: str, *, drop_tables: bool, as_json: bool) -> int:
    """Forgets it and its key."""
    async with open_vault(PlatformVault, config, new=False) as vault:
        platform = await vault.remove(platform_id, drop_tables=drop_tables)
    left = "Its tables were dropped." if drop_tables else "Its tables were kept."
    _say(platform, f'Removed "{platform_id}" and its key. {left}', as_json=as_json)
    return 0


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
        running = asyncio.create_task(worker.run())
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            raise
    return 0


def _pace(pace: Pace) -> str:
    """How a sweep goes, in a line.

    >>> _pace(Pace(12, 1, 2, 3.25, 70.4, 0))
    '12 active, 1 revoked, 2 in trouble; 3.2 looks/s, the oldest 70 s ago, 0 late'
    """
    oldest_s = 0.0 if pace.oldest_look_s is None else pace.oldest_look_s
    return (
        f"{pace.active} active, {pace.revoked} revoked, {pace.troubled} in trouble; "
        f"{pace.looks_per_s:.1f} looks/s, the oldest {oldest_s:.0f} s ago, {pace.late} late"
    )


def _say(platform: SealedPlatform, text: str, *, as_json: bool) -> None:
    if as_json:
        show(json.dumps({"platform": _as_object(platform, None), "done": True}))
        tell(text)
    else:
        show(text)


def _as_object(platform: SealedPlatform, pace: Pace | None) -> dict[str, object]:
    found: dict[str, object] = {
        "id": platform.id,
        "schema": platform.schema,
        "partitions": platform.partitions,
        "paused": platform.paused,
        "livemode": platform.livemode,
        "account_id": platform.account_id,
        "key_hint": platform.key_hint,
        "stripe_url": platform.stripe_url,
        "settings": dict(platform.settings),
        "webhook_secrets": len(platform.webhook_secrets),
        "created_at": None if platform.created_at is None else platform.created_at.isoformat(),
    }
    if pace is not None:
        found["accounts"] = dict(pace._asdict())
    return found
