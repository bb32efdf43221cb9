"""Columns that Stripe has moved are filled from where their values are today, and from old payloads."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import asyncpg
import msgspec
import pytest
from tests.postgres.writing import SCHEMA, T0, VERSION, Writing, at, make_schema, writing

from pinstripe.catalog.moved import Moved, moved_columns
from pinstripe.catalog.tables import Table, table_of_object, tables
from pinstripe.client.response import AsOf, StripeObject
from pinstripe.mirror.batch import Batch
from pinstripe.mirror.change_feed import Recorder
from pinstripe.mirror.writer import Writer
from pinstripe.rows.extract import MemberSet, RowSet
from pinstripe.store.ddl import create_all, indexes
from pinstripe.store.links import link_all
from pinstripe.store.migrate import Migration, drop_copy, effective_tables, migrate
from pinstripe.store.pool import connect

NAMES = sorted(
    {m.table for m in moved_columns()} | {"invoice_payment", "dispute", "subscription_item"}
)
NUMBERS = itertools.count()
BY_PLACE = [m for m in moved_columns() if not m.rows]


@pytest.fixture
async def w(database: str) -> AsyncIterator[Writing]:
    await make_schema(database, NAMES)
    async with writing(database, *NAMES) as made:
        yield made


def sample(moved: Moved) -> tuple[object, object]:
    """(what stands at the place, what the column is to hold)."""
    if moved.equals:
        return moved.equals, True
    if moved.words:
        return moved.words[0]
    if moved.column == "unit_amount":
        return "1250", 1250
    samples: dict[str, tuple[object, object]] = {
        "id": ("some_1", "some_1"),
        "text": ("Ada", "Ada"),
        "integer": (1250, 1250),
        "decimal": ("12.5", "12.5"),
        "boolean": (True, True),
        "time": (1_790_000_000, at(0)),
        "json": ({"city": "Oslo"}, '{"city": "Oslo"}'),
    }
    return samples[moved.read]


def with_value(table: str, place: str, value: object, *, listed: bool = False) -> StripeObject:
    """An object of the table that holds the value at the place, and nothing else there."""
    steps = place.split(".")
    for number, step in reversed(list(enumerate(steps))):
        value = [value] if step == "0" else value
        if step != "0":
            value = {step: value}
            if listed and number == 1:
                value = [value]
    assert isinstance(value, dict)
    return {"id": f"{table}_1", "object": tables()[table].object_type, **value}


async def test_a_column_is_filled_from_every_place_of_its_value(w: Writing) -> None:
    for moved, place in ((m, p) for m in BY_PLACE for p in m.places):
        sent, held = sample(moved)
        obj = with_value(moved.table, place, sent, listed=moved.sum)
        assert await held_by(w, moved, obj) == held, (moved, place)


async def test_a_payload_of_an_older_version_fills_it(w: Writing) -> None:
    for moved, place in ((m, p) for m in moved_columns() for p in m.was):
        plain = msgspec.structs.replace(moved, words=(), equals="")
        sent, held = (1250, 1250) if moved.column == "unit_amount" else sample(plain)
        assert await held_by(w, moved, with_value(moved.table, place, sent)) == held, (moved, place)
        if moved.read == "id":
            whole = with_value(moved.table, place, {"id": "whole_1", "object": "novelty"})
            assert await held_by(w, moved, whole) == "whole_1", (moved, place)


async def held_by(w: Writing, moved: Moved, obj: StripeObject) -> object:
    """What the column holds for this object."""
    obj["id"] = f"{moved.column}_{next(NUMBERS)}"
    await w.put((obj, 0, 1))
    value = (await w.row(moved.table, str(obj["id"])))[moved.column]
    return str(value) if moved.read == "decimal" else value


async def test_an_odd_value_at_a_place_fails_no_row(w: Writing) -> None:
    objects: list[StripeObject] = []
    odds: tuple[object, ...] = (
        "text",
        1.5,
        10**30,
        -(10**30),
        True,
        [],
        {},
        [[]],
        None,
        "NaN",
        10**17,
    )
    for odd in odds:
        for moved, place in ((m, p) for m in moved_columns() for p in (*m.places, *m.was)):
            obj = with_value(moved.table, place, odd, listed=moved.sum)
            objects.append({**obj, "id": f"odd_{next(NUMBERS)}"})
    await w.put(*((obj, 0, 1) for obj in objects))
    for obj in objects[-10:]:
        assert await w.row(table_of_object()[str(obj["object"])], str(obj["id"]))


async def test_tax_is_the_sum_of_all_taxes(w: Writing) -> None:
    tax = next(m for m in moved_columns() if m.sum)
    cases: tuple[tuple[list[int], int | None], ...] = (
        ([], None),
        ([7], 7),
        ([7, 5], 12),
        ([1] * 16, 16),
        ([1] * 40, 40),
    )
    for amounts, total in cases:
        # Beyond what the column names one by one, Stripe's own totals say it.
        obj: StripeObject = {"object": "invoice", "total": 140, "total_excluding_tax": 100}
        obj["total_taxes"] = [{"amount": amount} for amount in amounts]
        assert await held_by(w, tax, obj) == total


async def test_every_moved_column_is_there_typed_commented_and_indexed(w: Writing) -> None:
    for moved in moved_columns():
        table = tables()[moved.table]
        column = table.column(moved.column)
        found = await w.pg.fetchrow(
            "SELECT format_type(a.atttypid, NULL) AS kind,"
            " col_description(a.attrelid, a.attnum) AS comment FROM pg_attribute a"
            " WHERE a.attrelid = $1::regclass AND a.attname = $2",
            f'{SCHEMA}."{moved.table}"',
            moved.column,
        )
        assert found is not None, moved
        assert found["kind"].replace("timestamp with time zone", "timestamptz") == column.type
        for target in moved.references:
            assert f"References {target}.id" in found["comment"]
            assert any(f'("{moved.column}")' in text for _, text in indexes(SCHEMA, table))
        assert moved.takes_first == ("Of several values it is the first" in found["comment"])


PAYMENT: StripeObject = {
    "id": "inpay_1",
    "object": "invoice_payment",
    "invoice": "in_1",
    "is_default": True,
    "payment": {"type": "payment_intent", "payment_intent": "pi_1"},
}
INVOICE: StripeObject = {"id": "in_1", "object": "invoice", "status": "paid"}
INTENT: StripeObject = {"id": "pi_1", "object": "payment_intent", "latest_charge": "ch_1"}
CHARGE: StripeObject = {"id": "ch_1", "object": "charge", "payment_intent": "pi_1"}
DISPUTE: StripeObject = {
    "id": "dp_1",
    "object": "dispute",
    "charge": "ch_1",
    "created": 1_790_000_000,
}
SUBSCRIPTION: StripeObject = {"id": "sub_1", "object": "subscription"}
ITEM: StripeObject = {
    "id": "si_1",
    "object": "subscription_item",
    "subscription": "sub_1",
    "created": 1_790_000_000,
    "current_period_start": 1_790_000_000,
    "current_period_end": 1_790_000_060,
}
OTHERS: list[StripeObject] = [
    {"id": "in_2", "object": "invoice", "status": "open"},
    {"id": "pi_2", "object": "payment_intent", "latest_charge": "ch_3"},
    {**CHARGE, "id": "ch_2"},
    {"id": "sub_2", "object": "subscription"},
]
LINKED = [PAYMENT, INVOICE, INTENT, CHARGE, DISPUTE, SUBSCRIPTION, ITEM]


async def links(w: Writing) -> dict[str, object]:
    invoice, intent = await w.row("invoice", "in_1"), await w.row("payment_intent", "pi_1")
    charge, subscription = await w.row("charge", "ch_1"), await w.row("subscription", "sub_1")
    return {
        "invoice.payment_intent": invoice["payment_intent_id"],
        "invoice.charge": invoice["charge_id"],
        "payment_intent.invoice": intent["invoice_id"],
        "charge.invoice": charge["invoice_id"],
        "charge.dispute": charge["dispute_id"],
        "subscription.start": subscription["current_period_start"],
        "subscription.end": subscription["current_period_end"],
    }


ALL_LINKS = {
    "invoice.payment_intent": "pi_1",
    "invoice.charge": "ch_1",
    "payment_intent.invoice": "in_1",
    "charge.invoice": "in_1",
    "charge.dispute": "dp_1",
    "subscription.start": at(0),
    "subscription.end": at(60),
}


async def test_rows_that_decide_may_come_in_any_order(w: Writing) -> None:
    turns = [LINKED[turn:] + LINKED[:turn] for turn in range(len(LINKED))]
    for order in (*turns, *(turn[::-1] for turn in turns)):
        for table in {table_of_object()[str(obj["object"])] for obj in order}:
            await w.pg.execute(f"DELETE FROM {SCHEMA}.{table}")
        for obj in order:
            await w.put((obj, 0, 1))
        assert await links(w) == ALL_LINKS, [obj["id"] for obj in order]


async def test_they_are_set_in_the_commit_of_the_row_that_decides(w: Writing) -> None:
    await w.put(*((obj, 0, 1) for obj in LINKED if obj is not PAYMENT))
    assert (await w.row("charge", "ch_1"))["invoice_id"] is None
    await w.put((PAYMENT, 0, 1))
    writers = [
        row[0]
        for row in await w.pg.fetch(
            f"SELECT xmin::text FROM {SCHEMA}.charge UNION SELECT xmin::text FROM {SCHEMA}.invoice"
            f" UNION SELECT xmin::text FROM {SCHEMA}.invoice_payment"
        )
    ]
    assert len(writers) == 1
    assert await links(w) == ALL_LINKS


async def test_a_newer_snapshot_keeps_what_other_rows_gave(w: Writing) -> None:
    await w.put(*((obj, 0, 1) for obj in LINKED))
    newer = [{**CHARGE, "dispute": None}, {**INVOICE, "status": "void"}, INTENT, SUBSCRIPTION]
    assert await w.put(*((obj, 10, 11) for obj in newer)) == []
    assert await links(w) == ALL_LINKS
    overlapping = {**CHARGE, "dispute": None}
    assert await w.put((overlapping, 10.5, 11.5)) == []  # The same content: no conflict.


async def test_a_newer_snapshot_puts_right_what_a_hand_changed(w: Writing) -> None:
    await w.put(*((obj, 0, 1) for obj in LINKED))
    await w.pg.execute(
        f"UPDATE {SCHEMA}.invoice SET charge_id = 'by hand', payment_intent_id = NULL;"
        f"UPDATE {SCHEMA}.subscription SET current_period_end = NULL"
    )
    canceled = {**SUBSCRIPTION, "status": "canceled"}
    await w.put(({**INVOICE, "status": "void"}, 10, 11), (canceled, 10, 11))
    assert await links(w) == ALL_LINKS


async def test_what_the_object_says_itself_counts_more_than_rows_of_others(w: Writing) -> None:
    """A charge with two disputes names one of them; it is not written anew each time it is read."""
    second = {**DISPUTE, "id": "dp_2", "created": 1_790_000_100}
    named = {**CHARGE, "dispute": "dp_1"}
    for order in ((named, DISPUTE, second), (second, DISPUTE, named)):
        await w.pg.execute(f"DELETE FROM {SCHEMA}.charge; DELETE FROM {SCHEMA}.dispute")
        for obj in order:
            await w.put((obj, 0, 1))
        row = await w.row("charge", "ch_1")
        assert row["dispute_id"] == "dp_1", [obj["id"] for obj in order]
        assert await w.put((named, 10, 11)) == []
        assert (await w.row("charge", "ch_1"))["_synced_at"] == row["_synced_at"]


REPOINTED: list[tuple[StripeObject, dict[str, object]]] = [
    # (a row that decides, anew; what the columns of `links`, and those of the others, hold then)
    ({**INTENT, "latest_charge": "ch_2"}, {"invoice.charge": "ch_2"}),
    ({**INTENT, "latest_charge": None}, {"invoice.charge": None}),
    (
        {**PAYMENT, "invoice": "in_2"},
        {
            "invoice.payment_intent": None,
            "invoice.charge": None,
            "payment_intent.invoice": "in_2",
            "charge.invoice": "in_2",
            "other invoice": ("pi_1", "ch_1"),
            "other charge": "in_2",
        },
    ),
    (
        {**PAYMENT, "payment": {"type": "payment_intent", "payment_intent": "pi_2"}},
        {
            "invoice.payment_intent": "pi_2",
            "invoice.charge": "ch_3",
            "payment_intent.invoice": None,
            "charge.invoice": None,
            "other charge": None,
        },
    ),
    (
        {**PAYMENT, "invoice": "in_2", "payment": {"type": "charge", "charge": "ch_2"}},
        {
            "invoice.payment_intent": None,
            "invoice.charge": None,
            "payment_intent.invoice": None,
            "charge.invoice": None,
            "other invoice": (None, "ch_2"),
            "other charge": "in_2",
        },
    ),
    (
        {**ITEM, "subscription": "sub_2"},
        {"subscription.start": None, "subscription.end": None},
    ),
    ({**ITEM, "current_period_end": 1_790_000_090}, {"subscription.end": at(90)}),
    (
        {**CHARGE, "payment_intent": "pi_2"},
        {"charge.invoice": None},
    ),
]


@pytest.mark.parametrize(("row", "held"), REPOINTED)
async def test_all_rows_are_right_where_one_that_decides_refers_to_another(
    w: Writing, row: StripeObject, held: dict[str, object]
) -> None:
    """Those that it gave a value before, too, in the same commit."""
    await w.put(*((obj, 0, 1) for obj in (*LINKED, *OTHERS)))
    await w.put((row, 10, 11))
    other = await w.row("invoice", "in_2")
    others = {
        "other invoice": (other["payment_intent_id"], other["charge_id"]),
        "other charge": (await w.row("charge", "ch_2"))["invoice_id"],
    }
    usual = {**ALL_LINKS, "other invoice": (None, None), "other charge": "in_1"}
    assert {**await links(w), **others} == {**usual, **held}


async def test_the_period_is_that_of_the_oldest_item_that_is_left(w: Writing) -> None:
    second = {**ITEM, "id": "si_2", "current_period_end": 1_790_000_120}
    await w.put((SUBSCRIPTION, 0, 1), (second, 0, 1), (ITEM, 0, 1))
    assert (await w.row("subscription", "sub_1"))["current_period_end"] == at(60)
    await w.put(({"id": "si_1", "object": "subscription_item", "deleted": True}, 10, 11))
    assert (await w.row("subscription", "sub_1"))["current_period_end"] == at(120)


async def test_a_row_that_a_complete_list_removes_decides_no_more(w: Writing) -> None:
    """Of a list by parent: it writes no row of the parent."""
    second = {**ITEM, "id": "si_2", "current_period_end": 1_790_000_120}
    await w.put((SUBSCRIPTION, 0, 1), (ITEM, 0, 1), (second, 0, 1))
    assert (await w.row("subscription", "sub_1"))["current_period_end"] == at(60)
    listed = RowSet()
    place = MemberSet("subscription", "sub_1", "", frozenset({"si_2"}), ("subscription_item",))
    listed.sets.append(place)
    for lo, write in ((10, w.writer.write), (20, w.writer.write_apart)):
        await w.pg.execute(f"UPDATE {SCHEMA}.subscription_item SET deleted = NULL")
        await w.put((SUBSCRIPTION, 0, 1))
        batch = Batch(VERSION, w.writer._tables)
        batch.add(listed, AsOf(T0 + lo, T0 + lo + 1))
        await write(batch)
        assert (await w.row("subscription", "sub_1"))["current_period_end"] == at(120)


@pytest.mark.parametrize("first", [PAYMENT, CHARGE], ids=["payment", "charge"])
async def test_two_writers_at_once_miss_no_link(
    w: Writing, database: str, first: StripeObject
) -> None:
    """Neither sees the other's row before it commits; without the lock the column stayed null."""
    second = CHARGE if first is PAYMENT else PAYMENT
    other = Writer(database, SCHEMA, w.writer._tables, w.extractor.shapes)
    is_written, may_commit = asyncio.Event(), asyncio.Event()

    async def hold(_: object) -> None:
        is_written.set()
        await may_commit.wait()

    batch = batch_of(w, first)
    batch.effects = [hold]
    slow = asyncio.create_task(w.writer.write(batch))
    await is_written.wait()
    quick = asyncio.create_task(other.write(batch_of(w, second)))
    # Until it waits for the first, or has passed it.
    while not quick.done() and not await w.pg.fetchval(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
    ):
        await asyncio.wait([quick], timeout=0.01)
    may_commit.set()
    await asyncio.gather(slow, quick)
    await other.close()
    assert (await w.row("charge", "ch_1"))["invoice_id"] == "in_1"


