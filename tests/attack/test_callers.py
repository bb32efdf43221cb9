"""What one caller may do while another is answered: how long the other waits, and what the memory does.

Bounds are wide: they tell a service that is shared out from one that is taken, on any machine.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import running
from tests.flows.harness.serving import SECRET, Served, env_of, served

MOST_MB = 250
"""Beyond what the service held before."""
LONGEST_S = 4.0


def memory_mb(service: Served) -> float:
    """Of the process and those that it started, but for Postgres: it is the database's own."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{service.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@asynccontextmanager
async def crowd(service: Served, number: int, said: bytes) -> AsyncIterator[None]:
    """So many connections of one address, each of which has said this much and no more."""
    host, port = service.url.removeprefix("http://").split(":")
    writers = []
    for _ in range(number):
        with suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            writers.append(writer)
    try:
        yield
    finally:
        for writer in writers:
            writer.close()


async def heavy_sql(service: Served) -> None:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        page = f"{service.url}/syncs/default/sql"
        async with browser.get(page) as answer:
            token = re.search(r'name="csrf" value="([^"]+)"', await answer.text())
        assert token is not None
        for statement in (
            "SELECT repeat('x', 10000000) FROM generate_series(1, 200)",
            "SELECT array_agg(g) FROM generate_series(1, 5000000) AS g",
        ):
            form = {"csrf": token[1], "statement": statement}
            for path in (page, f"{page}/csv"):
                async with browser.post(path, data=form) as answer:
                    text = await answer.text()
                    assert path == page or "bytes)" in text


async def idle(service: Served) -> None:
    async with crowd(service, 4500, b""):
        await asyncio.sleep(3)


async def dripping(service: Served) -> None:
    head = b"POST /v1/customers HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
    head = head % SECRET.encode() + b"content-length: 1000000\r\n\r\nname="
    async with crowd(service, 800, head):
        await asyncio.sleep(3)


async def invented_keys(service: Served) -> None:
    async def ask(n: int) -> None:
        bearer = {"Authorization": f"Bearer sk_test_invented{n:024}"}
        for path in ("/v1/customers", "/wait/stripe/default?timeout=1"):
            async with service.http.get(service.url + path, headers=bearer) as answer:
                await answer.read()

    await asyncio.gather(*(ask(n) for n in range(400)))


async def logins(service: Served) -> None:
    async def visit() -> None:
        async with service.http.get(f"{service.url}/login") as answer:
            await answer.read()

    for _ in range(11):
        await asyncio.gather(*(visit() for _ in range(100)))


CALLERS: dict[str, Callable[[Served], Awaitable[None]]] = {
    "heavy SQL": heavy_sql,
    "idle connections": idle,
    "bodies that drip": dripping,
    "invented keys": invented_keys,
    "visits of /login": logins,
}


@pytest.mark.parametrize("kind", CALLERS)
async def test_one_caller_takes_nothing_from_the_next(kind: str, database: str) -> None:
    settings = Settings(scale=20, keys=(SECRET,))
    async with running(settings) as sim, served(env_of(sim, database)) as service:
        await service.until_ready()
        before, longest = memory_mb(service), 0.0
        attack = asyncio.ensure_future(CALLERS[kind](service))
        # Of another address: limits are by address.
        other = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0), force_close=True)
        async with aiohttp.ClientSession(connector=other) as http:
            while not attack.done():
                began = time.monotonic()
                async with http.get(f"{service.url}/healthz") as answer:
                    assert answer.status == 200
                longest = max(longest, time.monotonic() - began)
                await asyncio.sleep(0.02)
        await attack
        grown = memory_mb(service) - before
        sys.stdout.write(f"\n{kind}: +{grown:.0f} MB, the other waited {longest * 1000:.0f} ms\n")
        assert grown < MOST_MB
        assert longest < LONGEST_S
