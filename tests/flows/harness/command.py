"""`pinstripe` as a user runs it: a process of its own, and no settings but those given.

The process is forked from one that has imported the product (see `launcher`); that `python -m pinstripe`
itself starts is shown by the tests of the documents and of the wheel, and by the syncs that `serve` starts.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache

from tests.house.tree import ROOT

from pinstripe.store.embedded.process import find_binaries

_TIMEOUT_S = 60.0
_FOREIGN = ("STRIPE_", "PINSTRIPE_", "DATABASE_URL", "PG")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass(slots=True)
class Command:
    """A command under way, with what `asyncio.subprocess.Process` offers of one."""

    pid: int
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader
    ended: asyncio.Task[int]

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self.ended.result() if self.ended.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self.ended)

    async def communicate(self) -> tuple[bytes, bytes]:
        """What it still writes to stdout and stderr, when it has ended."""
        out, err, _ = await asyncio.gather(self.stdout.read(), self.stderr.read(), self.wait())
        return out, err

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


async def pinstripe(*words: str, env: Mapping[str, str] | None = None, cwd: str = "/") -> Ended:
    """Runs the command to its end."""
    async with started(*words, env=env, cwd=cwd) as process, asyncio.timeout(_TIMEOUT_S):
        out, err = await process.communicate()
        assert process.returncode is not None
        return Ended(process.returncode, out.decode(), err.decode())


@asynccontextmanager
async def started(
    *words: str, env: Mapping[str, str] | None = None, cwd: str = "/"
) -> AsyncIterator[Command]:
    """The command as a running process; killed at the end of the block if it still runs."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
    request = {"words": words, "env": {**clean, **(env or {})}, "cwd": cwd}
    pipes = [os.pipe() for _ in range(3)]
    theirs = [write for _, write in pipes]
    socket.send_fds(_launcher(), [json.dumps(request).encode()], theirs)
    for pipe in theirs:
        os.close(pipe)
    (out, reads_out), (err, reads_err), (report, reads_report) = [
        await _reader(read) for read, _ in pipes
    ]
    process = Command(int(await report.readline()), out, err, asyncio.create_task(_end(report)))
    try:
        yield process
    finally:
        process.kill()
        await process.wait()
        for transport in (reads_out, reads_err, reads_report):
            transport.close()


async def _end(report: asyncio.StreamReader) -> int:
    return int(await report.readline())


async def _reader(pipe: int) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb", 0)
    )
    return reader, transport


@cache
def _launcher() -> socket.socket:
    """Where requests for a command are sent: one launcher serves all tests of this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.flows.harness.launcher", str(theirs.fileno())],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def close() -> None:
        ours.close()
        process.wait()

    atexit.register(close)
    return ours


async def dumped(database: str) -> str:
    """The whole database as `pg_dump` writes it."""
    program = find_binaries(None).bin_dir / "pg_dump"
    process = await asyncio.create_subprocess_exec(
        str(program), "--dbname", database, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()
