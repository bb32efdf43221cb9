"""What is written together: jobs that wait for a writer, and the batch that one transaction makes of them.

    Job -> Queue, one line a writer -> Batch: rows in rounds, checkpoints, effects -> `writer` runs it

Jobs of one named lane go to the same writer while one of them is open, so they commit in order. Other jobs
go to the writer with the fewest rows. The first writer is kept free for events. A job's `Progress` (a
list, say) computes its cursor once some steps are durable, and is notified of the commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypedDict

from pinstripe.catalog.endpoints import child_list
from pinstripe.catalog.tables import Table, tables
from pinstripe.client.response import AsOf, Cause
from pinstripe.mirror.orphans import Doubt, SetFact, children_of
from pinstripe.mirror.upsert import EVENT_S
from pinstripe.rows.extract import Row, RowKey, RowSet
from pinstripe.store.cursors import Checkpoint
from pinstripe.store.pool import Connection
from pinstripe.store.refetch import Refetch, RefetchDone, RefetchKind

Effect = Callable[[Connection], Awaitable[None]]
"""A further step of the transaction. It runs again if the transaction is retried."""

Befores = Callable[[], Sequence[Row]]
"""Makes the rows that an object had before a change, the latest first."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A row that overlaps in time with a snapshot of other content; one GET decides.

    With a `parent_table`, a set in doubt: the rows of `table` under the parent `key`. `cause`: what made
    Stripe change it, as far as the snapshot has it.
    """

    table: str
    key: str
    cause: Cause | None = None
    parent_table: str = ""


def doubt(found: Doubt | SetFact) -> Conflict:
    return Conflict(found.child, found.parent_id, found.cause, found.parent)


def refetch_for(conflict: Conflict) -> Refetch:
    """Return the refetch that resolves a conflict; of a set, the list under its parent, or the parent."""
    cause = conflict.cause or Cause()
    kind: RefetchKind = "fetch"
    table, parent = conflict.parent_table or conflict.table, ""
    if conflict.parent_table:
        owner = tables()[conflict.parent_table].object_type
        if child_list(conflict.table, owner) is not None:
            kind, table, parent = "children", conflict.table, owner
    return Refetch(
        kind, table, conflict.key, parent, request_id=cause.request_id, event_id=cause.event_id
    )


@dataclass(slots=True)
class Batch:
    """What one commit writes; rows of tables that are not in `tables` are left out.

    Rounds: a key that comes twice with other content waits for the next round. `sets`: what lists say that
    were complete. In tables in their initial load (`loading`) only those count that something caused.
    `befores`: what the objects of events were before them.
    """

    api_version: str
    tables: Mapping[str, Table]
    loading: Collection[str] = ()
    sets: list[SetFact] = field(default_factory=list)
    befores: dict[RowKey, Befores] = field(default_factory=dict)
    rounds: list[dict[str, dict[str, Row]]] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    completed: list[RefetchDone] = field(default_factory=list)
    causes: list[dict[tuple[str, str], Cause]] = field(default_factory=list)
    rows: int = 0
    owed: frozenset[str] = frozenset()
    """Tables whose rows it owes instead of writing them."""
    noted: frozenset[tuple[str, str]] = frozenset()
    """Rows that its transaction has noted as those of an erased customer."""
    _last: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """The tables of its rounds."""
        return {name for one_round in self.rounds for name in one_round}

    def written(self, names: Container[str]) -> dict[str, dict[str, Row]]:
        """Return the rows of these tables by table and key, without tables in their initial load."""
        found: dict[str, dict[str, Row]] = {}
        for one_round in self.rounds:
            for table, group in one_round.items():
                if table in names and table not in self.loading:
                    found.setdefault(table, {}).update(group)
        return found

    def add(self, row_set: RowSet, as_of: AsOf) -> None:
        """Add rows that were true at a moment in the interval `as_of`."""
        cause = as_of.cause
        for told in row_set.sets:
            for child in children_of(told):
                if child in self.tables and (cause is not None or child not in self.loading):
                    self.sets.append(
                        SetFact(
                            child,
                            told.parent_table,
                            told.parent_id,
                            told.members,
                            as_of.lo,
                            as_of.hi,
                            cause,
                            as_of.known_until,
                        )
                    )
        self.befores |= row_set.befores
        for table, group in row_set.rows.items():
            if table in self.tables:
                for key, row in group.items():
                    self._add(table, key, row, as_of)
        for table, key, row in row_set.variants:
            if table in self.tables:
                self._add(table, key, row, as_of)

    def _add(self, table: str, key: str, row: Row, as_of: AsOf) -> None:
        at = self._last.get((table, key), -1)
        lo, hi, known, cause = as_of.lo, as_of.hi, as_of.known_until, as_of.cause
        if at >= 0:
            earlier = self.rounds[at][table][key]
            # A response that agrees with an event says no more: the event's moment is known better.
            is_event = earlier[-4] - earlier[-5] <= EVENT_S < hi - lo
            if earlier[-1] == row[-1] and earlier[:-5] == row[:-5]:
                if not is_event or lo >= earlier[-4]:
                    earlier[-5], earlier[-4] = max(lo, earlier[-5]), max(hi, earlier[-4])
                    earlier[-3] = known or earlier[-3]
                if cause is not None:
                    self.causes[at].setdefault((table, key), cause)
                return
        at += 1
        if at == len(self.rounds):
            self.rounds.append({})
            self.causes.append({})
        row[-5], row[-4], row[-3] = lo, hi, known
        self.rounds[at].setdefault(table, {})[key] = row
        if cause is not None:
            self.causes[at][table, key] = cause
        self._last[table, key] = at
        self.rows += 1


Part = tuple[RowSet, AsOf]
"""Rows and when they were true."""


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
    effect: Effect | None
    completed: Sequence[RefetchDone]


class JobOptions(TypedDict, total=False):
    """What a job may have besides its rows."""

    lane: str
    progress: Progress | None
    step: object
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
            # The first writer is kept free for what is live, the last ones for when a batch waits: each
            # has to make its stages and statements first.
            number = min(
                range(min(1, len(self._lines) - 1), len(self._lines)),
                key=lambda n: self._lines[n].rows // BATCH_ROWS,
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
