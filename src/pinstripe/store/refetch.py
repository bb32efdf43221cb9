"""The refetch queue in Postgres: objects to fetch again (`pinstripe.pending`).

An event of another API version, or one whose order is unknown, or one that names a changed list, is only a
hint and queues a refetch. The transaction that applies the event queues it, so a crash in between loses
nothing. `sync.refetch` works the queue off.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from pinstripe.client.rate_limit import WorkClass
from pinstripe.client.response import Cause, StripeObject
from pinstripe.errors import PinstripeError
from pinstripe.rows.extract import RowKey
from pinstripe.store.pool import Connection, Pool
from pinstripe.store.quarantine import QUARANTINED

RefetchKind = Literal[
    "fetch", "relate", "children", "nested", "upcoming_customer", "upcoming_subscription"
]


@dataclass(frozen=True, slots=True)
class Refetch:
    """A request to make. `since`: the second of the event that queued it, Unix time, 0 for a row in doubt,
    whatever else queued it too; `event_id` and `request_id`: the event and the API request that caused it,
    "" if unknown.

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
    work: WorkClass | None = field(default=None, compare=False)
    """The class of work, where it is not that of the kind (`_CLASS_OF`)."""

    @property
    def work_class(self) -> WorkClass:
        return _CLASS_OF[self.kind] if self.work is None else self.work

    @property
    def told_from(self) -> float:
        """The second from which on a row that an event wrote is no older than the event that queued this.

        A row in doubt does not hold that event: what it has of the same second is another one's.
        """
        return self.since if self.work_class > WorkClass.CONTESTED else self.since + 1.0

    @property
    def owner(self) -> str:
        """Whose work it is, for turns within a class: the customer or other parent, else the table."""
        owner = self.id if self.kind == "children" else self.parent
        return owner or self.table

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.kind, self.table, self.id)

    @property
    def cause(self) -> Cause | None:
        """What the change feed names as the reason."""
        known = self.event_id or self.request_id
        return Cause(self.event_id, self.request_id) if known else None


_CLASS_OF: Mapping[RefetchKind, WorkClass] = {
    "fetch": WorkClass.CONTESTED,
    "relate": WorkClass.RELATED,
    "children": WorkClass.RELATED,
    "nested": WorkClass.RELATED,
    "upcoming_customer": WorkClass.PREVIEWS,
    "upcoming_subscription": WorkClass.PREVIEWS,
}

RECHECK = "recheck"
"""The code of a refetch that was answered, and is made once more: a replica may have been behind."""

UNSEEN = "unseen"
"""The same, where the row holds the event: only what events leave out may be behind. No wait counts it."""

LATER_S = 0.02
"""Beyond the moment from which a response is sure: the clocks of the process and of Postgres are read a
little apart."""

ANSWERED = f"('{RECHECK}', '{UNSEEN}')"
"""Both, as SQL."""

_ADD = f"""
INSERT INTO pinstripe.pending AS p
  (schema, kind, "table", id, parent, since, request_id, event_id, priority)
SELECT $1, u.kind, u.tab, u.id, nullif(u.parent, ''), to_timestamp(u.since), nullif(u.request, ''),
  nullif(u.event, ''), u.priority
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::float8[], $7::text[], $8::text[],
  $9::smallint[]) AS u (kind, tab, id, parent, since, request, event, priority)
ON CONFLICT (schema, kind, "table", left(id, 500), hashtextextended(id, 0)) DO UPDATE SET
  parent = CASE p.kind WHEN 'relate' THEN EXCLUDED.parent ELSE coalesce(EXCLUDED.parent, p.parent) END,
  since = CASE 'epoch'::timestamptz WHEN p.since THEN p.since WHEN EXCLUDED.since THEN EXCLUDED.since
    ELSE greatest(p.since, EXCLUDED.since) END,
  priority = least(p.priority, EXCLUDED.priority),
  request_id = EXCLUDED.request_id, event_id = EXCLUDED.event_id, asked_at = clock_timestamp(),
  next_try_at = NULL,
  code = CASE WHEN p.code NOT IN {ANSWERED} THEN p.code END
"""

_TROUBLED = """
UPDATE pinstripe.pending SET attempts = attempts + 1, code = $5, reason = $6, remedy = nullif($7, ''),
  next_try_at = clock_timestamp() + make_interval(secs => $8)
WHERE schema = $1 AND kind = $2 AND "table" = $3 AND id = $4 AND left(id, 500) = left($4, 500)
"""

