"""What a diagram shows: domains, then tables, then one table and its neighbours."""

from __future__ import annotations

import pytest

from pinstripe.catalog.domains import DOMAINS, domains
from pinstripe.catalog.tables import tables
from pinstripe.diagram.graph import EVERYWHERE, Diagram, around, of_domain, of_tables, overview
from pinstripe.errors import Misconfigured


def pairs(diagram: Diagram) -> set[tuple[str, str]]:
    return {(link.source, link.target) for link in diagram.links}


def test_the_overview_has_every_domain_with_the_number_of_its_tables() -> None:
    shown = {b.name: b.rows[0].name for b in overview().boxes}
    assert list(shown) == list(DOMAINS)
    assert shown["billing"] == f"{len(domains()['billing'])} tables"


def test_two_domains_are_joined_by_one_line_that_counts_both_ways() -> None:
    found = pairs(overview())
    assert ("billing", "core") in found
    assert not found & {(b, a) for a, b in found}
    assert all(link.source != link.target and link.count > 0 for link in overview().links)


def test_a_domain_shows_its_tables_and_the_references_among_them() -> None:
    diagram = of_domain("billing")
    assert {b.name for b in diagram.boxes} == {t.name for t in domains()["billing"]}
    assert ("line_item", "invoice") in pairs(diagram)
    assert not {b for pair in pairs(diagram) for b in pair} & EVERYWHERE


def test_every_reference_of_a_table_is_a_row_that_names_its_target() -> None:
    box = of_domain("payments").box("charge")
    notes = {row.name: row.note for row in box.rows}
    assert notes["customer_id"] == "customer"
    assert notes["source_id"] == "account or 3 more"
    references = {c.name for c in tables()["charge"].columns if c.references}
    assert references <= set(notes)


def test_a_polymorphic_reference_leads_to_each_of_its_targets() -> None:
    found = of_tables(["charge", "card", "bank_account", "source"])
    assert {("charge", "card"), ("charge", "bank_account"), ("charge", "source")} <= pairs(found)


def test_more_or_fewer_columns_are_shown_on_demand_and_the_rest_counted() -> None:
    counts = []
    for box in (
        of_domain("payments", detail="keys").box("charge"),
        of_domain("payments", detail="short").box("charge"),
        of_domain("payments", detail="full").box("charge"),
    ):
        assert len(box.rows) + box.hidden == len(tables()["charge"].all_columns)
        counts.append(len(box.rows))
    assert counts == sorted(set(counts))
    assert counts[-1] == len(tables()["charge"].all_columns)


def test_the_key_stands_first_in_every_box() -> None:
    for box in of_tables(tables()).boxes:
        assert box.rows[0].kind == "key"
        assert box.rows[0].name in tables()[box.name].key


def test_a_table_is_shown_with_its_neighbours_both_ways() -> None:
    diagram = around("charge")
    assert diagram.box("charge").main
    assert {("charge", "customer"), ("refund", "charge"), ("dispute", "charge")} <= pairs(diagram)
    assert ("payment_intent", "charge") in pairs(diagram)
    assert ("charge", "payment_intent") in pairs(diagram)


def test_every_reference_to_a_table_is_drawn_or_listed() -> None:
    for name in ("customer", "charge", "account", "invoice"):
        diagram = around(name)
        named = {row.name for box in diagram.boxes for row in box.rows if box.kind == "group"}
        drawn = {(b.name, row.name) for b in diagram.boxes if b.kind == "table" for row in b.rows}
        for table in tables().values():
            for column in table.columns:
                if name not in column.references or table.name == name:
                    continue
                if table.virtual and column.read != "parent":
                    continue
                assert f"{table.name}.{column.name}" in named or (table.name, column.name) in drawn


def test_many_tables_that_refer_to_one_are_put_together_by_domain() -> None:
    groups = [b for b in around("customer").boxes if b.kind == "group"]
    assert {b.domain for b in groups} >= {"payments", "billing"}
    assert not [b for b in around("charge").boxes if b.kind == "group"]


def test_only_tables_with_rows_are_shown_if_that_is_wanted() -> None:
    filled = frozenset({"customer", "charge", "refund"})
    assert [b.name for b in overview(filled=filled).boxes] == ["core", "payments"]
    assert [b.rows[0].name for b in overview(filled=filled).boxes] == ["1 table", "2 tables"]
    assert {b.name for b in of_domain("payments", filled=filled).boxes} == {"charge", "refund"}
    assert {b.name for b in around("charge", filled=filled).boxes} == filled
    assert of_domain("tax", filled=filled).boxes == ()
    assert {b.name for b in around("invoice", filled=filled).boxes} == {
        "charge",
        "customer",
        "invoice",
    }


def test_every_table_has_a_diagram() -> None:
    for diagram in map(around, tables()):
        names = [b.name for b in diagram.boxes]
        assert len(names) == len(set(names))
        for link in diagram.links:
            assert {link.source, link.target} <= set(names)
            assert link.row is None or diagram.box(link.source).rows[link.row].references


def test_a_wrong_name_is_answered_with_the_right_ones() -> None:
    with pytest.raises(Misconfigured, match="checkout"):
        of_domain("basket")
    with pytest.raises(Misconfigured, match="Did you mean charge"):
        around("Charg")
    with pytest.raises(Misconfigured, match="schema tables"):
        of_tables(["charge", "nonsense"])
