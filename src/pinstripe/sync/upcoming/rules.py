"""Decides which upcoming invoices an event may change: owners in its payload, and relations to look up.

Pure; a table of data (`RULES`), by event type. If the payload names no customer (a price, a coupon, a tax
rate), `fan_out` finds the owners in the rows. An owner too many costs a request; one too few would keep a
wrong preview.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from pinstripe.client.response import StripeObject
from pinstripe.rows.event import payload, previous_attributes

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

    `customer`, `subscription` and `through` are paths into `data.object`, several separated by spaces, to
    an id or an object. `unless`: properties that no preview shows or depends on; an event that names no
    other as changed concerns nobody. `when`: a further condition on `data.object`.
    """

    types: str
    customer: str = ""
    subscription: str = ""
    through: tuple[tuple[Relation, str], ...] = ()
    unless: frozenset[str] = frozenset()
    when: Callable[[StripeObject], bool] | None = None

    def concerns(self, event: StripeObject) -> bool:
        """Whether the event may change a preview; its type is one of the rule's."""
        if self.when is not None and not self.when(payload(event)):
            return False
        changed = previous_attributes(event).keys()
        return not changed or not changed <= self.unless


_SUBSCRIPTION_OF = "subscription parent.subscription_details.subscription"
"""Where an invoice or an invoice item names its subscription: until acacia, and from basil on."""


def _takes_from_the_next(invoice: StripeObject) -> bool:
    """Whether an invoice holds what the next one would hold: pending items, balance, credit, discounts.

    If its lines are cut, the items may be among those that are not shown.
    """
    if invoice.get("starting_balance") or invoice.get("ending_balance"):
        return True
    if any(invoice.get(n) for n in ("discount", "discounts", "total_pretax_credit_amounts")):
        return True
    lines = invoice.get("lines")
    if not isinstance(lines, dict) or lines.get("has_more") is not False:
        return True
    entries = lines.get("data")
    return any(_is_item(line) for line in entries) if isinstance(entries, list) else True


def _is_item(line: object) -> bool:
    """Whether a line is an invoice item: until acacia it names it, from basil on its parent does."""
    if not isinstance(line, dict):
        return True
    parent = line.get("parent")
    details = [line, *(parent.values() if isinstance(parent, dict) else ())]
    return any(isinstance(each, dict) and each.get("invoice_item") for each in details)


RULES: tuple[Rule, ...] = (
    Rule(
        "customer.subscription.",
        customer="customer",
        subscription="id",
        unless=frozenset({"cancellation_details", "latest_invoice", "pending_setup_intent"}),
    ),
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
    # no preview, and `payment_succeeded` comes with `paid`. An invoice whose lines are all of subscriptions
    # concerns only the one that it is of: what paying it changes there (its status, its period) is an event
    # of the subscription (https://docs.stripe.com/billing/subscriptions/webhooks).
    Rule(
        "invoice.created invoice.deleted invoice.marked_uncollectible invoice.voided",
        subscription=_SUBSCRIPTION_OF,
    ),
    Rule(
        "invoice.created invoice.deleted invoice.finalized invoice.marked_uncollectible "
        "invoice.paid invoice.payment_failed invoice.updated invoice.voided",
        subscription=_SUBSCRIPTION_OF,
        through=(("customer", "customer"),),
        when=_takes_from_the_next,
        unless=frozenset(
            {
                "attempt_count",
                "attempted",
                "auto_advance",
                "description",
                "due_date",
                "footer",
                "metadata",
                "next_payment_attempt",
                "webhooks_delivered_at",
            }
        ),
    ),
    Rule(
        "invoice.overpaid invoice.upcoming",
        subscription=_SUBSCRIPTION_OF,
        through=(("customer", "customer"),),
    ),
    Rule(
        "customer.discount.",
        customer="customer",
        subscription="subscription",
        through=(("customer", "customer"),),
    ),
    # A preview shows name, address, tax ids and balance of its customer, and none of these
    # (https://docs.stripe.com/api/invoices/object).
    Rule(
        "customer.updated customer.deleted",
        through=(("customer", "id"),),
        unless=frozenset(
            {"delinquent", "description", "invoice_prefix", "metadata", "next_invoice_sequence"}
        ),
    ),
    Rule("customer.tax_id.", through=(("customer", "customer owner.customer"),)),
    # They give credit: to the balance, or to later invoices.
    Rule("credit_note. billing.credit_grant.", through=(("customer", "customer"),)),
    # A new object (`created`) is not used by any subscription yet.
    # What others redeem changes no discount that is there already.
    Rule(
        "coupon.updated coupon.deleted",
        through=(("coupon", "id"),),
        unless=frozenset({"metadata", "times_redeemed"}),
    ),
    Rule(
        "promotion_code.updated",
        through=(("promotion_code", "id"),),
        unless=frozenset({"active", "metadata", "times_redeemed"}),
    ),
    Rule("price.updated price.deleted", through=(("price", "id"),)),
    # A plan is a price and vice versa; events may report either.
    Rule("plan.updated plan.deleted", through=(("plan", "id"), ("price", "id"))),
    # A line has the product's id, and its name in the description.
    Rule(
        "product.updated product.deleted",
        through=(("product", "id"),),
        unless=frozenset(
            {
                "default_price",
                "images",
                "marketing_features",
                "metadata",
                "package_dimensions",
                "shippable",
                "updated",
                "url",
            }
        ),
    ),
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
        if not rule.concerns(event):
            continue
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
