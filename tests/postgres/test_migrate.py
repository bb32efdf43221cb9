"""A newer catalog adds what is missing and loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace

import asyncpg
import pytest
from tests.postgres.writing import VERSION, make_schema, writing

from pinstripe.catalog.tables import Table, tables
from pinstripe.errors import Drifted, Misconfigured, PinstripeError
from pinstripe.store.cursors import Checkpoint, load_checkpoints, save_checkpoints
from pinstripe.store.migrate import (
    Migration,
    create_indexes,
    create_indexes_beside,
    effective_tables,
    migrate,
)
from pinstripe.store.pool import connect
from pinstripe.store.status import read_status

_NAMES = (
    "charge",
    "customer",
    "invoice",
    "line_item",
    "price",
    "product",
    "terminal_reader",
    "v2_core_account",
    "upcoming_customer_invoice",
    "payment_link",
)
_NEW: Mapping[str, tuple[str, ...]] = {
    "charge": ("customer_id", "balance_transaction_id", "metadata", "shipping_address"),
    "customer": ("balance", "created", "preferred_locales", "delinquent", "deleted"),
    "price": ("unit_amount_decimal", "custom_unit_amount_maximum", "custom_unit_amount_minimum"),
    "terminal_reader": ("last_seen_at",),
}
"""What the older catalog did not know."""


def newer() -> dict[str, Table]:
    return {name: tables()[name] for name in _NAMES}


def older() -> dict[str, Table]:
    chosen = {n: without(t, _NEW.get(n, ())) for n, t in newer().items()}
    del chosen["product"], chosen["line_item"]
    return chosen


def without(table: Table, names: Iterable[str]) -> Table:
    return replace(table, columns=tuple(c for c in table.columns if c.name not in set(names)))


async def to(pg: asyncpg.Connection, catalog: Mapping[str, Table], schema: str = "s") -> Migration:
    return await migrate(pg, schema, catalog, sdk_version="1", api_version=VERSION)


async def anatomy(pg: asyncpg.Connection, schema: str) -> dict[str, set[tuple[object, ...]]]:
    """Columns, comments and indexes of a schema, without the schema's name."""
    queries = {
        "columns": "SELECT table_name, column_name, data_type, udt_name, is_nullable, column_default"
        " FROM information_schema.columns WHERE table_schema = $1",
        "comments": "SELECT c.relname, a.attname, d.description FROM pg_description d"
        " JOIN pg_class c ON c.oid = d.objoid JOIN pg_namespace n ON n.oid = c.relnamespace"
        " LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.objsubid"
        " WHERE n.nspname = $1 AND d.classoid = 'pg_class'::regclass AND d.objsubid >= 0"
        " AND (d.objsubid = 0 OR a.attnum > 0)",
        "indexes": "SELECT tablename, indexname, replace(indexdef, $1 || '.', '') FROM pg_indexes"
        " WHERE schemaname = $1",
    }
    return {k: {tuple(r) for r in await pg.fetch(q, schema)} for k, q in queries.items()}


async def test_both_roads_lead_to_the_same_schema(pg: asyncpg.Connection) -> None:
    await to(pg, newer(), "straight")
    await to(pg, older(), "detour")
    done = await to(pg, newer(), "detour")
    assert sorted(done.created) == ["line_item", "product"]
    assert sorted(done.added) == sorted((t, c) for t, names in _NEW.items() for c in names)
    for schema in ("straight", "detour"):
        for table in newer().values():
            await create_indexes(pg, schema, table)
    straight, detour = await anatomy(pg, "straight"), await anatomy(pg, "detour")
    for part in straight:
        assert straight[part] == detour[part], part
    assert len(straight["comments"]) > len(straight["columns"]) / 2


async def test_a_second_run_changes_nothing(pg: asyncpg.Connection) -> None:
    await to(pg, newer())
    before = await anatomy(pg, "s")
    done = await to(pg, newer())
    assert (done.created, done.added, done.retyped, done.relist) == ([], [], [], [])
    assert await anatomy(pg, "s") == before


