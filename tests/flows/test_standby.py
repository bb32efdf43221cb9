"""Who stands by, or looks on, leaves the schema as it is: only the one who leads migrates."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import asyncpg
import pytest

from pinstripe.config.config import Config
from pinstripe.errors import Misconfigured
from pinstripe.service import open_service
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running


def config_of(sim: Running, database: str, *tables: str) -> Config:
    return Config(
        api_key=sim.key,
        stripe_url=sim.url,
        database_url=database,
        tables=tables,
        rate_limit="none",
        endpoint_rate_limit="none",
    )


async def columns(pg: asyncpg.Connection) -> set[tuple[str, str]]:
    rows = await pg.fetch(
        "SELECT table_schema || '.' || table_name, column_name FROM information_schema.columns"
        " WHERE table_schema IN ('stripe', 'pinstripe')"
    )
    return {(row[0], row[1]) for row in rows}


async def test_who_stands_by_does_not_touch_the_schema_until_it_leads(
    database: str, pg: asyncpg.Connection
) -> None:
    async with running(Settings(scale=100)) as sim:
        older = config_of(sim, database, "customer", "event")
        newer = config_of(sim, database, "customer", "charge", "event")
        stands_by, leads, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        def hear(text: str) -> None:
            if "stands by" in text:
                stands_by.set()

        async def second() -> None:
            async with open_service(newer, tell=hear):
                leads.set()
                await done.wait()

        async with open_service(older):
            # As an older version made it, which did not know this column.
            await pg.execute("ALTER TABLE stripe.customer DROP COLUMN phone")
            before = await columns(pg)
            task = asyncio.create_task(second())
            await asyncio.wait_for(stands_by.wait(), 20)
            assert await columns(pg) == before
        await asyncio.wait_for(leads.wait(), 20)
        after = await columns(pg)
        done.set()
        await task
    assert after - before >= {("stripe.customer", "phone"), ("stripe.charge", "amount")}


async def test_who_looks_on_says_what_is_lacking_and_leaves_it_so(
    database: str, pg: asyncpg.Connection
) -> None:
    async with running(Settings(scale=100)) as sim:
        config = config_of(sim, database, "customer", "event")
        async with open_service(config):
            await pg.execute("ALTER TABLE stripe.customer DROP COLUMN phone")
            before = await columns(pg)
            with pytest.raises(Misconfigured, match=r"lacks .*customer\.phone"):
                async with open_service(replace(config), leads=False):
                    pass
            assert await columns(pg) == before
