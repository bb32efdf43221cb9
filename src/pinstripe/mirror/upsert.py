"""The one guarded upsert, as SQL text. Pure; `writer` runs it.

Rows come by COPY into a stage (a temp table with plain types). One statement inserts new rows, and one per
shape updates the others: a column that an object does not have keeps its value. Times are compared in
the WHERE of `update` and nowhere else:

    surely newer    the snapshot's earliest moment is not before the row's latest: written
    surely older    the snapshot's latest moment is not after the row's earliest: dropped
    overlapping     same content: the interval moves forward; other content: left alone, and found
                    again by `contested`, for one GET to decide

Two refinements. A snapshot requested after the row was read is newer whatever the clocks say: it names
that version (`_over`, the row's `_synced_at`) and is written if the row still has it. And a row is
partial until a snapshot had the columns that Stripe returns on request only: any snapshot that has them
fills them (`complete`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from pinstripe.catalog.tables import Column, Table
from pinstripe.store.ddl import qualified, quote, today_value

STAGE_EXTRA = ("_extra", "_lo", "_hi", "_over", "_partial", "_shape")
"""Columns of every stage beside the table's: the row's tail. The interval is in Unix
seconds, `_over` the `_synced_at` of the row that this one is known to be newer than."""


def stage_name(table: str) -> str:
    return f"stage_{table}"[:63]


def stage(table: str) -> str:
    """The stage of a table, in SQL."""
    return f"pg_temp.{quote(stage_name(table))}"


def create_stage(table: Table) -> str:
    """The stage, a table of the session.

    Not ON COMMIT DELETE ROWS: every commit would truncate every stage of the session, used or not
    (17 ms with 48 of them, measured; docs/decisions/005-writing.md).
    """
    columns = [f"{quote(c.name)} {stage_type(c)}" for c in table.columns]
    columns += ["_extra text", "_lo double precision", "_hi double precision"]
    columns += ["_over timestamptz", "_partial boolean", "_shape int"]
    return f"CREATE TEMP TABLE IF NOT EXISTS {stage(table.name)} ({', '.join(columns)})"


def stage_type(column: Column) -> str:
    """Return the type that asyncpg encodes fastest: text for values that Postgres parses better."""
    if column.read in ("integer", "time", "time_ms"):
        return "bigint"
    if column.type == "boolean":
        return "boolean"
    return "text[]" if column.type == "text[]" else "text"


def from_stage(column: Column) -> str:
    """Return the expression that turns the staged value into the column's type."""
    name = f"s.{quote(column.name)}"
    if column.read == "time":
        return f"to_timestamp({name})"
    if column.read == "time_ms":
        return f"to_timestamp({name} / 1000.0)"
    if column.type in ("jsonb", "numeric", "timestamptz"):
        return f"{name}::{column.type}"
    return name


def staged_value(table: Table, column: Column) -> str:
    """Return the column's value after the write: one that Stripe has moved may stand elsewhere."""
    elsewhere = today_value(table, column, "s")
    return f"coalesce({from_stage(column)}, {elsewhere})" if elsewhere else from_stage(column)


def _agreeing_value(table: Table, column: Column) -> str:
    """Like `staged_value`; what a row of another table gave (`store.links`) agrees with a null."""
    if column.moved is None or not column.moved.rows:
        return staged_value(table, column)
    return f"coalesce({from_stage(column)}, t.{quote(column.name)})"


def insert(schema: str, table: Table) -> str:
    """Insert the staged rows that the table does not have. $1: the API version of the rows."""
    names = ", ".join(quote(c.name) for c in table.columns)
    values = ", ".join(staged_value(table, c) for c in table.columns)
    return (
        f"INSERT INTO {qualified(schema, table.name)} "
        f"({names}, _as_of, _as_of_latest, _synced_at, _partial, _api_version, _extra)\n"
        f"SELECT {values}, to_timestamp(s._lo), to_timestamp(s._hi), clock_timestamp(), "
        f"s._partial, $1::text, s._extra::jsonb FROM {stage(table.name)} s\n"
        f"ON CONFLICT ({', '.join(quote(k) for k in table.key)}) DO NOTHING"
    )


