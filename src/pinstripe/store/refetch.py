"""The refetch queue in Postgres: objects to fetch again (`pinstripe.pending`).

An event of another API version, or one whose order is unknown, or one that names a changed list, is only a
hint and queues a refetch. The transaction that applies the event queues it, so a crash in between loses
nothing. `sync.refetch` works the queue off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pinstripe.errors import PinstripeError
from pinstripe.rows.as_of import Cause
from pinstripe.rows.extract import RowKey
from pinstripe.store.pool import Connection

RefetchKind = Literal[
    "fetch", "relate", "children", "nested", "upcoming_customer", "upcoming_subscription"
]


@dataclass(frozen=True, slots=True)
class Refetch:
    """A request to make. `since`: the second of the event that queued it, Unix time; `event_id` and
    `request_id`: that event and the API request that caused it, "" if unknown.

    "fetch" an object; "relate": fetch it unless it is there; "children": the list of `table` under
    the parent `id`; "nested": the list of `table` at the URL `id` inside the row
    `parent` ("table key"); "upcoming_*": the preview for the owner `id`.
    """

    kind: RefetchKind
    table: str
    id: str
    parent: str = ""
    since: float = 0.0
    request_id: str = ""
    event_id: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.kind, self.table, self.id)

    @property
    def cause(self) -> Cause | None:
        """What the change feed names as the reason."""
        known = self.event_id or self.request_id
        return Cause(self.event_id, self.request_id) if known else None


_ADD = """
INSERT INTO pinstripe.pending AS p
  (schema, kind, "table", id, parent, since, request_id, event_id)
SELECT $1, u.kind, u.tab, u.id, nullif(u.parent, ''), to_timestamp(u.since), nullif(u.request, ''),
  nullif(u.event, '')
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::float8[], $7::text[], $8::text[])
  AS u (kind, tab, id, parent, since, request, event)
ON CONFLICT (schema, kind, "table", left(id, 500), hashtextextended(id, 0)) DO UPDATE SET
  parent = coalesce(EXCLUDED.parent, p.parent), since = greatest(p.since, EXCLUDED.since),
  request_id = EXCLUDED.request_id, event_id = EXCLUDED.event_id, asked_at = clock_timestamp(),
  next_try_at = NULL
"""

_TROUBLED = """
UPDATE pinstripe.pending SET attempts = attempts + 1, code = $5, reason = $6, remedy = nullif($7, ''),
  next_try_at = clock_timestamp() + make_interval(secs => $8)
WHERE schema = $1 AND kind = $2 AND "table" = $3 AND id = $4 AND left(id, 500) = left($4, 500)
"""

# A refetch that was queued again since `started` stays, open since then. Rows are locked in the order of
# `_ADD`, so two writers never deadlock.
_DONE = """
WITH done AS MATERIALIZED (
  SELECT p.kind, p."table", p.id, u.started
  FROM unnest($2::text[], $3::text[], $4::text[], $5::timestamptz[]) AS u (kind, tab, id, started)
  JOIN pinstripe.pending p
    ON p.schema = $1 AND p.kind = u.kind AND p."table" = u.tab AND p.id = u.id
    AND left(p.id, 500) = left(u.id, 500)
  ORDER BY p.kind, p."table", p.id FOR UPDATE OF p
), newer AS (
  UPDATE pinstripe.pending p SET open_since = p.asked_at FROM done d
  WHERE p.schema = $1 AND p.kind = d.kind AND p."table" = d."table" AND p.id = d.id
    AND left(p.id, 500) = left(d.id, 500) AND p.asked_at > d.started AND p.open_since <= d.started
)
DELETE FROM pinstripe.pending p USING done d
WHERE p.schema = $1 AND p.kind = d.kind AND p."table" = d."table" AND p.id = d.id
  AND left(p.id, 500) = left(d.id, 500) AND p.asked_at <= d.started
"""


@dataclass(slots=True)
class RefetchDone:
    """Proof that a refetch is done: the rows of this commit are its response.

    `started`: a moment before the request, on Postgres's clock. `is_noted`: the commit is done.
    """

    refetch: Refetch
    started: datetime
    is_noted: bool = False


async def add_refetches(connection: Connection, schema: str, refetches: Sequence[Refetch]) -> None:
    """Queue refetches; one that is queued already becomes due again."""
    latest = {refetch.key: refetch for refetch in refetches}
    if not latest:
        return
    ordered = [latest[place] for place in sorted(latest)]
    await connection.execute(
        _ADD,
        schema,
        [t.kind for t in ordered],
        [t.table for t in ordered],
        [t.id for t in ordered],
        [t.parent for t in ordered],
        [t.since for t in ordered],
        [t.request_id for t in ordered],
        [t.event_id for t in ordered],
    )


@dataclass(frozen=True, slots=True)
class Noted:
    """A refetch in the database. `asked_at`: when it was queued, on Postgres's clock; `attempts`: how often
    it failed; `wait_s`: how long until it is retried, 0 if it is due.
    """

    refetch: Refetch
    asked_at: datetime
    attempts: int
    wait_s: float


async def load_refetches(
    connection: Connection, schema: str, *, last_s: float = float("inf")
) -> list[Noted]:
    """Return the open refetches, oldest first.

    `last_s`: only those that were queued, or whose next try was due, in the last so many seconds or later.
    """
    rows = await connection.fetch(
        "SELECT kind, \"table\", id, coalesce(parent, ''), extract(epoch FROM since)::float8,"
        " coalesce(request_id, ''), coalesce(event_id, ''), asked_at, attempts,"
        " greatest(coalesce(extract(epoch FROM next_try_at - clock_timestamp())::float8, 0), 0)"
        " FROM pinstripe.pending WHERE schema = $1"
        " AND extract(epoch FROM clock_timestamp() - coalesce(next_try_at, asked_at))::float8 < $2"
        " ORDER BY asked_at",
        schema,
        last_s,
    )
    return [Noted(Refetch(*row[:7]), *row[7:]) for row in rows]


async def load_waiting(connection: Connection, schema: str) -> list[tuple[str, str, str]]:
    """Return the (kind, table, id) of every refetch that is not done."""
    rows = await connection.fetch(
        'SELECT kind, "table", id FROM pinstripe.pending WHERE schema = $1', schema
    )
    return [(row[0], row[1], row[2]) for row in rows]


NEITHER_MISSING_NOR_PENDING = (
    "NOT EXISTS (SELECT FROM pinstripe.missing m WHERE m.schema = $2 "
    'AND m."table" = $3 AND m.id = r.id AND left(m.id, 500) = left(r.id, 500)) '
    "AND NOT EXISTS (SELECT FROM pinstripe.pending p WHERE p.schema = $2 "
    "AND p.kind = 'fetch' AND p.\"table\" = $3 AND p.id = r.id "
    "AND left(p.id, 500) = left(r.id, 500))"
)
"""SQL: the object `r.id` of table $3 in schema $2 is neither known to be missing nor to be fetched."""


_LOAD_MISSING = """
SELECT m."table", m.id, m.reason FROM pinstripe.missing m
JOIN unnest($2::text[], $3::text[]) AS w ("table", id) ON w."table" = m."table" AND w.id = m.id
  AND left(m.id, 500) = left(w.id, 500)
