"""Sends the caller Stripe's response with our headers, or an error in Stripe's shape.

    Pinstripe-Mirrored: yes | no | later      whether the objects are in Postgres
    Pinstripe-Reason: unknown-account         why not, or not yet
    Pinstripe-Sync: default                   the sync whose tables were written
    Pinstripe-As-Of: 2026-11-23T12:00:00Z     up to when all events are applied
    Pinstripe-Waited: yes | no                with `Pinstripe-Wait`: whether its events are applied

A response that breaks off also breaks off for the caller: it is never completed here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

import msgspec
import structlog

from pinstripe.gateway.http.middleware import disconnected
from pinstripe.gateway.proxy.mirroring import MirrorResult, ProxyRequest
from pinstripe.gateway.proxy.request import METHODS, Message, Receive
from pinstripe.gateway.proxy.upstream import UpstreamError, UpstreamResponse

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

STALLED_S = 60.0
"""How long a caller may read nothing of a streamed response."""


def is_json(response: UpstreamResponse) -> bool:
    return response.header(b"content-type").startswith(b"application/json")


def our_headers(
    outcome: MirrorResult, as_of: datetime | None, *, waited: bool | None = None
) -> Headers:
    headers = [(b"pinstripe-mirrored", outcome.mirrored.encode())]
    if outcome.reason:
        headers.append((b"pinstripe-reason", outcome.reason.encode()))
    if outcome.sync is not None:
        headers.append((b"pinstripe-sync", outcome.sync.id.encode()))
    if as_of is not None:
        text = as_of.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        headers.append((b"pinstripe-as-of", text.encode()))
    if waited is not None:
        headers.append((b"pinstripe-waited", b"yes" if waited else b"no"))
    return headers


async def send_response(send: Send, response: UpstreamResponse, body: bytes, ours: Headers) -> None:
    """The answer with the body that was read."""
    headers = [*response.headers, *ours]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream_response(
    send: Send,
    response: UpstreamResponse,
    ours: Headers,
    *,
    begun: bytes = b"",
    receive: Receive | None = None,
) -> None:
    """The answer as it comes, after what of it has been read; ends when the caller goes.

    `receive` is None while the caller's body is still on its way: it has only one reader.
    """
    headers = [*response.headers, *ours]
    gone = asyncio.create_task(disconnected(receive)) if receive is not None else None
    try:
        async with asyncio.timeout(STALLED_S) as patience:
            await send(
                {"type": "http.response.start", "status": response.status, "headers": headers}
            )
            if begun:
                await send({"type": "http.response.body", "body": begun, "more_body": True})
            async for chunk in response.chunks():
                patience.reschedule(asyncio.get_running_loop().time() + STALLED_S)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                patience.reschedule(asyncio.get_running_loop().time() + STALLED_S)
                if gone is not None and gone.done():
                    response.close()
                    return
            await send({"type": "http.response.body", "body": b""})
    except (UpstreamError, TimeoutError) as error:
        # The body stays without its end, and the server closes the connection: the caller sees that
        # it is not complete.
        _log.info("proxy.cut", reason=str(error) or "the caller took nothing of it")
        response.close()
    finally:
        if gone is not None:
            gone.cancel()


async def send_bad_gateway(send: Send, request: ProxyRequest, error: UpstreamError) -> None:
    """502 in Stripe's shape, saying whether the write may have been done."""
    message = f"Stripe did not answer: {error.reason}."
    if not error.sent:
        message += " The request was not sent."
    elif request.writes:
        message += (
            " It may or may not have been done: repeat it with the same Idempotency-Key, or look."
        )
    _log.warning("proxy.unanswered", method=request.method, reason=error.reason, sent=error.sent)
    await _say(send, 502, "api_error", message)


async def send_rejected(send: Send, status: int, reason: str) -> None:
    """Nothing was passed on."""
    await _say(send, status, "invalid_request_error", reason)


async def _say(send: Send, status: int, kind: str, message: str) -> None:
    body = msgspec.json.encode({"error": {"type": kind, "message": f"Pinstripe: {message}"}})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"pinstripe-mirrored", b"no"),
    ]
    if status == 405:
        headers.append((b"allow", ", ".join(METHODS).encode()))
    if status in (408, 413):
        headers.append((b"connection", b"close"))  # The rest of the body is not read.
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