async def _insert(pg: asyncpg.Connection, table: str, key: str, extra: str | None) -> None:
    await pg.execute(
        f'INSERT INTO s."{table}" (id, _as_of, _as_of_latest, _synced_at, _extra)'
        " VALUES ($1, now(), now(), now(), $2::jsonb)",
        key,
        extra,
    )


async def test_names_that_each_account_has_get_the_account_before_them_and_are_listed_again(
    pg: asyncpg.Connection,
) -> None:
    catalog = {"capability": tables()["capability"]}
    await to(pg, catalog)
    for key, account in (("transfers", "acct_1A"), ("acct_1B/transfers", "acct_1B")):
        await _insert(pg, "capability", key, None)
        await pg.execute("UPDATE s.capability SET account_id = $2 WHERE id = $1", key, account)
    done = Checkpoint(
        "/v1/accounts/{account}/capabilities by account", "done", {"table": "capability"}
    )
    await save_checkpoints(pg, "s", [done])
    for _ in range(2):
        await to(pg, catalog)
        ids = [row[0] for row in await pg.fetch("SELECT id FROM s.capability ORDER BY 1")]
        assert ids == ["acct_1A/transfers", "acct_1B/transfers"]
        assert await load_checkpoints(pg, "s") == {}


async def test_new_columns_are_filled_from_what_waited_for_them(pg: asyncpg.Connection) -> None:
    await to(pg, older())
    await _insert(
        pg,
        "customer",
        "cus_1",
        '{"balance": -9007199254740993, "created": 1700000000, "delinquent": false,'
        ' "preferred_locales": ["de", "en"], "other": 1}',
    )
    await _insert(
        pg,
        "charge",
        "ch_1",
        '{"customer": "cus_1", "balance_transaction": null, "metadata": {"a": "b"},'
        ' "shipping": {"address": {"city": "X"}, "new": 1}}',
    )
    await _insert(
        pg,
        "price",
        "price_1",
        '{"unit_amount_decimal": "0.000001", "custom_unit_amount": {"maximum": 5, "minimum": null}}',
    )
    await _insert(pg, "terminal_reader", "tmr_1", '{"last_seen_at": 1700000000123}')
    done = await to(pg, newer())
    row = await pg.fetchrow(
        "SELECT balance, extract(epoch FROM created)::int AS created, delinquent, preferred_locales,"
        " _extra FROM s.customer"
    )
    assert row is not None
    assert tuple(row) == (-9007199254740993, 1700000000, False, ["de", "en"], '{"other": 1}')
    row = await pg.fetchrow(
        "SELECT customer_id, balance_transaction_id, metadata, shipping_address, _extra FROM s.charge"
    )
    assert row is not None
    assert tuple(row) == ("cus_1", None, '{"a": "b"}', '{"city": "X"}', '{"shipping": {"new": 1}}')
    row = await pg.fetchrow(
        "SELECT unit_amount_decimal::text, custom_unit_amount_maximum, custom_unit_amount_minimum,"
        " _extra FROM s.price"
    )
    assert row is not None
    assert tuple(row) == ("0.000001", 5, None, None)
    row = await pg.fetchrow(
        "SELECT extract(epoch FROM last_seen_at)::text, _extra FROM s.terminal_reader"
    )
    assert row is not None
    assert tuple(row) == ("1700000000.123000", None)
    # `deleted` is told by no field that could have waited.
    assert done.relist == ["customer"]


