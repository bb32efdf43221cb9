"""The API's tables: what Stripe has, as the catalog says. The same for every sync; asks nobody."""

from __future__ import annotations

from importlib.metadata import version

import msgspec

from pinstripe.catalog.model import spec
from pinstripe.catalog.relations import with_events
from pinstripe.catalog.tables import Table, tables
from pinstripe.gateway.api.endpoint import Call
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.store.ddl import column_comment, table_comment


class About(msgspec.Struct, frozen=True):
    """What the service is."""

    name: str
    version: str
    api_version: str
    """Stripe's, of which the tables are."""
    openapi: str


class CatalogTable(msgspec.Struct, frozen=True):
    """A table, without its columns."""

    name: str
    object_type: str
    description: str
    columns: int
    has_events: bool
    """Stripe tells of its changes by events."""
    virtual: bool
    """Stripe has no such objects: rows are made of previews."""


class CatalogTables(msgspec.Struct, frozen=True):
    """All tables of the catalog."""

    tables: list[CatalogTable]


class CatalogColumn(msgspec.Struct, frozen=True):
    """A column as Postgres has it."""

    name: str
    type: str
    references: list[str]
    """Tables whose key it holds."""
    description: str


class CatalogTableDetail(msgspec.Struct, frozen=True):
    """A table with its columns."""

    table: CatalogTable
    key: list[str]
    columns: list[CatalogColumn]


async def about(call: Call) -> About:
    """What this service is."""
    return About("pinstripe", version("pinstripe"), spec().api_version, "/api/openapi.json")


async def catalog_tables(call: Call) -> CatalogTables:
    """All tables that a sync may have, by name."""
    return CatalogTables([_line(table) for table in tables().values()])


async def catalog_table(call: Call) -> CatalogTableDetail:
    """One table with its columns, their types, references and descriptions."""
    table = tables().get(call.path["table"])
    if table is None:
        raise HTTPError(
            404, "unknown_table", "There is no such table.", hint="GET /api/tables lists them."
        )
    return CatalogTableDetail(
        _line(table),
        list(table.key),
        [
            CatalogColumn(c.name, c.type, list(c.references), column_comment(c))
            for c in table.all_columns
        ],
    )


def _line(table: Table) -> CatalogTable:
    return CatalogTable(
        table.name,
        table.object_type,
        table_comment(table),
        len(table.all_columns),
        table.object_type in with_events(),
        table.virtual,
    )
