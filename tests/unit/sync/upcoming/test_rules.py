"""Which owners of upcoming invoices an event names, and what it leads to."""

from __future__ import annotations

from typing import get_args

import pytest

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import tables
from pinstripe.sync.upcoming.rules import (
    EVERYONE,
    LINKS,
    RULES,
    Affected,
    Relation,
    affected,
    is_there,
)


def event(name: str, **obj: object) -> dict[str, object]:
    return {"type": name, "data": {"object": obj}}


def named(found: Affected) -> set[str]:
    return {key for _, key in found.owners}


OLD_INVOICE = {"id": "in_1", "customer": "cus_1", "subscription": "sub_1"}
NEW_INVOICE = {
    "id": "in_1",
    "customer": {"id": "cus_1", "object": "customer"},
    "parent": {"type": "x", "subscription_details": {"subscription": "sub_1"}},
}


@pytest.mark.parametrize(
    ("name", "obj", "owners", "through"),
    [
        (
            "customer.subscription.updated",
            {"id": "sub_1", "customer": "cus_1"},
            {"sub_1", "cus_1"},
            set(),
        ),
        (
            "subscription_schedule.released",
            {"id": "ss_1", "customer": "cus_1", "subscription": None, "released_subscription": "s"},
            {"cus_1", "s"},
            set(),
        ),
        (
            "invoiceitem.created",
            {"id": "ii_1", "customer": "cus_1", "subscription": None},
            {"cus_1"},
            {("customer", "cus_1"), ("invoice_item", "ii_1")},
        ),
        # A stub names nobody: the row does.
        ("invoiceitem.deleted", {"id": "ii_1"}, set(), {("invoice_item", "ii_1")}),
        (
            "invoice.paid",
            OLD_INVOICE,
            {"sub_1"},
            {("customer", "cus_1"), ("subscription", "sub_1")},
        ),
        (
            "invoice.finalized",
            NEW_INVOICE,
            {"sub_1"},
            {("customer", "cus_1"), ("subscription", "sub_1")},
        ),
        (
            "invoice.upcoming",
            NEW_INVOICE,
            {"cus_1", "sub_1"},
            set(),
        ),
        ("invoice.sent", OLD_INVOICE, set(), set()),
        (
            "customer.discount.deleted",
            {"id": "di_1", "customer": "cus_1", "subscription": "sub_1"},
            {"cus_1", "sub_1"},
            {("customer", "cus_1")},
        ),
        ("customer.updated", {"id": "cus_1"}, set(), {("customer", "cus_1")}),
        ("customer.deleted", {"id": "cus_1", "deleted": True}, set(), {("customer", "cus_1")}),
        ("customer.created", {"id": "cus_1"}, set(), set()),
        (
            "customer.tax_id.created",
            {"id": "txi_1", "customer": "cus_1"},
            set(),
            {("customer", "cus_1")},
        ),
        ("credit_note.created", {"id": "cn_1", "customer": "c"}, set(), {("customer", "c")}),
        ("coupon.deleted", {"id": "10 %/été"}, set(), {("coupon", "10 %/été")}),
        ("coupon.created", {"id": "10"}, set(), set()),
        ("promotion_code.updated", {"id": "promo_1"}, set(), {("promotion_code", "promo_1")}),
        ("price.updated", {"id": "price_1"}, set(), {("price", "price_1")}),
        ("plan.updated", {"id": "gold"}, set(), {("plan", "gold"), ("price", "gold")}),
        ("product.updated", {"id": "prod_1"}, set(), {("product", "prod_1")}),
        ("tax_rate.updated", {"id": "txr_1"}, set(), {("tax_rate", "txr_1")}),
        ("tax.settings.updated", {"object": "tax.settings"}, set(), {("automatic_tax", EVERYONE)}),
        ("test_helpers.test_clock.ready", {"id": "clk"}, set(), {("test_clock", "clk")}),
        ("charge.succeeded", {"id": "ch_1", "customer": "cus_1"}, set(), set()),
    ],
)
def test_an_event_names_owners_and_what_leads_to_more(
    name: str, obj: dict[str, object], owners: set[str], through: set[tuple[str, str]]
) -> None:
    found = affected(event(name, **obj))
    assert named(found) == owners
    assert found.through == through
    assert bool(found) == bool(owners or through)


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"type": "customer.updated"},
        {"type": "customer.updated", "data": {"object": None}},
        {"type": None, "data": {"object": {"id": "x"}}},
        {"type": "invoice.paid", "data": {"object": {"parent": "x", "customer": 5}}},
    ],
)
def test_events_of_an_odd_shape_affect_nobody(odd: dict[str, object]) -> None:
    assert not affected(odd)


