"""An HTTP server that misbehaves on request: each request gets the next act of a script.

Raw asyncio, because a proper server would not cut its own answers. An act says whether the
connection stays open.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

DATE = "Thu, 01 Jan 2026 00:00:10 GMT"
DATE_UNIX = 1767225610
GOOD: dict[str, object] = {"id": "ch_1", "object": "charge", "note": "x" * 4000}

Act = Callable[[asyncio.StreamWriter], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    connection: int


class NastyServer:
    """Plays `acts` in order, the last one for ever. Keeps what it was asked in `requests`."""

    def __init__(self, *acts: Act) -> None:
        self._acts = list(acts)
        self._server: asyncio.Server | None = None
        self._open: set[tuple[asyncio.Task[None], asyncio.StreamWriter]] = set()
        self.requests: list[Request] = []
        self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        open_now = list(self._open)
        for _handler, writer in open_now:
            writer.close()
        for handler, _writer in open_now:
            await handler
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        handler = asyncio.current_task()
        assert handler is not None
        self._open.add((handler, writer))
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                number = self.connections
                while True:
                    self.requests.append(await _read_request(reader, number))
                    act = self._acts.pop(0) if len(self._acts) > 1 else self._acts[0]
                    if not await act(writer):
                        return
        finally:
            self._open.discard((handler, writer))
            writer.close()


async def _read_request(reader: asyncio.StreamReader, connection: int) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, _ = head[0].split(" ")
    pairs = (line.partition(":") for line in head[1:] if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body, connection)


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {v}" for name, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _stripe_headers(**more: str) -> dict[str, str]:
    headers = {
        "Date": DATE,
        "Request-Id": "req_1",
        "Stripe-Version": "2026-10-28.endive",
        "Content-Type": "application/json",
    }
    return headers | {name.replace("_", "-"): value for name, value in more.items()}


def raw(
    status: int, body: bytes, headers: Mapping[str, str] | None = None, *, keep: bool = True
) -> Act:
    """`body` as it is, with its true length unless `headers` give another."""

    async def act(writer: asyncio.StreamWriter) -> bool:
        given = _stripe_headers() if headers is None else dict(headers)
        writer.write(_head(status, {"Content-Length": str(len(body))} | given) + body)
        await writer.drain()
        return keep

    return act


def good(content: object = None, **headers: str) -> Act:
    """200 with `content` as JSON, indented as Stripe does."""
    body = json.dumps(GOOD if content is None else content, indent=2).encode()
    return raw(200, body, _stripe_headers(**headers))


def good_gzip() -> Act:
    """200, packed and chunked, as Stripe sends it."""
    packed = gzip.compress(json.dumps(GOOD, indent=2).encode())
    chunks = [packed[at : at + 20] for at in range(0, len(packed), 20)]
    return _chunked([*chunks, b""], Content_Encoding="gzip")


def error(status: int, code: str = "", message: str = "no", param: str = "", **headers: str) -> Act:
    """An error in Stripe's shape."""
    fields = {"type": "invalid_request_error", "code": code, "message": message, "param": param}
    content = {"error": {name: value for name, value in fields.items() if value}}
    return raw(status, json.dumps(content).encode(), _stripe_headers(**headers))


def cut_length() -> Act:
    """Announces more bytes than it sends."""
    body = json.dumps(GOOD).encode()
    return raw(200, body, _stripe_headers(Content_Length=str(len(body) + 100)), keep=False)


def cut_chunked() -> Act:
    """Closes without the last chunk."""
    return _chunked([json.dumps(GOOD).encode()])


def cut_gzip() -> Act:
    """A gzip stream that stops in the middle, in a body that is whole by its framing."""
    packed = gzip.compress(json.dumps(GOOD).encode())
    return raw(200, packed[: len(packed) // 2], _stripe_headers(Content_Encoding="gzip"))


def damaged_gzip() -> Act:
    """A gzip stream whose checksum is wrong."""
    packed = bytearray(gzip.compress(json.dumps(GOOD).encode()))
    packed[-8] ^= 0xFF
    return raw(200, bytes(packed), _stripe_headers(Content_Encoding="gzip"))


def not_gzip() -> Act:
    """Says gzip and is not."""
    return raw(200, json.dumps(GOOD).encode(), _stripe_headers(Content_Encoding="gzip"))


def _chunked(chunks: list[bytes], **headers: str) -> Act:
    async def act(writer: asyncio.StreamWriter) -> bool:
        writer.write(_head(200, _stripe_headers(Transfer_Encoding="chunked", **headers)))
        for chunk in chunks:
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        await writer.drain()
        return not chunks[-1]

    return act


async def hang(writer: asyncio.StreamWriter) -> bool:
    """Says nothing until the other side gives up."""
    await writer.wait_closed()
    return False


async def hang_in_the_body(writer: asyncio.StreamWriter) -> bool:
    """Sends the headers and half of the body, then nothing."""
    writer.write(_head(200, _stripe_headers(Content_Length="1000")) + b'{"id":')
    await writer.drain()
    await writer.wait_closed()
    return False


async def close(writer: asyncio.StreamWriter) -> bool:
    """Closes without an answer."""
    return False


async def reset(writer: asyncio.StreamWriter) -> bool:
    """Tears the connection down (RST)."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
    return False


async def nonsense(writer: asyncio.StreamWriter) -> bool:
    """Something that is not HTTP."""
    writer.write(b"220 mail.example.com ESMTP ready\r\n")
    await writer.drain()
    return False


async def good_then_close(writer: asyncio.StreamWriter) -> bool:
    """A good answer that promises to keep the connection, which is then closed."""
    await good()(writer)
    return False
