"""Two accounts of one platform whose objects have the same ids: each row is its own account's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import asyncpg
from tests.flows.harness.account import Copy, followed, quiet
from tests.flows.harness.platform import SCHEMA, backfill_of, make_platform, opened
from tests.flows.harness.scripted_stripe import Object, ScriptedStripe, scripted_stripe
from tests.flows.harness.truth import FOLLOWED, born_since, differences

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import Table, tables
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.response import AsOf
from pinstripe.gateway.proxy.mirroring import Way, owe
from pinstripe.gateway.syncs import OpenSync
from pinstripe.platforms.account import open_account
from pinstripe.rows.extract import RowSet
from pinstripe.store.pool import connect
from pinstripe.store.session import scope_of
from pinstripe.sync.upcoming.upcoming import Upcoming
from pinstripe.sync.verify.verify import VerifyOptions, open_verify
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

ONE, TWO = "acct_1", "acct_2"
SMALL = Settings(scale=80, future_fields=False)
NAMES = (
    *(*FOLLOWED, "discount", "event", "invoice_item", "line_item", "plan", "subscription_item"),
    *("promotion_code", "tax_rate", "test_helpers_test_clock"),
    *(name for name in tables() if name.startswith("upcoming_")),
)
CHOSEN: Mapping[str, Table] = {name: tables()[name] for name in NAMES}


async def wrong(url: str, sim: Running, account_id: str) -> dict[str, str]:
    """How the account's rows differ from its own Stripe."""
    return await differences(url, sim, schema=account_id, among=born_since(sim, 0))


async def test_accounts_with_the_same_ids_are_copied_and_followed_apart(database: str) -> None:
    await make_platform(database, ONE, TWO, chosen=CHOSEN, partitions=3)
    async with (
        running(SMALL) as one,
        running(SMALL) as two,
        opened(database, chosen=CHOSEN) as platform,
        platform.account(ONE, one) as first,
        platform.account(TWO, two) as second,
    ):
        await two.control.mutate(40)
        outcomes = await asyncio.gather(
            backfill_of(first, one).run(), backfill_of(second, two).run()
        )
        assert [o.complete for o in outcomes] == [True, True]
        start = time.time()
        await one.control.mutate(40)
        await followed(first, start)
        assert await wrong(database, one, ONE) == {}
        assert await wrong(database, two, TWO) == {}
    async with connect(database) as pg:
        assert await _shared_ids(pg) > 5


async def _shared_ids(pg: asyncpg.Connection) -> int:
    found: int = await pg.fetchval(
        f"SELECT count(*) FROM {SCHEMA}.customer a JOIN {SCHEMA}.customer b USING (id)"
        " WHERE a._account_id = 'acct_1' AND b._account_id = 'acct_2'"
    )
    return found


async def test_previews_and_verifications_see_one_account(database: str) -> None:
    await make_platform(database, ONE, TWO, chosen=CHOSEN)
    async with (
        running(SMALL) as one,
        running(SMALL) as two,
        opened(database, chosen=CHOSEN) as platform,
        platform.account(ONE, one) as first,
        platform.account(TWO, two) as second,
        connect(database) as pg,
    ):
        await two.control.mutate(40)
        await backfill_of(first, one).run()
        await backfill_of(second, two).run()
        await Upcoming(first.source).fill()
        owners = (
            f"SELECT _account_id, count(*) FROM {SCHEMA}.upcoming_subscription_invoice GROUP BY 1"
        )
        ((account_id, count),) = await pg.fetch(owners)
        assert account_id == ONE
        assert count > 0
        await Upcoming(second.source).fill()
        assert {row[0] for row in await pg.fetch(owners)} == {ONE, TWO}
        await pg.execute(
            f"UPDATE {SCHEMA}.customer SET name = 'wrong' WHERE _account_id = '{ONE}' AND id ="
            f" (SELECT min(id) FROM {SCHEMA}.customer WHERE NOT deleted)"
        )
        assert await _differing(first, one) == {"customer": 1}
        assert await _differing(second, two) == {}


async def _differing(copy: Copy, sim: Running) -> dict[str, int]:
    options = VerifyOptions(followed=False, grace_s=0.0)
    birth = sim.account.world.plan.start - 86_400
    async with open_verify(
        copy.url, copy.source, copy.budget, options, account_created=birth
    ) as run:
        report = await run.run()
    found = {name: sum(table.found.values()) for name, table in report.tables.items()}
    return {name: count for name, count in found.items() if count}


