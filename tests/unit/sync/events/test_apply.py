"""What an event makes us ask for beside its own object."""

from __future__ import annotations

import pytest

from pinstripe.catalog.tables import tables
from pinstripe.client.decode import StripeObject
from pinstripe.sync.events.apply import from_summary, related
from pinstripe.sync.events.order import changes

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
    # What Stripe gives on request only is asked for each time; what sums itself up in an event is not.
    assert ("fetch", "customer", "cus_1") in asked
    assert not any(table == "entitlements_active_entitlement" for _, table, _ in asked)


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
