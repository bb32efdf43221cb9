"""The status of syncs, from the database alone: rows, state, freshness and reasons of each table.

`read_status` reads one schema in full, for `pinstripe status`, the summary of a sync and the API.
`load_summaries` reads all syncs in one query whose cost does not depend on their size, for callers that
poll every second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

import msgspec
from msgspec import structs

from pinstripe.catalog.endpoints import list_endpoints
from pinstripe.catalog.relations import with_events
from pinstripe.catalog.tables import tables
from pinstripe.errors import Drifted, Misconfigured, PinstripeError
from pinstripe.store.cursors import (
    FOLLOWED,
    LEFT_OUT,
    READY,
    SCAN_OF,
    Checkpoint,
    Freshness,
    RememberedRefusal,
    load_checkpoints,
    load_freshness,
    load_refusals,
)
from pinstripe.store.daily_counts import Clocks, ReadUse, load_clocks, load_read_use
from pinstripe.store.ddl import literal, qualified
from pinstripe.store.pool import Connection, translated, work_for
from pinstripe.store.refetch import ANSWERED, class_name, count_by_class
from pinstripe.store.rewrite import existing_tables
from pinstripe.store.session import account_of
from pinstripe.store.syncs import Sync, alone, load_syncs
from pinstripe.store.verifications import Certificate, load_certificate, load_plan

TableState = Literal["done", "running", "refused", "failed", "found"]
"""As of its lists; `found`: no list of its own, its rows come inside or by reference of others."""

_WORST_FIRST: tuple[TableState, ...] = ("failed", "running", "refused", "done")
_COUNTED_ROWS = 100_000
_COUNTED_BYTES = 16 * 1024 * 1024
"""Tables up to this size are counted even if an estimate would do: it takes milliseconds."""


class TableStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One table of the copy. `requests` and `seconds` are sums over its lists."""

    table: str
    rows: int
    exact: bool
    """False: the number of rows is Postgres's estimate."""
    state: TableState
    reason: str = ""
    remedy: str = ""
    requests: int = 0
    seconds: float = 0.0
    as_of: datetime | None = None
    """Start of its backfill, on Stripe's clock."""
    fresh_to: datetime | None = None
    """All changes up to this moment of Stripe's clock are applied."""
    fresh_by: str = ""
    """The evidence for it: events, newest, due, pass or backfill."""
    code: str = ""
    """`reason` for programs: not_permitted, not_enabled, unreachable, left_out, ..."""
    permission: str = ""
    """The permission that the key lacks, as Stripe names it."""
    next_try: datetime | None = None
    """When a list that was refused or failed is retried."""
    owed: int = 0
    """Failed requests for single objects and lists; they are retried until they succeed."""
    since: datetime | None = None
    """The start date: older objects are here only where rows refer to them."""
    ready: bool = False
    """Its lists are read, or were refused; only events decide whether it is current."""


class FailedRequests(msgspec.Struct, frozen=True):
    """Requests of one table that failed for the same reason. They are retried until they succeed."""

    table: str
    kind: str
    code: str
    reason: str
    remedy: str
    count: int
    attempts: int
    """The highest number of attempts of any of them."""
    example: str
    """The id of one of them."""
    next_try: datetime | None


class ScanProgress(msgspec.Struct, frozen=True):
    """The slow scan of one list by parent. `of` parents are to be read in this round, `done` are."""

    table: str
    parent: str
    """The table of the parents."""
    done: int
    of: int
    rounds: int
    """Rounds over all parents that are complete; 0: the copy owes what no sign, event or scan has shown."""
    left_s: float | None
    """Until the round is complete, at the scan's pace; None before it begins and between rounds."""
    as_of: datetime | None
    """When the last complete round began, on Stripe's clock."""

    @property
    def owed(self) -> int:
        """Parents under which nobody has looked yet."""
        return 0 if self.rounds else max(self.of - self.done, 0)


class QuarantinedRows(msgspec.Struct, frozen=True):
    """Rows of one table that Postgres rejects for the same reason, or the whole table."""

    table: str
    id: str
    """One of the rows; empty if it is the whole table."""
    sqlstate: str
    name: str
    """Constraint, index or column, if Postgres reports it."""
    reason: str
    remedy: str
    count: int
    tries: int


class SchemaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One synced schema."""

    schema: str
    account_id: str | None
    livemode: bool | None
    api_version: str
    followed: datetime | None
    """All events up to this moment are applied."""
    missing: int
    """References to objects that Stripe does not have, or does not show to this key."""
    tables: list[TableStatus]
    certificate: Certificate | None
    """Of the last verification."""
    next_verification: datetime | None
    """When the service verifies next; null without a schedule."""
    verification_note: str
    """Why there is no schedule."""
    trouble: str
    """Why events are not being applied; "" if they are."""
    remedy: str
    to_ask: int
    """Requests to Stripe that events have made necessary and that are still pending."""
    to_ask_by_class: dict[str, int]
    """The same by class of work: contested, related, previews, scans."""
    refusals: Sequence[RememberedRefusal]
    """What Stripe refuses besides whole tables: properties, and lists that are read by parent instead."""
    owed: list[FailedRequests]
    quarantine: list[QuarantinedRows]
    scan: list[ScanProgress]
    """The lists by parent that have parents."""
    ready: bool
    """The first copy was complete once: a wait is held up by nothing but the events."""
    reads: ReadUse
    default_api_version: str | None
    """The account's own API version, in which Stripe renders its events."""
    rows: int
    clocks: Clocks = Clocks()
    """How far Stripe's clocks were apart, and how often a read was stale."""


_IS_OWED = f"code <> 'quarantined' AND code NOT IN {ANSWERED}"
"""Whether a row of `pinstripe.pending` that has a code stands for a request that failed."""

_OWED = f"""
SELECT "table", kind, code, (array_agg(reason ORDER BY next_try_at))[1],
  coalesce((array_agg(remedy ORDER BY next_try_at))[1], ''), count(*), max(attempts), min(left(id, 500)),
  min(next_try_at)
FROM pinstripe.pending WHERE schema = $1 AND {_IS_OWED}
GROUP BY "table", kind, code ORDER BY "table", kind, code LIMIT 200
"""

_QUARANTINE = """
SELECT "table", min(left(id, 500)), sqlstate, coalesce(name, ''), min(reason), min(remedy), count(*),
  max(tries)
FROM pinstripe.quarantine WHERE schema = $1
GROUP BY "table", id = '', sqlstate, name ORDER BY "table", 2 LIMIT 200
"""


async def read_status(
    connection: Connection,
    *,
    schema: str | None = None,
    exact: bool = False,
    counted_bytes: int = _COUNTED_BYTES,
) -> list[SchemaStatus]:
    """Every synced schema, or only `schema`, which may be the scope of a platform's account; empty if there
    is none.

    Tables of more than `counted_bytes` are estimated unless `exact`. Raises Misconfigured if only an older
    version ever wrote here.
    """
    counted_bytes = sys.maxsize if exact else counted_bytes
    account = account_of(schema or "")
    try:
        with translated():
            if account:
                await work_for(connection, account)
            return [
                await _schema(connection, sync, counted_bytes=counted_bytes)
                for sync in await load_syncs(connection, schema or "" if account else "")
                if schema in (None, sync.schema)
            ]
    except Drifted as error:
        if error.fault is None or error.fault.sqlstate not in _OLDER:
            raise
        raise Misconfigured(
            "The bookkeeping in this database is that of an older version of Pinstripe.",
            hint="Start `pinstripe sync` of this version once: it brings the bookkeeping up to date and "
            "keeps all rows. Until then the version that wrote it shows its status.",
        ) from error


_OLDER = ("42P01", "42703")
"""SQLSTATEs of a table and of a column that does not exist."""


_MISSING = "SELECT count(*) FROM pinstripe.missing WHERE schema = $1"


