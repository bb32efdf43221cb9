"""Meters Stripe's read quota and decides how often to poll.

Stripe allows 500 GETs for each transaction, averaged over a rolling 30 days, and never less than 10,000
(https://docs.stripe.com/rate-limits). Two polls a second are 5.2 million GETs in 30 days: little for a busy
account, far too many for a quiet one. So in live mode the pause between polls grows until what is left is
spent evenly, and no further than needed. A wake-up (a webhook, a write, a waiting caller) restores the full
rate, which then fades. Writes and previews (POST) are not limited. Only our own requests are counted here:
Stripe also counts those of the account's other software.

The plan is pure arithmetic. Polls get at least half; other reads (newest pages of lists without events,
full refreshes) get the rest, or less if that is enough. Each has a longest pause, however little is left.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from statistics import median
from typing import Literal

import structlog

from pinstripe.errors import PinstripeError
from pinstripe.store.daily_counts import (
    DAYS,
    add_requests,
    allowed,
    count_transactions,
    load_requests,
)
from pinstripe.store.leases import QuotaReport
from pinstripe.store.pool import Pool

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_FADE = 2.0
"""After a wake-up the pause grows with the time since, by this part of it: sixteen polls in ten minutes,
so that a quiet account can be woken every hour of its month."""

_FLUSH_S = 10.0

_COUNT_S = 3600.0

_LAST_S = 2.0

ReadKind = Literal["events", "list", "retrieve"]


def kind_of(endpoint: str) -> ReadKind | None:
    """Return the kind of a GET; None for what is not limited. `endpoint` is "GET /v1/charges/{charge}".

    >>> kind_of("GET /v1/events"), kind_of("GET /v1/charges/{charge}"), kind_of("POST /v1/charges")
    ('events', 'retrieve', None)
    """
    method, _, path = endpoint.rpartition(" ")
    if method not in ("GET", ""):
        return None
    if path.startswith("/v1/events"):
        return "events"
    return "retrieve" if path.endswith("}") else "list"


def by_kind(requests: Mapping[str, int]) -> Counter[str]:
    """Return how many of these requests, counted by endpoint, the quota counts, by their kind."""
    found: Counter[str] = Counter()
    for endpoint, count in requests.items():
        kind = kind_of(endpoint)
        if kind is not None:
            found[kind] += count
    return found


class ReadQuota:
    """Meters the requests of one account and plans the polls. `run` it beside the poller.

    `requests` counts by endpoint and only grows (`StripeClient.requests`). `hold`: poll at the full rate,
    at any cost. Test mode has no quota: the full rate too.
    """

    def __init__(
        self,
        pool: Pool,
        schema: str,
        requests: Mapping[str, int],
        *,
        livemode: bool,
        poll_s: float,
        hold: bool = False,
        longest_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.trouble = ""
        self.transactions: int | None = None
        self.demand: Callable[[], QuotaDemand] = QuotaDemand
        """Return what other reads would take if nothing limited them."""
        self._pool = pool
        self._schema = schema
        self._requests = requests
        self._full_rate = hold or not livemode
        self._held = hold and livemode
        self._poll_s = poll_s
        self._longest_s = longest_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._woken_at = -float("inf")
        self._flushed: Counter[str] = Counter()
        self._days: dict[tuple[date, str], int] = {}
        self._counted_at: float | None = None

    def wake(self, now: float | None = None) -> None:
        """Activity, or a waiting caller: the full rate, which fades. `now` is on our `clock`."""
        self._woken_at = max(self._woken_at, self._clock() if now is None else now)

    def poll_interval_s(self) -> float:
        """Return the pause until the next poll, in seconds."""
        since_s = self._clock() - self._woken_at
        return min(self.plan().look_s, max(self._poll_s, since_s / _FADE))

    def plan(self) -> QuotaPlan:
        """Return what the quota allows, without wake-ups."""
        if self._full_rate or self._counted_at is None:
            return QuotaPlan(self._poll_s)
        return plan(
            self._spending(),
            allowed(self.transactions),
            self.demand(),
            poll_s=self._poll_s,
            longest_s=self._longest_s,
        )

    def beside_looks(self, look_s: float) -> QuotaPlan:
        """Like `plan`, where something else looks at the event log, every `look_s` seconds."""
        if self._full_rate or self._counted_at is None:
            return QuotaPlan(look_s)
        rate = affordable_rate(self._spending(), allowed(self.transactions) * _MARGIN) - 1 / look_s
        return QuotaPlan(look_s, *_lists(max(rate, 0.0), self.demand()))

    def status(self) -> QuotaReport:
        """The use of the allowance, requests not yet saved included."""
        by_kind: Counter[str] = self._unflushed()
        for (_, kind), count in self._days.items():
            by_kind[kind] += count
        used, most = sum(by_kind.values()), allowed(self.transactions)
        poll_s = self.poll_interval_s()
        return QuotaReport(
            used=used,
            by_kind=dict(by_kind),
            allowed=most,
            transactions=self.transactions,
            poll_s=poll_s,
            slowed=poll_s > self._poll_s,
            held=self._held,
            over=not self.is_unlimited() and used > most,
        )

    async def run(self) -> None:
        """Save the counts every ten seconds until cancelled, and once more then."""
        try:
            while True:
                await self.flush()
                await asyncio.sleep(_FLUSH_S)
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_S):
                    await self.flush()

    async def flush(self) -> None:
        """Add the requests since the last time, and load what all processes made in 30 days."""
        today = self._today()
        fresh = self._unflushed()
        try:
            async with self._pool.transaction() as connection:
                await add_requests(connection, self._schema, today, fresh)
                days = await load_requests(connection, self._schema, today)
                transactions, is_due = self.transactions, self._is_count_due()
                if is_due:
                    transactions = await count_transactions(connection, self._schema)
        except PinstripeError as error:
            # These requests are counted the next time.
            if not self.trouble:
                _log.warning("allowance.trouble", error=error.message)
            self.trouble = error.message
            return
        self.trouble = ""
        self._days, self.transactions = days, transactions
        self._flushed.update(fresh)
        if is_due:
            self._counted_at = self._clock()

    def is_unlimited(self) -> bool:
        """In test mode."""
        return self._full_rate and not self._held

    def _is_count_due(self) -> bool:
        return self._counted_at is None or self._clock() - self._counted_at >= _COUNT_S

    def _spending(self) -> QuotaUsage:
        today = self._today()
        events, others = [0] * DAYS, [0] * DAYS
        counts = Counter(self._days)
        for kind, count in self._unflushed().items():
            counts[today, kind] += count
        for (day, kind), count in counts.items():
            age = (today - day).days
            if 0 <= age < DAYS:
                (events if kind == "events" else others)[DAYS - 1 - age] += count
        return QuotaUsage(events, others, (self._wall_clock() % DAY_S) / DAY_S)

    def _unflushed(self) -> Counter[str]:
        """Return requests by kind since the last `flush`."""
        return by_kind(self._requests) - self._flushed

    def _today(self) -> date:
        return datetime.fromtimestamp(self._wall_clock(), UTC).date()


DAY_S = 86400.0

_MARGIN = 0.95
"""A poll is sometimes two pages: the plan allows for this many."""

_USUAL_DAYS = 7

_LISTS_SHARE = 0.5

LONGEST_PASS_S = 30 * DAY_S
"""A full refresh finds what no event reports: it is made once a month in any case."""

LONGEST_STRETCH = 2880.0
"""Newest pages are read twice a minute, and once a day at the least."""


@dataclass(frozen=True, slots=True)
class QuotaUsage:
    """GETs of the last 30 UTC days, oldest first: today's is the last.

    `elapsed` is how much of today has passed, from 0 to 1.
    """

    events: Sequence[int]
    others: Sequence[int]
    elapsed: float

    @property
    def used(self) -> int:
        return sum(self.events) + sum(self.others)


@dataclass(frozen=True, slots=True)
class QuotaDemand:
    """What is read besides the event log. `heads`: GETs a second; `passes`: GETs of one round of full
    refreshes.
    """

    heads: float = 0.0
    passes: float = 0.0


@dataclass(frozen=True, slots=True)
class QuotaPlan:
    """`look_s` and `pass_s`: seconds between two polls, and between two full refreshes of a list.
    `stretch`: the factor by which newest pages are read less often.
    """

    look_s: float
    stretch: float = 1.0
    pass_s: float = DAY_S


def affordable_rate(spending: QuotaUsage, allowance: float) -> float:
    """Return the GETs a second that can be sustained without any 30 days exceeding `allowance`.

    Negative if the sum is too large already.
    """
    days = [a + b for a, b in zip(spending.events, spending.others, strict=True)]
    rate = float("inf")
    remaining = sum(days)
    # The sum is largest just before a day drops out of it: the oldest one when today ends, and so on.
    for n, count in enumerate(days):
        left_s = max((n + 1 - spending.elapsed) * DAY_S, 1.0)
        rate = min(rate, (allowance - remaining) / left_s)
        remaining -= count
    return rate


def usual_rate(spending: QuotaUsage) -> float:
    """Return the GETs a second besides polls: the median day, which a backfill does not move."""
    return median(spending.others[-1 - _USUAL_DAYS : -1]) / DAY_S


def plan(
    spending: QuotaUsage, allowance: float, demand: QuotaDemand, *, poll_s: float, longest_s: float
) -> QuotaPlan:
    """Return the pause between polls: `poll_s` if the quota allows it, and at most `longest_s`."""
    rate = affordable_rate(spending, allowance * _MARGIN)
    stretch, pass_s = _lists(max(rate, 0.0) * _LISTS_SHARE, demand)
    lists = demand.heads / stretch + demand.passes / pass_s
    looks = rate - max(usual_rate(spending), lists)
    longest_s = max(poll_s, longest_s)
    look_s = longest_s if looks * longest_s <= 1.0 else max(poll_s, 1.0 / looks)
    return QuotaPlan(look_s, stretch, pass_s)


def _lists(rate: float, demand: QuotaDemand) -> tuple[float, float]:
    """Return the stretch of newest pages and the seconds of a round of full refreshes, at so many GETs a
    second.
    """
    if demand.heads + demand.passes / DAY_S <= rate:
        return 1.0, DAY_S
    # Full refreshes get half, or what newest pages leave.
    for_passes = max(rate / 2, rate - demand.heads)
    needed_s = demand.passes / for_passes if for_passes else LONGEST_PASS_S
    pass_s = min(max(needed_s, DAY_S), LONGEST_PASS_S)
    left = rate - demand.passes / pass_s
    stretch = demand.heads / left if left > 0 else LONGEST_STRETCH
    return min(max(stretch, 1.0), LONGEST_STRETCH), pass_s
