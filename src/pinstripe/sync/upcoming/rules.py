"""Decides which upcoming invoices an event may change: owners in its payload, and relations to look up.

Pure; a table of data (`RULES`), by event type. If the payload names no customer (a price, a coupon, a tax
rate), `fan_out` finds the owners in the rows. An owner too many costs a request; one too few would keep a
wrong preview.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from pinstripe.client.decode import StripeObject
from pinstripe.rows.event import payload

OwnerKind = Literal["upcoming_customer", "upcoming_subscription"]
OwnerKey = tuple[OwnerKind, str]
"""What to preview again: the kind and id of a refetch."""

Relation = Literal[
    "automatic_tax",
    "coupon",
    "customer",
    "invoice_item",
    "plan",
    "price",
    "product",
    "promotion_code",
    "subscription",
    "tax_rate",
    "test_clock",
]
Through = tuple[Relation, str]

EVERYONE = "*"
"""The id of a relation that concerns the whole account."""


@dataclass(frozen=True, slots=True)
class Affected:
    """`owners` are named by the event; `through` leads to more of them."""

    owners: frozenset[OwnerKey] = frozenset()
    through: frozenset[Through] = frozenset()

    def __or__(self, other: Affected) -> Affected:
        return Affected(self.owners | other.owners, self.through | other.through)

    def __bool__(self) -> bool:
        return bool(self.owners or self.through)


@dataclass(frozen=True, slots=True)
class Rule:
    """For events of these types (separated by spaces); one that ends in a dot is a prefix.

    The other fields are paths into `data.object`, several separated by spaces, to an id or an object.
    """

    types: str
    customer: str = ""
    subscription: str = ""
    through: tuple[tuple[Relation, str], ...] = ()


_SUBSCRIPTION_OF = "subscription parent.subscription_details.subscription"
"""Where an invoice or an invoice item names its subscription: until acacia, and from basil on."""

RULES: tuple[Rule, ...] = (
    Rule("customer.subscription.", customer="customer", subscription="id"),
    Rule(
        "subscription_schedule.",
        customer="customer",
        subscription="subscription released_subscription",
    ),
    # Pending items go into the invoice of any subscription of the customer.
    Rule(
        "invoiceitem.",
        customer="customer",
        subscription=_SUBSCRIPTION_OF,
        through=(("customer", "customer"), ("invoice_item", "id")),
    ),
    # Events that move money or items. `sent`, `overdue`, `will_be_due` and `payment_action_required` change
    # no preview, and `payment_succeeded` comes with `paid`.
    Rule(
        "invoice.created invoice.deleted invoice.finalized invoice.marked_uncollectible "
        "invoice.overpaid invoice.paid invoice.payment_failed invoice.upcoming invoice.updated "
        "invoice.voided",
        subscription=_SUBSCRIPTION_OF,
        through=(("customer", "customer"),),
    ),
    Rule(
        "customer.discount.",
        customer="customer",
        subscription="subscription",
        through=(("customer", "customer"),),
    ),
    Rule("customer.updated customer.deleted", through=(("customer", "id"),)),
    Rule("customer.tax_id.", through=(("customer", "customer owner.customer"),)),
    # They give credit: to the balance, or to later invoices.
    Rule("credit_note. billing.credit_grant.", through=(("customer", "customer"),)),
    # A new object (`created`) is not used by any subscription yet.
    Rule("coupon.updated coupon.deleted", through=(("coupon", "id"),)),
    Rule("promotion_code.updated", through=(("promotion_code", "id"),)),
    Rule("price.updated price.deleted", through=(("price", "id"),)),
    # A plan is a price and vice versa; events may report either.
    Rule("plan.updated plan.deleted", through=(("plan", "id"), ("price", "id"))),
    Rule("product.updated product.deleted", through=(("product", "id"),)),
    Rule("tax_rate.updated", through=(("tax_rate", "id"),)),
    Rule("tax.settings.updated", through=(("automatic_tax", ""),)),
    Rule(
        "test_helpers.test_clock.advancing test_helpers.test_clock.ready "
        "test_helpers.test_clock.deleted",
        through=(("test_clock", "id"),),
    ),
)


def affected(event: StripeObject) -> Affected:
    """Whose upcoming invoice the event may change; nothing for most events."""
    obj = payload(event)
    if not obj:
        return Affected()
    owners: set[OwnerKey] = set()
    through: set[Through] = set()
    for rule in _rules_of(str(event.get("type"))):
        owners |= {("upcoming_customer", key) for key in _ids(obj, rule.customer)}
        subscriptions = _ids(obj, rule.subscription)
        owners |= {("upcoming_subscription", key) for key in subscriptions}
        if not rule.customer:
            through |= {("subscription", key) for key in subscriptions}
        for relation, paths in rule.through:
            through |= {(relation, key) for key in (_ids(obj, paths) if paths else (EVERYONE,))}
    return Affected(frozenset(owners), frozenset(through))


@cache
def _rules_of(event_type: str) -> tuple[Rule, ...]:
    return tuple(
        rule
        for rule in RULES
        if any(
            event_type == one or (one.endswith(".") and event_type.startswith(one))
            for one in rule.types.split()
        )
    )


def _ids(obj: Mapping[str, object], paths: str) -> list[str]:
    found: list[str] = []
    for path in paths.split():
        value: object = obj
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, dict):
            value = value.get("id")
        if isinstance(value, str) and value:
            found.append(value)
    return found
