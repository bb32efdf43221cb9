"""Fills the upcoming invoices: each owner once after the backfill, then those that change without an event.

Customers come first, since theirs include the subscription that invoices first; then the subscriptions that
are left. Resumable: a cursor per table (`pinstripe.cursor`) holds the last id. At 25 requests/s, which
Stripe allows an endpoint, 100,000 subscriptions take a little over an hour; the poller runs meanwhile.

From then on events refresh previews. Three things call for a refresh without one: metered usage, a moment
that has passed (the end of a period, a trial or a discount), and a month.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from pinstripe.concurrency import for_each
from pinstripe.errors import LostLease, PinstripeError, Refused, WrongKey
from pinstripe.source.source import BACKFILL, Source
from pinstripe.store.cursors import Checkpoint, State, load_checkpoints
from pinstripe.store.ddl import qualified
from pinstripe.store.refetch import Refetch, RefetchKind
from pinstripe.sync.upcoming.preview import TABLE_OF, Owner
from pinstripe.sync.upcoming.rules import ALIVE, PENDING

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_CHUNK = 200
"""Owners between two checkpoints: what a crash repeats."""
_WORKERS = 12
"""Requests under way: at 25/s enough for previews that take 480 ms."""

_OWNERS: tuple[Owner, ...] = ("customer", "subscription")
_KIND_OF: Mapping[Owner, RefetchKind] = {
    "customer": "upcoming_customer",
    "subscription": "upcoming_subscription",
}
_FRESH_S = 3600.0
_OWNER_S = 1.0
_STALE_S = 86400.0
_MONTH_S = 30 * 86400.0
"""The age that no preview exceeds, whatever calls for it: what neither an event nor a moment tells of."""

_CLOCK_S = 2.0
"""Stripe's `Date` is cut to the second, so a fresh preview may appear this much older."""


@dataclass(slots=True)
class Filling:
    """The progress of one table. `since`: the Unix second on Stripe's clock when the fill began, or up to
    which metered previews are old. `due`: of a refill, the seconds between which moments have passed.
    """

    table: str
    state: State = "running"
    after: str = ""
    since: float = 0.0
    done: int = 0
    total: int = 0
    failed: int = 0
    requests: int = 0
    seconds: float = 0.0
    due: tuple[float, float] | None = None

    def checkpoint(self) -> Checkpoint:
        position = {
            "table": self.table,
            "after": self.after,
            "since": self.since,
            "total": self.total,
            "failed": self.failed,
            "refilled": self.due[1] if self.due is not None else self.since,
        }
        return Checkpoint(
            self.table,
            self.state,
            position,
            rows=self.done,
            requests=self.requests,
            seconds=self.seconds,
            as_of=self.since,
        )


class Refresher(Protocol):
    """What refreshes one owner: `Upcoming`."""

    @property
    def source(self) -> Source: ...

    @property
    def refused(self) -> Mapping[str, Refused]: ...

    @property
    def requests(self) -> int: ...

    @property
    def is_derived(self) -> bool: ...

    def tables(self) -> list[str]: ...

    async def refresh(self, owner: Owner, owner_id: str, *, priority: int) -> None: ...


