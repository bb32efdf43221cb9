"""Which upcoming invoices an event may change: the owners that its payload names, and what to look up.

Pure; a table of data (`_RULES`), by event type. Where the payload names no customer (a price, a coupon, a
tax rate), `upcoming_fanout` finds the owners in the rows. It is better to name an owner too many, which
costs a request, than one too few, whose preview would stay wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pinstripe.rows.decode import StripeObject

Kind = Literal["upcoming_customer", "upcoming_subscription"]
OwnerKey = tuple[Kind, str]
"""What is to be previewed anew: as the kind and id of a to-do."""

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
"""The id of a relation that is about the account as a whole."""


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
class _Rule:
    """For events whose type is `name`, or begins with it where it ends in a dot.

    Paths into `data.object`, several with spaces between; what stands there is an id or an object.
    """

    name: str
    customer: str = ""
    subscription: str = ""
    through: tuple[tuple[Relation, str], ...] = ()


_SUBSCRIPTION_OF = "subscription parent.subscription_details.subscription"
"""Where an invoice or an invoice item names its subscription: until acacia, and from basil on."""

# Of invoices, what moves money or items. `sent`, `overdue`, `will_be_due`, `payment_action_required`
# change no preview, and `payment_succeeded` comes with `paid`.
_INVOICE_VERBS = (
    "created",
    "deleted",
    "finalized",
    "marked_uncollectible",
    "overpaid",
    "paid",
    "payment_failed",
    "upcoming",
    "updated",
    "voided",
)

_RULES: tuple[_Rule, ...] = (
    _Rule("customer.subscription.", customer="customer", subscription="id"),
    _Rule(
        "subscription_schedule.",
        customer="customer",
        subscription="subscription released_subscription",
    ),
    # Pending items go into the invoice of any subscription of the customer.
    _Rule(
        "invoiceitem.",
        customer="customer",
        subscription=_SUBSCRIPTION_OF,
        through=(("customer", "customer"), ("invoice_item", "id")),
    ),
    *(
        _Rule(f"invoice.{verb}", subscription=_SUBSCRIPTION_OF, through=(("customer", "customer"),))
        for verb in _INVOICE_VERBS
    ),
    _Rule(
        "customer.discount.",
        customer="customer",
        subscription="subscription",
        through=(("customer", "customer"),),
    ),
    _Rule("customer.updated", through=(("customer", "id"),)),
    _Rule("customer.deleted", through=(("customer", "id"),)),
    _Rule("customer.tax_id.", through=(("customer", "customer owner.customer"),)),
    # They give credit: to the balance, or to invoices to come.
    _Rule("credit_note.", through=(("customer", "customer"),)),
    _Rule("billing.credit_grant.", through=(("customer", "customer"),)),
    _Rule("coupon.", through=(("coupon", "id"),)),
    _Rule("promotion_code.", through=(("promotion_code", "id"),)),
    _Rule("price.", through=(("price", "id"),)),
    # A plan is a price, and the other way round; either may be told of.
    _Rule("plan.", through=(("plan", "id"), ("price", "id"))),
    _Rule("product.", through=(("product", "id"),)),
    _Rule("tax_rate.", through=(("tax_rate", "id"),)),
    _Rule("tax.settings.updated", through=(("automatic_tax", ""),)),
    _Rule("test_helpers.test_clock.", through=(("test_clock", "id"),)),
)


def affected(event: StripeObject) -> Affected:
    """Whose upcoming invoice the event may change; nothing for most events."""
    event_type = str(event.get("type"))
    data = event.get("data")
    obj = data.get("object") if isinstance(data, dict) else None
    if not isinstance(obj, dict):
        return Affected()
    owners: set[OwnerKey] = set()
    through: set[Through] = set()
    for rule in _RULES:
        if event_type != rule.name and not (
            rule.name.endswith(".") and event_type.startswith(rule.name)
        ):
            continue
        owners |= {("upcoming_customer", key) for key in _ids(obj, rule.customer)}
        subscriptions = _ids(obj, rule.subscription)
        owners |= {("upcoming_subscription", key) for key in subscriptions}
        if not rule.customer:
            through |= {("subscription", key) for key in subscriptions}
        for relation, paths in rule.through:
            through |= {(relation, key) for key in (_ids(obj, paths) if paths else (EVERYONE,))}
    return Affected(frozenset(owners), frozenset(through))


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
