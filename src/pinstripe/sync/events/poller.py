"""Follows an account: polls the event log, twice a second and on request, and applies what is new.

    poll -> new events -> apply -> mirror: rows + cursor + refetches, one commit -> NOTIFY

The list is eventually consistent: an event can appear behind newer ones. So new events are applied as soon
as a poll finds them, and lookback windows are read again beside the polls for what came late. Such a window
is many pages on a busy account, and new events do not wait for it. Each event is applied once, by its id.
The `as_of` of the stream `events` is the second on Stripe's clock up to which everything the list showed is
applied. After an absence it moves slice by slice from old to new, so that neither memory nor what a kill
repeats grows with the absence. What an event leaves is decided in `apply`; which objects are fetched
again, in `refetch.worker`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from pinstripe.catalog.endpoints import PAGE
from pinstripe.client.response import AsOf, StripeObject
from pinstripe.concurrency import backoff, wait_for
from pinstripe.errors import FellBehind, PinstripeError
from pinstripe.mirror import LIVE_LANE
from pinstripe.rows.event import created_of
from pinstripe.source.source import FOLLOW, LIVE, Source
from pinstripe.store.cursors import followed, save_checkpoints
from pinstripe.store.events import (
    REQUESTS,
    SyncAck,
    SyncRequest,
    acknowledge,
    add_applied,
    forget_applied,
    last_request,
    load_applied,
    notify_applied,
)
from pinstripe.store.pool import Connection, Pool
from pinstripe.store.refetch import add_refetches
from pinstripe.sync.events.apply import EventApplier, PreviewRefetches
from pinstripe.sync.events.reader import (
    MARGIN_S,
    REACH_S,
    AppliedEvents,
    EventLogReader,
    LookbackWindows,
    applied_lines,
)
from pinstripe.sync.refetch.worker import RefetchWorker

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_TROUBLE_PAUSE_S = (1.0, 2.0, 5.0, 10.0, 30.0)

_TOO_LONG_S = REACH_S + 60.0
"""A minute more than the planner's limit: a start for this reason does a full resync."""

_LOOK = 20
"""Events on a poll's page, beside twice those expected: a hundred are half a megabyte."""

_WORTH_A_POLL = 10
"""While so many events arrive, polls are closer: waiting for the next is most of an event's lag."""
_MOST_POLLS = 5  # In one interval. The default of 12.5 requests a second leaves some to lookbacks.

_FAR_S = 1800.0  # From so far behind, slice by slice. What is nearer fits into memory.
_SLICE_EVENTS = 8000
"""Events wanted in a slice: their ids are in memory, and a process that is killed reads them again."""
_SLICE_GROWTH = 4.0
"""Bounds how much wider or narrower the next slice is, since events are not spread evenly."""

_SPACING_S = 0.1
_MOST_SPACING_S = 0.25
"""Requested polls are no closer than half the interval, within these bounds: however long that is."""

_MANY = 500  # Events that one read of a long stretch applies before it pauses the refetches.

_AT_REST_S = 1.0  # How often the cursor is saved while nothing happens.

_POLLS_A_SWEEP = 10
"""Polls between two reads of a window, at least: lookback is a tenth of the reads at most."""

_REST_A_SWEEP = 4
"""Pause after a lookback, as a multiple of its duration: its requests and CPU stay below a fifth."""


