"""Reads lists by parent: one list for each row of the parent's table, in the order of its key.

The first copy reads only parents with a sign that they have children (`signs_of`), in passes: one as
soon as the tables of some signs are complete, over the parents that no earlier pass has read. While the
parents are still being listed, those that show a sign by then are read early, and only this process
remembers which. The scan and `--deep` read all parents in one pass. The position is the tables whose signs
are read, those of this pass, and the last parent up to which all lists are durable:

    {"table": "setup_attempt", "parent": "setup_intent", "read": [], "reading": [...], "after": "seti_…"}

Stripe may refuse the list of one parent (the persons of a Standard account) and return the others. If a
permission is missing, all are refused. After any other refusal (a product that is not enabled, a parent of
another kind) a few refusals without one answer end the stream; if others are answered, the refused parents
are left out, counted and reported in Stripe's words. A parent whose list fails twice is queued in
`pinstripe.pending`, and the others go on.

`open_list` returns the reader of any list, by parent or not.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

import structlog

from pinstripe.catalog.endpoints import ListEndpoint, Sign, list_request, signs_of
from pinstripe.client.client import iter_pages, quote_id
from pinstripe.client.response import ListPage, read_list
from pinstripe.concurrency import backoff
from pinstripe.errors import (
    LostLease,
    NotFound,
    NotPermitted,
    PinstripeError,
    Refused,
    Unwritable,
    WrongKey,
)
from pinstripe.mirror import Part
from pinstripe.source.source import BACKFILL, Members, Source
from pinstripe.store.cursors import SOME_REFUSED, UNEXPANDED, Checkpoint, State, permission_of
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.pool import Connection, Pool
from pinstripe.store.refetch import Refetch
from pinstripe.store.session import relations
from pinstripe.sync.backfill.list_stream import ListReader, ListStream

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_CHUNK = 1000

_SIGNED_CHUNK = 10_000
"""Each of these queries reads the tables of the signs: the fewer, the better."""

_WINDOW = 4 * _CHUNK
"""Parents between the first that is not done and the last that was begun: a slow one must not let the
rest pile up."""

_MOST_EARLY, _GROWTH = 20_000, 1.15
"""Parents that are remembered as read early (two megabytes), and how much the tables of the signs grow
between two looks for them: each reads these tables."""

_PAUSES_S = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Pauses after failures without an answer in between, on top of the client's own retries."""


