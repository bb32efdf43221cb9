"""Loads an account: its lists to their end, with the objects that they refer to, then the events meanwhile.

    lists, references -> events since the start -> the last references -> READY -> indexes

Resumable at any moment: each list resumes from its cursor. Ready means that the copy is complete and the
events are current; from then on, restarts included, the events alone decide. A second run over a complete
copy applies the events since the last one, and lists again only what has no events.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from pinstripe.catalog.embedded import holders
from pinstripe.catalog.endpoints import ListEndpoint, by_parent
from pinstripe.catalog.tables import table_name
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.errors import MissingParent, NotEnabled, NotPermitted, PinstripeError
from pinstripe.source.refusals import checkpoints, note_by_parent
from pinstripe.source.source import Source
from pinstripe.store.cursors import (
    FOLLOWED,
    LEFT_OUT,
    PARENT_INCOMPLETE,
    READY,
    Checkpoint,
    ended_by,
)
from pinstripe.store.migrate import create_indexes, create_indexes_beside
from pinstripe.store.pool import Pool
from pinstripe.sync.backfill.list_stream import ListReader, Scheduler
from pinstripe.sync.backfill.plan import BackfillPlanner, full_resync_done
from pinstripe.sync.backfill.references import Fetched, References, queue_missing, read_singletons
from pinstripe.sync.events.poller import EventPoller
from pinstripe.sync.events.reader import LATE_S
from pinstripe.sync.refetch.worker import RefetchWorker

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_INDEXED_AT_ONCE = 3


@dataclass(slots=True)
class BackfillResult:
    """How a backfill ended. `events`: how many were applied; None if they were not read."""

    streams: list[Checkpoint] = field(default_factory=list)
    events: int | None = None
    references: Fetched | None = None
    seconds: float = 0.0
    requests: int = 0

    @property
    def complete(self) -> bool:
        """Everything that the key may read is in the database."""
        return not self.unfinished

    @property
    def unfinished(self) -> set[str]:
        """Return the tables with a list that was not read to its end."""
        return _tables_of(s for s in self.streams if s.state not in ("done", "refused"))


class Backfill:
    """One run. `phase`, `works` and `note` are what the progress display reads."""

    def __init__(
        self,
        source: Source,
        pool: Pool,
        budget: RateLimiter,
        *,
        now: float,
        account_created: int = 0,
        deep: bool = False,
        references_beside: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`now` is the present on Stripe's clock; nothing is older than the second `account_created`.

        `deep`: read lists by parent under every parent, not only where a row shows a sign.
        `references_beside`: fetch what rows refer to also while the lists are read.
        """
        self.phase = "starting"
        self.works: list[ListReader] = []
        self._by_table: dict[str, list[ListReader]] = {}
        self.note = ""
        self._source = source
        self._pool = pool
        self._scheduler = Scheduler(budget)
        self._planner = BackfillPlanner(
            source,
            pool,
            now=int(now),
            account_created=account_created,
            is_complete=self._is_complete_table,
            deep=deep,
        )
        self._references = References(source, pool, self._is_complete_table)
        self._references_beside = references_beside
        self._clock = clock
        self._schema = source.mirror.schema
        self._pending: list[ListReader] = []
        self._refused: list[Checkpoint] = []
        self._since: int | None = None
        self._resync_since: float | None = None
        self._was_ready = False

    async def prepare(self, *, followed: bool = False) -> int:
        """Read the cursors; return the second from which events count, saved before any list is read.

        The poller begins there. `run` calls this if it has not been called.
        """
        if self._since is None:
            self._since = await self._prepare(followed=followed)
        return self._since

    async def run(
        self, *, followed: bool = False, on_ready: Callable[[], None] = lambda: None
    ) -> BackfillResult:
        """Return when all that can be read is written. Raises errors that end the whole run.

        `followed`: a poller applies the events since `prepare` meanwhile, so the run does not. `on_ready`
        is called as soon as only the events decide whether the copy is current.
        """
        started = self._clock()
        outcome = BackfillResult()
        since = await self.prepare(followed=followed)
        if self._was_ready:
            on_ready()
        self.phase, rows = "lists", sum(w.rows for w in self.works)
        await self._read_lists()
        await self._source.mirror.wait_resolved()
        await self._save_ends()
        self.phase = "events"
        if not followed:
            outcome.events = await self._catch_up(since)
        if not followed and outcome.events is None:
            await self._read_tails(since - LATE_S)
        await self._source.mirror.wait_resolved()
        if not followed:
            await RefetchWorker(self._source).drain()
        if self._resync_since is not None:
            await self._queue_missing(self._resync_since)
        self.phase = "references"
        if not self._was_ready or sum(w.rows for w in self.works) > rows:
            outcome.references = await self._references.run()
            await self._source.mirror.wait_resolved()
        await self._source.save(checkpoints(self._source.unreadable_lists))
        outcome.streams = self._ends()
        if outcome.complete:
            await self._source.save([Checkpoint(READY, "done", as_of=float(since))])
        on_ready()
        self.phase = "indexes"
        await self._index(beside_writers=followed)
        self.phase = "done"
        outcome.seconds = self._clock() - started
        outcome.requests = self._source.stripe.requests.total()
        return outcome

    async def _read_lists(self) -> None:
        """Read all lists, and what their rows refer to meanwhile."""
        done = asyncio.Event()
        referred: asyncio.Task[None] | None = None
        if self._references_beside and not self._was_ready:
            referred = asyncio.create_task(self._references.run_beside(done))
        singletons = asyncio.create_task(read_singletons(self._source))
        try:
            plain = [w for w in self.works if not w.endpoint.parent]
            await self._scheduler.run(plain, more=self._ready_parents)
            done.set()
            self._refused = await singletons
            if referred is not None:
                await referred
        finally:
            beside = [singletons, *([referred] if referred is not None else [])]
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _prepare(self, *, followed: bool) -> int:
        """Plan the works; return the second from which events count."""
        plan = await self._planner.plan(followed=followed)
        self._was_ready = plan.is_ready
        if plan.is_ready or self._source.mirror.began_empty:
            self._references.skip_written()
        self.note = plan.note
        self._set_works(plan.works)
        self._resync_since = plan.resync_since
        self._pending = [work for work in self.works if work.endpoint.parent]
        return plan.since

    async def _go_by_parent(self) -> None:
        """Replace lists that Stripe has refused without a parent by the lists under each parent."""
        for work in list(self.works):
            other = self._instead(work)
            if other is not None:
                # Noted first: a restart then resumes the list by parent from its cursor.
                await note_by_parent(self._source, work.endpoint.name, work.reason, work.remedy)
                added = self._planner.read(other)
                self._set_works([*(w for w in self.works if w is not work), added])
                self._pending.append(added)

    def _instead(self, work: ListReader) -> ListEndpoint | None:
        """The list by parent that replaces one that Stripe has refused without a parent."""
        if work.state not in ("refused", "failed") or work.code != MissingParent.slug:
            return None
        other = None if work.endpoint.parent else by_parent(work.endpoint)
        return other if other and table_name(other.parent) in self._source.wanted else None

    async def _queue_missing(self, since: float) -> None:
        """Queue rows that no list returned and whose events are gone."""
        ends = self._ends()
        unread = _tables_of(c for c in ends if c.state != "done")
        refetches = RefetchWorker(self._source)
        refetches.add(await queue_missing(self._source, set(self._source.wanted) - unread, since))
        await refetches.work_off()
        if all(c.state != "failed" for c in ends):
            await self._source.save([full_resync_done(since)])

    async def _read_tails(self, since: int) -> None:
        """If the event log cannot be read: list what was created while the lists were read."""
        dated = [w for w in self.works if w.endpoint.created and not w.endpoint.parent]
        done = [w for w in dated if w.state == "done"]
        added = [self._planner.tail(w.endpoint, w.final(), since) for w in done]
        self._set_works([*(w for w in self.works if w not in done), *added])
        await self._scheduler.run(added)

    async def _ready_parents(self) -> Sequence[ListReader]:
        """Return lists by parent, once every list that yields their parents is done."""
        await self._go_by_parent()
        ready: list[ListReader] = []
        for work in list(self._pending):
            if not self._is_complete(work.endpoint.parent):
                continue
            self._pending.remove(work)
            parent = table_name(work.endpoint.parent)
            if parent not in self._source.wanted:
                work.end("refused", f"{parent} is not synced", code=LEFT_OUT)
            elif any(w.state == "failed" for w in self._makers(work.endpoint.parent)):
                # Read now, it would miss the parents that are still to be listed.
                reason = f"The list of {parent} is not complete"
                work.end("failed", reason, code=PARENT_INCOMPLETE)
            else:
                ready.append(work)
        return ready

    def _is_complete(self, parent: str) -> bool:
        """Whether no unfinished list can bring another object of this type."""
        makers = self._makers(parent)
        if not makers:
            # Only found inside others (a source in a customer): after all plain lists.
            return all(w.finished for w in self.works if not w.endpoint.parent)
        return all(w.finished for w in makers)

    def _is_complete_table(self, table: str) -> bool:
        """Whether no unfinished list can bring another row of this table, itself or inside another."""
        names = {table} if self._bring(table) else holders().get(table, frozenset())
        return all(
            work.finished and self._instead(work) is None
            for name in names
            for work in self._bring(name)
        )

    def _bring(self, table: str) -> Sequence[ListReader]:
        return self._by_table.get(table, ())

    def _set_works(self, works: Sequence[ListReader]) -> None:
        self.works, self._by_table = list(works), {}
        for work in works:
            for table in work.endpoint.tables:
                self._by_table.setdefault(table, []).append(work)

    def _makers(self, parent: str) -> list[ListReader]:
        return [w for w in self.works if parent in w.endpoint.objects]

    async def _save_ends(self) -> None:
        """Save the cursors of lists that ended without being read."""
        await self._source.save([c for c in self._ends() if c.state != "running"])

    def _ends(self) -> list[Checkpoint]:
        """Return the cursor of every stream, and of what could not be read beside the lists."""
        ends = [work.final() for work in self.works]
        return [*ends, *self._refused, *checkpoints(self._source.unreadable_lists)]

    async def _catch_up(self, since: int) -> int | None:
        """Apply the events since the lists were begun."""
        live = EventPoller(self._source, RefetchWorker(self._source), since=float(since))
        try:
            await live.catch_up(LATE_S)
        except (NotPermitted, NotEnabled) as error:
            self.note = f"Changes made during the backfill are not seen: {error.message}"
            await self._source.save([ended_by(error, FOLLOWED)])
            return None
        return live.stats.events

    async def _index(self, *, beside_writers: bool) -> None:
        """`beside_writers`: a poller writes meanwhile, and must not wait for an index."""
        create = create_indexes_beside if beside_writers else create_indexes
        tables = iter(self._source.mirror.tables.values())

        async def build() -> None:
            async with self._pool.acquire() as connection:
                for table in tables:
                    try:
                        await create(connection, self._schema, table)
                    except PinstripeError as error:
                        if not error.is_of_rows:
                            raise
                        _log.warning("backfill.no_index", table=table.name, error=error.message)

        await asyncio.gather(*(build() for _ in range(_INDEXED_AT_ONCE)))


def _tables_of(streams: Iterable[Checkpoint]) -> set[str]:
    """Return the tables that these streams fill."""
    found = [s.position for s in streams]
    return {str(p.get("table")) if isinstance(p, dict) else "" for p in found}
