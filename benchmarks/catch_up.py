"""Catching up after an absence: events/s, and the memory that it takes, however long the absence was.

The event list is a fake of a few lines in a process of its own, since a simulator cannot hold millions of
events: it makes each page from the numbers of its events. The command runs in a process of its own as well.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qsl, urlsplit

from benchmarks import watch
from benchmarks.figures import Figure
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.pool import connect

_DAYS = 29
_DAY_S = 86_400
_PRODUCTS = 50_000
_VERSION = "2026-10-28.endive"
_ANSWER_S = 0.05
_LOOK_S = 0.25


async def catch_up(events: int) -> AsyncIterator[Figure]:
    """A follower that was away for 29 days, in which so many events came."""
    now = int(time.time())
    with TemporaryDirectory(prefix="pinstripe-bench-") as directory:
        async with EmbeddedPostgres(Path(directory) / "postgres") as postgres:
            # The first run ends where the events begin: its Stripe shows the time of then.
            with _stripe(0, now - _DAYS * _DAY_S) as url:
                await _sync(url, postgres.url)
            with _stripe(events, now) as url:
                started = time.monotonic()
                peak_mb = await _sync(url, postgres.url)
                took_s = time.monotonic() - started
            async with connect(postgres.url) as connection:
                found = await connection.fetchval("SELECT count(*) FROM stripe.event")
    if found != events:
        raise RuntimeError(f"{found} of {events} events arrived")
    told = f"{events:,} events of {_DAYS} days"
    yield Figure("catch-up", f"{told} drain at", events / took_s, "events/s", 2000, "more")
    yield Figure("catch-up", f"{told}: peak memory", peak_mb, "MB", 150)


async def _sync(url: str, database: str) -> float:
    """Runs `pinstripe sync --once` to its end; returns the most memory that it had, in MB."""
    limits = ("--rate-limit", "none", "--endpoint-rate-limit", "none")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("STRIPE_", "PINSTRIPE_"))}
    given = {
        "STRIPE_API_KEY": "sk_test_catchup00000000",
        "STRIPE_API_BASE": url,
        "DATABASE_URL": database,
    }
    words = ("-m", "pinstripe", "sync", "--once", "--json", *limits, "--tables", "product,event")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        env={**clean, **given},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )
    peak_mb = 0.0
    while process.returncode is None:
        peak_mb = max(peak_mb, watch.peak_rss_mb(process.pid))
        await asyncio.sleep(_LOOK_S)
    if process.returncode:
        raise RuntimeError(f"pinstripe sync ended with {process.returncode}")
    return peak_mb


@contextmanager
def _stripe(events: int, now: int) -> Iterator[str]:
    """A fake Stripe in a process of its own, for the block: its URL."""
    words = [sys.executable, "-m", "benchmarks.catch_up", str(events), str(now)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class _EventList:
    """Events 0 to `count` - 1, evenly spread over the days before `now`."""

    count: int
    now: int

    def created(self, number: int) -> int:
        return self.now - _DAYS * _DAY_S + 60 + number * (_DAYS * _DAY_S - 120) // self.count

    def page(self, query: dict[str, str]) -> bytes:
        low, high = int(query.get("created[gte]", 0)), int(query.get("created[lt]", 1 << 40))
        top = self._first_from(high) - 1
        if "starting_after" in query:
            top = min(top, int(query["starting_after"].removeprefix("evt_")) - 1)
        bottom = self._first_from(low)
        last = max(bottom, top - int(query.get("limit", "10")) + 1)
        data = ",".join(self._event(n) for n in range(top, last - 1, -1))
        more = "true" if last > bottom else "false"
        return f'{{"object":"list","url":"/v1/events","has_more":{more},"data":[{data}]}}'.encode()

    def _first_from(self, second: int) -> int:
        """The number of the first event that was created in this second or later."""
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.created(middle) < second else (low, middle)
        return low

    def _event(self, number: int) -> str:
        obj = {
            "id": f"prod_{number % _PRODUCTS}",
            "object": "product",
            "created": 1_700_000_000,
            "active": True,
            "description": "A product of the benchmark, with some text to carry along" * 4,
            "url": f"https://example.com/{number}",
            "metadata": {f"key_{n}": f"value {number}" for n in range(6)},
            "name": f"Product {number}",
            "livemode": False,
        }
        return json.dumps(
            {
                "id": f"evt_{number:012}",
                "object": "event",
                "api_version": _VERSION,
                "created": self.created(number),
                "data": {"object": obj, "previous_attributes": {"url": "https://example.com/"}},
                "livemode": False,
                "pending_webhooks": 0,
                "request": {"id": None, "idempotency_key": None},
                "type": "product.updated",
            }
        )


async def _serve(shown: _EventList) -> None:
    began = time.time()

    def body(path: str, query: Sequence[tuple[str, str]]) -> bytes:
        if path == "/v1/account":
            return b'{"id": "acct_1CatchUp", "object": "account", "created": 1500000000}'
        if path == "/v1/events":
            return shown.page(dict(query))
        return json.dumps({"object": "list", "data": [], "has_more": False, "url": path}).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                parts = urlsplit(head.split(" ", 2)[1])
                raw = body(parts.path, parse_qsl(parts.query))
                await asyncio.sleep(_ANSWER_S)
                date = formatdate(shown.now + time.time() - began, usegmt=True)
                writer.write(
                    f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: {date}\r\n"
                    f"Request-Id: req_1\r\nStripe-Version: {_VERSION}\r\n"
                    f"Content-Length: {len(raw)}\r\n\r\n".encode()
                    + raw
                )
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(_EventList(int(sys.argv[1]), int(sys.argv[2]))))
