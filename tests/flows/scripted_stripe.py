"""A Stripe of a few objects whose answers a test gives itself, by path and by all that was asked.

For what the real Stripe does and a simulator need not: refused expands, lists that want a parent, keys that
may read nothing. `PINSTRIPE_RATE_LIMIT` and the like are the test's own affair.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

VERSION = "2026-10-28.endive"
Object = dict[str, Any]
Params = Sequence[tuple[str, str]]
Answer = tuple[int, object]
Hook = Callable[[str, Params], "Answer | None"]
"""(path, parameters) -> the answer, or None: the usual one."""


def error(status: int, message: str, code: str = "", param: str = "") -> Answer:
    """In Stripe's shape."""
    said = {"type": "invalid_request_error", "message": message, "code": code, "param": param}
    return status, {"error": {k: v for k, v in said.items() if v}}


def expands(params: Params) -> list[str]:
    return [value for name, value in params if name.startswith("expand")]


@dataclass
class ScriptedStripe:
    """`lists`: path -> objects, newest first. `events`: newest first. `asked`: (path, parameters)."""

    url: str = ""
    key: str = "sk_test_scripted00000000"
    lists: dict[str, list[Object]] = field(default_factory=dict)
    events: list[Object] = field(default_factory=list)
    hooks: list[Hook] = field(default_factory=list)
    asked: list[tuple[str, Params]] = field(default_factory=list)

    def event(self, kind: str, obj: Object, *, created: int | None = None) -> None:
        """Puts an event on top of the log."""
        made = {
            "id": f"evt_{len(self.events) + 1:05}",
            "object": "event",
            "api_version": VERSION,
            "created": int(time.time()) if created is None else created,
            "data": {"object": obj},
            "request": {"id": None, "idempotency_key": None},
            "type": kind,
        }
        self.events.insert(0, made)

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def answer(self, path: str, params: Params) -> Answer:
        self.asked.append((path, params))
        for hook in self.hooks:
            if (own := hook(path, params)) is not None:
                return own
        if path == "/v1/account":
            return 200, {"id": "acct_1Scripted", "object": "account", "created": 1500000000}
        if path == "/v1/events":
            return 200, _page(self.events, path, params)
        if path in self.lists:
            return 200, _page(self.lists[path], path, params)
        head, _, tail = path.rpartition("/")
        if head in self.lists:
            found = [o for o in self.lists[head] if o["id"] == unquote(tail)]
            return (200, found[0]) if found else error(404, "No such object", "resource_missing")
        if path.startswith("/v2/"):
            return 200, {"data": [], "next_page_url": None, "previous_page_url": None}
        return 200, {"object": "list", "data": [], "has_more": False, "url": path}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                parts = urlsplit(head.split(" ", 2)[1])
                status, body = self.answer(parts.path, parse_qsl(parts.query))
                raw = json.dumps(body, indent=2).encode()
                writer.write(
                    f"HTTP/1.1 {status} So\r\nContent-Type: application/json\r\n"
                    f"Request-Id: req_{len(self.asked)}\r\nStripe-Version: {VERSION}\r\n"
                    f"Content-Length: {len(raw)}\r\n\r\n".encode()
                    + raw
                )
                await writer.drain()
        writer.close()


def _page(objects: Sequence[Object], path: str, params: Params) -> Object:
    asked = dict(params)
    found = [o for o in objects if _is_within(o.get("created", 0), asked)]
    for name in ("customer", "type"):
        if name in asked:
            found = [o for o in found if o.get(name) == asked[name]]
    ids = [o["id"] for o in found]
    start = ids.index(asked["starting_after"]) + 1 if asked.get("starting_after") in ids else 0
    shown = found[start : start + int(asked.get("limit", "10"))]
    more = start + len(shown) < len(found)
    return {"object": "list", "data": shown, "has_more": more, "url": path}


def _is_within(created: int, asked: dict[str, str]) -> bool:
    return int(asked.get("created[gte]", 0)) <= created <= int(
        asked.get("created[lte]", 2**40)
    ) and (created < int(asked.get("created[lt]", 2**40)))


@asynccontextmanager
async def scripted_stripe() -> AsyncIterator[ScriptedStripe]:
    stripe = ScriptedStripe()
    server = await asyncio.start_server(stripe._serve, "127.0.0.1", 0)
    stripe.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield stripe
    finally:
        server.close()
