"""Many accounts in one schema: their rows never mix, whatever ids they have."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest
from tests.flows.harness.platform import SCHEMA, make_platform
from tests.postgres.writing import T0, VERSION

from pinstripe.catalog.personal import Policy
from pinstripe.catalog.tables import Table, tables
from pinstripe.client.response import AsOf, Cause
from pinstripe.errors import Drifted, LostLease, Misconfigured
from pinstripe.mirror import Mirror, open_mirror
from pinstripe.mirror.writer import SharedStages
from pinstripe.rows.extract import RowSet
from pinstripe.rows.personal import Personal
from pinstripe.store import ddl
from pinstripe.store.erasures import erase
from pinstripe.store.leases import renew_leases, take_lease
from pinstripe.store.migrate import make_tenant_views, migrate, migrate_platform
from pinstripe.store.platforms.stored import (
    add_accounts,
    delete_platform,
    load_accounts,
    load_platforms,
    revoke_accounts,
)
from pinstripe.store.pool import connect, open_pool
from pinstripe.store.quarantine import find_lost
from pinstripe.store.rewrite import apply_policy
from pinstripe.store.session import scope_of
from pinstripe.store.status import load_summaries, read_status
from pinstripe.store.syncs import load_syncs

NAMES = ("charge", "customer", "invoice", "invoice_payment", "payment_intent", "product")
CHOSEN = {name: tables()[name] for name in NAMES}
ONE, TWO = "acct_1", "acct_2"


@asynccontextmanager
async def mirrors(
    url: str,
    *account_ids: str,
    chosen: Mapping[str, Table] = CHOSEN,
    changes: bool = False,
    size: int = 1,
) -> AsyncIterator[list[Mirror]]:
    """A mirror for each of these accounts, all on `size` sessions."""
    stages = SharedStages(url, session_name="pinstripe tests", size=size)
    opened: list[Mirror] = []
    try:
        async with AsyncExitStack() as stack:
            for account_id in account_ids:
                first = opened[0].extractor.for_account() if opened else None
                mirror = open_mirror(
                    url,
                    scope_of(SCHEMA, account_id),
                    chosen,
                    api_version=VERSION,
                    writers=1,
                    changes=changes,
                    extractor=first,
                    shared=stages,
                )
                opened.append(await stack.enter_async_context(mirror))
            yield opened
    finally:
        stages.close()


async def put(mirror: Mirror, at: float, *objects: dict[str, object], cause: str = "") -> None:
    found = RowSet()
    for obj in objects:
        mirror.extractor.object(obj, found)
    why = Cause(event_id=cause) if cause else None
    await mirror.write([(found, AsOf(T0 + at, T0 + at + 1, why))])


def customer(key: str, **fields: object) -> dict[str, object]:
    return {"id": key, "object": "customer", "created": 1, **fields}


async def rows(pg: asyncpg.Connection, columns: str, table: str = "customer") -> list[object]:
    """(account, these columns) of all rows, in order."""
    found = await pg.fetch(f"SELECT _account_id, {columns} FROM {SCHEMA}.{table} ORDER BY 1, 2")
    return [tuple(row) for row in found]


def test_every_unique_key_and_index_of_a_platform_has_the_account_first() -> None:
    # A unique key holds the column by which a table is distributed:
    # https://docs.citusdata.com/en/stable/develop/reference_ddl.html
    wide = [ddl.with_account(table) for table in tables().values()]
    text = ddl.create_all(SCHEMA, wide, partitions=4)
    keys = re.findall(r"PRIMARY KEY \((.*?)\)", text)
    assert len(keys) == len(wide)
    indexes = re.findall(r"^CREATE (.*)INDEX .*? ON \S+( USING \w+)? \((.*?)[,)]", text, re.M)
    assert len(indexes) > 500
    first = {key.split(", ")[0] for key in keys} | {index[2] for index in indexes}
    assert first == {'"_account_id"'}
    assert "UNIQUE" not in text
    assert " USING " not in text
    assert text.count("PARTITION BY HASH") == len(wide) == text.count("REMAINDER 3)")


def test_a_sync_of_one_account_has_the_tables_that_it_had() -> None:
    text = ddl.create_all("stripe", tables().values())
    assert '"_account_id"' not in text


async def test_rows_of_two_accounts_with_one_id_are_two_rows(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_platform(database, ONE, TWO, chosen=CHOSEN)
    async with mirrors(database, ONE, TWO) as (one, two):
        await put(one, 5, customer("cus_1", name="one", email="a@a"))
        await put(two, 1, customer("cus_1", name="two"))
        await put(two, 2, customer("cus_1", name="second"))
        await put(one, 4, customer("cus_1", name="older"))
        await put(two, 6, {"id": "cus_1", "object": "customer", "deleted": True})
    assert await rows(pg, "id, name, email, deleted") == [
        (ONE, "cus_1", "one", "a@a", False),
        (TWO, "cus_1", "second", None, True),
    ]


async def test_the_change_feed_names_the_scope_and_its_own_befores(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_platform(database, ONE, TWO, chosen=CHOSEN)
    async with mirrors(database, ONE, TWO, changes=True) as (one, two):
        for mirror in (one, two):
            mirror.loading.clear()
        await put(one, 1, customer("cus_1", name="one"))
        await put(two, 1, customer("cus_1", name="two"))
        await put(one, 2, customer("cus_1", name="ONE"), cause="evt_1")
    changes = await pg.fetch(
        "SELECT schema, kind, changes ->> 'name' AS name, event_id, changes ? '_account_id'"
        " OR changes ? 'xmin' OR changes ? 'ctid' FROM pinstripe.change ORDER BY position"
    )
    assert [tuple(row) for row in changes] == [
        (f"{SCHEMA}@{ONE}", "insert", '[null, "one"]', None, False),
        (f"{SCHEMA}@{TWO}", "insert", '[null, "two"]', None, False),
        (f"{SCHEMA}@{ONE}", "update", '["one", "ONE"]', "evt_1", False),
    ]


async def test_accounts_in_turn_leave_no_dead_rows_in_a_shared_session(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_platform(database, ONE, chosen=CHOSEN)
    sizes: list[int] = []
    stages = SharedStages(database, session_name="pinstripe tests", size=1)
    for turn in range(8):
        async with open_mirror(
            database,
            scope_of(SCHEMA, ONE),
            CHOSEN,
            api_version=VERSION,
            changes=True,
            shared=stages,
        ) as mirror:
            await put(mirror, turn, *(customer(f"cus_{n}", name=f"{turn}") for n in range(500)))
        sizes.append(
            await pg.fetchval(
                "SELECT sum(pg_relation_size(oid)) FROM pg_class WHERE relname = 'pinstripe_before'"
            )
        )
    stages.close()
    assert sizes[-1] < max(sizes)


async def test_links_are_made_of_rows_of_the_same_account(
    database: str, pg: asyncpg.Connection
) -> None:
    def charge(intent: str) -> dict[str, object]:
        return {"id": "ch_1", "object": "charge", "payment_intent": intent, "created": 1}

    def payment(invoice: str) -> dict[str, object]:
        intent = {"type": "payment_intent", "payment_intent": "pi_1"}
        return {
            "id": "inpay_1",
            "object": "invoice_payment",
            "invoice": invoice,
            "payment": intent,
            "created": 1,
        }

    await make_platform(database, ONE, TWO, chosen=CHOSEN)
    async with mirrors(database, ONE, TWO) as (one, two):
        await put(one, 1, charge("pi_1"))
        await put(two, 1, charge("pi_1"))
        await put(one, 2, payment("in_1"))
        assert await rows(pg, "invoice_id", "charge") == [(ONE, "in_1"), (TWO, None)]
        await put(two, 3, payment("in_2"))
        assert await rows(pg, "invoice_id", "charge") == [(ONE, "in_1"), (TWO, "in_2")]


async def test_a_session_without_an_account_reads_and_writes_nothing(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_platform(database, ONE, chosen=CHOSEN)
    async with mirrors(database, ONE) as (one,):
        await put(one, 1, customer("cus_1"))
    views = f"{SCHEMA}_of_account.customer"
    columns = "id, _as_of, _as_of_latest, _synced_at"
    insert = f"INSERT INTO {views} ({columns}) VALUES ('x', now(), now(), now())"
    with pytest.raises(asyncpg.UndefinedObjectError):
        await pg.fetch(f"SELECT id FROM {views}")
    async with await open_pool(database, min_size=1, max_size=1) as pool:
        async with pool.of_account(ONE).acquire() as connection:
            assert len(await connection.fetch(f"SELECT id FROM {views}")) == 1
            with pytest.raises(asyncpg.WithCheckOptionViolationError):
                await connection.execute(f"UPDATE {views} SET _account_id = 'acct_2'")
        async with pool.acquire() as connection:
            # The connection has worked for an account: it forgets which before others have it.
            assert await connection.fetch(f"SELECT id FROM {views}") == []
            with pytest.raises(asyncpg.CheckViolationError):
                await connection.execute(insert)


async def test_new_columns_come_into_the_views_and_are_filled_account_by_account(
    database: str, pg: asyncpg.Connection
) -> None:
    whole = CHOSEN["customer"]
    old = {"customer": _without(whole, "name", "email")}
    await make_platform(database, ONE, TWO, chosen=old, partitions=2)
    async with mirrors(database, ONE, TWO, chosen=old) as (one, two):
        for number in range(3):
            await put(one, 1, customer(f"cus_{number}", name=f"one {number}"))
            await put(two, 1, customer(f"cus_{number}", name=f"two {number}"))
    await pg.execute(
        f"""UPDATE {SCHEMA}.customer SET _extra = jsonb_build_object('name', _account_id || id)"""
    )
    async with connect(database) as connection:
        done = await migrate_platform(
            connection, SCHEMA, {"customer": whole}, sdk_version="1", api_version=VERSION
        )
    assert {column for _, column in done.added} >= {"name", "email"}
    assert await rows(pg, "id, name, _extra") == [
        (account, f"cus_{n}", f"{account}cus_{n}", None) for account in (ONE, TWO) for n in range(3)
    ]
    async with mirrors(database, ONE, chosen={"customer": whole}) as (one,):
        await put(one, 9, customer("cus_0", name="after"))
    assert (ONE, "cus_0", "after") in await rows(pg, "id, name")
    assert await pg.fetchval(f"SELECT count(*) FROM {SCHEMA}_partitions.customer_0") in (0, 3, 6)


async def test_secrets_of_old_rows_are_removed_row_by_row(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_platform(database, ONE, TWO, chosen=CHOSEN)
    async with mirrors(database, ONE, TWO) as (one, two):
        await put(one, 1, customer("cus_1", name="one"), customer("cus_2", name="other"))
        await put(two, 1, customer("cus_1", name="two"))
    await pg.execute(
        f"UPDATE {SCHEMA}.customer SET _extra = jsonb_build_object('kept', name, 'secret', 'sk_test_1')"
    )
    await pg.execute("UPDATE pinstripe.sync SET secret_rule = NULL")
    async with connect(database) as connection:
        await migrate_platform(connection, SCHEMA, CHOSEN, sdk_version="1", api_version=VERSION)
    assert await rows(pg, "id, name, _extra ->> 'kept', _extra ->> 'secret'") == [
        (ONE, "cus_1", "one", "one", None),
        (ONE, "cus_2", "other", "other", None),
        (TWO, "cus_1", "two", "two", None),
    ]


async def test_a_policy_on_personal_data_rewrites_each_account_s_own_rows(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_platform(database, ONE, TWO, chosen=CHOSEN)
    async with mirrors(database, ONE, TWO, changes=True) as (one, two):
        one.loading.clear()
        await put(one, 1, customer("cus_1", name="one", email="a@a", balance=1))
        await put(two, 1, customer("cus_1", name="two", email="b@b", balance=2))
    policy = Personal(Policy.everything("drop"), b"")
    async with connect(database) as connection:
        assert await apply_policy(connection, SCHEMA, CHOSEN, policy) == 2
    assert await rows(pg, "id, balance, name, email") == [
        (ONE, "cus_1", 1, None, None),
        (TWO, "cus_1", 2, None, None),
    ]
    assert "a@a" not in await pg.fetchval(
        "SELECT string_agg(changes::text, '') FROM pinstripe.change"
    )


async def test_an_erasure_is_of_one_account(database: str, pg: asyncpg.Connection) -> None:
    await make_platform(database, ONE, TWO, chosen=CHOSEN)
    async with mirrors(database, ONE, TWO) as (one, two):
        await put(one, 1, customer("cus_1", name="one"))
        await put(two, 1, customer("cus_1", name="two"))
        async with connect(database, account=ONE) as connection:
            await erase(connection, scope_of(SCHEMA, ONE), "cus_1", reason="asked")
        await put(two, 2, customer("cus_1", name="still here"))
        await put(one, 2, customer("cus_1", name="back"))
    assert await rows(pg, "name") == [(ONE, None), (TWO, "still here")]


async def test_a_lost_table_is_judged_by_the_account_s_own_rows(database: str) -> None:
    await make_platform(database, ONE, TWO, chosen=CHOSEN)
    async with mirrors(database, ONE, TWO) as (one, two):
        await put(one, 1, *(customer(f"cus_{n}") for n in range(10)))
        await put(two, 1, *(customer(f"cus_{n}") for n in range(10)))
    scope = scope_of(SCHEMA, ONE)
    async with connect(database, account=ONE) as connection:
        counted: dict[str, int] = {}
        assert await find_lost(connection, scope, ["customer"], counted) == []
        await connection.execute(f"DELETE FROM {SCHEMA}.customer WHERE _account_id = '{ONE}'")
        assert counted == {"customer": 10}
        assert await find_lost(connection, scope, ["customer"], counted) == [("customer", False)]
        await connection.execute(f"DROP TABLE {SCHEMA}.customer CASCADE")
        assert await find_lost(connection, scope, ["customer"], counted) == [("customer", True)]


async def test_a_sync_and_a_platform_do_not_share_a_schema(database: str) -> None:
    await make_platform(database, ONE, chosen=CHOSEN)
    async with connect(database) as connection:
        with pytest.raises(Drifted):
            await migrate(connection, SCHEMA, CHOSEN, sdk_version="1", api_version=VERSION)
        await migrate(connection, "alone", CHOSEN, sdk_version="1", api_version=VERSION)
        with pytest.raises(Drifted):
            await migrate_platform(
                connection, "alone", CHOSEN, sdk_version="1", api_version=VERSION
            )
        with pytest.raises(Misconfigured, match="too long"):
            await migrate_platform(
                connection, "x" * 60, CHOSEN, sdk_version="1", api_version=VERSION
            )


async def test_syncs_are_listed_without_the_accounts_of_platforms(database: str) -> None:
    await make_platform(database, ONE, TWO, chosen=CHOSEN)
    async with connect(database) as connection:
        await migrate(connection, "alone", CHOSEN, sdk_version="1", api_version=VERSION)
        assert [sync.schema for sync in await load_syncs(connection)] == ["alone"]
        assert [*await load_summaries(connection)] == ["alone"]
        assert [s.schema for s in await read_status(connection)] == ["alone"]
    async with mirrors(database, ONE) as (one,):
        await put(one, 1, customer("cus_1"))
    async with connect(database) as connection:
        scope = scope_of(SCHEMA, ONE)
        (status,) = await read_status(connection, schema=scope)
        assert {t.table: (t.rows, t.exact) for t in status.tables}["customer"] == (1, True)


async def test_accounts_come_leave_and_come_back(database: str) -> None:
    await make_platform(database, ONE, TWO, chosen=CHOSEN)
    async with connect(database) as connection:
        assert await add_accounts(connection, "shops", [ONE, "acct_3", "acct_3"]) == ["acct_3"]
        assert await revoke_accounts(connection, "shops", [TWO, "acct_9"], "Gone.") == [TWO]
        assert await revoke_accounts(connection, "shops", [TWO], "Gone.") == []
        states = {a.account_id: (a.state, a.code) for a in await load_accounts(connection, "shops")}
        assert states == {
            ONE: ("active", None),
            TWO: ("revoked", "revoked"),
            "acct_3": ("active", None),
            "acct_platform": ("active", None),
        }
        assert await add_accounts(connection, "shops", [TWO]) == [TWO]
        page = await load_accounts(connection, "shops", after=ONE, limit=1)
        assert [(a.account_id, a.state, a.code) for a in page] == [(TWO, "active", None)]
        await delete_platform(connection, "shops")
        assert await load_platforms(connection) == []
        assert await connection.fetchval("SELECT count(*) FROM pinstripe.sync") == 0


async def test_the_lease_of_a_scope_fences_what_an_earlier_holder_writes(database: str) -> None:
    await make_platform(database, ONE, TWO, chosen=CHOSEN)
    scope = scope_of(SCHEMA, ONE)
    async with connect(database) as connection, mirrors(database, ONE) as (one,):
        held = await take_lease(connection, scope, "first", ttl_s=60)
        assert held is not None
        one.always.append(held.check)
        await put(one, 1, customer("cus_1"))
        assert await take_lease(connection, scope, "second") is None
        other = await take_lease(connection, scope_of(SCHEMA, TWO), "second")
        assert other is not None
        await renew_leases(connection, [held, other], ttl_s=0.0)
        assert not held.lost.is_set()
        taken = await take_lease(connection, scope, "second")
        assert taken is not None
        assert taken.fence == held.fence + 1
        await renew_leases(connection, [held, taken])
        assert held.lost.is_set()
        assert not taken.lost.is_set()
        with pytest.raises(LostLease):
            await put(one, 2, customer("cus_2"))
        await taken.let_go(connection)
        assert await take_lease(connection, scope, "third") is not None


async def test_readers_are_kept_to_their_account_by_row_level_security(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_platform(database, ONE, TWO, chosen=CHOSEN)
    async with mirrors(database, ONE, TWO) as (one, two):
        await put(one, 1, customer("cus_1", name="one"))
        await put(two, 1, customer("cus_1", name="two"))
    await pg.execute(
        f"""
        DROP ROLE IF EXISTS tenant;
        CREATE ROLE tenant;
        GRANT USAGE ON SCHEMA {SCHEMA} TO tenant;
        GRANT SELECT ON {SCHEMA}.customer TO tenant;
        ALTER TABLE {SCHEMA}.customer ENABLE ROW LEVEL SECURITY;
        CREATE POLICY tenant ON {SCHEMA}.customer FOR SELECT TO tenant
          USING (_account_id = current_setting('app.account'));
        """
    )
    try:
        await pg.execute("SET ROLE tenant; SET app.account = 'acct_2'")
        assert await rows(pg, "name") == [(TWO, "two")]
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pg.fetch(f"SELECT * FROM {SCHEMA}_of_account.customer")
        await pg.execute("RESET ROLE")
        # The mirror owns the tables: policies do not stop it.
        async with mirrors(database, ONE) as (one,):
            await put(one, 2, customer("cus_1", name="again"))
        assert (await rows(pg, "name"))[0] == (ONE, "again")
        assert await pg.fetchval("SELECT name FROM acct_2.customer") == "two"
    finally:
        await pg.execute("RESET ROLE; DROP OWNED BY tenant; DROP ROLE tenant")


def _without(table: Table, *names: str) -> Table:

    return replace(table, columns=tuple(c for c in table.columns if c.name not in names))


async def test_tenant_views_show_one_account_to_readers_without_other_rights(
    database: str, pg: asyncpg.Connection
) -> None:
    old = {"customer": _without(CHOSEN["customer"], "email")}
    await make_platform(database, ONE, TWO, chosen=old)
    await pg.execute("CREATE ROLE guest; GRANT USAGE ON SCHEMA acct_1 TO guest")
    await pg.execute("GRANT SELECT ON ALL TABLES IN SCHEMA acct_1 TO guest")
    try:
        async with connect(database) as connection:
            await migrate_platform(connection, SCHEMA, CHOSEN, sdk_version="1", api_version=VERSION)
            names = await make_tenant_views(connection, SCHEMA, ONE, ONE)
        assert sorted(names) == sorted(CHOSEN)
        async with mirrors(database, ONE, TWO) as (one, two):
            await put(one, 1, customer("cus_1", email="one@x"))
            await put(two, 1, customer("cus_1", email="two@x"))
        await pg.execute("SET ROLE guest")
        # The right that was given before the column came is still there.
        assert await pg.fetchval("SELECT string_agg(email, ' ') FROM acct_1.customer") == "one@x"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pg.fetch(f"SELECT id FROM {SCHEMA}.customer")
    finally:
        await pg.execute("RESET ROLE; DROP OWNED BY guest; DROP ROLE guest")


async def test_foreign_keys_of_a_platform_have_the_account(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_platform(database, ONE, chosen=CHOSEN, partitions=2)
    async with connect(database) as connection:
        await migrate_platform(
            connection, SCHEMA, CHOSEN, sdk_version="1", api_version=VERSION, foreign_keys=True
        )
    keys = await pg.fetch(
        "SELECT pg_get_constraintdef(oid) AS text FROM pg_constraint WHERE contype = 'f'"
        f" AND conrelid = '{SCHEMA}.charge'::regclass"
    )
    texts = [row["text"] for row in keys]
    assert len(texts) > 2
    assert all(text.startswith("FOREIGN KEY (_account_id, ") for text in texts)
    assert all(text.endswith("(_account_id, id) NOT ENFORCED") for text in texts)
