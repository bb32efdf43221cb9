"""The SQL of one page of rows: filters, order, and start position. Pure.

Identifiers come from the table's own columns and are quoted. User input is always a parameter and is
parsed as the column's type first, so an invalid value is reported without reaching Postgres. Paging is
by key: each page starts after the last row of the previous one, whatever was written in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation

import msgspec

from pinstripe.console.tables import Shape, ShownColumn
from pinstripe.errors import Misconfigured
from pinstripe.store.ddl import like, qualified, quote

OPERATORS = {
    "eq": "=",
    "ne": "≠",
    "has": "contains",
    "gt": ">",
    "lt": "<",
    "null": "is null",
    "some": "is not null",
}
"""Name in addresses -> how it is written. In the order of the choice."""

_UNARY = {"null": "IS NULL", "some": "IS NOT NULL"}
_COMPARED = {"eq": "=", "ne": "IS DISTINCT FROM", "gt": ">", "lt": "<"}
_SHORT_CHARS = 161
"""Of long text in a list: one more than is shown, so that the cut can be told."""
_WIDE = {"text", "jsonb", "text[]"}
_LARGEST = 2**63 - 1
SORTABLE = frozenset({"text", "bigint", "integer", "smallint", "numeric", "timestamptz"})
"""Types whose values can be written into an address and read back, so that a page can begin there."""


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition of the request. `value` is text, whatever the column's type."""

    column: str
    operator: str
    value: str


@dataclass(frozen=True, slots=True)
class RowsRequest:
    """A page of rows. `sort` is a column; ("", "") `after` begins at the top.

    `after`: (value of the sort column as text, key) of the last row of the page before.
    """

    columns: tuple[str, ...]
    filters: tuple[Filter, ...]
    sort: str
    falling: bool
    after: tuple[str, str]
    limit: int


@dataclass(frozen=True, slots=True)
class Query:
    """`text` selects the columns of `names`, then the sort column as text, for `after`."""

    text: str
    values: tuple[object, ...]
    names: tuple[str, ...]


def page_query(shape: Shape, wanted: RowsRequest) -> Query:
    """Raises Misconfigured where a filter does not fit its column."""
    values: list[object] = []
    conditions = [condition(shape, f, values) for f in wanted.filters]
    key = quote(shape.key)
    sort = quote(wanted.sort)
    way, beyond = ("DESC", "<") if wanted.falling else ("ASC", ">")
    by_key = wanted.sort == shape.key
    if not by_key:
        # Its index excludes nulls, so Postgres uses it only if the query does too.
        conditions.append(f"{sort} IS NOT NULL")
    if any(wanted.after):
        value, last = wanted.after
        if by_key:
            conditions.append(f"{key} {beyond} {_parameter(values, last)}")
        else:
            read = typed(shape.columns[wanted.sort], value)
            bounds = f"{_parameter(values, read)}, {_parameter(values, last)}"
            conditions.append(f"({sort}, {key}) {beyond} ({bounds})")
    names = _needed(shape, wanted)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    order = f"{key} {way}" if by_key else f"{sort} {way}, {key} {way}"
    selected = ", ".join(_selected(shape, name, wanted.sort) for name in names)
    text = (
        f'SELECT {selected}, {sort}::text AS "? after" FROM {qualified(shape.schema, shape.table.name)}'
        f"{where} ORDER BY {order} LIMIT {int(wanted.limit)}"
    )
    return Query(text, tuple(values), names)


def condition(shape: Shape, one: Filter, values: list[object]) -> str:
    """SQL for a filter; what it compares with is added to `values`."""
    column = shape.columns.get(one.column)
    if column is None:
        raise Misconfigured(f'There is no column "{one.column}" in {shape.table.name}.')
    name = quote(column.name)
    if one.operator in _UNARY:
        return f"{name} {_UNARY[one.operator]}"
    if one.operator == "has":
        return _contains(column, one.value, values)
    if one.operator not in _COMPARED:
        raise Misconfigured(f'There is no comparison "{one.operator}".')
    if column.type in ("jsonb", "text[]", "boolean") and one.operator in ("gt", "lt"):
        raise Misconfigured(
            f"{column.name} is {column.type}, which has no order.", hint='Use "contains" instead.'
        )
    if column.type == "text[]":
        within = f"{_parameter(values, one.value)} = ANY({name})"
        return f"({within}) IS NOT TRUE" if one.operator == "ne" else within
    day = _day(column, one.value)
    if day is not None and one.operator in ("eq", "ne"):
        first, last = _parameter(values, day), _parameter(values, day + timedelta(days=1))
        inside = f"({name} >= {first} AND {name} < {last})"
        return f"{inside} IS NOT TRUE" if one.operator == "ne" else inside
    operand = _parameter(values, typed(column, one.value))
    cast = "::text::jsonb" if column.type == "jsonb" else ""
    left = name if _is_known(column) else f"{name}::text"
    return f"{left} {_COMPARED[one.operator]} {operand}{cast}"