async def _schema(connection: Connection, sync: Sync, *, counted_bytes: int) -> SchemaStatus:
    schema = sync.schema
    cursors = dict(await load_checkpoints(connection, schema))
    followed = cursors.pop(FOLLOWED, None)
    scans = {s: cursors.pop(s) for s in list(cursors) if s.startswith(SCAN_OF)}
    is_ready, up_to = cursors.pop(READY, None) is not None, followed.as_of if followed else None
    with translated():
        rows = await _rows(connection, schema, counted_bytes)
        missing = await connection.fetchval(_MISSING, schema)
        pending = await count_by_class(connection, schema)
        failed = [FailedRequests(*row) for row in await connection.fetch(_OWED, schema)]
        held = [QuarantinedRows(*row) for row in await connection.fetch(_QUARANTINE, schema)]
    fresh, by_table = await load_freshness(connection, schema), _by_table(cursors.values())
    plan = await load_plan(connection, schema)

    def table(name: str) -> TableStatus:
        return _table(
            name,
            *rows[name],
            by_table.get(name, []),
            is_ready=is_ready,
            owed=sum(f.count for f in failed if f.table == name),
            known=_known(name, up_to, [f for f in fresh if f.table == name]),
        )

    return SchemaStatus(
        schema=schema,
        account_id=sync.account_id,
        livemode=sync.livemode,
        api_version=sync.api_version,
        followed=moment(up_to),
        missing=missing,
        certificate=await load_certificate(connection, schema),
        next_verification=plan[0],
        verification_note=plan[1],
        trouble=followed.reason if followed else "",
        remedy=followed.remedy if followed else "",
        to_ask=sum(pending.values()),
        to_ask_by_class=pending,
        refusals=await load_refusals(connection, schema, is_due=True),
        owed=failed,
        quarantine=held,
        scan=_scan(cursors, scans, {table: count for table, (count, _) in rows.items()}),
        ready=is_ready,
        reads=await load_read_use(connection, schema, livemode=sync.livemode),
        default_api_version=await _default_version(connection, schema, rows),
        rows=sum(count for count, _ in rows.values()),
        clocks=(await load_clocks(connection)).get(schema, Clocks()),
        tables=[_without_quarantined(table(name), held) for name in rows],
    )


def _scan(
    cursors: Mapping[str, Checkpoint], scans: Mapping[str, Checkpoint], rows: Mapping[str, int]
) -> list[ScanProgress]:
    """The progress of each list by parent that was read where a row showed a sign."""
    if_any = {
        (table, e.parent_table): e.only_if_any
        for e in list_endpoints()
        for table in e.tables
        if e.parent and e.only_if_any
    }
    found: list[tuple[ScanProgress, float]] = []
    for stream, cursor in sorted(cursors.items()):
        copied = cursor.position
        scanned = scans.get(SCAN_OF + stream)
        if "parent" not in copied or (scanned is None and cursor.state != "done"):
            continue
        table, parent = str(copied["table"]), str(copied["parent"])
        here = scanned.position if scanned else {}
        of = int(here.get("of") or rows.get(parent, 0))
        if not of or rows.get(if_any.get((table, parent), parent), 0) == 0:
            continue
        done, rounds = int(here.get("done", 0)), int(here.get("rounds", 0))
        as_of = scanned.as_of if scanned is not None else None
        if cursor.state == "done" and "read" not in copied:
            # A copy was deep: a round, which the scan need not make.
            done, rounds = of if scanned is None else done, max(rounds, 1)
            as_of = max(as_of or 0.0, cursor.as_of or 0.0)
        per_s = float(here.get("per_s", 0.0)) if not here.get("ended") else 0.0
        shown = ScanProgress(
            table, parent, done, of, rounds, None, moment(as_of) if rounds else None
        )
        found.append((shown, per_s))
    # The lists take turns: one is through when each of the others had as many turns as it needs.
    lefts = [max(s.of - s.done, 0) if per_s else 0 for s, per_s in found]
    return [
        structs.replace(shown, left_s=round(sum(min(n, left) for n in lefts) / per_s, 1))
        if per_s
        else shown
        for (shown, per_s), left in zip(found, lefts, strict=True)
    ]


async def _default_version(
    connection: Connection, schema: str, rows: Mapping[str, object]
) -> str | None:
    if "event" not in rows:
        return None
    try:
        with translated():
            newest: str | None = await connection.fetchval(
                f"SELECT api_version FROM {qualified(schema, 'event')} ORDER BY created DESC LIMIT 1"
            )
    except PinstripeError as error:
        if error.fault is None or error.fault.scope != "table":
            raise
        return None
    return newest


def _known(
    table: str, followed: float | None, fresh: Sequence[Freshness]
) -> list[tuple[float, str]]:
    """(second, evidence): how far the table is known to be true, its backfill aside."""
    known: list[tuple[float, str]] = [(f.known_to, f.how) for f in fresh]
    object_type = tables()[table].object_type
    if followed is not None and (object_type == "event" or object_type in with_events()):
        known.append((followed, "events"))
    return known


def _by_table(cursors: Iterable[Checkpoint]) -> Mapping[str, list[Checkpoint]]:
    by_table: dict[str, list[Checkpoint]] = {}
    for cursor in cursors:
        if cursor.table:
            by_table.setdefault(cursor.table, []).append(cursor)
    return by_table


