"""A connection pooler in transaction mode, as small as can be: what pgbouncer does, to test against.

A client holds a server from its first message until the server says that it is idle again; then the
server goes on top of the pile, and the next client that asks takes it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

_READY, _IDLE = b"Z", b"I"


@dataclass(eq=False)
class _Server:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@dataclass
class _Pool:
    socket: str
    free: list[_Server] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self._greet(reader, writer)
            while True:
                message = await _message(reader)
                if message[:1] == b"X":
                    return
                await self._work(message, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.close()
            self.tasks.discard(task)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Each client brings a server of its own into the pile."""
        length = await reader.readexactly(4)
        start = length + await reader.readexactly(int.from_bytes(length) - 4)
        server = _Server(*await asyncio.open_unix_connection(self.socket))
        server.writer.write(start)
        while True:
            answer = await _message(server.reader)
            writer.write(answer)
            if answer[:1] == _READY:
                break
        self.free.append(server)

    async def _work(
        self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One transaction of the client's, on one server."""
        server = self.free.pop()
        server.writer.write(first)
        forwarding = asyncio.create_task(_forward(reader, server.writer))
        try:
            while True:
                answer = await _message(server.reader)
                writer.write(answer)
                if answer[:1] == _READY and answer[-1:] == _IDLE:
                    break
        finally:
            forwarding.cancel()
            with contextlib.suppress(asyncio.CancelledError, asyncio.IncompleteReadError):
                await forwarding
            self.free.append(server)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(await _message(reader))


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(int.from_bytes(head[1:]) - 4)


@asynccontextmanager
async def transaction_pooler(url: str, directory: Path) -> AsyncIterator[str]:
    """The address of a pooler before the server at `url`, which is reached by a socket."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    port = query.get("port", ["5432"])[0]
    pool = _Pool(f"{query['host'][0]}/.s.PGSQL.{port}")
    listening = await asyncio.start_unix_server(pool.serve, path=f"{directory}/.s.PGSQL.{port}")
    try:
        yield parts._replace(query=f"host={quote(str(directory))}&port={port}").geturl()
    finally:
        listening.close()
        for task in list(pool.tasks):
            task.cancel()
        await asyncio.gather(*pool.tasks, return_exceptions=True)
        for server in pool.free:
            server.writer.close()
