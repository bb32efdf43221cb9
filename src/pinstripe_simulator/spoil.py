"""Sending answers, whole or spoiled: cut short, dripped, reset, not what they claim to be."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from pinstripe_simulator.faults import Fault
from pinstripe_simulator.replies import Reply

Send = Callable[[dict[str, Any]], Awaitable[None]]
TRANSPORT = "pinstripe.transport"
"""Key of the scope under which the server's protocol leaves the connection's transport."""
_PIECES = 10


async def send_reply(send: Send, reply: Reply, *, head: bool = False) -> None:
    """The answer as it should be."""
    await send(_start(reply, len(reply.body)))
    await send({"type": "http.response.body", "body": b"" if head else reply.body})


async def send_spoiled(scope: dict[str, Any], send: Send, reply: Reply, fault: Fault) -> None:
    """The answer as `fault` leaves it."""
    half = len(reply.body) // 2
    if fault.kind == "reset_after":
        await abort(scope)
    elif fault.kind in ("reset_in_body", "cut"):
        await send(_start(reply, len(reply.body)))
        await send({"type": "http.response.body", "body": reply.body[:half], "more_body": True})
        if fault.kind == "cut":
            scope[TRANSPORT].close()
        else:
            await abort(scope)
    elif fault.kind == "drip":
        await send(_start(reply, len(reply.body)))
        size = max(1, -(-len(reply.body) // _PIECES))
        for at in range(0, len(reply.body), size):
            await asyncio.sleep(fault.seconds / _PIECES)
            piece = reply.body[at : at + size]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    elif fault.kind == "gzip_garbage":
        headers = reply.headers | {"Content-Encoding": "gzip"}
        await send_reply(send, Reply(b"\x1f\x8b\x08garbage" * 20, reply.status, headers))
    elif fault.kind == "html":
        page = b"<html><body><h1>Welcome to the hotel network</h1></body></html>"
        await send_reply(send, Reply(page, 200, content_type="text/html"))
    else:
        headers = {k: v for k, v in reply.headers.items() if k != "Content-Encoding"}
        await send_reply(send, Reply(b'{\n  "object": "list",\n  "data": [', 200, headers))


async def abort(scope: dict[str, Any]) -> None:
    """Reset the connection (RST, not FIN): nothing that is buffered gets out."""
    transport: asyncio.Transport = scope[TRANSPORT]
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:  # Else the client has left first.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    await asyncio.sleep(0)  # Lets the server see that the client is gone, or it logs an error.


def _start(reply: Reply, length: int) -> dict[str, Any]:
    headers = [(k.lower().encode(), v.encode()) for k, v in reply.headers.items()]
    headers.append((b"content-type", reply.content_type.encode()))
    headers.append((b"content-length", b"%d" % length))
    return {"type": "http.response.start", "status": reply.status, "headers": headers}
