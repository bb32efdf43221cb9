"""Writes Stripe objects to the synced tables; nothing else does.

    await mirror.write([(rows, as_of)])     # returns once committed

Pages, events, proxied responses and previews all pass here. Rows and the checkpoint that covers them
commit in one transaction, and waiting jobs are written as one batch (`batch`). If two snapshots of an
object overlap in time and differ, the row is in conflict: the object is fetched again, after the time that
a replica of Stripe's may be behind, and that response wins because Stripe made it after both. Rows or
tables that Postgres refuses are left out, named and owed (`quarantine`), and never stop the rest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol, Unpack

import structlog

from pinstripe.catalog.tables import Table
from pinstripe.concurrency import backoff
from pinstripe.errors import ErasedMeanwhile, LostLease, PinstripeError, Unreachable
from pinstripe.mirror.batch import (
    LIVE_LANE,
    Batch,
    Conflict,
    Effect,
    Job,
    JobOptions,
    Part,
    Progress,
    Queue,
    steps_of,
)
from pinstripe.mirror.change_feed import Recorder
from pinstripe.mirror.orphans import parents_of
from pinstripe.mirror.quarantine import (
    PROBE_S,
    PROBED,
    HeldTable,
    Parted,
    Place,
    Quarantine,
    RefusedRow,
    note_parted,
    owe_rows,
    probe,
    take_too_large,
)
from pinstripe.mirror.writer import SharedStages, Writer
from pinstripe.rows.extract import Extractor, RowSet, extractor_for
from pinstripe.rows.personal import Personal
from pinstripe.store.cursors import ALL_LOADED, mark_loaded
from pinstripe.store.erasures import check_erasures, note_erased
from pinstripe.store.links import link_all
from pinstripe.store.pool import Connection
from pinstripe.store.quarantine import Why, note_refused, owe_fetches, release
from pinstripe.store.refetch import LATER_S, RefetchDone
from pinstripe.store.session import account_of


class Sink(Protocol):
    """What consumes a batch: `Writer` writes it, `sync.verify.compare.Comparer` compares it."""

    failed_at: str
    """The table at which the last write failed; "" if it failed elsewhere."""

    async def write(self, batch: Batch) -> list[Conflict]: ...

    async def write_apart(self, batch: Batch) -> Parted:
        """Like `write`, but leaves out the rows and tables that Postgres refuses."""

    async def close(self) -> None: ...


_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Resolve = Callable[[Conflict], Awaitable[bool]]
"""Fetches the object, or the set, and replaces the row; returns False if nothing at Stripe shows it."""


class ConflictQueue:
    """Resolves conflicts, one request at a time for each row or set. `count`: conflicts so far.

    Each waits `pause_s` first, so that no replica can be behind what it is about. Conflicts that arrive
    meanwhile share the next request, after another pause.
    """

    def __init__(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self.resolve: Resolve | None = None
        """Fetches the object of a row in conflict."""
        self.count = 0
        self.pause_s = 0.0
        """How far Stripe's replicas may be behind."""
        self._sleep = sleep
        self._open: dict[tuple[str, str], Conflict] = {}
        self._resolving: dict[tuple[str, str], asyncio.Task[bool]] = {}

    def decide(self, conflicts: Sequence[Conflict]) -> None:
        """Start resolving these rows."""
        for conflict in conflicts:
            self.count += 1
            place = (conflict.table, conflict.key)
            if conflict.cause is not None or place not in self._open:
                self._open[place] = conflict
            if place not in self._resolving:
                self._resolving[place] = asyncio.create_task(self._resolve(place))

    def resolving(self, rows: Mapping[str, Container[str]]) -> list[asyncio.Task[bool]]:
        """Return the tasks that resolve those of these rows (table -> keys) that are in conflict now.

        A task returns False if its row could not be resolved; the row keeps its content then. Call it once
        the future of `enqueue` is done: these tasks are then all that its rows wait for.
        """
        if not self._resolving:
            return []
        return [t for (table, key), t in self._resolving.items() if key in rows.get(table, ())]

    async def wait_resolved(self) -> None:
        """Return once no row is in conflict."""
        while self._resolving:
            await asyncio.gather(*self._resolving.values())

    def cancel(self) -> list[asyncio.Task[bool]]:
        """Cancel all tasks, and return them to be awaited."""
        tasks = list(self._resolving.values())
        for task in tasks:
            task.cancel()
        return tasks

    async def _resolve(self, place: tuple[str, str]) -> bool:
        table, key = place
        decided = True
        try:
            while place in self._open:
                conflict = self._open.pop(place)
                await self._sleep(self.pause_s and self.pause_s + LATER_S)
                decided = False
                if self.resolve is None:
                    _log.warning("mirror.contested", table=table, id=key)
                    continue
                try:
                    decided = await self.resolve(conflict)
                except PinstripeError as error:
                    # The row keeps its content; its next snapshot decides.
                    _log.warning("mirror.unsettled", table=table, error=error.message)
        finally:
            del self._resolving[place]
        return decided


