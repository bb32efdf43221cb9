"""`pinstripe verify`: compares the copy with Stripe, reports differences, and repairs them on request."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime

from pinstripe.cli.runtime import complain, show, tell
from pinstripe.cli.status import check_synced, with_data
from pinstripe.cli.summary import counted
from pinstripe.cli.sync import INCOMPLETE
from pinstripe.cli.syncs import open_vault
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient, meet
from pinstripe.config.config import Config
from pinstripe.errors import Misconfigured, redact
from pinstripe.platforms.account import open_account, open_platform
from pinstripe.platforms.vault import PlatformVault
from pinstripe.service import budget_for, chosen_tables, open_service, personal_of, stripe_for
from pinstripe.store.platforms.stored import get_platform
from pinstripe.store.platforms.sweep import wake
from pinstripe.store.pool import connect
from pinstripe.sync.verify.compare import Difference, Report, TableReport
from pinstripe.sync.verify.verify import Verify, VerifyOptions, open_verify

DIFFERENT = 6
_TELL_S = 5.0
_COUNTS = ("rows", "listed", "requests", "more", "partial", "moving", "unlisted", "unchecked")


async def verify(config: Config, options: VerifyOptions, *, ids: int, as_json: bool) -> int:
    """Return the exit code: 0 if everything compared is verified, 6 if something differs, 4 if something
    is neither.
    """
    config = with_data(config)
    if config.database_url is not None:
        async with connect(config.database_url) as connection:
            await check_synced(connection, config.schema)
    async with (
        open_service(config, leads=False, tell=tell) as service,
        open_verify(
            service.database.url,
            service.source,
            service.budget,
            options,
            account_created=service.account.birth,
        ) as run,
    ):
        report = await _ran(run, service.stripe)
    return _told(report, ids=ids, as_json=as_json)


async def verify_account(
    config: Config,
    platform_id: str,
    account_id: str,
    options: VerifyOptions,
    *,
    ids: int,
    as_json: bool,
) -> int:
    """Like `verify`, for one account of a platform. A worker that runs has it polled first."""
    async with open_vault(PlatformVault, config, new=False) as vault, AsyncExitStack() as stack:
        async with connect(vault.database_url) as connection, connection.transaction():
            platform = await get_platform(connection, platform_id)
            if not await wake(connection, platform.id, platform.schema, account_id):
                raise Misconfigured(
                    f'The platform "{platform_id}" has no such account, or it is revoked.',
                    hint="Its accounts are in the console, and in /api/platforms/ID/accounts.",
                )
        own = vault.config_of(platform)
        key = ApiKey.parse(own.api_key or "")
        budget = budget_for(own, key)
        client = await stack.enter_async_context(stripe_for(own, key, budget))
        shared = await stack.enter_async_context(
            open_platform(
                vault.database_url,
                platform.schema,
                chosen_tables(own),
                personal=personal_of(own),
            )
        )
        stripe = client.for_account(account_id)
        met = await meet(stripe, key)
        source = await stack.enter_async_context(
            open_account(shared, account_id, stripe, held=None)
        )
        followed = replace(options, followed=True)
        run = await stack.enter_async_context(
            open_verify(shared.url, source, budget, followed, account_created=met.birth)
        )
        report = await _ran(run, stripe)
    return _told(report, ids=ids, as_json=as_json)


async def _ran(run: Verify, stripe: StripeClient) -> Report:
    telling = asyncio.create_task(_tell_phases(run, stripe))
    try:
        return await run.run()
    finally:
        telling.cancel()


def _told(report: Report, *, ids: int, as_json: bool) -> int:
    """Print the report; return the exit code."""
    text = as_text(report, ids=ids)
    if as_json:
        show(json.dumps(as_object(report)))
        tell(text)
    else:
        show(text)
    if report.differences:
        return DIFFERENT
    if report.unproven:
        names = ", ".join(t.table for t in report.unproven)
        complain(f"No differences, but not everything could be verified: {names}.", _remedy(report))
        return INCOMPLETE
    return 0


def _remedy(report: Report) -> str:
    if report.left_out or any(t.failed and not t.remedy for t in report.unproven):
        return "Verify again in a few minutes."
    return "See above for what could not be verified, and why."


async def _tell_phases(run: Verify, stripe: StripeClient) -> None:
    """A line now and then, so that nobody wonders."""
    while True:
        tell(f"Verifying: {run.phase}; {stripe.requests.total():,} requests")
        await asyncio.sleep(_TELL_S)


def as_object(report: Report) -> dict[str, object]:
    """All of it, every id included."""
    return {
        "schema": report.schema,
        "differences": report.differences,
        "repaired": report.repaired,
        "requests": report.requests,
        "started_at": report.started_at.isoformat(),
        "finished_at": report.finished_at.isoformat(),
        "digest": report.digest,
        "left_out": report.left_out,
        "left_out_since": _left_out_since(report).isoformat(),
        "proven": not report.differences and not report.unproven,
        "tables": [_table_object(t) for t in report.tables.values()],
    }


def _left_out_since(report: Report) -> datetime:
    """What an event from then on tells of is left out where it differs."""
    return datetime.fromtimestamp(report.since - report.margin_s, UTC)


def _table_object(table: TableReport) -> dict[str, object]:
    return {
        "table": table.table,
        "state": table.state,
        "reason": redact(table.reason),
        "remedy": redact(table.remedy),
        **{name: getattr(table, name) for name in _COUNTS},
        **{kind: table.found[kind] for kind in ("missing", "stale", "extra", "wrongly_deleted")},
        "repaired": [_difference_object(d) for d in table.repaired],
        "remaining": [_difference_object(d) for d in table.remaining],
    }


def _difference_object(found: Difference) -> dict[str, object]:
    return {"id": found.key, "kind": found.kind, "columns": list(found.columns)}


def as_text(report: Report, *, ids: int) -> str:
    """Return the report as text: a line for each table with findings, with up to `ids` ids of each kind."""
    tables = report.tables.values()
    proven = [t for t in tables if t.state == "verified"]
    seconds = (report.finished_at - report.started_at).total_seconds()
    head = counted(report.differences, "difference") if report.differences else "No differences"
    repaired = f", {report.repaired:,} repaired" if report.repaired else ""
    lines = [
        f"{head}{repaired}: schema {report.schema}, {sum(t.rows for t in tables):,} rows, "
        f"{len(proven)} of {len(tables)} tables verified",
        f"{seconds:,.1f} s, {report.requests:,} requests; digest {report.digest}",
    ]
    wrong = [t for t in tables if t.differences or t.repaired]
    if wrong:
        lines += ["", f"  {'table':<40} {'rows':>10} {'listed':>10} {'missing':>8} {'stale':>8}"]
        lines[-1] += f" {'extra':>8} {'wrongly deleted':>16} {'repaired':>9} {'remain':>7}"
    for table in wrong:
        lines += _wrong(table, ids)
    lines += _unproven([t for t in tables if t.state != "verified"])
    since = f"{_left_out_since(report):%H:%M:%S} UTC"
    if report.left_out:
        counts = ", ".join(f"{t.table} {t.moving:,}" for t in tables if t.moving)
        lines += [
            "",
            f"{report.left_out:,} rows changed during verification or have an event since {since}: "
            f"they differ and were left out ({counts}).",
        ]
    elif report.margin_s:
        lines += ["", f"Rows with an event since {since} are left out; none differ."]
    partial = sum(t.partial for t in tables)
    if partial:
        lines += [
            "",
            f"{partial:,} rows lack columns that Stripe returns only on request; --repair fills them.",
        ]
    return "\n".join(lines)


def _wrong(table: TableReport, ids: int) -> list[str]:
    found = table.found
    lines = [
        f"  {table.table:<40} {table.rows:>10,} {table.listed:>10,} {found['missing']:>8,} "
        f"{found['stale']:>8,} {found['extra']:>8,} {found['wrongly_deleted']:>16,} "
        f"{len(table.repaired):>9,} {table.differences:>7,}"
    ]
    for kind in sorted(found):
        same = [d for d in table.remaining if d.kind == kind]
        for difference in same[:ids]:
            columns = f" ({', '.join(difference.columns)})" if difference.columns else ""
            lines.append(f"      {kind.replace('_', ' ')}: {redact(difference.key)}{columns}")
        if len(same) > ids:
            lines.append(f"      {len(same) - ids:,} more {kind.replace('_', ' ')}")
    if table.more:
        lines.append(f"      {table.more:,} more, not checked one by one")
    return lines


def _unproven(tables: list[TableReport]) -> list[str]:
    """Group tables by reason."""
    if not tables:
        return []
    by_reason: dict[tuple[str, str, str], list[str]] = {}
    for table in tables:
        name = table.table if not table.unchecked else f"{table.table} ({table.unchecked:,} rows)"
        by_reason.setdefault((table.state, table.reason, table.remedy), []).append(name)
    lines = ["", "Not verified:"]
    for (state, reason, remedy), names in by_reason.items():
        why = reason or "Stripe lists none of these rows"
        lines.append(
            f"  {', '.join(names)}: {'partial; ' if state == 'partly' else ''}{redact(why)}"
        )
        if remedy:
            lines.append(f"    remedy: {redact(remedy)}")
    return lines