def batch_of(w: Writing, *objects: StripeObject, loading: set[str] | None = None) -> Batch:
    batch = Batch(VERSION, w.writer._tables, loading=loading or set())
    for obj in objects:
        found = RowSet()
        w.extractor.object(obj, found)
        batch.add(found, AsOf(1.0, 2.0))
    return batch


async def test_rows_of_the_initial_load_are_linked_at_its_end(w: Writing) -> None:
    await w.writer.write(batch_of(w, *LINKED, loading=set(NAMES)))
    assert set((await links(w)).values()) == {None}
    async with w.pg.transaction():
        await link_all(w.pg, SCHEMA, w.writer._tables, NAMES)
    assert await links(w) == ALL_LINKS


async def test_without_the_rows_that_decide_an_older_payload_fills_it(database: str) -> None:
    """And what they gave it while they were synced stays."""
    await make_schema(database, ["charge", "subscription"])
    old: list[StripeObject] = [
        {**CHARGE, "invoice": "in_old", "dispute": "dp_sent"},
        {**SUBSCRIPTION, "current_period_end": 1_790_000_090},
    ]
    async with writing(database, "charge", "subscription") as w:
        await w.writer.write(batch_of(w, *old, loading={"charge", "subscription"}))
        async with w.pg.transaction():
            await link_all(w.pg, SCHEMA, w.writer._tables, {"charge", "subscription"})
        for lo in (10, 20):
            row = await w.row("charge", "ch_1")
            assert (row["invoice_id"], row["dispute_id"]) == ("in_old", "dp_sent")
            assert (await w.row("subscription", "sub_1"))["current_period_end"] == at(90)
            await w.pg.execute(f"UPDATE {SCHEMA}.charge SET invoice_id = NULL")
            await w.put(*(({**obj, "metadata": {"n": str(lo)}}, lo, lo + 1) for obj in old))
        await w.pg.execute(f"UPDATE {SCHEMA}.charge SET invoice_id = 'in_given', _extra = NULL")
        await w.put(({**CHARGE, "metadata": {}}, 30, 31))
        assert (await w.row("charge", "ch_1"))["invoice_id"] == "in_given"


