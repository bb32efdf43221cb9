"""The only wiring: from settings to a client, a database, a mirror and what runs on them.

    async with open_service(config, tell=print) as service:
        outcome = await service.backfill.run()
        await service.follow()

Nothing is written before Stripe has accepted the key and Postgres has proved writable. What runs beside the
block (the supervisor of our own Postgres, the mirror's writers) ends the block if it fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from pinstripe.catalog.model import spec
from pinstripe.catalog.personal import Policy
from pinstripe.catalog.tables import Table, tables
from pinstripe.client.api_key import ApiKey, proxy_for
from pinstripe.client.client import Account, StripeClient, meet
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.response import Margins
from pinstripe.client.retry import Patience
from pinstripe.config.config import ACCOUNT_CEILING, ENDPOINT_CEILING, Config, Rate
from pinstripe.encryption import hash_key
from pinstripe.errors import Misconfigured, Unwritable
from pinstripe.mirror import Mirror, open_mirror
from pinstripe.rows.personal import Personal
from pinstripe.source.refusals import remember_refusals
from pinstripe.source.resolve import resolve
from pinstripe.source.source import Source
from pinstripe.store.compat import grant, set_compat
from pinstripe.store.cursors import ALL_LOADED, load_loaded
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.erasures import load_erased
from pinstripe.store.leases import Held, Lease, leading
from pinstripe.store.migrate import (
    check_tables,
    create_indexes,
    create_indexes_beside,
    effective_tables,
    migrate,
    reserve,
    set_foreign_keys,
)
from pinstripe.store.pool import Pool, check_server, check_sessions, connect, open_pool
from pinstripe.store.quarantine import forget_emptied, note_filled
from pinstripe.store.retention import Retention
from pinstripe.store.rewrite import apply_policy, stored_policy, with_key
from pinstripe.store.roles import PURPOSES, find_reader
from pinstripe.store.session import account_of
from pinstripe.store.syncs import check_owner, claim
from pinstripe.sync.backfill.backfill import Backfill, BackfillResult
from pinstripe.sync.events.poller import PollIntervals
from pinstripe.sync.follower import Follower, erase_deleted, trim_once, verify_on_schedule
from pinstripe.sync.heartbeat import HeartbeatWriter
from pinstripe.sync.read_quota import ReadQuota

_BURST_S = 0.25
"""A stall of the process up to this long (a large batch, a busy machine) costs no request."""
_FILES_CEILING = 20.0
"""Requests a second to Files, which Stripe allows less (https://docs.stripe.com/rate-limits)."""


@dataclass(frozen=True, slots=True)
class Database:
    """The target database. `server` is our own Postgres, if the user gave no database URL."""

    url: str
    server: EmbeddedPostgres | None
    version: str


@dataclass(frozen=True, slots=True)
class Service:
    """All parts of one sync, open and checked."""

    config: Config
    account: Account
    database: Database
    stripe: StripeClient
    budget: RateLimiter
    pool: Pool
    source: Source
    backfill: Backfill

    async def backfilled(
        self, *, followed: bool, on_ready: Callable[[], None] = lambda: None
    ) -> BackfillResult:
        """Runs the backfill to its end, and marks the tables that it completed as loaded.

        `on_ready` is called as soon as only the events decide whether the copy is current.
        """
        outcome = await self.backfill.run(followed=followed, on_ready=on_ready)
        await note_backfilled(self.source, outcome)
        if not followed:
            await trim_once(self.source, self._retention, window_s=self.config.event_window)
        return outcome

    @property
    def _retention(self) -> Retention:
        events = timedelta(days=self.config.event_days) if self.config.event_days else None
        return Retention(timedelta(days=self.config.change_days), events)

    async def follow(self) -> Follower:
        """Returns the follower, not running yet. Its events begin before the first list is read."""
        since = await self.backfill.prepare(followed=True)
        follower = Follower(
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
            retention=self._retention,
        )
        follower.besides.append(
            partial(
                verify_on_schedule,
                self.source,
                self.budget,
                self.database.url,
                every=self.config.verify_every,
                livemode=self.account.livemode,
                account_created=self.account.birth,
            )
        )
        after_days = self.config.erase_deleted_after
        if after_days is not None:
            follower.besides.append(partial(erase_deleted, self.source, after_days=after_days))
        return follower

    def telling(self, follower: Follower) -> HeartbeatWriter:
        """Returns the writer of this worker's heartbeat; run it beside the follower."""
        return HeartbeatWriter(self.source, self.budget, self.backfill, follower)


async def note_backfilled(source: Source, outcome: BackfillResult) -> None:
    """Mark the tables that a backfill completed as loaded."""
    mirror = source.mirror
    if not account_of(mirror.schema):  # A platform is not opened for one sync, which would read it.
        async with source.transaction() as connection:
            await note_filled(connection, mirror.schema, mirror.tables)
    if mirror.loading:
        async with source.transaction() as connection:
            await mirror.end_loading(connection, outcome.unfinished)
    # From now on others write too.
    mirror.began_empty, mirror.on_rows = False, lambda _: None


@asynccontextmanager
async def open_service(
    config: Config, *, tell: Callable[[str], None] = lambda _: None, leads: bool = True
) -> AsyncIterator[Service]:
    """Opens and checks all parts. `tell` gets one line for each step that may take long.

    `leads`: takes the lease of the schema, and waits for it if another process holds it. Otherwise this
    process runs beside the one that syncs.
    """
    key = api_key(config)
    wanted = chosen_tables(config)
    personal = personal_of(config)
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
            async with connect(database.url) as connection:
                await apply_policy(connection, config.schema, effective, personal)
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
                personal=personal if leads else await _stored(database.url, config),
            )
        )
        source = await join_source(stripe, mirror, pool, held, mend=_mend)
        source.since = config.since_by_table(tables())
        # After days on standby the sync begins now, and not when the account was first read.
        now = account.now + time.monotonic() - met_at
        backfill = Backfill(
            source, bulk, budget, now=now, account_created=account.birth, deep=config.deep
        )
        yield Service(config, account, database, stripe, budget, pool, source, backfill)


