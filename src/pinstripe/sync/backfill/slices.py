"""What of one list is still to be read: its time slices, and how they are split between requests.

Pure, no I/O. A list is paged from new to old, and a page needs the last id of the page before it, so one
slice can only be read in sequence. A long list is therefore split into slices of `created`, each paged on
its own. A split may cost one page that is not full, so a slice is split only when a request is free, into
pieces of an estimated size.

Neither the oldest second of an open slice nor the density there is known. A split takes a piece of about
`PIECE_PAGES` at today's density off the top and leaves the rest open; the first page of the rest shows its
density. Pieces grow, so that a list of any length takes few of them.

The set also keeps what is not durable yet, as the cursor saves it: `[[gte, lt, after, low], ...]`. A
restart resumes from exactly there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pinstripe.catalog.endpoints import PAGE, ListEndpoint, Param, list_request
from pinstripe.client.response import StripeObject
from pinstripe.errors import Drifted

PIECE_PAGES = 24
"""Pages of the first piece: 4 % of a page lost at most, by one page that is not full."""
WORTH_SPLITTING = 6.0
"""Estimated pages below which a slice is not split."""
_DENSEST = 3.0
"""How many times as dense as all pages so far a slice may be when what is left is estimated: a page of an
import has a hundred objects in a second."""

Bounds = tuple[int | None, int | None, str | None, int | None]
"""(gte, lt, after, low) of a slice that is not durable."""

WHOLE: Bounds = (None, None, None, None)


@dataclass(slots=True)
class Slice:
    """Objects with `gte <= created < lt`; those after the object `after` are still to be read.

    `low` is the `created` of `after`; `density` is objects a second on the last page. Slices are identified
    by `number`, which is valid in this process only.
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
    """Every `after` so far: a list that returns to one would never end."""

    @property
    def top(self) -> int | None:
        """Nothing newer than this is still to be read."""
        return self.low if self.low is not None else self.lt

    @property
    def is_unknown(self) -> bool:
        """No page has shown yet how much there is."""
        return self.pages == 0 and self.density <= 0

    def remaining(self, account_created: int, densest: float = math.inf) -> float:
        """Estimated pages still to be read, at the density of the last page, but at most at `densest`."""
        if self.is_unknown:
            return 1.0
        top, bottom = self.top, self.gte if self.gte is not None else account_created
        if top is None:
            return 1.0
        return max(min(self.density, densest) * (top - bottom) / PAGE, 0.0) + 0.5


@dataclass(frozen=True, slots=True)
class PageCommit:
    """A page becomes durable: its slice resumes after `after`, or is done."""

    slice: int
    after: str | None
    low: int | None
    done: bool
    rows: int


