"""Drafts: making invoices by hand, their items and lines, throwing them away."""

from __future__ import annotations

from typing import Any

from pinstripe_simulator.answers import Request
from pinstripe_simulator.behaviours.generic import create, merged_metadata, target
from pinstripe_simulator.behaviours.invoices import (
    Line,
    add_line,
    line_values,
    make_invoice,
    totals,
)
from pinstripe_simulator.behaviours.prices import cost, inline_price
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.replies import refused
from pinstripe_simulator.table import StripeObject


def create_invoice(request: Request, ledger: Ledger) -> StripeObject:
    """From nothing, or from the customer's pending items."""
    params = request.params
    customer = ledger.get("customer", params.get("customer"), param="customer")
    pending = []
    if params.get("pending_invoice_items_behavior") == "include":
        pending = pending_items(ledger, customer["id"])
    currency = str(params.get("currency") or (pending[0]["currency"] if pending else "usd"))
    made = make_invoice(
        ledger,
        customer,
        [line_of(item) for item in pending],
        currency=currency,
        reason="manual",
        collection_method=params.get("collection_method") or "charge_automatically",
        metadata=merged_metadata({}, params.get("metadata")),
        description=params.get("description"),
        auto_advance=params.get("auto_advance", False),
    )
    for item in pending:
        ledger.change(item, {"invoice": made["id"]}, event="")
    return made


def pending_items(ledger: Ledger, customer_id: str) -> list[StripeObject]:
    """The customer's new invoice items that no invoice has taken."""
    table = ledger.table("invoiceitem")
    places = table.by_value.get(("customer", customer_id), ())
    found = [ledger.world.objects.load(table, p) for p in places if not table.gone(p)]
    return [item for item in found if item.get("invoice") is None]


def line_of(item: StripeObject) -> Line:
    details = {"invoice_item": item["id"], "proration": item.get("proration", False)}
    details |= {"subscription": None, "proration_details": None}
    parent: StripeObject = {"invoice_item_details": details, "subscription_item_details": None}
    parent |= {"type": "invoice_item_details"}
    line = line_values(
        amount=int(item["amount"]),
        currency=str(item["currency"]),
        price=None,
        quantity=int(item.get("quantity") or 1),
        description=item.get("description"),
        period=item["period"],
        parent=parent,
    )
    return line | {"pricing": item.get("pricing")}


def _charged(ledger: Ledger, given: dict[str, Any], currency: str, inside: str = "") -> Line:
    """Amount, currency, quantity and pricing of what is charged by amount, price or `price_data`;
    `inside`: what its parameters stand in.
    """
    where = f"{inside}[{{}}]" if inside else "{}"
    count = given.get("quantity")
    quantity = 1 if count is None else int(count)
    pricing, price = given.get("pricing"), None
    if isinstance(given.get("price_data"), dict):
        price = inline_price(ledger, given["price_data"], where.format("price_data"))
    elif isinstance(pricing, dict) and pricing.get("price"):
        price = ledger.get("price", pricing["price"], param=where.format("pricing") + "[price]")
    amount = int(given.get("amount") or 0) if price is None else cost(ledger, price, quantity)
    currency = currency if price is None else str(price["currency"])
    return line_values(amount=amount, currency=currency, price=price, quantity=quantity)


def create_item(request: Request, ledger: Ledger) -> StripeObject:
    """An invoice item, pending or on a draft."""
    params = request.params
    customer = ledger.get("customer", params.get("customer"), param="customer")
    charged = _charged(ledger, params, str(params.get("currency") or "usd"))
    made = create(
        request,
        ledger,
        **{name: charged[name] for name in ("amount", "currency", "pricing", "quantity")},
        customer=customer["id"],
        date=ledger.now(),
        proration=False,
        period={"start": ledger.now(), "end": ledger.now()},
        quantity_decimal=str(charged["quantity"]),
        test_clock=customer.get("test_clock"),
    )
    if params.get("invoice"):
        invoice = ledger.get("invoice", params["invoice"], param="invoice")
        add_line(ledger, invoice["id"], line_of(made))
        recount(ledger, invoice)
    return made


def recount(ledger: Ledger, invoice: StripeObject) -> StripeObject:
    """The invoice with totals that fit its lines."""
    where = ledger.world.find("invoice", invoice["id"])
    table = ledger.table("line_item", "invoice")
    total = 0
    if where is not None:
        for position in ledger.world.objects.children(*where, table, ""):
            total += int(ledger.world.objects.load(table, position)["amount"])
    return ledger.change(invoice, totals(total, 0))


def delete_invoice(request: Request, ledger: Ledger) -> StripeObject:
    invoice = target(request, ledger)
    if invoice["status"] != "draft" or invoice.get("parent"):
        raise refused("You can only delete draft invoices.")
    return ledger.delete(invoice)


def add_lines(request: Request, ledger: Ledger) -> StripeObject:
    invoice = target(request, ledger)
    for number, given in enumerate(request.params.get("lines") or []):
        line = _charged(ledger, given, str(invoice["currency"]), f"lines[{number}]")
        add_line(ledger, invoice["id"], line | {"description": given.get("description")})
    return recount(ledger, invoice)
