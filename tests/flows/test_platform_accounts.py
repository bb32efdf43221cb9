"""Two accounts of one platform whose objects have the same ids: each row is its own account's."""

from __future__ import annotations

import asyncio
import time

from tests.flows.harness.account import followed
from tests.flows.harness.platform import SCHEMA, backfill_of, make_platform, opened
from tests.flows.harness.truth import born_since, differences

from pinstripe.store.pool import connect
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import running

SMALL = Settings(scale=60, future_fields=False)


async def test_accounts_with_the_same_ids_are_copied_and_followed_apart(database: str) -> None:
    await make_platform(database, "acct_1", "acct_2")
    start = time.time()
    async with (
        running(SMALL) as one,
        running(SMALL) as two,
        opened(database) as platform,
        platform.account("acct_1", one) as first,
        platform.account("acct_2", two) as second,
    ):
        await two.control.mutate(40)
        outcomes = await asyncio.gather(
            backfill_of(first, one).run(), backfill_of(second, two).run()
        )
        assert [o.complete for o in outcomes] == [True, True]
        assert await differences(database, one, schema="acct_1") == {}
        assert await differences(database, two, schema="acct_2") == {}
        await one.control.mutate(60)
        await followed(first, start)
        changed = born_since(one, int(start))
        assert await differences(database, one, schema="acct_1", among=changed) == {}
        assert await differences(database, two, schema="acct_2") == {}
        assert platform.shared.pool.size <= 5
    async with connect(database) as pg:
        both = await pg.fetchval(
            f"SELECT count(*) FROM {SCHEMA}.customer a JOIN {SCHEMA}.customer b USING (id)"
            " WHERE a._account_id = 'acct_1' AND b._account_id = 'acct_2'"
        )
        assert both > 0
