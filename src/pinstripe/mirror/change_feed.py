"""Records the change feed: what each transaction of the mirror changed. Off by default.

    before (rows kept, locked) -> upsert -> after (images compared) -> write, the last step

Changes are written in the transaction that makes them; `store.changes` has the table and its NOTIFY.
`changes` is {column: [before, after]} of the columns that differ, in an insert those with a value. A
deleted object, or a removed row of a virtual table, is a "delete". Not recorded: a row whose `_as_of`
alone moved, a preview of which only the times of the request differ, and the event log. During a table's
initial load, only what an event or a request caused is recorded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from weakref import WeakKeyDictionary

from pinstripe.catalog.tables import LOGS, Table
from pinstripe.client.response import Cause
from pinstripe.mirror.upsert import key_text, same_row, stage, stored
from pinstripe.store.changes import ChangeKind, NewChange, write_changes
from pinstripe.store.ddl import BOOKKEEPING, VIEW_SYSTEM, qualified
from pinstripe.store.pool import Connection
from pinstripe.store.session import ACCOUNT

_PREVIEW_TIMES = (
    "created",
    "period_start",
    "period_end",
    "status_transitions_finalized_at",
    "status_transitions_paid_at",
)
"""Columns of a previewed invoice that differ at each request: they would fill the feed."""

_DEAD_ROWS = 3000

_CREATE_BEFORE = (
    "CREATE TEMP TABLE IF NOT EXISTS pg_temp.pinstripe_before (key text, place tid, image jsonb)"
)

_dead_rows: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()
"""How many that table has: a session may have many recorders, one after the other."""

Causes = Mapping[tuple[str, str], Cause]
"""By table and key."""


class Recorder:
    """Records what a writer's transactions change. One for each writer.

    `loading` is read at each use: the tables in their initial load.
    """

    def __init__(self, schema: str, loading: Collection[str]) -> None:
        self._schema = schema
        self._loading = loading
        self._noted: list[NewChange] = []
        self._ready_on: Connection | None = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """The block in which `delete_rows` records here. Drops what a failed transaction left."""
        self._noted.clear()
        token = _recording.set(self)
        try:
            yield
        finally:
            _recording.reset(token)

    def mark(self) -> int:
        """Return how much is recorded so far; for `go_back`."""
        return len(self._noted)

    def go_back(self, mark: int) -> None:
        """Forget what was recorded since the mark: the transaction was rolled back to it."""
        del self._noted[mark:]
        self._ready_on = None

    def wants(self, table: str, keys: Collection[str], causes: Causes) -> bool:
        """Return whether changes of these rows are recorded; if not, they cost nothing."""
        if table in LOGS:
            return False
        return table not in self._loading or any((table, key) in causes for key in keys)

    async def before(self, connection: Connection, table: Table) -> int:
        """Keep and lock the rows that the stage is about to change; return their number."""
        if self._ready_on is not connection:
            await connection.execute(_CREATE_BEFORE)
            self._ready_on = connection
        return _count(await connection.execute(keep(self._schema, table)))

    async def raced(self, connection: Connection, table: Table) -> int:
        """Like `before`, for rows that another writer inserted after it ran."""
        return _count(await connection.execute(keep_raced(self._schema, table)))

    async def after(self, connection: Connection, table: Table, causes: Causes) -> None:
        """Record how the staged rows changed."""
        rows = await connection.fetch(difference(self._schema, table))
        for key, kind, changes in rows:
            cause = causes.get((table.name, key))
            if cause is not None or table.name not in self._loading:
                self._noted.append(_change(table.name, key, kind, changes, cause))

    async def forget(self, connection: Connection, rows: int) -> None:
        """Empty what `before` kept. TRUNCATE costs more than DELETE, but leaves no dead rows."""
        dead = _dead_rows[connection] = _dead_rows.get(connection, 0) + rows
        if dead > _DEAD_ROWS:
            await connection.execute("TRUNCATE pg_temp.pinstripe_before")
            _dead_rows[connection] = 0
        elif rows:
            await connection.execute("DELETE FROM pg_temp.pinstripe_before")

    def linked(self, table: str, key: str, changes: str, cause: Cause | None) -> None:
        """Record a row whose column another row gave a value (`store.links`)."""
        self._noted.append(_change(table, key, "update", changes, cause))

    def removed(self, table: str, key: str, changes: str, cause: Cause) -> None:
        """Record a deleted row. If the same transaction inserted it, nothing is recorded."""
        mine = [c for c in self._noted if (c.table, c.id) == (table, key)]
        if any(c.kind == "insert" for c in mine):
            self._noted = [c for c in self._noted if c not in mine]
        else:
            change = _change(table, key, "delete", changes, cause)
            if cause == Cause() and mine:
                change = replace(change, event_id=mine[-1].event_id, request_id=mine[-1].request_id)
            self._noted.append(change)

    async def write(self, connection: Connection) -> None:
        """Write what was recorded. The last step of the transaction: other writers wait for its end."""
        if not self._noted:
            return
        await write_changes(connection, self._schema, self._noted)
        self._noted.clear()


_recording: ContextVar[Recorder | None] = ContextVar("recording", default=None)
"""The recorder of the current transaction: effects get only a connection."""


async def delete_rows(
    connection: Connection,
    schema: str,
    table: Table,
    where: str,
    *values: object,
    cause: Cause | None = None,
) -> int:
    """Delete rows in an effect of the mirror; return their number.

    `where` is SQL on the table's columns, `values` its parameters. Other deletes are not recorded.
    """
    recorder = _recording.get()
    text = f"DELETE FROM {qualified(schema, table.name)} AS t WHERE {where}"
    if recorder is None:
        return _count(await connection.execute(text, *values))
    text = f"{text} RETURNING {_key(table)}, {_removal()}"
    rows = await connection.fetch(text, *values)
    for key, changes in rows:
        recorder.removed(table.name, key, changes, cause or Cause())
    return len(rows)


def keep_raced(schema: str, table: Table) -> str:
    """Like `keep`, for rows that another writer inserted after `keep` ran."""
    return (
        f"{_keep(schema, table)} AND t.xmin <> pg_current_xact_id()::xid "
        f"AND {_key(table)} NOT IN (SELECT key FROM pg_temp.pinstripe_before)\n{_LOCKED}"
    )


def keep(schema: str, table: Table) -> str:
    """Copy the rows that are in the stage, locked until the commit.

    Without the lock another writer could change a row between this copy and our update, and its step
    would be missing in the chain of befores and afters.
    """
    return f"{_keep(schema, table)}\n{_LOCKED}"


_LOCKED = "ORDER BY 1 FOR NO KEY UPDATE OF t"


def _keep(schema: str, table: Table) -> str:
    return (
        f"INSERT INTO pg_temp.pinstripe_before (key, place, image)\n"
        f"SELECT {_key(table)}, t.ctid, {_image()} "
        f"FROM {stored(schema, table)} t, {stage(table.name)} s\n"
        f"WHERE {same_row(schema, table)}"
    )


def difference(schema: str, table: Table) -> str:
    """Select (key, kind, changes as text) of the staged rows that this transaction changed."""
    gone = "false"
    if table.deletable:
        gone = "a.image -> 'deleted' = 'true' AND b.image -> 'deleted' IS DISTINCT FROM 'true'"
    # OFFSET 0 has each image made, or taken out of its compressed storage, once and not per column.
    return (
        f"SELECT t.key, CASE WHEN {gone} THEN 'delete' WHEN t.known THEN 'update' "
        f"ELSE 'insert' END, c.changes::text\n"
        f"FROM (SELECT {_key(table)} AS key, k.key IS NOT NULL AS known, k.image AS before, "
        f"{_image()} AS after\n"
        f"  FROM {stage(table.name)} s "
        f"JOIN {stored(schema, table)} t ON {same_row(schema, table)}\n"
        f"  LEFT JOIN pg_temp.pinstripe_before k ON k.key = {_key(table)}\n"
        f"  WHERE t.xmin = pg_current_xact_id()::xid AND k.place IS DISTINCT FROM t.ctid "
        f"OFFSET 0) t,\n"
        f"LATERAL (SELECT coalesce(t.before, '{{}}') || '{{}}' AS image OFFSET 0) b,\n"
        f"LATERAL (SELECT t.after AS image OFFSET 0) a,\n"
        f"LATERAL (SELECT jsonb_object_agg(n.key, jsonb_build_array(b.image -> n.key, n.value)) "
        f"AS changes FROM jsonb_each(a.image) n\n"
        f"  WHERE n.value IS DISTINCT FROM coalesce(b.image -> n.key, 'null')) c\n"
        f"WHERE a.image <> b.image AND c.changes IS NOT NULL{_seen(table)} ORDER BY t.key"
    )


def _seen(table: Table) -> str:
    """Return a condition that leaves out previews of which only the times of the request changed."""
    if not (table.virtual and table.object_type == "invoice"):
        return ""
    return (
        "\nAND (NOT t.known OR EXISTS (SELECT FROM jsonb_object_keys(c.changes) k "
        f"WHERE k <> ALL ('{{{','.join(_PREVIEW_TIMES)}}}')))"
    )


def _image() -> str:
    """Return the row `t` without our own columns, except `_extra`, which has fields of Stripe's."""
    ours = ", ".join(n for n in (*BOOKKEEPING, *VIEW_SYSTEM, ACCOUNT) if n != "_extra")
    return f"to_jsonb(t) - '{{{ours}}}'::text[]"


def _removal() -> str:
    """Return the changes of a deleted row, as text: every value to null."""
    return (
        "(SELECT coalesce(jsonb_object_agg(n.key, jsonb_build_array(n.value, NULL)), '{}') "
        f"FROM jsonb_each({_image()}) n WHERE n.value <> 'null')::text"
    )


def _key(table: Table) -> str:
    return key_text(table, "t")


def _change(table: str, key: str, kind: ChangeKind, changes: str, cause: Cause | None) -> NewChange:
    cause = cause or Cause()
    return NewChange(table, key, kind, changes, cause.event_id, cause.request_id)


def _count(status: str) -> int:
    return int(status.rpartition(" ")[2])
