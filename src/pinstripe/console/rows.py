"""Rows of one table: newest first, with filters on any column, paged by key.

A few key columns are shown at first; a link shows all. A filter on a column without an index may read
the whole table, so the query is canceled after some seconds and the page gives the reason.

Formatting of a value (text, link, unit) is pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal
from urllib.parse import urlencode

import asyncpg
import msgspec
from starlette.responses import Response

from pinstripe.catalog.descriptions import describe_table
from pinstripe.console.page_context import PageContext
from pinstripe.console.rows_query import OPERATORS, SORTABLE, Filter, Query, RowsRequest, page_query
from pinstripe.console.tables import Shape, ShownColumn, load_shape
from pinstripe.console.templating import Notice
from pinstripe.diagram.graph import EVERYWHERE, IMPORTANT
from pinstripe.errors import Misconfigured, Unreachable
from pinstripe.store.pool import Connection, sqlstate

CellKind = Literal["null", "text", "number", "money", "time", "flag", "json"]

_SHORT = 160

# Amounts are in units of 10**-n of the currency; 2 where it is not named here.
# https://docs.stripe.com/currencies
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
    """One value. `beside` is the currency of an amount, `decimal` the amount in its main unit."""

    column: ShownColumn
    kind: CellKind
    text: str = ""
    references: tuple[Reference, ...] = ()
    beside: str = ""
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


def in_main_unit(amount: int, currency: str) -> str:
    """An amount as people write it.

    >>> in_main_unit(123456, "usd"), in_main_unit(-500, "jpy"), in_main_unit(5, "kwd")
    ('1,234.56 USD', '-500 JPY', '0.005 KWD')
    """
    places = _DECIMALS.get(currency.lower(), 2)
    return f"{Decimal(amount).scaleb(-places):,.{places}f} {currency.upper()}"


def _amount(shape: Shape, column: ShownColumn, value: int, values: Mapping[str, object]) -> Cell:
    if not column.is_money:
        return Cell(column, "number", str(value))
    beside = shape.currency_of(column)
    currency = values.get(beside) if beside else None
    if not isinstance(currency, str) or not currency:
        return Cell(column, "money", f"{value:,}")
    decimal = in_main_unit(value, currency)
    return Cell(column, "money", f"{value:,}", beside=currency, decimal=decimal)


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
        after=(
            query.get("from", "").replace("\0", ""),
            query.get("after", "").replace("\0", ""),
        ),
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