def typed(column: ShownColumn, text: str) -> object:
    """Return `text` as a driver value for the column. Raises Misconfigured with an example if it is
    invalid.
    """
    text = text.replace("\0", "")
    try:
        match column.type:
            case "bigint" | "integer" | "smallint":
                number = int(text.replace(",", "").replace("_", ""))
                if abs(number) > _LARGEST:
                    raise ValueError
                return number
            case "numeric":
                decimal = Decimal(text)
                if not decimal.is_finite():
                    raise ValueError
                return decimal
            case "boolean":
                return {"true": True, "yes": True, "false": False, "no": False}[text.lower()]
            case "timestamptz":
                return _moment(text)
            case "jsonb":
                return msgspec.json.encode(msgspec.json.decode(text)).decode()
            case _:
                return text
    except (ValueError, KeyError, OverflowError, InvalidOperation) as error:
        raise Misconfigured(
            f'"{text[:80]}" is not a valid value for {column.name}, which is {column.type}.',
            hint=f"Use the format {_EXAMPLES[column.type]}.",
        ) from error


_EXAMPLES = {
    "bigint": "1250",
    "integer": "1250",
    "smallint": "1250",
    "numeric": "12.5",
    "boolean": "true or false",
    "timestamptz": "2026-01-31, 2026-01-31 14:30 (UTC) or 1769869800",
    "jsonb": '{"plan": "gold"}',
}


def _is_known(column: ShownColumn) -> bool:
    return column.type == "text" or column.type in _EXAMPLES


def _contains(column: ShownColumn, text: str, values: list[object]) -> str:
    name = quote(column.name)
    text = text.replace("\0", "")
    if column.type == "jsonb" and text.lstrip()[:1] in ("{", "["):
        return f"{name} @> {_parameter(values, typed(column, text))}::text::jsonb"
    if column.type == "text[]":
        return f"array_to_string({name}, E'\\n') ILIKE {_parameter(values, f'%{like(text)}%')}"
    return f"{name}::text ILIKE {_parameter(values, f'%{like(text)}%')}"


def _moment(text: str) -> datetime:
    if text.isdecimal() and text.isascii():
        return datetime.fromtimestamp(int(text), UTC)
    at = datetime.fromisoformat(text.strip())
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _day(column: ShownColumn, text: str) -> datetime | None:
    """The day that `text` names, for a column of moments: equal to a day is within it."""
    if column.type != "timestamptz" or len(text.strip()) != len("2026-01-31"):
        return None
    value = typed(column, text)
    return value if isinstance(value, datetime) and not text.strip().isdecimal() else None


def _parameter(values: list[object], value: object) -> str:
    values.append(value)
    return f"${len(values)}"


def _needed(shape: Shape, wanted: RowsRequest) -> tuple[str, ...]:
    """Return the columns to read: visible ones, the key, and their currency and type columns."""
    names = [shape.key, *wanted.columns]
    for name in wanted.columns:
        column = shape.columns[name]
        names += [n for n in (shape.currency_of(column), shape.kind_of(column)) if n is not None]
    return tuple(dict.fromkeys(names))


def _selected(shape: Shape, name: str, sort: str) -> str:
    """Long values are cut in the database: a page of rows must not be megabytes."""
    column = shape.columns[name]
    quoted = quote(name)
    if name in (shape.key, sort) or column.references:
        return quoted
    if column.type in _WIDE or not _is_known(column):
        return f"left({quoted}::text, {_SHORT_CHARS})"
    return quoted
