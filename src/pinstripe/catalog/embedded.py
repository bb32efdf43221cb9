"""The places where an object inside another is in its present state.

An embedded object becomes a row of its own only there:

- wherever `expand[]` can put it, or could in old API versions (a plain string of the object itself):
  Stripe retrieves it while it renders the response (https://docs.stripe.com/expand);
- in a list: its entries are what the owner has now;
- where the SDK's types always hold a whole object: only at the places of `PRESENT`.

Everywhere else (in an error, in an update that is not paid for, in an unknown field) it is a past or a
possible state and contributes its id only. `NOT_PRESENT` names the reviewed places that are left out, with
the reason. A test holds both against the catalog, so that each new place of the SDK is reviewed before it
is used.

`holders` and `carriers` turn that round, for rows that no list returns: the tables whose objects contain
them, which must be synced too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from pinstripe.catalog.endpoints import EXPANDED_IN_LISTS, expand_of, retrieve_endpoints
from pinstripe.catalog.model import Field, object_types
from pinstripe.catalog.tables import has_table, table_of_object, tables

# Rendered from the object itself, with what it is now. The discounts of a session in payment mode are
# shown nowhere else.
PRESENT = frozenset(
    """
    account.individual
    billing.alert_triggered.alert
    checkout.session.total_details.breakdown.discounts.discount
    climate.order.delivery_details.supplier
    climate.product.suppliers
    customer.cash_balance
    customer.discount
    dispute.balance_transactions
    issuing.authorization.balance_transactions
    issuing.authorization.card
    issuing.authorization.transactions
    issuing.card.cardholder
    issuing.dispute.balance_transactions
    item.discounts.discount
    item.price
    product_feature.entitlement_feature
    reporting.report_run.result
    scheduled_query_run.file
    subscription.plan
    subscription_item.plan
    subscription_item.price
    """.split()  # noqa: SIM905 - reads better as a block
)

# Tax rates: what one charges cannot be changed once it is made (https://docs.stripe.com/api/tax_rates),
# and those of automatic tax are in no list.
_TAX_RATES = frozenset(
    """
    checkout.session.shipping_cost.taxes.rate
    checkout.session.total_details.breakdown.taxes.rate
    credit_note.shipping_cost.taxes.rate
    credit_note_line_item.tax_rates
    invoice.default_tax_rates
    invoice.shipping_cost.taxes.rate
    invoiceitem.tax_rates
    item.taxes.rate
    quote.computed.recurring.total_details.breakdown.taxes.rate
    quote.computed.upfront.total_details.breakdown.taxes.rate
    quote.total_details.breakdown.taxes.rate
    subscription.default_tax_rates
    subscription_item.tax_rates
    subscription_schedule.phases.add_invoice_items.tax_rates
    subscription_schedule.phases.default_tax_rates
    subscription_schedule.phases.items.tax_rates
    """.split()  # noqa: SIM905 - reads better as a block
)

_ERROR = "An error holds the objects as they were when it happened."
_FLOW = "The flow as it was booked; flows have lists and events of their own."
_QUOTED = "What would be discounted if the quote were accepted."

NOT_PRESENT: Mapping[str, str] = {
    **{
        f"{error}.{name}": _ERROR
        for error in (
            "invoice.last_finalization_error",
            "payment_intent.last_payment_error",
            "setup_attempt.setup_error",
            "setup_intent.last_setup_error",
            "terminal.reader.action.api_error",
        )
        for name in ("payment_intent", "payment_method", "setup_intent", "source")
    },
    **{
        f"{transaction}.flow_details.{flow}": _FLOW
        for transaction in ("treasury.transaction", "treasury.transaction_entry")
        for flow in (
            *("credit_reversal", "debit_reversal", "inbound_transfer", "issuing_authorization"),
            *("outbound_payment", "outbound_transfer", "received_credit", "received_debit"),
        )
    },
    **{
        f"treasury.received_credit.linked_flows.source_flow_details.{flow}": _FLOW
        for flow in ("credit_reversal", "outbound_payment", "outbound_transfer", "payout")
    },
    "charge.source": "What was charged, as it was then.",
    "financial_connections.session.bank_account_token": "A token as it was made.",
    "quote.computed.recurring.total_details.breakdown.discounts.discount": _QUOTED,
    "quote.computed.upfront.total_details.breakdown.discounts.discount": _QUOTED,
    "quote.total_details.breakdown.discounts.discount": _QUOTED,
    "source_mandate_notification.source": "What was to be debited, as it was then.",
    "subscription.pending_update.discount": "Only if the update is paid for.",
    "subscription.pending_update.subscription_items": "Only if the update is paid for.",
    "terminal.reader.action.collect_payment_method.payment_method": "As it was collected.",
    "token.bank_account": "As it was when the token was made.",
    "token.card": "As it was when the token was made.",
    "topup.source": "What was debited, as it was then.",
    "v2.money_management.outbound_setup_intent.payout_method": "As it was set up.",
}


@dataclass(frozen=True, slots=True)
class EmbeddedPlace:
    """A place inside an object: whether it holds the present state of an object, and the places within.

    Arrays are looked through: a place is that of each of their items.
    """

    present: bool = False
    inside: Mapping[str, EmbeddedPlace] = field(default_factory=dict)


@cache
def places_in(object_name: str) -> Mapping[str, EmbeddedPlace]:
    """By top-level key, the places of an object type that may hold others; empty for an unknown type."""
    known = object_types().get(object_name)
    return _places(known.fields, object_name, (object_name,)) if known is not None else {}


def is_present(place: str) -> bool:
    """Whether the whole object that the types promise at `place` is in its present state.

    >>> is_present("subscription_item.price"), is_present("payment_intent.last_payment_error.source")
    (True, False)
    """
    return place in PRESENT or place in _TAX_RATES


def present_in(object_name: str) -> Iterator[tuple[str, Field]]:
    """(path, type) of every place in an object type that holds another in its present state.

    An expandable place brings an object only where it is expanded.
    """
    yield from _present(object_types()[object_name].fields, object_name, (object_name,))


def _present(
    fields: tuple[Field, ...], path: str, seen: tuple[str, ...]
) -> Iterator[tuple[str, Field]]:
    for known in fields:
        here, item = f"{path}.{known.name}", _item(known)
        if item.kind in ("expandable", "list") or (item.kind == "resource" and is_present(here)):
            yield here.removeprefix(f"{seen[0]}."), item
        elif item.kind != "resource" or not _has_table(item):
            yield from _present(_inner(item, seen), here, (*seen, *item.targets))


def _places(
    fields: tuple[Field, ...], path: str, seen: tuple[str, ...]
) -> dict[str, EmbeddedPlace]:
    found: dict[str, EmbeddedPlace] = {}
    for known in fields:
        here = f"{path}.{known.name}"
        item = _item(known)
        is_id = item.kind == "string" and not item.enum and path == seen[0]
        if item.kind in ("expandable", "list") or is_id:
            found[known.name] = EmbeddedPlace(present=True)
        elif item.kind == "resource" and _has_table(item):
            found[known.name] = EmbeddedPlace(present=is_present(here))
        elif inner := _places(_inner(item, seen), here, (*seen, *item.targets)):
            found[known.name] = EmbeddedPlace(inside=inner)
    return found


def _item(known: Field) -> Field:
    """The place of a field, or of each entry of an array."""
    while known.kind == "array" and known.items is not None:
        known = known.items
    return known


def _inner(item: Field, seen: tuple[str, ...]) -> tuple[Field, ...]:
    """The fields of an inline object, or of an object type without a table of its own."""
    if item.kind == "object":
        return item.fields
    if item.kind == "resource" and len(item.targets) == 1 and item.targets[0] not in seen:
        return object_types()[item.targets[0]].fields
    return ()


def _has_table(item: Field) -> bool:
    return any(has_table(object_types()[name]) for name in item.targets)


@cache
def holders() -> Mapping[str, frozenset[str]]:
    """Table -> the tables whose objects hold its objects in their present state, in our responses."""
    found: dict[str, set[str]] = {}
    table_of = table_of_object()
    for name in object_types():
        expanded = {*expand_of((name,)), *EXPANDED_IN_LISTS.get(name, ())}
        for path, item in present_in(name):
            if item.kind == "expandable" and path not in expanded:
                continue
            for target in item.targets:
                if target in table_of and name in table_of:
                    found.setdefault(table_of[target], set()).add(table_of[name])
    return {table: frozenset(owners) for table, owners in found.items()}


@cache
def carriers() -> Mapping[str, frozenset[str]]:
    """Table -> the tables that yield its rows: they hold them, or name an id that can be fetched."""
    fetched = {
        table_of_object()[name]
        for name, where in retrieve_endpoints().items()
        if name in table_of_object() and not where.parent_parameter
    }
    found = {table: set(owners) for table, owners in holders().items()}
    for table in tables().values():
        for column in table.columns if not table.virtual else ():
            for target in () if column.is_derived else column.references:
                if target in fetched:
                    found.setdefault(target, set()).add(table.name)
    return {table: frozenset(owners - {table}) for table, owners in found.items()}
