"""What is counted by UTC day: requests against Stripe's read quota, and how far Stripe's clocks were apart.

    proxied write -> its `Date` -> its event's `created`   `note_writes`
    contradiction -> one request after the margin          `note_contradiction`

Counts are added to, so several processes may count for one schema. The margins (`client.response.Margins`)
are guesses; `status` and the metrics show what they are up against.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import msgspec

from pinstripe.store.ddl import qualified
from pinstripe.store.pool import Connection

DAYS = 30
GETS_A_TRANSACTION = 500
LEAST_GETS = 10_000
_MOST_TRANSACTIONS = 100_000
"""More need not be counted: they allow twenty times what two polls a second take."""

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
    connection: Connection, schema: str, today: date
) -> dict[tuple[date, str], int]:
    """Requests by day and kind, of the 30 days that end with this one."""
    rows = await connection.fetch(
        "SELECT day, kind, count FROM pinstripe.request_count WHERE schema = $1 AND day >= $2",
        schema,
        today - timedelta(days=DAYS - 1),
    )
    return {(row[0], row[1]): row[2] for row in rows}


async def count_transactions(connection: Connection, schema: str) -> int | None:
    """Transactions of the last 30 days in the copy, at most 100,000 of each sort; None if none is
    copied.
    """
    total: int | None = None
    for table, condition in _TRANSACTIONS:
        name = qualified(schema, table)
        if await connection.fetchval("SELECT to_regclass($1)", name) is None:
            continue
        found: int = await connection.fetchval(
            f"SELECT count(*) FROM (SELECT FROM {name} "
            f"WHERE created >= now() - make_interval(days => $1) AND {condition} LIMIT $2) t",
            DAYS,
            _MOST_TRANSACTIONS,
        )
        total = (total or 0) + found
    return total


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
    days = await load_requests(connection, schema, today)
    by_kind: Counter[str] = Counter()
    by_day: Counter[date] = Counter()
    for (day, kind), count in days.items():
        by_kind[kind] += count
        by_day[day] += count
    transactions: int | None = None
    if livemode is not False:
        transactions = await count_transactions(connection, schema)
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


_KEPT = "interval '30 days'"


class Clocks(msgspec.Struct, frozen=True):
    """What was measured in the last 30 days."""

    writes: int = 0
    """Proxied writes whose events were seen."""
    date_ahead_s: float = 0.0
    """How far `Date` was ahead of `created` at most, beyond what the duration of the request explains."""
    date_behind_s: float = 0.0
    """The same, behind."""
    contradictions: int = 0
    """Snapshots that contradicted a row without being surely newer or older."""
    stale: int = 0
    """Those of them after which the row stayed: they had shown an older state."""


@dataclass(frozen=True, slots=True)
class Write:
    """A proxied write that Stripe answered in [lo, hi), Unix seconds by its `Date`."""

    request_id: str
    lo: float
    hi: float


async def note_writes(connection: Connection, schema: str, writes: Sequence[Write]) -> None:
    """Compare these writes with their events, as far as those are applied."""
    await connection.execute(
        "WITH pair AS (SELECT u.lo, u.hi, extract(epoch FROM min(a.created))::float8 AS created"
        "   FROM unnest($2::text[], $3::float8[], $4::float8[]) AS u (request, lo, hi)"
        "   JOIN pinstripe.applied_event a ON a.schema = $1 AND a.request_id = u.request"
        "   GROUP BY u.request, u.lo, u.hi),"
        " found AS (SELECT count(*) AS writes, coalesce(max(lo - created - 1), 0) AS ahead,"
        "   coalesce(max(created - hi), 0) AS behind FROM pair HAVING count(*) > 0)"
        " INSERT INTO pinstripe.clock AS c (schema, day, writes, ahead_s, behind_s)"
        " SELECT $1, current_date, writes, greatest(ahead, 0), greatest(behind, 0) FROM found"
        " ON CONFLICT (schema, day) DO UPDATE SET writes = c.writes + EXCLUDED.writes,"
        " ahead_s = greatest(c.ahead_s, EXCLUDED.ahead_s),"
        " behind_s = greatest(c.behind_s, EXCLUDED.behind_s)",
        schema,
        [w.request_id for w in writes],
        [w.lo for w in writes],
        [w.hi for w in writes],
    )


async def note_contradiction(connection: Connection, schema: str, *, is_stale: bool) -> None:
    """Count a contradiction that was resolved; `is_stale`: the row was right."""
    await connection.execute(
        "INSERT INTO pinstripe.clock AS c (schema, day, contradictions, stale)"
        " VALUES ($1, current_date, 1, $2) ON CONFLICT (schema, day) DO UPDATE"
        " SET contradictions = c.contradictions + 1, stale = c.stale + EXCLUDED.stale",
        schema,
        int(is_stale),
    )


async def load_clocks(connection: Connection) -> dict[str, Clocks]:
    """Return schema -> what was measured in the last 30 days."""
    rows = await connection.fetch(
        "SELECT schema, sum(writes)::bigint, max(ahead_s), max(behind_s),"
        " sum(contradictions)::bigint, sum(stale)::bigint FROM pinstripe.clock"
        f" WHERE day >= current_date - {_KEPT} GROUP BY schema"
    )
    return {row[0]: Clocks(*row[1:]) for row in rows}
