"""`pinstripe syncs`: manages stored syncs. A running service applies each change immediately."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from msgspec import UNSET

from pinstripe.cli.status import with_data
from pinstripe.cli.sync import show, tell
from pinstripe.config.config import Config
from pinstripe.encryption import FILE, Encryptor
from pinstripe.errors import Misconfigured
from pinstripe.gateway.syncs import NewSync, SyncChange
from pinstripe.service import open_database
from pinstripe.serving.vault import Vault
from pinstripe.store.pool import connect
from pinstripe.store.syncs import SealedSync, get_stored, load_stored

_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """A sync to be stored; its key comes from elsewhere."""

    id: str
    schema: str | None
    settings: Mapping[str, str]
    paused: bool


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


async def add(config: Config, options: SyncOptions, *, as_json: bool) -> int:
    """Store a sync. Its key is read from the environment or a prompt."""
    key = config.api_key or asked_key()
    async with open_vault(Vault, config, new=True) as vault:
        sync = await vault.add(
            NewSync(
                options.id,
                key,
                schema=options.schema,
                stripe_url=config.stripe_url,
                stripe_account=config.stripe_account,
                settings=options.settings,
                webhook_secrets=config.webhook_secret,
                paused=options.paused,
            )
        )
    mode = "live" if sync.livemode else "test"
    _say(
        sync,
        f'Stored "{sync.id}": {sync.account_id or "an account"} in {mode} mode, key {sync.key_hint}, '
        f"schema {sync.schema}. `pinstripe serve` syncs it; a running service has started.",
        as_json=as_json,
    )
    return 0


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
    _say(sync, f'Changed "{sync_id}".', as_json=as_json)
    return 0


async def pause(config: Config, sync_id: str, *, as_json: bool) -> int:
    """From now on no service syncs it."""
    async with open_vault(Vault, config, new=False) as vault:
        await vault.pause(sync_id)
    _say(
        None,
        f'Paused "{sync_id}". Resume with `pinstripe syncs resume {sync_id}`.',
        as_json=as_json,
    )
    return 0


async def resume(config: Config, sync_id: str, *, as_json: bool) -> int:
    """Takes the pause back."""
    async with open_vault(Vault, config, new=False) as vault:
        await vault.resume(sync_id)
    _say(None, f'Resumed "{sync_id}".', as_json=as_json)
    return 0


async def remove(config: Config, sync_id: str, *, drop_tables: bool, as_json: bool) -> int:
    """Forgets it and its key."""
    async with open_vault(Vault, config, new=False) as vault:
        await vault.remove(sync_id, drop_tables=drop_tables)
    left = "Its tables were dropped." if drop_tables else "Its tables were kept."
    _say(None, f'Removed "{sync_id}" and its key. {left}', as_json=as_json)
    return 0


async def rekey(config: Config, *, as_json: bool) -> int:
    """Re-encrypt every stored key."""
    async with open_vault(Vault, config, new=False) as vault:
        count = await vault.rekey()
        where = "the new key in " + str(config.data_dir / FILE)
        where = where if vault.encryptor.in_file else "the first key of PINSTRIPE_SECRET_KEY"
    counted = "1 stored key is" if count == 1 else f"{count} stored keys are"
    _say(None, f"{counted} now encrypted with {where}.", as_json=as_json)
    return 0


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


def _say(sync: SealedSync | None, text: str, *, as_json: bool) -> None:
    if as_json:
        show(json.dumps({"sync": None if sync is None else _as_object(sync), "done": True}))
        tell(text)
    else:
        show(text)


def _as_object(sync: SealedSync) -> dict[str, object]:
    return {
        "id": sync.id,
        "schema": sync.schema,
        "paused": sync.paused,
        "livemode": sync.livemode,
        "account_id": sync.account_id,
        "key_hint": sync.key_hint,
        "stripe_url": sync.stripe_url,
        "stripe_account": sync.stripe_account,
        "settings": dict(sync.settings),
        "webhook_secrets": len(sync.webhook_secrets),
        "created_at": None if sync.created_at is None else sync.created_at.isoformat(),
    }
