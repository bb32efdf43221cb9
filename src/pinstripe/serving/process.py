"""One process that syncs, as the service sees it: started, listened to, ended.

It runs the code of `pinstripe sync` in an interpreter of its own, so that the decoding of a large page
never delays a request to the gateway, and its death is its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import msgspec

from pinstripe.serving.wire import Order, Report, decode_report, encode, opened
from pinstripe.settings import SETTINGS

_ARGV = (sys.executable, "-m", "pinstripe", "sync-worker")
_CALM_S = 6.0
"""How long a process may take to end in order; then it is told by a signal, and at last killed."""
_SIGNAL_S = 2.0


@dataclass(frozen=True, slots=True)
class SyncProcess:
    """A running process. End it with `stop`."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def pid(self) -> int:
        return self.process.pid

    async def reports(self) -> AsyncIterator[Report]:
        """What it says, until it ends."""
        try:
            while line := await self.reader.readline():
                yield decode_report(line)
        except (ConnectionError, msgspec.MsgspecError, ValueError):
            return  # It broke off in the middle of a line.

    async def ended(self) -> int:
        """The exit code; negative: the signal that killed it."""
        return await self.process.wait()

    async def stop(self) -> None:
        """Ends it, in order if it lets itself be ended so."""
        self.writer.close()
        for impatience, wait_s in (
            (None, _CALM_S),
            (self.process.terminate, _SIGNAL_S),
            (self.process.kill, None),
        ):
            if impatience is not None and self.process.returncode is None:
                impatience()
            try:
                async with asyncio.timeout(wait_s):
                    await self.process.wait()
                return
            except TimeoutError:
                continue


async def start(order: Order, *, argv: Sequence[str] = _ARGV) -> SyncProcess:
    """A process with this order. Raises OSError where the machine lets no process start."""
    ours, its = socket.socketpair()
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=its.fileno(),
            stdout=None if order.shown else asyncio.subprocess.DEVNULL,
            env=_environment(),
            # Ctrl-C in the terminal is for the service, which then ends its processes in order.
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        its.close()
    reader, writer = await opened(ours)
    writer.write(encode(order))
    return SyncProcess(process, reader, writer)


def _environment() -> dict[str, str]:
    """Ours, without any setting: those of the sync are in its order."""
    settings = {setting.env for setting in SETTINGS}
    return {name: value for name, value in os.environ.items() if name not in settings}
