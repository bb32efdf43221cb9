"""The line of to-dos: one at a time for each place, nothing forgotten."""

from __future__ import annotations

import asyncio

from pinstripe.store.refetch import Refetch
from pinstripe.sync.refetch.queue import RefetchQueue


def fetch(key: str, table: str = "customer") -> Refetch:
    return Refetch("fetch", table, key)


async def nothing_next(line: RefetchQueue) -> bool:
    """Whether whoever asks now has to wait."""
    turn = asyncio.create_task(line.next())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waits = not turn.done()
    turn.cancel()
    return waits


async def test_first_come_first_served_and_each_once() -> None:
    line = RefetchQueue()
    line.add([fetch("a"), fetch("b"), fetch("a")])
    assert [(await line.next()).id, (await line.next()).id] == ["a", "b"]
    assert await nothing_next(line)
    for key in "ab":
        line.done(fetch(key).key)
    await line.idle()
    assert len(line) == 0


async def test_asked_for_again_while_it_is_being_asked_is_asked_again() -> None:
    line = RefetchQueue()
    line.add([fetch("a")])
    await line.next()
    line.add([fetch("a")])
    assert await nothing_next(line)
    line.done(fetch("a").key)
    assert (await line.next()).id == "a"
    line.done(fetch("a").key)
    assert len(line) == 0


async def test_what_was_taken_by_another_does_not_come_to_its_turn() -> None:
    line = RefetchQueue()
    line.add([fetch("a"), fetch("b"), fetch("c"), fetch("d", "price")])
    assert (await line.next()).id == "a"
    with line.holding("customer"):
        assert set(line.waiting("customer")) == {"b", "c"}
        assert (await line.next()).table == "price"  # Other tables go on.
        assert [t.id for t in line.take("customer", ["c", "z"])] == ["c"]
        assert await nothing_next(line)  # b is held, c is taken.
        line.done(fetch("c").key)
    assert (await line.next()).id == "b"
    assert await nothing_next(line)


async def test_what_is_put_back_or_added_while_it_is_held_has_its_turn_afterwards() -> None:
    line = RefetchQueue()
    line.add([fetch("a"), fetch("b")])
    await line.next()
    with line.holding("customer"):
        (taken,) = line.take("customer", ["b"])
        line.put_back(taken.key)
        line.add([fetch("c")])
        assert await nothing_next(line)
    line.put_back(fetch("a").key)
    assert sorted([(await line.next()).id for _ in range(3)]) == ["a", "b", "c"]
    assert await nothing_next(line)
