"""Coupons on subscriptions: the discounts that they make, what these take off a line, and their end.

Percentages first, then fixed amounts, which are spread over the lines in turn; `once` and `repeating`
coupons end by themselves (https://docs.stripe.com/billing/subscriptions/coupons).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from pinstripe_simulator.answers import Request
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.replies import missing
from pinstripe_simulator.table import StripeObject

_MONTH_S = 86_400 * 365 // 12


def apply_coupons(
    ledger: Ledger, subscription: StripeObject, given: Iterable[Mapping[str, Any]]
) -> StripeObject:
    """The subscription with a new discount for each coupon or promotion code, in place of those that it had
    but for those that are named (https://docs.stripe.com/api/subscriptions/update#update_subscription-discounts).
    """
    made = []
    for number, one in enumerate(given):
        where = f"discounts[{number}]"
        if one.get("discount"):
            made.append(ledger.get("discount", one["discount"], param=f"{where}[discount]")["id"])
            continue
        code, wanted = one.get("promotion_code"), one.get("coupon")
        if code:
            promoted = ledger.get("promotion_code", code, param=f"{where}[promotion_code]")
            wanted = _id(promoted["promotion"]["coupon"])
        coupon = ledger.get("coupon", wanted, param=f"{where}[coupon]")
        months = coupon.get("duration_in_months") if coupon["duration"] == "repeating" else None
        values: StripeObject = {
            "source": {"coupon": coupon["id"], "type": "coupon"},
            "customer": subscription["customer"],
            "subscription": subscription["id"],
            "start": ledger.now(),
            "end": ledger.now() + months * _MONTH_S if months else None,
            "promotion_code": code,
        }
        made.append(ledger.make("discount", values, event="")["id"])
    return ledger.change(subscription, {"discounts": made}, event="")


def delete_discount(request: Request, ledger: Ledger) -> StripeObject:
    """Of a customer or a subscription; of a subscription with several, the last.

    Which of several Stripe takes is not in its docs.
    """
    owner = request.account.world.routes.parent(request.operation)
    found = ledger.get(owner, request.match.path_values[0])
    held = found.get("discounts") or [found.get("discount")]
    discount = ledger.world.get("discount", _id(held[-1])) if held[-1] else None
    if discount is None:
        raise missing("discount", str(found["id"]))
    if found.get("discounts"):
        ledger.change(found, {"discounts": [_id(each) for each in held[:-1]]})
    else:
        ledger.change(found, {"discount": None})
    ledger.tell("customer.discount.deleted", discount)
    return {"id": discount["id"], "object": "discount", "deleted": True}


def _id(held: Any) -> str:
    return str(held["id"] if isinstance(held, dict) else held)


def coupons_of(ledger: Ledger, subscription: StripeObject) -> list[tuple[str, StripeObject]]:
    """(discount, coupon) of what still runs. A coupon that was deleted takes nothing off any more."""
    world = ledger.world
    ids = [_id(each) for each in subscription.get("discounts") or ()]
    found: list[tuple[str, StripeObject]] = []
    for id in ids:
        discount = world.get("discount", id)
        source = (discount or {}).get("source") or {}
        coupon = world.get("coupon", str(source.get("coupon")))
        if discount is None or coupon is None:
            continue
        if not discount.get("end") or int(discount["end"]) > ledger.now():
            found.append((id, coupon))
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
