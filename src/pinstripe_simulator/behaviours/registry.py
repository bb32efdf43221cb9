"""Which behaviour answers which write; everything else is generic."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pinstripe.catalog.model import Operation
from pinstripe_simulator.account import Account
from pinstripe_simulator.answers import Request
from pinstripe_simulator.behaviours import (
    charges,
    customers,
    cycle,
    drafts,
    endpoints,
    generic,
    invoices,
    money_out,
    payments,
    previews,
    prices,
    sessions,
    subscriptions,
)
from pinstripe_simulator.events import STRIPE_ITSELF, Cause, EventLog
from pinstripe_simulator.ledger import Ledger

Behaviour = Callable[[Request, Ledger], object]

_BEHAVIOURS: Mapping[str, Behaviour] = {
    "POST /v1/charges": charges.create_charge,
    "POST /v1/charges/{charge}/capture": charges.capture_charge,
    "POST /v1/checkout/sessions": sessions.create_session,
    "POST /v1/checkout/sessions/{session}/expire": sessions.expire_session,
    "POST /v1/customers": customers.create_customer,
    "POST /v1/customers/{customer}": customers.update_customer,
    "DELETE /v1/customers/{customer}": customers.delete_customer,
    "POST /v1/customers/{customer}/balance_transactions": money_out.customer_balance,
    "DELETE /v1/customers/{customer}/discount": customers.delete_discount,
    "POST /v1/disputes/{dispute}/close": money_out.close_dispute,
    "POST /v1/files": sessions.upload_file,
    "POST /v1/invoiceitems": drafts.create_item,
    "POST /v1/invoices": drafts.create_invoice,
    "POST /v1/invoices/create_preview": previews.preview,
    "GET /v1/invoices/upcoming": previews.preview,
    "GET /v1/invoices/upcoming/lines": previews.upcoming_lines,
    "GET /v1/invoices/{invoice}/lines": previews.preview_lines,
    "DELETE /v1/invoices/{invoice}": drafts.delete_invoice,
    "POST /v1/invoices/{invoice}/add_lines": drafts.add_lines,
    "POST /v1/invoices/{invoice}/finalize": invoices.finalize_invoice,
    "POST /v1/invoices/{invoice}/mark_uncollectible": invoices.mark_uncollectible,
    "POST /v1/invoices/{invoice}/pay": invoices.pay_invoice,
    "POST /v1/invoices/{invoice}/send": invoices.send_invoice,
    "POST /v1/invoices/{invoice}/void": invoices.void_invoice,
    "POST /v1/payment_intents": payments.create_intent,
    "POST /v1/payment_intents/{intent}": payments.update_intent,
    "POST /v1/payment_intents/{intent}/cancel": payments.cancel_intent,
    "POST /v1/payment_intents/{intent}/capture": payments.capture_intent,
    "POST /v1/payment_intents/{intent}/confirm": payments.confirm_intent,
    "POST /v1/payment_methods": payments.create_payment_method,
    "POST /v1/payment_methods/{payment_method}/attach": payments.attach,
    "POST /v1/payment_methods/{payment_method}/detach": payments.detach,
    "POST /v1/payouts": money_out.create_payout,
    "POST /v1/payouts/{payout}/cancel": money_out.cancel_payout,
    "POST /v1/prices": prices.create_price,
    "POST /v1/products": prices.create_product,
    "GET /v1/quotes/{quote}/pdf": sessions.quote_pdf,
    "POST /v1/refunds": charges.create_refund,
    "POST /v1/setup_intents": sessions.create_setup,
    "POST /v1/setup_intents/{intent}/confirm": sessions.confirm_setup,
    "POST /v1/subscription_items": subscriptions.create_item,
    "POST /v1/subscription_items/{item}": subscriptions.update_item,
    "DELETE /v1/subscription_items/{item}": subscriptions.delete_item,
    "POST /v1/subscriptions": subscriptions.create_subscription,
    "POST /v1/subscriptions/{subscription_exposed_id}": subscriptions.update_subscription,
    "DELETE /v1/subscriptions/{subscription_exposed_id}": subscriptions.cancel_subscription,
    "DELETE /v1/subscriptions/{subscription_exposed_id}/discount": customers.delete_discount,
    "POST /v1/test_helpers/test_clocks/{test_clock}/advance": cycle.advance_clock,
    "POST /v1/transfers": money_out.create_transfer,
    "POST /v1/transfers/{id}/reversals": money_out.reverse_transfer,
    "POST /v1/webhook_endpoints": endpoints.create_endpoint,
    "POST /v1/webhook_endpoints/{webhook_endpoint}": endpoints.update_endpoint,
}


def write(request: Request) -> object:
    """Performs the operation; the events name its request."""
    account, operation = request.account, request.operation
    ledger = Ledger(account.world, _log(request), Cause(request.id, request.idempotency_key))
    behave = _BEHAVIOURS.get(f"{operation.method} {operation.path}", generic.perform)
    made = behave(request, ledger)
    settle(account)
    return made


def _log(request: Request) -> EventLog:
    """Where the events of the write go. What a platform changes at a connected account, by its id in the
    path, is that account's (https://docs.stripe.com/connect/webhooks: `account.updated`).
    """
    named = request.match.path_values[:1]
    if request.operation.path.startswith("/v1/accounts/{account}") and named:
        owner = request.account.connected.get(named[0])
        if owner is not None:
            return owner.events
    return request.account.events


def settle(account: Account) -> None:
    """What is due by now and no request asked for: balance transactions of new charges."""
    if account.world.unsettled:
        charges.settle(Ledger(account.world, account.events, STRIPE_ITSELF))


def behaves(operation: Operation) -> bool:
    """Whether the operation does more than its types tell."""
    return f"{operation.method} {operation.path}" in _BEHAVIOURS


def unknown_behaviours(paths: set[str]) -> set[str]:
    """Behaviours whose operation the catalog does not have (a test holds this empty)."""
    return (
        set(_BEHAVIOURS)
        - paths
        - {
            "GET /v1/invoices/upcoming",
            "GET /v1/invoices/upcoming/lines",
            "GET /v1/quotes/{quote}/pdf",
        }
    )
