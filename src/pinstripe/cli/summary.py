"""What a sync prints: its progress, then the summary as text or JSON and how to connect to the result.

`Meter` samples a `Backfill` and formats plain lines. `showing` keeps them up to date on a terminal, or
prints one now and then without a terminal. Progress goes to stderr; stdout is for results.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypedDict

from pinstripe.catalog.embedded import carriers
from pinstripe.catalog.endpoints import singleton_paths
from pinstripe.catalog.tables import tables as known_tables
from pinstripe.cli.runtime import tell
from pinstripe.concurrency import end
from pinstripe.config.config import Config
from pinstripe.errors import redact
from pinstripe.service import Database, Service
from pinstripe.store.cursors import LIST, RememberedRefusal
from pinstripe.store.database_url import read_url, url_with_login
from pinstripe.store.ddl import quote
from pinstripe.store.status import ScanProgress, SchemaStatus, TableStatus, read_status
from pinstripe.store.syncs import DEFAULT_ID
from pinstripe.sync.backfill.backfill import BackfillResult
from pinstripe.sync.heartbeat import TableTally, left_s, tally

_SHOWN = 20


class TableSummary(TypedDict):
    """`status`: done, found (inside or by reference of others), unasked, refused, failed, running."""

    table: str
    rows: int
    requests: int
    seconds: float
    status: str
    reason: str
    remedy: str


class Summary(TypedDict):
    """What `pinstripe sync --once --json` prints."""

    complete: bool
    account: str | None
    livemode: bool
    schema: str
    api_version: str
    rows: int
    requests: int
    rate_limited: int
    seconds: float
    events: int
    fetched: int
    missing: int
    owed: int
    scan_owed: int
    """Lists by parent that no sign has shown and that the slow scan is still to read."""
    note: str
    tables: list[TableSummary]


@dataclass(frozen=True, slots=True)
class Ending:
    """A finished backfill and what the database holds now."""

    service: Service
    outcome: BackfillResult
    status: SchemaStatus

    @property
    def complete(self) -> bool:
        """Everything that the key may read is in the database, and it may read something."""
        tables = self._tables()
        # Lists under parents that nobody could read are done without a request.
        is_read = any(t.state == "done" and t.requests for t in tables)
        return (
            self.outcome.complete
            and not any(t.state == "failed" for t in tables)
            and (is_read or not any(t.state == "refused" for t in tables))
            and not self._unasked()
            and not self.status.owed
            and not self.status.quarantine
        )

    def _scans(self) -> list[ScanProgress]:
        """Of the tables of this run: an earlier one may have chosen others."""
        return [scan for scan in self.status.scan if scan.table in self.service.source.wanted]

    def _unasked(self) -> dict[str, frozenset[str]]:
        """Tables that nothing was asked for, with those that would bring their rows."""
        wanted = self.service.source.wanted
        return {
            t.table: carriers()[t.table]
            for t in self._tables()
            if t.state == "found"
            and t.table in carriers()
            and carriers()[t.table].isdisjoint(wanted)
            and known_tables()[t.table].object_type not in singleton_paths()
        }

    def _tables(self) -> list[TableStatus]:
        wanted = self.service.source.wanted
        return [t for t in self.status.tables if t.table in wanted]

    def tables(self) -> list[TableSummary]:
        """One entry for each table that is synced."""
        fetched = self.outcome.references
        refused = fetched.refused if fetched is not None else {}
        unasked = self._unasked()
        found: list[TableSummary] = []
        for table in self._tables():
            line = TableSummary(
                table=table.table,
                rows=table.rows,
                requests=table.requests,
                seconds=round(table.seconds, 3),
                status=table.state,
                reason=redact(table.reason),
                remedy=redact(table.remedy),
            )
            if table.state == "found" and table.table in refused:
                error = refused[table.table]
                line["status"], line["reason"] = "refused", error.message
                line["remedy"] = error.hint
            elif table.table in unasked:
                line["status"] = "unasked"
                line["reason"] = "Stripe has no list of them, and no synced table contains them."
                line["remedy"] = (
                    f"Sync one of these too: {', '.join(sorted(unasked[table.table]))}."
                )
            found.append(line)
        return found

    def as_json(self) -> Summary:
        outcome, service, shown = self.outcome, self.service, self.tables()
        references = outcome.references
        return Summary(
            complete=self.complete,
            account=service.account.id,
            livemode=service.account.livemode,
            schema=service.config.schema,
            api_version=self.status.api_version,
            rows=sum(t["rows"] for t in shown),
            requests=outcome.requests,
            rate_limited=service.stripe.rate_limited.total(),
            seconds=round(outcome.seconds, 3),
            events=outcome.events or 0,
            fetched=sum(references.fetched.values()) if references else 0,
            missing=sum(references.missing.values()) if references else 0,
            owed=sum(owed.count for owed in self.status.owed),
            scan_owed=sum(scan.owed for scan in self._scans()),
            note=redact(service.backfill.note),
            tables=shown,
        )

    def as_text(self) -> str:
        """For people: what came, what did not, and why."""
        made, shown = self.as_json(), self.tables()
        mode = "live mode" if made["livemode"] else "test mode"
        rate = made["rows"] / made["seconds"] if made["seconds"] else 0.0
        filled = sorted((t for t in shown if t["rows"]), key=lambda t: (-t["rows"], t["table"]))
        lines = [
            f"{'Complete' if made['complete'] else 'NOT complete'}: "
            f"{made['account'] or 'the account'} in {mode}, schema {made['schema']}: "
            f"{made['rows']:,} rows in {counted(len(filled), 'table')}",
            f"{made['seconds']:,.1f} s, {made['requests']:,} requests, {rate:,.0f} rows/s; "
            f"{made['events']:,} events applied, {made['fetched']:,} objects fetched by reference, "
            f"{made['missing']:,} not found at Stripe",
            "",
        ]
        lines += [f"  {t['table']:<40} {t['rows']:>12,} rows" for t in filled[:_SHOWN]]
        if rest := filled[_SHOWN:]:
            rows = sum(t["rows"] for t in rest)
            lines.append(f"  {f'{len(rest)} more tables':<40} {rows:>12,} rows")
        lines += _trouble("Failed", [t for t in shown if t["status"] == "failed"])
        running = [t for t in shown if t["status"] == "running"]
        previews = [t for t in running if known_tables()[t["table"]].virtual]
        lines += _trouble("Not finished", [t for t in running if t not in previews])
        lines += _trouble(
            "Still to come", previews, "previews, requested while events are followed"
        )
        lines += _trouble(
            "Not read, or only partially", [t for t in shown if t["status"] == "refused"]
        )
        lines += _trouble("Not requested", [t for t in shown if t["status"] == "unasked"])
        lines += refused_lines(self.status.refusals)
        for held in self.status.quarantine:
            what = held.id or "the whole table"
            said = f"Quarantine, {held.table}, {held.count:,} ({what}): {redact(held.reason)}"
            lines += ["", said, f"    remedy: {redact(held.remedy)}"]
        for owed in self.status.owed:
            lines += [
                "",
                f"Failed requests, {owed.count:,} for {owed.table} ({owed.example}): {redact(owed.reason)}",
            ]
            lines += [f"    remedy: {redact(owed.remedy)}"] if owed.remedy else []
        lines += self._scan_lines()
        lines += ["", f"Note: {made['note']}"] if made["note"] else []
        return "\n".join(lines)

    def _scan_lines(self) -> list[str]:
        owed = sorted((s for s in self._scans() if s.owed), key=lambda s: -s.owed)
        if not owed:
            return []
        named = ", ".join(f"{s.table} under {s.owed:,} {s.parent} rows" for s in owed[:3])
        named += f", and {counted(len(owed) - 3, 'more table')}" if len(owed) > 3 else ""
        line = (
            f"Left to the slow scan: {sum(s.owed for s in owed):,} lists by parent of which no row shows "
            f"that they hold anything ({named}). A sync that goes on reads them by and by; `--deep` "
            "reads them now."
        )
        return ["", line]


async def summarise(service: Service, outcome: BackfillResult, *, exact: bool) -> Ending:
    """Counts what the database holds now, large tables only if `exact`."""
    async with service.pool.acquire() as connection:
        found = await read_status(connection, schema=service.config.schema, exact=exact)
    return Ending(service, outcome, found[0])


def counted(number: int, noun: str) -> str:
    """The number with its noun.

    >>> counted(1, "row"), counted(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _trouble(title: str, tables: list[TableSummary], otherwise: str = "not finished") -> list[str]:
    """Group tables by reason: a product that is not enabled has many."""
    if not tables:
        return []
    by_reason: dict[tuple[str, str], list[str]] = {}
    for table in tables:
        by_reason.setdefault((table["reason"], table["remedy"]), []).append(table["table"])
    lines = ["", f"{title}:"]
    for (reason, remedy), names in by_reason.items():
        lines.append(f"  {', '.join(names)}: {reason or otherwise}")
        if remedy:
            lines.append(f"    remedy: {remedy}")
    return lines


def refused_lines(refusals: Sequence[RememberedRefusal]) -> list[str]:
    """What Stripe refuses beside whole tables."""
    if not refusals:
        return []
    lines = ["", "Left out because Stripe rejects the request:"]
    for refused in refusals:
        what = f"without {refused.what}" if refused.what != LIST else "read by parent instead"
        lines.append(f"  {refused.endpoint}, {what}: {redact(refused.reason)}")
    return lines


def how_to_connect(database: Database, schema: str) -> str:
    """The psql command, ready to paste, and a first query."""
    name = schema if re.fullmatch("[a-z_][a-z0-9_]*", schema) else quote(schema)
    query = f"SELECT status, count(*) FROM {name}.subscription GROUP BY 1 ORDER BY 2 DESC;"
    return "\n".join(["Connect with:", f"  {psql_command(database)}", "and try:", f"  {query}"])


def how_to_serve(url: str, config: Config) -> str:
    """Where the gateway answers, and what for."""
    base = config.public_url or url
    return "\n".join(
        [
            f"Console:  {base}/",
            f"Proxy:    {base}/api.stripe.com/v1/...  (or as SDK base URL: {base})",
            f"Wait:     curl {base}/wait/stripe/{DEFAULT_ID}",
        ]
    )


def psql_command(database: Database) -> str:
    """Return a shell command without the password, which comes from the environment or a prompt."""
    if database.server is None:
        if os.environ.get("DATABASE_URL", "").strip() == database.url:
            return 'psql "$DATABASE_URL"'
        return f"psql {shlex.quote(_without_password(database.url))}"
    # Of the same version as the server, if it came with one.
    program = str(database.server.psql or shutil.which("psql") or "psql")
    return f"{shlex.quote(program)} {shlex.quote(database.url)}"


def _without_password(url: str) -> str:
    return url_with_login(url, read_url(url).user or "", None)


_TERMINAL_S = 0.25
_PLAIN_S = 5.0
_WINDOW_S = 5.0
"""Rates are means over this long: shorter ones jump, longer ones lag."""
_RUNNING_LINES = 14
_DONE_LINES = 5
_REFUSED_LINES = 4
_WIDTH = 100

_PHASES = {
    "starting": "loading checkpoints",
    "lists": "reading lists",
    "events": "catching up on events",
    "references": "fetching referenced objects",
    "indexes": "building indexes",
    "done": "done",
}


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    rows: dict[str, int]
    total: int
    requests: int


class Meter:
    """Samples of one service; `lines` for a terminal, `line` for a log."""

    def __init__(self, service: Service, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._service = service
        self._clock = clock
        self._samples: deque[_Sample] = deque()

    def line(self) -> str:
        self._look()
        return self._overall()

    def lines(self) -> list[str]:
        """At most 25 lines, whose numbers fit into 80 columns."""
        tables = self._look()
        found = [self._overall()]
        mirror = self._service.source.mirror
        if mirror.trouble:
            found.append(f"  Postgres: {mirror.trouble} Retrying.")
        running = sorted((t for t in tables if t.running), key=_by_size)
        done = sorted((t for t in tables if not t.running and not t.refused), key=_by_size)
        found += [self._table(t) for t in running[:_RUNNING_LINES]]
        found += _rest("more pending", running[_RUNNING_LINES:])
        found += [self._table(t) for t in done[:_DONE_LINES] if t.rows]
        found += _rest("more complete", done[_DONE_LINES:])
        found += _refused([t for t in tables if t.refused])
        return found

    def _look(self) -> list[TableTally]:
        found = tally(self._service.backfill.works)
        now = self._clock()
        sample = _Sample(
            now,
            {t.table: t.rows for t in found},
            self._service.source.mirror.written.total(),
            self._service.stripe.requests.total(),
        )
        self._samples.append(sample)
        while now - self._samples[0].at > _WINDOW_S and len(self._samples) > 1:
            self._samples.popleft()
        return found

    def _overall(self) -> str:
        first, last = self._samples[0], self._samples[-1]
        span_s = last.at - first.at
        backfill, stripe = self._service.backfill, self._service.stripe
        parts = [_PHASES.get(backfill.phase, backfill.phase)]
        rows, requests = f"{last.total:,} rows", f"{last.requests:,} requests"
        requests_rate = 0.0
        if span_s > 0:
            requests_rate = (last.requests - first.requests) / span_s
            rows += f" ({(last.total - first.total) / span_s:,.0f}/s)"
            requests += f" ({requests_rate:,.0f}/s)"
        parts += [rows, requests]
        if limited := stripe.rate_limited.total():
            parts.append(f"{limited:,} x 429")
        if contested := self._service.source.mirror.conflicts.count:
            parts.append(f"{contested:,} conflicts")
        if backfill.phase == "lists" and span_s > 1 and requests_rate > 0:
            left = left_s(backfill.works, self._service.budget, requests_rate)
            parts.append(f"about {_duration(left)} left")
        return ", ".join(parts)

    def _table(self, line: TableTally) -> str:
        first, last = self._samples[0], self._samples[-1]
        span_s = last.at - first.at
        gained = line.rows - first.rows.get(line.table, 0)
        rate = f"{gained / span_s:,.0f}/s" if line.running and span_s > 0 else ""
        state = "done"
        if line.failed:
            state = "failed, see summary"
        elif line.running and line.remaining > 0:
            state = f"{counted(max(round(line.remaining), 1), 'request')} left"
        elif line.running:
            state = "pending"
        return f"  {line.table:<34} {line.rows:>9,} rows {rate:>8}  {state}"


def _by_size(line: TableTally) -> tuple[float, int, str]:
    return (-line.remaining, -line.rows, line.table)


def _rest(what: str, lines: Sequence[TableTally]) -> list[str]:
    if not lines:
        return []
    rows = sum(line.rows for line in lines)
    return [f"  {f'{len(lines)} {what}':<34} {rows:>9,} rows"]


def _refused(lines: Sequence[TableTally]) -> list[str]:
    found = [f"  {line.table:<34} not read: {line.refused}" for line in lines[:_REFUSED_LINES]]
    if len(lines) > _REFUSED_LINES:
        found.append(f"  {len(lines) - _REFUSED_LINES} more not read; see summary")
    return found


def _duration(seconds: float) -> str:
    """In words.

    >>> _duration(42), _duration(95), _duration(7300)
    ('42 s', '1 min 35 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@asynccontextmanager
async def showing(service: Service) -> AsyncIterator[None]:
    """Shows the progress of `service` for as long as the block lasts."""
    meter = Meter(service)
    keep = _on_terminal(meter) if sys.stderr.isatty() else _in_log(meter)
    task = asyncio.create_task(keep, name="progress")
    try:
        yield
    finally:
        await end(task)


async def _in_log(meter: Meter) -> None:
    while True:
        await asyncio.sleep(_PLAIN_S)
        tell(meter.line())


async def _on_terminal(meter: Meter) -> None:
    # Only here: it costs time and memory that a process without a terminal need not pay.
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)

    def text() -> Text:
        # What scrolls, or wraps at the terminal's echo of Ctrl-C, cannot be erased.
        lines = redact("\n".join(meter.lines())).splitlines()[: console.height - 1]
        # One plain text, not a table: laying a table out four times a second costs 3 % of a core.
        return Text("\n".join(line[: console.width - len("^C")] for line in lines), no_wrap=True)

    with Live(text(), console=console, auto_refresh=False, transient=True) as live:
        while True:
            await asyncio.sleep(_TERMINAL_S)
            live.update(text(), refresh=True)
