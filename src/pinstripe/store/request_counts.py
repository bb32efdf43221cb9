"""Requests sent to Stripe, by UTC day and kind; and what Stripe allows for: the account's transactions.

Counts are added up, so that several processes may count for one schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

from pinstripe.store.ddl import qualified
from pinstripe.store.pool import Connection

DAYS = 30
GETS_A_TRANSACTION = 500
LEAST_GETS = 10_000

_ADD = """
INSERT INTO pinstripe.request_count AS c (schema, day, kind, count)
SELECT $1, $2, u.kind, u.count FROM unnest($3::text[], $4::bigint[]) AS u (kind, count)
ON CONFLICT (schema, day, kind) DO UPDATE SET count = c.count + EXCLUDED.count
"""

_TRANSACTIONS = (
    ("charge", "status = 'succeeded'"),
    ("refund", "status = 'succeeded'"),
    ("transfer", "true"),
)
"""What is taken for a transaction. Stripe does not say what one is; this is money that moved."""


def allowed(transactions: int | None) -> int:
    """GETs in 30 days (https://docs.stripe.com/rate-limits). What is not known allows the least.

    >>> allowed(None), allowed(3), allowed(1000)
    (10000, 10000, 500000)
    """
    return max(LEAST_GETS, GETS_A_TRANSACTION * (transactions or 0))


async def add_requests(
    connection: Connection, schema: str, day: date, counts: Mapping[str, int]
) -> None:
    """Adds requests by kind to those of the day."""
    if counts:
        kinds = sorted(counts)
        await connection.execute(_ADD, schema, day, kinds, [counts[kind] for kind in kinds])


async def load_requests(
    connection: Connection, schema: str, since: date
) -> dict[tuple[date, str], int]:
    """Requests by day and kind, from that day on."""
    rows = await connection.fetch(
        "SELECT day, kind, count FROM pinstripe.request_count WHERE schema = $1 AND day >= $2",
        schema,
        since,
    )
    return {(row[0], row[1]): row[2] for row in rows}


async def count_transactions(
    connection: Connection, schema: str, days: int, *, most: int
) -> int | None:
    """Transactions of the last days in the copy, at most `most` of each sort; None if none is copied."""
    total: int | None = None
    for table, condition in _TRANSACTIONS:
        name = qualified(schema, table)
        if await connection.fetchval("SELECT to_regclass($1)", name) is None:
            continue
        found: int = await connection.fetchval(
            f"SELECT count(*) FROM (SELECT FROM {name} "
            f"WHERE created >= now() - make_interval(days => $1) AND {condition} LIMIT $2) t",
            days,
            most,
        )
        total = (total or 0) + found
    return total
