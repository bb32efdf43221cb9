"""The change feed: one entry for each change that a row went through, in the order of commits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from random import Random

import asyncpg
import pytest
from tests.postgres.writing import SCHEMA, T0, VERSION, make_schema

from pinstripe.catalog.tables import tables
from pinstripe.client.response import AsOf, Cause
from pinstripe.errors import Unwritable
from pinstripe.mirror import Mirror, open_mirror
from pinstripe.mirror.change_feed import delete_rows
from pinstripe.rows.extract import RowSet
from pinstripe.store.changes import CHANNEL
from pinstripe.store.pool import Connection
from pinstripe.store.retention import Retention

_NAMES = ("customer", "charge", "price", "event", "upcoming_customer_invoice")

Entry = tuple[str, str, str, object]
"""(table, id, kind, changes)"""


@asynccontextmanager
async def a_mirror(url: str, *, changes: bool = True, writers: int = 2) -> AsyncIterator[Mirror]:
    chosen = {n: tables()[n] for n in _NAMES}
    async with open_mirror(
        url, SCHEMA, chosen, api_version=VERSION, changes=changes, writers=writers
    ) as opened:
        yield opened


@pytest.fixture
async def mirror(database: str) -> AsyncIterator[Mirror]:
    await make_schema(database, _NAMES)
    async with a_mirror(database) as opened:
        yield opened


async def put(
    mirror: Mirror, lo: float, *objects: Mapping[str, object], cause: Cause | None = None
) -> None:
    found = RowSet()
    for obj in objects:
        mirror.extractor.object(dict(obj), found)
    await mirror.write([(found, AsOf(T0 + lo, T0 + lo + 1, cause))])


def customer(key: str = "cus_1", **fields: object) -> dict[str, object]:
    return {"id": key, "object": "customer", **fields}


async def feed(pg: Connection) -> list[Entry]:
    rows = await pg.fetch(
        'SELECT "table", id, kind, changes::text FROM pinstripe.change ORDER BY position'
    )
    return [(r[0], r[1], r[2], json.loads(r[3])) for r in rows]


async def test_it_is_off_unless_asked_for(database: str, pg: asyncpg.Connection) -> None:
    await make_schema(database, _NAMES)
    async with a_mirror(database, changes=False) as mirror:
        await put(mirror, 0, customer(name="a"))
        await put(mirror, 5, customer(name="b"))
    assert await feed(pg) == []


async def test_a_new_row_is_an_insert_of_the_columns_that_have_a_value(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    await put(mirror, 0, customer(name="Ada", balance=0, email=None, metadata={"a": "1"}))
    assert await feed(pg) == [
        (
            "customer",
            "cus_1",
            "insert",
            {
                "id": [None, "cus_1"],
                "object": [None, "customer"],
                "name": [None, "Ada"],
                "balance": [None, 0],
                "metadata": [None, {"a": "1"}],
                "deleted": [None, False],
            },
        )
    ]


async def test_an_update_holds_the_changed_columns_before_and_after(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    await put(mirror, 0, customer(name="Ada", balance=5, created=1_700_000_000))
    await put(mirror, 5, customer(name=None, balance=7, created=1_700_000_000, phone="1"))
    assert (await feed(pg))[1:] == [
        (
            "customer",
            "cus_1",
            "update",
            {"name": ["Ada", None], "balance": [5, 7], "phone": [None, "1"]},
        )
    ]


async def test_knowing_more_exactly_or_hearing_old_news_is_no_change(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    await put(mirror, 5, customer(name="Ada"))
    await put(mirror, 9, customer(name="Ada"))
    await put(mirror, 1, customer(name="old"))
    assert len(await feed(pg)) == 1


async def test_a_deletion_is_a_delete_and_a_late_page_is_nothing(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    await put(mirror, 0, customer(name="Ada"))
    await put(mirror, 5, customer(deleted=True))
    await put(mirror, 2, customer(name="Ada"))
    assert (await feed(pg))[1:] == [("customer", "cus_1", "delete", {"deleted": [False, True]})]


async def test_a_field_that_the_catalog_does_not_know_changes_too(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    await put(mirror, 0, customer(name="Ada"))
    await put(mirror, 5, customer(name="Ada", from_the_future=1))
    assert (await feed(pg))[1][3] == {"_extra": [None, {"from_the_future": 1}]}


async def test_two_states_in_one_transaction_are_two_steps(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    found = []
    for name in ("a", "b", "c"):
        one = RowSet()
        mirror.extractor.object(customer(name=name), one)
        found.append(one)
    parts = [(one, AsOf(T0 + 5 * n, T0 + 5 * n + 1)) for n, one in enumerate(found)]
    await mirror.write(parts)
    steps = [entry[3] for entry in await feed(pg)]
    assert steps[1:] == [{"name": ["a", "b"]}, {"name": ["b", "c"]}]
    assert await pg.fetchval(f"SELECT count(DISTINCT xmin::text) FROM {SCHEMA}.customer") == 1


async def test_each_entry_names_the_event_and_request_of_its_snapshot(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    await put(mirror, 0, customer(name="a"), cause=Cause("evt_1", "req_1"))
    await put(mirror, 5, customer(name="b"), cause=Cause("evt_2"))
    await put(mirror, 9, customer(name="c"))
    rows = await pg.fetch("SELECT event_id, request_id FROM pinstripe.change ORDER BY position")
    assert [tuple(r) for r in rows] == [("evt_1", "req_1"), ("evt_2", None), (None, None)]


async def test_objects_inside_others_have_the_cause_of_the_whole(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    charge = {"id": "ch_1", "object": "charge", "amount": 5, "customer": customer(name="a")}
    await put(mirror, 0, charge, cause=Cause("evt_1"))
    rows = await pg.fetch('SELECT "table", event_id FROM pinstripe.change ORDER BY 1')
    assert [tuple(r) for r in rows] == [("charge", "evt_1"), ("customer", "evt_1")]


async def test_a_first_copy_is_silent_but_for_what_was_caused(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    mirror.loading.add("customer")
    await put(mirror, 0, *(customer(f"cus_{n}", name="a") for n in range(5)))
    await put(mirror, 5, customer("cus_1", name="b"), cause=Cause("evt_1"))
    await put(mirror, 5, customer("cus_9", name="new"), cause=Cause("evt_2"))
    mirror.loading.clear()
    await put(mirror, 9, customer("cus_2", name="c"))
    assert [(e[1], e[2]) for e in await feed(pg)] == [
        ("cus_1", "update"),
        ("cus_9", "insert"),
        ("cus_2", "update"),
    ]


async def test_the_event_log_is_not_in_it(mirror: Mirror, pg: asyncpg.Connection) -> None:
    await put(mirror, 0, {"id": "evt_1", "object": "event", "type": "customer.created"})
    assert await pg.fetchval(f"SELECT count(*) FROM {SCHEMA}.event") == 1
    assert await feed(pg) == []


async def test_what_is_rolled_back_leaves_no_entry_now_or_later(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    async def fail(connection: Connection) -> None:
        raise Unwritable("no")

    found = RowSet()
    mirror.extractor.object(customer(name="never"), found)
    with pytest.raises(Unwritable):
        await mirror.write([(found, AsOf(T0, T0 + 1))], effect=fail)
    await put(mirror, 5, customer("cus_2"))
    assert [e[1] for e in await feed(pg)] == ["cus_2"]


async def test_a_preview_that_went_is_a_delete_with_what_it_held(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    table = tables()["upcoming_customer_invoice"]

    async def remove(connection: Connection) -> None:
        assert await delete_rows(connection, SCHEMA, table, "customer_id = $1", "cus_1") == 1

    found = RowSet()
    invoice = {"object": "invoice", "total": 5}
    mirror.extractor.virtual(table.name, invoice, "cus_1", found, parents={"customer": "cus_1"})
    await mirror.write([(found, AsOf(T0, T0 + 1))])
    await mirror.write([], effect=remove)
    assert (await feed(pg))[1:] == [
        (
            "upcoming_customer_invoice",
            "cus_1",
            "delete",
            {
                "customer_id": ["cus_1", None],
                "object": ["invoice", None],
                "total": [5, None],
                "deleted": [False, None],
            },
        )
    ]
    # What comes and goes in one transaction was never there.
    await mirror.write([(found, AsOf(T0 + 5, T0 + 6))], effect=remove)
    assert len(await feed(pg)) == 2


async def test_a_preview_of_which_only_the_time_of_the_look_differs_is_no_change(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    async def look(at: int, total: int) -> None:
        found = RowSet()
        invoice = {
            "object": "invoice",
            "total": total,
            "created": at,
            "period_end": at,
            "status_transitions": {"finalized_at": at, "paid_at": at},
        }
        parents = {"customer": "cus_1"}
        mirror.extractor.virtual(
            "upcoming_customer_invoice", invoice, "cus_1", found, parents=parents
        )
        await mirror.write([(found, AsOf(T0 + at, T0 + at + 1))])

    await look(0, 5)
    await look(10, 5)
    assert [kind for _, _, kind, _ in await feed(pg)] == ["insert"]
    assert await pg.fetchval(f"SELECT count(*) FROM {SCHEMA}.upcoming_customer_invoice") == 1
    await look(20, 7)
    _, (_, _, kind, changes) = await feed(pg)
    assert kind == "update"
    assert isinstance(changes, dict)
    assert changes["total"] == [5, 7]


async def test_listeners_hear_of_it_after_the_commit(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    heard: asyncio.Queue[object] = asyncio.Queue()

    def hear(_: object, __: int, ___: str, payload: object) -> None:
        heard.put_nowait(payload)

    await pg.add_listener(CHANNEL, hear)
    await put(mirror, 0, customer("cus_1"), customer("cus_2"))
    async with asyncio.timeout(5):
        assert await heard.get() == f"{SCHEMA} 2"
    await pg.remove_listener(CHANNEL, hear)


async def test_old_entries_are_dropped(mirror: Mirror, pg: asyncpg.Connection) -> None:
    await put(mirror, 0, customer("cus_1"))
    await pg.execute("UPDATE pinstripe.change SET at = at - interval '2 days'")
    await put(mirror, 0, customer("cus_2"))
    assert await Retention(timedelta(days=1)).trim(pg, "other") == 0
    assert await Retention(timedelta(days=1)).trim(pg, SCHEMA) == 1
    assert [e[1] for e in await feed(pg)] == ["cus_2"]


async def test_entries_applied_in_order_rebuild_the_rows_though_writers_race(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_schema(database, _NAMES)
    seen: list[int] = []
    async with AsyncExitStack() as stack:
        mirrors = [await stack.enter_async_context(a_mirror(database, writers=1)) for _ in range(4)]
        writing = asyncio.gather(*(_random_writes(Random(n), m) for n, m in enumerate(mirrors)))
        while not writing.done():
            # A reader that goes by position alone must meet every entry.
            rows = await pg.fetch(
                "SELECT position FROM pinstripe.change WHERE position > $1 ORDER BY 1",
                seen[-1] if seen else 0,
            )
            seen += [r[0] for r in rows]
        await writing
    entries = await pg.fetch(
        "SELECT id, kind, changes::text, position FROM pinstripe.change ORDER BY position"
    )
    assert [e["position"] for e in entries][: len(seen)] == seen
    copy: dict[str, dict[str, object]] = {}
    for key, kind, changes, _ in entries:
        if kind == "insert":
            assert key not in copy
        for column, (before, after) in json.loads(changes).items():
            assert copy.setdefault(key, {}).get(column) == before
            copy[key][column] = after
    rows = await pg.fetch(f"SELECT id, name, balance, deleted FROM {SCHEMA}.customer")
    assert len(rows) == 12
    assert len(entries) > 100
    assert seen
    for row in rows:
        assert dict(row) == {c: copy[row["id"]].get(c) for c in dict(row)}


async def _random_writes(random: Random, mirror: Mirror) -> None:
    for turn in range(40):
        chosen = random.sample(range(12), random.randint(1, 6))
        found = [
            customer(f"cus_{n}", name=random.choice("abc"), balance=random.randrange(3))
            for n in chosen
        ]
        if random.random() < 0.1:
            found[0] = customer(f"cus_{chosen[0]}", deleted=True)
        await put(mirror, float(5 * turn + random.randrange(20)), *found)
