"""Heartbeats of the workers: one row a schema in `pinstripe.process`, written every two seconds.

The table is unlogged, so it is empty after a crash of the server, and the worker fills it with its next
heartbeat. A row older than `STALE_S` belongs to a worker that has ended or hangs.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from pinstripe.store.pool import Connection

STALE_S = 10.0
"""Several times the interval of the writer."""


class TableProgress(msgspec.Struct, frozen=True):
    """The first copy of one table: the sum over its lists."""

    table: str
    rows: int
    rows_per_s: float
    requests_left: float
    """An estimate; 0 where it is done."""
    state: str
    """"running", "done", "refused" or "failed"."""


class QuotaReport(msgspec.Struct, frozen=True):
    """Stripe's read allowance: GETs of ours in the last 30 days, and how many Stripe allows."""

    used: int
    allowed: int
    by_kind: dict[str, int]
    transactions: int | None
    poll_s: float
    slowed: bool
    held: bool
    over: bool


class WorkerHeartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """Totals are since the process began; rates are means over the last interval."""

    version: str
    pid: int
    host: str
    started_at: datetime
    phase: str
    """Of the first copy: "starting", "lists", "events", "references", "indexes", "done"."""
    rows: int
    rows_per_s: float
    requests: dict[str, int]
    """By method and kind of endpoint: "GET list", "GET retrieve", "GET events", "POST"."""
    requests_per_s: float
    rate_limited: dict[str, int]
    """429s, by the same kinds."""
    account_rate: float | None
    """Requests a second that the budget gives now; None: no limit."""
    queue_rows: int
    """Rows that wait for Postgres."""
    queue_most: int
    contested: int
    """Rows that had to be fetched once more to know which state is newer."""
    events: int
    polls: int
    late_events: int
    memory_bytes: int
    cpu_s: float
    left_s: float | None
    """Until the first copy is complete, at the present rate; None if that is not known."""
    tables: list[TableProgress]
    """Of the first copy; empty when it is done."""
    allowance: QuotaReport | None
    trouble: str = ""
    remedy: str = ""


_SAVE = """
INSERT INTO pinstripe.process AS p (schema, state, at)
SELECT schema, $2::jsonb, clock_timestamp() FROM pinstripe.sync WHERE schema = $1
ON CONFLICT (schema) DO UPDATE SET state = EXCLUDED.state, at = EXCLUDED.at
"""


async def save_heartbeat(connection: Connection, schema: str, state: WorkerHeartbeat) -> None:
    """Replaces the row of the schema."""
    await connection.execute(_SAVE, schema, msgspec.json.encode(state).decode())


async def load_heartbeats(connection: Connection) -> dict[str, tuple[WorkerHeartbeat, float]]:
    """Return schema -> (state, its age in seconds), without rows that another version wrote otherwise.

    Empty in a database of an older version, which has no such table.
    """
    if await connection.fetchval("SELECT to_regclass('pinstripe.process')") is None:
        return {}
    rows = await connection.fetch(
        "SELECT schema, state::text, extract(epoch FROM clock_timestamp() - at)::float8"
        " FROM pinstripe.process"
    )
    found: dict[str, tuple[WorkerHeartbeat, float]] = {}
    for schema, text, age_s in rows:
        try:
            found[schema] = (msgspec.json.decode(text, type=WorkerHeartbeat), max(age_s, 0.0))
        except msgspec.ValidationError:
            continue
    return found
