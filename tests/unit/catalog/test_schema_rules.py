"""The rules of the schema (docs/concepts/schema.md), each as a test over all tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pinstripe.catalog.model import Field, ObjectType, Spec, object_types, spec
from pinstripe.catalog.tables import (
    NAME_BYTES,
    SINGLETONS,
    Column,
    Table,
    build_tables,
    table_name,
    table_of_object,
    tables,
)

REAL = [t for t in tables().values() if not t.virtual]


def top_fields() -> Iterator[tuple[Table, Field]]:
    """Every top-level field of every table that stands for an object type."""
    for table in REAL:
        for field in object_types()[table.object_type].fields:
            yield table, field


def inline_fields() -> Iterator[tuple[Table, Field, Field]]:
    """(table, outer, inner) of every field one level down."""
    for table, outer in top_fields():
        if outer.kind == "object":
            for inner in outer.fields:
                yield table, outer, inner


def column(table: str, name: str) -> Column:
    return tables()[table].column(name)


def has(table: str, name: str) -> bool:
    return any(c.name == name for c in tables()[table].columns)


# Rule 1: tables


def test_every_type_with_an_id_has_a_table_and_the_named_singletons_too() -> None:
    with_id = {t.name for t in spec().objects if t.has_id}
    assert set(table_of_object()) == with_id | set(SINGLETONS)


def test_a_table_is_named_like_its_object_with_underscores() -> None:
    for name, table in table_of_object().items():
        assert table == ("invoice_item" if name == "invoiceitem" else name.replace(".", "_"))


def test_the_invoice_line_is_line_item_and_the_checkout_line_is_item() -> None:
    assert has("line_item", "invoice_id")
    assert has("item", "checkout_session_id")


# Rule 2: keys


def test_the_key_is_the_first_column_and_a_text() -> None:
    for table in tables().values():
        assert table.key == (table.columns[0].name,)
        assert table.columns[0].type == "text"
        assert table.virtual or table.key == ("id",)


# Names


def test_no_name_is_longer_than_postgres_allows() -> None:
    for table in tables().values():
        for name in (table.name, *(c.name for c in table.columns)):
            assert len(name.encode()) <= NAME_BYTES


def test_no_two_columns_of_a_table_have_one_name() -> None:
    for table in tables().values():
        names = [c.name for c in table.columns]
        assert len(names) == len(set(names)), table.name


def test_no_column_begins_with_an_underscore() -> None:
    """Those are ours: bookkeeping."""
    assert not any(c.name.startswith("_") for t in tables().values() for c in t.columns)


def test_two_fields_that_make_one_name_stop_the_build() -> None:
    clash = (
        Field("a_b", "string"),
        Field("a", "object", fields=(Field("b", "string"),)),
    )
    with pytest.raises(ValueError, match="a_b"):
        build_tables(_spec(ObjectType("thing", clash)))


def test_a_name_that_postgres_would_cut_stops_the_build() -> None:
    with pytest.raises(ValueError, match="too long"):
        build_tables(_spec(ObjectType("thing", (Field("x" * 64, "string"),))))


# Rule 3: scalars


def test_each_kind_has_its_type() -> None:
    expected = {
        "string": "text",
        "integer": "bigint",
        "number": "numeric",
        "decimal": "numeric",
        "boolean": "boolean",
        "time": "timestamptz",
        "time_ms": "timestamptz",
        "time_iso": "timestamptz",
        "map": "jsonb",
        "any": "jsonb",
    }
    for table, field in top_fields():
        named = field.kind == "string" and has(table.name, f"{field.name}_id")
        if field.kind in expected and not named:
            assert column(table.name, field.name).type == expected[field.kind], (table.name, field)
    for table, outer, inner in inline_fields():
        if inner.kind in expected:
            name = f"{outer.name}_{inner.name}"
            assert column(table.name, name).type == expected[inner.kind], (table.name, name)


@pytest.mark.parametrize(
    ("table", "name", "type_", "read"),
    [
        ("charge", "created", "timestamptz", "time"),
        ("invoice", "status_transitions_paid_at", "timestamptz", "time"),
        ("invoice", "next_payment_attempt", "timestamptz", "time"),
        ("balance_transaction", "available_on", "timestamptz", "time"),
        ("payout", "arrival_date", "timestamptz", "time"),
        ("invoice_item", "date", "timestamptz", "time"),
        ("subscription", "billing_cycle_anchor", "timestamptz", "time"),
        ("terminal_reader", "last_seen_at", "timestamptz", "time_ms"),
        ("v2_core_event", "created", "timestamptz", "time_iso"),
        ("v2_money_management_outbound_payment", "expected_arrival_date", "text", "text"),
        ("price", "transform_quantity_divide_by", "bigint", "integer"),
        ("customer", "next_invoice_sequence", "bigint", "integer"),
        ("card", "exp_month", "bigint", "integer"),
        ("card", "exp_year", "bigint", "integer"),
        ("person", "dob_day", "bigint", "integer"),
        ("price", "recurring_trial_period_days", "bigint", "integer"),
        ("invoice", "amount_due", "bigint", "integer"),
        ("tax_rate", "percentage", "numeric", "number"),
        ("price", "unit_amount_decimal", "numeric", "decimal"),
    ],
)
def test_times_and_numbers_are_told_apart(table: str, name: str, type_: str, read: str) -> None:
    assert (column(table, name).type, column(table, name).read) == (type_, read)


# Rule 4: references


def test_every_expandable_field_is_an_id_column() -> None:
    for table, field in top_fields():
        if field.kind == "expandable":
            assert column(table.name, f"{field.name}_id").type == "text"
    for table, outer, inner in inline_fields():
        if inner.kind == "expandable":
            assert column(table.name, f"{outer.name}_{inner.name}_id").type == "text"


def test_a_top_level_string_named_like_an_object_is_a_reference() -> None:
    assert column("charge", "payment_method_id").references == ("payment_method",)
    for table, field in top_fields():
        plain = field.kind == "string" and not field.enum and not field.targets
        if plain and field.name in table_of_object():
            assert column(table.name, f"{field.name}_id").references == (
                table_of_object()[field.name],
            )


def test_a_plain_string_below_the_top_level_keeps_its_name() -> None:
    for table, outer, inner in inline_fields():
        if inner.kind == "string":
            assert column(table.name, f"{outer.name}_{inner.name}").type == "text"


def test_every_reference_names_tables_that_exist() -> None:
    for table in tables().values():
        for reference in table.columns:
            assert set(reference.references) <= set(tables()), (table.name, reference.name)


def test_an_embedded_object_with_a_table_is_an_id_column() -> None:
    for table, field in top_fields():
        real = [t for t in field.targets if t in table_of_object() and t not in SINGLETONS]
        if field.kind == "resource" and real:
            expected = tuple(map(table_name, real))
            assert column(table.name, f"{field.name}_id").references == expected


# Rule 5: one level of flattening


def test_a_nested_object_is_flattened_one_level_and_no_more() -> None:
    for table, outer in top_fields():
        if outer.kind == "object" and outer.fields:
            assert not has(table.name, outer.name) or outer.name in {"id"}
    for table, outer, inner in inline_fields():
        if inner.kind == "object":
            assert column(table.name, f"{outer.name}_{inner.name}").type == "jsonb"
    assert all(len(c.path) <= 2 for t in tables().values() for c in t.columns)


def test_an_object_without_properties_is_one_jsonb_column() -> None:
    for table, field in top_fields():
        if field.kind == "object" and not field.fields:
            assert column(table.name, field.name).type == "jsonb"


# Rule 6: arrays


def test_arrays_of_strings_and_ids_are_text_arrays_and_others_one_jsonb() -> None:
    for table, field in top_fields():
        if field.kind == "array" and field.items is not None:
            flat = field.items.kind in ("string", "expandable")
            expected = "text[]" if flat else "jsonb"
            assert column(table.name, field.name).type == expected, (table.name, field.name)


# Rule 7: polymorphic references


def test_a_reference_to_several_types_says_which() -> None:
    for table, field in top_fields():
        if field.kind == "expandable":
            several = len(field.targets) > 1
            assert has(table.name, f"{field.name}_object") == several, (table.name, field.name)
    assert column("balance_transaction", "source_object").read == "object"
    assert column("customer", "default_source_object").read == "object"


# Rule 8: lists


def test_a_list_has_no_column() -> None:
    for table, field in top_fields():
        if field.kind == "list":
            assert not any(c.path[:1] == (field.name,) for c in table.columns), field.name


@pytest.mark.parametrize(
    ("child", "parent"),
    [
        ("line_item", "invoice_id"),
        ("item", "checkout_session_id"),
        ("item", "payment_link_id"),
        ("item", "quote_id"),
        ("credit_note_line_item", "credit_note_id"),
        ("subscription_item", "subscription_id"),
        ("transfer_reversal", "transfer_id"),
        ("fee_refund", "fee_id"),
        ("refund", "charge_id"),
        ("radar_value_list_item", "value_list"),
        ("tax_id", "customer_id"),
        ("person", "account"),
        ("capability", "account_id"),
        ("product_feature", "product_id"),
    ],
)
def test_a_child_carries_its_parent(child: str, parent: str) -> None:
    found = next(c for c in tables()[child].columns if c.name in (parent, f"{parent}_id"))
    assert found.references


def test_every_entry_of_a_list_inside_an_object_has_a_column_for_its_parent() -> None:
    """But an account among a customer's sources: a rest of older versions, kept in `_extra`."""
    for table, field in top_fields():
        for target in field.targets if field.kind == "list" else ():
            if target in table_of_object() and (table.name, target) != ("customer", "account"):
                child = tables()[table_of_object()[target]]
                assert any(
                    table.name in c.references and len(c.path) <= 1 for c in child.columns
                ), (table.name, child.name)


