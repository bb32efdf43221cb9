"""The one guarded upsert, as text. Pure; `write` runs it.

Rows come by COPY into a stage (a temp table with plain types), then one statement per table and
shape moves them. The comparison of times stands here, in its WHERE, and nowhere else:

    surely newer    the snapshot's earliest moment is not before the row's latest: written
    surely older    the snapshot's latest moment is not after the row's earliest: dropped
    overlapping     same content: the knowledge is widened; other content: left alone, and found
                    again by `contested`, for one GET to decide
"""

from __future__ import annotations

from collections.abc import Sequence

from pinstripe.catalog.tables import Column, Table
from pinstripe.store.ddl import qualified, quote

STAGE_EXTRA = ("_extra", "_lo", "_hi", "_group")
"""Columns of every stage beside the table's: unknown fields, the interval in Unix
seconds, and which group of the batch the row belongs to."""


def stage_name(table: Table) -> str:
    return f"stage_{table.name}"[:63]


def create_stage(table: Table) -> str:
    """The stage: emptied at each commit, so nothing of a failed batch is left."""
    columns = [f"{quote(c.name)} {stage_type(c)}" for c in table.columns]
    columns += ["_extra text", "_lo double precision", "_hi double precision", "_group int"]
    return (
        f"CREATE TEMP TABLE IF NOT EXISTS {quote(stage_name(table))} "
        f"({', '.join(columns)}) ON COMMIT DELETE ROWS"
    )


def stage_type(column: Column) -> str:
    """What asyncpg encodes fastest: text for what Postgres parses better itself."""
    if column.read in ("integer", "time", "time_ms"):
        return "bigint"
    if column.type == "boolean":
        return "boolean"
    return "text[]" if column.type == "text[]" else "text"


def from_stage(column: Column) -> str:
    """The expression that turns the staged value into the column's type."""
    name = f"s.{quote(column.name)}"
    if column.read == "time":
        return f"to_timestamp({name})"
    if column.read == "time_ms":
        return f"to_timestamp({name} / 1000.0)"
    if column.type in ("jsonb", "numeric", "timestamptz"):
        return f"{name}::{column.type}"
    return name


def upsert(schema: str, table: Table, shape: Sequence[str]) -> str:
    """INSERT ... ON CONFLICT for rows of these columns.

    $1: the API version of the rows; $2: the group of the batch.
    """
    columns = [table.column(name) for name in shape]
    names = [quote(c.name) for c in columns]
    values = [from_stage(c) for c in columns]
    content = [n for n, c in zip(names, columns, strict=True) if c.name not in table.key]
    sets = [f"{n} = EXCLUDED.{n}" for n in content]
    sets += [
        "_as_of = greatest(t._as_of, EXCLUDED._as_of)",
        "_as_of_latest = greatest(t._as_of_latest, EXCLUDED._as_of_latest)",
        "_synced_at = EXCLUDED._synced_at",
        "_api_version = EXCLUDED._api_version",
        f"_extra = {_extra(columns)}",
    ]
    return (
        f"INSERT INTO {qualified(schema, table.name)} AS t "
        f"({', '.join(names)}, _as_of, _as_of_latest, _synced_at, _api_version, _extra)\n"
        f"SELECT {', '.join(values)}, to_timestamp(s._lo), to_timestamp(s._hi), "
        f"clock_timestamp(), $1::text, s._extra::jsonb FROM {quote(stage_name(table))} s\n"
        f"WHERE s._group = $2::int\n"
        f"ON CONFLICT ({', '.join(quote(k) for k in table.key)}) DO UPDATE SET "
        f"{', '.join(sets)}\n"
        f"WHERE EXCLUDED._as_of >= t._as_of_latest\n"
        f"   OR (EXCLUDED._as_of_latest > t._as_of AND {_same('t', 'EXCLUDED', content)})"
    )


def contested(schema: str, table: Table, shape: Sequence[str]) -> str:
    """Keys of staged rows that overlap a row of other content. Run after `upsert`, before the commit.

    $1: the group of the batch. Gives (key columns..., Unix second up to which the row's content is known).
    """
    columns = [c for c in (table.column(name) for name in shape) if c.name not in table.key]
    keys = ", ".join(f"t.{quote(k)}" for k in table.key)
    join = " AND ".join(f"t.{quote(k)} = s.{quote(k)}" for k in table.key)
    pairs = [(f"t.{quote(c.name)}", from_stage(c)) for c in columns]
    differs = " OR ".join(f"{a} IS DISTINCT FROM {b}" for a, b in pairs) or "false"
    return (
        f"SELECT {keys}, extract(epoch FROM t._as_of_latest)::double precision "
        f"FROM {quote(stage_name(table))} s JOIN {qualified(schema, table.name)} t ON {join}\n"
        f"WHERE s._group = $1::int AND to_timestamp(s._hi) > t._as_of AND to_timestamp(s._lo) < t._as_of_latest "
        f"AND ({differs})"
    )


def _same(a: str, b: str, names: Sequence[str]) -> str:
    if not names:
        return "true"
    # One row comparison would be limited to 1,664 columns; the widest table has a few hundred.
    left = ", ".join(f"{a}.{n}" for n in names)
    right = ", ".join(f"{b}.{n}" for n in names)
    return f"ROW({left}) IS NOT DISTINCT FROM ROW({right})"


def _extra(columns: Sequence[Column]) -> str:
    """Unknown fields are kept unless the snapshot speaks of the field that they stand in."""
    fields = sorted({c.path[0] for c in columns if c.path})
    array = ", ".join("'" + f.replace("'", "''") + "'" for f in fields)
    return (
        "CASE WHEN t._extra IS NULL THEN EXCLUDED._extra ELSE "
        f"nullif((t._extra - ARRAY[{array}]::text[]) || coalesce(EXCLUDED._extra, '{{}}'), '{{}}') END"
    )
