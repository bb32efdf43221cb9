"""A platform whose accounts are simulators of their own: those of one seed have objects of the same ids."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.flows.harness.account import SMALL, Copy
from tests.flows.harness.scripted_stripe import ScriptedStripe

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import Table, tables
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.response import Margins
from pinstripe.platforms.account import OpenPlatform, open_account, open_platform
from pinstripe.store.leases import Held, take_lease
from pinstripe.store.migrate import make_tenant_views, migrate_platform
from pinstripe.store.platforms.stored import SealedPlatform, add_accounts, insert_platform
from pinstripe.store.pool import connect
from pinstripe.store.session import scope_of
from pinstripe.sync.backfill.backfill import Backfill
from pinstripe_simulator.server import Running

SCHEMA = "shops"
HOLDER = "tester"


async def make_platform(
    url: str,
    *account_ids: str,
    chosen: Mapping[str, Table] | None = None,
    partitions: int = 0,
) -> None:
    """Make the schema and the platform; the rows of `acct_1` are in a schema `acct_1` of views too."""
    chosen = chosen or tables()
    async with connect(url) as connection:
        await migrate_platform(
            connection,
            SCHEMA,
            chosen,
            sdk_version=spec().sdk_version,
            api_version=spec().api_version,
            partitions=partitions,
        )
        await insert_platform(
            connection,
            SealedPlatform(
                id="shops",
                schema=SCHEMA,
                api_key=b"sealed",
                key_hint="sk_test_...",
                stripe_url="https://api.stripe.com",
                account_id="acct_platform",
                livemode=False,
                partitions=partitions,
            ),
        )
        await add_accounts(connection, "shops", account_ids)
        for account_id in account_ids:
            await make_tenant_views(connection, SCHEMA, account_id, account_id)


@dataclass
class Platform:
    """A worker's platform, and its accounts as tests of one account have them."""

    url: str
    shared: OpenPlatform

    @asynccontextmanager
    async def account(
        self,
        account_id: str,
        sim: Running | ScriptedStripe,
        *,
        margins: Margins = SMALL,
        held: Held | None = None,
    ) -> AsyncIterator[Copy]:
        """One account, whose Stripe is `sim`; the lease is taken unless it is given."""
        budget = RateLimiter(account_rate=None, endpoint_rate=None)
        async with StripeClient(
            ApiKey.parse(sim.key),
            api_version=spec().api_version,
            budget=budget,
            base_url=sim.url,
            margins=margins,
        ) as stripe:
            if held is None:
                async with self.shared.pool.acquire() as connection:
                    held = await take_lease(
                        connection, scope_of(SCHEMA, account_id), HOLDER, ttl_s=600
                    )
                    assert held is not None
            async with open_account(self.shared, account_id, stripe, held=held) as source:
                yield Copy(self.url, source.mirror, source, budget, source.pool)
            async with self.shared.pool.acquire() as connection:
                await held.let_go(connection)


@asynccontextmanager
async def opened(
    url: str,
    *,
    chosen: Mapping[str, Table] | None = None,
    changes: bool = False,
    accounts: Sequence[str] = (),
) -> AsyncIterator[Platform]:
    """A platform that exists; `accounts` are added to it."""
    async with connect(url) as connection:
        await add_accounts(connection, "shops", accounts)
    async with open_platform(url, SCHEMA, chosen or tables(), changes=changes) as shared:
        yield Platform(url, shared)


def backfill_of(copy: Copy, sim: Running) -> Backfill:
    """The first copy of an account, ready to run."""
    return Backfill(
        copy.source,
        copy.pool,
        copy.budget,
        now=sim.account.clock.now(),
        account_created=sim.account.world.plan.start - 86_400,
        deep=True,
    )