def _without_quarantined(table: TableStatus, held: Sequence[QuarantinedRows]) -> TableStatus:
    """The status, failed if Postgres refuses the table as a whole, or each row that came."""
    for refused in held:
        if refused.table == table.table and (not refused.id or not table.rows):
            return structs.replace(
                table, state="failed", reason=refused.reason, remedy=refused.remedy
            )
    return table


def _table(
    name: str,
    rows: int,
    exact: bool,
    cursors: list[Checkpoint],
    *,
    is_ready: bool,
    owed: int,
    known: list[tuple[float, str]],
) -> TableStatus:
    moments = [c.as_of for c in cursors if c.as_of is not None]
    as_of = min(moments, default=None)
    if as_of is not None:
        known = [*known, (as_of, "backfill")]
    fresh_to, fresh_by = max(known, default=(None, ""))
    # Lists under parents that the user left out with --tables: no fault, but a gap to be named.
    left_out = [c for c in cursors if c.code == LEFT_OUT]
    counted = [c for c in cursors if c not in left_out] or left_out
    worst = min(counted, key=lambda c: _WORST_FIRST.index(c.state), default=None)
    # What others hold is there when they are.
    is_read = worst.state in ("done", "refused") if worst is not None else is_ready
    gap = f"Without the lists under a parent: {left_out[0].reason}" if left_out else ""
    return TableStatus(
        table=name,
        rows=rows,
        exact=exact,
        state=worst.state if worst else ("found" if is_ready else _before_its_list(name)),
        reason=(worst.reason if worst else "") or gap,
        remedy=worst.remedy if worst else "",
        requests=sum(c.requests for c in cursors),
        seconds=sum((c.seconds for c in cursors), 0.0),
        as_of=moment(as_of),
        fresh_to=moment(fresh_to),
        fresh_by=fresh_by,
        code=(worst.code if worst else "") or (LEFT_OUT if gap else ""),
        permission=worst.permission if worst else "",
        next_try=moment(worst.next_try) if worst else None,
        owed=owed,
        ready=is_read,
        # Previews note there when they began.
        since=None
        if tables()[name].virtual
        else moment(
            max((float(c.position.get("since") or 0) for c in cursors), default=0.0) or None
        ),
    )


def _before_its_list(table: str) -> TableState:
    """Its list has not begun, if it has one that needs no parent."""
    begins = any(table in endpoint.tables for endpoint in list_endpoints() if not endpoint.parent)
    return "running" if begins else "found"


async def _rows(
    connection: Connection, schema: str, counted_bytes: int
) -> dict[str, tuple[int, bool]]:
    """Return table -> (rows, whether that is exact), of our tables in the schema.

    Of an account of a platform nothing has an estimate; its rows are counted up to `_COUNTED_ROWS`.
    """
    if account_of(schema):
        views = await existing_tables(connection, schema)
        counts = " UNION ALL ".join(
            f"SELECT {literal(name)}, count(*) FROM"
            f" (SELECT FROM {qualified(schema, name)} LIMIT {_COUNTED_ROWS + 1}) t"
            for name in views
        )
        rows = await connection.fetch(counts) if views else ()
        return {name: (min(n, _COUNTED_ROWS), n <= _COUNTED_ROWS) for name, n in rows}
    sizes = await connection.fetch(
        # reltuples is -1 until the first ANALYZE; the statistics know sooner what was written.
        "SELECT c.relname, CASE WHEN c.reltuples < 0 THEN pg_stat_get_live_tuples(c.oid)"
        " ELSE c.reltuples END::bigint, pg_relation_size(c.oid) FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') ORDER BY c.relname",
        schema,
    )
    found: dict[str, tuple[int, bool]] = {}
    to_count: list[str] = []
    for name, estimate, size in sizes:
        if name not in tables():
            continue
        found[name] = (max(estimate, 0), False)
        if size and (size <= counted_bytes or (estimate <= 0 and size <= _COUNTED_BYTES)):
            to_count.append(name)
        elif not size:
            found[name] = (0, True)
    if to_count:
        counts = " UNION ALL ".join(
            f"SELECT {literal(name)}, count(*) FROM {qualified(schema, name)}" for name in to_count
        )
        try:
            with translated():
                rows = await connection.fetch(counts)
        except PinstripeError as error:
            if error.fault is None or error.fault.scope != "table":
                raise
            return found  # One may not be read, or was just dropped: estimates have to do.
        for name, count in rows:
            found[name] = (count, True)
    return found


