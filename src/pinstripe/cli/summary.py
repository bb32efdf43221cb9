"""The summary of a backfill, as text and as JSON, and how to connect to the result."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict
from urllib.parse import unquote

from pinstripe.catalog.carriers import carriers
from pinstripe.catalog.endpoints import singleton_paths
from pinstripe.catalog.tables import tables as known_tables
from pinstripe.config.config import Config
from pinstripe.errors import redact
from pinstripe.service import Database, Service
from pinstripe.store.database_url import split_url, url_with_login
from pinstripe.store.refusals import LIST, RememberedRefusal
from pinstripe.store.status import ScanProgress, SchemaStatus, TableStatus, read_status
from pinstripe.store.syncs import DEFAULT_ID
from pinstripe.sync.backfill.backfill import BackfillResult

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
            f"{made['rows']:,} rows in {len(filled)} tables",
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
        lines += _trouble("Not finished", [t for t in shown if t["status"] == "running"])
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
        if made["scan_owed"]:
            owed_by = sorted((s for s in self._scans() if s.owed), key=lambda s: -s.owed)
            named = ", ".join(f"{s.table} of {s.owed:,} {s.parent}" for s in owed_by)
            lines += [
                "",
                f"Left to the slow scan: {made['scan_owed']:,} lists by parent of which no row shows that "
                f"they hold anything ({named}). A sync that goes on reads them by and by; `--deep` reads "
                "them now.",
            ]
        if made["note"]:
            lines += ["", f"Note: {made['note']}"]
        return "\n".join(lines)


async def summarise(service: Service, outcome: BackfillResult, *, exact: bool) -> Ending:
    """Counts what the database holds now, large tables only if `exact`."""
    async with service.pool.acquire() as connection:
        found = await read_status(connection, schema=service.config.schema, exact=exact)
    return Ending(service, outcome, found[0])


def _trouble(title: str, tables: list[TableSummary]) -> list[str]:
    """Group tables by reason: a product that is not enabled has many."""
    if not tables:
        return []
    by_reason: dict[tuple[str, str], list[str]] = {}
    for table in tables:
        by_reason.setdefault((table["reason"], table["remedy"]), []).append(table["table"])
    lines = ["", f"{title}:"]
    for (reason, remedy), names in by_reason.items():
        lines.append(f"  {', '.join(names)}: {reason or 'not finished'}")
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
    query = f'SELECT status, count(*) FROM "{schema}".subscription GROUP BY 1 ORDER BY 2 DESC;'
    return "\n".join(
        [
            "Connect with:",
            f"  {psql_command(database)}",
            "and try:",
            f"  {query}",
        ]
    )


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
    return url_with_login(url, unquote(split_url(url).user), None)
