"""The status of syncs, from the database alone: rows, state, freshness and reasons of each table.

`read_status` reads one schema in full, for `pinstripe status`, the summary of a sync and the API.
`load_summaries` reads all syncs in one query whose cost does not depend on their size, for callers that
poll every second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pinstripe.catalog.relations import with_events
from pinstripe.catalog.tables import tables
from pinstripe.errors import PinstripeError
from pinstripe.store.cursors import (
    FOLLOWED,
    LEFT_OUT,
    Checkpoint,
    Freshness,
    load_checkpoints,
    load_freshness,
)
from pinstripe.store.ddl import literal, qualified
from pinstripe.store.pool import Connection, translated
from pinstripe.store.read_quota import ReadUse, load_read_use
from pinstripe.store.refusals import Refusal, load_refusals
from pinstripe.store.syncs import load_syncs
from pinstripe.store.verifications import Certificate, load_certificate

TableState = Literal["done", "running", "refused", "failed", "found"]
"""As of its lists; `found`: no list of its own, its rows come inside or by reference of others."""

_WORST_FIRST: tuple[TableState, ...] = ("failed", "running", "refused", "done")

_COUNTED_BYTES = 16 * 1024 * 1024
"""Tables up to this size are counted even if an estimate would do: it takes milliseconds."""


@dataclass(frozen=True, slots=True)
class TableStatus:
    """`requests` and `seconds` are sums over its lists; `as_of` is a second on Stripe's clock."""

    table: str
    rows: int
    exact: bool
    state: TableState
    reason: str = ""
    remedy: str = ""
    requests: int = 0
    seconds: float = 0.0
    as_of: float | None = None
    fresh_to: float | None = None
    fresh_by: str = ""
    """What tells so: "events", "newest", "due", "pass", or "backfill"."""
    code: str = ""
    """What `reason` says, for programs."""
    permission: str = ""
    """The permission that the key lacks, as Stripe names it."""
    next_try: float | None = None
    """When a list that was refused or failed is tried again, Unix seconds."""
    owed: int = 0
    """Requests for single objects and lists of this table that met trouble and are tried again."""


@dataclass(frozen=True, slots=True)
class Owed:
    """Requests that met trouble: they stay owed until they are answered. `example` names one of them."""

    table: str
    kind: str
    code: str
    reason: str
    remedy: str
    count: int
    attempts: int
    example: str
    next_try: float


@dataclass(frozen=True, slots=True)
class Quarantined:
    """What Postgres refuses to hold: rows, or the whole table if `id` is "". `id` names one of `count`.

    `name`: of the constraint, index or column, as far as Postgres gives it.
    """

    table: str
    id: str
    sqlstate: str
    name: str
    reason: str
    remedy: str
    count: int
    tries: int


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """One synced schema. `followed`: the second up to which all events are applied.

    `certificate`: of the last verification, if there was one. `trouble`: why following does not go on,
    "" if it does. `to_ask`: requests to Stripe that events have made necessary and that are still open.
    """

    schema: str
    account_id: str | None
    livemode: bool | None
    api_version: str
    followed: float | None
    missing: int
    tables: list[TableStatus]
    certificate: Certificate | None = None
    trouble: str = ""
    remedy: str = ""
    to_ask: int = 0
    refusals: Sequence[Refusal] = ()
    """What Stripe refuses beside whole tables: properties, and lists that are read by parent instead."""
    owed: list[Owed] = field(default_factory=list)
    """Of those the ones that met trouble, by table and reason."""
    quarantine: list[Quarantined] = field(default_factory=list)
    """What Postgres refuses to hold, by table and reason."""
    reads: ReadUse | None = None
    """Use of Stripe's read allowance."""
    default_api_version: str | None = None
    """In which events are rendered: the account's own, as the newest event shows it."""

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)


