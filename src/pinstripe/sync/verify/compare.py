"""Compares batches of rows with the tables instead of writing them: the `Sink` of verify.

    Batch -> stage (COPY) -> one query per table and shape -> differences

A comparison reads Stripe through the same code as a sync, because a `Comparer` stands in place of the
mirror's writers. Each query returns the keys that the table lacks or holds with other content; the keys of
all listed rows are kept in a temp table, so memory is Postgres's and nothing outlives the run.

A `Difference` is a suspicion: the row or the object may be changing meanwhile. `recheck` decides.

Objects inside `jsonb` columns are compared by their ids if they have rows of their own: a tax rate that is
renamed changes every invoice that shows it, without an event of theirs.

`TableReport` and `Report` are what a run makes of them: values only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from hashlib import blake2b
from typing import Literal

import asyncpg

from pinstripe.catalog.embedded import present_in
from pinstripe.catalog.tables import Column, Table
from pinstripe.client.api_errors import permission_of
from pinstripe.mirror.batch import Batch, Conflict
from pinstripe.mirror.quarantine import Parted
from pinstripe.mirror.upsert import (
    FLEETING,
    extra_after,
    from_stage,
    same_row,
    same_values,
    stage,
    stored,
    unsaid,
)
from pinstripe.mirror.writer import StageTables
from pinstripe.rows.extract import Row, RowKey
from pinstripe.rows.layout import Shapes
from pinstripe.store.ddl import literal, qualified, quote
from pinstripe.store.links import link_of, linked_value
from pinstripe.store.pool import translated
from pinstripe.store.session import account_of

MOST = 20_000
"""Differences that are kept for each table; beyond it only their number is."""

_SEEN = "pg_temp.seen"

_BY_ID = """
CREATE FUNCTION pg_temp.by_id(value jsonb, types text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RETURN CASE pg_catalog.jsonb_typeof(value)
    WHEN 'array' THEN (
      SELECT pg_catalog.jsonb_agg(pg_temp.by_id(e.value, types) ORDER BY e.ordinality)
      FROM pg_catalog.jsonb_array_elements(value) WITH ORDINALITY AS e)
    WHEN 'object' THEN CASE WHEN value ->> 'object' = ANY (types) AND value ? 'id' THEN value -> 'id'
      ELSE (SELECT pg_catalog.jsonb_object_agg(e.key, pg_temp.by_id(e.value, types))
        FROM pg_catalog.jsonb_each(value) AS e) END
    ELSE value END;
END $$
"""
"""Objects of these types within a value -> their ids."""


class Comparer:
    """A `Sink` that compares. `since`: rows that were true only before this moment are left out."""

    def __init__(
        self,
        url: str,
        schema: str,
        tables: Mapping[str, Table],
        shapes: Shapes,
        *,
        since: float,
        loading: Collection[str] = (),
        most: int = MOST,
    ) -> None:
        """`loading` is read at each use: the tables in their initial load; their rows are not linked."""
        self.differences: dict[RowKey, Difference] = {}
        self.overflow: Counter[str] = Counter()
        self.forgot = False
        """The connection was lost, and with it the keys of the listed rows."""
        self.failed_at = ""
        self.watched: dict[RowKey, bool] = {}
        """Keys to watch, and whether they were listed."""
        self._stages = StageTables(
            url,
            session_name="pinstripe verify",
            account=account_of(schema),
            on_connected=self._on_connected,
        )
        self._schema = schema
        self._tables = tables
        self._loading = loading
        self._shapes = shapes
        self._since = since
        self._most = most
        self._counts: Counter[str] = Counter()
        self._was_connected = False

    async def close(self) -> None:
        """Close the session, and forget which keys were listed."""
        self._stages.close()

    async def write(self, batch: Batch) -> list[Conflict]:
        """Compare the batch; there are no conflicts. Checkpoints and effects are ignored."""
        async with self._stages.transaction() as connection:
            for one_round in batch.rounds:
                for table in sorted(one_round):
                    await self._compare(
                        connection, self._tables[table], one_round[table], batch.api_version
                    )
        return []

    async def write_apart(self, batch: Batch) -> Parted:
        """Like `write`: nothing is written, so Postgres refuses nothing."""
        return Parted(await self.write(batch))

    async def _on_connected(self, connection: asyncpg.Connection) -> None:
        self.forgot |= self._was_connected
        self._was_connected = True
        await connection.execute(
            f"CREATE TEMP TABLE pg_temp.seen (t text, k text, PRIMARY KEY (t, k)); {_BY_ID}"
        )

    async def _compare(
        self, connection: asyncpg.Connection, table: Table, group: Mapping[str, Row], version: str
    ) -> None:
        # A row of an earlier time cannot be compared with the present.
        rows = {key: row for key, row in group.items() if row[-4] > self._since}
        if not rows:
            return
        await self._stages.fill(connection, table, rows.values())
        await connection.execute(_note(table), table.name)
        known = {n: t for n, t in self._tables.items() if n not in self._loading}
        for shape in sorted({row[-1] for row in rows.values()}):
            text = differing(self._schema, table, self._shapes.columns(shape), known)
            different: dict[str, Difference] = {}
            for record in await connection.fetch(text, shape, version):
                _, version_there, always, on_request, is_partial, undeleted = record
                if version_there is None or always or on_request or is_partial or undeleted:
                    found = difference(table, rows[record[0]], record)
                    different[found.key] = found
            self._take(table.name, (k for k in rows if rows[k][-1] == shape), different)

    def _take(self, table: str, keys: Iterable[str], different: Mapping[str, Difference]) -> None:
        """Keep the differences. A match does not clear an earlier one, which may concern other columns."""
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
        """Remove and return a difference, so that it can be compared again."""
        found = self.differences.pop(place, None)
        if found is not None:
            self._counts[place[0]] -= 1
        return found

    async def shown(self) -> dict[str, int]:
        """Return table -> number of listed keys."""
        with translated():
            connection = await self._stages.connection()
            rows = await connection.fetch(f"SELECT t, count(*) FROM {_SEEN} GROUP BY t")
        return {row[0]: row[1] for row in rows}

    async def unlisted(
        self, table: Table, *, keep: str, limit: int | None
    ) -> tuple[int, int, list[Difference]]:
        """Return the unlisted rows: their number, how many are flagged deleted, and up to `limit` of them.

        `keep` is a SQL condition on rows `t` that need not be listed. Those not flagged deleted come
        first, in a random order that is the same each time.
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
            connection = await self._stages.connection()
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


def differing(schema: str, table: Table, shape: Sequence[str], known: Mapping[str, Table]) -> str:
    """Select staged rows of one shape that the table lacks or holds with other content. $1: the shape; $2:
    their API version. In a row of another version, what a whole object says nothing of must be null.

    Returns (key, the row's `_synced_at`, always, on_request, is_partial, undeleted): the names of differing
    columns, those that Stripe always returns and those on request; whether the row is partial; whether it
    is flagged deleted and the object is not. `known`: the tables of which the rows are linked
    (`store.links`): what other rows give is compared with these.
    """
    links = {c: link_of(schema, c, known) for c in table.linked if table.name in known}

    def value(column: Column) -> str:
        if link := links.get(column):
            return link
        if column.moved is None or not column.moved.rows:
            return from_stage(column)
        by_rows = linked_value(schema, column, known) if table.name in known else None
        return f"coalesce({from_stage(column)}, {by_rows or f't.{quote(column.name)}'})"

    columns = [c for c in map(table.column, shape) if c.name not in table.key]
    columns = [c for c in columns if (table.name, c.name) not in FLEETING]
    extra = f"t._extra IS DISTINCT FROM {extra_after(columns)}"
    columns += [c for c, link in links.items() if link]
    always = [c for c in columns if not c.on_request]
    on_request = [c for c in columns if c.on_request]
    key = quote(table.key[0])
    undeleted = "t.deleted IS TRUE AND s.deleted IS FALSE" if table.deletable else "false"
    same = f" OR NOT {same_values(columns, value)}" if columns else ""
    left = [f"t.{quote(c.name)} IS NOT NULL" for c in unsaid(table, shape)]
    stale = f"(t._api_version <> $2::text AND ({' OR '.join(left) or 'false'}))"
    same += f" OR {stale}"
    inside = held_types(table)
    names = f"{_names(always, value, extra, inside)} || CASE WHEN {stale} THEN ARRAY['_api_version'] END"
    return (
        f"SELECT s.{key}, t._synced_at, {names}, {_names(on_request, value, 'false', inside)}, "
        f"t._partial IS TRUE, {undeleted}\n"
        f"FROM {stage(table.name)} s "
        f"LEFT JOIN {stored(schema, table)} t ON {same_row(schema, table)}\n"
        f"WHERE s._shape = $1::int AND (t.{key} IS NULL OR {extra}{same})"
    )


@cache
def held_types(table: Table) -> Mapping[str, Sequence[str]]:
    """Column -> types of the objects that stand inside its JSON as they are now."""
    held = [
        (tuple(path.split(".")), place.targets)
        for path, place in present_in(table.object_type)
        if place.kind == "resource"
    ]
    found = {
        c.name: [t for path, types in held if path[: len(c.path)] == c.path for t in types]
        for c in table.columns
        if c.type == "jsonb" and c.path
    }
    return {name: types for name, types in found.items() if types}


def _names(
    columns: Sequence[Column],
    value: Callable[[Column], str],
    extra: str,
    inside: Mapping[str, Sequence[str]],
) -> str:
    """An array of the names of the columns that differ; `extra`: whether the unknown fields do. `inside`:
    see `held_types`.
    """

    def differs(column: Column) -> str:
        mine, theirs, types = f"t.{quote(column.name)}", value(column), inside.get(column.name)
        if not types:
            return f"{mine} IS DISTINCT FROM {theirs}"
        names = f"ARRAY[{', '.join(map(literal, types))}]"
        return f"pg_temp.by_id({mine}, {names}) IS DISTINCT FROM pg_temp.by_id({theirs}, {names})"

    cases = [f"CASE WHEN {differs(c)} THEN '{c.name}' END" for c in columns]
    cases.append(f"CASE WHEN {extra} THEN '_extra' END")
    return f"array_remove(ARRAY[{', '.join(cases)}]::text[], NULL)"


def _note(table: Table) -> str:
    """Insert the keys in the stage into the list of listed keys. $1: the table's name."""
    return (
        f"INSERT INTO {_SEEN} SELECT $1::text, {quote(table.key[0])} "
        f"FROM {stage(table.name)} ON CONFLICT DO NOTHING"
    )


DifferenceKind = Literal["missing", "stale", "extra", "wrongly_deleted", "partial"]
"""`partial`: the row is marked as lacking columns that Stripe returns on request only."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that differs from its object. `version` is the row's `_synced_at`, None if there is no row.

    `shown` is a hash of the object's content ("" if there is no object); `created` is the object's own,
    Unix seconds. `parents` are (table, key) of the objects that contain it.
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
    key, version, always, on_request, is_partial, undeleted = record
    kind: DifferenceKind = "stale"
    columns = (*always, *on_request)
    if version is None:
        kind, columns = "missing", ()
    elif undeleted:
        kind = "wrongly_deleted"
    elif table.deletable and "deleted" in always:
        kind = "extra"
    elif is_partial and not always:
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
        if c.type == "text" and c.name not in table.key and not c.is_derived
    ]


def parents_of(about: Sequence[tuple[str, str]], values: Sequence[object]) -> tuple[RowKey, ...]:
    pairs = zip(about, values, strict=True)
    return tuple((target, str(value)) for (target, _), value in pairs if value is not None)


ProofState = Literal["verified", "partly", "unverified"]
"""`partly`: not every row could be compared; `unverified`: Stripe did not list the table at all."""


@dataclass(slots=True)
class TableReport:
    """One table. All numbers are of rows, except `requests`.

    `listed`: Stripe listed so many. `remaining`: differences that persist. `repaired`: those that do not.
    `more`: suspicions beyond those remembered one by one; they count as differences. `moving`: changed
    during verification, so not judged. `unlisted`: rows that no list returns; `unchecked` of them were not
    fetched. `partial`: rows that lack what Stripe returns on request only, and are marked so.
    """

    table: str
    state: ProofState = "verified"
    reason: str = ""
    remedy: str = ""
    failed: bool = False
    rows: int = 0
    listed: int = 0
    requests: int = 0
    found: Counter[str] = field(default_factory=Counter)
    remaining: list[Difference] = field(default_factory=list)
    repaired: list[Difference] = field(default_factory=list)
    more: int = 0
    moving: int = 0
    partial: int = 0
    unlisted: int = 0
    unchecked: int = 0
    oldest: datetime | None = None
    newest: datetime | None = None

    @property
    def differences(self) -> int:
        return len(self.remaining) + self.more

    def mark_partial(self, reason: str, remedy: str = "") -> None:
        """Not all of it is proven. The first reason stays."""
        if self.state == "verified":
            self.state = "partly"
        self.reason, self.remedy = self.reason or reason, self.remedy or remedy


@dataclass(slots=True)
class Report:
    """All tables. `since`: the second on Stripe's clock at which the run began; `margin_s`: rows that an
    event of so many seconds before it concerns count as changing too, and are left out if they
    differ.
    """

    schema: str
    since: float
    started_at: datetime
    finished_at: datetime
    tables: dict[str, TableReport]
    requests: int
    digest: str
    margin_s: int = 0

    @property
    def left_out(self) -> int:
        """Rows that differed and are not judged: they were changing."""
        return sum(t.moving for t in self.tables.values())

    @property
    def unproven(self) -> list[TableReport]:
        """Tables that were not compared in full: rows that were changing, lists that failed, what the
        key may not read, rows that no list returns. Not: rows beyond the sample, and what the account
        does not have.
        """
        return [
            t
            for t in self.tables.values()
            if t.moving
            or t.failed
            or (t.state == "unverified" and t.rows)
            or (t.state != "verified" and permission_of(t.reason))
        ]

    @property
    def differences(self) -> int:
        return sum(t.differences for t in self.tables.values())

    @property
    def repaired(self) -> int:
        return sum(len(t.repaired) for t in self.tables.values())
