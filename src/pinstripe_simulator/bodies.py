"""Request bodies: reading them whole, multipart uploads, JSON for v2."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

import msgspec

from pinstripe_simulator.replies import refused

Receive = Callable[[], Awaitable[dict[str, Any]]]


async def read(receive: Receive) -> bytes:
    """The whole body."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def gone(receive: Receive, at_most_s: float) -> None:
    """Wait until the client hangs up, or so long."""
    try:
        async with asyncio.timeout(at_most_s):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return


def multipart(
    body: bytes, content_type: str
) -> tuple[list[tuple[str, str]], dict[str, tuple[str, bytes]]]:
    """Form fields and files (name -> (file name, content))."""
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body
    )
    pairs: list[tuple[str, str]] = []
    files: dict[str, tuple[str, bytes]] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if not isinstance(name, str) or not isinstance(content, bytes):
            continue
        file_name = part.get_filename()
        if file_name is None:
            pairs.append((name, content.decode()))
        else:
            files[name] = (file_name, content)
    return pairs, files


def json_params(body: bytes) -> dict[str, Any]:
    """Parameters of a v2 request; numbers and booleans as text, as forms give them."""
    try:
        found = msgspec.json.decode(body or b"{}")
    except msgspec.DecodeError:
        raise refused("Invalid JSON in the request body.") from None
    made = _as_text(found)
    return made if isinstance(made, dict) else {}


def _as_text(value: object) -> object:
    if isinstance(value, dict):
        return {str(k): _as_text(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_as_text(v) for v in value]
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
