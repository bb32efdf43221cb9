"""`pinstripe demo --platform`: a simulated platform, its copy, two workers and the console on this machine.

    simulator -> service with its own Postgres -> Connect webhook endpoint -> platform add -> workers

All of it is made anew at each start, beside the demo account's data. The workers are what `pinstripe
worker` starts on any machine: processes that share nothing but the database and the encryption key.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace

import aiohttp

from pinstripe.cli.serve import Demo, demo_account, start_traffic
from pinstripe.cli.sync import show, tell
from pinstripe.config.config import Config
from pinstripe.encryption import FILE, Encryptor
from pinstripe.errors import PinstripeError
from pinstripe.platforms.vault import NewPlatform, PlatformVault
from pinstripe.serving.service import ServeOptions, open_serving
from pinstripe.store.platforms.stored import load_platforms
from pinstripe.store.pool import connect

ID = "shops"
ACCOUNTS = 50
_OBJECTS = 100
_WORKERS = 2
_TRAFFIC = 5
_STOP_S = 15.0
_SETTINGS = {"rate_limit": "none", "endpoint_rate_limit": "none"}


async def demo_platform(config: Config) -> int:
    """Ends when it is cancelled. Never in the database of a real account."""
    data_dir = config.data_dir / "demo-platform"
    config = replace(config, api_key=None, database_url=None, data_dir=data_dir)
    async with AsyncExitStack() as stack:
        connected = ("--connected", str(ACCOUNTS), "--connected-scale", str(_OBJECTS))
        sim = await stack.enter_async_context(demo_account(config, *connected))
        show(
            f"Running the demo of a platform, no Stripe key needed: a simulated Stripe with {ACCOUNTS} "
            f"connected accounts of about {_OBJECTS} objects each, at {sim.url}; key: {sim.key}"
        )
        # The proxy sends what it gets to the simulator.
        config = replace(config, stripe_url=sim.url)
        manner = ServeOptions(syncs=False, other_port=True)
        serving = await stack.enter_async_context(
            open_serving(config, manner, lambda *_: None, tell)
        )
        secret = await _webhook_endpoint(sim, f"{serving.url}/webhooks/stripe/{ID}")
        await _add(replace(config, database_url=serving.database.url), sim, secret)
        for number in range(_WORKERS):
            await stack.enter_async_context(_worker(config, serving.database.url))
            tell(f"Worker {number + 1} of {_WORKERS} is started: `pinstripe worker`.")
        await start_traffic(sim, per_second=_TRAFFIC, control="connected_traffic")
        show(_how_to_use(serving.url, sim))
        await asyncio.Event().wait()
    return 0


def _how_to_use(url: str, sim: Demo) -> str:
    return f"""Console:  {url}/platforms
Proxy:    curl {url}/v1/customers -u {sim.key}: -H "Stripe-Account: ACCOUNT" -d name=Ada
Wait:     curl "{url}/wait/stripe/{ID}?account=ACCOUNT"
SQL:      SELECT _account_id, count(*) FROM {ID}.customer GROUP BY 1 ORDER BY 2 DESC LIMIT 10;

The accounts change {_TRAFFIC} times per second. `pinstripe status --data-dir {sim.data_dir.parent}` shows
them too."""


async def _webhook_endpoint(sim: Demo, url: str) -> str:
    """Make a Connect webhook endpoint of the simulated platform; return its secret."""
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {sim.key}"}) as session,
        session.post(
            f"{sim.url}/v1/webhook_endpoints",
            data={"url": url, "enabled_events[]": "*", "connect": "true"},
        ) as answer,
    ):
        made = await answer.json()
        if answer.status != 200:
            raise PinstripeError(
                f"The simulator made no webhook endpoint (status {answer.status}).",
                hint="Run `pinstripe simulate` to see why.",
            )
        secret: str = made["secret"]
        return secret


async def _add(config: Config, sim: Demo, secret: str) -> None:
    """Add the platform; what the last demo left goes, since its simulator has another address."""
    url = config.database_url or ""
    vault = PlatformVault(url, Encryptor(config.secret_key, config.data_dir / FILE), config)
    async with connect(url) as connection:
        known = [platform.id for platform in await load_platforms(connection)]
    if ID in known:
        await vault.remove(ID, drop_tables=True)
    await vault.add(
        NewPlatform(ID, sim.key, stripe_url=sim.url, settings=_SETTINGS, webhook_secrets=(secret,))
    )


@asynccontextmanager
async def _worker(config: Config, database_url: str) -> AsyncIterator[None]:
    """A worker as a process of its own, which leaves in order at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "pinstripe", "worker", "--data-dir", str(config.data_dir)),
        # The address in the environment: other users can read a command line.
        env={**os.environ, "DATABASE_URL": database_url},
        # Ctrl-C in the terminal is for us; the worker gets its SIGTERM.
        start_new_session=True,
    )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
