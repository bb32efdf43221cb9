"""The text of the schema: pure functions from tables to SQL.

Nothing here runs anything; `migrate` does. Identifiers are quoted with `quote`; there are no values
but comments, quoted with `literal`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from pinstripe.catalog.descriptions import derivation, describe_table, is_money
from pinstripe.catalog.tables import Column, Table
from pinstripe.store.session import (
    ACCOUNT,
    CURRENT,
    account_of,
    partitions_of,
    relations,
    schema_of,
    scope_of,
    views_of,
)

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


def like(text: str) -> str:
    """A pattern for LIKE that matches `text` and nothing else.

    >>> like("50%_off")
    '50\\\\%\\\\_off'
    """
    for special in ("\\", "%", "_"):
        text = text.replace(special, "\\" + special)
    return text


def qualified(schema: str, table: str) -> str:
    """The relation with the rows of a sync, or of one account of a platform: `schema` may be a scope."""
    return f"{quote(relations(schema))}.{quote(table)}"


def scope_value(schema: str) -> str:
    """The name of a schema or scope as a value in SQL: the same text for all accounts of a platform."""
    account = account_of(schema)
    if not account:
        return literal(schema)
    return f"({literal(scope_of(schema_of(schema), ''))} || {CURRENT})"


def conflict_target(schema: str, table: Table) -> str:
    """The columns of the key as ON CONFLICT names them, in a schema or a scope."""
    key = table.key if relations(schema) == schema else (ACCOUNT, *table.key)
    return ", ".join(map(quote, key))


def with_account(table: Table) -> Table:
    """The table as a platform has it: keyed by account first."""
    columns = (Column(ACCOUNT, "text", ()), *table.columns)
    return replace(table, columns=columns, key=(ACCOUNT, *table.key))


def is_by_account(table: Table) -> bool:
    """Whether the table holds many accounts: see `with_account`."""
    return table.key[0] == ACCOUNT


def tenant_view(
    schema: str, table: str, columns: Iterable[str], account_id: str, target: str
) -> str:
    """CREATE VIEW of one account's rows of a table in the schema `target`.

    `columns` in their order in the table, which only grows at its end: so the view can be replaced.
    """
    return (
        f"CREATE OR REPLACE VIEW {qualified(target, table)} WITH (security_barrier) AS "
        f"SELECT {', '.join(map(quote, columns))} FROM {qualified(schema, table)} "
        f"WHERE {quote(ACCOUNT)} = {literal(account_id)};"
    )


def as_there(table: Table, columns: Container[str]) -> Table:
    """The table with the key that it has in a schema where it has these columns."""
    return with_account(table) if ACCOUNT in columns else table


def keys_of(table: Table) -> str:
    """The columns of the key, for a row's values in SQL."""
    return ", ".join(map(quote, table.key))


def has_key(table: Table, key: Sequence[str]) -> str:
    """The condition that a row has this key."""
    return f"({keys_of(table)}) = ({', '.join(map(literal, key))})"


def page_end(schema: str, table: Table, rows: int) -> str:
    """SELECT of the last key, an array, of the next `rows` rows behind the key $1, or null."""
    keys = keys_of(table)
    after = ", ".join(f"($1::text[])[{n + 1}]" for n in range(len(table.key)))
    return (
        f"SELECT max(p.key) FROM (SELECT ARRAY[{keys}] AS key FROM {qualified(schema, table.name)} "
        f"WHERE ({keys}) > ({after}) ORDER BY {keys} LIMIT {rows}) p"
    )


def on_page(table: Table, after: Sequence[str], end: Sequence[str]) -> str:
    """The condition that a row is on the page behind one key that ends with the other."""
    above, last = (", ".join(map(literal, key)) for key in (after, end))
    return f"({keys_of(table)}) > ({above}) AND ({keys_of(table)}) <= ({last})"


