"""Rows of one table: newest first, with filters on any column, paged by key.

A few key columns are shown at first; a link shows all. A filter on a column without an index may read
the whole table, so the query is canceled after some seconds and the page gives the reason.

The SQL of a page (`page_query`) and the formatting of a value are pure. Identifiers come from the table's
own columns and are quoted. User input is always a parameter and is parsed as the column's type first, so an
invalid value is reported without reaching Postgres. Each page starts after the last row of the one before,
whatever was written in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Literal
from urllib.parse import urlencode

import asyncpg
import msgspec
from starlette.responses import Response

from pinstripe.catalog.descriptions import describe_table
from pinstripe.console.page_context import PageContext
from pinstripe.console.tables import Shape, ShownColumn, load_shape
from pinstripe.console.templating import Notice
from pinstripe.diagram.graph import EVERYWHERE, IMPORTANT
from pinstripe.errors import Misconfigured, Unreachable
from pinstripe.store.ddl import like, qualified, quote
from pinstripe.store.pool import Connection, sqlstate

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


CellKind = Literal["null", "text", "number", "money", "time", "flag", "json"]

_SHORT = 160

# Amounts are in units of 10**-n of the currency; 2 where it is not named here. So are UGX, which has no
# decimals (https://docs.stripe.com/currencies#special-cases).
_WHOLE = "bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf"

_THOUSANDTHS = "bhd jod kwd omr tnd"
_DECIMALS = dict.fromkeys(_WHOLE.split(), 0) | dict.fromkeys(_THOUSANDTHS.split(), 3)


@dataclass(frozen=True, slots=True)
class Reference:
    """An id, and the table in which its row is; None where it cannot be followed."""

    id: str
    table: str | None


@dataclass(frozen=True, slots=True)
class Cell:
    """One value. `decimal` is an amount in the main unit of its currency, which it names."""

    column: ShownColumn
    kind: CellKind
    text: str = ""
    references: tuple[Reference, ...] = ()
    decimal: str = ""
    at: datetime | None = None
    cut: bool = False

    @property
    def is_number(self) -> bool:
        return self.kind in ("number", "money")


def cell(shape: Shape, name: str, values: Mapping[str, object], *, whole: bool = False) -> Cell:
    """The cell of column `name`; `values` are the row's, by column. `whole`: nothing is cut."""
    column = shape.columns[name]
    value = values.get(name)
    if value is None:
        return Cell(column, "null")
    if column.references and isinstance(value, str | list):
        return Cell(column, "text", references=_references(shape, column, value, values))
    if isinstance(value, bool):
        return Cell(column, "flag", "true" if value else "false")
    if isinstance(value, int):
        return _amount(shape, column, value, values)
    if isinstance(value, Decimal | float):
        return Cell(column, "number", f"{value:f}")
    if isinstance(value, datetime):
        return Cell(column, "time", at=value)
    if column.type == "jsonb":
        return _json(column, str(value), whole=whole)
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return _text(column, "text", text, whole=whole)


def money(amount: int, currency: str) -> str:
    """An amount in the smallest unit, as people write it.

    >>> money(123456, "usd"), money(-5, "usd"), money(1500, "jpy"), money(12345, "kwd")
    ('1,234.56', '-0.05', '1,500', '12.345')
    """
    places = _DECIMALS.get(currency.lower(), 2)
    return f"{Decimal(amount).scaleb(-places):,.{places}f}"


def _amount(shape: Shape, column: ShownColumn, value: int, values: Mapping[str, object]) -> Cell:
    if not column.is_money:
        return Cell(column, "number", str(value))
    beside = shape.currency_of(column)
    currency = values.get(beside) if beside else None
    if not isinstance(currency, str) or not currency:
        return Cell(column, "money", f"{value:,}")
    decimal = f"{money(value, currency)} {currency.upper()}"
    return Cell(column, "money", f"{value:,}", decimal=decimal)


