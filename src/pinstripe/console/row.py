"""One row: its columns, freshness, references in both directions, events and changes.

References to the row are counted up to ten; the page links to the full list. Only indexed columns and small
tables are counted, so that the page stays fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote as percent
from urllib.parse import urlencode, urlsplit

from starlette.responses import Response

from pinstripe.catalog.tables import tables
from pinstripe.console.events import columns_of
from pinstripe.console.page_context import PageContext
from pinstripe.console.rows import cell
from pinstripe.console.tables import Shape, load_indexed, load_shape, referring
from pinstripe.errors import Unreachable
from pinstripe.gateway.syncs import StoredSync
from pinstripe.store.changes import ChangeFilter, changes_before, newest_position
from pinstripe.store.ddl import BOOKKEEPING, literal, qualified, quote
from pinstripe.store.events import EventFilter, EventLine, has_events, list_events
from pinstripe.store.pool import Connection
from pinstripe.store.refetch import load_missing

_CHANGES = 20
_EVENTS = 10
_EVENTS_S = 0.5
"""The event log has no index on the object: it is looked through for so long."""

_INWARD_S = 3.0
_LAST = 2**63 - 1
_PLAIN = {"text", "bigint", "numeric", "boolean", "jsonb", "text[]", "timestamptz"}


@dataclass(frozen=True, slots=True)
class RowAge:
    """When the row was true, on Stripe's clock, and when it was written, on Postgres's."""

    earliest: datetime | None
    latest: datetime | None
    written: datetime | None
    api_version: str | None
    partial: bool


async def show(visit: PageContext) -> Response:
    sync = visit.sync
    name, key = visit.named("table"), visit.named("key").replace("\0", "")
    async with visit.gateway.reads.connection() as connection:
        shape = await load_shape(connection, sync.schema, name)
        if shape is None:
            return visit.not_found(f'There is no table "{name}" in this schema.')
        values = await _load(connection, shape, key)
        if values is None:
            reasons = await load_missing(connection, sync.schema, [(name, key)])
            return visit.not_found(_absent(name, key, reasons.get((name, key))))
        cells = [cell(shape, column, values, whole=True) for column in shape.columns]
        pointed = [(r.table, r.id) for c in cells for r in c.references if r.table is not None]
        missing = await load_missing(connection, sync.schema, pointed)
        wanted = ChangeFilter(name, key)
        changes = await changes_before(
            connection, sync.schema, _LAST, wanted=wanted, limit=_CHANGES
        )
        feed = bool(changes) or await newest_position(connection, sync.schema) > 0
    inward, unasked = await _inward(visit, shape, key)
    own = [c for c in cells if c.column.name not in BOOKKEEPING or c.column.name == "_extra"]
    return visit.page(
        "row.html",
        shape=shape,
        key=key,
        title=_title(values),
        deleted=values.get("deleted") is True,
        cells=[c for c in own if c.kind != "null"],
        nulls=[c.column for c in own if c.kind == "null"],
        truth=_truth(values),
        missing=missing,
        inward=inward,
        unasked=unasked,
        changes=[(change, columns_of(change)) for change in changes],
        feed=feed,
        events=await _events(visit, shape, key),
        dashboard=None if shape.table.virtual else dashboard_url(sync, name, key),
        sql=f"SELECT *\nFROM {qualified(sync.schema, name)}\n"
        f"WHERE {quote(shape.key)} = {literal(key)};",
    )


async def _load(connection: Connection, shape: Shape, key: str) -> dict[str, object] | None:
    """The row's values by column; types that we do not know come as text."""
    selected = ", ".join(
        quote(c.name) if c.type in _PLAIN else f"{quote(c.name)}::text"
        for c in shape.columns.values()
    )
    record = await connection.fetchrow(
        f"SELECT {selected} FROM {qualified(shape.schema, shape.table.name)}"
        f" WHERE {quote(shape.key)} = $1",
        key,
    )
    return None if record is None else dict(zip(shape.columns, record, strict=True))


async def _inward(
    visit: PageContext, shape: Shape, key: str
) -> tuple[list[Inward] | None, Sequence[tuple[str, str]]]:
    """None where it took too long."""
    try:
        async with visit.gateway.reads.connection(longest_s=_INWARD_S) as connection:
            return await load_inward(connection, shape, key)
    except Unreachable:
        return None, ()


async def _events(visit: PageContext, shape: Shape, key: str) -> list[EventLine] | None:
    """Return the newest events of the row; None if the query took too long."""
    if shape.table.virtual or "event" not in shape.here:
        return []
    try:
        async with visit.gateway.reads.connection(longest_s=_EVENTS_S) as connection:
            if not await has_events(connection, shape.schema):
                return []
            return await list_events(
                connection, shape.schema, EventFilter(object_id=key), limit=_EVENTS
            )
    except Unreachable:
        return None


