"""`pinstripe serve` on a stage: in a process of its own, its sync in another."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from benchmarks.caller import calling
from benchmarks.stage import Stage, command

_PATIENCE_S = 300.0
UNLIMITED = ("--rate-limit", "none", "--endpoint-rate-limit", "none")


@dataclass(frozen=True, slots=True)
class Service:
    """`pinstripe serve`, running."""

    url: str
    process: subprocess.Popen[bytes]
    key: str

    async def state(self) -> dict[str, object]:
        """How the sync stands."""
        async with calling(self.url, self.key) as (caller,):
            told = json.loads((await caller.ask("GET", "/api/syncs/default")).body)
        state: dict[str, object] = told["state"]
        return state

    async def until(self, *activities: str) -> dict[str, object]:
        """Returns when the sync is served, and in one of these states."""
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                state = await self.state()
                if state["served"] and state["activity"] in activities:
                    return state
                await asyncio.sleep(0.05)


@asynccontextmanager
async def serving(at: Stage, database: str, *words: str) -> AsyncIterator[Service]:
    """`pinstripe serve`, running for the block."""
    process = command(at, database, "serve", "--json", "--port", "0", *words, quiet=True)
    try:
        if process.stdout is None:
            raise RuntimeError("no stdout")
        line = await asyncio.to_thread(process.stdout.readline)
        if not line:
            raise RuntimeError("the service did not start")
        yield Service(json.loads(line)["url"], process, at.simulator.key)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 30)