LINE: dict[str, object] = {
    "parent": {"type": "subscription_item_details", "subscription_item_details": {}}
}
ITEM: dict[str, object] = {
    "parent": {
        "type": "invoice_item_details",
        "invoice_item_details": {"invoice_item": "ii_1"},
        "subscription_item_details": None,
    }
}


def of_lines(*lines: dict[str, object], has_more: bool = False) -> dict[str, object]:
    return {**NEW_INVOICE, "lines": {"data": list(lines), "has_more": has_more}}


@pytest.mark.parametrize(
    ("name", "obj", "changed", "concerns"),
    [
        ("invoice.paid", of_lines(LINE), {}, False),
        ("invoice.created", of_lines(LINE), {}, True),  # Of its subscription.
        ("invoice.paid", of_lines(LINE, ITEM), {}, True),
        ("invoice.paid", of_lines({"type": "invoiceitem", "invoice_item": "ii_1"}), {}, True),
        ("invoice.paid", of_lines(LINE, has_more=True), {}, True),
        ("invoice.paid", {**of_lines(LINE), "starting_balance": -500}, {}, True),
        ("invoice.paid", {**of_lines(LINE), "discounts": ["di_1"]}, {}, True),
        ("invoice.updated", of_lines(ITEM), {"metadata": {}, "attempted": False}, False),
        ("invoice.updated", of_lines(ITEM), {"metadata": {}, "lines": {}}, True),
        ("invoice.overpaid", of_lines(LINE), {}, True),
        ("customer.updated", {"id": "cus_1"}, {"metadata": {"a": "b"}}, False),
        ("customer.updated", {"id": "cus_1"}, {"metadata": {}, "name": "x"}, True),
        ("customer.updated", {"id": "cus_1"}, {"something_new": 1}, True),
        ("customer.updated", {"id": "cus_1"}, {"balance": 0, "delinquent": True}, True),
        ("product.updated", {"id": "prod_1"}, {"images": [], "updated": 1}, False),
        ("product.updated", {"id": "prod_1"}, {"name": "x", "updated": 1}, True),
        ("coupon.updated", {"id": "c"}, {"times_redeemed": 3}, False),
        ("price.updated", {"id": "price_1"}, {"nickname": "x", "metadata": {}}, False),
        ("price.updated", {"id": "price_1"}, {"metadata": {}, "tax_behavior": "x"}, True),
        ("plan.updated", {"id": "gold"}, {"active": True}, False),
        ("plan.updated", {"id": "gold"}, {"trial_period_days": 7}, True),
    ],
)
def test_an_event_concerns_previews_if_it_changes_what_they_show(
    name: str, obj: dict[str, object], changed: dict[str, object], *, concerns: bool
) -> None:
    made: dict[str, object] = {
        "type": name,
        "data": {"object": obj, "previous_attributes": changed},
    }
    assert bool(affected(made)) == concerns


def test_kinds_follow_from_what_is_named() -> None:
    found = affected(event("customer.subscription.created", id="a", customer="b"))
    assert found.owners == {("upcoming_subscription", "a"), ("upcoming_customer", "b")}


def test_what_several_events_affect_adds_up() -> None:
    first = affected(event("price.updated", id="a"))
    second = affected(event("customer.subscription.created", id="a", customer="b"))
    both = first | second
    assert both.through == first.through
    assert both.owners == second.owners


def test_every_rule_is_about_events_that_there_are() -> None:
    names = {e.name for e in spec().events}
    for rule in RULES:
        for one in rule.types.split():
            assert one in names or (one.endswith(".") and any(n.startswith(one) for n in names))


def test_every_relation_is_led_to_and_leads_on() -> None:
    relations = set(get_args(Relation))
    led_to = {relation for rule in RULES for relation, _ in rule.through} | {"subscription"}
    assert led_to == {link.relation for link in LINKS} == relations


def test_no_link_is_left_out_where_all_tables_are_synced() -> None:
    assert [link.needs for link in LINKS if not is_there(link, tables())] == []
