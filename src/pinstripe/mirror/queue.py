"""What waits for the mirror's writers: one queue for each, bounded together by rows.

Jobs of one named lane go to the same writer for as long as one of them is open, so they commit in the
order in which they came. Any other job goes to the writer with the least to do. The first writer is
kept free for what is live.

What is handed to the mirror: rows, when they were true, and the stream whose position they move.

Values and one protocol; nothing here writes. `Progress` is what a list or the event reader is to the
mirror: it says what its cursor will be once some steps are durable, and hears that they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from pinstripe.mirror.batch import Effect
from pinstripe.rows.as_of import AsOf
from pinstripe.rows.extract import RowSet
from pinstripe.store.cursors import Checkpoint
from pinstripe.store.refetch import RefetchDone

Part = tuple[RowSet, AsOf]
"""Rows and when they were true."""

ExpectedVersions = Mapping[tuple[str, str], datetime]
"""Versions (`_synced_at`) of rows by table and key."""


class Progress(Protocol):
    """How far one stream is written; the mirror saves it in the transaction that makes it true."""

    def checkpoint(self, steps: Sequence[object]) -> Checkpoint:
        """The position once these steps are durable too, in the order given. Changes nothing."""

    def commit(self, steps: Sequence[object]) -> None:
        """These steps are durable."""


# Coalesced up to this many rows a commit: beyond it the cost per row falls no further (measured,
# docs/decisions/005-writing.md), and the event loop is held longer.
BATCH_ROWS = 2000

# Rows that may wait for a writer. It bounds the memory of a sync whose Postgres is slow.
QUEUE_ROWS = 6000

LIVE_LANE = "live"
"""The lane of events: it has a writer of its own, so that no backfill delays it."""


@dataclass(slots=True)
class Job:
    """Rows that are committed together, and what is done in the same transaction.

    `completed`: the refetches that it completes.
    """

    parts: Sequence[Part]
    progress: Progress | None
    step: object
    durable: asyncio.Future[None]
    rows: int
    lane: str
    expected: ExpectedVersions
    effect: Effect | None
    completed: Sequence[RefetchDone]


@dataclass(slots=True)
class _Line:
    """The jobs of one writer."""

    jobs: list[Job] = field(default_factory=list)
    rows: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Queue:
    """The jobs of all writers, which go by number. `rows`: what waits, or was given room to."""

    def __init__(self, writers: int) -> None:
        self.rows = 0
        self._lines = [_Line() for _ in range(writers)]
        self._line_of: dict[str, tuple[int, int]] = {}
        self._room = asyncio.Condition()

    async def room(self, rows: int) -> None:
        """Waits until there is room, and takes it for so many rows."""
        async with self._room:
            await self._room.wait_for(lambda: self.rows < QUEUE_ROWS)
            self.rows += rows

    def add(self, job: Job) -> None:
        """Queues a job, whose rows were given `room`."""
        if job.lane == LIVE_LANE:
            self.rows += job.rows  # It does not wait for room, but takes it.
        line = self._choose(job.lane)
        line.jobs.append(job)
        line.rows += job.rows
        line.wake.set()

    async def take(self, writer: int) -> list[Job]:
        """The next jobs of this writer, up to a batch. Give them back to `done`."""
        line = self._lines[writer]
        while not line.jobs:
            line.wake.clear()
            await line.wake.wait()
        return _take(line.jobs)

    async def done(self, writer: int, jobs: Sequence[Job]) -> None:
        """These jobs wait no more, written or not."""
        for job in jobs:
            self._lines[writer].rows -= job.rows
            self.rows -= job.rows
            number, open_jobs = self._line_of[job.lane]
            if open_jobs > 1:
                self._line_of[job.lane] = (number, open_jobs - 1)
            else:
                del self._line_of[job.lane]
        async with self._room:
            self._room.notify_all()

    def give_up(self) -> None:
        """Nobody will write what is queued: whoever waits for it is told."""
        for line in self._lines:
            for job in line.jobs:
                job.durable.cancel()

    def _choose(self, lane: str) -> _Line:
        """The writer that has earlier jobs of this lane still to write; else the least busy one."""
        number, open_jobs = self._line_of.get(lane, (0, 0))
        if lane == LIVE_LANE:
            number = 0
        elif not open_jobs:
            # The first writer is kept free for what is live.
            number = min(
                range(min(1, len(self._lines) - 1), len(self._lines)),
                key=lambda n: self._lines[n].rows,
            )
        self._line_of[lane] = (number, open_jobs + 1)
        return self._lines[number]


def steps_of(jobs: Sequence[Job]) -> list[tuple[Progress, list[object]]]:
    """The steps of each stream, in order."""
    found: dict[int, tuple[Progress, list[object]]] = {}
    for job in jobs:
        if job.progress is not None:
            found.setdefault(id(job.progress), (job.progress, []))[1].append(job.step)
    return list(found.values())


def _take(jobs: list[Job]) -> list[Job]:
    """The first jobs of the line, up to a batch; at least one."""
    rows, count = 0, 0
    for job in jobs:
        if count and rows + job.rows > BATCH_ROWS:
            break
        rows += job.rows
        count += 1
    taken = jobs[:count]
    del jobs[:count]
    return taken
