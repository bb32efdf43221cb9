"""Finds the owners of upcoming invoices that an event affects, through the rows.

A price leads to the subscriptions that have it, a coupon to those with a discount of it, a customer to all
subscriptions and to pending invoice items. `LINKS` is a table of data: one statement a link. It runs before
the rows of the event are written; the owners that these would add are named by the event itself (`rules`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import Template

from pinstripe.catalog.tables import Table
from pinstripe.store.ddl import qualified
from pinstripe.store.pool import Connection
from pinstripe.sync.upcoming.rules import EVERYONE, Affected, OwnerKey, Relation, Through

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
