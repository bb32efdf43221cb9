"""Follows the account: reads the event log twice a second and applies what is new.

    poll -> new events -> applying -> mirror: rows + cursor + to-dos, one commit -> NOTIFY

The list is eventually consistent: an event can show up behind newer ones. So what is seen is applied at
once, and trailing windows are read again, beside the polls, for what came late (`sweep`): a window of a
busy account is many pages, and nothing new waits for them. Events are applied once, by id (`known`). The
`as_of` of stream `events` is the moment on Stripe's clock up to which all that the list showed is applied.

How often the live reader looks, and what it shows of itself.

How far back the event log has to be read again for what may have come late.

A sweep that reads everything since `began - late_s`, where `began` is when the last such sweep began,
misses nothing that shows up at most `late_s` after it was created. Sweeps for longer lateness count for
shorter ones too, so one that is asked for often reads little.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from pinstripe.client.decode import StripeObject
from pinstripe.client.pagination import PAGE
from pinstripe.concurrency import backoff, wait_for
from pinstripe.errors import FellBehind, PinstripeError
from pinstripe.mirror import LIVE_LANE
from pinstripe.rows.as_of import AsOf
from pinstripe.rows.event import created_of, request_of
from pinstripe.source.source import FOLLOW, LIVE, Source
from pinstripe.store.cursors import save_checkpoints
from pinstripe.store.events import add_applied, forget_applied, load_applied
from pinstripe.store.pool import Connection
from pinstripe.store.refetch import add_refetches
from pinstripe.sync.events.apply import EventApplier, PreviewRefetches
from pinstripe.sync.events.reader import RETENTION_S, AppliedEvents, EventLogReader, followed
from pinstripe.sync.events.request_listener import SyncRequestListener
from pinstripe.sync.refetch.worker import RefetchWorker

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

CHANNEL = "pinstripe"
"""NOTIFY channel; the payload is `schema as_of`."""

_TROUBLE_PAUSE_S = (1.0, 2.0, 5.0, 10.0, 30.0)

_TOO_LONG_S = RETENTION_S - 86400 + 60.0
"""A minute more than `resume` allows: whoever begins again for this reason does list anew."""

_LOOK = 20
"""Events in the first look: mostly none is new, and a page of a hundred is half a megabyte."""

_SPACING_S = 0.1

_MOST_SPACING_S = 0.25
"""Polls that are woken for are no closer than half the interval, within these bounds: a wake-up polls at
once however seldom the poller polls by itself."""

_MANY = 500  # Events in one piece of a stretch: it is long.

_AT_REST_S = 1.0
"""How often the cursor is saved when nothing happens."""

_POLLS_A_SWEEP = 10
"""A window is read again after so many polls at the soonest: sweeps are a tenth of the reads at most."""

_REST_A_SWEEP = 4
"""A sweep rests so many times as long as it took: its requests and its CPU are a fifth at most."""


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
        awake: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`since`: everything that the list showed up to this moment on Stripe's clock is applied.

        `more` gives the to-dos of previews that events ask for. `interval_s` is the read allowance's word
        on how often to look, `awake` tells it of a ring.
        """
        self.stats = PollerStats(as_of=since)
        self.request_listener: SyncRequestListener | None = (
            None  # Who rings, and wants to know of looks.
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
        self._lookback = LookbackWindows(since)
        self._applying = asyncio.Lock()
        self._wake = asyncio.Event()
        self._saved_at = 0.0
        self._is_busy = False
        self._was_requested = False

    def now(self) -> float:
        """The present on Stripe's clock."""
        return self._source.now()

    def poll_now(self) -> None:
        """Somebody knows of a change: look now, and for a while as often as set."""
        self._awake()
        self._wake.set()

    async def run(self) -> None:
        """Catches up, then follows until cancelled. Raises FellBehind after too long an outage."""
        await self._begin()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._poll_on())
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
            self._wake.clear()  # A ring from now on asks for a look that begins after it.
            try:
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
                self._saved_at = 0.0  # The next look says in the database that it is over.
            took_s = self._clock() - started
            await self._rest(self._poll_s() - took_s, at_least_s=self._spacing_s() - took_s)

    async def _read_lookbacks(self, window_s: float, every_s: float) -> None:
        """Reads a window again and again, beside the polls. Of trouble the polls tell."""
        rest_s = every_s
        while True:
            await asyncio.sleep(max(rest_s, every_s, _POLLS_A_SWEEP * self._poll_s()))
            if self.stats.trouble or self._is_slow():
                continue
            started = self._clock()
            try:
                await self._read_late_lookback(window_s / 2, window_s, priority=LIVE)
                await self._forget()
            except PinstripeError as error:
                _log.debug("live.sweep", error=error.message)
            rest_s = _REST_A_SWEEP * (self._clock() - started)

    def _is_slow(self) -> bool:
        """Looks are so rare that each reads the whole window: it costs no more."""
        return self._poll_s() >= self._intervals.near_every_s

    def _poll_s(self) -> float:
        usual_s = self._intervals.poll_s if self._interval_s is None else self._interval_s()
        # While things happen more is likely to: that halves the lag of what comes next.
        busy = self._is_busy and usual_s <= self._intervals.poll_s
        return usual_s / 2 if busy else usual_s

    def _spacing_s(self) -> float:
        """How soon after a look that was rung for the next may be, however often somebody rings."""
        spacing_s = min(max(self._intervals.poll_s / 2, _SPACING_S), _MOST_SPACING_S)
        return spacing_s if self._was_requested else 0.0

    async def _rest(self, pause_s: float, *, at_least_s: float) -> None:
        """Until it is time to look, or somebody rings."""
        if at_least_s > 0:
            await asyncio.sleep(at_least_s)
            pause_s -= at_least_s
        if pause_s > 0:
            await wait_for(self._wake, pause_s)

    async def _troubled(self, error: PinstripeError) -> None:
        """Says what is wrong: here, in the log, and in the database for `pinstripe status`."""
        is_told = bool(self.stats.trouble)
        self.stats.trouble, self.stats.remedy = error.message, error.hint
        if is_told:
            return
        _log.warning("live.trouble", error=error.message)
        try:
            told = replace(followed(self.stats.as_of), reason=error.message, remedy=error.hint)
            await self._source.save([told])
        except PinstripeError:
            _log.debug("live.untold")  # It is Postgres that is in trouble.

    async def _begin(self) -> None:
        """Reads everything since the position, for which a whole sweep is needed."""
        since = self.stats.as_of - self._intervals.window_s
        while True:
            try:
                async with self._source.pool.acquire() as connection:
                    applied = await load_applied(connection, self._source.mirror.schema, since)
                self._applied.load(applied)
                began = self._source.now()
                await self.read_lookback(since)
                self._lookback = LookbackWindows(began)
            except PinstripeError as error:
                await self._troubled(error)
                await asyncio.sleep(_TROUBLE_PAUSE_S[1])
            else:
                return

    async def _poll_once(self) -> None:
        """One look at the list: its top, or the whole window where looks are rare."""
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
        """Applies what is new at the top of the list, down to the first event that is known."""
        back_to = self.stats.as_of - self._intervals.window_s
        limit = PAGE if self._is_busy else _LOOK
        self._is_busy = await self._reader.top(back_to, limit=limit, apply=self.apply)

    async def read_lookback(self, since: float, *, priority: int = FOLLOW) -> None:
        """Applies what is new in the whole list since then."""
        await self._reader.window(since, priority=priority, apply=self.apply)

    async def _read_late_lookback(
        self, late_s: float, window_s: float, *, priority: int = FOLLOW
    ) -> None:
        """Applies what came late by up to `late_s`, also where the last such sweep is long ago."""
        began = self._source.now()
        since = min(self._lookback.since(late_s), began - window_s)
        remembered = (
            began - 1.9 * self._intervals.window_s
        )  # `_forget` drops what is a little older.
        if since < remembered:
            await self.poll()  # After a long absence: down to what is known, however far that is.
        await self.read_lookback(max(since, remembered), priority=priority)
        self._lookback.note(began, late_s)

    async def apply(
        self, events: Sequence[StripeObject], truth: AsOf, *, as_of: float | None = None
    ) -> None:
        """Writes events, the states that they leave, and what they make us ask, in one commit.

        `events` in Stripe's order, newest first; `truth`: when the list said so. `as_of`: the list has
        now been read so far that everything it showed at this moment is applied.
        """
        self.stats.polls += 1
        if as_of is not None and as_of - self.stats.as_of > _TOO_LONG_S:
            # Only a start lists everything anew so that a crash on the way loses nothing (`resume`).
            raise FellBehind(
                "Stripe's event log no longer reaches back to where this sync stands.",
                hint="It begins again by itself, and lists everything anew.",
            )
        async with self._applying:  # A poll and a sweep may have seen the same.
            events = self._applied.fresh(events)
            if as_of is None and len(events) >= _MANY:
                self._refetches.pause()  # More is to come: what it changes again is asked for once.
            if events or self._is_due(as_of):
                await self._commit(events, truth, as_of)
            if as_of is not None:
                self.stats.as_of = max(self.stats.as_of, as_of)
                self._refetches.resume()

    async def _commit(
        self, events: Sequence[StripeObject], truth: AsOf, as_of: float | None
    ) -> None:
        parts, refetches = await self._applier.plan(events, truth)
        applied = [(str(e.get("id")), created_of(e), request_of(e)) for e in events]
        schema = self._source.mirror.schema
        position = max(as_of, self.stats.as_of) if as_of is not None else None

        async def effect(connection: Connection) -> None:
            if applied:
                await add_applied(connection, schema, applied)
            await add_refetches(connection, schema, refetches)
            if position is not None:
                await save_checkpoints(connection, schema, [followed(position)])
            if applied or position is not None:
                await connection.execute(
                    "SELECT pg_notify($1, $2)", CHANNEL, f"{schema} {position or 0:.3f}"
                )

        await self._source.mirror.submit_parts(parts, lane=LIVE_LANE, effect=effect)
        self._saved_at = self._clock()
        self._applied.add({key: created for key, created, _ in applied}, loose=as_of is None)
        since = self.stats.as_of - self._intervals.window_s
        seconds = [created for _, created, _ in applied]
        self.stats.applied(seconds, since=since, ended=as_of is not None)
        self._refetches.add(refetches)

    def _is_due(self, as_of: float | None) -> bool:
        return as_of is not None and self._clock() - self._saved_at >= _AT_REST_S

    async def _forget(self) -> None:
        """Events that the window no longer reaches need not be remembered."""
        before = self._source.now() - 2 * self._intervals.window_s
        self._applied.forget(before)
        async with self._source.transaction() as connection:
            await forget_applied(connection, self._source.mirror.schema, before)


