"""What Postgres refuses, a row or a table, is named and owed, stops nothing else, and heals by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest
from tests.flows.harness.account import Copy, open_copy
from tests.flows.harness.scripted_stripe import Object, ScriptedStripe, scripted_stripe
from tests.flows.test_trouble import BRIEF, backfill, customer, only, status, try_now

from pinstripe.client.response import AsOf
from pinstripe.mirror import LIVE_LANE
from pinstripe.mirror.writer import Writer
from pinstripe.rows.extract import RowSet
from pinstripe.service import _mend
from pinstripe.store.quarantine import MOST_HELD
from pinstripe.sync.events.poller import EventPoller
from pinstripe.sync.follower import erase_due
from pinstripe.sync.refetch.worker import RefetchWorker
from pinstripe.sync.relist import Relist

pytestmark = pytest.mark.migrated

ROWS: dict[str, tuple[str, str]] = {
    "a CHECK": (
        "ALTER TABLE stripe.customer ADD CONSTRAINT no_such_name CHECK (name <> 'bad')",
        "ALTER TABLE stripe.customer DROP CONSTRAINT no_such_name",
    ),
    "a unique index": (
        "CREATE UNIQUE INDEX one_name ON stripe.customer (name) WHERE name = 'bad';"
        "INSERT INTO stripe.customer (id, name, _as_of, _as_of_latest, _synced_at)"
        " VALUES ('cus_mine', 'bad', 'epoch', 'epoch', 'epoch')",
        "DROP INDEX stripe.one_name",
    ),
    "a foreign key": (
        "CREATE TABLE names (name text PRIMARY KEY);"
        "INSERT INTO names SELECT 'good ' || n FROM generate_series(1, 300) n;"
        "ALTER TABLE stripe.customer ADD CONSTRAINT known FOREIGN KEY (name) REFERENCES names",
        "INSERT INTO names VALUES ('bad')",
    ),
    "a trigger that raises": (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.name = 'bad' THEN RAISE EXCEPTION 'secret words %', NEW.name; END IF;"
        " RETURN NEW; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON stripe.customer"
        " FOR EACH ROW EXECUTE FUNCTION refuse()",
        "DROP TRIGGER refuse ON stripe.customer",
    ),
    "a trigger that raises a code of its own": (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.name = 'bad' THEN RAISE EXCEPTION 'no' USING ERRCODE = '23514'; END IF;"
        " RETURN NEW; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON stripe.customer"
        " FOR EACH ROW EXECUTE FUNCTION refuse()",
        "DROP TRIGGER refuse ON stripe.customer",
    ),
    "a trigger that misses a table of its own": (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.name = 'bad' THEN INSERT INTO no_such_table VALUES (1); END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON stripe.customer"
        " FOR EACH ROW EXECUTE FUNCTION refuse()",
        "DROP TRIGGER refuse ON stripe.customer",
    ),
    "a constraint that is deferred": (
        "ALTER TABLE stripe.customer ADD CONSTRAINT sole EXCLUDE (name WITH =) WHERE (name = 'bad')"
        " DEFERRABLE INITIALLY DEFERRED;"
        "INSERT INTO stripe.customer (id, name, _as_of, _as_of_latest, _synced_at)"
        " VALUES ('cus_mine', 'bad', 'epoch', 'epoch', 'epoch')",
        "ALTER TABLE stripe.customer DROP CONSTRAINT sole;"
        "DELETE FROM stripe.customer WHERE id = 'cus_mine'",
    ),
    "a trigger that leaves rows out": (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RETURN CASE WHEN NEW.name = 'bad' THEN NULL ELSE NEW END; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON stripe.customer"
        " FOR EACH ROW EXECUTE FUNCTION refuse()",
        "DROP TRIGGER refuse ON stripe.customer",
    ),
    "an index over an expression that fails": (
        "CREATE INDEX odd ON stripe.customer ((1 / CASE name WHEN 'bad' THEN 0 ELSE 1 END))",
        "DROP INDEX stripe.odd",
    ),
}

TABLES: dict[str, tuple[str, str]] = {
    "a CHECK that nothing passes": (
        "ALTER TABLE stripe.customer ADD CONSTRAINT none CHECK (id = '')",
        "ALTER TABLE stripe.customer DROP CONSTRAINT none",
    ),
    "a trigger that always raises": (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON stripe.customer"
        " FOR EACH ROW EXECUTE FUNCTION refuse()",
        "DROP TRIGGER refuse ON stripe.customer",
    ),
    "a trigger with an unknown code": (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'ZZ123'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON stripe.customer"
        " FOR EACH ROW EXECUTE FUNCTION refuse()",
        "DROP TRIGGER refuse ON stripe.customer",
    ),
    "a dropped column": ("ALTER TABLE stripe.customer DROP COLUMN email", "SELECT 1"),
    "a dropped table": ("DROP TABLE stripe.customer", "SELECT 1"),
    "a retyped column": (
        "ALTER TABLE stripe.customer ALTER COLUMN created TYPE text",
        "ALTER TABLE stripe.customer ALTER COLUMN created TYPE timestamptz USING created::timestamptz",
    ),
    "a view in its place": (
        "ALTER TABLE stripe.customer RENAME TO c; CREATE VIEW stripe.customer AS"
        " SELECT * FROM stripe.c GROUP BY id",
        "DROP VIEW stripe.customer; ALTER TABLE stripe.c RENAME TO customer",
    ),
    "no primary key": (
        "ALTER TABLE stripe.customer DROP CONSTRAINT customer_pkey",
        "ALTER TABLE stripe.customer ADD PRIMARY KEY (id)",
    ),
}


@pytest.fixture
async def stripe() -> AsyncIterator[ScriptedStripe]:
    async with scripted_stripe() as stub:
        stub.lists["/v1/products"] = [
            {"id": f"prod_{n}", "object": "product", "created": 1700000000 + n}
            for n in range(9, 0, -1)
        ]
        yield stub


@pytest.fixture
async def copy(stripe: ScriptedStripe, database: str) -> AsyncIterator[Copy]:
    async with open_copy(stripe, database, patience=BRIEF) as opened:

        async def mend(table: str) -> None:
            await _mend(opened.source, table)

        opened.mirror.mend = mend
        yield opened


def named(number: int, bad: int) -> dict[str, object]:
    return customer(number, name="bad" if number == bad else f"good {number}")


async def probe(copy: Copy) -> None:
    """What the mirror does every few seconds."""
    mirror = copy.mirror
    writer = Writer(copy.url, mirror.schema, mirror.tables, mirror.extractor.shapes)
    try:
        await mirror.probe(writer)
    finally:
        await writer.close()


@pytest.mark.parametrize("cause", ROWS)
async def test_a_row_that_postgres_refuses_is_named_stops_nothing_and_heals(
    cause: str, stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    hurt, heal = ROWS[cause]
    await pg.execute(hurt)
    stripe.lists["/v1/customers"] = [named(n, bad=111) for n in range(250, 0, -1)]
    assert (await backfill(copy, "customer", "product")).complete
    rows = "SELECT count(*) FROM stripe.customer WHERE id <> 'cus_mine'"
    assert await pg.fetchval(rows) == 249
    assert await pg.fetchval("SELECT count(*) FROM stripe.product") == 9
    held = (await status(pg)).quarantine
    assert [(q.table, q.id, q.count) for q in held] == [("customer", "cus_111", 1)]
    assert held[0].remedy
    assert "bad" not in held[0].reason.replace(held[0].name or "-", "")
    await probe(copy)
    assert await pg.fetchval(rows) == 249
    await pg.execute(heal)
    asked = len(stripe.asked)
    await probe(copy)
    assert len(stripe.asked) == asked
    assert await pg.fetchval(rows) == 250
    assert (await status(pg)).quarantine == []
    await RefetchWorker(copy.source).drain()
    # Once more after the time that a replica may be behind.
    assert set(stripe.paths()[asked:]) == {"/v1/customers/cus_111"}
    assert len(stripe.paths()[asked:]) <= 2
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.pending") == 0


async def test_rows_that_are_still_refused_are_not_fetched_again_and_again(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    """They are kept and tried without Stripe, some of them at a time."""
    await pg.execute(ROWS["a CHECK"][0])
    stripe.lists["/v1/customers"] = [
        customer(n, name="bad" if n % 2 else "good") for n in range(300, 0, -1)
    ]
    assert (await backfill(copy, "customer", "product")).complete
    for _ in range(2):
        await probe(copy)
    due = "SELECT count(*) FROM pinstripe.pending WHERE next_try_at < now() + interval '1 year'"
    assert await pg.fetchval(due) == 0
    assert [q.id for q in (await status(pg)).quarantine] == ["cus_1"], "the table takes others"


async def test_more_refused_rows_than_are_kept_in_memory_are_fetched_when_the_others_are_healed(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    hurt, heal = ROWS["a CHECK"]
    await pg.execute(hurt)
    total, good = MOST_HELD * 15 // 10, MOST_HELD * 15 // 100
    stripe.lists["/v1/customers"] = [
        customer(n, name="bad" if n % 10 else "good") for n in range(total, 0, -1)
    ]
    assert (await backfill(copy, "customer", "product")).complete
    assert await pg.fetchval("SELECT count(*) FROM stripe.customer") == good
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.quarantine") > MOST_HELD
    due = (
        "SELECT count(*) FROM pinstripe.pending WHERE code = 'quarantined'"
        " AND next_try_at < clock_timestamp() + interval '25 hours'"
    )
    assert await pg.fetchval(due) > 0
    await pg.execute(heal)
    while copy.mirror.quarantine:
        await probe(copy)
    await RefetchWorker(copy.source).drain()
    assert await pg.fetchval("SELECT count(*) FROM stripe.customer") == total
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.pending") == 0
    assert (await status(pg)).quarantine == []


async def test_a_refetch_that_waits_for_its_row_is_made_when_postgres_accepts_it(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    hurt, heal = ROWS["a CHECK"]
    await pg.execute(hurt)
    stripe.lists["/v1/customers"] = [named(n, bad=3) for n in range(5, 0, -1)]
    assert (await backfill(copy, "customer", "product")).complete
    worker = RefetchWorker(copy.source)
    working = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(30):
            while not len(worker):  # noqa: ASYNC110 (the worker reads it from the database)
                await asyncio.sleep(0.02)
            await pg.execute(heal)
            await probe(copy)
            worker.poll_now()
            while await pg.fetchval("SELECT count(*) FROM pinstripe.pending"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        working.cancel()
        await asyncio.wait([working])


async def test_a_row_left_out_by_a_commit_that_ends_after_its_table_was_healed_is_due(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection, database: str
) -> None:
    hurt, heal = TABLES["a CHECK that nothing passes"]
    await pg.execute(hurt)
    stripe.lists["/v1/customers"] = [customer(n) for n in range(50, 0, -1)]
    assert (await backfill(copy, "customer", "product")).complete
    rows = RowSet()
    product: dict[str, object] = {"id": "prod_20", "object": "product"}
    for obj in (product, customer(51)):
        copy.mirror.extractor.object(obj, rows)
    stripe.lists["/v1/customers"].insert(0, customer(51))
    locking = await asyncpg.connect(database)
    async with asyncio.timeout(30):
        async with locking.transaction():
            await locking.execute("LOCK TABLE stripe.product")
            now = time.time()
            writing = asyncio.create_task(copy.mirror.write([(rows, AsOf(now, now + 1))]))
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database IS NOT NULL"
            while not await pg.fetchval(waits):  # noqa: ASYNC110 (another session)
                await asyncio.sleep(0.02)
            await pg.execute(heal)
            await probe(copy)
            assert not writing.done()
        await writing
        await locking.close()
    owed = "SELECT id FROM pinstripe.pending WHERE next_try_at > now()"
    assert [row[0] for row in await pg.fetch(owed)] == ["cus_51"]
    await probe(copy)
    assert await pg.fetch(owed) == []


@pytest.mark.parametrize("cause", ROWS)
async def test_events_go_on_past_a_row_that_postgres_refuses(
    cause: str, stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    await pg.execute(ROWS[cause][0])
    live = EventPoller(copy.source, RefetchWorker(copy.source), since=time.time() - 60)
    for n in range(1, 6):
        stripe.event("customer.created", named(n, bad=3))
    await live.poll()
    keys = await pg.fetch("SELECT id FROM stripe.customer WHERE id <> 'cus_mine' ORDER BY id")
    assert [row[0] for row in keys] == ["cus_1", "cus_2", "cus_4", "cus_5"]
    owed = await pg.fetch("SELECT id FROM pinstripe.pending WHERE code = 'quarantined'")
    assert [row[0] for row in owed] == ["cus_3"]
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.applied_event") == 5


async def test_a_request_for_a_row_that_is_refused_is_not_crossed_out(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    await pg.execute(ROWS["a CHECK"][0])
    live, refetches = (
        EventPoller(copy.source, RefetchWorker(copy.source), since=time.time() - 60),
        RefetchWorker(copy.source),
    )
    stripe.lists["/v1/customers"] = [named(3, bad=3)]
    stripe.event("customer.created", named(3, bad=3))
    await live.poll()
    await pg.execute("UPDATE pinstripe.pending SET next_try_at = NULL")
    await refetches.drain()
    assert "/v1/customers/cus_3" in stripe.paths()
    assert await pg.fetchval("SELECT code FROM pinstripe.pending") == "quarantined"


@pytest.mark.parametrize("cause", TABLES)
async def test_a_table_that_postgres_refuses_is_named_stops_nothing_and_heals(
    cause: str, stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    hurt, heal = TABLES[cause]
    await pg.execute(hurt)
    stripe.lists["/v1/customers"] = [customer(n) for n in range(150, 0, -1)]
    refetches = RefetchWorker(copy.source)
    live = EventPoller(copy.source, refetches, since=time.time() - 60)
    stripe.event("customer.created", customer(151))
    stripe.event("product.created", {"id": "prod_10", "object": "product", "created": 1})
    stripe.lists["/v1/customers"].insert(0, customer(151))
    await live.poll()
    assert (await backfill(copy, "customer", "product")).complete
    assert await pg.fetchval("SELECT count(*) FROM stripe.product") == 10
    held = (await status(pg)).quarantine
    assert [(q.table, q.id) for q in held] == [("customer", "")]
    assert held[0].remedy
    await pg.execute(heal)
    await probe(copy)
    assert copy.mirror.quarantine.tables == {}
    relist = Relist(only(copy, "customer", "product"), refetches, copy.budget)
    await relist._watch()
    await try_now(pg)
    await refetches.drain()
    assert await pg.fetchval("SELECT count(*) FROM stripe.customer") == 151
    assert (await status(pg)).quarantine == []
    assert await pg.fetch("SELECT * FROM pinstripe.pending") == []


@pytest.mark.parametrize(
    "hand",
    [
        "DROP TABLE stripe.customer",
        "TRUNCATE stripe.customer",
        "DELETE FROM stripe.customer",
        "DELETE FROM stripe.customer WHERE id > 'cus_2'",
        # Events go on writing after it.
        "CREATE TABLE c AS SELECT * FROM stripe.customer LIMIT 9; TRUNCATE stripe.customer;"
        "INSERT INTO stripe.customer SELECT * FROM c",
    ],
)
@pytest.mark.parametrize("listed", [150, 10], ids=["listed", "by events"])
async def test_a_table_that_was_dropped_or_emptied_is_read_again(
    listed: int, hand: str, stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    stripe.lists["/v1/customers"] = [customer(n) for n in range(listed, 0, -1)]
    await backfill(copy, "customer", "product")
    stripe.lists["/v1/customers"] = [customer(n) for n in range(150, 0, -1)]
    for n in range(listed + 1, 151):
        stripe.event("customer.created", customer(n))
    await EventPoller(copy.source, RefetchWorker(copy.source), since=time.time() - 60).poll()
    relist = Relist(only(copy, "customer", "product"), RefetchWorker(copy.source), copy.budget)
    await pg.execute("ANALYZE stripe.customer")
    await relist._watch()
    await pg.execute(hand)
    await pg.execute("SELECT pg_stat_force_next_flush()")
    await relist._watch()
    await probe(copy)
    await relist._watch()
    assert await pg.fetchval("SELECT count(*) FROM stripe.customer") == 150
    assert (await status(pg)).quarantine == []


async def test_what_no_list_shows_comes_back_into_an_emptied_table_where_a_row_refers_to_it(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    gone = {"id": "cus_gone", "object": "customer", "deleted": True}
    stripe.answers["/v1/customers/cus_gone"] = lambda _: (200, gone)
    stripe.lists["/v1/customers"] = [customer(n) for n in range(10, 0, -1)]
    charge: Object = {"id": "ch_1", "object": "charge", "created": 1, "customer": "cus_gone"}
    stripe.lists["/v1/charges"] = [charge]
    await backfill(copy, "customer", "charge")
    customers = await pg.fetch("SELECT id, deleted FROM stripe.customer ORDER BY id")
    assert ("cus_gone", True) in map(tuple, customers)
    relist = Relist(only(copy, "customer", "charge"), RefetchWorker(copy.source), copy.budget)
    await pg.execute("TRUNCATE stripe.customer")
    await pg.execute("SELECT pg_stat_force_next_flush()")
    await relist._watch()
    assert await pg.fetch("SELECT id, deleted FROM stripe.customer ORDER BY id") == customers
    assert (await status(pg)).quarantine == []


async def test_a_table_that_was_emptied_while_nobody_looked_is_read_again_at_the_start(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    stripe.lists["/v1/customers"] = [customer(n) for n in range(150, 0, -1)]
    await backfill(copy, "customer", "product")
    await pg.execute("DELETE FROM stripe.customer")
    await backfill(copy, "customer", "product")
    assert await pg.fetchval("SELECT count(*) FROM stripe.customer") == 150


async def test_ids_of_five_thousand_characters_stop_nothing(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    # As long as Stripe allows, and of a kind that no compression makes short.
    long = "".join(chr(0x4E00 + (n * 7919) % 20000) for n in range(4500))
    stripe.lists["/v1/products"].insert(
        0, {"id": long, "object": "product", "created": 1700000100, "default_price": "price_1"}
    )
    stripe.lists["/v1/prices"] = [
        {"id": f"price_{n}", "object": "price", "created": 1700000000, "product": product}
        for n, product in ((1, long), (2, "prod_1"))
    ]
    live = EventPoller(copy.source, RefetchWorker(copy.source), since=time.time() - 60)
    stripe.event("product.updated", stripe.lists["/v1/products"][0], api_version="2020-01-01")
    stripe.event("product.updated", stripe.lists["/v1/products"][1])
    await live.poll()
    assert (await backfill(copy, "product", "price")).complete
    assert await pg.fetchval("SELECT count(*) FROM stripe.product") == 9
    held = (await status(pg)).quarantine
    assert [(q.table, q.sqlstate, q.count) for q in held] == [("product", "54000", 1)]
    assert await pg.fetchval("SELECT count(*) FROM stripe.price WHERE product_id = $1", long) == 1


async def test_a_list_of_which_rows_were_refused_is_no_proof_that_they_are_gone(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    def subscription(quantity: int, second: int) -> dict[str, object]:
        items = [
            {"id": f"si_{n}", "object": "subscription_item", "quantity": quantity, "created": 1}
            for n in (1, 2)
        ]
        shown = {
            "object": "list",
            "data": items,
            "has_more": False,
            "url": "/v1/subscription_items",
        }
        return {
            "id": "sub_1",
            "object": "subscription",
            "created": 1,
            "items": shown,
            "start_date": second,
        }

    for second, quantity in ((100, 1), (200, 2)):
        found = copy.source.extract([subscription(quantity, second)], {})
        if second == 200:
            await pg.execute(
                "ALTER TABLE stripe.subscription_item ADD CHECK (id <> 'si_2' OR quantity <> 2)"
            )
        await copy.mirror.write([(found, AsOf(second, second + 1.0))], lane=LIVE_LANE)
    rows = await pg.fetch("SELECT id, quantity, deleted FROM stripe.subscription_item ORDER BY id")
    assert [tuple(row) for row in rows] == [("si_1", 2, False), ("si_2", 1, False)]
    owed = await pg.fetch('SELECT "table", id FROM pinstripe.pending ORDER BY 1')
    assert [tuple(row) for row in owed] == [
        ("subscription", "sub_1"),
        ("subscription_item", "si_2"),
    ]


async def test_parents_whose_members_could_not_go_are_fetched_when_their_table_is_healed(
    copy: Copy, pg: asyncpg.Connection
) -> None:
    def subscription(second: int, *items: str) -> dict[str, object]:
        shown = [{"id": item, "object": "subscription_item", "created": 1} for item in items]
        listed = {"object": "list", "data": shown, "has_more": False, "url": "/v1/items"}
        told = {"id": "sub_1", "object": "subscription", "created": 1, "items": listed}
        return {**told, "start_date": second}

    async def write(second: int, *items: str) -> None:
        found = copy.source.extract([subscription(second, *items)], {})
        await copy.mirror.write([(found, AsOf(second, second + 1.0))], lane=LIVE_LANE)

    many = [f"si_{number}" for number in range(40)]
    await write(100, *many, "si_gone")
    await pg.execute(
        "ALTER TABLE stripe.subscription_item ADD CONSTRAINT no CHECK (id = '') NOT VALID"
    )
    await write(200, *many)
    await write(300, *many)
    assert set(copy.mirror.quarantine.tables) == {"subscription_item"}
    due = "SELECT next_try_at <= now() FROM pinstripe.pending WHERE id = 'sub_1'"
    assert await pg.fetchval(due) is False
    await pg.execute("ALTER TABLE stripe.subscription_item DROP CONSTRAINT no")
    await probe(copy)
    assert await pg.fetchval(due) is True


@pytest.mark.parametrize("when", ["NOT DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"])
async def test_a_foreign_key_of_yours_that_keeps_what_a_list_lacks_stops_no_list(
    when: str, copy: Copy, pg: asyncpg.Connection
) -> None:
    """A list of its own, without the object that holds it."""
    line = {"id": "il_1", "object": "line_item", "invoice": "in_1"}
    lines = {"object": "list", "data": [line], "has_more": False, "url": "/v1/invoices/in_1/lines"}
    invoice: dict[str, object] = {"id": "in_1", "object": "invoice", "lines": lines}
    found = copy.source.extract([invoice], {})
    await copy.mirror.write([(found, AsOf(100, 101.0))], lane=LIVE_LANE)
    await pg.execute(f"CREATE TABLE mine (line text REFERENCES stripe.line_item {when})")
    await pg.execute("INSERT INTO mine VALUES ('il_1')")
    empty = RowSet(sets=[replace(found.sets[0], members=frozenset())])
    await copy.mirror.write([(empty, AsOf(200, 201.0))], lane=LIVE_LANE)
    assert await pg.fetchval("SELECT count(*) FROM stripe.line_item") == 1
    (held,) = (await status(pg)).quarantine
    assert (held.table, held.name) == ("line_item", "mine_line_fkey")


@pytest.mark.parametrize("when", ["NOT DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"])
async def test_a_foreign_key_of_yours_that_keeps_a_row_stops_nothing_else(
    when: str, stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    def invoice(second: int, *lines: str) -> dict[str, object]:
        shown = [
            {"id": line, "object": "line_item", "amount": second, "invoice": "in_1"}
            for line in lines
        ]
        return {
            "id": "in_1",
            "object": "invoice",
            "status": "draft",
            "created": 1,
            "total": second,
            "lines": {
                "object": "list",
                "data": shown,
                "has_more": False,
                "url": "/v1/invoices/in_1/lines",
            },
        }

    async def write(second: int, *lines: str) -> None:
        found = copy.source.extract([invoice(second, *lines)], {})
        await copy.mirror.write([(found, AsOf(second, second + 1.0))], lane=LIVE_LANE)

    lines = "SELECT array_agg(id ORDER BY id) FROM stripe.line_item"
    await write(100, "il_1", "il_2", "il_3")
    await pg.execute(f"CREATE TABLE mine (line text REFERENCES stripe.line_item (id) {when})")
    await pg.execute("INSERT INTO mine VALUES ('il_2')")
    await write(200, "il_1")
    assert await pg.fetchval("SELECT total FROM stripe.invoice") == 200
    assert await pg.fetchval("SELECT amount FROM stripe.line_item WHERE id = 'il_1'") == 200
    assert await pg.fetchval(lines) == ["il_1", "il_2", "il_3"]
    (held,) = (await status(pg)).quarantine
    assert (held.table, held.name) == ("line_item", "mine_line_fkey")
    assert "ON DELETE" in held.remedy
    owed = (
        "SELECT next_try_at < clock_timestamp() + interval '25 h' FROM pinstripe.pending"
        " WHERE \"table\" = 'invoice' AND id = 'in_1'"
    )
    assert await pg.fetchval(owed) is True
    stripe.lists["/v1/invoices"] = [invoice(300, "il_1")]
    await probe(copy)
    await try_now(pg)
    await RefetchWorker(copy.source).drain()
    assert await pg.fetchval(lines) == ["il_1", "il_2", "il_3"]
    assert await pg.fetchval(owed) is True
    await pg.execute("DELETE FROM mine")
    await probe(copy)
    await try_now(pg)
    await RefetchWorker(copy.source).drain()
    assert await pg.fetchval(lines) == ["il_1"]
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.pending") == 0


async def test_a_publication_of_all_tables_stops_nothing(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    await pg.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    stripe.lists["/v1/customers"] = [customer(n) for n in range(9, 0, -1)]
    assert (await backfill(copy, "customer", "product")).complete
    refetches = RefetchWorker(copy.source)
    live = EventPoller(copy.source, refetches, since=time.time() - 60)
    for _ in range(2):  # What is queued is changed, and in the end deleted.
        stripe.event("customer.updated", {"id": "cus_9", "object": "customer"})
        await live.poll()
    await refetches.drain()
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.pending") == 0
    keyless = await pg.fetch(
        "SELECT c.relname FROM pg_class c WHERE c.relkind = 'r' AND c.relpersistence = 'p'"
        " AND c.relnamespace IN ('stripe'::regnamespace, 'pinstripe'::regnamespace)"
        " AND c.relreplident <> 'f' AND NOT EXISTS"
        " (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)"
    )
    assert keyless == []


async def test_a_customer_who_cannot_be_erased_keeps_no_other_waiting(
    copy: Copy, pg: asyncpg.Connection
) -> None:
    await pg.execute(
        "INSERT INTO stripe.customer (id, deleted, email, _as_of, _as_of_latest, _synced_at) SELECT"
        " 'cus_' || n, true, 'a@example.com', now() - n * interval '1 h', now(), now()"
        " FROM generate_series(1, 3) n;"
        "ALTER TABLE stripe.customer ADD CONSTRAINT mine CHECK (id <> 'cus_2' OR email IS NOT NULL)"
    )
    kept = "SELECT id FROM stripe.customer WHERE email IS NOT NULL"
    await erase_due(copy.source, after_days=0.0)
    assert [row[0] for row in await pg.fetch(kept)] == ["cus_2"]
    await pg.execute("ALTER TABLE stripe.customer DROP CONSTRAINT mine")
    await erase_due(copy.source, after_days=0.0)
    assert await pg.fetch(kept) == []
