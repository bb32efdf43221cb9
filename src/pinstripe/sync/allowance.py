"""Stripe's read allowance: how much of it is used, and how often we may look for events.

Stripe allows 500 GETs for each transaction, averaged over a rolling 30 days, and never less than 10,000
(https://docs.stripe.com/rate-limits). Two looks a second are 5.2 million in 30 days: nothing for a busy
account, far over for a quiet one. So in live mode the pause between looks grows until what is left is
spent evenly (`spending`), and no further than needed; a wake-up (a webhook, a write, somebody who waits)
brings back the full rate at once, and it fades. Writes and previews (POST) are not limited.

We see only our own requests: what the account's other software reads is counted by Stripe, not here.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Literal, TypedDict

import structlog

from pinstripe.errors import PinstripeError
from pinstripe.store.pool import Pool
from pinstripe.store.request_counts import (
    DAYS,
    add_requests,
    allowed,
    count_transactions,
    load_requests,
)
from pinstripe.sync.spending import DAY_S, Plan, Spending, Wishes, plan

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_MOST_TRANSACTIONS = 100_000
"""More need not be counted: they allow twenty times what two looks a second take."""
_FADE = 2.0
"""After a wake-up the pause grows with the time since, by this part of it: sixteen looks in ten minutes,
so that a quiet account can be woken every hour of its month."""
_FLUSH_S = 10.0
_COUNT_S = 3600.0
_LAST_S = 2.0

Kind = Literal["events", "list", "retrieve"]


class AllowanceStatus(TypedDict):
    """What `pinstripe status` shows. Requests are ours of the last 30 days."""

    used: int
    by_kind: dict[str, int]
    allowed: int
    transactions: int | None
    transactions_are: str
    poll_s: float
    stretch: float
    pass_s: float
    slowed: bool
    held: bool
    over: bool


def kind_of(endpoint: str) -> Kind | None:
    """The kind of a GET; None for what is not limited. `endpoint` is "GET /v1/charges/{charge}".

    >>> kind_of("GET /v1/events"), kind_of("GET /v1/charges/{charge}"), kind_of("POST /v1/charges")
    ('events', 'retrieve', None)
    """
    method, _, path = endpoint.rpartition(" ")
    if method not in ("GET", ""):
        return None
    if path.startswith("/v1/events"):
        return "events"
    return "retrieve" if path.endswith("}") else "list"


class Allowance:
    """Meters the requests of one account and says how often to look. `run` it beside the reader.

    `requests` counts by endpoint and only grows (`Stripe.requests`). `hold`: look at the full rate,
    whatever it costs. In test mode there is no allowance: the full rate too.
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
        self.wishes: Callable[[], Wishes] = Wishes
        """What is read again besides the event log, if nothing limits it."""
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
        """Something happens, or somebody waits: the full rate, which fades. `now` is on our `clock`."""
        self._woken_at = max(self._woken_at, self._clock() if now is None else now)

    def poll_interval_s(self) -> float:
        """The pause until the next look, in seconds."""
        since_s = self._clock() - self._woken_at
        return min(self.plan().look_s, max(self._poll_s, since_s / _FADE))

    def plan(self) -> Plan:
        """What the allowance bears, wake-ups aside."""
        if self._full_rate or self._counted_at is None:
            return Plan(self._poll_s)
        return plan(
            self._spending(),
            allowed(self.transactions),
            self.wishes(),
            poll_s=self._poll_s,
            longest_s=self._longest_s,
        )

    def status(self) -> AllowanceStatus:
        by_kind: Counter[str] = self._unflushed()
        for (_, kind), count in self._days.items():
            by_kind[kind] += count
        used, most = sum(by_kind.values()), allowed(self.transactions)
        return AllowanceStatus(
            used=used,
            by_kind=dict(by_kind),
            allowed=most,
            transactions=self.transactions,
            transactions_are="an estimate: succeeded charges and refunds, and transfers, in the copy",
            poll_s=self.poll_interval_s(),
            stretch=self.plan().stretch,
            pass_s=self.plan().pass_s,
            slowed=self.poll_interval_s() > self._poll_s,
            held=self._held,
            over=not self._is_unlimited() and used > most,
        )

    async def run(self) -> None:
        """Saves the counts every ten seconds, until cancelled; and once more then."""
        try:
            while True:
                await self.flush()
                await asyncio.sleep(_FLUSH_S)
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_S):
                    await self.flush()

    async def flush(self) -> None:
        """Adds what was asked since the last time, and looks what all have asked in 30 days."""
        today = self._today()
        fresh = self._unflushed()
        try:
            async with self._pool.transaction() as connection:
                await add_requests(connection, self._schema, today, fresh)
                since = today - timedelta(days=DAYS - 1)
                days = await load_requests(connection, self._schema, since)
                transactions, is_due = self.transactions, self._is_count_due()
                if is_due:
                    transactions = await count_transactions(
                        connection, self._schema, DAYS, most=_MOST_TRANSACTIONS
                    )
        except PinstripeError as error:
            # What was asked is still counted the next time.
            if not self.trouble:
                _log.warning("allowance.trouble", error=error.message)
            self.trouble = error.message
            return
        self.trouble = ""
        self._days, self.transactions = days, transactions
        self._flushed.update(fresh)
        if is_due:
            self._counted_at = self._clock()

    def _is_unlimited(self) -> bool:
        return self._full_rate and not self._held

    def _is_count_due(self) -> bool:
        return self._counted_at is None or self._clock() - self._counted_at >= _COUNT_S

    def _spending(self) -> Spending:
        today = self._today()
        events, others = [0] * DAYS, [0] * DAYS
        counts = Counter(self._days)
        for kind, count in self._unflushed().items():
            counts[today, kind] += count
        for (day, kind), count in counts.items():
            age = (today - day).days
            if 0 <= age < DAYS:
                (events if kind == "events" else others)[DAYS - 1 - age] += count
        return Spending(events, others, (self._wall_clock() % DAY_S) / DAY_S)

    def _unflushed(self) -> Counter[str]:
        """Requests by kind since the last `flush`."""
        found: Counter[str] = Counter()
        for endpoint, count in self._requests.items():
            kind = kind_of(endpoint)
            if kind is not None:
                found[kind] += count
        return found - self._flushed

    def _today(self) -> date:
        return datetime.fromtimestamp(self._wall_clock(), UTC).date()
