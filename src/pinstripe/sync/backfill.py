"""The first copy of an account: every list to its end, then what happened meanwhile, then what is
only referred to.

    lists -> events since the start -> indexes -> references

Resumable at any moment: each list goes on from its cursor. A second run over a complete copy applies
the events since the last one and lists anew only what has no events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from pinstripe.catalog.endpoints import ListEndpoint, list_endpoints, singleton_paths
from pinstripe.catalog.load import spec
from pinstripe.catalog.tables import table_name
from pinstripe.client.limits import Budget
from pinstripe.errors import NotEnabled, NotFound, NotPermitted, Refused
from pinstripe.rows.extract import Found
from pinstripe.store.cursors import Checkpoint, load_checkpoints, save_checkpoints
from pinstripe.store.migrate import create_indexes
from pinstripe.store.pool import Pool
from pinstripe.sync.dispatch import Dispatcher, Work
from pinstripe.sync.events import RETENTION_S, Applied, Events, bury
from pinstripe.sync.listing import Listing
from pinstripe.sync.page import read_object, truth_of
from pinstripe.sync.pager import Pager
from pinstripe.sync.references import Fetched, References
from pinstripe.sync.source import BACKFILL, Source
from pinstripe.sync.under_parents import UnderParents, stream_of

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

FOLLOWED = "events"
"""The stream whose `as_of` says up to when all events are applied."""
# An event can appear late, behind newer ones (measured by nobody; Stripe's own engine holds back
# 60 s). What is read again is dropped by its time, so a wide margin only costs a page.
_LATE_S = 120


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

    async def run(self) -> Outcome:
        """Returns when all that can be read is written. Raises what ends the whole run."""
        started = self._clock()
        outcome = Outcome()
        since = await self._prepare()
        self.phase = "lists"
        await self._singletons()
        await self._dispatcher.run(
            [w for w in self.works if isinstance(w, Pager)], more=self._ready_parents
        )
        await self._source.mirror.settled()
        await self._save_ends()
        self.phase = "events"
        outcome.applied = await self._catch_up(since)
        await self._source.mirror.settled()
        self.phase = "indexes"
        await self._index()
        self.phase = "references"
        outcome.references = await References(self._source, self._pool).run()
        await self._source.mirror.settled()
        self.phase = "done"
        outcome.streams = [
            w.final() if isinstance(w, UnderParents) else w.listing.final() for w in self.works
        ]
        outcome.seconds = self._clock() - started
        outcome.requests = self._source.stripe.requests.total()
        return outcome

    async def _prepare(self) -> int:
        """Makes the works from the saved cursors; gives the second from which events count."""
        async with self._pool.acquire() as connection:
            saved = dict(await load_checkpoints(connection, self._schema))
        followed = saved.get(FOLLOWED)
        endpoints = [e for e in list_endpoints() if self._wanted_objects(e)]
        since = self._now
        if followed is not None and followed.as_of is not None:
            since = int(followed.as_of)
            if self._now - since > RETENTION_S - 86400:
                self.note = (
                    "The last run is too long ago for the event log: everything is listed anew."
                )
                saved, since = {}, self._now
        if all(_is_done(saved.get(stream_of(e))) for e in endpoints):
            # Complete before: the events tell what changed, save for what has none.
            with_events = {name for event in spec().events for name in event.carries}
            saved = {
                stream: cursor
                for stream, cursor in saved.items()
                if any(stream_of(e) == stream and set(e.objects) <= with_events for e in endpoints)
            }
        self._make_works(endpoints, saved)
        if followed is None or since == self._now:
            # The position is taken before the first list is read.
            await self._save([self._followed(since)])
        return since

    def _make_works(self, endpoints: Sequence[ListEndpoint], saved: dict[str, Checkpoint]) -> None:
        for endpoint in endpoints:
            table = table_name(self._wanted_objects(endpoint)[0])
            cursor = saved.get(stream_of(endpoint))
            if cursor is not None and cursor.state in ("refused", "failed"):
                cursor = None if cursor.state == "refused" else cursor
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

    def _wanted_objects(self, endpoint: ListEndpoint) -> list[str]:
        return [o for o in endpoint.objects if table_name(o) in self._source.wanted]

    def _ready_parents(self) -> Sequence[Work]:
        """Lists under parents, once every list that yields their parents is done."""
        ready: list[UnderParents] = []
        for work in list(self._pending):
            if work.endpoint.parent and not self._is_complete(work.endpoint.parent):
                continue
            self._pending.remove(work)
            if table_name(work.endpoint.parent) in self._source.wanted:
                ready.append(work)
            else:
                work.state, work.reason = "refused", f"{work.parent_table} is not synced"
        return ready

    def _is_complete(self, parent: str) -> bool:
        """Whether no unfinished list can bring another object of this type."""
        makers = [w for w in self.works if parent in w.endpoint.objects]
        if not makers:
            # Only found inside others (a source in a customer): then after all plain lists.
            makers = [w for w in self.works if isinstance(w, Pager)]
        return all(w.finished for w in makers)

    async def _singletons(self) -> None:
        """Objects that are one to an account."""
        for name, path in singleton_paths().items():
            if table_name(name) not in self._source.wanted:
                continue
            try:
                reply = await self._source.stripe.get(
                    path, endpoint=f"GET {path}", priority=BACKFILL
                )
            except (NotPermitted, NotEnabled, NotFound) as error:
                await self._save([_refused_singleton(name, error)])
                continue
            found = Found()
            self._source.mirror.extractor.object(read_object(reply, path), found)
            await self._source.follow_all(found)
            await self._source.mirror.put(found, truth_of(reply))

    async def _save_ends(self) -> None:
        """Lists that ended without being read say so in the database too."""
        ends = [w.final() if isinstance(w, UnderParents) else w.listing.final() for w in self.works]
        await self._save([c for c in ends if c.state != "running"])

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
        async with self._pool.acquire() as connection:
            for table in self._source.mirror.tables.values():
                await create_indexes(connection, self._schema, table)

    def _followed(self, until: int) -> Checkpoint:
        return Checkpoint(FOLLOWED, "running", position={"table": "event"}, as_of=float(until))

    async def _save(self, checkpoints: Sequence[Checkpoint]) -> None:
        async with self._pool.acquire() as connection:
            await save_checkpoints(connection, self._schema, checkpoints)


def _is_done(cursor: Checkpoint | None) -> bool:
    return cursor is not None and cursor.state in ("done", "refused")


def _refused_singleton(name: str, error: Refused) -> Checkpoint:
    return Checkpoint(
        singleton_paths()[name],
        "refused",
        position={"table": table_name(name)},
        reason=error.message,
        remedy=error.hint,
    )


async def settle(source: Source, table: str, key: str, version: datetime) -> bool:
    """Decides a contested row by one GET. For `Mirror.settle`."""
    try:
        return await source.fetch(table, key, over=version)
    except NotFound:
        await bury(source, table, key, over=version)
        return True
