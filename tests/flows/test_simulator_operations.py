"""Every operation of the catalog, called once with the least that it takes: none may crash."""

from __future__ import annotations

import re
from urllib.parse import quote

import aiohttp
from yarl import URL

from pinstripe.catalog.model import Field, Operation
from pinstripe_simulator.account import Settings
from pinstripe_simulator.behaviours.registry import unknown_behaviours
from pinstripe_simulator.server import Running, running

NOON = 1_790_000_000
_BRACES = re.compile(r"\{[^}]+\}")


def path_of(sim: Running, operation: Operation) -> str:
    """The operation's path with ids of objects that exist."""
    world = sim.account.world
    made, rest = "", operation.path
    while found := _BRACES.search(rest):
        made += rest[: found.start()]
        place = _BRACES.sub("{}", operation.path[: len(operation.path) - len(rest) + found.end()])
        kind = world.routes.owner.get(place) or world.routes.child(operation)
        tables = world.tables_of(kind)
        position = next((p for p in range(50) if tables and not tables[0].gone(p)), 0)
        made += quote(tables[0].id_at(position) if tables else "x_1", safe="")
        rest = rest[found.end() :]
    return made + rest


def least(field: Field, prefix: str = "") -> dict[str, str]:
    """Form fields for a required parameter."""
    name = f"{prefix}[{field.name}]" if prefix else field.name
    if field.kind == "object":
        return {k: v for f in field.fields if not f.nullable for k, v in least(f, name).items()}
    if field.kind == "array":
        items = field.items
        if items is not None and items.kind == "object":
            return {k: v for f in items.fields for k, v in least(f, f"{name}[0]").items()}
        return {f"{name}[0]": "x"}
    if field.enum:
        return {name: field.enum[0]}
    plain = {"integer": "5", "time": "5", "boolean": "true", "number": "1.5", "decimal": "1"}
    return {name: plain.get(field.kind, "usd" if "currency" in name else "x")}


async def test_no_operation_of_the_catalog_crashes() -> None:
    crashed: list[str] = []
    fine = 0
    async with running(Settings(scale=500, until=NOON)) as sim:
        headers = {"Authorization": f"Bearer {sim.key}"}
        async with aiohttp.ClientSession(headers=headers) as http:
            order = sorted(sim.account.spec.operations, key=lambda o: o.method == "DELETE")
            for operation in order:
                status, body = await call(sim, http, operation)
                fine += status == 200
                if status >= 500:
                    crashed.append(f"{operation.method} {operation.path}: {body[:200]}")
    assert crashed == []
    assert fine > len(order) * 0.75


async def call(sim: Running, http: aiohttp.ClientSession, operation: Operation) -> tuple[int, str]:
    form: dict[str, str] = {}
    for param in operation.params:
        if not param.nullable:
            form |= least(param)
    url = URL(sim.url + path_of(sim, operation), encoded=True)
    body = None if operation.method == "GET" else form
    if operation.method == "GET":
        url = url.with_query(form)
    async with http.request(operation.method, url, data=body) as answer:
        return answer.status, await answer.text()


async def test_every_behaviour_belongs_to_an_operation() -> None:
    async with running(Settings(scale=10, until=NOON, connected=False)) as sim:
        paths = {f"{o.method} {o.path}" for o in sim.account.spec.operations}
    assert unknown_behaviours(paths) == set()


async def test_the_plan_of_an_item_follows_its_price() -> None:
    """Stripe shows both, under one id (https://docs.stripe.com/billing/migration/migrate-prices)."""
    async with running(Settings(scale=100, until=NOON)) as sim:
        post = sim.control.mutator.deeds.post
        product = post("/v1/products", {"name": "A thing"})["id"]
        terms = {"currency": "usd", "product": product, "recurring": {"interval": "month"}}
        first, second = (
            post("/v1/prices", terms | {"unit_amount": amount})["id"] for amount in (500, 900)
        )
        customer = post("/v1/customers", {"payment_method": "pm_card_visa"})["id"]
        made = post("/v1/subscriptions", {"customer": customer, "items": [{"price": first}]})
        item = made["items"]["data"][0]["id"]
        changed = post(
            f"/v1/subscriptions/{made['id']}", {"items": [{"id": item, "price": second}]}
        )
        (shown,) = changed["items"]["data"]
        assert (shown["price"]["id"], shown["plan"]["id"]) == (second, second)
