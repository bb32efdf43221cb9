"""Which suspicions are differences, and which were only something that changed while we looked.

A suspicion is looked at again: the object is read, and the row after it. It counts as a difference only if

- Stripe shows what it showed the first time, and not what the row has;
- nobody has written the row between (its `_synced_at` is the same);
- no event since the beginning tells of the object or of what holds it, and no request for it is waiting.

Everything else changed while we looked: whoever follows the account brings it, and a later run proves it.
Where someone follows, he gets `grace_s` before the second look.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import structlog

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import table_name
from pinstripe.client.pagination import iter_pages, list_at
from pinstripe.concurrency import for_each
from pinstripe.errors import (
    NotEnabled,
    NotFound,
    NotPermitted,
    PinstripeError,
    Unwritable,
    WrongKey,
)
from pinstripe.rows.event import payload
from pinstripe.rows.extract import RowSet
from pinstripe.source.source import LIVE, Source
from pinstripe.store.ddl import qualified, quote
from pinstripe.sync.events.reader import EVENTS
from pinstripe.sync.verify.compare import Comparer, Difference, RowKey
from pinstripe.sync.verify.reread import ReadPath, holds, path_to, read

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)
_WORKERS = 12
_LATE_S = 120
"""An event can appear that long after its `created`."""
_UNDER = " under"
"""Behind the name of a table: its rows under the parent with this id are waiting to be read."""
_ROUNDS = 3
"""An object that changes between all of them changes all the time."""


@dataclass(slots=True)
class RecheckResult:
    """What became of suspicions. `same`: both agree by now; `moving`: it changed while we looked;
    `unknown`: Stripe cannot be asked, `reasons` has its words by table.
    """

    confirmed: list[Difference] = field(default_factory=list)
    same: Counter[str] = field(default_factory=Counter)
    changing: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)


class Rechecker:
    """Looks again. `looking` is the source whose mirror compares by `comparer`."""

    def __init__(
        self,
        looking: Source,
        comparer: Comparer,
        *,
        since: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`since`: Unix second on Stripe's clock; what an event from then on tells of was changing."""
        self.reasons: dict[str, str] = {}
        self.requests: Counter[str] = Counter()
        self._looking = looking
        self._comparer = comparer
        self._since = since
        self._sleep = sleep
        self._refused: set[str] = set()
        self._told: set[RowKey] = set()
        self._read_to = since

    async def decide(self, rechecker: Iterable[Difference], *, grace_s: float) -> RecheckResult:
        """Returns when each suspicion is confirmed or dropped."""
        verdicts = RecheckResult()
        open_ = {s.place: s for s in rechecker}
        for _ in range(_ROUNDS):
            if not open_:
                break
            if grace_s:
                await self._sleep(grace_s)
            second = await self.look(open_.values())
            wrong = any(found is not None for found in second.values())
            moved = await self._moved() if wrong else ()
            open_ = self._classify(open_, second, moved, verdicts)
        verdicts.changing.update(table for table, _ in open_)
        return verdicts

    async def drop_changing(self, steady: Iterable[Difference], verdicts: RecheckResult) -> None:
        """Confirms what was seen twice alike already, but for what events tell of."""
        found = list(steady)
        moved = await self._moved() if found else set()
        for suspect in found:
            if self._was_changing(suspect, moved):
                verdicts.changing[suspect.table] += 1
            else:
                verdicts.confirmed.append(suspect)

    def _classify(
        self,
        first: Mapping[RowKey, Difference],
        second: Mapping[RowKey, Difference | None],
        moved: Collection[RowKey],
        verdicts: RecheckResult,
    ) -> dict[RowKey, Difference]:
        """Sorts what was looked at; gives what must be looked at once more."""
        again: dict[RowKey, Difference] = {}
        for place, before in first.items():
            if place not in second:
                verdicts.unknown[before.table] += 1
                continue
            now = second[place]
            if now is None:
                verdicts.same[before.table] += 1
            elif self._was_changing(now, moved):
                verdicts.changing[now.table] += 1
            elif now.version == before.version and now.shown == before.shown:
                verdicts.confirmed.append(now)
            else:
                again[place] = now
        return again

    def _was_changing(self, found: Difference, moved: Collection[RowKey]) -> bool:
        if found.place in moved or (found.created is not None and found.created >= self._since):
            return True
        if any((found.table + _UNDER, key) in moved for _, key in found.parents):
            return True
        # What has no events of its own changes with what it belongs to.
        silent = found.table not in _with_events()
        return any(p in moved and (silent or holds(found.table, p)) for p in found.parents)

    async def look(self, places: Iterable[Difference]) -> dict[RowKey, Difference | None]:
        """Reads each again: None where row and object agree; not in it what cannot be read."""
        ways: dict[ReadPath, list[Difference]] = {}
        for suspect in places:
            way = path_to(suspect)
            if way is not None:
                ways.setdefault(way, []).append(suspect)
            else:
                self.reasons.setdefault(suspect.table, "Stripe shows these only inside others.")
        found: dict[RowKey, Difference | None] = {}

        async def look_by(way: ReadPath) -> None:
            found.update(await self._look_by(way, ways[way]))

        await for_each(ways, look_by, limit=_WORKERS)
        return found

    async def _look_by(
        self, way: ReadPath, rechecker: list[Difference]
    ) -> dict[RowKey, Difference | None]:
        comparer, table = self._comparer, rechecker[0].table
        if way.asks in self._refused:
            return {}
        for suspect in rechecker:
            comparer.forget(suspect.place)
            comparer.watched[suspect.place] = False
        absent_is_gone, left_behind = way.whole, False
        try:
            self.requests[table] += 1
            await read(self._looking, way)
        except NotFound:
            absent_is_gone = way.key == rechecker[0].key
            if not absent_is_gone and way.table in self._looking.wanted:
                # Gone with all that it held, which stays as it was: no fault if we know of it.
                holder = Difference(way.table, way.key, "extra")
                left_behind = await self._standing(holder) is None
        except (NotPermitted, NotEnabled) as error:
            # What holds for one holds for all of this type.
            self._refused.add(way.asks)
            self.reasons[table] = error.message
            absent_is_gone = False
        except (WrongKey, Unwritable):
            raise
        except PinstripeError as error:
            _log.warning("verify.unread", table=table, id=rechecker[0].key, error=error.message)
            self.reasons[table] = error.message
            absent_is_gone = False
        gaps = {gap.truncated.child_table for gap in self._looking.unreadable_lists.values()}
        found: dict[RowKey, Difference | None] = {}
        for suspect in rechecker:
            if comparer.watched.pop(suspect.place):
                found[suspect.place] = comparer.forget(suspect.place)
            elif left_behind:
                found[suspect.place] = None
            elif absent_is_gone and suspect.table not in gaps:
                found[suspect.place] = await self._standing(suspect)
        return found

    async def _standing(self, suspect: Difference) -> Difference | None:
        """What the row says of an object that Stripe does not have: None if it is flagged, or not there."""
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

    async def _moved(self) -> Collection[RowKey]:
        """What changed since the beginning, as far as events tell, or waits to be asked for.

        Where events cannot be read, the two looks alone decide.
        """
        try:
            await self._read_events()
        except (NotPermitted, NotEnabled, NotFound) as error:
            _log.info("verify.no_events", reason=error.message)
        async with self._looking.pool.acquire() as connection:
            rows = await connection.fetch(
                "SELECT \"table\" || CASE kind WHEN 'children' THEN $2 ELSE '' END, id"
                " FROM pinstripe.pending WHERE schema = $1",
                self._looking.mirror.schema,
                _UNDER,
            )
        return self._told | {(row[0], row[1]) for row in rows}

    async def _read_events(self) -> None:
        """Adds what the events since the last time tell of; a little is read twice, for late ones."""
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
            self._told |= {(table, key) for table, group in found.rows.items() for key in group}
        self._read_to = max(self._since, began - _LATE_S)


@cache
def _with_events() -> frozenset[str]:
    return frozenset(table_name(name) for event in spec().events for name in event.carries)
