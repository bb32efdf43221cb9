"""How object types relate: by the ids that a row carries, by parents, and by the events that report them.

The type of an id is found by its prefix, where Stripe has given it one. Ids that users choose (products,
plans, coupons) may have none; then the caller has to name the type. Several types share a prefix, and the
subject of a balance transaction depends on its `type` too. Where neither decides, no type is returned: none
is better than a wrong one.

A child appears in a list inside its parent (`invoice.lines`), under a nested path
(`/v1/products/{product}/features`) or behind a required parameter (`?customer=`). If the child does not
name that parent, its table gets a column for it. Of events: which types have any, and which announce that
an object was created or deleted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache

from pinstripe.catalog.model import Field, Operation, Spec, spec

# Lists that do not list what the account has: a preview of lines that are not made yet, and the
# customers' payment methods, which the top-level list holds.
NOT_LISTS = frozenset(
    {"/v1/credit_notes/preview/lines", "/v1/customers/{customer}/payment_methods"}
)

# Polymorphic in the types only: no account is the child of a customer.
_NOT_CHILDREN = frozenset({("account", "customer")})

# Path and query parameters whose name is not the object's: what they stand for.
_PARAMETERS = {
    ("/v1/application_fees/{id}/refunds", "id"): "application_fee",
    ("/v1/billing/meters/{id}/event_summaries", "id"): "billing.meter",
    ("/v1/checkout/sessions/{session}/line_items", "session"): "checkout.session",
    ("/v1/financial_connections/accounts/{account}/owners", "account"): (
        "financial_connections.account"
    ),
    ("/v1/payment_intents/{intent}/amount_details_line_items", "intent"): "payment_intent",
    ("/v1/tax/calculations/{calculation}/line_items", "calculation"): "tax.calculation",
    ("/v1/tax/transactions/{transaction}/line_items", "transaction"): "tax.transaction",
    ("/v1/transfers/{id}/reversals", "id"): "transfer",
    ("/v2/core/accounts/{account_id}/persons", "account_id"): "v2.core.account",
    ("/v1/financial_connections/transactions", "account"): "financial_connections.account",
    ("/v1/issuing/tokens", "card"): "issuing.card",
    ("/v1/radar/value_list_items", "value_list"): "radar.value_list",
}


def parents(catalog: Spec) -> dict[str, tuple[str, ...]]:
    """Child object name -> the object names of its possible parents, in catalog order."""
    found: dict[str, list[str]] = {}

    def add(child: str, parent: str) -> None:
        known = found.setdefault(child, [])
        if parent not in known and (child, parent) not in _NOT_CHILDREN:
            known.append(parent)

    with_id = {t.name for t in catalog.objects if t.has_id}
    for object_type in catalog.objects:
        if object_type.has_id:
            for field, _ in embedded_lists(object_type.fields):
                for child in field.targets:
                    add(child, object_type.name)
    for operation in catalog.operations:
        if operation.kind == "list" and operation.path not in NOT_LISTS:
            parent = parent_of(operation, with_id)
            for child in operation.returns if parent else ():
                add(child, parent or "")
    return {child: tuple(known) for child, known in found.items()}


def embedded_lists(
    fields: tuple[Field, ...], path: tuple[str, ...] = ()
) -> Iterator[tuple[Field, tuple[str, ...]]]:
    """(list field, path) of every list inside an object, at any depth of inline objects."""
    for field in fields:
        here = (*path, field.name)
        if field.kind == "list":
            yield field, here
        elif field.kind == "object":
            yield from embedded_lists(field.fields, here)


def parent_parameter(operation: Operation) -> str | None:
    """The path or required query parameter that names the parent, if the list has one.

    A required parameter that is an enum (`apps.secrets?scope`) or an object names no parent.
    """
    in_path = re.findall(r"{(\w+)}", operation.path)
    if in_path:
        return str(in_path[-1])
    required = [p for p in operation.params if not p.nullable]
    if len(required) == 1 and required[0].kind == "string" and not required[0].enum:
        return required[0].name
    return None


def parent_of(operation: Operation, with_id: set[str]) -> str | None:
    """The object name of the parent under which `operation` lists, or None."""
    parameter = parent_parameter(operation)
    if parameter is None:
        return None
    named = _PARAMETERS.get((operation.path, parameter))
    if named is not None:
        return named if named in with_id else None
    if parameter in with_id:
        return parameter
    if parameter == "financial_account":
        return "treasury.financial_account"
    return None


# Last words of event types that announce a new object.
_BIRTHS = ("created", "opened", "uploaded")

# A new charge is succeeded, failed or pending, and an event says which.
_ANNOUNCED_OTHERWISE = frozenset({"charge"})


@cache
def with_events() -> frozenset[str]:
    """Object names that some event carries."""
    return frozenset(name for event in spec().events for name in event.carries)


@cache
def reported() -> frozenset[str]:
    """Object names whose updates events report. The others change without one."""
    found = (event for event in spec().events if event.name.endswith(".updated"))
    return frozenset(name for event in found for name in event.carries)


@cache
def announced() -> frozenset[str]:
    """Object names whose creation an event reports. The others appear without one."""
    born = {
        name
        for event in spec().events
        if event.name.rsplit(".", 1)[-1] in _BIRTHS
        for name in event.carries
    }
    return frozenset(born) | _ANNOUNCED_OTHERWISE


def deletes(event_type: str) -> bool | None:
    """Whether an event of this type reports a deletion; None if only its name suggests it.

    >>> deletes("plan.deleted"), deletes("customer.subscription.deleted"), deletes("novelty.deleted")
    (True, False, None)
    """
    return _deletes().get(event_type, None if event_type.endswith(".deleted") else False)


@cache
def _deletes() -> Mapping[str, bool | None]:
    return {event.name: event.deletes for event in spec().events}


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
