"""What a process that stalls does to the rate: it catches up, and never goes over it."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.client.fake_time import FakeTime

from pinstripe.client.rate_limit import GcraRate, RateLimiter


def _taken(pace: GcraRate, moments: list[float]) -> list[float]:
    """When a sender that looks at these moments sends, having always more to send."""
    sent: list[float] = []
    for now in moments:
        while pace.is_ready(now):
            pace.take(now)
            sent.append(now)
    return sent


@given(st.lists(st.floats(0.001, 0.6), min_size=1, max_size=60), st.integers(1, 40))
def test_no_second_holds_more_than_the_rate_however_long_the_stalls(
    pauses: list[float], rate: int
) -> None:
    moments = [sum(pauses[:i]) for i in range(len(pauses))]
    sent = _taken(GcraRate(float(rate), burst_s=0.25), moments)
    for at in sent:
        assert sum(at <= other <= at + 1.0 for other in sent) <= max(rate, 2)


def test_stalls_of_a_quarter_of_a_second_cost_nothing() -> None:
    moments = [0.01 * tick for tick in range(1000) if tick % 100 < 76]
    sent = _taken(GcraRate(40.0, burst_s=0.25), moments)
    assert len(sent) >= 0.95 * 40 * 10


def test_timers_that_wake_late_cost_nothing() -> None:
    sent = _taken(GcraRate(100.0, burst_s=0.25), [0.025 * tick for tick in range(400)])
    assert len(sent) >= 0.95 * 100 * 10


async def test_a_queue_for_one_endpoint_leaves_the_account_to_the_others() -> None:
    time = FakeTime()
    budget = RateLimiter(
        account_rate=100.0, endpoint_rate=1.0, burst_s=0.0, clock=time.clock, sleep=time.sleep
    )
    (await budget.acquire("slow")).release()
    waiting = [asyncio.ensure_future(budget.acquire("slow")) for _ in range(9)]
    await time.settle()
    time.now += 0.01
    assert budget.ready_in("other") == 0.0
    for waiter in waiting:
        waiter.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
