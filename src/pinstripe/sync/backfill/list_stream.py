"""Reads lists into the database: which one gets the next request, and one list with its pages and cursor.

`Scheduler` is one loop, not a pool of workers: it starts a request when the rate limit lets it go without a
wait. First come the lists that others wait for, that can only be read in sequence, or whose length is not
known yet (`ListReader.urgent`), and those that take longest at their endpoint's rate; then the list with
most left. So the longest list runs at its endpoint's full rate from the beginning, and short ones fill the
gaps. Of the requests that wait for the rate, those of the list that needs longest of all go first, nested
ones too. A list by parent always has one request under way. A list is split into one more slice only when a
request is free that no other list could use.

`ListStream` requests the pages of one list, writes them in order and saves the cursor. The position is what
is not durable yet (`slices`), as JSON:

    {"table": "charge", "ceiling": 1790000000, "todo": [[gte, lt, after, low], ...]}

With a start date `since` stands there too: nothing older is listed, until it is set to an earlier one.

The next page is requested as soon as a page is decoded, before it is durable. Within a slice pages are
handed to the mirror strictly one after the other, since a cursor vouches for every page before it.

An answer of Stripe that refuses the list ends it. Any other error is retried after growing pauses; a list
that keeps failing ends as failed, the other lists go on, and `relist` resumes it from its cursor.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import structlog

from pinstripe.catalog.endpoints import EXPANDED_TABLES, ListEndpoint
from pinstripe.client.client import Params
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.response import AsOf, as_of_response, read_list
from pinstripe.concurrency import cancel, wait_for
from pinstripe.errors import Drifted, LostLease, NotFound, PinstripeError, Unwritable, WrongKey
from pinstripe.rows.extract import RowSet
from pinstripe.source.source import BACKFILL, Source
from pinstripe.store.cursors import UNEXPANDED, Checkpoint, State, permission_of
from pinstripe.sync.backfill.slices import WHOLE, Bounds, PageCommit, Slice, SliceSet

MAX_IN_FLIGHT = 64
"""Requests and pages under way: at 100/s enough for answers that take 300 ms and as much time again until
they are durable."""
MAX_IN_FLIGHT_UNLIMITED = 24
"""Without a rate limit: each may hold a page, and more would only wait for Postgres."""
_RESERVED, _RESERVED_UNLIMITED = 16, 1
"""More of them for urgent lists and lists by parent, so that they never wait for places that pages hold."""
MAX_PER_LIST = 16
"""Of one list: at 25/s enough for answers that take 640 ms."""
MAX_PER_LIST_UNLIMITED = 4
"""Without a rate limit: more slices would only cost pages that are not full."""
_LIKELY = 0.5  # Estimates of what was hardly read yet are too high: accounts grow.


class ListReader(Protocol):
    """One list that a run reads: `ListStream`, `ChildListStream`."""

    endpoint: ListEndpoint
    table: str
    """The table of what it lists."""
    state: State
    reason: str
    code: str
    remedy: str
    rows: int
    in_flight: int
    has_children: bool
    """Whether lists by parent wait for what this one lists."""
    is_longest: bool
    """Whether it is among those that need longest, with its nested lists: set by the scheduler."""

    @property
    def finished(self) -> bool: ...

    @property
    def urgent(self) -> bool:
        """Slow (its pages come in sequence only), or of unknown length, or other lists wait for it."""

    def remaining(self) -> float:
        """Estimated requests left."""

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` when a page was received and the next can be requested, before it is durable."""

    def claim(self) -> Callable[[], asyncio.Task[None]] | None:
        """Return what starts the next request, or None if there is none now."""

    def end(self, state: State, reason: str, *, code: str) -> None:
        """Stop reading; the cursor keeps the state and the reason."""

    def final(self) -> Checkpoint:
        """Return the cursor as of the last durable page."""