# A refetch that was queued again since `started` stays. One that was queued less than `lag` before is made
# once more, `lag` later: no replica can be behind what queued it then, nor behind what this response has
# shown. What was queued until `lag` before is answered; of the rest it is open since then. A row in doubt
# is not settled by a response that was requested for a lesser reason. One that is sure only of an event's
# second settles neither a doubt, of which no second is known, nor a later event, which another process may
# have queued since this one read the refetch. Returned is what stays. Rows are locked in the order of
# `_ADD`, so two writers never deadlock.
_DONE = """
WITH done AS MATERIALIZED (
  SELECT p.kind, p."table", p.id, u.started, make_interval(secs => u.lag) AS lag, u.again,
    p.priority < u.priority
    OR (p.since = 'epoch' OR p.since > to_timestamp(u.since)) AND u.since > 0 AND u.lag = 0
      AND u.kind IN ('fetch', 'children', 'nested') AS is_lesser
  FROM unnest($2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::float8[], $7::smallint[],
    $8::text[], $9::float8[]) AS u (kind, tab, id, started, lag, priority, again, since)
  JOIN pinstripe.pending p
    ON p.schema = $1 AND p.kind = u.kind AND p."table" = u.tab AND p.id = u.id
    AND left(p.id, 500) = left(u.id, 500)
  ORDER BY p.kind, p."table", p.id FOR UPDATE OF p
), stays AS (
  UPDATE pinstripe.pending p SET
    open_since = greatest(p.open_since, least(p.asked_at, d.started - d.lag)),
    code = CASE WHEN p.asked_at <= d.started THEN d.again ELSE p.code END,
    next_try_at = CASE WHEN p.asked_at <= d.started THEN clock_timestamp() + d.lag ELSE p.next_try_at END
  FROM done d
  WHERE p.schema = $1 AND p.kind = d.kind AND p."table" = d."table" AND p.id = d.id
    AND left(p.id, 500) = left(d.id, 500) AND NOT d.is_lesser AND p.asked_at + d.lag > d.started
  RETURNING p.kind, p."table", p.id, p.asked_at <= d.started AS again,
    extract(epoch FROM d.lag)::float8 AS pause
), gone AS (
  DELETE FROM pinstripe.pending p USING done d
  WHERE p.schema = $1 AND p.kind = d.kind AND p."table" = d."table" AND p.id = d.id
    AND left(p.id, 500) = left(d.id, 500) AND NOT d.is_lesser AND p.asked_at + d.lag <= d.started
)
SELECT kind, "table", id, CASE WHEN s.again THEN s.pause END
FROM done d LEFT JOIN stays s USING (kind, "table", id) WHERE d.is_lesser OR s.again IS NOT NULL
"""

# Rows in doubt because of the response to a refetch: whoever waits for the refetch waits for them. What its
# event had queued before the request is none of them: all previews of one event would lock each other's
# rows. Rows are locked in the order of `_ADD`.
_HEIRS = """
WITH heirs AS MATERIALIZED (
  SELECT q.kind, q."table", q.id, p.open_since
  FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
    AS u (kind, tab, id, event, started)
  JOIN pinstripe.pending p ON p.schema = $1 AND p.kind = u.kind AND p."table" = u.tab AND p.id = u.id
    AND left(p.id, 500) = left(u.id, 500)
  JOIN pinstripe.pending q ON q.schema = $1 AND q.event_id = u.event AND q.asked_at >= u.started
    AND q.open_since > p.open_since
  ORDER BY q.kind, q."table", q.id FOR UPDATE OF q
)
UPDATE pinstripe.pending q SET open_since = h.open_since FROM heirs h
WHERE q.schema = $1 AND q.kind = h.kind AND q."table" = h."table" AND q.id = h.id
  AND left(q.id, 500) = left(h.id, 500) AND q.open_since > h.open_since
"""


@dataclass(slots=True)
class RefetchDone:
    """Proof that a refetch is done: the rows of this commit are its response.

    `started`: a moment before the request, on Postgres's clock. `lag_s`: how far the response may be behind
    what queued the refetch; 0 if its content proves that it is not. `proves`: whether this object does so,
    None for a 404. `again_s`: in so many seconds it is to be made once more, because it was queued less
    than `lag_s` before; None if it is not. `is_left`: it was queued again meanwhile, or more urgently, and
    stays. `is_told`: the row holds the event that queued it, so that only what Stripe shows on request may
    be behind. `is_noted`: the commit is done. `is_cut`: the response shows only the first of a list.
    """

    refetch: Refetch
    started: datetime
    lag_s: float = 0.0
    proves: Callable[[StripeObject | None], bool] = lambda _: False
    is_told: bool = False
    again_s: float | None = None
    is_left: bool = False
    is_noted: bool = False
    is_cut: bool = False


def urgent(refetches: Iterable[Refetch]) -> dict[tuple[str, str, str], Refetch]:
    """Return one refetch for each key, of those that share it."""
    found: dict[tuple[str, str, str], Refetch] = {}
    for refetch in refetches:
        found[refetch.key] = merged(found.get(refetch.key), refetch)
    return found


