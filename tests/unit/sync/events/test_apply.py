"""What an event makes us ask for beside its own object."""

from __future__ import annotations

import pytest

from pinstripe.catalog.tables import tables
from pinstripe.client.rate_limit import WorkClass
from pinstripe.client.response import StripeObject
from pinstripe.sync.events.apply import changes, from_summary, related

VERSION = "2026-10-28.endive"


def event(kind: str, now: int, **previous: object) -> StripeObject:
    customer = {"id": "cus_1", "object": "customer", "balance": now}
    data = {"object": customer, "previous_attributes": previous}
    made = {"id": f"evt_{kind}_{now}", "type": f"customer.{kind}", "created": 1_790_000_000}
    return {**made, "api_version": VERSION, "data": data, "request": {"id": "req_1"}}


@pytest.mark.parametrize(
    ("events", "listed"),
    [
        ([event("created", 0)], False),
        ([event("created", -500)], True),
        ([event("updated", -500, name="Ada")], False),
        ([event("updated", -500, balance=0)], True),
        ([event("updated", -500, name="Ada"), event("created", -500)], True),
        ([event("updated", 0, balance=-500), event("created", -500)], True),
        ([event("updated", 0, name="Ada"), event("created", 0)], False),
    ],
)
def test_a_history_of_the_balance_is_read_where_there_may_be_more_of_it(
    events: list[StripeObject], listed: bool
) -> None:
    """`events`: newest first, as Stripe lists them."""
    (change,) = changes(events, VERSION)
    asked = {(t.kind, t.table, t.id) for t in related(change, tables())}
    assert (("children", "customer_balance_transaction", "cus_1") in asked) is listed
    # What sums itself up in an event is not asked for.
    assert not any(table == "entitlements_active_entitlement" for _, table, _ in asked)


@pytest.mark.parametrize(
    ("events", "fetched"),
    [
        ([event("created", 0)], True),
        ([event("updated", 0, name="Ada", metadata={"a": "b"})], False),
        ([event("updated", 0, name="Ada", address=None)], True),
        ([event("updated", 0, something_new=1)], True),
        ([event("updated", 0)], True),
        ([event("updated", 0, name="Ada"), event("created", 0)], True),
    ],
)
def test_what_stripe_shows_on_request_only_is_fetched_where_the_change_can_concern_it(
    events: list[StripeObject], fetched: bool
) -> None:
    (change,) = changes(events, VERSION)
    found = [t for t in related(change, tables()) if t.kind == "fetch"]
    assert [(t.table, t.id) for t in found] == ([("customer", "cus_1")] if fetched else [])
    # The row stands already: that is no row in doubt.
    assert {t.work_class for t in found} <= {WorkClass.RELATED}


def test_a_payment_has_its_payment_method_fetched_unless_that_has_a_row() -> None:
    """A guest's has no event, and no list shows it."""
    paid = {"id": "pi_1", "object": "payment_intent", "payment_method": "pm_1"}
    made = {**event("x", 0), "type": "payment_intent.succeeded", "data": {"object": paid}}
    (change,) = changes([made], VERSION)
    asked = {(t.kind, t.table, t.id) for t in related(change, tables())}
    assert ("relate", "payment_method", "pm_1") in asked


@pytest.mark.parametrize(("attempt", "listed"), [(None, False), ("setatt_1", True)])
def test_the_attempts_of_a_setup_are_listed_once_there_is_one(
    attempt: str | None, listed: bool
) -> None:
    setup = {"id": "seti_1", "object": "setup_intent", "latest_attempt": attempt}
    made = {**event("x", 0), "type": "setup_intent.created", "data": {"object": setup}}
    (change,) = changes([made], VERSION)
    asked = [(t.kind, t.table) for t in related(change, tables())]
    assert (("children", "setup_attempt") in asked) is listed


def test_a_summary_has_the_list_of_its_owner_read() -> None:
    name = "entitlements.active_entitlement_summary"
    told = {"object": name, "customer": "cus_1", "entitlements": {"object": "list", "data": []}}
    made = {"id": "evt_1", "type": f"{name}.updated", "created": 1_790_000_000, "request": "req_1"}
    (refetch,) = from_summary({**made, "data": {"object": told}}, tables())
    assert (refetch.kind, refetch.table) == ("children", "entitlements_active_entitlement")
    assert (refetch.id, refetch.parent) == ("cus_1", "customer")
    assert (refetch.since, refetch.request_id, refetch.event_id) == (
        1_790_000_000,
        "req_1",
        "evt_1",
    )
    assert from_summary(event("created", 0), tables()) == []