# Rule 9: maps, deleted


def test_metadata_is_jsonb_and_livemode_boolean_wherever_they_are() -> None:
    for table in tables().values():
        for found in table.columns:
            if found.name == "metadata":
                assert found.type == "jsonb"
            if found.name == "livemode":
                assert found.type == "boolean"


DELETED_BY_EVENT = {
    "customer",
    "product",
    "price",
    "plan",
    "coupon",
    "tax_id",
    "invoice",
    "invoiceitem",
    "person",
    "source",
    "bank_account",
    "card",
    "discount",
    "test_helpers.test_clock",
}


def test_what_an_event_can_delete_has_a_deleted_column() -> None:
    for name in DELETED_BY_EVENT:
        assert has(table_name(name), "deleted"), name


def test_a_subscription_is_canceled_and_never_deleted() -> None:
    assert not has("subscription", "deleted")


def test_what_has_no_delete_has_no_deleted_column() -> None:
    """A DELETE in the API, a deleted variant in the types or an event: else there is none."""
    by_delete = {n for o in spec().operations if o.method == "DELETE" for n in o.returns}
    by_event = {n for e in spec().events for n in e.carries if e.name.endswith(".deleted")}
    deletable = {t.name for t in spec().objects if t.deletable}
    otherwise = {
        "application",  # The types have a deleted variant.
        "apps.secret",  # POST /v1/apps/secrets/delete.
        "v2.core.account_person",  # DELETE in v2 answers with no type.
        "v2.core.event_destination",
    }
    assert deletable - by_delete - by_event - DELETED_BY_EVENT == otherwise
    for table in REAL:
        assert has(table.name, "deleted") == (table.object_type in deletable), table.name