def merged(known: Refetch | None, refetch: Refetch) -> Refetch:
    """Return what a refetch and a later one of its key are together, as the database has it (`_ADD`)."""
    if known is None:
        return refetch
    since = max(known.since, refetch.since) if known.since and refetch.since else 0.0
    return replace(refetch, since=since, work=min(known.work_class, refetch.work_class))


async def add_refetches(connection: Connection, schema: str, refetches: Sequence[Refetch]) -> None:
    """Queue refetches; one that is queued already becomes due again."""
    latest = urgent(refetches)
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
        [int(t.work_class) for t in ordered],
    )


@dataclass(frozen=True, slots=True)
class Noted:
    """A refetch in the database. `asked_at`: when it was queued, on Postgres's clock; `attempts`: how often
    it failed; `wait_s`: how long until it is retried, 0 if it is due. `released`: it waited until Postgres
    accepts its row, and is due.
    """

    refetch: Refetch
    asked_at: datetime
    attempts: int
    wait_s: float
    released: bool = False


async def load_refetches(
    connection: Connection, schema: str, *, last_s: float = float("inf")
) -> list[Noted]:
    """Return the open refetches, oldest first.

    `last_s`: only those that were queued, or whose next try was due, in the last so many seconds or later.
    """
    rows = await connection.fetch(
        "SELECT kind, \"table\", id, coalesce(parent, ''), extract(epoch FROM since)::float8,"
        " coalesce(request_id, ''), coalesce(event_id, ''), priority, asked_at, attempts,"
        " greatest(coalesce(extract(epoch FROM next_try_at - clock_timestamp())::float8, 0), 0),"
        f" code = '{QUARANTINED}' AND next_try_at <= clock_timestamp()"
        " FROM pinstripe.pending WHERE schema = $1"
        " AND extract(epoch FROM clock_timestamp() - coalesce(next_try_at, asked_at))::float8 < $2"
        " ORDER BY asked_at",
        schema,
        last_s,
    )
    return [
        Noted(
            replace(Refetch(*row[:7]), work=WorkClass(row[7])),
            row[8],
            row[9],
            row[10],
            bool(row[11]),
        )
        for row in rows
    ]


async def load_waiting(connection: Connection, schema: str) -> list[tuple[str, str, str]]:
    """Return the (kind, table, id) of every refetch that is not done."""
    waiting = 'SELECT kind, "table", id FROM pinstripe.pending WHERE schema = $1'
    return [(row[0], row[1], row[2]) for row in await connection.fetch(waiting, schema)]


async def is_queued_by(pool: Pool, schema: str, refetch: Refetch, moment: datetime) -> bool:
    """Whether a refetch was last queued by this moment of Postgres's clock."""
    queued = (
        "SELECT true FROM pinstripe.pending WHERE schema = $1 AND kind = $2"
        ' AND "table" = $3 AND id = $4 AND left(id, 500) = left($4, 500) AND asked_at <= $5'
    )
    async with pool.acquire() as connection:
        return bool(await connection.fetchval(queued, schema, *refetch.key, moment))


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
    connection: Connection,
    schema: str,
    completed: Sequence[RefetchDone],
    *,
    contested: Collection[Refetch] | None = None,
) -> None:
    """Remove completed refetches, except those that were queued again since their request, and those that
    are to be made once more (`RefetchDone.again_s`).

    `contested`: those that their responses queued, rows in doubt; None if that is not known. A response
    that was not written, because it is itself in doubt, completes nothing.
    """
    left = {refetch.key for refetch in contested or ()}
    ordered = sorted(
        (a for a in completed if a.refetch.key not in left), key=lambda a: a.refetch.key
    )
    if not ordered:
        return
    caused = [a for a in ordered if a.refetch.event_id]
    if caused and (contested is None or contested):
        await connection.execute(
            _HEIRS,
            schema,
            [a.refetch.kind for a in caused],
            [a.refetch.table for a in caused],
            [a.refetch.id for a in caused],
            [a.refetch.event_id for a in caused],
            [a.started for a in caused],
        )
    staying = await connection.fetch(
        _DONE,
        schema,
        [a.refetch.kind for a in ordered],
        [a.refetch.table for a in ordered],
        [a.refetch.id for a in ordered],
        [a.started for a in ordered],
        [a.lag_s for a in ordered],
        [int(a.refetch.work_class) for a in ordered],
        [UNSEEN if a.is_told else RECHECK for a in ordered],
        [a.refetch.since for a in ordered],
    )
    pauses = {(row[0], row[1], row[2]): row[3] for row in staying}
    for answer in ordered:
        answer.again_s = pauses.get(answer.refetch.key)
        answer.is_left = answer.refetch.key in pauses and answer.again_s is None


PREVIEW_KINDS = ("upcoming_customer", "upcoming_subscription")

