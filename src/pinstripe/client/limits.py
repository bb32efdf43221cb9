"""The request budget of one account, shared by everyone who asks Stripe.

Stripe allows an account so many requests a second, each endpoint fewer, and so many at once. The
user's own production traffic draws on the same account limit, so whoever asks goes through one
`Budget`. It hands out permits in order of priority; within one, endpoints take turns, and each
keeps the order of arrival. It never spins: one timer, armed for the next moment at which a waiter
could go, and a look whenever something changes.
Every 429 is reported to `slow_down`; what is retried, and after how long, is `retry`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

from pinstripe.client.pace import Pace, Slots, Ticket

# Timers wake late, by milliseconds on a busy machine. Without this allowance each delay would be
# lost for good; with it the rate is kept on average and a window holds 5 % more at most.
DEFAULT_BURST_S = 0.05
# Stripe publishes no number; 100 requests/s of 0.5 s each need 50.
DEFAULT_CONCURRENCY = 60
# Every so many permits the longest waiter goes first, whatever its priority: no one starves, and
# the urgent ones lose an eighth at most.
_OLDEST_EVERY = 8
# How long a slot stays taken is not known; a scheduler that asks should ask again soon.
_SLOT_GUESS_S = 0.02
_LONGEST_PAUSE_S = 60.0


@dataclass(slots=True, eq=False)
class _Waiter:
    number: int
    granted: asyncio.Future[Permit]


@dataclass(slots=True, eq=False)
class _Lane:
    """One endpoint: its own limits, and who waits for it, by priority."""

    pace: Pace
    slots: Slots
    waiting: dict[int, deque[_Waiter]] = field(default_factory=dict)
    length: int = 0
    last_grant: int = 0

    def add(self, waiter: _Waiter, priority: int) -> None:
        self.waiting.setdefault(priority, deque()).append(waiter)
        self.length += 1

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
    """Leave to send one request. Use it as a context manager: leaving frees the slot."""

    __slots__ = ("_budget", "_lane", "_open", "_tickets")

    def __init__(self, budget: Budget, lane: _Lane, tickets: tuple[Ticket, Ticket]) -> None:
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Budget:
    """Who may ask now. ONE per account and key mode.

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
        self._account = Pace(account_rate, burst_s)
        self._slots = Slots(max_concurrency)
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
        self._alarm: asyncio.Task[None] | None = None
        self._alarm_at = 0.0

    async def acquire(self, endpoint: str, *, priority: int = 0) -> Permit:
        """Wait until both rates and a slot allow one more. The lower `priority` goes first."""
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
                # Granted and cancelled in the same turn of the loop: no one will use it.
                waiter.granted.result().give_back()
            else:
                lane.remove(waiter, priority)
                self._dispatch()
            raise

    def ready_in(self, endpoint: str) -> float:
        """Seconds until `acquire` would not wait, 0 for now; reserves nothing.

        Counts those who wait already, but not those whose own endpoint holds them back: a long queue
        for one endpoint leaves the account's rate to the others. Where it is a slot that is missing,
        the answer is a guess.
        """
        now = self._clock()
        queued = sum(_next_in(lane, now) for lane in self._waiting.values())
        at = self._account.ready_at() + queued * self._account.interval_s(now)
        lane = self._lanes.get(endpoint)
        slot_free = self._slots.is_free(now)
        if lane is not None:
            at = max(at, lane.pace.ready_at() + lane.length * lane.pace.interval_s(now))
            slot_free = slot_free and lane.slots.is_free(now)
        return max(0.0 if slot_free else _SLOT_GUESS_S, at - now)

    def rate(self, endpoint: str | None = None) -> float | None:
        """The rate in force, of the account or of one endpoint; after a 429 it is lower."""
        pace = self._account if endpoint is None else self._lane(endpoint).pace
        return pace.rate(self._clock())

    def slow_down(self, endpoint: str, reason: str, retry_after_s: float | None) -> None:
        """Stripe said 429. `reason` is its `Stripe-Rate-Limited-Reason`, or the error's code."""
        if reason == "lock_timeout":
            # Two requests wanted one object: nothing is too fast, only this request must wait.
            return
        now = self._clock()
        whole_account = reason.startswith("global-")
        lane = self._lane(endpoint)
        pace = self._account if whole_account else lane.pace
        if reason.endswith("-concurrency"):
            (self._slots if whole_account else lane.slots).cut(now)
        else:
            pace.cut(now)
        if retry_after_s is not None:
            pace.pause(now + min(retry_after_s, _LONGEST_PAUSE_S))

    def _lane(self, endpoint: str) -> _Lane:
        lane = self._lanes.get(endpoint)
        if lane is None:
            pace = Pace(self._own_rates.get(endpoint, self._endpoint_rate), self._burst_s)
            lane = self._lanes[endpoint] = _Lane(pace, Slots(self._max_concurrency))
        return lane

    def _free(self, lane: _Lane) -> None:
        self._slots.used -= 1
        lane.slots.used -= 1
        self._dispatch()

    def _dispatch(self) -> None:
        """Grant whatever can go now, then arm the timer for the next that can."""
        now = self._clock()
        while self._slots.is_free(now) and self._account.is_ready(now):
            choice = self._choose(now)
            if choice is None:
                break
            lane, priority = choice
            waiter = lane.waiting[priority][0]
            lane.remove(waiter, priority)
            if not waiter.granted.done():  # done: cancelled, its task has not run yet
                self._grant(lane, waiter, now)
        for endpoint in [name for name, lane in self._waiting.items() if not lane.length]:
            del self._waiting[endpoint]
        self._arm(now)

    def _choose(self, now: float) -> tuple[_Lane, int] | None:
        """Within a priority the endpoints take turns: a long queue keeps no other one below its
        rate, and the account's rate is not left over when the others have run dry.
        """
        oldest_first = self._grants % _OLDEST_EVERY == _OLDEST_EVERY - 1
        best: tuple[int, int, int] | None = None
        choice: tuple[_Lane, int] | None = None
        for lane in self._waiting.values():
            if not (lane.length and lane.pace.is_ready(now) and lane.slots.is_free(now)):
                continue
            for priority, queue in lane.waiting.items():
                number = queue[0].number
                rank = (0, 0, number) if oldest_first else (priority, lane.last_grant, number)
                if best is None or rank < best:
                    best, choice = rank, (lane, priority)
        return choice

    def _grant(self, lane: _Lane, waiter: _Waiter, now: float) -> None:
        self._grants += 1
        lane.last_grant = self._grants
        self._slots.used += 1
        lane.slots.used += 1
        tickets = (self._account.take(now), lane.pace.take(now))
        waiter.granted.set_result(Permit(self, lane, tickets))

    def _arm(self, now: float) -> None:
        """One timer for the next moment that time brings; a freed slot calls `_dispatch` itself."""
        at = min(
            (
                lane.pace.ready_at()
                for lane in self._waiting.values()
                if lane.slots.is_free(now) and self._slots.is_free(now)
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


def _next_in(lane: _Lane, now: float) -> int:
    """How many of those who wait in a lane may go before anybody else."""
    if lane.pace.rate(now) is None:
        return lane.length
    return min(lane.length, 1) if lane.pace.is_ready(now) else 0
