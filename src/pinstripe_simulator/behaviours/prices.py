"""What is sold: products and prices, prices made inline among them."""

from __future__ import annotations

from typing import Any

from pinstripe_simulator.answers import Request
from pinstripe_simulator.behaviours.generic import create, merged_metadata
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.replies import refused
from pinstripe_simulator.table import StripeObject


def create_product(request: Request, ledger: Ledger) -> StripeObject:
    made = create(
        request, ledger, active=request.params.get("active", True), type="service", images=[]
    )
    given = request.params.get("default_price_data")
    if isinstance(given, dict):
        price = make_price(ledger, given | {"product": made["id"]})
        made = ledger.change(made, {"default_price": price["id"]})
    return made


def create_price(request: Request, ledger: Ledger) -> StripeObject:
    params = dict(request.params)
    if "product" in params:
        ledger.get("product", params["product"], param="product")
    elif isinstance(params.get("product_data"), dict):
        given = params["product_data"]
        product = ledger.make("product", {"name": given.get("name"), "active": True})
        params["product"] = product["id"]
    else:
        raise refused("Missing required param: product.", code="parameter_missing", param="product")
    if "unit_amount" not in params and "unit_amount_decimal" not in params:
        raise refused(
            "Prices require an `unit_amount` or `unit_amount_decimal` parameter to be set.",
            code="parameter_missing",
        )
    return make_price(ledger, params)


def make_price(ledger: Ledger, params: dict[str, Any], *, inline: bool = False) -> StripeObject:
    """A price from the parameters of `prices`, or of a `price_data` (then no list shows it)."""
    amount = params.get("unit_amount")
    recurring = params.get("recurring")
    values: StripeObject = {
        "active": params.get("active", True) and not inline,
        "billing_scheme": "per_unit",
        "currency": str(params.get("currency", "usd")).lower(),
        "lookup_key": params.get("lookup_key"),
        "metadata": merged_metadata({}, params.get("metadata")),
        "nickname": params.get("nickname"),
        "product": params.get("product"),
        "recurring": _recurring(recurring) if isinstance(recurring, dict) else None,
        "tax_behavior": params.get("tax_behavior") or "unspecified",
        "type": "recurring" if recurring else "one_time",
        "unit_amount": int(amount) if amount is not None else None,
        "unit_amount_decimal": str(params.get("unit_amount_decimal") or amount),
    }
    made = ledger.make("price", values)
    if made["recurring"]:
        _make_plan(ledger, made)
    if inline:
        where = ledger.world.find("price", made["id"])
        if where is not None:
            where[0].unlisted.add(where[1])
    return made


def _make_plan(ledger: Ledger, price: StripeObject) -> StripeObject:
    """Stripe shows each recurring price as a plan of the same id, too."""
    recurring = price["recurring"]
    values: StripeObject = {
        "active": price["active"],
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": "per_unit",
        "currency": price["currency"],
        "interval": recurring["interval"],
        "interval_count": recurring["interval_count"],
        "metadata": price["metadata"],
        "product": price["product"],
        "usage_type": "licensed",
    }
    return ledger.make("plan", values, id=str(price["id"]))


def _recurring(given: dict[str, Any]) -> StripeObject:
    return {
        "interval": given.get("interval", "month"),
        "interval_count": int(given.get("interval_count") or 1),
        "meter": given.get("meter"),
        "trial_period_days": None,
        "usage_type": given.get("usage_type") or "licensed",
    }
