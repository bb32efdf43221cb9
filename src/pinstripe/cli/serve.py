"""`pinstripe serve`: syncs and gateway together; `run` and `demo`: the same on a terminal.

Without a key, `run` serves the demo account: a simulated Stripe in its own process. The account is
generated again at each start, byte for byte the same, from `DATA_DIR/demo/account.json`. Its database
is beside that file, so the demo never touches the data of a real account.

`demo --platform` makes a platform anew at each start, beside that data:

    simulator -> service with its own Postgres -> Connect webhook endpoint -> platform add -> workers

The workers are what `pinstripe worker` starts on any machine: processes that share nothing but the database
and the encryption key.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import aiohttp
import msgspec

from pinstripe.cli.runtime import show, tell
from pinstripe.cli.summary import how_to_connect, how_to_serve, psql_command
from pinstripe.config.config import Config
from pinstripe.encryption import FILE, Encryptor, make_private
from pinstripe.errors import PinstripeError, Unwritable
from pinstripe.platforms.vault import NewPlatform, PlatformVault
from pinstripe.serving.service import ServeOptions, open_serving
from pinstripe.serving.supervisor import WorkerReport
from pinstripe.store.ddl import quote
from pinstripe.store.platforms.stored import load_platforms
from pinstripe.store.pool import connect
from pinstripe.store.syncs import DEFAULT_ID

KEY_VARIABLE = "PINSTRIPE_SIMULATOR_KEY"
NASTINESS_VARIABLE = "PINSTRIPE_SIMULATOR_NASTINESS"
_START_S = 60.0
_STOP_S, _WORKER_STOP_S = 5.0, 15.0
_DAY_S = 86_400
_PLATFORM = "shops"
_SHOPS = 50
_OBJECTS = 100
_WORKERS = 2
_SHOPS_TRAFFIC = 5
_SETTINGS = {"rate_limit": "none", "endpoint_rate_limit": "none"}
_TRAFFIC = 2


async def serve(config: Config, *, gateway_only: bool, as_json: bool) -> int:
    """Run until cancelled. With `as_json` the first line on stdout has the URL."""
    tell_change = _Teller()
    manner = ServeOptions(syncs=not gateway_only)
    async with open_serving(config, manner, tell_change, tell) as serving:
        if as_json:
            show(json.dumps({"url": serving.url, "database": serving.database.version}))
        else:
            show(how_to_serve(serving.url, config))
            if config.api_key is None and not gateway_only:
                tell("STRIPE_API_KEY is not set: only stored syncs run (`pinstripe syncs add`).")
        await asyncio.Event().wait()
    return 0


class _Teller:
    """Prints a line for each change of state that an operator would report."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, str]] = {}

    def __call__(self, sync_id: str, report: WorkerReport) -> None:
        now = (report.activity, report.reason)
        if report.activity == "starting" or self._told.get(sync_id) == now:
            return
        self._told[sync_id] = now
        tell(f"{sync_id}: {report.activity}{f': {report.reason}' if report.reason else ''}")
        if report.remedy:
            tell(f"  remedy: {report.remedy}")


async def run(config: Config) -> int:
    """Ends when it is cancelled."""
    if config.api_key is not None:
        return await _run(config, _nothing)
    async with demo_account(config) as demo:
        show(
            "Running the demo, no Stripe key needed: a simulated Stripe account with about "
            f"{config.demo_scale:,} objects runs at {demo.url}; key: {demo.key}"
        )
        if config.database_url is not None:
            tell("DATABASE_URL is not used: the demo runs its own Postgres.")
        return await _run(
            replace(
                config,
                api_key=demo.key,
                stripe_url=demo.url,
                stripe_account=None,
                database_url=None,
                data_dir=demo.data_dir,
                rate_limit="none",
                endpoint_rate_limit="none",
                deep=True,  # Requests to the simulator cost nothing, and a demo should have it all.
            ),
            partial(_start_traffic, demo, config.schema),
        )


async def _nothing() -> None:
    """Do nothing when following begins."""


async def _start_traffic(demo: Demo, schema: str) -> None:
    """Lets things happen in the demo account, so that there is something to follow."""
    await start_traffic(demo, per_second=_TRAFFIC)
    tell(f"The demo account now changes {_TRAFFIC} times per second. Watch it with:")
    tell(f"  SELECT created, type FROM {quote(schema)}.event ORDER BY created DESC LIMIT 10;")


async def _run(config: Config, started: Callable[[], Awaitable[None]]) -> int:
    first: asyncio.Future[WorkerReport] = asyncio.get_running_loop().create_future()

    def heard(sync_id: str, report: WorkerReport) -> None:
        if sync_id != DEFAULT_ID or first.done():
            return
        if report.activity == "following":
            first.set_result(report)
        elif report.activity == "ended":
            first.set_exception(_error(report))

    async with open_serving(
        config, ServeOptions(shown=True, other_port=True), heard, tell
    ) as serving:
        await first
        show(how_to_connect(serving.database, config.schema) + "\n")
        show(how_to_serve(serving.url, config) + "\n")
        await started()
        await asyncio.Event().wait()
    return 0


