"""Pinstripe's service in a process of its own, between the package and the simulator."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_START_S = 90.0
_STOP_S = 20.0


@asynccontextmanager
async def proxy_to(simulator: str, key: str, *, wanted: bool) -> AsyncIterator[str]:
    """The base address to give the package: the proxy's, or the simulator's own."""
    if not wanted:
        yield simulator
        return
    port = _free_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("STRIPE_", "PINSTRIPE_", "PG"))}
    env |= {"STRIPE_API_KEY": key, "STRIPE_API_BASE": simulator}
    with tempfile.TemporaryDirectory(prefix="pinstripe-examples-") as directory:
        command = ["-m", "pinstripe", "serve", "--port", str(port), "--data-dir", directory]
        command += ["--rate-limit", "none", "--endpoint-rate-limit", "none"]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, env=env, stdout=asyncio.subprocess.DEVNULL
        )
        try:
            await _answers(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            await asyncio.wait_for(process.wait(), _STOP_S)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def _answers(port: int) -> None:
    async with asyncio.timeout(_START_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            writer.close()
            return
