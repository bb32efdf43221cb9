"""What each kind of operation answers: lists, nested lists, search, retrieves; writes go to
behaviours.

No code per type: the operation's path and types say which table is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

import msgspec

from pinstripe.catalog.model import Operation
from pinstripe_simulator.account import Account
from pinstripe_simulator.event_lists import event_page
from pinstripe_simulator.expand import paths_of
from pinstripe_simulator.judge import Judge
from pinstripe_simulator.lists import (
    WHOLE,
    Page,
    list_text,
    page_of,
    page_of_children,
    page_text,
    walk,
)
from pinstripe_simulator.params import Params
from pinstripe_simulator.replies import StripeError, missing, missing_at, refused
from pinstripe_simulator.routes import Match
from pinstripe_simulator.search import search_condition
from pinstripe_simulator.table import StripeObject, Table
from pinstripe_simulator.template import pretty, reindent
from pinstripe_simulator.versions import before_basil, rendered
from pinstripe_simulator.visibility import conditions


@dataclass(frozen=True)
class Request:
    """One request, understood: the operation, checked parameters, and what events will say of it."""

    account: Account
    match: Match
    params: Params
    path: str
    version: str
    id: str
    idempotency_key: str | None = None
    files: Mapping[str, tuple[str, bytes]] = field(default_factory=dict)
    """Uploaded files: form name -> (file name, content)."""

    @property
    def operation(self) -> Operation:
        return self.match.operation

    @property
    def type_name(self) -> str:
        return self.account.world.routes.child(self.operation)


def answer(request: Request, write: Callable[[Request], object]) -> bytes:
    """The body of a 200; errors are raised. `write` performs everything that is not a GET."""
    kind = request.operation.kind
    if request.operation.method != "GET" or kind == "action":
        return _printed(request, write(request))
    if kind == "list":
        return _list(request)
    if kind == "search":
        return _search(request)
    return _retrieve(request)


def _printed(request: Request, found: object) -> bytes:
    if isinstance(found, bytes):
        return found
    if isinstance(found, dict) and request.params.get("expand"):
        request.account.expander.expand(found, paths_of(request.params, inside_list=False))
    if isinstance(found, dict) and found.get("object") != "event":
        found = rendered(found, request.version)
    return pretty(found)


# --- retrieve ----------------------------------------------------------------------------------


def _retrieve(request: Request) -> bytes:
    world = request.account.world
    kind = world.routes.objects.get(request.type_name)
    if kind is None or not kind.has_id or not request.match.path_values:
        return _printed(request, singleton(request))
    id = request.match.path_values[-1]
    place = request.match.place
    if request.account.doors.disabled_product(request.operation, request.type_name):
        raise missing_at(request.type_name, id, place)
    if request.type_name == "account" and id == request.account.id:
        return _printed(request, singleton(request))
    table, position = _found(request, id)
    if table.name == "event" and not request.account.events.readable(position):
        raise missing_at("event", id, place)
    if table.gone(position):
        if table.kind.name == "customer":
            return pretty({"id": id, "object": "customer", "deleted": True})
        raise missing_at(table.kind.name, id, place)
    if request.params.get("expand") or before_basil(request.version):
        return _printed(request, world.objects.load(table, position))
    return world.objects.text(table, position)


def _found(request: Request, id: str) -> tuple[Table, int]:
    for type_name in request.operation.returns:
        found = request.account.world.find(type_name, id)
        if found is not None:
            return found
    raise missing_at(request.type_name, id, request.match.place)


def singleton(request: Request) -> StripeObject:
    """An object without id, or the account's only one: `balance`, `tax.settings`, `account`."""
    account = request.account
    if request.type_name == "account":
        if account.platform is not None:
            known = account.platform.world.get("account", account.id)
            return known or {"id": account.id, "object": "account"}
        table = account.world.tables["account"]
        return account.world.objects.load(table, 0) | {"id": account.id}
    owner = request.match.path_values[0] if request.match.path_values else ""
    return account.singletons.read(request.type_name, owner)


# --- lists -------------------------------------------------------------------------------------


