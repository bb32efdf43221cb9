"""Ids, times and relations of computed objects: pure, invertible, cheap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinstripe_simulator.ids import FIRST_NEW, ScrambledIds
from pinstripe_simulator.relations import Chain, Even, FirstBack, Interleaved, Relation, Uneven
from pinstripe_simulator.timeline import Timeline

CHARGES = ScrambledIds(seed=1, name="charge", prefix="ch")
PRODUCTS = ScrambledIds(seed=1, name="product", prefix="prod", chosen=True)


@given(st.integers(0, 1 << 42))
def test_ids_lead_back_to_their_index(index: int) -> None:
    for ids in (CHARGES, PRODUCTS):
        assert ids.decode(ids.encode(index)) == index


def test_ids_as_json_text_are_the_same_ids() -> None:
    for index in (0, 3, 44, 85, 10**6, FIRST_NEW + 7):
        for ids in (CHARGES, PRODUCTS):
            assert ids.quoted(index).decode()[1:-1].replace("\\", "") in (
                ids.encode(index).replace("\\", ""),
                ids.encode(index).replace('"', '"').replace("\\", ""),
            )


@pytest.mark.parametrize("id", ["", "ch_", "ch_1PxxAAAAAAAA", "re_1P", "x" * 40, "ch_é"])
def test_ids_of_nobody_decode_to_nothing(id: str) -> None:
    assert CHARGES.decode(id) is None


def test_some_chosen_ids_hold_slashes_and_spaces() -> None:
    odd = [PRODUCTS.encode(i) for i in range(3, 41 * 6, 41)]
    assert any("/" in id for id in odd)
    assert any(" " in id for id in odd)


@pytest.mark.parametrize("count", [1, 6, 500, 20_000])
def test_created_never_falls_and_rank_counts_what_came_before(count: int) -> None:
    timeline = Timeline(count, start=1_000_000, end=9_000_000, seed=3, name="charge")
    times = [timeline.created(i) for i in range(count)]
    assert times == sorted(times)
    assert 1_000_000 <= times[0] <= times[-1] <= 9_000_000
    for time in {*times[:: max(1, count // 50)], 0, 1_000_000, 9_000_001}:
        for moment in (time - 1, time, time + 1):
            assert timeline.rank(moment) == sum(t < moment for t in times)


def test_some_seconds_hold_more_than_a_page() -> None:
    timeline = Timeline(50_000, start=0, end=10**8, seed=3, name="charge")
    most = max(
        timeline.rank(t + 1) - timeline.rank(t)
        for t in {timeline.created(i) for i in range(0, 50_000, 50)}
    )
    assert most > 100


def test_the_account_has_quiet_and_busy_times() -> None:
    timeline = Timeline(40_000, start=0, end=40_000_000, seed=3, name="charge")
    counts = [timeline.rank((n + 1) * 1_000_000) - timeline.rank(n * 1_000_000) for n in range(40)]
    assert min(counts) * 50 < max(counts)


def relations() -> list[tuple[Relation, int, int]]:
    """(relation, referring objects, targets)."""
    even, uneven = Even(1_000, 130), Uneven((1, 0, 3, 12), 130)
    chain = Chain(uneven, Even(130, 17))
    return [
        (even, 1_000, 130),
        (Even(5, 90), 5, 90),
        (uneven, uneven.count, 130),
        (chain, uneven.count, 17),
    ]


@pytest.mark.parametrize("number", range(4))
def test_relations_turn_back_exactly(number: int) -> None:
    relation, count, targets = relations()[number]
    back: dict[int, list[int]] = {}
    for index in range(count):
        target = relation.to(index)
        assert target is not None
        assert 0 <= target < targets
        back.setdefault(target, []).append(index)
    for target in range(targets):
        assert list(relation.back(target)) == back.get(target, [])


def test_the_first_of_those_that_refer_refers() -> None:
    owners = Even(1_000, 130)
    first = FirstBack(owners)
    for target in range(130):
        index = first.to(target)
        assert index is not None
        assert owners.to(index) == target


def test_interleaved_entries_and_sources_name_each_other() -> None:
    pattern = ("charge", "refund", None, "charge")
    entries = Interleaved(pattern, {"charge": 50, "refund": 10}, 80)
    for entry in range(80):
        found = entries.source(entry)
        if found is not None:
            assert entries.entry(*found) == entry
