"""Charges, captures, refunds, and the balance transactions behind them."""

from __future__ import annotations

from pinstripe_simulator.answers import Request
from pinstripe_simulator.behaviours.generic import create, inner, target
from pinstripe_simulator.entries import entry_type
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.money import fee_of
from pinstripe_simulator.replies import declined, missing, refused
from pinstripe_simulator.table import StripeObject

_AVAILABLE_AFTER_S = 2 * 86_400


def charge_for(ledger: Ledger, intent: StripeObject, *, good: bool) -> StripeObject:
    manual = intent.get("capture_method") == "manual"
    values: StripeObject = {
        "amount": intent["amount"],
        "currency": intent["currency"],
        "customer": intent.get("customer"),
        "payment_intent": intent["id"],
        "payment_method": intent.get("payment_method"),
        "payment_method_details": _details(ledger, intent.get("payment_method")),
        "status": "succeeded" if good else "failed",
        "paid": good,
        "captured": good and not manual,
        "amount_captured": intent["amount"] if good and not manual else 0,
        "failure_code": None if good else "card_declined",
        "failure_message": None if good else "Your card was declined.",
        "metadata": intent.get("metadata") or {},
        "balance_transaction": None,
    }
    charge = ledger.make("charge", values, event="")
    if good and not manual:
        if intent.get("capture_method") == "automatic":
            charge = _booked(ledger, charge, "charge", int(charge["amount"]))
        else:
            world = ledger.world
            world.unsettled.append((ledger.now() + world.settle_s, str(charge["id"])))
    ledger.tell("succeeded" if good else "failed", charge)
    return charge


def _details(ledger: Ledger, id: object) -> StripeObject | None:
    """What a charge shows of the payment method, as it was then."""
    method = ledger.world.get("payment_method", str(id))
    if method is None:
        return None
    kind = str(method["type"])
    fields = ledger.world.routes.fields["charge"]["payment_method_details"].fields
    known = next((f for f in fields if f.name == kind), None)
    shown = {f.name for f in known.fields} if known is not None else set()
    held = {k: v for k, v in (method.get(kind) or {}).items() if k in shown}
    path = f"charge.payment_method_details.{kind}"
    return {kind: inner(known, None, held, path) if known is not None else {}, "type": kind}


def settle(ledger: Ledger) -> None:
    """Gives charges captured as `automatic_async` their balance transaction, when it is due.

    `charge.updated` tells of it. Source: https://docs.stripe.com/payments/payment-intents/asynchronous-capture
    """
    waiting = ledger.world.unsettled
    while waiting and waiting[0][0] <= ledger.now():
        _, id = waiting.popleft()
        charge = ledger.world.get("charge", id)
        if charge is not None and charge.get("balance_transaction") is None:
            entry = book(
                ledger, "charge", int(charge["amount"]), str(charge["currency"]), source=id
            )
            ledger.change(charge, {"balance_transaction": entry["id"]})


def _booked(ledger: Ledger, found: StripeObject, kind: str, amount: int) -> StripeObject:
    """The object with its balance transaction, of which no event tells."""
    entry = book(ledger, kind, amount, str(found["currency"]), source=str(found["id"]))
    return ledger.change(found, {"balance_transaction": entry["id"]}, event="")


def book(ledger: Ledger, kind: str, amount: int, currency: str, *, source: str) -> StripeObject:
    fee = fee_of(amount) if kind == "charge" else 0
    values: StripeObject = {
        "amount": amount,
        "available_on": ledger.now() + _AVAILABLE_AFTER_S,
        "balance_type": "payments",
        "currency": currency,
        "fee": fee,
        "fee_details": [],
        "net": amount - fee,
        "reporting_category": kind,
        "source": source,
        "status": "pending",
        "type": entry_type(kind, source),
    }
    return ledger.make("balance_transaction", values, event="")


def capture(ledger: Ledger, charge: StripeObject, amount: int) -> StripeObject:
    changed = ledger.change(charge, {"captured": True, "amount_captured": amount}, event="")
    changed = _booked(ledger, changed, "charge", amount)
    ledger.tell("captured", changed)
    return changed


def create_refund(request: Request, ledger: Ledger) -> StripeObject:
    params = request.params
    charge_id = params.get("charge")
    if charge_id is None and params.get("payment_intent"):
        intent = ledger.get("payment_intent", params["payment_intent"], param="payment_intent")
        charge_id = intent.get("latest_charge")
    if charge_id is None:
        raise refused(
            "One of the following params should be provided for this request: payment_intent or "
            "charge.",
        )
    charge = ledger.get("charge", charge_id, param="charge")
    left = int(charge["amount"]) - int(charge["amount_refunded"])
    amount = int(params.get("amount") or left)
    if charge.get("refunded") or left == 0:
        raise refused(
            f"Charge {charge_id} has already been refunded.", code="charge_already_refunded"
        )
    if amount > left:
        raise refused(
            f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})",
            param="amount",
        )
    return refund(ledger, charge, amount, metadata=params.get("metadata") or {})


def refund(
    ledger: Ledger, charge: StripeObject, amount: int, *, metadata: StripeObject
) -> StripeObject:
    """Gives `amount` back."""
    values: StripeObject = {
        "amount": amount,
        "charge": charge["id"],
        "currency": charge["currency"],
        "payment_intent": charge.get("payment_intent"),
        "status": "succeeded",
        "metadata": metadata,
    }
    made = ledger.make("refund", values, id=_refund_id(ledger, charge), event="")
    made = _booked(ledger, made, "refund", -amount)
    given = int(charge["amount_refunded"]) + amount
    changes = {"amount_refunded": given, "refunded": given >= int(charge["amount"])}
    changed = ledger.change(charge, changes, event="")
    ledger.tell("refunded", changed, previous={"amount_refunded": charge["amount_refunded"]})
    ledger.tell("created", made)
    return made


def _refund_id(ledger: Ledger, charge: StripeObject) -> str:
    """`pyr_` if the charge is a `py_`; "" leaves the id to the table."""
    table = ledger.table("refund")
    code = table.id_at(table.total).partition("_")[2]
    return f"pyr_{code}" if str(charge["id"]).startswith("py_") else ""


def capture_charge(request: Request, ledger: Ledger) -> StripeObject:
    charge = target(request, ledger)
    if charge.get("captured"):
        raise refused(
            f"Charge {charge['id']} has already been captured.", code="charge_already_captured"
        )
    return capture(ledger, charge, int(request.params.get("amount") or charge["amount"]))


def create_charge(request: Request, ledger: Ledger) -> StripeObject:
    """The old way, without an intent."""
    params = request.params
    if not params.get("source") and not params.get("customer"):
        raise refused("Must provide source or customer.", code="parameter_missing")
    source = str(params.pop("source", ""))
    if source and not source.startswith("tok_"):
        raise missing("token", source, param="source", status=400)
    amount, good = int(params.get("amount", 0)), source != "tok_chargeDeclined"
    found = create(
        request,
        ledger,
        status="succeeded" if good else "failed",
        paid=good,
        captured=good,
        amount_captured=amount if good else 0,
    )
    if not good:
        raise declined(
            "Your card was declined.", decline_code="generic_decline", charge=found["id"]
        )
    return _booked(ledger, found, "charge", amount)
