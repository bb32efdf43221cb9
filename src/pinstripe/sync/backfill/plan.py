"""Which lists a run reads, and from where each goes on: the saved cursors become works.

A list that was cut off goes on from its cursor. One that was read to its end is left alone where events
tell what changed since, and read again where they do not: only its young part, if its objects settle
down with age. Where the event log no longer reaches back to the last run, everything is listed anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from pinstripe.catalog.endpoints import ListEndpoint, by_parent, list_endpoints, singleton_paths
from pinstripe.catalog.relations import with_events
from pinstripe.catalog.tables import table_name
from pinstripe.source.resolve import can_be_fetched
from pinstripe.source.source import BACKFILL, Source, closed_gaps
from pinstripe.store.cursors import (
    BESIDE,
    Checkpoint,
    drop_checkpoints,
    forget_checkpoints,
    load_checkpoints,
    save_checkpoints,
)
from pinstripe.store.lost_tables import forget_streams, with_rows
from pinstripe.store.pool import Pool
from pinstripe.store.quarantine import reopen
from pinstripe.sync.backfill.child_lists import ChildListStream, stream_of
from pinstripe.sync.backfill.list_stream import ListState, ListStream
from pinstripe.sync.events.reader import FOLLOWED, RETENTION_S, followed

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_SOON_S = 600
"""A list that was read so short a time ago is not read again by a run that resumes."""
_SETTLED_S = 31 * 86400
"""Objects without events change no more after that: a balance transaction becomes available within
a month at the latest (https://docs.stripe.com/payouts)."""


_FULL_RESYNC = "anew"
"""The stream that says since when everything is being listed anew, until that is done."""


def full_resync_done(since: float) -> Checkpoint:
    """The end of it."""
    return Checkpoint(_FULL_RESYNC, "done", as_of=since)


@dataclass(frozen=True, slots=True)
class BackfillPlan:
    """What a run reads. Events count from the second `since`; `note` is for whoever watches.

    `anew_since`: everything is listed anew, begun at this second; None where events tell what changed.
    """

    works: Sequence[ListStream | ChildListStream]
    since: int
    note: str = ""
    anew_since: float | None = None


class BackfillPlanner:
    """Plans one run. `now` is the present on Stripe's clock, `birth` as in `RangeSet`."""

    def __init__(self, source: Source, pool: Pool, *, now: int, birth: int) -> None:
        self._source = source
        self._pool = pool
        self._now = now
        self._birth = birth

    async def plan(self) -> BackfillPlan:
        """The works of the run. Where events count from now on, that is saved before any list is read."""
        async with self._pool.acquire() as connection:
            saved = dict(await load_checkpoints(connection, self._source.mirror.schema))
        saved = await self._without_lost(saved)
        last = saved.get(FOLLOWED)
        endpoints = [
            (by_parent(e) if e.name in self._source.by_parent else None) or e
            for e in list_endpoints()
            if self._wanted_objects(e)
        ]
        saved = await self._without_notes(saved)
        saved = await self._without_gaps(saved)
        since, note = self._now, ""
        if last is not None and last.as_of is not None:
            since = int(last.as_of)
            if self._now - since > RETENTION_S - 86400:
                saved, since = await self._begin_anew(), self._now
        anew = saved.get(_FULL_RESYNC)
        anew_since = anew.as_of if anew is not None and anew.state == "running" else None
        if anew_since is not None:
            note = "The last run is too long ago for the event log: everything is listed anew."
            _log.warning("resume.anew", since=anew_since)
        complete = all(_is_done(saved.get(stream_of(e))) for e in endpoints)
        if complete and last is not None and last.state == "refused":
            saved = {}  # Nothing tells what changed since.
        works = self._works(endpoints, saved, complete=complete)
        if last is None or since == self._now:
            # The position is taken before the first list is read.
            await self._source.save([followed(since)])
        return BackfillPlan(works, since, note, anew_since)

    async def _without_notes(self, saved: dict[str, Checkpoint]) -> dict[str, Checkpoint]:
        """Forgets what an earlier process could not read beside the lists: this one tries it anew."""
        notes = [s for s in saved if s.startswith(BESIDE) or s in singleton_paths().values()]
        if notes:
            async with self._source.transaction() as connection:
                await drop_checkpoints(connection, self._source.mirror.schema, notes)
        return {stream: cursor for stream, cursor in saved.items() if stream not in notes}

    async def _without_lost(self, saved: dict[str, Checkpoint]) -> dict[str, Checkpoint]:
        """Forgets the lists of tables that do not hold what these say: emptied by hand, or in quarantine.

        What an earlier process could not write is tried anew.
        """
        schema, wanted = self._source.mirror.schema, self._source.wanted
        async with self._source.transaction() as connection:
            self._source.mirror.quarantine.forget()
            tried = await reopen(connection, schema)
            lost = {table for table, relist in tried if relist or not can_be_fetched(table)}
            filled = {_table_of(c) for c in saved.values() if c.state == "done" and c.rows}
            filled &= wanted.keys()
            lost |= filled - await with_rows(connection, schema, filled)
            if not lost:
                return saved
            _log.warning("resume.lost", tables=sorted(lost))
            await forget_streams(connection, schema, sorted(lost))
            return dict(await load_checkpoints(connection, schema))

    async def _begin_anew(self) -> dict[str, Checkpoint]:
        """Forgets every position, in one commit with the new one: the next run must not trust the old."""
        begun = [followed(self._now), Checkpoint(_FULL_RESYNC, "running", as_of=float(self._now))]
        async with self._source.transaction() as connection:
            await forget_checkpoints(connection, self._source.mirror.schema)
            await save_checkpoints(connection, self._source.mirror.schema, begun)
        return {checkpoint.stream: checkpoint for checkpoint in begun}

    def under_parents(self, endpoint: ListEndpoint) -> ChildListStream:
        """A list that Stripe refuses without a parent, from its first parent on."""
        table = table_name(self._wanted_objects(endpoint)[0])
        work = ChildListStream(endpoint, table, self._source, self._pool)
        work.as_of = float(self._now)
        return work

    def tail(self, endpoint: ListEndpoint, table: str, done: Checkpoint, since: int) -> ListStream:
        """Reads again what was created since then, of a list that is done."""
        listing = ListState.tail(endpoint, table, done, since=since, ceiling=self._now)
        return ListStream(listing, self._source)

    async def _without_gaps(self, saved: dict[str, Checkpoint]) -> dict[str, Checkpoint]:
        """Forgets the lists around nested ones that could not be read before and can now."""
        closed = await closed_gaps(self._source.stripe, saved.values(), priority=BACKFILL)
        if not closed:
            return saved
        opened = [replace(saved[stream], state="done", position=None) for stream in closed]
        await self._source.save(opened)
        around = set(closed.values())
        return {s: c for s, c in saved.items() if s not in closed and _table_of(c) not in around}

    def _works(
        self, endpoints: Sequence[ListEndpoint], saved: Mapping[str, Checkpoint], *, complete: bool
    ) -> list[ListStream | ChildListStream]:
        """`complete`: all was read before, so that events tell what changed, save for what has none."""
        works = [self._work(e, saved.get(stream_of(e)), complete=complete) for e in endpoints]
        parents = {w.endpoint.parent for w in works if isinstance(w, ChildListStream)}
        for work in works:
            work.has_children = not parents.isdisjoint(work.endpoint.objects)
        return works

    def _work(
        self, endpoint: ListEndpoint, cursor: Checkpoint | None, *, complete: bool
    ) -> ListStream | ChildListStream:
        table = table_name(self._wanted_objects(endpoint)[0])
        if cursor is not None and cursor.state == "refused":
            cursor = None
        if cursor is not None and self._is_to_be_read_again(endpoint, cursor, complete=complete):
            if endpoint.created and not endpoint.parent and cursor.as_of is not None:
                return self.tail(endpoint, table, cursor, int(cursor.as_of) - _SETTLED_S)
            cursor = None
        if endpoint.parent:
            work = ChildListStream(endpoint, table, self._source, self._pool, cursor)
            work.as_of = work.as_of or float(self._now)
            return work
        if cursor is None:
            listing = ListState.fresh(endpoint, table, ceiling=self._now, birth=self._birth)
        else:
            listing = ListState.resumed(endpoint, table, cursor, birth=self._birth)
        return ListStream(listing, self._source)

    def _is_to_be_read_again(
        self, endpoint: ListEndpoint, cursor: Checkpoint, *, complete: bool
    ) -> bool:
        """Whether a list that is done may have changed without an event."""
        stale = complete or self._now - (cursor.as_of or 0) > _SOON_S
        unheard = not set(endpoint.objects) <= with_events()
        return cursor.state == "done" and stale and unheard

    def _wanted_objects(self, endpoint: ListEndpoint) -> list[str]:
        return [o for o in endpoint.objects if table_name(o) in self._source.wanted]


def _table_of(cursor: Checkpoint) -> str:
    return str(cursor.position.get("table", "")) if isinstance(cursor.position, dict) else ""


def _is_done(cursor: Checkpoint | None) -> bool:
    return cursor is not None and cursor.state in ("done", "refused")
