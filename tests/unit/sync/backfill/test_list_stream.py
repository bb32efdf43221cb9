"""Every object of a list is delivered, whatever is cut, killed, made or deleted meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.sync.backfill.stripe_list import CHARGES, PLAIN, Copier, StripeList

from pinstripe.catalog.endpoints import ListEndpoint
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.response import StripeObject
from pinstripe.errors import Drifted
from pinstripe.store.cursors import Checkpoint, State
from pinstripe.sync.backfill.list_stream import Scheduler, created_since, read_position
from pinstripe.sync.backfill.slices import SliceSet

START = 1_700_000_000
DAY = 86_400

# Runs of objects: (how many, over how many seconds). Bursts, plains, gaps.
_RUNS = st.lists(
    st.tuples(st.integers(1, 700), st.sampled_from([1, 2, 60, 3_600, DAY, 40 * DAY])), max_size=6
)


def _seconds(runs: list[tuple[int, int]], dice: Random) -> list[int]:
    found: list[int] = []
    at = START
    for count, span in runs:
        found += [at + dice.randrange(span) for _ in range(count)]
        at += span
    return found


@settings(max_examples=120, deadline=None)
@given(
    runs=_RUNS,
    seed=st.integers(0, 2**32),
    concurrency=st.integers(1, 12),
    created=st.booleans(),
    account_created=st.sampled_from([0, START - DAY]),
)
def test_every_object_is_delivered_whatever_happens_meanwhile(
    runs: list[tuple[int, int]], seed: int, concurrency: int, created: bool, account_created: int
) -> None:
    dice = Random(seed)
    seconds = _seconds(runs, dice)
    now = max(seconds, default=START) + 1
    stripe = StripeList(seconds)
    at_start = set(stripe.objects)
    copier = Copier(stripe, CHARGES if created else PLAIN, account_created=account_created)
    kills = 0
    for _ in range(40 * (len(seconds) // 100 + 10)):
        if copier.finished:
            break
        act = dice.random()
        if act < 0.45 and len(copier.in_flight) < concurrency:
            copier.ask()
        elif act < 0.75 and copier.in_flight:
            copier.receive(dice.randrange(len(copier.in_flight)))
        elif act < 0.85 and copier.received:
            copier.submit(dice)
        elif act < 0.95 and copier.lane:
            copier.commit(dice.randint(1, len(copier.lane)))
        elif act < 0.97:
            now += dice.randrange(3)
            stripe.create(now)
        elif act < 0.985 and stripe.objects:
            stripe.delete(dice.choice(stripe.objects))
        elif act < 0.99 and kills < 6:
            copier.kill()
            kills += 1
    copier.run(dice, concurrency=concurrency)
    assert at_start - stripe.deleted <= copier.rows
    assert not copier.slices.durable


@settings(max_examples=60, deadline=None)
@given(runs=_RUNS, seed=st.integers(0, 2**32), at=st.integers(0, 60))
def test_a_process_that_is_killed_anywhere_goes_on_from_what_was_committed(
    runs: list[tuple[int, int]], seed: int, at: int
) -> None:
    dice = Random(seed)
    stripe = StripeList(_seconds(runs, dice))
    copier = Copier(stripe)
    for _ in range(at):
        copier.ask()
        if copier.in_flight and dice.random() < 0.8:
            copier.receive(dice.randrange(len(copier.in_flight)))
        if copier.received and dice.random() < 0.8:
            copier.submit(dice)
        if copier.lane and dice.random() < 0.5:
            copier.commit(dice.randint(1, len(copier.lane)))
    kept = set(copier.rows)
    copier.kill()
    copier.run(dice, concurrency=4)
    assert copier.rows == set(stripe.objects)
    assert kept <= copier.rows


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 200, 201])
def test_small_lists_take_the_pages_that_they_need(count: int) -> None:
    stripe = StripeList([START + n for n in range(count)])
    needed = max(1, -(-count // 100))
    alone = Copier(stripe)
    alone.run(Random(1), concurrency=1)
    assert alone.requests == needed
    # With requests to spare a few look for what may lie below.
    copier = Copier(stripe)
    copier.run(Random(1), concurrency=8)
    assert alone.rows == copier.rows == set(stripe.objects)
    assert copier.requests <= needed + 4


def test_a_second_with_thousands_of_objects_is_paged_by_cursor() -> None:
    stripe = StripeList([START] * 5_000)
    copier = Copier(stripe)
    copier.run(Random(1), concurrency=8)
    assert copier.rows == set(stripe.objects)
    assert copier.requests <= 50 + 5


def test_a_page_out_of_order_does_not_end_its_range() -> None:
    # Objects on a test clock have a time of their own: the list's order is that of their making.
    slices = SliceSet.load(CHARGES)
    claimed = slices.claim()
    assert claimed is not None
    slices.received(claimed, [{"created": START}], has_more=True, after="ch_1")
    claimed.gte = START - 10 * DAY
    ages = [0, 900, 1, 800]
    odd: list[StripeObject] = [{"created": START - days * DAY} for days in ages]
    step = slices.received(claimed, odd, has_more=True, after="ch_5")
    assert not step.done


def test_a_list_that_goes_on_but_not_from_where_is_an_error() -> None:
    slices = SliceSet.load(CHARGES)
    claimed = slices.claim()
    assert claimed is not None
    with pytest.raises(Drifted, match="goes on"):
        slices.received(claimed, [{"created": START}], has_more=True, after=None)


def test_a_cursor_that_cannot_be_read_says_what_to_do() -> None:
    cursor = Checkpoint("/v1/charges", "running", position={"odd": 1})
    with pytest.raises(Drifted, match="cannot be read") as caught:
        read_position(cursor)
    assert "pinstripe.cursor" in caught.value.hint


def test_a_tail_reads_what_was_created_since_and_nothing_older() -> None:
    done = Checkpoint("/v1/charges", "done", rows=7, requests=3, as_of=float(START))
    cursor = created_since(done, "charge", START, ceiling=START + DAY)
    # Rows that are listed once more are no more rows: a table with half of them would seem emptied.
    assert (cursor.rows, cursor.requests, cursor.state) == (1, 3, "running")
    assert cursor.position == {
        "table": "charge",
        "ceiling": START + DAY,
        "todo": [(START, None, None, None)],
    }
    slices = SliceSet.load(CHARGES, read_position(cursor)["todo"])
    claimed = slices.claim()
    assert claimed is not None
    assert slices.request(claimed)[1] == [("limit", "100"), ("created[gte]", str(START))]


def test_how_long_a_list_is_nobody_knows_before_its_first_page() -> None:
    slices = SliceSet.load(CHARGES)
    assert slices.has_unknown
    claimed = slices.claim()
    assert claimed is not None
    page: list[StripeObject] = [{"created": START + n} for n in (99, 0)]
    slices.received(claimed, page, has_more=True, after="ch_1")
    assert not slices.has_unknown


@dataclass
class Readable:
    """A list of so many requests, each over as soon as it may go and durable after `holds_s`."""

    endpoint: ListEndpoint
    left: int
    urgent: bool
    budget: RateLimiter
    asked: list[str]
    table: str = "charge"
    state: State = "running"
    reason: str = ""
    code: str = ""
    remedy: str = ""
    rows: int = 0
    in_flight: int = 0
    has_children: bool = False
    is_longest: bool = False
    in_haste: int = 0
    """Requests that were made while it was among those that need longest."""
    holds_s: float = 0.0
    begins_after: int = 0

    @property
    def finished(self) -> bool:
        return not self.left and not self.in_flight

    def remaining(self) -> float:
        return float(self.left)

    def on_change(self, changed: Callable[[], None]) -> None:
        del changed

    def claim(self) -> Callable[[], asyncio.Task[None]] | None:
        if not self.left or len(self.asked) < self.begins_after:
            return None
        self.left -= 1
        self.in_flight += 1
        return lambda: asyncio.create_task(self._request())

    async def _request(self) -> None:
        self.in_haste += self.is_longest
        with await self.budget.acquire(self.endpoint.name, priority=10):
            self.asked.append(self.endpoint.name)
        self.in_flight -= 1
        await asyncio.sleep(self.holds_s)

    def end(self, state: State, reason: str, *, code: str) -> None:
        raise NotImplementedError

    def final(self) -> Checkpoint:
        raise NotImplementedError


async def beside_another(
    *, slow_left: int, slow_rate: float, rate: float, other_left: int, urgent: bool = False
) -> tuple[Readable, Readable]:
    """The other list, which may be urgent, and the one with a slow endpoint, read to their ends."""
    slow, other = replace(CHARGES, path="/v1/slow"), replace(CHARGES, path="/v1/other")
    budget = RateLimiter(
        account_rate=rate, endpoint_rate=rate, own_rates={slow.name: slow_rate}, burst_s=0.25
    )
    asked: list[str] = []
    lists = (
        Readable(other, left=other_left, urgent=urgent, budget=budget, asked=asked),
        Readable(slow, left=slow_left, urgent=False, budget=budget, asked=asked),
    )
    await Scheduler(budget).run(lists)
    return lists


async def test_the_list_that_takes_longest_at_its_own_rate_is_not_left_to_the_end() -> None:
    _, slow = await beside_another(
        slow_left=40, slow_rate=50.0, rate=200.0, other_left=120, urgent=True
    )
    assert len(slow.asked) == 160
    assert slow.asked[:80].count(slow.endpoint.name) >= 4


async def test_a_list_by_parent_begins_though_lists_that_come_first_hold_the_places() -> None:
    other = replace(CHARGES, path="/v1/other")
    under = replace(CHARGES, path="/v1/under", parent="customer", created=False)
    budget = RateLimiter(account_rate=200.0, endpoint_rate=200.0, burst_s=0.25)
    asked: list[str] = []
    lists = [
        Readable(other, left=300, urgent=True, budget=budget, asked=asked, holds_s=0.35),
        Readable(under, left=3, urgent=False, budget=budget, asked=asked, begins_after=100),
    ]
    await Scheduler(budget).run(lists)
    assert under.name in asked[:140]


async def test_the_list_that_needs_longest_of_all_goes_before_those_that_have_more_left() -> None:
    """With its nested lists it decides when the run ends."""
    other, slow = await beside_another(slow_left=20, slow_rate=40.0, rate=400.0, other_left=60)
    assert slow.in_haste == 20
    assert other.in_haste < 60
