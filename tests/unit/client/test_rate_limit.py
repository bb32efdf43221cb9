"""The budget of requests, on a clock of the test's own: no second holds more than the rate, all of it
is used, and nothing leaks.

Also order, fairness, slots, what a 429 does to rate and slots, and permits that are given back.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.client.fake_time import FakeTime, run

from pinstripe.client.rate_limit import GcraRate, Permit, RateLimiter, WorkClass


def budget_of(
    time: FakeTime,
    *,
    account_rate: float | None = 100.0,
    endpoint_rate: float | None = 25.0,
    burst_s: float = 0.05,
    max_concurrency: int = 1000,
) -> RateLimiter:
    return RateLimiter(
        account_rate=account_rate,
        endpoint_rate=endpoint_rate,
        burst_s=burst_s,
        clock=time.clock,
        sleep=time.sleep,
        max_concurrency=max_concurrency,
    )


def most_in_a_second(times: list[float]) -> int:
    ordered = sorted(times)
    return max(
        (sum(1 for other in ordered[i:] if other <= at + 1.0) for i, at in enumerate(ordered)),
        default=0,
    )


@dataclass(frozen=True, slots=True)
class Limits:
    account_rate: float
    endpoint_rate: float
    burst_s: float
    slots: int


LIMITS = st.builds(
    Limits,
    account_rate=st.sampled_from([3.0, 9.5, 20.0, 30.0]),
    endpoint_rate=st.sampled_from([1.0, 8.0, 12.5, 20.0]),
    burst_s=st.sampled_from([0.0, 0.05, 0.3]),
    slots=st.integers(1, 20),
)
VOLLEYS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.3, 1.0, 2.5]),  # when it comes, s
        st.integers(1, 20),  # how many requests
        st.sampled_from("abc"),  # for which endpoint
        st.integers(0, 2),  # with which priority
        st.sampled_from([None, None, None, 0.0, 0.2, 2.0]),  # after how long it is cancelled, s
    ),
    max_size=8,
)
REFUSALS = st.lists(
    st.tuples(
        st.floats(0, 3),  # when Stripe says 429, s
        st.sampled_from("abc"),
        st.sampled_from(["global-rate", "endpoint-rate", "global-concurrency", "", "x"]),
        st.one_of(st.none(), st.floats(0, 3)),  # its Retry-After, s
    ),
    max_size=2,
)


@settings(max_examples=80, deadline=None)
@given(limits=LIMITS, volleys=VOLLEYS, refusals=REFUSALS)
def test_no_second_holds_more_than_the_rate_and_all_are_served_and_nothing_leaks(
    limits: Limits,
    volleys: list[tuple[float, int, str, int, float | None]],
    refusals: list[tuple[float, str, str, float | None]],
) -> None:
    granted: dict[str, list[float]] = defaultdict(list)
    under_way = 0

    async def scenario(time: FakeTime) -> None:
        budget = budget_of(
            time,
            account_rate=limits.account_rate,
            endpoint_rate=limits.endpoint_rate,
            burst_s=limits.burst_s,
            max_concurrency=limits.slots,
        )

        async def ask(endpoint: str, priority: int) -> None:
            nonlocal under_way
            with await budget.acquire(endpoint, priority=priority):
                granted[endpoint].append(time.now)
                under_way += 1
                assert under_way <= limits.slots
                await asyncio.sleep(0)
                under_way -= 1

        async def volley(
            at: float, count: int, endpoint: str, priority: int, patience: float | None
        ) -> None:
            await time.sleep(at)
            tasks = [asyncio.ensure_future(ask(endpoint, priority)) for _ in range(count)]
            if patience is not None:
                await time.sleep(patience)
                for task in tasks:
                    task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task
                assert patience is not None or not task.cancelled()

        async def refuse(
            at: float, endpoint: str, reason: str, retry_after_s: float | None
        ) -> None:
            await time.sleep(at)
            budget.on_rate_limited(endpoint, reason, retry_after_s)

        tasks_before = len(asyncio.all_tasks())
        await asyncio.gather(
            *(volley(*one) for one in volleys), *(refuse(*refusal) for refusal in refusals)
        )
        await time.sleep(1000.0)
        assert len(asyncio.all_tasks()) == tasks_before
        # A slot that was lost would be missed here: everyone would wait and no one sleep.
        held = [await budget.acquire("d") for _ in range(limits.slots)]
        assert len(held) == limits.slots

    run(scenario)
    slack = 1e-6
    every = [at for times in granted.values() for at in times]
    assert most_in_a_second(every) <= limits.account_rate * (1 + limits.burst_s) + 1 + slack
    for times in granted.values():
        assert most_in_a_second(times) <= limits.endpoint_rate * (1 + limits.burst_s) + 1 + slack


async def test_the_full_rate_of_an_endpoint_is_used() -> None:
    time = FakeTime()
    budget = budget_of(time)

    async def ask() -> None:
        (await budget.acquire("charges")).release()

    async def many() -> None:
        await asyncio.gather(*(ask() for _ in range(251)))

    await time.drive(many())
    # 251 requests at 25/s: 10 s, less the burst.
    assert time.now - 1000.0 == pytest.approx(10.0, abs=0.06)


async def test_four_endpoints_together_reach_the_rate_of_the_account() -> None:
    time = FakeTime()
    budget = budget_of(time, account_rate=60.0)

    async def ask(endpoint: str) -> None:
        (await budget.acquire(endpoint)).release()

    async def many() -> None:
        await asyncio.gather(*(ask(e) for e in "abcd" for _ in range(60)))

    await time.drive(many())
    assert time.now - 1000.0 == pytest.approx(4.0, abs=0.1)


async def test_without_a_limit_no_one_waits() -> None:
    time = FakeTime()
    budget = budget_of(time, account_rate=None, endpoint_rate=None)
    for _ in range(500):
        (await budget.acquire("charges")).release()
    assert time.slept == []


async def test_the_lower_number_goes_first_and_equals_go_in_order_of_arrival() -> None:
    time = FakeTime()
    budget = budget_of(time, burst_s=0.0, endpoint_rate=1.0)
    order: list[str] = []

    async def ask(name: str, priority: int) -> None:
        with await budget.acquire("charges", priority=priority):
            order.append(name)

    async def all_of_them() -> None:
        (await budget.acquire("charges")).release()
        await asyncio.gather(
            ask("backfill 1", 10), ask("backfill 2", 10), ask("live 1", 0), ask("live 2", 0)
        )

    await time.drive(all_of_them())
    assert order == ["live 1", "live 2", "backfill 1", "backfill 2"]


async def test_a_flood_of_urgent_requests_starves_no_one() -> None:
    time = FakeTime()
    budget = budget_of(time, burst_s=0.0, endpoint_rate=10.0)
    served_at: list[float] = []

    async def urgent() -> None:
        while not served_at:
            (await budget.acquire("events", priority=0)).release()

    async def patient() -> None:
        with await budget.acquire("events", priority=10):
            served_at.append(time.now)

    async def both() -> None:
        await asyncio.gather(urgent(), urgent(), urgent(), patient())

    await time.drive(both())
    assert served_at[0] - 1000.0 < 2.0


async def test_an_endpoint_that_must_wait_does_not_hold_up_the_others() -> None:
    time = FakeTime()
    budget = budget_of(time, burst_s=0.0, endpoint_rate=1.0)
    (await budget.acquire("charges")).release()
    stuck = asyncio.ensure_future(budget.acquire("charges", priority=0))
    await time.settle()
    await time.drive(budget.acquire("refunds", priority=10))
    assert time.now - 1000.0 <= 0.011
    assert not stuck.done()
    (await time.drive(_value_of(stuck))).release()


async def _value_of(task: asyncio.Future[Permit]) -> Permit:
    return await task


async def test_a_full_house_waits_for_a_slot_and_the_first_free_one_is_used_at_once() -> None:
    time = FakeTime()
    budget = budget_of(time, account_rate=None, endpoint_rate=None, max_concurrency=1)
    first = await budget.acquire("charges")
    second = asyncio.ensure_future(budget.acquire("refunds"))
    await time.settle()
    assert not second.done()
    first.release()
    first.release()
    with await second:
        assert budget.ready_in("refunds") > 0
    assert budget.ready_in("refunds") == 0


async def test_a_permit_that_is_granted_and_cancelled_in_one_turn_is_given_back() -> None:
    time = FakeTime()
    budget = budget_of(time, burst_s=0.0, max_concurrency=1, endpoint_rate=1.0)
    first = await budget.acquire("charges")
    second = asyncio.ensure_future(budget.acquire("refunds"))
    await time.settle()
    time.now += 1.0
    first.release()  # grants the second, whose task has not run yet
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert budget.ready_in("refunds") == 0.0


async def test_ready_in_reserves_nothing_and_counts_those_who_wait() -> None:
    time = FakeTime()
    budget = budget_of(time, burst_s=0.0, account_rate=None, endpoint_rate=2.0)
    assert [budget.ready_in("charges") for _ in range(3)] == [0.0, 0.0, 0.0]
    (await budget.acquire("charges")).release()
    assert budget.ready_in("charges") == pytest.approx(0.5)
    assert budget.ready_in("refunds") == 0.0
    waiting = asyncio.ensure_future(budget.acquire("charges"))
    await time.settle()
    assert budget.ready_in("charges") == pytest.approx(1.0)
    (await time.drive(_value_of(waiting))).release()


async def test_ready_in_is_not_now_while_every_slot_is_taken() -> None:
    budget = budget_of(FakeTime(), account_rate=20.0, max_concurrency=1)
    with await budget.acquire("charges"):
        assert budget.ready_in("refunds") > 0.02
    assert budget.ready_in("refunds") == pytest.approx(0.025)  # No closer than half the distance.


async def test_a_429_takes_a_fifth_off_the_rate_of_what_it_names_and_it_grows_back() -> None:
    time = FakeTime()
    budget = budget_of(time)
    budget.on_rate_limited("charges", "endpoint-rate", None)
    assert budget.rate("charges") == pytest.approx(20.0)
    assert budget.rate("refunds") == 25.0
    assert budget.rate() == 100.0
    budget.on_rate_limited("charges", "global-rate", None)
    assert budget.rate() == pytest.approx(80.0)
    time.now += 3
    assert budget.rate() == pytest.approx(97.0)
    time.now += 100
    assert (budget.rate(), budget.rate("charges")) == (100.0, 25.0)


def test_where_another_program_takes_half_few_requests_are_refused() -> None:
    allowed, now, last, level, sent, refused = 50.0, 0.0, 0.0, 0.0, 0, 0
    pace = GcraRate(100.0, burst_s=0.05)
    while now < 600.0:
        now = max(now, pace.ready_at())
        pace.take(now)
        sent += 1
        # Stripe's bucket, which the other program leaves half; what is refused takes nothing from it.
        level = max(level - (now - last) * allowed, 0.0)
        last = now
        if level + 1.0 > allowed / 2:
            refused += 1
            pace.cut(now)
        else:
            level += 1.0
    assert refused / sent < 0.005
    assert sent - refused > 0.93 * allowed * 600.0


async def test_a_volley_of_429s_counts_once() -> None:
    time = FakeTime()
    budget = budget_of(time)
    for _ in range(30):
        budget.on_rate_limited("charges", "global-rate", None)
    assert budget.rate() == pytest.approx(80.0)


async def test_however_often_stripe_says_no_the_rate_stays_above_nothing() -> None:
    time = FakeTime()
    budget = budget_of(time)
    for _ in range(100):
        time.now += 1.0
        budget.on_rate_limited("charges", "endpoint-rate", None)
    assert budget.rate("charges") == pytest.approx(25.0 / 20)


async def test_contention_on_one_object_slows_no_one_down() -> None:
    budget = budget_of(FakeTime())
    budget.on_rate_limited("charges", "lock_timeout", 2.0)
    assert (budget.rate("charges"), budget.ready_in("charges")) == (25.0, 0.0)


async def test_a_concurrency_429_lowers_the_slots_and_not_the_rate() -> None:
    time = FakeTime()
    budget = budget_of(time, account_rate=None, endpoint_rate=None, max_concurrency=60)
    held = [await budget.acquire("charges") for _ in range(20)]
    budget.on_rate_limited("charges", "global-concurrency", None)
    assert budget.rate() is None
    for permit in held[:10]:
        permit.release()
    blocked = asyncio.ensure_future(budget.acquire("refunds"))
    await time.settle()
    assert not blocked.done()
    held[10].release()
    await time.settle()
    assert blocked.done()
    blocked.result().release()
    for permit in held:
        permit.release()
    time.now += 60.0
    for _ in range(60):
        assert budget.ready_in("charges") == 0
        await budget.acquire("charges")
    assert budget.ready_in("charges") > 0


async def test_retry_after_holds_back_everyone_whom_the_limit_concerns() -> None:
    time = FakeTime()
    budget = budget_of(time)
    budget.on_rate_limited("charges", "endpoint-rate", 3.0)
    assert budget.ready_in("charges") == pytest.approx(3.0)
    assert budget.ready_in("refunds") == 0.0
    budget.on_rate_limited("charges", "global-rate", 2.0)
    assert budget.ready_in("refunds") == pytest.approx(2.0)
    permit = await time.drive(budget.acquire("charges"))
    permit.release()
    assert time.now >= 1003.0


async def test_an_endpoint_can_have_a_rate_of_its_own() -> None:
    time = FakeTime()
    budget = RateLimiter(
        account_rate=100, endpoint_rate=25, own_rates={"files": 20.0}, clock=time.clock
    )
    assert (budget.rate("files"), budget.rate("charges")) == (20.0, 25.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_makes_no_sense_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        RateLimiter(account_rate=rate, endpoint_rate=25.0)


async def test_a_waiter_that_is_cancelled_leaves_no_trace_and_no_timer() -> None:
    time = FakeTime()
    budget = budget_of(time, burst_s=0.0, account_rate=None, endpoint_rate=1.0)
    (await budget.acquire("charges")).release()
    waiting = asyncio.ensure_future(budget.acquire("charges"))
    await time.settle()
    waiting.cancel()
    await time.settle()
    assert waiting.cancelled()
    assert budget.ready_in("charges") == pytest.approx(1.0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_unused_permit_given_back_late_allows_no_second_burst() -> None:
    time = FakeTime()
    budget = budget_of(time, burst_s=0.0, account_rate=None, endpoint_rate=1.0)
    early = await budget.acquire("charges")
    time.now += 10.0
    await budget.acquire("charges")
    early.give_back()
    assert budget.ready_in("charges") == pytest.approx(1.0)


async def test_an_unused_permit_given_back_soon_does_not_count() -> None:
    budget = budget_of(FakeTime(), burst_s=0.0, endpoint_rate=1.0)
    (await budget.acquire("charges")).give_back()
    assert budget.ready_in("charges") == 0.0


async def test_no_class_waits_behind_a_lower_one_and_none_starves() -> None:
    """Four floods that never end, on the default budget of a live account: each has its share, and what
    comes in an earlier class is served next but one.
    """
    time = FakeTime()
    budget = budget_of(time, account_rate=50.0, endpoint_rate=12.5)
    served: dict[WorkClass, list[float]] = defaultdict(list)
    until = time.now + 60.0

    async def flood(work: WorkClass, endpoint: str) -> None:
        while time.now < until:
            with await budget.acquire(endpoint, priority=work):
                served[work].append(time.now)

    async def contested() -> None:
        for _ in range(10):
            await time.sleep(5.0)
            asked = time.now
            with await budget.acquire("a", priority=WorkClass.CONTESTED):
                served[WorkClass.CONTESTED].append(time.now - asked)

    floods = [
        flood(work, endpoint)
        for work in (WorkClass.RELATED, WorkClass.HEADS, WorkClass.PREVIEWS, WorkClass.SCANS)
        for endpoint in "abcdef"
        for _ in range(30)
    ]

    async def all_of_it() -> None:
        await asyncio.gather(contested(), *floods)

    await time.drive(all_of_it())
    # One permit of its endpoint is 80 ms; one may be the share of another class.
    assert max(served[WorkClass.CONTESTED]) <= 0.2
    for work in (WorkClass.HEADS, WorkClass.PREVIEWS, WorkClass.SCANS):
        gaps = [b - a for a, b in pairwise(served[work])]
        assert max(gaps) < 2.0
    assert len(served[WorkClass.RELATED]) > 0.8 * 50 * 60


async def test_answers_that_hang_leave_slots_to_contested_rows() -> None:
    time = FakeTime()
    budget = budget_of(time, account_rate=None, endpoint_rate=None, max_concurrency=60)
    scans = [
        asyncio.ensure_future(budget.acquire("a", priority=WorkClass.SCANS)) for _ in range(100)
    ]
    await time.settle()
    assert sum(scan.done() for scan in scans) == 52
    permit = await asyncio.wait_for(budget.acquire("a", priority=WorkClass.CONTESTED), 1)
    permit.release()
    (await scans[0]).release()
    await time.settle()
    assert sum(scan.done() for scan in scans) == 53
    for scan in scans:
        scan.cancel()
    await asyncio.gather(*scans, return_exceptions=True)


async def test_a_share_is_a_part_of_every_rate_and_ends() -> None:
    time = FakeTime()
    budget = budget_of(time, account_rate=99.0, endpoint_rate=24.0)
    sent: list[float] = []

    async def send() -> None:
        for _ in range(100):
            with await budget.acquire("GET /a"):
                sent.append(time.now)

    async def scenario() -> None:
        sending = asyncio.ensure_future(send())
        await time.sleep(1.0)
        budget.share(5, until=time.now + 3.0)
        await time.sleep(10.0)
        assert budget.ready_in("GET /b") > 0
        budget.share(1, until=time.now + 100.0)
        await sending

    began = time.now
    await time.drive(scenario())
    at = [when - began for when in sent]
    assert most_in_a_second(sent) <= 24
    assert 10 <= sum(1.1 < when <= 4.0 for when in at) <= 4 * 3 + 1, "4 a second, for 3 seconds"
    assert sum(4.0 < when < 11.0 for when in at) == 0
    assert (budget.rate(), budget.rate("GET /a")) == (99.0, 24.0)


async def test_what_was_sent_before_a_smaller_share_counts_towards_it() -> None:
    pace = GcraRate(20.0, 0.05)
    for number in range(20):
        assert pace.is_ready(number * 0.05)
        pace.take(number * 0.05)
    pace.reset(4)
    # The last four were at 0.80, 0.85, 0.90 and 0.95 s.
    assert not pace.is_ready(1.75)
    assert pace.is_ready(1.81)
