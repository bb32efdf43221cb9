"""How many objects of each type an account has.

`counts_for` spreads a total over the types as a billing business would; every other type gets a
few. A benchmark that wants its own mix names the types and their counts.
"""

from __future__ import annotations

from collections.abc import Mapping

# Shares of the total, per thousand objects. Children that follow a pattern (invoice lines, items of
# subscriptions and sessions) are not here: their parents decide. Roughly what a subscription
# business with card payments shows: balance transactions largest, lists of configuration tiny.
_SHARES: Mapping[str, float] = {
    "customer": 62,
    "payment_method": 66,
    "product": 0.6,
    "price": 1.6,
    "plan": 0.6,
    "coupon": 0.3,
    "promotion_code": 0.6,
    "subscription": 40,
    "invoice": 90,
    "invoiceitem": 12,
    "invoice_payment": 84,
    "payment_intent": 104,
    "charge": 104,
    "refund": 5,
    "balance_transaction": 116,
    "dispute": 0.6,
    "payout": 1,
    "transfer": 2,
    "credit_note": 2,
    "checkout.session": 24,
    "setup_intent": 10,
    "setup_attempt": 8,
    "quote": 0.5,
    "tax_id": 3,
    "tax.transaction": 4,
    "subscription_schedule": 1,
    "application_fee": 2,
    "mandate": 3,
    "source": 1,
    "event": 26,
    "radar.early_fraud_warning": 0.3,
    "review": 0.3,
    "file": 0.2,
    "radar.value_list_item": 1,
    "issuing.authorization": 1,
    "issuing.transaction": 1,
    "treasury.transaction": 0.5,
}

FEW = 6
"""Objects of a type that the table does not name; enough to need no luck, too few to weigh."""

PATTERNS: Mapping[tuple[str, str], tuple[int, ...]] = {
    # Mostly one to four lines; some invoices pass the ten that fit inside, a few the page of 100.
    ("line_item", "invoice"): (1, 1, 2, 1, 13, 1, 3, 1, 2, 1, 1, 4, 1, 2, 1) * 8 + (230,),
    ("subscription_item", "subscription"): (1, 1, 2, 1, 1, 3, 1, 1, 1, 12, 1, 1, 1, 1, 1, 1),
    ("item", "checkout.session"): (1, 2, 1, 1, 1, 3, 1, 11, 1, 1, 1, 1),
    ("item", "payment_link"): (1, 2, 12),
    ("item", "quote"): (2, 1, 11),
    ("credit_note_line_item", "credit_note"): (1, 2, 1, 11),
    ("transfer_reversal", "transfer"): (0, 0, 0, 1, 0, 0, 12, 0, 0, 0, 2, 0),
    ("fee_refund", "application_fee"): (0, 1, 0, 0, 11),
    ("customer_balance_transaction", "customer"): (0,) * 9 + (3,) + (0,) * 20 + (14,),
    ("customer_cash_balance_transaction", "customer"): (0,) * 30 + (2,),
    ("capability", "account"): (3,),
    ("person", "account"): (1, 2, 12),
    ("bank_account", "account"): (1, 0, 2),
    ("card", "customer"): (0,) * 12 + (1,) + (0,) * 14 + (12,),
    ("tax.transaction_line_item", "tax.transaction"): (1, 2, 1, 11),
    ("tax.calculation_line_item", "tax.calculation"): (1, 2, 11),
    ("product_feature", "product"): (0, 1, 0, 2),
    ("source_transaction", "source"): (0, 1, 2),
}
DEFAULT_PATTERN = (1, 0, 2, *(0,) * 97)

_MEAN_CHILDREN = 460.0
"""Patterned children per thousand objects of the table above, so that the total comes out right."""


def counts_for(
    scale: int, mix: Mapping[str, int] | None, types: list[str], few: int = FEW
) -> dict[str, int]:
    """Count per type: about `scale` objects in all, or exactly `mix` where it names a type; at least
    `few` of each, and one of each that has a share.
    """
    fixed = dict(mix or {})
    whole = sum(_SHARES.values()) + _MEAN_CHILDREN
    counts: dict[str, int] = {}
    for name in types:
        share = 0 if mix else round(scale * _SHARES.get(name, 0) / whole)
        counts[name] = max(share, few, int(not mix and name in _SHARES))
    counts.update(fixed)
    return counts
