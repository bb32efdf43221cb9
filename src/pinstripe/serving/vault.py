"""Adds, changes and removes stored syncs, and encrypts their keys.

The command line and the gateway both use it; neither needs a running service. A key is verified with
Stripe before it is stored. It is stored encrypted and decrypted only for the worker and the gateway
that use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from msgspec import UNSET, structs

from pinstripe.catalog.tables import tables
from pinstripe.client.api_key import ApiKey, is_loopback
from pinstripe.config.config import Config, checked_settings, stored_config, webhook_secrets
from pinstripe.config.settings import STRIPE_URL, SYNC_SETTINGS
from pinstripe.encryption import Bound, Encryptor
from pinstripe.errors import Misconfigured
from pinstripe.gateway.syncs import NewSync, SyncChange
from pinstripe.platforms.vault import PlatformVault
from pinstripe.service import meet_account
from pinstripe.store.migrate import drop_copy, ensure_bookkeeping
from pinstripe.store.platforms.stored import load_platforms
from pinstripe.store.pool import Connection, check_sessions, connect
from pinstripe.store.syncs import (
    DEFAULT_ID,
    SealedSync,
    check_id,
    check_owner,
    delete_stored,
    get_stored,
    insert_stored,
    load_stored,
    pause_schema,
    resume_schema,
    update_stored,
)


@dataclass(frozen=True, slots=True)
class Vault:
    """The stored syncs and their encryption. `base` has the settings of the service."""

    database_url: str
    encryptor: Encryptor
    base: Config

    def config_of(self, sync: SealedSync) -> Config:
        """The settings of its process, key included. Misconfigured where they are no good any more."""
        return self._config(sync, self._key_of(sync))

    def webhook_secrets_of(self, sync: SealedSync) -> tuple[str, ...]:
        """In clear."""
        bound, what = _bound(sync, "webhook secret"), f'a webhook secret of the sync "{sync.id}"'
        return tuple(
            self.encryptor.open(sealed, bound=bound, what=what) for sealed in sync.webhook_secrets
        )

    def _key_of(self, sync: SealedSync) -> str:
        what = f'the key of the sync "{sync.id}"'
        return self.encryptor.open(sync.api_key, bound=_bound(sync, "key"), what=what)

    async def add(self, options: NewSync) -> SealedSync:
        """Verify the key with Stripe, and store the sync."""
        unsealed = SealedSync(
            id=check_id(options.id),
            schema=options.schema or options.id.replace("-", "_"),
            api_key=b"",
            key_hint="",
            webhook_secrets=(),
            stripe_url=options.stripe_url or STRIPE_URL,
            stripe_account=options.stripe_account,
            settings=checked_settings(options.settings, SYNC_SETTINGS, "A sync"),
            account_id=None,
            livemode=False,
            paused=options.paused,
        )
        config = self._config(unsealed, options.api_key)
        key = ApiKey.parse(options.api_key)
        account = await meet_account(config, key)
        await check_sessions(self.database_url)
        async with connect(self.database_url) as connection:
            await ensure_bookkeeping(connection)
            await check_owner(
                connection, config.schema, account_id=account.id, livemode=account.livemode
            )
            for other in (await load_stored(connection))[:1]:
                # If the old encryption key is lost, creating one now would hide it.
                self.config_of(other)
            known = structs.replace(
                unsealed,
                schema=config.schema,
                key_hint=str(key),
                stripe_url=config.stripe_url,
                account_id=account.id,
                livemode=account.livemode,
            )
            sync = self._with_sealed_key(known, key.reveal())
            sync = self._with_secrets(sync, options.webhook_secrets)
            await insert_stored(connection, sync)
            return await get_stored(connection, sync.id)

    async def change(self, sync_id: str, change: SyncChange) -> SealedSync:
        """Stores another key, other settings or webhook secrets."""
        async with connect(self.database_url) as connection:
            sync = await get_stored(connection, sync_id)
        if change.settings is not UNSET:
            sync = structs.replace(
                sync, settings=checked_settings(change.settings, SYNC_SETTINGS, "A sync")
            )
        if change.api_key is not UNSET:
            key = ApiKey.parse(change.api_key)
            known = await self._with_key(sync, key)
            if known.account_id != sync.account_id:  # What is sealed is bound to the account.
                known = self._with_secrets(known, self.webhook_secrets_of(sync))
            sync = self._with_sealed_key(known, key.reveal())
        else:
            self.config_of(sync)
        if change.webhook_secrets is not UNSET:
            sync = self._with_secrets(sync, change.webhook_secrets)
        async with connect(self.database_url) as connection:
            await update_stored(connection, sync)
            return await get_stored(connection, sync_id)

    async def pause(self, sync_id: str) -> None:
        """From now on no service syncs it. The default can be paused too."""
        async with connect(self.database_url) as connection:
            await pause_schema(connection, await self._schema_of(connection, sync_id))

    async def resume(self, sync_id: str) -> None:
        """Takes the pause back."""
        async with connect(self.database_url) as connection:
            await resume_schema(connection, await self._schema_of(connection, sync_id))

    async def remove(self, sync_id: str, *, drop_tables: bool) -> None:
        """Forgets it; with `drop_tables` also what it has copied, once its process has ended."""
        async with connect(self.database_url) as connection:
            sync = await delete_stored(connection, sync_id)
        if drop_tables:
            await drop_copy(self.database_url, sync.schema)

    async def rekey(self) -> int:
        """Encrypt all keys with the newest encryption key, or with a new one if it is in a file. Return
        the number of syncs and platforms.
        """
        platforms = PlatformVault(self.database_url, self.encryptor, self.base)
        async with connect(self.database_url) as connection:
            syncs = await load_stored(connection)
            count = len(syncs) + len(await load_platforms(connection))
            if self.encryptor.in_file and count:
                self.encryptor.add_to_file()
            async with connection.transaction():
                for sync in syncs:
                    await update_stored(connection, self._resealed(sync))
        await platforms.rekey()
        if self.encryptor.in_file and count:
            self.encryptor.keep_first_in_file()
        return count

    async def _schema_of(self, connection: Connection, sync_id: str) -> str:
        await ensure_bookkeeping(connection)
        if sync_id == DEFAULT_ID:
            return self.base.schema
        return (await get_stored(connection, sync_id)).schema

    async def bind(self, connection: Connection, syncs: Sequence[SealedSync]) -> list[SealedSync]:
        """Return the syncs, with what earlier versions stored now bound to its row.

        Their ciphertexts opened in any row. So one is bound only where it stands beside Stripe's own
        address or this machine's: elsewhere it may have been copied to have the key sent there, and the
        sync needs its key again (`pinstripe syncs change`) or an order of the owner's (`rekey`).
        """
        found = []
        for sync in syncs:
            is_known = sync.stripe_url == STRIPE_URL or is_loopback(
                urlsplit(sync.stripe_url).hostname or ""
            )
            if is_known and not self.encryptor.is_bound(sync.api_key):
                with suppress(Misconfigured):  # Its key is gone: said where the sync is opened.
                    sync = self._resealed(sync)  # noqa: PLW2901
                    await update_stored(connection, sync)
            found.append(sync)
        return found

    def _resealed(self, sync: SealedSync) -> SealedSync:
        def bind(sealed: bytes, purpose: str) -> bytes:
            what = f'what is stored of the sync "{sync.id}"'
            return self.encryptor.bind(sealed, bound=_bound(sync, purpose), what=what)

        return structs.replace(
            sync,
            api_key=bind(sync.api_key, "key"),
            webhook_secrets=tuple(bind(each, "webhook secret") for each in sync.webhook_secrets),
        )

    async def _with_key(self, sync: SealedSync, key: ApiKey) -> SealedSync:
        account = await meet_account(self._config(sync, key.reveal()), key)
        other = account.id != sync.account_id and None not in (account.id, sync.account_id)
        if other or account.livemode != sync.livemode:
            raise Misconfigured(
                f'This key belongs to another account or mode than the sync "{sync.id}".',
                hint="Add a separate sync for it with `pinstripe syncs add`.",
            )
        return structs.replace(sync, key_hint=str(key), account_id=sync.account_id or account.id)

    def _with_sealed_key(self, sync: SealedSync, key: str) -> SealedSync:
        return structs.replace(sync, api_key=self.encryptor.seal(key, bound=_bound(sync, "key")))

    def _with_secrets(self, sync: SealedSync, secrets: tuple[str, ...]) -> SealedSync:
        bound = _bound(sync, "webhook secret")
        checked = webhook_secrets(",".join(secrets), "The webhook secret")
        sealed = tuple(self.encryptor.seal(secret, bound=bound) for secret in checked)
        return structs.replace(sync, webhook_secrets=sealed)

    def _config(self, sync: SealedSync, key: str) -> Config:
        words: dict[str, str | bool | None] = {
            **sync.settings,
            "api_key": key,
            "stripe_url": sync.stripe_url,
            "stripe_account": sync.stripe_account,
            "schema": sync.schema,
        }
        config = stored_config(words, base=self.base, url=self.database_url)
        config.choose_tables(tables())
        return config


def _bound(sync: SealedSync, purpose: str) -> Bound:
    return {
        "purpose": purpose,
        "sync": sync.id,
        "account": sync.account_id,
        "livemode": sync.livemode,
        "stripe_url": sync.stripe_url,
        "stripe_account": sync.stripe_account,
    }
