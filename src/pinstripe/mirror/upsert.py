"""The one guarded upsert, as SQL text. Pure; `writer` runs it.

Rows come by COPY into a stage (a temp table with plain types). One statement inserts new rows, and one per
shape updates the others: a column that an object does not have keeps its value. The WHERE of `update`
decides which snapshot wins:

    same content    nothing is written; that the row is still true is a confirmation (`unwritten`)
    surely newer    the snapshot's earliest moment is not before the row's latest: written
    surely older    the snapshot's latest moment is not after the row's earliest: dropped
    overlapping     left alone, and found again by `unwritten`, for one GET to decide

Confirmations count as if they stood in the row: before a snapshot of other content is compared, `widen`
moves the row's interval forward to the latest of them (docs/decisions/025-confirmations.md). So a row
that changed and changed back keeps its content when the state in between arrives late.

Refinements. A snapshot is newer, whatever the clocks say, than a row that was written before Stripe can
have made it (`_known`, on Postgres's clock: when the request began, less how far a replica may be behind).
An event is newer than a row that holds exactly what the event changed (`chained`). A row is partial until
a snapshot had the columns that Stripe returns on request only: any snapshot that has them fills them
(`complete`). A row of another API version gets nulls where a whole object of ours says nothing. And an
upcoming invoice is written at each preview, since its `_as_of` says how old the preview is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pinstripe.catalog.tables import Column, Table
from pinstripe.store.confirmations import key_hash, of_keys
from pinstripe.store.ddl import conflict_target, literal, qualified, quote
from pinstripe.store.session import ACCOUNT, CURRENT, account_of, schema_of

STAGE_EXTRA = ("_extra", "_lo", "_hi", "_known", "_partial", "_shape")
"""Columns of every stage beside the table's: the row's tail. The interval is in Unix
seconds; what was written until `_known`, on Postgres's clock, is older than the snapshot."""

EVENT_S = 1.0
"""The interval of an event is the second of its `created`; that of a response is longer."""

FLEETING = frozenset(
    {
        ("event", "pending_webhooks"),  # Counts down while webhooks are delivered.
        ("terminal_reader", "last_seen_at"),  # Every few seconds, as long as the reader is on.
        ("terminal_reader", "status"),
    }
)
"""(table, column) that change at Stripe without an event, and often: no reason to request the object."""


def stage_name(table: str) -> str:
    return f"stage_{table}"[:63]


def stage(table: str) -> str:
    return f"pg_temp.{quote(stage_name(table))}"


def create_stage(table: Table, *, by_account: bool = False) -> str:
    """The stage, a table of the session. `by_account`: its rows have the account of a platform.

    Not ON COMMIT DELETE ROWS: every commit would truncate every stage of the session, used or not
    (17 ms with 48 of them, measured; docs/decisions/005-writing.md).
    """
    columns = [f"{quote(c.name)} {stage_type(c)}" for c in table.columns]
    columns += ["_extra text", "_lo double precision", "_hi double precision"]
    columns += ["_known timestamptz", "_partial boolean", "_shape int"]
    if by_account:
        columns.append(f"{ACCOUNT} text DEFAULT {CURRENT}")
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


def _agreeing_value(column: Column) -> str:
    """Like `from_stage`; what a row of another table gave (`store.links`) agrees with a null."""
    if column.moved is None or not column.moved.rows:
        return from_stage(column)
    return f"coalesce({from_stage(column)}, t.{quote(column.name)})"


def insert(schema: str, table: Table) -> str:
    """Insert the staged rows that the table does not have. $1: the API version of the rows."""
    names = ", ".join(quote(c.name) for c in table.columns)
    values = ", ".join(map(from_stage, table.columns))
    if account_of(schema):
        names, values = f"{ACCOUNT}, {names}", f"s.{ACCOUNT}, {values}"
    return (
        f"INSERT INTO {stored(schema, table)} AS t "
        f"({names}, _as_of, _as_of_latest, _synced_at, _partial, _api_version, _extra)\n"
        f"SELECT {values}, to_timestamp(s._lo), to_timestamp(s._hi), clock_timestamp(), "
        f"s._partial, $1::text, s._extra::jsonb FROM {stage(table.name)} s\n"
        f"ON CONFLICT ({conflict_target(schema, table)}) DO NOTHING"
    )


