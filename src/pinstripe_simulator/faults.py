"""Ways in which the network and Stripe fail, dealt by number or by chance.

A fault that acts `before` the request leaves Stripe untouched; the others let it happen and then
lose or spoil the answer, which is the case that idempotency keys are for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Literal, get_args

from pinstripe_simulator.replies import StripeError

Kind = Literal[
    "error_500",
    "error_503",
    "error_409",
    "rate_limit",
    "reset_before",  # the connection is reset, nothing was done
    "reset_after",  # done, then reset before a byte of the answer
    "reset_in_body",  # reset after the headers and half of the body
    "cut",  # closed half way through the body that Content-Length promised
    "hang",  # no answer until the client gives up
    "drip",  # the body in ten pieces with a pause before each
    "gzip_garbage",
    "html",  # a 200 that is not JSON, as a middlebox makes
    "half_json",  # a 200 whose JSON ends early, with a fitting Content-Length
]
KINDS: tuple[str, ...] = get_args(Kind)
BEFORE = frozenset({"error_500", "error_503", "error_409", "rate_limit", "reset_before", "hang"})


@dataclass
class Fault:
    """`count` times (0: without end), with `share` of the matching requests (0 to 1)."""

    kind: Kind
    count: int = 0
    share: float = 1.0
    path: str = ""
    """Only paths that begin so; empty: all."""
    method: str = ""
    seconds: float = 30.0
    """How long a hang lasts at most, and how long a drip takes in all."""
    left: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault named {self.kind}; there are {', '.join(KINDS)}")
        self.left = self.count


class Faults:
    """The faults in force."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._active: list[Fault] = []
        self.dealt: dict[str, int] = {}

    @cached_property
    def _dice(self) -> Random:
        return Random(f"{self._seed}/faults")  # noqa: S311 - a dice, not a secret

    def add(self, fault: Fault) -> None:
        self._active.append(fault)

    def clear(self) -> None:
        self._active.clear()

    def active(self) -> list[Fault]:
        return list(self._active)

    def deal(self, method: str, path: str) -> Fault | None:
        """The fault for this request, if any."""
        for fault in self._active:
            if fault.method and fault.method != method:
                continue
            if not path.startswith(fault.path) or self._dice.random() >= fault.share:
                continue
            if fault.count:
                fault.left -= 1
                if fault.left <= 0:
                    self._active.remove(fault)
            self.dealt[fault.kind] = self.dealt.get(fault.kind, 0) + 1
            return fault
        return None


def error_for(kind: str, *, no_retry_after_500: bool) -> StripeError | None:
    """The error answer of a fault that is one."""
    if kind == "error_500":
        return StripeError(
            500,
            "An unknown error occurred",
            type="api_error",
            headers={"Stripe-Should-Retry": "false"} if no_retry_after_500 else None,
        )
    if kind == "error_503":
        return StripeError(
            503,
            "Stripe is temporarily unavailable, please retry.",
            type="api_error",
            headers={"Stripe-Should-Retry": "true"},
        )
    if kind == "error_409":
        return StripeError(409, "The object is being changed by another request.", code="conflict")
    if kind == "rate_limit":
        return StripeError(
            429,
            "Request rate limit exceeded. Learn more about rate limits here "
            "https://stripe.com/docs/rate-limits.",
            code="rate_limit",
            headers={"Stripe-Rate-Limited-Reason": "global-rate"},
        )
    return None
