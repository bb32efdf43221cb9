"""The accounts that are measured, and how few requests can read them.

By default a business that sells to guests: many payments, few saved customers and subscriptions. `SHAPES`
has two more: many customers with little each, and a few with very much. Stripe has lists that cost one
request for each customer (their balances), each setup intent and each tax transaction, however few objects
they hold. Necessary are those that hold something.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, islice
from math import ceil

from pinstripe.catalog.endpoints import list_endpoints
from pinstripe_simulator.mix import PATTERNS

PAGE = 100
_INSIDE = 10
"""Entries of a nested list that Stripe shows inside its parent."""

# Shares of 200,000 objects. Lines, items and the like come with their parents.
_MIX: Mapping[str, int] = {
    "balance_transaction": 42_000,
    "charge": 38_000,
    "payment_intent": 38_000,
    "payment_method": 22_000,
    "event": 10_000,
    "invoice": 4_000,
    "invoice_payment": 4_000,
    "checkout.session": 3_000,
    "subscription": 2_000,
    "refund": 2_000,
    "invoiceitem": 1_200,
    "payout": 800,
    "customer": 300,
    "setup_intent": 300,
    "setup_attempt": 300,
    "price": 200,
    "product": 100,
    "plan": 100,
    "dispute": 100,
    "promotion_code": 50,
    "coupon": 20,
}
_CUSTOMERS: Mapping[str, int] = {
    "balance_transaction": 19_000,
    "charge": 19_000,
    "payment_intent": 19_000,
    "payment_method": 12_000,
    "event": 10_000,
    "invoice": 12_000,
    "invoice_payment": 12_000,
    "subscription": 12_000,
    "customer": 12_000,
    "setup_intent": 100,
    "setup_attempt": 100,
    "refund": 1_000,
    "price": 50,
    "product": 20,
}

_FEW: Mapping[str, int] = {
    "balance_transaction": 40_000,
    "charge": 40_000,
    "payment_intent": 40_000,
    "payment_method": 40,
    "event": 10_000,
    "invoice": 25_000,
    "invoice_payment": 25_000,
    "subscription": 200,
    "customer": 20,
    "refund": 2_000,
    "price": 200,
    "product": 100,
}

SHAPES: Mapping[str, Mapping[str, int]] = {"guests": _MIX, "customers": _CUSTOMERS, "few": _FEW}
"""Counts by type of about 200,000 objects, lines and items included."""

_WHOLE = 200_000

# Nested lists that come inside their parent and are followed from there: (child, parent).
_FOLLOWED = {
    ("line_item", "invoice"): "GET /v1/invoices/{invoice}/lines",
    ("item", "checkout.session"): "GET /v1/checkout/sessions/{session}/line_items",
    ("subscription_item", "subscription"): "GET /v1/subscription_items",
    ("card", "customer"): "GET /v1/customers/{customer}/sources",
}


def mix(objects: int, shape: str = "guests") -> dict[str, int]:
    """Counts by type of an account with about so many objects.

    There are no features: customers are entitled to them by their subscriptions, and the simulator does
    not make such entitlements.
    """
    counts = {n: max(1, round(count * objects / _WHOLE)) for n, count in SHAPES[shape].items()}
    return {**counts, "entitlements.feature": 0, "product_feature": 0}


def necessary_pages(counts: Mapping[str, int]) -> dict[str, int]:
    """The fewest requests that read every top-level list and the rest of every nested one, by endpoint.

    `counts`: objects by type, as the simulator tells them. An empty list costs a request too: nobody
    knows that it is empty. Lists under parents are not among them, see `benchmarks.backfill`.
    """
    found: dict[str, int] = {}
    for endpoint in list_endpoints():
        if not endpoint.parent:
            objects = sum(counts.get(name, 0) for name in endpoint.objects)
            if endpoint.params == (("active", "false"),):
                objects = 0  # What is inactive is not in the other pass: the sum is the same.
            pages = max(1, ceil(objects / PAGE))
            found[endpoint.name] = found.get(endpoint.name, 0) + pages
    for (child, parent), name in _FOLLOWED.items():
        sizes = islice(cycle(PATTERNS[child, parent]), counts.get(parent, 0))
        found[name] = sum(ceil((size - _INSIDE) / PAGE) for size in sizes if size > _INSIDE)
    return found