async def test_json_null_in_a_json_column_becomes_null(pg: asyncpg.Connection) -> None:
    await to(pg, older())
    await _insert(pg, "charge", "ch_1", '{"metadata": null, "customer": null}')
    await _insert(pg, "customer", "cus_1", '{"preferred_locales": null}')
    await to(pg, newer())
    assert await pg.fetchval("SELECT metadata IS NULL AND _extra IS NULL FROM s.charge")
    assert await pg.fetchval("SELECT preferred_locales IS NULL AND _extra IS NULL FROM s.customer")


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("customer", "balance", '"many"'),
        ("customer", "balance", "99999999999999999999"),
        ("customer", "balance", "1.5"),
        ("customer", "created", "999999999999999999"),
        ("customer", "delinquent", '"yes"'),
        ("customer", "preferred_locales", '["de", 1]'),
        ("price", "unit_amount_decimal", '"1e99999"'),
        ("price", "unit_amount_decimal", '"NaN"'),
        ("terminal_reader", "last_seen_at", "true"),
        ("charge", "customer", '{"id": "cus_1"}'),
    ],
)
async def test_what_does_not_fit_stays_where_it_is(
    pg: asyncpg.Connection, table: str, field: str, value: str
) -> None:
    await to(pg, older())
    await _insert(pg, table, "x_1", f'{{"{field}": {value}}}')
    before = await pg.fetchval(f"SELECT _extra FROM s.{table}")
    done = await to(pg, newer())
    assert await pg.fetchval(f"SELECT _extra FROM s.{table}") == before
    assert done.relist == [table]


async def test_a_date_that_is_none_does_not_stop_a_migration(pg: asyncpg.Connection) -> None:
    full = newer()
    full["v2_core_account"] = tables()["v2_core_account"]
    isos = [c.name for c in full["v2_core_account"].columns if c.read == "time_iso"]
    lean = {**full, "v2_core_account": without(full["v2_core_account"], isos)}
    await to(pg, lean)
    await _insert(pg, "v2_core_account", "acct_1", '{"created": "2026-02-31T00:00:00Z"}')
    done = await to(pg, full)
    assert await pg.fetchval("SELECT _extra->>'created' FROM s.v2_core_account") is not None
    assert done.relist == ["v2_core_account"]


async def test_a_row_that_never_had_the_field_is_listed_again(pg: asyncpg.Connection) -> None:
    await to(pg, older())
    await _insert(pg, "terminal_reader", "tmr_1", '{"last_seen_at": 1700000000123}')
    await _insert(pg, "terminal_reader", "tmr_2", None)
    assert (await to(pg, newer())).relist == ["terminal_reader"]


async def test_only_streams_of_what_is_listed_again_start_anew(pg: asyncpg.Connection) -> None:
    shrunk = without(tables()["line_item"], ["quantity"])
    await to(pg, {**newer(), "line_item": shrunk})
    await _insert(pg, "line_item", "il_1", None)
    marks = [
        Checkpoint(f"/v1/{t}s", "done", position={"table": t})
        for t in ("invoice", "customer", "charge")
    ]
    await save_checkpoints(pg, "s", marks)
    done = await to(pg, newer())
    assert done.relist == ["line_item"]
    # Invoice lines come inside invoices: their list has to be read again.
    assert sorted(await load_checkpoints(pg, "s")) == ["/v1/charges", "/v1/customers"]


async def test_an_empty_table_needs_no_list(pg: asyncpg.Connection) -> None:
    await to(pg, older())
    assert (await to(pg, newer())).relist == []


async def test_what_the_user_added_is_left_alone(pg: asyncpg.Connection) -> None:
    await to(pg, older())
    await pg.execute("ALTER TABLE s.customer ADD COLUMN note text DEFAULT 'mine'")
    await pg.execute("CREATE INDEX mine ON s.customer (email)")
    await to(pg, newer())
    assert await pg.fetchval("SELECT count(*) FROM pg_indexes WHERE indexname = 'mine'") == 1
    await _insert(pg, "customer", "cus_1", None)
    assert await pg.fetchval("SELECT note FROM s.customer") == "mine"


