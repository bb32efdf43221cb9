"""Compares batches of rows with the tables instead of writing them.

A `Comparer` takes the place of a mirror's writers, so a comparison reads Stripe with the same code that
copies it. Rows arrive by COPY into a stage. One statement per table and shape returns the keys that the
table lacks or holds with other content; another one records every key that was listed. All of it is in temp
tables of one connection: the memory is Postgres's, and nothing outlives the run.

A difference found here is a suspicion until `recheck` has confirmed it: the row or the object may be
changing at this moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Literal

import asyncpg

from pinstripe.catalog.tables import Column, Table
from pinstripe.mirror.batch import Batch
from pinstripe.mirror.upsert import STAGE_EXTRA, create_stage, from_stage, stage_name
from pinstripe.rows.extract import Row
from pinstripe.rows.layout import Shapes
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.pool import connect_dedicated, translated
from pinstripe.store.quarantine import Parted
from pinstripe.store.refetch import Conflict

MOST = 20_000
"""Differences remembered for each table; further ones are only counted."""

# Values that change at Stripe silently and mean nothing to a copy.
_FLEETING = {
    ("event", "pending_webhooks"),  # Counts down while webhooks are delivered.
    ("terminal_reader", "last_seen_at"),  # Every few seconds, as long as the reader is on.
    ("terminal_reader", "status"),
}

_SEEN = "pg_temp.seen"

_DEAD_ROWS = 1000


class Comparer:
    """A `Sink` that compares. `since`: rows that are only true before this moment are left out."""

    def __init__(
        self,
        url: str,
        schema: str,
        tables: Mapping[str, Table],
        shapes: Shapes,
        *,
        since: float,
        most: int = MOST,
    ) -> None:
        self.differences: dict[RowKey, Difference] = {}
        self.overflow: Counter[str] = Counter()
        self.forgot = False
        """The connection was lost, and with it which keys were listed."""
        self.failed_at = ""
        self.watched: dict[RowKey, bool] = {}
        """Watched keys, and whether they were read."""
        self._url = url
        self._schema = schema
        self._tables = tables
        self._shapes = shapes
        self._since = since
        self._most = most
        self._counts: Counter[str] = Counter()
        self._stages: dict[str, int] = {}  # And how many dead rows each holds.
        self._connection: asyncpg.Connection | None = None

    async def close(self) -> None:
        """Close the connection and forget what it held."""
        connection, self._connection = self._connection, None
        self._stages.clear()
        if connection is not None and not connection.is_closed():
            connection.terminate()

    async def write(self, batch: Batch) -> list[Conflict]:
        """Compare the batch; there are no conflicts. Checkpoints and effects are left alone."""
        try:
            with translated():
                connection = await self._connected()
                async with connection.transaction():
                    for one_round in batch.rounds:
                        for table in sorted(one_round):
                            await self._compare(connection, self._tables[table], one_round[table])
        except BaseException:
            self.forgot = self.forgot or self._connection is not None
            await self.close()
            raise
        return []

    async def write_apart(self, batch: Batch) -> Parted:
        """Like `write`: nothing is written, so Postgres can refuse nothing."""
        return Parted(await self.write(batch))

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self.forgot = self.forgot or self._connection is not None
            self._stages.clear()
            self._connection = await connect_dedicated(
                self._url, application_name="pinstripe verify"
            )
            await self._connection.execute(
                "CREATE TEMP TABLE pg_temp.seen (t text, k text, PRIMARY KEY (t, k))"
            )
        return self._connection

    async def _compare(
        self, connection: asyncpg.Connection, table: Table, group: Mapping[str, Row]
    ) -> None:
        # A row as of another time cannot be compared with the present.
        rows = {key: row for key, row in group.items() if row[-4] > self._since}
        if not rows:
            return
        stage = stage_name(table)
        if stage not in self._stages:
            await connection.execute(create_stage(table))
            self._stages[stage] = 0
        await connection.copy_records_to_table(
            stage,
            schema_name="pg_temp",
            records=list(rows.values()),
            columns=[*(c.name for c in table.columns), *STAGE_EXTRA],
        )
        await connection.execute(_note(table), table.name)
        for shape in sorted({row[-1] for row in rows.values()}):
            text = differing(self._schema, table, self._shapes.columns(shape))
            different: dict[str, Difference] = {}
            for record in await connection.fetch(text, shape):
                found = difference(table, rows[record[0]], record)
                different[found.key] = found
            self._take(table.name, (k for k in rows if rows[k][-1] == shape), different)
        await self._empty(connection, stage, len(rows))

    async def _empty(self, connection: asyncpg.Connection, stage: str, rows: int) -> None:
        """Like the writer: by DELETE, and now and then by TRUNCATE, which costs more each time."""
        dead = self._stages[stage] + rows
        emptied = dead > _DEAD_ROWS
        await connection.execute(
            f"{'TRUNCATE' if emptied else 'DELETE FROM'} pg_temp.{quote(stage)}"
        )
        self._stages[stage] = 0 if emptied else dead

    def _take(self, table: str, keys: Iterable[str], different: Mapping[str, Difference]) -> None:
        """Record differences. A match does not clear an earlier difference: that one may concern other
        columns.
        """
        for key in keys:
            if (table, key) in self.watched:
                self.watched[table, key] = True
        for key, found in different.items():
            if (table, key) in self.differences:
                self.differences[table, key] = found
            elif self._counts[table] < self._most:
                self.differences[table, key] = found
                self._counts[table] += 1
            else:
                self.overflow[table] += 1

    def forget(self, place: RowKey) -> Difference | None:
        """Remove and return a difference, to recheck it."""
        found = self.differences.pop(place, None)
        if found is not None:
            self._counts[place[0]] -= 1
        return found

    # What was listed.

    async def shown(self) -> dict[str, int]:
        """Return table -> how many keys Stripe has listed."""
        with translated():
            connection = await self._connected()
            rows = await connection.fetch(f"SELECT t, count(*) FROM {_SEEN} GROUP BY t")
        return {row[0]: row[1] for row in rows}

    async def unlisted(
        self, table: Table, *, keep: str, limit: int | None
    ) -> tuple[int, int, list[Difference]]:
        """Return how many rows Stripe has not listed, how many of them are flagged deleted, and up to
        `limit`.

        `keep` is a SQL condition on rows `t` that need not be listed. Those not flagged deleted come first,
        in a random order that is the same each time.
        """
        key = f"t.{quote(table.key[0])}"
        flagged = "t.deleted IS TRUE" if table.deletable else "false"
        about = relations(table)
        names = "".join(f", t.{quote(name)}" for _, name in about)
        rows = (
            f"FROM {qualified(self._schema, table.name)} t WHERE NOT ({keep}) AND NOT EXISTS "
            f"(SELECT FROM {_SEEN} s WHERE s.t = $1 AND s.k = {key})"
        )
        top = "" if limit is None else f" LIMIT {limit}"
        with translated():
            connection = await self._connected()
            counts = await connection.fetchrow(
                f"SELECT count(*), count(*) FILTER (WHERE {flagged}) {rows}", table.name
            )
            assert counts is not None  # noqa: S101 (an aggregate has one row)
            if not counts[0]:
                return 0, 0, []
            found = await connection.fetch(
                f"SELECT {key}, t._synced_at, {flagged}{names} {rows} ORDER BY 3, md5({key}){top}",
                table.name,
            )
        return (
            counts[0],
            counts[1],
            [
                Difference(table.name, r[0], "extra", (), r[1], parents=parents_of(about, r[3:]))
                for r in found
            ],
        )


def differing(schema: str, table: Table, shape: Sequence[str]) -> str:
    """Return a SELECT of staged rows of one shape that the table lacks or holds with other content. $1: the
    shape.

    Its columns: key, the row's `_synced_at`, `told` and `asked` (the names of differing columns: those that
    Stripe always returns, and those that a partial row never had), undeleted (the row is flagged deleted,
    the object is not).
    """
    columns = [c for c in map(table.column, shape) if c.name not in table.key]
    columns = [c for c in columns if (table.name, c.name) not in _FLEETING]
    told = [c for c in columns if not c.on_request]
    asked = [c for c in columns if c.on_request]
    key = quote(table.key[0])
    undeleted = "t.deleted IS TRUE AND s.deleted IS FALSE" if table.deletable else "false"
    extra = f"t._extra IS DISTINCT FROM {_extra_after(columns)}"
    alike = " AND ".join(
        f"ROW({', '.join(f't.{quote(c.name)}' for c in group)}) IS NOT DISTINCT FROM "
        f"ROW({', '.join(map(from_stage, group))})"
        for group in (told, asked)
        if group
    )
    return (
        f"SELECT s.{key}, t._synced_at, {_names(told, extra)}, {_names(asked, 'false')}, "
        f"t._partial IS TRUE, {undeleted}\n"
        f"FROM pg_temp.{quote(stage_name(table))} s "
        f"LEFT JOIN {qualified(schema, table.name)} t ON t.{key} = s.{key}\n"
        f"WHERE s._shape = $1::int AND (t.{key} IS NULL OR {extra}"
        + (f" OR NOT ({alike}))" if alike else ")")
    )


def _names(columns: Sequence[Column], extra: str) -> str:
    """Return an array of the names of the columns that differ; `extra`: whether the unknown fields do."""
    cases = [
        f"CASE WHEN t.{quote(c.name)} IS DISTINCT FROM {from_stage(c)} THEN '{c.name}' END"
        for c in columns
    ]
    cases.append(f"CASE WHEN {extra} THEN '_extra' END")
    return f"array_remove(ARRAY[{', '.join(cases)}]::text[], NULL)"


def _extra_after(columns: Sequence[Column]) -> str:
    """Return what `_extra` would be if the staged row were written (see `mirror.upsert`)."""
    fields = sorted({c.path[0] for c in columns if c.path})
    array = ", ".join("'" + f.replace("'", "''") + "'" for f in fields)
    return (
        "CASE WHEN t._extra IS NULL THEN s._extra::jsonb ELSE nullif((t._extra - "
        f"ARRAY[{array}]::text[]) || coalesce(s._extra::jsonb, '{{}}'), '{{}}') END"
    )


def _note(table: Table) -> str:
    """Return an INSERT that records the keys in the stage. $1: the table's name."""
    return (
        f"INSERT INTO {_SEEN} SELECT $1::text, {quote(table.key[0])} "
        f"FROM pg_temp.{quote(stage_name(table))} ON CONFLICT DO NOTHING"
    )


