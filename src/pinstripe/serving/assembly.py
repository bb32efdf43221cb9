"""The gateway, put together: each part with the seams that the others give it.

    async with gateway(config, syncs, control, url) as app: ...

The parts know nothing of each other; here the proxy gets its bell, waits their access, and the app all of
them. What runs beside (a bell that listens, a pool that is opened when it can be) ends with the block.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

from starlette.types import ASGIApp

from pinstripe.client.address import proxy_for
from pinstripe.config import Config
from pinstripe.console.routes import console_routes
from pinstripe.gateway.access import Access
from pinstripe.gateway.app import GatewayApp, make_app
from pinstripe.gateway.bell import Bell
from pinstripe.gateway.control import SyncControl
from pinstripe.gateway.hosts import hosts_at
from pinstripe.gateway.parts import GatewayParts
from pinstripe.gateway.proxy import open_proxy
from pinstripe.gateway.syncs import Syncs
from pinstripe.gateway.wait import WaitEndpoint
from pinstripe.gateway.waits import Waits
from pinstripe.gateway.webhooks import Webhooks
from pinstripe.serving.pool import OwnPool

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
        bell = Bell(lambda: database_url)
        waits = Waits(bell)
        for name, work in (("pool", pool.run()), ("bell", bell.run())):
            stack.callback(group.create_task(work, name=name).cancel)
        stack.push_async_callback(waits.close)
        proxy = await stack.enter_async_context(
            open_proxy(
                syncs,
                hosts=hosts_at(config.stripe_url),
                ring=bell.ring,
                wait_for_request=waits.request_applied,
                patience_s=config.mirror_patience,
                body_limit=config.proxy_body_limit * _MB,
                own_tokens=(config.admin_token, config.wait_token),
                http_proxy=proxy_for(config.stripe_url),
            )
        )
        public_url = config.public_url or url
        access = Access(
            admin_token=config.admin_token,
            wait_token=config.wait_token,
            public_url=public_url,
            owns=proxy.callers.may_use,
        )

        wait = WaitEndpoint(syncs, waits, settle_s=config.wait_settle, allows=access.allows_wait)
        webhooks = Webhooks(syncs, bell, tolerance_s=config.webhook_tolerance)
        parts = GatewayParts(
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
