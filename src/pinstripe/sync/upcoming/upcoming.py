"""Upcoming invoices: what Stripe would invoice next, per subscription and per customer, with its lines.

They have no id and no events of their own; Stripe computes them on request. So they are filled once
(`fill`) and refreshed whenever an event may have changed them (`rules`). A row and its lines are
one state, replaced in one transaction, and an older preview never replaces a newer one.

From basil on Stripe no longer computes the upcoming invoice of a customer. It is then the preview of the
customer's subscription whose period ends first, which includes pending invoice items as the invoice will.
So one request serves both rows, and a refresh of another subscription leaves the customer's row alone.
Without a subscription it consists of the pending items alone, if Stripe previews them.

The caller decides when to refresh: `refresh_*` returns when a response requested after the call is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

import structlog

from pinstripe.client.rate_limit import WorkClass
from pinstripe.client.response import AsOf, StripeObject
from pinstripe.errors import NotEnabled, NotPermitted, Refused, Unreachable, WrongKey
from pinstripe.rows.event import created_of, request_of
from pinstripe.rows.extract import RowSet
from pinstripe.source.source import Source
from pinstripe.store.cursors import ended_by
from pinstripe.store.ddl import qualified
from pinstripe.store.pool import Connection
from pinstripe.store.refetch import Refetch
from pinstripe.sync.upcoming.fill import UpcomingFill
from pinstripe.sync.upcoming.preview import (
    LINES,
    TABLE_OF,
    Owner,
    Preview,
    UpcomingRow,
    has_rollup,
    preview_rows,
    request_preview,
)
from pinstripe.sync.upcoming.rules import (
    ALIVE,
    PENDING,
    Affected,
    OwnerKey,
    OwnerKind,
    affected,
    origins,
)

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

PREVIEWS = WorkClass.PREVIEWS
"""After all that rows need, before scans: a change of one product may need thousands."""
_TRIES = 5
"""More than one is needed only if another process refreshes the same owner at the same moment."""

_Request = Callable[[], Awaitable[Preview | None]]

_SUBSCRIPTION: OwnerKind = "upcoming_subscription"

_OWNER_OF: Mapping[OwnerKind, Owner] = {
    "upcoming_customer": "customer",
    "upcoming_subscription": "subscription",
}


@dataclass(slots=True)
class _Turn:
    """The lock of one owner, and how many tasks hold it or wait for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Upcoming:
    """The upcoming invoices of one account.

    `refused`: by table, why this key may not preview; it is not requested again before the next start.
    `unpreviewable`: how often Stripe could not compute one; `requests`: how many were made.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.refused: dict[str, Refused] = {}
        self.unpreviewable = 0
        self.requests = 0
        self.filling = UpcomingFill(self)
        self._turns: dict[tuple[Owner, str], _Turn] = {}

    def tables(self) -> list[str]:
        """Return the virtual tables that are synced and that this key may fill."""
        wanted = self.source.mirror.tables
        if "subscription" not in wanted:
            return []  # Without subscriptions the owners are unknown.
        return [t for t in TABLE_OF.values() if t in wanted and t not in self.refused]

    async def refetches(self, events: Sequence[StripeObject]) -> list[Refetch]:
        """Return the refreshes that a page of events needs, one an owner. For `EventPoller(more=...)`."""
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
        customer_of: dict[str, str] = {}
        # Newest first, as in the list: the newest event of an owner stays.
        for event, one in reversed(by_event):
            customer_of |= _named_together(one.owners)
            for kind, key in set(one.owners).union(*(behind.get(t, ()) for t in one.through)):
                table = TABLE_OF[_OWNER_OF[kind]]
                if table in synced:
                    made[kind, key] = _refetch(kind, table, key, event)
        customer_of |= await self._customers_of(
            [key for kind, key in made if kind == _SUBSCRIPTION]
        )
        return [
            replace(made[kind, key], parent=customer_of.get(key, key))
            for kind, key in sorted(made)
            # The preview of a subscription brings that of its customer, where it is the same one.
            if kind == _SUBSCRIPTION or not self.is_derived or key not in customer_of.values()
        ]

    async def _customers_of(self, subscriptions: Sequence[str]) -> dict[str, str]:
        """Return subscription -> customer, of those that have rows."""
        if not subscriptions:
            return {}
        async with self.source.pool.acquire() as connection:
            rows = await connection.fetch(
                f"SELECT id, customer_id FROM {qualified(self.source.mirror.schema, 'subscription')}"
                " WHERE id = ANY($1::text[]) AND customer_id IS NOT NULL",
                subscriptions,
            )
        return {row[0]: row[1] for row in rows}

    @property
    def is_derived(self) -> bool:
        """Whether the invoice of a customer is that of one of their subscriptions, and both are synced."""
        both = all(table in self.tables() for table in TABLE_OF.values())
        return both and not has_rollup(self.source.mirror.api_version)

    def refreshers(self) -> Mapping[str, Callable[[str], Awaitable[None]]]:
        """Refreshes by kind of refetch. For `RefetchWorker(upcoming=...)`."""
        return {
            "upcoming_customer": partial(self.refresh, "customer"),
            "upcoming_subscription": partial(self.refresh, "subscription"),
        }

    async def fill(self) -> None:
        """Request the preview of every owner that may be invoiced, once; resumes an earlier fill.

        `filling.progress` is how far it is. Raises WrongKey, and errors of Postgres.
        """
        await self.filling.run()

    async def refresh(self, owner: Owner, owner_id: str, *, priority: int = PREVIEWS) -> None:
        """Refresh the upcoming invoice of one subscription; delete it if none is due. Of a customer: by the
        subscription that invoices first, which is refreshed too.

        Raises what any request raises, except if the key may not preview: that is recorded, once. Drifted
        if the lines cannot be read to their end: the row is written then, and marked so.
        """
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
        """Request the preview, write the rows that it is the preview of, and return it."""
        if not self.is_derived:
            request = partial(self._request, owner, owner_id, priority)
            return await self._replace(owner, owner_id, request)
        if owner == "subscription":
            preview, other = await self._refresh_both(owner_id, priority)
            for _ in range(_TRIES):
                if other:
                    _, other = await self._refresh_both(other, priority)
            return preview
        subscriptions, _ = await self._due(owner_id)
        for subscription_id in subscriptions:
            preview, _ = await self._refresh_both(subscription_id, priority)
            if preview is not None:
                return preview
        return await self._replace(
            "customer", owner_id, partial(self._items_alone, owner_id, priority)
        )

    async def _refresh_both(
        self, subscription_id: str, priority: int
    ) -> tuple[Preview | None, str]:
        """Replace the row of a subscription by a new preview, and that of its customer if it is that one.

        Returns the preview, and the subscription whose preview the customer's row has to be instead, if it
        is not. The turn of the subscription is held throughout: an older preview never replaces a newer one
        in the customer's row.
        """

        async def request() -> Preview | None:
            if await self._has_ended(subscription_id):
                return None
            return await self._preview("subscription", subscription_id, priority)

        async with self._turn("subscription", subscription_id) as row:
            preview = await self._replace_in_turn(row, request)
            return preview, await self._derive(subscription_id, preview, priority)

    async def _has_ended(self, subscription_id: str) -> bool:
        """Whether the subscription never invoices again: that state is final."""
        async with self.source.pool.acquire() as connection:
            found: bool | None = await connection.fetchval(
                f"SELECT NOT ({ALIVE}) FROM {qualified(self.source.mirror.schema, 'subscription')} s"
                " WHERE s.id = $1",
                subscription_id,
            )
        return bool(found)

    async def _replace(self, owner: Owner, owner_id: str, request: _Request) -> Preview | None:
        """Make the request, and replace the row by its response."""
        async with self._turn(owner, owner_id) as row:
            return await self._replace_in_turn(row, request)

    async def _replace_in_turn(self, row: UpcomingRow, request: _Request) -> Preview | None:
        for _ in range(_TRIES):
            before = await self.source.pool.time()
            preview = await request()
            if await self.write(row, preview, before):
                return preview
        raise Unreachable(
            f"The upcoming invoice of {row.owner_id} is refreshed by another process all the time.",
            hint="It is tried again; see that one process syncs this schema.",
        )

    async def _derive(self, subscription_id: str, preview: Preview | None, priority: int) -> str:
        """Replace the customer's row after a subscription was previewed, if it is that preview, or was.

        Returns the subscription whose preview it has to be instead, if any. A request is made for items
        alone.
        """
        customer_id = (await self._customers_of([subscription_id])).get(subscription_id, "")
        if not customer_id and preview is not None:
            customer_id = str(preview.invoice.get("customer") or "")
        if not customer_id:
            return ""
        async with self._turn("customer", customer_id) as row:
            subscriptions, is_pending = await self._due(customer_id)
            async with self.source.pool.acquire() as connection:
                first = await row.first_previewed(connection, subscriptions)
                shown = await row.shown(connection)
            if first is not None and first != subscription_id:
                return first if first != shown else ""
            if first is not None and preview is not None:

                async def known() -> Preview:
                    return preview

                await self._replace_in_turn(row, known)
            elif shown is not None or is_pending:
                request = partial(self._items_alone, customer_id, priority)
                await self._replace_in_turn(row, request)
            return ""

    async def write(self, row: UpcomingRow, preview: Preview | None, before: datetime) -> bool:
        """Replace row and lines, unless they were written since `before`, a moment before the request.

        False if the row was replaced meanwhile by a preview that is not certainly older.
        """
        mirror = self.source.mirror
        won = False
        found, as_of = RowSet(), AsOf(0.0, 0.0)
        if preview is not None:
            found = preview_rows(preview, row.owner, row.owner_id, mirror.extractor)
            as_of = replace(preview.as_of, known_until=before)
        keys = list(found.rows.get(LINES, ()))

        async def effect(connection: Connection) -> None:
            nonlocal won
            if preview is None:
                won = await row.remove(connection, before)
            else:
                won = await row.settle_lines(connection, keys)
                if won:
                    is_unread = preview.unread is not None
                    await row.note_unread(connection, is_unread=is_unread)

        lane = f"{row.table} {row.owner_id}"
        await self.source.mirror.write([(found, as_of)], lane=lane, effect=effect)
        return won

    async def _request(self, owner: Owner, owner_id: str, priority: int) -> Preview | None:
        if owner == "subscription":
            return await self._preview(owner, owner_id, priority)
        subscriptions, pending = await self._due(owner_id)
        if has_rollup(self.source.mirror.api_version):
            if not subscriptions and not pending:
                return None
            return await self._preview("customer", owner_id, priority)
        for subscription_id in subscriptions:
            preview = await self._preview("subscription", subscription_id, priority)
            if preview is not None:
                return preview
        return await self._items_alone(owner_id, priority)

    async def _items_alone(self, customer_id: str, priority: int) -> Preview | None:
        """Return the preview of a customer's pending items, without a subscription; None if none is
        pending.
        """
        _, is_pending = await self._due(customer_id)
        return await self._preview("customer", customer_id, priority) if is_pending else None

    async def _due(self, customer_id: str) -> tuple[list[str], bool]:
        """Return subscriptions that may invoice, in the order in which they would, and whether items are
        pending.
        """
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
            return await request_preview(self.source, owner, owner_id, priority=priority)
        except (NotPermitted, NotEnabled, WrongKey):
            raise
        except Refused as error:
            if error.status != 400 or not error.code:
                raise  # Not understood: the refetch stays pending, and the row as it is.
            # Stripe cannot compute the invoice (no tax address, no items), so there is no row either (400
            # with a code, https://docs.stripe.com/error-codes).
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
    async def _turn(self, owner: Owner, owner_id: str) -> AsyncIterator[UpcomingRow]:
        """The row of an owner, with a lock held: two previews of one owner must not share a transaction."""
        mirror = self.source.mirror
        turn = self._turns.setdefault((owner, owner_id), _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield UpcomingRow(mirror.schema, mirror.tables, owner, owner_id)
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[owner, owner_id]


def _named_together(owners: Collection[OwnerKey]) -> dict[str, str]:
    """Return subscription -> customer, where an event names both."""
    customers = [key for kind, key in owners if kind != _SUBSCRIPTION]
    subscriptions = [key for kind, key in owners if kind == _SUBSCRIPTION]
    return dict.fromkeys(subscriptions, customers[0]) if len(customers) == 1 else {}


def _refetch(kind: OwnerKind, table: str, key: str, event: StripeObject) -> Refetch:
    return Refetch(
        kind,
        table,
        key,
        since=float(created_of(event)),
        request_id=request_of(event),
        event_id=str(event.get("id") or ""),
    )
