"""Money out and between: payouts, transfers and their reversals, customer balances, disputes."""

from __future__ import annotations

from pinstripe_simulator.answers import Request
from pinstripe_simulator.behaviours.charges import book
from pinstripe_simulator.behaviours.generic import create, target
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.replies import refused
from pinstripe_simulator.table import StripeObject


def create_payout(request: Request, ledger: Ledger) -> StripeObject:
    made = create(
        request,
        ledger,
        status="pending",
        arrival_date=ledger.now() + 2 * 86_400,
        type="bank_account",
        method=request.params.get("method") or "standard",
    )
    entry = _book_out(ledger, made, "payout")
    return ledger.change(made, {"balance_transaction": entry["id"]})


def cancel_payout(request: Request, ledger: Ledger) -> StripeObject:
    found = target(request, ledger)
    if found["status"] != "pending":
        raise refused("Payouts can only be canceled while they are pending.")
    changed = ledger.change(found, {"status": "canceled"}, event="")
    ledger.tell("canceled", changed)
    return changed


def create_transfer(request: Request, ledger: Ledger) -> StripeObject:
    made = create(request, ledger, reversed=False, amount_reversed=0, event="")
    entry = _book_out(ledger, made, "transfer")
    made = ledger.change(made, {"balance_transaction": entry["id"]}, event="")
    ledger.tell("created", made)
    return made


def reverse_transfer(request: Request, ledger: Ledger) -> StripeObject:
    transfer = ledger.get("transfer", request.match.path_values[0])
    left = int(transfer["amount"]) - int(transfer["amount_reversed"])
    amount = int(request.params.get("amount") or left)
    if amount > left or left == 0:
        raise refused(
            f"Reversal amount ({amount}) is greater than unreversed amount on transfer ({left})",
            param="amount",
        )
    made = create(request, ledger, amount=amount, currency=transfer["currency"])
    done = int(transfer["amount_reversed"]) + amount
    changes = {"amount_reversed": done, "reversed": done >= int(transfer["amount"])}
    changed = ledger.change(transfer, changes, event="")
    ledger.tell("reversed", changed)
    return made


def customer_balance(request: Request, ledger: Ledger) -> StripeObject:
    """A customer balance transaction; no event tells of it, only `customer.updated` does."""
    customer = ledger.get("customer", request.match.path_values[0])
    balance = int(customer.get("balance") or 0) + int(request.params["amount"])
    made = create(
        request, ledger, type="adjustment", ending_balance=balance, customer=customer["id"]
    )
    ledger.change(customer, {"balance": balance})
    return made


def open_dispute(ledger: Ledger, charge: StripeObject) -> StripeObject:
    """The customer's bank takes the money back; Stripe itself does this, no request."""
    values: StripeObject = {
        "amount": charge["amount"],
        "charge": charge["id"],
        "currency": charge["currency"],
        "payment_intent": charge.get("payment_intent"),
        "reason": "fraudulent",
        "status": "needs_response",
        "is_charge_refundable": True,
        "balance_transactions": [],
    }
    made = ledger.make("dispute", values)
    entry = book(
        ledger, "adjustment", -int(charge["amount"]), charge["currency"], source=made["id"]
    )
    changes = {"balance_transactions": [entry], "balance_transaction": entry["id"]}
    made = ledger.change(made, changes, event="")
    ledger.tell("funds_withdrawn", made)
    ledger.change(charge, {"disputed": True, "dispute": made["id"]})
    return made


def close_dispute(request: Request, ledger: Ledger) -> StripeObject:
    found = target(request, ledger)
    changed = ledger.change(found, {"status": "lost"}, event="")
    ledger.tell("closed", changed)
    return changed


def _book_out(ledger: Ledger, found: StripeObject, kind: str) -> StripeObject:
    amount, currency = -int(found["amount"]), str(found["currency"])
    return book(ledger, kind, amount, currency, source=str(found["id"]))
