"""Who refers to whom, as arithmetic both ways.

A relation maps the index of a referring object to the index of what it refers to, and back to the
range of those that refer to one. All are monotone, so they can be chained and a chain still turns
back into one range: `?customer=` finds its charges without looking at any other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol


class Relation(Protocol):
    """From `index` of the referring table to the target's index (None: refers to nothing)."""

    def to(self, index: int) -> int | None: ...
    def back(self, target: int) -> range: ...


class Even:
    """`count` objects spread evenly over `targets`, in order."""

    def __init__(self, count: int, targets: int) -> None:
        self._count = count
        self._targets = targets

    def to(self, index: int) -> int | None:
        return index * self._targets // self._count if self._targets else None

    def back(self, target: int) -> range:
        if not self._targets:
            return range(0)
        first = -(-target * self._count // self._targets)
        return range(first, -(-(target + 1) * self._count // self._targets))


class Uneven:
    """Children per parent follow a repeating pattern, such as (1, 2, 1, 12, 300)."""

    def __init__(self, pattern: Sequence[int], parents: int) -> None:
        self._parents = parents
        self._period = len(pattern)
        self._sums = [0, *accumulate(pattern)]
        self._total = self._sums[-1]
        self.count = parents // self._period * self._total + self._sums[parents % self._period]

    def to(self, index: int) -> int | None:
        turn, rest = divmod(index, self._total)
        return turn * self._period + bisect_right(self._sums, rest) - 1

    def back(self, target: int) -> range:
        turn, rest = divmod(target, self._period)
        base = turn * self._total
        return range(base + self._sums[rest], base + self._sums[rest + 1])


class Chain:
    """One relation after another: a charge's payment intent's customer."""

    def __init__(self, *links: Relation) -> None:
        self._links = links

    def to(self, index: int) -> int | None:
        at: int | None = index
        for link in self._links:
            if at is None:
                return None
            at = link.to(at)
        return at

    def back(self, target: int) -> range:
        reach = range(target, target + 1)
        for link in reversed(self._links):
            if not reach:
                return range(0)
            first, last = link.back(reach[0]), link.back(reach[-1])
            reach = range(first.start, last.stop)
        return reach


class FirstBack:
    """The first of those that refer to a target: a customer's first payment method."""

    def __init__(self, relation: Relation) -> None:
        self._relation = relation

    def to(self, index: int) -> int | None:
        found = self._relation.back(index)
        return found.start if found else None

    def back(self, target: int) -> range:
        owner = self._relation.to(target)
        return range(0) if owner is None else range(owner, owner + 1)

    def written_out(self, count: int) -> dict[int, int]:
        """The whole relation, for `count` referring objects that are few beside their targets."""
        made: dict[int, int] = {}
        for index in range(count):
            target = self._relation.to(index)
            if target is not None:
                made.setdefault(target, index)
        return made


class Interleaved:
    """One table fed by several: balance transactions come from charges, refunds, payouts ...

    Of each hundred, `pattern[r]` names the source of the r-th (None: from nothing).
    """

    def __init__(self, pattern: Sequence[str | None], counts: dict[str, int], count: int) -> None:
        self._pattern = tuple(pattern)
        self._places = {
            name: [n for n, source in enumerate(pattern) if source == name] for name in counts
        }
        ranks: dict[str | None, int] = {}
        self._ranks: list[int] = []
        for source in pattern:
            self._ranks.append(ranks.get(source, 0))
            ranks[source] = ranks.get(source, 0) + 1
        self._counts = counts
        self._count = count

    def source(self, index: int) -> tuple[str, int] | None:
        """The table and the index there that entry `index` comes from."""
        turn, rest = divmod(index, len(self._pattern))
        name = self._pattern[rest]
        if name is None:
            return None
        at = turn * len(self._places[name]) + self._ranks[rest]
        return (name, at) if at < self._counts[name] else None

    def entry(self, name: str, index: int) -> int | None:
        """The entry that `index` of table `name` made."""
        places = self._places.get(name)
        if not places:
            return None
        turn, rest = divmod(index, len(places))
        at = turn * len(self._pattern) + places[rest]
        return at if at < self._count else None
