"""The time ranges of one list, and how they are cut so that several requests can run at once.

Pure, no I/O. A list is paged from new to old. One range can only be paged in sequence (each page
needs the last id of the one before), so a long list is cut into ranges of `created`, each paged by
itself. Every cut may cost one page that is not full; so cuts are made where work is waiting and a
request is free, in pieces of an estimated size, never blindly.

The bottom of an open range is not known, nor how dense it is there. A cut of an open range therefore
takes a piece of about `PIECE_PAGES` at today's density off its top and leaves the rest open; the first
page of the rest tells how dense it is. Pieces grow, so that a list of any length takes few of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pinstripe.client.pagination import PAGE

PIECE_PAGES = 24
"""Pages of the first piece: 4 % of a page lost at most, by one page that is not full."""
WORTH_CUTTING = 6.0
"""Estimated pages below which a range is left to whoever pages it."""


@dataclass(slots=True)
class Slice:
    """Objects with `gte <= created < lt`, of which those after the object `after` are still to come.

    `low` is the `created` of `after`; `density` objects a second, as the last page showed it.
    """

    number: int
    gte: int | None = None
    lt: int | None = None
    after: str | None = None
    low: int | None = None
    density: float = 0.0
    busy: bool = False
    pages: int = 0
    passed: set[str] = field(default_factory=set)
    """Every `after` so far: a list that comes back to one would never end."""

    @property
    def top(self) -> int | None:
        """Nothing newer than this is still to come."""
        return self.low if self.low is not None else self.lt

    def remaining(self, birth: int) -> float:
        """Estimated pages to come, if the objects begin at `birth` and stay as dense as they are."""
        if self.pages == 0 and self.density <= 0:
            return 1.0
        top, bottom = self.top, self.gte if self.gte is not None else birth
        if top is None:
            return 1.0
        return max(self.density * (top - bottom) / PAGE, 0.0) + 0.5


@dataclass(slots=True)
class SliceSet:
    """The ranges of one list that are not done. `birth`: a second before which nothing can be."""

    birth: int = 0
    open: dict[int, Slice] = field(default_factory=dict)
    _next: int = 0
    _piece: float = PIECE_PAGES

    @classmethod
    def whole(cls, birth: int = 0) -> SliceSet:
        """One range that holds everything."""
        ranges = cls(birth)
        ranges.add(None, None)
        return ranges

    def add(
        self,
        gte: int | None,
        lt: int | None,
        *,
        after: str | None = None,
        low: int | None = None,
        density: float = 0.0,
    ) -> Slice:
        made = Slice(self._next, gte, lt, after, low, density)
        self.open[made.number] = made
        self._next += 1
        return made

    def idle(self) -> Slice | None:
        """The range that nobody pages and that has most to come."""
        waiting = [r for r in self.open.values() if not r.busy]
        return max(waiting, key=self._remaining, default=None)

    def remaining(self) -> float:
        return sum(self._remaining(r) for r in self.open.values())

    def split(self) -> Slice | None:
        """Cuts the range with most to come and gives its older part; None if no cut is worth a page."""
        longest = max(self.open.values(), key=self._remaining, default=None)
        if longest is None or longest.pages == 0 or longest.density <= 0:
            return None
        if longest.top is None or self._remaining(longest) < WORTH_CUTTING:
            return None
        at = self._split_at(longest, longest.top)
        # The page that is under way reaches down from the top; the cut must lie below it.
        lowest_reached = longest.top - 2 * PAGE / longest.density
        bottom = longest.gte if longest.gte is not None else self.birth
        if not bottom < at < lowest_reached:
            return None
        older = self.add(longest.gte, at, density=longest.density)
        longest.gte = at
        return older

    def _remaining(self, one: Slice) -> float:
        return one.remaining(self.birth)

    def _split_at(self, longest: Slice, top: int) -> int:
        if longest.gte is not None:
            return (top + longest.gte) // 2
        at = int(top - self._piece * PAGE / longest.density)
        if at <= self.birth:
            return (top + self.birth) // 2
        self._piece *= 1.5
        return at
