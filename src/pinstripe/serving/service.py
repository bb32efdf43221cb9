"""The service: gateway and workers on one port, from start to shutdown.

    async with open_serving(config, ServeOptions(), ...) as serving:
        print(serving.url)

It starts in this order: the port (in use: an error before anything else is touched), Postgres if it is
our own, the workers, the gateway; while Postgres starts, the code of the gateway and of the first worker is
loaded. A Postgres of the user's may be unreachable: the gateway answers all the same and opens each sync
when it can. Shutdown goes the other way round and takes some seconds at most.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pinstripe.client.api_key import ApiKey
from pinstripe.config.config import Config
from pinstripe.encryption import FILE, Encryptor
from pinstripe.errors import Misconfigured, PinstripeError
from pinstripe.gateway.http.auth import refuse_public
from pinstripe.gateway.syncs import Syncs
from pinstripe.service import Database, open_database
from pinstripe.serving.http_server import address_of, answering, listen
from pinstripe.serving.registry import Control, SyncRegistry
from pinstripe.serving.supervisor import EarlyStart, Supervisor, WorkerReport, start
from pinstripe.serving.vault import Vault
from pinstripe.store.pool import check_server, check_sessions, connect

if TYPE_CHECKING:
    from pinstripe.gateway.app import GatewayApp

_FILES = 16_384
_UNFIT_S = 3.0
"""How long the start may take to check a Postgres of the user's, which may be unreachable."""

OnReport = Callable[[str, WorkerReport], None]
"""Gets what the process of a sync reports, with the sync's id."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """`syncs`: runs the syncs too, not the gateway alone. `shown`: the default's process shows what it
    does. `other_port`: takes a free one if the configured one is taken.
    """

    syncs: bool = True
    shown: bool = False
    other_port: bool = False


@dataclass(frozen=True, slots=True)
class Serving:
    """What answers at `url`."""

    url: str
    database: Database
    control: Control
    syncs: Syncs


@asynccontextmanager
async def open_serving(
    config: Config, manner: ServeOptions, heard: OnReport, tell: Callable[[str], None]
) -> AsyncIterator[Serving]:
    """The service for the block. A part of it that dies takes the block down."""
    if config.api_key is not None:
        ApiKey.parse(config.api_key)
    refuse_public(config.host, config.admin_token)
    _allow_many_connections()
    sock = _listening(config, tell, other_port=manner.other_port)
    async with AsyncExitStack() as stack:
        stack.callback(sock.close)
        early = None
        if manner.syncs and config.api_key is not None:
            early = EarlyStart(shown=manner.shown)
            stack.push_async_callback(early.close)
        loading = asyncio.create_task(asyncio.to_thread(_load_gateway))
        database = await stack.enter_async_context(_database(config, tell))
        config = replace(config, database_url=database.url)
        syncs = Syncs()
        vault = Vault(database.url, Encryptor(config.secret_key, config.data_dir / FILE), config)

        def stirred(sync_id: str, report: WorkerReport) -> None:
            if report.activity == "backfilling":
                registry.stir()
            heard(sync_id, report)

        launch = start if early is None else early.start
        supervisor = Supervisor(launch, heard=stirred) if manner.syncs else None
        registry = SyncRegistry(vault, syncs, supervisor, talks=manner.shown)
        stack.push_async_callback(registry.close)
        await registry.begin()
        control = Control(registry)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        running = group.create_task(registry.run(), name="roster")
        stack.callback(running.cancel)
        url = address_of(sock)
        gateway = await loading
        app = await stack.enter_async_context(gateway(config, syncs, control, url))
        await stack.enter_async_context(answering(app, sock))
        if early is not None:
            await early.close()  # The default is paused.
        # Streams have no end of their own: without this the server would wait for their readers.
        stack.callback(app.state.gateway.close)
        yield Serving(url, database, control, syncs)


def _load_gateway() -> Callable[..., AbstractAsyncContextManager[GatewayApp]]:
    """A third of all code of the service, and of no use until there is a database."""
    from pinstripe.serving.gateway import gateway

    return gateway


@asynccontextmanager
async def _database(config: Config, tell: Callable[[str], None]) -> AsyncIterator[Database]:
    """Start our own Postgres, or return the user's, which may be unreachable."""
    if config.database_url is not None:
        await _refuse_unfit(config.database_url)
        yield Database(config.database_url, None, "")
        return
    async with open_database(config, tell=tell) as database:
        yield database


async def _refuse_unfit(url: str) -> None:
    """Raises Misconfigured where the address, a pooler or the encoding can never do; all else may pass."""
    try:
        async with asyncio.timeout(_UNFIT_S):
            await check_sessions(url)
            async with connect(url) as connection:
                await check_server(connection)
    except Misconfigured as error:
        if error.fault is None:  # a wrong password or database may be fixed later
            raise
    except (PinstripeError, TimeoutError):
        return  # unreachable for now


def _allow_many_connections() -> None:
    """A thousand callers that wait are a thousand files; many systems allow 1,024 unless asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _listening(config: Config, tell: Callable[[str], None], *, other_port: bool) -> socket.socket:
    try:
        return listen(config.host, config.port)
    except Misconfigured:
        if not other_port:
            raise
    sock = listen(config.host, 0)
    tell(f"Port {config.port} is in use; the gateway listens on {address_of(sock)}.")
    return sock