_PENDING_ATTEMPTS = 3
"""A refetch that failed as often may fail for long. `status` shows it; a wait includes only the fetch of a
row, if it is for the request or the event that caused that.
"""

_PENDING = f"""
SELECT clock_timestamp() AS now, found.* FROM (SELECT 1) AS one LEFT JOIN (
  SELECT '' AS cause, kind, "table", count(*), min(open_since),
    code IS NOT DISTINCT FROM '{RECHECK}' AS again
  FROM pinstripe.pending
  WHERE schema = $1 AND attempts < {_PENDING_ATTEMPTS} AND code IS DISTINCT FROM '{UNSEEN}'
  GROUP BY kind, "table", again
  UNION ALL SELECT c.cause, kind, "table", count(*), min(open_since), false
  FROM pinstripe.pending JOIN unnest($2::text[]) AS c (cause) ON c.cause IN (event_id, request_id)
  WHERE schema = $1 AND kind = 'fetch' AND attempts >= {_PENDING_ATTEMPTS}
    AND code IS DISTINCT FROM '{UNSEEN}'
  GROUP BY c.cause, kind, "table"
) AS found ON true
"""


@dataclass(frozen=True, slots=True)
class PendingCount:
    """Pending refetches of one kind for one table. `since`: when the oldest was requested; `again`: they
    were answered, and are made once more.
    """

    kind: str
    table: str
    count: int
    since: datetime
    again: bool = False


@dataclass(frozen=True, slots=True)
class Pending:
    """All pending refetches at the moment `now` of Postgres's clock."""

    now: datetime
    counts: tuple[PendingCount, ...]

    def before(self, moment: datetime, *, previews: bool, exact: bool) -> list[PendingCount]:
        """Those requested up to a moment. `previews`: whether previews of upcoming invoices count; `exact`:
        whether those do that were answered, and are made once more.
        """
        return [
            each
            for each in self.counts
            if each.since <= moment
            and (previews or each.kind not in PREVIEW_KINDS)
            and (exact or not each.again)
        ]


async def load_pending(
    connection: Connection, schema: str, causes: Collection[str]
) -> dict[str, Pending]:
    """Count the pending refetches for each of these requests and events ("" for none of them): fetches that
    keep failing count for what caused them.
    """
    rows = await connection.fetch(_PENDING, schema, list(causes))
    counts: dict[str | None, list[PendingCount]] = {}
    for row in rows:
        counts.setdefault(row[1], []).append(PendingCount(*row[2:]))
    every = counts.pop("", [])
    return {cause: Pending(rows[0][0], (*every, *counts.get(cause, ()))) for cause in causes}


async def count_by_class(connection: Connection, schema: str) -> dict[str, int]:
    """Count all pending refetches by the name of their class of work, the most urgent first."""
    rows = await connection.fetch(
        "SELECT priority, count(*) FROM pinstripe.pending WHERE schema = $1 GROUP BY 1 ORDER BY 1",
        schema,
    )
    return {class_name(row[0]): row[1] for row in rows}


def class_name(priority: int) -> str:
    """Return the name of a class of work.

    >>> class_name(2)
    'contested'
    """
    return WorkClass(priority).name.lower()


async def next_refetch_s(connection: Connection, schema: str) -> float | None:
    """Return the seconds until the next try of any pending refetch is due; None if none is pending."""
    found: float | None = await connection.fetchval(
        "SELECT extract(epoch FROM min(coalesce(next_try_at, clock_timestamp())) - clock_timestamp())"
        "::float8 FROM pinstripe.pending WHERE schema = $1",
        schema,
    )
    return found


async def load_open_since(
    connection: Connection, schema: str, rows: Sequence[RowKey]
) -> tuple[datetime, dict[RowKey, datetime]]:
    """Return Postgres's clock, and since when each of the `rows` waits for a fetch of its object, or for a
    list inside of it, but for one that keeps failing.
    """
    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    found = await connection.fetch(
        'SELECT "table", id, open_since FROM pinstripe.pending WHERE schema = $1'
        f" AND kind = 'fetch' AND code IS DISTINCT FROM '{UNSEEN}' AND (\"table\", id, left(id, 500)) IN"
        " (SELECT tab, key, left(key, 500) FROM unnest($2::text[], $3::text[]) AS u (tab, key))"
        " UNION ALL SELECT tab, key, open_since FROM pinstripe.pending"
        " JOIN unnest($2::text[], $3::text[]) AS u (tab, key) ON parent = tab || ' ' || key"
        f" WHERE schema = $1 AND kind = 'nested' AND attempts < {_PENDING_ATTEMPTS}"
        " ORDER BY open_since DESC",
        schema,
        [table for table, _ in rows],
        [key for _, key in rows],
    )
    return now, {(row[0], row[1]): row[2] for row in found}
