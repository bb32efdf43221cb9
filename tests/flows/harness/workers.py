"""A simulated platform in the database, and workers of it in this process.

vault = await add_platform(url, sim, tmp_path)
async with working(vault) as worker: ...
await copied(url, [ids]); await same(url, sim, id)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.flows.harness.command import Command, Ended, pinstripe, started
from tests.flows.harness.truth import Ids, differences

from pinstripe.config.config import read_config
from pinstripe.encryption import Encryptor
from pinstripe.platforms.vault import NewPlatform, PlatformVault
from pinstripe.platforms.worker import Worker, open_worker
from pinstripe.store import ddl
from pinstripe.store.cursors import READY
from pinstripe.store.events import last_acks
from pinstripe.store.migrate import make_tenant_views
from pinstripe.store.platforms.stored import load_accounts
from pinstripe.store.platforms.sweep import wake
from pinstripe.store.pool import Connection, connect
from pinstripe.store.session import scope_of
from pinstripe_simulator.server import Running

SCHEMA = "shops"
PLATFORM = "shops"


def vault_of(url: str, directory: Path) -> PlatformVault:
    """A vault whose encryption key is in a file of the directory."""
    base = read_config({"database_url": url, "data_dir": str(directory)}, {})
    return PlatformVault(url, Encryptor((), directory / "secret.key"), base)


async def add_platform(url: str, sim: Running, directory: Path, **settings: str) -> PlatformVault:
    """Store the simulated platform. There is no limit of rate unless the settings have one."""
    vault = vault_of(url, directory)
    settings = {"rate_limit": "none", "endpoint_rate_limit": "none", **settings}
    await vault.add(NewPlatform(PLATFORM, sim.key, stripe_url=sim.url, settings=settings))
    return vault


@asynccontextmanager
async def working(vault: PlatformVault) -> AsyncIterator[Worker]:
    """A worker for the block, which then leaves in order. It has found the accounts that there are."""
    async with open_worker(vault) as worker:
        running = asyncio.create_task(worker.run())
        try:
            await worker.look()
            await worker.discover()
            yield worker
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


async def command(url: str, directory: Path, *words: str) -> Ended:
    """Run `pinstripe ...` on this database, with the encryption key in the directory."""
    return await pinstripe(*words, "--data-dir", str(directory), env={"DATABASE_URL": url})


@asynccontextmanager
async def worker_process(url: str, directory: Path) -> AsyncIterator[Command]:
    """`pinstripe worker` in a process of its own; killed at the end of the block, if it still runs."""
    words = ("worker", "--data-dir", str(directory))
    async with started(*words, env={"DATABASE_URL": url}) as process:
        heard = asyncio.create_task(process.communicate())  # Else its pipes would fill.
        try:
            yield process
        finally:
            process.kill()
            await heard


async def eventually(
    url: str, holds: Callable[[Connection], Awaitable[bool]], *, timeout_s: float = 60.0
) -> None:
    """Wait until it holds in the database."""
    async with connect(url) as connection, asyncio.timeout(timeout_s):
        while not await holds(connection):  # noqa: ASYNC110 (a row has no event)
            await asyncio.sleep(0.05)


async def acknowledged(url: str, scope: str, number: int, *, timeout_s: float = 60.0) -> None:
    """Wait until a sync that was requested with this number is acknowledged."""

    async def holds(connection: Connection) -> bool:
        return (await last_acks(connection, [scope]))[scope].number >= number

    await eventually(url, holds, timeout_s=timeout_s)


async def copied(url: str, accounts: Collection[str], *, timeout_s: float = 60.0) -> None:
    """Wait until the first copies of these accounts are complete."""
    scopes = [scope_of(SCHEMA, account) for account in accounts]

    async def holds(connection: Connection) -> bool:
        done = await connection.fetchval(
            "SELECT count(*) FROM pinstripe.cursor WHERE stream = $1 AND schema = ANY($2)"
            " AND state = 'done'",
            READY,
            scopes,
        )
        return bool(done == len(scopes))

    await eventually(url, holds, timeout_s=timeout_s)


async def state_of(url: str, account: str) -> str:
    async with connect(url) as connection:
        return next(
            a.state for a in await load_accounts(connection, PLATFORM) if a.account_id == account
        )


async def wrong_in(
    url: str, sim: Running, account: str, *, among: Ids | None = None
) -> dict[str, str]:
    """How the rows of one account differ from what it has at Stripe."""
    async with connect(url) as connection:
        name = ddl.quote(account)
        await connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE; CREATE SCHEMA {name}")
        await make_tenant_views(connection, SCHEMA, account, account)
    whole = sim.account.connected[account] if account != sim.account.id else sim.account
    one = Running(sim.url, whole, sim.control, sim.key)
    wrong = await differences(url, one, schema=account, among=among)
    # The simulator lists the persons of the platform's world under a connected account.
    return {table: what for table, what in wrong.items() if table != "person"}


async def agrees(
    url: str, sim: Running, account: str, *, among: Ids | None = None, timeout_s: float = 60.0
) -> None:
    """Wait until the account's rows are what it has at Stripe."""
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    while wrong := await wrong_in(url, sim, account, among=among):
        assert loop.time() < until, wrong
        await asyncio.sleep(0.2)


async def news_of(url: str, account: str) -> bool:
    """What the webhook endpoint does with an event of an account; whether it is known."""
    async with connect(url) as connection, connection.transaction():
        return await wake(connection, PLATFORM, SCHEMA, account)
