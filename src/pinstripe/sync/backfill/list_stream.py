"""One list of Stripe's on its way into the database: what to ask next, and what is durable.

A `Listing` hands out `Claim`s (one request each), takes the pages, and is the `Progress` that the mirror
saves. Its position is the set of ranges that are not durable yet, as JSON:

    {"table": "charge", "ceiling": 1790000000, "todo": [[gte, lt, after, low], ...]}

so a restart goes on exactly there. Ranges that a claim is cut from are told apart by number; a number
lives only as long as the process.

Pages one list: makes the request of a claim, writes the page, and keeps the pages in order.

A page is free to be followed by the next as soon as it is decoded, before it is durable; but within a
range pages are handed to the mirror strictly one after the other, since a cursor vouches for all
before it. An answer of Stripe's that refuses the list ends it. Trouble is none: the same page is requested
again after growing pauses, and a list that meets it again and again ends as failed, alone and visibly,
where it stands; `Relist` goes on from there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import structlog

from pinstripe.catalog.endpoints import ListEndpoint, Param
from pinstripe.client.decode import StripeObject
from pinstripe.client.pagination import list_request, read_list
from pinstripe.errors import Drifted, LostLease, NotFound, PinstripeError, Unwritable, WrongKey
from pinstripe.rows.as_of import AsOf, as_of_response
from pinstripe.rows.extract import RowSet
from pinstripe.source.source import BACKFILL, Source
from pinstripe.store.cursors import UNEXPANDED, Checkpoint, State, permission_of
from pinstripe.sync.backfill.slices import Slice, SliceSet

Bounds = tuple[int | None, int | None, str | None, int | None]
"""(gte, lt, after, low) of a range that is not done."""


@dataclass(frozen=True, slots=True)
class PageCommit:
    """A page is durable: its range goes on after `after`, or is done."""

    range: int
    after: str | None
    low: int | None
    done: bool
    rows: int


@dataclass(slots=True)
class PageRequest:
    """One request to make. `last` is the future of the page before it in the same range."""

    listing: ListState
    range: Slice
    path: str
    params: list[Param]
    is_received: bool = False


@dataclass(slots=True)
class ListState:
    """The state of one list, without a parent. `table` is the table of what it lists."""

    endpoint: ListEndpoint
    table: str
    ranges: SliceSet
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
    def fresh(
        cls, endpoint: ListEndpoint, table: str, *, ceiling: int, birth: int = 0
    ) -> ListState:
        """A list of which nothing is read yet; `birth` as in `RangeSet`."""
        made = cls(endpoint, table, SliceSet.whole(birth), ceiling=ceiling, expand=endpoint.expand)
        made.durable = {r.number: (None, None, None, None) for r in made.ranges.open.values()}
        return made

    @classmethod
    def resumed(
        cls, endpoint: ListEndpoint, table: str, saved: Checkpoint, *, birth: int = 0
    ) -> ListState:
        """Goes on where `saved` stands."""
        position = saved.position
        if not isinstance(position, dict) or "todo" not in position:
            raise Drifted(
                f"The cursor of {saved.stream} cannot be read.",
                hint="Delete its row in pinstripe.cursor; the list is then read anew.",
            )
        made = cls(endpoint, table, SliceSet(birth), expand=endpoint.expand)
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
    ) -> ListState:
        """Reads again what was created since a second, of a list that is `saved` as done."""
        made = cls(endpoint, table, SliceSet(since), ceiling=ceiling, expand=endpoint.expand)
        made.rows, made.requests, made.seconds = saved.rows, saved.requests, saved.seconds
        opened = made.ranges.add(since, None)
        made.durable[opened.number] = (since, None, None, None)
        return made

    # What to ask.

    def remaining(self) -> float:
        return self.ranges.remaining()

    def claim(self, *, cut: bool) -> PageRequest | None:
        """The next request of this list; `cut` allows to cut a range for it."""
        chosen = self.ranges.idle()
        if chosen is None and cut and self.endpoint.created:
            chosen = self.ranges.split()
            if chosen is not None:
                self._cut_durable(chosen)
        if chosen is None:
            return None
        chosen.busy = True
        self.in_flight += 1
        return PageRequest(self, chosen, *self.request(chosen))

    def request(self, wanted: Slice) -> tuple[str, list[Param]]:
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
        self, wanted: Slice, objects: Sequence[StripeObject], *, has_more: bool, after: str | None
    ) -> PageCommit:
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
        return PageCommit(wanted.number, after, low, done, len(objects))

    def restart(self, wanted: Slice) -> None:
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
        refetch = _advance(self.durable, steps)
        state: State = self.state if refetch else "done"
        return self._checkpoint(refetch, state)

    def commit(self, steps: Sequence[object]) -> None:
        self.durable = _advance(self.durable, steps)
        if not self.durable and self.state == "running":
            self.state = "done"

    def final(self) -> Checkpoint:
        """What is saved when the list ended without being read: refused, or failed."""
        return self._checkpoint(self.durable, self.state)

    def _checkpoint(self, refetch: dict[int, Bounds], state: State) -> Checkpoint:
        position = {"table": self.table, "ceiling": self.ceiling, "todo": list(refetch.values())}
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

    def _cut_durable(self, older: Slice) -> None:
        """The same cut in what is durable: together both halves say what the whole said."""
        for number, (gte, lt, after, low) in list(self.durable.items()):
            if gte == older.gte and self._owns(number, older):
                self.durable[number] = (older.lt, lt, after, low)
        self.durable[older.number] = (older.gte, older.lt, None, None)

    def _owns(self, number: int, older: Slice) -> bool:
        newer = self.ranges.open.get(number)
        return newer is not None and newer.gte == older.lt and number != older.number


def _created(obj: StripeObject) -> int | None:
    """The second that the list's `created` filter looks at; invoice items call it `date`."""
    moment = obj.get("created", obj.get("date"))
    return moment if isinstance(moment, int) else None