@dataclass(slots=True)
class PollIntervals:
    """How often to look. Seconds; the settings of the same names."""

    poll_s: float = 0.5
    window_s: float = 600.0
    near_window_s: float = 60.0
    near_every_s: float = 5.0
    window_every_s: float = 60.0


@dataclass(slots=True)
class PollerStats:
    """What `Live` shows of itself."""

    as_of: float = 0.0
    events: int = 0
    polls: int = 0
    late: int = 0
    trouble: str = ""
    remedy: str = ""
    _newest: int = 0
    _newest_read: int = 0
    """Seconds: of the newest event so far, and as it was when a reading last came to its end."""

    def applied(self, seconds: Sequence[int], *, since: float, ended: bool) -> None:
        """Counts events, by the second in which each was created, of a reading that `ended` with them.

        Late is what is older than an earlier reading has shown; pages of one go from new to old. What is
        from before `since` is just old: the first look at a quiet account shows that.
        """
        self.events += len(seconds)
        self.late += sum(since <= second < self._newest_read - 1 for second in seconds)
        self._newest = max(self._newest, *seconds, 0)
        if ended:
            self._newest_read = self._newest


MARGIN_S = 2.0
"""`created` is cut to the second, and Stripe's clock is known to about one."""


class LookbackWindows:
    """When sweeps began, on Stripe's clock, by the lateness (seconds) that they are good for.

    >>> swept = Swept(1000.0)
    >>> swept.since(300.0)
    698.0
    >>> swept.note(1060.0, 300.0)
    >>> swept.note(1065.0, 30.0)
    >>> swept.since(300.0), swept.since(0.5)
    (758.0, 1062.5)
    """

    def __init__(self, began: float) -> None:
        """Up to `began` everything has been read, however late."""
        self._began = {float("inf"): began}

    def since(self, late_s: float) -> float:
        """Where the next sweep for this lateness begins."""
        began = max(when for late, when in self._began.items() if late >= late_s)
        return began - late_s - MARGIN_S

    def note(self, began: float, late_s: float) -> None:
        """A sweep from `since(late_s)` or earlier to the end of the list, which began then."""
        # What is good for less and older is of no more use: a handful stays.
        self._began = {
            late: when for late, when in self._began.items() if late > late_s or when > began
        }
        self._began[late_s] = began
