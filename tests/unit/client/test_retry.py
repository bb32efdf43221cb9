"""When a request is tried again, and how long that waits: verdicts, backoff and `Retry-After`.

The verdicts are Stripe's own rules; the waits hold for any luck and any text in the header.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinstripe.client.response import http_time
from pinstripe.client.retry import Patience, Verdict, judge, retry_after_s

GLOBAL = {"stripe-rate-limited-reason": "global-rate"}
YES = {"stripe-should-retry": "true"}
NO = {"stripe-should-retry": "false"}


@pytest.mark.parametrize(
    ("status", "headers", "genuine", "verdict"),
    [
        (200, {}, True, "taken"),
        (200, YES, True, "taken"),
        (200, NO, True, "taken"),
        (200, {}, False, "again"),
        (302, {}, False, "again"),
        (400, {}, True, "final"),
        (400, YES, True, "again"),
        (401, {}, True, "final"),
        (402, {}, True, "final"),
        (403, {}, True, "final"),
        (404, {}, True, "final"),
        (404, {}, False, "again"),
        (407, {}, False, "again"),
        (409, {}, True, "again"),
        (409, NO, True, "final"),
        (429, {}, True, "limited"),
        (429, {}, False, "limited"),
        (429, GLOBAL, True, "limited"),
        (429, GLOBAL | NO, True, "limited"),
        (429, NO, True, "final"),
        (429, YES, True, "limited"),
        (500, {}, True, "again"),
        (500, NO, True, "final"),
        (503, {}, False, "again"),
    ],
)
def test_the_verdict_follows_stripes_rules(
    status: int, headers: dict[str, str], genuine: bool, verdict: Verdict
) -> None:
    assert judge(status, headers, genuine=genuine) == verdict


@pytest.mark.parametrize(
    ("status", "headers", "genuine", "verdict"),
    [
        (500, NO, True, "again"),
        (503, NO, False, "again"),
        (404, NO, False, "again"),
        (429, NO, True, "limited"),
        (404, NO, True, "final"),
        (409, NO, True, "final"),
    ],
)
def test_no_header_makes_trouble_of_a_read_final(
    status: int, headers: dict[str, str], genuine: bool, verdict: Verdict
) -> None:
    assert judge(status, headers, genuine=genuine, is_read=True) == verdict


@given(failures=st.integers(1, 10**6), luck=st.floats(0, 1, exclude_max=True))
def test_the_wait_is_never_over_its_cap_nor_below_zero(failures: int, luck: float) -> None:
    patience = Patience()
    assert 0 <= patience.backoff_s(failures, luck) <= patience.cap_s
    assert 0 <= patience.limited_s(failures, luck, None) <= patience.limited_cap_s


def test_the_wait_doubles_until_the_cap() -> None:
    patience = Patience(base_s=0.5, cap_s=30.0)
    ceilings = [patience.backoff_s(failures, 1.0) for failures in range(1, 9)]
    assert ceilings == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_after_a_429_no_wait_is_shorter_than_stripe_asks_for() -> None:
    assert Patience().limited_s(1, 0.0, 3.0) == 3.0
    assert 3.0 < Patience().limited_s(9, 0.9, 3.0) <= 3.5


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2", 2.0),
        ("0.5", 0.5),
        (" 3 ", 3.0),
        ("-1", 0.0),
        ("86400", 60.0),
        ("inf", 60.0),
        ("nan", None),
        ("", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:00:20 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:00:05 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_is_capped(text: str, seconds: float | None) -> None:
    headers = {"retry-after": text, "date": "Thu, 01 Jan 1970 00:00:10 GMT"}
    assert retry_after_s(headers, now=10**9) == seconds


def test_without_a_date_the_local_clock_measures_retry_after() -> None:
    assert retry_after_s({"retry-after": "Thu, 01 Jan 1970 00:00:20 GMT"}, now=15.0) == 5.0
    assert retry_after_s({}, now=15.0) is None


@given(st.text(max_size=40))
def test_no_header_text_breaks_the_reading_of_dates(text: str) -> None:
    http_time(text)
    retry_after_s({"retry-after": text, "date": text}, now=0.0)
