"""What a service and the processes that sync say to each other, over a pair of sockets.

The child's end is its stdin. The first line is the order, from above: all settings, key included, which
so stand in no command line and in no environment. Then the child reports, a line for each change. When
the service goes, however it goes, the child reads the end and ends too.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Literal

import msgspec

from pinstripe.config import Config

_LINE_BYTES = 1024 * 1024
"""The longest line: settings may name all tables."""


class Order(msgspec.Struct, frozen=True):
    """What to sync. `shown`: with progress and summary on the terminal."""

    config: Config
    shown: bool = False


class Report(msgspec.Struct, frozen=True):
    """How it stands. `lasting`: it will be so until settings or key are changed."""

    activity: Literal["starting", "backfilling", "following", "waiting", "ended"]
    reason: str = ""
    remedy: str = ""
    lasting: bool = False
    exit_code: int = 0


def encode(message: Order | Report) -> bytes:
    """One line."""
    return msgspec.json.encode(message, enc_hook=str) + b"\n"


def decode_order(line: bytes) -> Order:
    """The order in `line`."""
    return msgspec.json.decode(line, type=Order, dec_hook=_path)


def decode_report(line: bytes) -> Report:
    """The report in `line`."""
    return msgspec.json.decode(line, type=Report)


def _path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"no {kind.__name__} is ever sent")


class Superior:
    """The service, as its child sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._told: Report | None = None

    @classmethod
    async def on_stdin(cls) -> Superior:
        """The service that started this process."""
        return cls(*await opened(socket.socket(fileno=0)))

    async def order(self) -> Order:
        return decode_order(await self._reader.readline())

    def report(self, report: Report) -> None:
        """Tells the service, if it is news."""
        if report != self._told:
            self._told = report
            self._writer.write(encode(report))

    async def flushed(self) -> None:
        """Returns when all was read, or the service is gone."""
        try:
            await self._writer.drain()
        except ConnectionError:
            return

    async def gone(self) -> None:
        """Returns when the service wants this process to end, or has ended itself."""
        try:
            await self._reader.read()
        except ConnectionError:
            return


async def opened(sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams over one end of the pair."""
    return await asyncio.open_unix_connection(sock=sock, limit=_LINE_BYTES)
