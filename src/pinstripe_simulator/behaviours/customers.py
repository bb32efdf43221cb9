"""Customers."""

from __future__ import annotations

from pinstripe_simulator.answers import Request
from pinstripe_simulator.behaviours.generic import create, taken_over, target
from pinstripe_simulator.behaviours.payments import payment_method
from pinstripe_simulator.behaviours.subscriptions import end_subscription
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.replies import refused
from pinstripe_simulator.table import StripeObject


def create_customer(request: Request, ledger: Ledger) -> StripeObject:
    method = request.params.pop("payment_method", None)
    count = request.account.world.tables["customer"].total
    made = create(
        request,
        ledger,
        delinquent=False,
        invoice_prefix=f"{count:08X}",
        next_invoice_sequence=1,
        balance=int(request.params.get("balance") or 0),
        tax_exempt=request.params.get("tax_exempt") or "none",
    )
    if method:
        attached = payment_method(ledger, method)
        attached = ledger.change(attached, {"customer": made["id"]}, event="")
        ledger.tell("attached", attached)
    return made


def update_customer(request: Request, ledger: Ledger) -> StripeObject:
    found = target(request, ledger)
    changes = taken_over(ledger, request, found)
    settings = request.params.get("invoice_settings") or {}
    wanted = settings.get("default_payment_method")
    if wanted:
        method = ledger.get("payment_method", wanted, param="invoice_settings")
        if method.get("customer") != found["id"]:
            raise refused(
                "The customer does not have a payment method with the ID "
                f"{wanted}. The payment method must be attached to the customer.",
                code="resource_missing",
                param="invoice_settings[default_payment_method]",
            )
    return ledger.change(found, changes)


def delete_customer(request: Request, ledger: Ledger) -> StripeObject:
    """Active subscriptions end at once, as Stripe does it."""
    found = target(request, ledger)
    table = ledger.table("subscription")
    relation = table.relation("customer")
    where = ledger.world.find("customer", found["id"])
    if relation is not None and where is not None:
        for position in ledger.world.objects.children(where[0], where[1], table, "customer"):
            subscription = ledger.world.objects.load(table, position)
            if subscription["status"] not in ("canceled", "incomplete_expired"):
                end_subscription(ledger, subscription)
    return ledger.delete(found)