@dataclass(slots=True)
class SliceSet:
    """The slices of one list that are not done. No object is older than the second `account_created`."""

    endpoint: ListEndpoint
    account_created: int = 0
    open: dict[int, Slice] = field(default_factory=dict)
    durable: dict[int, Bounds] = field(default_factory=dict)
    """What a restart would read: by slice, the bounds as of its last durable page."""
    _next: int = 0
    _piece: float = PIECE_PAGES
    _seen: int = 0
    _covered_s: float = 0.0
    """How many objects all pages had, and how many seconds of `created` they covered."""

    @classmethod
    def load(
        cls, endpoint: ListEndpoint, todo: Sequence[Bounds] = (WHOLE,), account_created: int = 0
    ) -> SliceSet:
        """The slices that a cursor holds; without one, a single slice that holds everything."""
        slices = cls(endpoint, account_created)
        for bounds in todo:
            slices._add(*bounds)
        return slices

    @property
    def has_unknown(self) -> bool:
        return any(s.is_unknown for s in self.open.values())

    def remaining(self) -> float:
        """Estimated pages still to be read."""
        densest = _DENSEST * self._seen / max(self._covered_s, 1.0)
        return sum(s.remaining(self.account_created, densest) for s in self.open.values())

    def claim(self) -> Slice | None:
        """Return the idle slice with most to read, or split one; None if no split is worth a page."""
        idle = [s for s in self.open.values() if not s.busy]
        chosen = max(idle, key=self._remaining) if idle else self._split()
        if chosen is not None:
            chosen.busy = True
        return chosen

    def request(self, chosen: Slice, expand: Sequence[str] = ()) -> tuple[str, list[Param]]:
        """(path, parameters) of the next page of a slice."""
        params = list(self.endpoint.params)
        # Without a filter the list is read from its top until `received` finds the end.
        if self.endpoint.created and chosen.gte is not None:
            params.append(("created[gte]", str(chosen.gte)))
        if self.endpoint.created and chosen.lt is not None:
            params.append(("created[lt]", str(chosen.lt)))
        path = self.endpoint.path
        return list_request(self.endpoint, path, params, after=chosen.after, expand=expand)

    def received(
        self, chosen: Slice, objects: Sequence[StripeObject], *, has_more: bool, after: str | None
    ) -> PageCommit:
        """Advance a slice past a page; return the step to pass to `commit` once the page is durable.

        Raises Drifted if the list continues without a cursor, or returns to an earlier one.
        """
        chosen.pages += 1
        times = [c for c in map(_created, objects) if c is not None]
        low = times[-1] if times else chosen.low
        if times:
            self._seen += len(times)
            self._covered_s += max((chosen.top or times[0]) - times[-1], 0)
        if len(times) > 1:
            chosen.density = len(times) / max(times[0] - times[-1], 1)
        if has_more and (after is None or after == chosen.after or after in chosen.passed):
            raise Drifted(
                f"The list {self.endpoint.path} says that it goes on, but not from where.",
                hint="Its pages cannot be followed; the rest of the account is synced all the same.",
            )
        # A page that was under way may reach below a split made meanwhile; then its slice ends here. A page
        # out of order proves nothing: objects on a test clock have a time of their own.
        overtaken = chosen.gte is not None and low is not None and low < chosen.gte
        if overtaken and any(a < b for a, b in pairwise(times)):
            overtaken = False
        done = not has_more or overtaken
        if after is not None:
            chosen.passed.add(after)
        chosen.after, chosen.low = after, low
        if done:
            self.open.pop(chosen.number, None)
        return PageCommit(chosen.number, after, low, done, len(objects))

    def restart(self, chosen: Slice) -> None:
        """The object behind the cursor was deleted: read on from its second, or from the start."""
        if chosen.low is not None and self.endpoint.created:
            chosen.lt = chosen.low + 1
        chosen.after = None
        chosen.passed.clear()

    def durable_after(self, steps: Sequence[object]) -> dict[int, Bounds]:
        """Return what `durable` will be once these steps are committed. Changes nothing."""
        moved = dict(self.durable)
        for step in steps:
            if not isinstance(step, PageCommit) or step.slice not in moved:
                continue
            if step.done:
                del moved[step.slice]
            else:
                gte, lt, _, _ = moved[step.slice]
                moved[step.slice] = (gte, lt, step.after, step.low)
        return moved

    def _add(
        self,
        gte: int | None,
        lt: int | None,
        after: str | None = None,
        low: int | None = None,
        density: float = 0.0,
    ) -> Slice:
        added = Slice(self._next, gte, lt, after, low, density)
        self.open[added.number] = added
        self.durable[added.number] = (gte, lt, after, low)
        self._next += 1
        return added

    def _split(self) -> Slice | None:
        """Split the slice with most to read and return its older part; None if that is not worth a page."""
        longest = max(self.open.values(), key=self._remaining, default=None)
        if longest is None or not self.endpoint.created:
            return None
        if longest.pages == 0 or longest.density <= 0 or longest.top is None:
            return None
        if self._remaining(longest) < WORTH_SPLITTING:
            return None
        at = self._split_at(longest, longest.top)
        # The page that is under way reaches down from the top; the split must lie below it.
        lowest_reached = longest.top - 2 * PAGE / longest.density
        bottom = longest.gte if longest.gte is not None else self.account_created
        if not bottom < at < lowest_reached:
            return None
        older = self._add(longest.gte, at, density=longest.density)
        longest.gte = at
        _, lt, after, low = self.durable[longest.number]
        self.durable[longest.number] = (at, lt, after, low)
        return older

    def _remaining(self, one: Slice) -> float:
        return one.remaining(self.account_created)

    def _split_at(self, longest: Slice, top: int) -> int:
        if longest.gte is not None:
            return (top + longest.gte) // 2
        at = int(top - self._piece * PAGE / longest.density)
        if at <= self.account_created:
            return (top + self.account_created) // 2
        self._piece *= 1.5
        return at


def _created(obj: StripeObject) -> int | None:
    """The second that the list's `created` filter compares; invoice items call it `date`."""
    created = obj.get("created", obj.get("date"))
    return created if isinstance(created, int) else None
