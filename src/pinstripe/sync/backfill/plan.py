"""Plans a run: saved cursors become list readers.

A list that was interrupted resumes from its cursor. One that was read to its end is left alone if events
report its changes. If they do not, `relist` reads it in a process that follows; a single run reads it
again: only its young part, if its objects no longer change with age. Lists by parent are read where a row
shows a sign (`signs_of`), or under all parents if the run is deep. If the event log no longer reaches
back to the last run, everything is listed again (a full resync).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from pinstripe.catalog.endpoints import (
    ListEndpoint,
    can_be_fetched,
    list_endpoints,
    signs_of,
    singleton_paths,
)
from pinstripe.catalog.relations import with_events
from pinstripe.catalog.tables import table_name
from pinstripe.source.refusals import closed_gaps
from pinstripe.source.source import BACKFILL, Source
from pinstripe.store.cursors import (
    BESIDE,
    FOLLOWED,
    READY,
    SCAN_OF,
    Checkpoint,
    drop_checkpoints,
    forget_checkpoints,
    load_checkpoints,
    save_checkpoints,
)
from pinstripe.store.cursors import followed as followed_to
from pinstripe.store.pool import Pool
from pinstripe.store.quarantine import forget_streams, reopen, with_rows
from pinstripe.sync.backfill.child_lists import (
    is_whole,
    open_list,
    stream_of,
)
from pinstripe.sync.backfill.list_stream import ListReader, created_since
from pinstripe.sync.events.reader import EVENTS, REACH_S

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_SOON_S = 600
"""A list that was read within this time is not read again by a run that resumes."""
_SETTLED_S = 31 * 86400
"""Objects without events change no more after this: a balance transaction becomes available within a
month at the latest (https://docs.stripe.com/payouts)."""


_FULL_RESYNC = "anew"
"""The stream that records since when a full resync runs, until it is done."""


def full_resync_done(since: float) -> Checkpoint:
    return Checkpoint(_FULL_RESYNC, "done", as_of=since)


@dataclass(frozen=True, slots=True)
class BackfillPlan:
    """What a run reads. Events count from the second `since`; `note` is for the progress display.

    `resync_since`: when a full resync began; None if events report what changed.
    """

    works: Sequence[ListReader]
    since: int
    note: str = ""
    resync_since: float | None = None
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

    async def plan(self, *, followed: bool) -> BackfillPlan:
        """Return the plan. If events count from now on, that is saved before any list is read.

        `followed`: another process reads lists without events again.
        """
        async with self._pool.acquire() as connection:
            saved = dict(await load_checkpoints(connection, self._source.mirror.schema))
        self._source.mirror.began_empty = not saved
        saved = await self._without_lost(saved)
        last = saved.get(FOLLOWED)
        endpoints = [self._source.in_force(e) for e in list_endpoints() if self._wanted_objects(e)]
        saved = await self._without_notes(saved)
        saved = await self._without_gaps(saved)
        since, note = self._now, ""
        if last is not None and last.as_of is not None:
            since = int(last.as_of)
            if self._now - since > REACH_S:
                saved, since = await self._begin_resync(), self._now
        resync = saved.get(_FULL_RESYNC)
        resync_since = resync.as_of if resync is not None and resync.state == "running" else None
        if resync_since is not None:
            note = "The last run is too long ago for the event log: everything is listed anew."
            _log.warning("resume.anew", since=resync_since)
        complete = all(_is_done(saved.get(stream_of(e))) for e in endpoints)
        if complete and last is not None and last.state == "refused":
            saved = {}  # Nothing reports what changed since.
        is_ready = READY in saved
        self._is_relisted = followed and is_ready
        works = self._works(endpoints, saved, complete=complete)
        if last is None or since == self._now:
            # The position is saved before the first list is read.
            await self._source.save([followed_to(since)])
        return BackfillPlan(works, since, note, resync_since, is_ready)

    async def _without_notes(self, saved: dict[str, Checkpoint]) -> dict[str, Checkpoint]:
        """Forget what an earlier process could not read beside the lists: this one tries it again."""
        notes = [s for s in saved if s.startswith(BESIDE) or s in singleton_paths().values()]
        if notes:
            async with self._source.transaction() as connection:
                await drop_checkpoints(connection, self._source.mirror.schema, notes)
        return {stream: cursor for stream, cursor in saved.items() if stream not in notes}

    async def _without_lost(self, saved: dict[str, Checkpoint]) -> dict[str, Checkpoint]:
        """Forget the lists of tables that lack the rows they vouch for: emptied by hand, or in quarantine.

        What an earlier process could not write is tried again.
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

    def read(self, endpoint: ListEndpoint, saved: Checkpoint | None = None) -> ListReader:
        """Return the reader of a list, from `saved` on."""
        table = table_name(self._wanted_objects(endpoint)[0])
        return open_list(
            endpoint,
            table,
            self._source,
            self._pool,
            now=self._now,
            account_created=self._account_created,
            saved=saved,
            is_complete=self._is_complete,
        )

    def tail(self, endpoint: ListEndpoint, done: Checkpoint, since: int) -> ListReader:
        """Return a reader of what was created since then, of a list that is done."""
        table = table_name(self._wanted_objects(endpoint)[0])
        return self.read(endpoint, created_since(done, table, since, ceiling=self._now))

    async def _without_gaps(self, saved: dict[str, Checkpoint]) -> dict[str, Checkpoint]:
        """Forget the lists around nested lists that could not be read before and can now."""
        closed = await closed_gaps(self._source.stripe, saved.values(), priority=BACKFILL)
        if not closed:
            return saved
        opened = [replace(saved[stream], state="done", position=None) for stream in closed]
        await self._source.save(opened)
        around = set(closed.values())
        return {s: c for s, c in saved.items() if s not in closed and _table_of(c) not in around}

    def _works(
        self, endpoints: Sequence[ListEndpoint], saved: Mapping[str, Checkpoint], *, complete: bool
    ) -> list[ListReader]:
        """`complete`: everything was read before, so events report what changed, except for types
        without events.
        """
        works = [self._work(e, saved, complete=complete) for e in endpoints]
        parents = {table_name(w.endpoint.parent) for w in works if w.endpoint.parent}
        read = [s for w in works if w.endpoint.parent for s in signs_of(w.endpoint)]
        signs = {table for sign in read for table in (sign.table, *sign.needs)}
        for work in works:
            work.has_children = not (parents | signs).isdisjoint(work.endpoint.tables)
        return works

    def _work(
        self, endpoint: ListEndpoint, saved: Mapping[str, Checkpoint], *, complete: bool
    ) -> ListReader:
        cursor = saved.get(stream_of(endpoint))
        if cursor is not None and cursor.state == "refused":
            cursor = None
        if cursor is not None and endpoint.parent in with_events():
            return self.read(endpoint, cursor if self._is_enough(cursor, saved) else None)
        if cursor is not None and self._is_to_be_read_again(endpoint, cursor, complete=complete):
            if endpoint.created and not endpoint.parent and cursor.as_of is not None:
                table = table_name(self._wanted_objects(endpoint)[0])
                oldest = self._source.since.get(table, 0)
                return self.tail(endpoint, cursor, max(int(cursor.as_of) - _SETTLED_S, oldest))
            cursor = None
        return self.read(endpoint, cursor)

    def _is_enough(self, cursor: Checkpoint, saved: Mapping[str, Checkpoint]) -> bool:
        """Whether a list by parent was read under all parents that this run wants.

        Events name those that have changed since, and the scan finds the others.
        """
        scanned = saved.get(SCAN_OF + cursor.stream)
        rounds = (
            scanned.position.get("rounds") if scanned and isinstance(scanned.position, dict) else 0
        )
        return (
            self._is_complete is not None
            or cursor.state != "done"
            or is_whole(cursor)
            or bool(rounds)
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

    def _wanted_objects(self, endpoint: ListEndpoint) -> list[str]:
        return [o for o in endpoint.objects if table_name(o) in self._source.wanted]


def _table_of(cursor: Checkpoint) -> str:
    return str(cursor.position.get("table", "")) if isinstance(cursor.position, dict) else ""


def _is_done(cursor: Checkpoint | None) -> bool:
    return cursor is not None and cursor.state in ("done", "refused")
