"""Tables: all of them by domain, and one with its columns.

Rows are counted where that takes no time and estimated elsewhere; what is estimated is marked `~`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from starlette.responses import Response

from pinstripe.catalog.descriptions import describe_table, docs_url
from pinstripe.catalog.domains import DOMAINS, Domain, domain_by_table
from pinstripe.catalog.tables import tables
from pinstripe.console.tables_shape import load_shape, referring
from pinstripe.console.visit import Visit
from pinstripe.status import SchemaStatus, TableStatus, read_status
from pinstripe.store.ddl import qualified
from pinstripe.store.pool import Connection

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
    "events": "by events",
    "newest": "by its newest rows",
    "due": "by what was due",
    "pass": "by a full pass",
    "backfill": "by its first copy",
    "": "",
}
"""What tells that a table is true up to a moment, in words."""

_STATES = {
    "done": "copied",
    "running": "running",
    "refused": "refused",
    "failed": "failed",
    "found": "found",
}


@dataclass(frozen=True, slots=True)
class TableLine:
    """One table in the list."""

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


async def show(visit: Visit) -> Response:
    """All tables of the schema."""
    assert visit.sync is not None  # noqa: S101 (its route names it)
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


async def one(visit: Visit) -> Response:
    """One table: how it stands, its columns, and what refers to it."""
    assert visit.sync is not None  # noqa: S101 (its route names it)
    schema, name = visit.sync.schema, visit.named("table")
    async with visit.gateway.reads.connection() as connection:
        shape = await load_shape(connection, schema, name)
        if shape is None:
            return visit.nothing(_unknown(name))
        standing = await _standing(connection, schema)
        size = await connection.fetchval(
            "SELECT pg_total_relation_size(to_regclass($1))", qualified(schema, name)
        )
    statuses = standing.tables if standing is not None else []
    status = next((t for t in statuses if t.table == name), None)
    if status is None:
        return visit.nothing(_unknown(name))
    return visit.page(
        "table.html",
        line=TableLine(name, describe_table(shape.table), status, size),
        shape=shape,
        domain=domain_by_table()[name],
        docs=docs_url(shape.table),
        referring=referring(shape),
    )


async def _standing(connection: Connection, schema: str) -> SchemaStatus | None:
    found = await read_status(connection, schema=schema, counted_bytes=_COUNTED_BYTES)
    return found[0] if found else None


def _lines(statuses: Iterable[TableStatus], sizes: dict[str, int]) -> list[TableLine]:
    return [
        TableLine(t.table, describe_table(tables()[t.table]), t, sizes.get(t.table, 0))
        for t in statuses
    ]


def _grouped(lines: Iterable[TableLine]) -> list[tuple[Domain, list[TableLine]]]:
    """By domain, in the order in which people look for them; domains without a line are left out."""
    groups: dict[str, list[TableLine]] = {name: [] for name in DOMAINS}
    for line in lines:
        groups[domain_by_table()[line.name].name].append(line)
    return [(DOMAINS[name], group) for name, group in groups.items() if group]


def _unknown(name: str) -> str:
    if name in tables():
        return f'The table "{name}" is not in this schema: the sync was told to leave it out.'
    return f'There is no table "{name}".'
