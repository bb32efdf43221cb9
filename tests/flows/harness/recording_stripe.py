"""A server that writes down each request to the byte and answers with the bytes it is told to.

For what a simulator must not decide: whether a proxy passes on exactly what it got, both ways.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

PLAIN = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    b"Request-Id: req_1\r\nDate: Mon, 23 Nov 2026 12:00:00 GMT\r\n\r\n{}"
)


@dataclass
class Recorded:
    """One request. `head` is everything up to the empty line."""

    head: bytes
    body: bytes

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        pairs = (line.partition(b": ") for line in self.head.split(b"\r\n")[1:] if line)
        return [(name.lower(), value) for name, _, value in pairs]


@dataclass
class Recorder:
    """`answer` is sent to each request; `hang_up`: the connection is closed after it."""

    url: str = ""
    answer: bytes = PLAIN
    hang_up: bool = False
    requests: list[Recorded] = field(default_factory=list)
    began: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.began.set()
                one = Recorded(head, b"")
                told = dict(one.headers)
                if told.get(b"transfer-encoding") == b"chunked":
                    one.body = await _chunked(reader)
                else:
                    one.body = await reader.readexactly(int(told.get(b"content-length", b"0")))
                self.requests.append(one)
                bodiless = one.line.startswith(b"HEAD ")
                writer.write(
                    self.answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if bodiless else self.answer
                )
                await writer.drain()
                if self.hang_up:
                    break
        writer.close()


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


@asynccontextmanager
async def recording() -> AsyncIterator[Recorder]:
    """The server, for the block."""
    recorder = Recorder()
    server = await asyncio.start_server(recorder.serve, "127.0.0.1", 0)
    recorder.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield recorder
    finally:
        server.close()


async def raw(url: str, request: bytes, *, hang_up: bool = False) -> bytes:
    """Sends bytes as they are; gives the answer, or what came of it until the server hung up.

    `hang_up`: closes without waiting for any answer.
    """
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        with suppress(ConnectionError):
            writer.write(request)
            await writer.drain()
        return b"" if hang_up else await asyncio.wait_for(_answer(reader), 10)
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> bytes:
    came = b""
    try:
        came = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (
                line.partition(b":")[2]
                for line in came.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            ),
            None,
        )
        return came + (
            await reader.read() if length is None else await reader.readexactly(int(length))
        )
    except asyncio.IncompleteReadError as cut:
        return came + cut.partial
    except ConnectionError:
        return came
