"""What a handful of events says of their objects, and when their order cannot be known."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from pinstripe.catalog.model import spec
from pinstripe.catalog.relations import deletes
from pinstripe.sync.events.apply import ObjectChange, changes

OURS = "2026-10-28.endive"


def event(
    number: int,
    state: dict[str, Any],
    *,
    type: str = "customer.updated",
    created: int = 100,
    previous: dict[str, Any] | None = None,
    version: str = OURS,
) -> dict[str, Any]:
    data: dict[str, Any] = {"object": {"id": "cus_1", "object": "customer", **state}}
    if previous is not None:
        data["previous_attributes"] = previous
    return {
        "id": f"evt_{number}",
        "type": type,
        "created": created,
        "api_version": version,
        "request": {"id": f"req_{number}", "idempotency_key": None},
        "data": data,
    }


def only(events: list[dict[str, Any]]) -> ObjectChange:
    found = changes(events, OURS)
    assert len(found) == 1
    return found[0]


def test_the_newest_second_wins_whatever_the_list_order() -> None:
    newer, older = event(2, {"name": "new"}, created=101), event(1, {"name": "old"}, created=100)
    for order in ([newer, older], [older, newer]):
        change = only(order)
        assert change.object["name"] == "new"
        assert change.is_ordered


def test_ties_that_chain_are_sure_and_end_in_the_last_state() -> None:
    first = event(1, {"name": "a"}, type="customer.created")
    second = event(2, {"name": "b"}, previous={"name": "a"})
    third = event(3, {"name": "c"}, previous={"name": "b"})
    change = only([third, second, first])
    assert change.is_ordered
    assert change.object["name"] == "c"


def test_ties_in_the_wrong_order_are_never_sure() -> None:
    second = event(2, {"name": "b"}, previous={"name": "a"})
    third = event(3, {"name": "c"}, previous={"name": "b"})
    assert not only([second, third]).is_ordered


def test_ties_without_previous_attributes_are_not_sure() -> None:
    finalized = event(1, {"status": "open"}, type="invoice.finalized")
    paid = event(2, {"status": "paid"}, type="invoice.paid")
    assert not only([paid, finalized]).is_ordered


def test_a_creation_is_the_first_of_its_second() -> None:
    created = event(1, {"status": "draft"}, type="invoice.created")
    finalized = event(2, {"status": "open"}, type="invoice.finalized")
    assert only([finalized, created]).is_ordered


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_deletion_is_last_wherever_it_stands(order: tuple[int, ...]) -> None:
    events = [
        event(1, {"name": "a"}, type="customer.created"),
        event(2, {"name": "b"}, previous={"name": "a"}),
        event(3, {"name": "b"}, type="customer.deleted"),
    ]
    assert only([events[n] for n in order]).deleted


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_creation_and_a_deletion_in_one_second_are_never_sure(order: tuple[int, ...]) -> None:
    events = [
        event(1, {"name": "a"}, type="customer.created"),
        event(2, {"name": "a"}, type="customer.deleted"),
    ]
    assert not only([events[n] for n in order]).is_ordered


def test_a_deletion_after_a_change_is_sure() -> None:
    updated = event(1, {"name": "a"})
    assert only([event(2, {"name": "a"}, type="customer.deleted"), updated]).is_ordered
    anew = event(3, {"name": "b"}, type="customer.created", created=101)
    change = only([anew, event(2, {"name": "a"}, type="customer.deleted")])
    assert change.is_ordered
    assert not change.deleted


@pytest.mark.parametrize("name", sorted(e.name for e in spec().events))
def test_only_reviewed_types_are_deletions(name: str) -> None:
    change = only([event(1, {"name": "a"}, type=name)])
    assert change.deleted == (deletes(name) is True)
    assert change.is_foreign_version == (deletes(name) is None)
    assert not change.deleted or name.endswith(".deleted")


def test_a_cancellation_is_a_state_like_others() -> None:
    cancelled = event(1, {"status": "canceled"}, type="customer.subscription.deleted")
    after = event(2, {"status": "canceled", "note": "x"}, previous={"note": None})
    for change in (only([cancelled]), only([after, cancelled])):
        assert change.is_ordered
        assert not change.deleted
        assert not change.is_foreign_version
    assert only([after, cancelled]).object["note"] == "x"
    assert not only([cancelled, after]).is_ordered


def test_a_type_to_come_that_sounds_like_a_deletion_is_a_hint() -> None:
    change = only([event(1, {"name": "a"}, type="novelty.deleted")])
    assert change.is_foreign_version
    assert not change.deleted


def test_nested_previous_attributes_chain_key_by_key() -> None:
    first = event(1, {"metadata": {"a": "1", "b": "2"}}, previous={"metadata": {"a": None}})
    second = event(2, {"metadata": {"a": "3", "b": "2"}}, previous={"metadata": {"a": "1"}})
    assert only([second, first]).is_ordered


def test_an_event_of_another_version_is_a_hint() -> None:
    assert only([event(1, {}, version="2024-12-18.acacia")]).is_foreign_version
    assert not only([event(1, {})]).is_foreign_version


def test_objects_without_an_id_make_no_change() -> None:
    upcoming = event(1, {}, type="invoice.upcoming")
    upcoming["data"]["object"] = {"object": "invoice", "id": None}
    assert changes([upcoming], OURS) == []


def test_the_request_is_known_in_old_and_new_form() -> None:
    assert only([event(7, {})]).request_id == "req_7"
    old = event(8, {})
    old["request"] = "req_old"
    assert only([old]).request_id == "req_old"


def test_what_an_object_was_before_its_changes_is_told_as_far_as_they_chain() -> None:
    def updated(before: str, after: str) -> dict[str, Any]:
        data = {
            "object": {"id": "cus_1", "object": "customer", "name": after},
            "previous_attributes": {"name": before},
        }
        return {"id": f"evt_{after}", "type": "customer.updated", "created": 5, "data": data}

    [change] = changes(
        [updated("b", "c"), updated("a", "b"), updated("x", "y")], spec().api_version
    )
    assert [obj["name"] for obj in change.befores()] == ["b", "a"]
