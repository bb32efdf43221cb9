"""Follows the account: reads the event log twice a second and applies what is new.

    poll -> new events -> applying -> mirror: rows + cursor + to-dos, one commit -> NOTIFY

The list is eventually consistent: an event can show up behind newer ones. So what is seen is applied at
once, and a trailing window is read again, now and then, for what came late. Events are applied once,
by id. `as_of` of the stream `events` says up to which moment on Stripe's clock everything that the list
showed is applied.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from pinstripe.client.pages import read_page
from pinstripe.errors import PinstripeError
from pinstripe.mirror import LIVE_LANE, Truth
from pinstripe.rows.decode import StripeObject
from pinstripe.source.account import Source
from pinstripe.source.page import PAGE, read_list, spanning, truth_of
from pinstripe.store.cursors import save_checkpoints
from pinstripe.store.pool import Connection
from pinstripe.store.todo import add_applied, add_todos, forget_applied, load_applied
from pinstripe.sync.applying import More, Planner
from pinstripe.sync.events import EVENTS, RETENTION_S, ask, followed
from pinstripe.sync.order import created_of, request_of
from pinstripe.sync.seen import Pace, Seen
from pinstripe.sync.todos import Todos

__all__ = ["Live", "Pace", "Seen"]

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

CHANNEL = "pinstripe"
"""NOTIFY channel; the payload is `schema as_of`."""
_TROUBLE_PAUSE_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_LOOK = 20
"""Events in the first look: mostly none is new, and a page of a hundred is half a megabyte."""
_MOST_EVENTS = 1000
"""Applied in one commit: a burst costs less in large pieces, what is live waits less in small ones."""
_AT_REST_S = 5.0
"""How often the cursor is saved when nothing happens."""


class Live:
    """The one reader of an account."""

    def __init__(
        self,
        source: Source,
        todos: Todos,
        *,
        since: float,
        pace: Pace | None = None,
        more: More | None = None,
        on_gap: Callable[[], None] = lambda: None,
        interval_s: Callable[[], float] | None = None,
        awake: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`since`: everything that the list showed up to this moment on Stripe's clock is applied.

        `more` gives the to-dos of previews that events ask for. `on_gap` is called when the log no
        longer reaches back to where we stand. `interval_s` is the read allowance's word on how often
        to look, `awake` tells it of a ring.
        """
        self.seen = Seen(as_of=since)
        self._source = source
        self._todos = todos
        self._pace = pace or Pace()
        self._on_gap = on_gap
        self._interval_s = interval_s
        self._awake = awake
        self._clock = clock
        self._planner = Planner(source, more)
        self._applied: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._polled = asyncio.Condition()
        self._saved_at = 0.0
        self._near_at = 0.0
        self._is_busy = False
        self._window_at = 0.0

    def now(self) -> float:
        """The present on Stripe's clock."""
        return self._source.now()

    @property
    def poll_s(self) -> float:
        """The interval as set, before the read allowance."""
        return self._pace.poll_s

    def ring(self) -> None:
        """Somebody knows of a change: look now, and for a while as often as set."""
        self._awake()
        self._wake.set()

    async def run(self) -> None:
        """Catches up, then follows until cancelled."""
        await self._begin()
        troubles = 0
        while True:
            started = self._clock()
            try:
                await self._turn(started)
            except PinstripeError as error:
                await self._troubled(error)
                await self._rest(_TROUBLE_PAUSE_S[min(troubles, len(_TROUBLE_PAUSE_S) - 1)])
                troubles += 1
                continue
            troubles = 0
            if self.seen.trouble:
                self.seen.trouble = self.seen.remedy = ""
                self._saved_at = 0.0  # The next look says in the database that it is over.
            await self._rest(self._poll_s() - (self._clock() - started))

    def _poll_s(self) -> float:
        usual_s = self._pace.poll_s if self._interval_s is None else self._interval_s()
        # While things happen more is likely to: that halves the lag of what comes next.
        busy = self._is_busy and usual_s <= self._pace.poll_s
        return usual_s / 2 if busy else usual_s

    async def _rest(self, pause_s: float) -> None:
        self._wake.clear()
        if pause_s > 0:
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _troubled(self, error: PinstripeError) -> None:
        """Says what is wrong: here, in the log, and in the database for `pinstripe status`."""
        first = not self.seen.trouble
        self.seen.trouble, self.seen.remedy = error.message, error.hint
        if not first:
            return
        _log.warning("live.trouble", error=error.message)
        try:
            told = replace(followed(self.seen.as_of), reason=error.message, remedy=error.hint)
            await self._source.save([told])
        except PinstripeError:
            _log.debug("live.untold")  # It is Postgres that is in trouble.

    async def _begin(self) -> None:
        """Reads everything since the position, for which a whole sweep is needed."""
        since = self.seen.as_of - self._pace.window_s
        while True:
            try:
                async with self._source.pool.acquire() as connection:
                    self._applied = await load_applied(
                        connection, self._source.mirror.schema, since
                    )
                await self.sweep(since)
            except PinstripeError as error:
                await self._troubled(error)
                await asyncio.sleep(_TROUBLE_PAUSE_S[1])
                continue
            return

    async def _turn(self, now: float) -> None:
        """One look at the list: the newest page always, the windows when it is their time."""
        if self._source.now() - self.seen.as_of > RETENTION_S - 86400:
            _log.warning("live.gap", as_of=self.seen.as_of)
            self.seen.gaps += 1
            self.seen.as_of = self._source.now()
            self._on_gap()
        if now - self._window_at >= self._pace.window_every_s:
            self._window_at = self._near_at = now
            await self.sweep(self._source.now() - self._pace.window_s)
            await self._forget()
        elif now - self._near_at >= self._pace.near_every_s:
            self._near_at = now
            await self.sweep(self._source.now() - self._pace.near_window_s)
        else:
            await self.poll()

    async def poll(self) -> None:
        """Applies what is new at the top of the list, down to the first event that is known."""
        await self._read(())

    async def sweep(self, since: float) -> None:
        """Applies what is new in the whole list since then."""
        await self._read([("created[gte]", str(int(since)))], whole=True)

    async def _read(self, params: Sequence[tuple[str, str]], *, whole: bool = False) -> None:
        """Pages down the list and applies what is new, some pages at a time.

        The next page is asked for while the last ones are applied.
        """
        gathered: list[StripeObject] = []
        truth: Truth | None = None
        last: str | None = None
        limit = PAGE if whole or self._is_busy else _LOOK
        self._is_busy = False
        asking = asyncio.create_task(ask(self._source, params, None, limit=limit))
        began: float | None = None
        try:
            while True:
                reply = await asking
                began = reply.not_before if began is None else began
                shown = read_page(reply, EVENTS)
                known = [key in self._applied for key in shown.ids]
                # Hardly ever is anything new: only then are the events themselves decoded.
                events = [] if all(known) else read_list(reply, EVENTS).objects
                after = shown.ids[-1] if shown.ids else None
                # A list that goes on from where it began would never end.
                over = not shown.has_more or after is None or after == last
                last = after
                over = over or (not whole and (any(known) or self._reaches_back(events)))
                if not over:
                    asking = asyncio.create_task(ask(self._source, params, after))
                gathered += [e for e in events if e.get("id") not in self._applied]
                self._is_busy = self._is_busy or bool(events)
                truth = spanning(truth, truth_of(reply))
                if over or len(gathered) >= _MOST_EVENTS:
                    await self.apply(gathered, truth, as_of=began if over else None)
                    gathered, truth = [], None
                if over:
                    return
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    def _reaches_back(self, events: Sequence[StripeObject]) -> bool:
        """Whether a page goes back beyond what has been read before."""
        return bool(events) and created_of(events[-1]) < self.seen.as_of - self._pace.window_s

    async def apply(
        self, events: Sequence[StripeObject], truth: Truth, *, as_of: float | None = None
    ) -> None:
        """Writes events, the states that they leave, and what they make us ask, in one commit.

        `events` in Stripe's order, newest first; `truth`: when the list said so. `as_of`: the list has
        now been read so far that everything it showed at this moment is applied.
        """
        self.seen.polls += 1
        if not events and not self._is_due(as_of):
            self._advance(as_of)
            return
        parts, todos = await self._planner.plan(events, truth)
        applied = [(str(e.get("id")), created_of(e), request_of(e)) for e in events]
        schema = self._source.mirror.schema
        position = max(as_of or 0.0, self.seen.as_of) if as_of is not None else None

        async def effect(connection: Connection) -> None:
            if applied:
                await add_applied(connection, schema, applied)
            await add_todos(connection, schema, todos)
            if position is not None:
                await save_checkpoints(connection, schema, [followed(position)])
            if applied or position is not None:
                await connection.execute(
                    "SELECT pg_notify($1, $2)", CHANNEL, f"{schema} {position or 0:.3f}"
                )

        await self._source.mirror.submit_parts(parts, lane=LIVE_LANE, effect=effect)
        self._saved_at = self._clock()
        for key, created, _ in applied:
            self._applied[key] = created
            self.seen.late += created < self.seen.newest - 1
            self.seen.newest = max(self.seen.newest, created)
        self.seen.events += len(applied)
        self._todos.add(todos)
        self._advance(as_of)

    def _is_due(self, as_of: float | None) -> bool:
        return as_of is not None and self._clock() - self._saved_at >= _AT_REST_S

    def _advance(self, as_of: float | None) -> None:
        if as_of is not None:
            self.seen.as_of = max(self.seen.as_of, as_of)

    async def _forget(self) -> None:
        """Events that the window no longer reaches need not be remembered."""
        before = self._source.now() - 2 * self._pace.window_s
        self._applied = {k: c for k, c in self._applied.items() if c >= before}
        async with self._source.transaction() as connection:
            await forget_applied(connection, self._source.mirror.schema, before)
