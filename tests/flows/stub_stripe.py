"""A stub of Stripe for one kind of trouble at a time: lists, objects and events as a test puts them, and
answers of its own for whatever must go wrong.

For what a simulator must not decide: what becomes of the rest when one thing is odd.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

VERSION = "2026-10-28.endive"
Query = Mapping[str, str]
Answer = tuple[int, object]
"""(status, body): bytes as they are, all else as JSON."""


def error(status: int, message: str = "An unknown error occurred", code: str = "") -> Answer:
    """In Stripe's shape. A 500 is not to be retried, as most of Stripe's say."""
    found = {"type": "invalid_request_error", "message": message, "code": code}
    return status, {"error": {name: value for name, value in found.items() if value}}


@dataclass
class StubStripe:
    """`lists`: path -> objects, newest first; `events` newest first; `asked`: paths in order.

    `answers`: path -> what is answered there instead, called with the query; None is the usual answer.
    """

    url: str = ""
    key: str = "sk_test_stub0000000000000000"
    lists: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    events: list[object] = field(default_factory=list)
    answers: dict[str, Callable[[Query], Answer | None]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def event(self, kind: str, obj: object, **more: object) -> None:
        """Puts an event on top of the log."""
        made = {
            "id": f"evt_{len(self.events) + 1:05}",
            "object": "event",
            "api_version": VERSION,
            "created": int(time.time()),
            "data": {"object": obj},
            "type": kind,
        }
        self.events.insert(0, made | more)

    def answer(self, path: str, query: Query) -> Answer:
        self.asked.append(path)
        own = self.answers.get(path)
        found = own(query) if own is not None else None
        if found is not None:
            return found
        if path == "/v1/events":
            return 200, _page(self.events, path, query)
        if path == "/v1/account":
            return 200, {"id": "acct_1Stub", "object": "account", "created": 1500000000}
        if path in self.lists:
            return 200, _page(self.lists[path], path, query)
        head, _, tail = path.rpartition("/")
        for obj in self.lists.get(head, ()):
            if obj.get("id") == unquote(tail):
                return 200, obj
        if head in self.lists:
            return error(404, f"No such object: '{tail}'", "resource_missing")
        if path.startswith("/v2/"):
            return 200, {"data": [], "next_page_url": None, "previous_page_url": None}
        return 200, {"object": "list", "data": [], "has_more": False, "url": path}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                parts = urlsplit(head.split(" ", 2)[1])
                for line in head.split("\r\n"):
                    if line.lower().startswith("content-length:"):
                        await reader.readexactly(int(line.partition(":")[2]))
                status, body = self.answer(parts.path, dict(parse_qsl(parts.query)))
                raw = body if isinstance(body, bytes) else json.dumps(body, indent=2).encode()
                retry = "Stripe-Should-Retry: false\r\n" if status >= 500 else ""
                writer.write(
                    f"HTTP/1.1 {status} Whatever\r\nContent-Type: application/json\r\n{retry}"
                    f"Request-Id: req_{len(self.asked)}\r\nStripe-Version: {VERSION}\r\n"
                    f"Content-Length: {len(raw)}\r\n\r\n".encode()
                    + raw
                )
                await writer.drain()
        writer.close()


def _page(objects: list[object] | list[dict[str, object]], path: str, query: Query) -> object:
    found = list(objects)
    for name, keeps in _KEEPS.items():
        if name in query:
            found = [o for o in found if keeps(_created(o), int(query[name]))]
    ids = [o.get("id") if isinstance(o, dict) else None for o in found]
    after = query.get("starting_after")
    start = ids.index(after) + 1 if after is not None and after in ids else 0
    limit = int(query.get("limit", "10"))
    more = start + limit < len(found)
    return {"object": "list", "data": found[start : start + limit], "has_more": more, "url": path}


_KEEPS: Mapping[str, Callable[[int, int], bool]] = {
    "created[gte]": lambda a, b: a >= b,
    "created[lte]": lambda a, b: a <= b,
    "created[lt]": lambda a, b: a < b,
}


def _created(obj: object) -> int:
    created = obj.get("created") if isinstance(obj, dict) else None
    return created if isinstance(created, int) else int(time.time())


@asynccontextmanager
async def stub_stripe() -> AsyncIterator[StubStripe]:
    """The stub, for the block."""
    stub = StubStripe()
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0)
    stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield stub
    finally:
        server.close()
