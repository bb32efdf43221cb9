"""Repairs rows that differ, through the mirror, and checks whether that has helped.

Rows that Stripe does not have are flagged deleted, if their table has the flag. Entries that are no longer
in the list of their parent (the lines of a draft, entitlements) are deleted. Anything else is left to the
operator: Stripe deletes some objects that a copy may well keep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import structlog

from pinstripe.concurrency import for_each
from pinstripe.errors import NotFound, PinstripeError, Unwritable, WrongKey
from pinstripe.mirror.change_feed import delete_rows
from pinstripe.mirror.orphans import ENTRIES_GO
from pinstripe.source.resolve import mark_deleted
from pinstripe.source.source import Source
from pinstripe.store.ddl import quote
from pinstripe.store.pool import Connection
from pinstripe.sync.verify.compare import Comparer, Difference
from pinstripe.sync.verify.recheck import Rechecker
from pinstripe.sync.verify.report import TableReport
from pinstripe.sync.verify.reread import ListRun, path_to, read

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)
_WORKERS = 8
_BY_LIST = 200

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
    """One round of repairs."""

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
        await for_each(singly, self._mend, limit=_WORKERS)
        await self._source.mirror.wait_resolved()
        await self._look_after(reports, wrong, many)

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
            started = await self._source.database_time()
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
