"""Payment methods and payment intents.

Test cards behave by their last four digits as Stripe's do: 0002 and 0341 are declined, 3220 wants
authentication, all others pay.
"""

from __future__ import annotations

from typing import Any

from pinstripe_simulator.answers import Request
from pinstripe_simulator.behaviours import charges
from pinstripe_simulator.behaviours.generic import create, inner, taken_over, target
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.replies import declined, refused
from pinstripe_simulator.table import StripeObject

_DECLINED = ("0002", "0341")
_AUTHENTICATE = ("3220", "3155")
_TEST_CARDS = {
    "pm_card_visa": "4242",
    "pm_card_mastercard": "4444",
    "pm_card_chargeDeclined": "0002",
    "pm_card_chargeCustomerFail": "0341",
    "pm_card_authenticationRequired": "3220",
}


def payment_method(ledger: Ledger, id: str, *, param: str = "payment_method") -> StripeObject:
    """The payment method, or a new one for Stripe's test names (`pm_card_visa`)."""
    last4 = _TEST_CARDS.get(id)
    if last4 is None:
        return ledger.get("payment_method", id, param=param)
    card = whole_card(ledger, {"last4": last4})
    return ledger.make("payment_method", {"type": "card", "card": card}, event="")


def whole_card(ledger: Ledger, given: StripeObject) -> StripeObject:
    """A test card with all keys that Stripe shows of one."""
    known: StripeObject = {
        "brand": "visa",
        "country": "US",
        "display_brand": "visa",
        "exp_month": 8,
        "exp_year": 2030,
        "funding": "credit",
        "last4": "4242",
        "networks": {"available": ["visa"], "preferred": None},
        "regulated_status": "unregulated",
        "three_d_secure_usage": {"supported": True},
        **given,
    }
    known["fingerprint"] = f"fp{known['last4']}"
    card = ledger.world.routes.fields["payment_method"]["card"]
    return inner(card, None, known, "payment_method.card")


def create_payment_method(request: Request, ledger: Ledger) -> StripeObject:
    given = request.params.get("card")
    card: dict[str, object] = {}
    if isinstance(given, dict):
        card["last4"] = str(given.get("number", "4242"))[-4:]
        card |= {k: int(given[k]) for k in ("exp_month", "exp_year") if k in given}
    kind = request.params.get("type", "card")
    more: dict[str, Any] = {"card": whole_card(ledger, card)} if kind == "card" else {}
    return create(request, ledger, type=kind, **more)


def attach(request: Request, ledger: Ledger) -> StripeObject:
    found = payment_method(ledger, request.match.path_values[0], param="id")
    customer = ledger.get("customer", request.params.get("customer"), param="customer")
    changed = ledger.change(found, {"customer": customer["id"]}, event="")
    ledger.tell("attached", changed)
    return changed


def detach(request: Request, ledger: Ledger) -> StripeObject:
    found = target(request, ledger)
    if found.get("customer") is None:
        raise refused("The payment method you provided is not attached to a customer.")
    before = {"customer": found["customer"]}
    changed = ledger.change(found, {"customer": None}, event="")
    ledger.tell("detached", changed, previous=before)
    return changed


# --- payment intents ---------------------------------------------------------------------------


def create_intent(request: Request, ledger: Ledger) -> StripeObject:
    params = request.params
    if int(params["amount"]) < 1:
        raise refused("This value must be greater than or equal to 1.", param="amount")
    method = params.pop("payment_method", None)
    found = create(
        request,
        ledger,
        status="requires_payment_method",
        payment_method=payment_method(ledger, method)["id"] if method else None,
        payment_method_types=params.get("payment_method_types") or ["card"],
        capture_method=params.get("capture_method") or "automatic_async",
    )
    if method:
        found = ledger.change(found, {"status": "requires_confirmation"}, event="")
    return confirm(ledger, found) if params.get("confirm") else found


def confirm_intent(request: Request, ledger: Ledger) -> StripeObject:
    found = target(request, ledger)
    method = request.params.get("payment_method")
    if method:
        changes = {"payment_method": payment_method(ledger, method)["id"]}
        found = ledger.change(found, changes, event="")
    return confirm(ledger, found)


