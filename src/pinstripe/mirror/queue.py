"""Jobs that wait for the mirror's writers: one queue for each writer, bounded together by rows.

Jobs of one named lane go to the same writer while one of them is open, so they commit in order. Other jobs
go to the writer with the fewest rows. The first writer is kept free for events. A job's `Progress` (a
list, say) computes its cursor once some steps are durable, and is notified of the commit.
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
"""Versions (`_synced_at`) of rows by table and key; `batch.READ_AT` may hold when they were read."""


class Progress(Protocol):
    """How far one stream is written; the mirror saves it in the transaction that writes its rows."""

    def checkpoint(self, steps: Sequence[object]) -> Checkpoint:
        """Return the position with these steps applied, in the order given. Changes nothing."""

    def commit(self, steps: Sequence[object]) -> None:
        """Called after the commit of these steps."""


# Coalesced up to this many rows a commit: beyond it the cost per row falls no further (measured,
# docs/decisions/005-writing.md), and the event loop is held longer.
BATCH_ROWS = 2000

# Rows that may wait for a writer. It bounds the memory of a sync whose Postgres is slow.
QUEUE_ROWS = 6000

LIVE_LANE = "live"
"""The lane of events: it has a writer of its own, so that no backfill delays it."""


@dataclass(slots=True)
class Job:
    """Rows that are committed together, with their checkpoint, effect and completed refetches."""

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
    """The jobs of all writers, by number. `rows`: those that wait, or have room."""

    def __init__(self, writers: int) -> None:
        self.rows = 0
        self._lines = [_Line() for _ in range(writers)]
        self._line_of: dict[str, tuple[int, int]] = {}
        self._room = asyncio.Condition()

    async def room(self, rows: int) -> None:
        """Wait until there is room, and take it for this many rows."""
        async with self._room:
            await self._room.wait_for(lambda: self.rows < QUEUE_ROWS)
            self.rows += rows

    def add(self, job: Job) -> None:
        """Queue a job. Its rows must have taken `room`, except in the live lane."""
        if job.lane == LIVE_LANE:
            self.rows += job.rows  # It takes room without waiting.
        line = self._choose(job.lane)
        line.jobs.append(job)
        line.rows += job.rows
        line.wake.set()

    async def take(self, writer: int) -> list[Job]:
        """Return the next jobs of this writer, up to a batch. Call `done` with them."""
        line = self._lines[writer]
        while not line.jobs:
            line.wake.clear()
            await line.wake.wait()
        return _take(line.jobs)

    async def done(self, writer: int, jobs: Sequence[Job]) -> None:
        """Free the room of these jobs, written or not."""
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
        """Cancel all queued jobs: no writer is left."""
        for line in self._lines:
            for job in line.jobs:
                job.durable.cancel()

    def _choose(self, lane: str) -> _Line:
        """Return the writer that has open jobs of this lane, else the least busy one."""
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
    """Return the steps of each stream, in order."""
    found: dict[int, tuple[Progress, list[object]]] = {}
    for job in jobs:
        if job.progress is not None:
            found.setdefault(id(job.progress), (job.progress, []))[1].append(job.step)
    return list(found.values())


def _take(jobs: list[Job]) -> list[Job]:
    """Remove and return the first jobs, up to a batch; at least one."""
    rows, count = 0, 0
    for job in jobs:
        if count and rows + job.rows > BATCH_ROWS:
            break
        rows += job.rows
        count += 1
    taken = jobs[:count]
    del jobs[:count]
    return taken
