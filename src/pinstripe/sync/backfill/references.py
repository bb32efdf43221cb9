"""Fetches what the lists did not return: referred objects, singletons, missing rows.

Lists hide deleted customers, closed reviews, inline prices, mandates and sources, while rows refer to them.
Each is fetched once, so that joins hold, products by up to a hundred a request. What Stripe does not have
is remembered in `pinstripe.missing` and not requested again; what fails is queued in `pinstripe.pending`,
and the rest goes on. Fetches begin while lists are read, for targets whose own lists are complete.

Singletons are the objects that an account has one of: its own record, its balance, its settings.

Missing rows are those that no list returned although all were read since: deleted without an event, deleted
while no worker ran, or never listed. Each is fetched by its id, and flagged if Stripe does not have it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from pinstripe.catalog.endpoints import (
    PAGE,
    can_be_fetched,
    has_address,
    list_endpoints,
    retrieve_endpoint,
    singleton_paths,
)
from pinstripe.catalog.tables import LOGS, Column, Table, table_name
from pinstripe.client.response import as_of_response, read_object
from pinstripe.concurrency import for_each, wait_for
from pinstripe.errors import LostLease, NotFound, PinstripeError, Refused, Unwritable, WrongKey
from pinstripe.mirror.upsert import key_text
from pinstripe.rows.extract import RowSet
from pinstripe.source.source import BACKFILL, REFERENCES, Source
from pinstripe.store.confirmations import key_hash, of_keys
from pinstripe.store.cursors import READY, Checkpoint, ended_by
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

_NEVER = -1

_GROWTH = 1.5
_BESIDE_S = 1.0
"""Between two rounds while lists are read."""

_ROUNDS = 6
"""Fetched objects refer to more; no test or account has needed more rounds."""


@dataclass(slots=True)
class Fetched:
    """The result, by table."""

    fetched: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    refused: dict[str, Refused] = field(default_factory=dict)


_REMEMBERED = 20_000
"""Rows of a first copy whose ids are kept in memory; with more of them statements look for each target."""


Columns = Mapping[str, Sequence[tuple[Table, Column]]]
"""By target: the columns that refer to it."""


def columns_by_target(known: Mapping[str, Table]) -> Columns:
    """Return the columns of these tables that refer to others."""
    found: dict[str, list[tuple[Table, Column]]] = {}
    for table in known.values():
        for column in () if table.virtual else table.columns:
            is_own = column.name not in table.key and not column.is_derived
            for target in column.references if is_own else ():
                found.setdefault(target, []).append((table, column))
    return found


class Mentions:
    """The ids in the rows of a first copy: they show, mostly without a statement, that none is lacking. A
    statement costs Postgres some 3 ms, most of it for planning, and there would be a hundred.

    What `catalog.moved` gives a column stands in another reference, or is the key of another row.
    """

    def __init__(self, columns: Columns, *, most: int = _REMEMBERED) -> None:
        self._most = most
        self._places: dict[str, list[tuple[str, int, int | None, str]]] = {}
        """By table: (target, place of the column, place of its type, the type of the target)."""
        self._lacking: dict[str, dict[str, set[str]]] = {}
        """Target -> table that refers to it -> ids."""
        self._there: dict[str, set[str]] = {}
        self._count = 0
        places: dict[str, dict[str, int]] = {}
        for target, found in columns.items():
            for table, column in found:
                at = places.get(table.name)
                if at is None:
                    at = places[table.name] = {c.name: n for n, c in enumerate(table.columns)}
                if column.name in at:
                    beside = _type_beside(table, column)
                    type_at = at[beside.name] if beside else None
                    place = (target, at[column.name], type_at, _object_name(target))
                    self._places.setdefault(table.name, []).append(place)

    def add(self, rows: RowSet) -> None:
        """Take note of rows that are to be written."""
        for name, key, row in rows.places() if self._count < self._most else ():
            self._there.setdefault(name, set()).add(key)
            self._count += 1
            for target, at, type_at, type_name in self._places.get(name, ()):
                value = row[at]
                if value and (type_at is None or row[type_at] == type_name):
                    ids = value if isinstance(value, list) else (str(value),)
                    self._lacking.setdefault(target, {}).setdefault(name, set()).update(ids)
        if self._count >= self._most:
            self._lacking.clear()
            self._there.clear()

    def referring(self, target: str, tables: set[str]) -> set[str]:
        """Return those of the tables that may refer to rows that `target` does not have."""
        if self._count >= self._most:
            return tables
        lacking = self._lacking.get(target, {})
        for ids in lacking.values():
            ids.difference_update(self._there.get(target, ()))
        return {table for table in tables if lacking.get(table)}


class References:
    """Finds references without a target row and fetches their targets."""

    def __init__(self, source: Source, pool: Pool, is_complete: Callable[[str], bool]) -> None:
        """`is_complete`: whether no list can bring more rows of a table."""
        self._source = source
        self._pool = pool
        self._schema = source.mirror.schema
        self._is_complete = is_complete
        self.result = Fetched()
        self._workers = asyncio.Semaphore(_WORKERS)
        self._queries = asyncio.Semaphore(_QUERIES)
        self._read: dict[tuple[str, str], int] = {}
        """By target and table that refers to it: rows written when its references were last read."""
        self._growth = _GROWTH
        self._by_target = columns_by_target(source.wanted)
        self._mentions: Mentions | None = None
        self._singly = False
        """Whether Stripe refuses the list of products by their ids."""

    def skip_written(self, *, besides: Collection[str] = ()) -> None:
        """Read only tables in which this process writes rows: the references of the others are known, but
        for those to the tables `besides`.
        """
        for target in self._targets():
            for table in self._referring(target) if target not in besides else ():
                self._read[target, table] = 0
        if self._source.mirror.began_empty:
            self._mentions = Mentions(self._by_target)
            self._source.mirror.on_rows = self._mentions.add

    async def run_beside(self, lists_done: asyncio.Event) -> None:
        """Fetch targets while lists are read; return soon after the lists are done."""
        while not lists_done.is_set():
            await self._round()
            await wait_for(lists_done, _BESIDE_S)

    async def run(self) -> Fetched:
        """Return when no reference is left that Stripe could resolve."""
        self._growth = 1.0
        for _ in range(_ROUNDS):
            if not await self._round():
                break
        return self.result

    async def lacking(self, target: str, after: str = "") -> list[str]:
        """Return ids to which rows refer and that have no row, up to a chunk of them `after` one. Without
        those that Stripe does not have, and those to be fetched.
        """
        return await self._dangling(target, self._referring(target), after)

    async def _round(self) -> int:
        """Fetch what is referred to now; return how many objects. Tables run concurrently: each endpoint
        has a rate of its own.
        """
        async with asyncio.TaskGroup() as group:
            fills = [
                group.create_task(self._fill(target, tables))
                for target in sorted(self._targets())
                if self._is_complete(target) and (tables := self._changed(target))
            ]
        return sum(fill.result() for fill in fills)

    def _changed(self, target: str) -> set[str]:
        """Return the tables to read for new references: each costs a scan, so it must have grown by half
        since the last one, or be complete.
        """
        written = self._source.mirror.written
        changed: set[str] = set()
        for table in self._referring(target):
            before, now = self._read.get((target, table), _NEVER), written[table]
            grown = now > max(before, 0) * self._growth
            if before == _NEVER or (now > before and (grown or self._is_complete(table))):
                self._read[target, table] = now
                changed.add(table)
        return changed if self._mentions is None else self._mentions.referring(target, changed)

    def _targets(self) -> Iterator[str]:
        """Yield tables whose objects can be retrieved by their id alone."""
        for name, table in self._source.wanted.items():
            if not table.virtual and has_address(name):
                yield name

    def _referring(self, target: str) -> set[str]:
        return {table.name for table, _ in self._columns(target)}

    async def _fill(self, target: str, tables: Collection[str]) -> int:
        """Fetch every object of `target` to which these tables refer and that has no row."""
        count, last = 0, ""
        while target not in self.result.refused:
            ids = await self._dangling(target, tables, last)
            if not ids:
                break
            await self._fetch_all(target, ids)
            count += len(ids)
            last = ids[-1]
            if len(ids) < _CHUNK:
                break
        return count

    async def _dangling(self, target: str, tables: Collection[str], last: str) -> list[str]:
        """Return up to a chunk of ids that rows refer to and `target` lacks, in order, after `last`."""
        parts = [
            _references(self._schema, table, column, target)
            for table, column in self._columns(target)
            if table.name in tables
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

    def _columns(self, target: str) -> list[tuple[Table, Column]]:
        found = self._by_target.get(target, ())
        return [(t, c) for t, c in found if t.name in self._source.mirror.tables]

    async def _fetch_all(self, target: str, ids: list[str]) -> None:
        if target == "product":
            ids = await self._fetch_products(ids)

        async def fetch(key: str) -> None:
            async with self._workers:
                if target not in self.result.refused:
                    await self._fetch(target, key)

        await for_each(ids, fetch, limit=_WORKERS)

    async def _fetch_products(self, ids: list[str]) -> list[str]:
        """Fetch products by up to a hundred a request; return those that must be fetched one by one.

        It is the only list that takes ids (https://docs.stripe.com/api/products/list#list_products-ids).
        """
        endpoint = next(e for e in list_endpoints() if e.path == "/v1/products")
        shown: set[str] = set()
        for some in (ids[n : n + PAGE] for n in range(0, len(ids), PAGE)):
            if self._singly or len(some) == 1:
                break
            # With ids Stripe takes no cursor: nothing follows this page.
            params = [("ids[]", key) for key in some]
            try:
                await self._source.read(
                    endpoint, endpoint.path, params, priority=REFERENCES, enough=_first, shown=shown
                )
            except (WrongKey, LostLease):
                raise
            except PinstripeError as error:
                if error.fault is not None:
                    raise
                self._singly = error.is_answer
        self.result.fetched["product"] += len(shown)
        return [key for key in ids if key not in shown]

    async def _fetch(self, target: str, key: str) -> None:
        try:
            await self._source.fetch(target, key, priority=REFERENCES)
            self.result.fetched[target] += 1
        except NotFound as error:
            await self._remember(target, key, error.code or "not found")
        except (WrongKey, LostLease):
            raise
        except Refused as error:
            if error.permission or error.slug == "not_enabled":  # It holds for all of this type.
                self.result.refused[target] = error
                _log.info("references.refused", table=target, reason=error.message)
            elif error.is_answer or error.status == 400:
                # An id of another kind than the column promises, an account that is not connected any more.
                await self._remember(target, key, error.code or str(error.status))
            else:
                await self._owe(target, key, error)
        except PinstripeError as error:
            if error.fault is not None:
                raise
            await self._owe(target, key, error)

    async def _owe(self, target: str, key: str, error: PinstripeError) -> None:
        _log.warning("references.owed", table=target, error=error.message)
        await self._source.owe(Refetch("fetch", target, key, work=BACKFILL), error)

    async def _remember(self, target: str, key: str, reason: str) -> None:
        self.result.missing[target] += 1
        async with self._source.transaction() as connection:
            await note_missing(connection, self._schema, target, key, reason)


async def end_first_copy(source: Source) -> bool:
    """Fetch what rows refer to of a list that was read after the backfill; return whether it was the last
    one that the first copy lacked. Then the copy is complete, and noted as ready.
    """
    loading = source.mirror.loading
    await References(source, source.pool, lambda table: table not in loading).run()
    if not loading:
        await source.save([Checkpoint(READY, "done", as_of=source.now())])
    return not loading


async def _first(_: object) -> bool:
    """The first page is enough."""
    return True


def _references(schema: str, table: Table, column: Column, target: str) -> str:
    """Return the SELECT of the ids in one column that (may) refer to `target`."""
    name = quote(column.name)
    place = qualified(schema, table.name)
    if column.type == "text[]":
        return f"SELECT unnest({name}) FROM {place} WHERE {name} <> '{{}}'"
    condition = f"{name} IS NOT NULL"
    if beside := _type_beside(table, column):
        # Only if the type is known: an id of unknown type would be requested everywhere.
        condition += f" AND {quote(beside.name)} = '{_object_name(target)}'"
    return f"SELECT {name} FROM {place} WHERE {condition}"


def _type_beside(table: Table, column: Column) -> Column | None:
    """The column with the type of the object that this one refers to, if it may be of several."""
    name = column.name.removesuffix("_id") + "_object"
    return next((c for c in table.columns if c.name == name and c.read == "object"), None)


def _object_name(table: str) -> str:
    where = retrieve_endpoint(table)
    return where.object_type if where is not None else table


async def read_singletons(source: Source, only: str = "") -> list[Checkpoint]:
    """Write the singletons, or the one at the path `only`; return a cursor for each that cannot be read.

    Refused by an answer of Stripe; failed after any other error, to be retried.
    """
    refused: list[Checkpoint] = []

    async def read(name: str, path: str) -> None:
        table = table_name(name)
        try:
            response = await source.stripe.get(path, endpoint=f"GET {path}", priority=BACKFILL)
            found = RowSet()
            source.mirror.extractor.object(read_object(response, path), found)
            as_of = as_of_response(response)
            await source.follow_all(found, as_of=as_of)
            await source.mirror.write([(found, as_of)])
        except (WrongKey, LostLease, Unwritable):
            raise
        except PinstripeError as error:
            refused.append(ended_by(error, path, {"table": table}))

    chosen = [
        (name, path)
        for name, path in singleton_paths().items()
        if table_name(name) in source.wanted and only in ("", path)
    ]
    await for_each(chosen, lambda one: read(*one), limit=len(chosen) or 1)
    return refused


async def queue_missing(
    source: Source, tables: Iterable[str], since: float, *, most: int | None = None
) -> list[Refetch]:
    """Queue a fetch of each row that no snapshot has shown since then; return the refetches.

    `since`: Unix seconds on Stripe's clock. `most`: so many of each table, and others at another time: rows
    that no list ever shows are found each time.
    """
    found: list[Refetch] = []
    # Stripe deletes events after 30 days; the copy keeps them.
    for table in sorted(set(tables) - LOGS):
        known = source.wanted[table]
        if not can_be_fetched(table):
            continue
        alive = " AND deleted IS NOT TRUE" if known.deletable else ""
        if table in source.since and any(c.name == "created" for c in known.columns):
            # Older ones came by reference, and no list shows them.
            alive += f" AND created >= pg_catalog.to_timestamp({int(source.since[table])})"
        async with source.transaction() as connection:
            rows = await connection.fetch(
                f"SELECT t.{quote(known.key[0])} FROM {qualified(source.mirror.schema, table)} t "
                f"WHERE _as_of_latest < to_timestamp($1){alive} AND NOT EXISTS (SELECT FROM"
                f" ({of_keys('$3', '$4', 'to_timestamp($1)')}) c"
                f" WHERE c.key = {key_hash(key_text(known, 't'))})"
                f" ORDER BY hashtextextended({key_text(known, 't')}, $1::float8::bigint) LIMIT $2",
                since,
                most,
                source.mirror.schema,
                table,
            )
            refetches = [
                Refetch("fetch", table, row[0], since=since, work=BACKFILL) for row in rows
            ]
            await add_refetches(connection, source.mirror.schema, refetches)
        found += refetches
    return found
