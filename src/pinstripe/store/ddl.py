"""The text of the schema: pure functions from tables to SQL.

Nothing here runs anything; `migrate` does. Identifiers are quoted with `quote`; there are no values
but comments, quoted with `literal`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pinstripe.catalog.descriptions import describe_table
from pinstripe.catalog.tables import Column, SqlType, Table

BOOKKEEPING: dict[str, tuple[str, str]] = {
    "_as_of": (
        "timestamptz NOT NULL",
        "The row is true for a moment on Stripe's clock that is not before this one",
    ),
    "_as_of_latest": (
        "timestamptz NOT NULL",
        "... and not after this one: what Stripe said later than it is surely newer",
    ),
    "_synced_at": ("timestamptz NOT NULL", "When the row was written, on Postgres's clock"),
    "_partial": (
        "boolean",
        "True while columns that Stripe gives on request only have not been seen",
    ),
    "_api_version": ("text", "The Stripe API version in which the object was rendered"),
    "_extra": ("jsonb", "What Stripe sent and the columns cannot hold; null when there is nothing"),
}
"""Columns of ours in every synced table: name -> (type, comment). No field of Stripe's begins so."""


_USER_NAMED = frozenset({"coupon", "plan", "price", "product"})
"""Tables whose keys users choose: https://docs.stripe.com/api/products/create#create_product-id, likewise
of coupons and of plans, whose ids prices share."""


def quote(identifier: str) -> str:
    """An identifier as SQL writes it.

    >>> quote('a"b')
    '"a""b"'
    """
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string constant as SQL writes it.

    >>> literal("it's")
    "'it''s'"
    """
    escaped = text.replace("'", "''")
    return f"E'{escaped}'".replace("\\", "\\\\") if "\\" in text else f"'{escaped}'"


def qualified(schema: str, table: str) -> str:
    return f"{quote(schema)}.{quote(table)}"


def create_table(schema: str, table: Table) -> str:
    """CREATE TABLE with key and bookkeeping, without indexes and comments."""
    lines = [f"  {quote(c.name)} {column_type(c, table)}" for c in table.columns]
    lines += [f"  {quote(name)} {kind}" for name, (kind, _) in BOOKKEEPING.items()]
    lines.append(f"  PRIMARY KEY ({', '.join(quote(k) for k in table.key)})")
    # Rows are updated in place more often than they grow: room for HOT updates.
    body = ",\n".join(lines)
    return f"CREATE TABLE {qualified(schema, table.name)} (\n{body}\n) WITH (fillfactor = 90);"


def column_type(column: Column, table: Table) -> SqlType | str:
    return f"{column.type} NOT NULL" if column.name in table.key else column.type


def add_column(schema: str, table: Table, column: Column) -> str:
    return f"ALTER TABLE {qualified(schema, table.name)} ADD COLUMN {quote(column.name)} {column.type};"


def indexes(schema: str, table: Table) -> Iterator[tuple[str, str]]:
    """(name, statement) of each index: on every reference and on `created`.

    Only rows that have a value are indexed: most references are null in most rows, and a
    comparison or join never matches a null. An entry of a B-tree has 2,700 bytes at most: it would refuse
    rows that refer to what users named themselves, with up to 5,000 characters. SP-GiST takes them, and
    finds them for `=` and joins; it takes two or three times as long to make (300,000 rows: 3.1 s against
    1.1 s; a hash index with few distinct values 16.6 s).
    """
    for column in table.columns:
        if column.name in table.key or column.type == "text[]":
            continue
        if column.references or column.name == "created" or column.read == "parent":
            is_long = not _USER_NAMED.isdisjoint(column.references)
            name = index_name(table.name, f"{column.name}_long" if is_long else column.name)
            kind = " USING spgist" if is_long else ""
            where = f" WHERE {quote(column.name)} IS NOT NULL"
            yield (
                name,
                f"CREATE INDEX IF NOT EXISTS {quote(name)} ON {qualified(schema, table.name)}{kind} "
                f"({quote(column.name)}){where};",
            )

    for label, kind, expression in _ASKED_FOR.get(table.name, ()):
        name = quote(index_name(table.name, label))
        on = f"{qualified(schema, table.name)}{kind} ({expression}) WHERE {expression} IS NOT NULL"
        yield index_name(table.name, label), f"CREATE INDEX IF NOT EXISTS {name} ON {on};"


_ASKED_FOR: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "event": (
        ("object_id", " USING spgist", "(data_object ->> 'id')"),
        ("request_id", "", "request_id"),
    ),
}
"""Further indexes, (label, method, expression): what the console and the API filter the event log by. Ids
of objects may be long."""


def replaced_indexes(schema: str, table: Table) -> Iterator[str]:
    """DROP of the B-trees that earlier versions made where SP-GiST is now."""
    for column in table.columns:
        if not _USER_NAMED.isdisjoint(column.references):
            yield f"DROP INDEX IF EXISTS {qualified(schema, index_name(table.name, column.name))};"


def index_name(table: str, column: str) -> str:
    """At most 63 bytes, and never the same for two columns of one schema."""
    name = f"{table}_{column}_idx"
    if len(name.encode()) <= 63:
        return name
    digest = format(_fnv(name), "08x")
    return f"{name[:50]}_{digest}_x"


def _fnv(text: str) -> int:
    """32-bit FNV-1a: stable over runs, unlike `hash`."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def comments(schema: str, table: Table, *, only: Iterable[str] | None = None) -> Iterator[str]:
    """COMMENT statements for the table and its columns; `only` these columns if given."""
    wanted = None if only is None else set(only)
    if wanted is None:
        yield f"COMMENT ON TABLE {qualified(schema, table.name)} IS {literal(table_comment(table))};"
        for name, (_, text) in BOOKKEEPING.items():
            yield _comment(schema, table, name, text)
    for column in table.columns:
        if wanted is None or column.name in wanted:
            yield _comment(schema, table, column.name, column_comment(column))