RowKey = tuple[str, str]
"""(table, key)."""

DifferenceKind = Literal["missing", "stale", "extra", "wrongly_deleted", "partial"]
"""`partial`: the row is marked as lacking what Stripe returns on request only."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One row that is not as Stripe returned it. `version` is the row's `_synced_at`, None if there is no
    row.

    `shown` is a hash of the content that Stripe returned ("" if it has no object); `created` is the
    object's own, Unix seconds. `parents` are (table, key) of what it hangs under.
    """

    table: str
    key: str
    kind: DifferenceKind
    columns: tuple[str, ...] = ()
    version: datetime | None = None
    shown: str = ""
    created: int | None = None
    parents: tuple[RowKey, ...] = ()

    @property
    def place(self) -> RowKey:
        return (self.table, self.key)


def difference(table: Table, row: Row, record: asyncpg.Record) -> Difference:
    key, version, told, asked, is_partial, undeleted = record
    kind: DifferenceKind = "stale"
    columns = (*told, *asked)
    if version is None:
        kind, columns = "missing", ()
    elif undeleted:
        kind = "wrongly_deleted"
    elif table.deletable and "deleted" in told:
        kind = "extra"
    elif is_partial and not told:
        kind = "partial"
    at = {c.name: i for i, c in enumerate(table.columns)}
    created = row[at["created"]] if "created" in at else None
    about = relations(table)
    return Difference(
        table.name,
        key,
        kind,
        columns,
        version,
        blake2b(repr(row[:-5]).encode(), digest_size=12).hexdigest(),
        created if isinstance(created, int) else None,
        parents_of(about, [row[at[name]] for _, name in about]),
    )


def relations(table: Table) -> list[tuple[str, str]]:
    """Return (target, column) of the references of one id each."""
    return [
        (target, c.name)
        for c in table.columns
        for target in c.references
        if c.type == "text" and c.name not in table.key
    ]


def parents_of(about: Sequence[tuple[str, str]], values: Sequence[object]) -> tuple[RowKey, ...]:
    pairs = zip(about, values, strict=True)
    return tuple((target, str(value)) for (target, _), value in pairs if value is not None)
