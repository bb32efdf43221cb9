"""Counts of requests by UTC day and kind, and the part of Stripe's read quota that they use.

Counts are added to, so several processes may count for one schema.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

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


def utc_today() -> date:
    """Return the UTC day."""
    return datetime.now(UTC).date()


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


_MOST_TRANSACTIONS = 100_000


@dataclass(frozen=True, slots=True)
class ReadUse:
    """GETs of the last 30 days. `allowed`: None in test mode, which has no allowance.

    `transactions` are an estimate: succeeded charges and refunds, and transfers, in the copy. `projected`:
    GETs in 30 days if every day were as yesterday; None where the first copy is not over since a day.
    """

    used: int
    by_kind: Mapping[str, int]
    allowed: int | None
    transactions: int | None
    projected: int | None


async def load_read_use(
    connection: Connection, schema: str, *, livemode: bool | None, today: date | None = None
) -> ReadUse:
    """The use of one schema. `today`: the UTC day."""
    today = today or utc_today()
    days = await load_requests(connection, schema, today - timedelta(days=DAYS - 1))
    by_kind: Counter[str] = Counter()
    by_day: Counter[date] = Counter()
    for (day, kind), count in days.items():
        by_kind[kind] += count
        by_day[day] += count
    transactions: int | None = None
    if livemode is not False:
        transactions = await count_transactions(connection, schema, DAYS, most=_MOST_TRANSACTIONS)
    return ReadUse(
        by_kind.total(),
        dict(sorted(by_kind.items())),
        None if livemode is False else allowed(transactions),
        transactions,
        _projected(by_day, today),
    )


def _projected(by_day: Mapping[date, int], today: date) -> int | None:
    """Of a day before which there was another: what the first copy takes is not usual.

    >>> from datetime import date
    >>> copied, after = date(2026, 5, 1), date(2026, 5, 2)
    >>> _projected({copied: 9000, after: 200}, date(2026, 5, 3)), _projected({copied: 9000}, after)
    (6000, None)
    """
    yesterday = today - timedelta(days=1)
    if not any(day < yesterday for day in by_day):
        return None
    return by_day.get(yesterday, 0) * DAYS
