"""The service: gateway and workers on one port, from start to shutdown.

    async with open_serving(config, ServeOptions(), ...) as serving:
        print(serving.url)

It starts in this order: the port (in use: an error before anything else is touched), Postgres if it is
our own, the workers, the gateway. A Postgres of the user's may be unreachable: the gateway answers all
the same and opens each sync when it can. Shutdown goes the other way round and takes some seconds at
most.

`gateway` wires the parts of the gateway, which do not import each other. Its background tasks (a
listener, the pool of the API and the console) end with the block.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import cast

import structlog
from starlette.types import ASGIApp

from pinstripe.client.api_key import ApiKey, proxy_for
from pinstripe.concurrency import backoff
from pinstripe.config.config import Config
from pinstripe.console.routes import console_routes
from pinstripe.encryption import FILE, Encryptor
from pinstripe.errors import Misconfigured, PinstripeError
from pinstripe.gateway.app import GatewayApp, make_app
from pinstripe.gateway.deps import Deps
from pinstripe.gateway.http.auth import Auth, refuse_public
from pinstripe.gateway.proxy.proxy import open_proxy
from pinstripe.gateway.proxy.upstream import hosts_at
from pinstripe.gateway.syncs import SyncControl, Syncs
from pinstripe.gateway.wait.endpoint import WaitEndpoint
from pinstripe.gateway.wait.waiter import SyncRequester, Waiter
from pinstripe.gateway.webhooks import Webhooks
from pinstripe.service import Database, open_database
from pinstripe.serving import supervisor as processes
from pinstripe.serving.http_server import address_of, answering, listen
from pinstripe.serving.registry import Control, SyncRegistry
from pinstripe.serving.supervisor import Supervisor, WorkerReport
from pinstripe.serving.vault import Vault
from pinstripe.store.pool import Pool, check_server, check_sessions, connect, open_pool

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
        database = await stack.enter_async_context(_database(config, tell))
        config = replace(config, database_url=database.url)
        syncs = Syncs()
        vault = Vault(database.url, Encryptor(config.secret_key, config.data_dir / FILE), config)

        def stirred(sync_id: str, report: WorkerReport) -> None:
            if report.activity == "backfilling":
                registry.stir()
            heard(sync_id, report)

        supervisor = Supervisor(processes.start, heard=stirred) if manner.syncs else None
        registry = SyncRegistry(vault, syncs, supervisor, talks=manner.shown)
        stack.push_async_callback(registry.close)
        await registry.begin()
        control = Control(registry)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        running = group.create_task(registry.run(), name="roster")
        stack.callback(running.cancel)
        url = address_of(sock)
        app = await stack.enter_async_context(gateway(config, syncs, control, url))
        await stack.enter_async_context(answering(app, sock))
        # Streams have no end of their own: without this the server would wait for their readers.
        stack.callback(app.state.gateway.close)
        yield Serving(url, database, control, syncs)


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


_MB = 2**20


@asynccontextmanager
async def gateway(
    config: Config, syncs: Syncs, control: SyncControl, url: str
) -> AsyncIterator[GatewayApp]:
    """The app, with everything that runs beside it. `url` is where it listens."""
    database_url = config.database_url or ""
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())
        pool = OwnPool(database_url)
        requester = SyncRequester(lambda: database_url)
        waits = Waiter(requester)
        for name, work in (("pool", pool.run()), ("bell", requester.run())):
            stack.callback(group.create_task(work, name=name).cancel)
        stack.push_async_callback(waits.close)
        proxy = await stack.enter_async_context(
            open_proxy(
                syncs,
                hosts=hosts_at(config.stripe_url),
                request_sync=requester.request_sync,
                wait_for_request=waits.request_applied,
                patience_s=config.mirror_patience,
                body_limit=config.proxy_body_limit * _MB,
                own_tokens=(config.admin_token, config.wait_token),
                http_proxy=proxy_for(config.stripe_url),
            )
        )
        public_url = config.public_url or url
        access = Auth(
            admin_token=config.admin_token,
            wait_token=config.wait_token,
            public_url=public_url,
            owns=proxy.callers.may_use,
        )

        wait = WaitEndpoint(syncs, waits, settle_s=config.wait_settle, allows=access.allows_wait)
        webhooks = Webhooks(syncs, requester, tolerance_s=config.webhook_tolerance)
        parts = Deps(
            syncs=syncs,
            control=control,
            access=access,
            proxy=cast(ASGIApp, proxy),
            wait=wait.answer,
            webhook=webhooks.answer,
            pool=pool.current,
            database_url=lambda: database_url,
            public_url=public_url,
            reader_url=config.reader_url or "",
        )
        yield make_app(parts, console_routes(access))


_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_RETRY_S = (0.25, 0.5, 1.0, 2.0)
_MOST = 6


class OwnPool:
    """`current` gives None until the database was there once; from then on the pool mends itself."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: Pool | None = None

    def current(self) -> Pool | None:
        return self._pool

    async def run(self) -> None:
        """Opens the pool and keeps it until cancelled."""
        attempt = 0
        while self._pool is None:
            try:
                self._pool = await open_pool(
                    self._url, min_size=0, max_size=_MOST, application_name="pinstripe gateway"
                )
            except PinstripeError as error:
                _log.info("gateway.no_database", error=error.message)
                await asyncio.sleep(backoff(_RETRY_S, attempt))
                attempt += 1
        try:
            await asyncio.Event().wait()
        finally:
            pool, self._pool = self._pool, None
            await pool.close(timeout_s=2.0)