WHERE m.schema = $1
"""


async def load_missing(
    connection: Connection, schema: str, rows: Sequence[RowKey]
) -> dict[RowKey, str]:
    """Return why Stripe does not have, or does not show, those of the `rows` that are missing."""
    if not rows:
        return {}
    names, keys = [row[0] for row in rows], [row[1] for row in rows]
    found = await connection.fetch(_LOAD_MISSING, schema, names, keys)
    return {(r[0], r[1]): r[2] for r in found}


async def note_missing(
    connection: Connection, schema: str, table: str, key: str, reason: str
) -> None:
    """Remember that Stripe does not have this object, so that it is not requested again."""
    await connection.execute(
        'INSERT INTO pinstripe.missing (schema, "table", id, reason) VALUES ($1, $2, $3, $4)'
        ' ON CONFLICT (schema, "table", left(id, 500), hashtextextended(id, 0))'
        " DO UPDATE SET reason = $4, checked_at = now()",
        schema,
        table,
        key,
        reason,
    )


async def note_trouble(
    connection: Connection, schema: str, refetch: Refetch, error: PinstripeError, pause_s: float
) -> None:
    """Note a failed try: the refetch stays open and is retried after a pause."""
    await connection.execute(
        _TROUBLED, schema, *refetch.key, error.slug, error.message, error.hint, pause_s
    )


async def complete_refetches(
    connection: Connection, schema: str, completed: Sequence[RefetchDone]
) -> None:
    """Remove completed refetches, except those that were queued again since their request."""
    if not completed:
        return
    ordered = sorted(completed, key=lambda a: a.refetch.key)
    await connection.execute(
        _DONE,
        schema,
        [a.refetch.kind for a in ordered],
        [a.refetch.table for a in ordered],
        [a.refetch.id for a in ordered],
        [a.started for a in ordered],
    )


PREVIEW_KINDS = ("upcoming_customer", "upcoming_subscription")

_PENDING_ATTEMPTS = 3
"""A refetch that failed as often may fail for long. `status` shows it; a wait does not include it."""

_PENDING = f"""
SELECT clock_timestamp() AS now, p.kind, p."table", count(p.id), min(p.open_since)
FROM (SELECT 1) AS one LEFT JOIN pinstripe.pending AS p
  ON p.schema = $1 AND p.attempts < {_PENDING_ATTEMPTS}
GROUP BY p.kind, p."table"
"""


@dataclass(frozen=True, slots=True)
class PendingCount:
    """Pending refetches of one kind for one table. `since`: when the oldest was requested."""

    kind: str
    table: str
    count: int
    since: datetime


@dataclass(frozen=True, slots=True)
class Pending:
    """All pending refetches at the moment `now` of Postgres's clock."""

    now: datetime
    counts: tuple[PendingCount, ...]

    def before(self, moment: datetime, *, previews: bool) -> list[PendingCount]:
        """Those requested up to a moment. `previews`: whether previews of upcoming invoices count."""
        return [
            each
            for each in self.counts
            if each.since <= moment and (previews or each.kind not in PREVIEW_KINDS)
        ]


async def load_pending(connection: Connection, schema: str) -> Pending:
    """Count the pending refetches, but for those that keep failing."""
    rows = await connection.fetch(_PENDING, schema)
    return Pending(rows[0][0], tuple(PendingCount(*row[1:]) for row in rows if row[1] is not None))


async def load_open_since(
    connection: Connection, schema: str, rows: Sequence[RowKey]
) -> tuple[datetime, dict[RowKey, datetime]]:
    """Return Postgres's clock, and since when each of the `rows` waits for a fetch of its object."""
    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    found = await connection.fetch(
        'SELECT "table", id, open_since FROM pinstripe.pending WHERE schema = $1'
        " AND kind = 'fetch' AND (\"table\", id) IN"
        " (SELECT * FROM unnest($2::text[], $3::text[]))",
        schema,
        [table for table, _ in rows],
        [key for _, key in rows],
    )
    return now, {(row[0], row[1]): row[2] for row in found}
