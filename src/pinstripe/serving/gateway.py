"""Wires the parts of the gateway, which do not import each other.

    async with gateway(config, syncs, control, url) as app: ...

A module of its own, so that the service can load it while Postgres starts: it is a third of all code.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

import structlog
from starlette.types import ASGIApp

from pinstripe.client.api_key import proxy_for
from pinstripe.concurrency import backoff
from pinstripe.config.config import Config
from pinstripe.console.routes import UnknownPath, console_routes
from pinstripe.errors import PinstripeError
from pinstripe.gateway.app import GatewayApp
from pinstripe.gateway.deps import Deps
from pinstripe.gateway.http.auth import Auth
from pinstripe.gateway.proxy.proxy import open_proxy
from pinstripe.gateway.proxy.upstream import hosts_at
from pinstripe.gateway.syncs import SyncControl, Syncs
from pinstripe.gateway.wait.endpoint import WaitEndpoint
from pinstripe.gateway.wait.waiter import SyncRequester, Waiter
from pinstripe.gateway.webhooks import Webhooks
from pinstripe.store.pool import Pool, open_pool

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
        waits = Waiter(requester, settle_s=config.wait_settle)
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

        wait = WaitEndpoint(syncs, waits, allows=access.allows_wait)
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
        yield GatewayApp(parts, console_routes(access), UnknownPath())


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