def test_what_a_delete_does_not_flag_lives_on_in_another_state() -> None:
    by_delete = {n for o in spec().operations if o.method == "DELETE" for n in o.returns}
    flagged = {t.name for t in spec().objects if t.deletable}
    assert (by_delete - flagged) & set(table_of_object()) == {"subscription"}


# Rule 10: virtual tables


@pytest.mark.parametrize("owner", ["customer", "subscription"])
def test_an_upcoming_invoice_has_the_columns_of_an_invoice_under_its_owners_key(owner: str) -> None:
    table = tables()[f"upcoming_{owner}_invoice"]
    assert table.virtual
    assert table.key == (f"{owner}_id",)
    mine = {c.name for c in table.columns}
    assert {c.name for c in tables()["invoice"].columns} <= mine | {f"{owner}_id"}


def test_the_lines_of_upcoming_invoices_name_whose_they_are() -> None:
    table = tables()["upcoming_invoice_line_item"]
    assert column(table.name, "upcoming_customer_id").references == ("customer",)
    assert column(table.name, "upcoming_subscription_id").references == ("subscription",)
    assert {c.name for c in tables()["line_item"].columns} <= {c.name for c in table.columns}


# All of it


def test_every_field_of_every_object_has_a_place() -> None:
    """A column, or rows of its own for a list: no field of the catalog falls under the table."""
    for table, field in top_fields():
        if field.kind != "list":
            assert any(c.path[:1] == (field.name,) for c in table.columns), (table.name, field.name)
    for table, outer, inner in inline_fields():
        if inner.kind != "list":
            path = (outer.name, inner.name)
            assert any(c.path == path for c in table.columns), (table.name, path)


def _spec(*types: ObjectType) -> Spec:
    return Spec("", "", types, (), ())
