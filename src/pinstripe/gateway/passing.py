"""What passes through the app to others (proxy, waits, webhooks), counted on the way.

The proxy's requests are touched in one respect only: a browser that would show an answer as a page, or run
it, gets none. What Stripe's hosts serve was written by strangers, and here it would stand on the console's
own origin.
"""

from __future__ import annotations

import time

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pinstripe.gateway.endpoint import Call
from pinstripe.gateway.failures import failure
from pinstripe.gateway.meters import Meters, status_class

_READS = frozenset(("GET", "HEAD"))


class Passing:
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
                meters.proxy_s[kind].observe(time.perf_counter() - began)
            elif not message.get("more_body", False):
                whole = True
            await send(message)

        meters.proxying += 1
        try:
            await self._proxy(scope, receive, counted)
        finally:
            meters.proxying -= 1
            meters.proxy_answered(scope["method"], status if whole else None, mirrored)


async def wait(call: Call) -> Response:
    """Answers when the copy holds what Stripe had when the call arrived.

    Or exactly: `request=req_...` (its events are applied), `object=sub_...` (fetched now),
    `event=evt_...`. `timeout` in seconds; over it 504 with what is missing. By the admin token, the wait
    token, or a Stripe key of the account.
    """
    meters = call.gateway.meters
    meters.waiting += 1
    try:
        answer = await call.gateway.parts.wait(call.request)
    finally:
        meters.waiting -= 1
    meters.waits[status_class(answer.status_code)] += 1
    return answer


async def webhook(call: Call) -> Response:
    """Takes a webhook of Stripe's: checks its signature, and has the event log read at once.

    The event itself is not used. By the signature in `Stripe-Signature`.
    """
    answer = await call.gateway.parts.webhook(call.request)
    call.gateway.meters.webhooks[status_class(answer.status_code)] += 1
    return answer


_NOT_A_PAGE = failure(
    403,
    "not_a_page",
    "A browser may not show what comes from Stripe as a page of this gateway.",
    "Call it from a program.",
)