def chosen_tables(config: Config) -> dict[str, Table]:
    """The tables of the catalog that the settings choose."""
    return {name: tables()[name] for name in config.choose_tables(tables())}


def api_key(config: Config) -> ApiKey:
    """The key in the settings. Raises Misconfigured if there is none, or it is no Stripe key."""
    if config.api_key is None:
        raise Misconfigured(
            "There is no Stripe API key.",
            hint="Set STRIPE_API_KEY to a secret or restricted key from "
            "https://dashboard.stripe.com/apikeys, or try the demo: pinstripe demo.",
        )
    return ApiKey.parse(config.api_key)


def personal_of(config: Config) -> Personal | None:
    """What the settings make of personal data; None where all is kept."""
    policy = Policy.parse(personal_data=config.personal_data, columns=config.columns)
    if policy.keeps_all:
        return None
    key = hash_key(config.hash_key, config.data_dir) if policy.hashes else b""
    return Personal(policy, key)


async def _stored(url: str, config: Config) -> Personal | None:
    """What was made of personal data in the rows that are there, whatever the settings of this process."""
    async with connect(url) as connection:
        policy = await stored_policy(connection, config.schema)
    if policy.policy().keeps_all:
        return None
    key = hash_key(config.hash_key, config.data_dir) if policy.key else b""
    return with_key(policy, config.schema, key)


async def join_source(
    stripe: StripeClient,
    mirror: Mirror,
    pool: Pool,
    held: Held | None,
    *,
    mend: Callable[[Source, str], Awaitable[None]],
) -> Source:
    """Connects client and mirror. If this process leads, writes are fenced and `mend` makes lost tables."""
    source = Source(stripe, mirror, mirror.tables, pool)
    await remember_refusals(source, leads=held is not None)
    async with pool.acquire() as connection:
        await load_erased(connection, mirror.schema, mirror.extractor.erased)
    if held is not None:
        mirror.always.append(held.check)
        source.fence = held.check
        # The initial load of a table is no change; events during it are.
        async with pool.acquire() as connection:
            loaded = await load_loaded(connection, mirror.schema)
        if ALL_LOADED not in loaded:
            mirror.loading |= set(mirror.tables) - loaded
    mirror.conflicts.resolve = partial(resolve, source)
    if held is not None:
        mirror.mend = partial(mend, source)
    return source


async def _mend(source: Source, table: str) -> None:
    """Creates tables and columns of ours that were dropped."""
    schema, wanted = source.mirror.schema, {table: source.wanted[table]}
    async with source.pool.acquire() as connection:
        done = await migrate(
            connection,
            schema,
            wanted,
            sdk_version=spec().sdk_version,
            api_version=spec().api_version,
            metrics=False,
        )
        # Beside writers each index waits for every older transaction; a table that is new has none.
        make = create_indexes if table in done.created else create_indexes_beside
        await make(connection, schema, wanted[table])