async def test_a_retyped_column_is_not_touched_and_its_values_go_to_extra(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_schema(database, ["customer"], schema="stripe")
    await pg.execute("ALTER TABLE stripe.customer ALTER COLUMN balance TYPE numeric")
    await pg.execute("ALTER TABLE stripe.customer ALTER COLUMN shipping_name TYPE varchar(9)")
    chosen = {"customer": tables()["customer"]}
    done = await to(pg, chosen, "stripe")
    assert done.retyped == [("customer", "balance"), ("customer", "shipping_name")]
    effective = await effective_tables(pg, "stripe", chosen)
    names = {c.name for c in effective["customer"].columns}
    assert not names & {"balance", "shipping_name"}
    async with writing(database, "customer", effective=effective) as w:
        shipping = {"name": "N", "phone": "1"}
        await w.put(
            ({"id": "cus_1", "object": "customer", "balance": 5, "shipping": shipping}, 0, 1)
        )
        row = await w.row("customer", "cus_1")
    assert (row["balance"], row["shipping_name"], row["shipping_phone"]) == (None, None, "1")
    assert row["_extra"] == '{"balance": 5, "shipping": {"name": "N"}}'


@pytest.mark.parametrize(
    "what",
    [
        "CREATE TABLE s.customer (id int)",
        "CREATE VIEW s.customer AS SELECT 1 AS id",
        "CREATE MATERIALIZED VIEW s.customer AS SELECT 1 AS id",
    ],
)
async def test_tables_of_others_are_refused_and_nothing_is_changed(
    pg: asyncpg.Connection, what: str
) -> None:
    await pg.execute(f"CREATE SCHEMA s; {what}")
    before = await anatomy(pg, "s")
    with pytest.raises(Misconfigured, match="customer") as caught:
        await to(pg, newer())
    assert "--schema" in caught.value.hint
    assert await anatomy(pg, "s") == before
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.sync") == 0


async def test_another_key_is_refused(pg: asyncpg.Connection) -> None:
    await to(pg, {"customer": tables()["customer"]})
    column = replace(tables()["customer"].columns[0], name="_account_id")
    other = replace(
        tables()["customer"],
        columns=(column, *tables()["customer"].columns),
        key=("_account_id", "id"),
    )
    with pytest.raises(Drifted, match="key"):
        await to(pg, {"customer": other})


async def test_a_catalog_that_lost_tables_and_columns_drops_nothing(
    pg: asyncpg.Connection,
) -> None:
    await to(pg, newer())
    await _insert(pg, "product", "prod_1", None)
    before = await anatomy(pg, "s")
    done = await to(pg, older())
    assert (done.created, done.added, done.relist) == ([], [], [])
    assert await anatomy(pg, "s") == before
    assert await pg.fetchval("SELECT count(*) FROM s.product") == 1


async def test_processes_that_start_at_once_migrate_one_after_the_other(database: str) -> None:
    async def start(schema: str) -> Migration:
        async with connect(database) as connection:
            return await to(connection, newer(), schema)

    done = await asyncio.gather(*(start("s") for _ in range(3)), start("other"))
    assert sorted(len(d.created) for d in done) == [0, 0, len(_NAMES), len(_NAMES)]


async def test_a_migration_that_fails_leaves_the_schema_as_it_was(pg: asyncpg.Connection) -> None:
    await to(pg, older())
    before = await anatomy(pg, "s")
    # The new table's name is taken by something that is no table.
    await pg.execute("CREATE SEQUENCE s.product")
    with pytest.raises(Drifted):
        await to(pg, newer())
    assert await anatomy(pg, "s") == before


async def test_no_reader_waits_for_a_second_while_a_migration_waits_for_another(
    pg: asyncpg.Connection, database: str
) -> None:
    await to(pg, older())

    async def later() -> Migration:
        async with connect(database) as connection:
            return await to(connection, newer())

    async with connect(database) as slow, connect(database) as quick:
        await quick.execute("SET lock_timeout = '1s'")  # What waits longer fails.
        async with slow.transaction():
            await slow.fetch("SELECT id FROM s.customer")
            migration = asyncio.create_task(later())
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $1::regclass"
            for _ in range(2):
                while not await pg.fetchval(waiting, "s.customer"):  # noqa: ASYNC110 (nothing tells)
                    await asyncio.sleep(0.01)
                await quick.fetch("SELECT id FROM s.customer")
        assert ("customer", "balance") in (await migration).added


async def test_a_migration_that_dies_while_it_fills_goes_on_at_the_next_start(
    pg: asyncpg.Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinstripe.store.migrate._FILL_ROWS", 2)
    await to(pg, older())
    people = [{"id": f"cus_{n}", "object": "customer", **_PERSON} for n in range(9)]
    async with writing(database, "customer", schema="s", effective=older()) as w:
        await w.put(*((person, 0, 1) for person in people))
    # The row in the middle ends the session, when some pages have been committed.
    await pg.execute(
        "CREATE FUNCTION s.no() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN new; END $$;"
        "CREATE TRIGGER no BEFORE UPDATE ON s.customer FOR EACH ROW"
        " WHEN (old.id = 'cus_5') EXECUTE FUNCTION s.no()"
    )
    with pytest.raises((PinstripeError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        async with connect(database) as killed:
            await to(killed, newer())
    assert await pg.fetchval("SELECT count(*) FROM s.customer WHERE balance = 7") == 4
    await pg.execute("DROP TRIGGER no ON s.customer")
    done = await to(pg, newer())
    rows = await pg.fetch("SELECT balance, delinquent, _extra FROM s.customer")
    assert [tuple(row) for row in rows] == [(7, False, None)] * 9
    assert done.relist == []
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.filling") == 0


_PERSON: Mapping[str, object] = {
    "balance": 7,
    "created": 1_700_000_000,
    "preferred_locales": ["de"],
    "delinquent": False,
    "deleted": False,
}


async def test_a_second_schema_is_not_disturbed(pg: asyncpg.Connection) -> None:
    await to(pg, older(), "first")
    await save_checkpoints(pg, "first", [Checkpoint("x", "done", position={"table": "customer"})])
    before = await anatomy(pg, "first")
    await to(pg, newer(), "second")
    assert await anatomy(pg, "first") == before
    assert list(await load_checkpoints(pg, "first")) == ["x"]
    assert list(await load_checkpoints(pg, "second")) == []


async def test_a_table_without_references_has_no_indexes_to_make(pg: asyncpg.Connection) -> None:
    bare = replace(tables()["customer"], columns=tables()["customer"].columns[:1])
    await to(pg, {"customer": bare})
    await create_indexes(pg, "s", bare)
    assert await pg.fetchval("SELECT count(*) FROM pg_indexes WHERE schemaname = 's'") == 1


async def test_indexes_beside_writers_are_the_same_and_an_invalid_one_is_made_anew(
    pg: asyncpg.Connection,
) -> None:
    refund = tables()["refund"]
    for schema in ("one", "two"):
        await migrate(pg, schema, {"refund": refund}, sdk_version="1", api_version="1")
    await create_indexes(pg, "one", refund)
    await create_indexes_beside(pg, "two", refund)
    query = "SELECT indexname FROM pg_indexes WHERE schemaname = $1 ORDER BY 1"
    one = [r[0] for r in await pg.fetch(query, "one")]
    assert [r[0] for r in await pg.fetch(query, "two")] == one
    name = next(n for n in one if n != "refund_pkey")
    await pg.execute(
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'two.\"{name}\"'::regclass"
    )
    await create_indexes_beside(pg, "two", refund)
    valid = await pg.fetchval(
        f"SELECT indisvalid FROM pg_index WHERE indexrelid = 'two.\"{name}\"'::regclass"
    )
    assert valid


@pytest.mark.parametrize(
    "older", ["DROP TABLE pinstripe.freshness", "ALTER TABLE pinstripe.pending DROP COLUMN code"]
)
async def test_the_status_of_what_only_an_older_version_wrote_says_what_to_do(
    pg: asyncpg.Connection, older: str
) -> None:
    await to(pg, newer())
    await pg.execute(older)
    with pytest.raises(Misconfigured, match="older version") as caught:
        await read_status(pg, schema="s")
    assert "pinstripe sync" in caught.value.hint