async def test_a_constraint_of_the_user_on_a_linked_column_stops_no_row(w: Writing) -> None:
    await w.put((CHARGE, 0, 1))
    await w.pg.execute(f"ALTER TABLE {SCHEMA}.charge ADD CHECK (invoice_id IS NULL)")
    parted = await w.writer.write_apart(batch_of(w, PAYMENT))
    assert (parted.rows, parted.tables) == ([], {})
    assert await w.row("invoice_payment", "inpay_1")


async def test_the_change_feed_tells_of_them(w: Writing, database: str) -> None:
    recorder = Recorder(SCHEMA, set())
    writer = Writer(database, SCHEMA, w.writer._tables, w.extractor.shapes, recorder=recorder)
    await writer.write(batch_of(w, CHARGE))
    await writer.write(batch_of(w, PAYMENT))
    await writer.close()
    rows = await w.pg.fetch(
        "SELECT kind, changes FROM pinstripe.change WHERE \"table\" = 'charge' ORDER BY position"
    )
    assert rows[-1]["kind"] == "update"
    assert json.loads(rows[-1]["changes"]) == {"invoice_id": [None, "in_1"]}


def before(table: Table) -> Table:
    """The table as a version had it that did not know of moved columns."""
    columns = tuple(c for c in table.columns if not c.is_derived)
    return replace(table, columns=columns, linked=())


