"""Keeps fresh what has no events, by reading its lists again.

    newest         the newest pages of lists whose new objects no event reports, every half minute
    due            balance transactions on their day: they turn `available` without an event
    full refresh   every list to its end, once a day, each at its own time: finds silent edits, and rows
                   that are no longer listed
    scan           the same for lists by parent, parent after parent (`scan`)

Each newest page is a task of its own and keeps its pace, whatever the others read. Intervals stretch with
the read quota; a full refresh is made once a month in any case. Rows that one which came to its end does
not find are fetched, and flagged if Stripe does not have them.

It also resumes what the backfill left: a list that failed is retried for ever, after pauses that grow to a
day; one that Stripe refuses is requested again once a day. Both have a row in `pinstripe.cursor` with the
reason and the time of the next try.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from pinstripe.catalog.endpoints import ListEndpoint, list_endpoints, singleton_paths
from pinstripe.catalog.model import object_types
from pinstripe.catalog.relations import announced
from pinstripe.catalog.tables import table_name
from pinstripe.client.rate_limit import RateLimiter, WorkClass
from pinstripe.client.response import StripeObject
from pinstripe.concurrency import backoff
from pinstripe.errors import LostLease, PinstripeError
from pinstripe.rows.event import EVENTS
from pinstripe.source.source import Source
from pinstripe.store import confirmations
from pinstripe.store.confirmations import forget as forget_confirmations
from pinstripe.store.cursors import (
    BESIDE,
    LEFT_OUT,
    PARENT_INCOMPLETE,
    READY,
    SCAN_OF,
    Checkpoint,
    drop_checkpoints,
    ended_by,
    load_checkpoints,
    load_freshness,
    note_freshness,
    save_checkpoints,
)
from pinstripe.store.ddl import qualified
from pinstripe.store.pool import Connection
from pinstripe.store.quarantine import (
    EMPTIED,
    GONE,
    around_of,
    find_lost,
    note_refused,
    relisted,
    to_relist,
)
from pinstripe.sync.backfill.child_lists import open_list
from pinstripe.sync.backfill.list_stream import Scheduler
from pinstripe.sync.backfill.references import (
    References,
    end_first_copy,
    queue_missing,
    read_singletons,
)
from pinstripe.sync.read_quota import DAY_S, QuotaDemand, QuotaPlan
from pinstripe.sync.refetch.worker import PAUSES_S, RefetchWorker
from pinstripe.sync.scan import Scan

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_OVERLAP_S = 120
_WHOLE_PAGES = 4.0
_WATCH_S = 20.0
"""How often the database's catalog is checked for missing tables: one query of a millisecond."""
_TRIM_S = 600.0
"""How often confirmations are dropped that are of no more use."""
_REFUSED_S = DAY_S
"""After this time a list that Stripe refused is requested again."""
_FIRST_PAUSE = 3
"""Of `PAUSES_S`: a list costs more requests than an object."""
_MOST_VANISHED = 5000
"""Rows checked after one full refresh: those that no list returned are fetched one by one."""


@dataclass(slots=True)
class Intervals:
    """Seconds between two reads, before the read quota stretches them."""

    head_s: float = 30.0
    due_s: float = 600.0
    pass_s: float = 86400.0
    tick_s: float = 1.0


@dataclass(slots=True)
class _Stopped:
    """A stream that cannot be read now. `next_at`: on the process's clock."""

    next_at: float
    troubles: int = 0
    is_refused: bool = False