@asynccontextmanager
async def _pools(url: str, name: str) -> AsyncIterator[tuple[Pool, Pool]]:
    """Two pools: live work must not wait for connections that long queries hold."""
    async with (
        await open_pool(url, min_size=1, max_size=8, application_name=name) as live,
        await open_pool(url, min_size=1, max_size=6, application_name=name) as bulk,
    ):
        yield live, bulk


def stripe_for(
    config: Config, key: ApiKey, budget: RateLimiter, *, patience: Patience | None = None
) -> StripeClient:
    """A client for the account that the settings name, in our API version. Not open yet."""
    return StripeClient(
        key,
        api_version=spec().api_version,
        budget=budget,
        base_url=config.stripe_url,
        account=config.stripe_account,
        proxy=proxy_for(config.stripe_url),
        patience=patience,
        margins=Margins(config.clock_margin, config.replica_lag),
    )


async def meet_account(config: Config, key: ApiKey) -> Account:
    """Ask Stripe whose key this is, as the settings say."""
    async with stripe_for(config, key, budget_for(config, key)) as stripe:
        return await meet(stripe, key)


def budget_for(config: Config, key: ApiKey) -> RateLimiter:
    """The one rate limiter of the account.

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
    """A little less: requests arrive unevenly, so one second here is not one second at Stripe."""
    return ceiling - 1


_ON_TOP = 0.5
_AT_LEAST = 0.2


@dataclass(frozen=True, slots=True)
class RateShares:
    """The settings of each side; they differ in their rates only."""

    worker: Config
    gateway: Config


def rate_shares(config: Config, key: ApiKey) -> RateShares:
    """`config`, for worker and gateway, which use the same key and do not see each other's requests.

    The gateway gets half of the configured rate on top of it if that stays within Stripe's limit, else a
    fifth of it, taken from the worker.
    """
    account, endpoint = config.rates(key.mode)
    # Half of what Stripe allows is the default: so this is what it allows in this mode.
    of_mode, _ = replace(config, rate_limit="default").rates(key.mode)
    ceiling = min(2 * (of_mode or ACCOUNT_CEILING), ACCOUNT_CEILING)
    worker_account, gateway_account = _split(account, ceiling)
    worker_endpoint, gateway_endpoint = _split(endpoint, ENDPOINT_CEILING)
    return RateShares(
        replace(config, rate_limit=worker_account, endpoint_rate_limit=worker_endpoint),
        replace(config, rate_limit=gateway_account, endpoint_rate_limit=gateway_endpoint),
    )


def _split(rate: float | None, ceiling: float) -> tuple[Rate, Rate]:
    """(worker, gateway).

    >>> _split(12.5, 25.0), _split(25.0, 25.0), _split(None, 25.0)
    ((12.5, 6.25), (20.0, 5.0), ('none', 'none'))
    """
    if rate is None:
        return "none", "none"
    ceiling = max(ceiling, rate)
    gateway = max(_AT_LEAST * rate, min(_ON_TOP * rate, ceiling - rate))
    return min(rate, ceiling - gateway), gateway


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
    tell(f"Using Pinstripe's own Postgres in {postgres_dir(config)}")
    async with EmbeddedPostgres(postgres_dir(config)) as server, asyncio.TaskGroup() as group:
        watch = group.create_task(server.watch())
        try:
            yield Database(server.url, server, server.version)
        finally:
            watch.cancel()


def postgres_dir(config: Config) -> Path:
    """The data directory of our own Postgres."""
    return config.data_dir / "postgres"


async def _check(url: str, config: Config, account: Account) -> None:
    """Raises if the schema is not writable. Creates only the place for the first lease."""
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
    """Schedules tables for a new backfill that were emptied or dropped since the last run."""
    async with connect(url) as connection:
        emptied = await forget_emptied(connection, schema, tables)
    if emptied:
        names = ", ".join(emptied)
        tell(f"Emptied or dropped since the last run, and so read again: {names}")


async def _tables(
    url: str, config: Config, account: Account, wanted: Mapping[str, Table], *, leads: bool
) -> dict[str, Table]:
    """The tables as the database has them. Only the process with the lease migrates them."""
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
            metrics=not config.no_metrics,
        )
        await claim(connection, config.schema, account_id=account.id, livemode=account.livemode)
        await set_foreign_keys(connection, config.schema, wanted, wanted=config.foreign_keys)
        effective = await effective_tables(connection, config.schema, wanted)
        await set_compat(connection, config.schema, effective, config.compat)
        if config.compat:
            for purpose in PURPOSES:
                role = await find_reader(connection, config.schema, purpose)
                if role is not None:
                    await grant(connection, config.schema, role)
        return effective
