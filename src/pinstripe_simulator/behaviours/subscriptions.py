"""Subscriptions: their items, first invoices, changes and ends."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime
from typing import Any

from pinstripe_simulator.answers import Request
from pinstripe_simulator.behaviours import discounts, invoices, payments, prorations
from pinstripe_simulator.behaviours.generic import create, taken_over, target
from pinstripe_simulator.behaviours.prices import cost, inline_price
from pinstripe_simulator.events import difference
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.replies import declined, refused
from pinstripe_simulator.table import StripeObject

_DAY_S = 86_400
_UNIT_S = {"day": _DAY_S, "week": 7 * _DAY_S}


def period_end(start: int, recurring: dict[str, Any]) -> int:
    """When a billing period that begins at `start` ends; months keep the day where they can."""
    count = int(recurring.get("interval_count") or 1)
    unit = str(recurring.get("interval") or "month")
    if unit in _UNIT_S:
        return start + count * _UNIT_S[unit]
    at = datetime.fromtimestamp(start, UTC)
    months = at.month - 1 + count * (12 if unit == "year" else 1)
    year, month = at.year + months // 12, months % 12 + 1
    day = min(at.day, calendar.monthrange(year, month)[1])
    return int(at.replace(year=year, month=month, day=day).timestamp())


def create_subscription(request: Request, ledger: Ledger) -> StripeObject:
    """With items, a first invoice, and an attempt to pay it, as `payment_behavior` says."""
    params = request.params
    customer = ledger.get("customer", params.get("customer"), param="customer")
    wanted = params.get("items")
    if not wanted:
        raise refused("Missing required param: items.", code="parameter_missing", param="items")
    prices = [_price(ledger, item, n) for n, item in enumerate(wanted)]
    now = ledger.now()
    trial = _trial_end(params, now)
    method = params.get("default_payment_method") or invoices.default_method(customer)
    behavior = params.get("payment_behavior") or "allow_incomplete"
    if behavior == "error_if_incomplete" and not trial:
        _must_pay(ledger, method)
    made = create(
        request,
        ledger,
        status="trialing" if trial else "incomplete",
        currency=prices[0]["currency"],
        customer=customer["id"],
        billing_cycle_anchor=trial or now,
        start_date=now,
        trial_start=now if trial else None,
        trial_end=trial,
        collection_method=params.get("collection_method") or "charge_automatically",
        test_clock=customer.get("test_clock"),
        cancel_at_period_end=bool(params.get("cancel_at_period_end")),
        latest_invoice=None,
        event="",
    )
    for item, price in zip(wanted, prices, strict=True):
        end = trial or period_end(now, price["recurring"])
        _add_item(ledger, made["id"], item, price, (now, end))
    made = ledger.get("subscription", made["id"])
    if given := _coupons_given(params):
        made = discounts.apply_coupons(ledger, made, given)
    return _first_invoice(ledger, made, customer, behavior=behavior, method=method)


def _coupons_given(params: dict[str, Any]) -> list[dict[str, Any]]:
    given = params.get("discounts")
    return [d for d in given if isinstance(d, dict)] if isinstance(given, list) else []


def _first_invoice(
    ledger: Ledger,
    made: StripeObject,
    customer: StripeObject,
    *,
    behavior: str,
    method: str | None,
) -> StripeObject:
    trialing = made["status"] == "trialing"
    lines = lines_of(ledger, made)
    if trialing:
        free = {"amount": 0, "subtotal": 0, "discount_amounts": [], "discounts": []}
        lines = [line | free for line in lines]
    invoice = invoices.make_invoice(
        ledger,
        customer,
        lines,
        currency=str(made["currency"]),
        reason="subscription_create",
        subscription=made["id"],
        default_payment_method=method,
        collection_method=made["collection_method"],
    )
    made = ledger.change(made, {"latest_invoice": invoice["id"]}, event="")
    ledger.tell("created", made)
    if made["collection_method"] == "send_invoice":
        return ledger.change(made, {"status": "active"})
    invoice = invoices.finalize(ledger, invoice)
    if invoice["status"] != "paid" and behavior != "default_incomplete":
        invoice = invoices.pay(ledger, invoice)
    if invoice["status"] == "paid" and not trialing:
        return ledger.change(made, {"status": "active"})
    return ledger.get("subscription", made["id"])


def _must_pay(ledger: Ledger, method: str | None) -> None:
    """`error_if_incomplete`: nothing is made unless the money will come."""
    if method is None:
        raise refused(
            "This customer has no attached payment source or default payment method.",
            code="resource_missing",
        )
    card = payments.payment_method(ledger, method).get("card") or {}
    if card.get("last4") in ("0002", "0341", "3220"):
        raise declined("Your card was declined.", decline_code="generic_decline")


def _trial_end(params: dict[str, Any], now: int) -> int | None:
    days = int(params.get("trial_period_days") or 0)
    end = params.get("trial_end")
    if isinstance(end, int) and end > now:
        return end
    return now + days * _DAY_S if days else None


def _price(ledger: Ledger, item: dict[str, Any], number: int) -> StripeObject:
    where = f"items[{number}][price]"
    if isinstance(item.get("price_data"), dict):
        return inline_price(ledger, item["price_data"], f"items[{number}][price_data]")
    price = ledger.get("price", item.get("price") or item.get("plan"), param=where)
    if not price.get("active"):
        raise refused(f"The price specified is inactive: {price['id']}.", param=where)
    if price.get("type") != "recurring" or not price.get("recurring"):
        raise refused(
            "The price specified is set to `type=one_time` but this field only accepts prices "
            "with `type=recurring`.",
            param=where,
        )
    return price


def _add_item(
    ledger: Ledger,
    subscription_id: str,
    given: dict[str, Any],
    price: StripeObject,
    period: tuple[int, int],
) -> StripeObject:
    values: StripeObject = {
        "current_period_start": period[0],
        "current_period_end": period[1],
        "metadata": given.get("metadata") or {},
        "quantity": int(given.get("quantity") or 1),
        "subscription": subscription_id,
    }
    values |= priced(ledger, str(price["id"]))
    return ledger.make(
        "subscription_item", values, parent=subscription_id, under="subscription", event=""
    )


def priced(ledger: Ledger, price: str) -> StripeObject:
    """The price of an item, and the plan that Stripe shows beside it under the same id."""
    return {"price": price} | ({"plan": price} if ledger.world.get("plan", price) else {})


def items_of(ledger: Ledger, subscription: StripeObject) -> list[StripeObject]:
    """Every item, not only the ten that the object shows."""
    where = ledger.world.find("subscription", subscription["id"])
    table = ledger.table("subscription_item", "subscription")
    if where is None:
        return []
    found = ledger.world.objects.children(*where, table, "")
    return [ledger.world.objects.load(table, p) for p in found]


def lines_of(ledger: Ledger, subscription: StripeObject) -> list[dict[str, Any]]:
    """What one period of the subscription costs, as invoice lines."""
    lines = []
    for item in items_of(ledger, subscription):
        price, quantity = item["price"], int(item.get("quantity") or 1)
        details = {"subscription": subscription["id"], "subscription_item": item["id"]}
        details |= {"invoice_item": None, "proration": False, "proration_details": None}
        parent: StripeObject = {"subscription_item_details": details}
        parent |= {"type": "subscription_item_details", "invoice_item_details": None}
        lines.append(
            invoices.line_values(
                amount=cost(ledger, price, quantity),
                currency=str(price["currency"]),
                price=price,
                quantity=quantity,
                description=f"{quantity} × {price.get('nickname') or price['id']}",
                period={
                    "start": item.get("current_period_start"),
                    "end": item.get("current_period_end"),
                },
                parent=parent,
            )
        )
    return discounts.take_off(discounts.coupons_of(ledger, subscription), lines)


def update_subscription(request: Request, ledger: Ledger) -> StripeObject:
    found = target(request, ledger)
    if found["status"] == "canceled":
        raise refused("A canceled subscription can only update its cancellation_details.")
    params = request.params
    wanted = params.pop("items", None) or []
    changes = taken_over(ledger, request, found)
    if params.get("cancel_at_period_end") is True:
        changes |= {"canceled_at": ledger.now(), "cancel_at": _period_end_of(found)}
    elif params.get("cancel_at_period_end") is False:
        changes |= {"canceled_at": None, "cancel_at": None}
    if params.get("billing_cycle_anchor") in ("now", "unchanged"):
        changes["billing_cycle_anchor"] = ledger.now()
    if params.get("trial_end") == "now":
        changes |= {"trial_end": ledger.now(), "status": "active"}
    before = {str(i["id"]): i for i in items_of(ledger, found)}
    for number, item in enumerate(wanted):
        _update_item(ledger, found, item, number)
    if wanted and params.get("proration_behavior") != "none":
        _prorate(ledger, found, before)
    if params.get("discounts") is not None:
        discounts.apply_coupons(ledger, found, _coupons_given(params))
        changes["discounts"] = ledger.get("subscription", found["id"])["discounts"]
    # The object as it was is in `found`; its items may have changed under it.
    after = ledger.change(found, changes, event="")
    ledger.tell("updated", after, previous=difference(found, after))
    return after


def _prorate(ledger: Ledger, found: StripeObject, before: dict[str, StripeObject]) -> None:
    coupons = discounts.coupons_of(ledger, found)

    def discounted(amount: int, price: StripeObject) -> int:
        line = invoices.line_values(
            amount=amount, currency=str(price["currency"]), price=price, quantity=1
        )
        taken = discounts.take_off(coupons, [line])[0]["discount_amounts"]
        return amount - sum(int(each["amount"]) for each in taken)

    after = {str(i["id"]): i for i in items_of(ledger, found)}
    for id in dict.fromkeys((*before, *after)):
        old, new = before.get(id), after.get(id)
        if old is None or new is None or _costs(old) != _costs(new):
            prorations.prorate(ledger, found, old, new, discounted)


def _costs(item: StripeObject) -> tuple[object, object]:
    return item["price"]["id"], item.get("quantity")  # A metered item has none.


def _update_item(ledger: Ledger, found: StripeObject, item: dict[str, Any], number: int) -> None:
    id = item.get("id")
    if id is None:
        price = _price(ledger, item, number)
        _add_item(ledger, found["id"], item, price, _period_beside(ledger, found, price))
        return
    old = ledger.get("subscription_item", id, param=f"items[{number}][id]")
    if item.get("deleted"):
        ledger.delete(old, event="")
        return
    changes: StripeObject = {}
    if item.get("price"):
        changes |= priced(ledger, str(_price(ledger, item, number)["id"]))
    if item.get("quantity") is not None:
        changes["quantity"] = int(item["quantity"])
    ledger.change(old, changes, event="")


def _period_beside(ledger: Ledger, found: StripeObject, price: StripeObject) -> tuple[int, int]:
    """Items share one billing period (https://docs.stripe.com/billing/subscriptions/multiple-products)."""
    for other in items_of(ledger, found):
        if other.get("current_period_start") and other.get("current_period_end"):
            return int(other["current_period_start"]), int(other["current_period_end"])
    return ledger.now(), period_end(ledger.now(), price["recurring"])


def _period_end_of(found: StripeObject) -> int | None:
    items = (found.get("items") or {}).get("data") or []
    return max((i["current_period_end"] for i in items if i.get("current_period_end")), default=0)


def cancel_subscription(request: Request, ledger: Ledger) -> StripeObject:
    found = target(request, ledger)
    if found["status"] in ("canceled", "incomplete_expired"):
        raise refused(f"No such subscription: '{found['id']}'", code="resource_missing")
    return end_subscription(ledger, found)


def end_subscription(ledger: Ledger, found: StripeObject) -> StripeObject:
    """The object lives on, canceled; the event is called `deleted` all the same."""
    now = ledger.now()
    details = {"comment": None, "feedback": None, "reason": "cancellation_requested"}
    changes = {"status": "canceled", "canceled_at": now, "ended_at": now}
    changed = ledger.change(found, changes | {"cancellation_details": details}, event="")
    ledger.tell("deleted", changed)
    return changed


def create_item(request: Request, ledger: Ledger) -> StripeObject:
    """An item by its own endpoint: only the subscription's event tells of it."""
    params = request.params
    found = ledger.get("subscription", params["subscription"], param="subscription")
    price = _price(ledger, params, 0)
    made = _add_item(ledger, found["id"], params, price, _period_beside(ledger, found, price))
    _tell_of_items(ledger, found)
    return made


def update_item(request: Request, ledger: Ledger) -> StripeObject:
    item = target(request, ledger)
    found = ledger.get("subscription", item["subscription"])
    changes = taken_over(ledger, request, item)
    if request.params.get("price"):
        changes |= priced(ledger, str(_price(ledger, request.params, 0)["id"]))
    changed = ledger.change(item, changes, event="")
    _tell_of_items(ledger, found)
    return changed


def delete_item(request: Request, ledger: Ledger) -> StripeObject:
    item = target(request, ledger)
    found = ledger.get("subscription", item["subscription"])
    stub = ledger.delete(item, event="")
    _tell_of_items(ledger, found)
    return stub


def _tell_of_items(ledger: Ledger, before: StripeObject) -> None:
    after = ledger.get("subscription", before["id"])
    ledger.tell("updated", after, previous=difference(before, after))
