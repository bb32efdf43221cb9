"""Changes in the middle of a period: credit for what was paid ahead, a charge for what replaces it.

Each is an invoice item that waits for the subscription's next invoice, unless that is made right away
(https://docs.stripe.com/billing/subscriptions/prorations). What coupons take off is part of its amount:
such items are not discountable again.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

from pinstripe_simulator.behaviours.invoices import Line, line_values
from pinstripe_simulator.behaviours.prices import cost
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.table import StripeObject

Discounted = Callable[[int, StripeObject], int]
"""(amount, price) -> what coupons leave of it."""


def prorate(
    ledger: Ledger,
    subscription: StripeObject,
    before: StripeObject | None,
    after: StripeObject | None,
    discounted: Discounted,
) -> None:
    """The items for a subscription item that was `before` and is `after` from now on (None: not there)."""
    item = before or after or {}
    now = ledger.now()
    start = int(item.get("current_period_start") or now)
    end = int(item.get("current_period_end") or now)
    share = Fraction(max(end - now, 0), max(end - start, 1))
    if not share or subscription["status"] == "trialing":
        return
    for part, sign in ((before, -1), (after, 1)):
        if part is None:
            continue
        quantity = int(part.get("quantity") or 0)
        whole = discounted(cost(ledger, part["price"], quantity), part["price"])
        amount = sign * round(whole * share)
        _wait(ledger, subscription, part, amount=amount, period={"start": now, "end": end})


def _wait(
    ledger: Ledger,
    subscription: StripeObject,
    item: StripeObject,
    *,
    amount: int,
    period: dict[str, int],
) -> None:
    price, credit, quantity = item["price"], amount < 0, int(item.get("quantity") or 0)
    line = line_values(amount=amount, currency=price["currency"], price=price, quantity=quantity)
    # Its own share of the price, not the price: of what is given back it is negative.
    line["pricing"]["unit_amount_decimal"] = f"{Decimal(amount) / (quantity or 1):.15g}"
    details = {"subscription": subscription["id"], "subscription_item": item["id"]}
    credited = {"invoice": subscription["latest_invoice"], "invoice_line_items": []}
    values: StripeObject = {
        **{k: line[k] for k in ("amount", "currency", "pricing", "quantity")},
        "customer": subscription["customer"],
        "date": ledger.now(),
        "description": "Unused time" if credit else "Remaining time",
        "discountable": False,
        "discounts": [],
        "invoice": None,
        "parent": {"subscription_details": details, "type": "subscription_details"},
        "period": period,
        "proration": True,
        "proration_details": {
            "credited_items": {
                "invoice_item": None,
                "invoice_line_item_details": credited,
                "type": "invoice_line_items",
            }
            if credit
            else None,
            "discount_amounts": [],
        },
        "test_clock": subscription.get("test_clock"),
    }
    ledger.make("invoiceitem", values)


def waiting(ledger: Ledger, subscription: StripeObject) -> list[StripeObject]:
    """The subscription's items that no invoice has taken."""
    table = ledger.table("invoiceitem")
    places = table.by_value.get(("customer", subscription["customer"]), ())
    found = [ledger.world.objects.load(table, p) for p in places if not table.gone(p)]
    return [
        item
        for item in found
        if item.get("invoice") is None
        and item.get("proration")
        and _subscription_of(item) == subscription["id"]
    ]


def _subscription_of(item: StripeObject) -> object:
    parent = item.get("parent") or {}
    return (parent.get("subscription_details") or {}).get("subscription")


def line_of(item: StripeObject) -> Line:
    """The invoice line that the item becomes."""
    of = item["parent"]["subscription_details"]
    details = {"invoice_item": item["id"], "proration": True, **of}
    credited = (item.get("proration_details") or {}).get("credited_items") or {}
    details["proration_details"] = {"credited_items": credited.get("invoice_line_item_details")}
    return {
        **{k: item[k] for k in ("amount", "currency", "description", "period", "pricing")},
        "quantity": item["quantity"],
        "subtotal": item["amount"],
        "discountable": False,
        "discounts": [],
        "discount_amounts": [],
        "taxes": [],
        "parent": {
            "subscription_item_details": details,
            "invoice_item_details": None,
            "type": "subscription_item_details",
        },
    }
