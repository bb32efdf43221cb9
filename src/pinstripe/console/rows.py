"""Rows of one table: newest first, with filters on any column, paged by key.

Few columns at first, those that people look for; all of them by a switch. A filter on a column without
an index may have to read the whole table: it is stopped after some seconds, and the page says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import asyncpg
from starlette.responses import Response

from pinstripe.catalog.descriptions import describe_table
from pinstripe.console.pages import Message
from pinstripe.console.rows_cells import Cell, cell
from pinstripe.console.rows_query import OPERATORS, SORTABLE, Filter, Query, Wanted, page_query
from pinstripe.console.tables_shape import Shape, ShownColumn, load_shape
from pinstripe.console.visit import Visit
from pinstripe.diagram.columns import IMPORTANT
from pinstripe.diagram.content import EVERYWHERE
from pinstripe.errors import Misconfigured, Unreachable
from pinstripe.store.pool import Connection, sqlstate

_PAGE = 50
_LONGEST_S = 5.0
_MOST_FILTERS = 8
_FIRST_COLUMNS = 8
_TOO_LONG = "57014"
_ABOUT = ("customer", "subscription", "invoice", "product", "price", "payment_intent", "charge")
"""References that people look for, in this order."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row. `after` is what the address of the page behind it holds."""

    key: str
    cells: tuple[Cell, ...]
    after: tuple[str, str]


async def show(visit: Visit) -> Response:
    """A page of rows."""
    assert visit.sync is not None  # noqa: S101 (its route names it)
    schema, name = visit.sync.schema, visit.named("table")
    async with visit.gateway.reads.connection() as connection:
        shape = await load_shape(connection, schema, name)
    if shape is None:
        return visit.nothing(f'There is no table "{name}" in this schema.')
    wanted = _wanted(visit, shape)
    lines: list[Line] = []
    wrong: list[Message] = []
    try:
        query = page_query(shape, wanted)
        async with visit.gateway.reads.connection(longest_s=_LONGEST_S) as connection:
            lines = await _read(connection, shape, wanted, query)
    except Misconfigured as error:
        wrong.append(Message(error.message, error.hint, "warn"))
    except Unreachable as error:
        if sqlstate(error.__cause__ or error) != _TOO_LONG:
            raise
        wrong.append(_took_too_long(wanted))
    return _page(visit, shape, wanted, lines, wrong)


async def _read(connection: Connection, shape: Shape, wanted: Wanted, query: Query) -> list[Line]:
    try:
        records = await connection.fetch(query.text, *query.values)
    except asyncpg.DataError as error:
        # A value that its type allows and Postgres does not: a year after 294276.
        raise Misconfigured(
            f"Postgres does not take a value: {error}.", hint="Correct the filter."
        ) from error
    return [_line(shape, wanted, query, record) for record in records]


def _line(shape: Shape, wanted: Wanted, query: Query, record: asyncpg.Record) -> Line:
    values = dict(zip(query.names, record, strict=False))
    key = str(values[shape.key])
    return Line(
        key,
        tuple(cell(shape, name, values) for name in wanted.columns),
        (str(record[len(query.names)]), key),
    )


def _page(
    visit: Visit, shape: Shape, wanted: Wanted, found: Sequence[Line], wrong: list[Message]
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


def _wanted(visit: Visit, shape: Shape) -> Wanted:
    """What the address asks for; what it does not say is chosen for the table."""
    query = visit.request.query_params
    given = zip(query.getlist("column"), query.getlist("is"), query.getlist("value"), strict=False)
    filters = tuple(Filter(c, o, v.strip()) for c, o, v in given if c)[:_MOST_FILTERS]
    asked, _, way = visit.text("sort").partition(".")
    sort = asked if asked in _sorts(shape) else _usual_sort(shape, filters)
    every = visit.text("columns") == "all"
    return Wanted(
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
    """Newest first, where that has an index and the filter does not ask for those without a date."""
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
    """The few that people look for: the key, what the row is about, whom it refers to, when.

    What is filtered by is always among them. A currency stands beside its amount.
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


def _kept(visit: Visit, shape: Shape, wanted: Wanted) -> list[tuple[str, str]]:
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


def _took_too_long(wanted: Wanted) -> Message:
    return Message(
        f"Postgres did not find the rows within {_LONGEST_S:.0f} s and was stopped.",
        "Filter by an indexed column too, or sort by one of the filter's columns: "
        "a filter without an index reads row after row."
        if wanted.filters
        else "The table's indexes are made when its first copy is complete; sort by the key until then.",
        "warn",
    )
