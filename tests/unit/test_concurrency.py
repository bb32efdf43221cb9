"""Questions that many ask at once are asked once, and never of an answer that began before."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import pytest

from pinstripe.concurrency import Coalescer, end, for_each, wait_for
from pinstripe.store.locks import naming_holders


class Answers:
    """Gives each question a number, when it is let go on."""

    def __init__(self) -> None:
        self.asked: list[set[str]] = []
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, keys: Collection[str]) -> Mapping[str, int]:
        self.asked.append(set(keys))
        number = len(self.asked)
        self.began.set()
        await self.go_on.wait()
        return dict.fromkeys(keys, number)


async def test_who_asks_while_an_answer_is_made_gets_the_next() -> None:
    answers = Answers()
    together = Coalescer(answers)
    first = [asyncio.create_task(together.get(key)) for key in ("a", "b", "a")]
    await answers.began.wait()
    later = [asyncio.create_task(together.get("a")) for _ in range(100)]
    await asyncio.sleep(0)
    answers.go_on.set()
    assert await asyncio.gather(*first) == [1, 1, 1]
    assert set(await asyncio.gather(*later)) == {2}
    assert answers.asked == [{"a", "b"}, {"a"}]
    assert together.is_idle


async def test_one_who_gives_up_takes_nothing_from_the_others() -> None:
    answers = Answers()
    together = Coalescer(answers)
    gone, stays = (asyncio.create_task(together.get("a")) for _ in range(2))
    await answers.began.wait()
    gone.cancel()
    answers.go_on.set()
    assert await stays == 1


async def test_an_error_goes_to_all_who_asked_and_the_next_question_is_asked() -> None:
    failing = True

    async def answer(keys: Collection[str]) -> Mapping[str, int]:
        if failing:
            raise ValueError("no")
        return dict.fromkeys(keys, 1)

    together = Coalescer(answer)
    together.trigger("a")
    with pytest.raises(ValueError, match="no"):
        await together.get("a")
    failing = False
    assert await together.get("a") == 1


async def test_closing_ends_what_is_asked() -> None:
    together = Coalescer(Answers())
    asking = asyncio.create_task(together.get("a"))
    await asyncio.sleep(0)
    await together.close()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_for_each_works_through_all_items_so_many_at_a_time() -> None:
    done: list[int] = []
    running = most = 0

    async def work(item: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        done.append(item)

    await for_each(range(7), work, limit=3)
    assert (sorted(done), most) == (list(range(7)), 3)
    await for_each([], work, limit=3)


async def test_for_each_raises_the_error_itself_after_the_rest_has_ended() -> None:
    ended: list[int] = []

    async def work(item: int) -> None:
        try:
            if item == 1:
                raise LookupError(item)
            await asyncio.Event().wait()
        finally:
            ended.append(item)

    with pytest.raises(LookupError):
        await for_each([0, 1, 2], work, limit=2)
    assert sorted(ended) == [0, 1]


async def test_wait_for_says_whether_the_event_came_in_time() -> None:
    event = asyncio.Event()
    assert not await wait_for(event, 0.0)
    event.set()
    assert await wait_for(event, 0.0)


async def test_a_task_that_is_cancelled_while_it_ends_others_ends_too() -> None:
    """Or a writer that is told to stop at the end of a transaction waits for the next batch for ever."""
    inside = asyncio.Event()

    async def work() -> None:
        other = asyncio.create_task(asyncio.sleep(60))
        inside.set()
        await end(other)
        await asyncio.sleep(60)

    async def write() -> None:
        async with naming_holders("", 0):
            inside.set()
        await asyncio.sleep(60)

    for one in (work, write):
        inside.clear()
        task = asyncio.create_task(one())
        await inside.wait()
        task.cancel()
        async with asyncio.timeout(10):
            await asyncio.wait((task,))
        assert task.cancelled(), one


async def test_ending_tasks_raises_what_one_of_them_raised() -> None:
    async def fails() -> None:
        raise ValueError

    task = asyncio.create_task(fails())
    await asyncio.sleep(0)
    with pytest.raises(ValueError):  # noqa: PT011
        await end(task)