class UpcomingFill:
    """Fills both tables. `progress` is for the progress display."""

    def __init__(
        self,
        upcoming: Refresher,
        *,
        chunk: int = _CHUNK,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.progress: dict[str, Filling] = {}
        self._upcoming = upcoming
        self._source = upcoming.source
        self._chunk = chunk
        self._clock = clock
        self._metered = 0

    async def refill(self) -> None:
        """Refresh the owners whose previews change without an event, after a fill that is not done yet: of
        a table that was emptied.

        Metered usage moves a preview silently: those with it that are older than half of `oldest_s`.
        Refreshed within the other half, none gets older than that, apart from the time that the requests
        take. And those with a moment since the last refill at which the invoice changes: the end of a
        period, a trial, a pause or a discount. Stripe reports these by events; this is the net below them.
        """
        await self.run()
        async with self._source.pool.acquire() as connection:
            saved = dict(await load_checkpoints(connection, self._source.mirror.schema))
            self._metered = _number(await connection.fetchval(self._count_of_metered()))
        now = self._source.now()
        self.progress = {
            table: Filling(
                table,
                since=now - self.oldest_s() / 2,
                due=(_refilled(saved.get(table), now - _STALE_S), now),
            )
            for table in self._upcoming.tables()
        }
        await self._fill_all()

    def oldest_s(self) -> float:
        """Return the age that no preview with metered usage exceeds: an hour, or a second for each, and a
        day at most.
        """
        return min(max(_FRESH_S, self._metered * _OWNER_S), _STALE_S)

    async def run(self) -> None:
        """Return when every owner has been requested once since the fill began.

        An owner that fails is queued as a refetch. Raises errors that end all requests (WrongKey, an
        unreachable Postgres); the next run resumes.
        """
        schema = self._source.mirror.schema
        async with self._source.pool.acquire() as connection:
            saved = dict(await load_checkpoints(connection, schema))
        for owner in _OWNERS:
            table = TABLE_OF[owner]
            if table in self._upcoming.tables():
                filling = self.progress[table] = self._resumed(table, saved.get(table))
                if filling.state != "done":
                    # The beginning is saved for both tables: a preview made since then counts for either.
                    await self._save(filling)
        await self._fill_all()

    async def _fill_all(self) -> None:
        for owner in _OWNERS:
            begun = self.progress.get(TABLE_OF[owner])
            if begun is not None and begun.state != "done":
                await self._fill(owner, begun)

    def _resumed(self, table: str, cursor: Checkpoint | None) -> Filling:
        if cursor is None or cursor.state == "refused" or not cursor.position:
            return Filling(table, since=self._source.now() - _CLOCK_S)
        found = cursor.position
        return Filling(
            table,
            state=cursor.state,
            after=str(found.get("after") or ""),
            since=cursor.as_of or self._source.now() - _CLOCK_S,
            done=cursor.rows,
            total=_number(found.get("total")),
            failed=_number(found.get("failed")),
            requests=cursor.requests,
            seconds=cursor.seconds,
        )

    async def _fill(self, owner: Owner, filling: Filling) -> None:
        table = filling.table
        filling.state = "running"
        filling.total = filling.done + await self._count(owner, filling)
        while True:
            started, requests = self._clock(), self._upcoming.requests
            ids = await self._next(owner, filling)
            if ids:
                await for_each(ids, lambda key: self._refresh(owner, key, filling), limit=_WORKERS)
                filling.after = ids[-1]
            if table in self._upcoming.refused:
                filling.state = "refused"
                return  # Recorded already, with Stripe's words.
            filling.requests += self._upcoming.requests - requests
            filling.seconds += self._clock() - started
            filling.state = "running" if ids else "done"
            await self._save(filling)
            if not ids:
                return

    async def _refresh(self, owner: Owner, key: str, filling: Filling) -> None:
        try:
            await self._upcoming.refresh(owner, key, priority=BACKFILL)
        except (WrongKey, LostLease):
            raise
        except PinstripeError as error:
            if error.fault is not None:
                raise
            # Only this owner fails: it is queued, and the others go on.
            filling.failed += 1
            _log.warning("upcoming.failed", table=filling.table, owner=key, error=error.message)
            refetch = Refetch(_KIND_OF[owner], filling.table, key)
            await self._source.owe(refetch, error)
        filling.done += 1

    async def _save(self, filling: Filling) -> None:
        await self._source.save([filling.checkpoint()])

    async def _next(self, owner: Owner, filling: Filling) -> list[str]:
        """Return the next chunk of owners, by id."""
        arms = [f"({a} ORDER BY 1 LIMIT {self._chunk})" for a in self._arms(owner, filling)]
        union = " UNION ".join(arms)
        statement = f"SELECT o.id FROM ({union}) AS o ORDER BY 1 LIMIT {self._chunk}"
        async with self._source.pool.acquire() as connection:
            rows = await connection.fetch(
                statement, filling.after, filling.since, *(filling.due or ())
            )
        return [row[0] for row in rows]

    async def _count(self, owner: Owner, filling: Filling) -> int:
        union = " UNION ".join(self._arms(owner, filling))
        async with self._source.pool.acquire() as connection:
            found = await connection.fetchval(
                f"SELECT count(*) FROM ({union}) AS o",
                filling.after,
                filling.since,
                *(filling.due or ()),
            )
        return _number(found)

    def _arms(self, owner: Owner, filling: Filling) -> list[str]:
        """Return SELECTs of the owners with an id after $1 that are to be previewed."""
        return self._unfilled(owner) if filling.due is None else self._due(owner)

    def _unfilled(self, owner: Owner) -> list[str]:
        """Return SELECTs of owners that have not been previewed since the second $2."""
        schema, tables = self._source.mirror.schema, self._source.mirror.tables
        shown = qualified(schema, TABLE_OF[owner])
        key = f"{owner}_id"

        def arm(column: str, source: str, condition: str) -> str:
            return (
                f"SELECT DISTINCT {column} AS id FROM {source} "
                f"WHERE {column} > $1 AND {condition} AND NOT EXISTS "
                f"(SELECT FROM {shown} u WHERE u.{key} = {column} AND u._as_of >= to_timestamp($2))"
            )

        own = "s.id" if owner == "subscription" else "s.customer_id"
        arms = [
            arm(own, f"{qualified(schema, 'subscription')} s", ALIVE),
            # A row that exists and may have to go.
            arm(f"o.{key}", f"{shown} o", "true"),
        ]
        if owner == "customer" and "invoice_item" in tables:
            arms.append(arm("n.customer_id", f"{qualified(schema, 'invoice_item')} n", PENDING))
        return arms

    def _due(self, owner: Owner) -> list[str]:
        """Return SELECTs of owners that change without an event: a moment between the seconds $3 and $4 and
        after the preview, metered usage and a preview from before $2, or a preview of a month ago.
        """
        schema = self._source.mirror.schema
        key = f"{owner}_id"
        shown = f"{qualified(schema, TABLE_OF[owner])} u"
        old = (
            f"SELECT u.{key} AS id FROM {shown} WHERE u.{key} > $1 "
            f"AND u._as_of < to_timestamp($4 - {_MONTH_S})"
            # Postgres has to know the types of all parameters.
            " AND $2::float8 IS NOT NULL AND $3::float8 IS NOT NULL"
        )
        if owner == "customer" and self._upcoming.is_derived:
            return [old]  # The others come with their subscriptions.
        own = "s.id" if owner == "subscription" else "s.customer_id"
        passed = (
            f"EXISTS (SELECT FROM ({self._moments()}) AS m (at) WHERE m.at <= to_timestamp($4)"
            " AND m.at > coalesce(u._as_of, to_timestamp($3)))"
        )
        used = f"({self._is_metered()}) AND coalesce(u._as_of < to_timestamp($2), true)"
        return [
            f"SELECT DISTINCT {own} AS id FROM {qualified(schema, 'subscription')} s "
            f"LEFT JOIN {shown} ON u.{key} = {own} WHERE {own} > $1 AND {ALIVE} "
            f"AND ({passed} OR {used})",
            old,
        ]

    def _moments(self) -> str:
        """Return a SELECT of the moments at which the next invoice of subscription `s` changes."""
        tables, schema = self._source.mirror.tables, self._source.mirror.schema
        of_its_own = [
            f"SELECT s.{column.name}"
            for column in tables["subscription"].columns
            if column.name in _MOMENTS
        ]
        if "subscription_item" in tables:
            of_its_own.append(
                f"SELECT i.current_period_end FROM {qualified(schema, 'subscription_item')} i "
                "WHERE i.subscription_id = s.id AND i.deleted IS NOT TRUE"
            )
        if "discount" in tables:
            of_its_own.append(
                f'SELECT d."end" FROM {qualified(schema, "discount")} d '
                "WHERE d.subscription_id = s.id AND d.deleted IS NOT TRUE"
            )
        return " UNION ALL ".join(of_its_own)

    def _is_metered(self) -> str:
        """Return the condition that subscription `s` is billed by usage; true where that is not known."""
        tables, schema = self._source.mirror.tables, self._source.mirror.schema
        if "subscription_item" not in tables or "price" not in tables:
            return "true"
        return (
            f"EXISTS (SELECT FROM {qualified(schema, 'subscription_item')} i "
            f"JOIN {qualified(schema, 'price')} p ON p.id = i.price_id WHERE i.subscription_id = s.id "
            "AND i.deleted IS NOT TRUE AND p.recurring_usage_type = 'metered')"
        )

    def _count_of_metered(self) -> str:
        subscriptions = qualified(self._source.mirror.schema, "subscription")
        return f"SELECT count(*) FROM {subscriptions} s WHERE {ALIVE} AND {self._is_metered()}"


# https://docs.stripe.com/api/subscriptions/object
_MOMENTS = frozenset(
    {"cancel_at", "next_pending_invoice_item_invoice", "pause_collection_resumes_at", "trial_end"}
)


def _refilled(saved: Checkpoint | None, otherwise: float) -> float:
    """Return the second up to which an earlier fill or refill has looked at moments."""
    found = saved.position.get("refilled") if saved is not None else None
    return float(found) if isinstance(found, int | float) else otherwise


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
