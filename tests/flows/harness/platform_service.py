"""A simulated platform in Postgres, with a worker in this process and a gateway over HTTP.

async with platform_service(sim, database, tmp_path) as here:
    await here.http.get(f"/wait/stripe/shops?account={here.accounts[0]}")
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from tests.flows.harness.api_service import config_of

from pinstripe.config.config import Config
from pinstripe.encryption import FILE, Encryptor
from pinstripe.platforms.vault import NewPlatform, PlatformVault
from pinstripe.platforms.worker import open_worker
from pinstripe.serving.service import ServeOptions, open_serving
from pinstripe.store.platforms.sweep import welcome
from pinstripe.store.pool import connect
from pinstripe_simulator.account import Settings
from pinstripe_simulator.nastiness import CALM
from pinstripe_simulator.server import Running

ID = "shops"
SECRET = "whsec_of_the_platform"
PLATFORM = Settings(scale=40, future_fields=False, nastiness=CALM, connected=4, connected_scale=40)
SETTINGS = {
    "tables": "customer,product,price,account,event",
    "rate_limit": "none",
    "endpoint_rate_limit": "none",
}


@dataclass(slots=True)
class PlatformService:
    """`accounts`: the ids of the connected accounts, as `/v1/accounts` lists them, oldest first."""

    sim: Running
    url: str
    database: str
    http: httpx.AsyncClient
    accounts: list[str]
    vault: PlatformVault

    def headers(self, account: str = "", **more: str) -> dict[str, str]:
        """Of a caller with the platform's key, who acts for an account."""
        named = {"Stripe-Account": account} if account else {}
        return {"Authorization": f"Bearer {self.sim.key}", **named, **more}

    async def make_customer(self, account: str = "", **more: str) -> tuple[str, httpx.Response]:
        """(id, answer) of a new customer of the account, made through the proxy."""
        answer = await self.http.post(
            "/v1/customers", data={"name": "Ada"}, headers=self.headers(account, **more)
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["id"], answer

    async def rows(self, table: str, key: str) -> list[Mapping[str, Any]]:
        """The rows of all accounts with this id, as SQL sees them now."""
        async with connect(self.database) as pg:
            found = await pg.fetch(f'SELECT * FROM {ID}."{table}" WHERE id = $1', key)
        return [dict(row) for row in found]

    async def wait(self, account: str = "", query: str = "", **headers: str) -> httpx.Response:
        named = f"account={account}&" if account else ""
        return await self.http.get(f"/wait/stripe/{ID}?{named}{query}", headers=headers)


@asynccontextmanager
async def platform_service(
    sim: Running,
    database: str,
    directory: Path,
    *,
    works: bool = True,
    settings: Mapping[str, str] | None = None,
    **changed: Any,
) -> AsyncIterator[PlatformService]:
    """`works`: whether there is a worker; without one the accounts are known all the same."""
    config: Config = replace(config_of(sim, database, directory), api_key=None, **changed)
    vault = PlatformVault(database, Encryptor(config.secret_key, config.data_dir / FILE), config)
    await vault.add(
        NewPlatform(
            ID,
            sim.key,
            stripe_url=sim.url,
            settings={**SETTINGS, **(settings or {})},
            webhook_secrets=(SECRET,),
        )
    )
    async with AsyncExitStack() as stack:
        async with connect(database) as pg, pg.transaction():
            await welcome(pg, ID, ID, sim.control.accounts())
        if works:
            worker = await stack.enter_async_context(open_worker(vault))
            group = await stack.enter_async_context(asyncio.TaskGroup())
            working = group.create_task(worker.run())
            stack.callback(working.cancel)
        served = open_serving(config, ServeOptions(syncs=False), lambda *_: None, lambda _: None)
        serving = await stack.enter_async_context(served)
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=serving.url, timeout=60.0, trust_env=False)
        )
        async with asyncio.timeout(20):
            while ID not in serving.syncs.platforms:  # noqa: ASYNC110 (a notification leads there)
                await asyncio.sleep(0.05)
        yield PlatformService(sim, serving.url, database, http, sim.control.accounts(), vault)
