"""The demo account: a simulated Stripe in a process of its own, and where its copy goes.

The account is made anew at each start, the same down to the byte: what it is made from stands in
`DATA_DIR/demo/account.json`. Its database is beside that, so that the demo never stands in the way
of a real account.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pinstripe.config import Config
from pinstripe.errors import PinstripeError, Unwritable
from pinstripe.secrecy import make_private

KEY_VARIABLE = "PINSTRIPE_SIMULATOR_KEY"
NASTINESS_VARIABLE = "PINSTRIPE_SIMULATOR_NASTINESS"
_START_S = 60.0
_STOP_S = 5.0
_DAY_S = 86_400


class Recipe(msgspec.Struct, frozen=True):
    """What the account is made from."""

    key: str
    scale: int
    until: int
    seed: int = 1


class Announced(msgspec.Struct, frozen=True):
    """The line that `pinstripe simulate --json` prints when it answers."""

    url: str
    key: str


@dataclass(frozen=True, slots=True)
class Demo:
    """A simulated account that answers. `data_dir` is where its copy belongs."""

    url: str
    key: str
    data_dir: Path


@asynccontextmanager
async def demo_account(config: Config) -> AsyncIterator[Demo]:
    """Runs the simulator for the block."""
    data_dir = config.data_dir / "demo"
    recipe = _recipe(data_dir / "account.json", config.demo_scale)
    process = await _start(recipe)
    try:
        announced = await _announced(process)
        yield Demo(announced.url, recipe.key, data_dir)
    finally:
        await _stop(process)


async def start_traffic(demo: Demo, *, per_second: float) -> None:
    """Makes the simulated account change by itself from now on."""
    import aiohttp

    url = f"{demo.url}/_simulator/traffic"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json={"per_second": per_second}) as answer,
    ):
        if answer.status != 200:
            raise PinstripeError(
                f"The simulator did not start its traffic (status {answer.status}).",
                hint="`pinstripe simulate` alone shows why.",
            )


def _recipe(path: Path, scale: int) -> Recipe:
    """The recipe of the last time; a new one if there is none or the scale is another."""
    try:
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
            saved = msgspec.json.decode(path.read_bytes(), type=Recipe)
            if saved.scale == scale:
                return saved
        until = int(time.time()) // _DAY_S * _DAY_S
        recipe = Recipe(key=f"sk_test_{secrets.token_hex(16)}", scale=scale, until=until)
        make_private(path.parent)
        path.write_bytes(msgspec.json.encode(recipe))
    except OSError as error:
        raise Unwritable(
            f"Cannot write {path}: {error.strerror}.",
            hint="Make room, or choose another directory with --data-dir.",
        ) from error
    return recipe


async def _start(recipe: Recipe) -> asyncio.subprocess.Process:
    argv = ["-m", "pinstripe", "simulate", "--json", "--while-stdin", "--port", "0"]
    argv += ["--scale", str(recipe.scale), "--seed", str(recipe.seed)]
    argv += ["--until", str(recipe.until)]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *argv,
        # Its end tells the simulator that we are gone, however we went.
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # The key goes by the environment: everyone can read a command line.
        # A demo shows the copy, not how it survives stale reads and clocks that disagree.
        env={**os.environ, KEY_VARIABLE: recipe.key, NASTINESS_VARIABLE: "calm"},
        # Ctrl-C in the terminal is for us; the simulator must answer until we are done.
        start_new_session=True,
    )


async def _announced(process: asyncio.subprocess.Process) -> Announced:
    assert process.stdout is not None  # noqa: S101 (it was asked for)
    try:
        async with asyncio.timeout(_START_S):
            line = await process.stdout.readline()
        return msgspec.json.decode(line, type=Announced)
    except (TimeoutError, msgspec.MsgspecError) as error:
        raise PinstripeError(
            "The simulator of the demo account did not start.",
            hint="`pinstripe simulate` alone shows why.",
        ) from error


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
