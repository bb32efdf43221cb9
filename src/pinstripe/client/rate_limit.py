"""The rate limiter of one account: every request to Stripe waits for a permit of it.

Stripe allows an account a number of requests a second, each endpoint fewer, and a number of concurrent
ones. The user's production traffic draws on the same limits. Permits go out by class of work
(`WorkClass`): nothing waits behind a lower class, but for the share that keeps the lower ones alive. Within
a class endpoints take turns, each in order of arrival. One timer is armed for the next moment at which a
request could go; nothing polls. The limiter slows down on each 429; `retry` decides whether and when to try
again.

`GcraRate` is the generic cell rate algorithm: one number, the time at which the next request is due at an
even rate, and an allowance for being early. In any window of `w` seconds it lets at most `rate * (w +
burst_s) + 1` through, and in no second more than the rate: the allowance only recovers what a stalled
process did not send, and at no more than twice the rate, since Stripe's bucket may hold less than a
second's worth. `ConcurrencyLimit` bounds the concurrent requests. Both shrink when Stripe says so (`cut`)
and recover step by step. Neither waits nor reads a clock: `now` is an argument, in seconds.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum


class WorkClass(IntEnum):
    """What a request is for; the lower value goes first. `docs/concepts/live.md` has what belongs where."""

    EVENTS = 0
    CONTESTED = 2
    RELATED = 4
    HEADS = 6
    PREVIEWS = 8
    SCANS = 10


# One overload answers every request in flight with a 429; they count as one.
_CUT_AT_MOST_EVERY_S = 1.0

_CUT_TO = 0.8
_SLOWEST_SHARE = 0.05

# Back in 3 s to a little less than what was refused. From there on Stripe is tried out slowly: where
# another program takes half, each try costs some 429s, and this keeps them to one of 280 answers. After a
# while without one the load may be over.
_BACK_IN_S = 3.0
_BACK_TO = 0.97
_TRIED_OUT_S = 30.0
_TRYING_SHARE_PER_S = 0.001
_RECOVERY_SHARE_PER_S = 0.02

# Between two requests at least this part of the even distance: a burst is not a rate. What falls into the
# time by which timers wake late goes at once, since each of them would cost rate otherwise.
_CLOSEST = 0.5
_WAKES_LATE_S = 0.02

# Without a rate of our own there is nothing to halve: only hold back for a moment.
_UNLIMITED_PAUSE_S = 0.25

_EPSILON_S = 1e-9

# A second, and a little: what leaves here at the very end of one must not arrive within it.
_WINDOW_S = 1.001


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one `take` consumed, for `give_back`."""

    interval_s: float
    era: int
    at: float


class GcraRate:
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
        self._refused_rate = math.inf
        """In force at the last `cut`."""
        self._era = 0
        self._taken: deque[float] = deque(maxlen=None if rate is None else max(math.ceil(rate), 2))

    def reset(self, rate: float | None) -> None:
        """Another rate from now on. What was taken within the last second counts towards it."""
        if rate != self._set_rate:
            length = None if rate is None else max(math.ceil(rate), 2)
            self._set_rate, self._taken = rate, deque(self._taken, maxlen=length)

    def rate(self, now: float) -> float | None:
        """The rate in force: the one set, or less while a `cut` wears off."""
        if self._set_rate is None or self._cut_rate == math.inf:
            return self._set_rate
        since_s = now - self._cut_at
        back_to = self._refused_rate * _BACK_TO
        if since_s < _BACK_IN_S:
            return self._cut_rate + (back_to - self._cut_rate) * since_s / _BACK_IN_S
        trying_s = min(since_s - _BACK_IN_S, _TRIED_OUT_S)
        later_s = since_s - _BACK_IN_S - trying_s
        share = trying_s * _TRYING_SHARE_PER_S + later_s * _RECOVERY_SHARE_PER_S
        return min(self._set_rate, back_to + self._set_rate * share)

    def interval_s(self, now: float) -> float:
        """Seconds between two requests at an even rate."""
        rate = self.rate(now)
        return 0.0 if rate is None else 1.0 / rate

    def ready_at(self) -> float:
        """The earliest time at which `take` keeps the rate."""
        at = max(self._due - self._burst_s, self._paused_until)
        if len(self._taken) == self._taken.maxlen:
            at = max(at, self._taken[0] + _WINDOW_S)
        if self._set_rate is not None:
            bunch = max(int(self._set_rate * _WAKES_LATE_S / _CLOSEST), 1)
            if len(self._taken) >= bunch:
                at = max(at, self._taken[-bunch] + bunch * _CLOSEST / self._set_rate)
        return at

    def is_ready(self, now: float) -> bool:
        """Whether `take` keeps the rate now."""
        return now + _EPSILON_S >= self.ready_at()

    def take(self, now: float) -> Reservation:
        """Counts one request. The caller has checked `is_ready`."""
        if now > self._due:
            self._due = now
            self._era += 1
        interval_s = self.interval_s(now)
        self._due += interval_s
        if self._taken.maxlen is not None:
            self._taken.append(now)
        return Reservation(interval_s, self._era, now)

    def give_back(self, ticket: Reservation) -> None:
        """Undoes a `take` whose request was never sent.

        Only while the line of due times is unbroken since: after an idle gap the time that the
        ticket had used is gone anyhow, and giving it back would allow a second burst.
        """
        if ticket.at in self._taken:
            self._taken.remove(ticket.at)
        if ticket.era == self._era:
            self._due -= ticket.interval_s

    def pause(self, until: float) -> None:
        """Lets nothing through before `until`."""
        self._paused_until = max(self._paused_until, until)

    def cut(self, now: float) -> None:
        """Takes a fifth off the rate. It comes back, fast at first and then carefully.

        Never below a twentieth of the one set.
        """
        since_s = now - self._cut_at
        if since_s < _CUT_AT_MOST_EVERY_S:
            return
        rate = self.rate(now)
        if rate is None or self._set_rate is None:
            self.pause(now + _UNLIMITED_PAUSE_S)
            return
        self._refused_rate = rate
        self._cut_rate = max(rate * _CUT_TO, self._set_rate * _SLOWEST_SHARE)
        self._cut_at = now


