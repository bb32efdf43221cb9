"""The simulator's lists over HTTP: complete, ordered, bounded, hiding what Stripe hides."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from yarl import URL

from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

NOON = 1_790_000_000
"""A fixed end of the simulated past, so that every run sees the same account."""


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=3_000, until=NOON)) as started:
        started.control.clock(offset_s=NOON + 3_600 - time.time())
        yield started


async def pages(
    http: aiohttp.ClientSession, path: str, **params: str | int
) -> list[dict[str, Any]]:
    """All entries of a list, paged to the end."""
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        async with http.get(path, params={"limit": 100, **params, **cursor}) as answer:
            page = await answer.json()
        assert answer.status == 200, page
        found += page["data"]
        if not page["has_more"]:
            return found
        cursor = {"starting_after": page["data"][-1]["id"]}


async def test_paging_shows_each_charge_once_newest_first(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    found = await pages(http, "/v1/charges")
    truth = list(sim.account.world.truth("charge"))
    assert found == truth[::-1]
    assert [c["created"] for c in found] == sorted((c["created"] for c in found), reverse=True)


async def test_every_type_with_a_list_has_objects(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    for operation in sim.account.world.routes.lists:
        required = [p.name for p in operation.params if not p.nullable]
        if "{" in operation.path or required or operation.path.startswith("/v2/"):
            continue
        async with http.get(operation.path) as answer:
            page = await answer.json()
        assert answer.status == 200, (operation.path, page)
        assert page["data"], operation.path
        assert page["data"][0]["object"] == operation.returns[0]


async def test_every_listed_object_can_be_retrieved_alike(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    routes = sim.account.world.routes
    for operation in routes.lists:
        if "{" in operation.path or any(not p.nullable for p in operation.params):
            continue
        path = f"{operation.path}/x"
        match = routes.match("GET", path)
        if match is None or match.operation.kind != "retrieve":
            continue
        async with http.get(operation.path) as answer:
            page = await answer.json()
        for entry in page["data"][:3]:
            target = f"{operation.path}/{quote(entry['id'], safe='')}"
            async with http.get(_exact(sim.url, target)) as answer:
                assert await answer.json() == entry, target


def _exact(base: str, path: str) -> URL:
    """A URL that keeps `%2F` in ids as it is."""
    return URL(base + path, encoded=True)


async def test_created_ranges_partition_the_list(sim: Running, http: aiohttp.ClientSession) -> None:
    everything = await pages(http, "/v1/balance_transactions")
    middle = everything[len(everything) // 2]["created"]
    newer = await pages(http, "/v1/balance_transactions", **{"created[gte]": middle})
    older = await pages(http, "/v1/balance_transactions", **{"created[lt]": middle})
    assert newer + older == everything
    exactly = await pages(http, "/v1/balance_transactions", created=middle)
    assert exactly == [t for t in everything if t["created"] == middle]


async def test_ending_before_walks_towards_newer(http: aiohttp.ClientSession) -> None:
    everything = await pages(http, "/v1/customers")
    cursor = everything[20]["id"]
    async with http.get("/v1/customers", params={"limit": 5, "ending_before": cursor}) as answer:
        page = await answer.json()
    assert page["data"] == everything[15:20]
    assert page["has_more"] is True


async def test_filter_by_customer_finds_the_same_as_a_scan(
    http: aiohttp.ClientSession,
) -> None:
    charges = await pages(http, "/v1/charges")
    customer = charges[7]["customer"]
    found = await pages(http, "/v1/charges", customer=customer)
    assert found == [c for c in charges if c["customer"] == customer]
    assert found


@pytest.mark.parametrize(
    ("path", "extra", "hidden"),
    [
        ("/v1/subscriptions", {"status": "all"}, lambda o: o["status"] == "canceled"),
        ("/v1/prices", {"active": "false"}, lambda o: not o["active"]),
    ],
)
async def test_lists_hide_what_stripe_hides(
    http: aiohttp.ClientSession, path: str, extra: dict[str, str], hidden: Any
) -> None:
    plain = await pages(http, path)
    asked = await pages(http, path, **extra)
    assert not any(hidden(o) for o in plain)
    assert any(hidden(o) for o in asked)


async def test_objects_on_test_clocks_are_listed_by_clock_only(
    http: aiohttp.ClientSession,
) -> None:
    clocks = await pages(http, "/v1/test_helpers/test_clocks")
    plain = await pages(http, "/v1/customers")
    found = [c for k in clocks for c in await pages(http, "/v1/customers", test_clock=k["id"])]
    assert all(c["test_clock"] is None for c in plain)
    assert found
    assert not {c["id"] for c in plain} & {c["id"] for c in found}


async def test_nested_lists_hold_all_children_and_parents_show_ten(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    largest = max(sim.account.world.truth("invoice"), key=lambda i: int(i["lines"]["total_count"]))
    assert largest["lines"]["total_count"] > 100
    assert len(largest["lines"]["data"]) == 10
    assert largest["lines"]["has_more"] is True
    lines = await pages(http, largest["lines"]["url"])
    assert len(lines) == largest["lines"]["total_count"]
    assert lines[:10] == largest["lines"]["data"]
    assert {line["invoice"] for line in lines} == {largest["id"]}


async def test_deleted_customers_are_referred_to_but_not_listed(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    listed = {c["id"] for c in await pages(http, "/v1/customers")}
    referred = {c["customer"] for c in await pages(http, "/v1/charges")}
    clocked = {c["id"] for c in sim.account.world.truth("customer") if c["test_clock"]}
    dead = referred - listed - clocked
    assert dead
    async with http.get(f"/v1/customers/{min(dead)}") as answer:
        assert answer.status == 200
        assert await answer.json() == {"id": min(dead), "object": "customer", "deleted": True}


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("colour=red", "parameter_unknown", "colour"),
        ("limit=ten", "parameter_invalid_integer", "limit"),
        ("created[after]=1", "parameter_unknown", "created[after]"),
        ("starting_after=ch_gone", "resource_missing", "starting_after"),
        ("customer=", "parameter_invalid_empty", "customer"),
    ],
)
async def test_wrong_parameters_are_refused_in_stripes_words(
    http: aiohttp.ClientSession, query: str, code: str, param: str
) -> None:
    async with http.get(f"/v1/charges?{query}") as answer:
        error = (await answer.json())["error"]
    assert answer.status == 400
    assert (error["type"], error["code"], error["param"]) == (
        "invalid_request_error",
        code,
        param,
    )


async def test_created_is_refused_where_stripe_does_not_document_it(
    http: aiohttp.ClientSession,
) -> None:
    async with http.get("/v1/payment_methods?created[gte]=1") as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["code"] == "parameter_unknown"


async def test_same_seed_same_account_other_seed_other_ids() -> None:
    made = []
    for seed in (1, 1, 2):
        async with running(Settings(scale=500, until=NOON, seed=seed)) as sim:
            made.append([c["id"] for c in sim.account.world.truth("charge")])
    assert made[0] == made[1]
    assert made[0] != made[2]


SPECIAL = {
    "status",
    "active",
    "owner",
    "test_clock",
    "limit",
    "created",
    "expand",
    "payout",
    "plan",
}
"""Parameters that do more than compare one field (tested by name above)."""


@pytest.mark.parametrize("mutations", [0, 150])
async def test_every_filter_agrees_with_a_scan_of_the_whole_list(
    sim: Running, http: aiohttp.ClientSession, mutations: int
) -> None:
    sim.control.burst(mutations)
    checked = 0
    for operation in sim.account.world.routes.top_lists.values():
        required = [p.name for p in operation.params if not p.nullable]
        plain = operation.path.startswith("/v1/") and "event" not in operation.path
        if required or not plain or "limit" not in {p.name for p in operation.params}:
            continue
        everything = await pages(http, operation.path)
        for param in operation.params:
            for value in _values_of(param.name, everything):
                if param.enum and value not in param.enum:
                    continue
                shown = str(value).lower() if isinstance(value, bool) else str(value)
                found = await pages(http, operation.path, **{param.name: shown})
                expected = [o for o in everything if _plain(o.get(param.name)) == value]
                assert [o["id"] for o in found] == [o["id"] for o in expected], (
                    f"{operation.path}?{param.name}={value}"
                )
                checked += 1
    assert checked > 60


async def test_a_list_by_an_owner_shows_what_is_the_owners_though_only_others_name_it(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    """Credits have a customer by their grant; alerts, codes and rates name it deeper inside."""
    path = "/v1/billing/credit_balance_transactions"
    truth, deeds = sim.control.truth, sim.control.mutator.deeds
    buyer = deeds.post("/v1/customers", {})["id"]
    amount = {"type": "monetary", "monetary": {"currency": "usd", "value": 500}}
    asked = {"amount": amount, "applicability_config": {}, "customer": buyer}
    grant = deeds.post("/v1/billing/credit_grants", asked)["id"]
    made = deeds.ledger().make("billing.credit_balance_transaction", {"credit_grant": grant})
    owners = {g["id"]: g["customer"] for g in truth("billing.credit_grant")}
    everything = await pages(http, path)
    for customer in {*owners.values()}:
        found = await pages(http, path, customer=customer)
        assert found == [c for c in everything if owners[c["credit_grant"]] == customer]
        assert await pages(http, path, customer=customer, credit_grant="credgr_other") == []
    assert [c["id"] for c in await pages(http, path, customer=buyer)] == [made["id"]]
    assert [c["id"] for c in await pages(http, path, credit_grant=grant)] == [made["id"]]
    assert await pages(http, path, customer_account="acct_other") == []
    for path, place, name in (
        ("/v1/billing/alerts", "usage_threshold", "meter"),
        ("/v1/promotion_codes", "promotion", "coupon"),
        ("/v1/shipping_rates", "fixed_amount", "currency"),
    ):
        everything = await pages(http, path)
        owned = [((o[place] or {}).get(name), o) for o in everything]
        some = next(owner for owner, _ in owned if owner)
        found = await pages(http, path, **{name: some})
        assert found == [o for owner, o in owned if owner == some]
        assert 0 < len(found) < len(everything)


def _values_of(name: str, everything: list[dict[str, Any]]) -> list[str | int | bool]:
    """A few values of a field, of the kinds that a filter compares."""
    if name in SPECIAL:
        return []
    values = [_plain(o.get(name)) for o in everything[:: max(1, len(everything) // 3)]]
    simple = [v for v in values if isinstance(v, str | int) and v != ""]
    return list(dict.fromkeys(simple))[:3]


def _plain(value: Any) -> Any:
    return value["id"] if isinstance(value, dict) and "id" in value else value


@pytest.mark.parametrize("mutations", [0, 150])
async def test_lists_inside_objects_are_the_first_ten_of_their_own_list(
    sim: Running, http: aiohttp.ClientSession, mutations: int
) -> None:
    sim.control.burst(mutations)
    world = sim.account.world
    checked = set()
    for name, table in world.tables.items():
        for position in (*range(min(table.base, 25)), *range(table.base, table.total)):
            if table.gone(position):
                continue
            found = world.objects.load(table, position)
            for field in table.lists:
                inside = found.get(field)
                if not isinstance(inside, dict) or not inside.get("total_count"):
                    continue
                if field == "payments":  # Its address leads nowhere, see below.
                    continue
                async with http.get(_exact(sim.url, f"{inside['url']}")) as answer:
                    page = await answer.json()
                assert answer.status == 200, (name, field, page)
                assert page["data"] == inside["data"][:10], (name, field, found["id"])
                assert inside["has_more"] == (inside["total_count"] > 10)
                checked.add((name, field))
    assert {("invoice", "lines"), ("subscription", "items")} <= checked
