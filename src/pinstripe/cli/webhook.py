"""`pinstripe webhook`: creates, lists and deletes the webhook endpoint that notifies the gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from pinstripe.catalog.model import spec
from pinstripe.cli.check import harmless
from pinstripe.cli.runtime import show, tell
from pinstripe.cli.syncs import open_vault
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient
from pinstripe.client.webhook_endpoints import (
    Created,
    WebhookEndpoint,
    check_url,
    create_endpoint,
    delete_endpoint,
    is_local,
    list_endpoints,
)
from pinstripe.config.config import Config
from pinstripe.errors import Misconfigured, PinstripeError
from pinstripe.gateway.syncs import SyncChange
from pinstripe.platforms.vault import PlatformVault
from pinstripe.service import api_key, budget_for, stripe_for
from pinstripe.serving.vault import Vault
from pinstripe.store.platforms.stored import load_platforms
from pinstripe.store.pool import connect
from pinstripe.store.syncs import DEFAULT_ID, get_stored

_SETTING = "PINSTRIPE_WEBHOOK_SECRET"


@dataclass(frozen=True, slots=True)
class _Door:
    """Stripe for one sync or platform, and its key."""

    stripe: StripeClient
    key: ApiKey
    is_platform: bool


async def create(config: Config, sync_id: str, *, url: str | None, as_json: bool) -> int:
    """Create the endpoint of a sync, or find it. A new secret is stored, or printed once.

    A platform gets a Connect endpoint: it delivers the events of all connected accounts.
    """
    address = url or _address(config, sync_id)
    async with _opened(config, sync_id) as door:
        check_url(address, door.key)
        made = await create_endpoint(
            door.stripe, address, sync_id=sync_id, connect=door.is_platform
        )
    stored = False
    if made.secret and sync_id != DEFAULT_ID:
        stored = await _store(config, sync_id, made)
    if as_json:
        told = {
            "endpoint": _as_object(made.endpoint),
            "created": not made.existed,
            "changed": list(made.changed),
            "others": [_as_object(e) for e in made.others],
            "secret": "" if stored else made.secret,
            "secret_stored": stored,
        }
        show(json.dumps(told))
        return 0
    show("\n".join(_created(made, sync_id, stored=stored)))
    return 0


async def show_endpoints(config: Config, sync_id: str, *, as_json: bool) -> int:
    """Prints the endpoints of the account, ours first."""
    async with _opened(config, sync_id) as door:
        found = await list_endpoints(door.stripe)
    found.sort(key=lambda e: (not e.sync_id, e.url))
    if as_json:
        show(json.dumps({"endpoints": [_as_object(e) for e in found]}))
        return 0
    if not found:
        show("The account has no webhook endpoints.")
        return 0
    lines = [f"{'endpoint':<28} {'status':<9} {'sync':<12} {'API version':<20} URL"]
    lines += [
        f"{e.id:<28} {e.status:<9} {e.sync_id or '-':<12} {e.api_version or '(account)':<20} {e.url}"
        for e in found
    ]
    show(harmless("\n".join(lines)))
    return 0


async def delete(config: Config, sync_id: str, *, endpoint: str | None, as_json: bool) -> int:
    """Removes the endpoint that is named, or the one that the sync has."""
    async with _opened(config, sync_id) as door:
        chosen = endpoint or await _only(door.stripe, sync_id)
        await delete_endpoint(door.stripe, chosen)
    if as_json:
        show(json.dumps({"deleted": chosen}))
    else:
        show(f"Deleted {chosen}. Its signing secret is no longer valid.")
    return 0


async def _only(stripe: StripeClient, sync_id: str) -> str:
    ours = [e for e in await list_endpoints(stripe) if e.sync_id == sync_id]
    if len(ours) == 1:
        return ours[0].id
    if not ours:
        raise Misconfigured(
            f'The sync "{sync_id}" has no webhook endpoint created by Pinstripe.',
            hint="Give the endpoint's ID (we_...); `pinstripe webhook list` lists all.",
        )
    raise Misconfigured(
        f'The sync "{sync_id}" has {len(ours)} webhook endpoints: {", ".join(e.id for e in ours)}.',
        hint="Give the ID of the one to delete.",
    )


def _address(config: Config, sync_id: str) -> str:
    if config.public_url is None:
        raise Misconfigured(
            "The gateway's public URL is not known.",
            hint="Set --public-url to the gateway's public URL, or --url to the endpoint's full URL.",
        )
    return f"{config.public_url.rstrip('/')}/webhooks/stripe/{sync_id}"


@asynccontextmanager
async def _opened(config: Config, sync_id: str) -> AsyncIterator[_Door]:
    """Stripe with the key of the sync: of the settings, or the stored one."""
    is_platform = False
    if sync_id != DEFAULT_ID:
        config, is_platform = await _of_stored(config, sync_id)
    key = api_key(config)
    async with stripe_for(config, key, budget_for(config, key)) as stripe:
        yield _Door(stripe, key, is_platform)


async def _of_stored(config: Config, sync_id: str) -> tuple[Config, bool]:
    """The settings of a stored sync or platform, and whether it is a platform."""
    async with (
        open_vault(Vault, config, new=False) as vault,
        connect(vault.database_url) as connection,
    ):
        for platform in await load_platforms(connection):
            if platform.id == sync_id:
                return _platforms(vault).config_of(platform), True
        return vault.config_of(await get_stored(connection, sync_id)), False


def _platforms(vault: Vault) -> PlatformVault:
    return PlatformVault(vault.database_url, vault.encryptor, vault.base)


async def _store(config: Config, sync_id: str, made: Created) -> bool:
    """Store the secret with the sync. If that fails, print it: Stripe does not return it again."""
    try:
        async with open_vault(Vault, config, new=False) as vault:
            async with connect(vault.database_url) as connection:
                if sync_id in [p.id for p in await load_platforms(connection)]:
                    await _platforms(vault).add_webhook_secret(sync_id, made.secret)
                    return True
                known = vault.webhook_secrets_of(await get_stored(connection, sync_id))
            await vault.change(sync_id, SyncChange(webhook_secrets=(*known, made.secret)))
    except PinstripeError as error:
        tell(f"The signing secret could not be stored: {error}")
        return False
    return True


def _created(made: Created, sync_id: str, *, stored: bool) -> list[str]:
    endpoint = made.endpoint
    lines = [f"{'Found' if made.existed else 'Created'} {endpoint.id} at {endpoint.url}"]
    if made.changed:
        lines.append(f"It was {' and '.join(made.changed)}.")
    if endpoint.api_version not in (None, spec().api_version):
        lines.append(f"It uses API version {endpoint.api_version}; a webhook only triggers a poll.")
    if made.existed:
        lines.append(
            "Nothing was created. Stripe shows a signing secret only once. If you lost it:"
        )
        lines.append(f"  pinstripe webhook delete {endpoint.id}, then create it again")
    elif stored:
        lines.append(f'Its signing secret is stored, encrypted, with the sync "{sync_id}".')
    else:
        lines.append("Its signing secret, shown only once; set it for the gateway:")
        lines.append(f"  {_SETTING}={made.secret}")
    if is_local(endpoint.url):
        lines.append("Note: this is a local URL; Stripe cannot reach it.")
    lines += [
        f"Note: {e.id} notifies the same sync at {e.url}; delete it if that URL is no longer used."
        for e in made.others
    ]
    return lines


def _as_object(endpoint: WebhookEndpoint) -> dict[str, object]:
    shown: dict[str, object] = msgspec.to_builtins(endpoint)
    return {**shown, "sync": endpoint.sync_id}
