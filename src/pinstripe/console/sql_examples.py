"""Statements to begin with: each is whole, quick, and says something about an account."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """`tables` are those that it reads."""

    title: str
    tables: tuple[str, ...]
    statement: str


EXAMPLES = (
    Example(
        "Paid charges by month",
        ("charge",),
        """SELECT date_trunc('month', created) AS month, currency,
       count(*) AS charges, sum(amount - amount_refunded) AS net_minor
FROM charge
WHERE status = 'succeeded'
GROUP BY 1, 2
ORDER BY 1 DESC, 2""",
    ),
    Example(
        "Subscriptions by status",
        ("subscription",),
        """SELECT status, count(*) AS subscriptions, min(created) AS oldest
FROM subscription
GROUP BY 1
ORDER BY 2 DESC""",
    ),
    Example(
        "Open invoices with their customers",
        ("invoice", "customer"),
        """SELECT i.id, i.number, c.name, i.amount_due, i.currency, i.due_date
FROM invoice i
LEFT JOIN customer c ON c.id = i.customer_id
WHERE i.status = 'open'
ORDER BY i.created
LIMIT 100""",
    ),
    Example(
        "Customers who pay most",
        ("charge", "customer"),
        """SELECT c.id, c.name, ch.currency, sum(ch.amount) AS paid_minor
FROM charge ch
JOIN customer c ON c.id = ch.customer_id
WHERE ch.status = 'succeeded'
GROUP BY 1, 2, 3
ORDER BY 4 DESC
LIMIT 20""",
    ),
    Example(
        "What happened in the last hour",
        ("event",),
        """SELECT type, count(*) AS events, max(created) AS newest
FROM event
WHERE created > now() - interval '1 hour'
GROUP BY 1
ORDER BY 2 DESC""",
    ),
    Example(
        "Prices of each product",
        ("product", "price"),
        """SELECT p.name, pr.id, pr.unit_amount, pr.currency, pr.recurring_interval, pr.active
FROM product p
JOIN price pr ON pr.product_id = p.id
ORDER BY p.name, pr.unit_amount
LIMIT 200""",
    ),
)


def examples(here: Container[str]) -> list[Example]:
    """Those whose tables are all there."""
    return [e for e in EXAMPLES if all(t in here for t in e.tables)]
