"""Reads lists and objects again: which suspected differences are real, and, on request, their repair.

Others are rows that changed during verification. Each suspicion is rechecked: the object is read, and the
row after it. It counts as a difference only if

- Stripe returns what it returned the first time, and not what the row has;
- the row has not been written in between (its `_synced_at` is the same);
- no event since the beginning concerns the object or what holds it, and no refetch of it is pending.

Anything else changed during verification; the worker will sync it and the next run will check it. If a
worker follows the account, it gets `grace_s` before each recheck.

`Repairs` writes what differs through the mirror, and checks whether that has helped. Rows that Stripe does
not have are flagged deleted, if their table has the flag. Entries that are no longer in the list of their
parent (the lines of a draft, entitlements) are deleted. Anything else is left to the operator: Stripe
deletes some objects that a copy may well keep.

Everything is read by the code of the backfill, every list from its top. With the mirror of a `Comparer`
that saves nothing; with the real one it repairs, and the cursors record that the lists were read.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache

import structlog

from pinstripe.catalog.endpoints import (
    ListEndpoint,
    has_address,
    list_endpoints,
    retrieve_endpoint,
    singleton_paths,
)
from pinstripe.catalog.model import object_types
from pinstripe.catalog.relations import with_events
from pinstripe.catalog.tables import table_name
from pinstripe.client.client import iter_pages, list_at, quote_id
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.response import as_of_response, read_object
from pinstripe.concurrency import for_each
from pinstripe.errors import (
    NotEnabled,
    NotFound,
    NotPermitted,
    PinstripeError,
    Unwritable,
    WrongKey,
)
from pinstripe.mirror.change_feed import delete_rows
from pinstripe.mirror.orphans import ENTRIES_GO
from pinstripe.rows.event import EVENTS, payload
from pinstripe.rows.extract import RowKey, RowSet
from pinstripe.source.resolve import mark_deleted
from pinstripe.source.source import BACKFILL, LIVE, Source
from pinstripe.store.cursors import LEFT_OUT, Checkpoint
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.links import link_all
from pinstripe.store.pool import Connection
from pinstripe.store.refetch import load_waiting
from pinstripe.sync.backfill.child_lists import open_list
from pinstripe.sync.backfill.list_stream import ListReader, Scheduler
from pinstripe.sync.backfill.references import read_singletons
from pinstripe.sync.events.reader import LATE_S
from pinstripe.sync.verify.compare import Comparer, Difference, TableReport

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)
_WORKERS, _REPAIRING = 12, 8
_BY_LIST = 200
_UNDER = " under"
"""Behind the name of a table: its rows under the parent with this id are waiting to be read."""
_ROUNDS = 3
"""An object that changes between all of them changes all the time."""


@dataclass(slots=True)
class ListRun:
    """Lists that were read, or are being read; `refused` are singletons that cannot be."""

    works: list[ListReader] = field(default_factory=list)
    refused: list[Checkpoint] = field(default_factory=list)

    def requests(self) -> Counter[str]:
        """By table of what is listed."""
        found: Counter[str] = Counter()
        for work in self.works:
            found[work.table] += work.final().requests
        return found

    def ends(self) -> Iterator[tuple[str, Checkpoint]]:
        """Yield (table, how its list ended), for each table that a list returns."""
        for work in self.works:
            for name in work.endpoint.objects:
                yield table_name(name), work.final()
        for checkpoint in self.refused:
            if checkpoint.table:
                yield checkpoint.table, checkpoint


async def read_lists(
    source: Source,
    budget: RateLimiter,
    *,
    now: float,
    account_created: int,
    only: Collection[str] | None = None,
    found: ListRun | None = None,
) -> ListRun:
    """Read every list that returns rows of these tables, by default of all that are synced.

    `found` is filled as it goes, for the progress display.
    """
    found = found if found is not None else ListRun()
    names = set(source.wanted if only is None else only)
    for endpoint in list_endpoints():
        shown = [table for table in endpoint.tables if table in names]
        if not shown:
            continue
        work = open_list(
            endpoint, shown[0], source, source.pool, now=now, account_created=account_created
        )
        parent = endpoint.parent_table if endpoint.parent else None
        if parent is not None and parent not in source.wanted:
            work.end("refused", f"{parent} is not synced", code=LEFT_OUT)
        found.works.append(work)
    if names & {table_name(o) for o in singleton_paths()}:
        found.refused = await read_singletons(source)
    await Scheduler(budget).run(found.works)
    return found


@dataclass(frozen=True, slots=True)
class ReadPath:
    """How a row is read again: by a GET of the object `key` of `table`, or by the list `endpoint` under the
    parent `key`.

    `whole`: what it does not return does not exist at Stripe.
    """

    table: str
    key: str
    parent: str = ""
    endpoint: ListEndpoint | None = None
    whole: bool = True

    @property
    def unit(self) -> str:
        """The unit in which Stripe permits or refuses."""
        return self.endpoint.name if self.endpoint is not None else self.table


def path_to(found: Difference) -> ReadPath | None:
    """By its own id if Stripe can, else through its parent or holder; None if nothing returns it."""
    if found.table in {table_name(name) for name in singleton_paths()}:
        return ReadPath(found.table, "", whole=False)
    if has_address(found.table):
        return ReadPath(found.table, found.key)
    where = retrieve_endpoint(found.table)
    if where is not None:
        parent = _table_at(where.path.partition("/{")[0])
        for table, key in found.parents:
            if table == parent:
                return ReadPath(found.table, found.key, key)
    for endpoint in list_endpoints():
        if endpoint.parent and found.table in endpoint.tables:
            for table, key in found.parents:
                if table == endpoint.parent_table:
                    return ReadPath(found.table, key, endpoint=endpoint)
    holders = _holders().get(found.table, {})
    for table, key in found.parents:
        if table in holders and has_address(table):
            return ReadPath(table, key, whole=holders[table])
    return None


async def read(source: Source, read_path: ReadPath, *, known_until: datetime | None = None) -> None:
    """Read what the path leads to into the mirror. Raises NotFound if Stripe does not have it.

    `known_until`: see `AsOf`.
    """
    if read_path.endpoint is not None:
        path, params = read_path.endpoint.url(read_path.key, quote_id(read_path.key))
        above = {read_path.endpoint.parent_table: read_path.key}
        await source.read(read_path.endpoint, path, params, parents=above, known_until=known_until)
        return
    if not read_path.key:
        await read_singletons(source)
        return
    where = retrieve_endpoint(read_path.table)
    assert where is not None  # noqa: S101 (`path_to` has checked it)
    response = await source.get_object(where, read_path.key, read_path.parent, BACKFILL)
    # Alone it does not name its parent, as it did in the parent's list.
    above = {_table_at(where.path.partition("/{")[0]): read_path.parent} if read_path.parent else {}
    found = source.extract([read_object(response, where.path)], above)
    as_of = replace(as_of_response(response), known_until=known_until)
    await source.follow_all(found, as_of=as_of)
    await source.mirror.write([(found, as_of)])


def holds(table: str, place: RowKey) -> bool:
    """Whether objects of `place`'s table hold rows of `table`."""
    return place[0] in _holders().get(table, {})