async def test_a_migration_adds_and_fills_them_without_stripe(database: str) -> None:
    older = {name: before(tables()[name]) for name in NAMES}
    async with writing(database, effective=older) as w:
        await to(w.pg, older)
        parent = {"parent": {"subscription_details": {"subscription": "sub_1"}}}
        old: StripeObject = {
            "id": "in_2",
            "object": "invoice",
            "subscription": "sub_2",
            "charge": "ch_2",
        }
        await w.put(*((obj, 0, 1) for obj in LINKED), ({**INVOICE, **parent}, 2, 3), (old, 0, 1))
        done = await to(w.pg, {name: tables()[name] for name in NAMES})
        assert done.relist == []
        assert ("invoice", "subscription_id") in done.added
        assert {k: v for k, v in (await links(w)).items() if k != "charge.dispute"} == {
            k: v for k, v in ALL_LINKS.items() if k != "charge.dispute"
        }
        assert (await w.row("charge", "ch_1"))["dispute_id"] == "dp_1"
        assert (await w.row("invoice", "in_1"))["subscription_id"] == "sub_1"
        row = await w.row("invoice", "in_2")
        assert (row["subscription_id"], row["charge_id"]) == ("sub_2", "ch_2")


OF_SUBSCRIPTION = {"parent": {"subscription_details": {"subscription": "sub_1"}}}


