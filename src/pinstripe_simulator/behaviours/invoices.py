"""Invoices: items, lines, finalizing, paying, voiding, previews."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pinstripe_simulator.answers import Request
from pinstripe_simulator.behaviours import payments
from pinstripe_simulator.behaviours.generic import target
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.replies import StripeError, declined, refused
from pinstripe_simulator.table import StripeObject

Line = dict[str, Any]


def line_values(
    *, amount: int, currency: str, price: Mapping[str, Any] | None, quantity: int, **more: object
) -> Line:
    """The fields of an invoice line; `more` is description, period, parent, subscription."""
    pricing = None
    if price is not None:
        details = {"price": price["id"], "product": price.get("product")}
        unit = price.get("unit_amount_decimal")
        pricing = {"price_details": details, "type": "price_details", "unit_amount_decimal": unit}
    return {
        "amount": amount,
        "subtotal": amount,
        "currency": currency,
        "pricing": pricing,
        "quantity": quantity,
        "discountable": True,
        "discounts": [],
        "discount_amounts": [],
        "taxes": [],
        **more,
    }


def make_invoice(
    ledger: Ledger,
    customer: StripeObject,
    lines: list[Line],
    *,
    currency: str,
    reason: str,
    subscription: str | None = None,
    **more: object,
) -> StripeObject:
    """A draft invoice with its lines."""
    total = sum(int(line["amount"]) - _off(line) for line in lines)
    parent: StripeObject | None = None
    if subscription:
        details = {"metadata": {}, "subscription": subscription}
        parent = {"subscription_details": details, "quote_details": None}
        parent |= {"type": "subscription_details"}
    values: StripeObject = {
        **totals(total, 0),
        "attempted": False,
        "attempt_count": 0,
        "auto_advance": reason != "manual",
        "billing_reason": reason,
        "collection_method": "charge_automatically",
        "currency": currency,
        "customer": customer["id"],
        "customer_email": customer.get("email"),
        "customer_name": customer.get("name"),
        "number": None,
        "parent": parent,
        # Nothing here is paid out of a balance: it stays.
        "starting_balance": customer.get("balance") or 0,
        "status": "draft",
        "test_clock": customer.get("test_clock"),
        **more,
    }
    values["status_transitions"] = dict.fromkeys(
        ("finalized_at", "marked_uncollectible_at", "paid_at", "voided_at")
    )
    made = ledger.make("invoice", values, event="")
    for line in lines:
        add_line(ledger, made["id"], line)
    made = ledger.get("invoice", made["id"])
    ledger.tell("created", made)
    return made


def _off(line: Line) -> int:
    return sum(int(each["amount"]) for each in line.get("discount_amounts") or ())


def add_line(ledger: Ledger, invoice_id: str, line: Line) -> StripeObject:
    return ledger.make(
        "line_item", line | {"invoice": invoice_id}, parent=invoice_id, under="invoice", event=""
    )


def totals(total: int, paid: int) -> StripeObject:
    return {
        "amount_due": total,
        "amount_paid": paid,
        "amount_remaining": total - paid,
        "subtotal": total,
        "subtotal_excluding_tax": total,
        "total": total,
        "total_excluding_tax": total,
    }


# --- the operations ----------------------------------------------------------------------------


def finalize_invoice(request: Request, ledger: Ledger) -> StripeObject:
    return finalize(ledger, target(request, ledger))


def finalize(ledger: Ledger, invoice: StripeObject) -> StripeObject:
    """Open (or paid, where nothing is due), with a payment intent to pay it by."""
    if invoice["status"] != "draft":
        raise refused(f"Invoice {invoice['id']} is not a draft.", code="invoice_no_longer_editable")
    moved = dict(invoice["status_transitions"]) | {"finalized_at": ledger.now()}
    changes: StripeObject = {"status": "open", "status_transitions": moved}
    changes |= {"number": f"{invoice['id'][-8:].upper()}-0001", "effective_at": ledger.now()}
    changes["ending_balance"] = invoice["starting_balance"]
    changed = ledger.change(invoice, changes, event="")
    ledger.tell("finalized", changed)
    if int(changed["amount_due"]) <= 0:
        return _paid(ledger, changed)
    customer = ledger.get("customer", changed["customer"], param="customer")
    method = changed.get("default_payment_method") or default_method(customer)
    intent = ledger.make(
        "payment_intent",
        {
            "amount": changed["amount_due"],
            "currency": changed["currency"],
            "customer": changed["customer"],
            "payment_method": method,
            "status": "requires_confirmation" if method else "requires_payment_method",
            "payment_method_types": ["card"],
            "capture_method": "automatic_async",
        },
    )
    payment = {"payment_intent": intent["id"], "type": "payment_intent"}
    values = {"invoice": changed["id"], "payment": payment, "status": "open", "is_default": True}
    values |= {"amount_requested": changed["amount_due"], "currency": changed["currency"]}
    ledger.make("invoice_payment", values, event="")
    return changed


def default_method(customer: StripeObject) -> str | None:
    settings = customer.get("invoice_settings") or {}
    found = settings.get("default_payment_method")
    return str(found) if found else None


def pay_invoice(request: Request, ledger: Ledger) -> StripeObject:
    invoice = target(request, ledger)
    if invoice["status"] == "draft":
        invoice = finalize(ledger, invoice)
    if invoice["status"] == "paid":
        raise refused("Invoice is already paid", code="invoice_already_paid")
    if request.params.get("paid_out_of_band"):
        return _paid(ledger, invoice)
    paid = pay(ledger, invoice, method=request.params.get("payment_method"))
    if paid["status"] != "paid":
        link = _payment_of(ledger, invoice)
        intent = ledger.get("payment_intent", link["payment"]["payment_intent"]) if link else {}
        raise declined(
            "Your card was declined.",
            decline_code="generic_decline",
            charge=intent.get("latest_charge"),
            payment_intent=intent,
        )
    return paid


def pay(ledger: Ledger, invoice: StripeObject, *, method: str | None = None) -> StripeObject:
    """The invoice after one attempt to pay it, paid or not."""
    link = _payment_of(ledger, invoice)
    if link is None:
        return _paid(ledger, invoice)
    intent = ledger.get("payment_intent", link["payment"]["payment_intent"])
    wanted = method or intent.get("payment_method")
    if wanted is None:
        return _unpaid(ledger, invoice)
    found = payments.payment_method(ledger, wanted)
    intent = ledger.change(intent, {"payment_method": found["id"]}, event="")
    intent = payments.confirm(ledger, intent, quietly=True)
    if intent["status"] != "succeeded":
        return _unpaid(ledger, invoice)
    changes = {"status": "paid", "amount_paid": invoice["amount_due"]}
    linked = ledger.change(link, changes, event="")
    ledger.tell("paid", linked)
    return _paid(ledger, invoice)


def _payment_of(ledger: Ledger, invoice: StripeObject) -> StripeObject | None:
    table = ledger.table("invoice_payment")
    where = ledger.world.find("invoice", invoice["id"])
    if where is None:
        return None
    found = ledger.world.objects.children(*where, table, "invoice")
    return ledger.world.objects.load(table, found[0]) if found else None


def _paid(ledger: Ledger, invoice: StripeObject) -> StripeObject:
    moved = dict(invoice["status_transitions"]) | {"paid_at": ledger.now()}
    changes: StripeObject = {"status": "paid", "status_transitions": moved, "attempted": True}
    changes |= {"amount_paid": invoice["amount_due"], "amount_remaining": 0}
    changes["attempt_count"] = int(invoice.get("attempt_count") or 0) + 1
    changed = ledger.change(invoice, changes)
    ledger.tell("paid", changed)
    ledger.tell("payment_succeeded", changed)
    return changed


def _unpaid(ledger: Ledger, invoice: StripeObject) -> StripeObject:
    count = int(invoice.get("attempt_count") or 0) + 1
    changed = ledger.change(invoice, {"attempted": True, "attempt_count": count})
    ledger.tell("payment_failed", changed)
    return changed


def void_invoice(request: Request, ledger: Ledger) -> StripeObject:
    return _ended(request, ledger, "void", "voided_at", "voided")


def mark_uncollectible(request: Request, ledger: Ledger) -> StripeObject:
    return _ended(
        request, ledger, "uncollectible", "marked_uncollectible_at", "marked_uncollectible"
    )


def _ended(request: Request, ledger: Ledger, status: str, moment: str, event: str) -> StripeObject:
    invoice = target(request, ledger)
    if invoice["status"] not in ("open", "uncollectible"):
        raise refused(f"This invoice is {invoice['status']}; only open ones can be changed so.")
    moved = dict(invoice["status_transitions"]) | {moment: ledger.now()}
    changed = ledger.change(invoice, {"status": status, "status_transitions": moved}, event="")
    ledger.tell(event, changed)
    return changed


def send_invoice(request: Request, ledger: Ledger) -> StripeObject:
    invoice = target(request, ledger)
    if invoice["status"] == "draft":
        invoice = finalize(ledger, invoice)
    ledger.tell("sent", invoice)
    return invoice


def nothing_to_invoice(customer: str) -> StripeError:
    return StripeError(
        404,
        f"No upcoming invoices for customer: {customer}",
        code="invoice_upcoming_none",
        param="id",
    )