_MOST_LOSSES = 2
"""Connections lost with one batch before its largest rows are suspected."""

_RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)

_IDLE_S = 60.0
"""After so long without work a writer of lists ends its session, whose stages and plans of a first copy are
140 MB in Postgres (measured; 163 tables). That of events keeps it: the first row of a table takes longer.
"""


class Mirror:
    """Writes to one schema. Make it with `open_mirror`."""

    def __init__(
        self,
        schema: str,
        tables: Mapping[str, Table],
        sinks: Sequence[Sink],
        extractor: Extractor,
        *,
        api_version: str,
        loading: set[str],
        prober: Callable[[], Sink] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.schema = schema
        self.tables = tables
        self.api_version = api_version
        self.extractor = extractor
        self.always: list[Effect] = []
        """Effects of every transaction: the check of the lease's fence."""
        self.loading = loading
        """Tables in their initial load: the change feed has only what an event or a request caused."""
        self.written: Counter[str] = Counter()
        self.began_empty = False
        """Whether `written` has all rows: during a first copy that no earlier process has begun."""
        self.on_rows: Callable[[RowSet], None] = lambda _: None
        """Called with all rows before they are written."""
        self.trouble = ""
        """Postgres's error while a write is retried; "" if there is none."""
        self.quarantine = Quarantine()
        self.mend: Callable[[str], Awaitable[None]] | None = None
        """Creates a table or column that was dropped."""
        self.on_healed: Callable[[], None] = lambda: None
        """Called when the refetches of rows that were refused become due."""
        self._sleep = sleep
        self._prober = prober
        self._sinks = sinks
        self._queue = Queue(len(sinks))
        self.conflicts = ConflictQueue(sleep)
        self._broken: dict[int, PinstripeError] = {}
        self._resting: set[int] = set()
        self._is_closed = False

    def may_have_rows(self, table: str) -> bool:
        """Return False if no list has brought a row of the table yet: then no statement has to look."""
        return not self.began_empty or self.written[table] > 0

    async def end_loading(self, connection: Connection, unfinished: Set[str]) -> None:
        """End the initial load of all tables but those of lists that are `unfinished`, and those that the
        objects of these hold. In a transaction, which links their rows.
        """
        loaded = {
            table
            for table in self.loading
            if unfinished.isdisjoint({table, *(parent for parent, _ in parents_of(table))})
        }
        self.loading -= loaded  # What is written from now on is linked as it comes.
        filled = {table for table in loaded if self.may_have_rows(table)}
        await link_all(connection, self.schema, self.tables, filled)
        is_all = account_of(self.schema) and not self.loading
        await mark_loaded(connection, self.schema, [ALL_LOADED] if is_all else sorted(loaded))

    @property
    def queued(self) -> int:
        """Rows that wait for a writer, or have room in the queue."""
        return self._queue.rows

    async def write(self, parts: Sequence[Part], **given: Unpack[JobOptions]) -> None:
        """Writes rows, each part with the moment at which it was true, and returns once committed.

        All parts commit together, with what else the arguments name (see `enqueue`). Raises Unwritable or
        Drifted if Postgres refuses them; retries over lost connections.
        """
        durable = await self.enqueue(parts, **given)
        await durable

    async def enqueue(
        self,
        parts: Sequence[Part],
        *,
        lane: str = "",
        progress: Progress | None = None,
        step: object = None,
        effect: Effect | None = None,
        completed: Sequence[RefetchDone] = (),
    ) -> asyncio.Future[None]:
        """As `write`, but returns once there is room in the queue: the future is done after the commit.

        Jobs of one `lane` commit in the order of the calls; after one fails, later steps of its
        `progress` fail too. `progress` is saved with `step` applied. `effect` runs in the transaction,
        which also removes the `completed` refetches from their queue. `LIVE_LANE` does not wait for room.
        The future is cancelled where the mirror closes, or is closed.
        """
        for row_set, _ in parts:
            self.on_rows(row_set)
        rows = sum(row_set.count() for row_set, _ in parts)
        if rows and lane != LIVE_LANE:
            await self._queue.room(rows)
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._is_closed:
            durable.cancel()
            return durable
        self._queue.add(Job(parts, progress, step, durable, rows, lane, effect, completed))
        return durable

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """Run the writers for the block. A writer that fails ends the block, so no caller waits for it."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._run(n)) for n in range(len(self._sinks))]
            if self._prober is not None:
                tasks.append(group.create_task(self._probe_on(self._prober())))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                # A writer cancelled in its transaction must not take that for a lost server and retry.
                await asyncio.gather(*tasks, *self.conflicts.cancel(), return_exceptions=True)
                self._is_closed = True
                self._queue.give_up()
                for sink in self._sinks:
                    await sink.close()

    def rest(self) -> None:
        """A first copy is over: let the writers of lists forget what they have prepared for it."""
        self._resting.update(range(1, len(self._sinks)))

    async def _run(self, number: int) -> None:
        sink = self._sinks[number]
        while True:
            try:
                async with asyncio.timeout(_IDLE_S if number else None):
                    jobs = await self._queue.take(number)
            except TimeoutError:
                await sink.close()
                jobs = await self._queue.take(number)
            try:
                await self._write(sink, jobs)
            finally:
                await self._queue.done(number, jobs)
            if number in self._resting:
                self._resting.discard(number)
                await sink.close()

    async def _write(self, sink: Sink, jobs: list[Job]) -> None:
        """Commit the jobs as one batch; if Postgres refuses a value, one by one."""
        jobs = [job for job in jobs if not self._is_broken(job)]
        if not jobs:
            return
        try:
            conflicts = await self._commit(sink, jobs)
        except PinstripeError as error:
            if len(jobs) > 1 and error.is_of_rows:
                for job in jobs:
                    await self._write(sink, [job])
                return
            for job in jobs:
                self._fail(job, error)
            return
        except asyncio.CancelledError:
            for job in jobs:
                job.durable.cancel()
            raise
        self.conflicts.decide(conflicts)
        for job in jobs:
            if not job.durable.done():
                job.durable.set_result(None)

    def _is_broken(self, job: Job) -> bool:
        """Return whether an earlier job of the stream failed: a later step must not cover it."""
        error = self._broken.get(id(job.progress)) if job.progress is not None else None
        if error is not None:
            self._fail(job, error)
        return error is not None

    def _fail(self, job: Job, error: PinstripeError) -> None:
        if job.progress is not None:
            self._broken[id(job.progress)] = error
        if not job.durable.done():
            job.durable.set_exception(error)

    def _batch_of(self, jobs: list[Job], steps: Sequence[tuple[Progress, list[object]]]) -> Batch:
        """Return what these jobs write. Rows of tables that refuse everything are owed instead."""
        left_out = self.quarantine.left_out_of(jobs)
        tables = self.quarantine.open_tables(self.tables)
        batch = Batch(self.api_version, tables=tables, loading=self.loading)
        self._forget_erased(jobs)
        for job in jobs:
            for row_set, as_of in job.parts:
                batch.add(row_set, as_of)
        batch.effects = [*self.always, *(job.effect for job in jobs if job.effect is not None)]
        batch.completed = [answer for job in jobs for answer in job.completed]
        batch.checkpoints = [progress.checkpoint(mine) for progress, mine in steps]
        batch.owed = frozenset(refused.table for refused in left_out)
        if left_out or self.quarantine.tables:
            batch.effects.append(partial(self._owe, left_out, self.quarantine.owners_of(jobs)))
        if self.extractor.erased.unnoted:
            batch.effects.append(partial(self._note_erased, batch))
        return batch

    def _forget_erased(self, jobs: Sequence[Job]) -> None:
        """Erase the rows of erased customers."""
        erased, known = self.extractor.erased, self.tables
        row_sets = [row_set for job in jobs for row_set, _ in job.parts]
        # Again after news: a row may stand before the one that tells whose it is.
        while erased.ids and sum(
            name in known and erased.forget(known[name], key, row)
            for row_set in row_sets
            for name, key, row in row_set.places()
        ):
            pass

    async def _note_erased(self, batch: Batch, connection: Connection) -> None:
        batch.noted = frozenset(self.extractor.erased.unnoted)
        await note_erased(connection, schema=self.schema, places=sorted(batch.noted))

    async def _commit(self, sink: Sink, jobs: list[Job]) -> list[Conflict]:
        steps = steps_of(jobs)
        batch = self._batch_of(jobs, steps)
        attempt = 0
        is_apart, parted = False, Parted()
        while True:
            try:
                if is_apart:
                    parted = await sink.write_apart(batch)
                    conflicts = parted.conflicts
                else:
                    conflicts = await sink.write(batch)
            except ErasedMeanwhile:
                batch = self._batch_of(jobs, steps)
                continue
            except Unreachable as error:
                self.trouble = error.message
                _log.warning("mirror.retry", attempt=attempt, error=error.message)
                if attempt >= _MOST_LOSSES:
                    self._take_too_large(batch)  # A row of a gigabyte ends each session it meets.
                await self._sleep(backoff(_RETRY_S, attempt))
                attempt += 1
                continue
            except PinstripeError as error:
                if isinstance(error, LostLease):
                    raise
                if self._take_too_large(batch):
                    continue
                if is_apart or not sink.failed_at or not error.is_of_rows:
                    raise
                is_apart = True
                _log.warning("mirror.apart", table=sink.failed_at, error=error.message)
                continue
            self.trouble = ""
            self.extractor.erased.unnoted -= batch.noted
            self.quarantine.written(batch)
            self.quarantine.take(parted)  # After it: the batch still has what was left out.
            for progress, mine in steps:
                progress.commit(mine)
            for one_round in batch.rounds:
                for table, group in one_round.items():
                    self.written[table] += len(group)
            return conflicts

    def _take_too_large(self, batch: Batch) -> bool:
        """Take rows out of the batch that no Postgres accepts; return whether there were any."""
        rows = take_too_large(batch)
        if not rows:
            return False
        parted = Parted(rows=rows)
        self.quarantine.take(parted)
        batch.effects.append(partial(note_parted, schema=self.schema, parted=parted))
        return True

    async def _owe(
        self,
        left_out: Sequence[RefusedRow],
        owners: Sequence[tuple[str, str, Why, float]],
        connection: Connection,
    ) -> None:
        """Queue refetches of the rows left out and of the owners of sets, and note the tables whose lists
        have to be read again.
        """
        await owe_rows(connection, self.schema, left_out)
        await owe_fetches(connection, self.schema, owners)
        entries = [(t, "", h.why, True) for t, h in self.quarantine.tables.items() if h.relist]
        await note_refused(connection, self.schema, entries)

    def refuse_table(self, table: str, why: Why) -> None:
        """Quarantine a table that is gone."""
        held = self.quarantine.tables.setdefault(table, HeldTable(why))
        held.relist = True

    async def _probe_on(self, sink: Sink) -> None:
        """Retry what Postgres refuses, every `PROBE_S`."""
        try:
            while True:
                await self._sleep(PROBE_S)
                if self.quarantine:
                    try:
                        await self.probe(sink)
                    except Unreachable as error:
                        _log.debug("mirror.probe", error=error.message)
                    except PinstripeError as error:
                        if isinstance(error, LostLease):
                            raise
                        _log.info("mirror.probe", error=error.message)
        finally:
            await sink.close()

    async def probe(self, sink: Sink) -> None:
        """Retry each refused table and some refused rows once; release what Postgres accepts now."""
        late = set(self.quarantine.late)
        if late:
            await self._release(sink, dict.fromkeys(late))
            self.quarantine.late -= late
        for table, held in list(self.quarantine.tables.items()):
            await self._probe_table(sink, table, held)
        refused: set[Place] = set()
        for _ in range(0, len(self.quarantine.rows), PROBED):
            rows = [r for r in self.quarantine.to_probe() if r.table not in self.quarantine.tables]
            if not rows or refused:
                break
            for left in rows:
                self.extractor.erased.forget(self.tables[left.table], left.key, left.row)
            batch = probe(rows, self.api_version, self.quarantine.open_tables(self.tables))
            batch.effects = list(self.always)
            parted = await sink.write_apart(batch)
            refused = {(r.table, r.key) for r in (*parted.rows, *parted.left_out)}
            self.quarantine.take(parted)
            self.quarantine.healed |= {(r.table, r.key) for r in rows} - refused
        healed = self.quarantine.take_healed()
        if healed:
            await self._release(sink, {table: list(keys) for table, keys in healed.items()})

    async def _probe_table(self, sink: Sink, table: str, held: HeldTable) -> None:
        if held.is_gone and self.mend is not None:
            try:
                await self.mend(table)
            except PinstripeError as error:
                if error.fault is None or error.fault.scope == "passing":
                    raise
                _log.info("mirror.unmended", table=table, error=error.message)
                return
        elif not held.samples:
            self.quarantine.tables.pop(table, None)  # The next row of it is the test.
            await self._release(sink, self.quarantine.due_with(table, held))
            return
        if held.samples:
            for sample in held.samples:
                self.extractor.erased.forget(self.tables[table], sample.key, sample.row)
            batch = probe(held.samples, self.api_version, self.tables)
            batch.effects = list(self.always)
            parted = await sink.write_apart(batch)
            if table in parted.tables:
                held.why = parted.tables[table]
                return
            if len(parted.rows) == len({row.key for row in held.samples}):
                return
            self.quarantine.tables.pop(table, None)
            self.quarantine.take(parted)
        else:
            self.quarantine.tables.pop(table, None)
        _log.info("mirror.healed", table=table)
        await self._release(sink, self.quarantine.due_with(table, held))

    async def _release(self, sink: Sink, keys: Mapping[str, Sequence[str] | None]) -> None:
        """Make the refetches of these rows due: keys of each table, or None for all."""
        batch = Batch(self.api_version, tables=self.tables)

        async def effect(connection: Connection) -> None:
            for table, mine in keys.items():
                await release(connection, self.schema, table, mine)

        batch.effects = [*self.always, effect]
        await sink.write(batch)
        self.on_healed()


@asynccontextmanager
async def open_mirror(
    url: str,
    schema: str,
    tables: Mapping[str, Table],
    *,
    api_version: str,
    writers: int = 3,
    changes: bool = False,
    session_name: str = "pinstripe",
    sink: Sink | None = None,
    extractor: Extractor | None = None,
    personal: Personal | None = None,
    shared: SharedStages | None = None,
) -> AsyncIterator[Mirror]:
    """A mirror whose writers run for the block. Leaving it does not wait for jobs: await your writes.

    `changes`: whether the writers record the change feed; `session_name`: see `Lease`. `sink` takes the
    place of the writers; `extractor` is shared with another mirror. `personal`: see `Extractor`; `shared`:
    see `Writer`.
    """
    extractor = extractor or extractor_for(tables, personal=personal)
    loading: set[str] = set()

    def writer() -> Sink:
        recorder = Recorder(schema, loading) if changes else None
        return Writer(
            url,
            schema,
            tables,
            extractor.shapes,
            recorder=recorder,
            session_name=session_name,
            shared=shared,
        )

    sinks = [sink] if sink is not None else [writer() for _ in range(writers)]
    mirror = Mirror(
        schema,
        tables,
        sinks,
        extractor,
        api_version=api_version,
        loading=loading,
        prober=writer if sink is None else None,
    )
    mirror.always.append(partial(check_erasures, schema=schema, erased=extractor.erased))
    async with mirror._running():
        yield mirror