_OWED = """
SELECT "table", kind, code, (array_agg(reason ORDER BY next_try_at))[1],
  coalesce((array_agg(remedy ORDER BY next_try_at))[1], ''), count(*), max(attempts), min(left(id, 500)),
  extract(epoch FROM min(next_try_at))::float8
FROM pinstripe.pending WHERE schema = $1 AND code <> 'quarantined'
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
    """Every synced schema, or only `schema`; empty if there is none.

    Tables of more than `counted_bytes` are estimated unless `exact`.
    """
    return [
        await _schema(
            connection,
            sync.schema,
            counted_bytes=sys.maxsize if exact else counted_bytes,
            known=(sync.account_id, sync.livemode, sync.api_version),
        )
        for sync in await load_syncs(connection)
        if schema in (None, sync.schema)
    ]


async def _schema(
    connection: Connection,
    schema: str,
    *,
    counted_bytes: int,
    known: tuple[str | None, bool | None, str],
) -> SchemaStatus:
    cursors = await load_checkpoints(connection, schema)
    followed = cursors.get(FOLLOWED)
    with translated():
        rows = await _rows(connection, schema, counted_bytes)
        missing = await connection.fetchval(
            "SELECT count(*) FROM pinstripe.missing WHERE schema = $1", schema
        )
        to_ask = await connection.fetchval(
            "SELECT count(*) FROM pinstripe.pending WHERE schema = $1", schema
        )
        owed = [Owed(*row) for row in await connection.fetch(_OWED, schema)]
        held = [Quarantined(*row) for row in await connection.fetch(_QUARANTINE, schema)]
        fresh = await load_freshness(connection, schema)
        refusals = await load_refusals(connection, schema, is_due=True)
        default_version = await _default_version(connection, schema, rows)
        reads = await load_read_use(connection, schema, livemode=known[1])
    by_table = _by_table(c for c in cursors.values() if c.stream != FOLLOWED)
    return SchemaStatus(
        schema,
        *known,
        followed=followed.as_of if followed is not None else None,
        missing=missing,
        certificate=await load_certificate(connection, schema),
        trouble=followed.reason if followed is not None else "",
        remedy=followed.remedy if followed is not None else "",
        to_ask=to_ask,
        owed=owed,
        quarantine=held,
        default_api_version=default_version,
        reads=reads,
        refusals=refusals,
        tables=[
            _with_freshness(
                _without_quarantined(
                    _table(name, count, is_exact, by_table.get(name, []), owed), held
                ),
                followed.as_of if followed is not None else None,
                [f for f in fresh if f.table == name],
            )
            for name, (count, is_exact) in rows.items()
        ],
    )


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


def _with_freshness(
    table: TableStatus, followed: float | None, fresh: Sequence[Freshness]
) -> TableStatus:
    """Return `table` with how far it is known to be true, by the furthest of its sources."""
    known: list[tuple[float, str]] = [(f.known_to, f.how) for f in fresh]
    if table.as_of is not None:
        known.append((table.as_of, "backfill"))
    named = tables()[table.table].object_type
    if followed is not None and (named == "event" or named in with_events()):
        known.append((followed, "events"))
    if not known:
        return table
    fresh_to, fresh_by = max(known)
    return replace(table, fresh_to=fresh_to, fresh_by=fresh_by)


def _by_table(cursors: Iterable[Checkpoint]) -> Mapping[str, list[Checkpoint]]:
    found: dict[str, list[Checkpoint]] = {}
    for cursor in cursors:
        position = cursor.position
        if isinstance(position, dict) and isinstance(position.get("table"), str):
            found.setdefault(position["table"], []).append(cursor)
    return found


def _without_quarantined(table: TableStatus, held: Sequence[Quarantined]) -> TableStatus:
    """The status, failed if Postgres refuses the table as a whole, or each row that came."""
    for refused in held:
        if refused.table == table.table and (not refused.id or not table.rows):
            return replace(table, state="failed", reason=refused.reason, remedy=refused.remedy)
    return table


def _table(
    name: str, rows: int, exact: bool, cursors: list[Checkpoint], owed: Sequence[Owed]
) -> TableStatus:
    count = sum(o.count for o in owed if o.table == name)
    if not cursors:
        return TableStatus(name, rows, exact, "found", owed=count)
    # Child lists whose parents the user left out with --tables: no fault, but a gap to be named.
    left_out = [c for c in cursors if c.code == LEFT_OUT]
    counted = [c for c in cursors if c not in left_out] or left_out
    worst = min(counted, key=lambda c: _WORST_FIRST.index(c.state))
    gap = f"Without the lists under a parent: {left_out[0].reason}" if left_out else ""
    moments = [c.as_of for c in cursors if c.as_of is not None]
    return TableStatus(
        name,
        rows,
        exact,
        worst.state,
        reason=worst.reason or gap,
        remedy=worst.remedy,
        requests=sum(c.requests for c in cursors),
        seconds=sum(c.seconds for c in cursors),
        as_of=min(moments, default=None),
        code=worst.code or (LEFT_OUT if gap else ""),
        permission=worst.permission,
        next_try=worst.next_try,
        owed=count,
    )


async def _rows(
    connection: Connection, schema: str, counted_bytes: int
) -> dict[str, tuple[int, bool]]:
    """Return table -> (rows, whether that is exact), of our tables in the schema."""
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
    now: float
    as_of: float | None
    trouble: str
    remedy: str
    running: int
    failed: int
    refused: int
    to_ask: int
    ask_since: float | None
    """When the oldest of those requests was asked for, on Postgres's clock."""
    owed: int = 0
    """Those of them that met trouble."""
    quarantined: int = 0
    """Rows and tables that Postgres refuses to hold."""

    @property
    def lag_s(self) -> float | None:
        """How long ago the copy was surely true; None before the first look at the event log."""
        return None if self.as_of is None else max(self.now - self.as_of, 0.0)


_SUMMARIES = """
SELECT s.schema, extract(epoch FROM clock_timestamp())::float8,
       extract(epoch FROM c.as_of)::float8, coalesce(c.reason, ''), coalesce(c.remedy, ''),
       l.running, l.failed, l.refused, p.open, p.since, p.owed,
       (SELECT count(*) FROM pinstripe.quarantine q WHERE q.schema = s.schema)
FROM pinstripe.sync s
LEFT JOIN pinstripe.cursor c ON c.schema = s.schema AND c.stream = 'events'
CROSS JOIN LATERAL (
  SELECT count(*) FILTER (WHERE state = 'running') AS running,
         count(*) FILTER (WHERE state = 'failed') AS failed,
         count(*) FILTER (WHERE state = 'refused') AS refused
  FROM pinstripe.cursor l WHERE l.schema = s.schema AND l.stream <> 'events') l
CROSS JOIN LATERAL (
  SELECT count(*) AS open, extract(epoch FROM min(asked_at))::float8 AS since,
         count(*) FILTER (WHERE code <> 'quarantined') AS owed
  FROM pinstripe.pending p WHERE p.schema = s.schema) p
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
    return {row[0]: SyncSummary(*row) for row in await connection.fetch(_SUMMARIES)}


async def estimate_rows(
    connection: Connection, schemas: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Return schema -> table -> estimated rows, of all its tables, without counting."""
    found: dict[str, dict[str, int]] = {schema: {} for schema in schemas}
    for schema, table, rows in await connection.fetch(_ESTIMATES, list(schemas)):
        found[schema][table] = rows
    return found
