"""A backfill of a simulated account into a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import Table, tables
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.retry import Patience
from pinstripe.mirror import open_mirror
from pinstripe.source.resolve import resolve
from pinstripe.source.source import Source
from pinstripe.store.migrate import effective_tables, migrate
from pinstripe.store.pool import connect, open_pool
from pinstripe.sync.backfill.backfill import Backfill, BackfillResult
from pinstripe_simulator.server import Running


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
async def copying(
    url: str,
    sim: Running,
    *,
    schema: str = "stripe",
    key: str = "",
    now: float | None = None,
    chosen: Mapping[str, Table] | None = None,
    budget: RateLimiter | None = None,
) -> AsyncIterator[Backfill]:
    """A backfill, ready to run, into a schema that exists. Waits for retries are short."""
    budget = budget or RateLimiter(account_rate=None, endpoint_rate=None)
    patience = Patience(attempts=12, base_s=0.005, cap_s=0.02, limited_cap_s=0.02)
    async with connect(url) as connection:
        effective = await effective_tables(connection, schema, chosen or tables())
    version = spec().api_version
    async with (
        StripeClient(
            ApiKey.parse(key or sim.key),
            api_version=version,
            budget=budget,
            base_url=sim.url,
            patience=patience,
        ) as stripe,
        await open_pool(url, min_size=1, max_size=6) as pool,
        open_mirror(url, schema, effective, api_version=version) as mirror,
    ):
        source = Source(stripe, mirror, effective, pool)
        mirror.resolve = partial(resolve, source)
        moment = sim.account.clock.now() if now is None else now
        birth = sim.account.world.plan.start - 86_400
        yield Backfill(source, pool, budget, now=moment, account_created=birth)


async def copy(url: str, sim: Running, *, schema: str = "stripe", key: str = "") -> BackfillResult:
    """Runs a backfill to its end."""
    async with copying(url, sim, schema=schema, key=key) as backfill:
        return await backfill.run()
