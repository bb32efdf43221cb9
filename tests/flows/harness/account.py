"""An account at Stripe and its copy, put together once for all tests: schema, client, pool, mirror, source.

    make_schema(url)          the tables
    open_account(...)         client, pool, mirror and source, into tables that exist
    open_copy(sim, url)       both; `copy.live(since)` follows its events
    copying(url, sim)         a backfill of it, ready to run; `copy(url, sim)` runs it

Nothing here has limits of rate. `gateway_account` is the same of a gateway, and `waiting` joins the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from tests.flows.harness.scripted_stripe import ScriptedStripe

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import Table, tables
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.response import Margins
from pinstripe.client.retry import Patience
from pinstripe.mirror import Mirror, open_mirror
from pinstripe.source.resolve import resolve
from pinstripe.source.source import Source
from pinstripe.store.migrate import effective_tables, migrate
from pinstripe.store.pool import Pool, connect, open_pool
from pinstripe.sync.backfill.backfill import Backfill, BackfillResult
from pinstripe.sync.events.poller import EventPoller, PollIntervals
from pinstripe.sync.refetch.worker import RefetchWorker
from pinstripe_simulator.server import Running

SMALL = Margins(clock_s=0.0, replica_lag_s=0.2)
"""For a simulator whose clocks agree: what is in doubt is settled in a moment."""
_SHORT = Patience(attempts=12, base_s=0.005, cap_s=0.02, limited_cap_s=0.02)


@dataclass(slots=True, repr=False)  # A loop that ends prints what a fixture's task has returned.
class Copy:
    """A copy under way. `url` is the database's."""

    url: str
    mirror: Mirror
    source: Source
    budget: RateLimiter
    pool: Pool

    def live(
        self, since: float, *, pace: PollIntervals | None = None
    ) -> tuple[EventPoller, RefetchWorker]:
        refetches = RefetchWorker(self.source)
        return EventPoller(
            self.source, refetches, since=since, pace=pace or PollIntervals(poll_s=0.05)
        ), refetches


async def make_schema(
    url: str, schema: str = "stripe", chosen: Mapping[str, Table] | None = None
) -> None:
    async with connect(url) as connection:
        await migrate(
            connection,
            schema,
            chosen or tables(),
            sdk_version=spec().sdk_version,
            api_version=spec().api_version,
        )


@asynccontextmanager
async def open_account(
    stripe_url: str,
    key: str,
    url: str,
    *,
    schema: str = "stripe",
    chosen: Mapping[str, Table] | None = None,
    api_version: str = "",
    budget: RateLimiter | None = None,
    patience: Patience | None = None,
    margins: Margins = SMALL,
) -> AsyncIterator[Copy]:
    """What a sync has of an account, into a schema that exists; nothing is copied yet."""
    budget = budget or RateLimiter(account_rate=None, endpoint_rate=None)
    version = api_version or spec().api_version
    async with connect(url) as connection:
        effective = await effective_tables(connection, schema, chosen or tables())
    async with (
        StripeClient(
            ApiKey.parse(key),
            api_version=version,
            budget=budget,
            base_url=stripe_url,
            patience=patience,
            margins=margins,
        ) as stripe,
        await open_pool(url, min_size=1, max_size=6) as pool,
        open_mirror(url, schema, effective, api_version=version) as mirror,
    ):
        source = Source(stripe, mirror, effective, pool)
        mirror.conflicts.resolve = partial(resolve, source)
        yield Copy(url, mirror, source, budget, pool)


@asynccontextmanager
async def open_copy(
    sim: Running | ScriptedStripe,
    url: str,
    *,
    patience: Patience | None = None,
    margins: Margins = SMALL,
) -> AsyncIterator[Copy]:
    """A copy of `sim` into tables made here."""
    await make_schema(url)
    async with open_account(sim.url, sim.key, url, patience=patience, margins=margins) as copy:
        yield copy


@asynccontextmanager
async def copying(
    url: str,
    sim: Running,
    *,
    schema: str = "stripe",
    key: str = "",
    chosen: Mapping[str, Table] | None = None,
    budget: RateLimiter | None = None,
    deep: bool = True,
) -> AsyncIterator[Backfill]:
    """A backfill, ready to run, into a schema that exists. Waits for retries are short.

    `deep`: it reads lists by parent under all parents, as the scan would in its time.
    """
    async with open_account(
        sim.url, key or sim.key, url, schema=schema, chosen=chosen, budget=budget, patience=_SHORT
    ) as copy:
        birth = sim.account.world.plan.start - 86_400
        now = sim.account.clock.now()
        yield Backfill(
            copy.source, copy.pool, copy.budget, now=now, account_created=birth, deep=deep
        )


async def copy(url: str, sim: Running, *, schema: str = "stripe", key: str = "") -> BackfillResult:
    """Runs a backfill to its end."""
    async with copying(url, sim, schema=schema, key=key) as backfill:
        return await backfill.run()


async def quiet(copy: Copy, refetches: RefetchWorker) -> None:
    """Returns when nothing that was requested is open."""
    for _ in range(3):
        await refetches.idle()
        await copy.mirror.conflicts.wait_resolved()


async def followed(copy: Copy, start: float) -> None:
    """Applies the events since then, and works off what they ask for."""
    live, refetches = copy.live(int(start))
    await live.read_lookback(start)
    await asyncio.gather(refetches.work_off(), quiet(copy, refetches))


async def until(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    """Waits for `condition()` to be true; it is tried every 20 ms."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what it reads has no event)
            await asyncio.sleep(0.02)
