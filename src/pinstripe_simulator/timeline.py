"""When each base object was created: a monotone function of its index.

An account's life is uneven: it grows, it has quiet weeks and busy hours, and now and then a second
holds more than a hundred objects of one type (a page cannot be split inside a second). All types
share the account's rhythm, so that an object and the one it refers to are about the same age.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import lru_cache
from random import Random

_SEGMENTS = 40
_BURSTS_FROM = 350
"""Objects of a type from which on one second holds more than a page of 100."""
_QUIET = (7, 8, 21, 33)
"""Segments of the account's life in which next to nothing happened."""


class Timeline:
    """`count` objects between `start` and `end` (Unix seconds), oldest first."""

    def __init__(self, count: int, *, start: int, end: int, seed: int, name: str) -> None:
        self.count = count
        self._firsts: list[int] = []
        self._times: list[int] = []
        self._sizes: list[int] = []
        self._lasting: list[int] = []
        self._lasts: list[int] = []
        """`created` of the last object of each stretch."""
        step = (end - start) / _SEGMENTS
        bursts = _bursts(count, Random(f"{seed}/{name}/bursts"))  # noqa: S311 - a dice
        calm = count - sum(bursts.values())
        begun, at, calmly = 0, 0.0, 0
        for number, share in enumerate(_rhythm(seed)):
            at += share
            upto = calm if number == _SEGMENTS - 1 else round(calm * at)
            size, calmly = upto - calmly, upto
            opened = start + int(number * step)
            half = int(step) // 2
            self._append(size // 2, begun, opened, half)
            begun += size // 2
            burst = bursts.get(number, 0)
            self._append(burst, begun, opened + half, 0)
            begun += burst
            self._append(size - size // 2, begun, opened + half, half - 1)
            begun += size - size // 2

    def _append(self, size: int, first: int, time: int, lasting: int) -> None:
        if size > 0:
            self._firsts.append(first)
            self._times.append(time)
            self._sizes.append(size)
            self._lasting.append(lasting)
            self._lasts.append(time + (size - 1) * lasting // size)

    def created(self, index: int) -> int:
        """Unix seconds of the object at `index`."""
        at = bisect_right(self._firsts, index) - 1
        return self._times[at] + ((index - self._firsts[at]) * self._lasting[at] // self._sizes[at])

    def rank(self, time: int) -> int:
        """How many objects were created before `time`."""
        at = bisect_left(self._lasts, time)
        if at == len(self._lasts):
            return self.count
        after = time - self._times[at]
        if after <= 0:
            return self._firsts[at]
        # The smallest k whose `k * lasting // size` reaches `after`.
        return self._firsts[at] - (-after * self._sizes[at] // self._lasting[at])


def _bursts(count: int, dice: Random) -> dict[int, int]:
    """Segment -> how many objects its middle second holds, all above a page."""
    if count < _BURSTS_FROM:
        return {}
    places = dice.sample(range(_SEGMENTS), min(12, 1 + count // 20_000))
    return {n: min(101 + dice.randrange(220), count // 3) for n in places}


@lru_cache
def _rhythm(seed: int) -> list[float]:
    """The share of all objects that falls into each segment of the account's life; sums to 1."""
    dice = Random(f"{seed}/rhythm")  # noqa: S311 - a dice, not a secret
    weights = [(1 + n) * (0.5 + dice.random()) for n in range(_SEGMENTS)]
    for n in _QUIET:
        weights[n] *= 0.02
    total = sum(weights)
    return [w / total for w in weights]
