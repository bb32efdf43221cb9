"""Adds, pauses and removes platforms, and encrypts their keys.

The command line uses it; no worker has to run. A key is verified with Stripe before it is stored, and is
decrypted only for the worker and the gateway that use it. What is sealed is bound to its row, as for a
stored sync (`serving.vault`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import structs

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import tables
from pinstripe.client.api_key import ApiKey
from pinstripe.config.config import Config, checked_settings, stored_config, webhook_secrets
from pinstripe.config.settings import PLATFORM_SETTINGS, STRIPE_URL
from pinstripe.encryption import Bound, Encryptor
from pinstripe.errors import Misconfigured
from pinstripe.service import chosen_tables, meet_account
from pinstripe.store.migrate import drop_platform, ensure_bookkeeping, migrate_platform
from pinstripe.store.platforms.stored import (
    SealedPlatform,
    delete_platform,
    get_platform,
    insert_platform,
    load_platforms,
    update_platform,
)
from pinstripe.store.platforms.sweep import begin
from pinstripe.store.platforms.tasks import drop_tasks, ensure_tasks
from pinstripe.store.pool import check_sessions, connect
from pinstripe.store.syncs import check_id

_MOST_PARTITIONS = 1024


@dataclass(frozen=True, slots=True)
class NewPlatform:
    """A platform to be added. `partitions`: into how many each table is divided by account; 0: none."""

    id: str
    api_key: str
    schema: str | None = None
    partitions: int = 0
    stripe_url: str | None = None
    settings: Mapping[str, str] | None = None
    webhook_secrets: tuple[str, ...] = ()
    paused: bool = False

    def __repr__(self) -> str:
        return f"NewPlatform({self.id!r})"


@dataclass(frozen=True, slots=True)
class PlatformVault:
    """The platforms and their encryption. `base` has the settings of the process."""

    database_url: str
    encryptor: Encryptor
    base: Config

    def config_of(self, platform: SealedPlatform) -> Config:
        """The settings of a platform's work, key included. Misconfigured where they are no good."""
        what = f'the key of the platform "{platform.id}"'
        key = self.encryptor.open(platform.api_key, bound=_bound(platform, "key"), what=what)
        return self._config(platform, key)

    def webhook_secrets_of(self, platform: SealedPlatform) -> tuple[str, ...]:
        """In clear."""
        bound = _bound(platform, "webhook secret")
        what = f'a webhook secret of the platform "{platform.id}"'
        return tuple(
            self.encryptor.open(sealed, bound=bound, what=what)
            for sealed in platform.webhook_secrets
        )

    async def add(self, options: NewPlatform) -> SealedPlatform:
        """Verify the key with Stripe, make the schema, and store the platform with its own account. One of
        this id and account gets the key, the settings and, if there are any, the webhook secrets.

        Raises Misconfigured where the key cannot read its account: the rows are keyed by its id.
        """
        if not 0 <= options.partitions <= _MOST_PARTITIONS:
            raise Misconfigured(
                f"A table cannot have {options.partitions} partitions.",
                hint=f"Choose a number up to {_MOST_PARTITIONS}; 0 is for none.",
            )
        key = ApiKey.parse(options.api_key)
        plain = SealedPlatform(
            id=check_id(options.id),
            schema=options.schema or options.id.replace("-", "_"),
            partitions=options.partitions,
            api_key=b"",
            key_hint=str(key),
            stripe_url=options.stripe_url or STRIPE_URL,
            settings=checked_settings(options.settings or {}, PLATFORM_SETTINGS, "A platform"),
            account_id="",
            livemode=key.mode == "live",
            paused=options.paused,
        )
        config = self._config(plain, key.reveal())
        account = await meet_account(config, key)
        if account.id is None:
            raise Misconfigured(
                "This key may not read the account that it belongs to.",
                hint='Permit it "Accounts Read" in the dashboard, or use a secret key.',
            )
        platform = structs.replace(
            plain,
            schema=config.schema,
            stripe_url=config.stripe_url,
            account_id=account.id,
            livemode=account.livemode,
        )
        return await self._store(platform, config, key, options.webhook_secrets)

    async def _store(
        self, plain: SealedPlatform, config: Config, key: ApiKey, secrets: tuple[str, ...]
    ) -> SealedPlatform:
        await check_sessions(self.database_url)
        async with connect(self.database_url) as connection:
            await ensure_bookkeeping(connection)
            stored = await load_platforms(connection)
            for other in stored[:1]:
                # If the old encryption key is lost, creating one now would hide it.
                self.config_of(other)
            known = [
                p for p in stored if p.schema == plain.schema and _bound(p, "") == _bound(plain, "")
            ]
            if not known:  # Else workers bring the tables to the settings, and fill what is new.
                await ensure_tasks(connection)
                await migrate_platform(
                    connection,
                    plain.schema,
                    chosen_tables(config),
                    sdk_version=spec().sdk_version,
                    api_version=spec().api_version,
                    partitions=plain.partitions,
                )
            platform = structs.replace(
                plain,
                api_key=self.encryptor.seal(key.reveal(), bound=_bound(plain, "key")),
                webhook_secrets=tuple(
                    self.encryptor.seal(secret, bound=_bound(plain, "webhook secret"))
                    for secret in webhook_secrets(",".join(secrets), "The webhook secret")
                ),
            )
            async with connection.transaction():
                if known:
                    kept = platform.webhook_secrets or known[0].webhook_secrets
                    platform = structs.replace(platform, webhook_secrets=kept)
                    await update_platform(connection, platform)
                else:
                    await insert_platform(connection, platform)
                    await begin(connection, platform.schema, [platform.account_id])
            return await get_platform(connection, platform.id)

    async def add_webhook_secret(self, platform_id: str, secret: str) -> SealedPlatform:
        """Store one more signing secret, of an endpoint that delivers to the platform."""
        async with connect(self.database_url) as connection:
            platform = await get_platform(connection, platform_id)
            sealed = self.encryptor.seal(secret, bound=_bound(platform, "webhook secret"))
            platform = structs.replace(
                platform, webhook_secrets=(*platform.webhook_secrets, sealed)
            )
            await update_platform(connection, platform)
        return platform

    async def pause(self, platform_id: str, *, paused: bool) -> SealedPlatform:
        """From now on no worker works for it, or again some do."""
        async with connect(self.database_url) as connection:
            platform = await get_platform(connection, platform_id)
            platform = structs.replace(platform, paused=paused)
            await update_platform(connection, platform)
        return platform

    async def remove(self, platform_id: str, *, drop_tables: bool) -> SealedPlatform:
        """Forgets it and its key; with `drop_tables` also what it has copied."""
        async with connect(self.database_url) as connection:
            platform = await delete_platform(connection, platform_id)
            await drop_tasks(connection, platform.schema)
            if drop_tables:
                await drop_platform(connection, platform.schema)
        return platform

    async def rekey(self) -> int:
        """Encrypt all keys with the newest encryption key. Return the number of platforms."""
        async with connect(self.database_url) as connection, connection.transaction():
            found = await load_platforms(connection)
            for platform in found:
                sealed = structs.replace(
                    platform,
                    api_key=self._again(platform, platform.api_key, "key"),
                    webhook_secrets=tuple(
                        self._again(platform, each, "webhook secret")
                        for each in platform.webhook_secrets
                    ),
                )
                await update_platform(connection, sealed)
        return len(found)

    def _again(self, platform: SealedPlatform, sealed: bytes, purpose: str) -> bytes:
        what = f'what is stored of the platform "{platform.id}"'
        return self.encryptor.bind(sealed, bound=_bound(platform, purpose), what=what)

    def _config(self, platform: SealedPlatform, key: str) -> Config:
        words: dict[str, str | bool | None] = {
            **platform.settings,
            "api_key": key,
            "stripe_url": platform.stripe_url,
            "schema": platform.schema,
        }
        config = stored_config(words, base=self.base, url=self.database_url)
        config.choose_tables(tables())
        return config


def _bound(platform: SealedPlatform, purpose: str) -> Bound:
    return {
        "purpose": purpose,
        "platform": platform.id,
        "account": platform.account_id,
        "livemode": platform.livemode,
        "stripe_url": platform.stripe_url,
    }
