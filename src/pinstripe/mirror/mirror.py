"""The one door to the synced tables: objects, and when they were true, become rows in Postgres.

    await mirror.put(found, Truth(lo, hi))   # returns when the rows are durable

Everything that writes goes through here: pages, events, answers of the proxy, previews. Rows and the
checkpoint that vouches for them commit together. Pages that wait (`queue`) are written as one batch.
Where two snapshots overlap in time and differ, one GET of the object decides (`contests`), and it is
surely newer. What Postgres refuses, a row or a table, is left out, named and owed (`quarantine`), and never
stops the rest.

What the mirror does with a batch.

Decides contested rows: two snapshots that overlap in time and differ.

One GET of the object settles it, since its answer is surely newer. There is one at a time for each
row; what is contested meanwhile shares the next one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

import structlog

from pinstripe.catalog.tables import Table
from pinstripe.concurrency import backoff
from pinstripe.errors import LostLease, PinstripeError, Unreachable
from pinstripe.mirror.batch import Batch, Conflict, Effect
from pinstripe.mirror.change_feed import Recorder
from pinstripe.mirror.quarantine import PROBE_S, HeldTable, Quarantine, probe
from pinstripe.mirror.queue import ExpectedVersions, Job, Part, Progress, Queue, steps_of
from pinstripe.mirror.writer import Writer
from pinstripe.rows.as_of import AsOf
from pinstripe.rows.extract import Extractor, RowSet
from pinstripe.store.pool import Connection
from pinstripe.store.quarantine import (
    Parted,
    Refused,
    Why,
    note_parted,
    note_refused,
    owe_rows,
    release,
    take_too_large,
)
from pinstripe.store.refetch import RefetchDone


class Sink(Protocol):
    """`Writer` writes the batch, `store.compare.Comparer` only compares."""

    failed_at: str
    """The table at which the last write failed; "" where it was at none."""

    async def write(self, batch: Batch) -> list[Conflict]: ...

    async def write_apart(self, batch: Batch) -> Parted:
        """As `write`, without the rows and tables that Postgres refuses."""

    async def close(self) -> None: ...


_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Resolve = Callable[[Conflict], Awaitable[bool]]
"""Fetches the object and puts it over that version of the row; False where Stripe cannot be asked."""


class ConflictQueue:
    """The rows that are contested. `count`: how many there were so far."""

    def __init__(self) -> None:
        self.resolve: Resolve | None = None
        self.count = 0
        self._open: dict[tuple[str, str], Conflict] = {}
        self._resolving: dict[tuple[str, str], asyncio.Task[bool]] = {}

    def decide(self, conflicts: Sequence[Conflict]) -> None:
        """Starts what settles these rows."""
        for contest in conflicts:
            self.count += 1
            place = (contest.table, contest.key)
            self._open[place] = contest
            if place not in self._resolving:
                self._resolving[place] = asyncio.create_task(self._resolve(place))

    def resolving(self, rows: Mapping[str, Container[str]]) -> list[asyncio.Task[bool]]:
        """What settles those of these rows (table -> keys) that are open now.

        Each gives whether its row was decided; one that could not be keeps what it has.
        """
        if not self._resolving:
            return []
        return [t for (table, key), t in self._resolving.items() if key in rows.get(table, ())]

    async def wait_resolved(self) -> None:
        """Returns when no contested row is open any more."""
        while self._resolving:
            await asyncio.gather(*self._resolving.values())

    def cancel(self) -> list[asyncio.Task[bool]]:
        """Ends what is under way; gives the tasks to wait for."""
        tasks = list(self._resolving.values())
        for task in tasks:
            task.cancel()
        return tasks

    async def _resolve(self, place: tuple[str, str]) -> bool:
        table, key = place
        decided = True
        try:
            while (contested := self._open.pop(place, None)) is not None:
                decided = False
                if self.resolve is None:
                    _log.warning("mirror.contested", table=table, id=key)
                    continue
                try:
                    decided = await self.resolve(contested)
                except PinstripeError as error:
                    # The row keeps what it has; the next snapshot of it decides.
                    _log.warning("mirror.unsettled", table=table, error=error.message)
        finally:
            del self._resolving[place]
        return decided


_MOST_LOSSES = 2
"""Of the connection, with one batch, before its largest rows are suspected."""

_RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)


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
        """Run in every transaction: the fence of the lease, NOTIFY."""
        self.loading = loading
        """Tables that are copied for the first time: in the change feed is only what was caused."""
        self.written: Counter[str] = Counter()
        self.trouble = ""
        """What Postgres says while a write is being tried again; "" when all is well."""
        self.quarantine = Quarantine()
        self.mend: Callable[[str], Awaitable[None]] | None = None
        """Makes a table, or a column of it, that is gone."""
        self.on_healed: Callable[[], None] = lambda: None
        """Called when what is owed for rows that were refused may be fetched."""
        self._sleep = sleep
        self._prober = prober
        self._sinks = sinks
        self._queue = Queue(len(sinks))
        self._conflicts = ConflictQueue()
        self._broken: dict[int, PinstripeError] = {}

    @property
    def resolve(self) -> Resolve | None:
        """What decides a contested row."""
        return self._conflicts.resolve

    @resolve.setter
    def resolve(self, resolve: Resolve) -> None:
        self._conflicts.resolve = resolve

    @property
    def conflicts(self) -> int:
        """How many rows were contested so far."""
        return self._conflicts.count

    @property
    def queued(self) -> int:
        """Rows that wait for a writer, or were given room to."""
        return self._queue.rows

    async def put(
        self,
        found: RowSet,
        truth: AsOf,
        *,
        over: ExpectedVersions | None = None,
        effect: Effect | None = None,
        answers: Sequence[RefetchDone] = (),
    ) -> None:
        """Writes `found` and returns when it is committed. For what no cursor vouches for.

        `over`: versions of rows that were seen before the snapshot was asked for. `effect`: what else
        belongs into the commit; `answers`: what is crossed out with it. Raises Unwritable or Drifted where
        Postgres refuses; waits out lost connections.
        """
        await self.room(found)
        await self.submit(found, truth, over=over, effect=effect, answers=answers)

    async def put_parts(
        self, parts: Sequence[Part], *, over: ExpectedVersions, answers: Sequence[RefetchDone]
    ) -> None:
        """As `put`, for snapshots that belong into one transaction."""
        await self._queue.room(sum(found.count() for found, _ in parts))
        await self.submit_parts(parts, over=over, answers=answers)

    async def room(self, found: RowSet) -> None:
        """Waits until the queue has room for these rows. Call it before `submit`."""
        await self._queue.room(found.count())

    def submit(
        self,
        found: RowSet,
        truth: AsOf,
        *,
        lane: str = "",
        progress: Progress | None = None,
        step: object = None,
        over: ExpectedVersions | None = None,
        effect: Effect | None = None,
        answers: Sequence[RefetchDone] = (),
    ) -> asyncio.Future[None]:
        """Queues `found`; the future is done when it is committed, with the step that it makes.

        Calls of one `lane` commit in the order of the calls; once one has failed all later ones do.
        """
        return self.submit_parts(
            [(found, truth)],
            lane=lane,
            progress=progress,
            step=step,
            over=over,
            effect=effect,
            answers=answers,
        )

    def submit_parts(
        self,
        parts: Sequence[Part],
        *,
        lane: str = "",
        progress: Progress | None = None,
        step: object = None,
        over: ExpectedVersions | None = None,
        effect: Effect | None = None,
        answers: Sequence[RefetchDone] = (),
    ) -> asyncio.Future[None]:
        """As `submit`, for snapshots of several moments that belong into one transaction."""
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        rows = sum(found.count() for found, _ in parts)
        self._queue.add(
            Job(parts, progress, step, durable, rows, lane, over or {}, effect, answers)
        )
        return durable

    def resolving(self, found: RowSet) -> list[asyncio.Task[bool]]:
        """What settles those rows of `found` that are contested; see `Contests.settling`.

        Once the future of `submit` is done, these are all that its rows are waiting for.
        """
        return self._conflicts.resolving(found.rows)

    async def wait_resolved(self) -> None:
        """Returns when no contested row is open any more."""
        await self._conflicts.wait_resolved()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """The writers run for the block. One that dies takes the block with it: nobody waits for a
        row that cannot come.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._run(n)) for n in range(len(self._sinks))]
            if self._prober is not None:
                tasks.append(group.create_task(self._probe_on(self._prober())))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                # A writer that is cut off in its transaction must not take the cut for a lost server.
                await asyncio.gather(*tasks, *self._conflicts.cancel(), return_exceptions=True)
                self._queue.give_up()
                for sink in self._sinks:
                    await sink.close()

    async def _run(self, number: int) -> None:
        while True:
            jobs = await self._queue.take(number)
            try:
                await self._write(self._sinks[number], jobs)
            finally:
                await self._queue.done(number, jobs)

    async def _write(self, sink: Sink, jobs: list[Job]) -> None:
        """Commits the jobs as one batch; if Postgres refuses a value, one by one."""
        jobs = [job for job in jobs if not self._is_broken(job)]
        if not jobs:
            return
        try:
            conflicts = await self._commit(sink, jobs)
        except PinstripeError as error:
            if len(jobs) > 1 and _is_of_rows(error):
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
        self._conflicts.decide(conflicts)
        for job in jobs:
            if not job.durable.done():
                job.durable.set_result(None)

    def _is_broken(self, job: Job) -> bool:
        """Whether an earlier job of the stream failed: a later step must not vouch for it."""
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
        """What these jobs write, without the rows of tables that refuse everything: those are owed."""
        left_out = self.quarantine.left_out_of(jobs)
        tables = self.quarantine.open_tables(self.tables)
        batch = Batch(self.api_version, tables=tables, loading=self.loading)
        for job in jobs:
            for found, truth in job.parts:
                batch.add(found, truth.lo, truth.hi, job.expected, cause=truth.cause)
        batch.effects = [*self.always, *(job.effect for job in jobs if job.effect is not None)]
        batch.answers = [answer for job in jobs for answer in job.answers]
        batch.checkpoints = [progress.checkpoint(mine) for progress, mine in steps]
        if left_out or self.quarantine.tables:
            batch.effects.append(partial(self._owe, left_out))
        return batch

    async def _commit(self, sink: Sink, jobs: list[Job]) -> list[Conflict]:
        steps = steps_of(jobs)
        batch = self._batch_of(jobs, steps)
        attempt = 0
        is_apart = False
        while True:
            try:
                if is_apart:
                    parted = await sink.write_apart(batch)
                    self.quarantine.take(parted)
                    conflicts = parted.conflicts
                else:
                    conflicts = await sink.write(batch)
            except Unreachable as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise asyncio.CancelledError from error
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
                if is_apart or not sink.failed_at or not _is_of_rows(error):
                    raise
                is_apart = True
                _log.warning("mirror.apart", table=sink.failed_at, error=error.message)
                continue
            self.trouble = ""
            self.quarantine.written(batch)
            for progress, mine in steps:
                progress.commit(mine)
            for one_round in batch.rounds:
                for table, group in one_round.items():
                    self.written[table] += len(group)
            return conflicts

    def _take_too_large(self, batch: Batch) -> bool:
        """Whether rows were taken out of the batch that no Postgres takes."""
        rows = take_too_large(batch)
        if not rows:
            return False
        parted = Parted(rows=rows)
        self.quarantine.take(parted)

        async def note(connection: Connection) -> None:
            await note_parted(connection, self.schema, parted)

        batch.effects.append(note)
        return True

    async def _owe(self, left_out: Sequence[Refused], connection: Connection) -> None:
        """Notes rows of tables that refuse everything, or that their lists are to be read anew."""
        await owe_rows(connection, self.schema, left_out)
        entries = [(t, "", h.why, True) for t, h in self.quarantine.tables.items() if h.relist]
        await note_refused(connection, self.schema, entries)

    def is_refused(self, found: RowSet) -> bool:
        """Whether Postgres refuses one of these rows now: then a write of them has left it out."""
        return self.quarantine.refuses(found)

    def refuse_table(self, table: str, why: Why) -> None:
        """Somebody has found that the table is gone."""
        held = self.quarantine.tables.setdefault(table, HeldTable(why))
        held.relist = True

    async def _probe_on(self, sink: Sink) -> None:
        """Tries what Postgres refuses again and again, beside all else."""
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
        """Tries each table and some rows that are refused once; what Postgres takes now is released."""
        for table, held in list(self.quarantine.tables.items()):
            await self._probe_table(sink, table, held)
        rows = [r for r in self.quarantine.to_probe() if r.table not in self.quarantine.tables]
        if rows:
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
            self.quarantine.tables.pop(table)  # The next row of it will show.
            await self._release(sink, {table: None})
            return
        if held.samples:
            batch = probe(held.samples, self.api_version, self.tables)
            batch.effects = list(self.always)
            parted = await sink.write_apart(batch)
            if table in parted.tables:
                held.why = parted.tables[table]
                return
            if len(parted.rows) == len({row.key for row in held.samples}):
                return
            self.quarantine.tables.pop(table)
            self.quarantine.take(parted)
        else:
            self.quarantine.tables.pop(table)
        _log.info("mirror.healed", table=table)
        await self._release(sink, {table: None})

    async def _release(self, sink: Sink, keys: Mapping[str, Sequence[str] | None]) -> None:
        """What is owed for these rows of each table, or for all, may be fetched."""
        batch = Batch(self.api_version, tables=self.tables)

        async def effect(connection: Connection) -> None:
            for table, mine in keys.items():
                await release(connection, self.schema, table, mine)

        batch.effects = [*self.always, effect]
        await sink.write(batch)
        self.on_healed()


def _is_of_rows(error: PinstripeError) -> bool:
    """Whether Postgres refuses rows or a table; all else that is written may be."""
    return error.fault is not None and error.fault.scope in ("row", "table")


@asynccontextmanager
async def open_mirror(
    url: str,
    schema: str,
    tables: Mapping[str, Table],
    *,
    api_version: str,
    writers: int = 2,
    changes: bool = False,
    session_name: str = "pinstripe",
    sink: Sink | None = None,
    extractor: Extractor | None = None,
) -> AsyncIterator[Mirror]:
    """A mirror whose writers run for the block. Leaving it does not wait: await what you `put`.

    `changes`: whether the writers keep the change feed; `session_name`: see `Lease`. `scribe` takes
    the place of the writers; `extractor` is shared with another mirror.
    """
    extractor = extractor or Extractor(tables)
    loading: set[str] = set()

    def writer() -> Sink:
        recorder = Recorder(schema, loading) if changes else None
        return Writer(
            url, schema, tables, extractor.shapes, recorder=recorder, session_name=session_name
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
    async with mirror._running():
        yield mirror
