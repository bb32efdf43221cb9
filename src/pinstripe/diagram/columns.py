"""Which columns of a table a diagram shows, as rows of its box.

A table has up to two hundred columns; a person can read about twelve. The key and the references
come first, then the few columns that most people look for, and the rest is a number at the foot.
"""

from __future__ import annotations

from pinstripe.catalog.tables import Column, Table
from pinstripe.diagram.model import Detail, Row, RowKind

# What people look for first, in this order; a short diagram shows the first few that a table has.
IMPORTANT = (
    "status",
    "type",
    "name",
    "email",
    "amount",
    "amount_total",
    "total",
    "net",
    "unit_amount",
    "currency",
    "country",
    "code",
    "last4",
    "active",
    "created",
)
_MOST_IMPORTANT = 4


def rows_of(table: Table, detail: Detail) -> tuple[Row, ...]:
    """The rows for `table`: key, references, and what `detail` asks for, in this order."""
    if detail == "full":
        return tuple(row_of(table, c) for c in table.columns)
    key = [c for c in table.columns if c.name in table.key]
    references = [c for c in table.columns if _is_reference(table, c)]
    chosen = key + references
    if detail == "short":
        chosen += _important(table)
    return tuple(row_of(table, c) for c in chosen)


def row_of(table: Table, column: Column) -> Row:
    """One column as a row; what it refers to stands where the type would."""
    note = target_note(column.references) if column.references else column.type
    kind: RowKind = "reference" if column.references else "column"
    if column.name in table.key:
        kind = "key"
    return Row(column.name, note, kind, column.references)


def target_note(references: tuple[str, ...]) -> str:
    """What stands beside a reference.

    >>> target_note(("card", "source", "bank_account"))
    'card or 2 more'
    """
    if len(references) == 1:
        return references[0]
    return f"{references[0]} or {len(references) - 1} more"


def _is_reference(table: Table, column: Column) -> bool:
    if not column.references or column.name in table.key:
        return False
    # Previews repeat every column of an invoice; only what they are for tells them apart.
    return not table.virtual or column.read == "parent"


def _important(table: Table) -> list[Column]:
    by_name = {c.name: c for c in table.columns if not c.references and c.name not in table.key}
    found = [by_name[n] for n in IMPORTANT if n in by_name]
    return found[:_MOST_IMPORTANT]
