"""One list as Stripe serves it, and a process that copies it: for tests of `SliceSet` without I/O.

`StripeList` holds (created, id) in Stripe's order. `Copier` makes requests as the scheduler and
`ListStream` do, in any interleaving: pages come back late, are queued per slice in order, and commit in the
order of one lane. `kill` forgets all but what was committed.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from random import Random

import msgspec

from pinstripe.catalog.endpoints import ListEndpoint
from pinstripe.client.response import StripeObject
from pinstripe.sync.backfill.slices import WHOLE, Bounds, PageCommit, Slice, SliceSet

CHARGES = ListEndpoint("/v1/charges", ("charge",), 1, created=True, takes_limit=True)
PLAIN = ListEndpoint("/v1/coupons", ("coupon",), 1, created=False, takes_limit=True)


class Gone(Exception):
    """The cursor object does not exist any more."""


class StripeList:
    """Objects of one type, newest first; what is made in the same second comes in order of making."""

    def __init__(self, seconds: list[int]) -> None:
        self._made = len(seconds)
        # Ascending by (created, number): the reverse of the list's order.
        self.objects = sorted((second, number) for number, second in enumerate(seconds))
        self.deleted: set[tuple[int, int]] = set()

    def create(self, second: int) -> None:
        self.objects.append((second, self._made))
        self._made += 1

    def delete(self, obj: tuple[int, int]) -> None:
        self.objects.remove(obj)
        self.deleted.add(obj)

    def page(self, params: list[tuple[str, str]]) -> tuple[list[tuple[int, int]], bool]:
        """(objects, has_more) for the parameters of one request."""
        asked = dict(params)
        low, high = 0, len(self.objects)
        if "created[gte]" in asked:
            low = bisect_left(self.objects, (int(asked["created[gte]"]), -1))
        if "created[lt]" in asked:
            high = bisect_left(self.objects, (int(asked["created[lt]"]), -1))
        if "starting_after" in asked:
            second, number = map(int, asked["starting_after"].split("/"))
            at = bisect_left(self.objects, (second, number))
            if at == len(self.objects) or self.objects[at] != (second, number):
                raise Gone
            high = min(high, at)
        start = max(low, high - int(asked.get("limit", "10")))
        return self.objects[start:high][::-1], start > low


@dataclass(slots=True)
class _Page:
    slice: Slice
    objects: list[tuple[int, int]]
    has_more: bool
    gone: bool = False


@dataclass
class Copier:
    """Copies `source` by a `SliceSet`. `saved` is what the database has of the list's cursor."""

    source: StripeList
    endpoint: ListEndpoint = CHARGES
    account_created: int = 0
    requests: int = 0
    rows: set[tuple[int, int]] = field(default_factory=set)
    saved: bytes | None = None

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A new process: goes on from the cursor that the database has."""
        todo = [WHOLE] if self.saved is None else msgspec.json.decode(self.saved, type=list[Bounds])
        self.slices = SliceSet.load(self.endpoint, todo, self.account_created)
        self.in_flight: list[_Page] = []
        self.received: dict[int, list[tuple[PageCommit, list[tuple[int, int]]]]] = {}
        self.lane: list[tuple[PageCommit, list[tuple[int, int]]]] = []

    kill = start

    def ask(self) -> bool:
        """Starts a request, if the list wants one. Stripe reads the list now."""
        claimed = self.slices.claim()
        if claimed is None:
            return False
        self.requests += 1
        try:
            objects, has_more = self.source.page(self.slices.request(claimed)[1])
            self.in_flight.append(_Page(claimed, objects, has_more))
        except Gone:
            self.in_flight.append(_Page(claimed, [], False, gone=True))
        return True

    def receive(self, number: int = 0) -> None:
        """An answer arrives."""
        page = self.in_flight.pop(number)
        claimed = page.slice
        if page.gone:
            self.slices.restart(claimed)
        else:
            objects: list[StripeObject] = [{"created": c} for c, _ in page.objects]
            after = "{}/{}".format(*page.objects[-1]) if page.objects else None
            step = self.slices.received(claimed, objects, has_more=page.has_more, after=after)
            self.received.setdefault(claimed.number, []).append((step, page.objects))
        claimed.busy = False

    def submit(self, dice: Random) -> None:
        """One page is handed to the mirror: the first of any slice."""
        number = dice.choice(list(self.received))
        self.lane.append(self.received[number].pop(0))
        if not self.received[number]:
            del self.received[number]

    def commit(self, count: int) -> None:
        """The first pages of the lane become durable, with the cursor."""
        batch, self.lane = self.lane[:count], self.lane[count:]
        steps = [step for step, _ in batch]
        self.slices.durable = self.slices.durable_after(steps)
        self.saved = msgspec.json.encode(list(self.slices.durable.values()))
        for _, objects in batch:
            self.rows.update(objects)

    @property
    def finished(self) -> bool:
        return not self.slices.open and not self.in_flight and not self.received and not self.lane

    def run(self, dice: Random, *, concurrency: int) -> None:
        """To the end, with up to so many requests at once; answers come in any order."""
        while self.step(dice, concurrency=concurrency):
            pass

    def step(self, dice: Random, *, concurrency: int) -> bool:
        """Start what requests there may be, and take one answer; False if all is read."""
        if self.finished:
            return False
        while len(self.in_flight) < concurrency and self.ask():
            pass
        if self.in_flight:
            self.receive(dice.randrange(len(self.in_flight)))
        while self.received:
            self.submit(dice)
        if self.lane:
            self.commit(len(self.lane))
        return True
