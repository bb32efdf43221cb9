"""When refusals of single parents speak for all of them."""

from __future__ import annotations

from pinstripe.errors import NotEnabled, NotPermitted
from pinstripe.sync.backfill.child_lists import RefusedParents

STANDARD = NotPermitted(
    "Stripe refused (403): This application cannot read persons of acct_1.", status=403
)
NO_PERMISSION = NotPermitted(
    "Stripe refused (403): Having the 'rak_person_read' permission would allow this.",
    status=403,
    permission="rak_person_read",
)
NOT_ENABLED = NotEnabled(
    "Stripe refused (400): Your account is not set up to use Issuing.", status=400
)


def test_one_refused_parent_among_others_is_left_out_and_told() -> None:
    left = RefusedParents()
    left.refused("acct_1", STANDARD)
    assert left.ends(nothing_more=False) is None
    assert left.to_pass() == []  # nobody knows yet whether it speaks for all
    left.is_answered = True
    assert left.ends(nothing_more=True) is None
    assert left.to_pass() == ["acct_1"]
    assert left.to_pass() == []
    assert left.words("account").startswith(
        "Without 1 of account, the first acct_1: Stripe refused"
    )


def test_a_missing_permission_ends_the_stream_at_once() -> None:
    left = RefusedParents(is_answered=True)
    left.refused("acct_1", STANDARD)
    assert left.ends(nothing_more=False) is None
    left.refused("acct_2", NO_PERMISSION)
    assert left.ends(nothing_more=False) is NO_PERMISSION


def test_a_few_refusals_without_an_answer_end_the_stream() -> None:
    left = RefusedParents()
    for number in range(4):
        left.refused(f"acct_{number}", NOT_ENABLED)
        assert left.ends(nothing_more=False) is None
    left.refused("acct_4", NOT_ENABLED)
    assert left.ends(nothing_more=False) is NOT_ENABLED


def test_if_all_parents_are_refused_so_is_the_stream() -> None:
    left = RefusedParents()
    left.refused("acct_1", STANDARD)
    assert left.ends(nothing_more=True) is STANDARD


def test_what_an_earlier_run_left_out_is_still_told() -> None:
    assert (
        RefusedParents("Without 1 of account", is_answered=True).words("account")
        == "Without 1 of account"
    )
