"""What a reading of the event log may stop at."""

from __future__ import annotations

from pinstripe.sync.events.reader import AppliedEvents


def test_a_reading_stops_at_what_is_applied_with_everything_below() -> None:
    known = AppliedEvents()
    known.add({"evt_1": 10}, unanchored=False)
    assert known.has_all(["evt_1"])
    assert known.is_reached(["evt_2", "evt_1"])


def test_nobody_stops_at_an_event_of_a_reading_that_goes_on_below_it() -> None:
    known = AppliedEvents()
    known.add({"evt_2": 20}, unanchored=True)
    assert known.has_all(["evt_2"])
    assert not known.is_reached(["evt_3", "evt_2"])
    known.anchor(known.unanchored(["evt_2", None]))
    assert known.is_reached(["evt_2"])


def test_what_an_earlier_run_applied_must_be_read_again_once() -> None:
    known = AppliedEvents()
    known.load({"evt_1": 10, "evt_2": 20})
    assert known.fresh([{"id": "evt_2"}, {"id": "evt_3"}]) == [{"id": "evt_3"}]
    assert not known.is_reached(["evt_1", "evt_2"])
    known.anchor({"evt_1", "evt_2"})
    assert known.is_reached(["evt_1"])


def test_what_is_forgotten_is_new_again() -> None:
    known = AppliedEvents()
    known.add({"evt_1": 10, "evt_2": 20}, unanchored=True)
    known.forget(15)
    assert known.fresh([{"id": "evt_1"}, {"id": "evt_2"}]) == [{"id": "evt_1"}]
    assert known.unanchored(["evt_1", "evt_2"]) == {"evt_2"}
