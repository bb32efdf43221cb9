"""What `pinstripe verify` prints."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pinstripe.cli.verify import as_object, as_text
from pinstripe.sync.verify.compare import Difference, Report, TableReport

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def report(*tables: TableReport) -> Report:
    return Report(
        schema="stripe",
        since=0.0,
        started_at=BEGAN,
        finished_at=BEGAN + timedelta(seconds=2),
        tables={t.table: t for t in tables},
        requests=3,
        digest="abc",
    )


def test_a_proven_copy_takes_two_lines() -> None:
    text = as_text(report(TableReport("charge", rows=5, listed=5)), ids=10)
    assert text.splitlines() == [
        "No differences: schema stripe, 5 rows, 1 of 1 tables verified",
        "2.0 s, 3 requests; digest abc",
    ]


def test_only_so_many_ids_are_printed_and_all_are_in_the_json() -> None:
    table = TableReport("charge", rows=5, listed=5)
    table.remaining = [Difference("charge", f"ch_{n}", "stale", ("amount",)) for n in range(5)]
    table.found["stale"] = 5
    made = report(table)
    text = as_text(made, ids=2)
    assert "stale: ch_1 (amount)" in text
    assert "ch_2" not in text
    assert "3 more stale" in text
    tables = as_object(made)["tables"]
    assert isinstance(tables, list)
    assert [d["id"] for d in tables[0]["remaining"]] == [f"ch_{n}" for n in range(5)]


def test_tables_that_are_not_proven_stand_together_by_reason_with_the_remedy() -> None:
    text = as_text(
        report(
            TableReport("charge", "unverified", "No permission.", "Add it.", rows=7, unchecked=7),
            TableReport("refund", "unverified", "No permission.", "Add it."),
            TableReport("customer"),
        ),
        ids=10,
    )
    assert "1 of 3 tables verified" in text
    assert "charge (7 rows), refund: No permission." in text
    assert text.count("remedy: Add it.") == 1


@pytest.mark.parametrize(
    ("table", "is_proven"),
    [
        (TableReport("price"), True),
        (TableReport("price", moving=1), False),
        (TableReport("price", "unverified", "Broken off.", failed=True), False),
        (TableReport("price", "unverified", "Treasury is not enabled."), True),
        (TableReport("price", "unverified", "Treasury is not enabled.", rows=3), False),
        (TableReport("price", "unverified", "Enabling 'plan_read' permissions on this key"), False),
        (TableReport("price", "partly", "5 rows that no list shows were not asked for."), True),
    ],
)
def test_proven_is_only_what_was_compared(table: TableReport, *, is_proven: bool) -> None:
    made = report(table, TableReport("customer"))
    assert [t.table for t in made.unproven] == ([] if is_proven else ["price"])
    assert as_object(made)["proven"] is is_proven


def test_what_is_left_out_is_counted_and_dated() -> None:
    made = replace(report(TableReport("price", moving=2)), margin_s=120)
    found = as_object(made)
    assert found["left_out"] == 2
    since = datetime.fromisoformat(str(found["left_out_since"]))
    assert since.timestamp() == made.since - 120
    assert f"{since:%H:%M:%S} UTC" in as_text(made, ids=1)
    nothing = replace(report(TableReport("price")), margin_s=120)
    assert "are left out; none differ" in as_text(nothing, ids=1)


def test_what_changed_meanwhile_and_what_lacks_detail_is_told() -> None:
    text = as_text(report(TableReport("price", moving=2, partial=3)), ids=10)
    assert "2 rows changed during verification" in text
    assert "3 rows lack columns that Stripe returns only on request" in text
