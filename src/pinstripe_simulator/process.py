"""The simulator in a process of its own, driven over HTTP: for benchmarks, demos and crash tests."""

from __future__ import annotations

import asyncio
import json
import sys
from types import TracebackType
from typing import Any

import aiohttp

from pinstripe.errors import Unreachable
from pinstripe_simulator.account import Settings
from pinstripe_simulator.nastiness import as_json

_START_S = 60
"""Long enough for a machine under load; the simulator starts in well under a second."""


class SimulatorProcess:
    """`async with SimulatorProcess(Settings(...)) as sim:` serves at `sim.url` with `sim.key`."""

    def __init__(self, settings: Settings, *, port: int = 0) -> None:
        self._settings = settings
        self._port = port
        self._process: asyncio.subprocess.Process | None = None
        self.url = ""
        self.key = settings.keys[0]

    @property
    def pid(self) -> int:
        """0 before the start."""
        return self._process.pid if self._process else 0

    async def __aenter__(self) -> SimulatorProcess:
        made = self._settings
        arguments = ["--port", str(self._port), "--seed", str(made.seed)]
        arguments += ["--scale", str(made.scale), "--until", str(made.end())]
        arguments += ["--limits", made.limits]
        arguments += ["--nastiness", json.dumps(as_json(made.nastiness))]
        arguments += ["--connected", str(made.connected)]
        arguments += ["--connected-scale", str(made.connected_scale)]
        arguments += ["--connected-few", str(made.connected_few)]
        arguments += ["--connected-ids", made.connected_ids]
        if made.mix is not None:
            arguments += ["--mix", json.dumps(dict(made.mix))]
        for key in made.keys:
            arguments += ["--key", key]
        for product in made.not_enabled:
            arguments += ["--not-enabled", product]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "pinstripe_simulator",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            self.url = await asyncio.wait_for(self._first_line(), _START_S)
        except BaseException:
            await self.stop()
            raise
        return self

    async def _first_line(self) -> str:
        if self._process is None or self._process.stdout is None:
            raise RuntimeError("not started")
        line = (await self._process.stdout.readline()).decode().strip()
        if not line:
            raise Unreachable(
                "The simulator ended before it served.", hint="Its own output says why."
            )
        return line

    async def control(self, name: str, *, account: str = "", **arguments: object) -> Any:
        """Calls `Control.<name>(**arguments)` in the process; of a connected account, if one is given."""
        headers = {"Stripe-Account": account} if account else {}
        url = f"{self.url}/_simulator/{name}"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=arguments, headers=headers) as answer,
        ):
            told = await answer.json()
        if not told.get("ok"):
            raise ValueError(told.get("error"))
        return told["result"]

    async def stop(self) -> None:
        """Ends it, politely at first."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), 5)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
