"""How far the simulator goes in what makes the real Stripe hard to copy.

`STRIPE` is the default: rare stale reads, clocks that disagree, lists that want a customer, expansions
that are refused. `CALM` has none of it. Every part is a value of its own, so that a test can turn one
up and leave the rest. The environment variable `PINSTRIPE_SIMULATOR_NASTINESS` (`stripe` or `calm`)
picks the default of a whole process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from pinstripe.errors import Misconfigured

VARIABLE = "PINSTRIPE_SIMULATOR_NASTINESS"

# Lists that were refused without `customer`: the official SDKs of 2024 and 2025 required it for
# credit balance transactions, and Stripe's reference limited the other to Treasury ("flows").
_BY_CUSTOMER = frozenset({"/v1/payment_methods", "/v1/billing/credit_balance_transactions"})
# Properties that Stripe's reference calls expandable, and of which no recorded answer shows it.
_NOT_EXPANDED = frozenset(
    {
        "customer.cash_balance",
        "payment_intent.amount_details.line_items",
        "checkout.session.total_details.breakdown",
        "quote.line_items",
        "payment_link.line_items",
    }
)


@dataclass(frozen=True)
class Nastiness:
    """What the simulated Stripe does to its callers. Shares are from 0 to 1, times in seconds.

    `stale_share`, `stale_s`: this share of the reads shows the account as it was up to `stale_s`
    ago, as a replica that is behind would: retrieves, lists, nested lists and their next pages, each
    for itself, and previews of invoices, which write nothing. The event list has its own knob
    (`late_events`).
    `skew_s`: `Date` differs from the clock that stamps objects and events by up to this much either
    way, each response for itself; half of them by all of it.
    `settle_s`: how long a charge captured as `automatic_async` has no balance transaction.
    `lists_by_customer`: paths of lists that are refused without `customer`.
    `refused_expands`: properties (`type.path`) whose expansion is refused, with a 400.
    `no_retry_after_500`: a 500 says `Stripe-Should-Retry: false`. Five official SDKs say in a
    comment that Stripe does so in most cases.
    `old_permission_words`: a 403 uses the sentence of before January 2025, with `rak_...`.
    """

    stale_share: float = 0.002
    stale_s: float = 3.0
    skew_s: float = 3.0
    settle_s: int = 2
    lists_by_customer: frozenset[str] = _BY_CUSTOMER
    refused_expands: frozenset[str] = _NOT_EXPANDED
    no_retry_after_500: bool = True
    old_permission_words: bool = False


STRIPE = Nastiness()
CALM = Nastiness(
    stale_share=0.0,
    stale_s=0.0,
    skew_s=0.0,
    settle_s=0,
    lists_by_customer=frozenset(),
    refused_expands=frozenset(),
    no_retry_after_500=False,
)
PRESETS: Mapping[str, Nastiness] = {"stripe": STRIPE, "calm": CALM}


def preset(name: str) -> Nastiness:
    """The preset of that name."""
    found = PRESETS.get(name)
    if found is None:
        raise Misconfigured(
            f"There is no nastiness named {name!r}.", hint=f"Use one of {', '.join(PRESETS)}."
        )
    return found


def as_json(found: Nastiness) -> dict[str, Any]:
    """Every value by name, for the control interface and for a process of its own."""
    made: dict[str, Any] = msgspec.to_builtins(found)
    return {k: sorted(v) if isinstance(v, frozenset | set) else v for k, v in made.items()}


def from_json(values: Mapping[str, Any]) -> Nastiness:
    """What `as_json` gave; raises `msgspec.ValidationError` (a ValueError) for a wrong type."""
    return msgspec.convert(dict(values), Nastiness, str_keys=True)


def default_nastiness() -> Nastiness:
    """What the environment asks for; Stripe's own if it says nothing."""
    return preset(os.environ.get(VARIABLE, "").strip() or "stripe")
