"""Upcoming invoices: what Stripe would invoice next, per subscription and per customer, with its lines.

They have no id and no events of their own; Stripe computes them when asked. So they are filled once
(`upcoming_fill`) and refreshed whenever an event may have changed them (`upcoming_affected`). A row and its
lines are one state, replaced in one transaction, and an older preview never replaces a newer one.

The upcoming invoice of a customer, which Stripe no longer computes from basil on, is the preview of that
subscription of theirs whose period ends first; the customer's pending invoice items are in it, as they will
be in the invoice. Without a subscription it is made of the pending items alone, where Stripe previews them.

When to refresh is the caller's: `refresh_*` returns when an answer asked for after the call is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from pinstripe.client.decode import StripeObject
from pinstripe.errors import NotEnabled, NotPermitted, Refused, Unreachable, WrongKey
from pinstripe.mirror.batch import Effect
from pinstripe.rows.as_of import AsOf
from pinstripe.rows.event import created_of, request_of
from pinstripe.rows.extract import RowSet
from pinstripe.source.source import Source
from pinstripe.store.cursors import ended_by
from pinstripe.store.ddl import qualified
from pinstripe.store.pool import Connection
from pinstripe.store.refetch import Refetch
from pinstripe.sync.upcoming.fan_out import ALIVE, PENDING, fan_out, origins
from pinstripe.sync.upcoming.fill import UpcomingFill
from pinstripe.sync.upcoming.preview import (
    LINES,
    TABLE_OF,
    Owner,
    Place,
    Preview,
    ask_preview,
    found_in,
    has_rollup,
)
from pinstripe.sync.upcoming.rules import Affected, Kind, OwnerKey, affected

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

PREVIEWS = 5
"""After the event log, before the backfill: a change of one product may ask for thousands."""
_TRIES = 5
"""Only another process that refreshes the same owner at the same moment makes a second one needed."""

_OWNER_OF: Mapping[Kind, Owner] = {
    "upcoming_customer": "customer",
    "upcoming_subscription": "subscription",
}


@dataclass(slots=True)
class _Turn:
    """One refresh of an owner at a time."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Upcoming:
    """The upcoming invoices of one account.

    `refused`: by table, why this key may not preview; it is not asked again before the next start.
    `unpreviewable`: how often Stripe could not compute one, `requests`: how often it was asked for one.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.refused: dict[str, Refused] = {}
        self.unpreviewable = 0
        self.requests = 0
        self.filling = UpcomingFill(self)
        self._turns: dict[tuple[Owner, str], _Turn] = {}

    def tables(self) -> list[str]:
        """The virtual tables that are synced and that this key may fill."""
        wanted = self.source.mirror.tables
        if "subscription" not in wanted:
            return []  # Whose invoices they would be is not known.
        return [t for t in TABLE_OF.values() if t in wanted and t not in self.refused]

    # --- which ones ------------------------------------------------------------------------------

    def affected(self, event: StripeObject) -> Affected:
        """Whose upcoming invoice an event may change, as far as the event itself tells."""
        return affected(event)

    async def fan_out(self, connection: Connection, affected: Affected) -> set[OwnerKey]:
        """All owners that are affected, found through the rows where the event does not name them."""
        mirror = self.source.mirror
        return await fan_out(connection, affected, schema=mirror.schema, tables=mirror.tables)

    async def refetches(self, events: Sequence[StripeObject]) -> list[Refetch]:
        """The refreshes that a page of events asks for, one an owner. For `Live(more=...)`."""
        synced = self.tables()
        by_event = [(event, found) for event in events if (found := affected(event))]
        if not by_event or not synced:
            return []
        whole = Affected()
        for _, one in by_event:
            whole |= one
        mirror = self.source.mirror
        async with self.source.pool.acquire() as connection:
            behind = await origins(connection, whole, schema=mirror.schema, tables=mirror.tables)
        made: dict[OwnerKey, Refetch] = {}
        # Newest first, as the list is: the newest event that asks for an owner stays.
        for event, one in reversed(by_event):
            for kind, key in set(one.owners).union(*(behind.get(t, ()) for t in one.through)):
                table = TABLE_OF[_OWNER_OF[kind]]
                if table in synced:
                    made[kind, key] = _refetch(kind, table, key, event)
        return [made[place] for place in sorted(made)]

    def refreshers(self) -> Mapping[str, Callable[[str], Awaitable[None]]]:
        """By kind of to-do. For `Todos(upcoming=...)`."""
        return {
            "upcoming_customer": self.refresh_customer,
            "upcoming_subscription": self.refresh_subscription,
        }

    async def fill(self) -> None:
        """Asks for every owner that may be invoiced, once; goes on where an earlier fill was cut.

        `filling.progress` tells how far it is. Raises WrongKey, and what Postgres's trouble is.
        """
        await self.filling.run()

    # --- refreshing ------------------------------------------------------------------------------

    async def refresh_subscription(self, subscription_id: str) -> None:
        """Brings the upcoming invoice of one subscription up to date; where none is due it is removed.

        Raises what any request raises, but for a key that may not preview: that is recorded, once.
        Drifted where the lines cannot be read to their end: the row stands then, and says so.
        """
        await self.refresh("subscription", subscription_id)

    async def refresh_customer(self, customer_id: str) -> None:
        """As `refresh_subscription`. The subscription that invoices first is brought up to date too."""
        await self.refresh("customer", customer_id)

    async def refresh(self, owner: Owner, owner_id: str, *, priority: int = PREVIEWS) -> None:
        """As above, in the order of requests that `priority` says."""
        table = TABLE_OF[owner]
        if table not in self.tables():
            return
        try:
            preview = await self._refresh(owner, owner_id, priority)
        except (NotPermitted, NotEnabled) as error:
            await self._refuse(table, error)
            return
        if preview is not None and preview.unread is not None:
            raise preview.unread

    async def _refresh(self, owner: Owner, owner_id: str, priority: int) -> Preview | None:
        """Asks, writes if the table is synced, and gives what Stripe said."""
        mirror = self.source.mirror
        place = Place(mirror.schema, mirror.tables, owner, owner_id)
        if place.table not in mirror.tables:
            return await self._ask(owner, owner_id, priority)
        async with self._turn(owner, owner_id):
            for _ in range(_TRIES):
                async with self.source.pool.acquire() as connection:
                    seen = await place.versions(connection)
                preview = await self._ask(owner, owner_id, priority)
                if await self.write(place, preview, seen):
                    return preview
        raise Unreachable(
            f"The upcoming invoice of {owner_id} is refreshed by another process all the time.",
            hint="It is tried again; see that one process syncs this schema.",
        )

    async def write(
        self, place: Place, preview: Preview | None, seen: Mapping[tuple[str, str], datetime]
    ) -> bool:
        """Puts row and lines in place of the versions that were `seen` before Stripe was asked.

        False if the row has been replaced meanwhile by a preview that is not surely older.
        """
        mirror = self.source.mirror
        won = False
        found, truth = RowSet(), AsOf(0.0, 0.0)
        if preview is not None:
            found = found_in(preview, place.owner, place.owner_id, mirror.extractor)
            truth = preview.truth
        keys = list(found.rows.get(LINES, ()))

        async def effect(connection: Connection) -> None:
            nonlocal won
            if preview is None:
                won = await place.remove(connection, seen.get((place.table, place.owner_id)))
            else:
                won = await place.settle_lines(connection, keys)
                if won:
                    is_unread = preview.unread is not None
                    await place.note_unread(connection, is_unread=is_unread)

        await self._submit(found, truth, f"{place.table} {place.owner_id}", seen, effect)
        return won

    async def _submit(
        self,
        found: RowSet,
        truth: AsOf,
        lane: str,
        seen: Mapping[tuple[str, str], datetime],
        effect: Effect,
    ) -> None:
        mirror = self.source.mirror
        await mirror.room(found)
        await mirror.submit(found, truth, lane=lane, over=seen, effect=effect)

    # --- asking ----------------------------------------------------------------------------------

    async def _ask(self, owner: Owner, owner_id: str, priority: int) -> Preview | None:
        if owner == "subscription":
            return await self._preview(owner, owner_id, priority)
        return await self._first_of(owner_id, priority)

    async def _first_of(self, customer_id: str, priority: int) -> Preview | None:
        """What the customer is invoiced next, over all subscriptions."""
        subscriptions, pending = await self._due(customer_id)
        if has_rollup(self.source.mirror.api_version):
            if not subscriptions and not pending:
                return None
            return await self._preview("customer", customer_id, priority)
        for subscription_id in subscriptions:
            preview = await self._refresh("subscription", subscription_id, priority)
            if preview is not None:
                return preview
        return await self._preview("customer", customer_id, priority) if pending else None

    async def _due(self, customer_id: str) -> tuple[list[str], bool]:
        """Subscriptions that may invoice, in the order in which they would, and whether items wait."""
        schema, tables = self.source.mirror.schema, self.source.mirror.tables
        ends = "NULL::timestamptz"
        if "subscription_item" in tables:
            ends = (
                f"(SELECT min(i.current_period_end) FROM {qualified(schema, 'subscription_item')} i "
                "WHERE i.subscription_id = s.id AND i.deleted IS NOT TRUE)"
            )
        async with self.source.pool.acquire() as connection:
            rows = await connection.fetch(
                f"SELECT s.id FROM {qualified(schema, 'subscription')} s "
                f"WHERE s.customer_id = $1 AND {ALIVE} "
                f"ORDER BY least({ends}, s.next_pending_invoice_item_invoice), s.created, s.id",
                customer_id,
            )
            pending = "invoice_item" in tables and await connection.fetchval(
                f"SELECT EXISTS (SELECT FROM {qualified(schema, 'invoice_item')} n "
                f"WHERE n.customer_id = $1 AND {PENDING})",
                customer_id,
            )
        return [row[0] for row in rows], bool(pending)

    async def _preview(self, owner: Owner, owner_id: str, priority: int) -> Preview | None:
        self.requests += 1
        try:
            return await ask_preview(self.source, owner, owner_id, priority=priority)
        except (NotPermitted, NotEnabled, WrongKey):
            raise
        except Refused as error:
            if error.status != 400 or not error.code:
                raise  # Not understood: it stays owed, and the row as it is.
            # Stripe cannot say what it would invoice (no tax address, no items): nor can a row.
            # (400 with a code, https://docs.stripe.com/error-codes)
            self.unpreviewable += 1
            _log.info("upcoming.unpreviewable", owner=owner_id, error=error.message)
            return None

    async def _refuse(self, table: str, error: Refused) -> None:
        if table in self.refused:
            return
        self.refused[table] = error
        _log.warning("upcoming.refused", table=table, error=error.message)
        await self.source.save([ended_by(error, table, {"table": table})])

    @asynccontextmanager
    async def _turn(self, owner: Owner, owner_id: str) -> AsyncIterator[None]:
        """Alone with the owner: two previews of one must not share a transaction."""
        turn = self._turns.setdefault((owner, owner_id), _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[owner, owner_id]


def _refetch(kind: Kind, table: str, key: str, event: StripeObject) -> Refetch:
    return Refetch(
        kind,
        table,
        key,
        since=float(created_of(event)),
        request_id=request_of(event),
        event_id=str(event.get("id") or ""),
    )
