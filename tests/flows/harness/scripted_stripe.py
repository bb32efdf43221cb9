"""A Stripe of a few objects whose answers a test gives itself, by path and by parameters.

For what a simulator must not decide, or what the real Stripe does and a simulator need not: refused
expands, lists that want a parent, keys that may read nothing, and what becomes of the rest when one thing
is odd. Rate limits are the test's own affair.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

VERSION = "2026-10-28.endive"
Object = dict[str, Any]
Params = Sequence[tuple[str, str]]
Answer = tuple[int, object]
"""(status, body): bytes are sent unchanged, anything else as JSON."""
Hook = Callable[[str, Params], "Answer | None"]
"""(path, parameters) -> the answer, or None: the usual one."""


def error(
    status: int, message: str = "An unknown error occurred", code: str = "", param: str = ""
) -> Answer:
    """In Stripe's shape. A 500 is not to be retried, as most of Stripe's say."""
    found = {"type": "invalid_request_error", "message": message, "code": code, "param": param}
    return status, {"error": {name: value for name, value in found.items() if value}}


def expands(params: Params) -> list[str]:
    return [value for name, value in params if name.startswith("expand")]


@dataclass
class ScriptedStripe:
    """`lists`: path -> objects, newest first. `events`: newest first. `asked`: (path, parameters).

    `answers`: path -> what is answered there instead of the usual; `hooks` are tried on every path, first.
    """

    url: str = ""
    key: str = "sk_test_scripted00000000"
    lists: dict[str, list[Object]] = field(default_factory=dict)
    events: list[object] = field(default_factory=list)
    hooks: list[Hook] = field(default_factory=list)
    answers: dict[str, Callable[[Params], Answer | None]] = field(default_factory=dict)
    asked: list[tuple[str, Params]] = field(default_factory=list)
    date_ahead_s: float | None = None
    """How far `Date` is ahead of our clock; None sends none."""

    def event(self, kind: str, obj: object, **more: object) -> None:
        """Puts an event on top of the log; `more` are fields of it."""
        made = {
            "id": f"evt_{len(self.events) + 1:05}",
            "object": "event",
            "api_version": VERSION,
            "created": int(time.time()),
            "data": {"object": obj},
            "request": {"id": None, "idempotency_key": None},
            "type": kind,
        }
        self.events.insert(0, made | more)

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def answer(self, path: str, params: Params) -> Answer:
        self.asked.append((path, params))
        for hook in self.hooks:
            if (own := hook(path, params)) is not None:
                return own
        if path in self.answers and (own := self.answers[path](params)) is not None:
            return own
        if path == "/v1/account":
            return 200, {"id": "acct_1Scripted", "object": "account", "created": 1500000000}
        if path == "/v1/events":
            return 200, _page(self.events, path, params)
        if path in self.lists:
            return 200, _page(self.lists[path], path, params)
        head, _, tail = path.rpartition("/")
        for obj in self.lists.get(head, ()):
            if obj.get("id") == unquote(tail):
                return 200, obj
        if head in self.lists:
            return error(404, f"No such object: '{tail}'", "resource_missing")
        if path.startswith("/v2/"):
            return 200, {"data": [], "next_page_url": None, "previous_page_url": None}
        return 200, {"object": "list", "data": [], "has_more": False, "url": path}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                parts = urlsplit(head.split(" ", 2)[1])
                for line in head.split("\r\n"):
                    if line.lower().startswith("content-length:"):
                        await reader.readexactly(int(line.partition(":")[2]))
                status, body = self.answer(parts.path, parse_qsl(parts.query))
                raw = body if isinstance(body, bytes) else json.dumps(body, indent=2).encode()
                date = ""
                if self.date_ahead_s is not None:
                    date = f"Date: {formatdate(time.time() + self.date_ahead_s, usegmt=True)}\r\n"
                retry = "Stripe-Should-Retry: false\r\n" if status >= 500 else ""
                writer.write(
                    f"HTTP/1.1 {status} Whatever\r\nContent-Type: application/json\r\n{retry}{date}"
                    f"Request-Id: req_{len(self.asked)}\r\nStripe-Version: {VERSION}\r\n"
                    f"Content-Length: {len(raw)}\r\n\r\n".encode()
                    + raw
                )
                await writer.drain()
        writer.close()


_KEEPS: Mapping[str, Callable[[int, int], bool]] = {
    "created[gte]": lambda a, b: a >= b,
    "created[lte]": lambda a, b: a <= b,
    "created[lt]": lambda a, b: a < b,
}


def _page(objects: Sequence[object], path: str, params: Params) -> Object:
    query = dict(params)
    found = list(objects)
    for name, keeps in _KEEPS.items():
        if name in query:
            found = [o for o in found if keeps(_created(o), int(query[name]))]
    for name in ("customer", "type"):
        if name in query:
            found = [o for o in found if isinstance(o, dict) and o.get(name) == query[name]]
    ids = [o.get("id") if isinstance(o, dict) else None for o in found]
    after = query.get("starting_after")
    start = ids.index(after) + 1 if after is not None and after in ids else 0
    end = start + int(query.get("limit", "10"))
    return {"object": "list", "data": found[start:end], "has_more": end < len(found), "url": path}


def _created(obj: object) -> int:
    """Now, where it does not say: whatever reads by time gets it too."""
    created = obj.get("created") if isinstance(obj, dict) else None
    return created if isinstance(created, int) else int(time.time())


@asynccontextmanager
async def scripted_stripe() -> AsyncIterator[ScriptedStripe]:
    """The server, for the block."""
    stripe = ScriptedStripe()
    server = await asyncio.start_server(stripe._serve, "127.0.0.1", 0)
    stripe.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield stripe
    finally:
        server.close()
