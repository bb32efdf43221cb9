"""A clock that stands still until everyone sleeps, then jumps to the next wake-up."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

T = TypeVar("T")

# Turns of the event loop after which every task that can run has come to rest.
_SETTLE_TURNS = 12


class FakeTime:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.slept: list[float] = []
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._count += 1
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, self._count, woken))
        await woken

    async def settle(self) -> None:
        for _ in range(_SETTLE_TURNS):
            await asyncio.sleep(0)

    async def jump(self) -> bool:
        """Go to the next wake-up. False if no one sleeps."""
        await self.settle()
        while self._sleepers:
            at, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                self.now = max(self.now, at)
                woken.set_result(None)
                await self.settle()
                return True
        return False

    async def drive(self, work: Coroutine[object, object, T]) -> T:
        """Run `work` to its end, jumping as often as needed."""
        task = asyncio.ensure_future(work)
        while not task.done():
            if not await self.jump() and not task.done():
                task.cancel()
                raise AssertionError("everyone waits and no one sleeps: a deadlock")
        return task.result()


def run(scenario: Callable[[FakeTime], Awaitable[T]]) -> T:
    """`scenario` on a fresh loop under a fresh clock; for property tests, which are not async."""
    time = FakeTime()

    async def main() -> T:
        async def work() -> T:
            return await scenario(time)

        return await time.drive(work())

    return asyncio.run(main())
