"""Syncs as things: what the API and the console may do with them, against real Stripe answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from cryptography.fernet import Fernet
from msgspec.structs import replace
from tests.flows.harness.serving import LIVE, OTHER, SECRET

from pinstripe.config.config import Config
from pinstripe.encryption import Encryptor
from pinstripe.errors import Misconfigured, UnknownSync, WrongKey
from pinstripe.gateway.syncs import NewSync, SyncChange, Syncs
from pinstripe.serving.registry import Control, SyncRegistry
from pinstripe.serving.vault import Vault
from pinstripe.store.syncs import get_stored, load_stored
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running


@asynccontextmanager
async def controlled(
    database: str, directory: Path, *, default: str | None = None
) -> AsyncIterator[Control]:
    """The syncs of a service that starts no process."""
    base = Config(database_url=database, data_dir=directory, api_key=default)
    registry = SyncRegistry(
        Vault(database, Encryptor((), directory / "secret.key"), base), Syncs(), None
    )
    await registry.begin()
    try:
        yield Control(registry)
    finally:
        await registry.close()


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=20, keys=(SECRET, OTHER))) as found:
        yield found


async def test_an_added_sync_is_shown_without_its_secrets(
    database: str, tmp_path: Path, sim: Running, pg: asyncpg.Connection
) -> None:
    async with controlled(database, tmp_path) as control:
        added = await control.add(
            NewSync(
                "shop-eu",
                SECRET,
                stripe_url=sim.url,
                settings={"tables": "-event", "rate_limit": "none", "changes": ""},
                webhook_secrets=("whsec_one",),
            )
        )
        assert [added] == await control.list()
    assert (added.schema, added.account_id, added.livemode) == ("shop_eu", sim.account.id, False)
    assert added.key_hint == "sk_test_…t123"
    assert added.settings == {"tables": "-event", "rate_limit": "none"}
    assert added.webhook_secrets == 1
    assert added.state.activity == "elsewhere"
    stored = str(await pg.fetch("SELECT s::text FROM pinstripe.stored_sync s"))
    for secret in (SECRET, "whsec_one"):
        assert secret not in repr(added)
        assert secret not in stored


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (NewSync("Shop", SECRET), "id of a sync"),
        (NewSync("default", SECRET), "default"),
        (NewSync("shop", "pk_test_publishable"), "publishable"),
        (NewSync("shop", SECRET, schema="pinstripe"), "schema"),
        (NewSync("shop", SECRET, settings={"port": "1"}), "no setting 'port'"),
        (NewSync("shop", SECRET, settings={"tables": "custmer"}), "no table"),
        (NewSync("shop", SECRET, settings={"poll_interval": "0"}), "poll-interval"),
        (NewSync("shop", SECRET, webhook_secrets=("sk_test_wrong",)), "webhook"),
    ],
)
async def test_what_cannot_be_stored_is_refused_with_a_remedy(
    database: str, tmp_path: Path, sim: Running, options: NewSync, told: str
) -> None:
    async with controlled(database, tmp_path) as control:
        options = replace(options, stripe_url=sim.url)
        with pytest.raises(Misconfigured, match=told) as caught:
            await control.add(options)
        assert await control.list() == []
    assert caught.value.hint
    assert options.api_key not in str(caught.value)


async def test_a_key_that_stripe_does_not_know_is_not_stored(
    database: str, tmp_path: Path, sim: Running
) -> None:
    async with controlled(database, tmp_path) as control:
        with pytest.raises(WrongKey):
            await control.add(NewSync("shop", "sk_test_unknowntothisaccount", stripe_url=sim.url))
        assert await control.list() == []


async def test_another_key_of_the_account_is_taken_and_one_of_another_mode_is_not(
    database: str, tmp_path: Path, sim: Running
) -> None:
    async with controlled(database, tmp_path) as control:
        await control.add(NewSync("shop", SECRET, stripe_url=sim.url))
        changed = await control.change("shop", SyncChange(api_key=OTHER, settings={"changes": "1"}))
        assert changed.key_hint == "sk_test_…4567"
        assert changed.settings == {"changes": "1"}
        sim.account.doors.keys[LIVE] = sim.account.doors.keys[SECRET]
        with pytest.raises(Misconfigured, match="another account or mode"):
            await control.change("shop", SyncChange(api_key=LIVE))
        assert (await control.get("shop")).key_hint == "sk_test_…4567"


async def test_a_sync_whose_encryption_key_is_lost_is_mended_as_its_remedy_says(
    database: str, tmp_path: Path, sim: Running
) -> None:
    async with controlled(database, tmp_path) as control:
        new = NewSync("shop", SECRET, stripe_url=sim.url, webhook_secrets=("whsec_one",))
        await control.add(new)
    (tmp_path / "secret.key").unlink()
    async with controlled(database, tmp_path) as control:
        lost = (await control.get("shop")).state
        assert "secret.key" in lost.reason
        assert "`pinstripe syncs change ID --key`" in lost.remedy
        assert "PINSTRIPE_WEBHOOK_SECRET" in lost.remedy
        half = await control.change("shop", SyncChange(api_key=SECRET))
        assert "A webhook secret" in half.state.reason
        whole = await control.change("shop", SyncChange(webhook_secrets=("whsec_two",)))
        assert whole.state.reason == ""


async def test_the_default_can_be_paused_but_neither_changed_nor_removed(
    database: str, tmp_path: Path
) -> None:
    async with controlled(database, tmp_path, default=SECRET) as control:
        # Nothing is stored yet: the bookkeeping is made by whoever comes first.
        assert not (await control.get("default")).paused
        assert (await control.pause("default")).paused
        assert not (await control.resume("default")).paused
        with pytest.raises(Misconfigured, match="not stored"):
            await control.remove("default", drop_tables=True)
        with pytest.raises(Misconfigured, match="not stored"):
            await control.change("default", SyncChange(settings={}))
        with pytest.raises(Misconfigured, match="that of the sync"):
            await control.add(NewSync("stripe", OTHER))


async def test_an_id_that_is_not_there_is_told_so(database: str, tmp_path: Path) -> None:
    async with controlled(database, tmp_path) as control:
        for work in (
            control.get("nobody"),
            control.pause("nobody"),
            control.resume("a\0b"),
            control.remove("nobody", drop_tables=True),
            control.change("nobody", SyncChange()),
        ):
            with pytest.raises(UnknownSync):
                await work


async def test_a_stored_key_that_is_moved_to_another_address_does_not_open(
    database: str, tmp_path: Path, sim: Running, pg: asyncpg.Connection
) -> None:
    """Who writes the table but has no key must not have Stripe keys sent to an address of their own."""
    vault = Vault(database, Encryptor((), tmp_path / "secret.key"), Config(database_url=database))
    stored = await vault.add(NewSync("shop", SECRET, stripe_url=sim.url))
    assert vault.config_of(stored).api_key == SECRET
    for column, value in (("stripe_url", "https://evil.example"), ("stripe_account", "acct_2")):
        await pg.execute(f"UPDATE pinstripe.stored_sync SET {column} = $1", value)
        with pytest.raises(Misconfigured, match="does not open"):
            vault.config_of(await get_stored(pg, "shop"))
        await pg.execute(
            "UPDATE pinstripe.stored_sync SET stripe_url = $1, stripe_account = NULL", sim.url
        )


async def test_what_earlier_versions_stored_is_bound_but_not_beside_a_strange_address(
    database: str, tmp_path: Path, sim: Running, pg: asyncpg.Connection
) -> None:
    secret_key = Fernet.generate_key()
    encryptor = Encryptor((secret_key.decode(),), tmp_path / "secret.key")
    vault = Vault(database, encryptor, Config(database_url=database))
    await vault.add(NewSync("shop", SECRET, stripe_url=sim.url))
    older = Fernet(secret_key).encrypt(SECRET.encode())
    await pg.execute("UPDATE pinstripe.stored_sync SET api_key = $1", older)
    await pg.execute("UPDATE pinstripe.stored_sync SET stripe_url = 'https://evil.example'")
    await vault.bind(pg, await load_stored(pg))
    with pytest.raises(Misconfigured, match="does not open"):
        vault.config_of(await get_stored(pg, "shop"))
    await pg.execute("UPDATE pinstripe.stored_sync SET stripe_url = $1", sim.url)
    (bound,) = await vault.bind(pg, await load_stored(pg))
    assert vault.config_of(bound).api_key == SECRET
    assert vault.config_of(await get_stored(pg, "shop")).api_key == SECRET
