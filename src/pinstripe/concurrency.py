"""What asyncio lacks: one query for many callers, bounded loops, kept tasks, and pauses between tries.

    lookup = Coalescer(fetch_many)                  # fetch_many: keys -> {key: value}
    value = await lookup.get(key)
    await for_each(ids, fetch, limit=8)             # eight at a time; the first error ends it
    await asyncio.sleep(backoff(PAUSES_S, failures))
    if await wait_for(event, 1.0): ...
    tasks = KeptTasks(run)                          # run(name, spec), until cancelled
    await tasks.want({"one": spec})                 # exactly these run from now on

A call to `Coalescer.get` while a query is running is batched into the next one, so every caller gets a
result computed after its call. If a query fails, every caller in its batch gets the exception.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

E = TypeVar("E", bound=BaseException)
K = TypeVar("K")
T = TypeVar("T")
V = TypeVar("V")


def backoff(pauses_s: Sequence[float], failures: int) -> float:
    """The pause after a failure that so many came before; beyond the last pause always that.

    >>> [backoff((1.0, 5.0), failures) for failures in range(4)]
    [1.0, 5.0, 5.0, 5.0]
    """
    return pauses_s[min(failures, len(pauses_s) - 1)]


async def wait_for(event: asyncio.Event, timeout_s: float) -> bool:
    """Returns when the event is set or the time is over: whether it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()


async def for_each(
    items: Collection[T], work: Callable[[T], Awaitable[None]], *, limit: int
) -> None:
    """Does the work for every item, `limit` at a time, in their order.

    Raises the first error, not in a group, once what was under way is cancelled and has ended.
    """
    queue = iter(items)

    async def worker() -> None:
        for item in queue:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(limit, len(items))):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise first_error(errors) from errors


async def end(*tasks: asyncio.Future[None]) -> None:
    """Cancel all tasks, and return when they have ended. Raises what one of them raises."""
    for task in tasks:
        task.cancel()
    if tasks:
        # Not `await task` with its CancelledError suppressed: the caller's own would be lost with it.
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


async def cancel(*tasks: asyncio.Task[T]) -> list[T | BaseException]:
    """Cancel all tasks, and return when they have ended: what each returned or raised."""
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


def first_error(group: BaseExceptionGroup[E]) -> E:
    """One error out of a group, at any depth."""
    error: E | BaseExceptionGroup[E] = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class KeptTasks(Generic[T]):
    """A task for each thing that is wanted, by name; a new one when something else is wanted of it."""

    def __init__(self, run: Callable[[str, T], Coroutine[None, None, None]]) -> None:
        self._run = run
        self._wanted: dict[str, T] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def want(self, wanted: Mapping[str, T]) -> None:
        """From now on exactly these. Return when new ones have begun and those that are gone have ended."""
        changed = [name for name, spec in self._wanted.items() if wanted.get(name) != spec]
        await end(*(self._tasks.pop(name) for name in changed))
        for name, spec in wanted.items():
            if name not in self._tasks:
                self._tasks[name] = asyncio.create_task(self._run(name, spec), name=name)
        self._wanted = dict(wanted)
        await asyncio.sleep(0)


class Coalescer(Generic[K, V]):
    """Coalesces concurrent calls into one query. `answer` gets each waiting key once."""

    def __init__(
        self,
        answer: Callable[[Collection[K]], Awaitable[Mapping[K, V]]],
        *,
        spacing_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`spacing_s`: the shortest time between the starts of two queries."""
        self._answer = answer
        self._spacing_s = spacing_s
        self._clock = clock
        self._waiting: dict[K, asyncio.Future[V]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")

    @property
    def is_idle(self) -> bool:
        """Whether no call is waiting."""
        return self._asking is None

    async def get(self, key: K) -> V:
        """Returns the value of `key` from a query that starts after this call, or raises its error."""
        return await asyncio.shield(self._asked(key))

    def trigger(self, key: K) -> None:
        """Like `get`, but fire and forget. Errors are ignored."""
        self._asked(key)

    def _asked(self, key: K) -> asyncio.Future[V]:
        found = self._waiting.get(key)
        if found is None:
            found = self._waiting[key] = asyncio.get_running_loop().create_future()
            # Retrieve the exception: every caller may have been cancelled.
            found.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_on())
        return found

    async def close(self) -> None:
        """Cancels the running query and all waiting calls."""
        asking = self._asking
        if asking is not None:
            await cancel(asking)
        # A task cancelled before its first step ran no `finally`.
        self._asking = None
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.cancel()

    async def _ask_on(self) -> None:
        taken: dict[K, asyncio.Future[V]] = {}
        try:
            while self._waiting:
                await asyncio.sleep(max(self._asked_at + self._spacing_s - self._clock(), 0.0))
                self._asked_at = self._clock()
                taken, self._waiting = self._waiting, {}
                try:
                    answers = await self._answer(taken.keys())
                    for key, future in taken.items():
                        future.set_result(answers[key])
                except Exception as error:  # The callers raise it.
                    for future in taken.values():
                        if not future.done():
                            future.set_exception(error)
        finally:
            self._asking = None
            for future in taken.values():
                future.cancel()
