"""How an object type becomes a table: the rules of the schema, applied to the catalog. Pure.

One table per object type with an `id`, nested objects flattened one level, references as `<field>_id`,
everything deeper as jsonb (docs/concepts/schema.md; the shape is Sequin's). A `Column` also says how its
value is read from an object (`path`, `read`), so rows, DDL, reference pages and the diagram share one
description.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Literal

from pinstripe.catalog.model import Field, ObjectType, Spec, object_types, spec
from pinstripe.catalog.moved import Moved, moved_columns
from pinstripe.catalog.relations import parents
from pinstripe.catalog.secrets import is_secret

SqlType = Literal["text", "bigint", "numeric", "boolean", "timestamptz", "jsonb", "text[]"]

Read = Literal[
    "text",
    "integer",
    "number",
    "decimal",
    "boolean",
    "time",
    "time_ms",
    "time_iso",
    "json",
    "texts",
    "id",  # an id, or the id of the object that stands there
    "ids",  # an array of them
    "object",  # the `object` name of what `id` reads, where the types differ
    "parent",  # not in the object: the parent's id, known from where the object was found
    "deleted",
]

_SQL: dict[Read, SqlType] = {
    "text": "text",
    "integer": "bigint",
    "number": "numeric",
    "decimal": "numeric",
    "boolean": "boolean",
    "time": "timestamptz",
    "time_ms": "timestamptz",
    "time_iso": "timestamptz",
    "json": "jsonb",
    "texts": "text[]",
    "id": "text",
    "ids": "text[]",
    "object": "text",
    "parent": "text",
    "deleted": "boolean",
}

# Postgres truncates names after 63 bytes silently.
NAME_BYTES = 63

# Never expanded. Card numbers, secrets and identity documents: a mirror must not hold them.
# A customer's subscriptions: listed for themselves.
NOT_EXPANDED = frozenset(
    {
        "apps.secret.payload",
        "customer.subscriptions",
        "identity.verification_report.document.dob",
        "identity.verification_report.document.expiration_date",
        "identity.verification_report.document.number",
        "identity.verification_report.id_number.dob",
        "identity.verification_report.id_number.id_number",
        "identity.verification_session.provided_details",
        "identity.verification_session.verified_outputs",
        "invoice.confirmation_secret",
        "issuing.card.cvc",
        "issuing.card.number",
    }
)

# Objects without an id, one per account (or customer), that have a table nevertheless.
SINGLETONS = {"balance": "", "balance_settings": "", "tax.settings": "", "cash_balance": "customer"}

NAMED_UNDER = {"capability": "account"}
"""Objects whose id is a name that each parent has: every account has its `card_payments`
(https://docs.stripe.com/api/capabilities/object). Type -> the field with the parent, whose id the row's has
before that name: `acct_1/card_payments`."""

LOGS = frozenset({"event", "v2_core_event"})
"""Tables whose rows hold copies of other objects."""

PAYOUT_LINES = "payout_balance_transaction"
"""The table of which payout has paid out a balance transaction. No object of Stripe's says it, only the
list of balance transactions under a payout (https://docs.stripe.com/payouts/reconciliation)."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `path`: the place of its value in the object; `references`: tables.

    `on_request`: Stripe leaves it out unless asked to expand it, and we do ask. `secret`: it is always
    null, because a copy keeps no secrets (`catalog.secrets`). `moved`: where else its value may stand.
    """

    name: str
    read: Read
    path: tuple[str, ...]
    references: tuple[str, ...] = ()
    on_request: bool = False
    secret: bool = False
    moved: Moved | None = None

    @property
    def type(self) -> SqlType:
        return _SQL[self.read]

    @property
    def is_derived(self) -> bool:
        """Whether Stripe sends no field for it: its value follows from others (`moved`)."""
        return self.moved is not None and not self.path

    @property
    def place(self) -> tuple[str, ...]:
        """Where its value stands in an object: `path`, or of a derived column the first place."""
        if self.path or self.moved is None or not self.moved.places:
            return self.path
        return tuple(self.moved.places[0].split("."))


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the mirror. `columns` begins with the key and leaves out the bookkeeping.

    `columns` hold what follows from an object; `linked` only what rows of other tables give.
    """

    name: str
    object_type: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ("id",)
    virtual: bool = False
    linked: tuple[Column, ...] = ()
    types: Mapping[str, SqlType] = field(init=False, compare=False, repr=False)
    """Column -> type, of all columns."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "types", {c.name: c.type for c in self.all_columns})

    @property
    def all_columns(self) -> tuple[Column, ...]:
        """Every column of the catalog that the database has."""
        return (*self.columns, *self.linked)

    def column(self, name: str) -> Column:
        return next(c for c in self.all_columns if c.name == name)

    @property
    def deletable(self) -> bool:
        """Whether Stripe deletes such objects, so that a row can be flagged."""
        return any(c.read == "deleted" for c in self.columns)


@lru_cache(maxsize=2048)  # A backfill asks some thousand times for each list.
def table_name(object_name: str) -> str:
    """`checkout.session` -> `checkout_session`; the one respelling is `invoiceitem`."""
    return "invoice_item" if object_name == "invoiceitem" else object_name.replace(".", "_")


@cache
def tables() -> Mapping[str, Table]:
    """Every table by name, from the catalog."""
    return build_tables(spec())


@cache
def table_of_object() -> Mapping[str, str]:
    """Object name -> table name, for objects that have one."""
    return {t.object_type: t.name for t in tables().values() if not t.virtual}


def build_tables(catalog: Spec) -> dict[str, Table]:
    """All tables of `catalog`, by name. Raises ValueError if two fields give one name."""
    types = {t.name: t for t in catalog.objects}
    with_table = {t.name for t in catalog.objects if has_table(t)}
    relations = parents(catalog)
    found: dict[str, Table] = {}
    for object_type in catalog.objects:
        if object_type.name in with_table:
            table = _table(object_type, types, with_table, relations.get(object_type.name, ()))
            found[table.name] = _with_moved(table)
    found.update({t.name: t for t in (*_upcoming(found), *_payout_lines(found))})
    return dict(sorted(found.items()))


def has_table(object_type: ObjectType) -> bool:
    return object_type.has_id or object_type.name in SINGLETONS


def _table(
    object_type: ObjectType,
    types: Mapping[str, ObjectType],
    with_table: set[str],
    parent_objects: tuple[str, ...],
) -> Table:
    columns: list[Column] = [Column("id", "text", ("id",))]
    for known in object_type.fields:
        if known.name != "id":
            columns += _top_level(known, types, with_table)
    for parent in parent_objects:
        target = table_name(parent)
        if not any(c.references == (target,) and len(c.path) == 1 for c in columns):
            columns.append(Column(f"{target}_id", "parent", (), (target,)))
    if object_type.deletable:
        columns.append(Column("deleted", "deleted", ("deleted",)))
    columns = [_asked(object_type.name, c) for c in columns]
    _check_names(object_type.name, columns)
    return Table(table_name(object_type.name), object_type.name, tuple(columns))


def _with_moved(table: Table) -> Table:
    """`table` with the columns of `catalog.moved`. One that Stripe still sends keeps its place."""
    mine = {m.column: m for m in moved_columns() if m.table == table.name}
    sent = [replace(c, moved=mine.pop(c.name, None)) for c in table.columns]
    derived = [Column(m.column, m.read, (), m.references, moved=m) for m in mine.values()]
    _check_names(table.object_type, [*sent, *derived])
    linked = tuple(c for c in derived if c.moved is not None and c.moved.rows)
    columns = (*sent, *(c for c in derived if c not in linked))
    return replace(table, columns=columns, linked=linked)


def _asked(object_name: str, column: Column) -> Column:
    path = f"{object_name}.{'.'.join(column.path)}"
    secret = is_secret(object_name, column.path)
    asked = column.on_request and not secret and path not in NOT_EXPANDED
    return replace(column, on_request=asked, secret=secret)


def _top_level(
    field: Field, types: Mapping[str, ObjectType], with_table: set[str]
) -> Iterator[Column]:
    if field.kind == "resource" and not any(t in with_table for t in field.targets):
        # An embedded object without a table is an inline object like any other.
        field = inline(field, types)
    if field.kind == "resource" and set(field.targets) <= set(SINGLETONS):
        field = inline(field, types)
    if field.kind == "object" and field.fields:
        for sub in field.fields:
            for column in _leaf(sub, (field.name, sub.name), with_table):
                yield replace(column, on_request=column.on_request or field.on_request)
        return
    by_name = _named_like_an_object(field, with_table)
    if by_name:
        yield Column(f"{field.name}_id", "id", (field.name,), (table_name(by_name),))
        return
    yield from _leaf(field, (field.name,), with_table)


def inline(field: Field, types: Mapping[str, ObjectType]) -> Field:
    """`field` as an inline object with the fields of its single target type."""
    fields = types[field.targets[0]].fields if len(field.targets) == 1 else ()
    return replace_kind(field, fields)


def replace_kind(field: Field, fields: tuple[Field, ...]) -> Field:
    return Field(
        name=field.name,
        kind="object",
        nullable=field.nullable,
        on_request=field.on_request,
        fields=fields,
    )


def _named_like_an_object(field: Field, with_table: set[str]) -> str | None:
    if field.kind != "string" or field.enum or field.targets:
        return None
    if field.name in with_table:
        return field.name
    return "invoiceitem" if field.name == "invoice_item" else None


def _leaf(field: Field, path: tuple[str, ...], with_table: set[str]) -> Iterator[Column]:
    """The columns of a field that is not flattened any further."""
    name = "_".join(path)
    if field.kind == "list":
        return
    if field.kind in ("expandable", "resource"):
        targets = tuple(table_name(t) for t in field.targets if t in with_table)
        if field.kind == "resource" and not targets:
            yield Column(name, "json", path, (), field.on_request)
            return
        yield Column(f"{name}_id", "id", path, targets, field.on_request)
        if len(field.targets) > 1:
            yield Column(f"{name}_object", "object", path, (), field.on_request)
        return
    if field.kind == "array" and field.items is not None:
        item = field.items
        if item.kind in ("string", "expandable"):
            targets = tuple(table_name(t) for t in item.targets if t in with_table)
            read: Read = "texts" if item.kind == "string" else "ids"
            yield Column(name, read, path, targets, field.on_request)
            return
    scalar: dict[str, Read] = {
        "string": "text",
        "integer": "integer",
        "number": "number",
        "decimal": "decimal",
        "boolean": "boolean",
        "time": "time",
        "time_ms": "time_ms",
        "time_iso": "time_iso",
    }
    named = tuple(table_name(t) for t in field.targets if t in with_table)
    yield Column(name, scalar.get(field.kind, "json"), path, named, field.on_request)


def _check_names(owner: str, columns: list[Column]) -> None:
    names = [c.name for c in columns]
    twice = {n for n in names if names.count(n) > 1}
    long = {n for n in names if len(n.encode()) > NAME_BYTES}
    if twice or long:
        raise ValueError(f"{owner}: column names {sorted(twice | long)} clash or are too long")


def _upcoming(found: Mapping[str, Table]) -> Iterator[Table]:
    """The virtual tables: upcoming invoices, keyed by customer or subscription."""
    invoice, line = found.get("invoice"), found.get("line_item")
    if invoice is None or line is None:
        return
    for owner in ("customer", "subscription"):
        key = Column(f"{owner}_id", "parent", (), (owner,))
        rest = tuple(c for c in invoice.columns if c.name != key.name)
        name = f"upcoming_{owner}_invoice"
        yield Table(name, "invoice", (key, *rest), (key.name,), virtual=True)
    owners = tuple(
        Column(f"{kind}_{who}_id", "parent", (), (who,))
        for kind, who in (("upcoming", "customer"), ("upcoming", "subscription"))
    )
    yield Table("upcoming_invoice_line_item", "line_item", (*line.columns, *owners), virtual=True)


def _payout_lines(found: Mapping[str, Table]) -> Iterator[Table]:
    """The link from payouts to the balance transactions that they pay out: each is paid out once."""
    if {"payout", "balance_transaction"} <= found.keys():
        line = Column("balance_transaction_id", "text", ("id",), ("balance_transaction",))
        payout = Column("payout_id", "parent", (), ("payout",))
        yield Table(PAYOUT_LINES, "balance_transaction", (line, payout), (line.name,), virtual=True)


def object_type_of(table: Table) -> ObjectType:
    return object_types()[table.object_type]
