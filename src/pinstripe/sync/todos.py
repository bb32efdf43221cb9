"""Works off what must still be asked of Stripe (`store/todo`): coalesced, within the budget, durable.

One request at a time for each place; what is asked for again meanwhile is done once more afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from pinstripe.catalog.endpoints import ListEndpoint, list_endpoints
from pinstripe.catalog.tables import Table, table_name
from pinstripe.client.paths import quote_id
from pinstripe.errors import LostLease, NotFound, PinstripeError, Refused, Unreachable, WrongKey
from pinstripe.source.account import LIVE, Source
from pinstripe.source.settle import ask_anew, can_be_asked, finish
from pinstripe.store.changes import Cause
from pinstripe.store.todo import Answer, Todo, add_todos, load_todos
from pinstripe.store.vanish import may_go, unshown

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Place = tuple[str, str, str]
Refresh = Callable[[str], Awaitable[None]]
_WORKERS = 24
"""Requests at once, as far as the budget lets them. What comes back together is written in one commit."""
_PAUSE_S = (1.0, 2.0, 5.0, 15.0, 60.0)
_LOOK_S = 60.0
"""How often the database is looked into when nobody rings."""
_CONTEST_S = 2.0
_SPACING_S = 0.2


class Todos:
    """The queue and its workers. `upcoming` refreshes previews: kind -> function of the owner's id."""

    def __init__(
        self,
        source: Source,
        *,
        upcoming: Mapping[str, Refresh] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.trouble = ""
        self._source = source
        self._upcoming = dict(upcoming or {})
        self._sleep = sleep
        self._queue: asyncio.Queue[Place] = asyncio.Queue()
        self._todos: dict[Place, Todo] = {}
        self._running: set[Place] = set()
        self._again: set[Place] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._noted = asyncio.Event()

    def __len__(self) -> int:
        return len(self._todos)

    async def run(self) -> None:
        """Works until cancelled; begins with what an earlier process left."""
        await self._load()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take_in())
            for _ in range(_WORKERS):
                group.create_task(self._work())

    def look(self) -> None:
        """Another process may have noted something in the database."""
        self._noted.set()

    async def _take_in(self) -> None:
        """Takes in what others have noted, and contests that nobody could settle."""
        soon = False
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CONTEST_S if soon else _LOOK_S):
                    await self._noted.wait()
            self._noted.clear()
            try:
                async with self._source.pool.acquire() as connection:
                    left = await load_todos(
                        connection, self._source.mirror.schema, last_s=2 * _LOOK_S
                    )
                    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
            except PinstripeError as error:
                _log.debug("todos.untaken", error=error.message)
                continue
            ours = [(todo, asked) for todo, asked in left if todo.place not in self._todos]
            # A contest is being settled by whoever found it; only what is left of it is for us.
            old = now - timedelta(seconds=_CONTEST_S)
            self.add([todo for todo, asked in ours if todo.since or asked <= old])
            soon = any(not todo.since and asked > old for todo, asked in ours)
            await self._sleep(_SPACING_S)

    async def drain(self) -> None:
        """Works off what is noted in the database, and returns."""
        await self._load()
        await self.work_off()

    async def work_off(self) -> None:
        """Works off what has been taken in, and returns."""
        if not self._todos:
            return
        workers = [asyncio.create_task(self._work()) for _ in range(_WORKERS)]
        try:
            idle = asyncio.create_task(self.idle())
            await asyncio.wait([idle, *workers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (idle, *workers):
                task.cancel()
            ended = await asyncio.gather(idle, *workers, return_exceptions=True)
        for end in ended:
            if isinstance(end, Exception):
                raise end

    async def _load(self) -> None:
        async with self._source.pool.acquire() as connection:
            left = await load_todos(connection, self._source.mirror.schema)
        self.add([todo for todo, _ in left])

    def add(self, todos: Sequence[Todo]) -> None:
        """Takes in what has been noted in the database."""
        for todo in todos:
            place = todo.place
            known = place in self._todos
            self._todos[place] = todo
            if place in self._running:
                self._again.add(place)
            elif not known:
                self._queue.put_nowait(place)
        if self._todos:
            self._idle.clear()

    async def idle(self) -> None:
        """Returns when nothing is left to do."""
        await self._idle.wait()

    async def _work(self) -> None:
        while True:
            place = await self._queue.get()
            self._running.add(place)
            done = False
            try:
                done = await self._do(self._todos[place])
            finally:
                self._running.discard(place)
                if place in self._again or not done:
                    self._again.discard(place)
                    self._queue.put_nowait(place)
                else:
                    self._todos.pop(place, None)
                    if not self._todos:
                        self._idle.set()

    async def _do(self, todo: Todo) -> bool:
        """Makes the request; False if it is to be tried again."""
        for pause_s in (*_PAUSE_S, 0.0):
            try:
                await self._answer(todo)
            except LostLease:
                raise
            except (Unreachable, WrongKey) as error:
                self.trouble = error.message
                await self._sleep(pause_s or _PAUSE_S[-1])
                continue
            self.trouble = ""
            return True
        return False

    async def _answer(self, todo: Todo) -> None:
        """Asks, and crosses it out. What Stripe refuses it would refuse again: that is an answer."""
        source = self._source
        is_row = todo.kind in ("fetch", "relate") and todo.table in source.wanted
        version: datetime | None = None
        if is_row:
            started, version = await source.before(todo.table, todo.id)
        else:
            async with source.pool.acquire() as connection:
                started = await connection.fetchval("SELECT clock_timestamp()")
        answer = Answer(todo, started)
        try:
            if todo.kind in self._upcoming:
                await self._upcoming[todo.kind](todo.id)
            elif todo.kind == "children":
                await self._children(todo)
            elif is_row:
                await self._fetch(todo, version, answer)
        except (LostLease, Unreachable, WrongKey):
            raise
        except PinstripeError as error:
            # The next event of the object asks anew.
            _log.warning("todo.refused", kind=todo.kind, table=todo.table, error=error.message)
        await finish(source, answer)

    async def _fetch(self, todo: Todo, version: datetime | None, answer: Answer) -> None:
        if todo.kind == "relate" and version is not None and not await self._may_move(todo):
            return
        try:
            await ask_anew(
                self._source,
                todo.table,
                todo.id,
                over=version,
                parent=todo.parent,
                cause=_cause(todo),
                answer=answer,
            )
        except Refused as error:
            _log.info("todo.unfetched", table=todo.table, id=todo.id, error=error.message)

    async def _may_move(self, todo: Todo) -> bool:
        """Whether a related object that we have may have changed: a balance transaction, once."""
        if todo.table != "balance_transaction":
            return False
        async with self._source.pool.acquire() as connection:
            status: str | None = await connection.fetchval(
                f'SELECT status FROM "{self._source.mirror.schema}".balance_transaction'
                " WHERE id = $1 AND available_on <= now()",
                todo.id,
            )
        return status == "pending"

    async def _children(self, todo: Todo) -> None:
        """Lists the children of `todo.table` under the parent `todo.id`, to the end."""
        endpoint = _children_endpoint(todo.table, todo.parent)
        if endpoint is None:
            return
        path, params = endpoint.url(todo.id, quote_id(todo.id))
        parent = table_name(endpoint.parent)
        shown: set[str] = set()
        try:
            await self._source.read(
                endpoint,
                path,
                params,
                parents={parent: todo.id},
                priority=LIVE,
                cause=_cause(todo),
                shown=shown,
            )
        except NotFound:
            return  # The parent went, and its list with it.
        child = self._source.wanted.get(todo.table)
        if child is not None and may_go(child, parent) and can_be_asked(todo.table):
            await self._missing(todo, child, parent, shown)

    async def _missing(self, todo: Todo, child: Table, parent: str, shown: Set[str]) -> None:
        """Children that the list does not show are asked for by their id: most likely they are gone."""
        schema = self._source.mirror.schema
        async with self._source.transaction() as connection:
            keys = await unshown(connection, schema, child, (parent, todo.id), shown)
            left = [replace(todo, kind="fetch", id=key, parent=todo.id) for key in keys]
            await add_todos(connection, schema, left)
        self.add(left)


def _cause(todo: Todo) -> Cause | None:
    """What the change feed names as the reason."""
    known = todo.event_id or todo.request_id
    return Cause(todo.event_id, todo.request_id) if known else None


def _children_endpoint(table: str, parent: str) -> ListEndpoint | None:
    for endpoint in list_endpoints():
        if endpoint.parent == parent and table in map(table_name, endpoint.objects):
            return endpoint
    return None
