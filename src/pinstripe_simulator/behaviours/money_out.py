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
        automatic=False,
        reconciliation_status="not_applicable",
        method=request.params.get("method") or "standard",
    )
    entry = _book_out(ledger, made, "payout")
    return ledger.change(made, {"balance_transaction": entry["id"]})


def pay_out(ledger: Ledger, currency: str) -> StripeObject:
    """The automatic payout of all that is available in one currency; it is reconciled a little later.

    Entries of payouts themselves are no lines of another; that a payout failed is one. Source:
    https://docs.stripe.com/payouts/reconciliation
    """
    table, entries = ledger.table("balance_transaction"), ledger.world.objects.entries
    lines = [
        line
        for position in range(entries.first_unpaid(), table.total)
        if not table.gone(position) and table.id_at(position) not in entries.paid_out
        for line in [ledger.world.objects.load(table, position)]
        if line["currency"] == currency
        and line["status"] == "available"
        and line["type"] != "payout"
    ]
    amount = sum(int(line["net"]) for line in lines)
    if amount <= 0:
        raise refused("There is nothing to pay out.")
    values: StripeObject = {"amount": amount, "currency": currency, "automatic": True}
    values |= {
        "status": "in_transit",
        "reconciliation_status": "in_progress",
        "type": "bank_account",
    }
    values |= {"arrival_date": ledger.now() + 2 * 86_400, "method": "standard", "metadata": {}}
    values |= {"failure_balance_transaction": None, "failure_code": None, "failure_message": None}
    made = ledger.make("payout", values, event="")
    entry = _book_out(ledger, made, "payout")
    made = ledger.change(made, {"balance_transaction": entry["id"]}, event="")
    ledger.tell("created", made)
    for line in [*lines, entry]:
        entries.paid_out[str(line["id"])] = str(made["id"])
    return made


def reconcile(ledger: Ledger, payout: StripeObject) -> StripeObject:
    """Stripe has put together what the payout holds."""
    changed = ledger.change(payout, {"reconciliation_status": "completed"}, event="")
    ledger.tell("reconciliation_completed", changed)
    return changed


def payout_fails(ledger: Ledger, payout: StripeObject) -> StripeObject:
    """The bank sends the money back; a paid payout can still fail.

    Sources: https://docs.stripe.com/payouts, and
    https://docs.stripe.com/reports/balance-transaction-types for `payout_failure`.
    """
    amount, currency = int(payout["amount"]), str(payout["currency"])
    entry = book(ledger, "payout_failure", amount, currency, source=str(payout["id"]))
    changes = {"status": "failed", "failure_balance_transaction": entry["id"]}
    changes |= {"failure_code": "account_closed"}
    changes |= {"failure_message": "The bank account has been closed"}
    changed = ledger.change(payout, changes, event="")
    ledger.tell("failed", changed)
    return changed


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
