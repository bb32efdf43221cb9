"""One list of Stripe's on its way into the database: what to ask next, and what is durable.

A `Listing` hands out `Claim`s (one request each), takes the pages, and is the `Progress` that the mirror
saves. Its position is the set of ranges that are not durable yet, as JSON:

    {"table": "charge", "ceiling": 1790000000, "todo": [[gte, lt, after, low], ...]}

so a restart goes on exactly there. Ranges that a claim is cut from are told apart by number; a number
lives only as long as the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pinstripe.catalog.endpoints import ListEndpoint, Param
from pinstripe.errors import Drifted, PinstripeError
from pinstripe.rows.decode import StripeObject
from pinstripe.source.page import list_request
from pinstripe.store.cursors import UNEXPANDED, Checkpoint, State, permission_of
from pinstripe.sync.ranges import Range, RangeSet

Bounds = tuple[int | None, int | None, str | None, int | None]
"""(gte, lt, after, low) of a range that is not done."""


@dataclass(frozen=True, slots=True)
class Step:
    """A page is durable: its range goes on after `after`, or is done."""

    range: int
    after: str | None
    low: int | None
    done: bool
    rows: int


@dataclass(slots=True)
class Claim:
    """One request to make. `last` is the future of the page before it in the same range."""

    listing: Listing
    range: Range
    path: str
    params: list[Param]
    is_received: bool = False


@dataclass(slots=True)
class Listing:
    """The state of one list, without a parent. `table` is the table of what it lists."""

    endpoint: ListEndpoint
    table: str
    ranges: RangeSet
    durable: dict[int, Bounds] = field(default_factory=dict)
    ceiling: int = 0
    state: State = "running"
    reason: str = ""
    remedy: str = ""
    code: str = ""
    permission: str = ""
    note: str = ""
    expand: tuple[str, ...] = ()
    rows: int = 0
    requests: int = 0
    seconds: float = 0.0
    in_flight: int = 0
    undurable: int = 0
    as_of: float | None = None

    @classmethod
    def fresh(cls, endpoint: ListEndpoint, table: str, *, ceiling: int, birth: int = 0) -> Listing:
        """A list of which nothing is read yet; `birth` as in `RangeSet`."""
        made = cls(endpoint, table, RangeSet.whole(birth), ceiling=ceiling, expand=endpoint.expand)
        made.durable = {r.number: (None, None, None, None) for r in made.ranges.open.values()}
        return made

    @classmethod
    def resumed(
        cls, endpoint: ListEndpoint, table: str, saved: Checkpoint, *, birth: int = 0
    ) -> Listing:
        """Goes on where `saved` stands."""
        position = saved.position
        if not isinstance(position, dict) or "todo" not in position:
            raise Drifted(
                f"The cursor of {saved.stream} cannot be read.",
                hint="Delete its row in pinstripe.cursor; the list is then read anew.",
            )
        made = cls(endpoint, table, RangeSet(birth), expand=endpoint.expand)
        made.ceiling = int(position.get("ceiling", 0))
        made.rows, made.requests, made.seconds = saved.rows, saved.requests, saved.seconds
        made.as_of = saved.as_of
        for gte, lt, after, low in position["todo"]:
            opened = made.ranges.add(gte, lt, after=after, low=low)
            made.durable[opened.number] = (gte, lt, after, low)
        if saved.state == "done":
            made.state = "done"
        return made

    @classmethod
    def tail(
        cls, endpoint: ListEndpoint, table: str, saved: Checkpoint, *, since: int, ceiling: int
    ) -> Listing:
        """Reads again what was created since a second, of a list that is `saved` as done."""
        made = cls(endpoint, table, RangeSet(since), ceiling=ceiling, expand=endpoint.expand)
        made.rows, made.requests, made.seconds = saved.rows, saved.requests, saved.seconds
        opened = made.ranges.add(since, None)
        made.durable[opened.number] = (since, None, None, None)
        return made

    # What to ask.

    def remaining(self) -> float:
        return self.ranges.remaining()

    def claim(self, *, cut: bool) -> Claim | None:
        """The next request of this list; `cut` allows to cut a range for it."""
        chosen = self.ranges.idle()
        if chosen is None and cut and self.endpoint.created:
            chosen = self.ranges.cut()
            if chosen is not None:
                self._cut_durable(chosen)
        if chosen is None:
            return None
        chosen.busy = True
        self.in_flight += 1
        return Claim(self, chosen, *self.request(chosen))

    def request(self, wanted: Range) -> tuple[str, list[Param]]:
        """(path, parameters) of the next page of a range."""
        params = list(self.endpoint.params)
        if wanted.gte is not None:
            params.append(("created[gte]", str(wanted.gte)))
        if wanted.lt is not None:
            params.append(("created[lt]", str(wanted.lt)))
        return list_request(
            self.endpoint, self.endpoint.path, params, after=wanted.after, expand=self.expand
        )

    # What came back.

    def received(
        self, wanted: Range, objects: Sequence[StripeObject], *, has_more: bool, after: str | None
    ) -> Step:
        """Takes a page in: the range moves on, the step is for when the page is durable."""
        wanted.pages += 1
        times = [c for c in map(_created, objects) if c is not None]
        low = times[-1] if times else wanted.low
        if len(times) > 1:
            wanted.density = len(times) / max(times[0] - times[-1], 1)
        if has_more and (after is None or after == wanted.after or after in wanted.passed):
            raise Drifted(
                f"The list {self.endpoint.path} says that it goes on, but not from where.",
                hint="Its pages cannot be followed; the rest of the account is synced all the same.",
            )
        # A cut below this page may have been overtaken by it: then the range ends here. Not where the
        # page is out of order (objects on a test clock have a time of their own): it proves nothing.
        overtaken = wanted.gte is not None and low is not None and low < wanted.gte
        if overtaken and any(a < b for a, b in pairwise(times)):
            overtaken = False
        done = not has_more or overtaken
        if after is not None:
            wanted.passed.add(after)
        wanted.after, wanted.low = after, low
        if done:
            self.ranges.open.pop(wanted.number, None)
        self.rows += len(objects)
        return Step(wanted.number, after, low, done, len(objects))

    def restart(self, wanted: Range) -> None:
        """The object behind the cursor is gone: go on from its second, or from the start."""
        if wanted.low is not None and self.endpoint.created:
            wanted.lt = wanted.low + 1
        wanted.after = None
        wanted.passed.clear()

    def refuse(self, error: PinstripeError, state: State) -> None:
        self.state, self.reason, self.remedy = state, error.message, error.hint
        self.code, self.permission = error.slug, permission_of(error)
        self.ranges.open.clear()

    @property
    def finished(self) -> bool:
        """Nothing to ask and nothing under way."""
        return self.state != "running" or (
            not self.ranges.open and self.in_flight == 0 and self.undurable == 0
        )

    # Progress: what the mirror saves.

    def checkpoint(self, steps: Sequence[object]) -> Checkpoint:
        todo = _advance(self.durable, steps)
        state: State = self.state if todo else "done"
        return self._checkpoint(todo, state)

    def commit(self, steps: Sequence[object]) -> None:
        self.durable = _advance(self.durable, steps)
        if not self.durable and self.state == "running":
            self.state = "done"

    def final(self) -> Checkpoint:
        """What is saved when the list ended without being read: refused, or failed."""
        return self._checkpoint(self.durable, self.state)

    def _checkpoint(self, todo: dict[int, Bounds], state: State) -> Checkpoint:
        position = {"table": self.table, "ceiling": self.ceiling, "todo": list(todo.values())}
        return Checkpoint(
            stream=self.endpoint.stream,
            state=state,
            position=position,
            reason=self.reason or self.note,
            remedy=self.remedy,
            code=self.code or (UNEXPANDED if self.note else ""),
            permission=self.permission,
            rows=self.rows,
            requests=self.requests,
            seconds=self.seconds,
            as_of=self.as_of if self.as_of is not None else float(self.ceiling),
        )

    def _cut_durable(self, older: Range) -> None:
        """The same cut in what is durable: together both halves say what the whole said."""
        for number, (gte, lt, after, low) in list(self.durable.items()):
            if gte == older.gte and self._owns(number, older):
                self.durable[number] = (older.lt, lt, after, low)
        self.durable[older.number] = (older.gte, older.lt, None, None)

    def _owns(self, number: int, older: Range) -> bool:
        newer = self.ranges.open.get(number)
        return newer is not None and newer.gte == older.lt and number != older.number


def _created(obj: StripeObject) -> int | None:
    """The second that the list's `created` filter looks at; invoice items call it `date`."""
    moment = obj.get("created", obj.get("date"))
    return moment if isinstance(moment, int) else None


def _advance(durable: dict[int, Bounds], steps: Sequence[object]) -> dict[int, Bounds]:
    moved = dict(durable)
    for step in steps:
        if not isinstance(step, Step) or step.range not in moved:
            continue
        if step.done:
            del moved[step.range]
        else:
            gte, lt, _, _ = moved[step.range]
            moved[step.range] = (gte, lt, step.after, step.low)
    return moved