class Scheduler:
    """Runs list readers to their end."""

    def __init__(self, budget: RateLimiter, *, max_in_flight: int | None = None) -> None:
        """`max_in_flight`: fewer than usual, for work that must not slow the rest."""
        self._budget = budget
        self._max = max_in_flight
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(
        self,
        works: Sequence[ListReader],
        *,
        more: Callable[[], Awaitable[Sequence[ListReader]]] | None = None,
    ) -> None:
        """Return when all are finished. `more` is called for further lists whenever a request ends.

        An error that ends a request's task ends the run: all others are cancelled first.
        """
        active: list[ListReader] = []
        added = works
        try:
            while True:
                self._changed.clear()
                added = [*added, *(await more() if more else ())]
                for work in added:
                    work.on_change(self._changed.set)
                active = [w for w in (*active, *added) if not w.finished]
                added = ()
                if not active and not self._tasks:
                    return
                delay_s = await self._start_all(active)
                await self._wait(delay_s)
        finally:
            await cancel(*self._tasks)

    async def _start_all(self, active: list[ListReader]) -> float | None:
        """Start what can go now; return the seconds until more can, None if a request must end first."""
        soonest: float | None = None
        rate = self._budget.rate()
        limit = self._max or (MAX_IN_FLIGHT if rate else MAX_IN_FLIGHT_UNLIMITED)
        reserved = 0 if self._max else _RESERVED if rate else _RESERVED_UNLIMITED
        longest = self._longest(active)
        # Most turns find the account's rate used up: then no list has to be asked for its own.
        free_in_s = self._budget.ready_in(priority=BACKFILL)
        for work in sorted(
            active,
            key=lambda w: (w.urgent or w.endpoint.name in longest, w.remaining()),
            reverse=True,
        ):
            name = work.endpoint.name
            # One request is always under way; of lists by parent nobody knows yet how many there will be.
            keeps_one = work.urgent or bool(work.endpoint.parent)
            most = MAX_PER_LIST if self._budget.rate(name) else MAX_PER_LIST_UNLIMITED
            places = limit + (reserved if keeps_one else 0)
            while len(self._tasks) < places and work.in_flight < most:
                # These queue: on a busy account they would never find the rate limit free.
                queues = keeps_one and work.in_flight == 0
                queues = queues or (name in longest and not self._budget.is_waited_for(name))
                wait_s = (
                    0.0 if queues else free_in_s or self._budget.ready_in(name, priority=BACKFILL)
                )
                if wait_s > 0:
                    soonest = wait_s if soonest is None else min(soonest, wait_s)
                    break
                start = work.claim()
                if start is None:
                    break
                task = start()
                self._tasks.add(task)
                task.add_done_callback(lambda _: self._changed.set())
                # Let it take its permit, so that the rate limiter counts it.
                await asyncio.sleep(0)
                free_in_s = self._budget.ready_in(priority=BACKFILL)
        return soonest if len(self._tasks) < limit else None

    def _longest(self, active: Sequence[ListReader]) -> set[str]:
        """Return the endpoints that may need as long at their own rate as all do at the account's.

        Whatever they do not use of their rate now is what the run takes longer in the end. Lists that can
        only be read in sequence take no part: a request of theirs is always under way.
        """
        account = self._budget.rate()
        if account is None:
            return set()
        left: dict[str, float] = defaultdict(float)
        unknown = set[str]()  # Of lists by parent, whose parents are still being found.
        for work in active:
            if work.endpoint.created or work.endpoint.parent:
                left[work.endpoint.name] += work.remaining()
            if work.endpoint.parent and work.urgent:
                unknown.add(work.endpoint.name)
        needs_s = {name: n / (self._budget.rate(name) or math.inf) for name, n in left.items()}
        at_s = sum(left.values()) / account * _LIKELY
        longest = {name for name, at_least_s in needs_s.items() if at_least_s > at_s}
        for work in active:
            work.is_longest = work.endpoint.name in longest
        return unknown | longest

    async def _wait(self, delay_s: float | None) -> None:
        await wait_for(self._changed, delay_s if delay_s is not None else 1.0)
        for task in [t for t in self._tasks if t.done()]:
            self._tasks.discard(task)
            task.result()


_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_PAUSES_S = (1.0, 2.0, 5.0)
"""Before each retry of a page, on top of the client's own retries."""

_MAX_FOLLOWING = 8
"""Pages whose nested lists are being read: enough to keep that endpoint busy while pages take a second to
be durable. More would only take the places of other lists' requests."""