class EventPoller:
    """The one reader of an account."""

    def __init__(
        self,
        source: Source,
        refetches: RefetchWorker,
        *,
        since: float,
        pace: PollIntervals | None = None,
        more: PreviewRefetches | None = None,
        interval_s: Callable[[], float] | None = None,
        awake: Callable[[], None] | None = None,
        complete: Callable[[], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`since`: everything that the list showed up to this second on Stripe's clock is applied.

        `more` returns the refetches of previews that events need. `interval_s` returns the pause that the
        read quota allows; `awake` reports a request to it. `complete`: whether the initial load is; with
        it, `request_listener` receives sync requests once it runs.
        """
        self.stats = PollerStats(as_of=since)
        self.request_listener = None
        if complete is not None:
            self.request_listener = SyncRequestListener(
                source.pool, source.mirror.schema, complete=complete, on_request=self._requested
            )
        self._source = source
        self._refetches = refetches
        self._intervals = pace or PollIntervals()
        self._interval_s = interval_s
        self._awake = awake
        self._clock = clock
        self._applier = EventApplier(source, more)
        self._applied = AppliedEvents()
        self._reader = EventLogReader(source, self._applied)
        self._began_at = since
        self._is_first = source.mirror.began_empty
        self._listed: list[tuple[str, int, str]] = []
        """The events up to `_listed_until`, until the lists of the first copy are read."""
        self._lookback = LookbackWindows(since)
        self._applying = asyncio.Lock()
        self._wake = asyncio.Event()
        self._saved_at = 0.0
        self._polled_at = 0.0
        self._new_per_s = 0.0
        self._was_requested = False

    def now(self) -> float:
        """Return the present on Stripe's clock."""
        return self._source.now()

    def poll_now(self) -> None:
        """Poll now, and return to the configured interval over a while."""
        if self._awake is not None:
            self._awake()
        self._wake.set()

    def _requested(self) -> None:
        """A caller waits: have the poll and the refetches that it waits for made now."""
        self.poll_now()
        self._refetches.on_wait()

    async def run(self) -> None:
        """Catch up, then follow until cancelled. Raises FellBehind after too long an outage."""
        await self._insist(self._begin)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._poll_on())
            if not self._is_first:
                await self._insist(self._read_downtime)
            group.create_task(
                self._read_lookbacks(self._intervals.near_window_s, self._intervals.near_every_s)
            )
            group.create_task(
                self._read_lookbacks(self._intervals.window_s, self._intervals.window_every_s)
            )

    async def _poll_on(self) -> None:
        troubles = 0
        while True:
            started = self._clock()
            self._wake.clear()  # A request from now on needs a poll that begins after it.
            try:
                await self._read_slices()
                await self._poll_once()
            except FellBehind:
                raise
            except PinstripeError as error:
                await self._troubled(error)
                await self._rest(
                    backoff(_TROUBLE_PAUSE_S, troubles), at_least_s=_TROUBLE_PAUSE_S[0]
                )
                troubles += 1
                continue
            troubles = 0
            if self.stats.trouble:
                self.stats.trouble = self.stats.remedy = ""
                self._saved_at = 0.0  # The next poll saves that the trouble is over.
            took_s = self._clock() - started
            await self._rest(self._poll_s() - took_s, at_least_s=self._spacing_s() - took_s)

    async def _read_lookbacks(self, window_s: float, every_s: float) -> None:
        """Read a window again and again, beside the polls. Errors are reported by the polls."""
        rest_s = every_s
        while True:
            await asyncio.sleep(max(rest_s, every_s, _POLLS_A_SWEEP * self._poll_s()))
            if self.stats.trouble or self._is_slow() or self._is_far_behind():
                continue
            started = self._clock()
            try:
                await self._read_late_lookback(window_s / 2, window_s, priority=LIVE)
                await self._forget()
            except PinstripeError as error:
                _log.debug("live.sweep", error=error.message)
            rest_s = _REST_A_SWEEP * (self._clock() - started)

    def _is_slow(self) -> bool:
        """Whether polls are so rare that each reads the whole window: it costs no more."""
        return self._poll_s() >= self._intervals.near_every_s

    def _poll_s(self) -> float:
        usual_s = self._intervals.poll_s if self._interval_s is None else self._interval_s()
        if not self._new_per_s or usual_s > self._intervals.poll_s:
            return usual_s
        closest_s = max(_WORTH_A_POLL / self._new_per_s, usual_s / _MOST_POLLS, _SPACING_S)
        return min(closest_s, usual_s / 2)  # While events arrive more are likely to.

    def _spacing_s(self) -> float:
        """Return the least pause between two requested polls."""
        spacing_s = min(max(self._intervals.poll_s / 2, _SPACING_S), _MOST_SPACING_S)
        return spacing_s if self._was_requested else 0.0

    async def _rest(self, pause_s: float, *, at_least_s: float) -> None:
        """Wait until the next poll is due or requested."""
        if at_least_s > 0:
            await asyncio.sleep(at_least_s)
            pause_s -= at_least_s
        if pause_s > 0:
            await wait_for(self._wake, pause_s)

    async def _troubled(self, error: PinstripeError) -> None:
        """Report an error: in the statistics, in the log, and in the database for `pinstripe status`."""
        is_told = bool(self.stats.trouble)
        self.stats.trouble, self.stats.remedy = error.message, error.hint
        if is_told:
            return
        _log.warning("live.trouble", error=error.message)
        try:
            told = replace(followed(self.stats.as_of), reason=error.message, remedy=error.hint)
            await self._source.save([told])
        except PinstripeError:
            _log.debug("live.untold")  # Postgres itself is unreachable.

    async def _insist(self, work: Callable[[], Awaitable[None]]) -> None:
        """Try again and again, until it succeeds."""
        while True:
            try:
                return await work()
            except FellBehind:
                raise
            except PinstripeError as error:
                await self._troubled(error)
                await asyncio.sleep(_TROUBLE_PAUSE_S[1])

    async def _begin(self) -> None:
        """Read everything since the position: what is older was applied, unless it came late."""
        await self._load_applied(self.stats.as_of - self._intervals.window_s)
        await self._read_slices()
        self._began_at = self.stats.as_of
        self._lookback = LookbackWindows(self._began_at)
        since = self._began_at - (self._intervals.window_s if self._is_first else MARGIN_S)
        await self._reader.window(since, priority=FOLLOW, apply=self._apply_unlisted)
        self._applied.anchor_all()

    @property
    def _listed_until(self) -> float:
        """The second up to which the lists of a first copy have all, whatever replica answers; else 0."""
        margins = self._source.stripe.margins
        return self._began_at - margins.clock_s - margins.replica_lag_s if self._is_first else 0.0

    async def _apply_unlisted(
        self, events: Sequence[StripeObject], listed_at: AsOf, *, as_of: float | None = None
    ) -> None:
        """Like `apply`, but for what the lists of a first copy have."""
        old = applied_lines(e for e in events if created_of(e) < self._listed_until)
        self._listed += old
        self._applied.add({key: created for key, created, _ in old}, unanchored=False)
        await self.apply(events, listed_at, as_of=as_of)  # It leaves out what counts as applied.

    async def note_listed(self) -> None:
        """The lists of the first copy have been read: events from before it are applied with them."""
        if self._listed:
            async with self._source.transaction() as connection:
                await add_applied(connection, self._source.mirror.schema, self._listed)
            self._listed.clear()

    async def _read_downtime(self) -> None:
        """Read what came late while no process ran, beside the polls: on a busy account it is long."""
        began = self._source.now()
        since = self._began_at - self._intervals.window_s
        await self.read_lookback(since, priority=LIVE)
        self._lookback.note(began, float("inf"))

    async def _load_applied(self, since: float) -> None:
        async with self._source.pool.acquire() as connection:
            applied = await load_applied(connection, self._source.mirror.schema, since)
        self._applied.load(applied)

    async def poll_since(self, since: float) -> str | None:
        """Apply everything since a second on Stripe's clock, once.

        Returns the id of the newest event that the list showed, None if it showed none. For an account that
        is polled now and then. Raises FellBehind, and what a request raises.
        """
        await self._load_applied(since)
        await self._read_slices()
        return await self._reader.window(since, priority=FOLLOW, apply=self.apply)

    async def _poll_once(self) -> None:
        """Poll once: the top of the list, or the whole window if polls are rare."""
        heard = self.request_listener.begin() if self.request_listener is not None else None
        self._was_requested = heard is not None
        if self._is_slow():
            await self._read_late_lookback(self._intervals.window_s / 2, self._intervals.window_s)
            await self._forget()
        elif heard is not None:
            await self._read_late_lookback(heard.request.lookback_s, heard.request.lookback_s)
        else:
            await self.poll()
        if heard is not None and self.request_listener is not None:
            self.request_listener.done(heard, self.stats.as_of)

    async def poll(self) -> None:
        """Apply what is new at the top of the list, down to the first applied event."""
        back_to = self.stats.as_of - self._intervals.window_s
        began, expected = self._clock(), round(self._new_per_s * self._poll_s())
        limit = min(_LOOK + 2 * expected, PAGE)
        new = await self._reader.top(back_to, limit=limit, apply=self.apply)
        self._new_per_s = new / max(began - self._polled_at, _SPACING_S)
        self._polled_at = began

    async def catch_up(self, late_s: float) -> None:
        """Apply all since the position, with what was up to `late_s` late. Raises FellBehind."""
        await self._read_slices()
        await self.read_lookback(self.stats.as_of - late_s)

    def _is_far_behind(self) -> bool:
        far_s = max(_FAR_S, 3 * self._poll_s(), 3 * self._intervals.window_s)
        return self._source.now() - self.stats.as_of > far_s

    async def _read_slices(self) -> None:
        """While the position is far behind: apply the next slice, and move the position to its end.

        Returns when it is no longer far behind.
        """
        since = int(self.stats.as_of - self._intervals.window_s)
        wide = 2 * self._intervals.window_s
        while self._is_far_behind():
            self._check_reach(self._source.now())
            until = int(min(since + wide, self._source.now() - self._intervals.window_s))
            before = self.stats.events
            await self._reader.slice(since, until, self.apply)
            found = self.stats.events - before
            growth = _SLICE_EVENTS / max(found, 1)
            wide = max(wide * min(max(growth, 1 / _SLICE_GROWTH), _SLICE_GROWTH), 1.0)
            since = until
            if until > self.stats.as_of:
                async with self._applying:
                    await self._commit((), AsOf(until, until), float(until))
                    self.stats.as_of = float(until)
            await self._forget(until - 2 * self._intervals.window_s)

    async def read_lookback(self, since: float, *, priority: int = FOLLOW) -> None:
        """Apply what is new in the whole list since then."""
        await self._reader.window(since, priority=priority, apply=self.apply)

    async def _read_late_lookback(
        self, late_s: float, window_s: float, *, priority: int = FOLLOW
    ) -> None:
        """Apply events that came up to `late_s` late, also if the last such lookback is long ago."""
        began, clock_s = self._source.now(), self._source.stripe.margins.clock_s
        since = min(self._lookback.since(late_s, self.stats.newest, clock_s), began - window_s)
        remembered = began - 1.9 * self._intervals.window_s  # `_forget` drops what is older.
        if since < remembered:
            # After a long absence: down to the first applied event, however far that is.
            await self.poll()
        await self.read_lookback(max(since, remembered), priority=priority)
        self._lookback.note(began, late_s)

    async def apply(
        self, events: Sequence[StripeObject], listed_at: AsOf, *, as_of: float | None = None
    ) -> None:
        """Write events, the states that they leave and their refetches in one commit.

        `events` in Stripe's order, newest first; `listed_at`: when the list showed them. `as_of`: the list
        has now been read so far that everything it showed at this second is applied; None while the read
        goes on.
        """
        self.stats.polls += 1
        if as_of is not None:
            self._check_reach(as_of)
        async with self._applying:  # A poll and a lookback may have read the same event.
            events = self._applied.fresh(events)
            if as_of is None and len(events) >= _MANY:
                # More events follow: an object that they change again is fetched once.
                self._refetches.pause()
            is_due = self._clock() - self._saved_at >= _AT_REST_S
            if events or (as_of is not None and is_due):
                await self._commit(events, listed_at, as_of)
            if as_of is not None:
                self.stats.as_of = max(self.stats.as_of, as_of)
                self._refetches.resume()

    def _check_reach(self, now: float) -> None:
        """Raise FellBehind if Stripe may have dropped events after the position."""
        if now - self.stats.as_of > _TOO_LONG_S:
            # Only the planner lists everything again in such a way that a crash meanwhile loses nothing.
            raise FellBehind(
                "Stripe's event log no longer reaches back to where this sync stands.",
                hint="It begins again by itself, and lists everything anew.",
            )

    async def _commit(
        self, events: Sequence[StripeObject], listed_at: AsOf, as_of: float | None
    ) -> None:
        late = self._applied.late(events)
        parts, refetches = await self._applier.plan(
            events, listed_at, late=late, listed_until=self._listed_until
        )
        applied = applied_lines(events)
        schema = self._source.mirror.schema
        position = max(as_of, self.stats.as_of) if as_of is not None else None

        async def effect(connection: Connection) -> None:
            if applied:
                await add_applied(connection, schema, applied)
            await add_refetches(connection, schema, refetches)
            if position is not None:
                await save_checkpoints(connection, schema, [followed(position)])
            if applied or position is not None:
                await notify_applied(connection, schema, position or 0.0)

        await self._source.mirror.write(parts, lane=LIVE_LANE, effect=effect)
        self._saved_at = self._clock()
        self._applied.add({key: created for key, created, _ in applied}, unanchored=as_of is None)
        since = self.stats.as_of - self._intervals.window_s
        seconds = [created for _, created, _ in applied]
        self.stats.applied(seconds, since=since, ended=as_of is not None)
        self._refetches.gather(refetches)

    async def _forget(self, before: float | None = None) -> None:
        """Drop the ids of events that no window reaches any more."""
        if before is None:
            before = self._source.now() - 2 * self._intervals.window_s
        self._applied.forget(before)
        async with self._source.transaction() as connection:
            await forget_applied(connection, self._source.mirror.schema, before)


@dataclass(slots=True)
class PollIntervals:
    """How often to poll. Seconds; the settings of the same names."""

    poll_s: float = 0.5
    window_s: float = 600.0
    near_window_s: float = 60.0
    near_every_s: float = 5.0
    window_every_s: float = 60.0


@dataclass(slots=True)
class PollerStats:
    """Statistics of the poller."""

    as_of: float = 0.0
    events: int = 0
    polls: int = 0
    late: int = 0
    trouble: str = ""
    remedy: str = ""
    newest: int = 0
    _newest_read: int = 0
    """Seconds: of the newest event so far, and of the newest when a read last came to its end."""

    def applied(self, seconds: Sequence[int], *, since: float, ended: bool) -> None:
        """Count events of a read, by the second in which each was created; `ended`: they complete it.

        Late is an event older than one that an earlier read showed; pages of one read go from new to old.
        What is from before `since` is not late but old: the first poll of a quiet account shows such
        events.
        """
        self.events += len(seconds)
        self.late += sum(since <= second < self._newest_read - 1 for second in seconds)
        self.newest = max(self.newest, *seconds, 0)
        if ended:
            self._newest_read = self.newest


_NET_S = 1.0  # How often the row is read: the cost of a lost NOTIFY.
_READ_SPACING_S = 0.01  # Between two reads of the row. Requests of one gateway are 50 ms apart.
_HUNG_S = 10.0  # A statement that takes longer was sent to a server that is gone without a word.


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request that a poll may acknowledge. `session`: numbers are valid for the connection that read
    them.
    """

    request: SyncRequest
    session: int


class SyncRequestListener:
    """Receives the sync requests for one schema, and acknowledges them when a poll has served them.

        NOTIFY -> the row -> begin() at the start of a poll -> done() at its end -> acknowledgement, NOTIFY

    A poll serves the requests that were received before it began. Until the initial load is complete they
    are acknowledged without a moment, since the events are not all there is. A NOTIFY only means that the
    row is worth reading: any user of the database may send one. A request whose NOTIFY was lost is found
    within a second.
    """

    def __init__(
        self,
        pool: Pool,
        schema: str,
        *,
        complete: Callable[[], bool],
        on_request: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`complete`: whether the initial load is."""
        self._on_request = on_request
        self._pool = pool
        self._schema = schema
        self._complete = complete
        self._clock = clock
        self._session = 0
        self._latest: SyncRequest | None = None
        self._looked: SyncAck | None = None
        self._wake = asyncio.Event()
        self._hinted = False

    def begin(self) -> PendingRequest | None:
        """Return the latest request that no poll has served. Call it before Stripe is requested."""
        return PendingRequest(self._latest, self._session) if self._latest is not None else None

    def done(self, heard: PendingRequest, as_of: float) -> None:
        """The poll that began after this request is done: what Stripe showed at `as_of` is committed."""
        if heard.session != self._session:
            return
        if self._latest is not None and self._latest.number <= heard.request.number:
            self._latest = None
        self._looked = SyncAck(heard.request.number, as_of)
        self._wake.set()

    async def run(self) -> None:
        """Run until cancelled; reconnects."""
        while True:
            try:
                async with self._pool.dedicated() as connection:
                    await self._listen(connection)
            except PinstripeError as error:
                _log.debug("hearing.lost", error=error.message)
            await asyncio.sleep(_TROUBLE_PAUSE_S[0])

    async def _listen(self, connection: Connection) -> None:
        self._session += 1
        self._latest = self._looked = None
        await connection.add_listener(REQUESTS, self._notified)
        read_at = -_NET_S
        while True:
            self._wake.clear()
            async with asyncio.timeout(_HUNG_S):
                if self._hinted or self._clock() >= read_at + _NET_S:
                    # However many NOTIFYs arrive, the row is read no more often than this.
                    await asyncio.sleep(max(read_at + _READ_SPACING_S - self._clock(), 0.0))
                    self._hinted = False
                    await self._net(connection)
                    read_at = self._clock()
                await self._answer(connection)
            await wait_for(self._wake, max(read_at + _NET_S - self._clock(), 0.0))

    async def _net(self, connection: Connection) -> None:
        ring = await last_request(connection, self._schema)
        if ring is not None and (self._looked is None or ring.number > self._looked.number):
            self._requested(ring)

    async def _answer(self, connection: Connection) -> None:
        said = self._looked
        if said is None:
            return
        told = said if self._complete() else replace(said, as_of=0.0)
        await acknowledge(connection, self._schema, told)
        if self._looked == said:
            self._looked = None

    def _notified(self, _: object, __: int, ___: str, payload: object) -> None:
        if payload == self._schema:
            self._hinted = True
            self._wake.set()

    def _requested(self, ring: SyncRequest) -> None:
        if self._latest is None or ring.number > self._latest.number:
            lookback_s = max(ring.lookback_s, self._latest.lookback_s if self._latest else 0.0)
            self._latest = SyncRequest(ring.number, lookback_s)
        self._on_request()
