"""Every table is in one domain, and is described."""

from __future__ import annotations

import pytest

from pinstripe.catalog.descriptions import (
    WORDS,
    column_facts,
    describe_column,
    describe_table,
    docs_url,
    enum_values,
)
from pinstripe.catalog.domains import DOMAINS, domain_by_table, domain_of, domains
from pinstripe.catalog.tables import Table, tables


def test_every_table_is_in_exactly_one_domain() -> None:
    placed = [t.name for group in domains().values() for t in group]
    assert sorted(placed) == sorted(tables())
    assert set(domain_by_table()) == set(tables())


def test_no_domain_is_empty_and_no_name_in_one_is_of_no_table() -> None:
    assert [name for name, group in domains().items() if not group] == []
    named = {n for d in DOMAINS.values() for n in d.names}
    assert named - set(tables()) == set()
    prefixes = {p for d in DOMAINS.values() for p in d.prefixes}
    used = {
        p for p in prefixes if any(t.object_type.startswith(f"{p}.") for t in tables().values())
    }
    whole = {p for p in prefixes if any(t.object_type == p for t in tables().values())}
    assert prefixes - used - whole == set()


def test_no_table_is_claimed_by_two_domains() -> None:
    names = [n for d in DOMAINS.values() for n in d.names]
    assert len(names) == len(set(names))


def test_a_table_of_no_domain_is_an_error_that_says_where_to_add_it() -> None:
    with pytest.raises(ValueError, match=r"catalog/domains\.py"):
        domain_of(Table("novelty", "novelty", ()))


def test_every_table_is_described_and_nothing_else() -> None:
    assert set(WORDS) == set(tables())
    assert [n for n, text in WORDS.items() if not text.endswith(".") or len(text) > 90] == []


def test_a_table_that_is_new_in_the_catalog_is_described_by_its_type() -> None:
    assert describe_table(Table("novelty", "novelty", ())) == "Objects of type novelty."


@pytest.mark.parametrize(
    ("table", "column", "said"),
    [
        ("charge", "id", "Unique identifier."),
        ("charge", "amount", "In the smallest unit of `currency`."),
        ("charge", "created", "Time, to the second."),
        ("charge", "customer_id", "Refers to customer."),
        ("charge", "source_id", "Refers to account, bank_account, card or source."),
        ("charge", "metadata", "JSON of `metadata`, as Stripe sends it."),
        ("charge", "billing_details_email", "`billing_details.email` of the object."),
        ("subscription_item", "id", "Unique identifier."),
    ],
)
def test_a_column_says_what_the_catalog_knows(table: str, column: str, said: str) -> None:
    found = tables()[table]
    assert describe_column(found, found.column(column)) == said


def test_enum_values_are_named_and_long_lists_cut() -> None:
    invoice = tables()["invoice"]
    assert enum_values(invoice, invoice.column("status")) == (
        "draft",
        "open",
        "paid",
        "uncollectible",
        "void",
    )
    facts = [f for t in tables().values() for c in t.columns for f in column_facts(t, c)]
    assert max(map(len, facts)) < 600
    assert any(" more." in f for f in facts)


def test_every_link_leads_into_stripes_reference() -> None:
    for table in tables().values():
        url = docs_url(table)
        assert url.startswith("https://docs.stripe.com/api")
        assert "{" not in url
