"""Questions that many ask at the same time, asked once.

    numbers = Together(ring)          # ring: all keys that wait -> what each gets
    number = await numbers.ask(0.25)  # shares the next question, never one that is under way

Who asks while an answer is being made gets the next one: what he is told began after he came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Coalescer(Generic[K, V]):
    """One kind of question. `answer` gets the keys of all who wait, each once."""

    def __init__(
        self,
        answer: Callable[[Collection[K]], Awaitable[Mapping[K, V]]],
        *,
        spacing_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`spacing_s`: two questions begin no closer than this."""
        self._answer = answer
        self._spacing_s = spacing_s
        self._clock = clock
        self._waiting: dict[K, asyncio.Future[V]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits."""
        return self._asking is None

    async def get(self, key: K) -> V:
        """What a question that begins after this call answers for `key`. Errors go to all who asked."""
        return await asyncio.shield(self._asked(key))

    def trigger(self, key: K) -> None:
        """As `ask`, for who does not care for the answer."""
        self._asked(key)

    def _asked(self, key: K) -> asyncio.Future[V]:
        found = self._waiting.get(key)
        if found is None:
            found = self._waiting[key] = asyncio.get_running_loop().create_future()
            # Nobody may be there any more to hear of an error.
            found.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_on())
        return found

    async def close(self) -> None:
        """Ends what is under way; who waits is told so."""
        asking = self._asking
        if asking is not None:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        # One that was cut off before its first step has told nobody.
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
                except Exception as error:  # It is theirs who asked.
                    for future in taken.values():
                        if not future.done():
                            future.set_exception(error)
        finally:
            self._asking = None
            for future in taken.values():
                future.cancel()
