"""Which upcoming invoices an event may change: customers and subscriptions, by id or by relation.

    affected(event)       pure: the owners that the payload names, and what to look up
    fan_out(connection)   the rest, from the rows: a price -> subscriptions that have it, ...

Both are tables of data: `_RULES` by event type, `_LINKS` by relation. It is better to name an owner too
many, which costs a request, than one too few, whose preview would stay wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Literal

from pinstripe.catalog.tables import Table
from pinstripe.rows.decode import StripeObject
from pinstripe.store.ddl import qualified
from pinstripe.store.pool import Connection

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
    "created deleted finalized marked_uncollectible overpaid paid payment_failed upcoming updated voided"
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
        for verb in _INVOICE_VERBS.split()
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


ENDED = ("canceled", "incomplete_expired")
"""Subscriptions of these states never invoice again."""

ALIVE = f"coalesce(s.status, '') NOT IN {ENDED!r}"
"""SQL: subscription `s` may invoice."""

PENDING = "n.invoice_id IS NULL AND n.deleted IS NOT TRUE"
"""SQL: invoice item `n` waits for an invoice."""


@dataclass(frozen=True, slots=True)
class _Link:
    """One way from the ids of a relation ($1, text[]) to owners.

    The statement gives (id of the relation or null for any of them, subscription, customer); `$table`
    stands for a synced table. A link whose tables or columns the database lacks is left out.
    """

    relation: Relation
    needs: str
    statement: str


def _by_item(relation: Relation, column: str, more: str = "", needs: str = "") -> _Link:
    return _Link(
        relation,
        f"subscription subscription_item.{column.removeprefix('i.')} {needs}"
        if not needs
        else f"subscription subscription_item.price_id {needs}",
        f"SELECT {column}, s.id, s.customer_id FROM $subscription_item i {more} "
        f"JOIN $subscription s ON s.id = i.subscription_id "
        f"WHERE {column} = ANY($1::text[]) AND i.deleted IS NOT TRUE AND {ALIVE}",
    )


def _by_discount(relation: Relation, column: str) -> tuple[_Link, ...]:
    """Discounts that we know; and all that we do not know, whose coupon might be the one."""
    unknown = "NOT EXISTS (SELECT FROM $discount d WHERE d.id = u.id)"
    return (
        _Link(
            relation,
            f"subscription discount.{column} discount.subscription_id discount.customer_id",
            f"SELECT d.{column}, s.id, s.customer_id FROM $discount d JOIN $subscription s "
            f"ON s.id = d.subscription_id OR (d.subscription_id IS NULL AND s.customer_id = d.customer_id) "
            f"WHERE d.{column} = ANY($1::text[]) AND {ALIVE}",
        ),
        _Link(
            relation,
            f"invoice_item discount.{column} discount.customer_id",
            f"SELECT d.{column}, NULL, d.customer_id FROM $discount d JOIN $invoice_item n "
            f"ON n.customer_id = d.customer_id WHERE d.{column} = ANY($1::text[]) AND {PENDING}",
        ),
        _Link(
            relation,
            "subscription.discounts discount",
            f"SELECT NULL, s.id, s.customer_id FROM $subscription s, unnest(s.discounts) AS u (id) "
            f"WHERE $1::text[] <> '{{}}' AND {ALIVE} AND {unknown}",
        ),
        _Link(
            relation,
            "subscription subscription_item.discounts discount",
            f"SELECT NULL, s.id, s.customer_id FROM $subscription s JOIN $subscription_item i "
            f"ON i.subscription_id = s.id, unnest(i.discounts) AS u (id) "
            f"WHERE $1::text[] <> '{{}}' AND {ALIVE} AND {unknown}",
        ),
    )


_LINKS: tuple[_Link, ...] = (
    _Link(
        "customer",
        "subscription",
        f"SELECT s.customer_id, s.id, s.customer_id FROM $subscription s "
        f"WHERE s.customer_id = ANY($1::text[]) AND {ALIVE}",
    ),
    _Link(
        "customer",
        "invoice_item",
        f"SELECT n.customer_id, NULL, n.customer_id FROM $invoice_item n "
        f"WHERE n.customer_id = ANY($1::text[]) AND {PENDING}",
    ),
    # What is shown now may have to go.
    _Link(
        "customer",
        "upcoming_customer_invoice",
        "SELECT u.customer_id, NULL, u.customer_id FROM $upcoming_customer_invoice u "
        "WHERE u.customer_id = ANY($1::text[])",
    ),
    _Link(
        "customer",
        "upcoming_subscription_invoice",
        "SELECT u.customer_id, u.subscription_id, u.customer_id FROM $upcoming_subscription_invoice u "
        "WHERE u.customer_id = ANY($1::text[])",
    ),
    _Link(
        "subscription",
        "subscription",
        "SELECT s.id, s.id, s.customer_id FROM $subscription s WHERE s.id = ANY($1::text[])",
    ),
    _Link(
        "invoice_item",
        "invoice_item",
        "SELECT n.id, NULL, n.customer_id FROM $invoice_item n WHERE n.id = ANY($1::text[])",
    ),
    _by_item("price", "i.price_id"),
    _by_item("plan", "i.plan_id"),
    _by_item("product", "p.product_id", "JOIN $price p ON p.id = i.price_id", "price.product_id"),
    *_by_discount("coupon", "source_coupon_id"),
    *_by_discount("promotion_code", "promotion_code_id"),
    _Link(
        "tax_rate",
        "subscription.default_tax_rates",
        f"SELECT r.id, s.id, s.customer_id FROM $subscription s, unnest($$1::text[]) AS r (id) "
        f"WHERE s.default_tax_rates @> jsonb_build_array(jsonb_build_object('id', r.id)) AND {ALIVE}",
    ),
    _Link(
        "tax_rate",
        "subscription subscription_item.tax_rates",
        f"SELECT r.id, s.id, s.customer_id FROM unnest($$1::text[]) AS r (id), $subscription_item i "
        f"JOIN $subscription s ON s.id = i.subscription_id "
        f"WHERE i.tax_rates @> jsonb_build_array(jsonb_build_object('id', r.id)) AND {ALIVE}",
    ),
    _Link(
        "tax_rate",
        "invoice_item.tax_rates",
        f"SELECT r.id, NULL, n.customer_id FROM $invoice_item n, unnest($$1::text[]) AS r (id) "
        f"WHERE n.tax_rates @> jsonb_build_array(jsonb_build_object('id', r.id)) AND {PENDING}",
    ),
    _Link(
        "test_clock",
        "subscription.test_clock_id",
        f"SELECT s.test_clock_id, s.id, s.customer_id FROM $subscription s "
        f"WHERE s.test_clock_id = ANY($1::text[]) AND {ALIVE}",
    ),
    _Link(
        "test_clock",
        "invoice_item.test_clock_id",
        f"SELECT n.test_clock_id, NULL, n.customer_id FROM $invoice_item n "
        f"WHERE n.test_clock_id = ANY($1::text[]) AND {PENDING}",
    ),
    _Link(
        "automatic_tax",
        "subscription.automatic_tax_enabled",
        f"SELECT '{EVERYONE}', s.id, s.customer_id FROM $subscription s "
        f"WHERE $1::text[] <> '{{}}' AND s.automatic_tax_enabled AND {ALIVE}",
    ),
)
