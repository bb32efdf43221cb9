"""What the overview says of a sync: nothing that is not known."""

from __future__ import annotations

from datetime import UTC, datetime

from pinstripe.console.templating import Pages
from pinstripe.gateway.live.status_board import SyncStatus
from pinstripe.store.daily_counts import Clocks

AWAY = "Postgres did not answer within 3 s."


def status(*, lag_s: float | None = 0.4, reason: str = "") -> SyncStatus:
    at = datetime(2026, 1, 31, tzinfo=UTC)
    return SyncStatus(
        id="default", schema="stripe", at=at, activity="following", since=at, ready=not reason,
        reason=reason, remedy="", as_of=at, lag_s=lag_s, to_ask=0, to_ask_by_class={}, owed=0,
        quarantined=0, refused=0, partly_refused=0, failed=0, clocks=Clocks(), paused=False,
        served=True, pid=1, restarts=0, process=None,
    )  # fmt: skip


def piece(name: str, live: SyncStatus, rows: int | None, events: list[object] | None) -> str:
    return Pages().piece(
        f"overview_{name}.html", live=live, process=None, rows=rows, events=events, lags=[0.3, 1.2]
    )


def test_a_database_that_is_away_leaves_nothing_to_say() -> None:
    live = status(lag_s=None, reason=AWAY)
    standing = piece("standing", live, None, None)
    assert 'class="notice bad"' in standing
    assert "<dd>unknown</dd>" in standing
    assert "syncing" not in standing
    assert "<dd>0</dd>" not in standing
    for name in ("newest", "reader"):
        assert "Not known: the database does not answer." in piece(name, live, None, None)


def test_an_account_without_events_says_so() -> None:
    assert "No events yet." in piece("newest", status(), 0, [])
    assert "No heartbeat" in piece("reader", status(), 0, [])


def test_one_lag_stands_on_the_page() -> None:
    """The chart's newest sample is up to ten seconds older than the tile."""
    standing = piece("standing", status(lag_s=0.4), 7, [])
    assert "400 ms" in standing
    assert "at most 1.2 s" in standing
    assert "300 ms" not in standing
