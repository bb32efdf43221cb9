"""The service verifies the copy by itself, and says when it does and why it does not."""

from __future__ import annotations

import asyncio
import json
import re

import asyncpg
from tests.flows.harness.command import pinstripe
from tests.flows.harness.serving import LIVE, SECRET, env_of, served

from pinstripe.store.verifications import load_plan
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import running

_CERTIFICATES = "SELECT count(*) FROM pinstripe.certificate"


async def test_a_verification_that_is_due_is_made_and_shown_in_status_and_metrics(
    database: str, pg: asyncpg.Connection
) -> None:
    async with running(Settings(scale=60, keys=(SECRET,))) as sim:
        env = {**env_of(sim, database), "PINSTRIPE_VERIFY_EVERY": "24h"}
        assert (await pinstripe("sync", "--once", env=env)).code == 0
        await pg.execute("UPDATE pinstripe.sync SET created_at = now() - interval '25 hours'")
        async with served(env) as service:
            async with asyncio.timeout(60):
                while not await pg.fetchval(_CERTIFICATES):  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(0.05)
            async with service.http.get(f"{service.url}/metrics") as answer:
                text = await answer.text()
    assert re.search(r'^pinstripe_verified_age_seconds\{sync="default"\} [0-9.]+$', text, re.M)
    assert 'pinstripe_verified_differences{sync="default"} 0.0' in text
    said = await pinstripe("status", "--json", "--schema", "stripe", env=env)
    (status,) = json.loads(said.out)["syncs"]
    assert status["next_verification"]
    assert status["verification_note"] == ""


async def test_no_verification_is_made_where_the_read_allowance_is_short_and_status_says_so(
    database: str, pg: asyncpg.Connection
) -> None:
    """A live account of few payments: 10,000 reads in 30 days, most of them used."""
    async with running(Settings(scale=60, keys=(LIVE,))) as sim:
        env = {**env_of(sim, database), "STRIPE_API_KEY": LIVE, "PINSTRIPE_VERIFY_EVERY": "1h"}
        assert (await pinstripe("sync", "--once", env=env)).code == 0
        await pg.execute("UPDATE pinstripe.sync SET created_at = now() - interval '25 hours'")
        await pg.execute(
            "INSERT INTO pinstripe.request_count (schema, day, kind, count)"
            " VALUES ('stripe', current_date - 2, 'list', 9000000)"
        )
        async with served(env):
            async with asyncio.timeout(60):
                while not (await load_plan(pg, "stripe"))[1]:  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(0.05)
    assert await pg.fetchval(_CERTIFICATES) == 0
    said = await pinstripe("status", "--schema", "stripe", env=env)
    assert "No scheduled verification. The read allowance is short" in said.text
