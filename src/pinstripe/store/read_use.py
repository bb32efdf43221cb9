"""How much of Stripe's read allowance a sync has used, from the counts in the database alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from pinstripe.store.pool import Connection
from pinstripe.store.request_counts import DAYS, allowed, count_transactions, load_requests

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
    today = today or datetime.now(UTC).date()
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