def update(schema: str, table: Table, shape: Sequence[str]) -> str:
    """Update the rows that the table had, from staged rows of one shape.

    $1: the API version of the rows; $2: the number of the shape.
    """
    columns = _content(table, shape)
    sets = [f"{quote(c.name)} = {from_stage(c)}" for c in columns]
    extra, version, gains = extra_after(columns), "t._api_version", "false"
    if _is_whole(table, shape):
        # In another version the same names may have meant something else.
        sets += [
            f"{quote(c.name)} = CASE WHEN NOT ({_OF_OTHER_VERSION}) THEN t.{quote(c.name)} END"
            for c in unsaid(table, shape)
        ]
        extra = f"CASE WHEN {_OF_OTHER_VERSION} THEN s._extra::jsonb ELSE {extra} END"
        version, gains = "$1::text", _OF_OTHER_VERSION
    lo = "greatest(t._as_of, to_timestamp(s._lo))"
    hi = "greatest(t._as_of_latest, to_timestamp(s._hi))"
    if any(c.on_request for c in table.columns):
        completes = "t._partial AND s._partial IS NULL"
        gains += f" OR ({completes})"
        # What an event said is known to its second: the response that completes it is not.
        stays = f"({completes} AND {_IS_LATER} IS NOT TRUE)"
        lo = f"CASE WHEN {stays} THEN t._as_of ELSE {lo} END"
        hi = f"CASE WHEN {stays} THEN t._as_of_latest ELSE {hi} END"
    if table.virtual and table.object_type == "invoice":
        gains = "true"
    sets += [
        f"_as_of = {lo}",
        f"_as_of_latest = {hi}",
        "_synced_at = clock_timestamp()",
        "_partial = t._partial AND s._partial",
        f"_api_version = coalesce({version}, $1::text)",
        f"_extra = {extra}",
    ]
    same = _same(columns)
    return (
        f"UPDATE {stored(schema, table)} AS t SET {', '.join(sets)}\n"
        f"FROM {stage(table.name)} s WHERE {same_row(schema, table)} AND s._shape = $2::int AND (\n"
        f"  ({_IS_LATER} AND ({gains} OR NOT {same}))\n"
        f"  OR (to_timestamp(s._hi) > t._as_of AND ({gains}) AND {same}))"
    )


_IS_LATER = "(to_timestamp(s._lo) >= t._as_of_latest OR t._synced_at <= s._known)"
_OF_OTHER_VERSION = "t._api_version IS DISTINCT FROM $1::text"


def _is_whole(table: Table, shape: Sequence[str]) -> bool:
    """Whether a shape is that of a whole object, and not of the stub that a deletion leaves."""
    return bool({*shape} - {*table.key, "object", "livemode", "deleted"})


def unsaid(table: Table, shape: Sequence[str]) -> list[Column]:
    """Return the columns of which an object of this shape says, by silence, that they are null: a whole
    object always has the others. None for the stub that a deletion leaves; not what rows of other tables
    give (`store.links`).
    """
    if not _is_whole(table, shape):
        return []
    kept = ("parent", "deleted")
    return [
        c
        for c in table.columns
        if c.name not in shape
        and not c.on_request
        and c.read not in kept
        and c.name not in table.key
        and not (c.moved is not None and c.moved.rows)
    ]


def widen(schema: str, table: Table, shape: Sequence[str]) -> str:
    """Move the intervals of rows that staged rows of one shape differ from to their last confirmation.

    $1: the number of the shape; $2: the schema; $3: the second after which confirmations count.
    `_synced_at` moves too: a snapshot that is newer than the version before is not known to be newer.
    A response that may be older than an event does not count against it: if it showed what came after the
    event, another event will say so.
    """
    joined = f"{stage(table.name)} s JOIN {stored(schema, table)} t ON {same_row(schema, table)}"
    names = (ACCOUNT, *table.key) if account_of(schema) else table.key
    keys = ", ".join(f"s.{quote(k)}" for k in names)
    confirmed = of_keys("$2::text", literal(table.name), "to_timestamp($3::float8)")
    # Most rows of most stages do not differ: for them no confirmation is looked at.
    return (
        f"WITH differing AS MATERIALIZED (\n"
        f"  SELECT {keys}, {key_hash(key_text(table, 's'))} AS hash, s._lo, s._hi, s._known,\n"
        f"    t._as_of, t._as_of_latest, t._synced_at FROM {joined}\n"
        f"  WHERE s._shape = $1::int AND NOT {_same(_content(table, shape))}\n"
        f")\n"
        f"UPDATE {stored(schema, table)} AS t SET _as_of = greatest(t._as_of, s.lo),\n"
        f"_as_of_latest = greatest(t._as_of_latest, s.hi), "
        f"_synced_at = greatest(t._synced_at, s.noted_at)\n"
        f"FROM (SELECT {keys}, max(c.as_of) AS lo, max(c.as_of_latest) AS hi, "
        f"max(c.noted_at) AS noted_at FROM differing s JOIN ({confirmed}) c ON c.key = s.hash\n"
        f"  WHERE c.as_of_latest > to_timestamp(s._lo)\n"
        f"  AND (s._hi - s._lo > {EVENT_S} OR c.as_of >= to_timestamp(s._hi)\n"
        f"    OR c.as_of_latest <= c.as_of + make_interval(secs => {EVENT_S}))\n"
        f"  AND (c.as_of > s._as_of OR c.as_of_latest > s._as_of_latest)\n"
        f"  AND (s._synced_at <= s._known AND c.noted_at <= s._known) IS NOT TRUE GROUP BY {keys}\n"
        f"  ORDER BY {keys}) s\n"  # Rows are locked in the order of their keys.
        f"WHERE {same_row(schema, table)}"
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
        f"UPDATE {stored(schema, table)} AS t SET {sets}, _partial = NULL, "
        f"_synced_at = clock_timestamp()\n"
        f"FROM {stage(table.name)} s WHERE {same_row(schema, table)} AND s._shape = $1::int "
        f"AND t._partial AND to_timestamp(s._hi) <= t._as_of"
    )