class ListStream:
    """One list without a parent, as the scheduler's `ListReader` and the mirror's `Progress`.

    `table` is the table of what it lists.
    """

    def __init__(
        self,
        endpoint: ListEndpoint,
        table: str,
        source: Source,
        *,
        ceiling: int = 0,
        account_created: int = 0,
        saved: Checkpoint | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Resumes from `saved` if there is one. `ceiling` is the present on Stripe's clock.

        Raises Drifted if the position of `saved` cannot be read.
        """
        self.since = source.since.get(table)
        """Nothing older is listed."""
        position = _begun(table, ceiling, self.since)
        if saved:
            position = _reaching_back(read_position(saved), self.since)
        self.endpoint, self.table = endpoint, table
        self.ceiling = int(position.get("ceiling", 0))
        self.slices = SliceSet.load(endpoint, position["todo"], account_created)
        is_done = saved is not None and saved.state == "done" and not position.get("is_extended")
        self.state: State = "done" if is_done else "running"
        self.reason = self.remedy = self.code = self.permission = self.note = ""
        unwanted = EXPANDED_TABLES - source.wanted.keys()
        self.expand = tuple(path for path in endpoint.expand if path not in unwanted)
        self.rows = saved.rows if saved else 0
        self.requests = saved.requests if saved else 0
        self.seconds = saved.seconds if saved else 0.0
        self.as_of = saved.as_of if saved else None
        self.in_flight = 0
        self.has_children = self.is_longest = False
        self._undurable = 0
        """Pages that are received and not written yet."""
        self._source = source
        self._clock = clock
        self._submitted: dict[int, asyncio.Future[None]] = {}
        """By slice, the page handed to the mirror last."""
        self._following = 0
        self._pages = self._followed = 0
        """Pages, and the requests that their nested lists took."""
        self._nests = False
        self._failures = 0
        self._not_before = float("-inf")
        self._changed: Callable[[], None] = lambda: None

    @property
    def finished(self) -> bool:
        """Nothing left to request and nothing under way."""
        return self.state != "running" or (
            not self.slices.open and self.in_flight == 0 and self._undurable == 0
        )

    @property
    def urgent(self) -> bool:
        waited_for = self.has_children or self._nests
        return waited_for or not self.endpoint.created or self.slices.has_unknown

    def remaining(self) -> float:
        nested = self._followed / self._pages if self._pages else 0.0
        return self.slices.remaining() * (1 + nested)

    def on_change(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def claim(self) -> Callable[[], asyncio.Task[None]] | None:
        if self._following >= _MAX_FOLLOWING or self._clock() < self._not_before:
            return None
        claimed = self.slices.claim()
        if claimed is None:
            return None
        self.in_flight += 1
        return lambda: asyncio.create_task(self._run(claimed))

    def end(self, state: State, reason: str, *, code: str, remedy: str = "") -> None:
        """Stop reading; the cursor keeps the state and the reason."""
        self.state, self.reason, self.code, self.remedy = state, reason, code, remedy
        self.slices.open.clear()

    # The cursor, which the mirror saves with the rows.

    def checkpoint(self, steps: Sequence[object]) -> Checkpoint:
        todo = self.slices.durable_after(steps)
        return self._checkpoint(todo, self.state if todo else "done")

    def commit(self, steps: Sequence[object]) -> None:
        self.slices.durable = self.slices.durable_after(steps)
        if not self.slices.durable and self.state == "running":
            self.state = "done"

    def final(self) -> Checkpoint:
        return self._checkpoint(self.slices.durable, self.state)

    def _checkpoint(self, todo: Mapping[int, Bounds], state: State) -> Checkpoint:
        return Checkpoint(
            stream=self.endpoint.stream,
            state=state,
            position=_position(self.table, self.ceiling, todo.values(), self.since),
            reason=self.reason or self.note,
            remedy=self.remedy,
            code=self.code or (UNEXPANDED if self.note else ""),
            permission=self.permission,
            rows=self.rows,
            requests=self.requests,
            seconds=self.seconds,
            as_of=self.as_of if self.as_of is not None else float(self.ceiling),
        )

    # One page.

    async def _run(self, claimed: Slice) -> None:
        """Read one page and write it; decide what an error means for the list."""
        started = self._clock()
        path, params = self.slices.request(claimed, self.expand)
        received = None
        try:
            received = await self._receive(claimed, path, params)
            if received is not None:
                await self._write(claimed, *received)
        except (WrongKey, Unwritable, LostLease):
            self.state = "failed"  # No other list can go on either.
            raise
        except asyncio.CancelledError:
            # If the list has ended, an earlier page of this slice failed and reported it.
            if self.state == "running":
                raise
        except PinstripeError as error:
            if not error.is_answer:
                self._retry(error, is_received=received is not None)
            elif not any(name == "expand[]" for name, _ in params):
                self._end(error, "refused")
            elif self.expand:
                # The list may be readable without its expansions. Several requests may be refused for
                # them: the first one drops them, and all are made again.
                self.note = f"Without {', '.join(self.expand)}: {error.message}"
                self.expand = ()
        finally:
            self.seconds += self._clock() - started

    def _retry(self, error: PinstripeError, *, is_received: bool) -> None:
        """Request the page again after a pause, unless it was received and could not be written."""
        now = self._clock()
        is_paused = now < self._not_before  # By another of the requests under way.
        if not is_received and (is_paused or self._failures < len(_PAUSES_S)):
            if not is_paused:
                self._not_before = now + _PAUSES_S[self._failures]
                self._failures += 1
            _log.info("backfill.trouble", stream=self.endpoint.stream, error=error.message)
            return
        _log.warning("backfill.failed", stream=self.endpoint.stream, error=error.message)
        self._end(error, "failed")

    def _end(self, error: PinstripeError, state: State) -> None:
        self.end(state, error.message, code=error.slug, remedy=error.hint)
        self.permission = permission_of(error)

    async def _receive(
        self, claimed: Slice, path: str, params: Params
    ) -> tuple[RowSet, AsOf, PageCommit] | None:
        """Request a page and extract its rows, so that its bytes are not kept while the rows wait.

        None if the slice starts again, because the object behind its cursor was deleted.
        """
        try:
            self.requests += 1
            response = await self._source.stripe.get(
                path, params, endpoint=self.endpoint.name, priority=self._priority()
            )
            page = read_list(response, path)
            rows = self._source.extract(page.objects, {})
            step = self.slices.received(
                claimed, page.objects, has_more=page.has_more, after=page.after
            )
        except NotFound as error:
            if error.param != "starting_after" or claimed.after is None:
                raise
            self.slices.restart(claimed)
            return None
        finally:
            claimed.busy = False
            self.in_flight -= 1
            self._changed()
        self.rows += step.rows
        self._undurable += 1
        self._pages += 1
        self._failures = 0
        return rows, as_of_response(response), step

    def _priority(self) -> int:
        """A list that can only be read page after page must not wait for other lists as well."""
        if not self.endpoint.created:
            return BACKFILL - 2
        return BACKFILL - 1 if self.urgent or self.is_longest else BACKFILL

    async def _write(self, claimed: Slice, rows: RowSet, as_of: AsOf, step: PageCommit) -> None:
        """Hand a page to the mirror after the page before it, and wait until it is durable."""
        before = self._submitted.get(claimed.number)
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._submitted[claimed.number] = mine
        try:
            # Nested lists must be written before a cursor vouches for this page.
            self.requests += await self._follow(rows, as_of)
            if before is not None:
                await before
            # Room is taken last: a task that is cancelled while it waits must not hold any.
            durable = await self._source.mirror.enqueue(
                [(rows, as_of)], lane=self.endpoint.stream, progress=self, step=step
            )
            mine.set_result(None)
            await durable
        except BaseException:
            mine.cancel()
            raise
        finally:
            self._undurable -= 1
            if step.done and self._submitted.get(claimed.number) is mine:
                del self._submitted[claimed.number]

    async def _follow(self, rows: RowSet, as_of: AsOf) -> int:
        """Read the nested lists of a page to their end; return how many requests that took."""
        if not rows.lists:
            return 0
        self._nests = True
        self._following += 1
        # Each takes a request at least, and counts before it is read: what needs longest is to begin early.
        self._followed += len(rows.lists)
        try:
            requests = await self._source.follow_all(
                rows, as_of=as_of, priority=lambda: BACKFILL - 1 if self.is_longest else BACKFILL
            )
            self._followed += requests - len(rows.lists)
            return requests
        finally:
            self._following -= 1


def created_since(done: Checkpoint, table: str, since: int, *, ceiling: int) -> Checkpoint:
    """The cursor that reads again what was created since then, of a list that is done. Of the rows listed
    before it keeps that there were some: added to those listed again, they are more than the table has.
    """
    position = _position(table, ceiling, [(since, None, None, None)], done.position.get("since"))
    rows = min(done.rows, 1)
    return replace(done, state="running", position=position, as_of=None, rows=rows)


def _position(
    table: str, ceiling: int, todo: Iterable[Bounds], since: int | None
) -> dict[str, Any]:
    limited = {} if since is None else {"since": since}
    return {"table": table, "ceiling": ceiling, **limited, "todo": list(todo)}


def _begun(table: str, ceiling: int, since: int | None) -> Mapping[str, Any]:
    """The position of a list that is not read yet."""
    whole = WHOLE if since is None else (since, None, None, None)
    return _position(table, ceiling, [whole], since)


def _reaching_back(position: Mapping[str, Any], since: int | None) -> Mapping[str, Any]:
    """The position with what was left out, if the start date is earlier than it was."""
    before = position.get("since")
    if before is None or (since is not None and since >= before):
        return position
    older: Bounds = (since, before, None, None)
    return {**position, "todo": [*position["todo"], older], "is_extended": True}


def read_position(saved: Checkpoint) -> Mapping[str, Any]:
    """Return the position of a saved cursor. Raises Drifted if it is not one of a list."""
    if "todo" not in saved.position:
        raise Drifted(
            f"The cursor of {saved.stream} cannot be read.",
            hint="Delete its row in pinstripe.cursor; the list is then read anew.",
        )
    return saved.position