async def test_a_migration_rewrites_no_table_and_a_second_one_does_nothing(database: str) -> None:
    """A GENERATED column would rewrite it, with every reader locked out."""
    older, newer = {"invoice": before(tables()["invoice"])}, {"invoice": tables()["invoice"]}
    async with writing(database, effective=older) as w:
        await to(w.pg, older)
        await w.put(({**INVOICE, **OF_SUBSCRIPTION}, 0, 1))
        file = await w.pg.fetchval(f"SELECT pg_relation_filenode('{SCHEMA}.invoice')")
        assert (await to(w.pg, newer)).relist == []
        assert file == await w.pg.fetchval(f"SELECT pg_relation_filenode('{SCHEMA}.invoice')")
        made = await w.row("invoice", "in_1")
        assert made["subscription_id"] == "sub_1"
        place = await w.place("invoice", "in_1")
        assert (await to(w.pg, newer)).added == []
        assert place == await w.place("invoice", "in_1")


async def test_columns_that_a_migration_added_follow_every_write(database: str) -> None:
    older, newer = {"invoice": before(tables()["invoice"])}, {"invoice": tables()["invoice"]}
    async with writing(database, effective=older) as w:
        await to(w.pg, older)
    async with writing(database, effective=newer) as w:
        await to(w.pg, newer)
        many: StripeObject = {"id": "in_3", "object": "invoice", "total": 140}
        many |= {"total_excluding_tax": 100, "total_taxes": [{"amount": 1}] * 40}
        await w.put((INVOICE, 0, 1), (many, 0, 1))
        assert (await w.row("invoice", "in_1"))["subscription_id"] is None
        assert (await w.row("invoice", "in_3"))["tax"] == 40
        await w.put(({**INVOICE, **OF_SUBSCRIPTION}, 10, 11))
        assert (await w.row("invoice", "in_1"))["subscription_id"] == "sub_1"
        await w.pg.execute(f"UPDATE {SCHEMA}.invoice SET subscription_id = 'by hand'")
        await w.put(({**INVOICE, **OF_SUBSCRIPTION}, 20, 21))
        assert (await w.row("invoice", "in_1"))["subscription_id"] == "sub_1"


