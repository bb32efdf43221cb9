"""Upcoming invoices: what Stripe would invoice next, per subscription and per customer, with its lines.

They have no id and no events of their own; Stripe computes them when asked. So they are filled once and
refreshed whenever an event may have changed them (`upcoming_affected`). A row and its lines are one state:
they are written, replaced and removed in one transaction, and an older preview never replaces a newer one.

The upcoming invoice of a customer, which Stripe no longer computes from basil on, is the preview of that
subscription of theirs whose period ends first, the customer's pending invoice items included, as Stripe
does when that moment comes. Without a subscription it is made of the pending items alone, where Stripe
previews them.

When to refresh is the caller's: `refresh_*` returns when an answer asked for after the call is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from pinstripe.errors import NotEnabled, NotPermitted, Refused, Unreachable, WrongKey
from pinstripe.rows.decode import StripeObject
from pinstripe.rows.extract import Found
from pinstripe.store.cursors import Checkpoint, save_checkpoints
from pinstripe.store.pool import Connection
from pinstripe.store.todo import Todo
from pinstripe.sync.source import Source
from pinstripe.sync.upcoming_affected import Affected, Kind, OwnerKey, affected
from pinstripe.sync.upcoming_fanout import ALIVE, PENDING, fan_out, origins
from pinstripe.sync.upcoming_preview import Owner, Preview, ask_preview, has_rollup
from pinstripe.sync.upcoming_rows import Outcome, found_in, remove, replace_lines, seen_versions

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

PREVIEWS = 5
"""After the event log, before the backfill: a change of one product may ask for thousands."""
_TRIES = 5
"""Only another process that refreshes the same owner at the same moment makes a second one needed."""

TABLE_OF: Mapping[Owner, str] = {
    "customer": "upcoming_customer_invoice",
    "subscription": "upcoming_subscription_invoice",
}
KIND_OF: Mapping[Owner, Kind] = {
    "customer": "upcoming_customer",
    "subscription": "upcoming_subscription",
}
OWNER_OF: Mapping[Kind, Owner] = {kind: owner for owner, kind in KIND_OF.items()}


@dataclass(slots=True)
class _Turn:
    """Whose turn it is to refresh one owner."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class Upcoming:
    """The upcoming invoices of one account.

    `refused`: by table, why this key may not preview; it is not asked again. `requests` counts previews.
    """

    def __init__(self, source: Source) -> None:
        self.refused: dict[str, Refused] = {}
        self.requests = 0
        self._source = source
        self._turns: dict[tuple[Owner, str], _Turn] = {}

    @property
    def source(self) -> Source:
        return self._source

    # --- which ones ------------------------------------------------------------------------------

    def affected(self, event: StripeObject) -> Affected:
        """Whose upcoming invoice an event may change."""
        return affected(event)

    async def fan_out(self, connection: Connection, affected: Affected) -> set[OwnerKey]:
        """All owners that are affected, found through the rows where the event does not name them."""
        mirror = self._source.mirror
        return await fan_out(connection, affected, schema=mirror.schema, tables=mirror.tables)

    async def todos(self, events: Sequence[StripeObject]) -> list[Todo]:
        """The refreshes that these events ask for, one an owner. For `Live(more=...)`."""
        by_event = [(event, found) for event in events if (found := affected(event))]
        if not by_event or not self._tables():
            return []
        whole = Affected()
        for _, one in by_event:
            whole |= one
        mirror = self._source.mirror
        async with self._source.pool.acquire() as connection:
            behind = await origins(connection, whole, schema=mirror.schema, tables=mirror.tables)
        # The list is newest first: the newest event that asks for an owner stays.
        made: dict[OwnerKey, Todo] = {}
        for event, one in reversed(by_event):
            owners = set(one.owners).union(*(behind.get(t, ()) for t in one.through))
            for kind, key in owners:
                table = TABLE_OF[OWNER_OF[kind]]
                if table in self._tables():
                    made[kind, key] = _todo(kind, table, key, event)
        return [made[place] for place in sorted(made)]

    def refreshers(self) -> dict[str, Callable[[str], Awaitable[None]]]:
        """By kind of to-do. For `Todos(upcoming=...)`."""
        return {
            "upcoming_customer": self.refresh_customer,
            "upcoming_subscription": self.refresh_subscription,
        }

    def _tables(self) -> list[str]:
        """The virtual tables that are synced and that this key may fill."""
        known = self._source.wanted
        return [t for t in TABLE_OF.values() if t in known and t not in self.refused]

    # --- refreshing ------------------------------------------------------------------------------

    async def refresh_subscription(self, subscription_id: str) -> None:
        """Brings the upcoming invoice of one subscription up to date; none due removes it.

        Raises Unreachable and WrongKey, as any request; Drifted where the lines cannot be read.
        """
        if TABLE_OF["subscription"] in self._tables():
            await self._subscription(subscription_id, PREVIEWS)

    async def refresh_customer(self, customer_id: str) -> None:
        """As `refresh_subscription`. The subscription that invoices first comes up to date with it."""
        await self.refresh_customer_at(customer_id, PREVIEWS)

    async def refresh_customer_at(self, customer_id: str, priority: int) -> None:
        table = TABLE_OF["customer"]
        if table not in self._tables():
            return
        async with self._turn("customer", customer_id):
            for _ in range(_TRIES):
                seen = await self._seen("customer", customer_id)
                try:
                    preview = await self._first_of(customer_id, priority)
                except (NotPermitted, NotEnabled) as error:
                    await self._refuse(table, error)
                    return
                if await self._write("customer", customer_id, preview, seen):
                    return
        raise _outrun(customer_id)

    async def refresh_subscription_at(self, subscription_id: str, priority: int) -> None:
        if TABLE_OF["subscription"] in self._tables():
            await self._subscription(subscription_id, priority)

    async def _subscription(self, subscription_id: str, priority: int) -> Preview | None:
        """Asks, writes if the table is synced, and gives what was said."""
        table = TABLE_OF["subscription"]
        async with self._turn("subscription", subscription_id):
            for _ in range(_TRIES):
                if table not in self._tables():
                    return await self._ask("subscription", subscription_id, priority)
                seen = await self._seen("subscription", subscription_id)
                try:
                    preview = await self._ask("subscription", subscription_id, priority)
                except (NotPermitted, NotEnabled) as error:
                    await self._refuse(table, error)
                    raise
                if await self._write("subscription", subscription_id, preview, seen):
                    return preview
        raise _outrun(subscription_id)
