"""Follows the account: reads the event log twice a second and applies what is new.

    poll -> new events -> changes (order) -> mirror: rows + cursor + to-dos, one commit -> NOTIFY

The list is eventually consistent: an event can show up behind newer ones. So what is seen is applied at
once, and a trailing window is read again, now and then, for what came late. Events are applied once,
by id. `as_of` of the stream `events` says up to which moment on Stripe's clock everything that the list
showed is applied.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from pinstripe.catalog.tables import table_of_object
from pinstripe.errors import PinstripeError
from pinstripe.mirror import LIVE_LANE, Part, Truth
from pinstripe.rows.decode import StripeObject
from pinstripe.rows.extract import Found
from pinstripe.store.changes import Cause
from pinstripe.store.cursors import Checkpoint, save_checkpoints
from pinstripe.store.pool import Connection
from pinstripe.store.todo import Todo, add_applied, add_todos, forget_applied, load_applied
from pinstripe.sync.backfill import FOLLOWED
from pinstripe.sync.events import EVENTS, RETENTION_S
from pinstripe.sync.order import Change, changes, created_of, request_of
from pinstripe.sync.page import read_list, truth_of
from pinstripe.sync.ranges import PAGE
from pinstripe.sync.related import related
from pinstripe.sync.source import LIVE, Source, retrieve_endpoint
from pinstripe.sync.todos import Todos

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

CHANNEL = "pinstripe"
"""NOTIFY channel; the payload is `schema as_of`."""
_TROUBLE_PAUSE_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_AT_REST_S = 5.0
"""How often the cursor is saved when nothing happens."""


@dataclass(slots=True)
class Pace:
    """How often to look. Seconds; the settings of the same names."""

    poll_s: float = 0.5
    window_s: float = 600.0
    near_window_s: float = 60.0
    near_every_s: float = 5.0
    window_every_s: float = 60.0


@dataclass(slots=True)
class Seen:
    """What `Live` shows of itself."""

    as_of: float = 0.0
    events: int = 0
    polls: int = 0
    late: int = 0
    newest: int = 0
    gaps: int = 0
    trouble: str = ""
    remedy: str = ""


class Live:
    """The one reader of an account."""

    def __init__(
        self,
        source: Source,
        todos: Todos,
        *,
        since: float,
        pace: Pace | None = None,
        more: Callable[[Sequence[StripeObject]], Awaitable[list[Todo]]] | None = None,
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
        self._more = more
        self._on_gap = on_gap
        self._interval_s = interval_s
        self._awake = awake
        self._clock = clock
        self._table_of = table_of_object()
        self._applied: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._polled = asyncio.Condition()
        self._saved_at = 0.0
        self._near_at = 0.0
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
        return self._pace.poll_s if self._interval_s is None else self._interval_s()

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
            async with self._source.transaction() as connection:
                told = replace(
                    _checkpoint(self.seen.as_of), reason=error.message, remedy=error.hint
                )
                await save_checkpoints(connection, self._source.mirror.schema, [told])
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
        after: str | None = None
        began: float | None = None
        while True:
            asked = [*params, ("limit", str(PAGE))]
            if after is not None:
                asked.append(("starting_after", after))
            reply = await self._source.stripe.get(
                EVENTS, asked, endpoint=f"GET {EVENTS}", priority=LIVE
            )
            self._source.heard(reply)
            began = reply.not_before if began is None else began
            page = read_list(reply, EVENTS)
            fresh = [e for e in page.objects if str(e.get("id")) not in self._applied]
            met_known = len(fresh) < len(page.objects)
            over = not page.has_more or page.after in (None, after)
            over = over or (not whole and (met_known or self._reaches_back(page.objects)))
            await self.apply(fresh, truth_of(reply), as_of=began if over else None)
            if over:
                return
            after = page.after

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
        parts, todos = await self._plan(events, truth)
        applied = [(str(e.get("id")), created_of(e), request_of(e)) for e in events]
        schema = self._source.mirror.schema
        position = max(as_of or 0.0, self.seen.as_of) if as_of is not None else None

        async def effect(connection: Connection) -> None:
            if applied:
                await add_applied(connection, schema, applied)
            await add_todos(connection, schema, todos)
            if position is not None:
                await save_checkpoints(connection, schema, [_checkpoint(position)])
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

    async def _plan(
        self, events: Sequence[StripeObject], truth: Truth
    ) -> tuple[list[Part], list[Todo]]:
        extractor, wanted = self._source.mirror.extractor, self._source.wanted
        log = Found()
        for event in events:
            extractor.object(event, log)
        parts: list[Part] = [(log, truth)]
        todos: list[Todo] = []
        for change in changes(events, self._source.mirror.api_version):
            found = Found()
            written, asked = self._state(change, found)
            if written:
                cause = Cause(change.event_id, change.request_id)
                truth_then = Truth(float(change.created), change.created + 1.0, cause=cause)
                parts.append((found, truth_then))
            todos += asked
            todos += related(change, wanted)
        if self._more is not None and events:
            todos += await self._more(events)
        return parts, todos

    def _state(self, change: Change, found: Found) -> tuple[bool, list[Todo]]:
        """The rows that one change leaves, or the request that will tell them."""
        table = self._table_of.get(change.name)
        extractor, wanted = self._source.mirror.extractor, self._source.wanted
        parent = _parent_of(change.object)
        fetch = [Todo("fetch", table or "", change.key, parent, change.created, change.request_id)]
        if table is None:
            # Of a type to come, or one without a table: what it holds may have one.
            extractor.object(change.object, found)
            return True, []
        if table not in wanted:
            return False, []
        deletable = any(c.read == "deleted" for c in wanted[table].columns)
        if change.deleted and deletable:
            extractor.object({**change.object, "deleted": True}, found)
            return True, []
        if (change.hint or not change.sure) and retrieve_endpoint(table) is not None:
            return False, fetch
        extractor.object(change.object, found)
        return True, fetch if found.lists else []

    async def _forget(self) -> None:
        """Events that the window no longer reaches need not be remembered."""
        before = self._source.now() - 2 * self._pace.window_s
        self._applied = {k: c for k, c in self._applied.items() if c >= before}
        async with self._source.transaction() as connection:
            await forget_applied(connection, self._source.mirror.schema, before)


def _checkpoint(as_of: float) -> Checkpoint:
    return Checkpoint(FOLLOWED, "running", position={"table": "event"}, as_of=as_of)


def _parent_of(obj: StripeObject) -> str:
    """The id of the object under which this one is retrieved, if it names it."""
    for name in ("account", "customer", "fee", "transfer"):
        value = obj.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, dict) and isinstance(value.get("id"), str):
            return str(value["id"])
    return ""
