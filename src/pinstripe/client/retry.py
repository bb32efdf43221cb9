"""Decides whether to retry a request, and after how long. Pure: no clock, no sleep, no I/O.

The rules are Stripe's. A 429 asks for patience and is counted apart; 409, 5xx and broken connections are
retried a few times. `Stripe-Should-Retry` overrides the status of a write: it concerns a caller that would
repeat the request immediately with the same idempotency key. It says nothing about a read: most 500s carry
`false` (a comment in `_should_retry` of Stripe's SDKs), which is no verdict on the object. A write is
retried only with an idempotency key, or if it certainly never ran.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pinstripe.client.response import http_time

Verdict = Literal["taken", "limited", "again", "final"]
"""`taken`: a good response. `limited`: wait as long as it takes. `again`: a few more tries.
`final`: no more tries; a 4xx in Stripe's shape is its answer, anything else is trouble."""

_TOO_MANY = 429
_CONFLICT = 409
_RETRY_AFTER_CAP_S = 60.0
# 2**16 times the base is far over every cap; without a bound the power itself would overflow.
_LARGEST_EXPONENT = 16


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to retry. The counts are tries in all, the first one included.

    `first_contact` holds until Stripe has answered once: with a wrong address it is better to say
    so soon. `limited_attempts` counts 429s; None is without end.
    """

    attempts: int = 8
    first_contact: int = 3
    limited_attempts: int | None = None
    base_s: float = 0.5
    cap_s: float = 30.0
    limited_cap_s: float = 8.0

    def backoff_s(self, failures: int, luck: float) -> float:
        """Seconds to wait after so many failures: exponential, full jitter. `luck` is in [0, 1)."""
        return luck * min(self.cap_s, self._ceiling_s(failures))

    def limited_s(self, refusals: int, luck: float, retry_after_s: float | None) -> float:
        """Seconds to wait after so many 429s. Never less than Stripe asks for.

        The rate itself is lowered by the budget; this only keeps the repetitions apart.
        """
        jitter_s = luck * min(self.limited_cap_s, self._ceiling_s(refusals))
        return jitter_s if retry_after_s is None else retry_after_s + min(jitter_s, self.base_s)

    def _ceiling_s(self, count: int) -> float:
        return self.base_s * 2.0 ** min(count - 1, _LARGEST_EXPONENT)


def judge(
    status: int, headers: Mapping[str, str], *, genuine: bool, is_read: bool = False
) -> Verdict:
    """Classifies a response. Names of `headers` in lower case.

    `genuine`: the body is Stripe's, that is one whole JSON object, and on an error one in the shape
    of Stripe's errors. Anything else comes from a captive portal, a proxy or a wrong address, and
    must not be believed: a 404 from there would delete objects. `is_read`: the request changes nothing.
    """
    advice = headers.get("stripe-should-retry", "").strip().lower()
    if status == _TOO_MANY:
        # A named limit refused the request unprocessed; our own rate is the remedy, so not even
        # "false" ends it. Contention on an object (`lock_timeout`) has no such header.
        named = "stripe-rate-limited-reason" in headers
        return "final" if advice == "false" and not named and not is_read else "limited"
    if 200 <= status < 300 and genuine:
        return "taken"
    is_trouble = status >= 500 or not genuine
    if advice == "false" and not (is_read and is_trouble):
        return "final"
    if advice == "true" or is_trouble:
        return "again"
    return "again" if status == _CONFLICT else "final"


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """`Retry-After` in seconds, between 0 and 60; None if absent or unreadable.

    It may be a date. That is on Stripe's clock, so it counts from the answer's own `Date`; `now`
    (Unix seconds) stands in where that is missing.
    """
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        until = http_time(text)
        if until is None:
            return None
        said_at = http_time(headers.get("date"))
        seconds = until - (now if said_at is None else said_at)
    if math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), _RETRY_AFTER_CAP_S)
