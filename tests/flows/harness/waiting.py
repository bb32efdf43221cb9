"""A gateway and a process that syncs, on one database: what the tests of waiting run against."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from tests.flows.harness.account import SMALL, open_copy
from tests.flows.harness.gateway_account import GatewayAccount, gateway_account

from pinstripe.client.client import StripeClient
from pinstripe.client.response import Margins
from pinstripe.gateway.syncs import Named
from pinstripe.gateway.wait.endpoint import WaitEndpoint
from pinstripe.gateway.wait.waiter import SyncRequester, Waiter
from pinstripe.gateway.webhooks import Webhooks
from pinstripe.sync.events.poller import PollIntervals
from pinstripe.sync.follower import Follower
from pinstripe.sync.relist import Intervals
from pinstripe_simulator.server import Running


@dataclass(slots=True)
class Gateway:
    """The parts that are under test, and a client of theirs."""

    account: GatewayAccount
    requester: SyncRequester
    waits: Waiter
    endpoint: WaitEndpoint
    webhooks: Webhooks
    app: Starlette
    http: httpx.AsyncClient

    async def wait(self, query: str = "") -> httpx.Response:
        return await self.http.get(f"/wait/stripe/default?{query}")

    @property
    def stripe(self) -> StripeClient:
        return self.account.sync.source.stripe


async def _everybody(_: Request, __: Named | None) -> bool:
    return True


@asynccontextmanager
async def gateway(
    sim: Running, database: str, *, settle_s: float = 0.0, secrets: tuple[str, ...] = ()
) -> AsyncIterator[Gateway]:
    """A gateway without anybody who syncs."""
    async with gateway_account(sim, database, webhook_secrets=secrets) as account:
        requester = SyncRequester(lambda: database)
        waits = Waiter(requester, settle_s=settle_s)
        endpoint = WaitEndpoint(account.syncs, waits, allows=_everybody)
        webhooks = Webhooks(account.syncs, requester)
        app = Starlette(
            routes=[
                Route("/wait/{kind}/{id}", endpoint.answer, methods=["GET", "POST"]),
                Route("/webhooks/{kind}/{id}", webhooks.answer, methods=["POST"]),
            ]
        )
        running = asyncio.create_task(requester.run())
        transport = httpx.ASGITransport(app)
        try:
            async with httpx.AsyncClient(
                transport=transport, base_url="http://gateway", timeout=60
            ) as http:
                yield Gateway(account, requester, waits, endpoint, webhooks, app, http)
        finally:
            await waits.close()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def syncing(
    sim: Running,
    database: str,
    *,
    poll_s: float = 0.5,
    complete: bool = True,
    pace: PollIntervals | None = None,
    intervals: Intervals | None = None,
    margins: Margins = SMALL,
) -> AsyncIterator[Follower]:
    """A process that follows the account; its first copy is complete, or never will be."""
    async with open_copy(sim, database, margins=margins) as copy:
        follower = Follower(
            copy.source,
            copy.budget,
            since=float(int(time.time()) - 1),
            pace=pace or PollIntervals(poll_s=poll_s),
            intervals=intervals,
            previews=False,
        )
        running = asyncio.create_task(follower.run())
        if complete:
            follower.backfilled()
        try:
            yield follower
        finally:
            running.cancel()
            ended = await asyncio.gather(running, return_exceptions=True)
            if not isinstance(ended[0], asyncio.CancelledError):
                raise AssertionError("The process that syncs has died.") from ended[0]


async def made_customer(stripe: StripeClient, name: str) -> tuple[str, str]:
    """(id, id of the request) of a new customer."""
    response = await stripe.post("/v1/customers", [("name", name)], endpoint="POST /v1/customers")
    return json.loads(response.body)["id"], response.request_id


async def renamed(stripe: StripeClient, key: str, name: str) -> str:
    """Gives a customer another name; the id of the request."""
    response = await stripe.post(
        f"/v1/customers/{key}", [("name", name)], endpoint="POST /v1/customers/{customer}"
    )
    return response.request_id
