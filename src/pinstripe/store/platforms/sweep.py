"""Which account of a platform is due: for a look at its events, or for a task that was put off.

    claim_looks -> one request each -> looked (nothing new) | found (a poll, in the same transaction) |
    failed put_off(task, later) -> request_due: the tasks whose time has come

A claim is a short statement over rows that no other worker has locked, and moves the account's turn by
`CLAIM_S`: a worker that dies meanwhile costs that. Accounts that are late by the largest part of their pace
go first, so an idle one delays no active one, and the other way round. The pace is `1 / PACE` of the time
since the account's last event, between `FASTEST_S` and `SLOWEST_S`.

`put_off` keeps what is due later, with the number of failures: see `store.platforms.tasks` for why no task
of Procrastinate's is scheduled for later.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from pinstripe.errors import PinstripeError
from pinstripe.store.cursors import FOLLOWED, READY, mark_loaded
from pinstripe.store.platforms.stored import add_accounts
from pinstripe.store.platforms.tasks import (
    WAITED_COPY_PRIORITY,
    WAITED_PRIORITY,
    TaskName,
    request_tasks,
)
from pinstripe.store.pool import Connection, translated
from pinstripe.store.quarantine import forget_streams, reopen
from pinstripe.store.session import account_of, scope_of

CLAIM_S = 30.0
FASTEST_S = 5.0
SLOWEST_S = 300.0
"""An account without payments has a read allocation of 10,000 GETs a month
(https://docs.stripe.com/rate-limits): one every 260 s."""
PACE = 20.0

LATE_S = (60.0, 660.0)
"""So long after the newest event the window is read again: an event may appear behind newer ones
(docs/concepts/live.md)."""

_NET_S = 900.0
"""A task that was requested and has neither ended nor put itself off is requested again."""

_PAUSES = "least(5 * power(2, least(failures, 10)), 3600)"
"""Seconds after so many failures in a row."""

_EVERY = (
    "least(greatest(extract(epoch FROM clock_timestamp() - coalesce(last_event_at, since)) / "
    f"{PACE}, {FASTEST_S}), {SLOWEST_S})"
)
# Accounts that were added together do not stay together.
_NEXT = f"clock_timestamp() + make_interval(secs => ({_EVERY} * (0.9 + 0.2 * random()))::float8)"


class Look(NamedTuple):
    """An account that is due. `newest_event`: what its list showed on top last. `is_owed`: a poll is due
    whatever the list shows on top.
    """

    account_id: str
    newest_event: str | None
    is_owed: bool


class Found(NamedTuple):
    """What a look found. `newest_event`: the id on top of the list, None if it is empty. `newest_at`: its
    second, 0 for none; `as_of`: when the list was so. Unix seconds on Stripe's clock.
    """

    account_id: str
    newest_event: str | None
    newest_at: float
    as_of: float


class Pace(NamedTuple):
    """How the sweep of a platform goes. `oldest_look_s`: since the account that waits for the longest was
    looked at; `late`: accounts whose turn is over by more than their pace.
    """

    active: int
    revoked: int
    troubled: int
    looks_per_s: float
    oldest_look_s: float | None
    late: int


_NEXT_POLLED = _NEXT.replace("last_event_at, since", "u.last_event_at, a.since")

# `statement_timestamp()`: no index is used for a comparison with `clock_timestamp()`, which may change
# while the statement runs.
_CLAIM = f"""
WITH due AS (
  SELECT account_id FROM pinstripe.platform_account
  WHERE platform_id = $1 AND state = 'active' AND next_look_at <= statement_timestamp()
  ORDER BY extract(epoch FROM clock_timestamp() - next_look_at) / {_EVERY} DESC
  LIMIT $2 FOR UPDATE SKIP LOCKED)
UPDATE pinstripe.platform_account a
SET next_look_at = clock_timestamp() + make_interval(secs => {CLAIM_S})
FROM due WHERE a.platform_id = $1 AND a.account_id = due.account_id
RETURNING a.account_id, a.newest_event, coalesce(a.owed_at <= clock_timestamp(), false)
"""

# Of the read quota, which live mode has: looks are most of what an idle account takes of it.
_COUNT = """
INSERT INTO pinstripe.request_count AS c (schema, day, kind, count)
SELECT s.schema, (clock_timestamp() AT TIME ZONE 'UTC')::date, 'events', 1
FROM pinstripe.sync s WHERE s.schema = ANY($1::text[]) AND s.livemode
ON CONFLICT (schema, day, kind) DO UPDATE SET count = c.count + EXCLUDED.count
"""

_LOOKED = f"""
UPDATE pinstripe.platform_account a
SET looked_at = clock_timestamp(), looks = a.looks + 1, known_to = to_timestamp(u.as_of),
  last_event_at = u.last_event_at, next_look_at = least(u.next_look_at, a.owed_at),
  failures = 0, code = NULL, reason = NULL, remedy = NULL
FROM (
  SELECT id, as_of, last_event_at, {_NEXT} AS next_look_at
  FROM (
    SELECT seen.id, seen.as_of, known.since,
      greatest(known.last_event_at, to_timestamp(nullif(seen.newest_at, 0))) AS last_event_at
    FROM unnest($2::text[], $3::float8[], $4::float8[]) AS seen (id, as_of, newest_at)
    JOIN pinstripe.platform_account known
      ON known.platform_id = $1 AND known.account_id = seen.id) AS told) AS u
WHERE a.platform_id = $1 AND a.account_id = u.id AND a.state = 'active'
"""

_FOUND = f"""
UPDATE pinstripe.platform_account a
SET looked_at = clock_timestamp(), looks = a.looks + 1,
  newest_event = coalesce(u.newest, a.newest_event),
  owed_at = least(a.owed_at, clock_timestamp()),
  next_look_at = clock_timestamp() + make_interval(secs => {CLAIM_S})
FROM unnest($2::text[], $3::text[]) AS u (id, newest)
WHERE a.platform_id = $1 AND a.account_id = u.id AND a.state = 'active'
"""

# `owed_at` stands until a poll is done that began with it: one that fails is requested again. It is read
# under a lock: a wake that commits meanwhile would be overwritten with what there was before.
_POLLED = f"""
WITH settled AS (DELETE FROM pinstripe.platform_task WHERE scope = $8 AND task = 'poll')
UPDATE pinstripe.platform_account a
SET looked_at = clock_timestamp(), newest_event = coalesce($3, a.newest_event),
  last_event_at = u.last_event_at, known_to = to_timestamp($5),
  events = a.events + $6, failures = 0, code = NULL, reason = NULL, remedy = NULL,
  owed_at = u.owed_at, next_look_at = least({_NEXT_POLLED}, u.owed_at)
FROM (
  SELECT greatest(last_event_at, to_timestamp($4)) AS last_event_at,
    CASE WHEN owed_at IS DISTINCT FROM $9 THEN owed_at
      ELSE clock_timestamp() + make_interval(secs => $7) END AS owed_at
  FROM pinstripe.platform_account WHERE platform_id = $1 AND account_id = $2 FOR UPDATE) AS u
WHERE a.platform_id = $1 AND a.account_id = $2
"""

_FAILED = f"""
UPDATE pinstripe.platform_account
SET failures = failures + 1, code = $3, reason = $4, remedy = $5,
  next_look_at = clock_timestamp() + make_interval(secs => least({_PAUSES}, {SLOWEST_S}))
WHERE platform_id = $1 AND account_id = $2 AND state = 'active'
"""

_PUT_OFF_FIRST = """
INSERT INTO pinstripe.platform_task AS t (scope, task, due_at)
SELECT s, $2, clock_timestamp() + make_interval(secs => $3) FROM unnest($1::text[]) s
ON CONFLICT (scope, task) DO NOTHING
"""
_PUT_OFF = _PUT_OFF_FIRST.replace(
    "DO NOTHING", "DO UPDATE SET due_at = EXCLUDED.due_at, failures = 0"
)

_PUT_OFF_FAILED = f"""
INSERT INTO pinstripe.platform_task AS t (scope, task, due_at, failures)
VALUES ($1, $2, clock_timestamp() + make_interval(secs => 5), 1)
ON CONFLICT (scope, task) DO UPDATE SET failures = t.failures + 1,
  due_at = clock_timestamp() + make_interval(secs => {_PAUSES.replace("failures", "t.failures")})
"""

_DUE = """
WITH due AS (
  SELECT t.scope, t.task FROM pinstripe.platform_task t
  JOIN pinstripe.sync s ON s.schema = t.scope
  JOIN pinstripe.platform p ON p.id = s.platform_id AND NOT p.paused
  JOIN pinstripe.platform_account a
    ON a.platform_id = p.id AND a.account_id = s.account_id AND a.state = 'active'
  WHERE t.due_at <= statement_timestamp() ORDER BY t.due_at LIMIT $1 FOR UPDATE OF t SKIP LOCKED)
UPDATE pinstripe.platform_task t SET due_at = clock_timestamp() + make_interval(secs => $2)
FROM due WHERE t.scope = due.scope AND t.task = due.task RETURNING t.task, t.scope
"""

_PACE = f"""
SELECT count(*) FILTER (WHERE state = 'active'), count(*) FILTER (WHERE state = 'revoked'),
  count(*) FILTER (WHERE state = 'active' AND failures > 0),
  coalesce(sum(1 / {_EVERY}) FILTER (WHERE state = 'active'), 0)::float8,
  (extract(epoch FROM clock_timestamp() - min(coalesce(looked_at, since))
     FILTER (WHERE state = 'active')))::float8,
  count(*) FILTER (WHERE state = 'active'
    AND next_look_at < clock_timestamp() - make_interval(secs => {_EVERY}::float8))
FROM pinstripe.platform_account WHERE platform_id = $1
"""


_WAKE = """
UPDATE pinstripe.platform_account SET woken_at = clock_timestamp(), owed_at = clock_timestamp()
WHERE platform_id = $1 AND account_id = $2 AND state = 'active' RETURNING true
"""

# One statement: a poll begins with it.
_TURN = f"""
SELECT a.state = 'active', coalesce(extract(epoch FROM a.known_to), 0)::float8,
  coalesce(extract(epoch FROM a.last_event_at), 0)::float8,
  (SELECT extract(epoch FROM c.as_of)::float8 FROM pinstripe.cursor c
   WHERE c.schema = $3 AND c.stream = '{FOLLOWED}'
     AND EXISTS (SELECT FROM pinstripe.cursor r WHERE r.schema = $3 AND r.stream = '{READY}')),
  (SELECT b.rung FROM pinstripe.bell b WHERE b.schema = $3 AND b.heard < b.rung),
  (SELECT coalesce(sum(c.rows), 0)::bigint FROM pinstripe.cursor c WHERE c.schema = $3),
  a.owed_at, coalesce(a.owed_at <= clock_timestamp(), false), a.failures,
  EXISTS (SELECT FROM pinstripe.pending p
    WHERE p.schema = $3 AND coalesce(p.next_try_at, '-infinity') <= clock_timestamp())
FROM pinstripe.platform_account a WHERE a.platform_id = $1 AND a.account_id = $2
"""


class Standing(NamedTuple):
    """An account at the start of a task. Unix seconds on Stripe's clock, 0 for none.

    `followed_to`: the cursor of the events; None before the first copy is complete. `asked`: the number of
    the latest request for a sync that is not acknowledged. `rows`: how many its lists have brought.
    `owed_at`: when a poll is due, by Postgres's clock; `is_owed`: it is. `owes_refetch`: one is due.
    """

    is_active: bool
    known_to: float
    last_event_at: float
    followed_to: float | None
    asked: int | None
    rows: int
    owed_at: datetime | None
    is_owed: bool
    failures: int
    owes_refetch: bool

    @property
    def owes_poll(self) -> bool:
        return self.is_owed or self.asked is not None

    @property
    def copy_priority(self) -> int | None:
        return WAITED_COPY_PRIORITY if self.asked is not None else None


async def account_standing(
    connection: Connection, platform_id: str, account_id: str, scope: str = ""
) -> Standing | None:
    """Return how an account stands; None if there is none of this id. `scope`: for what bookkeeping has."""
    with translated():
        row = await connection.fetchrow(_TURN, platform_id, account_id, scope)
    return None if row is None else Standing(*row)


async def welcome(
    connection: Connection, platform_id: str, schema: str, account_ids: Sequence[str]
) -> list[str]:
    """Add accounts that are new, or that have authorised the platform again, and request their first
    copies. Return them. In a transaction.
    """
    added = await add_accounts(connection, platform_id, account_ids)
    await begin(connection, schema, added)
    return added


async def begin(
    connection: Connection, schema: str, account_ids: Sequence[str], *, priority: int | None = None
) -> None:
    """Request the first copies of accounts. In a transaction."""
    scopes = [scope_of(schema, account_id) for account_id in account_ids]
    await put_off(connection, "backfill", scopes, _NET_S)
    await request_tasks(connection, "backfill", scopes, priority=priority)


_LEFT_OUT = """
INSERT INTO pinstripe.copied (schema, "table")
SELECT s.schema, '-' || t FROM pinstripe.sync s JOIN pinstripe.platform p ON p.id = s.platform_id,
  unnest($2::text[]) t
WHERE p.schema = $1 AND s.schema <> p.schema ON CONFLICT DO NOTHING
"""


async def note_synced(connection: Connection, schema: str, tables: Sequence[str]) -> None:
    """Note which tables of a platform are synced. Those that were not for a time are read again by the
    first copies of all accounts, which go on. In a transaction.
    """
    with translated():
        again = sorted({table for table, _ in await reopen(connection, schema, tables)})
        await connection.execute(_LEFT_OUT, schema, again)
        await mark_loaded(connection, schema, tables)
        await forget_streams(connection, schema, again)


async def wake(connection: Connection, platform_id: str, schema: str, account_id: str) -> bool:
    """Request the poll of an account of which there is news, or that a caller waits for. In a transaction.

    Return whether the platform has the account, and its authorisation: see `welcome`.
    """
    with translated():
        known = await connection.fetchval(_WAKE, platform_id, account_id)
    if known:
        scope = scope_of(schema, account_id)
        await request_tasks(connection, "poll", [scope], priority=WAITED_PRIORITY)
    return bool(known)


async def claim_looks(connection: Connection, platform_id: str, limit: int) -> list[Look]:
    """Take the accounts whose turn it is, `limit` at most."""
    with translated():
        rows = await connection.fetch(_CLAIM, platform_id, limit)
    return [Look(*row) for row in rows]


async def count_looks(connection: Connection, schema: str, account_ids: Sequence[str]) -> None:
    """Count one request of each account, where Stripe limits reads."""
    with translated():
        await connection.execute(_COUNT, [scope_of(schema, each) for each in account_ids])


async def looked(connection: Connection, platform_id: str, seen: Sequence[Found]) -> None:
    """Note looks that found nothing new: all events up to then are applied."""
    with translated():
        await connection.execute(
            _LOOKED,
            platform_id,
            [s.account_id for s in seen],
            [s.as_of for s in seen],
            [s.newest_at for s in seen],
        )


async def found(
    connection: Connection, platform_id: str, schema: str, seen: Sequence[Found]
) -> None:
    """Note looks that found something new, and request the polls. In a transaction."""
    with translated():
        await connection.execute(
            _FOUND, platform_id, [s.account_id for s in seen], [s.newest_event for s in seen]
        )
    await request_tasks(connection, "poll", [scope_of(schema, s.account_id) for s in seen])


async def polled(
    connection: Connection,
    platform_id: str,
    account_id: str,
    scope: str,
    *,
    newest_event: str | None,
    newest_at: int,
    as_of: float,
    events: int,
    again_s: float | None,
    owed_at: datetime | None,
) -> None:
    """Note a poll that is done. `newest_at`: the second of the newest event, 0 if there is none; `events`:
    how many it applied; `again_s`: after which time the window is to be read again, None if never;
    `owed_at`: that of the account when the poll began: what has been owed since is not done.
    """
    with translated():
        await connection.execute(
            _POLLED,
            platform_id,
            account_id,
            newest_event,
            float(newest_at) if newest_at else None,
            as_of,
            events,
            again_s,
            scope,
            owed_at,
        )


async def failed(
    connection: Connection, platform_id: str, account_id: str, error: PinstripeError
) -> None:
    """Note trouble with an account; its next turn comes after a pause that grows to that of an idle one.

    No longer: what fails for all accounts, as where Stripe is away, is over for all at the same moment.
    """
    with translated():
        await connection.execute(
            _FAILED, platform_id, account_id, error.slug, error.message, error.hint
        )


async def put_off(
    connection: Connection, task: TaskName, scopes: Sequence[str], later_s: float
) -> None:
    """Have the task requested in so many seconds."""
    with translated():
        await connection.execute(_PUT_OFF, list(scopes), task, later_s)


async def put_off_first(
    connection: Connection, task: TaskName, scopes: Sequence[str], later_s: float
) -> None:
    """Like `put_off`, unless the task is due at some time already."""
    with translated():
        await connection.execute(_PUT_OFF_FIRST, list(scopes), task, later_s)


OWED_S = 30.0
"""Until a refetch is made that was queued by something else than a poll, which makes its own."""


async def owe_refetch(connection: Connection, scope: str) -> None:
    """Have what was queued for an account of a platform fetched, if no poll of it does so before."""
    if account_of(scope):
        await put_off_first(connection, "refetch", [scope], OWED_S)


async def put_off_failed(connection: Connection, task: TaskName, scope: str) -> None:
    """Have a task that failed requested again, after a pause that grows to an hour."""
    with translated():
        await connection.execute(_PUT_OFF_FAILED, scope, task)


async def settled(connection: Connection, task: TaskName, scope: str) -> None:
    """Nothing of the task is due later."""
    with translated():
        await connection.execute(
            "DELETE FROM pinstripe.platform_task WHERE scope = $1 AND task = $2", scope, task
        )


async def request_due(connection: Connection, limit: int) -> int:
    """Request the tasks whose time has come, `limit` at most; return how many. In a transaction."""
    with translated():
        rows = await connection.fetch(_DUE, limit, _NET_S)
    by_task: dict[TaskName, list[str]] = {}
    for task, scope in rows:
        by_task.setdefault(task, []).append(scope)
    for name in sorted(by_task):
        await request_tasks(connection, name, by_task[name])
    return len(rows)


async def sweep_pace(connection: Connection, platform_id: str) -> Pace:
    """Return how the sweep goes, for `status`."""
    with translated():
        row = await connection.fetchrow(_PACE, platform_id)
    assert row is not None  # noqa: S101 (an aggregate has one row)
    return Pace(*row)
