"""The end of a verification: counts, the digest, and the certificate that `status` shows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pinstripe.source.account import Source
from pinstripe.store.certificates import Certificate, digest, save_certificate
from pinstripe.store.ddl import qualified
from pinstripe.sync.verified import Report, TableReport


async def certify(
    source: Source,
    reports: dict[str, TableReport],
    requests: Mapping[str, int],
    *,
    since: float,
    started_at: datetime,
) -> Report:
    """Counts what the tables hold now, and saves what was found as a certificate."""
    schema = source.mirror.schema
    async with source.pool.acquire() as connection:
        for report in reports.values():
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
    tables: dict[str, dict[str, object]] = {
        r.table: {
            "state": r.state,
            "rows": r.rows,
            "listed": r.listed,
            "differences": r.differences,
            "repaired": len(r.repaired),
            "unchecked": r.unchecked,
            "from": r.oldest,
            "to": r.newest,
        }
        for r in found.tables.values()
    }
    return Certificate(
        found.started_at,
        found.finished_at,
        tables,
        found.differences,
        found.repaired,
        found.digest,
    )
