"""The API of how things stand: one sync's copy by table, lag, budget, refusals; and health endpoints.

`/healthz` reads nothing: it responds as long as the process runs. `/readyz` says whether SQL returns what
Stripe has. Route proxy traffic by `/healthz`, since the proxy works without a database. Both are public, so
only admins get the ids of syncs and the reasons.
"""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version

import msgspec
from msgspec.structs import asdict
from starlette.responses import Response

from pinstripe.client.api_errors import permission_of
from pinstripe.errors import PinstripeError
from pinstripe.gateway.api.endpoint import Call
from pinstripe.gateway.api.syncs import find_sync
from pinstripe.gateway.http.errors import JSON, HTTPError
from pinstripe.gateway.http.metrics import MEDIA
from pinstripe.gateway.live.status_board import LagSample
from pinstripe.store.cursors import READY, SCAN_OF, Checkpoint, RememberedRefusal, load_checkpoints
from pinstripe.store.daily_counts import Clocks, load_requests, utc_today
from pinstripe.store.leases import QuotaReport, TableProgress
from pinstripe.store.platforms.stored import load_platforms
from pinstripe.store.platforms.workers import live_workers
from pinstripe.store.status import (
    FailedRequests,
    QuarantinedRows,
    ScanProgress,
    TableStatus,
    moment,
    read_status,
)
from pinstripe.store.verifications import Certificate


class TableStanding(msgspec.Struct, frozen=True, kw_only=True):
    """One table of the copy."""

    table: str
    rows: int
    exact: bool
    """False: the number of rows is Postgres's estimate."""
    state: str
    """Of its lists: done, running, refused, failed; or found: it has no list of its own."""
    reason: str
    remedy: str
    requests: int
    seconds: float
    fresh_to: datetime | None
    """Up to which moment of Stripe's clock it is known to be true."""
    fresh_by: str
    """What tells so: events, newest, due, pass or backfill."""
    progress: TableProgress | None
    """While its first copy is under way."""
    code: str = ""
    """What `reason` says, for programs: not_permitted, not_enabled, unreachable, left_out, ..."""
    next_try: datetime | None = None
    """When a list that was refused or failed is tried again."""
    owed: int = 0
    """Requests for single objects and lists that met trouble; they are tried again until answered."""
    since: datetime | None = None
    """The start date: older objects are here only where rows refer to them."""
    ready: bool = False
    """Its lists are read, or were refused; only events decide whether it is current."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How the copy stands."""

    schema: str
    account_id: str | None
    livemode: bool | None
    api_version: str
    default_api_version: str | None
    """In which Stripe renders this account's events."""
    rows: int
    followed: datetime | None
    """All events up to this moment are applied."""
    trouble: str
    remedy: str
    to_ask: int
    to_ask_by_class: dict[str, int]
    """The same by class of work: contested, related, previews, scans."""
    missing: int
    """References to objects that Stripe does not have, or does not show to this key."""
    certificate: Certificate | None
    """Of the last `pinstripe verify`."""
    phase: str | None
    """Of the first copy; null if its process says nothing."""
    left_s: float | None
    tables: list[TableStanding]
    owed: list[FailedRequests] = []
    """Requests to Stripe that met trouble. They stay owed, and are tried again after growing pauses."""
    quarantine: list[QuarantinedRows] = []
    """Rows and tables that Postgres refuses to hold. They are tried again all the time."""
    refusals: list[RememberedRefusal] = []
    """Properties that Stripe does not expand, and lists that it only answers by parent."""
    clocks: Clocks = Clocks()
    """How far Stripe's clocks were apart, and how often a read was stale."""
    ready: bool = False
    """The first copy was complete once: a wait is held up by nothing but the events."""
    scan: list[ScanProgress] = []
    """The slow scan of lists that Stripe has only by parent."""


class StatusQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much to tell."""

    table: str = ""
    """Only this one."""


class Lag(msgspec.Struct, frozen=True):
    """How far behind Stripe the copy is."""

    as_of: datetime | None
    lag_s: float | None
    samples: list[LagSample]
    """Of the last hour at most, about ten seconds apart, since the gateway began; oldest first."""


class DayCount(msgspec.Struct, frozen=True):
    """Requests that were sent on one day (UTC), by kind."""

    day: str
    by_kind: dict[str, int]


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Requests to Stripe: how many a second now, and how much of the read allowance is used.

    What its process alone knows is null while that says nothing.
    """

    account_rate: float | None
    """Requests a second that are allowed now; null is no limit, or not known."""
    requests_per_s: float | None
    requests: dict[str, int] | None
    """Since the process began, by method and kind of endpoint."""
    rate_limited: dict[str, int] | None
    """Answers of 429, by the same kinds."""
    queue_rows: int | None
    allowance: QuotaReport | None
    days: list[DayCount]
    """GETs of the last 30 days, oldest first; days without one are left out."""


class Refusal(msgspec.Struct, frozen=True):
    """A list that Stripe does not show to this key."""

    table: str
    stream: str
    state: str
    reason: str
    """In Stripe's words."""
    remedy: str
    permission: str | None
    """The permission that is missing, as Stripe names it."""
    permission_title: str | None
    """What the dashboard calls it."""
    edit_url: str | None
    """Where the key is edited in the dashboard, if Stripe gives a link."""
    code: str = ""
    """What `reason` says, for programs: not_permitted, not_enabled, left_out, ..."""
    next_try: datetime | None = None
    """When it is tried again."""


class Permissions(msgspec.Struct, frozen=True):
    """What the key may not read. Tables that are not named here may be read."""

    key_hint: str
    readable: int
    """Lists that were read, or are being read."""
    refused: list[Refusal]


async def status(call: Call, query: StatusQuery) -> Status:
    """How each table of the copy stands: rows, state, how far true and by what.

    Large tables are estimated, not counted.
    """
    sync = await find_sync(call)
    async with call.gateway.reads.connection() as connection:
        found = await read_status(connection, schema=sync.schema)
    if not found:
        raise HTTPError(
            404,
            "not_synced",
            f'Nothing has been synced into the schema "{sync.schema}" yet.',
            hint="Try again when its process has begun.",
        )
    live = call.gateway.board.syncs.get(sync.id)
    process = live.process if live is not None else None
    progress = {t.table: t for t in process.tables} if process is not None else {}
    tables = [
        _table(t, progress.get(t.table)) for t in found[0].tables if query.table in ("", t.table)
    ]
    if query.table and not tables:
        raise HTTPError(404, "unknown_table", f"There is no table {query.table!r} in this copy.")
    shown = {
        **asdict(found[0]),
        "tables": tables,
        "phase": process.phase if process is not None else None,
        "left_s": process.left_s if process is not None else None,
    }
    return msgspec.convert(shown, Status)


async def lag(call: Call) -> Lag:
    """How far behind Stripe the copy is, now and over the last hour."""
    sync = await find_sync(call)
    live = (await call.gateway.board.fresh()).get(sync.id)
    return Lag(
        live.as_of if live is not None else None,
        live.lag_s if live is not None else None,
        call.gateway.board.lags(sync.id),
    )


async def budget(call: Call) -> Budget:
    """The request budget, and how much of Stripe's read allowance is used."""
    sync = await find_sync(call)
    async with call.gateway.reads.connection() as connection:
        counts = await load_requests(connection, sync.schema, utc_today())
    days: dict[str, dict[str, int]] = {}
    for (day, kind), count in sorted(counts.items()):
        days.setdefault(day.isoformat(), {})[kind] = count
    live = (await call.gateway.board.fresh()).get(sync.id)
    heartbeat = live.process if live is not None else None
    return Budget(
        account_rate=heartbeat.account_rate if heartbeat else None,
        requests_per_s=heartbeat.requests_per_s if heartbeat else None,
        requests=heartbeat.requests if heartbeat else None,
        rate_limited=heartbeat.rate_limited if heartbeat else None,
        queue_rows=heartbeat.queue_rows if heartbeat else None,
        allowance=heartbeat.allowance if heartbeat else None,
        days=[DayCount(day, kinds) for day, kinds in days.items()],
    )


