"""Works off what must still be asked of Stripe (`store/todo`): coalesced, within the budget, durable.

One request at a time for each place; what is asked for again meanwhile is done once more afterwards. Many
objects of one type that were made at about the same time are one request together (`bunches`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import structlog

from pinstripe.errors import LostLease, PinstripeError, Refused, Unreachable, WrongKey
from pinstripe.source.account import Source
from pinstripe.source.settle import ask_anew, finish
from pinstripe.store.todo import Answer, Todo, load_todos
from pinstripe.sync.bunches import LEAST, can_bunch, fetch_bunch, find_bunch
from pinstripe.sync.children import list_children
from pinstripe.sync.todo_line import Line

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Refresh = Callable[[str], Awaitable[None]]
_WORKERS = 8
_PAUSE_S = (1.0, 2.0, 5.0, 15.0, 60.0)
_LOOK_S = 60.0
"""How often the database is looked into when nobody rings."""
_CONTEST_S = 2.0
_SPACING_S = 0.2
_HOLD_S = 3.0
"""The longest that a stretch of events keeps requests back."""
_HELD_S = 0.05


class Todos:
    """The queue and its workers. `upcoming` refreshes previews: kind -> function of the owner's id."""

    def __init__(
        self,
        source: Source,
        *,
        upcoming: Mapping[str, Refresh] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trouble = ""
        self._source = source
        self._upcoming = dict(upcoming or {})
        self._sleep = sleep
        self._clock = clock
        self._held_until = 0.0
        self._line = Line()
        self._singly: set[str] = set()
        """Tables whose list Stripe does not let us read."""
        self._noted = asyncio.Event()

    def __len__(self) -> int:
        return len(self._line)

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
            ours = [(todo, asked) for todo, asked in left if todo.place not in self._line]
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
        if not self._line:
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
        self._line.add(todos)

    async def idle(self) -> None:
        """Returns when nothing is left to do."""
        await self._line.idle()

    def hold(self) -> None:
        """Events come first: nothing more is asked until `release`, or for some seconds."""
        self._held_until = self._clock() + _HOLD_S

    def release(self) -> None:
        """The stretch of events has come to its end."""
        self._held_until = 0.0

    async def _work(self) -> None:
        while True:
            todo = await self._line.next()
            if self._held_until > self._clock():
                self._line.put_back(todo.place)
                await asyncio.sleep(_HELD_S)
                continue
            done = False
            try:
                done = await self._do_with_others(todo) or await self._do(todo)
            finally:
                self._end(todo, done)

    def _end(self, todo: Todo, done: bool) -> None:
        if done:
            self._line.done(todo.place)
        else:
            self._line.put_back(todo.place)

    async def _do_with_others(self, todo: Todo) -> bool:
        """Whether one page of a list has answered it, and others that wait with it."""
        if todo.kind != "fetch" or todo.table in self._singly or not can_bunch(todo.table):
            return False
        waiting = self._line.waiting(todo.table)
        if len(waiting) + 1 < LEAST:
            return False
        others: list[Todo] = []
        shown: set[str] = set()
        try:
            with self._line.holding(todo.table):
                bunch = await find_bunch(self._source, todo, waiting)
                if bunch is not None:
                    others = self._line.take(todo.table, bunch.versions)
                    shown = await fetch_bunch(self._source, bunch, [todo, *others])
        except LostLease:
            raise
        except (Unreachable, WrongKey):
            return False  # Alone it waits until that is over.
        except PinstripeError as error:
            self._singly.add(todo.table)
            _log.info("todos.singly", table=todo.table, error=error.message)
        finally:
            for other in others:
                self._end(other, other.id in shown)
        return todo.id in shown

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
            started = await source.database_time()
        answer = Answer(todo, started)
        try:
            if todo.kind in self._upcoming:
                await self._upcoming[todo.kind](todo.id)
            elif todo.kind == "children":
                self.add(await list_children(self._source, todo))
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
                cause=todo.cause,
                answers=[answer],
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
