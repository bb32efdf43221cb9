"""Sets, deletions and clocks as the simulator bends them: members come and go, ids are used again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from pinstripe_simulator.account import Settings, make_account
from pinstripe_simulator.members import Members
from pinstripe_simulator.server import Running, running

NOON = 1_790_000_000


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=300, until=NOON)) as started:
        yield started


async def _get(http: aiohttp.ClientSession, path: str) -> dict[str, Any]:
    async with http.get(path) as answer:
        assert answer.status == 200, await answer.text()
        found: dict[str, Any] = await answer.json()
        return found


def _newest_event(sim: Running) -> dict[str, Any]:
    table = sim.account.world.tables["event"]
    return sim.account.world.objects.load(table, table.total - 1)


def _removable() -> list[str]:
    sets = Members(make_account(Settings(scale=10, connected=False)))
    return sorted(name for name, kind in sets.kinds.items() if kind.may_go)


def test_every_kind_of_set_of_which_members_leave_is_there() -> None:
    assert {
        "account/bank_account",
        "account/person",
        "customer/card",
        "customer/entitlements.active_entitlement",
        "customer/tax_id",
        "invoice/line_item",
        "product/product_feature",
        "radar.value_list/radar.value_list_item",
        "subscription/subscription_item",
    } <= set(_removable())


async def test_an_object_inside_another_is_shown_as_it_is_now(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    """Also in one that was changed, and kept, before."""
    world = sim.account.world

    def rate_of(invoice: Any) -> Any:
        return ((invoice["shipping_cost"] or {}).get("taxes") or [{}])[0].get("rate")

    found = next(i for i in world.truth("invoice") if rate_of(i))
    sim.control.edit("invoice", str(found["id"]), silent=True)
    rate = rate_of(found)["id"]
    sim.control.edit("tax_rate", rate, silent=True)
    shown = rate_of(await _get(http, f"/v1/invoices/{found['id']}"))
    assert shown == await _get(http, f"/v1/tax_rates/{rate}")
    assert shown != rate_of(found)


async def test_a_list_that_takes_no_limit_shows_all(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    """GET /v1/accounts/{account}/capabilities (https://docs.stripe.com/api/capabilities/list)."""
    owner = sim.control.members("account", "capability", add=120)["owner"][0]
    listed = await _get(http, f"/v1/accounts/{owner}/capabilities")
    assert len(listed["data"]) > 120
    assert not listed["has_more"]


@pytest.mark.parametrize("kind", _removable())
async def test_members_are_added_and_taken_out_of_any_set(sim: Running, kind: str) -> None:
    owner, _, child = kind.partition("/")
    sets = sim.control.sets
    told = sim.control.members(owner, child, add=250)
    position = sets.kinds[kind].owner.position(told["owner"][0])
    assert position is not None
    there = {sets.kinds[kind].child.id_at(p) for p in sets.of(sets.kinds[kind], position)}
    assert set(told["added"]) <= there
    gone = sim.control.members(owner, child, told["owner"][0], remove=len(there) - 1)["removed"]
    left = {sets.kinds[kind].child.id_at(p) for p in sets.of(sets.kinds[kind], position)}
    assert left == there - set(gone)
    assert len(left) == 1


async def test_a_stale_read_shows_a_set_without_what_was_added_and_with_what_has_gone(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    sim.control.nastiness("calm", stale_share=1.0, stale_s=3600.0)
    sim.control.clock(freeze=True)
    told = sim.control.members("subscription", "subscription_item", add=3)
    where = f"/v1/subscription_items?limit=100&subscription={told['owner'][0]}"
    sim.control.clock(step_s=3600.0)
    assert {i["id"] for i in (await _get(http, where))["data"]} >= set(told["added"])
    gone = sim.control.members("subscription", "subscription_item", told["owner"][0], remove=1)
    sim.control.clock(step_s=1.0)
    shown = [{i["id"] for i in (await _get(http, where))["data"]} for _ in range(8)]
    assert any(set(gone["removed"]) <= ids for ids in shown)
    subscription = await _get(http, f"/v1/subscriptions/{told['owner'][0]}")
    assert len(subscription["items"]["data"]) > 0
    sim.control.nastiness("calm")
    ids = {i["id"] for i in (await _get(http, where))["data"]}
    assert not set(gone["removed"]) & ids


async def test_entitlements_come_with_their_summary(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    told = sim.control.members("customer", "entitlements.active_entitlement", add=12)
    event = _newest_event(sim)
    assert event["type"] == "entitlements.active_entitlement_summary.updated"
    summary = event["data"]["object"]
    assert summary["customer"] == told["owner"][0]
    assert (len(summary["entitlements"]["data"]), summary["entitlements"]["has_more"]) == (10, True)
    listed = await _get(
        http, f"/v1/entitlements/active_entitlements?limit=100&customer={told['owner'][0]}"
    )
    assert set(told["added"]) <= {e["id"] for e in listed["data"]}


@pytest.mark.parametrize("name", ["plan", "coupon", "product"])
async def test_an_object_is_deleted_and_made_again_within_a_second(
    sim: Running, http: aiohttp.ClientSession, name: str
) -> None:
    sim.control.clock(freeze=True)
    key = sim.control.recreate(name, changes={"metadata": {"made": "again"}}, version="2024-06-20")
    created = _newest_event(sim)
    table = sim.account.world.tables["event"]
    deleted = sim.account.world.objects.load(table, table.total - 2)
    assert [deleted["type"], created["type"]] == [f"{name}.deleted", f"{name}.created"]
    assert deleted["created"] == created["created"]
    assert (deleted["api_version"], created["api_version"]) == (
        "2024-06-20",
        sim.account.spec.api_version,
    )
    found = await _get(http, f"/v1/{name}s/{key}")
    assert found["metadata"] == {"made": "again"}


async def test_a_pending_update_holds_items_that_are_none(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    key = sim.control.pending_update()
    found = await _get(http, f"/v1/subscriptions/{key}")
    wished = found["pending_update"]["subscription_items"]
    assert {i["quantity"] for i in wished} == {77}
    listed = await _get(http, f"/v1/subscription_items?limit=100&subscription={key}")
    assert {i["id"] for i in wished} - {i["id"] for i in listed["data"]}
    assert 77 not in {i.get("quantity") for i in listed["data"]}


async def test_a_preview_may_be_stale_like_a_read(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    sim.control.nastiness("calm", stale_share=1.0, stale_s=3600.0)
    found = next(s for s in sim.control.truth("subscription") if s["status"] == "active")
    body = {"subscription": found["id"]}
    async with http.post("/v1/invoices/create_preview", data=body) as answer:
        before = (await answer.json())["lines"]["total_count"]
    sim.control.members("subscription", "subscription_item", found["id"], add=1)
    shown = set()
    for _ in range(20):
        async with http.post("/v1/invoices/create_preview", data=body) as answer:
            shown.add((await answer.json())["lines"]["total_count"])
    assert before in shown
