"""A Stripe that has one object of every type, at every address that shows or changes it.

Objects without an address of their own come inside their parents and by their parents' lists. An answer
names the version that was asked for; in an older one objects carry an odd field more.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from aiohttp import web
from tests.flows.harness.web import answering

from pinstripe.catalog.model import Operation, object_types, spec
from pinstripe.catalog.tables import table_of_object
from pinstripe.rows.extract import key_of

Json = dict[str, Any]
ACCOUNT = "acct_1"
OURS, OLDER = spec().api_version, "2023-10-16"
_LINKS = {
    "account": ACCOUNT,
    "customer": "customer_1",
    "fee": "application_fee_1",
    "transfer": "transfer_1",
    "setup_intent": "setup_intent_1",
}


def id_of(name: str) -> str:
    return ACCOUNT if name == "account" else f"{name.replace('.', '_')}_1"


def made(name: str, *, inside: bool = True) -> Json:
    """The object of a type; `inside`: with its lists."""
    object_type = object_types()[name]
    obj: Json = {"id": id_of(name)} if object_type.has_id else {}
    obj["object"] = name
    for known in object_type.fields:
        if known.name in _LINKS and known.kind in ("string", "expandable"):
            obj[known.name] = _LINKS[known.name]
        elif known.name == "livemode":
            obj["livemode"] = False
        elif inside and known.kind == "list":
            children = [t for t in known.targets if t in table_of_object()]
            url = f"/v1/{name.replace('.', '/')}s/{id_of(name)}/{known.name}"
            data = [made(child, inside=False) for child in children]
            obj[known.name] = {"object": "list", "data": data, "has_more": False, "url": url}
    if name == "cash_balance":
        obj["customer"] = _LINKS["customer"]
    if name == "customer" and inside:
        obj["cash_balance"] = made("cash_balance")
    return obj


def path_of(operation: Operation) -> str:
    """Its address, with the ids that this Stripe has."""
    return re.sub(r"{(\w+)}", lambda m: _named(operation, m[1]), operation.path)


def _named(operation: Operation, parameter: str) -> str:
    before = operation.path.split(f"/{{{parameter}}}")[0]
    for other in spec().operations:
        if (
            other.kind == "retrieve"
            and other.returns
            and re.fullmatch(re.escape(before) + r"/{\w+}", other.path)
        ):
            return id_of(other.returns[0])
    return id_of(operation.returns[0]) if operation.returns else "x_1"


@dataclass
class EveryType:
    """`hidden` are paths that answer 404: what Stripe's replicas do not show yet."""

    url: str = ""
    hidden: set[str] = field(default_factory=set)
    routes: list[tuple[str, re.Pattern[str], Operation]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for operation in sorted(spec().operations, key=lambda o: o.path.count("{")):
            if operation.returns:
                shape = re.compile(re.sub(r"{\w+}", "[^/]+", operation.path))
                self.routes.append((operation.method, shape, operation))

    async def answer(self, request: web.Request) -> web.Response:
        status, found = 200, self._find(request)
        if found is None:
            error = {"type": "invalid_request_error", "code": "resource_missing", "message": "No"}
            status, found = 404, {"error": error}
        version = request.headers.get("Stripe-Version", OURS)
        if version != OURS and status == 200:
            found = {**found, "odd": True}
        headers = {
            "Request-Id": "req_1",
            "Stripe-Version": version,
            "Date": formatdate(usegmt=True),
        }
        return web.json_response(found, status=status, headers=headers)

    def _find(self, request: web.Request) -> Json | None:
        if request.path in self.hidden:
            return None
        for method, shape, operation in self.routes:
            if method == request.method and shape.fullmatch(request.path):
                return answer_of(operation)
        return None


def answer_of(operation: Operation) -> Json:
    """What an operation answers with."""
    name = operation.returns[0]
    if operation.kind in ("list", "search"):
        kind = "search_result" if operation.kind == "search" else "list"
        data = [made(each) for each in operation.returns]
        return {"object": kind, "url": operation.path, "has_more": False, "data": data}
    if operation.kind == "delete" and object_types()[name].deletable:
        return {"id": id_of(name), "object": name, "deleted": True}
    return made(name)


def objects_in(value: object) -> Iterator[tuple[str, str]]:
    """(object name, key of its row) of every object in an answer that has a table."""
    if isinstance(value, list):
        for item in value:
            yield from objects_in(item)
    elif isinstance(value, dict):
        name = str(value.get("object"))
        if name in table_of_object() and (key := key_of(name, value)) is not None:
            yield name, key
        for item in value.values():
            yield from objects_in(item)


@asynccontextmanager
async def every_type() -> AsyncIterator[EveryType]:
    """The server, for the block."""
    it = EveryType()
    async with answering(it.answer) as it.url:
        yield it