def unwritten(schema: str, table: Table, shape: Sequence[str]) -> str:
    """Select the staged rows that were not written though they are not older than the row, or say that
    it was deleted.

    Run after `update`, before the commit. $1: the number of the shape. Returns (key, null, `_lo`,
    `_hi`) of each row that is in conflict, (null, the hashes of the keys, `_lo`, `_hi`) of the rows that a
    snapshot confirms, and (key, null, null, null) of each that a trigger of the user left out.
    """
    columns = _content(table, shape)
    lasting = [c for c in columns if (table.name, c.name) not in FLEETING]
    passing = f"NOT {_same(lasting)}" if len(lasting) < len(columns) else "true"
    older = "(to_timestamp(s._hi) > t._as_of) IS FALSE"
    if any(c.read == "deleted" for c in columns):
        # The row may be from a field of another object, which still shows what has been deleted.
        older += " AND (s.deleted AND t.deleted IS NOT TRUE) IS NOT TRUE"
    return (
        f"WITH found AS MATERIALIZED (\n"
        f"  SELECT {key_text(table, 's')} AS key, {_same(columns)} AS same, {_IS_LATER} AS later,\n"
        f"  s._lo, s._hi, t._as_of, t._as_of_latest, {passing} AS lasting\n"
        f"  FROM {stage(table.name)} s LEFT JOIN {stored(schema, table)} t ON "
        f"{same_row(schema, table)}\n"
        f"  WHERE s._shape = $1::int AND NOT ({older}))\n"
        f"SELECT key, null::bigint[], _lo, _hi FROM found\n"
        f"WHERE NOT same AND lasting AND to_timestamp(_lo) < _as_of_latest\n"
        f"UNION ALL SELECT null, array_agg({key_hash('key')}), _lo, _hi FROM found WHERE same\n"
        f"AND (to_timestamp(_lo) > _as_of OR to_timestamp(_hi) > _as_of_latest) GROUP BY _lo, _hi\n"
        f"UNION ALL SELECT key, null, null, null FROM found\n"
        f"WHERE _as_of IS NULL OR later AND NOT same"
    )


def chained(schema: str, table: Table, shape: Sequence[str]) -> str:
    """Select (key, `_synced_at`) of the rows that hold the same as the stage in the columns of one shape.

    $1: the number of the shape.
    """
    keys = ", ".join(f"t.{quote(k)}" for k in table.key)
    return (
        f"SELECT {keys}, t._synced_at FROM {stage(table.name)} s "
        f"JOIN {stored(schema, table)} t ON {same_row(schema, table)} "
        f"WHERE s._shape = $1::int AND {_same(_content(table, shape))}"
    )


def key_text(table: Table, alias: str) -> str:
    """Return the SQL of a row's key as one text, as the change feed and confirmations have it."""
    return " || '/' || ".join(f"{alias}.{quote(k)}" for k in table.key)


def _content(table: Table, shape: Sequence[str]) -> list[Column]:
    return [c for c in (table.column(name) for name in shape) if c.name not in table.key]


def stored(schema: str, table: Table) -> str:
    """The table itself, for statements on it and its stage.

    Not a platform's view: the account is in the stage, and a row is found by its whole key. By the view's
    condition Postgres may expect one row of an account, and then reads all of them for each staged row: an
    update of 5,000 rows took 20 s instead of 0.6.
    """
    return qualified(schema_of(schema), table.name)


def same_row(schema: str, table: Table) -> str:
    """Return the condition that a row `t` and a staged row `s` have the same key."""
    key = (ACCOUNT, *table.key) if account_of(schema) else table.key
    return " AND ".join(f"t.{quote(k)} = s.{quote(k)}" for k in key)


def _same(columns: Sequence[Column]) -> str:
    """Return the condition that row and staged row hold the same in these columns.

    Columns on request that a partial row never had differ from nothing.
    """
    always = [c for c in columns if not c.on_request]
    on_request = [c for c in columns if c.on_request]
    parts = [same_values(group, _agreeing_value) for group in (always, on_request) if group]
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
