"""How often we may look: never faster than asked, no slower than needed, and no overrun but at the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pinstripe.store.daily_counts import DAYS, allowed
from pinstripe.sync.read_quota import (
    DAY_S,
    LONGEST_PASS_S,
    LONGEST_STRETCH,
    QuotaDemand,
    QuotaUsage,
    affordable_rate,
    kind_of,
    plan,
    usual_rate,
)

POLL_S, LONGEST_S = 0.5, 600.0
HOUR = 1 / 24
NO_LISTS = QuotaDemand()
LISTS = QuotaDemand(heads=0.7, passes=400.0)
"""Some twenty lists twice a minute, and a hundred lists to their end, a few under parents."""

counts = st.lists(st.integers(0, 200_000), min_size=DAYS, max_size=DAYS)
elapsed = st.floats(0, 1, exclude_max=True)
spendings = st.builds(QuotaUsage, counts, counts, elapsed)
allowances = st.integers(10_000, 50_000_000)

NOTHING = QuotaUsage([0] * DAYS, [0] * DAYS, 0.5)


def pause(spending: QuotaUsage, allowance: float, *, poll_s: float = POLL_S) -> float:
    return plan(spending, allowance, NO_LISTS, poll_s=poll_s, longest_s=LONGEST_S).look_s


@given(spendings, allowances)
def test_the_pause_is_between_the_setting_and_the_longest(
    spending: QuotaUsage, allowance: int
) -> None:
    assert POLL_S <= pause(spending, allowance) <= LONGEST_S


@given(spendings, allowances, st.integers(0, 10_000_000))
def test_a_larger_allowance_never_slows_down(
    spending: QuotaUsage, allowance: int, more: int
) -> None:
    assert pause(spending, allowance + more) <= pause(spending, allowance)


@given(spendings, allowances, st.integers(0, DAYS - 1), st.integers(0, 100_000))
def test_what_was_spent_never_speeds_up(
    spending: QuotaUsage, allowance: int, day: int, more: int
) -> None:
    events = list(spending.events)
    events[day] += more
    spent = QuotaUsage(events, spending.others, spending.elapsed)
    assert pause(spent, allowance) >= pause(spending, allowance)


@given(spendings)
def test_a_busy_account_is_read_at_the_full_rate(spending: QuotaUsage) -> None:
    # Room for all that was spent, and for two looks a second and what is usual, for 30 days more.
    enough = spending.used + (1 / POLL_S + usual_rate(spending)) * DAYS * 86400
    assert pause(spending, enough / 0.95 + 1) == POLL_S


def test_a_setting_slower_than_the_longest_pause_is_kept() -> None:
    assert pause(NOTHING, allowed(0), poll_s=900.0) == 900.0


wishes = st.builds(QuotaDemand, st.floats(0, 5), st.floats(0, 100_000))


@given(spendings, allowances, wishes)
def test_however_little_is_left_nothing_is_put_off_for_ever(
    spending: QuotaUsage, allowance: int, wished: QuotaDemand
) -> None:
    found = plan(spending, allowance, wished, poll_s=POLL_S, longest_s=LONGEST_S)
    assert POLL_S <= found.look_s <= LONGEST_S
    assert 1 <= found.stretch <= LONGEST_STRETCH
    assert DAY_S <= found.pass_s <= LONGEST_PASS_S


def month(transactions: int, wished: QuotaDemand, *, others_a_day: int = 0) -> tuple[float, float]:
    """GETs of the sixtieth to ninetieth day after the start, and the longest pause between two looks."""
    events, others = [0.0] * DAYS, [0.0] * DAYS
    longest_s = 0.0
    for hour in range(90 * 24):
        now = QuotaUsage([round(e) for e in events], [round(o) for o in others], hour % 24 * HOUR)
        found = plan(now, allowed(transactions), wished, poll_s=POLL_S, longest_s=LONGEST_S)
        longest_s = max(longest_s, found.look_s)
        events[-1] += 3600 / found.look_s
        others[-1] += 3600 * (wished.heads / found.stretch + wished.passes / found.pass_s)
        others[-1] += others_a_day * HOUR
        if hour % 24 == 23:
            events, others = [*events[1:], 0.0], [*others[1:], 0.0]
    return sum(events) + sum(others), longest_s


def test_a_month_of_a_quiet_account_fits_into_what_stripe_always_allows() -> None:
    used, longest_s = month(0, LISTS, others_a_day=20)
    assert 0.8 * allowed(0) <= used <= allowed(0)
    assert longest_s <= LONGEST_S


def test_a_month_of_a_quiet_account_with_many_lists_under_parents_fits_too() -> None:
    used, _ = month(0, QuotaDemand(heads=0.7, passes=3000.0))
    assert used <= allowed(0)


def test_a_month_of_a_busy_account_is_read_at_the_full_rate() -> None:
    used, longest_s = month(20_000, LISTS, others_a_day=5000)
    assert longest_s == POLL_S
    assert used > 5_000_000  # two looks a second
    assert used <= allowed(20_000)


def test_a_month_of_an_account_between_is_slowed_no_more_than_needed() -> None:
    used, longest_s = month(1000, LISTS)
    assert 0.85 * allowed(1000) <= used <= allowed(1000)
    assert longest_s < 60


def test_with_room_for_all_lists_are_read_as_often_as_wished() -> None:
    found = plan(NOTHING, allowed(20_000), LISTS, poll_s=POLL_S, longest_s=LONGEST_S)
    assert (found.stretch, found.pass_s) == (1.0, DAY_S)


def test_an_account_between_spends_its_allowance_evenly() -> None:
    allowance = allowed(2000)
    at_midnight = QuotaUsage([0] * DAYS, [0] * DAYS, 0.0)
    expected = DAYS * 86400 / (allowance * 0.95)
    assert abs(pause(at_midnight, allowance) - expected) < 0.001
    assert POLL_S < expected < LONGEST_S


def test_a_backfill_of_one_day_is_not_taken_for_usual() -> None:
    others = [0] * (DAYS - 4) + [300_000, 50, 50, 50]
    assert usual_rate(QuotaUsage([0] * DAYS, others, 0.0)) < 0.001


@given(
    events=st.lists(st.integers(0, 20_000), min_size=DAYS, max_size=DAYS),
    others_a_day=st.integers(0, 5_000),
    transactions=st.integers(0, 20_000),
    hours=st.integers(1, 24 * 40),
)
def test_no_thirty_days_overrun_the_allowance_unless_the_pause_is_the_longest(
    events: list[int], others_a_day: int, transactions: int, hours: int
) -> None:
    allowance = allowed(transactions)
    looks, others = [float(e) for e in events], [float(others_a_day)] * DAYS
    others[-1] = 0.0
    for hour in range(hours):
        now = QuotaUsage([round(e) for e in looks], [round(o) for o in others], hour % 24 * HOUR)
        chosen = pause(now, allowance)
        looks[-1] += 3600 / chosen
        others[-1] += others_a_day * HOUR
        if chosen < LONGEST_S:
            assert sum(looks) + sum(others) <= allowance
        if hour % 24 == 23:
            looks, others = [*looks[1:], 0.0], [*others[1:], 0.0]


def test_a_rate_that_is_kept_for_thirty_days_uses_the_allowance_up() -> None:
    assert affordable_rate(NOTHING, 29.5 * 86400) == 1.0


def test_only_gets_are_counted_by_kind() -> None:
    assert kind_of("GET /v1/events") == "events"
    assert kind_of("GET /v1/charges") == "list"
    assert kind_of("GET /v1/charges/{charge}") == "retrieve"
    assert kind_of("/v1/account") == "list"
    assert kind_of("POST /v1/invoices/create_preview") is None
    assert kind_of("DELETE /v1/customers/{customer}") is None