def _truth(values: dict[str, object]) -> RowAge:
    def moment(name: str) -> datetime | None:
        value = values.get(name)
        return value if isinstance(value, datetime) else None

    version = values.get("_api_version")
    return RowAge(
        moment("_as_of"),
        moment("_as_of_latest"),
        moment("_synced_at"),
        version if isinstance(version, str) else None,
        values.get("_partial") is True,
    )


def _title(values: dict[str, object]) -> str:
    """What people call the row: its name, number or address; "" if it has none."""
    for column in ("name", "number", "nickname", "email", "description"):
        value = values.get(column)
        if isinstance(value, str) and value.strip():
            return value if len(value) <= 120 else value[:120] + "…"
    return ""


def _absent(name: str, key: str, reason: str | None) -> str:
    told = f'There is no row "{key}" in {name}.'
    return f"{told} {reason}" if reason else told


_MOST = 10
_SMALL_BYTES = 1024 * 1024
_DASHBOARD = "https://dashboard.stripe.com"

_SIZES = """
SELECT c.relname::text, pg_relation_size(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = ANY($2::text[])
"""

# Pages that show one object. For others the dashboard's own search finds the id.
_PAGES = {
    "account": "connect/accounts",
    "charge": "payments",
    "coupon": "coupons",
    "customer": "customers",
    "dispute": "disputes",
    "event": "events",
    "invoice": "invoices",
    "issuing_authorization": "issuing/authorizations",
    "issuing_card": "issuing/cards",
    "issuing_cardholder": "issuing/cardholders",
    "issuing_transaction": "issuing/transactions",
    "payment_intent": "payments",
    "payment_link": "payment-links",
    "payout": "payouts",
    "price": "prices",
    "product": "products",
    "quote": "quotes",
    "setup_intent": "setup_intents",
    "subscription": "subscriptions",
    "subscription_schedule": "subscription_schedules",
    "topup": "topups",
    "transfer": "connect/transfers",
}


@dataclass(frozen=True, slots=True)
class Inward:
    """Rows of `table` whose `column` names this row."""

    table: str
    column: str
    count: int

    @property
    def words(self) -> str:
        return f"{_MOST}+" if self.count > _MOST else str(self.count)

    def of(self, key: str) -> str:
        """The query of the address that lists them."""
        return f"?{urlencode({'column': self.column, 'is': 'eq', 'value': key})}"


async def load_inward(
    connection: Connection, shape: Shape, key: str
) -> tuple[list[Inward], list[tuple[str, str]]]:
    """Return (references to the row, (table, column) pairs that were not queried because it would be
    slow).
    """
    candidates = referring(shape)
    if not candidates:
        return [], []
    names = sorted({table for table, _ in candidates})
    indexed = await load_indexed(connection, shape.schema, names)
    sizes = {r[0]: r[1] for r in await connection.fetch(_SIZES, shape.schema, names)}
    asked = [c for c in candidates if c in indexed or sizes.get(c[0], 0) <= _SMALL_BYTES]
    asked = [c for c in asked if sizes.get(c[0])]
    unasked = [c for c in candidates if c not in asked and sizes.get(c[0])]
    if not asked:
        return [], unasked
    text = " UNION ALL ".join(_count(shape.schema, *one) for one in asked)
    rows = await connection.fetch(text, key)
    return [Inward(*row) for row in rows if row[2]], unasked


def _count(schema: str, table: str, column: str) -> str:
    is_array = tables()[table].column(column).type == "text[]"
    fits = f"$1 = ANY({quote(column)})" if is_array else f"{quote(column)} = $1"
    return (
        f"SELECT {literal(table)}, {literal(column)}, count(*) FROM"
        f" (SELECT FROM {qualified(schema, table)} WHERE {fits} LIMIT {_MOST + 1}) AS found"
    )


def dashboard_url(sync: StoredSync, table: str, key: str) -> str | None:
    """Return the object's URL in Stripe's dashboard; None for a simulated account.

    The account in the path makes the dashboard switch to it.
    """
    host = urlsplit(sync.stripe_url).hostname or ""
    if sync.stripe_url and host != "stripe.com" and not host.endswith(".stripe.com"):
        return None
    account = f"/{sync.account_id}" if sync.account_id else ""
    place = f"{_DASHBOARD}{account}{'' if sync.livemode else '/test'}"
    if table in _PAGES:
        return f"{place}/{_PAGES[table]}/{percent(key, safe='')}"
    return f"{place}/search?query={percent(key, safe='')}"
