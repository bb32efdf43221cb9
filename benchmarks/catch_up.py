"""Millions: catching up after an absence, and an account of a million customers.

The lists are fakes of a few lines in a process of their own, since a simulator cannot hold so many objects:
each page is made from the numbers of its entries. The command runs in a process of its own as well.
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
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from benchmarks import watch
from benchmarks.figures import Figure
from benchmarks.stage import FOREIGN
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
            with _stripe("/v1/events", 0, now - _DAYS * _DAY_S) as url:
                await _sync(url, postgres.url)
            with _stripe("/v1/events", events, now) as url:
                started = time.monotonic()
                peak_mb, _ = await _sync(url, postgres.url)
                took_s = time.monotonic() - started
            async with connect(postgres.url) as connection:
                found = await connection.fetchval("SELECT count(*) FROM stripe.event")
    if found != events:
        raise RuntimeError(f"{found} of {events} events arrived")
    told = f"{events:,} events of {_DAYS} days"
    yield Figure("catch-up", f"{told} drain at", events / took_s, "events/s", 2000, "more")
    yield Figure("catch-up", f"{told}: peak memory", peak_mb, "MB", 150)


async def many(customers: int) -> AsyncIterator[Figure]:
    """The first copy of so many customers within Stripe's limits, and a restart over it."""
    limits = ("--rate-limit", "100", "--endpoint-rate-limit", "25")
    lists = ("customer_balance_transaction", "customer_cash_balance_transaction", "subscription")
    with TemporaryDirectory(prefix="pinstripe-bench-") as directory:
        async with EmbeddedPostgres(Path(directory) / "postgres") as postgres:
            with _stripe("/v1/customers", customers, int(time.time())) as url:
                given = ("--tables", f"customer,event,{','.join(lists)}", *limits)
                peak_mb, summary = await _sync(url, postgres.url, given)
                ready_s = await _ready(url, postgres.url, given)
    told = f"{customers:,} customers"
    if summary["rows"] < customers:
        raise RuntimeError(f"{summary['rows']} of {customers} customers arrived")
    needed_s = customers / 100 / 25
    yield Figure(
        "many", f"{told}: time for what the limits allow", summary["seconds"] / needed_s, ""
    )
    yield Figure("many", f"{told}: requests", summary["requests"], "", customers / 100 * 1.02)
    yield Figure("many", f"{told}: peak memory", peak_mb, "MB", 130)
    yield Figure("many", f"{told}: ready after a restart", ready_s, "s", 2)


async def _ready(url: str, database: str, given: Sequence[str]) -> float:
    """Seconds from the start of `pinstripe sync` over a complete copy until it says that it is ready."""
    started = time.monotonic()
    process = await _start(url, database, "sync", "--json", *given)
    try:
        assert process.stdout is not None
        if not json.loads(await process.stdout.readline())["complete"]:
            raise RuntimeError("the copy is not complete")
        return time.monotonic() - started
    finally:
        process.terminate()
        await process.wait()


_UNLIMITED = ("--tables", "product,event", "--rate-limit", "none", "--endpoint-rate-limit", "none")


async def _sync(
    url: str, database: str, given: Sequence[str] = _UNLIMITED
) -> tuple[float, dict[str, Any]]:
    """Runs `pinstripe sync --once` to its end; returns the most memory that it had, in MB, and what it
    reports.
    """
    process = await _start(url, database, "sync", "--once", "--json", *given)
    peak_mb = 0.0
    while process.returncode is None:
        peak_mb = max(peak_mb, watch.peak_rss_mb(process.pid))
        await asyncio.sleep(_LOOK_S)
    if process.returncode:
        raise RuntimeError(f"pinstripe sync ended with {process.returncode}")
    assert process.stdout is not None
    return peak_mb, json.loads(await process.stdout.read())


async def _start(url: str, database: str, *words: str) -> asyncio.subprocess.Process:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    given = {
        "STRIPE_API_KEY": "sk_test_catchup00000000",
        "STRIPE_API_BASE": url,
        "DATABASE_URL": database,
    }
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pinstripe",
        *words,
        env={**clean, **given},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )


@contextmanager
def _stripe(path: str, count: int, now: int) -> Iterator[str]:
    """A fake Stripe in a process of its own, for the block: its URL. One list holds something."""
    words = [sys.executable, "-m", "benchmarks.catch_up", path, str(count), str(now)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class _List:
    """Objects 0 to `count` - 1 at the path, evenly spread over the days before `now`."""

    path: str
    count: int
    now: int

    def created(self, number: int) -> int:
        return self.now - _DAYS * _DAY_S + 60 + number * (_DAYS * _DAY_S - 120) // self.count

    def page(self, query: dict[str, str]) -> bytes:
        low, high = int(query.get("created[gte]", 0)), int(query.get("created[lt]", 1 << 40))
        top = self._first_from(high) - 1
        if "starting_after" in query:
            top = min(top, int(query["starting_after"].rpartition("_")[2]) - 1)
        bottom = self._first_from(low)
        last = max(bottom, top - int(query.get("limit", "10")) + 1)
        entry = self._event if self.path == "/v1/events" else self._customer
        data = ",".join(entry(n) for n in range(top, last - 1, -1))
        more = "true" if last > bottom else "false"
        return f'{{"object":"list","url":"{self.path}","has_more":{more},"data":[{data}]}}'.encode()

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

    def _customer(self, number: int) -> str:
        return json.dumps(
            {
                "id": f"cus_{number:012}",
                "object": "customer",
                "created": self.created(number),
                "balance": 0,
                "currency": "usd",
                "delinquent": False,
                "description": "A customer of the benchmark",
                "email": f"customer-{number}@example.com",
                "invoice_prefix": f"{number:08X}",
                "invoice_settings": {"custom_fields": None, "default_payment_method": None},
                "livemode": False,
                "metadata": {f"key_{n}": f"value {number}" for n in range(3)},
                "name": f"Customer {number}",
                "preferred_locales": [],
                "tax_exempt": "none",
            }
        )


async def _serve(shown: _List) -> None:
    began = time.time()

    def body(path: str, query: Sequence[tuple[str, str]]) -> bytes:
        if path == "/v1/account":
            return b'{"id": "acct_1CatchUp", "object": "account", "created": 1500000000}'
        if path == shown.path:
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
    asyncio.run(_serve(_List(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
