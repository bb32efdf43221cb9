"""The line of to-dos: one at a time for each place, nothing forgotten."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from pinstripe.client.rate_limit import WorkClass
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


async def test_owners_take_turns_however_much_one_of_them_has() -> None:
    line = RefetchQueue()
    line.add([Refetch("fetch", "invoice", f"in_{n}", "cus_1") for n in range(1000)])
    line.add([Refetch("fetch", "invoice", "in_a", "cus_2"), fetch("cus_3")])
    assert {(await line.next()).id for _ in range(3)} == {"in_0", "in_a", "cus_3"}
    assert [(await line.next()).id for _ in range(2)] == ["in_1", "in_2"]


async def test_each_class_has_a_queue_of_its_own() -> None:
    line = RefetchQueue()
    line.add([replace(fetch(f"s{n}"), work=WorkClass.SCANS) for n in range(100)])
    line.add([Refetch("upcoming_subscription", "upcoming_subscription_invoice", "sub_1")])
    line.add([fetch("a"), Refetch("relate", "balance_transaction", "txn_1")])
    assert line.counts() == {"scans": 100, "previews": 1, "contested": 1, "related": 1}
    assert (await line.next(WorkClass.CONTESTED)).id == "a"
    assert (await line.next(WorkClass.RELATED)).id == "txn_1"
    assert (await line.next(WorkClass.PREVIEWS)).id == "sub_1"
    assert (await line.next(WorkClass.SCANS)).id == "s0"


async def test_what_a_higher_class_needs_too_goes_with_that() -> None:
    line = RefetchQueue()
    line.add([replace(fetch(f"s{n}"), work=WorkClass.SCANS) for n in range(100)])
    line.add([fetch("s99")])
    assert (await line.next(WorkClass.CONTESTED)).id == "s99"
    line.add([replace(fetch("s98"), work=WorkClass.SCANS)])
    assert line.counts() == {"scans": 99, "contested": 1}
    with line.holding("customer", WorkClass.SCANS):  # Holds up nothing of a higher class.
        line.add([fetch("b")])
        assert (await line.next(WorkClass.CONTESTED)).id == "b"


async def test_what_gathers_has_its_turn_together_and_rows_in_doubt_do_not_gather() -> None:
    line = RefetchQueue()
    related = [Refetch("relate", "balance_transaction", f"txn_{n}") for n in range(3)]
    line.add([related[0], fetch("a")], gather_s=3600)
    line.add(related[1:], gather_s=3600)
    assert (await line.next()).id == "a"
    turn = asyncio.create_task(line.next(WorkClass.RELATED))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not turn.done()
    assert set(line.waiting("balance_transaction")) == {"txn_0", "txn_1", "txn_2"}
    line.end_gathering()
    assert (await turn).id == "txn_0"
    # Those that are taken along with it do not come to a turn of their own.
    assert len(line.take("balance_transaction", ["txn_1"])) == 1
    assert (await line.next(WorkClass.RELATED)).id == "txn_2"


@pytest.mark.parametrize(("first", "second", "kept"), [(160.0, 150.0, 160.0), (0.0, 160.0, 0.0)])
async def test_of_two_seconds_the_later_counts_and_of_a_doubt_none(
    first: float, second: float, kept: float
) -> None:
    """An event that comes late makes no answer sure that was not, nor does one beside a doubt."""
    line = RefetchQueue()
    for since in (first, second):
        line.add([Refetch("fetch", "customer", "cus_1", since=since)])
    assert (await line.next()).since == kept


async def test_what_waits_for_its_next_try_has_its_turn_once_the_queue_is_closed() -> None:
    line = RefetchQueue()
    line.add([fetch("a")])
    line.later(await line.next(), 60.0)
    assert await nothing_next(line)
    line.close()
    assert (await line.next()).id == "a"