class ConcurrencyLimit:
    """A limit of concurrent requests; at least one."""

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
        return self.used < self.limit(now)

    def cut(self, now: float) -> None:
        """Halves the number of requests now in flight, which was too high."""
        if now - self._cut_at < _CUT_AT_MOST_EVERY_S:
            return
        under_way = min(self.limit(now), max(self.used, 1))
        self._cut_limit = float(max(1, under_way // 2))
        self._cut_at = now


# Timers wake late, by milliseconds on a busy machine. Without this allowance each delay would be
# lost for good; with it the rate is kept on average and a window holds 5 % more at most.
DEFAULT_BURST_S = 0.05

# Stripe publishes no number; 100 requests/s of 0.5 s each need 50.
DEFAULT_CONCURRENCY = 60

# Every so many permits the class goes first that has had none for the longest time: no class starves,
# however many requests of an earlier one wait, and that one loses a fifth at most.
_SHARE_EVERY = 5

# Requests under way that only events and contested rows may add: scans whose answers hang must not take
# all places.
_RESERVED_SLOTS = 8

# Without a share of the rates; a scheduler should check again in a while.
_NO_SHARE_S = 0.5

# How long a count of the queue is good: endpoints become ready meanwhile.
_COUNT_S = 0.002

# How long a slot stays taken is unknown; a scheduler should check again soon.
_SLOT_GUESS_S = 0.02

_LONGEST_PAUSE_S = 60.0


@dataclass(slots=True, eq=False)
class _Waiter:
    number: int
    granted: asyncio.Future[Permit]


@dataclass(slots=True, eq=False)
class _Lane:
    """One endpoint: its own limits, and the requests that wait for it, by priority."""

    pace: GcraRate
    slots: ConcurrencyLimit
    waiting: dict[int, deque[_Waiter]] = field(default_factory=dict)
    length: int = 0
    last_grant: int = 0

    def add(self, waiter: _Waiter, priority: int) -> None:
        self.waiting.setdefault(priority, deque()).append(waiter)
        self.length += 1

    def before(self, priority: int) -> int:
        """How many requests go before a new one of this priority."""
        return sum(len(queue) for known, queue in self.waiting.items() if known <= priority)

    def remove(self, waiter: _Waiter, priority: int) -> None:
        queue = self.waiting.get(priority)
        if queue is None:
            return
        with suppress(ValueError):
            queue.remove(waiter)
            self.length -= 1
        if not queue:
            del self.waiting[priority]


class Permit:
    """Permission to send one request. A context manager: its end frees the slot."""

    __slots__ = ("_budget", "_lane", "_open", "_tickets")

    def __init__(
        self, budget: RateLimiter, lane: _Lane, tickets: tuple[Reservation, Reservation]
    ) -> None:
        self._budget = budget
        self._lane = lane
        self._tickets = tickets
        self._open = True

    def release(self) -> None:
        """The request is over. A second call does nothing."""
        if self._open:
            self._open = False
            self._budget._free(self._lane)

    def give_back(self) -> None:
        """The request was never sent: it does not count."""
        if self._open:
            account, endpoint = self._tickets
            self._budget._account.give_back(account)
            self._lane.pace.give_back(endpoint)
            self.release()

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class RateLimiter:
    """Grants permits for requests. ONE per account and key mode.

    `account_rate` and `endpoint_rate` are requests a second (None: no limit); `own_rates` names the
    endpoints that differ (Files and Search: 20). Over any window of `w` seconds at most
    `rate * (w + burst_s) + 1` permits are given.
    """

    def __init__(
        self,
        *,
        account_rate: float | None,
        endpoint_rate: float | None,
        own_rates: Mapping[str, float] | None = None,
        burst_s: float = DEFAULT_BURST_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        max_concurrency: int = DEFAULT_CONCURRENCY,
    ) -> None:
        self._account_rate = account_rate
        self._parts = 1
        self._until = math.inf
        self._account = GcraRate(account_rate, burst_s)
        self._slots = ConcurrencyLimit(max_concurrency)
        self._endpoint_rate = endpoint_rate
        self._own_rates = dict(own_rates or {})
        self._burst_s = burst_s
        self._max_concurrency = max_concurrency
        self._clock = clock
        self._sleep = sleep
        self._lanes: dict[str, _Lane] = {}
        self._waiting: dict[str, _Lane] = {}
        self._arrivals = 0
        self._grants = 0
        self._counted = ((0, 0, 0, 0.0), 0)
        self._last_grant: dict[int, int] = {}
        """By class: the number of its last permit."""
        self._alarm: asyncio.Task[None] | None = None
        self._alarm_at = 0.0

    def share(self, parts: int, *, until: float) -> None:
        """Keeps to one of `parts` equal parts of each rate, and grants nothing after `until` on the clock.

        Where several processes share one account's rates, the sum of their parts is never above the rate:
        each is a whole number of requests a second. (Below one, it is a request every few seconds.)
        """
        self._until = until
        if parts != self._parts:
            self._parts = parts
            self._account.reset(_part(self._account_rate, parts))
            for endpoint, lane in self._lanes.items():
                lane.pace.reset(self._rate_of(endpoint))
        self._dispatch()

    async def acquire(self, endpoint: str, *, priority: int = 0) -> Permit:
        """Waits until both rates and a slot allow one more request. The lower `priority` (`WorkClass`)
        goes first.
        """
        lane = self._lane(endpoint)
        self._arrivals += 1
        waiter = _Waiter(self._arrivals, asyncio.get_running_loop().create_future())
        lane.add(waiter, priority)
        self._waiting[endpoint] = lane
        self._dispatch()
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled():
                # Granted and cancelled in the same turn of the loop: it will not be used.
                waiter.granted.result().give_back()
            else:
                lane.remove(waiter, priority)
                self._dispatch()
            raise

    def ready_in(self, endpoint: str = "", *, priority: int = 0) -> float:
        """Seconds until `acquire` would not wait, 0 for now; reserves nothing. "": for any endpoint.

        Counts those who wait already and go first, but not those whose own endpoint holds them back: a
        long queue for one endpoint leaves the account's rate to the others. Where a slot is missing,
        the answer is a guess.
        """
        now = self._clock()
        if now > self._until:
            return _NO_SHARE_S
        at = self._account.ready_at() + self._queued(now, priority) * self._account.interval_s(now)
        lane = self._lanes.get(endpoint)
        slot_free = self._slots.is_free(now)
        if lane is not None:
            length = lane.before(priority)
            at = max(at, lane.pace.ready_at() + length * lane.pace.interval_s(now))
            slot_free = slot_free and lane.slots.is_free(now)
        return max(0.0 if slot_free else _SLOT_GUESS_S, at - now)

    def _queued(self, now: float, priority: int) -> int:
        """How many requests that could go now are before one of this priority.

        A scheduler asks for each of its lists, so the answer is kept while nothing has come or gone.
        """
        state = (self._arrivals, self._grants, priority, now // _COUNT_S)
        if self._counted[0] != state:
            waiting = self._waiting.values()
            self._counted = (state, sum(_next_in(lane, now, priority) for lane in waiting))
        return self._counted[1]

    def is_waited_for(self, endpoint: str) -> bool:
        return endpoint in self._waiting

    def rate(self, endpoint: str | None = None) -> float | None:
        """The rate in force, of the account or of one endpoint; after a 429 it is lower."""
        pace = self._account if endpoint is None else self._lane(endpoint).pace
        return pace.rate(self._clock())

    def on_rate_limited(self, endpoint: str, code: str, retry_after_s: float | None) -> None:
        """Slows down after a 429. `code`: its `Stripe-Rate-Limited-Reason`, or the error's own."""
        if code == "lock_timeout":
            # Two requests wanted one object: nothing is too fast, only this request must wait.
            return
        now = self._clock()
        whole_account = code.startswith("global-")
        lane = self._lane(endpoint)
        pace = self._account if whole_account else lane.pace
        if code.endswith("-concurrency"):
            (self._slots if whole_account else lane.slots).cut(now)
        else:
            pace.cut(now)
        if retry_after_s is not None:
            pace.pause(now + min(retry_after_s, _LONGEST_PAUSE_S))

    def _lane(self, endpoint: str) -> _Lane:
        lane = self._lanes.get(endpoint)
        if lane is None:
            pace = GcraRate(self._rate_of(endpoint), self._burst_s)
            lane = self._lanes[endpoint] = _Lane(pace, ConcurrencyLimit(self._max_concurrency))
        return lane

    def _rate_of(self, endpoint: str) -> float | None:
        return _part(self._own_rates.get(endpoint, self._endpoint_rate), self._parts)

    def _free(self, lane: _Lane) -> None:
        self._slots.used -= 1
        lane.slots.used -= 1
        self._dispatch()

    def _dispatch(self) -> None:
        """Grants all permits that can go now, then arms the timer for the next."""
        now = self._clock()
        if now > self._until:
            self._disarm()  # `share` goes on.
            return
        while self._slots.is_free(now) and self._account.is_ready(now):
            choice = self._choose(now)
            if choice is None:
                break
            lane, priority = choice
            waiter = lane.waiting[priority][0]
            lane.remove(waiter, priority)
            if not waiter.granted.done():  # done: cancelled, its task has not run yet
                self._grant(lane, waiter, priority, now)
        for endpoint in [name for name, lane in self._waiting.items() if not lane.length]:
            del self._waiting[endpoint]
        self._arm(now)

    def _choose(self, now: float) -> tuple[_Lane, int] | None:
        """Within a class the endpoints take turns: a long queue keeps no other one below its
        rate, and the account's rate is not left over when the others have run dry.
        """
        is_share = self._grants % _SHARE_EVERY == _SHARE_EVERY - 1
        best: tuple[int, int, int] | None = None
        choice: tuple[_Lane, int] | None = None
        lowest = self._lowest_with_a_slot(now)
        for lane in self._waiting.values():
            if not (lane.length and lane.pace.is_ready(now) and lane.slots.is_free(now)):
                continue
            for priority, queue in lane.waiting.items():
                if priority > lowest:
                    continue
                first = priority
                if (
                    is_share
                ):  # Work without an end comes back to its turn as much later as it is lower.
                    first = self._last_grant.get(priority, 0) + max(priority - WorkClass.SCANS, 0)
                rank = (first, lane.last_grant, queue[0].number)
                if best is None or rank < best:
                    best, choice = rank, (lane, priority)
        return choice

    def _lowest_with_a_slot(self, now: float) -> float:
        """The lowest class whose requests may start: the last slots are for contested rows."""
        limit = self._slots.limit(now)
        is_reserved = limit > 2 * _RESERVED_SLOTS and self._slots.used >= limit - _RESERVED_SLOTS
        return WorkClass.CONTESTED if is_reserved else math.inf

    def _grant(self, lane: _Lane, waiter: _Waiter, priority: int, now: float) -> None:
        self._grants += 1
        lane.last_grant = self._last_grant[priority] = self._grants
        self._slots.used += 1
        lane.slots.used += 1
        tickets = (self._account.take(now), lane.pace.take(now))
        waiter.granted.set_result(Permit(self, lane, tickets))

    def _arm(self, now: float) -> None:
        """Arms one timer for the next moment that time decides; a freed slot calls `_dispatch` itself."""
        lowest = self._lowest_with_a_slot(now)
        at = min(
            (
                lane.pace.ready_at()
                for lane in self._waiting.values()
                if lane.slots.is_free(now)
                and self._slots.is_free(now)
                and min(lane.waiting, default=math.inf) <= lowest
            ),
            default=None,
        )
        if at is None:
            self._disarm()
            return
        at = max(at, self._account.ready_at())
        if self._alarm is not None:
            if self._alarm_at <= at:
                return
            self._disarm()
        self._alarm_at = at
        self._alarm = asyncio.get_running_loop().create_task(self._ring(at - now))

    def _disarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    async def _ring(self, delay_s: float) -> None:
        await self._sleep(max(delay_s, 0.0))
        self._alarm = None
        self._dispatch()


def _part(rate: float | None, parts: int) -> float | None:
    """One of so many equal parts of a rate, a whole number if it is one or more.

    >>> _part(99.0, 2), _part(24.0, 5), _part(2.0, 4), _part(None, 3)
    (49, 4, 0.5, None)
    """
    if rate is None or parts == 1:
        return rate
    part = rate / parts
    return part if part < 1 else math.floor(part)


def _next_in(lane: _Lane, now: float, priority: int) -> int:
    """How many waiters of a lane may go before all others of this priority."""
    length = lane.before(priority)
    if lane.pace.rate(now) is None:
        return length
    return min(length, 1) if lane.pace.is_ready(now) else 0
