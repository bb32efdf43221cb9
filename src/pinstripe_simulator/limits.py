"""Stripe's rate limits, and the counters that tell tests how they were respected.

Counts every request, whether limits are on or off: per endpoint, and the most that any window of
one second has seen. Windows run on the machine's monotonic clock, not on Stripe's.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from pinstripe_simulator.replies import StripeError

_WINDOW_S = 1.0


@dataclass(frozen=True)
class Limits:
    """Requests per second for the account and for each endpoint, requests at once. 0: no limit.

    A request for a connected account counts for that account and for its platform: the first has
    its own limits, and `account` and `concurrency` of the platform hold for all of them together
    (https://docs.stripe.com/rate-limits measures "per Stripe account" and does not say which of
    the two a `Stripe-Account` names, so both hold). `endpoint_of_all` is a limit for each endpoint over
    all connected accounts; no page of Stripe's has one.
    `slack` is what is let through beyond the limit, because requests sent evenly arrive unevenly.
    """

    account: int = 0
    endpoint: int = 0
    files_and_search: int = 0
    concurrency: int = 0
    endpoint_of_all: int = 0
    slack: float = 0.05
    lock_share: float = 0.0
    """Share of writes that meet a `lock_timeout`."""


PRESETS = {
    "off": Limits(),
    "live": Limits(account=100, endpoint=25, files_and_search=20, concurrency=60),
    "test": Limits(account=25, endpoint=25, files_and_search=20, concurrency=60),
}
"""What Stripe documents; the size of the concurrency limiter is not published."""


class Window:
    """How many in the last second, and the most there ever were."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self.most = 0

    def count(self, now: float) -> int:
        while self._times and self._times[0] <= now - _WINDOW_S:
            self._times.popleft()
        return len(self._times)

    def add(self, now: float) -> None:
        self._times.append(now)
        self.most = max(self.most, self.count(now))


class Meter:
    """Lets requests in or answers 429. `monotonic` is the clock of the windows."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self.limits = Limits()
        self.at_once = 0
        self.reset()

    def reset(self) -> None:
        """Forget the counters, keep the limits."""
        self.all = Window()
        self.windows: dict[str, Window] = {}
        self.requests: Counter[str] = Counter()
        self.answers: Counter[int] = Counter()
        self.limited: Counter[str] = Counter()
        self.most_at_once = self.at_once

    def configure(self, **changes: float) -> None:
        self.limits = replace(self.limits, **changes)  # type: ignore[arg-type]

    def enter(
        self, endpoint: str, *, slow: bool, dice: float = 1.0, of_connected: bool = False
    ) -> None:
        """Counts the request; raises the 429. `slow`: Files and Search; `dice` in [0, 1);
        `of_connected`: for the platform's meter, a request that acts on a connected account.
        """
        now, limits = self._monotonic(), self.limits
        self.requests[endpoint] += 1
        window = self.windows.setdefault(endpoint, Window())
        per_endpoint = limits.files_and_search if slow else limits.endpoint
        if of_connected:
            per_endpoint = limits.endpoint_of_all
        if limits.concurrency and self.at_once > limits.concurrency:
            raise self._too_many("global-concurrency")
        if _full(self.all, limits.account, limits.slack, now):
            raise self._too_many("global-rate")
        if _full(window, per_endpoint, limits.slack, now):
            raise self._too_many("endpoint-rate")
        if endpoint.startswith("POST") and dice < limits.lock_share:
            self.limited["lock_timeout"] += 1
            raise StripeError(
                429,
                "This object cannot be accessed right now because another API request or Stripe "
                "process is currently accessing it. If you see this error intermittently, retry "
                "the request. If you see this error frequently and are making multiple concurrent "
                "requests to a single object, make your requests serially or at a lower rate.",
                code="lock_timeout",
                headers={"Stripe-Should-Retry": "true"},
            )
        self.all.add(now)
        window.add(now)

    def _too_many(self, reason: str) -> StripeError:
        self.limited[reason] += 1
        return StripeError(
            429,
            "Request rate limit exceeded. Learn more about rate limits here "
            "https://stripe.com/docs/rate-limits.",
            code="rate_limit",
            headers={"Stripe-Rate-Limited-Reason": reason, "Stripe-Should-Retry": "true"},
        )

    def report(self) -> dict[str, object]:
        """Everything counted, for the control interface."""
        return {
            "requests": sum(self.requests.values()),
            "by_endpoint": dict(self.requests),
            "by_status": {str(k): v for k, v in self.answers.items()},
            "limited": dict(self.limited),
            "most_per_second": self.all.most,
            "most_per_second_by_endpoint": {k: w.most for k, w in self.windows.items()},
            "most_at_once": self.most_at_once,
        }


def _full(window: Window, limit: int, slack: float, now: float) -> bool:
    return bool(limit) and window.count(now) >= limit + int(limit * slack)
