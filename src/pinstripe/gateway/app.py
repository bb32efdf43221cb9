"""The whole HTTP surface of the gateway, on one screen; and the app that serves it.

What goes to Stripe is handed to the proxy as it came, before anything of ours sees it. The rest meets, in
this order: limits and the one error shape (`outside`), the route list, the door (`access`), the
endpoint's own reading of query and body (`endpoint`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

import msgspec
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Receive, Scope, Send

from pinstripe.gateway import (
    api_catalog,
    api_events,
    api_standing,
    api_syncs,
    health,
    passing,
    streams,
)
from pinstripe.gateway.board import Live
from pinstripe.gateway.endpoint import Call, Endpoint
from pinstripe.gateway.failures import JSON, Rejected
from pinstripe.gateway.hosts import is_for_proxy
from pinstripe.gateway.metrics import MEDIA as METRICS
from pinstripe.gateway.openapi import describe
from pinstripe.gateway.outside import Outside
from pinstripe.gateway.parts import Gateway, GatewayParts
from pinstripe.gateway.wait import NotInTime, Waited
from pinstripe.store.change_pages import Change


async def description(call: Call) -> Response:
    """The description of the API, in OpenAPI 3.1."""
    return Response(_description(), media_type=JSON)


_LATE: dict[int, type] = {504: NotInTime}

# Beside these: /v1/..., /v2/... and /HOST.stripe.com/..., which are the proxy's, and the console's pages.
ROUTES: tuple[Endpoint, ...] = (
    Endpoint("GET", "/api", api_catalog.about),
    Endpoint("GET", "/api/openapi.json", description),
    Endpoint("GET", "/api/tables", api_catalog.catalog_tables),
    Endpoint("GET", "/api/tables/{table}", api_catalog.catalog_table),
    Endpoint("GET", "/api/live", streams.live, stream=streams.LiveBoard, media=streams.MEDIA),
    Endpoint("GET", "/api/syncs", api_syncs.list_syncs),
    Endpoint("POST", "/api/syncs", api_syncs.add_sync, status=201),
    Endpoint("GET", "/api/syncs/{id}", api_syncs.get_sync),
    Endpoint("PATCH", "/api/syncs/{id}", api_syncs.change_sync),
    Endpoint("DELETE", "/api/syncs/{id}", api_syncs.remove_sync, status=204),
    Endpoint("POST", "/api/syncs/{id}/pause", api_syncs.pause_sync),
    Endpoint("POST", "/api/syncs/{id}/resume", api_syncs.resume_sync),
    Endpoint("GET", "/api/syncs/{id}/status", api_standing.status),
    Endpoint("GET", "/api/syncs/{id}/lag", api_standing.lag),
    Endpoint("GET", "/api/syncs/{id}/budget", api_standing.budget),
    Endpoint("GET", "/api/syncs/{id}/permissions", api_standing.permissions),
    Endpoint("GET", "/api/syncs/{id}/events", api_events.events),
    Endpoint("GET", "/api/syncs/{id}/events/{event}", api_events.event),
    Endpoint("GET", "/api/syncs/{id}/changes", api_events.changes),
    Endpoint(
        "GET",
        "/api/syncs/{id}/changes/stream",
        streams.change_stream,
        stream=Change,
        media=streams.MEDIA,
    ),
    Endpoint("GET", "/api/syncs/{id}/live", streams.live_sync, stream=Live, media=streams.MEDIA),
    Endpoint("GET", "/wait/{kind}/{id}", passing.wait, "wait", raw=True, shows=Waited, also=_LATE),
    Endpoint("POST", "/wait/{kind}/{id}", passing.wait, "wait", raw=True, shows=Waited, also=_LATE),
    Endpoint("POST", "/webhooks/stripe/{id}", passing.webhook, "signature", raw=True),
    Endpoint("GET", "/healthz", health.healthz, "anyone", raw=True),
    Endpoint(
        "GET",
        "/readyz",
        health.readyz,
        "anyone",
        raw=True,
        shows=health.Readiness,
        also={503: health.Readiness},
    ),
    Endpoint("GET", "/metrics", health.metrics, media=METRICS, raw=True),
)


def make_app(parts: GatewayParts, extra_routes: Sequence[BaseRoute] = ()) -> GatewayApp:
    """The ASGI app of a gateway with these parts. `extra_routes` come last: the console's pages.

    They are dressed and limited as all else, but have doors of their own.
    """
    return GatewayApp(Gateway(parts), extra_routes)


class GatewayApp:
    """Dispatches to the proxy and to the routes. `state.gateway` is `request.app.state.gateway`."""

    def __init__(self, gateway: Gateway, extra_routes: Sequence[BaseRoute]) -> None:
        self.state = State({"gateway": gateway})
        self.gateway = gateway
        self._proxy = passing.Passing(gateway.parts.proxy, gateway.meters)
        paths = dict.fromkeys(endpoint.path for endpoint in ROUTES)
        routes = [Route(path, _Path(gateway, path)) for path in paths]
        self._own = Outside(
            Router([*routes, *extra_routes], redirect_slashes=False),
            gateway.meters,
            https=gateway.parts.public_url.startswith("https:"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if is_for_proxy(scope["path"]):
                await self._proxy(scope, receive, send)
                return
            scope["app"] = self
            await self._own(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            # A websocket: there are none. Closing before accepting is a 403.
            await send({"type": "websocket.close", "code": 1000})

    async def _live(self, receive: Receive, send: Send) -> None:
        """What runs beside the requests, from the server's start to its end."""
        await receive()
        running = asyncio.create_task(self.gateway.run(), name="gateway")
        await send({"type": "lifespan.startup.complete"})
        stopping = asyncio.ensure_future(receive())
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            stopping.cancel()
            await running
        self.gateway.close()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await send({"type": "lifespan.shutdown.complete"})


class _Path:
    """All endpoints of one path, as one raw route: so that 405 can name every method."""

    def __init__(self, gateway: Gateway, path: str) -> None:
        self._gateway = gateway
        self._path = path
        self._here: dict[str, Endpoint] = {e.method: e for e in ROUTES if e.path == path}
        if "GET" in self._here and self._here["GET"].stream is None:
            self._here["HEAD"] = self._here["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        endpoint = self._here.get(request.method)
        if endpoint is None:
            allowed = ", ".join(sorted(self._here))
            raise Rejected(
                405,
                "method_not_allowed",
                f"{self._path} does not take this method.",
                hint=f"It takes {allowed}.",
                headers={"Allow": allowed},
            )
        if endpoint.door == "admin":
            await self._gateway.parts.access.admit(request)
        answer = await endpoint(Call(self._gateway, request, request.path_params))
        await answer(scope, receive, send)


@cache
def _description() -> bytes:
    return msgspec.json.encode(describe(ROUTES))
