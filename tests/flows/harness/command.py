"""`pinstripe` as a user runs it: a process of its own, and no settings but those given."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

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


async def pinstripe(*words: str, env: Mapping[str, str] | None = None, cwd: str = "/") -> Ended:
    """Runs the command to its end."""
    async with started(*words, env=env, cwd=cwd) as process, asyncio.timeout(_TIMEOUT_S):
        out, err = await process.communicate()
        assert process.returncode is not None
        return Ended(process.returncode, out.decode(), err.decode())


@asynccontextmanager
async def started(
    *words: str, env: Mapping[str, str] | None = None, cwd: str = "/"
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command as a running process; killed at the end of the block if it still runs."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pinstripe",
        *words,
        env={**clean, **(env or {})},
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