async def test_a_snapshot_without_the_field_keeps_the_value(w: Writing) -> None:
    await w.put(({**INVOICE, **OF_SUBSCRIPTION}, 0, 1))
    await w.put(({**INVOICE, "status": "void"}, 10, 11))
    row = await w.row("invoice", "in_1")
    assert (row["subscription_id"], row["paid"]) == ("sub_1", False)
    await w.put(({**INVOICE, "parent": None}, 20, 21))
    assert (await w.row("invoice", "in_1"))["subscription_id"] is None


async def test_a_migration_fills_what_a_write_would_have_filled(database: str) -> None:
    """From the columns of the row, where a write has the object."""
    older = {name: before(tables()[name]) for name in NAMES}
    newer = {name: tables()[name] for name in NAMES}
    odds: tuple[object, ...] = ("12", "12.50", "1e5", 7, 1.5, 10**20, True, [], {}, [[]], "sk_x")
    objects: list[StripeObject] = []
    for moved in BY_PLACE:
        for place in (*moved.places, *moved.was):
            for value in (*odds, sample(moved)[0], {"id": "whole_1", "object": "novelty"}):
                obj = with_value(moved.table, place, value, listed=moved.sum)
                objects.append({**obj, "id": f"{moved.column}_{next(NUMBERS)}"})
    async with writing(database, effective=older) as w:
        await to(w.pg, older)
        await w.put(*((obj, 0, 1) for obj in objects))
        assert (await to(w.pg, newer)).relist == []
        filled = await contents(w.pg)
    async with writing(database, effective=newer) as w:
        await w.pg.execute("; ".join(f"TRUNCATE {SCHEMA}.{name}" for name in NAMES))
        await w.put(*((obj, 0, 1) for obj in objects))
        assert filled == await contents(w.pg)