def _error(report: WorkerReport) -> PinstripeError:
    """What ended the first process, as if it had been ours."""
    error = PinstripeError(report.reason, hint=report.remedy)
    error.exit_code = report.exit_code
    return error


class DemoRecipe(msgspec.Struct, frozen=True):
    """The parameters of the simulated account."""

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
async def demo_account(config: Config, *flags: str) -> AsyncIterator[Demo]:
    """Runs the simulator for the block; with more `flags` of `pinstripe simulate`."""
    data_dir = config.data_dir / "demo"
    recipe = _recipe(data_dir / "account.json", config.demo_scale)
    process = await _start(recipe, flags)
    try:
        announced = await _announced(process)
        yield Demo(announced.url, recipe.key, data_dir)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        await _stop(process, _STOP_S)


async def start_traffic(demo: Demo, *, per_second: float, control: str = "traffic") -> None:
    """Start traffic in the simulated account, or in those connected to it."""
    url = f"{demo.url}/_simulator/{control}"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json={"per_second": per_second}) as answer,
    ):
        if answer.status != 200:
            raise PinstripeError(
                f"The simulator did not start its traffic (status {answer.status}).",
                hint="Run `pinstripe simulate` to see why.",
            )


def _recipe(path: Path, scale: int) -> DemoRecipe:
    """The recipe of the last time; a new one if there is none or the scale is another."""
    try:
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
            saved = msgspec.json.decode(path.read_bytes(), type=DemoRecipe)
            if saved.scale == scale:
                return saved
        until = int(time.time()) // _DAY_S * _DAY_S
        recipe = DemoRecipe(key=f"sk_test_{secrets.token_hex(16)}", scale=scale, until=until)
        make_private(path.parent)
        path.write_bytes(msgspec.json.encode(recipe))
    except OSError as error:
        raise Unwritable(
            f"Cannot write {path}: {error.strerror}.",
            hint="Free up space, or choose another directory with --data-dir.",
        ) from error
    return recipe


async def _start(recipe: DemoRecipe, flags: Sequence[str]) -> asyncio.subprocess.Process:
    argv = ["-m", "pinstripe", "simulate", "--json", "--while-stdin", "--port", "0"]
    argv += ["--scale", str(recipe.scale), "--seed", str(recipe.seed)]
    argv += ["--until", str(recipe.until), *flags]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *argv,
        # EOF on it ends the simulator, however this process ends.
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # The key is passed in the environment: other users can read a command line.
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
            "The demo account's simulator did not start.",
            hint="Run `pinstripe simulate` to see why.",
        ) from error


async def _stop(process: asyncio.subprocess.Process, within_s: float) -> None:
    try:
        async with asyncio.timeout(within_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def demo_platform(config: Config) -> int:
    """Ends when it is cancelled. Never in the database of a real account."""
    data_dir = config.data_dir / "demo-platform"
    config = replace(config, api_key=None, database_url=None, data_dir=data_dir)
    async with AsyncExitStack() as stack:
        connected = ("--connected", str(_SHOPS), "--connected-scale", str(_OBJECTS))
        sim = await stack.enter_async_context(demo_account(config, *connected))
        show(
            f"Running the demo of a platform, no Stripe key needed: a simulated Stripe with {_SHOPS} "
            f"connected accounts of about {_OBJECTS} objects each, at {sim.url}; key: {sim.key}"
        )
        # The proxy sends what it gets to the simulator.
        config = replace(config, stripe_url=sim.url)
        manner = ServeOptions(syncs=False, other_port=True)
        serving = await stack.enter_async_context(
            open_serving(config, manner, lambda *_: None, tell)
        )
        secret = await _webhook_endpoint(sim, f"{serving.url}/webhooks/stripe/{_PLATFORM}")
        await _add(replace(config, database_url=serving.database.url), sim, secret)
        for number in range(_WORKERS):
            await stack.enter_async_context(_worker(config, serving.database.url))
            tell(f"Worker {number + 1} of {_WORKERS} is started: `pinstripe worker`.")
        await start_traffic(sim, per_second=_SHOPS_TRAFFIC, control="connected_traffic")
        show(_how_to_use(serving.url, psql_command(serving.database), sim))
        await asyncio.Event().wait()
    return 0


def _how_to_use(url: str, psql: str, sim: Demo) -> str:
    return f"""Console:  {url}/platforms
Proxy:    curl {url}/v1/customers -u {sim.key}: -H "Stripe-Account: ACCOUNT" -d name=Ada
Wait:     curl "{url}/wait/stripe/{_PLATFORM}?account=ACCOUNT"
psql:     {psql}
SQL:      SELECT _account_id, count(*) FROM {_PLATFORM}.customer GROUP BY 1 ORDER BY 2 DESC LIMIT 10;

The accounts change {_SHOPS_TRAFFIC} times per second.
`pinstripe status --data-dir {sim.data_dir.parent}` shows them too."""


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
    if _PLATFORM in known:
        await vault.remove(_PLATFORM, drop_tables=True)
    await vault.add(
        NewPlatform(
            _PLATFORM, sim.key, stripe_url=sim.url, settings=_SETTINGS, webhook_secrets=(secret,)
        )
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
        await _stop(process, _WORKER_STOP_S)
