"""Verifies the copy: every list is read again and compared with the rows.

    lists -> rows that no list returned, one by one -> recheck of differences -> repairs -> certificate

It reads with the code of the backfill, into a mirror that compares instead of writing (`compare`). It runs
beside the worker that follows the account, and writes only repairs, through the real mirror. A row that
changes meanwhile is never reported as a difference (`recheck`). The run ends with counts, the digest, and
the certificate that `status` shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from pinstripe.catalog.endpoints import has_address
from pinstripe.catalog.tables import PAYOUT_LINES
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.errors import NotEnabled, NotPermitted
from pinstripe.mirror import open_mirror
from pinstripe.rows.event import EVENTS
from pinstripe.source.source import LIVE, Source
from pinstripe.store.cursors import LEFT_OUT, SOME_REFUSED, UNEXPANDED
from pinstripe.store.ddl import qualified
from pinstripe.store.leases import is_followed
from pinstripe.store.verifications import Certificate, digest, save_certificate
from pinstripe.sync.backfill.references import References
from pinstripe.sync.events.reader import LATE_S, RETENTION_S
from pinstripe.sync.verify.compare import Comparer, Difference, Report, TableReport
from pinstripe.sync.verify.recheck import (
    ListRun,
    Rechecker,
    RecheckResult,
    Repairs,
    cheaper_by_list,
    read_lists,
)

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_GRACE_S = 10.0
"""What a worker gets to apply the events that it has received; it polls twice a second."""


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """How to verify. `unlisted`: how many rows of a table that no list returns are fetched one by one;
    None: all. `followed`: whether a worker follows the account; None: read it from the database.
    """

    repair: bool = False
    unlisted: int | None = 200
    followed: bool | None = None
    grace_s: float = _GRACE_S


class Verify:
    """One run. `phase` and `lists` are for the progress display. Create it with `open_verify`."""

    def __init__(
        self,
        source: Source,
        looking: Source,
        comparer: Comparer,
        budget: RateLimiter,
        options: VerifyOptions,
        *,
        account_created: int,
        since: float,
        followed: bool,
        unreadable: Sequence[str],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.phase = "starting"
        self.lists = ListRun()
        self.reports = {
            name: TableReport(name)
            for name, t in source.wanted.items()
            if not t.virtual or name == PAYOUT_LINES
        }
        self._unreadable = [_unread(source, name) for name in unreadable]
        self._source = source
        self._looking = looking
        self._comparer = comparer
        self._budget = budget
        self._options = options
        self._account_created = account_created
        self._since = since
        self._sleep = sleep
        self._margin_s = LATE_S if followed else 0
        self._grace_s = options.grace_s if followed else 0.0
        self._rechecker = Rechecker(looking, comparer, since=since - self._margin_s, sleep=sleep)

    async def run(self) -> Report:
        """Return when everything is compared, and repaired if the options say so; saves the certificate."""
        started_at = await self._source.pool.time()
        self.phase = "lists"
        await self._read_lists(self._looking, found=self.lists)
        listed = await self._comparer.shown()
        self.phase = "rows that no list shows"
        for report in self.reports.values():
            report.listed = listed.get(report.table, 0)
        self._apply_list_results()
        for report in self.reports.values():
            await self._unlisted(report)
        await self._referred()
        self.phase = "second look"
        result = await self._decide(list(self._comparer.differences.values()))
        self._record(result)
        if self._options.repair:
            self.phase = "repairs"
            repairs = Repairs(
                self._source, self._looking, self._comparer, self._rechecker, self._read_lists
            )
            await repairs.run(self.reports, self.lists.requests())
        self.phase = "certificate"
        made = await certify(
            self._source,
            {**self.reports, **{report.table: report for report in self._unreadable}},
            self.lists.requests() + self._rechecker.requests,
            since=self._since,
            started_at=started_at,
        )
        return replace(made, margin_s=self._margin_s)

    # What Stripe returned.

    async def _read_lists(
        self, source: Source, only: set[str] | None = None, *, found: ListRun | None = None
    ) -> ListRun:
        return await read_lists(
            source,
            self._budget,
            now=source.now(),
            account_created=self._account_created,
            only=only,
            found=found,
        )

    def _apply_list_results(self) -> None:
        """Lists that could not be read leave their tables unproven."""
        for table, end in self.lists.ends():
            report = self.reports.get(table)
            if report is None or end.state == "done":
                if report is not None and end.code in (UNEXPANDED, SOME_REFUSED):
                    report.mark_partial(end.reason)
                continue
            if end.code == LEFT_OUT:
                report.mark_partial(f"Without the lists under a parent: {end.reason}")
                continue
            report.state, report.reason, report.remedy = "unverified", end.reason, end.remedy
            report.failed = report.failed or end.state in ("failed", "running")
        for table, error in self._looking.unread.items():
            if table in self.reports:
                self.reports[table].mark_partial(error.message, error.hint)
        for gap in self._looking.unreadable_lists.values():
            if gap.truncated.child_table in self.reports:
                self.reports[gap.truncated.child_table].mark_partial(
                    gap.error.message, gap.error.hint
                )

    async def _unlisted(self, report: TableReport) -> None:
        """Fetch rows that no list returned by id: hidden, only referred to, or gone."""
        table = self._source.wanted[report.table]
        if self._comparer.forgot:
            report.mark_partial("The connection to Postgres was lost meanwhile.", "Verify again.")
            return
        limit = self._options.unlisted
        keep = "false"
        if any(c.name == "created" for c in table.columns):
            keep = f"coalesce(t.created >= to_timestamp({self._since:.0f}), false)"
        if report.table == "event":
            # Kept for longer than Stripe lists them.
            keep += f" OR t.created < to_timestamp({self._since - RETENTION_S + 3600:.0f})"
        report.unlisted, flagged, rows = await self._comparer.unlisted(
            table, keep=keep, limit=limit
        )
        standing = report.unlisted - flagged
        if report.unlisted and report.state == "unverified":
            # Nothing was listed, or not to the end: then an unlisted row proves nothing.
            report.unchecked = report.unlisted
            return
        looked = await self._rechecker.recheck(rows)
        wrong = sum(1 for d in looked.values() if d is not None and d.kind == "extra")
        if wrong and limit is not None and report.unlisted > limit:
            # One wrong row in the sample: then all are fetched.
            _, _, rows = await self._comparer.unlisted(table, keep=keep, limit=None)
            looked |= await self._rechecker.recheck([r for r in rows if r.place not in looked])
        for place, found in looked.items():
            if found is not None:
                self._comparer.differences[place] = found
        # Lists return nothing that is deleted: a flagged row agrees with them, fetched or not.
        report.unchecked = standing - sum(row.place in looked for row in rows[:standing])
        if report.unchecked:
            reason = self._rechecker.reasons.get(report.table, "")
            report.mark_partial(
                reason or f"{report.unchecked:,} rows that no list shows were not asked for."
            )

    async def _referred(self) -> None:
        """Fetch what rows refer to and have no row: no list may show it."""
        references = References(self._looking, self._looking.pool, lambda _: True)
        proven = [name for name, r in self.reports.items() if r.state != "unverified"]
        for name in filter(has_address, proven):
            ids = await references.lacking(name)
            while ids:
                found = await self._rechecker.recheck([Difference(name, k, "missing") for k in ids])
                self._comparer.differences |= {place: d for place, d in found.items() if d}
                ids = await references.lacking(name, ids[-1])

    # What is wrong.

    async def _decide(self, suspects: Sequence[Difference]) -> RecheckResult:
        """Recheck: table by table through its lists if that is cheaper, else object by object."""
        many = cheaper_by_list(suspects, self.lists.requests())
        if not many:
            return await self._rechecker.decide(suspects, grace_s=self._grace_s)
        first = [s for s in suspects if s.table in many and s.kind != "extra"]
        for suspect in first:
            self._comparer.forget(suspect.place)
        for table in many:
            self._comparer.overflow.pop(table, None)
        if self._grace_s:
            await self._sleep(self._grace_s)
        await self._read_lists(self._looking, many)
        before = {s.place: s for s in first}
        now = [d for d in self._comparer.differences.values() if d.table in many]
        steady: list[Difference] = []
        rest = [s for s in suspects if s.table not in many or s.kind == "extra"]
        for found in now:
            earlier = before.get(found.place)
            alike = earlier is not None and (earlier.version, earlier.shown) == (
                found.version,
                found.shown,
            )
            (steady if alike else rest).append(found)
        result = await self._rechecker.decide(
            {s.place: s for s in rest}.values(), grace_s=self._grace_s
        )
        await self._rechecker.drop_changing(steady, result)
        return result

    def _record(self, result: RecheckResult) -> None:
        for found in result.confirmed:
            report = self.reports[found.table]
            if found.kind == "partial" and not self._options.repair:
                report.partial += 1
                continue
            report.found[found.kind] += 1
            report.remaining.append(found)
        for table, report in self.reports.items():
            report.moving += result.changing[table]
            report.more = self._comparer.overflow[table]
            if result.unknown[table]:
                reason = self._rechecker.reasons.get(table, "")
                report.mark_partial(reason or "Stripe cannot be asked for single rows of it.")
                report.unchecked += result.unknown[table]


@asynccontextmanager
async def open_verify(
    url: str,
    source: Source,
    budget: RateLimiter,
    options: VerifyOptions,
    *,
    account_created: int = 0,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[Verify]:
    """Yield a run that is ready. `url` is that of the database; repairs go through `source`."""
    since = await _stripe_time(source)
    unreadable = await _load_unreadable(source)
    source = replace(source, wanted={n: t for n, t in source.wanted.items() if n not in unreadable})
    followed = options.followed if options.followed is not None else await _is_followed(source)
    mirror = source.mirror
    comparer = Comparer(
        url,
        mirror.schema,
        mirror.tables,
        mirror.extractor.shapes,
        since=since,
        loading=mirror.loading,
    )
    async with open_mirror(
        url,
        mirror.schema,
        {n: t for n, t in mirror.tables.items() if n not in unreadable},
        api_version=mirror.api_version,
        sink=comparer,
        extractor=mirror.extractor,
    ) as comparing:
        looking = replace(
            source, mirror=comparing, unreadable_lists={}, unread={}, notes_owed=False
        )
        yield Verify(
            source,
            looking,
            comparer,
            budget,
            options,
            account_created=account_created,
            since=since,
            followed=followed,
            unreadable=unreadable,
            sleep=sleep,
        )


async def _load_unreadable(source: Source) -> list[str]:
    """Return the tables that this database user may not read."""
    async with source.pool.acquire() as connection:
        rows = await connection.fetch(
            "SELECT c.relname FROM pg_catalog.pg_class c"
            " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = $1 AND c.relname = ANY($2::text[])"
            " AND NOT pg_catalog.has_table_privilege(c.oid, 'SELECT') ORDER BY 1",
            source.mirror.schema,
            [name for name, table in source.wanted.items() if not table.virtual],
        )
    return [row[0] for row in rows]


def _unread(source: Source, table: str) -> TableReport:
    place = qualified(source.mirror.schema, table)
    return TableReport(
        table,
        "unverified",
        "The database user may not read the table.",
        f"As the owner of the table: GRANT SELECT ON {place} TO the user of DATABASE_URL.",
        failed=True,
    )


async def _stripe_time(source: Source) -> float:
    """Return the second on Stripe's clock at which the run begins."""
    try:
        response = await source.stripe.get(
            EVENTS, [("limit", "1")], endpoint=f"GET {EVENTS}", priority=LIVE
        )
    except (NotPermitted, NotEnabled):
        return float(int(source.now()))
    source.observe_clock(response)
    return float(int(response.not_after - 1.0))


