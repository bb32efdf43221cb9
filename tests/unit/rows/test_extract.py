"""The rules of the rows that are worth a sentence each; each fixed bug has one here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pinstripe.catalog.embedded import NOT_PRESENT, is_present
from pinstripe.catalog.model import Field, object_types
from pinstripe.catalog.tables import Column, Table, has_table, table_name, tables
from pinstripe.rows.extract import Extractor, RowSet
from pinstripe.rows.layout import Shapes

EXTRACTOR = Extractor()


def extract(obj: dict[str, Any]) -> RowSet:
    found = RowSet()
    EXTRACTOR.object(obj, found)
    return found


def value(found: RowSet, table: str, key: str, column: str) -> Any:
    names = [c.name for c in tables()[table].columns]
    return found.rows[table][key][names.index(column)]


def extra(found: RowSet, table: str, key: str) -> Any:
    text = found.rows[table][key][len(tables()[table].columns)]
    return None if text is None else json.loads(text)


def shape(found: RowSet, table: str, key: str) -> tuple[str, ...]:
    return EXTRACTOR.shapes.columns(found.rows[table][key][-1])


def test_an_expanded_object_is_an_id_here_and_a_row_there() -> None:
    found = extract(
        {"id": "ch_1", "object": "charge", "customer": {"id": "cus_1", "object": "customer"}}
    )
    assert value(found, "charge", "ch_1", "customer_id") == "cus_1"
    assert "cus_1" in found.rows["customer"]
    assert extra(found, "charge", "ch_1") is None


def test_a_deleted_stub_is_flagged_and_speaks_of_nothing_else() -> None:
    found = extract({"id": "cus_1", "object": "customer", "deleted": True})
    assert value(found, "customer", "cus_1", "deleted") is True
    assert set(shape(found, "customer", "cus_1")) == {"id", "object", "deleted"}


def test_a_name_that_each_account_has_is_a_row_of_each() -> None:
    found = RowSet()
    for account in ("acct_1A", {"id": "acct_1B", "object": "account"}):
        EXTRACTOR.object({"id": "transfers", "object": "capability", "account": account}, found)
    assert set(found.rows["capability"]) == {"acct_1A/transfers", "acct_1B/transfers"}
    assert value(found, "capability", "acct_1B/transfers", "account_id") == "acct_1B"


def test_an_object_without_deleted_is_not_deleted() -> None:
    found = extract({"id": "cus_1", "object": "customer"})
    assert value(found, "customer", "cus_1", "deleted") is False


def test_deleted_goes_to_extra_where_a_table_cannot_say_it() -> None:
    found = extract({"id": "sub_1", "object": "subscription", "deleted": True})
    assert extra(found, "subscription", "sub_1") == {"deleted": True}


def test_a_deleted_that_is_no_boolean_goes_to_extra() -> None:
    found = extract({"id": "cus_1", "object": "customer", "deleted": "yes"})
    assert value(found, "customer", "cus_1", "deleted") is False
    assert extra(found, "customer", "cus_1") == {"deleted": "yes"}


def test_entries_of_a_list_carry_their_parent_and_a_cut_list_is_noted() -> None:
    entry = {"id": "li_1", "object": "item", "amount_total": 5}
    lines = {"object": "list", "data": [entry], "has_more": True, "url": "/v1/x/cs_1/line_items"}
    found = extract({"id": "cs_1", "object": "checkout.session", "line_items": lines})
    assert value(found, "item", "li_1", "checkout_session_id") == "cs_1"
    [cut] = found.lists
    assert (cut.url, cut.parent_table, cut.parent_id) == (
        "/v1/x/cs_1/line_items",
        "checkout_session",
        "cs_1",
    )
    assert (cut.child_table, cut.last_id, cut.count) == ("item", "li_1", 1)


def test_what_a_list_says_beyond_its_entries_goes_to_extra() -> None:
    lines = {"object": "list", "data": [], "has_more": False, "url": "/x", "sum": 3}
    found = extract({"id": "in_1", "object": "invoice", "lines": lines})
    assert extra(found, "invoice", "in_1") == {"lines": {"sum": 3}}


def test_a_list_with_an_entry_that_has_no_id_is_kept_whole() -> None:
    lines = {"object": "list", "data": [{"id": None, "object": "line_item", "amount": 1}]}
    found = extract({"id": "in_1", "object": "invoice", "lines": lines})
    assert extra(found, "invoice", "in_1") == {"lines": lines}


def test_a_list_that_does_not_call_itself_one_is_kept_whole() -> None:
    lines = {"data": [{"id": "il_1", "object": "line_item"}]}
    found = extract({"id": "in_1", "object": "invoice", "lines": lines})
    assert extra(found, "invoice", "in_1") == {"lines": lines}


def test_an_entry_that_cannot_name_its_parent_is_kept_in_the_list() -> None:
    sources = {"object": "list", "data": [{"id": "acct_1", "object": "account"}]}
    found = extract({"id": "cus_1", "object": "customer", "sources": sources})
    assert extra(found, "customer", "cus_1") == {"sources": sources}
    assert "acct_1" in found.rows["account"]


def test_a_reference_to_a_type_that_the_column_does_not_expect_is_kept_whole() -> None:
    card = {"id": "card_1", "object": "card", "last4": "4242"}
    found = extract({"id": "ch_1", "object": "charge", "payment_method": card})
    assert value(found, "charge", "ch_1", "payment_method_id") == "card_1"
    assert extra(found, "charge", "ch_1") == {"payment_method": card}
    assert "card_1" in found.rows["card"]


def test_a_polymorphic_reference_knows_its_type_from_the_id() -> None:
    found = extract({"id": "txn_1", "object": "balance_transaction", "source": "ch_1"})
    assert value(found, "balance_transaction", "txn_1", "source_object") == "charge"


def test_a_polymorphic_reference_with_an_unknown_prefix_has_no_type() -> None:
    found = extract({"id": "txn_1", "object": "balance_transaction", "source": "what_1"})
    assert value(found, "balance_transaction", "txn_1", "source_id") == "what_1"
    assert value(found, "balance_transaction", "txn_1", "source_object") is None


def test_a_polymorphic_reference_takes_its_type_from_the_object_itself() -> None:
    charge = {"id": "py_1", "object": "charge"}
    found = extract({"id": "txn_1", "object": "balance_transaction", "source": charge})
    assert value(found, "balance_transaction", "txn_1", "source_object") == "charge"
    assert "py_1" in found.rows["charge"]


def test_an_array_of_references_keeps_an_object_that_it_does_not_expect() -> None:
    """The ids are there for SQL; the object, which no row of `discount` holds, is there too."""
    card = {"id": "card_1", "object": "card"}
    found = extract({"id": "in_1", "object": "invoice", "discounts": ["di_1", card]})
    assert value(found, "invoice", "in_1", "discounts") == ["di_1", "card_1"]
    assert extra(found, "invoice", "in_1") == {"discounts": ["di_1", card]}


def test_an_object_in_a_field_that_nobody_knows_gives_its_id_only() -> None:
    inner = {"id": "cus_1", "object": "customer"}
    found = extract({"id": "ch_1", "object": "charge", "new_field": [{"deep": inner}]})
    assert set(found.rows) == {"charge"}
    assert found.elsewhere == {("customer", "cus_1")}
    assert extra(found, "charge", "ch_1") == {"new_field": [{"deep": inner}]}


@pytest.mark.parametrize("place", sorted(NOT_PRESENT))
def test_an_object_that_is_not_shown_as_it_is_now_gives_its_id_only(place: str) -> None:
    owner = max((n for n in object_types() if place.startswith(f"{n}.")), key=len)
    path = place.removeprefix(f"{owner}.").split(".")
    kind = _at(object_types()[owner].fields, path).targets[0]
    more = {"object": "list", "data": [], "has_more": True, "url": "/v1/more"}
    inner = {"id": "inner_1", "object": kind, "metadata": {"then": "so"}, "items": more}
    obj: dict[str, Any] = {"id": "outer_1", "object": owner} | _nest(path, inner)
    found = extract(obj)
    table, inner_table = table_name(owner), table_name(kind)
    assert set(found.rows) == {table}
    assert found.elsewhere == {(inner_table, "inner_1")}
    assert not found.lists
    row = found.rows[table]["outer_1"]
    assert any('"then"' in text for text in row if isinstance(text, str)), "nothing is lost"


def _resource_places(fields: Sequence[Field], path: str, seen: tuple[str, ...]) -> Iterator[str]:
    """Every place below `path` where the types of the catalog hold a whole object that has a table."""
    for item in fields:
        here = f"{path}.{item.name}"
        while item.kind == "array" and item.items is not None:
            item = item.items  # noqa: PLW2901
        if item.kind == "resource" and any(has_table(object_types()[t]) for t in item.targets):
            yield here
        elif item.kind == "object":
            yield from _resource_places(item.fields, here, seen)
        elif item.kind == "resource" and len(item.targets) == 1 and item.targets[0] not in seen:
            inner = object_types()[item.targets[0]].fields
            yield from _resource_places(inner, here, (*seen, *item.targets))


PLACES = frozenset(
    place
    for name, kind in object_types().items()
    for place in _resource_places(kind.fields, name, (name,))
)


@pytest.mark.parametrize("place", sorted(PLACES - set(NOT_PRESENT)))
def test_an_object_that_is_shown_as_it_is_now_is_a_row(place: str) -> None:
    owner = max((n for n in object_types() if place.startswith(f"{n}.")), key=len)
    path = place.removeprefix(f"{owner}.").split(".")
    kind = _at(object_types()[owner].fields, path).targets[0]
    inner = {"id": "inner_1", "object": kind, "customer": "inner_1"}
    found = extract({"id": "outer_1", "object": owner} | _nest(path, inner))
    assert "inner_1" in found.rows[table_name(kind)]
    assert not found.elsewhere


def test_every_place_of_a_whole_object_is_reviewed() -> None:
    """A new one of the SDK is decided in catalog/embedded.py before it is believed."""
    assert {p for p in PLACES if not is_present(p)} == set(NOT_PRESENT)


def _at(fields: Sequence[Field], path: Sequence[str]) -> Field:
    """The field at the end of `path`, through arrays, inline objects and objects without a table."""
    item = next(f for f in fields if f.name == path[0])
    while item.kind == "array" and item.items is not None:
        item = item.items
    if len(path) == 1:
        return item
    inner = item.fields if item.kind == "object" else object_types()[item.targets[0]].fields
    return _at(inner, path[1:])


def _nest(path: Sequence[str], value: dict[str, Any]) -> dict[str, Any]:
    for step in reversed(path):
        value = {step: value}
    return value


def test_an_event_is_not_looked_into() -> None:
    payload = {"id": "acct_1", "object": "account"}
    event = {"id": "evt_1", "object": "event", "data": {"object": payload}, "account": payload}
    found = extract(event)
    assert set(found.rows) == {"event"}
    assert extra(found, "event", "evt_1") == {"account": payload}


def test_the_cash_balance_of_a_customer_is_a_row_too() -> None:
    cash = {"object": "cash_balance", "customer": "cus_1", "available": {"eur": 5}}
    found = extract({"id": "cus_1", "object": "customer", "cash_balance": cash})
    assert json.loads(value(found, "customer", "cus_1", "cash_balance_available")) == {"eur": 5}
    assert json.loads(value(found, "cash_balance", "cus_1", "available")) == {"eur": 5}


def test_an_object_where_the_catalog_knows_a_plain_string_id_is_a_row_too() -> None:
    """`charge.payment_method` is a string in the types, though old versions expand it."""
    method = {"id": "pm_1", "object": "payment_method", "type": "card"}
    found = extract({"id": "ch_1", "object": "charge", "payment_method": method})
    assert value(found, "charge", "ch_1", "payment_method_id") == "pm_1"
    assert value(found, "payment_method", "pm_1", "type") == "card"
    assert extra(found, "charge", "ch_1") is None


def test_a_missing_optional_sub_key_is_no_null_whatever_came_first() -> None:
    """A session whose details are null must not teach that a missing breakdown is null."""
    extractor = Extractor()
    shapes = []
    for number, details in enumerate((None, {"amount_tax": 1}, {"breakdown": None}, 5)):
        found = RowSet()
        session: dict[str, Any] = {
            "id": f"cs_{number}",
            "object": "checkout.session",
            "total_details": details,
        }
        extractor.object(session, found)
        row = found.rows["checkout_session"][f"cs_{number}"]
        shapes.append("total_details_breakdown" in extractor.shapes.columns(row[-1]))
    assert shapes == [True, False, True, False]


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("12.50", True),
        ("-0.000001", True),
        ("0", True),
        ("1e5", False),
        ("1_000", False),
        (" 1", False),
        ("+1", False),
        ("007", False),
        ("Infinity", False),
        ("+nan", False),
        ("١٢", False),
        ("", False),
    ],
)
def test_a_decimal_that_numeric_would_not_give_back_goes_to_extra(text: str, fits: bool) -> None:
    found = extract({"id": "price_1", "object": "price", "unit_amount_decimal": text})
    assert value(found, "price", "price_1", "unit_amount_decimal") == (text if fits else None)
    assert extra(found, "price", "price_1") == (None if fits else {"unit_amount_decimal": text})


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("2026-01-02T03:04:05Z", True),
        ("2026-01-02T03:04:05.123456+02:00", True),
        ("2026-01-02T03:04:05.123456789Z", False),
        ("2026-02-30T00:00:00Z", False),
        ("2026 and more", False),
        ("9999", False),
    ],
)
def test_a_time_that_timestamptz_would_not_give_back_goes_to_extra(text: str, fits: bool) -> None:
    found = extract({"id": "evt_1", "object": "v2.core.event", "created": text})
    assert value(found, "v2_core_event", "evt_1", "created") == (text if fits else None)
    assert extra(found, "v2_core_event", "evt_1") == (None if fits else {"created": text})


def test_an_integer_beyond_64_bits_goes_to_extra() -> None:
    found = extract({"id": "ch_1", "object": "charge", "amount": 2**63})
    assert value(found, "charge", "ch_1", "amount") is None
    assert extra(found, "charge", "ch_1") == {"amount": 2**63}


def test_unknown_fields_are_counted_as_drift() -> None:
    found = extract({"id": "ch_1", "object": "charge", "brand_new": 1})
    assert found.drift == {("charge", "brand_new"): 1}


def test_objects_of_unknown_types_are_counted_and_what_they_hold_gives_its_id_only() -> None:
    inner = {"id": "cus_1", "object": "customer"}
    found = extract({"id": "x_1", "object": "novelty", "for": inner})
    assert found.unknown == {"novelty": 1}
    assert not found.rows
    assert found.elsewhere == {("customer", "cus_1")}


def test_a_column_of_the_database_that_the_catalog_does_not_know_loses_nothing() -> None:
    """A table that an older or newer Pinstripe made has columns without a field behind them."""
    charge = tables()["charge"]
    table = Table("charge", "charge", (*charge.columns, Column("gone_id", "id", ("gone",))))
    extractor, found = Extractor({"charge": table}), RowSet()
    gone = {"id": "cus_1", "object": "customer"}
    extractor.object({"id": "ch_1", "object": "charge", "gone": gone}, found)
    row = found.rows["charge"]["ch_1"]
    assert row[len(charge.columns)] == "cus_1"
    assert json.loads(row[len(charge.columns) + 1]) == {"gone": gone}


def test_the_lines_of_a_preview_are_no_invoice_lines() -> None:
    line = {"id": "il_tmp_1", "object": "line_item", "amount": 5}
    lines = {"object": "list", "data": [line], "has_more": False, "url": "/x"}
    found = RowSet()
    preview = {"object": "invoice", "lines": lines, "amount_due": 5}
    EXTRACTOR.virtual(
        "upcoming_customer_invoice", preview, "cus_1", found, parents={"customer": "cus_1"}
    )
    assert "line_item" not in found.rows
    assert value(found, "upcoming_customer_invoice", "cus_1", "amount_due") == 5
    upcoming = value(found, "upcoming_invoice_line_item", "il_tmp_1", "upcoming_customer_id")
    assert upcoming == "cus_1"


def test_one_object_met_twice_with_other_keys_is_two_rows() -> None:
    short = {"id": "cus_1", "object": "customer", "name": "N"}
    long = {"id": "cus_1", "object": "customer", "email": "E"}
    found = extract({"id": "ch_1", "object": "charge", "customer": short, "on_behalf_of": long})
    assert len(found.rows["customer"]) == 1
    assert [(t, k) for t, k, _ in found.variants] == [("customer", "cus_1")]
    assert found.count() == 3


def test_what_another_object_holds_is_no_proof_that_it_was_not_deleted() -> None:
    plan = {"id": "plan_1", "object": "plan", "amount": 500}
    item = {"id": "si_1", "object": "subscription_item", "plan": plan}
    assert "deleted" not in shape(extract(item), "plan", "plan_1")
    assert "deleted" in shape(extract(plan), "plan", "plan_1")
    assert "deleted" in shape(
        extract({**item, "plan": {**plan, "deleted": True}}), "plan", "plan_1"
    )


def test_metadata_that_looks_like_an_object_is_none() -> None:
    found = RowSet()
    metadata: object = {"id": "not_an_id", "object": "customer", "deleted": "true"}
    session: dict[str, object] = {
        "id": "cs_1",
        "object": "checkout.session",
        "metadata": metadata,
        "invoice_creation": {"enabled": True, "invoice_data": {"metadata": metadata}},
    }
    Extractor().object(session, found)
    assert set(found.rows) == {"checkout_session"}
    assert found.elsewhere == set()


def test_shapes_that_threads_number_side_by_side_keep_their_own_columns() -> None:
    """The proxy reads long responses in threads."""
    shapes, often = Shapes(), sys.getswitchinterval()
    columns = [(f"a{number}",) for number in range(20_000)]

    def number_all(mine: list[tuple[str, ...]]) -> list[int]:
        return [shapes.number("charge", each) for each in mine]

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            halves = list(threads.map(number_all, (columns[::2], columns[1::2])))
    finally:
        sys.setswitchinterval(often)
    for mine, numbers in zip((columns[::2], columns[1::2]), halves, strict=True):
        assert [shapes.columns(number) for number in numbers] == mine


@pytest.mark.parametrize(("second", "fits"), [(253402300799, True), (1700000000000, False)])
def test_a_time_that_no_client_can_read_stays_in_extra(second: int, fits: bool) -> None:
    found = extract({"id": "cus_1", "object": "customer", "created": second})
    assert value(found, "customer", "cus_1", "created") == (second if fits else None)
    assert extra(found, "customer", "cus_1") == (None if fits else {"created": second})