class ChildListStream:
    """One list per parent, as the scheduler's `ListReader` and the mirror's `Progress`."""

    def __init__(
        self,
        endpoint: ListEndpoint,
        table: str,
        source: Source,
        pool: Pool,
        *,
        now: float,
        saved: Checkpoint | None = None,
        is_complete: Callable[[str], bool] | None = None,
        stream: str = "",
        priority: int = BACKFILL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_complete`: as of `open_list`. `stream`: the name of its cursor."""
        self.endpoint, self.table = endpoint, table
        self.stream = stream or endpoint.stream
        self._priority = priority
        self.passes = Passes(endpoint, source, is_complete)
        self._earlier = saved if saved is not None and saved.state == "done" else None
        """The cursor of an earlier run that has read it to its end."""
        self.state: State = "running" if self._earlier is None else "done"
        self.reason = self.remedy = self.code = self.permission = self.note = ""
        self.rows = saved.rows if saved else 0
        self.requests = saved.requests if saved else 0
        self.seconds = saved.seconds if saved else 0.0
        self.as_of = (saved.as_of if saved else None) or now
        self.in_flight = 0
        self.has_children = self.is_longest = False
        self.is_early = False  # Parents are still being listed, so no pass may begin.
        self._early: set[str] = set()
        self._looked_at = 0  # Rows of the signs' tables, at the last look for early parents.
        self._expand = endpoint.expand
        self._source = source
        self._pool = pool
        self._clock = clock
        self._after = self.passes.resume(saved)
        self._read_to = self._after
        self._waiting: deque[str] = deque()
        self._order: deque[str] = deque()
        self._durable: set[str] = set()
        left_out = saved.reason if saved is not None and saved.code == SOME_REFUSED else ""
        self._refused = RefusedParents(left_out, bool(self._after))
        self._tried: set[str] = set()  # Parents whose list has failed once.
        self._troubles = 0
        self._not_before = float("-inf")
        self._done, self.total = _counted(saved) if self._after else (0, None)
        self._loading = False
        self._exhausted = False

    @property
    def finished(self) -> bool:
        return self.state != "running"

    @property
    def urgent(self) -> bool:
        return self.has_children or (bool(self._waiting) and not self.passes.is_last)

    def remaining(self) -> float:
        return float(max((self.total or 1) - self._done, len(self._waiting)))

    def on_change(self, changed: Callable[[], None]) -> None:
        """Never called: the next parent's list can be requested at any time."""

    def claim(self) -> Callable[[], asyncio.Task[None]] | None:
        """Return what starts the list of the next parent, or reads more parents."""
        if self.state != "running":
            return None
        if not self._waiting:
            if self._loading or len(self._order) >= _WINDOW or not self._may_load():
                return None
            self._loading = True
            self.in_flight += 1
            return lambda: asyncio.create_task(self._load())
        if self._clock() < self._not_before:
            return None
        parent = self._waiting.popleft()
        self.in_flight += 1
        return lambda: asyncio.create_task(self._run(parent))

    def _may_load(self) -> bool:
        """Whether this pass has more parents, the next one may begin, or there may be early ones."""
        if self._has_more():
            return True
        if not self.is_early and not self._order and self.passes.begin():
            self._after = self._read_to = ""
            self._exhausted, self._looked_at = False, 0
            return True
        is_grown = self.passes.rows_left() > self._looked_at * _GROWTH
        return is_grown and len(self._early) < _MOST_EARLY

    def _has_more(self) -> bool:
        """Whether this pass may have more parents than were loaded."""
        return self.passes.is_begun and not self._exhausted and not self.is_early

    async def _load(self) -> None:
        """Load the next parents from the database."""
        try:
            await (self._load_next() if self._has_more() else self._load_early())
        except PinstripeError as error:
            if error.fault is None or error.fault.scope != "table":
                raise
            _log.warning("backfill.failed", stream=self.endpoint.stream, error=error.message)
            self._end(error, "failed")  # The parents' table is gone, or may not be read.
        finally:
            self._loading = False
            self.in_flight -= 1
        await self._judge()

    async def _load_early(self) -> None:
        self._looked_at = self.passes.rows_left()
        async with self._pool.acquire(is_growing=True) as connection:
            ids = await self.passes.early_parents(connection, self._early)
        self._waiting.extend(ids)
        self._early.update(ids)

    async def _load_next(self) -> None:
        ids = await self._parents()
        fresh = [key for key in ids if key not in self._early]
        self._waiting.extend(fresh)
        self._order.extend(ids)
        if ids:
            self._read_to = ids[-1]
        self._exhausted = len(ids) < self.passes.chunk
        if not fresh and (ids or (not self._order and self.passes.is_last)):
            await self._step("")  # No list is left to be read: write nothing but the cursor.

    async def _parents(self) -> list[str]:
        if not self._source.mirror.may_have_rows(self.endpoint.parent_table):
            self.total = self.total or 0
            return []
        async with self._pool.acquire() as connection:
            if self.endpoint.only_if_any:
                other = qualified(self._source.mirror.schema, self.endpoint.only_if_any)
                if not await connection.fetchval(f"SELECT EXISTS (SELECT FROM {other})"):
                    self.note = f"Not asked: {self.endpoint.only_if_any} has no rows"
                    return []
            ids = await self.passes.parents(connection, self._read_to)
            if not self._read_to:
                more = len(ids) == self.passes.chunk
                count = await self.passes.count(connection) if more else len(ids)
                self.total = (self.total or 0) + count
        return ids

    async def _run(self, parent: str) -> None:
        started = self._clock()
        expand = self._expand
        try:
            await self._list(parent, expand)
        except (WrongKey, Unwritable, LostLease):
            self.state = "failed"
            raise
        except PinstripeError as error:
            if error.fault is not None:
                _log.warning("backfill.failed", stream=self.endpoint.stream, error=error.message)
                self._end(error, "failed")
            elif not isinstance(error, Refused) or not error.is_answer:
                await self._troubled(parent, error)
            elif expand:
                # The list may be readable without its expansions.
                self.note = f"Without {', '.join(expand)}: {error.message}"
                self._expand = ()
                self._waiting.appendleft(parent)
            else:
                self._refused.refused(parent, error)
        else:
            self._refused.is_answered = True
            self._troubles = 0
        finally:
            self.seconds += self._clock() - started
            self.in_flight -= 1
        await self._judge()

    async def _troubled(self, parent: str, error: PinstripeError) -> None:
        """One parent's list failed: retry it after the others, then queue it as a refetch."""
        now = self._clock()
        if now >= self._not_before:
            self._not_before = now + backoff(_PAUSES_S, self._troubles)
            self._troubles += 1
        if parent not in self._tried:
            self._tried.add(parent)
            self._waiting.append(parent)
            return
        self._tried.discard(parent)
        _log.warning("backfill.owed", stream=self.endpoint.stream, error=error.message)
        refetch = Refetch("children", self.table, parent, self.endpoint.parent)
        self._source.unread[self.table] = error
        if self._source.notes_owed:
            await self._source.owe(refetch, error)
        await self._step(parent)

    async def _judge(self) -> None:
        """Go on without the parents that were refused, or end if all are."""
        nothing_more = self._exhausted and not self._waiting and not self.in_flight
        ended = self._refused.ends(nothing_more=nothing_more)
        if ended is not None:
            self._end(ended, "refused")
        for parent in self._refused.to_pass():
            await self._step(parent)

    async def _list(self, parent: str, expand: Sequence[str]) -> None:
        """Mirrors all pages under one parent; the last one makes the step."""
        path, fixed = self.endpoint.url(parent, quote_id(parent))
        since = self._source.since.get(self.table)
        if since is not None and self.endpoint.created:
            fixed = (*fixed, ("created[gte]", str(since)))

        async def request(after: str | None) -> ListPage:
            where, params = list_request(self.endpoint, path, fixed, after=after, expand=expand)
            priority = self._priority - 1 if self.is_longest else self._priority
            self.requests += 1
            stripe, name = self._source.stripe, self.endpoint.name
            return read_list(
                await stripe.get(where, params, endpoint=name, priority=priority), path
            )

        members = Members.under(self.endpoint, {self.endpoint.parent_table: parent})
        if since is not None:
            members.whole = False  # What is older is not listed.
        try:
            async for page in iter_pages(request, on_lost_cursor="restart"):
                await self._take(parent, page, members)
        except NotFound:
            await self._step(parent)  # The parent was deleted meanwhile, and its list with it.

    async def _take(self, parent: str, page: ListPage, members: Members) -> None:
        found = self._source.extract(page.objects, {self.endpoint.parent_table: parent})
        as_of = members.add(page)
        self.requests += await self._source.follow_all(found, as_of=as_of, priority=self._priority)
        self.rows += len(page.objects)
        parts = [(found, as_of), *members.parts(page)]
        if page.has_more:
            await self._source.mirror.write(parts)
        else:
            await self._step(parent, parts)

    async def _step(self, parent: str, parts: Sequence[Part] = ()) -> None:
        await self._source.mirror.write(parts, lane=self.stream, progress=self, step=parent)

    def end(self, state: State, reason: str, *, code: str, remedy: str = "") -> None:
        """Stop reading; the cursor keeps the state and the reason."""
        self.state, self.reason, self.code, self.remedy = state, reason, code, remedy
        self._waiting.clear()

    def _end(self, error: PinstripeError, state: State) -> None:
        if self.state == "running":
            self.end(state, error.message, code=error.slug, remedy=error.hint)
            self.permission = permission_of(error)
        self._waiting.clear()

    # The cursor, which the mirror saves with the rows.

    def checkpoint(self, steps: Sequence[object]) -> Checkpoint:
        after, passed = self._frontier({str(step) for step in steps})
        left = len(self._order) - passed
        is_done = self._exhausted and not left and self.passes.is_last
        return self._checkpoint(after, self._done + passed, "done" if is_done else self.state)

    def commit(self, steps: Sequence[object]) -> None:
        self._durable |= {str(step) for step in steps}
        while self._order and self._order[0] in self._durable:
            self._after = self._order.popleft()
            self._durable.discard(self._after)
            self._done += 1
        is_done = self._exhausted and not self._order and self.passes.is_last
        if is_done and self.state == "running":
            self.state = "done"

    def final(self) -> Checkpoint:
        if self._earlier is not None and self.state == "done":
            # It says whether every parent was read, also in a run that need not.
            return self._earlier
        return self._checkpoint(self._after, self._done, self.state)

    def _frontier(self, steps: set[str]) -> tuple[str, int]:
        """The last parent up to which all are durable with `steps`, and how many of `_order` these are."""
        after = self._after
        for position, parent in enumerate(self._order):
            if parent not in self._durable and parent not in steps:
                return after, position
            after = parent
        return after, len(self._order)

    def _checkpoint(self, after: str, done: int, state: State) -> Checkpoint:
        left_out = self._refused.words(self.endpoint.parent_table)
        code = UNEXPANDED if self.note and self._expand != self.endpoint.expand else ""
        code = code or (SOME_REFUSED if left_out and not self.note else "")
        return Checkpoint(
            stream=self.stream,
            state=state,
            position={
                "table": self.table,
                "parent": self.endpoint.parent_table,
                **self.passes.position(),
                "after": after,
                "done": done,
                "of": self.total or 0,
            },
            reason=self.reason or self.note or left_out,
            remedy=self.remedy,
            code=self.code or code,
            permission=self.permission,
            rows=self.rows,
            requests=self.requests,
            seconds=self.seconds,
            as_of=self.as_of,
        )


def is_whole(cursor: Checkpoint) -> bool:
    """Whether a list by parent was read under every parent, as of its cursor."""
    return cursor.state == "done" and bool(cursor.position) and "read" not in cursor.position


def _counted(saved: Checkpoint | None) -> tuple[int, int | None]:
    """How many parents a saved position has passed, and of how many; None if it does not say."""
    position = saved.position if saved is not None else {}
    return int(position.get("done", 0)), position.get("of")


class Passes:
    """Which parents of a list are read: all of them in one pass, or only those with a sign.

    `is_complete`, which makes it the latter: whether all rows of a table are there.
    """

    def __init__(
        self,
        endpoint: ListEndpoint,
        source: Source,
        is_complete: Callable[[str], bool] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._source = source
        self._parent = endpoint.parent_table
        self._signs: list[Sign] = []
        self._is_complete = is_complete or (lambda table: True)
        self.chunk = _CHUNK if is_complete is None else _SIGNED_CHUNK
        if is_complete is not None:
            # Where no table is synced that could show a sign, each parent may have children.
            known = [s for s in signs_of(endpoint) if source.wanted.keys() >= {s.table, *s.needs}]
            self._signs = known or [Sign(self._parent, "id")]
        alone = {s.table for s in self._signs if self._needed(s.table) == {s.table}}
        # What an earlier process has read early nobody remembers: it is not read early again.
        may_be_early = source.mirror.began_empty and not endpoint.only_if_any
        self._early: set[str] = alone if may_be_early else set()
        """Tables of later passes whose rows are signs by themselves, whatever rows are still to come."""
        self._read: list[str] = []
        self._reading: list[str] = []
        self.is_begun = not self._signs

    @property
    def is_last(self) -> bool:
        """Whether no pass comes after this one."""
        return not self._left() and self.is_begun

    def resume(self, saved: Checkpoint | None) -> str:
        """Go on where a saved position stands; return the last parent that is read."""
        position = saved.position if saved is not None else {}
        if not position or ("read" in position) != bool(self._signs):
            return ""  # What a position of the other kind passed over is to be read now.
        known = {sign.table for sign in self._signs}
        self._read = [t for t in position.get("read", ()) if t in known]
        self._reading = [t for t in position.get("reading", ()) if t in known]
        self._early -= {*self._read, *self._reading}
        self.is_begun = not self._signs or bool(self._reading)
        return str(position.get("after", "")) if self.is_begun else ""

    def begin(self) -> bool:
        """Begin the next pass, unless there is none or it must wait."""
        ready = [t for t in self._left() if all(map(self._is_complete, self._needed(t)))]
        if not ready and (self._left() or self.is_begun):
            return False
        self._read += self._reading
        self._reading = ready
        self._early -= {*ready}
        self.is_begun = True
        return True

    def position(self) -> dict[str, object]:
        """What the cursor keeps beside the last parent."""
        return {"read": self._read, "reading": self._reading} if self._signs else {}

    async def parents(self, connection: Connection, after: str) -> list[str]:
        """Return the next parents of this pass, in order."""
        parents = self._from(self._reading, self._read)
        statement = f"SELECT p.id FROM {parents} AND p.id > $1 ORDER BY p.id LIMIT {self.chunk}"
        return [row[0] for row in await connection.fetch(statement, after)]

    def rows_left(self) -> int:
        """Return how many rows this process has written that may show parents of later passes."""
        return sum(self._source.mirror.written[table] for table in self._early)

    async def early_parents(self, connection: Connection, known: Collection[str]) -> list[str]:
        """Return parents of later passes, beside those `known`."""
        begun = [*self._read, *self._reading]
        parents = self._from(self._early, begun, "SELECT unnest($1::text[])")
        statement = f"SELECT p.id FROM {parents} LIMIT {self.chunk}"
        return [row[0] for row in await connection.fetch(statement, list(known))]

    async def count(self, connection: Connection) -> int:
        """Return how many parents this pass has."""
        parents = self._from(self._reading, self._read)
        count: int = await connection.fetchval(f"SELECT pg_catalog.count(*) FROM {parents}")
        return count

    def _left(self) -> list[str]:
        begun = {*self._read, *self._reading}
        return sorted({sign.table for sign in self._signs} - begun)

    def _needed(self, table: str) -> set[str]:
        """The tables that the signs of one table read."""
        return {n for s in self._signs if s.table == table for n in (table, *s.needs)}

    def _from(self, tables: Collection[str], earlier: Sequence[str], known: str = "") -> str:
        """The parents as `p`, with a WHERE; with signs, those of `tables` that no `earlier` one shows.

        In an ARRAY, which is made once: these tables have no statistics yet, and joined with them
        Postgres may read one anew for each parent. `known`: a SELECT of parents to leave out.
        """
        parent = self._source.mirror.tables.get(self._parent)
        schema = quote(relations(self._source.mirror.schema))
        only_when = self._endpoint.only_when.replace("{schema}", schema)
        conditions = [f"({only_when or 'true'})"]
        if parent is not None and any(c.name == "deleted" for c in parent.columns):
            conditions.append("p.deleted IS NOT TRUE")  # It has no list any more.
        if self._signs:
            parts = [self._shown_by(tables), self._shown_by(earlier), *([known] if known else [])]
            conditions.append(f"p.id = ANY (ARRAY(({') EXCEPT ('.join(parts)})))")
        table = qualified(self._source.mirror.schema, self._parent)
        return f"{table} p WHERE {' AND '.join(conditions)}"

    def _shown_by(self, names: Collection[str]) -> str:
        """The SELECT of the parents that rows of these tables show."""
        schema = self._source.mirror.schema
        where = quote(relations(schema))
        parts = [
            f"SELECT t.{quote(sign.column)} FROM {qualified(schema, sign.table)} t"
            f" WHERE t.{quote(sign.column)} IS NOT NULL AND ({sign.when.replace('{schema}', where)})"
            for sign in self._signs
            if sign.table in names
        ]
        return " UNION ALL ".join(parts) or "SELECT NULL::text WHERE false"


_ENOUGH = 5
"""Refusals without an answer that speak for all parents."""


class RefusedParents:
    """The refusals of one stream."""

    def __init__(self, told: str = "", is_answered: bool = False) -> None:
        """`told`: what an earlier run reported of those it left out; `is_answered`: it had answers."""
        self.is_answered = is_answered
        self.count = 0
        self._told = told
        self._first = ""
        self._error: Refused | None = None
        self._for_all = False
        self._waiting: list[str] = []

    def refused(self, parent: str, error: Refused) -> None:
        """Stripe refuses the list of this parent."""
        self.count += 1
        self._for_all = isinstance(error, NotPermitted) and bool(error.permission)
        if self._error is None or self._for_all:
            self._first, self._error = parent, error
        self._waiting.append(parent)

    def ends(self, *, nothing_more: bool) -> Refused | None:
        """Return the refusal that speaks for all parents, if there is one."""
        of_all = nothing_more or len(self._waiting) >= _ENOUGH
        return self._error if self._for_all or (of_all and not self.is_answered) else None

    def to_pass(self) -> list[str]:
        """Return the parents to go on without, each once; none until a list has been answered."""
        if not self.is_answered:
            return []
        passed, self._waiting = self._waiting, []
        return passed

    def words(self, parent_table: str) -> str:
        """Return the reason of the gap; "" if there is none."""
        if self._error is None or not self.is_answered:
            return self._told
        return f"Without {self.count} of {parent_table}, the first {self._first}: {self._error.message}"


def open_list(
    endpoint: ListEndpoint,
    table: str,
    source: Source,
    pool: Pool,
    *,
    now: float,
    account_created: int = 0,
    saved: Checkpoint | None = None,
    is_complete: Callable[[str], bool] | None = None,
) -> ListReader:
    """Return the reader of one list, from `saved` on; `now` is the present on Stripe's clock.

    `is_complete`: read only parents with a sign, as soon as the tables of the signs are complete.
    """
    if endpoint.parent:
        return ChildListStream(
            endpoint, table, source, pool, now=now, saved=saved, is_complete=is_complete
        )
    return ListStream(
        endpoint, table, source, ceiling=int(now), account_created=account_created, saved=saved
    )
