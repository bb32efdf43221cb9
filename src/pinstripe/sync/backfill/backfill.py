"""Loads an account: its lists to their end, with the objects that they refer to, then the events meanwhile.

    lists, references -> events since the start -> the last references -> READY -> indexes

Resumable at any moment: each list resumes from its cursor. Ready means that the copy is complete and the
events are current; from then on, restarts included, the events alone decide. A second run over a complete
copy applies the events since the last one, and lists again only what has no events.

`BackfillPlanner` makes list readers of saved cursors. A list that was interrupted resumes from its cursor.
One that was read to its end is left alone if events report its changes. If they do not, `relist` reads it
in a process that follows; a single run reads it again: only its young part, if its objects no longer change
with age. Lists by parent are read where a row shows a sign (`signs_of`), or under all parents if the run is
deep. If the event log no longer reaches back to the last run, or the key might not read it then, everything
is listed again (a full resync).
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog

from pinstripe.catalog.embedded import holders
from pinstripe.catalog.endpoints import (
    EXPANDED_TABLES,
    ListEndpoint,
    by_parent,
    can_be_fetched,
    list_endpoints,
    signs_of,
    singleton_paths,
)
from pinstripe.catalog.relations import with_events
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.concurrency import cancel
from pinstripe.errors import MissingParent, NotEnabled, NotPermitted, PinstripeError
from pinstripe.rows.event import EVENTS
from pinstripe.source.refusals import checkpoints, closed_gaps, note_by_parent
from pinstripe.source.source import BACKFILL, Source
from pinstripe.store.cursors import (
    BESIDE,
    FOLLOWED,
    LEFT_OUT,
    PARENT_INCOMPLETE,
    READY,
    SCAN_OF,
    Checkpoint,
    drop_checkpoints,
    ended_by,
    forget_checkpoints,
    load_checkpoints,
    save_checkpoints,
)
from pinstripe.store.cursors import followed as followed_to
from pinstripe.store.ddl import qualified
from pinstripe.store.locks import naming_holders, server_pid
from pinstripe.store.migrate import create_indexes, create_indexes_beside
from pinstripe.store.pool import Pool, translated
from pinstripe.store.quarantine import forget_streams, reopen, with_rows
from pinstripe.store.session import account_of
from pinstripe.sync.backfill.child_lists import ChildListStream, is_whole, open_list
from pinstripe.sync.backfill.list_stream import ListReader, Scheduler, created_since
from pinstripe.sync.backfill.references import Fetched, References, queue_missing, read_singletons
from pinstripe.sync.events.poller import EventPoller
from pinstripe.sync.events.reader import LATE_S, REACH_S
from pinstripe.sync.refetch.worker import RefetchWorker

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_INDEXED_AT_ONCE = 3


@dataclass(slots=True)
class BackfillResult:
    """How a backfill ended. `events`: how many were applied; None if they were not read."""

    streams: list[Checkpoint] = field(default_factory=list)
    events: int | None = None
    references: Fetched | None = None
    seconds: float = 0.0
    requests: int = 0

    @property
    def complete(self) -> bool:
        """Everything that the key may read is in the database."""
        return not self.unfinished

    @property
    def unfinished(self) -> set[str]:
        """Return the tables with a list that was not read to its end."""
        return {s.table for s in self.streams if s.state not in ("done", "refused")}


class Backfill:
    """One run. `phase`, `works` and `note` are what the progress display reads."""

    def __init__(
        self,
        source: Source,
        pool: Pool,
        budget: RateLimiter,
        *,
        now: float,
        account_created: int = 0,
        deep: bool = False,
        references_beside: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`now` is the present on Stripe's clock; nothing is older than the second `account_created`.

        `deep`: read lists by parent under every parent, not only where a row shows a sign.
        `references_beside`: fetch what rows refer to also while the lists are read.
        """
        self.phase = "starting"
        self.works: list[ListReader] = []
        self._by_table: defaultdict[str, list[ListReader]] = defaultdict(list)
        """By table, those that bring rows of it."""
        self.note = ""
        self._source = source
        self._pool = pool
        self._scheduler = Scheduler(budget)
        self._planner = BackfillPlanner(
            source,
            pool,
            now=int(now),
            account_created=account_created,
            is_complete=self._is_complete_table,
            deep=deep,
        )
        self._references = References(source, pool, self._is_complete_table)
        self._references_beside = references_beside
        self._clock = clock
        self._schema = source.mirror.schema
        self._pending: list[ChildListStream] = []
        self._refused: list[Checkpoint] = []
        self._since: int | None = None
        self._resync_since: float | None = None
        self._lost: Collection[str] = ()
        self._now = now
        self._was_ready = False

    async def prepare(self, *, followed: bool = False) -> int:
        """Read the cursors; return the second from which events count, saved before any list is read.

        The poller begins there. `run` calls this if it has not been called.
        """
        if self._since is None:
            self._since = await self._prepare(followed=followed)
        return self._since

    async def run(
        self, *, followed: bool = False, on_ready: Callable[[], None] = lambda: None
    ) -> BackfillResult:
        """Return when all that can be read is written. Raises errors that end the whole run.

        `followed`: a poller applies the events since `prepare` meanwhile, so the run does not. `on_ready`
        is called as soon as only the events decide whether the copy is current.
        """
        started = self._clock()
        outcome = BackfillResult()
        since = await self.prepare(followed=followed)
        if self._was_ready:
            on_ready()
        self.phase, rows = "lists", sum(w.rows for w in self.works)
        await self._read_lists()
        await self._source.mirror.conflicts.wait_resolved()
        # Lists that ended without being read have saved no cursor.
        await self._source.save([c for c in self._ends() if c.state != "running"])
        self.phase = "events"
        if not followed:
            outcome.events = await self._catch_up(since)
        if not followed and outcome.events is None:
            await self._read_tails(since - LATE_S)
        await self._source.mirror.conflicts.wait_resolved()
        if not followed:
            await RefetchWorker(self._source).drain()
        if self._resync_since is not None:
            await self._queue_missing(self._source.wanted.keys(), self._resync_since)
            if all(c.state != "failed" for c in self._ends()):
                done = Checkpoint(_FULL_RESYNC, "done", as_of=self._resync_since)
                await self._source.save([done])
        elif self._lost:
            await self._queue_missing(self._lost, self._now)
        self.phase = "references"
        if not self._was_ready or sum(w.rows for w in self.works) > rows:
            outcome.references = await self._references.run()
            await self._source.mirror.conflicts.wait_resolved()
        await self._source.save(checkpoints(self._source.unreadable_lists))
        outcome.streams = self._ends()
        if outcome.complete:
            await self._source.save([Checkpoint(READY, "done", as_of=float(since))])
        on_ready()
        self.phase = "indexes"
        await self._index(beside_writers=followed)
        if not self._was_ready and not account_of(self._schema):
            await self._analyze()
        self.phase = "done"
        outcome.seconds = self._clock() - started
        outcome.requests = self._source.stripe.requests.total()
        return outcome

    async def _read_lists(self) -> None:
        """Read all lists, and what their rows refer to meanwhile."""
        done = asyncio.Event()
        referred: asyncio.Task[None] | None = None
        if self._references_beside and not self._was_ready:
            referred = asyncio.create_task(self._references.run_beside(done))
        singletons = asyncio.create_task(read_singletons(self._source))
        try:
            plain = [w for w in self.works if not w.endpoint.parent]
            await self._scheduler.run(plain, more=self._ready_parents)
            done.set()
            self._refused = await singletons
            if referred is not None:
                await referred
        finally:
            await cancel(singletons, *([referred] if referred is not None else []))

    async def _prepare(self, *, followed: bool) -> int:
        """Plan the works; return the second from which events count."""
        plan = await self._planner.plan(followed=followed)
        self._was_ready = plan.is_ready
        mirror, wanted = self._source.mirror, self._source.wanted
        if mirror.began_empty:
            self._references.skip_written()
        elif plan.is_ready:
            # Nobody has fetched what rows refer to in a table that is synced again, or for the first time.
            again = {t for t in plan.lost if wanted[t].object_type in with_events()}
            self._references.skip_written(besides=again | mirror.loading)
        self.note = plan.note
        self._set_works(plan.works)
        self._resync_since, self._lost = plan.resync_since, plan.lost
        self._pending = [work for work in self.works if isinstance(work, ChildListStream)]
        return plan.since

    async def _go_by_parent(self) -> None:
        """Replace lists that Stripe has refused without a parent by the lists under each parent."""
        for work in list(self.works):
            other = self._instead(work)
            if other is not None:
                # Noted first: a restart then resumes the list by parent from its cursor.
                await note_by_parent(self._source, work.endpoint.name, work.reason, work.remedy)
                added = self._planner.read(other)
                self._set_works([*(w for w in self.works if w is not work), added])
                if isinstance(added, ChildListStream):
                    self._pending.append(added)

    def _instead(self, work: ListReader) -> ListEndpoint | None:
        """The list by parent that replaces one that Stripe has refused without a parent."""
        if work.state not in ("refused", "failed") or work.code != MissingParent.slug:
            return None
        other = None if work.endpoint.parent else by_parent(work.endpoint)
        return other if other and other.parent_table in self._source.wanted else None

    async def _queue_missing(self, tables: Collection[str], since: float) -> None:
        """Fetch rows of these tables that no list returned and whose events are gone."""
        unread = {c.table for c in self._ends() if c.state != "done" and c.code != LEFT_OUT}
        unread |= self._source.mirror.quarantine.tables.keys()
        refetches = RefetchWorker(self._source)
        tables = (set(tables) & self._source.wanted.keys()) - unread
        refetches.add(await queue_missing(self._source, tables, since))
        await refetches.work_off()

    async def _read_tails(self, since: int) -> None:
        """If the event log cannot be read: list what was created while the lists were read."""
        dated = [w for w in self.works if w.endpoint.created and not w.endpoint.parent]
        done = [w for w in dated if w.state == "done"]
        added = [self._planner.tail(w.endpoint, w.final(), since) for w in done]
        self._set_works([*(w for w in self.works if w not in done), *added])
        await self._scheduler.run(added)

    async def _ready_parents(self) -> Sequence[ListReader]:
        """Return lists by parent whose parents are all listed, and those that may have early ones."""
        await self._go_by_parent()
        ready: list[ListReader] = []
        for work in list(self._pending):
            parent = work.endpoint.parent_table
            if not self._is_complete(parent):
                if not work.is_early and work.passes.rows_left():
                    work.is_early = True
                    ready.append(work)
                continue
            self._pending.remove(work)
            if parent not in self._source.wanted:
                work.end("refused", f"{parent} is not synced", code=LEFT_OUT)
            elif any(w.state == "failed" for w in self._by_table[parent]):
                # Read now, it would miss the parents that are still to be listed.
                reason = f"The list of {parent} is not complete"
                work.end("failed", reason, code=PARENT_INCOMPLETE)
            elif work.is_early:
                work.is_early = False
            else:
                ready.append(work)
        return ready

    def _is_complete(self, parent: str) -> bool:
        """Whether no unfinished list can bring another row of this table of parents."""
        makers = self._by_table[parent]
        if not makers:
            # Only found inside others (a source in a customer): after all plain lists.
            return all(w.finished for w in self.works if not w.endpoint.parent)
        return all(w.finished for w in makers)

    def _is_complete_table(self, table: str) -> bool:
        """Whether no unfinished list can bring another row of this table, itself or inside another."""
        names = {table}
        if table in EXPANDED_TABLES or not self._by_table[table]:
            names |= holders().get(table, frozenset())
        return all(
            work.finished and self._instead(work) is None
            for name in names
            for work in self._by_table[name]
        )

    def _set_works(self, works: Sequence[ListReader]) -> None:
        self.works, self._by_table = list(works), defaultdict(list)
        for work in works:
            for table in work.endpoint.tables:
                self._by_table[table].append(work)

    def _ends(self) -> list[Checkpoint]:
        """Return the cursor of every stream, and of what could not be read beside the lists."""
        ends = [work.final() for work in self.works]
        return [*ends, *self._refused, *checkpoints(self._source.unreadable_lists)]

    async def _catch_up(self, since: int) -> int | None:
        """Apply the events since the lists were begun."""
        live = EventPoller(self._source, RefetchWorker(self._source), since=float(since))
        try:
            await live.catch_up(LATE_S)
        except (NotPermitted, NotEnabled) as error:
            self.note = f"Changes made during the backfill are not seen: {error.message}"
            await self._source.save([ended_by(error, FOLLOWED)])
            return None
        return live.stats.events

    async def _index(self, *, beside_writers: bool) -> None:
        """`beside_writers`: a poller writes meanwhile, and must not wait for an index."""
        create = create_indexes_beside if beside_writers else create_indexes
        tables = iter(self._source.mirror.tables.values())

        async def build() -> None:
            async with (
                self._pool.acquire() as connection,
                naming_holders(self._pool.url, await server_pid(connection)),
            ):
                if beside_writers:
                    # It waits for each older transaction, a backup's say, and nobody waits for it.
                    await connection.execute("SET lock_timeout = 0")
                for table in tables:
                    try:
                        await create(connection, self._schema, table)
                    except PinstripeError as error:
                        if error.fault is None or error.fault.scope == "passing":
                            raise  # Another limit of the server's (temp_file_limit) leaves it out.
                        _log.warning("backfill.no_index", table=table.name, error=error.message)
                if beside_writers:
                    await connection.close()  # The pool makes another one, with the limit.

        await asyncio.gather(*(build() for _ in range(_INDEXED_AT_ONCE)))

    async def _analyze(self) -> None:
        """Tell the planner of the rows: until autovacuum does, views of `metrics` take 40 times as long."""
        async with self._pool.acquire() as connection:
            for name in sorted(self._source.mirror.written):
                with suppress(PinstripeError), translated():  # Then autovacuum does it.
                    await connection.execute(f"ANALYZE {qualified(self._schema, name)}")


