"""A service for tests of the API: gateway over real HTTP, and a sync of a simulated account beside it.

    async with api_service(sim, database, tmp_path) as here:
        answer = await here.http.get("/api/syncs")

The sync runs in this process (`pinstripe sync`'s own parts); the service serves without processes of its
own, as beside a sync that runs elsewhere.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from pinstripe.config.config import Config
from pinstripe.service import open_service
from pinstripe.serving.service import ServeOptions, open_serving
from pinstripe.sync.heartbeat import HeartbeatWriter
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running

SMALL = Settings(scale=60)
ADMIN = "an-admin-token-of-some-length"


@dataclass(slots=True)
class ApiService:
    """`http` calls the service; `telling` writes what its sync says of itself."""

    url: str
    http: httpx.AsyncClient
    config: Config
    telling: HeartbeatWriter | None = None


def config_of(sim: Running, database: str, directory: Path) -> Config:
    return Config(
        api_key=sim.key,
        database_url=database,
        stripe_url=sim.url,
        data_dir=directory,
        port=0,
        rate_limit="none",
        endpoint_rate_limit="none",
        poll_interval=0.1,
        changes=True,
    )


@asynccontextmanager
async def served(config: Config) -> AsyncIterator[ApiService]:
    """The service alone: nothing is synced."""
    async with (
        open_serving(config, ServeOptions(syncs=False), lambda *_: None, lambda _: None) as serving,
        httpx.AsyncClient(base_url=serving.url, timeout=20.0, trust_env=False) as http,
    ):
        yield ApiService(serving.url, http, config)


@asynccontextmanager
async def api_service(
    sim: Running, database: str, directory: Path, **changed: Any
) -> AsyncIterator[ApiService]:
    """The service, with a copy that is complete and followed."""
    config = replace(config_of(sim, database, directory), **changed)
    async with open_service(config) as service:
        follower = await service.follow()
        telling = service.telling(follower)
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(follower.run()), group.create_task(telling.run())]
            await service.backfilled(followed=True)
            follower.backfilled()
            await telling.write()
            async with served(config) as here:
                here.telling = telling
                await _opened(here)
                yield here
            for task in running:
                task.cancel()


async def _opened(here: ApiService) -> None:
    async with asyncio.timeout(20):
        while not (await here.http.get("/api/syncs/default")).json()["state"]["served"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@dataclass(frozen=True, slots=True)
class Sent:
    """One server-sent event."""

    event: str
    id: str
    data: Any


async def sent(answer: httpx.Response) -> AsyncIterator[Sent]:
    """The events of a stream, without comments."""
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if not line:
            if "data" in fields:
                told = json.loads(fields["data"])
                yield Sent(fields.get("event", ""), fields.get("id", ""), told)
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