async def permissions(call: Call) -> Permissions:
    """What the key may not read, in Stripe's own words, with the remedy.

    As the sync found it: a list is asked anew at every start. `pinstripe check` asks at once.
    """
    sync = await find_sync(call)
    async with call.gateway.reads.connection() as connection:
        cursors = await load_checkpoints(connection, sync.schema)
    lists = [c for s, c in cursors.items() if s != READY and not s.startswith(SCAN_OF)]
    refused = [c for c in lists if c.state == "refused" or c.permission]
    return Permissions(
        sync.key_hint,
        len(lists) - len(refused),
        [_refusal(c) for c in sorted(refused, key=lambda c: c.stream)],
    )


def _refusal(found: Checkpoint) -> Refusal:
    lacking = permission_of(found.reason)
    return Refusal(
        found.table or found.stream,
        found.stream,
        found.state,
        found.reason,
        found.remedy,
        found.permission or None,
        lacking.title or None,
        lacking.edit_url or None,
        found.code,
        moment(found.next_try),
    )


def _table(found: TableStatus, progress: TableProgress | None) -> TableStanding:
    shown = {**asdict(found), "seconds": round(found.seconds, 3), "progress": progress}
    return msgspec.convert(shown, TableStanding)


class Alive(msgspec.Struct, frozen=True):
    """The process answers."""

    ok: bool
    version: str


class Check(msgspec.Struct, frozen=True):
    """One thing that must be well."""

    name: str
    """`database`, or `sync:` or `platform:` and an id; for strangers `syncs`, all of them."""
    ok: bool
    reason: str = ""
    """For admins."""
    remedy: str = ""


class Readiness(msgspec.Struct, frozen=True):
    """Whether all checks are well."""

    ok: bool
    checks: list[Check]


_VERSION = version("pinstripe")


async def healthz(call: Call) -> Alive:
    """Whether the process is alive."""
    return Alive(ok=True, version=_VERSION)


async def readyz(call: Call) -> Response:
    """Whether the copy is ready: the database reachable, each sync that is not paused followed.

    200 or 503, and each check. A sync is not ready before its first copy is complete, a platform without a
    worker that lives.
    """
    syncs = await call.gateway.board.fresh()
    trouble = call.gateway.board.trouble
    checks = [Check("database", not trouble, trouble)]
    checks += [
        Check(f"sync:{live.id}", live.ready, live.reason, live.remedy)
        for live in syncs.values()
        if not live.paused
    ]
    checks += await _platform_checks(call)
    answer = Readiness(all(check.ok for check in checks), checks)
    if not call.gateway.parts.access.is_admin(call.request):
        followed = all(check.ok for check in checks[1:])
        answer = Readiness(answer.ok, [Check("database", checks[0].ok), Check("syncs", followed)])
    return Response(msgspec.json.encode(answer), 200 if answer.ok else 503, media_type=JSON)


async def _platform_checks(call: Call) -> list[Check]:
    """Whether anybody works for the platforms; none of them while the database does not tell."""
    if not call.gateway.parts.syncs.platforms:
        return []
    try:
        async with call.gateway.reads.connection() as connection:
            wanted = [p.id for p in await load_platforms(connection) if not p.paused]
            is_worked_for = bool(await live_workers(connection))
    except PinstripeError:
        return []
    problem = ("", "") if is_worked_for else ("No worker runs.", "Start `pinstripe worker`.")
    return [Check(f"platform:{name}", is_worked_for, *problem) for name in wanted]


async def metrics(call: Call) -> Response:
    """Metrics for Prometheus, in its text format.

    Rows are Postgres's estimates. Kept for two seconds.
    """
    return Response(await call.gateway.metrics.text(), media_type=MEDIA)
