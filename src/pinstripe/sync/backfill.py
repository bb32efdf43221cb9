"""The first copy of an account: every list to its end, then what happened meanwhile, then what is
only referred to.

    lists -> events since the start -> indexes -> references

Resumable at any moment: each list goes on from its cursor. A second run over a complete copy applies
the events since the last one and lists anew only what has no events.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import structlog

from pinstripe.catalog.endpoints import ListEndpoint, list_endpoints
from pinstripe.catalog.load import spec
from pinstripe.catalog.tables import table_name
from pinstripe.client.limits import Budget
from pinstripe.errors import NotEnabled, NotFound, NotPermitted
from pinstripe.store.cursors import Checkpoint, load_checkpoints, save_checkpoints
from pinstripe.store.migrate import create_indexes
from pinstripe.store.pool import Pool
from pinstripe.store.todo import Todo, todo_done
from pinstripe.sync.dispatch import Dispatcher, Work
from pinstripe.sync.events import RETENTION_S, Applied, Events, bury
from pinstripe.sync.listing import Listing
from pinstripe.sync.nested import checkpoints, closed_gaps
from pinstripe.sync.pager import Pager
from pinstripe.sync.references import Fetched, References
from pinstripe.sync.singletons import read_singletons
from pinstripe.sync.source import BACKFILL, Source
from pinstripe.sync.todos import Todos
from pinstripe.sync.under_parents import UnderParents, stream_of

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

FOLLOWED = "events"
"""The stream whose `as_of` says up to when all events are applied."""
# An event can appear late, behind newer ones (measured by nobody; Stripe's own engine holds back
# 60 s). What is read again is dropped by its time, so a wide margin only costs a page.
_LATE_S = 120
_SOON_S = 600
"""A list that was read so short a time ago is not read again by a run that resumes."""
_INDEXED_AT_ONCE = 3
_SETTLED_S = 31 * 86400
"""Objects without events change no more after that: a balance transaction becomes available within
a month at the latest (https://docs.stripe.com/payouts)."""


@dataclass(slots=True)
class Outcome:
    """How a backfill ended."""

    streams: list[Checkpoint] = field(default_factory=list)
    applied: Applied | None = None
    references: Fetched | None = None
    seconds: float = 0.0
    requests: int = 0

    @property
    def complete(self) -> bool:
        """Everything that the key may read is in the database."""
        return all(s.state in ("done", "refused") for s in self.streams)


class Backfill:
    """One run. `phase` and `works` are for whoever shows progress."""

    def __init__(
        self,
        source: Source,
        pool: Pool,
        budget: Budget,
        *,
        now: float,
        birth: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`now` is the present on Stripe's clock, `birth` a second before which the account was not."""
        self.phase = "starting"
        self.works: list[Pager | UnderParents] = []
        self.note = ""
        self._source = source
        self._pool = pool
        self._dispatcher = Dispatcher(budget)
        self._now = int(now)
        self._birth = birth
        self._clock = clock
        self._schema = source.mirror.schema
        self._pending: list[UnderParents] = []
        self._refused: list[Checkpoint] = []
        self._since: int | None = None

    async def prepare(self) -> int:
        """Reads the cursors; gives the second from which events count, noted before any list is read.

        Whoever follows live begins there. `run` does it if it has not been done.
        """
        if self._since is None:
            self._since = await self._prepare()
        return self._since

    async def run(self, *, followed: bool = False) -> Outcome:
        """Returns when all that can be read is written. Raises what ends the whole run.

        `followed`: somebody applies the events since `prepare` meanwhile, so it is not done here.
        """
        started = self._clock()
        outcome = Outcome()
        since = await self.prepare()
        self.phase = "lists"
        self._refused = await read_singletons(self._source)
        await self._dispatcher.run(
            [w for w in self.works if isinstance(w, Pager)], more=self._ready_parents
        )
        await self._source.mirror.settled()
        await self._save_ends()
        self.phase = "events"
        if not followed:
            outcome.applied = await self._catch_up(since)
        if not followed and outcome.applied is None:
            await self._read_tails(since - _LATE_S)
        await self._source.mirror.settled()
        if not followed:
            await Todos(self._source).drain()
        self.phase = "indexes"
        await self._index()
        self.phase = "references"
        outcome.references = await References(self._source, self._pool).run()
        await self._source.mirror.settled()
        self.phase = "done"
        await self._save(checkpoints(self._source.gaps))
        outcome.streams = self._ends()
        outcome.seconds = self._clock() - started
        outcome.requests = self._source.stripe.requests.total()
        return outcome

    async def _prepare(self) -> int:
        """Makes the works from the saved cursors; gives the second from which events count."""
        async with self._pool.acquire() as connection:
            saved = dict(await load_checkpoints(connection, self._schema))
        followed = saved.get(FOLLOWED)
        endpoints = [e for e in list_endpoints() if self._wanted_objects(e)]
        saved = await self._without_gaps(saved)
        since = self._now
        if followed is not None and followed.as_of is not None:
            since = int(followed.as_of)
            if self._now - since > RETENTION_S - 86400:
                self.note = (
                    "The last run is too long ago for the event log: everything is listed anew."
                )
                saved, since = {}, self._now
        complete = all(_is_done(saved.get(stream_of(e))) for e in endpoints)
        if complete and followed is not None and followed.state == "refused":
            saved = {}  # Nothing tells what changed since.
        self._make_works(endpoints, saved, complete=complete)
        if followed is None or since == self._now:
            # The position is taken before the first list is read.
            await self._save([self._followed(since)])
        return since

    async def _without_gaps(self, saved: dict[str, Checkpoint]) -> dict[str, Checkpoint]:
        """Forgets the lists around nested ones that could not be read before and can now."""
        closed = await closed_gaps(self._source.stripe, saved.values(), priority=BACKFILL)
        if not closed:
            return saved
        await self._save([replace(saved[stream], state="done", position=None) for stream in closed])
        around = set(closed.values())
        return {s: c for s, c in saved.items() if s not in closed and _table_of(c) not in around}

    def _make_works(
        self, endpoints: Sequence[ListEndpoint], saved: dict[str, Checkpoint], *, complete: bool
    ) -> None:
        """`complete`: all was read before, so that events tell what changed, save for what has none."""
        with_events = {name for event in spec().events for name in event.carries}
        for endpoint in endpoints:
            table = table_name(self._wanted_objects(endpoint)[0])
            cursor = saved.get(stream_of(endpoint))
            if cursor is not None and cursor.state == "refused":
                cursor = None
            stale = complete or (cursor is not None and self._now - (cursor.as_of or 0) > _SOON_S)
            unheard = not set(endpoint.objects) <= with_events
            if cursor is not None and cursor.state == "done" and stale and unheard:
                if endpoint.created and not endpoint.parent and cursor.as_of is not None:
                    self._again(endpoint, table, cursor, int(cursor.as_of) - _SETTLED_S)
                    continue
                cursor = None
            if endpoint.parent:
                work = UnderParents(endpoint, table, self._source, self._pool, cursor)
                work.as_of = work.as_of or float(self._now)
                self.works.append(work)
                self._pending.append(work)
            elif cursor is None:
                listing = Listing.fresh(endpoint, table, ceiling=self._now, birth=self._birth)
                self.works.append(Pager(listing, self._source))
            else:
                listing = Listing.resumed(endpoint, table, cursor, birth=self._birth)
                self.works.append(Pager(listing, self._source))
        parents = {work.endpoint.parent for work in self._pending}
        for made in self.works:
            made.feeds = not parents.isdisjoint(made.endpoint.objects)

    def _again(self, endpoint: ListEndpoint, table: str, done: Checkpoint, since: int) -> None:
        listing = Listing.tail(endpoint, table, done, since=since, ceiling=self._now)
        self.works.append(Pager(listing, self._source))

    async def _read_tails(self, since: int) -> None:
        """Where the event log cannot be read: what was created while the lists were read."""
        whole = [w for w in self.works if isinstance(w, Pager) and w.endpoint.created]
        done = [w for w in whole if w.listing.state == "done"]
        self.works = [w for w in self.works if w not in done]
        for work in done:
            self._again(work.endpoint, work.listing.table, work.listing.final(), since)
        added = self.works[len(self.works) - len(done) :]
        await self._dispatcher.run(added, more=lambda: ())

    def _wanted_objects(self, endpoint: ListEndpoint) -> list[str]:
        return [o for o in endpoint.objects if table_name(o) in self._source.wanted]

    def _ready_parents(self) -> Sequence[Work]:
        """Lists under parents, once every list that yields their parents is done."""
        ready: list[UnderParents] = []
        for work in list(self._pending):
            if work.endpoint.parent and not self._is_complete(work.endpoint.parent):
                continue
            self._pending.remove(work)
            if table_name(work.endpoint.parent) not in self._source.wanted:
                work.state, work.reason = "refused", f"{work.parent_table} is not synced"
            elif any(w.failed for w in self._makers(work.endpoint.parent)):
                # Done now, it would never see the parents that are still to come.
                work.state, work.reason = (
                    "failed",
                    f"The list of {work.parent_table} is not complete",
                )
            else:
                ready.append(work)
        return ready

    def _is_complete(self, parent: str) -> bool:
        """Whether no unfinished list can bring another object of this type."""
        makers = self._makers(parent)
        if not makers:
            # Only found inside others (a source in a customer): then after all plain lists.
            return all(w.finished for w in self.works if isinstance(w, Pager))
        return all(w.finished for w in makers)

    def _makers(self, parent: str) -> list[Pager | UnderParents]:
        return [w for w in self.works if parent in w.endpoint.objects]

    async def _save_ends(self) -> None:
        """Lists that ended without being read say so in the database too."""
        await self._save([c for c in self._ends() if c.state != "running"])

    def _ends(self) -> list[Checkpoint]:
        """Where every stream stands, with what could not be read beside the lists."""
        ends = [w.final() if isinstance(w, UnderParents) else w.listing.final() for w in self.works]
        return [*ends, *self._refused, *checkpoints(self._source.gaps)]

    async def _catch_up(self, since: int) -> Applied | None:
        """Applies what happened while the lists were read."""
        events = Events(self._source)
        try:
            applied = await events.apply_since(since - _LATE_S)
        except (NotPermitted, NotEnabled) as error:
            self.note = f"Changes made during the backfill are not seen: {error.message}"
            await self._save(
                [Checkpoint(FOLLOWED, "refused", reason=error.message, remedy=error.hint)]
            )
            return None
        await self._save([self._followed(max(since, applied.newest))])
        return applied

    async def _index(self) -> None:
        tables = iter(self._source.mirror.tables.values())

        async def build() -> None:
            async with self._pool.acquire() as connection:
                for table in tables:
                    await create_indexes(connection, self._schema, table)

        await asyncio.gather(*(build() for _ in range(_INDEXED_AT_ONCE)))

    def _followed(self, until: int) -> Checkpoint:
        return Checkpoint(FOLLOWED, "running", position={"table": "event"}, as_of=float(until))

    async def _save(self, checkpoints: Sequence[Checkpoint]) -> None:
        async with self._source.transaction() as connection:
            await save_checkpoints(connection, self._schema, checkpoints)


def _table_of(cursor: Checkpoint) -> object:
    return cursor.position.get("table") if isinstance(cursor.position, dict) else None


def _is_done(cursor: Checkpoint | None) -> bool:
    return cursor is not None and cursor.state in ("done", "refused")


async def settle(source: Source, table: str, key: str, version: datetime) -> bool:
    """Decides a contested row by one GET, and crosses the question out. For `Mirror.settle`."""
    schema = source.mirror.schema
    async with source.pool.acquire() as connection:
        started = await connection.fetchval("SELECT clock_timestamp()")
    try:
        answered = await source.fetch(table, key, over=version)
    except NotFound:
        await bury(source, table, key, over=version)
        answered = True
    async with source.transaction() as connection:
        await todo_done(connection, schema, Todo("fetch", table, key), started)
    return answered
