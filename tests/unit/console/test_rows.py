"""How values of rows are written: amounts, references, JSON."""

from __future__ import annotations

import pytest

from pinstripe.catalog.tables import tables
from pinstripe.console.rows import Filter, Reference, RowsRequest, cell, page_query
from pinstripe.console.tables import Shape, ShownColumn


def shape(name: str, here: frozenset[str] = frozenset(tables())) -> Shape:
    """A table as the catalog has it, without any row."""
    table = tables()[name]
    indexed = {"id", "created"}
    columns = {c.name: ShownColumn(c.name, c.type, c.name in indexed, "", c) for c in table.columns}
    return Shape("stripe", table, columns, here)


def test_an_amount_stands_in_the_smallest_unit_and_as_people_write_it() -> None:
    shown = cell(shape("charge"), "amount", {"amount": 123456, "currency": "usd"})
    assert (shown.text, shown.decimal) == ("123,456", "1,234.56 USD")


@pytest.mark.parametrize("column", ["starting_balance", "total_excluding_tax", "amount_shipping"])
def test_every_amount_of_an_invoice_is_known_as_money(column: str) -> None:
    shown = cell(shape("invoice"), column, {column: -500, "currency": "jpy"})
    assert (shown.text, shown.decimal) == ("-500", "-500 JPY")


def test_a_reference_of_several_types_goes_where_the_object_column_says() -> None:
    values = {"source_id": "odd", "source_object": "charge"}
    shown = cell(shape("balance_transaction"), "source_id", values)
    assert shown.references == (Reference("odd", "charge"),)


def test_a_reference_of_several_types_goes_where_its_prefix_says() -> None:
    shown = cell(shape("balance_transaction"), "source_id", {"source_id": "ch_1abc"})
    assert shown.references == (Reference("ch_1abc", "charge"),)


def test_a_reference_to_a_table_that_is_not_here_leads_nowhere() -> None:
    shown = cell(shape("charge", frozenset({"charge"})), "customer_id", {"customer_id": "cus_1"})
    assert shown.references == (Reference("cus_1", None),)


def test_long_text_is_cut_in_a_list_and_whole_on_its_own_page() -> None:
    values = {"description": "x" * 500}
    assert cell(shape("charge"), "description", values).cut
    assert cell(shape("charge"), "description", values, whole=True).text == "x" * 500


def test_a_page_begins_behind_the_last_row_and_holds_values_as_parameters() -> None:
    wanted = RowsRequest(
        columns=("id", "amount"),
        filters=(Filter("status", "eq", "'; DROP TABLE x; --"),),
        sort="created",
        falling=True,
        after=("2026-01-31 00:00:00+00", "ch_1"),
        limit=51,
    )
    query = page_query(shape("charge"), wanted)
    assert 'WHERE "status" = $1 AND "created" IS NOT NULL AND ("created", "id") < ($2, $3)' in (
        query.text
    )
    assert "DROP" not in query.text
    assert query.values[0] == "'; DROP TABLE x; --"
    assert query.names == ("id", "amount", "currency")
