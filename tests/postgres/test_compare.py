"""`Comparer` on a real Postgres: what counts as a difference, and what does not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import tables
from pinstripe.client.response import AsOf
from pinstripe.mirror import Mirror, open_mirror
from pinstripe.rows.extract import RowSet
from pinstripe.store.migrate import migrate
from pinstripe.sync.verify.compare import Comparer

NAMES = ("charge", "customer", "dispute", "invoice", "price", "source", "event")
WANTED = {name: tables()[name] for name in NAMES}
YESTERDAY, TODAY, NOW = 1_000_000.0, 1_086_400.0, 1_086_500.0


@pytest.fixture
async def schema(database: str, pg: asyncpg.Connection) -> str:
    found = spec()
    await migrate(
        pg, "stripe", WANTED, sdk_version=found.sdk_version, api_version=found.api_version
    )
    return database


@pytest.fixture
async def mirror(schema: str) -> AsyncIterator[Mirror]:
    async with open_mirror(schema, "stripe", WANTED, api_version=spec().api_version) as made:
        yield made


async def put(mirror: Mirror, *objects: dict[str, object], at: float = YESTERDAY) -> None:
    found = RowSet()
    for obj in objects:
        mirror.extractor.object(obj, found)
    await mirror.write([(found, AsOf(at, at + 1))])


async def compared(
    url: str,
    mirror: Mirror,
    *objects: dict[str, object],
    most: int = 100,
    loading: frozenset[str] = frozenset(),
) -> Comparer:
    """A comparer that was shown these objects now."""
    comparer = Comparer(
        url, "stripe", WANTED, mirror.extractor.shapes, since=TODAY, loading=loading, most=most
    )
    async with open_mirror(
        url,
        "stripe",
        WANTED,
        api_version=spec().api_version,
        sink=comparer,
        extractor=mirror.extractor,
    ) as comparing:
        await put(comparing, *objects, at=NOW)
    return comparer


def customer(key: str = "cus_1", **fields: object) -> dict[str, object]:
    return {"id": key, "object": "customer", "name": "Ada", "metadata": {"a": "1"}, **fields}


async def test_equal_rows_do_not_differ_and_nothing_is_written(
    schema: str, mirror: Mirror, pg: asyncpg.Connection
) -> None:
    await put(mirror, customer())
    before = await pg.fetchrow("SELECT xmin::text, * FROM stripe.customer")
    comparer = await compared(schema, mirror, customer())
    assert comparer.differences == {}
    assert await pg.fetchrow("SELECT xmin::text, * FROM stripe.customer") == before


async def test_missing_stale_deleted_and_wrongly_deleted_rows_are_told_apart(
    schema: str, mirror: Mirror
) -> None:
    await put(
        mirror,
        customer("cus_stale"),
        customer("cus_gone"),
        {"id": "cus_flagged", "object": "customer", "deleted": True},
    )
    comparer = await compared(
        schema,
        mirror,
        customer("cus_new"),
        customer("cus_stale", name="Grace", metadata={}),
        {"id": "cus_gone", "object": "customer", "deleted": True},
        customer("cus_flagged"),
    )
    kinds = {key: d.kind for (_, key), d in comparer.differences.items()}
    assert kinds == {
        "cus_new": "missing",
        "cus_stale": "stale",
        "cus_gone": "extra",
        "cus_flagged": "wrongly_deleted",
    }
    assert set(comparer.differences["customer", "cus_stale"].columns) == {"name", "metadata"}


@pytest.mark.parametrize(
    ("rate", "columns"),
    [
        ({"id": "txr_1", "object": "tax_rate", "display_name": "New"}, ()),
        ({"id": "txr_2", "object": "tax_rate", "display_name": "Old"}, ("default_tax_rates",)),
    ],
)
async def test_an_object_inside_json_is_compared_by_its_id(
    schema: str, mirror: Mirror, rate: dict[str, object], columns: tuple[str, ...]
) -> None:
    """It has a row of its own, and changes without an event of what holds it."""
    old = {"id": "txr_1", "object": "tax_rate", "display_name": "Old"}
    invoice = {"id": "in_1", "object": "invoice", "metadata": {}}
    await put(mirror, invoice | {"default_tax_rates": [old]})
    comparer = await compared(schema, mirror, invoice | {"default_tax_rates": [rate]})
    found = comparer.differences.get(("invoice", "in_1"))
    assert (found.columns if found is not None else ()) == columns


@pytest.mark.parametrize(
    ("told", "differs"),
    [
        (("dp_1", None), False),
        (("dp_2", None), False),
        ((None, None), True),  # It could be linked.
        (("dp_0", None), True),  # Of another charge.
        (("dp_1", "dp_1"), False),
        (("dp_2", "dp_1"), True),  # What the object says counts.
    ],
)
async def test_what_rows_of_others_give_differs_where_neither_they_nor_the_object_say_so(
    schema: str,
    mirror: Mirror,
    pg: asyncpg.Connection,
    told: tuple[str | None, str | None],
    differs: bool,
) -> None:
    """`told`: by the row, by the object."""
    held, named = told
    charge: dict[str, object] = {"id": "ch_1", "object": "charge", "dispute": named}
    disputes = [
        {"id": f"dp_{n}", "object": "dispute", "charge": f"ch_{n > 0:d}", "created": n}
        for n in range(3)
    ]
    await put(mirror, charge, *disputes)
    await pg.execute("UPDATE stripe.charge SET dispute_id = $1", held)
    comparer = await compared(schema, mirror, charge)
    assert (("charge", "ch_1") in comparer.differences) == differs
    if named is None:  # Until its first copy is complete, a table is not linked.
        for table in ("charge", "dispute"):
            comparer = await compared(schema, mirror, charge, loading=frozenset({table}))
            assert comparer.differences == {}


async def test_a_column_that_the_object_does_not_speak_of_does_not_differ(
    schema: str, mirror: Mirror
) -> None:
    await put(mirror, customer(email="ada@example.com"))
    comparer = await compared(schema, mirror, customer())
    assert comparer.differences == {}


async def test_unknown_fields_are_compared_too(schema: str, mirror: Mirror) -> None:
    await put(mirror, customer(field_to_come=1))
    same = await compared(schema, mirror, customer(field_to_come=1))
    other = await compared(schema, mirror, customer(field_to_come=2))
    assert same.differences == {}
    assert other.differences["customer", "cus_1"].columns == ("_extra",)


async def test_a_row_that_was_never_told_what_is_given_on_request_is_partial_and_not_stale(
    schema: str, mirror: Mirror
) -> None:
    price: dict[str, object] = {"id": "price_1", "object": "price", "unit_amount": 5}
    asked = {c.path[0] for c in WANTED["price"].columns if c.on_request}
    await put(mirror, price)
    comparer = await compared(
        schema, mirror, {**price, **dict.fromkeys(asked), "tiers": [{"up_to": 5}]}
    )
    found = comparer.differences["price", "price_1"]
    assert found.kind == "partial"
    assert "tiers" in found.columns


async def test_the_source_of_an_old_charge_is_of_another_time_and_not_compared(
    schema: str, mirror: Mirror
) -> None:
    source: dict[str, object] = {"id": "src_1", "object": "source", "status": "consumed"}
    await put(mirror, source)
    charge = {
        "id": "ch_1",
        "object": "charge",
        "created": int(YESTERDAY),
        "source": {**source, "status": "chargeable"},
    }
    comparer = await compared(schema, mirror, charge)
    assert set(comparer.differences) == {("charge", "ch_1")}


async def test_what_changes_at_stripe_and_means_nothing_is_not_compared(
    schema: str, mirror: Mirror
) -> None:
    event: dict[str, object] = {"id": "evt_1", "object": "event", "pending_webhooks": 2}
    await put(mirror, event)
    comparer = await compared(schema, mirror, {**event, "pending_webhooks": 0})
    assert comparer.differences == {}


async def test_more_differences_than_can_be_remembered_are_counted(
    schema: str, mirror: Mirror
) -> None:
    comparer = await compared(schema, mirror, *(customer(f"cus_{n}") for n in range(10)), most=4)
    assert len(comparer.differences) == 4
    assert comparer.overflow == {"customer": 6}