def create_table(schema: str, table: Table, *, partitions: int = 0) -> str:
    """CREATE TABLE with key and bookkeeping, without indexes and comments.

    `partitions`: how many parts the rows of a platform are divided into by account, in a schema beside
    `schema`; 0 for one table.
    """
    lines = [f"  {quote(c.name)} {column_type(c, table)}" for c in table.all_columns]
    lines += [f"  {quote(name)} {kind}" for name, (kind, _) in BOOKKEEPING.items()]
    lines.append(f"  PRIMARY KEY ({', '.join(quote(k) for k in table.key)})")
    if is_by_account(table):
        # A session without an account has the empty one after a reset: see `session`.
        lines.append(f"  CHECK ({quote(ACCOUNT)} <> '')")
    body = ",\n".join(lines)
    name = qualified(schema, table.name)
    if partitions:
        text = f"CREATE TABLE {name} (\n{body}\n) PARTITION BY HASH ({quote(ACCOUNT)});"
        parts = (_partition(schema, table.name, n, partitions) for n in range(partitions))
        return "\n".join([text, *parts])
    # Rows are updated in place more often than they grow: room for HOT updates.
    return f"CREATE TABLE {name} (\n{body}\n) WITH (fillfactor = 90);"


def _partition(schema: str, table: str, number: int, partitions: int) -> str:
    name = qualified(partitions_of(schema), within_63(f"{table}_{number}"))
    return (
        f"CREATE TABLE {name} PARTITION OF {qualified(schema, table)} FOR VALUES "
        f"WITH (MODULUS {partitions}, REMAINDER {number}) WITH (fillfactor = 90);"
    )


VIEW_SYSTEM = ("ctid", "xmin")
"""Columns of every row that statements read, and that a view has only if it names them."""


def create_view(schema: str, table: Table) -> str:
    """CREATE VIEW of the rows of one account, the one that the session's setting names.

    Postgres rewrites reads and writes of it to the table, and gives new rows their account by the default.
    Nothing passes from one account to another: the check refuses it. `_account_id` is there for ON
    CONFLICT, which has to name the whole key.
    """
    view, source = qualified(views_of(schema), table.name), qualified(schema, table.name)
    names = [*VIEW_SYSTEM, *map(quote, (*(c.name for c in table.all_columns), *BOOKKEEPING))]
    return (
        f"CREATE VIEW {view} AS SELECT {', '.join(names)} FROM {source}\n"
        f"WHERE {quote(ACCOUNT)} = {CURRENT} WITH LOCAL CHECK OPTION;\n"
        f"ALTER VIEW {view} ALTER COLUMN {quote(ACCOUNT)} SET DEFAULT {CURRENT};"
    )


def column_type(column: Column, table: Table) -> str:
    """The type, NOT NULL in the key."""
    return f"{column.type} NOT NULL" if column.name in table.key else column.type


def add_columns(schema: str, table: Table, columns: Iterable[Column]) -> str:
    """ALTER TABLE that rewrites nothing."""
    added = (f"ADD COLUMN {quote(c.name)} {c.type}" for c in columns)
    return f"ALTER TABLE {qualified(schema, table.name)} {', '.join(added)};"


def indexes(schema: str, table: Table) -> Iterator[tuple[str, str]]:
    """(name, statement) of each index: on every reference and on `created`, and what is asked for often.

    Only rows that have a value are indexed: most references are null in most rows, and a
    comparison or join never matches a null. An entry of a B-tree has 2,700 bytes at most: it would refuse
    rows that refer to what users named themselves, with up to 5,000 characters. SP-GiST takes them, and
    finds them for `=` and joins; it takes two or three times as long to make (300,000 rows: 3.1 s against
    1.1 s; a hash index with few distinct values 16.6 s).
    """
    for column in table.all_columns:
        if column.name in table.key or column.type == "text[]":
            continue
        if column.references or column.name == "created" or column.read == "parent":
            is_long = not _USER_NAMED.isdisjoint(column.references)
            label = f"{column.name}_long" if is_long else column.name
            yield _index(schema, table, label, quote(column.name), is_long=is_long)

    there = {column.name for column in table.columns}
    for label, of, expression, is_long, where in _ASKED_FOR.get(table.name, ()):
        if of in there:
            yield _index(schema, table, label, expression, is_long=is_long, where=where)