def update(schema: str, table: Table, shape: Sequence[str]) -> str:
    """Update the rows that the table had, from staged rows of one shape.

    $1: the API version of the rows; $2: the number of the shape.
    """
    columns = _content(table, shape)
    sets = [f"{quote(c.name)} = {staged_value(table, c)}" for c in columns]
    sets += [
        "_as_of = greatest(t._as_of, to_timestamp(s._lo))",
        "_as_of_latest = greatest(t._as_of_latest, to_timestamp(s._hi))",
        "_synced_at = clock_timestamp()",
        "_partial = t._partial AND s._partial",
        "_api_version = $1::text",
        f"_extra = {extra_after(columns)}",
    ]
    return (
        f"UPDATE {qualified(schema, table.name)} AS t SET {', '.join(sets)}\n"
        f"FROM {stage(table.name)} s WHERE {_join(table)} AND s._shape = $2::int AND (\n"
        f"  to_timestamp(s._lo) >= t._as_of_latest\n"
        f"  OR s._over = t._synced_at\n"
        f"  OR (to_timestamp(s._hi) > t._as_of\n"
        f"      AND (to_timestamp(s._lo) > t._as_of OR to_timestamp(s._hi) > t._as_of_latest\n"
        f"           OR (t._partial AND s._partial IS NULL))\n"
        f"      AND {_same(table, columns)}))"
    )


def complete(schema: str, table: Table, shape: Sequence[str]) -> str | None:
    """Fill what a partial row lacks from older staged rows of one shape; None if the shape lacks it too.

    $1: the number of the shape.
    """
    columns = [c for c in table.columns if c.on_request]
    if not columns or not {c.name for c in columns} <= set(shape):
        return None
    sets = ", ".join(f"{quote(c.name)} = {from_stage(c)}" for c in columns)
    return (
        f"UPDATE {qualified(schema, table.name)} AS t SET {sets}, _partial = NULL, "
        f"_synced_at = clock_timestamp()\n"
        f"FROM {stage(table.name)} s WHERE {_join(table)} AND s._shape = $1::int "
        f"AND t._partial AND to_timestamp(s._hi) <= t._as_of"
    )


def contested(schema: str, table: Table, shape: Sequence[str]) -> str:
    """Select the staged rows in conflict. Run after `update`, before the commit.

    $1: the number of the shape. Returns (key, the row's `_synced_at`).
    """
    keys = ", ".join(f"t.{quote(k)}" for k in table.key)
    return (
        f"SELECT {keys}, t._synced_at "
        f"FROM {stage(table.name)} s JOIN {qualified(schema, table.name)} t "
        f"ON {_join(table)}\n"
        f"WHERE s._shape = $1::int AND to_timestamp(s._hi) > t._as_of "
        f"AND to_timestamp(s._lo) < t._as_of_latest AND NOT {_same(table, _content(table, shape))}"
    )


def _content(table: Table, shape: Sequence[str]) -> list[Column]:
    return [c for c in (table.column(name) for name in shape) if c.name not in table.key]


def _join(table: Table) -> str:
    return " AND ".join(f"t.{quote(k)} = s.{quote(k)}" for k in table.key)


def _same(table: Table, columns: Sequence[Column]) -> str:
    """Return the condition that row and staged row hold the same in these columns.

    Columns on request that a partial row never had differ from nothing.
    """
    value = partial(_agreeing_value, table)
    always = [c for c in columns if not c.on_request]
    on_request = [c for c in columns if c.on_request]
    parts = [same_values(group, value) for group in (always, on_request) if group]
    if on_request:
        parts[-1] = f"(t._partial IS TRUE OR {parts[-1]})"
    # Unknown fields are content.
    parts.append(f"t._extra IS NOT DISTINCT FROM ({extra_after(columns)})")
    return f"({' AND '.join(parts)})"


def same_values(columns: Sequence[Column], value: Callable[[Column], str]) -> str:
    """Return the condition that these columns hold `value`, SQL for each; null is equal to null."""
    # One row comparison is limited to 1,664 columns; the widest table has a few hundred.
    left = ", ".join(f"t.{quote(c.name)}" for c in columns)
    right = ", ".join(map(value, columns))
    return f"(ROW({left}) IS NOT DISTINCT FROM ROW({right}))"


def extra_after(columns: Sequence[Column]) -> str:
    """Return `_extra` after the write: unknown fields stay unless the snapshot has the one around them."""
    fields = sorted({c.path[0] for c in columns if c.path})
    array = ", ".join("'" + f.replace("'", "''") + "'" for f in fields)
    return (
        "CASE WHEN t._extra IS NULL THEN s._extra::jsonb ELSE "
        f"nullif((t._extra - ARRAY[{array}]::text[]) || coalesce(s._extra::jsonb, '{{}}'), '{{}}') END"
    )
