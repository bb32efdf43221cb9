"""Views in the shape of other products' Stripe tables, each in a schema of its own (`stripe_fivetran`).

`catalog/compat.json` has the names of tables and columns there, their source, and an expression (`map`)
where no rule gives the value. A column for which there is none is left out, never null by pretence.
`set_compat` brings the views up to date; one that views of the user rest on stays as it is, and is logged.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Literal

import asyncpg
import msgspec
import structlog

from pinstripe.catalog.tables import Column, Table
from pinstripe.config.config import COMPAT
from pinstripe.store.ddl import literal, qualified, quote
from pinstripe.store.pool import Connection, translated

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_MOST_PAIRS = 40
"""A function takes 100 arguments at most."""

_EPOCH = "pg_catalog.date_part('epoch', t.{})::bigint"


class View(msgspec.Struct, frozen=True):
    """One table there. `join`, `where`: SQL after FROM; `lossy`: what it cannot show."""

    table: str = msgspec.field(name="from")
    columns: tuple[str, ...]
    map: Mapping[str, str] = {}
    join: str = ""
    where: str = ""
    lossy: str = ""


class Shape(msgspec.Struct, frozen=True):
    """One product. `times`: as Postgres has them, or as Unix seconds."""

    times: Literal["timestamptz", "epoch"]
    source: str
    views: Mapping[str, View]


@cache
def shapes() -> Mapping[str, Shape]:
    """Every product of the file."""
    raw = files("pinstripe.catalog").joinpath("compat.json").read_bytes()
    return msgspec.json.decode(raw, type=dict[str, Shape])


def compat_schema(schema: str, product: str) -> str:
    return f"{schema}_{product}"


def view_columns(shape: Shape, view: View, table: Table) -> Iterator[tuple[str, str]]:
    """(name, SQL on the row `t`) of each column that the view can give."""
    for name in view.columns:
        value = view.map.get(name) or _value(shape, table, name)
        if value is not None:
            yield name, value


def _value(shape: Shape, table: Table, name: str) -> str | None:
    """By the rules: the column of that name, a reference, a flag, an object, a part of JSON."""
    columns = {c.name: c for c in table.all_columns}
    for other in (name, f"{name}_id", name.removeprefix("is_")):
        if other in columns:
            return _plain(shape, columns[other])
    inside = [c for c in table.columns if len(c.path) > 1 and c.path[0] == name]
    if inside:
        return _object(inside)
    words = name.split("_")
    for cut in range(len(words) - 1, 0, -1):
        holder = columns.get("_".join(words[:cut]))
        if holder is not None and holder.type == "jsonb":
            return f"t.{quote(holder.name)} ->> {literal('_'.join(words[cut:]))}"
    return None


def _plain(shape: Shape, column: Column) -> str:
    at = f"t.{quote(column.name)}"
    if shape.times == "epoch" and column.type == "timestamptz":
        return _EPOCH.format(quote(column.name))
    if shape.times == "epoch" and column.type == "text[]":
        return f"pg_catalog.to_jsonb({at})"
    return at


def _object(columns: Sequence[Column]) -> str:
    """An object that the table has in columns, without nulls."""
    if len(columns) > _MOST_PAIRS:
        return f"{_object(columns[:_MOST_PAIRS])} || {_object(columns[_MOST_PAIRS:])}"
    pairs = ", ".join(
        f"{literal(c.path[1])}, "
        + (_EPOCH if c.type == "timestamptz" else "t.{}").format(quote(c.name))
        for c in columns
        if c.read != "object"
    )
    return f"pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object({pairs}))"


def views(product: str, schema: str, tables: Mapping[str, Table]) -> dict[str, str]:
    """Name -> SELECT of each view whose table is synced."""
    shape = shapes()[product]
    found: dict[str, str] = {}
    for name, view in shape.views.items():
        table = tables.get(view.table)
        if table is not None:
            columns = ", ".join(f"{v} AS {quote(n)}" for n, v in view_columns(shape, view, table))
            join = f" {view.join}" if view.join else ""
            where = f" WHERE {view.where}" if view.where else ""
            found[name] = f"SELECT {columns} FROM {qualified(schema, table.name)} t{join}{where}"
    return found


async def set_compat(
    connection: Connection, schema: str, tables: Mapping[str, Table], wanted: Collection[str]
) -> None:
    """Make the views of these products for the synced `tables`, and drop those of the others."""
    for product in COMPAT:
        target = compat_schema(schema, product)
        there = await _there(connection, target)
        selects = views(product, schema, tables) if product in wanted else {}
        if selects and there is None:
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quote(target)}")
        for name in sorted((there or {}).keys() - selects.keys()):
            await _try(connection, target, name, f"DROP VIEW {qualified(target, name)}")
        for name, select in selects.items():
            comment = _comment(product, name, select)
            if (there or {}).get(name) != comment:
                await _replace(connection, target, name, select, comment)
        if there is not None and not selects:
            await _try(connection, target, "", f"DROP SCHEMA {quote(target)}")


async def existing_schemas(connection: Connection, schema: str) -> list[str]:
    """The schemas of views that this sync has."""
    names = [compat_schema(schema, product) for product in COMPAT]
    return [name for name in names if await _there(connection, name) is not None]


async def _there(connection: Connection, target: str) -> dict[str, str | None] | None:
    """View -> comment of those that we made; None without such a schema."""
    if not await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", quote(target)):
        return None
    rows = await connection.fetch(
        "SELECT c.relname::text, obj_description(c.oid, 'pg_class') FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind = 'v'"
        " AND obj_description(c.oid, 'pg_class') LIKE '%(pinstripe %)'",
        target,
    )
    return {row[0]: row[1] for row in rows}


def _comment(product: str, name: str, select: str) -> str:
    """With a digest of the view: whether it is up to date is seen without making it anew."""
    shape = shapes()[product]
    view = shape.views[name]
    lossy = f" {view.lossy}" if view.lossy else ""
    digest = zlib.crc32(select.encode())
    return f"As {product} has it; from {view.table}.{lossy} (pinstripe {digest:08x})"


async def _replace(
    connection: Connection, target: str, name: str, select: str, comment: str
) -> None:
    place = qualified(target, name)
    text = (
        f"DROP VIEW IF EXISTS {place}; CREATE VIEW {place} AS {select}; "
        f"COMMENT ON VIEW {place} IS {literal(comment)}"
    )
    await _try(connection, target, name, text)


async def _try(connection: Connection, target: str, name: str, text: str) -> None:
    try:
        async with connection.transaction():
            await connection.execute(text)
    except (asyncpg.DependentObjectsStillExistError, asyncpg.WrongObjectTypeError) as error:
        _log.warning("compat.left", schema=target, view=name, error=str(error.args[0]))


async def grant(connection: Connection, schema: str, role: str) -> None:
    """Let the role read the views. A view reads its table with its owner's rights."""
    with translated():
        for name in await existing_schemas(connection, schema):
            await connection.execute(
                f"GRANT USAGE ON SCHEMA {quote(name)} TO {quote(role)}; "
                f"GRANT SELECT ON ALL TABLES IN SCHEMA {quote(name)} TO {quote(role)}"
            )


async def revoke(connection: Connection, schema: str, role: str) -> None:
    """The contrary of `grant`: a role that has rights cannot be dropped."""
    with translated():
        for name in await existing_schemas(connection, schema):
            await connection.execute(
                f"REVOKE ALL ON ALL TABLES IN SCHEMA {quote(name)} FROM {quote(role)}; "
                f"REVOKE ALL ON SCHEMA {quote(name)} FROM {quote(role)}"
            )
