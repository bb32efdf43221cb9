"""Views in the shape of other products' Stripe tables, each in a schema of its own (`stripe_fivetran`).

`catalog/compat.json` has the names of tables and columns there, their source, and an expression (`map`)
where no rule gives the value. A column for which there is none is left out, never null by pretence.
`set_compat` brings the views up to date; one that views of the user rest on stays as it is, and is logged.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Literal

import asyncpg
import msgspec
import structlog

from pinstripe.catalog.model import Field, field_at
from pinstripe.catalog.tables import NAME_BYTES, Column, SqlType, Table, object_type_of, tables
from pinstripe.config.config import COMPAT
from pinstripe.store.ddl import BOOKKEEPING, literal, qualified, quote
from pinstripe.store.pool import Connection, translated

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_MOST_PAIRS = 40
"""A function takes 100 arguments at most."""

_EPOCH = "pg_catalog.date_part('epoch', {})::bigint"
_BEFORE_DIGIT = re.compile(r"_(?=\d)")

_KINDS: Mapping[str, str] = {
    "varchar": "text",
    "bigint": "bigint",
    "boolean": "boolean",
    "double": "double precision",
    "timestamp": "timestamptz",
}
"""Types of columns in `typed` shapes (Trino's), and what they are here. Its timestamps are in UTC, and
`AT TIME ZONE` moves them to another zone: that is what a timestamptz does in a session in UTC."""

_Found = tuple[str, SqlType]
"""SQL of a value, and the type that it has."""


class Part(msgspec.Struct, frozen=True):
    """Rows of one table. `map`, `join`, `where`: SQL on the row `t`. `=name` in a map stands for what the
    rules give for that name.

    `elements`: a column that holds an array or a map. Each of its elements is a row then, `e.value` in SQL
    (with `e.key` in a map, `e.place` in an array). `refers`: name -> `table.column`, where the column
    refers to the table; what the row there has follows under the name (`price_nickname`).
    """

    table: str = msgspec.field(name="from")
    map: Mapping[str, str] = {}
    join: str = ""
    where: str = ""
    elements: str = ""
    refers: Mapping[str, str] = {}


class View(Part, frozen=True, kw_only=True):
    """One table there. `columns`: names, or name -> type if the shape is `typed`. `also`: further tables
    that have rows in it. `lossy`: what it cannot show.
    """

    columns: Mapping[str, str] | tuple[str, ...]
    also: tuple[Part, ...] = ()
    lossy: str = ""


class Shape(msgspec.Struct, frozen=True):
    """One product. `times`: as Postgres has them, as Unix seconds, or as each column says."""

    times: Literal["timestamptz", "epoch", "typed"]
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
    """(name, SQL on the row `t`) of each column that the view can give if every table is synced."""
    for name, values in _columns(shape, view, {**tables(), table.name: table}).items():
        yield name, values[0]


def _columns(shape: Shape, view: View, known: Mapping[str, Table]) -> dict[str, list[str]]:
    """Column -> its SQL in each part of the view. One that no part gives is left out."""
    found: dict[str, list[str]] = {}
    kinds = view.columns if isinstance(view.columns, Mapping) else {}
    # Postgres cuts names, in statements too: of two cut alike, one would give the value of the other.
    cut = Counter(name[:NAME_BYTES] for name in view.columns)
    for name in view.columns:
        if cut[name[:NAME_BYTES]] > 1:
            continue
        kind = kinds.get(name, "varchar")
        values = [_given(shape, part, known, name, kind) for part in (view, *view.also)]
        if any(values):
            found[name] = [v or f"NULL::{_KINDS[kind]}" for v in values]
    return found


def _given(
    shape: Shape, part: Part, known: Mapping[str, Table], name: str, kind: str
) -> str | None:
    """By the map, else by the rules: of the element, of the row, of a row that it refers to."""
    table = known.get(part.table)
    if table is None:
        return None
    value = part.map.get(name, f"={name}")
    if not value.startswith("="):
        lacking = (p for p, target, _ in _referred(part) if target not in known)
        return None if any(f"{quote(prefix)}." in value for prefix in lacking) else value
    name = value[1:]
    found = _of_element(table, part.elements, name) if part.elements else None
    found = found or _of_row("t", table, name, whole=shape.times != "typed")
    for prefix, target, _ in _referred(part):
        rest = name.removeprefix(f"{prefix}_")
        if found is None and rest != name and target in known:
            found = _of_row(quote(prefix), known[target], rest, whole=False)
    return None if found is None else _as(shape, found, kind)


def _referred(part: Part) -> Iterator[tuple[str, str, str]]:
    """(name, table, column that refers to it) of each."""
    for name, place in part.refers.items():
        target, column = place.split(".")
        yield name, target, column


def _of_element(table: Table, elements: str, name: str) -> _Found | None:
    if name == f"{table.name}_id":
        return "t.id", "text"
    field = field_at(object_type_of(table).fields, table.column(elements).path)
    if field is None or field.items is None:
        return None
    if field.kind == "map" and name in ("key", "value"):
        return f"e.{name}", "text"
    found = _below(field.items, name)
    if name == "id" and found is None:
        return "t.id || '_' || e.place", "text"
    return found and _from_json("e.value", *found)


def _of_row(row: str, table: Table, name: str, *, whole: bool) -> _Found | None:
    """The column of that name, a reference, a flag, a part of JSON; if `whole`, an object in columns."""
    columns = {c.name: c for c in table.all_columns}
    if name in BOOKKEEPING:
        return f"{row}.{name}", "timestamptz"
    plain = name.removesuffix("_id")
    if plain in columns and columns[plain].type != "text":
        plain = name
    for other in (name, f"{name}_id", plain, name.removeprefix("is_"), _BEFORE_DIGIT.sub("", name)):
        if other in columns:
            return f"{row}.{quote(other)}", columns[other].type
    inside = [c for c in table.columns if len(c.path) > 1 and c.path[0] == name]
    if inside and whole:
        return _object(inside), "jsonb"
    words = name.split("_")
    for cut in range(len(words) - 1, 0, -1):
        holder = columns.get("_".join(words[:cut]))
        if holder is not None and holder.type == "jsonb":
            path = holder.path or (holder.name,)
            field = field_at(object_type_of(table).fields, path)
            found = field and _below(field, "_".join(words[cut:]))
            if found:
                return _from_json(f"{row}.{quote(holder.name)}", *found)
    return None


def _below(field: Field, name: str) -> tuple[tuple[str, ...], Field] | None:
    """(path, description) of what a name means below `field`; None if Stripe has no such thing."""
    for sub in field.fields:
        is_id = name == f"{sub.name}_id" and sub.kind in ("string", "expandable")
        if is_id or sub.name in (name, _BEFORE_DIGIT.sub("", name)):
            return (sub.name,), sub
        rest = name.removeprefix(f"{sub.name}_")
        found = _below(sub, rest) if rest != name else None
        if found is not None:
            return (sub.name, *found[0]), found[1]
    return None


def _from_json(holder: str, path: Sequence[str], field: Field) -> _Found:
    """A value inside of JSON, as the type that Stripe documents."""
    at = literal("{" + ",".join(path) + "}")
    text = f"{holder} #>> {at}"
    match field.kind:
        case "object" | "array" | "map" | "any" | "list" | "resource":
            return f"{holder} #> {at}", "jsonb"
        case "time":
            return f"pg_catalog.to_timestamp(({text})::double precision)", "timestamptz"
        case "integer":
            return f"({text})::bigint", "bigint"
        case "number":
            return f"({text})::numeric", "numeric"
        case "boolean":
            return f"({text})::boolean", "boolean"
        case _:
            return text, "text"


def _as(shape: Shape, found: _Found, kind: str) -> str | None:
    """A value as the shape has it; None if that is another kind of thing."""
    sql, held = found
    if shape.times == "timestamptz":
        return sql
    if shape.times == "epoch":
        if held == "timestamptz":
            return _EPOCH.format(sql)
        return f"pg_catalog.to_jsonb({sql})" if held == "text[]" else sql
    if held == "timestamptz":
        if kind == "timestamp":
            return sql
        return _EPOCH.format(sql) if kind in ("bigint", "double") else None
    if kind == "varchar":
        joined = f"pg_catalog.array_to_string({sql}, ',')"
        return joined if held == "text[]" else sql if held == "text" else f"({sql})::text"
    if held == _KINDS[kind] or (kind in ("bigint", "double") and held in ("bigint", "numeric")):
        return sql if held == kind else f"({sql})::{_KINDS[kind]}"
    return None


def _object(columns: Sequence[Column]) -> str:
    """An object that the table has in columns, without nulls; null if nothing is in it, as where Stripe has
    none: nobody finds what is not paused by `{}`.
    """
    shown = [c for c in columns if c.read != "object"]
    pages = [shown[n : n + _MOST_PAIRS] for n in range(0, len(shown), _MOST_PAIRS)]
    built = (f"pg_catalog.jsonb_build_object({', '.join(map(_pair, page))})" for page in pages)
    return f"nullif(pg_catalog.jsonb_strip_nulls({' || '.join(built)}), '{{}}')"


def _pair(column: Column) -> str:
    at = f"t.{quote(column.name)}"
    value = _EPOCH.format(at) if column.type == "timestamptz" else at
    return f"{literal(column.path[1])}, {value}"


def views(product: str, schema: str, known: Mapping[str, Table]) -> dict[str, str]:
    """Name -> SELECT of each view that has rows of a synced table."""
    shape = shapes()[product]
    found: dict[str, str] = {}
    for name, view in shape.views.items():
        columns = _columns(shape, view, known)
        selects = [
            _select(schema, part, known, {n: values[i] for n, values in columns.items()})
            for i, part in enumerate((view, *view.also))
            if part.table in known
        ]
        if selects:
            found[name] = " UNION ALL ".join(selects)
    return found


def _select(schema: str, part: Part, known: Mapping[str, Table], columns: Mapping[str, str]) -> str:
    table = known[part.table]
    text = f"SELECT {', '.join(f'{value} AS {quote(name)}' for name, value in columns.items())}"
    text += f" FROM {qualified(schema, table.name)} t"
    for prefix, target, column in _referred(part):
        if target in known:
            key = f"{quote(prefix)}.{quote(known[target].key[0])}"
            place = f"{qualified(schema, target)} {quote(prefix)}"
            text += f" LEFT JOIN {place} ON {key} = t.{quote(column)}"
    if part.elements:
        text += f" CROSS JOIN LATERAL {_each(table, part.elements)}"
    return (
        text
        + (f" {part.join}" if part.join else "")
        + (f" WHERE {part.where}" if part.where else "")
    )


def _each(table: Table, elements: str) -> str:
    """The elements of a column as rows `e`. A null inside of JSON has none."""
    field = field_at(object_type_of(table).fields, table.column(elements).path)
    at, kind = f"t.{quote(elements)}", "array"
    function, names = "jsonb_array_elements", "WITH ORDINALITY AS e (value, place)"
    if field is not None and field.kind == "map":
        is_text = field.items is not None and field.items.kind == "string"
        kind, function = "object", "jsonb_each_text" if is_text else "jsonb_each"
        names = "AS e (key, value)"
    guarded = f"CASE pg_catalog.jsonb_typeof({at}) WHEN {literal(kind)} THEN {at} END"
    return f"pg_catalog.{function}({guarded}) {names}"


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
    there = {name for name, _ in view_columns(shape, view, tables()[view.table])}
    lacking = ", ".join(name for name in view.columns if name not in there)
    lossy = f" {view.lossy}" if view.lossy else ""
    lossy += f" Without {lacking}." if lacking else ""
    digest = zlib.crc32(select.encode())
    sources = " and ".join(part.table for part in (view, *view.also))
    return f"As {product} has it; from {sources}.{lossy} (pinstripe {digest:08x})"


_GRANTS = """
SELECT format('GRANT %s ON %s TO %s%s', a.privilege_type, $1::text,
  CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
  CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = to_regclass($1) AND a.grantee <> c.relowner
"""


async def _replace(
    connection: Connection, target: str, name: str, select: str, comment: str
) -> None:
    place = qualified(target, name)
    text = (
        f"CREATE OR REPLACE VIEW {place} AS {select}; COMMENT ON VIEW {place} IS {literal(comment)}"
    )
    try:
        await _try(connection, target, name, text)
    except asyncpg.InvalidTableDefinitionError:  # Not only that columns are new at the end.
        grants = [row[0] for row in await connection.fetch(_GRANTS, place)]
        await _try(connection, target, name, "; ".join((f"DROP VIEW {place}", text, *grants)))


_LEFT = (
    asyncpg.DependentObjectsStillExistError,
    asyncpg.WrongObjectTypeError,
    asyncpg.LockNotAvailableError,
    asyncpg.UndefinedFunctionError,  # These two: a column has another type than the catalog's.
    asyncpg.DatatypeMismatchError,
)


async def _try(connection: Connection, target: str, name: str, text: str) -> None:
    # Who reads a view for long must not have all other readers queue behind us. The next start tries again.
    patience = "" if connection.is_in_transaction() else "SET LOCAL lock_timeout = '1s'; "
    try:
        async with connection.transaction():
            await connection.execute(patience + text)
    except _LEFT as error:
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