class Relist:
    """The schedule of one account's lists."""

    def __init__(
        self,
        source: Source,
        refetches: RefetchWorker,
        budget: RateLimiter,
        *,
        since: float | None = None,
        intervals: Intervals | None = None,
        plan: Callable[[], QuotaPlan] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`since`: newest pages begin there, on Stripe's clock. `plan`: what the read quota allows."""
        self.refreshing = ""
        self._stopped: dict[str, _Stopped] = {}
        """By stream, those of the cursors and the `_newest` of lists."""
        self._is_ready = True  # The first copy was complete once.
        self._counted: dict[str, int] = {}
        """Rows of each table at the last watch."""
        self._source = source
        self._since = since
        self._refetches = refetches
        self._budget = budget
        self._intervals = intervals or Intervals()
        self._plan = plan or (lambda: QuotaPlan(0.0))
        self._clock = clock
        now = clock()
        self._head_at: dict[str, float] = {}
        self._reading: set[str] = set()
        """Streams of newest pages that are being read."""
        self._shown_at: dict[str, float] = {}
        """On Stripe's clock: when the last read of each list to its end began."""
        self._head_from: dict[str, float] = {}
        self._due_at = self._watched_at = self._trimmed_at = -float("inf")
        self._passing: float | None = None
        """On Stripe's clock: when the pass under way began."""
        self.scan = Scan(source, budget, round_s=self._pass_s, ended=self._scanned)
        streams = [e.stream for e in self._endpoints()]
        self._cost = dict.fromkeys(streams, 1.0)
        """GETs of a full refresh of each list, as of the last one."""
        self._passed_at = dict.fromkeys(streams, now)
        # Full refreshes are spread over their interval, so that they never come all together.
        self._first = {s: 0.5 + n / len(streams) / 2 for n, s in enumerate(streams)}

    def demand(self) -> QuotaDemand:
        """Return what all of this takes if nothing slows it."""
        endpoints = [e for e in self._endpoints() if not self._is_refused(e.stream)]
        heads = sum(1 / self._usual_s(e) for e in endpoints if needs_head(e))
        passes = sum(self._cost[e.stream] for e in endpoints if e.path != EVENTS)
        usual = DAY_S / self._intervals.pass_s
        return QuotaDemand(heads + 1 / self._intervals.due_s, passes * usual)

    async def run(self) -> None:
        """Run until cancelled. A list that cannot be read is left out, and reported in its cursor."""
        await self._guard("passes", None, self._remember())
        endpoints = self._endpoints()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_passes_on())
            group.create_task(self.scan.run([e for e in endpoints if e.parent]))
            while True:
                # Each at its own pace: neither a full refresh nor a list that hangs holds the others up.
                for head in self._due_heads():
                    group.create_task(head)
                await asyncio.sleep(self._intervals.tick_s)

    async def _run_passes_on(self) -> None:
        while True:
            await self._run_due_passes()
            await asyncio.sleep(self._intervals.tick_s)

    async def run_once(self) -> None:
        """Read every newest page, and to their end the lists whose last full refresh is due or unknown.

        For an account that is opened now and then, where `run` is not there to spread the work.
        """
        await self._guard("passes", None, self._remember())
        await asyncio.gather(*self._due_heads())
        now = self._clock()
        for stream in [s for s, stopped in self._stopped.items() if stopped.next_at <= now]:
            await self._again(stream)
        due = [
            e
            for e in self._endpoints()
            if e.path != EVENTS and not e.parent and e.stream not in self._stopped
            if e.stream in self._first or self._age_s(e) >= self._pass_s()
        ]
        for endpoint in due:
            await self._guard(f"{endpoint.stream} to its end", None, self.full_refresh([endpoint]))
        await self._guard(_TRIM, None, self._trim())

    async def scan_once(self, *, most_s: float) -> bool:
        """Read lists by parent under all parents, where that is due: see `Scan.run_due`."""
        by_parent = [e for e in self._endpoints() if e.parent]
        return await self.scan.run_due(by_parent, most_s=most_s)

    def _age_s(self, endpoint: ListEndpoint) -> float:
        return self._clock() - self._passed_at[endpoint.stream]

    async def run_due(self) -> None:
        """Do what is due now, but for the scan."""
        await asyncio.gather(*self._due_heads())
        await self._run_due_passes()

    def _due_heads(self) -> list[Coroutine[None, None, None]]:
        """Return the reads of newest pages that are due and not in progress."""
        now, plan = self._clock(), self._plan()
        found: list[Coroutine[None, None, None]] = []
        for endpoint in self._endpoints():
            stream = _newest(endpoint.stream)
            age_s = now - self._head_at.get(stream, -float("inf"))
            if (
                needs_head(endpoint)
                and age_s >= self._usual_s(endpoint) * plan.stretch
                and not self._is_refused(endpoint.stream)
                and self._may(stream)
                and stream not in self._reading
            ):
                self._head_at[stream] = now
                found.append(self._read_head(stream, endpoint))
        if (
            now - self._due_at >= self._intervals.due_s * plan.stretch
            and self._may(_DUE)
            and _DUE not in self._reading
        ):
            self._due_at = now
            found.append(self._read_head(_DUE, None))
        return found

    async def _read_head(self, stream: str, endpoint: ListEndpoint | None) -> None:
        """Read the newest page of a list; without one, balance transactions that are due."""
        self._reading.add(stream)
        try:
            if endpoint is None:
                await self._guard(stream, "balance_transaction", self._due())
            else:
                await self._guard(
                    stream, self._source.tables_of(endpoint)[0], self._poll_newest(endpoint)
                )
        finally:
            self._reading.discard(stream)

    async def _run_due_passes(self) -> None:
        now = self._clock()
        if now - self._watched_at >= _WATCH_S:
            self._watched_at = now
            await self._guard(_WATCH, None, self._watch())
        if now - self._trimmed_at >= _TRIM_S:
            self._trimmed_at = now
            await self._guard(_TRIM, None, self._trim())
        for stream in [s for s, stopped in self._stopped.items() if stopped.next_at <= now]:
            if await self._again(stream):
                return
        pass_s = self._pass_s()
        for endpoint in self._endpoints():
            if endpoint.path == EVENTS:
                continue  # Its objects never change, and the poller reads every new one.
            stream = endpoint.stream
            age_s = self._age_s(endpoint)
            is_due = age_s >= pass_s * self._first.get(stream, 1.0)
            if is_due and not endpoint.parent and stream not in self._stopped:
                self._passed_at[stream] = now
                self._first.pop(stream, None)
                await self._guard(f"{stream} to its end", None, self.full_refresh([endpoint]))
                return  # One a turn: missing tables are looked for between two full refreshes.

    def _pass_s(self) -> float:
        """Return the seconds between two full refreshes of a list, as the read quota allows."""
        return self._intervals.pass_s * self._plan().pass_s / DAY_S

    async def _scanned(self, endpoint: ListEndpoint, began: float) -> None:
        """A list by parent was read under all parents; `began`: when, on Stripe's clock."""
        self._shown_at[endpoint.stream] = began
        for table in self._source.tables_of(endpoint):
            await self._check_missing(table)
            lists = [e for e in self._endpoints() if table in e.tables]
            if lists == [endpoint]:  # Else it says nothing of what the others list.
                await self._note(endpoint, "pass", began)

    def watch_now(self) -> None:
        """A table is healed: the next turn reads its lists again, if that is needed."""
        self._watched_at = -float("inf")

    async def _watch(self) -> None:
        """Create and read again tables that were dropped or emptied, and read again those in quarantine
        that lack too many rows.
        """
        mirror = self._source.mirror
        async with self._source.transaction() as connection:
            lost = await find_lost(connection, mirror.schema, self._source.wanted, self._counted)
            found = [(table, GONE if is_gone else EMPTIED) for table, is_gone in lost]
            await note_refused(connection, mirror.schema, [(t, "", why, True) for t, why in found])
            relist = await to_relist(connection, mirror.schema)
        for table, why in found:
            if why.is_gone:
                mirror.refuse_table(table, why)
        for table in relist:
            if table not in mirror.quarantine.tables and table in self._source.wanted:
                await self._reread(table)

    async def _reread(self, table: str) -> None:
        """Read every list that returns rows of the table to its end."""
        _log.warning("relist.reread", table=table)
        names = {table, *around_of(table)}
        endpoints = [e for e in self._endpoints() if names & set(e.tables)]
        rows = await self.full_refresh(endpoints)
        listed = max((rows[e.stream] for e in endpoints if table in e.tables), default=0)
        if self._source.wanted[table].object_type in singleton_paths():
            await read_singletons(self._source)
        # What no list shows, a deleted customer for one, comes back where rows refer to it.
        await References(self._source, self._source.pool, lambda name: name == table).run()
        ends = [self._stopped.get(e.stream) for e in endpoints]
        if all(end is None or end.is_refused for end in ends):
            async with self._source.transaction() as connection:
                await relisted(connection, self._source.mirror.schema, table, listed)

    async def _trim(self) -> None:
        """Drop confirmations and sets that neither a pass nor an older snapshot needs any more."""
        now = self._source.now()
        counted = [*self._shown_at.values(), now if self._passing is None else self._passing]
        scans: dict[str, float] = {}
        for endpoint in self._endpoints():
            began = self.scan.under_way.get(endpoint.stream, now)
            for table in self._source.tables_of(endpoint):
                scans[table] = min(scans.get(table, now), began)
        async with self._source.transaction() as connection:
            schema = self._source.mirror.schema
            await forget_confirmations(
                connection,
                schema,
                now=now,
                passes_since=min(counted),
                scans_since={table: began for table, began in scans.items() if began < now},
            )
            await confirmations.forget_sets(connection, schema, self._source.mirror.loading)

    def _is_refused(self, stream: str) -> bool:
        return stream in self._stopped and self._stopped[stream].is_refused

    def _may(self, stream: str) -> bool:
        """Whether it is not stopped, or its next try is due."""
        stopped = self._stopped.get(stream)
        return stopped is None or stopped.next_at <= self._clock()

    def _stop(
        self, ended: Checkpoint, *, is_refused: bool, wait_s: float | None = None
    ) -> Checkpoint:
        """Count the try; return the cursor with the time of the next one."""
        stopped = self._stopped.setdefault(ended.stream, _Stopped(0.0))
        if wait_s is None:
            pause_s = backoff(PAUSES_S, _FIRST_PAUSE + stopped.troubles)
            wait_s = _REFUSED_S if is_refused else pause_s
            stopped.troubles += not is_refused
        stopped.next_at, stopped.is_refused = self._clock() + wait_s, is_refused
        return replace(ended, next_try=time.time() + wait_s)

    async def _again(self, stream: str) -> bool:
        """Retry a list that was refused or failed; return whether there was something to do."""
        schema = self._source.mirror.schema
        endpoint = next((e for e in self._endpoints() if e.stream == stream), None)
        if endpoint is None and stream not in singleton_paths().values():
            return False  # The newest page of a list, for example: its own turn is its next try.
        try:
            async with self._source.pool.acquire() as connection:
                saved = (await load_checkpoints(connection, schema)).get(stream)
            ended = await self._read_again(stream, endpoint, saved)
            if ended.state in ("refused", "failed"):
                ended = self._stop(ended, is_refused=ended.state == "refused")
            else:
                self._stopped.pop(stream, None)
            async with self._source.transaction() as connection:
                await save_checkpoints(connection, schema, [ended])
                if ended.state == "done":
                    await self._copied(connection)
            if ended.state == "done" and not self._is_ready:
                self._is_ready = await end_first_copy(self._source)
        except LostLease:
            raise
        except PinstripeError as error:
            self._stop(ended_by(error, stream), is_refused=False)
            _log.warning("relist.trouble", stream=stream, error=error.message)
        return True

    async def _read_again(
        self, stream: str, endpoint: ListEndpoint | None, saved: Checkpoint | None
    ) -> Checkpoint:
        """Resume the list from its cursor, or read the singleton; return how that ended."""
        if endpoint is None:
            ends = await read_singletons(self._source, stream)
            table = next(table_name(n) for n, path in singleton_paths().items() if path == stream)
            return ends[0] if ends else Checkpoint(stream, "done", {"table": table})
        if saved is not None and saved.state == "refused":
            saved = None
        table, now, source = self._source.tables_of(endpoint)[0], self._source.now(), self._source
        work = open_list(
            endpoint, table, source, source.pool, now=now, saved=saved, is_complete=lambda _: True
        )
        self.refreshing = endpoint.path
        try:
            await Scheduler(self._budget, max_in_flight=4).run([work])
        finally:
            self.refreshing = ""
        return work.final()

    async def _copied(self, connection: Connection) -> None:
        """A list of the initial load has come to its end: lists by parent under its rows may begin, and its
        tables, with those that its objects hold, are loaded if no other list of theirs is open.
        """
        cursors = await load_checkpoints(connection, self._source.mirror.schema)
        for other in self._endpoints():
            cursor = cursors.get(other.stream)
            if cursor is not None and cursor.code == PARENT_INCOMPLETE:
                self._stopped[cursor.stream] = _Stopped(self._clock())
        places = {other.stream: other.tables for other in self._endpoints()}
        places |= {path: (table_name(name),) for name, path in singleton_paths().items()}
        unfinished = {
            table
            for stream, names in places.items()
            if (c := cursors.get(stream)) is not None and c.state in ("running", "failed")
            for table in names
        }
        await self._source.mirror.end_loading(connection, unfinished)

    async def _remember(self) -> None:
        """Load the cost of each list and the time of its last full refresh: a restart is no refresh."""
        schema = self._source.mirror.schema
        async with self._source.pool.acquire() as connection:
            cursors = await load_checkpoints(connection, schema)
            fresh = await load_freshness(connection, schema)
        self._is_ready = READY in cursors and cursors[READY].state == "done"
        for cursor in cursors.values():
            if cursor.stream.startswith(SCAN_OF):
                continue
            if cursor.state in ("refused", "failed") and cursor.code != LEFT_OUT:
                usual_s = _REFUSED_S if cursor.state == "refused" else PAUSES_S[_FIRST_PAUSE]
                left_s = usual_s if cursor.next_try is None else cursor.next_try - time.time()
                is_refused = cursor.state == "refused"
                self._stop(cursor, is_refused=is_refused, wait_s=max(left_s, 0.0))
        passed = {f.table: f.known_to for f in fresh if f.how == "pass"}
        now, stripes = self._clock(), self._source.now()
        for endpoint in self._endpoints():
            stream = endpoint.stream
            if stream in cursors:
                self._cost[stream] = max(float(cursors[stream].requests), 1.0)
            scanned = cursors.get(SCAN_OF + stream)
            if scanned is not None:
                self._cost[stream] = max(float(scanned.position.get("of") or 0), 1.0)
                if scanned.position.get("after") and not scanned.position.get("ended"):
                    self.scan.under_way[stream] = float(scanned.position.get("began", stripes))
            known_to = [passed.get(name, 0.0) for name in endpoint.tables]
            if min(known_to) > 0 and self._passed_at[stream] > 0:
                self._passed_at[stream] = now - max(stripes - min(known_to), 0.0)
                self._first.pop(stream, None)

    def _usual_s(self, endpoint: ListEndpoint) -> float:
        """Lists without the `created` filter are read by whole pages, and less often."""
        return self._intervals.head_s * (1.0 if endpoint.created else _WHOLE_PAGES)

    def _endpoints(self) -> list[ListEndpoint]:
        wanted = [
            e
            for e in list_endpoints()
            if self._source.tables_of(e) and (not e.parent or e.parent_table in self._source.wanted)
        ]
        return [self._source.in_force(e) for e in wanted]

    async def _guard(self, stream: str, table: str | None, work: Awaitable[object]) -> None:
        """Await the work; save its error as a stream of `table` while it lasts."""
        schema = self._source.mirror.schema
        try:
            await work
            if self._stopped.pop(stream, None) is not None:
                async with self._source.transaction() as connection:
                    await drop_checkpoints(connection, schema, [stream])
        except LostLease:
            raise
        except PinstripeError as error:
            ended = self._stop(
                ended_by(error, stream, {"table": table}), is_refused=error.is_answer
            )
            _log.warning("relist.trouble", stream=stream, error=error.message)
            with suppress(PinstripeError):
                if table is not None:
                    await self._source.save([ended])

    async def _poll_newest(self, endpoint: ListEndpoint) -> None:
        """Read the entries that are newer than the last read, with a margin for late ones."""
        params = list(endpoint.params)
        last = self._head_from.get(endpoint.stream, self._since or self._source.now())
        since = int(last - _OVERLAP_S)
        if endpoint.created:
            params.append(("created[gte]", str(since)))

        async def enough(objects: Sequence[StripeObject]) -> bool:
            created = objects[-1].get("created") if objects else None
            return isinstance(created, int) and created < since

        began = await self._source.read(
            endpoint,
            endpoint.path,
            params,
            priority=WorkClass.HEADS,
            enough=None if endpoint.created else enough,
        )
        self._head_from[endpoint.stream] = began
        await self._note(endpoint, "newest", began)

    async def _due(self) -> None:
        """Balance transactions turn `available` on their day; no event reports it."""
        if "balance_transaction" not in self._source.wanted:
            return
        async with self._source.pool.acquire() as connection:
            row = await connection.fetchrow(
                "SELECT extract(epoch FROM min(created))::bigint,"
                " extract(epoch FROM max(created))::bigint FROM "
                f"{qualified(self._source.mirror.schema, 'balance_transaction')}"
                " WHERE status = 'pending' AND available_on <= now()"
            )
        if row is None or row[0] is None:
            return
        endpoint = next(e for e in list_endpoints() if e.path == "/v1/balance_transactions")
        window = [("created[gte]", str(row[0])), ("created[lt]", str(row[1] + 1))]
        began = await self._source.read(endpoint, endpoint.path, window, priority=WorkClass.HEADS)
        await self._note(endpoint, "due", began)

    async def full_refresh(self, endpoints: Sequence[ListEndpoint]) -> dict[str, int]:
        """Read these lists to their end, then check the rows that they did not return; return how many each
        has, by stream.
        """
        began = self._passing = self._source.now()
        self.refreshing = ", ".join(e.path for e in endpoints)
        source = self._source
        works = [open_list(e, e.tables[0], source, source.pool, now=began) for e in endpoints]
        try:
            await Scheduler(self._budget, max_in_flight=4).run(works)
        finally:
            self.refreshing = ""
        for work in works:
            final, stream = work.final(), work.endpoint.stream
            self._cost[stream] = max(float(final.requests), 1.0)
            if final.state == "done":
                self._shown_at[stream] = began
                continue
            # Its rows are not gone, though a GET says so where a product is not enabled any more.
            self._shown_at.pop(stream, None)
            await self._source.save([self._stop(final, is_refused=final.state == "refused")])
        read = [work.endpoint for work in works if work.state == "done"]
        for table in {table for e in read for table in source.tables_of(e)}:
            await self._check_missing(table)
        self._passing = None
        for endpoint in read:
            await self._note(endpoint, "pass", began)
        return {work.endpoint.stream: work.rows for work in works}

    async def _check_missing(self, table: str) -> None:
        """Queue fetches of rows that none of their lists returned, if each was read to its end."""
        lists = [e.stream for e in self._endpoints() if table in e.tables]
        if not all(stream in self._shown_at for stream in lists):
            return
        since = min(self._shown_at[stream] for stream in lists)
        self._refetches.add(await queue_missing(self._source, [table], since, most=_MOST_VANISHED))

    async def _note(self, endpoint: ListEndpoint, how: str, known_to: float) -> None:
        """Save up to when the tables of this list are known to be complete, and by which read."""
        names = self._source.tables_of(endpoint)
        async with self._source.transaction() as connection:
            await note_freshness(connection, self._source.mirror.schema, names, how, known_to)


_TRIM = "confirmations"
_WATCH = "tables that were dropped or emptied"
_DUE = "balance transactions that are due"


def _newest(stream: str) -> str:
    """Return the stream of the newest page of a list, beside that of the whole list."""
    return f"{BESIDE[1]}{stream}"


def needs_head(endpoint: ListEndpoint) -> bool:
    """Whether new objects of this list appear without an event, and its newest page can be read alone."""
    if endpoint.parent or endpoint.path == EVENTS:
        return False
    dated = all(
        any(f.name == "created" for f in object_types()[name].fields) for name in endpoint.objects
    )
    # Lists without dates are short and hardly ever change (tax codes, countries): a full refresh will do.
    return dated and not set(endpoint.objects) <= announced()
