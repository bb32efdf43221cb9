"""What one caller may do while another is answered: how long the other waits, and what the memory does.

Bounds are wide: they tell a service that is shared out from one that is taken, on any machine.
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

import aiohttp
import pytest
import yarl
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pinstripe.catalog.model import spec
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running
from tests.flows.harness.gateway_account import serving
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


async def heads_without_end(service: Served) -> None:
    async with crowd(service, 3600, b"GET /v1/x HTTP/1.1\r\nhost: x\r\nx-more: " + b"a" * 60_000):
        await asyncio.sleep(3)


async def half_bodies(service: Served) -> None:
    """375 MB in all."""
    head = b"POST /v1/customers HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
    head = head % SECRET.encode() + b"content-length: 1000000\r\n\r\n"
    async with crowd(service, 1500, head + b"a" * 250_000):
        await asyncio.sleep(3)


async def trailers_without_end(service: Served) -> None:
    await _endless(service, b"0\r\nx-more: ")


async def extensions_without_end(service: Served) -> None:
    await _endless(service, b"5;")


async def _endless(service: Served, begun: bytes) -> None:
    """Chunked bodies, of which 400 MB come in what is no body."""
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"

    async def send(path: bytes) -> None:
        host, port = service.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        with suppress(ConnectionError):
            writer.write(head % path + begun)
            for _ in range(400):
                writer.write(b"a" * 2**20)
                await writer.drain()
        writer.close()

    await asyncio.gather(*(send(path) for path in (b"/v1/customers", b"/webhooks/stripe/default")))


CALLERS: dict[str, Callable[[Served], Awaitable[None]]] = {
    "heavy SQL": heavy_sql,
    "idle connections": idle,
    "bodies that drip": dripping,
    "invented keys": invented_keys,
    "visits of /login": logins,
    "heads without end": heads_without_end,
    "half of each body": half_bodies,
    "trailers without end": trailers_without_end,
    "extensions without end": extensions_without_end,
}


async def beside(service: Served, attack: Awaitable[None]) -> tuple[float, float]:
    """(MB that the service grew by, the longest wait in seconds) while somebody else attacks."""
    before, over = memory_mb(service), threading.Event()
    # In a thread: this loop is busy with the attack.
    other = asyncio.create_task(asyncio.to_thread(_longest_wait, service.url, over))
    try:
        await attack
    finally:
        over.set()
    longest = await other
    grown = memory_mb(service) - before
    sys.stdout.write(f"\n+{grown:.0f} MB, the other waited {longest * 1000:.0f} ms\n")
    return grown, longest


def _longest_wait(url: str, over: threading.Event) -> float:
    """Of another address: limits are by address."""
    host, port = url.removeprefix("http://").split(":")
    longest = 0.0
    while not over.wait(0.02):
        began = time.monotonic()
        other = HTTPConnection(host, int(port), timeout=60, source_address=("127.0.0.2", 0))
        other.request("GET", "/healthz")
        assert other.getresponse().status == 200
        other.close()
        longest = max(longest, time.monotonic() - began)
    return longest


@pytest.mark.parametrize("kind", CALLERS)
async def test_one_caller_takes_nothing_from_the_next(kind: str, database: str) -> None:
    settings = Settings(scale=20, keys=(SECRET,))
    async with running(settings) as sim, served(env_of(sim, database)) as service:
        await service.until_ready()
        grown, longest = await beside(service, CALLERS[kind](service))
        assert grown < MOST_MB
        assert longest < LONGEST_S


def _page(each: str, size: int) -> bytes:
    count = size // (len(each) + 8)
    entries = ",".join(each % f"{number:08}" for number in range(count))
    return f'{{"object": "list", "has_more": false, "data": [{entries}]}}'.encode()


_CUSTOMER = '{"id": "cus_%s", "object": "customer", "livemode": false, "metadata": {'
_METADATA = ",".join(f'"k{number}": "{"v" * 490}"' for number in range(50))
_LONG = 15 * 2**20
ANSWERS = {
    "a page as long as Stripe makes them": _page(_CUSTOMER + _METADATA + "}}", 5 * 2**19),
    "large objects": _page(_CUSTOMER + _METADATA + "}}", _LONG),
    "small objects": _page(_CUSTOMER + "}}", _LONG),
    "NULs": (_CUSTOMER % 1).encode() + b'"k": "' + rb"\u0000" * (_LONG // 6) + b'"}}',
}


@asynccontextmanager
async def in_front(sim: Running, long: bytes) -> AsyncIterator[str]:
    """A Stripe that answers as the simulator does, but for customers with the e-mail `long`."""

    async def stripe(request: Request) -> Response:
        if request.query_params.get("email") == "long":
            version = {"Stripe-Version": spec().api_version}
            return Response(long, media_type="application/json", headers=version)
        headers = {k: v for k, v in request.headers.items() if k not in ("host", "content-length")}
        url = yarl.URL(f"{sim.url}{request.url.path}?{request.url.query}", encoded=True)
        async with http.request(
            request.method, url, headers=headers, data=await request.body()
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() in _KEPT}
            return Response(await answer.read(), answer.status, kept)

    routes = [Route("/{path:path}", stripe, methods=["GET", "POST", "DELETE"])]
    async with (
        aiohttp.ClientSession(
            auto_decompress=False, skip_auto_headers=("Accept-Encoding",)
        ) as http,
        serving(Starlette(routes=routes)) as url,
    ):
        yield url


_KEPT = frozenset({"content-type", "content-encoding", "date", "request-id", "stripe-version"})


@pytest.mark.parametrize("kind", ANSWERS)
async def test_long_answers_take_nothing_from_the_next(kind: str, database: str) -> None:
    settings = Settings(scale=20, keys=(SECRET,))
    async with running(settings) as sim, in_front(sim, ANSWERS[kind]) as stripe:
        env = {**env_of(sim, database), "STRIPE_API_BASE": stripe}
        async with served(env) as service:
            await service.until_ready()

            async def ask() -> None:
                url = f"{service.url}/v1/customers?email=long"
                bearer = {"Authorization": f"Bearer {SECRET}"}
                async with service.http.get(url, headers=bearer) as answer:
                    assert await answer.read() == ANSWERS[kind]
                    assert answer.headers.get("Pinstripe-Reason") != "unknown-account"

            async def four() -> None:
                await asyncio.gather(*(ask() for _ in range(4)))

            _, longest = await beside(service, four())
        assert longest < LONGEST_S


@pytest.mark.parametrize("is_read", [True, False], ids=["read", "not read"])
async def test_many_long_answers_at_once_are_not_all_held(is_read: bool, database: str) -> None:
    """500 and 750 MB. How long others wait is left out: they share the machine with who makes these."""
    settings = Settings(scale=20, keys=(SECRET,))
    long = ANSWERS["a page as long as Stripe makes them"]
    async with running(settings) as sim, in_front(sim, long) as stripe:
        env = {**env_of(sim, database), "STRIPE_API_BASE": stripe}
        async with served(env) as service:
            await service.until_ready()
            ask = b"GET /v1/customers?email=long HTTP/1.1\r\nhost: x\r\n"
            ask += b"authorization: Bearer %b\r\n\r\n"

            async def read() -> None:
                url = f"{service.url}/v1/customers?email=long"
                bearer = {"Authorization": f"Bearer {SECRET}"}
                async with service.http.get(url, headers=bearer) as answer:
                    assert await answer.read() == long

            async def many() -> None:
                if is_read:
                    await asyncio.gather(*(read() for _ in range(200)))
                else:
                    async with crowd(service, 300, ask % SECRET.encode()):
                        await asyncio.sleep(15)

            grown, _ = await beside(service, many())
        assert grown < MOST_MB
