"""A Stripe that shows secrets wherever one can stand, each with `PLANTED` in it.

One object of every type that has a secret: in its list, in its retrieve, as the answer to a write, in an
event, and inside of other objects.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from itertools import count
from typing import Any

from aiohttp import web
from tests.flows.harness.web import answering
from tests.unit.catalog.test_secrets import fields

from pinstripe.catalog.endpoints import list_endpoints
from pinstripe.catalog.model import object_types, spec
from pinstripe.catalog.secrets import is_secret
from pinstripe.catalog.tables import table_of_object

Json = dict[str, Any]
WORD = "PLANTED"
VERSION = spec().api_version


def planted() -> dict[str, Json]:
    """Object name -> an object with all its secrets, and some where none belongs."""
    numbers = count(1)
    made: dict[str, Json] = {}
    for name, path in fields():
        if is_secret(name, path):
            obj = made.setdefault(name, _plain(name))
            here = obj
            for step in path[:-1]:
                here = here.setdefault(step, {})
            here[path[-1]] = f"{WORD}{next(numbers)}"
    intent = made["payment_intent"]
    made["source"]["redirect"] = {"url": f"https://hooks.example/r?client_secret=src_1_{WORD}"}
    intent["next_action"] = {"use_stripe_sdk": {"url": f"x?client_secret=pi_1_secret_{WORD}"}}
    intent["new_field"] = {"client_secret": f"pi_1_secret_{WORD}"}
    made["setup_intent"]["last_setup_error"] = {"payment_intent": dict(intent)}
    made["invoice"]["metadata"] = {"a": f"whsec_{WORD}"}
    made["checkout.session"]["payment_intent"] = dict(intent)
    made["customer"] = {**_plain("customer"), "description": f"ek_test_{WORD} and more"}
    return made


def _plain(name: str) -> Json:
    prefix = object_types()[name].prefix or name.replace(".", "_")
    plain: Json = {"id": f"{prefix}_1", "object": name, "livemode": False}
    if any(f.name == "created" for f in object_types()[name].fields):
        plain["created"] = int(time.time()) - 1000
    return plain


@dataclass
class Planting:
    """`seen` are the paths of requests."""

    url: str = ""
    objects: dict[str, Json] = field(default_factory=planted)
    seen: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    """Path -> the message of a 403."""

    async def answer(self, request: web.Request) -> web.Response:
        self.seen.add(request.path)
        found = self._find(request.method, request.path, dict(request.query))
        error = {"type": "invalid_request_error", "code": "resource_missing", "message": "No such"}
        status = 200 if found is not None else 404
        if request.path in self.refused:
            error = {"type": "invalid_request_error", "message": self.refused[request.path]}
            status, found = 403, None
        body = json.dumps(found if found is not None else {"error": error}, indent=2)
        headers = {
            "Request-Id": "req_1",
            "Stripe-Version": VERSION,
            "Date": formatdate(usegmt=True),
        }
        return web.Response(
            status=status, text=body, content_type="application/json", headers=headers
        )

    def _find(self, method: str, path: str, query: dict[str, str]) -> Json | None:
        if path == "/v1/account":
            return {"id": "acct_1", "object": "account", "livemode": False}
        if method == "POST":
            made = {
                o.path: o.returns[0] for o in spec().operations if o.kind == "create" and o.returns
            }
            return self.objects.get(made.get(path, ""))
        shown: list[Json] | None = None
        if path == "/v1/events":
            shown = list(self._events())
        else:
            for endpoint in list_endpoints():
                if endpoint.path == path and not endpoint.parent:
                    shown = [self.objects[n] for n in endpoint.objects if n in self.objects]
        if shown is not None:
            first = not {"starting_after", "ending_before"} & set(query)
            data = shown if first else []
            return {"object": "list", "url": path, "has_more": False, "data": data}
        key = path.rpartition("/")[2]
        return next((o for o in self.objects.values() if o["id"] == key), None)

    def _events(self) -> Iterator[Json]:
        for number, (name, obj) in enumerate(self.objects.items()):
            if name in table_of_object():
                yield {
                    "id": f"evt_{number}",
                    "object": "event",
                    "api_version": VERSION,
                    "created": int(time.time()) - 2,  # Older ones are left to the lists.
                    "livemode": False,
                    "type": f"{name}.updated",
                    "request": {"id": f"req_{number}", "idempotency_key": None},
                    "data": {
                        "object": obj,
                        "previous_attributes": {
                            k: f"{WORD} before" for k in obj if is_secret(name, [k])
                        },
                    },
                }


@asynccontextmanager
async def planting() -> AsyncIterator[Planting]:
    """The server, for the block."""
    it = Planting()
    async with answering(it.answer) as it.url:
        yield it
