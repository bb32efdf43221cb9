"""Finds the object type of an id by its prefix, where Stripe has given it one.

Ids that users choose (products, plans, coupons) may have none; then the caller has to name the type.
Several types share a prefix, and the subject of a balance transaction depends on its `type` too. Where
neither decides, no type is returned: none is better than a wrong one.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from pinstripe.catalog.model import spec

# Beside the one of the catalog, as seen in recorded answers: payments that are no cards, their refunds,
# and disputes of today.
_OTHERS = {"charge": "py", "refund": "pyr", "dispute": "du"}

# Payouts made before 2017 were transfers to the account's own bank, and keep their ids
# (https://docs.stripe.com/changelog, 2017-04-06). Stripe renders them as payouts now.
_OLD = {"tr": ("payout", "transfer")}

# Balance transaction `type` -> the types that its source may be of, every type that the SDK knows.
# Empty: the type leaves it open, and the prefix alone decides.
# (https://docs.stripe.com/reports/balance-transaction-types)
SOURCES: dict[str, tuple[str, ...]] = {
    "adjustment": (),  # A dispute, a refund, or a correction without an object.
    "advance": (),
    "advance_funding": (),
    "anticipation_repayment": (),
    "application_fee": ("application_fee",),
    "application_fee_refund": ("fee_refund",),
    "charge": ("charge",),
    "climate_order_purchase": ("climate.order",),
    "climate_order_refund": ("climate.order",),
    "connect_collection_transfer": ("connect_collection_transfer",),
    "contribution": (),
    "fee_credit_funding": (),
    "inbound_transfer": (),
    "inbound_transfer_reversal": (),
    "issuing_authorization_hold": ("issuing.authorization",),
    "issuing_authorization_release": ("issuing.authorization",),
    "issuing_dispute": ("issuing.dispute",),
    "issuing_dispute_provisional_credit": ("issuing.dispute",),
    "issuing_dispute_provisional_credit_reversal": ("issuing.dispute",),
    "issuing_transaction": ("issuing.transaction",),
    "obligation_outbound": (),
    "obligation_reversal_inbound": (),
    "payment": ("charge",),
    "payment_failure_refund": ("charge", "refund"),
    "payment_network_reserve_hold": (),
    "payment_network_reserve_release": (),
    "payment_refund": ("refund",),
    "payment_reversal": ("charge", "refund"),
    "payment_unreconciled": (),
    "payout": ("payout",),
    "payout_cancel": ("payout",),
    "payout_failure": ("payout",),
    "payout_minimum_balance_hold": ("payout",),
    "payout_minimum_balance_release": ("payout",),
    "refund": ("refund",),
    "refund_failure": ("refund",),
    "reserve_hold": (),
    "reserve_release": (),
    "reserve_transaction": ("reserve_transaction",),
    "reserved_funds": (),
    "stripe_balance_payment_debit": ("charge",),
    "stripe_balance_payment_debit_reversal": ("charge", "refund"),
    "stripe_fee": (),
    "stripe_fx_fee": (),
    "tax_fee": (),
    "tax_fund": (),
    "topup": ("topup",),
    "topup_reversal": ("topup",),
    "transfer": ("transfer",),
    "transfer_cancel": ("transfer", "transfer_reversal"),
    "transfer_failure": ("transfer", "transfer_reversal"),
    "transfer_refund": ("transfer_reversal",),
}


@cache
def prefixes() -> dict[str, tuple[str, ...]]:
    """Prefix -> the types of object whose ids begin with it and an underscore."""
    found: dict[str, list[str]] = {}
    for kind in spec().objects:
        named = {kind.prefix, _OTHERS.get(kind.name, "")} - {""}
        for prefix in named:
            found.setdefault(prefix, []).append(kind.name)
    return {prefix: tuple(sorted(names)) for prefix, names in found.items()}


def types_of(key: str) -> tuple[str, ...]:
    """The types that an id may be of; none if its prefix is not known.

    >>> types_of("cus_NffrFeUfNV2Hib"), types_of("sub_sched_1Mr"), types_of("cs_test_a1b2")
    (('customer',), ('subscription_schedule',), ('checkout.session',))
    >>> types_of("gold"), types_of("gold_plan")
    ((), ())
    """
    known = prefixes()
    parts = key.split("_")
    for count in range(min(len(parts) - 1, 2), 0, -1):
        names = known.get("_".join(parts[:count]))
        if names is not None:
            return names
    return ()


def type_of(key: str, targets: Collection[str]) -> str | None:
    """The type of the object in a polymorphic field, usually one of `targets`; None if unsure.

    >>> type_of("py_1", ("charge", "refund")), type_of("tr_1", ("transfer",))
    ('charge', 'transfer')
    >>> type_of("tr_1", ("payout", "transfer")), type_of("cbtxn_1", ())
    (None, None)
    """
    may_be = _OLD.get(key.partition("_")[0]) or types_of(key)
    named = [name for name in may_be if name in targets] or may_be
    return named[0] if len(named) == 1 else None


def source_type(key: str, transaction_type: str | None) -> str | None:
    """The type of a balance transaction's source whose prefix is ambiguous; None if unsure.

    >>> source_type("tr_1", "payout"), source_type("tr_1", "transfer"), source_type("tr_1", "adjustment")
    ('payout', 'transfer', None)
    """
    by_type = SOURCES.get(transaction_type or "", ())
    may_be = _OLD.get(key.partition("_")[0]) or types_of(key)
    named = [name for name in by_type if not may_be or name in may_be]
    return named[0] if len(named) == 1 else None
