"""Where a row leads: to what refers to it here, and to the same object at Stripe.

Counting stops behind ten: the page says that there are some, and the list of them is a link. Only
columns with an index are asked, and those of small tables, so that the page stays quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote as percent
from urllib.parse import urlencode, urlsplit

from pinstripe.catalog.tables import tables
from pinstripe.console.tables_shape import Shape, load_indexed, referring
from pinstripe.gateway.control import StoredSync
from pinstripe.store.ddl import literal, qualified, quote
from pinstripe.store.pool import Connection

_MOST = 10
_SMALL_BYTES = 1024 * 1024
_DASHBOARD = "https://dashboard.stripe.com"

_SIZES = """
SELECT c.relname::text, pg_relation_size(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = ANY($2::text[])
"""

_MISSING = """
SELECT m."table", m.id, m.reason FROM pinstripe.missing m
JOIN unnest($2::text[], $3::text[]) AS w ("table", id) ON w."table" = m."table" AND w.id = m.id
  AND left(m.id, 500) = left(w.id, 500)
WHERE m.schema = $1
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
    """(what refers to the row, (table, column) that were not asked as it would take long)."""
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


async def load_missing(
    connection: Connection, schema: str, wanted: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], str]:
    """Why rows are not here: (table, id) -> reason, for those that Stripe does not have or show."""
    if not wanted:
        return {}
    names, keys = [w[0] for w in wanted], [w[1] for w in wanted]
    return {(r[0], r[1]): r[2] for r in await connection.fetch(_MISSING, schema, names, keys)}


def dashboard_url(sync: StoredSync, table: str, key: str) -> str | None:
    """The object in Stripe's dashboard; None for an account that is not at Stripe.

    The account in the path lets the dashboard change to it by itself.
    """
    host = urlsplit(sync.stripe_url).hostname or ""
    if sync.stripe_url and host != "stripe.com" and not host.endswith(".stripe.com"):
        return None
    account = f"/{sync.account_id}" if sync.account_id else ""
    place = f"{_DASHBOARD}{account}{'' if sync.livemode else '/test'}"
    if table in _PAGES:
        return f"{place}/{_PAGES[table]}/{percent(key, safe='')}"
    return f"{place}/search?query={percent(key, safe='')}"
