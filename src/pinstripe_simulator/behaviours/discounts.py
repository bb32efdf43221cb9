"""Coupons on subscriptions: the discounts that they make, and what these take off a line.

Percentages first, then fixed amounts, which are spread over the lines in turn; `once` and `repeating`
coupons end by themselves (https://docs.stripe.com/billing/subscriptions/coupons).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.table import StripeObject

_MONTH_S = 86_400 * 365 // 12


def apply_coupons(
    ledger: Ledger, subscription: StripeObject, given: Iterable[Mapping[str, Any]]
) -> StripeObject:
    """The subscription with a new discount for each coupon, in place of those that it had."""
    made = []
    for one in given:
        coupon = ledger.get("coupon", one["coupon"], param="discounts[0][coupon]")
        months = coupon.get("duration_in_months") if coupon["duration"] == "repeating" else None
        values: StripeObject = {
            "source": {"coupon": coupon["id"], "type": "coupon"},
            "customer": subscription["customer"],
            "subscription": subscription["id"],
            "start": ledger.now(),
            "end": ledger.now() + months * _MONTH_S if months else None,
            "promotion_code": None,
        }
        made.append(ledger.make("discount", values, event="")["id"])
    return ledger.change(subscription, {"discounts": made}, event="")


def coupons_of(ledger: Ledger, subscription: StripeObject) -> list[tuple[str, StripeObject]]:
    """(discount, coupon) of what still runs. A coupon that was deleted takes nothing off any more."""
    world = ledger.world
    ids = [d if isinstance(d, str) else d["id"] for d in subscription.get("discounts") or ()]
    found: list[tuple[str, StripeObject]] = []
    for id in ids:
        discount = world.get("discount", str(id))
        source = (discount or {}).get("source") or {}
        coupon = world.get("coupon", str(source.get("coupon")))
        if discount is None or coupon is None:
            continue
        if not discount.get("end") or int(discount["end"]) > ledger.now():
            found.append((str(id), coupon))
    return found


def take_off(
    coupons: Iterable[tuple[str, StripeObject]], lines: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The lines with what each coupon takes off each of them."""
    left = [int(line["amount"]) for line in lines]
    off: list[list[dict[str, Any]]] = [[] for _ in lines]
    ordered = sorted(coupons, key=lambda each: each[1].get("percent_off") is None)
    for id, coupon in ordered:
        rest = int(coupon.get("amount_off") or 0)
        for n, line in enumerate(lines):
            if not line["discountable"] or not left[n]:
                continue
            part = Fraction(str(coupon.get("percent_off") or 0)) / 100
            amount = round(left[n] * part) if part else min(left[n], rest)
            rest -= 0 if part else amount
            left[n] -= amount
            off[n].append({"amount": amount, "discount": id})
    return [
        line | {"discount_amounts": off[n], "discounts": [d["discount"] for d in off[n]]}
        for n, line in enumerate(lines)
    ]
