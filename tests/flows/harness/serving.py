"""`pinstripe serve` as a user runs it: a process that answers over HTTP, and what it says meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from tests.flows.harness.command import Command, started

from pinstripe_simulator.server import Running

SECRET = "sk_test_thisisthesecretofatest123"
OTHER = "sk_test_anothersecretofatest4567"
LIVE = "sk_live_oflivemode"
TABLES = "customer,product,event"
_PATIENCE_S = 60.0


@dataclass
class Served:
    """A running service. `said` is what came on stderr so far, as far as it was read."""

    url: str
    process: Command
    http: aiohttp.ClientSession
    said: str = ""

    async def until(self, line: str) -> None:
        """Reads what it says until a line has `line` in it."""
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                text = (await self.process.stderr.readline()).decode()
                assert text, f"it ended: {self.said}"
                self.said += text
                if line in text:
                    return

    async def get(self, path: str) -> tuple[int, Any]:
        """(status, JSON)."""
        async with self.http.get(self.url + path) as answer:
            return answer.status, await answer.json()

    async def state(self, sync_id: str = "default") -> dict[str, Any]:
        """How the process of a sync stands."""
        _, found = await self.get(f"/api/syncs/{sync_id}")
        state: dict[str, Any] = found["state"]
        return state

    async def until_state(self, sync_id: str = "default", **wanted: object) -> dict[str, Any]:
        """Asks until the state has these values."""
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                state = await self.state(sync_id)
                if wanted.items() <= state.items():
                    return state
                await asyncio.sleep(0.05)

    async def until_ready(self) -> None:
        """Asks until nothing is in the way."""
        async with asyncio.timeout(_PATIENCE_S):
            while (await self.get("/readyz"))[0] != 200:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)

    async def make_customer(self, name: str, key: str = SECRET) -> tuple[str, str]:
        """(id, what the proxy says of it) of a new customer, made through the proxy."""
        async with self.http.post(
            f"{self.url}/v1/customers",
            data={"name": name},
            headers={"Authorization": f"Bearer {key}"},
        ) as answer:
            made = await answer.json()
            assert answer.status == 200, made
            return made["id"], answer.headers["Pinstripe-Mirrored"]


def env_of(sim: Running, database: str) -> dict[str, str]:
    """For a service of the simulated account."""
    return {
        "STRIPE_API_KEY": SECRET,
        "STRIPE_API_BASE": sim.url,
        "DATABASE_URL": database,
        "PINSTRIPE_TABLES": TABLES,
        "PINSTRIPE_RATE_LIMIT": "none",
        "PINSTRIPE_ENDPOINT_RATE_LIMIT": "none",
        "PINSTRIPE_REPLICA_LAG": "0.2",  # The simulator has no replicas here.
    }


@asynccontextmanager
async def served(
    env: Mapping[str, str], *words: str, cwd: str = "/", port: str = "0"
) -> AsyncIterator[Served]:
    """The service, killed at the end of the block if it still runs."""
    async with (
        started("serve", "--json", "--port", port, *words, env=env, cwd=cwd) as process,
        aiohttp.ClientSession() as http,
    ):
        async with asyncio.timeout(_PATIENCE_S):
            line = await process.stdout.readline()
        if not line:
            raise AssertionError((await process.stderr.read()).decode())
        yield Served(json.loads(line)["url"], process, http)
