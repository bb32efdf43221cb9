"""What the database says to those who wait: events applied, requests still to make, trouble.

Everybody who asks at the same time shares one query (`Together`), so that a thousand waiters cost what
one does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pinstripe.concurrency import Coalescer
from pinstripe.gateway.syncs import OpenSync
from pinstripe.store.ddl import quote
from pinstripe.store.pool import Connection

_SPACING_S = 0.02
_LAST_SPACING_S = 0.005
"""Of what is asked once, at the end of a wait: a longer pause would be most of a wait for an object."""
PREVIEW_KINDS = ("upcoming_customer", "upcoming_subscription")

Place = tuple[str, str]
"""(table, id)"""


@dataclass(frozen=True, slots=True)
class PendingCount:
    """Requests of one kind for one table that are still to be made. `since`: the oldest question."""

    kind: str
    table: str
    count: int
    since: datetime


@dataclass(frozen=True, slots=True)
class Pending:
    """All that is still to be asked of Stripe, at one moment of Postgres's clock."""

    now: datetime
    owed: tuple[PendingCount, ...]

    def before(self, moment: datetime, *, previews: bool) -> list[PendingCount]:
        """What was asked for up to a moment and is not answered."""
        return [
            owed
            for owed in self.owed
            if owed.since <= moment and (previews or owed.kind not in PREVIEW_KINDS)
        ]


# What has met trouble three times is in trouble of its own, which may last: it is shown by `status`, and
# holds up only those who wait for this very object.
_PENDING = """
SELECT clock_timestamp() AS now, p.kind, p."table", count(p.id), min(p.open_since)
FROM (SELECT 1) AS one LEFT JOIN pinstripe.pending AS p ON p.schema = $1 AND p.attempts < 3
GROUP BY p.kind, p."table"
"""


class WaitProgress:
    """The questions of one sync."""

    def __init__(self, sync: OpenSync) -> None:
        self._sync = sync
        self._requests = Coalescer(self._applied("request_id"), spacing_s=_SPACING_S)
        self._events = Coalescer(self._applied("id"), spacing_s=_SPACING_S)
        self._pending = Coalescer(self._ask_pending, spacing_s=_SPACING_S)
        self._places = Coalescer(self._ask_places, spacing_s=_LAST_SPACING_S)
        self._as_of = Coalescer(self._ask_as_of, spacing_s=_LAST_SPACING_S)

    async def has_request(self, request_id: str) -> bool:
        """Whether an event of this request is applied."""
        return await self._requests.get(request_id)

    async def has_event(self, event_id: str) -> bool:
        """Whether this event is applied."""
        return await self._events.get(event_id)

    async def pending(self) -> Pending:
        """What is still to be asked of Stripe."""
        return await self._pending.get(None)

    async def open_since(self, table: str, key: str) -> tuple[datetime, datetime | None]:
        """(now, since when the object's own state is to be asked for; None where it is not)."""
        return await self._places.get((table, key))

    async def as_of(self) -> datetime | None:
        """How far the database is known to be true, on Stripe's clock."""
        return await self._as_of.get(None)

    async def close(self) -> None:
        """Ends what is being asked."""
        for questions in (self._requests, self._events, self._pending, self._places, self._as_of):
            await questions.close()

    def _applied(self, column: str) -> Callable[[Collection[str]], Awaitable[Mapping[str, bool]]]:
        statement = (
            f"SELECT DISTINCT {quote(column)} FROM pinstripe.applied_event"
            f" WHERE schema = $1 AND {quote(column)} = ANY($2::text[])"
        )

        async def ask(keys: Collection[str]) -> Mapping[str, bool]:
            async with self._sync.pool.acquire() as connection:
                rows = await connection.fetch(statement, self._sync.schema, list(keys))
            there = {row[0] for row in rows}
            return {key: key in there for key in keys}

        return ask

    async def _ask_pending(self, _: Collection[None]) -> Mapping[None, Pending]:
        async with self._sync.pool.acquire() as connection:
            rows = await connection.fetch(_PENDING, self._sync.schema)
        owed = tuple(PendingCount(*row[1:]) for row in rows if row[1] is not None)
        return {None: Pending(rows[0][0], owed)}

    async def _ask_as_of(self, _: Collection[None]) -> Mapping[None, datetime | None]:
        async with self._sync.pool.acquire() as connection:
            found: datetime | None = await connection.fetchval(
                "SELECT greatest(max(b.as_of), max(c.as_of)) FROM pinstripe.cursor AS c"
                " LEFT JOIN pinstripe.bell AS b USING (schema)"
                " WHERE c.schema = $1 AND c.stream = 'events'",
                self._sync.schema,
            )
        return {None: found}

    async def _ask_places(
        self, places: Collection[Place]
    ) -> Mapping[Place, tuple[datetime, datetime | None]]:
        ordered = list(places)
        async with self._sync.pool.acquire() as connection:
            now: datetime = await connection.fetchval("SELECT clock_timestamp()")
            rows = await connection.fetch(
                'SELECT "table", id, open_since FROM pinstripe.pending WHERE schema = $1'
                " AND kind = 'fetch' AND (\"table\", id) IN"
                " (SELECT * FROM unnest($2::text[], $3::text[]))",
                self._sync.schema,
                [table for table, _ in ordered],
                [key for _, key in ordered],
            )
        since: dict[Place, datetime] = {(row[0], row[1]): row[2] for row in rows}
        return {place: (now, since.get(place)) for place in ordered}


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the process that syncs does not answer. `code` is for programs."""

    code: str
    message: str
    hint: str


async def trouble_of(connection: Connection, schema: str) -> Trouble | None:
    """What keeps a sync from answering, as the database knows it."""
    held = await connection.fetchval(
        "SELECT expires_at > clock_timestamp() FROM pinstripe.lease WHERE schema = $1", schema
    )
    if not held:
        return Trouble(
            "not_syncing",
            "No process syncs this account now.",
            "Start `pinstripe sync` or `pinstripe serve`, or resume the sync.",
        )
    row = await connection.fetchrow(
        "SELECT reason, coalesce(remedy, '') FROM pinstripe.cursor"
        " WHERE schema = $1 AND stream = 'events' AND reason <> ''",
        schema,
    )
    if row is not None:
        return Trouble("sync_in_trouble", row[0], row[1])
    copying: Sequence[str] = await connection.fetchval(
        "SELECT coalesce(array_agg(stream ORDER BY stream), '{}') FROM pinstripe.cursor"
        " WHERE schema = $1 AND stream <> 'events' AND state = 'running'",
        schema,
    )
    if copying:
        some = ", ".join(copying[:3]) + (" ..." if len(copying) > 3 else "")
        return Trouble(
            "copying",
            f"The first copy is not complete: {len(copying)} lists are still being read ({some}).",
            "`pinstripe status` shows how far it is. The exact forms of waiting work meanwhile.",
        )
    return None