def _index(
    schema: str, table: Table, label: str, expression: str, *, is_long: bool, where: str = ""
) -> tuple[str, str]:
    name, kind, keys = index_name(table.name, label), "", expression
    if is_by_account(table):
        # SP-GiST takes one column only; here the account comes first, as everywhere.
        keys = f"{quote(ACCOUNT)}, {f'left({expression}, {_INDEXED})' if is_long else expression}"
    elif is_long:
        kind = " USING spgist"
    where = where or f"{expression} IS NOT NULL"
    on = f"{qualified(schema, table.name)}{kind} ({keys}) WHERE {where}"
    return name, f"CREATE INDEX IF NOT EXISTS {quote(name)} ON {on};"


_ASKED_FOR: Mapping[str, tuple[tuple[str, str, str, bool, str], ...]] = {
    "event": (
        ("object_id", "data_object", "(data_object ->> 'id')", True, ""),
        ("request_id", "request_id", "request_id", False, ""),
    ),
    "customer": (("deleted", "deleted", "id", False, "deleted"),),
}
"""Further indexes, (label, column, expression, whether its values may be long, condition): what the console
and the API filter the event log by, and the deleted customers, whose erasure may fall due."""

_INDEXED = 500
"""Characters of a long value that an index of a platform has: with the account, they fit into an entry."""


def replaced_indexes(schema: str, table: Table) -> Iterator[str]:
    """DROP of the B-trees that earlier versions made where SP-GiST is now."""
    for column in table.all_columns:
        if not _USER_NAMED.isdisjoint(column.references):
            yield f"DROP INDEX IF EXISTS {qualified(schema, index_name(table.name, column.name))};"


def foreign_keys(schema: str, table: Table, known: Container[str]) -> Iterator[tuple[str, str]]:
    """(name, clause of ALTER TABLE) of each reference to one of the tables `known`.

    NOT ENFORCED (Postgres 18): objects do not arrive in the order of their references, so this tells tools
    what refers to what, and checks nothing. SQLAlchemy's automap names a relation by its target, and loads
    nothing if a column has that name: `discount` has a column `invoice_item`, and no key for it.
    """
    names = {c.name for c in table.all_columns}
    for column in table.all_columns:
        if column.type != "text" or len(column.references) != 1:
            continue
        (target,) = column.references
        if target in known and target not in names:
            name = within_63(f"{table.name}_{column.name}_fkey")
            above = f"{quote(ACCOUNT)}, " if is_by_account(table) else ""
            yield (
                name,
                f"ADD CONSTRAINT {quote(name)} FOREIGN KEY ({above}{quote(column.name)}) REFERENCES "
                f"{qualified(schema, target)} ({above}{quote(_key_of(target))}) NOT ENFORCED",
            )


def index_name(table: str, column: str) -> str:
    """At most 63 bytes, and never the same for two columns of one schema."""
    return within_63(f"{table}_{column}_idx")


def within_63(name: str) -> str:
    """`name`, cut where Postgres would cut it, and then with a digest: never the same for two names."""
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
    for column in table.all_columns:
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
    if column.moved is not None:
        parts += derivation(column.moved)
    note = {
        "deleted": "True when Stripe has deleted the object; the row stays",
        "object": "The type of the object that the id beside it names",
        "time_ms": "From Unix milliseconds",
        "json": "As Stripe sends it",
    }.get(column.read)
    if column.secret:
        note = "Always null: Pinstripe keeps no secrets"
    if column.name == ACCOUNT:
        parts.append("The account of the platform that the row belongs to")
    if column.name == "id":
        parts.append("Unique identifier of the object")
    if note:
        parts.append(note)
    if is_money(column):
        parts.append("An amount in the smallest unit of its currency")
    if column.references:
        parts.append("References " + ", ".join(f"{t}.{_key_of(t)}" for t in column.references))
    return ". ".join(parts)


def _key_of(_: str) -> str:
    return "id"


def create_all(schema: str, tables: Iterable[Table], *, partitions: int = 0) -> str:
    """The whole schema as a script: what `pinstripe schema ddl` prints."""
    schemas = [schema, *([partitions_of(schema)] if partitions else [])]
    parts = [f"CREATE SCHEMA IF NOT EXISTS {quote(name)};" for name in schemas]
    for table in tables:
        parts.append(create_table(schema, table, partitions=partitions))
        parts += [statement for _, statement in indexes(schema, table)]
        parts += comments(schema, table)
    return "\n".join(parts) + "\n"
