"""The whole HTTP surface of the gateway in one list, and the app that serves it.

    request -> for Stripe?  yes: `Instrumented` -> proxy
                            no:  `EdgeMiddleware` -> route -> `Auth` -> `Endpoint`

Requests to Stripe reach the proxy untouched, with one exception: a browser that would show the response
as a page, or run it, gets a 403. Stripe's hosts serve content of strangers, and here it would share the
console's origin. Requests, waits and webhooks are counted on the way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import cache

import msgspec
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pinstripe.concurrency import end
from pinstripe.gateway.api import catalog, events, status, syncs
from pinstripe.gateway.api.endpoint import Call, Endpoint, HttpMethod
from pinstripe.gateway.api.openapi import describe
from pinstripe.gateway.deps import Deps, Gateway
from pinstripe.gateway.http.errors import JSON, HTTPError, failure
from pinstripe.gateway.http.metrics import MEDIA as METRICS
from pinstripe.gateway.http.metrics import Meters, status_class
from pinstripe.gateway.http.middleware import EdgeMiddleware
from pinstripe.gateway.live.status_board import SyncStatus
from pinstripe.gateway.proxy.upstream import is_for_proxy
from pinstripe.gateway.wait.endpoint import NotInTime, Waited, WaitParameters
from pinstripe.store.changes import Change

_READS = frozenset(("GET", "HEAD"))


class Instrumented:
    """The proxy, counted. A raw ASGI app: no request object, nothing decoded."""

    def __init__(self, proxy: ASGIApp, meters: Meters) -> None:
        self._proxy = proxy
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope["headers"]:
            if name == b"sec-fetch-dest" and value != b"empty":
                await _NOT_A_PAGE(scope, receive, send)
                return
        meters, began = self._meters, time.perf_counter()
        status: int | None = None
        mirrored: str | None = None
        whole = False

        async def counted(message: Message) -> None:
            nonlocal status, mirrored, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                for name, value in message.get("headers", ()):
                    if name.lower() == b"pinstripe-mirrored":
                        mirrored = value.decode("latin-1").partition(";")[0]
                kind = "read" if scope["method"] in _READS else "write"
                meters.proxy_s.labels(kind).observe(time.perf_counter() - began)
            elif not message.get("more_body", False):
                whole = True
            await send(message)

        try:
            with meters.proxying.track_inprogress():
                await self._proxy(scope, receive, counted)
        finally:
            meters.proxy_answered(scope["method"], status if whole else None, mirrored)


async def wait(call: Call) -> Response:
    """Answers when the copy holds what Stripe had when the call arrived.

    Or exactly: `request=req_...` (its events are applied), `object=sub_...` (fetched now),
    `event=evt_...`. `timeout` in seconds; over it 504 with what is missing. By the admin token, the wait
    token, or a Stripe key of the account.
    """
    meters = call.gateway.meters
    with meters.waiting.track_inprogress():
        answer = await call.gateway.parts.wait(call.request)
    meters.waits.labels(status_class(answer.status_code)).inc()
    return answer


async def webhook(call: Call) -> Response:
    """Takes a webhook of Stripe's: checks its signature, and has the event log read at once.

    The event itself is not used. By the signature in `Stripe-Signature`.
    """
    answer = await call.gateway.parts.webhook(call.request)
    call.gateway.meters.webhooks.labels(status_class(answer.status_code)).inc()
    return answer


_NOT_A_PAGE = failure(
    403,
    "not_a_page",
    "A browser may not show what comes from Stripe as a page of this gateway.",
    "Call it from a program.",
)


async def description(call: Call) -> Response:
    """The description of the API, in OpenAPI 3.1."""
    return Response(_description(), media_type=JSON)


def _wait(method: HttpMethod) -> Endpoint:
    return Endpoint(
        method,
        "/wait/{kind}/{id}",
        wait,
        "wait",
        raw=True,
        takes=WaitParameters,
        shows=Waited,
        also={504: NotInTime},
    )


# Beside these: /v1/..., /v2/... and /HOST.stripe.com/..., which are the proxy's, and the console's pages.
ROUTES: tuple[Endpoint, ...] = (
    Endpoint("GET", "/api", catalog.about),
    Endpoint("GET", "/api/openapi.json", description),
    Endpoint("GET", "/api/tables", catalog.catalog_tables),
    Endpoint("GET", "/api/tables/{table}", catalog.catalog_table),
    Endpoint("GET", "/api/live", events.live, stream=events.LiveBoard, media=events.MEDIA),
    Endpoint("GET", "/api/platforms", syncs.list_platforms),
    Endpoint("GET", "/api/platforms/{id}", syncs.get_platform),
    Endpoint("GET", "/api/platforms/{id}/accounts", syncs.list_accounts),
    Endpoint("GET", "/api/syncs", syncs.list_syncs),
    Endpoint("POST", "/api/syncs", syncs.add_sync, status=201),
    Endpoint("GET", "/api/syncs/{id}", syncs.get_sync),
    Endpoint("PATCH", "/api/syncs/{id}", syncs.change_sync),
    Endpoint("DELETE", "/api/syncs/{id}", syncs.remove_sync, status=204),
    Endpoint("POST", "/api/syncs/{id}/pause", syncs.pause_sync),
    Endpoint("POST", "/api/syncs/{id}/resume", syncs.resume_sync),
    Endpoint("GET", "/api/syncs/{id}/status", status.status),
    Endpoint("GET", "/api/syncs/{id}/lag", status.lag),
    Endpoint("GET", "/api/syncs/{id}/budget", status.budget),
    Endpoint("GET", "/api/syncs/{id}/permissions", status.permissions),
    Endpoint("GET", "/api/syncs/{id}/events", events.events),
    Endpoint("GET", "/api/syncs/{id}/events/{event}", events.event),
    Endpoint("GET", "/api/syncs/{id}/changes", events.changes),
    Endpoint(
        "GET",
        "/api/syncs/{id}/changes/stream",
        events.change_stream,
        stream=Change,
        media=events.MEDIA,
    ),
    Endpoint(
        "GET", "/api/syncs/{id}/live", events.live_sync, stream=SyncStatus, media=events.MEDIA
    ),
    _wait("GET"),
    _wait("POST"),
    Endpoint("POST", "/webhooks/stripe/{id}", webhook, "signature", raw=True),
    Endpoint("GET", "/healthz", status.healthz, "anyone", raw=True),
    Endpoint(
        "GET",
        "/readyz",
        status.readyz,
        "anyone",
        raw=True,
        shows=status.Readiness,
        also={503: status.Readiness},
    ),
    Endpoint("GET", "/metrics", status.metrics, media=METRICS, raw=True),
)


class GatewayApp:
    """The ASGI app of a gateway with these parts. `state.gateway` is `request.app.state.gateway`.

    `extra_routes` come last: the console's pages. They are dressed and limited as all else, but have doors
    of their own. `not_found` answers what no route matches.
    """

    def __init__(
        self, parts: Deps, extra_routes: Sequence[BaseRoute] = (), not_found: ASGIApp | None = None
    ) -> None:
        self.gateway = gateway = Gateway(parts)
        self.state = State({"gateway": gateway})
        self._proxy = Instrumented(parts.proxy, gateway.meters)
        paths = dict.fromkeys(endpoint.path for endpoint in ROUTES)
        routes = [Route(path, _Path(gateway, path)) for path in paths]
        self._own = EdgeMiddleware(
            Router([*routes, *extra_routes], redirect_slashes=False, default=not_found),
            gateway.meters,
            https=parts.public_url.startswith("https:"),
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
        await end(running)
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
            raise HTTPError(
                405,
                "method_not_allowed",
                f"{self._path} does not take this method.",
                hint=f"It takes {allowed}.",
                headers={"Allow": allowed},
            )
        if endpoint.policy == "admin":
            await self._gateway.parts.access.require_admin(request)
        answer = await endpoint(Call(self._gateway, request, request.path_params))
        await answer(scope, receive, send)


@cache
def _description() -> bytes:
    return msgspec.json.encode(describe(ROUTES))
