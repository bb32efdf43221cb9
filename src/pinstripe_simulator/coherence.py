"""What makes the population cohere, and types cannot say: who belongs to whom, which states occur.

`RELATIONS` are paths, so that a charge's customer is its payment intent's customer. `FIXES` make a
sample's fields agree with each other (a failed charge is not paid). All else is as the catalog's
types say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pinstripe_simulator.shape import Sample, hole

RELATIONS: Mapping[str, Mapping[str, str]] = {
    "customer": {"balance_of": "first:customer_balance_transaction/customer"},
    "subscription": {
        "customer": "even:customer",
        "default_payment_method": "customer first:payment_method/customer",
        "latest_invoice": "first:invoice/subscription",
        "test_clock": "customer test_clock",
    },
    "subscription_item": {"subscription": "parent:subscription"},
    "invoice": {
        "subscription": "even:subscription",
        "customer": "subscription customer",
        "default_payment_method": "subscription customer first:payment_method/customer",
        "test_clock": "subscription customer test_clock",
        "balance_of": "customer balance_of",
    },
    "line_item": {
        "invoice": "parent:invoice",
        "subscription": "invoice subscription",
    },
    "invoice_payment": {
        "invoice": "even:invoice",
        "payment_intent": "invoice customer first:payment_intent/customer",
    },
    "payment_intent": {
        "customer": "even:customer",
        "payment_method": "customer first:payment_method/customer",
        "latest_charge": "first:charge/payment_intent",
    },
    "charge": {
        "payment_intent": "even:payment_intent",
        "customer": "payment_intent customer",
        "payment_method": "payment_intent payment_method",
        "dispute": "first:dispute/charge",
    },
    "refund": {"charge": "even:charge", "payment_intent": "charge payment_intent"},
    "dispute": {"charge": "even:charge", "payment_intent": "charge payment_intent"},
    "radar.early_fraud_warning": {
        "charge": "even:charge",
        "payment_intent": "charge payment_intent",
    },
    "review": {"charge": "even:charge", "payment_intent": "charge payment_intent"},
    "credit_note": {"invoice": "even:invoice", "customer": "invoice customer"},
    "setup_intent": {
        "customer": "even:customer",
        "payment_method": "customer first:payment_method/customer",
        "latest_attempt": "first:setup_attempt/setup_intent",
    },
    "setup_attempt": {"setup_intent": "even:setup_intent", "customer": "setup_intent customer"},
    "checkout.session": {
        "customer": "even:customer",
        "payment_intent": "customer first:payment_intent/customer",
        "subscription": "customer first:subscription/customer",
    },
    "quote": {"customer": "even:customer", "test_clock": "customer test_clock"},
    "customer_balance_transaction": {"customer": "parent:customer"},
    "customer_cash_balance_transaction": {"customer": "parent:customer"},
    "transfer_reversal": {"transfer": "parent:transfer"},
    "fee_refund": {"fee": "parent:application_fee"},
    "subscription_schedule": {
        "subscription": "even:subscription",
        "customer": "subscription customer",
    },
}
"""Field -> path: `even:T` spreads evenly over table T, `parent:T` follows the nested list, a bare
word is a relation of the table reached so far, `first:T/f` the first object of T whose `f` leads
back here.
"""

ALIASES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "invoice": {"subscription": ("parent", "subscription_details", "subscription")},
    "invoice_payment": {"payment_intent": ("payment", "payment_intent")},
}
"""Where a relation's id stands in the object, if not under the relation's own name."""

PATTERN: tuple[str | None, ...] = (
    *("charge",) * 45,
    "refund",
    "payout",
    *("charge",) * 20,
    "refund",
    None,
    "transfer",
    *("charge",) * 24,
    "refund",
    "refund",
    *("charge",) * 4,
)
"""Of each hundred balance transactions, who made them (see `relations.Interleaved`)."""

ON_TEST_CLOCK = 13
"""The variant of customers, and of what belongs to them, that live on a test clock."""
INLINE_PRICES = 7
"""The variant of prices that were made inline (`price_data`); no list shows them."""
CANCELED = 9
"""A variant of subscriptions that are canceled (see `_SUBSCRIPTION`)."""
REFUNDED = 14
"""The variant of charges that a refund refers to."""
PAYMENTS = frozenset({0, 2, 4, 6})
"""Variants of charges that no card paid: Stripe calls them `py_`, and their refunds `pyr_`."""
SOURCES = ("charge", "refund", "payout", "transfer")
"""Types that make balance transactions; the reporting category has the same name."""

_SUBSCRIPTION = ("active",) * 7 + ("trialing", "past_due", "canceled", "canceled", "unpaid")
_INVOICE = ("paid",) * 9 + ("open", "draft", "void", "uncollectible")
_CHARGE = ("succeeded",) * 10 + ("failed", "pending", "succeeded")


def _state(cycle: tuple[str, ...], variant: int) -> str:
    return cycle[variant % len(cycle)]


def _customer(s: Sample, v: int) -> None:
    s["test_clock"] = hole("ref:test_clock") if v == ON_TEST_CLOCK else None
    s["email"] = hole("email")
    # Of some, what came has gone again: only their invoices tell of it, or nothing.
    s["balance"] = hole("worth:balance_of") if v < 12 else 0
    s["discount"] = None


def _subscription(s: Sample, v: int) -> None:
    status = _state(_SUBSCRIPTION, v)
    ended = hole("t+86400") if status == "canceled" else None
    s |= {"status": status, "canceled_at": ended, "ended_at": ended, "cancel_at": None}
    if status == "active":  # There is an upcoming invoice: it goes on.
        s["cancel_at_period_end"] = False
    s["latest_invoice"] = hole("ref:latest_invoice")
    s["test_clock"] = hole("ref:test_clock") if v == ON_TEST_CLOCK else None
    s["pending_update"] = None
    s["plan"], s["quantity"] = hole("only:plan"), hole("only-quantity")


def _subscription_item(s: Sample, v: int) -> None:
    s["price"], s["plan"] = hole("embed:price"), hole("embed:plan")


def _invoice(s: Sample, v: int) -> None:
    status = _state(_INVOICE, v)
    paid = status == "paid"
    moved: Sample = {"marked_uncollectible_at": None}
    moved |= {"voided_at": hole("t+60") if status == "void" else None}
    moved["finalized_at"] = None if status == "draft" else hole("t+60")
    moved["paid_at"] = hole("t+60") if paid else None
    s |= {"status": status, "status_transitions": moved, "attempted": status != "draft"}
    s |= {"amount_paid": hole("amount") if paid else 0, "total": hole("amount")}
    s |= {"amount_due": hole("amount"), "amount_remaining": 0 if paid else hole("amount")}
    s |= {"amount_shipping": 0, "amount_overpaid": 0}
    s["starting_balance"] = hole("worth:balance_of")
    s["ending_balance"] = None if status == "draft" else hole("worth:balance_of")
    s |= {"subtotal": hole("amount"), "lines": hole("list:lines")}
    s["customer"] = hole("ref:customer")
    s["test_clock"] = hole("ref:test_clock") if v == ON_TEST_CLOCK else None
    s["parent"] = {
        "quote_details": None,
        "subscription_details": {"metadata": {}, "subscription": hole("ref:subscription")},
        "type": "subscription_details",
    }


def _line_item(s: Sample, v: int) -> None:
    s["invoice"] = hole("ref:invoice")
    s["subscription"] = hole("ref:subscription")


def _invoice_payment(s: Sample, v: int) -> None:
    s["invoice"] = hole("ref:invoice")
    s["payment"] = {"payment_intent": hole("ref:payment_intent"), "type": "payment_intent"}
    s["status"] = "paid"


def _payment_intent(s: Sample, v: int) -> None:
    status = _state(_CHARGE, v)
    good = status == "succeeded"
    names = {"succeeded": "succeeded", "failed": "requires_payment_method", "pending": "processing"}
    s |= {"status": names[status], "amount": hole("amount"), "canceled_at": None}
    s |= {"amount_received": hole("amount") if good else 0, "amount_capturable": 0}
    s |= {"latest_charge": hole("ref:latest_charge"), "cancellation_reason": None}
    s |= {"last_payment_error": None, "next_action": None}
    s["capture_method"] = "manual" if v == 5 else "automatic_async"


def _charge(s: Sample, v: int) -> None:
    status = "succeeded" if v == REFUNDED else _state(_CHARGE, v)
    good = status == "succeeded"
    s |= {"status": status, "paid": good, "captured": good, "amount": hole("amount")}
    s |= {"amount_captured": hole("amount") if good else 0, "refunded": v == REFUNDED}
    s["amount_refunded"] = hole("amount") if v == REFUNDED else 0
    s["balance_transaction"] = hole("entry") if good else None
    s["payment_intent"] = hole("ref:payment_intent")
    s["customer"] = hole("ref:customer")
    s["failure_code"] = "card_declined" if status == "failed" else None
    s["failure_message"] = "Your card was declined." if status == "failed" else None
    s["failure_balance_transaction"] = None
    s["source"] = None
    s["dispute"], s["disputed"] = hole("ref:dispute"), hole("has:dispute")


def _refund(s: Sample, v: int) -> None:
    s |= {"status": "succeeded", "charge": hole("ref:charge"), "balance_transaction": hole("entry")}
    s |= {"payment_intent": hole("ref:payment_intent"), "failure_balance_transaction": None}


def _with_entry(s: Sample, v: int) -> None:
    s["balance_transaction"] = hole("entry")


def _balance_transaction(s: Sample, v: int) -> None:
    s |= {"amount": hole("entry-amount"), "fee": hole("fee"), "net": hole("net")}
    s |= {"source": hole("source"), "type": hole("entry-type"), "status": hole("entry-status")}
    s |= {"reporting_category": hole("entry-category"), "exchange_rate": None}
    s |= {"available_on": hole("t+172800"), "currency": "usd"}


def _payout(s: Sample, v: int) -> None:
    _with_entry(s, v)
    s |= {"amount": hole("amount"), "currency": "usd", "status": "paid"}
    s |= {"automatic": hole("automatic"), "reconciliation_status": hole("reconciled")}
    s |= {"failure_balance_transaction": None, "failure_code": None, "failure_message": None}
    s |= {"original_payout": None, "reversed_by": None, "arrival_date": hole("t+172800")}


def _price(s: Sample, v: int) -> None:
    s["active"] = v % 5 != 3
    s["type"] = "recurring" if v % 4 else "one_time"
    s["billing_scheme"] = "per_unit"
    s["currency"] = s.get("currency") or "usd"
    s["recurring"] = None
    if v % 4:
        usual: Sample = {"interval": ("month", "year", "week")[v % 3], "interval_count": 1}
        usual |= {"meter": None, "trial_period_days": None, "usage_type": "licensed"}
        s["recurring"] = usual


def _product(s: Sample, v: int) -> None:
    s["active"] = v % 6 != 4


def _review(s: Sample, v: int) -> None:
    closed = v % 3 == 1
    s |= {"open": not closed, "closed_reason": "approved" if closed else None}


def _tax_id(s: Sample, v: int) -> None:
    s["customer"] = hole("ref:customer") if v % 4 else None
    owner = {"type": "customer", "customer": s["customer"]} if v % 4 else {"type": "self"}
    s["owner"] = owner


def _payment_method(s: Sample, v: int) -> None:
    s["customer"] = hole("ref:customer") if v != 11 else None


def _coupon(s: Sample, v: int) -> None:
    s["valid"] = v % 3 != 2


def _unattached(s: Sample, v: int) -> None:
    """The sources that a customer has are cards; a bank account here is one of an account."""
    if "customer" in s:
        s["customer"] = None


def _card(s: Sample, _: int) -> None:
    # Cards of accounts have one, those of customers have not
    # (https://docs.stripe.com/api/cards/object#card_object-account).
    s["account"] = None


def _person(s: Sample, v: int) -> None:
    s["account"] = hole("ref:account")


def _setup_intent(s: Sample, _: int) -> None:
    # Null only where there is none (https://docs.stripe.com/api/setup_intents/object).
    s["latest_attempt"] = hole("ref:latest_attempt")


def _webhook_endpoint(s: Sample, _: int) -> None:
    # Shown at creation only (https://docs.stripe.com/api/webhook_endpoints/object).
    del s["secret"]


FIXES: Mapping[str, Callable[[Sample, int], None]] = {
    "bank_account": _unattached,
    "card": _card,
    "source": _unattached,
    "balance_transaction": _balance_transaction,
    "charge": _charge,
    "coupon": _coupon,
    "customer": _customer,
    "invoice": _invoice,
    "invoice_payment": _invoice_payment,
    "line_item": _line_item,
    "payment_intent": _payment_intent,
    "payment_method": _payment_method,
    "payout": _payout,
    "person": _person,
    "price": _price,
    "product": _product,
    "setup_intent": _setup_intent,
    "refund": _refund,
    "review": _review,
    "subscription": _subscription,
    "subscription_item": _subscription_item,
    "tax_id": _tax_id,
    "transfer": _with_entry,
    "webhook_endpoint": _webhook_endpoint,
}

# Types whose ids the account's owner may choose.
CHOSEN_IDS = ("product", "plan", "coupon")

NATURAL_IDS: Mapping[str, tuple[str, ...]] = {
    "country_spec": ("AU", "BR", "DE", "GB", "IE", "JP", "US"),
    "exchange_rate": ("aud", "brl", "eur", "gbp", "jpy", "usd"),
    "reporting.report_type": (
        "balance.summary.1",
        "payouts.summary.1",
        "ending_balance_reconciliation.itemized.4",
    ),
    "tax_code": tuple(f"txcd_{n}" for n in range(10000000, 10000140)),
    "climate.supplier": tuple(f"climsup_{n}" for n in ("charcoal", "basalt", "kelp_farm")),
}