async def contents(pg: asyncpg.Connection) -> dict[str, list[str]]:
    """Table -> its rows as text, without our own columns."""
    ours = "'{_as_of,_as_of_latest,_synced_at}'::text[]"
    return {
        name: [
            row[0]
            for row in await pg.fetch(
                f"SELECT (to_jsonb(t) - {ours})::text FROM {SCHEMA}.{name} t ORDER BY id"
            )
        ]
        for name in NAMES
    }


async def test_a_source_that_the_user_retyped_gives_its_value_all_the_same(database: str) -> None:
    older, newer = {"invoice": before(tables()["invoice"])}, {"invoice": tables()["invoice"]}
    async with connect(database) as pg:
        await to(pg, older)
        await to(pg, newer)
        await pg.execute(f"ALTER TABLE {SCHEMA}.invoice ALTER total_taxes TYPE text")
        await to(pg, newer)
        effective = await effective_tables(pg, SCHEMA, newer)
    async with writing(database, effective=effective) as w:
        await w.put(({**INVOICE, "total_taxes": [{"amount": 7}], **OF_SUBSCRIPTION}, 0, 1))
        row = await w.row("invoice", "in_1")
        assert (row["subscription_id"], row["tax"]) == ("sub_1", 7)


async def test_what_earlier_versions_had_postgres_compute_stays_and_is_ordinary(
    database: str,
) -> None:
    """A trigger, or GENERATED: tables that were made then keep their values and are not rewritten."""
    newer = {name: tables()[name] for name in ("invoice", "line_item")}
    async with writing(database, effective=newer) as w:
        await to(w.pg, newer)
        await w.pg.execute(f"""
            ALTER TABLE {SCHEMA}.invoice DROP paid,
              ADD paid boolean GENERATED ALWAYS AS (status = 'paid') STORED;
            CREATE FUNCTION {SCHEMA}.line_item_derived() RETURNS trigger LANGUAGE plpgsql
              AS 'BEGIN NEW.type := ''subscription''; RETURN NEW; END';
            CREATE TRIGGER pinstripe_derived BEFORE INSERT OR UPDATE ON {SCHEMA}.line_item
              FOR EACH ROW EXECUTE FUNCTION {SCHEMA}.line_item_derived();
            INSERT INTO {SCHEMA}.invoice (id, status, _as_of, _as_of_latest, _synced_at)
              VALUES ('in_1', 'paid', now() - interval '9 years', now() - interval '9 years', now());
        """)
        place = await w.place("invoice", "in_1")
        file = await w.pg.fetchval(f"SELECT pg_relation_filenode('{SCHEMA}.invoice')")
        assert (await to(w.pg, newer)).relist == []
        assert (await w.row("invoice", "in_1"))["paid"] is True
        assert place == await w.place("invoice", "in_1")
        assert file == await w.pg.fetchval(f"SELECT pg_relation_filenode('{SCHEMA}.invoice')")
        line: StripeObject = {"id": "il_1", "object": "line_item"}
        line |= {"parent": {"type": "invoice_item_details"}}
        await w.put(({**INVOICE, "status": "void"}, 0, 1), (line, 0, 1))
        assert (await w.row("invoice", "in_1"))["paid"] is False
        assert (await w.row("line_item", "il_1"))["type"] == "invoiceitem"
        await drop_copy(database, SCHEMA)
        assert not await w.pg.fetchval("SELECT to_regnamespace($1) IS NOT NULL", SCHEMA)