def declines(method: StripeObject) -> bool:
    """Whether the card is one of Stripe's that are always declined."""
    return (method.get("card") or {}).get("last4") in _DECLINED


def decline_error(method: StripeObject) -> StripeObject:
    """What an intent keeps of a decline, with the payment method as it was then."""
    return {
        "code": "card_declined",
        "decline_code": "generic_decline",
        "doc_url": "https://stripe.com/docs/error-codes/card-declined",
        "message": "Your card was declined.",
        "payment_method": method,
        "type": "card_error",
    }


def confirm(ledger: Ledger, intent: StripeObject, *, quietly: bool = False) -> StripeObject:
    """Tries to take the money; 402 on a declined card unless `quietly`."""
    if intent["status"] not in ("requires_confirmation", "requires_payment_method"):
        raise _unexpected(intent, "confirm")
    if intent.get("payment_method") is None:
        raise refused(
            "You cannot confirm this PaymentIntent because it's missing a payment method.",
            code="payment_intent_unexpected_state",
        )
    method = ledger.get("payment_method", intent["payment_method"], param="payment_method")
    last4 = (method.get("card") or {}).get("last4")
    if last4 in _AUTHENTICATE:
        action = {"type": "use_stripe_sdk", "use_stripe_sdk": {}}
        changes: StripeObject = {"status": "requires_action", "next_action": action}
        changed = ledger.change(intent, changes, event="")
        ledger.tell("requires_action", changed)
        return changed
    charge = charges.charge_for(ledger, intent, good=not declines(method))
    if charge["status"] == "failed":
        error = {"charge": charge["id"], **decline_error(method)}
        changes = {"status": "requires_payment_method", "last_payment_error": error}
        changes |= {"latest_charge": charge["id"], "payment_method": None}
        changed = ledger.change(intent, changes, event="")
        ledger.tell("payment_failed", changed)
        if quietly:
            return changed
        raise declined(
            "Your card was declined.",
            decline_code="generic_decline",
            charge=charge["id"],
            payment_intent=changed,
        )
    manual = intent.get("capture_method") == "manual"
    changes = {"latest_charge": charge["id"], "last_payment_error": None}
    if manual:
        changes |= {"status": "requires_capture", "amount_capturable": intent["amount"]}
    else:
        changes |= {"status": "succeeded", "amount_received": intent["amount"]}
    changed = ledger.change(intent, changes, event="")
    ledger.tell("amount_capturable_updated" if manual else "succeeded", changed)
    return changed


def capture_intent(request: Request, ledger: Ledger) -> StripeObject:
    intent = target(request, ledger)
    if intent["status"] != "requires_capture":
        raise _unexpected(intent, "capture")
    amount = int(request.params.get("amount_to_capture") or intent["amount"])
    charge = ledger.get("charge", intent["latest_charge"])
    charges.capture(ledger, charge, amount)
    changes = {"status": "succeeded", "amount_received": amount, "amount_capturable": 0}
    changed = ledger.change(intent, changes, event="")
    ledger.tell("succeeded", changed)
    return changed


def cancel_intent(request: Request, ledger: Ledger) -> StripeObject:
    intent = target(request, ledger)
    if intent["status"] in ("succeeded", "canceled", "processing"):
        raise _unexpected(intent, "cancel")
    reason = request.params.get("cancellation_reason")
    changes = {"status": "canceled", "canceled_at": ledger.now(), "cancellation_reason": reason}
    changed = ledger.change(intent, changes, event="")
    ledger.tell("canceled", changed)
    return changed


def update_intent(request: Request, ledger: Ledger) -> StripeObject:
    """Silent: Stripe has no `payment_intent.updated`."""
    found = target(request, ledger)
    return ledger.change(found, taken_over(ledger, request, found))


def _unexpected(intent: StripeObject, verb: str) -> Exception:
    return refused(
        f"You cannot {verb} this PaymentIntent because it has a status of {intent['status']}.",
        code="payment_intent_unexpected_state",
    )