def _references(
    shape: Shape, column: ShownColumn, value: str | list[object], values: Mapping[str, object]
) -> tuple[Reference, ...]:
    beside = shape.kind_of(column)
    kind = values.get(beside) if beside else None
    ids = [value] if isinstance(value, str) else [v for v in value if isinstance(v, str)]
    return tuple(Reference(i, shape.target(column, i, kind)) for i in ids)


def _json(column: ShownColumn, text: str, *, whole: bool) -> Cell:
    """Return indented JSON for a single row, compact JSON for a list."""
    if whole:
        text = msgspec.json.format(text, indent=2)
    return _text(column, "json", text, whole=whole)


def _text(column: ShownColumn, kind: CellKind, text: str, *, whole: bool) -> Cell:
    cut = len(text) > _SHORT and not whole
    return Cell(column, kind, text[:_SHORT] if cut else text, cut=cut)


_PAGE = 50
_LONGEST_S = 5.0
_MOST_FILTERS = 8
_FIRST_COLUMNS = 8
_TOO_LONG = "57014"
_ABOUT = ("customer", "subscription", "invoice", "product", "price", "payment_intent", "charge")
"""References that people look for, in this order."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row. `after` is what the address of the page behind it holds."""

    key: str
    cells: tuple[Cell, ...]
    after: tuple[str, str]


async def show(visit: PageContext) -> Response:
    """A page of rows."""
    schema, name = visit.sync.schema, visit.named("table")
    async with visit.gateway.reads.connection() as connection:
        shape = await load_shape(connection, schema, name)
    if shape is None:
        return visit.not_found(f'There is no table "{name}" in this schema.')
    wanted = _wanted(visit, shape)
    lines: list[TableRow] = []
    wrong: list[Notice] = []
    try:
        query = page_query(shape, wanted)
        async with visit.gateway.reads.connection(longest_s=_LONGEST_S) as connection:
            lines = await _read(connection, shape, wanted, query)
    except Misconfigured as error:
        wrong.append(Notice(error.message, error.hint, "warn"))
    except Unreachable as error:
        if sqlstate(error.__cause__ or error) != _TOO_LONG:
            raise
        wrong.append(_took_too_long(wanted))
    return _page(visit, shape, wanted, lines, wrong)


async def _read(
    connection: Connection, shape: Shape, wanted: RowsRequest, query: Query
) -> list[TableRow]:
    try:
        records = await connection.fetch(query.text, *query.values)
    except asyncpg.DataError as error:
        # Valid for its Python type but not for Postgres: a year after 294276.
        raise Misconfigured(
            f"Postgres rejected a value: {error}.", hint="Correct the filter."
        ) from error
    return [_line(shape, wanted, query, record) for record in records]


def _line(shape: Shape, wanted: RowsRequest, query: Query, record: asyncpg.Record) -> TableRow:
    values = dict(zip(query.names, record, strict=False))
    key = str(values[shape.key])
    return TableRow(
        key,
        tuple(cell(shape, name, values) for name in wanted.columns),
        (str(record[len(query.names)]), key),
    )


def _page(
    visit: PageContext,
    shape: Shape,
    wanted: RowsRequest,
    found: Sequence[TableRow],
    wrong: list[Notice],
) -> Response:
    lines = found[:_PAGE]
    kept = _kept(visit, shape, wanted)
    more: list[tuple[str, str]] | None = None
    if len(found) > _PAGE:
        more = [*kept, ("from", lines[-1].after[0]), ("after", lines[-1].after[1])]
    others = [p for p in kept if p[0] != "columns"]
    by_key = wanted.sort == shape.key
    asks_null = any(f.column == wanted.sort for f in wanted.filters)
    unsorted = [*(p for p in kept if p[0] != "sort"), *_as_query(Filter(wanted.sort, "null", ""))]
    return visit.page(
        "rows.html",
        messages=wrong,
        shape=shape,
        about=describe_table(shape.table),
        wanted=wanted,
        lines=lines,
        operators=OPERATORS,
        filters=[*wanted.filters, Filter("", "eq", "")],
        sorts=_sorts(shape),
        shows_all=visit.text("columns") == "all",
        all_columns=_address([*others, ("columns", "all")]),
        few_columns=_address(others),
        more=_address(more) if more else None,
        first=_address(kept),
        without_sort=None if more or by_key or asks_null or wrong else _address(unsorted),
    )


