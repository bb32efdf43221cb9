"""How the read allowance is spent: what can be afforded from now on, and on what.

Pure arithmetic. Looks for events come first and get at least half; what is read again besides (the heads of
lists, passes over whole lists) gets the other half, or less if that is enough. Nothing is put off for ever:
however little is left, each has a longest pause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

DAY_S = 86400.0
_MARGIN = 0.95
"""A look at the list is sometimes two pages: so much of the allowance is planned with."""
_USUAL_DAYS = 7
_LISTS_SHARE = 0.5
LONGEST_PASS_S = 30 * DAY_S
"""A pass finds what nothing announces: it is made once a month in any case."""
LONGEST_STRETCH = 2880.0
"""Heads are due twice a minute, and once a day at the least."""


@dataclass(frozen=True, slots=True)
class Spending:
    """GETs of the last 30 UTC days, oldest first: today's is the last.

    `elapsed` is how much of today has passed, from 0 to 1.
    """

    events: Sequence[int]
    others: Sequence[int]
    elapsed: float

    @property
    def used(self) -> int:
        return sum(self.events) + sum(self.others)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is read again besides the event log. `heads`: GETs a second; `passes`: GETs of one round."""

    heads: float = 0.0
    passes: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """`look_s` and `pass_s`: seconds between two looks for events, and from one pass over a list to the
    next. `stretch`: how many times rarer than usual heads are read.
    """

    look_s: float
    stretch: float = 1.0
    pass_s: float = DAY_S


def affordable_rate(spending: Spending, allowance: float) -> float:
    """GETs a second that can be kept up from now on without the sum of any 30 days passing `allowance`.

    Negative where the sum is too large already.
    """
    days = [a + b for a, b in zip(spending.events, spending.others, strict=True)]
    rate = float("inf")
    remaining = sum(days)
    # The sum is largest just before a day drops out of it: the oldest one when today ends, and so on.
    for n, count in enumerate(days):
        left_s = max((n + 1 - spending.elapsed) * DAY_S, 1.0)
        rate = min(rate, (allowance - remaining) / left_s)
        remaining -= count
    return rate


def usual_rate(spending: Spending) -> float:
    """GETs a second that are no looks for events: the median day, which a backfill does not move."""
    return median(spending.others[-1 - _USUAL_DAYS : -1]) / DAY_S


def plan(
    spending: Spending,
    allowance: float,
    wishes: Wishes,
    *,
    poll_s: float,
    longest_s: float,
) -> Plan:
    """Looks as often as `poll_s` if that can be afforded, and `longest_s` apart at most."""
    rate = affordable_rate(spending, allowance * _MARGIN)
    stretch, pass_s = _lists(max(rate, 0.0) * _LISTS_SHARE, wishes)
    lists = wishes.heads / stretch + wishes.passes / pass_s
    looks = rate - max(usual_rate(spending), lists)
    longest_s = max(poll_s, longest_s)
    look_s = longest_s if looks * longest_s <= 1.0 else max(poll_s, 1.0 / looks)
    return Plan(look_s, stretch, pass_s)


def _lists(rate: float, wishes: Wishes) -> tuple[float, float]:
    """How many times rarer heads are read, and seconds a round of passes, at so many GETs a second."""
    if wishes.heads + wishes.passes / DAY_S <= rate:
        return 1.0, DAY_S
    # Passes get half, or what heads leave.
    for_passes = max(rate / 2, rate - wishes.heads)
    needed_s = wishes.passes / for_passes if for_passes else LONGEST_PASS_S
    pass_s = min(max(needed_s, DAY_S), LONGEST_PASS_S)
    left = rate - wishes.passes / pass_s
    stretch = wishes.heads / left if left > 0 else LONGEST_STRETCH
    return min(max(stretch, 1.0), LONGEST_STRETCH), pass_s
