"""How often, and how many at once: the two measures that `limits.Budget` is made of.

`Pace` is the generic cell rate algorithm: one number, the time at which the next request would be
due at an even rate, and an allowance for being early. Over any window of `w` seconds it lets at
most `rate * (w + burst_s) + 1` through, and in no second more than the rate: the allowance makes up
for what a stalled process did not send, it is never on top. `Slots` bounds how many are under way at
the same time.
Both give way when Stripe says so (`cut`) and come back by themselves, step by step. Neither waits
nor reads a clock: the time comes in as `now`, in seconds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

# One overload answers every request that is under way with a 429; they count as one.
_CUT_AT_MOST_EVERY_S = 1.0
# One 429 may be chance (somebody else's burst); where another follows it is a storm.
_CUT_TO = 0.8
_CUT_TO_IN_A_STORM = 0.5
_STORM_S = 5.0
_SLOWEST_SHARE = 0.05
# Back to all in 10 s after a chance, in 25 s after half: slow enough not to swing, fast enough for a
# backfill.
_RECOVERY_SHARE_PER_S = 0.02
# Without a rate of our own there is nothing to halve: only hold back for a moment.
_UNLIMITED_PAUSE_S = 0.25
_EPSILON_S = 1e-9
# A second, and a little: what leaves here at the very end of one must not arrive within it.
_WINDOW_S = 1.001


@dataclass(frozen=True, slots=True)
class Ticket:
    """What one `take` used up, for `give_back`."""

    interval_s: float
    era: int
    at: float


class Pace:
    """An even rate with a small burst. `rate` is requests a second, None for no limit."""

    def __init__(self, rate: float | None, burst_s: float) -> None:
        if rate is not None and not (rate > 0 and math.isfinite(rate)):
            raise ValueError(f"a rate is above 0, or None for no limit; not {rate}")
        self._set_rate = rate
        self._burst_s = burst_s
        self._due = -math.inf
        self._paused_until = -math.inf
        self._cut_rate = math.inf
        self._cut_at = -math.inf
        self._era = 0
        self._taken: deque[float] = deque(maxlen=None if rate is None else max(math.ceil(rate), 2))

    def rate(self, now: float) -> float | None:
        """The rate in force: the one set, or less while a `cut` wears off."""
        if self._set_rate is None or self._cut_rate == math.inf:
            return self._set_rate
        recovered = self._cut_rate + (now - self._cut_at) * self._set_rate * _RECOVERY_SHARE_PER_S
        return min(self._set_rate, recovered)

    def interval_s(self, now: float) -> float:
        """Seconds between two requests at an even rate."""
        rate = self.rate(now)
        return 0.0 if rate is None else 1.0 / rate

    def ready_at(self) -> float:
        """The earliest time at which `take` keeps the rate."""
        at = max(self._due - self._burst_s, self._paused_until)
        if len(self._taken) == self._taken.maxlen:
            at = max(at, self._taken[0] + _WINDOW_S)
        return at

    def is_ready(self, now: float) -> bool:
        """Whether `take` keeps the rate now."""
        return now + _EPSILON_S >= self.ready_at()

    def take(self, now: float) -> Ticket:
        """Count one request. The caller has asked `is_ready`."""
        if now > self._due:
            self._due = now
            self._era += 1
        interval_s = self.interval_s(now)
        self._due += interval_s
        if self._taken.maxlen is not None:
            self._taken.append(now)
        return Ticket(interval_s, self._era, now)

    def give_back(self, ticket: Ticket) -> None:
        """Undo a `take` whose request was never sent.

        Only while the line of due times is unbroken since: after an idle gap the time that the
        ticket had used is gone anyhow, and giving it back would allow a second burst.
        """
        if ticket.at in self._taken:
            self._taken.remove(ticket.at)
        if ticket.era == self._era:
            self._due -= ticket.interval_s

    def pause(self, until: float) -> None:
        """Let nothing through before `until`."""
        self._paused_until = max(self._paused_until, until)

    def cut(self, now: float) -> None:
        """Take a fifth off the rate, or half if it was cut just before; it grows back evenly.

        Never below a twentieth of the one set.
        """
        since_s = now - self._cut_at
        if since_s < _CUT_AT_MOST_EVERY_S:
            return
        rate = self.rate(now)
        if rate is None or self._set_rate is None:
            self.pause(now + _UNLIMITED_PAUSE_S)
            return
        share = _CUT_TO_IN_A_STORM if since_s < _STORM_S else _CUT_TO
        self._cut_rate = max(rate * share, self._set_rate * _SLOWEST_SHARE)
        self._cut_at = now


class Slots:
    """How many requests may be under way at once; at least one."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"at least one request must be allowed at a time; not {limit}")
        self._set_limit = limit
        self._cut_limit = float(limit)
        self._cut_at = -math.inf
        self.used = 0

    def limit(self, now: float) -> int:
        """The limit in force: the one set, or less while a `cut` wears off (one more a second)."""
        if self._cut_limit >= self._set_limit:
            return self._set_limit
        return min(self._set_limit, int(self._cut_limit + (now - self._cut_at)))

    def is_free(self, now: float) -> bool:
        """Whether one more may start."""
        return self.used < self.limit(now)

    def cut(self, now: float) -> None:
        """Halve what is under way now: that was too much."""
        if now - self._cut_at < _CUT_AT_MOST_EVERY_S:
            return
        under_way = min(self.limit(now), max(self.used, 1))
        self._cut_limit = float(max(1, under_way // 2))
        self._cut_at = now
