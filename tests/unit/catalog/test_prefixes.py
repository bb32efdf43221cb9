"""What an id tells of its type, alone and with the `type` of the balance transaction that names it."""

from __future__ import annotations

import pytest

from pinstripe.catalog.model import object_types, spec
from pinstripe.catalog.relations import SOURCES, prefixes, source_type, type_of
from pinstripe.catalog.tables import tables
from pinstripe.rows.extract import Extractor, RowSet

TARGETS = tuple(
    tables()[t].object_type for t in tables()["balance_transaction"].column("source_id").references
)


def source_object(source: str | dict[str, str], transaction_type: str) -> str | None:
    """As the row of a balance transaction says."""
    found = RowSet()
    obj = {
        "id": "txn_1",
        "object": "balance_transaction",
        "source": source,
        "type": transaction_type,
    }
    Extractor().object(dict(obj), found)
    columns = [c.name for c in tables()["balance_transaction"].columns]
    told = found.rows["balance_transaction"]["txn_1"][columns.index("source_object")]
    assert told is None or isinstance(told, str)
    return told


def test_every_type_of_balance_transaction_is_decided() -> None:
    transaction = next(t for t in spec().objects if t.name == "balance_transaction")
    kinds = next(f for f in transaction.fields if f.name == "type").enum
    assert set(SOURCES) == set(kinds)
    assert {name for names in SOURCES.values() for name in names} <= object_types().keys()


@pytest.mark.parametrize("transaction_type", sorted(SOURCES))
def test_a_prefix_of_one_type_is_believed_whatever_the_transaction(transaction_type: str) -> None:
    for prefix, names in prefixes().items():
        if prefix != "tr" and len(names) == 1 and names[0] in TARGETS:
            assert source_object(f"{prefix}_1Abc", transaction_type) == names[0]


@pytest.mark.parametrize(
    ("source", "transaction_type", "expected"),
    [
        ("py_1", "payment", "charge"),
        ("pyr_1", "payment_refund", "refund"),
        ("pyr_1", "payment_failure_refund", "refund"),
        ("du_1", "adjustment", "dispute"),
        ("dp_1", "adjustment", "dispute"),
        ("tr_1", "payout", "payout"),
        ("tr_1", "payout_cancel", "payout"),
        ("tr_1", "payout_failure", "payout"),
        ("tr_1", "transfer", "transfer"),
        ("tr_1", "transfer_cancel", "transfer"),
        ("tr_1", "transfer_failure", "transfer"),
        ("tr_1", "adjustment", None),
        ("tr_1", "a_type_to_come", None),
        ("ccsbtxn_1", "a_type_to_come", "customer_cash_balance_transaction"),
        ("new_1", "charge", "charge"),
        ("new_1", "payment_failure_refund", None),
        ("rsrv_1", "reserved_funds", None),
    ],
)
def test_a_source_has_its_type_and_never_a_wrong_one(
    source: str, transaction_type: str, expected: str | None
) -> None:
    assert source_object(source, transaction_type) == expected


def test_a_source_that_is_expanded_says_itself_what_it_is() -> None:
    assert source_object({"id": "tr_1", "object": "transfer"}, "payout") == "transfer"


def test_a_shared_prefix_is_decided_by_what_a_field_may_name() -> None:
    shared = {p: names for p, names in prefixes().items() if len(names) > 1}
    assert shared
    for prefix, names in shared.items():
        assert type_of(f"{prefix}_1", ()) is None
        for name in names:
            assert type_of(f"{prefix}_1", (name,)) == name


def test_an_id_of_the_users_own_has_no_type() -> None:
    assert type_of("gold", TARGETS) is None
    assert source_type("gold", None) is None
