"""The only wiring: settings become a client, a database and a mirror, and run until told to stop.

    async with open_service(config, tell=print) as service:
        outcome = await service.backfill.run()
        await service.follow()

Nothing is written before Stripe has let the key in and Postgres has shown that it can be written to.
What runs beside the block (the watch over our own Postgres, the mirror's writers) takes the block
down if it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import Table, tables
from pinstripe.client.account import Account, meet
from pinstripe.client.api_key import ApiKey, proxy_for
from pinstripe.client.client import StripeClient
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.config.config import ACCOUNT_CEILING, ENDPOINT_CEILING, Config
from pinstripe.errors import Misconfigured, Unwritable
from pinstripe.mirror import Mirror, open_mirror
from pinstripe.source.refusals import remember_refusals
from pinstripe.source.resolve import resolve
from pinstripe.source.source import Source
from pinstripe.store.cursors import load_loaded, mark_loaded
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.leases import Held, Lease, leading
from pinstripe.store.lost_tables import forget_emptied, note_filled
from pinstripe.store.migrate import (
    check_tables,
    create_indexes_beside,
    effective_tables,
    migrate,
    reserve,
)
from pinstripe.store.pool import Pool, check_server, check_sessions, connect, open_pool
from pinstripe.store.syncs import check_owner, claim
from pinstripe.sync.backfill.backfill import Backfill, BackfillResult
from pinstripe.sync.events.poller import PollIntervals
from pinstripe.sync.follower import Follower
from pinstripe.sync.heartbeat import HeartbeatWriter
from pinstripe.sync.read_quota import ReadQuota

_BURST_S = 0.25
"""How long a stall of the process (a large batch, a busy machine) costs no request."""
_FILES_CEILING = 20.0
"""Requests a second to Files, which Stripe allows less (https://docs.stripe.com/rate-limits)."""


@dataclass(frozen=True, slots=True)
class Database:
    """Where the rows go. `server` is ours, if there is no database URL."""

    url: str
    server: EmbeddedPostgres | None
    version: str


@dataclass(frozen=True, slots=True)
class Service:
    """What runs."""

    config: Config
    account: Account
    database: Database
    stripe: StripeClient
    budget: RateLimiter
    pool: Pool
    source: Source
    backfill: Backfill

    async def backfilled(self, *, followed: bool) -> BackfillResult:
        """Runs the backfill to its end; what is copied whole then is written down as copied."""
        outcome = await self.backfill.run(followed=followed)
        mirror = self.source.mirror
        async with self.source.transaction() as connection:
            await note_filled(connection, mirror.schema, mirror.tables)
        if outcome.complete:
            async with self.source.transaction() as connection:
                await mark_loaded(connection, mirror.schema, sorted(mirror.loading))
        mirror.loading &= outcome.unfinished
        return outcome

    async def follow(self) -> Follower:
        """The live side, not running yet; its events begin before the first list is read."""
        since = await self.backfill.prepare()
        return Follower(
            self.source,
            self.budget,
            since=float(since),
            pace=PollIntervals(
                poll_s=self.config.poll_interval,
                window_s=self.config.event_window,
                near_window_s=min(60.0, self.config.event_window),
            ),
            read_quota=ReadQuota(
                self.pool,
                self.config.schema,
                self.stripe.requests,
                livemode=self.account.livemode,
                poll_s=self.config.poll_interval,
                hold=self.config.hold_poll_rate,
            ),
            keep_changes=timedelta(days=self.config.change_days) if self.config.changes else None,
        )

    def telling(self, follower: Follower) -> HeartbeatWriter:
        """What tells the database how this process stands; run it beside the follower."""
        return HeartbeatWriter(self.source, self.budget, self.backfill, follower)


@asynccontextmanager
async def open_service(
    config: Config, *, tell: Callable[[str], None] = lambda _: None, leads: bool = True
) -> AsyncIterator[Service]:
    """All parts, checked and ready to run. `tell` gets one line for each step that may take long.

    `leads`: as the one process that syncs the schema, which may mean to wait for another to end.
    Without it, beside whoever does.
    """
    key = api_key(config)
    known = tables()
    wanted = {name: known[name] for name in config.choose_tables(known)}
    budget = budget_for(config, key)
    async with contextlib.AsyncExitStack() as stack:
        stripe = await stack.enter_async_context(stripe_for(config, key, budget))
        tell(f"Asking {config.stripe_url} for the account of {key}")
        account = await meet(stripe, key)
        met_at = time.monotonic()
        database = await stack.enter_async_context(open_database(config, tell=tell))
        await _check(database.url, config, account)
        lease = Lease(database.url, config.schema)
        held = await stack.enter_async_context(leading(lease, tell)) if leads else None
        effective = await _tables(database.url, config, account, wanted, leads=leads)
        if leads:
            await _read_emptied(database.url, config.schema, effective, tell)
        pool, bulk = await stack.enter_async_context(_pools(database.url, lease.session_name))
        mirror = await stack.enter_async_context(
            open_mirror(
                database.url,
                config.schema,
                effective,
                api_version=spec().api_version,
                changes=config.changes,
                session_name=lease.session_name,
            )
        )
        source = await _joined(stripe, mirror, pool, held)
        # Whoever stood by for days begins now, and not when it met the account.
        now = account.now + time.monotonic() - met_at
        backfill = Backfill(source, bulk, budget, now=now, account_created=account.birth)
        yield Service(config, account, database, stripe, budget, pool, source, backfill)


def api_key(config: Config) -> ApiKey:
    """The key of the settings. Raises Misconfigured where there is none, or none of Stripe's."""
    if config.api_key is None:
        raise Misconfigured(
            "There is no Stripe API key.",
            hint="Set STRIPE_API_KEY to a secret or restricted key from "
            "https://dashboard.stripe.com/apikeys, or try the demo: pinstripe run.",
        )
    return ApiKey.parse(config.api_key)


async def _joined(stripe: StripeClient, mirror: Mirror, pool: Pool, held: Held | None) -> Source:
    """Stripe and the mirror, each knowing of the other; fenced, if this process leads."""
    source = Source(stripe, mirror, mirror.tables, pool)
    await remember_refusals(source, leads=held is not None)
    if held is not None:
        mirror.always.append(held.check)
        source.fence = held.check
        # The first copy of a table is no change; what events do to it meanwhile is.
        async with pool.acquire() as connection:
            mirror.loading |= set(mirror.tables) - await load_loaded(connection, mirror.schema)
    mirror.resolve = partial(resolve, source)
    if held is not None:
        mirror.mend = partial(_mend, source)
    return source


async def _mend(source: Source, table: str) -> None:
    """Makes a table of ours, or a column of it, that somebody has dropped."""
    schema, wanted = source.mirror.schema, {table: source.wanted[table]}
    async with source.pool.acquire() as connection:
        await migrate(
            connection,
            schema,
            wanted,
            sdk_version=spec().sdk_version,
            api_version=spec().api_version,
        )
        await create_indexes_beside(connection, schema, wanted[table])


@asynccontextmanager
async def _pools(url: str, name: str) -> AsyncIterator[tuple[Pool, Pool]]:
    """One for what is live, which must not wait for connections that long queries hold; and theirs."""
    async with (
        await open_pool(url, min_size=1, max_size=8, application_name=name) as live,
        await open_pool(url, min_size=1, max_size=6, application_name=name) as bulk,
    ):
        yield live, bulk


def stripe_for(config: Config, key: ApiKey, budget: RateLimiter) -> StripeClient:
    """The account at Stripe that the settings name, asked in our own API version. Not open yet."""
    return StripeClient(
        key,
        api_version=spec().api_version,
        budget=budget,
        base_url=config.stripe_url,
        account=config.stripe_account,
        proxy=proxy_for(config.stripe_url),
    )


def budget_for(config: Config, key: ApiKey) -> RateLimiter:
    """The one budget of the account.

    What the user sets up to Stripe's own limit must not pass it in any second, timers being late
    and the burst counted: so near the ceiling it is a little less.
    """
    account, endpoint = config.rates(key.mode)
    files = None if endpoint is None else min(endpoint, _below(_FILES_CEILING))
    return RateLimiter(
        account_rate=None if account is None else min(account, _below(ACCOUNT_CEILING)),
        endpoint_rate=None if endpoint is None else min(endpoint, _below(ENDPOINT_CEILING)),
        own_rates={} if files is None else {"GET /v1/files": files},
        burst_s=_BURST_S,
    )


def _below(ceiling: float) -> float:
    """A little less: answers and requests do not travel evenly, so a second here is not one there."""
    return ceiling - 1


@asynccontextmanager
async def open_database(
    config: Config, *, tell: Callable[[str], None] = lambda _: None
) -> AsyncIterator[Database]:
    """The user's Postgres, or our own for as long as the block lasts."""
    if config.database_url is not None:
        await check_sessions(config.database_url)
        async with connect(config.database_url) as connection:
            facts = await check_server(connection)
        yield Database(config.database_url, None, facts.version)
        return
    tell(f"Starting Postgres in {postgres_dir(config)}")
    async with EmbeddedPostgres(postgres_dir(config)) as server, asyncio.TaskGroup() as group:
        watch = group.create_task(server.watch())
        try:
            yield Database(server.url, server, server.version)
        finally:
            watch.cancel()


def postgres_dir(config: Config) -> Path:
    """Where our own Postgres keeps its data."""
    return config.data_dir / "postgres"


async def _check(url: str, config: Config, account: Account) -> None:
    """Raises where we may not write to the schema. Makes nothing but the place for the first lease."""
    async with connect(url) as connection:
        facts = await check_server(connection)
        if not facts.writable:
            raise Unwritable(
                f'The database "{facts.database}" is read-only for us.',
                hint="Connect to the primary, and see default_transaction_read_only of the server, "
                "the database and the user.",
            )
        await check_owner(
            connection, config.schema, account_id=account.id, livemode=account.livemode
        )
        await reserve(
            connection,
            config.schema,
            sdk_version=spec().sdk_version,
            api_version=spec().api_version,
        )


async def _read_emptied(
    url: str, schema: str, tables: Mapping[str, Table], tell: Callable[[str], None]
) -> None:
    """Has tables read again that were emptied or dropped since the last run."""
    async with connect(url) as connection:
        emptied = await forget_emptied(connection, schema, tables)
    if emptied:
        names = ", ".join(emptied)
        tell(f"Emptied or dropped since the last run, and so read again: {names}")


async def _tables(
    url: str, config: Config, account: Account, wanted: Mapping[str, Table], *, leads: bool
) -> dict[str, Table]:
    """The tables as they stand there. Only the one who leads brings them up to date."""
    async with connect(url) as connection:
        if not leads:
            await check_tables(connection, config.schema, wanted)
            return await effective_tables(connection, config.schema, wanted)
        await migrate(
            connection,
            config.schema,
            wanted,
            sdk_version=spec().sdk_version,
            api_version=spec().api_version,
        )
        await claim(connection, config.schema, account_id=account.id, livemode=account.livemode)
        return await effective_tables(connection, config.schema, wanted)
