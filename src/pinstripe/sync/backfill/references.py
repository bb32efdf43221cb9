"""Fetches what rows refer to and no list returned, once each, so that joins hold.

Deleted customers, closed reviews, inline prices, mandates, sources: lists hide them, rows name them.
What Stripe does not have is remembered in `pinstripe.missing` and not asked for again; what meets trouble
is noted as owed (`pinstripe.pending`), and the rest goes on.

Objects that are one to an account: its own record, its balance, its settings. One GET each.

Rows that nothing has shown since a moment, although all lists were read after it: what became of them.

Deleted without a word, deleted while nobody listened, or never shown by any list (an inline price, what
is only referred to). Each is asked for by its id: what Stripe does not have is flagged, the rest renewed.
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
from pinstripe.rows.as_of import as_of_response
from pinstripe.rows.extract import RowSet
from pinstripe.source.resolve import can_be_fetched
from pinstripe.source.source import BACKFILL, REFERENCES, Source, retrieve_endpoint
from pinstripe.store.cursors import Checkpoint, ended_by
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.pool import Pool
from pinstripe.store.refetch import Refetch, add_refetches

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_CHUNK = 500

_WORKERS = 16
"""Requests under way at once, over all tables."""

_LOOKERS = 3
"""Queries for what is missing at once: fewer than the pool has connections."""

_ROUNDS = 6
"""What is fetched refers to more; beyond this depth nothing new was ever seen."""


@dataclass(slots=True)
class Fetched:
    """What was done, by table."""

    fetched: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    refused: dict[str, Refused] = field(default_factory=dict)

    def count(self, where: dict[str, int], table: str) -> None:
        where[table] = where.get(table, 0) + 1


class References:
    """Looks for references into nothing and fetches their targets."""

    def __init__(self, source: Source, pool: Pool) -> None:
        self._source = source
        self._pool = pool
        self._schema = source.mirror.schema
        self.result = Fetched()
        self._workers = asyncio.Semaphore(_WORKERS)
        self._lookers = asyncio.Semaphore(_LOOKERS)
        self._changed: set[str] | None = None
        """Tables worth looking through; None: all."""

    async def run(self) -> Fetched:
        """Returns when no reference is left that Stripe could answer."""
        written = self._source.mirror.written
        for _ in range(_ROUNDS):
            before = written.copy()
            async with asyncio.TaskGroup() as group:
                # By table at the same time: each endpoint has a rate of its own.
                fills = [group.create_task(self._fill(t)) for t in sorted(self._targets())]
            if not any(fill.result() for fill in fills):
                break
            # Only what was written since can refer to something new.
            self._changed = {t for t, rows in written.items() if rows != before[t]}
        return self.result

    def _targets(self) -> Iterator[str]:
        """Tables whose objects can be retrieved by their id alone."""
        for name, table in self._source.wanted.items():
            where = retrieve_endpoint(name) if not table.virtual else None
            if where is not None and not where.parent_parameter:
                yield name

    async def _fill(self, target: str) -> int:
        """Fetches everything that is referred to in `target` and is not there."""
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
        """Up to a chunk of ids that rows refer to and `target` lacks, in order, after `last`."""
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
            f"AND NOT EXISTS (SELECT FROM pinstripe.missing m WHERE m.schema = $2 "
            f'AND m."table" = $3 AND m.id = r.id AND left(m.id, 500) = left(r.id, 500)) '
            "AND NOT EXISTS (SELECT FROM pinstripe.pending p WHERE p.schema = $2 "
            "AND p.kind = 'fetch' AND p.\"table\" = $3 AND p.id = r.id "
            "AND left(p.id, 500) = left(r.id, 500)) "
            f"ORDER BY r.id LIMIT {_CHUNK}"
        )
        try:
            async with self._lookers, self._pool.acquire() as connection:
                rows = await connection.fetch(statement, last, self._schema, target)
        except PinstripeError as error:
            if error.fault is None or error.fault.scope != "table":
                raise
            # One of the tables is gone, or may not be read: it is named by its quarantine.
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
            # What holds for one holds for all of this type.
            self.result.refused[target] = error
            _log.info("references.refused", table=target, reason=error.message)
        except PinstripeError as error:
            if error.fault is not None:
                raise
            await self._owe(target, key, error)

    async def _refused(self, target: str, key: str, error: Refused) -> None:
        """A 400 to an id of another kind than the column promises says that it is not there."""
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
            await connection.execute(
                'INSERT INTO pinstripe.missing (schema, "table", id, reason) VALUES ($1, $2, $3, $4)'
                ' ON CONFLICT (schema, "table", left(id, 500), hashtextextended(id, 0))'
                " DO UPDATE SET reason = $4, checked_at = now()",
                self._schema,
                target,
                key,
                reason,
            )


def _references(schema: str, table: Table, column: Column, target: str) -> str:
    """SELECT of the ids in one column that (may) refer to `target`."""
    name = quote(column.name)
    place = qualified(schema, table.name)
    if column.type == "text[]":
        return f"SELECT unnest({name}) FROM {place} WHERE {name} <> '{{}}'"
    condition = f"{name} IS NOT NULL"
    beside = column.name.removesuffix("_id") + "_object"
    polymorphic = any(c.name == beside and c.read == "object" for c in table.columns)
    if polymorphic:
        # Only where the type is known: an id of unknown type would be asked for everywhere.
        condition += f" AND {quote(beside)} = '{_object_name(target)}'"
    return f"SELECT {name} FROM {place} WHERE {condition}"


def _object_name(table: str) -> str:
    where = retrieve_endpoint(table)
    return where.object_type if where is not None else table


async def read_singletons(source: Source, only: str = "") -> list[Checkpoint]:
    """Writes them, or the one at the path `only`; gives a cursor for each that cannot be read.

    Refused by an answer of Stripe's; failed by trouble, and to be tried again.
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
            await source.mirror.put(found, as_of_response(response))
        except (WrongKey, LostLease, Unwritable):
            raise
        except PinstripeError as error:
            refused.append(ended_by(error, path, {"table": table}))
    return refused


# Events go from Stripe after 30 days, and stay in the copy.
_KEPT = frozenset({"event", "v2_core_event"})


async def queue_missing(
    source: Source, tables: Iterable[str], since: float, *, most: int | None = None
) -> list[Refetch]:
    """Notes a request for each such row of these tables, the oldest `most` of each; gives them.

    `since`: Unix seconds on Stripe's clock.
    """
    found: list[Refetch] = []
    for table in sorted(set(tables) - _KEPT):
        known = source.wanted[table]
        if not can_be_fetched(table):
            continue
        alive = " AND deleted IS NOT TRUE" if known.deletable else ""
        async with source.transaction() as connection:
            rows = await connection.fetch(
                f"SELECT {quote(known.key[0])} FROM {qualified(source.mirror.schema, table)} "
                f"WHERE _as_of_latest < to_timestamp($1){alive} ORDER BY _as_of_latest LIMIT $2",
                since,
                most,
            )
            refetches = [Refetch("fetch", table, row[0], since=since) for row in rows]
            await add_refetches(connection, source.mirror.schema, refetches)
        found += refetches
    return found