@cache
def _holders() -> Mapping[str, Mapping[str, bool]]:
    """Return table -> tables whose objects hold its objects at their top level; True if in a list."""
    found: dict[str, dict[str, bool]] = {}
    for name, object_type in object_types().items():
        for known in object_type.fields:
            if known.kind in ("list", "resource"):
                for target in known.targets:
                    group = found.setdefault(table_name(target), {})
                    group[table_name(name)] = group.get(table_name(name), False) or (
                        known.kind == "list"
                    )
    return found


@cache
def _table_at(path: str) -> str:
    """Return the table of what is listed at a path."""
    names = [e.objects[0] for e in list_endpoints() if e.path == path]
    return table_name(names[0]) if names else ""


@dataclass(slots=True)
class RecheckResult:
    """The outcome of suspicions. `same`: both agree by now; `changing`: it changed meanwhile; `unknown`:
    Stripe cannot be requested, `Rechecker.reasons` has the reason by table.
    """

    confirmed: list[Difference] = field(default_factory=list)
    same: Counter[str] = field(default_factory=Counter)
    changing: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)


class Rechecker:
    """Rechecks suspicions. `looking` is the source whose mirror compares by `comparer`."""

    def __init__(
        self,
        looking: Source,
        comparer: Comparer,
        *,
        since: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`since`: Unix second on Stripe's clock; what an event from then on concerns was changing."""
        self.reasons: dict[str, str] = {}
        self.requests: Counter[str] = Counter()
        self._looking = looking
        self._comparer = comparer
        self._since = since
        self._sleep = sleep
        self._refused: set[str] = set()
        self._in_events: set[RowKey] = set()
        self._read_to = since

    async def decide(self, suspects: Iterable[Difference], *, grace_s: float) -> RecheckResult:
        """Return when each suspicion is confirmed or dropped."""
        result = RecheckResult()
        open_ = {s.place: s for s in suspects}
        for _ in range(_ROUNDS):
            if not open_:
                break
            if grace_s:
                await self._sleep(grace_s)
            second = await self.recheck(open_.values())
            wrong = any(found is not None for found in second.values())
            changed = await self._changed() if wrong else ()
            open_ = self._classify(open_, second, changed, result)
        result.changing.update(table for table, _ in open_)
        return result

    async def drop_changing(self, steady: Iterable[Difference], result: RecheckResult) -> None:
        """Confirm what differed twice in the same way, except for what events concern."""
        found = list(steady)
        changed = await self._changed() if found else set()
        for suspect in found:
            if self._was_changing(suspect, changed):
                result.changing[suspect.table] += 1
            else:
                result.confirmed.append(suspect)

    def _classify(
        self,
        first: Mapping[RowKey, Difference],
        second: Mapping[RowKey, Difference | None],
        changed: Collection[RowKey],
        result: RecheckResult,
    ) -> dict[RowKey, Difference]:
        """Classify the results; return what must be rechecked once more."""
        again: dict[RowKey, Difference] = {}
        for place, before in first.items():
            if place not in second:
                result.unknown[before.table] += 1
                continue
            now = second[place]
            if now is None:
                result.same[before.table] += 1
            elif self._was_changing(now, changed):
                result.changing[now.table] += 1
            elif now.version == before.version and now.shown == before.shown:
                result.confirmed.append(now)
            else:
                again[place] = now
        return again

    def _was_changing(self, found: Difference, changed: Collection[RowKey]) -> bool:
        if found.place in changed or (found.created is not None and found.created >= self._since):
            return True
        if any((found.table + _UNDER, key) in changed for _, key in found.parents):
            return True
        # Objects without events of their own change with what they belong to.
        silent = found.table not in _with_events()
        return any(p in changed and (silent or holds(found.table, p)) for p in found.parents)

    async def recheck(self, places: Iterable[Difference]) -> dict[RowKey, Difference | None]:
        """Read each again: None if row and object agree; without an entry if it cannot be read."""
        paths: dict[ReadPath, list[Difference]] = {}
        for suspect in places:
            path = path_to(suspect)
            if path is not None:
                paths.setdefault(path, []).append(suspect)
            else:
                self.reasons.setdefault(suspect.table, "Stripe shows these only inside others.")
        found: dict[RowKey, Difference | None] = {}

        async def recheck_by(path: ReadPath) -> None:
            found.update(await self._recheck_by(path, paths[path]))

        await for_each(paths, recheck_by, limit=_WORKERS)
        return found

    async def _recheck_by(
        self, path: ReadPath, suspects: list[Difference]
    ) -> dict[RowKey, Difference | None]:
        comparer, table = self._comparer, suspects[0].table
        if path.unit in self._refused:
            return {}
        for suspect in suspects:
            comparer.forget(suspect.place)
            comparer.watched[suspect.place] = False
        absent_is_gone, left_behind = path.whole, False
        try:
            self.requests[table] += 1
            await read(self._looking, path)
        except NotFound:
            absent_is_gone = path.key == suspects[0].key
            if not absent_is_gone and path.table in self._looking.wanted:
                # Gone with all that it held, whose rows stay: correct if its own row is flagged.
                holder = Difference(path.table, path.key, "extra")
                left_behind = await self._standing(holder) is None
        except (NotPermitted, NotEnabled) as error:
            # A refusal of one holds for all of this type.
            self._refused.add(path.unit)
            self.reasons[table] = error.message
            absent_is_gone = False
        except (WrongKey, Unwritable):
            raise
        except PinstripeError as error:
            _log.warning("verify.unread", table=table, id=suspects[0].key, error=error.message)
            self.reasons[table] = error.message
            absent_is_gone = False
        gaps = {gap.truncated.child_table for gap in self._looking.unreadable_lists.values()}
        found: dict[RowKey, Difference | None] = {}
        for suspect in suspects:
            if comparer.watched.pop(suspect.place):
                found[suspect.place] = comparer.forget(suspect.place)
            elif left_behind:
                found[suspect.place] = None
            elif absent_is_gone and suspect.table not in gaps:
                found[suspect.place] = await self._standing(suspect)
        return found

    async def _standing(self, suspect: Difference) -> Difference | None:
        """Return the difference of a row whose object Stripe does not have; None if it is flagged, or
        not there.
        """
        table = self._looking.wanted[suspect.table]
        flag = "deleted IS TRUE" if table.deletable else "false"
        statement = (
            f"SELECT _synced_at, {flag} "
            f"FROM {qualified(self._looking.mirror.schema, table.name)} WHERE {quote(table.key[0])} = $1"
        )
        async with self._looking.pool.acquire() as connection:
            row = await connection.fetchrow(statement, suspect.key)
        if row is None or row[1]:
            return None
        return replace(suspect, kind="extra", columns=(), version=row[0], shown="")

    async def _changed(self) -> Collection[RowKey]:
        """Return what has changed since the beginning, by events and by pending refetches.

        If events cannot be read, the two reads alone decide.
        """
        try:
            await self._read_events()
        except (NotPermitted, NotEnabled, NotFound) as error:
            _log.info("verify.no_events", reason=error.message)
        async with self._looking.pool.acquire() as connection:
            waiting = await load_waiting(connection, self._looking.mirror.schema)
        return self._in_events | {
            (table + _UNDER if kind == "children" else table, key) for kind, table, key in waiting
        }

    async def _read_events(self) -> None:
        """Add what the events since the last call concern; a little is read twice, for late ones."""
        began = self._looking.now()
        window = [("created[gte]", str(int(self._read_to)))]
        stripe, endpoint = self._looking.stripe, f"GET {EVENTS}"
        request = list_at(stripe, EVENTS, window, endpoint=endpoint, priority=LIVE)
        async for page in iter_pages(request):
            found = RowSet()
            for event in page.objects:
                obj = payload(event)
                if obj:
                    self._looking.mirror.extractor.object(obj, found)
            self._in_events |= {
                (table, key) for table, group in found.rows.items() for key in group
            }
        self._read_to = max(self._since, began - LATE_S)


@cache
def _with_events() -> frozenset[str]:
    return frozenset(map(table_name, with_events()))


ReadLists = Callable[[Source, set[str]], Awaitable[ListRun]]
"""(source, tables) -> every list of these tables read into the source's mirror."""


def cheaper_by_list(wrong: Iterable[Difference], requests: Mapping[str, int]) -> set[str]:
    """Return tables whose lists take fewer requests (`requests`) than their differences one by one."""
    counts = Counter(d.table for d in wrong if d.kind != "extra")
    return {
        t
        for t, n in counts.items()
        if requests.get(t, 0) > 0 and n > max(_BY_LIST, 2 * requests[t])
    }


class Repairs:
    def __init__(
        self,
        source: Source,
        looking: Source,
        comparer: Comparer,
        rechecker: Rechecker,
        read_lists: ReadLists,
    ) -> None:
        self._source = source
        self._looking = looking
        self._comparer = comparer
        self._rechecker = rechecker
        self._read_lists = read_lists

    async def run(self, reports: Mapping[str, TableReport], requests: Mapping[str, int]) -> None:
        """Repair what remains, and classify it again. `requests`: that each table's lists took."""
        wrong = [d for report in reports.values() for d in report.remaining]
        if not wrong:
            return
        many = cheaper_by_list(wrong, requests)
        many |= {t for t, n in self._comparer.overflow.items() if n}
        if many:
            await self._read_lists(self._source, many)
        singly = [d for d in wrong if d.table not in many or d.kind == "extra"]
        await for_each(singly, self._mend, limit=_REPAIRING)
        await self._source.mirror.conflicts.wait_resolved()
        await self._link(wrong)
        await self._look_after(reports, wrong, many)

    async def _link(self, wrong: Sequence[Difference]) -> None:
        """Give columns their values that rows of other tables have: the objects say nothing of them."""
        mirror = self._source.mirror
        linked = {name: {c.name for c in table.linked} for name, table in mirror.tables.items()}
        changed = {d.table for d in wrong if not linked[d.table].isdisjoint(d.columns)}
        if changed:
            async with self._source.transaction() as connection:
                await link_all(connection, mirror.schema, mirror.tables, changed)

    async def _mend(self, found: Difference) -> None:
        path, source = path_to(found), self._source
        try:
            if found.kind == "extra" and not found.shown:
                await self._take_out(found)
            elif path is not None:
                await read(source, path, known_until=await source.known_until())
        except NotFound:
            await self._take_out(found)
        except (WrongKey, Unwritable):
            raise
        except PinstripeError as error:
            _log.warning("verify.unrepaired", table=found.table, id=found.key, error=error.message)

    async def _take_out(self, found: Difference) -> None:
        """Flag or delete the row of an object that Stripe does not have."""
        table, path = self._source.wanted[found.table], path_to(found)
        if table.deletable:
            started, version = await self._source.row_version(found.table, found.key)
            if version == found.version:  # Else it may have been made again since.
                await mark_deleted(self._source, found.table, found.key, started=started)
            return
        by_id = path is None or path.key == found.key
        if by_id and found.table not in ENTRIES_GO:
            return
        where = f"t.{quote(table.key[0])} = $1 AND t._synced_at = $2"
        schema = self._source.mirror.schema

        async def remove(connection: Connection) -> None:
            await delete_rows(connection, schema, table, where, found.key, found.version)

        await self._source.mirror.write([], effect=remove)

    async def _look_after(
        self, reports: Mapping[str, TableReport], wrong: Sequence[Difference], many: set[str]
    ) -> None:
        if many:
            for found in wrong:
                self._comparer.forget(found.place)
            for table in many:
                self._comparer.overflow.pop(table, None)
            await self._read_lists(self._looking, many)
        left = await self._rechecker.recheck(
            [d for d in wrong if d.table not in many or d.kind == "extra"]
        )
        for report in reports.values():
            still: list[Difference] = []
            report.more = self._comparer.overflow[report.table]
            for found in report.remaining:
                by_list = report.table in many and found.kind != "extra"
                now = (
                    self._comparer.differences.get(found.place)
                    if by_list
                    else left.get(found.place, found)
                )
                if now is None:
                    report.repaired.append(found)
                elif now.kind == "partial":
                    report.partial += 1
                else:
                    still.append(now)
            report.remaining = still
