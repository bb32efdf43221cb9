"""What is sold: products and prices, prices made inline among them."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
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
    if params.get("billing_scheme") == "tiered":
        _check_tiers(params)
    elif "unit_amount" not in params and "unit_amount_decimal" not in params:
        raise refused(
            "Prices require an `unit_amount` or `unit_amount_decimal` parameter to be set.",
            code="parameter_missing",
        )
    return make_price(ledger, params)


def _check_tiers(params: dict[str, Any]) -> None:
    """What `billing_scheme=tiered` wants (https://docs.stripe.com/api/prices/create)."""
    for name in ("tiers", "tiers_mode"):
        if not params.get(name):
            raise refused(f"Missing required param: {name}.", code="parameter_missing", param=name)
    if "unit_amount" in params or "unit_amount_decimal" in params:
        raise refused("You cannot set `unit_amount` when `billing_scheme=tiered`.", param="tiers")
    endless = [tier.get("up_to") == "inf" for tier in params["tiers"]]
    if endless.count(True) != 1 or not endless[-1]:
        raise refused("The last tier, and no other, must have `up_to: inf`.", param="tiers")


def inline_price(ledger: Ledger, given: dict[str, Any], place: str) -> StripeObject:
    """The price of the `price_data` at `place` among the parameters, with its product."""
    product = given.get("product")
    if isinstance(given.get("product_data"), dict):
        name = given["product_data"].get("name")
        product = ledger.make("product", {"name": name, "active": False})["id"]
    elif not product:
        where = f"{place}[product]"
        raise refused(f"Missing required param: {where}.", code="parameter_missing", param=where)
    else:
        ledger.get("product", product, param=f"{place}[product]")
    return make_price(ledger, given | {"product": product}, inline=True)


def cost(ledger: Ledger, price: StripeObject, quantity: int) -> int:
    """What so many cost, in whole units of the currency."""
    if price.get("billing_scheme") != "tiered":
        return _amount_of(price, "unit_amount", quantity)
    tiers, before, total = ledger.world.withheld("price", price["id"])["tiers"], 0, 0
    for tier in tiers:
        last = tier["up_to"] is None or quantity <= tier["up_to"]
        if price["tiers_mode"] == "volume" and not last:
            continue
        until = quantity if last else tier["up_to"]
        total += _amount_of(tier, "unit_amount", until - before)
        total += _amount_of(tier, "flat_amount", 1)
        if last:
            break
        before = until
    return total


def _amount_of(holder: StripeObject, name: str, count: int) -> int:
    whole = holder.get(name)
    each = Decimal(whole if whole is not None else holder.get(f"{name}_decimal") or 0)
    return int((each * count).to_integral_value(ROUND_HALF_UP))


def _amounts(given: dict[str, Any], name: str) -> StripeObject:
    """Both forms of an amount; where a decimal has a fraction there is no whole number."""
    exact = given.get(f"{name}_decimal", given.get(name))
    if exact is None:
        return {name: None, f"{name}_decimal": None}
    try:
        amount = Decimal(str(exact))
    except InvalidOperation:
        raise refused(f"Invalid decimal: {exact}", param=f"{name}_decimal") from None
    whole = int(amount) if amount == amount.to_integral_value() else None
    return {name: whole, f"{name}_decimal": str(exact)}


def _tier(given: dict[str, Any]) -> StripeObject:
    up_to = None if given["up_to"] == "inf" else int(given["up_to"])
    return {**_amounts(given, "flat_amount"), **_amounts(given, "unit_amount"), "up_to": up_to}


def make_price(ledger: Ledger, params: dict[str, Any], *, inline: bool = False) -> StripeObject:
    """A price from the parameters of `prices`, or of a `price_data` (then no list shows it)."""
    recurring = params.get("recurring")
    values: StripeObject = {
        "active": params.get("active", True) and not inline,
        "billing_scheme": params.get("billing_scheme") or "per_unit",
        "currency": str(params.get("currency", "usd")).lower(),
        "lookup_key": params.get("lookup_key"),
        "metadata": merged_metadata({}, params.get("metadata")),
        "nickname": params.get("nickname"),
        "product": params.get("product"),
        "recurring": _recurring(recurring) if isinstance(recurring, dict) else None,
        "tax_behavior": params.get("tax_behavior") or "unspecified",
        "tiers": [_tier(tier) for tier in params.get("tiers") or ()] or None,
        "tiers_mode": params.get("tiers_mode"),
        "type": "recurring" if recurring else "one_time",
        **_amounts(params, "unit_amount"),
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
        "billing_scheme": price["billing_scheme"],
        "currency": price["currency"],
        "interval": recurring["interval"],
        "interval_count": recurring["interval_count"],
        "metadata": price["metadata"],
        "product": price["product"],
        "tiers": ledger.world.withheld("price", price["id"])["tiers"],
        "tiers_mode": price["tiers_mode"],
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
