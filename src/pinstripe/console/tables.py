"""All tables by domain, and one table with its columns and references.

Rows are counted if that is fast and estimated otherwise; estimates are marked `~`. The catalog says
what columns mean, the database which of them exist: the schema may come from an older catalog, and its
owner may have added columns. Pages show what exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.responses import Response

from pinstripe.catalog.descriptions import describe_column, describe_table, docs_url, is_money
from pinstripe.catalog.domains import DOMAINS, Domain, domain_by_table
from pinstripe.catalog.relations import types_of
from pinstripe.catalog.tables import Column, Table, table_of_object, tables
from pinstripe.console.page_context import PageContext, go
from pinstripe.console.templating import path_of
from pinstripe.store.ddl import BOOKKEEPING, qualified
from pinstripe.store.pool import Connection
from pinstripe.store.status import SchemaStatus, TableStatus, read_status
from pinstripe.store.syncs import load_table_names

_COUNTED_BYTES = 64 * 1024
"""Tables up to this size are counted for the page: all of them together take milliseconds."""

_SIZES = """
SELECT c.relname::text,
       (c.relpages + coalesce(t.relpages, 0)
        + (SELECT coalesce(sum(x.relpages), 0) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
           WHERE i.indrelid = c.oid))::bigint * current_setting('block_size')::bigint
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p')
"""
"""As of the last ANALYZE; asking for each file of 150 tables with their indexes takes tens of ms."""

KNOWN_BY = {
    "events": "via events",
    "newest": "via polling",
    "due": "via refetch",
    "pass": "via full refresh",
    "backfill": "via initial sync",
    "": "",
}
"""Evidence of a table's freshness -> label."""

_STATES = {
    "done": "synced",
    "running": "syncing",
    "refused": "unavailable",
    "failed": "failed",
    "found": "nested",
}


@dataclass(frozen=True, slots=True)
class TableLine:
    name: str
    about: str
    status: TableStatus
    bytes: int

    @property
    def state(self) -> str:
        return _STATES[self.status.state]

    @property
    def known_by(self) -> str:
        return KNOWN_BY.get(self.status.fresh_by, self.status.fresh_by)


async def show(visit: PageContext) -> Response:
    """All tables of the schema."""
    only_filled = visit.text("rows") == "some"
    async with visit.gateway.reads.connection() as connection:
        standing = await _standing(connection, visit.sync.schema)
        sizes = {row[0]: row[1] for row in await connection.fetch(_SIZES, visit.sync.schema)}
    lines = [] if standing is None else _lines(standing.tables, sizes)
    shown = [line for line in lines if line.status.rows or not only_filled]
    return visit.page(
        "tables.html",
        groups=_grouped(shown),
        tables=len(lines),
        filled=sum(1 for line in lines if line.status.rows),
        rows=sum(line.status.rows for line in lines),
        exact=all(line.status.exact for line in lines),
        bytes=sum(sizes.values()),
        troubled=[line for line in lines if line.status.state in ("refused", "failed")],
        only_filled=only_filled,
    )


async def one(visit: PageContext) -> Response:
    """Return the page of one table: status, columns, and references to it."""
    schema, name = visit.sync.schema, visit.named("table")
    async with visit.gateway.reads.connection() as connection:
        shape = await load_shape(connection, schema, name)
        if shape is None:
            return visit.not_found(_unknown(name))
        standing = await _standing(connection, schema)
        size = await connection.fetchval(
            "SELECT pg_total_relation_size(to_regclass($1))", qualified(schema, name)
        )
    statuses = standing.tables if standing is not None else []
    status = next((t for t in statuses if t.table == name), None)
    if status is None:
        return visit.not_found(_unknown(name))
    return visit.page(
        "table.html",
        line=TableLine(name, describe_table(shape.table), status, size),
        shape=shape,
        domain=domain_by_table()[name],
        docs=docs_url(shape.table),
        referring=referring(shape),
    )


_OWN_IDS = ("product", "coupon", "plan")
"""Objects whose ids their account may choose, so that no prefix tells their type."""


async def find(visit: PageContext) -> Response:
    """Redirect to the table of this name, to customers by their email, or to the row of this id."""
    wanted, schema = visit.text("q"), visit.sync.schema
    if "@" in wanted:
        query = urlencode({"column": "email", "is": "eq", "value": wanted})
        return go(f"{path_of(visit.sync.id, 'tables', 'customer', 'rows')}?{query}")
    async with visit.gateway.reads.connection() as connection:
        here = await load_table_names(connection, schema)
        if wanted in here:
            return visit.redirect("tables", wanted)
        by_prefix = here & {table_of_object().get(kind) for kind in types_of(wanted)}
        for name in sorted(by_prefix or here.intersection(_OWN_IDS)):
            text = f"SELECT true FROM {qualified(schema, name)} WHERE id = $1"
            # What cannot be elsewhere has a page that says why it is not there.
            if len(by_prefix) == 1 or await connection.fetchval(text, wanted):
                return visit.redirect("tables", name, "rows", wanted)
    return visit.not_found(f'No table is called "{wanted}", and no row has this id.')