async def to(pg: asyncpg.Connection, known: Mapping[str, Table]) -> Migration:
    return await migrate(pg, SCHEMA, known, sdk_version="16.1.0", api_version=VERSION)


def test_postgres_computes_no_column() -> None:
    """One row of `invoice` took 624 us with generated columns, 267 us with a trigger, 152 us without."""
    made = create_all(SCHEMA, tables().values())
    assert " GENERATED " not in made
    assert " TRIGGER " not in made


REFUSED = (
    "INSERT INTO stripe.{0} (id, status, _as_of, _as_of_latest, _synced_at)"
    " VALUES ('bad', 'paid', now(), now(), now());"
    "ALTER TABLE stripe.{0} ADD CONSTRAINT mine CHECK (id <> 'bad') NOT VALID"
)
"""A row that no update may touch any more: a constraint of the user, and a row that is older."""


async def test_a_row_that_postgres_refuses_stops_no_migration(w: Writing) -> None:
    await w.pg.execute(REFUSED.format("invoice"))
    await w.pg.execute("ALTER TABLE stripe.invoice DROP COLUMN paid")
    wanted = w.writer._tables
    done = await migrate(w.pg, SCHEMA, wanted, sdk_version="2", api_version=VERSION)
    assert (done.added, done.relist) == ([("invoice", "paid")], ["invoice"])
    assert (await migrate(w.pg, SCHEMA, wanted, sdk_version="2", api_version=VERSION)).relist == []


async def test_a_row_that_postgres_refuses_does_not_keep_other_tables_from_their_links(
    w: Writing,
) -> None:
    await w.pg.execute(REFUSED.format("charge"))
    now = "now(), now(), now()"
    columns = "_as_of, _as_of_latest, _synced_at"
    await w.pg.execute(
        f"INSERT INTO stripe.dispute (id, charge_id, {columns}) VALUES ('dp_1', 'bad', {now});"
        f"INSERT INTO stripe.invoice (id, {columns}) VALUES ('in_1', {now});"
        "INSERT INTO stripe.invoice_payment (id, invoice_id, payment_charge_id, is_default,"
        f" {columns}) VALUES ('inpay_1', 'in_1', 'ch_1', true, {now})"
    )
    async with w.pg.transaction():
        await link_all(w.pg, SCHEMA, w.writer._tables, NAMES)
    assert await w.pg.fetchval("SELECT dispute_id FROM stripe.charge WHERE id = 'bad'") is None
    assert await w.pg.fetchval("SELECT charge_id FROM stripe.invoice WHERE id = 'in_1'") == "ch_1"
