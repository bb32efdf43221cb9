"""Works off the refetch queue (`pinstripe.pending`): coalesced, within the rate limit, durable.

One request at a time for each key; a refetch added meanwhile is made once more afterwards. Each class of
work has workers of its own. Objects of one type that were created at about the same time are one request
together (`batch_fetch`): while events come thick, what they cause besides rows in doubt is gathered for up
to two seconds.

Only an answer of Stripe completes a refetch (`errors.PinstripeError.is_answer`). After any other error (a
5xx, a 4xx that is not understood, a truncated body, an unreachable Postgres) the refetch stays pending with
the reason, and is retried for ever, after pauses that grow to a day.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec
import structlog

from pinstripe.client.rate_limit import WorkClass
from pinstripe.client.response import StripeObject
from pinstripe.concurrency import backoff, cancel, wait_for
from pinstripe.errors import LostLease, NotFound, PinstripeError
from pinstripe.mirror.orphans import list_field
from pinstripe.rows.extract import TruncatedList
from pinstripe.source.resolve import complete, read_children, refetch_row
from pinstripe.source.source import TAKEN_UP, Source
from pinstripe.store.cursors import BESIDE, ended_by
from pinstripe.store.ddl import qualified
from pinstripe.store.events import EventDetail, EventFilter, list_events, load_event
from pinstripe.store.refetch import (
    LATER_S,
    Noted,
    Refetch,
    RefetchDone,
    add_refetches,
    load_refetches,
    note_trouble,
)
from pinstripe.sync.refetch.batch_fetch import LEAST, can_batch, fetch_batch, find_batch
from pinstripe.sync.refetch.queue import RefetchKey, RefetchQueue

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Refresh = Callable[[str], Awaitable[None]]

_WORKERS = 8
"""For each class of work: at 12.5 requests/s of an endpoint enough for answers that take 640 ms."""

_CLASSES = (WorkClass.CONTESTED, WorkClass.RELATED, WorkClass.PREVIEWS, WorkClass.SCANS)

PAUSES_S = (1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0)
"""After each failed try: in the end 30 GETs a month, of a quota of 10,000 at least."""

_DATABASE_S = 15.0

_LOOK_S = 5.0
"""How often the table is read without a notification: what a gateway owes for a read comes with none, and
a doubt is to be settled within ten seconds of the margin."""

_FEW = 1000
"""While more are open, only what was queued lately is read of the table."""
_LATE_S = 10.0
"""So long after it was queued a commit may show a refetch then."""

_CONTEST_S = 2.0

_SPACING_S = 0.2

_MOST_GATHER_S = 2.0
_WAITED_GATHER_S = 0.25
"""While a caller waits for what it wrote."""
_WAITED_S = 5.0
_RATE_S = 2.0
"""The time over which refetches are counted."""
_GATHERED = 20.0
"""At so many refetches a second they are gathered for a second, at others in proportion: each gathering has
about this many, or all that two seconds bring."""

_HOLD_S = 3.0
"""The longest that a stretch of events pauses refetches."""

_HELD_S = 0.05


class RefetchWorker:
    """The queue and its workers. `upcoming` refreshes previews: kind -> function of the owner's id."""

    def __init__(
        self,
        source: Source,
        *,
        upcoming: Mapping[str, Refresh] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trouble = ""
        self._source = source
        self._upcoming = dict(upcoming or {})
        self._sleep = sleep
        self._clock = clock
        self._paused_until = 0.0
        self._queue = RefetchQueue()
        self._singly: set[str] = set()
        """Tables whose list Stripe refuses to this key."""
        self._refused: set[str] = set()
        self._attempts: dict[RefetchKey, int] = {}
        self._failing_since: dict[RefetchKey, float] = {}
        self._succeeded_at = float("-inf")
        self._again: set[RefetchKey] = set()
        """Refetches that were answered, and are to be made once more."""
        self._put_off: set[RefetchKey] = set()
        """Refetches that have waited until no replica can be behind the row."""
        self._noted = asyncio.Event()
        self._is_left = False
        """A refetch that was answered stays in the table, queued again at any time since its request."""
        self._added: deque[tuple[float, int]] = deque()
        """When events added refetches, and how many."""
        self._waited_until = float("-inf")
        self._alone: set[RefetchKey] = set()
        """Refetches that a list page did not answer."""

    def __len__(self) -> int:
        return len(self._queue)

    async def run(self) -> None:
        """Work until cancelled; begins with what an earlier process left."""
        await self._load()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._load_new())
                for work in _CLASSES:
                    for _ in range(_WORKERS):
                        group.create_task(self._work(work))
        finally:
            self._queue.close()

    def poll_now(self) -> None:
        """Another process may have added refetches to the database."""
        self._noted.set()

    def on_wait(self) -> None:
        """A caller waits for what it wrote: gather no longer than it takes to read the events of it."""
        self._waited_until = self._clock() + _WAITED_S
        self._queue.end_gathering()
        self.poll_now()

    async def _load_new(self) -> None:
        """Load refetches that others added, and conflicts that could not be resolved."""
        soon, looked_at = False, self._clock()
        doubted = self._source.replica_lag + timedelta(seconds=_CONTEST_S)
        while True:
            await wait_for(self._noted, _CONTEST_S if soon else _LOOK_S)
            self._noted.clear()
            at, schema = self._clock(), self._source.mirror.schema
            was_left, self._is_left = self._is_left, False
            last_s = at - looked_at + doubted.total_seconds() + _LATE_S
            if was_left or len(self._queue) < _FEW:
                last_s = float("inf")
            try:
                async with self._source.pool.acquire() as connection:
                    left = await load_refetches(connection, schema, last_s=last_s)
                    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
            except PinstripeError as error:
                self._is_left = self._is_left or was_left
                _log.debug("todos.untaken", error=error.message)
                continue
            looked_at = at
            # One that is in progress is made again: its row may have been refused before. Of those that
            # wait here for their next try, others have queued some again since.
            due = [
                n for n in left if n.released or (not n.wait_s and self._queue.waits(n.refetch.key))
            ]
            self._queue.add([noted.refetch for noted in due])
            ours = [noted for noted in left if noted.refetch.key not in self._queue]
            # Conflicts are resolved by the mirror; only what is left of them is loaded here.
            old = now - doubted
            self._take(n for n in ours if n.refetch.since or n.attempts or n.asked_at <= old)
            soon = any(not n.refetch.since and not n.attempts and n.asked_at > old for n in ours)
            await self._sleep(_SPACING_S)

    async def drain(self) -> None:
        """Work off what is in the database, and return; what fails stays pending."""
        await self._load()
        await self.work_off()

    async def work_off(self) -> None:
        """Work off what has been loaded, and return; what fails stays pending."""
        if not self._queue:
            return
        self._queue.end_gathering()
        # A refetch may queue others, of any class.
        count = min(_WORKERS, 1 + len(self._queue))
        workers = [asyncio.create_task(self._work(work)) for work in _CLASSES for _ in range(count)]
        try:
            idle = asyncio.create_task(self._at_rest())
            await asyncio.wait([idle, *workers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = await cancel(idle, *workers)
            self._queue.close()
        for end in ended:
            if isinstance(end, Exception):
                raise end

    async def _at_rest(self) -> None:
        """Return when nothing is left but failed ones that wait for their next try."""
        await self._queue.at_rest()
        while any(key in self._queue for key in self._again):
            await self._sleep(LATER_S)
            await self._queue.at_rest()

    async def _load(self) -> None:
        async with self._source.pool.acquire() as connection:
            self._take(await load_refetches(connection, self._source.mirror.schema))

    def _take(self, noted: Iterable[Noted]) -> None:
        """Load refetches from the database; one that waits for its next try waits here too."""
        for one in noted:
            if one.refetch.kind.startswith("upcoming_") and one.refetch.kind not in self._upcoming:
                continue  # This process makes no previews.
            if one.attempts:
                self._attempts[one.refetch.key] = one.attempts
            self._queue.add([one.refetch])
            if one.wait_s > 0:
                self._queue.put_off(one.refetch.key, one.wait_s)

    def add(self, refetches: Sequence[Refetch]) -> None:
        """Load what has been added to the database."""
        self._queue.add(refetches)

    def gather(self, refetches: Sequence[Refetch]) -> None:
        """Like `add`, for what events cause: if they come thick, it waits for more of its kind."""
        now = self._clock()
        while self._added and self._added[0][0] < now - _RATE_S:
            self._added.popleft()
        rate = sum(count for _, count in self._added) / _RATE_S
        if refetches:
            self._added.append((now, len(refetches)))
        most_s = _WAITED_GATHER_S if now < self._waited_until else _MOST_GATHER_S
        self._queue.add(refetches, gather_s=min(rate / _GATHERED, most_s))

    def counts(self) -> dict[str, int]:
        """Return how many refetches are open, by the name of their class of work."""
        return self._queue.counts()

    async def idle(self) -> None:
        """Return when nothing is left to do."""
        await self._queue.idle()

    def pause(self) -> None:
        """Events come first: start no more requests until `resume`, or for some seconds."""
        self._paused_until = self._clock() + _HOLD_S

    def resume(self) -> None:
        """The stretch of events has come to its end."""
        self._paused_until = 0.0

    async def _work(self, work: WorkClass) -> None:
        while True:
            refetch = await self._queue.next(work)
            if self._paused_until > self._clock():
                self._queue.put_back(refetch.key)
                await asyncio.sleep(_HELD_S)
                continue
            pause_s: float | None = 0.0
            try:
                is_done, pause_s = await self._do_with_others(refetch)
                if not is_done:
                    pause_s = await self._do(refetch)
            finally:
                self._end(refetch, pause_s)

    def _end(self, refetch: Refetch, pause_s: float | None) -> None:
        """`pause_s`: until the next try; None: it is done."""
        if pause_s is None:
            self._queue.done(refetch.key)
            self._succeeded(refetch)
        elif pause_s:
            self._queue.later(refetch, pause_s)
        else:
            self._queue.put_back(refetch.key)

    def _succeeded(self, refetch: Refetch) -> None:
        """Retry without a pause what began to fail since the last success: its cause may be over.

        What failed before that has a cause of its own, and waits.
        """
        self._attempts.pop(refetch.key, None)
        self._failing_since.pop(refetch.key, None)
        self._alone.discard(refetch.key)
        self.trouble = ""
        last, self._succeeded_at = self._succeeded_at, self._clock()
        self._queue.wake([place for place, at in self._failing_since.items() if at > last])

    async def _do_with_others(self, refetch: Refetch) -> tuple[bool, float | None]:
        """Whether one page of a list answered it, and others that wait; and after how many seconds it is to
        be fetched once more.
        """
        if refetch.kind not in ("fetch", "relate") or refetch.key in self._alone:
            return False, None
        if refetch.table in self._singly or not can_batch(refetch.table):
            return False, None
        waiting = self._queue.waiting(refetch.table)
        if len(waiting) + 1 < LEAST or refetch.table not in self._source.wanted:
            return False, None
        others: list[Refetch] = []
        shown: Mapping[str, RefetchDone] = {}
        try:
            with self._queue.holding(refetch.table, refetch.work_class):
                batch = await find_batch(self._source, refetch, waiting)
                if batch is not None:
                    others = self._queue.take(refetch.table, batch.told)
                    shown = await fetch_batch(self._source, batch, [refetch, *others])
            for answer in (a for a in shown.values() if a.is_cut):
                await self._relate_items(answer.refetch)
        except LostLease:
            raise
        except PinstripeError as error:
            # This one is fetched alone. So are the others, if Stripe does not show the list to this key.
            if error.is_answer:
                self._singly.add(refetch.table)
            _log.info("todos.singly", table=refetch.table, error=error.message)
        finally:
            self._alone.update(other.key for other in others if other.id not in shown)
            for other in others:
                self._end(other, self._once_more(shown[other.id]) if other.id in shown else 0.0)
        if refetch.id not in shown:
            return False, None
        return True, self._once_more(shown[refetch.id])

    async def _do(self, refetch: Refetch) -> float | None:
        """Make the request; return the seconds until the next try, None if it is done."""
        try:
            answer = await self._answer(refetch)
        except LostLease:
            raise
        except PinstripeError as error:
            return await self._troubled(refetch, error)
        return self._once_more(answer)

    def _once_more(self, answer: RefetchDone) -> float | None:
        """Note whether a refetch that was answered is to be made once more; return the pause."""
        key = answer.refetch.key
        if answer.is_left:
            # Another process, or a row in doubt, queued it: only the table has that.
            self._is_left = True
            self.poll_now()
        if answer.again_s is None:
            self._again.discard(key)
            self._put_off.discard(key)
            return None
        self._again.add(key)
        return answer.again_s + LATER_S

    async def _troubled(self, refetch: Refetch, error: PinstripeError) -> float:
        """It stays pending: save the reason, and return the pause until the next try."""
        attempts = self._attempts.get(refetch.key, 0)
        self._attempts[refetch.key] = attempts + 1
        self._failing_since.setdefault(refetch.key, self._clock())
        self.trouble = error.message
        pause_s = backoff(PAUSES_S, attempts)
        if error.fault is not None:
            pause_s = min(pause_s, _DATABASE_S)  # It cost no request: Postgres refused the row.
        _log.warning(
            "todo.trouble",
            kind=refetch.kind,
            table=refetch.table,
            attempts=attempts + 1,
            error=error.message,
        )
        try:
            async with self._source.transaction() as connection:
                await note_trouble(connection, self._source.mirror.schema, refetch, error, pause_s)
        except LostLease:
            raise
        except PinstripeError as untold:
            _log.debug("todo.untold", error=untold.message)  # Postgres itself is unreachable.
        return pause_s

    async def _answer(self, refetch: Refetch) -> RefetchDone:
        """Make the request and complete the refetch. Raises errors that are no answer."""
        source = self._source
        is_row = refetch.kind in ("fetch", "relate") and refetch.table in source.wanted
        table, told_from = refetch.table if is_row else "", refetch.told_from
        started, version, is_told = await source.row_state(table, refetch.id, since=told_from)
        answer = source.done(refetch, started, is_told=is_told)
        event = await self._event(refetch) if answer.lag_s and is_row else None
        if event is not None and await self._is_alone(event):
            answer.proves = proof(event)
        if refetch.kind == "relate" and refetch.table == TAKEN_UP:
            answer.proves = lambda obj: (
                obj is not None and (obj.get("invoice") or "") == refetch.parent
            )
        if is_row and refetch.kind == "relate" and version and not await self._may_move(refetch):
            answer.lag_s = 0.0
            await complete(source, answer)
            return answer
        if version and version + source.replica_lag > started and refetch.key not in self._put_off:
            self._put_off.add(refetch.key)
            # A replica that is behind would contradict what was written a moment ago. (A hint is followed
            # at once: nothing else says what the object is now.)
            if refetch.kind == "relate":
                answer.again_s = (version + source.replica_lag - started).total_seconds()
                return answer
            # (One of our own version says it, but its order is unknown.)
            is_ours = event is not None and event.event.api_version == source.mirror.api_version
            if is_ours and not answer.is_told:
                answer.again_s = answer.lag_s
                return answer
        try:
            if refetch.kind in self._upcoming:
                await self._upcoming[refetch.kind](refetch.id)
            elif refetch.kind == "children":
                await read_children(source, refetch, started)
            elif refetch.kind == "nested":
                await _follow(source, refetch, started)
                answer.is_cut = True
            elif is_row:
                await self._fetch(refetch, answer)
            if answer.is_cut:
                await self._relate_items(refetch)
        except PinstripeError as error:
            if not error.is_answer:
                raise
            await self._refused_for(refetch, error)
            if isinstance(error, NotFound) and not source.is_past(refetch.since):
                answer.lag_s = source.replica_lag.total_seconds()
        await complete(source, answer)
        return answer

    async def _relate_items(self, refetch: Refetch) -> None:
        """Queue the items of an invoice's lines that do not name it yet: its events show ten lines."""
        source, schema, lines = self._source, self._source.mirror.schema, "line_item"
        own = f"{refetch.table} {refetch.id}"
        table, _, invoice = (refetch.parent if refetch.kind == "nested" else own).partition(" ")
        if table != "invoice" or not source.wanted.keys() >= {lines, TAKEN_UP}:
            return
        async with source.transaction() as connection:
            found = await connection.fetch(
                f"SELECT i.id FROM {qualified(schema, lines)} l JOIN {qualified(schema, TAKEN_UP)} i"
                " ON i.id = coalesce(l.parent_invoice_item_details ->> 'invoice_item', l.invoice_item)"
                " WHERE l.invoice_id = $1 AND i.invoice_id IS DISTINCT FROM $1",
                invoice,
            )
            item = replace(refetch, kind="relate", table=TAKEN_UP, parent=invoice, work=None)
            items = [replace(item, id=row[0]) for row in found]
            await add_refetches(connection, schema, items)
        self.gather(items)

    async def _refused_for(self, refetch: Refetch, error: PinstripeError) -> None:
        """Stripe refuses it, and would again. A deleted object is no refusal; others are logged once a
        table.
        """
        _log.info("todo.refused", kind=refetch.kind, table=refetch.table, error=error.message)
        stream = f"{BESIDE[0]}{refetch.table}"
        if isinstance(error, NotFound) or stream in self._refused:
            return
        self._refused.add(stream)
        await self._source.save([ended_by(error, stream, {"table": refetch.table})])

    async def _fetch(self, refetch: Refetch, answer: RefetchDone) -> None:
        found = await refetch_row(
            self._source,
            refetch.table,
            refetch.id,
            started=answer.started,
            parent=refetch.parent,
            cause=refetch.cause,
            answers=[answer],
            priority=refetch.work_class,
        )
        answer.is_cut = found is not None and bool(found.lists)

    async def _event(self, refetch: Refetch) -> EventDetail | None:
        """The event that asks for the object and carries it; None if it is not in the database."""
        mirror = self._source.mirror
        if "event" not in mirror.tables or not refetch.event_id:
            return None
        async with self._source.pool.acquire() as connection:
            found = await load_event(connection, mirror.schema, refetch.event_id)
        return found if found is not None and found.event.object_id == refetch.id else None

    async def _is_alone(self, event: EventDetail) -> bool:
        """Whether no other event of its object is so near that a replica may be behind that one too: what
        was changed and changed back proves nothing.
        """
        line, lag_s = event.event, self._source.replica_lag.total_seconds()
        if line.created is None or line.object_id is None:
            return False
        since = int(line.created.timestamp() - lag_s) - 1
        near = EventFilter(object_id=line.object_id, since=since)
        async with self._source.pool.acquire() as connection:
            found = await list_events(connection, self._source.mirror.schema, near, limit=2)
        return len(found) == 1

    async def _may_move(self, refetch: Refetch) -> bool:
        """Whether a related object that has a row may have changed: a balance transaction, once, and an
        invoice item whose row names another invoice than that which takes it up, its parent.
        """
        if refetch.table == TAKEN_UP:
            return (await self._value(refetch, "invoice_id") or "") != refetch.parent
        if refetch.table != "balance_transaction":
            return False
        return await self._value(refetch, "status", "available_on <= now()") == "pending"

    async def _value(self, refetch: Refetch, column: str, when: str = "true") -> str | None:
        """What a column of its row holds; None without one that meets the SQL condition `when`."""
        async with self._source.pool.acquire() as connection:
            found: str | None = await connection.fetchval(
                f"SELECT {column} FROM {qualified(self._source.mirror.schema, refetch.table)}"
                f" WHERE id = $1 AND {when}",
                refetch.id,
            )
        return found


def proof(event: EventDetail) -> Callable[[StripeObject | None], bool]:
    """Return what tells of an object, None if Stripe has none (any more), whether it is surely no older
    than the event: it has what was made, not what was deleted, or a value that was changed.
    """
    line = event.event
    now: StripeObject = msgspec.json.decode(event.object or b"null") or {}
    before: StripeObject = msgspec.json.decode(event.previous_attributes or b"null") or {}
    # In another version a value may have another form; where it has the same, it means the same.
    changed = {
        key: now[key]
        for key, value in before.items()
        if key in now and not isinstance(value, dict | list) and now[key] != value
    }

    def proves(obj: StripeObject | None) -> bool:
        if obj is None:
            return str(line.type).endswith(".deleted")
        if str(line.type).endswith(".created"):
            return True
        return any(key in obj and obj[key] == value for key, value in changed.items())

    return proves


async def _follow(source: Source, refetch: Refetch, started: datetime) -> None:
    """Read the nested list that a refetch names, from its start."""
    table, _, key = refetch.parent.partition(" ")
    field = list_field(table, refetch.table)
    truncated = TruncatedList(refetch.id, table, key, refetch.table, "", 0, field)
    await source.follow(
        truncated,
        priority=refetch.work_class,
        cause=refetch.cause,
        known_until=started - source.replica_lag,
    )
