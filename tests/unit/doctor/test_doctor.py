"""The parts of the doctor that ask nobody: clocks, plans, exit codes, names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinstripe.catalog.endpoints import list_endpoints
from pinstripe.catalog.tables import tables
from pinstripe.cli.check import as_text
from pinstripe.doctor.key import label
from pinstripe.doctor.permissions import plan_for
from pinstripe.doctor.probe import ClockDifference
from pinstripe.doctor.report import Finding, worst


@given(
    ahead=st.floats(-1e5, 1e5),
    trips=st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5), st.floats(0, 1e4)), min_size=1),
)
def test_a_clock_difference_is_always_within_its_bounds(
    ahead: float, trips: list[tuple[float, float, float]]
) -> None:
    clock = ClockDifference()
    for there, back, at in trips:
        said = float(int(at + there + ahead + 1e6))
        clock.heard(said, resolution=1.0, asked=at + 1e6, came=at + there + back + 1e6)
    assert abs(clock.ahead_s - ahead) <= clock.within_s + 1e-6


def test_many_answers_tell_a_clock_better_than_one() -> None:
    clock = ClockDifference()
    for step in range(100):
        at = 1000 + step * 0.11
        clock.heard(float(int(at + 7.3)), resolution=1.0, asked=at, came=at + 0.01)
    assert clock.ahead_s == pytest.approx(7.3, abs=0.1)
    assert clock.within_s < 0.1


def test_a_plan_holds_every_list_once() -> None:
    plan = plan_for(tables())
    paths = [e.path for e in (*plan.lists, *plan.under_parents)]
    assert sorted(paths) == sorted({e.path for e in list_endpoints()})


def test_a_plan_for_few_tables_asks_for_their_parents_too() -> None:
    plan = plan_for(["setup_attempt"])
    assert [e.path for e in plan.lists] == ["/v1/setup_intents"]
    assert [e.path for e in plan.under_parents] == ["/v1/setup_attempts"]
    assert plan.singletons == ()


def test_what_ends_a_sync_first_is_the_exit_code() -> None:
    def problem(code: int) -> Finding:
        return Finding("it", "problem", "", exit_code=code)

    assert worst([]) == 0
    assert worst([Finding("it", "warning", "", exit_code=4)]) == 0
    assert worst([problem(4), problem(5)]) == 5
    assert worst([problem(5), problem(3)]) == 3
    assert worst([problem(3), problem(2)]) == 2
    assert worst([problem(1)]) == 1


def test_every_path_has_a_name_for_people() -> None:
    for endpoint in list_endpoints():
        assert not set(label(endpoint.path)) & set("{}/_"), endpoint.path


def test_other_peoples_words_do_not_steer_the_terminal() -> None:
    found = as_text(None, None, [Finding("key", "problem", "a\x1b[2Jb sk_test_abcdefgh")])
    assert "\x1b" not in found
    assert "abcdefgh" not in found
