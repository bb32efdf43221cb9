"""Stored syncs: what is unique, what is told of, what a removal leaves."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from msgspec.structs import replace

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import tables
from pinstripe.errors import Misconfigured, UnknownSync
from pinstripe.store import migrate as migration
from pinstripe.store.leases import Lease
from pinstripe.store.migrate import drop_copy, ensure_bookkeeping, migrate
from pinstripe.store.syncs import (
    CHANNEL,
    SealedSync,
    check_id,
    delete_stored,
    get_stored,
    insert_stored,
    is_paused,
    load_stored,
    pause_schema,
    resume_schema,
    update_stored,
)

SHOP = SealedSync(
    id="shop",
    schema="shop",
    api_key=b"sealed",
    key_hint="sk_test_…1234",
    webhook_secrets=(b"one", b"two"),
    stripe_url="https://api.stripe.com",
    stripe_account=None,
    settings={"tables": "-event"},
    account_id="acct_1",
    livemode=False,
)


@pytest.fixture
async def kept(pg: asyncpg.Connection) -> asyncpg.Connection:
    await ensure_bookkeeping(pg)
    return pg


async def test_what_is_stored_comes_back_as_it_was(kept: asyncpg.Connection) -> None:
    await insert_stored(kept, SHOP)
    (found,) = await load_stored(kept)
    assert found.created_at is not None
    assert replace(found, created_at=None) == SHOP
    assert await get_stored(kept, "shop") == found
    assert b"sealed".decode() not in repr(found)


async def test_a_database_that_pinstripe_never_saw_has_none(pg: asyncpg.Connection) -> None:
    assert await load_stored(pg) == []
    assert not await is_paused(pg, "stripe")
    with pytest.raises(UnknownSync):
        await get_stored(pg, "shop")


@pytest.mark.parametrize(("other", "taken"), [({"id": "b"}, "schema"), ({"schema": "b"}, "id")])
async def test_id_and_schema_are_taken_once(
    kept: asyncpg.Connection, other: dict[str, str], taken: str
) -> None:
    await insert_stored(kept, SHOP)
    second = replace(SHOP, **other)
    with pytest.raises(Misconfigured, match=f'{taken} "shop"'):
        await insert_stored(kept, second)


@pytest.mark.parametrize(
    "sync_id", ["", "Shop", "a b", "-a", "a" * 41, "default", "a\0", "ä", "../x"]
)
def test_an_id_that_cannot_stand_in_an_address_is_refused(sync_id: str) -> None:
    with pytest.raises(Misconfigured):
        check_id(sync_id)


async def test_every_change_is_told_to_who_listens(kept: asyncpg.Connection, database: str) -> None:
    told = 0
    listening = await asyncpg.connect(database)

    def tell(*_: object) -> None:
        nonlocal told
        told += 1

    try:
        await listening.add_listener(CHANNEL, tell)
        await insert_stored(kept, SHOP)
        await update_stored(kept, replace(SHOP, key_hint="another"))
        await pause_schema(kept, "shop")
        await resume_schema(kept, "shop")
        await delete_stored(kept, "shop")
        await listening.execute("SELECT 1")
    finally:
        await listening.close()
    assert told == 5


async def test_a_pause_holds_until_it_is_taken_back_and_goes_with_the_sync(
    kept: asyncpg.Connection,
) -> None:
    await insert_stored(kept, replace(SHOP, paused=True))
    assert (await get_stored(kept, "shop")).paused
    await resume_schema(kept, "shop")
    await resume_schema(kept, "shop")
    assert not (await get_stored(kept, "shop")).paused
    await pause_schema(kept, "shop")
    await pause_schema(kept, "shop")
    await delete_stored(kept, "shop")
    assert not await is_paused(kept, "shop")
    with pytest.raises(UnknownSync):
        await delete_stored(kept, "shop")


async def _copy(connection: asyncpg.Connection) -> None:
    """Two tables and what is remembered of them."""
    chosen = {name: tables()[name] for name in ("customer", "product")}
    made = spec()
    await migrate(
        connection, "shop", chosen, sdk_version=made.sdk_version, api_version=made.api_version
    )


async def test_a_dropped_copy_leaves_nothing(pg: asyncpg.Connection, database: str) -> None:
    await _copy(pg)
    await drop_copy(database, "shop")
    assert await pg.fetchval("SELECT to_regnamespace('shop')") is None
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.sync") == 0
    await drop_copy(database, "shop")


async def test_tables_of_the_users_own_stay_and_views_on_ours_stop_it(
    pg: asyncpg.Connection, database: str
) -> None:
    await _copy(pg)
    await pg.execute("CREATE TABLE shop.mine (a int)")
    await pg.execute("CREATE VIEW public.names AS SELECT name FROM shop.customer")
    with pytest.raises(Misconfigured, match="of your own"):
        await drop_copy(database, "shop")
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.sync") == 1
    await pg.execute("DROP VIEW public.names")
    await drop_copy(database, "shop")
    left = await pg.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'shop'")
    assert [row[0] for row in left] == ["mine"]


async def test_the_remedy_for_views_on_a_removed_copy_is_a_statement_that_drops_all_of_it(
    pg: asyncpg.Connection, database: str
) -> None:
    """A second `remove` finds no sync of that id: nothing but this statement is left to do."""
    await _copy(pg)
    await pg.execute("CREATE VIEW public.names AS SELECT name FROM shop.customer")
    with pytest.raises(Misconfigured, match="It is removed") as caught:
        await drop_copy(database, "shop")
    await pg.execute(caught.value.hint.partition(": ")[2])
    assert await pg.fetchval("SELECT to_regnamespace('shop')") is None
    assert await pg.fetchval("SELECT to_regclass('public.names')") is None
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.sync") == 0


async def test_nothing_is_dropped_while_a_process_syncs(
    pg: asyncpg.Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "_WAIT_S", 0.3)
    await _copy(pg)
    async with Lease(database, "shop").held():
        with pytest.raises(Misconfigured, match="still being synced"):
            await drop_copy(database, "shop")
    assert await pg.fetchval("SELECT to_regclass('shop.customer')") is not None
    async with asyncio.timeout(10):
        await drop_copy(database, "shop")