def _list(request: Request) -> bytes:
    operation = request.operation
    _wants_customer(request)
    paths = paths_of(request.params, inside_list=True)
    request.account.expander.check(request.type_name, paths, prefix="data.")
    if request.type_name == "v2.core.event":  # Thin events are not simulated: there are none.
        return b'{\n  "data": [],\n  "next_page_url": null,\n  "previous_page_url": null\n}'
    parent = request.account.world.routes.parent(operation)
    if request.type_name == "event":
        events = request.account.world.tables["event"]
        page = event_page(request.account.events, events, request.params)
    else:
        page = _children(request, parent) if parent else _top(request)
    if operation.path.startswith("/v2/"):
        return _v2(request, page)
    url = quote(request.path, safe="/%")
    old = before_basil(request.version) and request.type_name != "event"
    if not paths and not old:
        return page_text(request.account.world.objects, page, url)
    entries = []
    for position in page.positions:
        found = request.account.world.objects.load(page.table, position)
        request.account.expander.expand(found, paths, prefix="data.")
        entries.append(pretty(rendered(found, request.version) if old else found, 4))
    return list_text(b",\n    ".join(entries), more=page.has_more, url=url)


def _wants_customer(request: Request) -> None:
    """Some lists that the SDK types as free were refused without a customer."""
    path = request.operation.path
    if path in request.account.nastiness.lists_by_customer and "customer" not in request.params:
        raise refused(
            "Missing required param: customer.", code="parameter_missing", param="customer"
        )


def _top(request: Request) -> Page:
    world = request.account.world
    tables = world.tables_of(request.type_name)
    if not tables:
        raise refused(f"No list of {request.type_name} here.")
    fields = list(world.routes.fields[request.type_name])
    return page_of(world.objects, tables[0], _paging(request), fields)


def _paging(request: Request) -> Params:
    """A list that takes no limit shows all (`report_types`, capabilities); v2 lists page by token."""
    known = {p.name for p in request.operation.params}
    params = dict(request.params)
    if "limit" not in known:
        params[WHOLE] = True
    if "page" in params:
        params["starting_after"] = params.pop("page")
    return params


def _children(request: Request, parent: str) -> Page:
    world = request.account.world
    id = request.match.path_values[0]
    found = world.find(parent, id)
    if found is None or found[0].gone(found[1]):
        raise missing(parent, id, param=parent)
    owner, position = found
    child, back = _child_table(request, parent)
    positions = world.objects.children(owner, position, child, back)
    names = dict.fromkeys(world.routes.fields[child.kind.name])
    params = _paging(request)
    wanted = [] if child.kind.name == "tax_id" else conditions(child, params, names)
    judge = Judge(world.objects, child, wanted)
    return page_of_children(world.objects, child, positions, params, judge)


def _child_table(request: Request, parent: str) -> tuple[Table, str]:
    world = request.account.world
    for table in world.tables_of(request.type_name):
        if table.parent is not None and table.parent[1] == parent:
            return table, ""
    table = world.tables[request.type_name]
    for field_name, link in table.links.items():
        if link[1] == parent:
            return table, field_name
    raise StripeError(404, f"No {request.type_name} of {parent} here.")


def _v2(request: Request, page: Page) -> bytes:
    objects = request.account.world.objects
    data = [objects.load(page.table, p) for p in page.positions]
    after = None
    if page.has_more and data:
        limit = f"limit={request.params['limit']}&" if "limit" in request.params else ""
        after = f"{request.path}?{limit}page={quote(data[-1]['id'])}"
    body = {"data": data, "next_page_url": after, "previous_page_url": None}
    return msgspec.json.format(msgspec.json.encode(body), indent=2)


# --- search ------------------------------------------------------------------------------------


def _search(request: Request) -> bytes:
    """A page of what the query finds; not read-after-write."""
    account = request.account
    params = {k: v for k, v in request.params.items() if k == "limit"}
    table = account.world.tables[request.type_name]
    fields = account.world.routes.fields[request.type_name]
    condition = search_condition(str(request.params.get("query", "")), fields)
    indexed = account.clock.seconds() - account.search_lag_s
    if "page" in request.params:
        params["starting_after"] = request.params["page"]
    objects = account.world.objects
    judge = Judge(objects, table, [condition])
    page = walk(table, params, judge, range(table.rank(indexed)))
    entries = b",\n    ".join(objects.text(table, p, 4) for p in page.positions)
    following = table.id_at(page.positions[-1]) if page.has_more else None
    frame = {"object": "search_result", "data": "@", "has_more": page.has_more}
    frame |= {"next_page": following, "url": request.path}
    inner = b"[\n    %b\n  ]" % entries if entries else b"[]"
    return reindent(pretty(frame), 0).replace(b'"@"', inner, 1)