async def _is_followed(source: Source) -> bool:
    """Whether a worker follows the account."""
    async with source.pool.acquire() as connection:
        return await is_followed(connection, source.mirror.schema)


async def certify(
    source: Source,
    reports: dict[str, TableReport],
    requests: Mapping[str, int],
    *,
    since: float,
    started_at: datetime,
) -> Report:
    """Count what the tables hold now, and save the result as a certificate."""
    schema = source.mirror.schema
    async with source.pool.acquire() as connection:
        for report in reports.values():
            if report.table not in source.wanted:
                continue  # Its rows cannot be counted either.
            table = source.wanted[report.table]
            dated = any(c.name == "created" and c.type == "timestamptz" for c in table.columns)
            span = "min(created), max(created)" if dated else "NULL, NULL"
            row = await connection.fetchrow(
                f"SELECT count(*), {span} FROM {qualified(schema, table.name)}"
            )
            assert row is not None  # noqa: S101 (an aggregate has one row)
            report.rows, report.oldest, report.newest = row
            report.requests = requests.get(report.table, 0)
            if report.rows and not report.listed and report.unchecked == report.rows:
                report.state = "unverified"
        proven = [source.wanted[r.table] for r in reports.values() if r.state != "unverified"]
        found = Report(
            schema=schema,
            since=since,
            started_at=started_at,
            finished_at=started_at,
            tables=reports,
            requests=sum(requests.values()),
            digest=await digest(connection, schema, proven),
        )
        found.finished_at = await connection.fetchval("SELECT clock_timestamp()")
        await save_certificate(connection, schema, _certificate(found))
    return found


def _certificate(found: Report) -> Certificate:
    same = ("state", "rows", "listed", "differences", "unchecked")
    tables: dict[str, dict[str, object]] = {
        r.table: {name: getattr(r, name) for name in same}
        | {"repaired": len(r.repaired), "from": r.oldest, "to": r.newest}
        for r in found.tables.values()
    }
    return Certificate(
        found.started_at, found.finished_at, tables, found.differences, found.repaired, found.digest
    )