async def _standing(connection: Connection, schema: str) -> SchemaStatus | None:
    found = await read_status(connection, schema=schema, counted_bytes=_COUNTED_BYTES)
    return found[0] if found else None


def _lines(statuses: Iterable[TableStatus], sizes: dict[str, int]) -> list[TableLine]:
    return [
        TableLine(t.table, describe_table(tables()[t.table]), t, sizes.get(t.table, 0))
        for t in statuses
    ]


def _grouped(lines: Iterable[TableLine]) -> list[tuple[Domain, list[TableLine]]]:
    """Group by domain, in the order of the navigation, without empty domains."""
    groups: dict[str, list[TableLine]] = {name: [] for name in DOMAINS}
    for line in lines:
        groups[domain_by_table()[line.name].name].append(line)
    return [(DOMAINS[name], group) for name, group in groups.items() if group]


def _unknown(name: str) -> str:
    if name in tables():
        return f'The table "{name}" is not in this schema: the sync excludes it.'
    return f'There is no table "{name}".'


_COLUMNS = """
SELECT a.attname::text,
       replace(format_type(a.atttypid, a.atttypmod), 'timestamp with time zone', 'timestamptz'),
       EXISTS (SELECT FROM pg_index i
               JOIN pg_class x ON x.oid = i.indexrelid
               JOIN pg_am m ON m.oid = x.relam AND m.amname = 'btree'
               WHERE i.indrelid = a.attrelid AND i.indisvalid AND i.indkey[0] = a.attnum
                 AND (i.indpred IS NULL
                      OR pg_get_expr(i.indpred, i.indrelid) = format('(%I IS NOT NULL)', a.attname)))
FROM pg_attribute a
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""

_INDEXED = """
SELECT c.relname::text, a.attname::text
FROM pg_index i
JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
WHERE n.nspname = $1 AND c.relname = ANY($2::text[]) AND i.indisvalid
"""


@dataclass(frozen=True, slots=True)
class ShownColumn:
    """A column of the database. `known` is the catalog's, None for our own and for those of others."""

    name: str
    type: str
    indexed: bool
    about: str
    known: Column | None = None

    @property
    def references(self) -> tuple[str, ...]:
        return self.known.references if self.known is not None else ()

    @property
    def is_money(self) -> bool:
        return self.known is not None and is_money(self.known)


@dataclass(frozen=True, slots=True)
class Shape:
    """A table with its columns. `here` are the tables of the schema."""

    schema: str
    table: Table
    columns: Mapping[str, ShownColumn]
    here: frozenset[str]

    @property
    def key(self) -> str:
        """The column that names a row; every table has one such column today."""
        return self.table.key[-1]

    def currency_of(self, column: ShownColumn) -> str | None:
        if not column.is_money or column.known is None:
            return None
        beside = "_".join((*column.known.path[:-1], "currency"))
        return next((n for n in (beside, "currency") if n in self.columns), None)

    def kind_of(self, column: ShownColumn) -> str | None:
        """Return the column with the object type of a reference."""
        beside = column.name.removesuffix("_id") + "_object"
        return beside if len(column.references) > 1 and beside in self.columns else None

    def target(self, column: ShownColumn, key: str, kind: object = None) -> str | None:
        """Return the table of the row with this id; None if unknown or not in this schema."""
        if len(column.references) == 1:
            found: str | None = column.references[0]
        elif isinstance(kind, str):
            found = table_of_object().get(kind)
        else:
            names = (table_of_object().get(kind) for kind in types_of(key))
            found = next((n for n in names if n in column.references), None)
        return found if found in self.here else None


async def load_shape(connection: Connection, schema: str, name: str) -> Shape | None:
    """None where the schema has no such table, or the catalog does not know it."""
    table = tables().get(name)
    if table is None:
        return None
    rows = await connection.fetch(_COLUMNS, qualified(schema, name))
    if not rows:
        return None
    known = {c.name: c for c in table.all_columns}
    columns = {
        row[0]: ShownColumn(row[0], row[1], row[2], _about(table, known, row[0]), known.get(row[0]))
        for row in rows
    }
    here = frozenset(await load_table_names(connection, schema)) & frozenset(tables())
    return Shape(schema, table, columns, here)


def _about(table: Table, known: Mapping[str, Column], name: str) -> str:
    if name in known:
        return describe_column(table, known[name])
    if name in BOOKKEEPING:
        return f"{BOOKKEEPING[name][1]}."
    return "Not in the catalog."


def referring(shape: Shape) -> list[tuple[str, str]]:
    """(table, column) of everything in the schema that may refer to rows of this table."""
    return [
        (name, column.name)
        for name in sorted(shape.here)
        for column in tables()[name].all_columns
        if shape.table.name in column.references
    ]


async def load_indexed(
    connection: Connection, schema: str, names: list[str]
) -> frozenset[tuple[str, str]]:
    """(table, column) of the columns with an index, in these tables."""
    rows = await connection.fetch(_INDEXED, schema, names)
    return frozenset((row[0], row[1]) for row in rows)
