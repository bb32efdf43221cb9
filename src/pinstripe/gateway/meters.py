"""What the gateway counts of its own doings; `metrics` shows it to Prometheus.

Counted where requests come in, in `app`, so that the proxy, waits and webhooks need not know. Labels
come from small closed sets: nothing that a caller sends can make a new one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

MIRRORED = ("yes", "no", "later")
_METHODS = frozenset(("GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS"))


@dataclass(slots=True)
class Histogram:
    """Counts by bucket, not cumulated; the last is what took longer than all of them."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum_s: float = 0.0

    def observe(self, seconds: float) -> None:
        self.sum_s += seconds
        for place, bound in enumerate(BUCKETS_S):
            if seconds <= bound:
                self.counts[place] += 1
                return
        self.counts[-1] += 1


@dataclass(slots=True)
class Meters:
    """Since the process began."""

    proxied: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By method and outcome: "2xx" ... "5xx", or "broken" where no answer began or none ended."""
    mirrored: Counter[str] = field(default_factory=Counter)
    """What `Pinstripe-Mirrored` said: yes, no, later."""
    proxy_s: dict[str, Histogram] = field(
        default_factory=lambda: {"read": Histogram(), "write": Histogram()}
    )
    """From the request's head to the answer's, Stripe's own time included."""
    proxying: int = 0
    waiting: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    """By class of status."""
    webhooks: Counter[str] = field(default_factory=Counter)
    streams: int = 0
    api: Counter[str] = field(default_factory=Counter)

    def proxy_answered(self, method: str, status: int | None, mirrored: str | None) -> None:
        """One request of the proxy is over. `status` is None if nothing was answered."""
        outcome = status_class(status) if status is not None else "broken"
        self.proxied[method if method in _METHODS else "other", outcome] += 1
        if mirrored in MIRRORED:
            self.mirrored[mirrored] += 1


def status_class(status: int) -> str:
    """All that a label may say of a status.

    >>> status_class(204)
    '2xx'
    """
    return f"{status // 100}xx"