def _wanted(visit: PageContext, shape: Shape) -> RowsRequest:
    """Return the query of the URL, with defaults for the table."""
    query = visit.request.query_params
    given = zip(query.getlist("column"), query.getlist("is"), query.getlist("value"), strict=False)
    filters = tuple(Filter(c, o, v.strip()) for c, o, v in given if c)[:_MOST_FILTERS]
    asked, _, way = visit.text("sort").partition(".")
    sort = asked if asked in _sorts(shape) else _usual_sort(shape, filters)
    every = visit.text("columns") == "all"
    return RowsRequest(
        columns=tuple(shape.columns) if every else first_columns(shape, filters),
        filters=filters,
        sort=sort,
        falling=way != "up",
        after=(query.get("from", "").replace("\0", ""), query.get("after", "").replace("\0", "")),
        limit=_PAGE + 1,
    )


def _usual_sort(shape: Shape, filters: Sequence[Filter]) -> str:
    """Return newest first, if that is indexed and the filter does not select rows without a date."""
    created = shape.columns.get("created")
    if created is None or not created.indexed:
        return shape.key
    if any(f.column == "created" and f.operator == "null" for f in filters):
        return shape.key
    return "created"


def _sorts(shape: Shape) -> list[str]:
    """By what rows can be sorted without reading all of them."""
    quick = (c for c in shape.columns.values() if c.indexed and c.type in SORTABLE)
    return [shape.key, *(c.name for c in quick if c.name != shape.key)]


def first_columns(shape: Shape, filters: Sequence[Filter] = ()) -> tuple[str, ...]:
    """Return the key columns: key, title, references, times.

    Filtered columns are always included. A currency follows its amount.
    """
    there = shape.columns
    money = [c.name for c in there.values() if c.name in IMPORTANT and c.is_money]
    plain = [n for n in IMPORTANT if n in there and n != "created"]
    if money:
        plain = [n for n in plain if n != "currency"]
    pointing = [c for c in there.values() if c.references and c.type == "text"]
    references = [c.name for c in sorted(pointing, key=_by_interest)]
    last = ["created"] if "created" in there else []
    own = [n for n in there if not n.startswith("_") and n not in ("object", "livemode")]
    chosen = list(dict.fromkeys([shape.key, *plain, *references, *own]))[: _FIRST_COLUMNS - 1]
    asked = [f.column for f in filters if f.column in there]
    return tuple(dict.fromkeys([*chosen, *asked, *last]))


def _by_interest(column: ShownColumn) -> int:
    """Whom a row is about comes first; what nearly every row refers to comes last."""
    target = column.references[0]
    if target in EVERYWHERE:
        return len(_ABOUT) + 1
    return _ABOUT.index(target) if target in _ABOUT else len(_ABOUT)


def _kept(visit: PageContext, shape: Shape, wanted: RowsRequest) -> list[tuple[str, str]]:
    """The query of this page, without where it begins."""
    query = [pair for one in wanted.filters for pair in _as_query(one)]
    if visit.text("sort") and wanted.sort in shape.columns:
        query.append(("sort", f"{wanted.sort}.{'down' if wanted.falling else 'up'}"))
    if visit.text("columns") == "all":
        query.append(("columns", "all"))
    return query


def _as_query(one: Filter) -> list[tuple[str, str]]:
    return [("column", one.column), ("is", one.operator), ("value", one.value)]


def _address(query: list[tuple[str, str]]) -> str:
    return f"?{urlencode(query)}"


def _took_too_long(wanted: RowsRequest) -> Notice:
    return Notice(
        f"The query took longer than {_LONGEST_S:.0f} s and was canceled.",
        "Filter by an indexed column too, or sort by one of the filter's columns: "
        "a filter without an index reads row after row."
        if wanted.filters
        else "The table's indexes are made when its first copy is complete; sort by the key until then.",
        "warn",
    )