_SOON_S = 600
"""A list that was read within this time is not read again by a run that resumes."""
_SETTLED_S = 31 * 86400
_SETTLING = frozenset({"/v1/balance_transactions", "/v1/forwarding/requests"})
"""Lists without events whose objects stay, and change no more after this: a balance transaction becomes
available within a month at the latest (https://docs.stripe.com/payouts)."""


_FULL_RESYNC = "anew"
"""The stream that records since when a full resync runs, until it is done."""


@dataclass(frozen=True, slots=True)
class BackfillPlan:
    """What a run reads. Events count from the second `since`; `note` is for the progress display.

    `resync_since`: when a full resync began; None if events report what changed. `lost`: tables whose lists
    are read again because rows may lack, or lack events: what they do not show is fetched.
    """

    works: Sequence[ListReader]
    since: int
    note: str = ""
    resync_since: float | None = None
    lost: Collection[str] = ()
    is_ready: bool = False
    """The first copy was complete once."""


class BackfillPlanner:
    """Plans one run. `now` is the present on Stripe's clock, `account_created` as in `SliceSet`."""

    def __init__(
        self,
        source: Source,
        pool: Pool,
        *,
        now: int,
        account_created: int,
        is_complete: Callable[[str], bool],
        deep: bool = False,
    ) -> None:
        """`is_complete`: whether no list can bring more rows of a table. `deep`: read all parents."""
        self._source = source
        self._pool = pool
        self._now = now
        self._account_created = account_created
        self._is_complete = None if deep else is_complete
        self._is_relisted = False
        self._lost: set[str] = set()

    async def plan(self, *, followed: bool) -> BackfillPlan:
        """Return the plan. If events count from now on, that is saved before any list is read.

        `followed`: another process reads lists without events again.
        """
        async with self._pool.acquire() as connection:
            saved = dict(await load_checkpoints(connection, self._source.mirror.schema))
        self._source.mirror.began_empty = not saved
        saved = await self._without_lost(saved)
        last = saved.get(FOLLOWED)
        endpoints = [
            self._source.in_force(e) for e in list_endpoints() if self._source.tables_of(e)
        ]
        saved = await self._without_notes(saved)
        saved = await self._without_gaps(saved)
        since, note = self._now, ""
        if last is not None and last.as_of is not None:
            since = int(last.as_of)
        if self._now - since > REACH_S or (last is not None and last.state == "refused"):
            saved, since = await self._begin_resync(), self._now
        resync = saved.get(_FULL_RESYNC)
        resync_since = resync.as_of if resync is not None and resync.state == "running" else None
        if resync_since is not None:
            note = "The last run is too long ago for the event log, or might not read it: "
            note += "everything is listed anew."
            _log.warning("resume.anew", since=resync_since)
        complete = all(_is_done(saved.get(e.stream)) for e in endpoints)
        is_ready = _is_done(saved.get(READY))
        self._is_relisted = followed and is_ready
        works = self._works(endpoints, saved, complete=complete)
        if last is None or since == self._now:
            # The position is saved before the first list is read.
            await self._source.save([followed_to(since)])
        return BackfillPlan(works, since, note, resync_since, self._lost, is_ready)

    async def _without_notes(self, saved: dict[str, Checkpoint]) -> dict[str, Checkpoint]:
        """Forget what an earlier process could not read beside the lists: this one tries it again."""
        notes = [s for s in saved if s.startswith(BESIDE) or s in singleton_paths().values()]
        if notes:
            async with self._source.transaction() as connection:
                await drop_checkpoints(connection, self._source.mirror.schema, notes)
        return {stream: cursor for stream, cursor in saved.items() if stream not in notes}

    async def _without_lost(self, saved: dict[str, Checkpoint]) -> dict[str, Checkpoint]:
        """Forget the lists of tables that lack rows they vouch for (emptied by hand, or in quarantine), or
        events (not synced for a time, or fetches were refused).

        What an earlier process could not write is tried again.
        """
        schema, wanted = self._source.mirror.schema, self._source.wanted
        async with self._source.transaction() as connection:
            self._source.mirror.quarantine.forget()
            tried = await reopen(connection, schema, sorted(wanted))
            lost = {table for table, relist in tried if relist or not can_be_fetched(table)}
            filled = {c.table for c in saved.values() if c.state == "done" and c.rows}
            filled &= wanted.keys()
            lost |= filled - await with_rows(connection, schema, filled)
            unread = (c for c in saved.values() if c.stream.startswith(BESIDE[0]))
            lost |= {c.table for c in unread if c.code == NotPermitted.slug} & wanted.keys()
            if not lost:
                return saved
            self._lost = lost
            _log.warning("resume.lost", tables=sorted(lost))
            await forget_streams(connection, schema, sorted(lost))
            return dict(await load_checkpoints(connection, schema))

    async def _begin_resync(self) -> dict[str, Checkpoint]:
        """Forget every position, in one commit with the new one: the next run must not trust the old
        ones.
        """
        begun = [
            followed_to(self._now),
            Checkpoint(_FULL_RESYNC, "running", as_of=float(self._now)),
        ]
        async with self._source.transaction() as connection:
            await forget_checkpoints(connection, self._source.mirror.schema)
            await save_checkpoints(connection, self._source.mirror.schema, begun)
        return {checkpoint.stream: checkpoint for checkpoint in begun}

    def read(
        self, endpoint: ListEndpoint, saved: Checkpoint | None = None, *, deep: bool = False
    ) -> ListReader:
        """Return the reader of a list, from `saved` on; `deep`: under every parent."""
        table = self._source.tables_of(endpoint)[0]
        return open_list(
            endpoint,
            table,
            self._source,
            self._pool,
            now=self._now,
            account_created=self._account_created,
            saved=saved,
            is_complete=None if deep else self._is_complete,
        )

    def tail(self, endpoint: ListEndpoint, done: Checkpoint, since: int) -> ListReader:
        """Return a reader of what was created since then, of a list that is done."""
        table = self._source.tables_of(endpoint)[0]
        return self.read(endpoint, created_since(done, table, since, ceiling=self._now))

    async def _without_gaps(self, saved: dict[str, Checkpoint]) -> dict[str, Checkpoint]:
        """Forget the lists around nested lists that could not be read before and can now, in one commit
        with the gaps: a run that is killed before it reads them leaves them to the next.
        """
        closed = await closed_gaps(self._source.stripe, saved.values(), priority=BACKFILL)
        if not closed:
            return saved
        opened = [replace(saved[stream], state="done", position={}) for stream in closed]
        around = set(closed.values())
        lists = [s for s, c in saved.items() if c.table in around and not s.startswith(SCAN_OF)]
        async with self._source.transaction() as connection:
            await save_checkpoints(connection, self._source.mirror.schema, opened)
            await drop_checkpoints(connection, self._source.mirror.schema, lists)
        return {s: c for s, c in saved.items() if s not in closed and s not in lists}

    def _works(
        self, endpoints: Sequence[ListEndpoint], saved: Mapping[str, Checkpoint], *, complete: bool
    ) -> list[ListReader]:
        """`complete`: everything was read before, so events report what changed, except for types
        without events.
        """
        works = [self._work(e, saved, complete=complete) for e in endpoints]
        parents = {w.endpoint.parent_table for w in works if w.endpoint.parent}
        read = [s for w in works if w.endpoint.parent for s in signs_of(w.endpoint)]
        signs = {table for sign in read for table in (sign.table, *sign.needs)}
        for work in works:
            work.has_children = not (parents | signs).isdisjoint(work.endpoint.tables)
        return works

    def _work(
        self, endpoint: ListEndpoint, saved: Mapping[str, Checkpoint], *, complete: bool
    ) -> ListReader:
        cursor = saved.get(endpoint.stream)
        if cursor is not None and cursor.state == "refused":
            cursor = None
        if cursor is not None and endpoint.parent in with_events():
            return self.read(endpoint, cursor if self._is_enough(cursor, saved) else None)
        if cursor is not None and self._is_to_be_read_again(endpoint, cursor, complete=complete):
            if endpoint.parent:
                return self.read(endpoint, deep=is_whole(cursor))  # Under no fewer than before.
            names = self._source.tables_of(endpoint)
            if endpoint.path in _SETTLING and cursor.as_of is not None:
                oldest = self._source.since.get(names[0], 0)
                return self.tail(endpoint, cursor, max(int(cursor.as_of) - _SETTLED_S, oldest))
            self._lost.update(names)  # Rows that it does not show any more.
            return self.read(endpoint)
        return self.read(endpoint, cursor)

    def _is_enough(self, cursor: Checkpoint, saved: Mapping[str, Checkpoint]) -> bool:
        """Whether a list by parent was read under all parents that this run wants.

        Events name those that have changed since, and the scan finds the others.
        """
        scanned = saved.get(SCAN_OF + cursor.stream)
        return (
            self._is_complete is not None
            or cursor.state != "done"
            or is_whole(cursor)
            or bool(scanned and scanned.position.get("rounds"))
        )

    def _is_to_be_read_again(
        self, endpoint: ListEndpoint, cursor: Checkpoint, *, complete: bool
    ) -> bool:
        """Whether a list that is done may have changed without an event."""
        if self._is_relisted:
            return False
        stale = complete or self._now - (cursor.as_of or 0) > _SOON_S
        # An event never changes, and whoever follows the log, or catches up, writes each.
        unheard = endpoint.path != EVENTS and not set(endpoint.objects) <= with_events()
        return cursor.state == "done" and stale and unheard


def _is_done(cursor: Checkpoint | None) -> bool:
    return cursor is not None and cursor.state in ("done", "refused")
