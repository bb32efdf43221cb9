"""What a table and a column hold, for people: derived from the catalog, or in our own words.

Never Stripe's sentences: those are on the page that `docs_url` gives.
"""

from __future__ import annotations

from functools import cache

from pinstripe.catalog.load import spec
from pinstripe.catalog.model import Field
from pinstripe.catalog.table_words import WORDS
from pinstripe.catalog.tables import Column, Table, object_type_of

DOCS = "https://docs.stripe.com/api"

# Where Stripe's page is not called as the path of the endpoint is.
_PAGES = {
    "billing_portal.configuration": "customer_portal/configurations",
    "billing_portal.session": "customer_portal/sessions",
    "capability": "capabilities",
    "cash_balance": "cash_balance",
    "credit_note_line_item": "",
    "customer_balance_transaction": "customer_balance_transactions",
    "fee_refund": "fee_refunds",
    "line_item": "invoice-line-item",
    "person": "persons",
    "tax.association": "",
    "tax_id": "tax_ids",
    "transfer_reversal": "transfer_reversals",
}

_MONEY = {"amount", "balance", "fee", "net", "subtotal", "total", "tax", "unit_amount"}
_MOST_VALUES = 12


def describe_table(table: Table) -> str:
    """One sentence; for a type that is new in the catalog, its name at least.

    >>> from pinstripe.catalog.tables import tables
    >>> describe_table(tables()["charge"])
    'One attempt to move money from a payment method to the account.'
    """
    return WORDS.get(table.name, f"Objects of type {table.object_type}.")


def describe_column(table: Table, column: Column) -> str:
    """One line: what it refers to, its unit, its values, or where it stands in Stripe's object.

    >>> from pinstripe.catalog.tables import tables
    >>> charge = tables()["charge"]
    >>> describe_column(charge, charge.column("customer_id"))
    'Refers to customer.'
    >>> describe_column(charge, charge.column("amount"))
    'In the smallest unit of `currency`.'
    >>> describe_column(charge, charge.column("status"))
    'One of: failed, pending, succeeded.'
    """
    parts = [_reference(column), *column_facts(table, column)]
    if len(column.path) > 1 and column.read != "json":
        parts.append(f"`{'.'.join(column.path)}` of the object.")
    return " ".join(p for p in parts if p)


def column_facts(table: Table, column: Column) -> tuple[str, ...]:
    """What there is to know of a column beside its place in the object and what it refers to."""
    facts = [_role(column), _unit(table, column), _values(table, column)]
    if column.read == "json":
        facts.append(f"JSON of `{'.'.join(column.path)}`, as Stripe sends it.")
    if column.secret:
        facts.append("A secret: always null.")
    if column.on_request:
        facts.append("Stripe gives it on request only.")
    return tuple(f for f in facts if f)


def is_money(column: Column) -> bool:
    """Whether the column is an amount in the smallest unit of a currency."""
    if column.type != "bigint" or not column.path:
        return False
    last = column.path[-1]
    return last in _MONEY or last.startswith("amount_") or last.endswith("_amount")


def enum_values(table: Table, column: Column) -> tuple[str, ...]:
    """The values that Stripe documents for the column; empty where any text may stand."""
    field = _field_at(object_type_of(table).fields, column.path)
    if field is None:
        return ()
    return field.enum or (field.items.enum if field.items else ())


def docs_url(table: Table) -> str:
    """The page of Stripe's reference on the type; the reference itself where none is known.

    >>> from pinstripe.catalog.tables import tables
    >>> docs_url(tables()["issuing_card"])
    'https://docs.stripe.com/api/issuing/cards'
    """
    page = _PAGES.get(table.object_type, _pages().get(table.object_type, ""))
    return f"{DOCS}/{page}" if page else DOCS


@cache
def _pages() -> dict[str, str]:
    """Object name -> path of the list or, failing that, of any endpoint without a parent."""
    found: dict[str, str] = {}
    for operation in sorted(spec().operations, key=lambda o: (o.kind != "list", len(o.path))):
        base = operation.path.split("/{", 1)[0]
        own = operation.path == base or (
            operation.kind == "retrieve" and operation.path.endswith("}")
        )
        if len(operation.returns) == 1 and own and operation.kind in ("list", "retrieve"):
            found.setdefault(operation.returns[0], base.removeprefix("/v1/").lstrip("/"))
    return found


def _reference(column: Column) -> str:
    if not column.references:
        return ""
    *some, last = column.references
    targets = f"{', '.join(some)} or {last}" if some else last
    found = "The object in whose list this one was found. " if column.read == "parent" else ""
    return f"{found}Refers to {targets}."


def _role(column: Column) -> str:
    if column.name == "id":
        return "Unique identifier."
    return {
        "deleted": "True when Stripe has deleted the object; the row stays.",
        "object": "The type of the object that the id beside it names.",
    }.get(column.read, "")


def _unit(table: Table, column: Column) -> str:
    if is_money(column):
        own = any(c.name == "currency" for c in table.columns)
        return f"In the smallest unit of {'`currency`' if own else 'its currency'}."
    return {
        "time": "Time, to the second.",
        "time_ms": "Time, to the millisecond.",
        "time_iso": "Time.",
    }.get(column.read, "")


def _values(table: Table, column: Column) -> str:
    values = enum_values(table, column) if column.read in ("text", "texts") else ()
    if not values:
        return ""
    rest = len(values) - _MOST_VALUES
    return f"One of: {', '.join(values[:_MOST_VALUES])}{f' and {rest} more' if rest > 0 else ''}."


def _field_at(fields: tuple[Field, ...], path: tuple[str, ...]) -> Field | None:
    found: Field | None = None
    for name in path:
        found = next((f for f in fields if f.name == name), None)
        if found is None:
            return None
        fields = found.fields
    return found
