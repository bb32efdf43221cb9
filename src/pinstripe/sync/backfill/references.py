"""Fetches what the lists did not return: referred objects, singletons, missing rows.

Lists hide deleted customers, closed reviews, inline prices, mandates and sources, while rows refer to them.
Each is fetched once, so that joins hold. What Stripe does not have is remembered in `pinstripe.missing` and
not requested again; what fails is queued in `pinstripe.pending`, and the rest goes on.

Singletons are the objects that an account has one of: its own record, its balance, its settings.

Missing rows are those that no list returned although all were read since: deleted without an event, deleted
while no worker ran, or never listed. Each is fetched by its id, and flagged if Stripe does not have it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import structlog

from pinstripe.catalog.endpoints import singleton_paths
from pinstripe.catalog.tables import Column, Table, table_name
from pinstripe.client.pagination import read_object
from pinstripe.concurrency import for_each
from pinstripe.errors import LostLease, NotFound, PinstripeError, Refused, Unwritable, WrongKey
from pinstripe.mirror.upsert import key_text
from pinstripe.rows.as_of import as_of_response
from pinstripe.rows.extract import RowSet
from pinstripe.source.resolve import can_be_fetched
from pinstripe.source.source import BACKFILL, REFERENCES, Source, retrieve_endpoint
from pinstripe.store.confirmations import key_hash, of_keys
from pinstripe.store.cursors import Checkpoint, ended_by
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.pool import Pool
from pinstripe.store.refetch import (
    NEITHER_MISSING_NOR_PENDING,
    Refetch,
    add_refetches,
    note_missing,
)

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_CHUNK = 500

_WORKERS = 16
"""Requests under way, over all tables."""

_QUERIES = 3
"""Concurrent queries for missing targets: fewer than the pool has connections."""

_ROUNDS = 6
"""Fetched objects refer to more; no test or account has needed more rounds."""


@dataclass(slots=True)
class Fetched:
    """The result, by table."""

    fetched: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    refused: dict[str, Refused] = field(default_factory=dict)

    def count(self, where: dict[str, int], table: str) -> None:
        where[table] = where.get(table, 0) + 1


class References:
    """Finds references without a target row and fetches their targets."""

    def __init__(self, source: Source, pool: Pool) -> None:
        self._source = source
        self._pool = pool
        self._schema = source.mirror.schema
        self.result = Fetched()
        self._workers = asyncio.Semaphore(_WORKERS)
        self._queries = asyncio.Semaphore(_QUERIES)
        self._changed: set[str] | None = None
        """Tables that may hold new references; None: all."""

    async def run(self) -> Fetched:
        """Return when no reference is left that Stripe could resolve."""
        written = self._source.mirror.written
        for _ in range(_ROUNDS):
            before = written.copy()
            async with asyncio.TaskGroup() as group:
                # Tables run concurrently: each endpoint has a rate of its own.
                fills = [group.create_task(self._fill(t)) for t in sorted(self._targets())]
            if not any(fill.result() for fill in fills):
                break
            # Only rows written since can refer to something new.
            self._changed = {t for t, rows in written.items() if rows != before[t]}
        return self.result

    def _targets(self) -> Iterator[str]:
        """Yield tables whose objects can be retrieved by their id alone."""
        for name, table in self._source.wanted.items():
            where = retrieve_endpoint(name) if not table.virtual else None
            if where is not None and not where.parent_parameter:
                yield name

    async def _fill(self, target: str) -> int:
        """Fetch every object that is referred to in `target` and has no row."""
        count, last = 0, ""
        while target not in self.result.refused:
            ids = await self._dangling(target, last)
            if not ids:
                break
            await self._fetch_all(target, ids)
            count += len(ids)
            last = ids[-1]
            if len(ids) < _CHUNK:
                break
        return count

    async def _dangling(self, target: str, last: str) -> list[str]:
        """Return up to a chunk of ids that rows refer to and `target` lacks, in order, after `last`."""
        parts = [
            _references(self._schema, table, column, target)
            for table, column in self._columns(target)
        ]
        if not parts:
            return []
        union = " UNION ALL ".join(parts)
        statement = (
            f"SELECT DISTINCT r.id FROM ({union}) AS r (id) WHERE r.id > $1 "
            f"AND NOT EXISTS (SELECT FROM {qualified(self._schema, target)} t WHERE t.id = r.id) "
            f"AND {NEITHER_MISSING_NOR_PENDING} "
            f"ORDER BY r.id LIMIT {_CHUNK}"
        )
        try:
            async with self._queries, self._pool.acquire() as connection:
                rows = await connection.fetch(statement, last, self._schema, target)
        except PinstripeError as error:
            if error.fault is None or error.fault.scope != "table":
                raise
            # One of the tables is gone, or may not be read: its quarantine reports it.
            _log.warning("references.unread", table=target, error=error.message)
            return []
        return [row[0] for row in rows]

    def _columns(self, target: str) -> Iterator[tuple[Table, Column]]:
        for table in self._source.wanted.values():
            if table.virtual or table.name not in self._source.mirror.tables:
                continue
            if self._changed is not None and table.name not in self._changed:
                continue
            for column in table.columns:
                if target in column.references and column.name not in table.key:
                    yield table, column

    async def _fetch_all(self, target: str, ids: list[str]) -> None:
        async def fetch(key: str) -> None:
            async with self._workers:
                if target not in self.result.refused:
                    await self._fetch(target, key)

        await for_each(ids, fetch, limit=_WORKERS)

    async def _fetch(self, target: str, key: str) -> None:
        try:
            await self._source.fetch(target, key, priority=REFERENCES)
            self.result.count(self.result.fetched, target)
        except NotFound as error:
            await self._remember(target, key, error.code or "not found")
        except (WrongKey, LostLease):
            raise
        except Refused as error:
            if not error.is_answer:
                await self._refused(target, key, error)
                return
            # A refusal of one holds for all of this type.
            self.result.refused[target] = error
            _log.info("references.refused", table=target, reason=error.message)
        except PinstripeError as error:
            if error.fault is not None:
                raise
            await self._owe(target, key, error)

    async def _refused(self, target: str, key: str, error: Refused) -> None:
        """A 400 to an id of another kind than the column promises means that it does not exist."""
        if error.status == 400:
            await self._remember(target, key, error.code or str(error.status))
        else:
            await self._owe(target, key, error)

    async def _owe(self, target: str, key: str, error: PinstripeError) -> None:
        _log.warning("references.owed", table=target, error=error.message)
        await self._source.owe(Refetch("fetch", target, key), error)

    async def _remember(self, target: str, key: str, reason: str) -> None:
        self.result.count(self.result.missing, target)
        async with self._source.transaction() as connection:
            await note_missing(connection, self._schema, target, key, reason)


def _references(schema: str, table: Table, column: Column, target: str) -> str:
    """Return the SELECT of the ids in one column that (may) refer to `target`."""
    name = quote(column.name)
    place = qualified(schema, table.name)
    if column.type == "text[]":
        return f"SELECT unnest({name}) FROM {place} WHERE {name} <> '{{}}'"
    condition = f"{name} IS NOT NULL"
    beside = column.name.removesuffix("_id") + "_object"
    polymorphic = any(c.name == beside and c.read == "object" for c in table.columns)
    if polymorphic:
        # Only if the type is known: an id of unknown type would be requested everywhere.
        condition += f" AND {quote(beside)} = '{_object_name(target)}'"
    return f"SELECT {name} FROM {place} WHERE {condition}"


def _object_name(table: str) -> str:
    where = retrieve_endpoint(table)
    return where.object_type if where is not None else table


async def read_singletons(source: Source, only: str = "") -> list[Checkpoint]:
    """Write the singletons, or the one at the path `only`; return a cursor for each that cannot be read.

    Refused by an answer of Stripe; failed after any other error, to be retried.
    """
    refused: list[Checkpoint] = []
    for name, path in singleton_paths().items():
        table = table_name(name)
        if table not in source.wanted or only not in ("", path):
            continue
        try:
            response = await source.stripe.get(path, endpoint=f"GET {path}", priority=BACKFILL)
            found = RowSet()
            source.mirror.extractor.object(read_object(response, path), found)
            await source.follow_all(found)
            await source.mirror.write([(found, as_of_response(response))])
        except (WrongKey, LostLease, Unwritable):
            raise
        except PinstripeError as error:
            refused.append(ended_by(error, path, {"table": table}))
    return refused


# Stripe deletes events after 30 days; the copy keeps them.
_KEPT = frozenset({"event", "v2_core_event"})


async def queue_missing(
    source: Source, tables: Iterable[str], since: float, *, most: int | None = None
) -> list[Refetch]:
    """Queue a fetch of each row that no snapshot has shown since then; return the refetches.

    `since`: Unix seconds on Stripe's clock. `most`: the oldest so many of each table.
    """
    found: list[Refetch] = []
    for table in sorted(set(tables) - _KEPT):
        known = source.wanted[table]
        if not can_be_fetched(table):
            continue
        alive = " AND deleted IS NOT TRUE" if known.deletable else ""
        async with source.transaction() as connection:
            rows = await connection.fetch(
                f"SELECT t.{quote(known.key[0])} FROM {qualified(source.mirror.schema, table)} t "
                f"WHERE _as_of_latest < to_timestamp($1){alive} AND NOT EXISTS (SELECT FROM"
                f" ({of_keys('$3', '$4', 'to_timestamp($1)')}) c"
                f" WHERE c.key = {key_hash(key_text(known, 't'))})"
                " ORDER BY _as_of_latest LIMIT $2",
                since,
                most,
                source.mirror.schema,
                table,
            )
            refetches = [Refetch("fetch", table, row[0], since=since) for row in rows]
            await add_refetches(connection, source.mirror.schema, refetches)
        found += refetches
    return found
