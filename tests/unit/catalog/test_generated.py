"""The committed catalog is what the installed `stripe` package says, and as large as it should be."""

from __future__ import annotations

from tools.catalog.__main__ import DATA, generate

from pinstripe.catalog.model import object_types, spec
from pinstripe.catalog.tables import tables


def test_the_committed_files_are_fresh() -> None:
    stale = [name for name, text in generate().items() if (DATA / name).read_text() != text]
    assert stale == [], "run `make catalog` and review the diff"


def test_nothing_lies_beside_the_generated_files_but_what_was_reviewed() -> None:
    assert {p.name for p in DATA.iterdir()} == {
        "spec.json",
        "objects.json",
        "operations.json",
        "events.json",
        "personal.toml",
    }


def test_the_numbers_are_those_of_the_sdk() -> None:
    """Counted in stripe 16.1.0; a new SDK changes this test with the diff of the catalog."""
    lists = [o.path for o in spec().operations if o.kind == "list"]
    assert (spec().sdk_version, spec().api_version) == ("16.1.0", "2026-10-28.endive")
    assert len(object_types()) == 180
    assert sum(t.has_id for t in object_types().values()) == 159
    assert len(spec().events) == 275
    assert sum("{" not in path for path in lists) == 114
    assert sum("{" in path for path in lists) == 24


def test_the_tables_are_as_many_as_the_types_with_an_id_and_the_known_exceptions() -> None:
    virtual = {t.name for t in tables().values() if t.virtual}
    assert len(virtual) == 3 + 1
    assert len(tables()) == 159 + 4 + len(virtual)


def test_every_event_type_carries_an_object_that_the_catalog_has() -> None:
    assert {n for e in spec().events for n in e.carries} <= set(object_types())
    assert all(e.carries for e in spec().events)


def test_every_target_of_a_field_is_an_object_type() -> None:
    def check(fields: tuple[object, ...]) -> None:
        for field in fields:
            targets = getattr(field, "targets", ())
            assert set(targets) <= set(object_types()), field
            check(getattr(field, "fields", ()))
            if (items := getattr(field, "items", None)) is not None:
                check((items,))

    for object_type in object_types().values():
        check(object_type.fields)


def test_no_two_operations_have_one_path_and_method() -> None:
    names = [(o.method, o.path) for o in spec().operations]
    assert len(names) == len(set(names))


def test_no_prose_of_stripes_is_in_the_catalog() -> None:
    assert all(len(f.doc) < 200 for t in object_types().values() for f in t.fields)


def test_an_id_prefix_names_one_type_or_is_a_known_twin() -> None:
    """`_object` columns are filled by prefix: two types of one prefix would be a guess."""
    by_prefix: dict[str, set[str]] = {}
    for object_type in object_types().values():
        if object_type.prefix:
            by_prefix.setdefault(object_type.prefix, set()).add(object_type.name)
    twins = {p: names for p, names in by_prefix.items() if len(names) > 1}
    assert twins == {
        "cbtxn": {"billing.credit_balance_transaction", "customer_balance_transaction"},
        "tax_li": {"tax.calculation_line_item", "tax.transaction_line_item"},
    }
