"""The pure parts of `verify`: how a row is read again, and what is cheaper."""

from __future__ import annotations

from pinstripe.sync.verify.compare import Difference
from pinstripe.sync.verify.recheck import ReadPath, cheaper_by_list, holds, path_to


def row(table: str, key: str, *parents: tuple[str, str]) -> Difference:
    return Difference(table, key, "missing", parents=parents)


def test_an_object_is_read_again_by_its_own_id() -> None:
    assert path_to(row("charge", "ch_1", ("customer", "cus_1"))) == ReadPath("charge", "ch_1")


def test_an_object_under_a_parent_is_read_again_under_that_parent() -> None:
    found = row(
        "transfer_reversal", "trr_1", ("balance_transaction", "txn_1"), ("transfer", "tr_1")
    )
    assert path_to(found) == ReadPath("transfer_reversal", "trr_1", "tr_1")


def test_a_line_is_read_again_through_its_invoice_and_what_that_lacks_is_gone() -> None:
    way = path_to(row("line_item", "il_1", ("subscription", "sub_1"), ("invoice", "in_1")))
    assert way == ReadPath("invoice", "in_1", whole=True)


def test_what_has_no_address_of_its_own_is_read_again_by_the_list_under_its_parent() -> None:
    way = path_to(
        row("setup_attempt", "setatt_1", ("customer", "cus_1"), ("setup_intent", "seti_1"))
    )
    assert way is not None
    assert way.endpoint is not None
    assert way.endpoint.path == "/v1/setup_attempts"
    assert way.key == "seti_1"


def test_a_discount_is_shown_by_its_customer_but_may_be_there_unseen() -> None:
    assert path_to(row("discount", "di_1", ("customer", "cus_1"))) == ReadPath(
        "customer", "cus_1", whole=False
    )


def test_what_nothing_shows_cannot_be_read_again() -> None:
    assert path_to(row("line_item", "il_1")) is None
    assert path_to(row("application", "ca_1")) is None


def test_the_lists_of_an_invoice_hold_its_lines_and_not_its_customer() -> None:
    assert holds("line_item", ("invoice", "in_1"))
    assert not holds("customer", ("invoice", "in_1"))


def test_many_differences_are_looked_at_by_list_and_few_one_by_one() -> None:
    many = [row("charge", f"ch_{n}") for n in range(1000)]
    few = [row("invoice", f"in_{n}") for n in range(50)]
    assert cheaper_by_list([*many, *few], {"charge": 20, "invoice": 1}) == {"charge"}
    assert cheaper_by_list(many, {"charge": 900}) == set()
    assert cheaper_by_list(many, {}) == set()
