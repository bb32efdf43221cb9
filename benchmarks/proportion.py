"""Work in proportion to change: what an account costs that is complete and hardly changes.

`restart`: from the start of a process over a complete copy to its first answer of `/wait`, for two sizes
of account. `changes`: a pass over rows that have not changed, the heads of lists meanwhile, previews after
a product was renamed, and previews of a day on which nothing happens but renewals.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from statistics import median

import asyncpg

from benchmarks import watch
from benchmarks.account import mix
from benchmarks.caller import calling
from benchmarks.figures import Figure
from benchmarks.service import UNLIMITED, serving
from benchmarks.stage import Stage, command, stage, sync_once
from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import tables
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.mirror import open_mirror
from pinstripe.rows.event import EVENTS
from pinstripe.source.resolve import resolve
from pinstripe.source.source import Source
from pinstripe.store.migrate import effective_tables
from pinstripe.store.pool import connect, open_pool
from pinstripe.sync.refetch.worker import RefetchWorker
from pinstripe.sync.relist import Intervals, Relist
from pinstripe.sync.upcoming.fill import Filling
from pinstripe.sync.upcoming.preview import Owner
from pinstripe.sync.upcoming.upcoming import Upcoming

_LIVE = ("--rate-limit", "50", "--endpoint-rate-limit", "12.5")
"""The default of a live account."""
_LATENCY_S = 0.15
_RESTARTS = 3
_PER_CUSTOMER = 50 / 3
"""Objects of the shape `customers` for each customer."""
_RENAMED = 500
_OWNERS: tuple[Owner, ...] = ("customer", "subscription")
_DAY_S = 86_400
_TABLES = (
    *("customer", "charge", "payment_intent", "payment_method", "balance_transaction", "refund"),
    *("invoice", "line_item", "invoice_payment", "subscription", "subscription_item", "discount"),
    *("product", "price", "event", "upcoming_customer_invoice", "upcoming_subscription_invoice"),
    "upcoming_invoice_line_item",
)
"""What the account has many of: all 36 heads every two seconds would be 18 requests a second."""
_PREVIEW = "POST /v1/invoices/create_preview"
_HEAD = "newest of /v1/balance_transactions"
_HEAD_S = 2.0
_PATIENCE_S = 600.0
_OLD_VERSION = "2024-06-20"
_WRITTEN = (
    "SELECT coalesce(sum(n_tup_upd + n_tup_del), 0)::bigint FROM pg_catalog.pg_stat_user_tables"
    " WHERE schemaname = 'stripe'"
)
_OPEN = "SELECT count(*) FROM pinstripe.pending WHERE attempts = 0"


async def restart(customers: int) -> AsyncIterator[Figure]:
    """Seconds to the first answer of a wait, of a small account and one with so many customers."""
    for count in (560, customers):
        async with stage(mix(round(count * _PER_CUSTOMER), "customers")) as at:
            database = await at.database()
            await sync_once(at, *UNLIMITED, database=database)
            await at.simulator.control("latency", fixed_s=_LATENCY_S)
            walls, cpus = zip(
                *[await _first_wait(at, database) for _ in range(_RESTARTS)], strict=True
            )
        told = f"to the first wait, {count:,} customers, median of {_RESTARTS}"
        yield Figure("restart", told, median(walls), "s", 2)
        yield Figure("restart", f"{told}: CPU", median(cpus), "s", 2)


async def _first_wait(at: Stage, database: str) -> tuple[float, float]:
    """Seconds, and seconds of CPU of the service and of Postgres: on a busy machine those decide."""
    began, cpu_s = time.monotonic(), at.postgres_cpu_s()
    async with (
        serving(at, database, *_LIVE) as service,
        calling(service.url, at.simulator.key) as (caller,),
    ):
        answer = await caller.ask("GET", "/wait/stripe/default?timeout=60")
        if answer.status != 200:
            raise RuntimeError(f"no wait to measure: {answer.body[:300]!r}")
        took_s = time.monotonic() - began
        return took_s, at.postgres_cpu_s() - cpu_s + watch.tree_cpu_s(service.process.pid)


async def changes(customers: int) -> AsyncIterator[Figure]:
    """What passes write, the pace of heads beside one, and the previews that an account calls for."""
    async with stage(mix(round(customers * _PER_CUSTOMER), "customers")) as at:
        database = await at.database()
        await sync_once(at, *UNLIMITED, database=database)
        async with connect(database) as reader:
            async for figure in _pass(at, database, reader):
                yield figure
            yield await _previews_of_a_day(at, database, reader)
    only = {"customer": _RENAMED, "subscription": _RENAMED, "product": 1, "price": 1, "plan": 1}
    async with stage(only) as at:
        async for figure in _renamed(at):
            yield figure


async def _pass(at: Stage, database: str, reader: asyncpg.Connection) -> AsyncIterator[Figure]:
    """Every list is read to its end once more, at the default of a live account."""
    rows, written = await _rows(reader), await reader.fetchval(_WRITTEN)
    wal = await reader.fetchval("SELECT pg_catalog.pg_current_wal_insert_lsn()")
    heads: set[float] = set()
    async with _opened(at, database) as (source, budget):
        pace = Intervals(head_s=_HEAD_S)
        relist = Relist(source, RefetchWorker(source), budget, intervals=pace)
        lists = {e.stream for e in relist._endpoints() if e.path != EVENTS and not e.parent}
        relist._passed_at |= dict.fromkeys(lists, -float("inf"))
        going = asyncio.create_task(relist.run())
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while relist.refreshing or not lists <= relist._shown_at.keys():
                    await asyncio.sleep(0.05)
                    if relist.refreshing and _HEAD in relist._head_at:
                        heads.add(relist._head_at[_HEAD])
        finally:
            going.cancel()
            await asyncio.gather(going, return_exceptions=True)
    rewritten = await reader.fetchval(_WRITTEN) - written
    yield Figure("changes", f"rows rewritten by a pass over {rows:,}", rewritten, "", 0)
    grown = await reader.fetchval(
        "SELECT pg_catalog.pg_current_wal_insert_lsn() - $1::pg_catalog.pg_lsn", wal
    )
    yield Figure("changes", "WAL of the pass, for each row", float(grown) / rows, "bytes")
    gaps = [later - earlier for earlier, later in pairwise(sorted(heads))]
    told = f"between two reads of a head during the pass ({_HEAD_S:.0f} s asked for), at most"
    yield Figure("changes", told, max(gaps), "s", 2 * _HEAD_S)


async def _rows(reader: asyncpg.Connection) -> int:
    await reader.execute("VACUUM ANALYZE")  # Hint bits of rows that are read are WAL, too.
    found = await reader.fetchval(
        "SELECT sum(c.reltuples) FROM pg_catalog.pg_class c WHERE c.relkind = 'r' AND c.reltuples > 0"
        " AND c.relnamespace = 'stripe'::pg_catalog.regnamespace"
    )
    return int(found)


async def _previews_of_a_day(at: Stage, database: str, reader: asyncpg.Connection) -> Figure:
    """Previews that no event calls for, a day, where every subscription renews once a month.

    The plan of thirty days is counted, each with the previews of the day before: nothing is waited for.
    """
    await reader.execute(
        "UPDATE stripe.subscription_item SET current_period_end = pg_catalog.now() + interval '30 days'"
        " * (pg_catalog.abs(pg_catalog.hashtext(subscription_id)) % 1000) / 1000"
    )
    await reader.execute("UPDATE stripe.price SET recurring_usage_type = 'licensed'")
    for owner in _OWNERS:
        key = "id" if owner == "subscription" else "customer_id"
        await reader.execute(
            f"INSERT INTO stripe.upcoming_{owner}_invoice"
            f" ({owner}_id, _as_of, _as_of_latest, _synced_at)"
            f" SELECT DISTINCT {key}, now(), now(), now() FROM stripe.subscription"
            f" WHERE {key} IS NOT NULL ON CONFLICT DO NOTHING"
        )
    due = 0
    async with _opened(at, database) as (source, _):
        filling = Upcoming(source).filling
        now = source.now()
        for day in range(30):
            window = (now + day * _DAY_S, now + (day + 1) * _DAY_S)
            for owner in _OWNERS:
                plan = Filling(f"upcoming_{owner}_invoice", since=window[0], due=window)
                due += await filling._count(owner, plan)
                await reader.execute(
                    f"UPDATE stripe.upcoming_{owner}_invoice SET _as_of = to_timestamp($1)",
                    window[1],
                )
    customers = await reader.fetchval("SELECT count(DISTINCT customer_id) FROM stripe.subscription")
    told = f"previews a day without an event, {customers:,} customers with subscriptions"
    return Figure("changes", told, due / 30, "", 2000 * customers / 10_000)


async def _renamed(at: Stage) -> AsyncIterator[Figure]:
    """A product with hundreds of subscriptions is renamed; meanwhile a row is in doubt."""
    database = await at.database()
    process = command(at, database, "sync", "--json", *_LIVE, quiet=True)
    try:
        async with (
            calling(at.simulator.url, at.simulator.key) as (direct,),
            _when_made(database) as reader,
        ):
            await _quiet(reader)
            rows = await reader.fetch(
                "SELECT p.product_id, count(DISTINCT i.subscription_id) FROM stripe.price p"
                " JOIN stripe.subscription_item i ON i.price_id = p.id"
                " GROUP BY p.product_id ORDER BY count(*) DESC LIMIT 1"
            )
            product, held = rows[0]
            await at.simulator.control("latency", fixed_s=_LATENCY_S)
            await at.simulator.control("reset_counters")
            await direct.ask("POST", f"/v1/products/{product}", {"name": "Renamed"})
            await _until(reader, _OPEN)
            waited = await _contested(at, reader)
            beside = await reader.fetchval(_OPEN)
            await _quiet(reader)
            made = (await at.state())["by_endpoint"].get(_PREVIEW, 0)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 20)
    told = f"previews after a product with {held} subscriptions was renamed"
    yield Figure("changes", told, made, "", held)
    told = f"until a row in doubt is settled, {beside} requests of lower classes open"
    yield Figure("changes", told, waited, "s", 2)


async def _contested(at: Stage, reader: asyncpg.Connection) -> float:
    """Seconds until the row is right of a customer whose event, in an old version, is only a hint."""
    began = time.monotonic()
    key = await at.simulator.control(
        "edit", type="customer", changes={"name": "Ada"}, silent=False, version=_OLD_VERSION
    )
    await _until(reader, "SELECT name = 'Ada' FROM stripe.customer WHERE id = $1", key)
    return time.monotonic() - began


async def _quiet(reader: asyncpg.Connection) -> None:
    """Returns when both fills of previews are done and nothing is owed."""
    filled = "SELECT count(*) FROM pinstripe.cursor WHERE stream ~ '^upcoming' AND state = 'done'"
    await _until(reader, f"SELECT ({filled}) = 2 AND ({_OPEN}) = 0")


async def _until(reader: asyncpg.Connection, statement: str, *values: object) -> None:
    """Returns when the statement gives something that is true."""
    async with asyncio.timeout(_PATIENCE_S):
        while not await reader.fetchval(statement, *values):  # noqa: ASYNC110 (others make it true)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def _when_made(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection, as soon as the sync has made its tables."""
    async with connect(database) as reader:
        await _until(reader, "SELECT to_regclass('pinstripe.pending') IS NOT NULL")
        yield reader


@asynccontextmanager
async def _opened(at: Stage, database: str) -> AsyncIterator[tuple[Source, RateLimiter]]:
    """The account and its copy, in this process, at the default of a live account."""
    version = spec().api_version
    budget = RateLimiter(account_rate=50.0, endpoint_rate=12.5)
    chosen = {name: tables()[name] for name in _TABLES}
    async with connect(database) as connection:
        wanted = await effective_tables(connection, "stripe", chosen)
    async with (
        StripeClient(
            ApiKey.parse(at.simulator.key),
            api_version=version,
            budget=budget,
            base_url=at.simulator.url,
        ) as stripe,
        await open_pool(database, min_size=1, max_size=6) as pool,
        open_mirror(database, "stripe", wanted, api_version=version) as mirror,
    ):
        source = Source(stripe, mirror, wanted, pool)
        mirror.conflicts.resolve = partial(resolve, source)
        yield source, budget