@dataclass(frozen=True, slots=True)
class SyncSummary:
    """`as_of`: the Unix second, on Stripe's clock, up to which all events are applied; `now`: Postgres's.

    `running`, `failed`, `refused`: streams of lists in that state.
    """

    schema: str
    now: float = 0.0
    as_of: float | None = None
    trouble: str = ""
    remedy: str = ""
    running: int = 0
    failed: int = 0
    refused: int = 0
    to_ask: int = 0
    owed: int = 0
    """Those of them that met trouble."""
    quarantined: int = 0
    """Rows and tables that Postgres refuses to hold."""
    partly_refused: int = 0
    """Properties that Stripe does not expand, and lists that it only answers by parent."""
    clocks: Clocks = Clocks()  # noqa: RUF009 (frozen)
    by_class: Mapping[str, int] = field(default_factory=dict)
    """`to_ask` by class of work."""

    @property
    def lag_s(self) -> float | None:
        """How long ago the copy was surely true; None before the first look at the event log."""
        return None if self.as_of is None else max(self.now - self.as_of, 0.0)


_SUMMARIES = f"""
SELECT s.schema, extract(epoch FROM clock_timestamp())::float8,
       extract(epoch FROM c.as_of)::float8, coalesce(c.reason, ''), coalesce(c.remedy, ''),
       l.running, l.failed, l.refused, p.open, p.owed,
       (SELECT count(*) FROM pinstripe.quarantine q WHERE q.schema = s.schema),
       (SELECT count(*) FROM pinstripe.refusal r WHERE r.schema = s.schema), p.priorities
FROM pinstripe.sync s
LEFT JOIN pinstripe.cursor c ON c.schema = s.schema AND c.stream = 'events'
CROSS JOIN LATERAL (
  SELECT count(*) FILTER (WHERE state = 'running') AS running,
         count(*) FILTER (WHERE state = 'failed') AS failed,
         count(*) FILTER (WHERE state = 'refused') AS refused
  FROM pinstripe.cursor l WHERE l.schema = s.schema AND l.stream <> ALL($1)
    AND NOT starts_with(l.stream, {literal(SCAN_OF)})) l
CROSS JOIN LATERAL (
  SELECT coalesce(sum(g.open), 0)::bigint AS open, coalesce(sum(g.owed), 0)::bigint AS owed,
         array_agg(ARRAY[g.priority, g.open]) AS priorities
  FROM (SELECT priority::bigint, count(*) AS open,
               count(*) FILTER (WHERE {_IS_OWED}) AS owed
        FROM pinstripe.pending p WHERE p.schema = s.schema GROUP BY 1) g) p
"""

# Without an ANALYZE only the statistics have a count; after a crash only reltuples does.
_ESTIMATES = """
SELECT n.nspname, c.relname,
       greatest(c.reltuples, pg_stat_get_live_tuples(c.oid), 0)::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY($1::text[]) AND c.relkind IN ('r', 'p')
"""


async def load_summaries(connection: Connection) -> dict[str, SyncSummary]:
    """Return schema -> its summary; empty if Pinstripe never wrote here."""
    if await connection.fetchval("SELECT to_regclass('pinstripe.quarantine')") is None:
        return {}
    clocks = await load_clocks(connection)
    # Previews are filled after everything else: the copy is current without them.
    beside = [FOLLOWED, *(name for name, table in tables().items() if table.virtual)]
    return {
        row[0]: replace(
            SyncSummary(*row[:-1]),
            clocks=clocks.get(row[0], Clocks()),
            by_class={class_name(work): count for work, count in row[-1] or ()},
        )
        for row in await connection.fetch(f"{_SUMMARIES} WHERE {await alone(connection)}", beside)
    }


async def estimate_rows(
    connection: Connection, schemas: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Return schema -> table -> estimated rows, of all its tables, without counting."""
    found: dict[str, dict[str, int]] = {schema: {} for schema in schemas}
    for schema, table, rows in await connection.fetch(_ESTIMATES, list(schemas)):
        found[schema][table] = rows
    return found


def moment(second: float | None) -> datetime | None:
    """A Unix second as a time."""
    return None if second is None else datetime.fromtimestamp(second, UTC)
