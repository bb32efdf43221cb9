"""Decides which upcoming invoices an event may change: by rules for its payload, and by links in the rows.

    event -> `affected`: owners that it names, and relations -> `origins`: owners behind those

Two tables of data. `RULES`, by event type, is pure. If the payload names no customer (a price, a coupon, a
tax rate), `LINKS` find the owners in the rows, one statement a link: a price leads to the subscriptions
that have it, a customer to all subscriptions and to pending invoice items. They run before the rows of the
event are written; the owners that these would add are named by the event itself. An owner too many costs a
request; one too few would keep a wrong preview.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from string import Template
from typing import Literal

from pinstripe.catalog.tables import Table
from pinstripe.client.response import StripeObject
from pinstripe.rows.event import payload, previous_attributes
from pinstripe.store.ddl import qualified
from pinstripe.store.pool import Connection

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
                *("attempt_count", "attempted", "auto_advance", "description", "due_date"),
                *("footer", "metadata", "next_payment_attempt", "webhooks_delivered_at"),
            }
        ),
    ),
    Rule("invoice.overpaid", subscription=_SUBSCRIPTION_OF, through=(("customer", "customer"),)),
    # It announces one invoice, and changes no other.
    Rule("invoice.upcoming", customer="customer", subscription=_SUBSCRIPTION_OF),
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
    # A line has the price's id and what it comes to. A nickname is hidden from customers, and who has a
    # price keeps it when it is archived (https://docs.stripe.com/api/prices/object).
    Rule(
        "price.updated price.deleted",
        through=(("price", "id"),),
        unless=frozenset({"active", "lookup_key", "metadata", "nickname"}),
    ),
    # A plan is a price and vice versa; events may report either.
    Rule(
        "plan.updated plan.deleted",
        through=(("plan", "id"), ("price", "id")),
        unless=frozenset({"active", "metadata", "nickname"}),
    ),
    # A line has the product's id, and its name in the description.
    Rule(
        "product.updated product.deleted",
        through=(("product", "id"),),
        unless=frozenset(
            {
                *("default_price", "images", "marketing_features", "metadata"),
                *("package_dimensions", "shippable", "updated", "url"),
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


ENDED = ("canceled", "incomplete_expired")
"""Subscriptions in these states never invoice again."""

ALIVE = f"coalesce(s.status, '') NOT IN {ENDED!r}"
"""SQL: subscription `s` may invoice."""

PENDING = "n.invoice_id IS NULL AND n.deleted IS NOT TRUE"
"""SQL: invoice item `n` waits for an invoice."""


@dataclass(frozen=True, slots=True)
class OwnerLink:
    """One link from the ids of a relation ($1, text[]) to owners.

    The statement returns (id of the relation or null for any of them, subscription, customer); `$table`
    stands for a synced table. A link whose tables or columns the database lacks is skipped.
    """

    relation: Relation
    needs: str
    statement: str


def _by_item(relation: Relation, needs: str, column: str, more: str = "") -> OwnerLink:
    """By what an item of the subscription costs."""
    return OwnerLink(
        relation,
        f"subscription {needs}",
        f"SELECT {column}, s.id, s.customer_id FROM $subscription_item i {more} "
        f"JOIN $subscription s ON s.id = i.subscription_id "
        f"WHERE {column} = ANY($1::text[]) AND i.deleted IS NOT TRUE AND {ALIVE}",
    )


def _by_discount(relation: Relation, column: str) -> tuple[OwnerLink, ...]:
    """By discounts: of a subscription, of one of its items, or of a customer."""
    needs = f"subscription discount.{column} discount.subscription_id discount.customer_id"
    known = f"d.{column} = ANY($1::text[]) AND d.deleted IS NOT TRUE"
    return (
        OwnerLink(
            relation,
            needs,
            f"SELECT d.{column}, s.id, s.customer_id FROM $discount d "
            f"JOIN $subscription s ON s.id = d.subscription_id WHERE {known} AND {ALIVE}",
        ),
        OwnerLink(
            relation,
            f"{needs} subscription_item discount.subscription_item_id",
            f"SELECT d.{column}, s.id, s.customer_id FROM $discount d "
            f"JOIN $subscription_item i ON i.id = d.subscription_item_id "
            f"JOIN $subscription s ON s.id = i.subscription_id WHERE {known} AND {ALIVE}",
        ),
        OwnerLink(
            relation,
            needs,
            f"SELECT d.{column}, s.id, s.customer_id FROM $discount d "
            f"JOIN $subscription s ON s.customer_id = d.customer_id "
            f"WHERE {known} AND d.subscription_id IS NULL AND {ALIVE}",
        ),
        OwnerLink(
            relation,
            f"invoice_item discount.{column} discount.customer_id",
            f"SELECT d.{column}, NULL, d.customer_id FROM $discount d "
            f"JOIN $invoice_item n ON n.customer_id = d.customer_id WHERE {known} AND {PENDING}",
        ),
    )


# Discounts without a row: no event has shown them since the sync began, so any coupon may be theirs.
_UNKNOWN = "$1::text[] <> '{}' AND NOT EXISTS (SELECT FROM $discount d WHERE d.id = u.id)"

LINKS: tuple[OwnerLink, ...] = (
    OwnerLink(
        "customer",
        "subscription",
        f"SELECT s.customer_id, s.id, s.customer_id FROM $subscription s "
        f"WHERE s.customer_id = ANY($1::text[]) AND {ALIVE}",
    ),
    OwnerLink(
        "customer",
        "invoice_item",
        f"SELECT n.customer_id, NULL, n.customer_id FROM $invoice_item n "
        f"WHERE n.customer_id = ANY($1::text[]) AND {PENDING}",
    ),
    # The row that exists now may have to go.
    OwnerLink(
        "customer",
        "upcoming_customer_invoice",
        "SELECT u.customer_id, NULL, u.customer_id FROM $upcoming_customer_invoice u "
        "WHERE u.customer_id = ANY($1::text[])",
    ),
    OwnerLink(
        "customer",
        "upcoming_subscription_invoice",
        "SELECT u.customer_id, u.subscription_id, u.customer_id FROM $upcoming_subscription_invoice u "
        "WHERE u.customer_id = ANY($1::text[])",
    ),
    OwnerLink(
        "subscription",
        "subscription",
        "SELECT s.id, s.id, s.customer_id FROM $subscription s WHERE s.id = ANY($1::text[])",
    ),
    OwnerLink(
        "invoice_item",
        "invoice_item",
        "SELECT n.id, NULL, n.customer_id FROM $invoice_item n WHERE n.id = ANY($1::text[])",
    ),
    _by_item("price", "subscription_item.price_id", "i.price_id"),
    _by_item("plan", "subscription_item.plan_id", "i.plan_id"),
    _by_item(
        "product",
        "subscription_item.price_id price.product_id",
        "p.product_id",
        "JOIN $price p ON p.id = i.price_id",
    ),
    *_by_discount("coupon", "source_coupon_id"),
    *_by_discount("promotion_code", "promotion_code_id"),
    OwnerLink(
        "coupon",
        "subscription.discounts discount",
        f"SELECT NULL, s.id, s.customer_id FROM $subscription s, unnest(s.discounts) AS u (id) "
        f"WHERE {_UNKNOWN} AND {ALIVE}",
    ),
    OwnerLink(
        "coupon",
        "subscription subscription_item.discounts discount",
        f"SELECT NULL, s.id, s.customer_id FROM $subscription s JOIN $subscription_item i "
        f"ON i.subscription_id = s.id, unnest(i.discounts) AS u (id) WHERE {_UNKNOWN} AND {ALIVE}",
    ),
    OwnerLink(
        "tax_rate",
        "subscription.default_tax_rates",
        f"SELECT r.id, s.id, s.customer_id FROM $subscription s, unnest($1::text[]) AS r (id) "
        f"WHERE s.default_tax_rates @> jsonb_build_array(jsonb_build_object('id', r.id)) AND {ALIVE}",
    ),
    OwnerLink(
        "tax_rate",
        "subscription subscription_item.tax_rates",
        f"SELECT r.id, s.id, s.customer_id FROM unnest($1::text[]) AS r (id), $subscription_item i "
        f"JOIN $subscription s ON s.id = i.subscription_id "
        f"WHERE i.tax_rates @> jsonb_build_array(jsonb_build_object('id', r.id)) AND {ALIVE}",
    ),
    OwnerLink(
        "tax_rate",
        "invoice_item.tax_rates",
        f"SELECT r.id, NULL, n.customer_id FROM $invoice_item n, unnest($1::text[]) AS r (id) "
        f"WHERE n.tax_rates @> jsonb_build_array(jsonb_build_object('id', r.id)) AND {PENDING}",
    ),
    OwnerLink(
        "test_clock",
        "subscription.test_clock_id",
        f"SELECT s.test_clock_id, s.id, s.customer_id FROM $subscription s "
        f"WHERE s.test_clock_id = ANY($1::text[]) AND {ALIVE}",
    ),
    OwnerLink(
        "test_clock",
        "invoice_item.test_clock_id",
        f"SELECT n.test_clock_id, NULL, n.customer_id FROM $invoice_item n "
        f"WHERE n.test_clock_id = ANY($1::text[]) AND {PENDING}",
    ),
    OwnerLink(
        "automatic_tax",
        "subscription.automatic_tax_enabled",
        f"SELECT '{EVERYONE}', s.id, s.customer_id FROM $subscription s "
        f"WHERE $1::text[] <> '{{}}' AND s.automatic_tax_enabled AND {ALIVE}",
    ),
)


async def origins(
    connection: Connection, affected: Affected, *, schema: str, tables: Mapping[str, Table]
) -> dict[Through, set[OwnerKey]]:
    """Return the owners behind each relation: for the events of a whole page in a few statements."""
    ids: dict[Relation, list[str]] = defaultdict(list)
    for relation, key in sorted(affected.through):
        ids[relation].append(key)
    found: dict[Through, set[OwnerKey]] = defaultdict(set)
    for link in LINKS:
        if link.relation not in ids or not is_there(link, tables):
            continue
        statement = Template(link.statement).safe_substitute(
            {name: qualified(schema, name) for name in tables}
        )
        for key, subscription, customer in await connection.fetch(statement, ids[link.relation]):
            owners = set(_owners(subscription, customer))
            for origin in ids[link.relation] if key is None else (key,):
                found[link.relation, origin] |= owners
    return found


def _owners(subscription: str | None, customer: str | None) -> Iterator[OwnerKey]:
    if subscription is not None:
        yield ("upcoming_subscription", subscription)
    if customer is not None:
        yield ("upcoming_customer", customer)


def is_there(link: OwnerLink, tables: Mapping[str, Table]) -> bool:
    """Whether the database has what the statement needs: the user may sync fewer tables."""
    for need in link.needs.split():
        name, _, column = need.partition(".")
        table = tables.get(name)
        if table is None or (column and not any(c.name == column for c in table.columns)):
            return False
    return True
