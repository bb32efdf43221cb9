"""The one door to the synced tables: objects, and when they were true, become rows in Postgres.

    await mirror.put(found, Truth(lo, hi))   # returns when the rows are durable

Everything that writes goes through here: pages, events, answers of the proxy, previews. Rows and the
checkpoint that vouches for them commit together. Pages that wait are written as one batch. Where two
snapshots overlap in time and differ, one GET of the object decides, and it is surely newer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import structlog

from pinstripe.catalog.tables import Table
from pinstripe.errors import Drifted, PinstripeError, Unreachable
from pinstripe.rows.extract import Extractor, Found
from pinstripe.store.batch import Batch, Contested, Effect
from pinstripe.store.changes import Cause, Recorder
from pinstripe.store.cursors import Checkpoint
from pinstripe.store.write import Writer

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

# Coalesced up to this many rows a commit: beyond it the cost per row falls no further (measured,
# docs/decisions/005-writing.md), and the event loop is held longer.
BATCH_ROWS = 2000
# Rows that may wait for a writer. It bounds the memory of a sync whose Postgres is slow.
QUEUE_ROWS = 6000
LIVE_LANE = "live"
"""The lane of events: it has a writer of its own, so that no backfill delays it."""
_RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Truth:
    """The interval on Stripe's clock, Unix seconds, in which a snapshot was taken: [lo, hi).

    `cause`: the event or request that made Stripe change the object, for the change feed.
    """

    lo: float
    hi: float
    cause: Cause | None = None


class Progress(Protocol):
    """How far one stream is written; the mirror saves it in the transaction that makes it true."""

    def checkpoint(self, steps: Sequence[object]) -> Checkpoint:
        """The position once these steps are durable too, in the order given. Changes nothing."""

    def commit(self, steps: Sequence[object]) -> None:
        """These steps are durable."""


Part = tuple[Found, Truth]
"""Rows and when they were true."""


@dataclass(slots=True)
class _Job:
    parts: Sequence[Part]
    progress: Progress | None
    step: object
    durable: asyncio.Future[None]
    rows: int
    lane: str
    over: Versions
    effect: Effect | None


Versions = Mapping[tuple[str, str], datetime]
"""Versions (`_synced_at`) of rows by table and key."""

Settle = Callable[[str, str, datetime], Awaitable[bool]]
"""(table, key, version) -> fetch the object and put it over that version of the row; False where
Stripe cannot be asked."""


@dataclass(slots=True)
class _Lane:
    """The queue of one writer."""

    jobs: list[_Job] = field(default_factory=list)
    rows: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Scribe(Protocol):
    """What the mirror does with a batch: `Writer` writes it, `store.compare.Comparer` only compares."""

    async def write(self, batch: Batch) -> list[Contested]: ...

    async def close(self) -> None: ...


class Mirror:
    """Writes to one schema. Make it with `open_mirror`."""

    def __init__(
        self,
        url: str,
        schema: str,
        tables: Mapping[str, Table],
        *,
        api_version: str,
        writers: int = 3,
        changes: bool = False,
        session_name: str = "pinstripe",
        scribe: Scribe | None = None,
        extractor: Extractor | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`changes`: whether the writers keep the change feed; `session_name`: see `Lease`.

        `scribe` takes the place of the writers; `extractor` is shared with another mirror.
        """
        self.schema = schema
        self.tables = tables
        self.api_version = api_version
        self.extractor = extractor or Extractor(tables)
        self.settle: Settle | None = None
        self.always: list[Effect] = []
        """Run in every transaction: the fence of the lease, NOTIFY."""
        self.loading: set[str] = set()
        """Tables that are copied for the first time: in the change feed is only what was caused."""
        self.written: Counter[str] = Counter()
        self.contested = 0
        self.trouble = ""
        """What Postgres says while a write is being tried again; "" when all is well."""
        self._sleep = sleep
        self._writers: list[Scribe] = (
            [scribe]
            if scribe is not None
            else [
                Writer(
                    url,
                    schema,
                    tables,
                    self.extractor.shapes,
                    recorder=Recorder(schema, self.loading) if changes else None,
                    session_name=session_name,
                )
                for _ in range(writers)
            ]
        )
        self._lanes = [_Lane() for _ in self._writers]
        self._lane_of: dict[str, tuple[int, int]] = {}
        self._queued = 0
        self._room = asyncio.Condition()
        self._broken: dict[int, PinstripeError] = {}
        self._settling: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._contested: dict[tuple[str, str], datetime] = {}

    async def put(self, found: Found, truth: Truth, *, over: Versions | None = None) -> None:
        """Writes `found` and returns when it is committed. For what no cursor vouches for.

        `over`: versions of rows that were seen before the snapshot was asked for.
        Raises Unwritable or Drifted where Postgres refuses; waits out lost connections.
        """
        await self.room(found)
        await self.submit(found, truth, over=over)

    async def room(self, found: Found) -> None:
        """Waits until the queue has room for these rows. Call it before `submit`."""
        rows = found.count()
        async with self._room:
            await self._room.wait_for(lambda: self._queued < QUEUE_ROWS)
            self._queued += rows

    def submit(
        self,
        found: Found,
        truth: Truth,
        *,
        lane: str = "",
        progress: Progress | None = None,
        step: object = None,
        over: Versions | None = None,
        effect: Effect | None = None,
    ) -> asyncio.Future[None]:
        """Queues `found`; the future is done when it is committed, with the step that it makes.

        Calls of one `lane` commit in the order of the calls; once one has failed all later ones do.
        """
        return self.submit_parts(
            [(found, truth)], lane=lane, progress=progress, step=step, over=over, effect=effect
        )

    def submit_parts(
        self,
        parts: Sequence[Part],
        *,
        lane: str = "",
        progress: Progress | None = None,
        step: object = None,
        over: Versions | None = None,
        effect: Effect | None = None,
    ) -> asyncio.Future[None]:
        """As `submit`, for snapshots of several moments that belong into one transaction."""
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        rows = sum(found.count() for found, _ in parts)
        if lane == LIVE_LANE:
            self._queued += rows  # It does not wait for room, but takes it.
        job = _Job(parts, progress, step, durable, rows, lane, over or {}, effect)
        chosen = self._choose(lane)
        chosen.jobs.append(job)
        chosen.rows += job.rows
        chosen.wake.set()
        return durable

    def _choose(self, lane: str) -> _Lane:
        """The writer that has earlier calls of this lane still to write; else the least busy one."""
        number, open_jobs = self._lane_of.get(lane, (0, 0))
        if lane == LIVE_LANE:
            number = 0
        elif not open_jobs:
            # The first writer is kept free for what is live.
            number = min(
                range(min(1, len(self._lanes) - 1), len(self._lanes)),
                key=lambda n: self._lanes[n].rows,
            )
        self._lane_of[lane] = (number, open_jobs + 1)
        return self._lanes[number]

    def _done(self, lane: _Lane, jobs: list[_Job]) -> None:
        for job in jobs:
            lane.rows -= job.rows
            self._queued -= job.rows
            number, open_jobs = self._lane_of[job.lane]
            if open_jobs > 1:
                self._lane_of[job.lane] = (number, open_jobs - 1)
            else:
                del self._lane_of[job.lane]

    def _give_up(self) -> None:
        """Nobody will write what is queued: whoever waits for it is told."""
        for lane in self._lanes:
            for job in lane.jobs:
                job.durable.cancel()

    async def settled(self) -> None:
        """Returns when no contested row is open any more."""
        while self._settling:
            await asyncio.gather(*self._settling.values())

    async def _run(self, number: int) -> None:
        lane, writer = self._lanes[number], self._writers[number]
        while True:
            await lane.wake.wait()
            lane.wake.clear()
            while lane.jobs:
                jobs = _take(lane.jobs)
                try:
                    await self._write(writer, jobs)
                finally:
                    self._done(lane, jobs)
                    async with self._room:
                        self._room.notify_all()

    async def _write(self, writer: Scribe, jobs: list[_Job]) -> None:
        """Commits the jobs as one batch; if Postgres refuses a value, one by one."""
        jobs = [job for job in jobs if not self._is_broken(job)]
        if not jobs:
            return
        try:
            contests = await self._commit(writer, jobs)
        except Drifted as error:
            if len(jobs) == 1:
                self._fail(jobs[0], error)
                return
            for job in jobs:
                await self._write(writer, [job])
            return
        except PinstripeError as error:
            for job in jobs:
                self._fail(job, error)
            return
        except asyncio.CancelledError:
            for job in jobs:
                job.durable.cancel()
            raise
        self._decide(contests)
        for job in jobs:
            if not job.durable.done():
                job.durable.set_result(None)

    def _is_broken(self, job: _Job) -> bool:
        """Whether an earlier job of the stream failed: a later step must not vouch for it."""
        error = self._broken.get(id(job.progress)) if job.progress is not None else None
        if error is not None:
            self._fail(job, error)
        return error is not None

    def _fail(self, job: _Job, error: PinstripeError) -> None:
        if job.progress is not None:
            self._broken[id(job.progress)] = error
        if not job.durable.done():
            job.durable.set_exception(error)

    async def _commit(self, writer: Scribe, jobs: list[_Job]) -> list[Contested]:
        batch = Batch(self.api_version, tables=self.tables, loading=self.loading)
        for job in jobs:
            for found, truth in job.parts:
                batch.add(found, truth.lo, truth.hi, job.over, cause=truth.cause)
        steps = _steps(jobs)
        batch.effects = [*self.always, *(job.effect for job in jobs if job.effect is not None)]
        batch.checkpoints = [progress.checkpoint(mine) for progress, mine in steps]
        attempt = 0
        while True:
            try:
                contests = await writer.write(batch)
            except Unreachable as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise asyncio.CancelledError from error
                self.trouble = error.message
                _log.warning("mirror.retry", attempt=attempt, error=error.message)
                await self._sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
                attempt += 1
                continue
            self.trouble = ""
            for progress, mine in steps:
                progress.commit(mine)
            for one_round in batch.rounds:
                for table, group in one_round.items():
                    self.written[table] += len(group)
            return contests

    def _decide(self, contests: list[Contested]) -> None:
        """One GET at a time for each contested row; what is contested meanwhile shares the next one."""
        for contest in contests:
            self.contested += 1
            place = (contest.table, contest.key)
            self._contested[place] = contest.version
            if place not in self._settling:
                self._settling[place] = asyncio.create_task(self._settle(place))

    async def _settle(self, place: tuple[str, str]) -> None:
        table, key = place
        try:
            while (version := self._contested.pop(place, None)) is not None:
                if self.settle is None:
                    _log.warning("mirror.contested", table=table, id=key)
                    continue
                try:
                    await self.settle(table, key, version)
                except PinstripeError as error:
                    # The row keeps what it has; the next snapshot of it decides.
                    _log.warning("mirror.unsettled", table=table, error=error.message)
        finally:
            del self._settling[place]


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
    scribe: Scribe | None = None,
    extractor: Extractor | None = None,
) -> AsyncIterator[Mirror]:
    """A mirror whose writers run for the block. Leaving it does not wait: await what you `put`."""
    mirror = Mirror(
        url,
        schema,
        tables,
        api_version=api_version,
        writers=writers,
        changes=changes,
        session_name=session_name,
        scribe=scribe,
        extractor=extractor,
    )
    async with asyncio.TaskGroup() as group:
        # A writer that dies takes the block with it: nobody waits for a row that cannot come.
        tasks = [group.create_task(mirror._run(n)) for n in range(len(mirror._writers))]
        try:
            yield mirror
        finally:
            settling = list(mirror._settling.values())
            for task in [*tasks, *settling]:
                task.cancel()
            # A writer that is cut off in its transaction must not take the cut for a lost server.
            await asyncio.gather(*tasks, *settling, return_exceptions=True)
            mirror._give_up()
            for writer in mirror._writers:
                await writer.close()


def _take(jobs: list[_Job]) -> list[_Job]:
    """The first jobs of the queue, up to a batch; at least one."""
    rows, count = 0, 0
    for job in jobs:
        if count and rows + job.rows > BATCH_ROWS:
            break
        rows += job.rows
        count += 1
    taken = jobs[:count]
    del jobs[:count]
    return taken


def _steps(jobs: Sequence[_Job]) -> list[tuple[Progress, list[object]]]:
    """The steps of each stream, in order."""
    found: dict[int, tuple[Progress, list[object]]] = {}
    for job in jobs:
        if job.progress is not None:
            found.setdefault(id(job.progress), (job.progress, []))[1].append(job.step)
    return list(found.values())
