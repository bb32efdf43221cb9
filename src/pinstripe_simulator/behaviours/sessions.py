"""Checkout sessions with their line items, setup intents with their attempts, schedules."""

from __future__ import annotations

from typing import Any

from pinstripe_simulator.answers import Request
from pinstripe_simulator.behaviours import payments
from pinstripe_simulator.behaviours.generic import create, target
from pinstripe_simulator.behaviours.prices import cost, inline_price
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.replies import declined, refused
from pinstripe_simulator.table import StripeObject

_DAY_S = 86_400


_PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    b"2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\n"
)


def quote_pdf(request: Request, ledger: Ledger) -> bytes:
    """A file, not JSON; this one has no pages."""
    quote = ledger.get("quote", request.match.path_values[0])
    return _PDF + f"% {quote['id']}\n%%EOF\n".encode()


def create_session(request: Request, ledger: Ledger) -> StripeObject:
    """Silent: there is no `checkout.session.created`."""
    given = request.params.get("line_items") or []
    prices = [_price(ledger, item) for item in given]
    quantities = [int(item.get("quantity") or 1) for item in given]
    amounts = [cost(ledger, p, q) for p, q in zip(prices, quantities, strict=True)]
    made = create(
        request,
        ledger,
        status="open",
        payment_status="unpaid",
        mode=request.params.get("mode") or "payment",
        amount_total=sum(amounts),
        amount_subtotal=sum(amounts),
        currency=prices[0]["currency"] if prices else None,
        expires_at=ledger.now() + _DAY_S,
    )
    for price, quantity, amount in zip(prices, quantities, amounts, strict=True):
        values = {"price": price["id"], "quantity": quantity, "currency": price["currency"]}
        values |= {"amount_total": amount, "amount_subtotal": amount, "description": None}
        ledger.make("item", values, parent=made["id"], under="checkout.session", event="")
    return ledger.get("checkout.session", made["id"])


def _price(ledger: Ledger, item: dict[str, Any]) -> StripeObject:
    if isinstance(item.get("price_data"), dict):
        return inline_price(ledger, item["price_data"], "line_items[0][price_data]")
    return ledger.get("price", item.get("price"), param="line_items[0][price]")


def complete_session(ledger: Ledger, session: StripeObject) -> StripeObject:
    """What happens when the buyer has paid."""
    changes = {"status": "complete", "payment_status": "paid"}
    changed = ledger.change(session, changes, event="")
    ledger.tell("completed", changed)
    return changed


def expire_session(request: Request, ledger: Ledger) -> StripeObject:
    found = target(request, ledger)
    if found["status"] != "open":
        raise refused(
            f'Only Checkout Sessions with a status in ["open"] can be expired. This one is '
            f"{found['status']}."
        )
    changed = ledger.change(found, {"status": "expired"}, event="")
    ledger.tell("expired", changed)
    return changed


def create_setup(request: Request, ledger: Ledger) -> StripeObject:
    params = request.params
    method = params.pop("payment_method", None)
    made = create(
        request,
        ledger,
        status="requires_confirmation" if method else "requires_payment_method",
        payment_method=payments.payment_method(ledger, method)["id"] if method else None,
        payment_method_types=params.get("payment_method_types") or ["card"],
        usage=params.get("usage") or "off_session",
        latest_attempt=None,
    )
    return _attempt(ledger, made) if params.get("confirm") else made


def confirm_setup(request: Request, ledger: Ledger) -> StripeObject:
    found = target(request, ledger)
    method = request.params.get("payment_method")
    if method:
        id = payments.payment_method(ledger, method)["id"]
        found = ledger.change(found, {"payment_method": id}, event="")
    return _attempt(ledger, found)


def _attempt(ledger: Ledger, found: StripeObject) -> StripeObject:
    """Attempts have no events; the setup intent's own tell of it."""
    if found.get("payment_method") is None:
        raise refused("You cannot confirm this SetupIntent because it's missing a payment method.")
    method = ledger.get("payment_method", found["payment_method"], param="payment_method")
    values = {"setup_intent": found["id"], "payment_method": found["payment_method"]}
    values |= {"customer": found.get("customer"), "status": "succeeded", "usage": "off_session"}
    if payments.declines(method):
        return _failed(ledger, found, values | {"status": "failed"}, method)
    attempt = ledger.make("setup_attempt", values, event="")
    changes = {"status": "succeeded", "latest_attempt": attempt["id"]}
    changed = ledger.change(found, changes, event="")
    ledger.tell("succeeded", changed)
    return changed


def _failed(
    ledger: Ledger, found: StripeObject, values: StripeObject, method: StripeObject
) -> StripeObject:
    """402, with the whole intent in the error, as for a payment."""
    error = payments.decline_error(method)
    attempt = ledger.make("setup_attempt", values | {"setup_error": error}, event="")
    changes: StripeObject = {"status": "requires_payment_method", "payment_method": None}
    changes |= {"latest_attempt": attempt["id"], "last_setup_error": error}
    changed = ledger.change(found, changes, event="")
    ledger.tell("setup_failed", changed)
    raise declined("Your card was declined.", decline_code="generic_decline", setup_intent=changed)


def upload_file(request: Request, ledger: Ledger) -> StripeObject:
    upload = request.files.get("file")
    if upload is None:
        raise refused("Missing required param: file.", code="parameter_missing", param="file")
    name, content = upload
    kind = name.rpartition(".")[2].lower() or None
    return create(request, ledger, filename=name, size=len(content), type=kind)