def _have_items(stripe: ScriptedStripe, *items: str) -> None:
    data: list[Object] = [
        {"id": i, "object": "subscription_item", "subscription": "sub_1", "metadata": {}}
        for i in items
    ]
    url = "/v1/subscription_items?subscription=sub_1"
    shown = {"object": "list", "data": data, "has_more": False, "url": url}
    stripe.lists["/v1/subscriptions"] = [
        {"id": "sub_1", "object": "subscription", "status": "active", "items": shown, "created": 1}
    ]
    stripe.lists["/v1/subscription_items"] = data


async def test_sets_and_deletions_take_rows_of_one_account_only(database: str) -> None:
    await make_platform(database, ONE, TWO, chosen=CHOSEN)
    customer = {"id": "cus_1", "object": "customer", "name": "x", "created": 1, "metadata": {}}
    async with (
        scripted_stripe() as one,
        scripted_stripe() as two,
        opened(database, chosen=CHOSEN) as platform,
        platform.account(ONE, one) as first,
        platform.account(TWO, two) as second,
        connect(database) as pg,
    ):
        for stripe, copy in ((one, first), (two, second)):
            _have_items(stripe, "si_1", "si_2")
            stripe.lists["/v1/customers"] = [customer]
            await copy.source.fetch("subscription", "sub_1")
            await copy.source.fetch("customer", "cus_1")
        _have_items(one, "si_2")
        one.event("customer.subscription.updated", one.lists["/v1/subscriptions"][0])
        gone = {"id": "cus_1", "object": "customer", "deleted": True}
        one.event("customer.deleted", gone | customer)
        one.lists["/v1/customers"] = [gone]
        live, refetches = first.live(time.time() - 60)
        await live.read_lookback(time.time() - 3600)
        await asyncio.gather(refetches.work_off(), quiet(first, refetches))
        alive = "SELECT _account_id, id FROM {}.{} WHERE deleted IS NOT TRUE ORDER BY 1, 2"
        items = await pg.fetch(alive.format(SCHEMA, "subscription_item"))
        assert [tuple(row) for row in items] == [(ONE, "si_2"), (TWO, "si_1"), (TWO, "si_2")]
        customers = await pg.fetch(alive.format(SCHEMA, "customer"))
        assert [tuple(row) for row in customers] == [(TWO, "cus_1")]
        assert (
            await pg.fetch("SELECT * FROM pinstripe.applied_event WHERE schema <> 'shops@acct_1'")
            == []
        )


async def test_many_accounts_share_a_few_sessions(database: str) -> None:
    accounts = [f"acct_{n:02}" for n in range(40)]
    await make_platform(database, chosen=CHOSEN)
    async with (
        connect(database) as pg,
        opened(database, chosen=CHOSEN, accounts=accounts) as platform,
    ):
        async with scripted_stripe() as stripe:
            stripe.lists["/v1/customers"] = [
                {"id": f"cus_{n}", "object": "customer", "created": 1} for n in range(3)
            ]

            async def work(account_id: str) -> None:
                async with platform.account(account_id, stripe) as copy:
                    for n in range(3):
                        await copy.source.fetch("customer", f"cus_{n}")

            await asyncio.gather(*map(work, accounts))
            sessions = await pg.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        assert sessions <= 10
        counts = await pg.fetch(f"SELECT count(*) FROM {SCHEMA}.customer GROUP BY _account_id")
        assert [row[0] for row in counts] == [3] * len(accounts)


async def test_what_a_gateway_leaves_to_be_fetched_is_a_task_of_its_own(database: str) -> None:
    await make_platform(database, ONE, TWO, chosen=CHOSEN)
    async with (
        running(SMALL) as sim,
        opened(database, chosen=CHOSEN) as platform,
        connect(database) as pg,
    ):
        client = StripeClient(
            ApiKey.parse(sim.key),
            api_version=spec().api_version,
            budget=RateLimiter(account_rate=None, endpoint_rate=None),
            base_url=sim.url,
        )
        for account_id in (ONE, TWO):
            async with (
                client,
                open_account(platform.shared, account_id, client, held=None) as source,
            ):
                if account_id == ONE:
                    sync = OpenSync("shops", source.mirror.schema, ONE, False, source)
                    await owe(sync, [Way("fetch", "customer", "cus_1")])
                    continue
                for name in ("Ada", "Grace"):  # In one second: only Stripe knows which is newer.
                    found = RowSet()
                    made: Object = {"id": "cus_1", "object": "customer", "name": name}
                    source.mirror.extractor.object(made, found)
                    await source.mirror.write([(found, AsOf(1.0, 2.0))])
        tasks = await pg.fetch("SELECT scope, task FROM pinstripe.platform_task ORDER BY 1")
        assert [tuple(row) for row in tasks] == [
            (scope_of(SCHEMA, account_id), "refetch") for account_id in (ONE, TWO)
        ]
