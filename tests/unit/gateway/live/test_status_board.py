"""When a copy is ready to be read, and what is said if it is not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import pytest

from pinstripe.gateway.live.status_board import not_ready
from pinstripe.gateway.syncs import StoredSync, SyncState
from pinstripe.store.leases import QuotaReport, WorkerHeartbeat
from pinstripe.store.status import SyncSummary

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SYNC = StoredSync(
    id="default",
    schema="stripe",
    key_hint="",
    stripe_url="",
    stripe_account=None,
    settings={},
    paused=False,
    stored=False,
    webhook_secrets=0,
    account_id=None,
    livemode=False,
    created_at=None,
    state=SyncState("following", NOW),
)
STANDING = SyncSummary("stripe", 1000.0, 999.0, "", "", 0, 0, 0, 0)
TOLD = WorkerHeartbeat(
    version="",
    pid=1,
    host="",
    started_at=NOW,
    phase="done",
    rows=0,
    rows_per_s=0.0,
    requests={},
    requests_per_s=0.0,
    rate_limited={},
    account_rate=None,
    queue_rows=0,
    queue_most=0,
    contested=0,
    events=0,
    polls=0,
    late_events=0,
    memory_bytes=0,
    cpu_s=0.0,
    left_s=None,
    tables=[],
    allowance=None,
)


def test_a_followed_copy_is_ready() -> None:
    assert not_ready(SYNC, STANDING, TOLD, database="") == ("", "")


def test_a_copy_that_is_up_to_date_needs_no_word_of_its_process() -> None:
    assert not_ready(SYNC, STANDING, None, database="") == ("", "")


@pytest.mark.parametrize(
    ("sync", "standing", "told", "database", "reason"),
    [
        (SYNC, STANDING, TOLD, "It is away.", "It is away."),
        (msgspec.structs.replace(SYNC, paused=True), STANDING, TOLD, "", "Paused."),
        (SYNC, None, None, "", "The first copy has not begun."),
        (SYNC, replace(STANDING, as_of=None), TOLD, "", "The first copy has not begun."),
        (SYNC, replace(STANDING, trouble="No key."), TOLD, "", "No key."),
        (SYNC, replace(STANDING, running=3), TOLD, "", "The first copy is under way."),
        (
            SYNC,
            STANDING,
            msgspec.structs.replace(TOLD, phase="references"),
            "",
            "The first copy is under way.",
        ),
        (SYNC, replace(STANDING, as_of=900.0), None, "", "No process syncs it."),
        (SYNC, replace(STANDING, as_of=900.0), TOLD, "", "Events are 100 s behind."),
    ],
)
def test_a_copy_is_not_ready_while_something_is_wrong(
    sync: StoredSync,
    standing: SyncSummary | None,
    told: WorkerHeartbeat | None,
    database: str,
    reason: str,
) -> None:
    assert not_ready(sync, standing, told, database=database)[0] == reason


def test_a_failed_sync_says_why() -> None:
    state = SyncState("failed", NOW, reason="The key is revoked.", remedy="Make another.")
    failed = msgspec.structs.replace(SYNC, state=state)
    assert not_ready(failed, STANDING, None, database="") == (
        "The key is revoked.",
        "Make another.",
    )


def test_an_account_that_is_looked_at_seldom_may_be_as_far_behind() -> None:
    seldom = QuotaReport(0, 0, {}, None, poll_s=60.0, slowed=True, held=False, over=False)
    told = msgspec.structs.replace(TOLD, allowance=seldom)
    assert not_ready(SYNC, replace(STANDING, as_of=850.0), told, database="") == ("", "")