def _comment(schema: str, table: Table, column: str, text: str) -> str:
    return f"COMMENT ON COLUMN {qualified(schema, table.name)}.{quote(column)} IS {literal(text)};"


def table_comment(table: Table) -> str:
    """A sentence of our own, and which objects of Stripe's they are."""
    return f"{describe_table(table)} Stripe: {table.object_type}"


def column_comment(column: Column) -> str:
    """A short description of our own, made from what the catalog knows.

    >>> column_comment(Column("customer_id", "id", ("customer",), ("customer",)))
    'Stripe: customer. References customer.id'
    """
    parts: list[str] = []
    if column.read == "parent":
        parts.append("The object in whose list this one was found")
    elif column.path and column.name != "id":
        parts.append(f"Stripe: {'.'.join(column.path)}")
    note = {
        "deleted": "True when Stripe has deleted the object; the row stays",
        "object": "The type of the object that the id beside it names",
        "time_ms": "From Unix milliseconds",
        "json": "As Stripe sends it",
    }.get(column.read)
    if column.secret:
        note = "Always null: Pinstripe keeps no secrets"
    if column.name == "id":
        parts.append("Unique identifier of the object")
    if note:
        parts.append(note)
    if _is_money(column):
        parts.append("An amount in the smallest unit of its currency")
    if column.references:
        parts.append("References " + ", ".join(f"{t}.{_key_of(t)}" for t in column.references))
    return ". ".join(parts)


def _key_of(_: str) -> str:
    return "id"


_MONEY = ("amount", "balance", "fee", "net", "subtotal", "total", "tax", "unit_amount")


def _is_money(column: Column) -> bool:
    if column.type != "bigint":
        return False
    last = column.path[-1] if column.path else ""
    return last in _MONEY or last.startswith("amount_") or last.endswith("_amount")


def create_all(schema: str, tables: Iterable[Table]) -> str:
    """The whole schema as a script: what `pinstripe schema ddl` prints."""
    parts = [f"CREATE SCHEMA IF NOT EXISTS {quote(schema)};"]
    for table in tables:
        parts.append(create_table(schema, table))
        parts += [statement for _, statement in indexes(schema, table)]
        parts += comments(schema, table)
    return "\n".join(parts) + "\n"