def _advance(durable: dict[int, Bounds], steps: Sequence[object]) -> dict[int, Bounds]:
    moved = dict(durable)
    for step in steps:
        if not isinstance(step, PageCommit) or step.range not in moved:
            continue
        if step.done:
            del moved[step.range]
        else:
            gte, lt, _, _ = moved[step.range]
            moved[step.range] = (gte, lt, step.after, step.low)
    return moved


_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_PAUSES_S = (1.0, 2.0, 5.0)
"""After trouble, on top of the client's own tries."""

_MOST_FOLLOWING = 3
"""Pages whose nested lists are being read: enough to keep that endpoint busy; more would only take the
places of other lists' requests."""


class ListStream:
    """Work on one `Listing`, for the dispatcher."""

    def __init__(
        self,
        listing: ListState,
        source: Source,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.listing = listing
        self._source = source
        self._clock = clock
        self._submitted: dict[int, asyncio.Future[None]] = {}
        self.has_children = False
        """Whether lists under parents wait for what this one lists."""
        self._following = 0
        self._nests = False
        self._troubles = 0
        self._not_before = float("-inf")
        self._changed: Callable[[], None] = lambda: None

    @property
    def endpoint(self) -> ListEndpoint:
        return self.listing.endpoint

    @property
    def in_flight(self) -> int:
        return self.listing.in_flight

    @property
    def finished(self) -> bool:
        return self.listing.finished

    @property
    def failed(self) -> bool:
        return self.listing.state == "failed"

    @property
    def urgent(self) -> bool:
        return self.has_children or self._nests or not self.endpoint.created

    def _priority(self) -> int:
        """A list that can only be read page after page must never wait for its turn as well."""
        if not self.endpoint.created:
            return BACKFILL - 2
        return BACKFILL - 1 if self.urgent else BACKFILL

    def remaining(self) -> float:
        return self.listing.remaining()

    def on_change(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def claim(self, *, cut: bool) -> Callable[[], asyncio.Task[None]] | None:
        """Starts the next request when called; None if there is nothing to ask now."""
        if self._following >= _MOST_FOLLOWING or self._clock() < self._not_before:
            return None
        claim = self.listing.claim(cut=cut)
        if claim is None:
            return None
        return lambda: asyncio.create_task(self._run(claim))

    async def _run(self, claim: PageRequest) -> None:
        listing, started = self.listing, self._clock()
        try:
            await self._page(claim)
        except (WrongKey, Unwritable, LostLease):
            # Not this list's trouble: nothing else can go on either.
            listing.state = "failed"
            raise
        except asyncio.CancelledError:
            if listing.state == "running":
                raise
            # An earlier page of this range failed and has said so; this one cannot count any more.
        except PinstripeError as error:
            if error.is_answer:
                self._refused(claim, error)
            else:
                self._troubled(claim, error)
        finally:
            listing.seconds += self._clock() - started

    def _troubled(self, claim: PageRequest, error: PinstripeError) -> None:
        """The page is requested again after a pause, unless it had come and could not be written."""
        listing, now = self.listing, self._clock()
        is_paused = now < self._not_before  # By another of the requests under way.
        if not claim.is_received and (is_paused or self._troubles < len(_PAUSES_S)):
            if not is_paused:
                self._not_before = now + _PAUSES_S[self._troubles]
                self._troubles += 1
            _log.info("backfill.trouble", stream=listing.endpoint.stream, error=error.message)
            return
        _log.warning("backfill.failed", stream=listing.endpoint.stream, error=error.message)
        listing.refuse(error, "failed")

    def _refused(self, claim: PageRequest, error: PinstripeError) -> None:
        listing = self.listing
        if any(name == "expand[]" for name, _ in claim.params):
            # The list itself may be readable, only not what it was asked to expand. Several requests
            # may be told so: the first one changes what is asked, all are asked again.
            if listing.expand:
                listing.note = f"Without {', '.join(listing.expand)}: {error.message}"
                listing.expand = ()
            return
        listing.refuse(error, "refused")

    async def _page(self, claim: PageRequest) -> None:
        listing, wanted = self.listing, claim.range
        try:
            found, truth, step = await self._receive(claim)
        except NotFound as error:
            if error.param != "starting_after" or wanted.after is None:
                raise
            listing.restart(wanted)
            return
        finally:
            wanted.busy = False
            listing.in_flight -= 1
            self._changed()
        self._troubles, claim.is_received = 0, True
        await self._write(wanted, found, truth, step)

    async def _receive(self, claim: PageRequest) -> tuple[RowSet, AsOf, PageCommit]:
        """Asks for a page and makes rows of it: its bytes and objects are not kept while rows wait."""
        listing = self.listing
        listing.requests += 1
        response = await self._source.stripe.get(
            claim.path,
            claim.params,
            endpoint=listing.endpoint.name,
            priority=self._priority(),
        )
        page = read_list(response, claim.path)
        found = self._source.extract(page.objects, {})
        step = listing.received(claim.range, page.objects, has_more=page.has_more, after=page.after)
        listing.undurable += 1
        return found, as_of_response(response), step

    async def _write(self, wanted: Slice, found: RowSet, truth: AsOf, step: PageCommit) -> None:
        """Hands a page to the mirror after the one before it, and waits until it is durable."""
        listing = self.listing
        before = self._submitted.get(wanted.number)
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._submitted[wanted.number] = mine
        try:
            # What a nested list holds must be there before a cursor vouches for this page.
            listing.requests += await self._follow(found)
            if before is not None:
                await before
            # Room is taken last: whoever is stopped while waiting must not hold any.
            durable = await self._source.mirror.enqueue(
                [(found, truth)],
                lane=listing.endpoint.stream,
                progress=listing,
                step=step,
            )
            mine.set_result(None)
            await durable
        except BaseException:
            mine.cancel()
            raise
        finally:
            listing.undurable -= 1
            if step.done and self._submitted.get(wanted.number) is mine:
                del self._submitted[wanted.number]

    async def _follow(self, found: RowSet) -> int:
        if not found.lists:
            return 0
        self._nests = True
        self._following += 1
        try:
            return await self._source.follow_all(found)
        finally:
            self._following -= 1
