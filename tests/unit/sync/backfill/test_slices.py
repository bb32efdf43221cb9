"""How many requests a list costs beside those that it needs, and how many it is taken to need."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from tests.unit.sync.backfill.stripe_list import Copier, StripeList

BIRTH = 1_600_000_000
YEAR = 365 * 86_400
SPAN = 3 * YEAR


def _steady(dice: Random, count: int) -> list[int]:
    return [BIRTH + dice.randrange(SPAN) for _ in range(count)]


def _growing(dice: Random, count: int) -> list[int]:
    """Twenty times as many at the end as at the beginning."""
    return [BIRTH + int(SPAN * dice.random() ** 0.25) for _ in range(count)]


def _shrinking(dice: Random, count: int) -> list[int]:
    return [BIRTH + int(SPAN * dice.random() ** 3) for _ in range(count)]


def _day_and_night(dice: Random, count: int) -> list[int]:
    day = 86_400
    return [
        BIRTH + dice.randrange(SPAN // day) * day + int(dice.gauss(14, 3) * 3_600)
        for _ in range(count)
    ]


def _billing(dice: Random, count: int) -> list[int]:
    """Half of everything on the first of the month, hundreds in a second; the rest all day."""
    month = SPAN // 36
    runs = [BIRTH + dice.randrange(36) * month + dice.randrange(30) for _ in range(count // 2)]
    return runs + _steady(dice, count - len(runs))


def _imported(dice: Random, count: int) -> list[int]:
    """A migration brought most of it in one night, years ago."""
    night = [BIRTH + YEAR + dice.randrange(3_600) for _ in range(count * 7 // 10)]
    return night + _steady(dice, count - len(night))


def _gaps(dice: Random, count: int) -> list[int]:
    """Busy weeks, silent months."""
    weeks = [BIRTH + n * SPAN // 9 for n in range(9)]
    return [dice.choice(weeks) + dice.randrange(7 * 86_400) for _ in range(count)]


_SHAPES = [_steady, _growing, _shrinking, _day_and_night, _billing, _imported, _gaps]


@pytest.mark.parametrize("concurrency", [4, 12])
@pytest.mark.parametrize("known", [True, False], ids=["birth known", "birth unknown"])
@pytest.mark.parametrize("shape", _SHAPES, ids=lambda s: s.__name__.strip("_"))
def test_a_long_list_costs_at_most_a_twentieth_more_than_it_needs(
    shape: Callable[[Random, int], list[int]], known: bool, concurrency: int
) -> None:
    dice = Random(5)
    stripe = StripeList(shape(dice, 100_000))
    copier = Copier(stripe, account_created=BIRTH - 86_400 if known else 1_262_304_000)
    copier.run(dice, concurrency=concurrency)
    assert copier.rows == set(stripe.objects)
    assert copier.requests <= 1.05 * 1_000 + 5


@pytest.mark.parametrize("shape", _SHAPES, ids=lambda s: s.__name__.strip("_"))
def test_a_dense_page_does_not_make_a_list_seem_endless(
    shape: Callable[[Random, int], list[int]],
) -> None:
    """A page of an import is a hundred objects of one second: at that density a year is a billion pages."""
    dice = Random(5)
    copier = Copier(StripeList(shape(dice, 20_000)), account_created=BIRTH - 86_400)
    estimates = []
    while copier.step(dice, concurrency=12):
        estimates.append(copier.slices.remaining())
    assert max(estimates) <= 20 * 200
