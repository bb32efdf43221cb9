"""Objects in a state that few have: what an example acts on is made just before it.

Each recipe makes one object through the API and gives the ids for the path. All other examples
find what they need among the account's own objects.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from tools.examples.wire import Wire

Recipe = Callable[[Wire], list[str]]


def _customer(wire: Wire) -> str:
    return wire.make("/v1/customers", {"email": "example@example.com"})


def _intent(wire: Wire, **more: str) -> list[str]:
    form = {"amount": "2000", "currency": "usd", "payment_method": "pm_card_visa", **more}
    return [wire.make("/v1/payment_intents", form)]


def _session(wire: Wire) -> list[str]:
    form = {"mode": "setup", "success_url": "https://example.com", "currency": "usd"}
    return [wire.make("/v1/checkout/sessions", form)]


def _draft(wire: Wire) -> list[str]:
    return [wire.make("/v1/invoices", {"customer": _customer(wire)})]


def _open_invoice(wire: Wire) -> list[str]:
    customer = _customer(wire)
    card = wire.make("/v1/payment_methods/pm_card_visa/attach", {"customer": customer})
    default = {"invoice_settings[default_payment_method]": card}
    wire.make(f"/v1/customers/{customer}", default)
    item = {"customer": customer, "amount": "900", "currency": "usd"}
    wire.make("/v1/invoiceitems", item)
    form = {"customer": customer, "pending_invoice_items_behavior": "include"}
    made = wire.make("/v1/invoices", form)
    wire.make(f"/v1/invoices/{made}/finalize", {})
    return [made]


def _uncaptured(wire: Wire) -> list[str]:
    form = {"amount": "2000", "currency": "usd", "payment_method": "pm_card_visa"}
    form |= {"capture_method": "manual", "confirm": "true"}
    return [wire.make("/v1/payment_intents", form, key="latest_charge")]


def _attached(wire: Wire) -> list[str]:
    form = {"customer": _customer(wire)}
    return [wire.make("/v1/payment_methods/pm_card_visa/attach", form)]


def _payout(wire: Wire) -> list[str]:
    return [wire.make("/v1/payouts", {"amount": "900", "currency": "usd"})]


def _old_clock(wire: Wire) -> list[str]:
    """The examples advance clocks to moments long past."""
    return [wire.make("/v1/test_helpers/test_clocks", {"frozen_time": "100"})]


def _clock(wire: Wire) -> list[str]:
    return [wire.make("/v1/test_helpers/test_clocks", {"frozen_time": str(int(time.time()))})]


def _discounted(wire: Wire) -> list[str]:
    customer, coupon = _customer(wire), wire.make("/v1/coupons", {"percent_off": "10"})
    price = {"unit_amount": "900", "currency": "usd", "recurring[interval]": "month"}
    price["product_data[name]"] = "Example"
    form = {"customer": customer, "items[0][price]": wire.make("/v1/prices", price)}
    form |= {"discounts[0][coupon]": coupon, "payment_behavior": "default_incomplete"}
    return [wire.make("/v1/subscriptions", form)]


RECIPES: Mapping[str, Recipe] = {
    "POST /v1/charges/{charge}/capture": _uncaptured,
    "POST /v1/checkout/sessions/{session}/expire": _session,
    "DELETE /v1/invoices/{invoice}": _draft,
    "POST /v1/invoices/{invoice}/finalize": _draft,
    "POST /v1/invoices/{invoice}/pay": _open_invoice,
    "POST /v1/invoices/{invoice}/void": _open_invoice,
    "POST /v1/invoices/{invoice}/mark_uncollectible": _open_invoice,
    "POST /v1/payment_intents/{intent}/cancel": _intent,
    "POST /v1/payment_intents/{intent}/confirm": _intent,
    "POST /v1/payment_intents/{intent}/capture": lambda wire: _intent(
        wire, capture_method="manual", confirm="true"
    ),
    "POST /v1/payment_methods/{payment_method}/detach": _attached,
    "POST /v1/payouts/{payout}/cancel": _payout,
    "DELETE /v1/subscriptions/{subscription_exposed_id}/discount": _discounted,
    "POST /v1/test_helpers/test_clocks/{test_clock}/advance": _old_clock,
    "DELETE /v1/test_helpers/test_clocks/{test_clock}": _clock,
}
