"""Reads lists by parent: one list for each row of the parent's table, in the order of its key.

The position is the last parent up to which all lists are durable:

    {"table": "setup_attempt", "parent": "setup_intent", "after": "seti_…"}

Parents are read from the database, so they must be complete before this starts. Stripe may refuse the list
of one parent (the persons of a Standard account) and return the others. A missing permission concerns every
parent alike. After any other refusal (a product that is not enabled, a parent of another kind) a few
refusals without one answer end the stream; if others are answered, the refused parents are left out,
counted and reported in Stripe's words. A parent whose list fails twice is queued in `pinstripe.pending`,
and the others go on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from pinstripe.catalog.endpoints import ListEndpoint
from pinstripe.catalog.tables import table_name
from pinstripe.client.client import quote_id
from pinstripe.client.pagination import ListPage, iter_pages, list_request, read_list
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
from pinstripe.rows.as_of import as_of_response
from pinstripe.source.source import BACKFILL, Source
from pinstripe.store.cursors import SOME_REFUSED, UNEXPANDED, Checkpoint, State, permission_of
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.pool import Pool
from pinstripe.store.refetch import Refetch

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_CHUNK = 1000

_WINDOW = 4 * _CHUNK
"""Parents between the first that is not done and the last that was begun: a slow one must not let the
rest pile up."""

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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint, self.table = endpoint, table
        self.state: State = "done" if saved is not None and saved.state == "done" else "running"
        self.reason = self.remedy = self.code = self.permission = self.note = ""
        self.rows = saved.rows if saved else 0
        self.requests = saved.requests if saved else 0
        self.seconds = saved.seconds if saved else 0.0
        self.as_of = (saved.as_of if saved else None) or now
        self.in_flight = 0
        self.has_children = False
        self.total: int | None = None
        self._expand = endpoint.expand
        self._source = source
        self._pool = pool
        self._clock = clock
        self._after = _saved_after(saved)
        self._read_to = self._after
        self._waiting: deque[str] = deque()
        self._order: deque[str] = deque()
        self._durable: set[str] = set()
        self._refused = RefusedParents(_left_out_before(saved), bool(self._after))
        self._tried: set[str] = set()
        """Parents whose list has failed once."""
        self._troubles = 0
        self._not_before = float("-inf")
        self._done = 0
        self._loading = False
        self._exhausted = False

    @property
    def parent_table(self) -> str:
        return table_name(self.endpoint.parent)

    @property
    def finished(self) -> bool:
        return self.state != "running"

    @property
    def urgent(self) -> bool:
        return self.has_children

    def remaining(self) -> float:
        return float(max((self.total or 1) - self._done, len(self._waiting)))

    def on_change(self, changed: Callable[[], None]) -> None:
        """Never called: the next parent's list can be requested at any time."""

    def claim(self) -> Callable[[], asyncio.Task[None]] | None:
        """Return what starts the list of the next parent, or reads more parents."""
        if self.state != "running":
            return None
        if not self._waiting:
            if self._loading or self._exhausted or len(self._order) >= _WINDOW:
                return None
            self._loading = True
            self.in_flight += 1
            return lambda: asyncio.create_task(self._load())
        if self._clock() < self._not_before:
            return None
        parent = self._waiting.popleft()
        self.in_flight += 1
        return lambda: asyncio.create_task(self._run(parent))

    async def _load(self) -> None:
        """Load the next parents from the database."""
        try:
            ids = await self._parents()
            self._waiting.extend(ids)
            self._order.extend(ids)
            self._exhausted = len(ids) < _CHUNK
            if ids:
                self._read_to = ids[-1]
            elif not self._order:
                await self._finish()
        except PinstripeError as error:
            if error.fault is None or error.fault.scope != "table":
                raise
            _log.warning("backfill.failed", stream=self.endpoint.stream, error=error.message)
            self._end(error, "failed")  # The parents' table is gone, or may not be read.
        finally:
            self._loading = False
            self.in_flight -= 1
        await self._judge()

    async def _parents(self) -> list[str]:
        schema = self._source.mirror.schema
        table = qualified(schema, self.parent_table)
        only_when = self.endpoint.only_when.replace("{schema}", quote(schema))
        condition = f" AND ({only_when})" if only_when else ""
        # A deleted parent has no list any more.
        gone = "" if not self._has_deleted() else " AND deleted IS NOT TRUE"
        async with self._pool.acquire() as connection:
            if self.endpoint.only_if_any:
                other = qualified(schema, self.endpoint.only_if_any)
                if not await connection.fetchval(f"SELECT EXISTS (SELECT FROM {other})"):
                    self.note = f"Not asked: {self.endpoint.only_if_any} has no rows"
                    return []
            if self.total is None:
                self.total = await connection.fetchval(
                    f"SELECT count(*) FROM {table} WHERE true{gone}{condition}"
                )
            rows = await connection.fetch(
                f"SELECT id FROM {table} WHERE id > $1{gone}{condition} ORDER BY id LIMIT {_CHUNK}",
                self._read_to,
            )
        return [row[0] for row in rows]

    def _has_deleted(self) -> bool:
        table = self._source.mirror.tables.get(self.parent_table)
        return table is not None and any(c.name == "deleted" for c in table.columns)

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

        async def request(after: str | None) -> ListPage:
            where, params = list_request(self.endpoint, path, fixed, after=after, expand=expand)
            self.requests += 1
            stripe, name = self._source.stripe, self.endpoint.name
            return read_list(
                await stripe.get(where, params, endpoint=name, priority=BACKFILL), path
            )

        try:
            async for page in iter_pages(request, on_lost_cursor="restart"):
                await self._take(parent, page)
        except NotFound:
            await self._step(parent)  # The parent was deleted meanwhile, and its list with it.

    async def _take(self, parent: str, page: ListPage) -> None:
        found = self._source.extract(page.objects, {self.parent_table: parent})
        self.requests += await self._source.follow_all(found)
        self.rows += len(page.objects)
        part = (found, as_of_response(page.response))
        if page.has_more:
            await self._source.mirror.write([part])
        else:
            await self._step(parent, [part])

    async def _step(self, parent: str, parts: Sequence[Part] = ()) -> None:
        lane = self.endpoint.stream
        await self._source.mirror.write(parts, lane=lane, progress=self, step=parent)

    async def _finish(self) -> None:
        """There are no parents: write nothing but the cursor."""
        await self._step("")

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
        durable = self._durable | {str(step) for step in steps}
        after, left = self._frontier(durable)
        return self._checkpoint(after, "done" if self._exhausted and not left else self.state)

    def commit(self, steps: Sequence[object]) -> None:
        self._durable |= {str(step) for step in steps}
        while self._order and self._order[0] in self._durable:
            self._after = self._order.popleft()
            self._durable.discard(self._after)
            self._done += 1
        if self._exhausted and not self._order and self.state == "running":
            self.state = "done"

    def final(self) -> Checkpoint:
        return self._checkpoint(self._after, self.state)

    def _frontier(self, durable: set[str]) -> tuple[str, int]:
        after = self._after
        for position, parent in enumerate(self._order):
            if parent not in durable:
                return after, len(self._order) - position
            after = parent
        return after, 0

    def _checkpoint(self, after: str, state: State) -> Checkpoint:
        left_out = self._refused.words(self.parent_table)
        code = UNEXPANDED if self.note and self._expand != self.endpoint.expand else ""
        code = code or (SOME_REFUSED if left_out and not self.note else "")
        return Checkpoint(
            stream=stream_of(self.endpoint),
            state=state,
            position={"table": self.table, "parent": self.parent_table, "after": after},
            reason=self.reason or self.note or left_out,
            remedy=self.remedy,
            code=self.code or code,
            permission=self.permission,
            rows=self.rows,
            requests=self.requests,
            seconds=self.seconds,
            as_of=self.as_of,
        )


def stream_of(endpoint: ListEndpoint) -> str:
    """Return the cursor's name; the same path can be listed with and without a parent."""
    return f"{endpoint.stream} by {endpoint.parent}" if endpoint.parent else endpoint.stream


def _left_out_before(saved: Checkpoint | None) -> str:
    """Return what an earlier run reported of the parents that it left out."""
    return saved.reason if saved is not None and saved.code == SOME_REFUSED else ""


def _saved_after(saved: Checkpoint | None) -> str:
    position = saved.position if saved is not None else None
    return str(position.get("after", "")) if isinstance(position, dict) else ""


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
