"""The simulator's event log: ties, lateness, forgetting, versions, silence."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

NOON = 1_790_000_000
DAY_S = 86_400


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=2_000, until=NOON, connected=False)) as started:
        started.control.clock(offset_s=NOON + DAY_S - time.time())
        yield started


async def events(http: aiohttp.ClientSession, **params: str | int) -> list[dict[str, Any]]:
    async with http.get("/v1/events", params={"limit": 100, **params}) as answer:
        assert answer.status == 200, await answer.text()
        found: list[dict[str, Any]] = (await answer.json())["data"]
    return found


async def every_event(http: aiohttp.ClientSession, **params: str | int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while page := await events(http, **params):
        found += page
        params["starting_after"] = page[-1]["id"]
    return found


async def post(http: aiohttp.ClientSession, path: str, **form: str) -> dict[str, Any]:
    async with http.post(path, data=form) as answer:
        made: dict[str, Any] = await answer.json()
        assert answer.status == 200, made
    return made


async def test_a_burst_makes_many_events_in_one_second_in_list_order(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    sim.control.clock(freeze=True)
    second = int(sim.account.clock.now())
    sim.control.burst(50)
    found = await every_event(http, created=second)
    assert len(found) > 60
    assert {e["created"] for e in found} == {second}
    ids = [e["id"] for e in found]
    assert ids not in (sorted(ids), sorted(ids)[::-1])


async def test_the_newest_event_of_an_object_holds_its_state(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    made = await post(http, "/v1/customers", name="first")
    for name in ("second", "third"):
        await post(http, f"/v1/customers/{made['id']}", name=name)
    found = await events(http, type="customer.*", limit=3)
    names = [e["data"]["object"]["name"] for e in found]
    before = [e["data"].get("previous_attributes") for e in found]
    assert names == ["third", "second", "first"]
    assert before == [{"name": "second"}, {"name": "first"}, None]


async def test_late_events_appear_behind_newer_ones(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    sim.control.clock(freeze=True)
    sim.control.late_events(share=1.0, delay_s=10)
    late = await post(http, "/v1/customers", name="late")
    sim.control.late_events(share=0.0)
    prompt = await post(http, "/v1/customers", name="prompt")
    assert [e["data"]["object"]["id"] for e in await events(http, limit=1)] == [prompt["id"]]
    sim.control.clock(step_s=21)
    found = await events(http, limit=2)
    assert [e["data"]["object"]["id"] for e in found] == [prompt["id"], late["id"]]


async def test_events_are_kept_for_thirty_days_and_an_aged_cursor_is_refused(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    oldest = (await every_event(http))[-1]
    sim.control.clock(step_s=40 * DAY_S)
    assert await events(http) == []
    async with http.get("/v1/events", params={"ending_before": oldest["id"]}) as answer:
        error = (await answer.json())["error"]
    assert answer.status == 400
    assert "aged out of our retention policy" in error["message"]
    async with http.get(f"/v1/events/{oldest['id']}") as answer:
        assert answer.status == 404


async def test_filters_by_type_list_and_wildcard_agree_with_the_whole(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    sim.control.burst(200)
    everything = await every_event(http)
    invoices = await every_event(http, type="invoice.*")
    assert invoices == [e for e in everything if e["type"].startswith("invoice.")]
    two = await every_event(http, **{"types[0]": "charge.succeeded", "types[1]": "charge.failed"})
    assert two == [e for e in everything if e["type"] in ("charge.succeeded", "charge.failed")]
    assert invoices
    assert two


async def test_the_request_behind_an_event_is_named_and_stripes_own_is_not(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    headers = {"Idempotency-Key": "key-1"}
    async with http.post("/v1/customers", headers=headers) as answer:
        request_id = answer.headers["Request-Id"]
    (told,) = await events(http, limit=1)
    assert told["request"] == {"id": request_id, "idempotency_key": "key-1"}
    sim.control.delete("customer")
    (told,) = await events(http, limit=1)
    assert told["request"] == {"id": None, "idempotency_key": None}


async def test_an_old_default_version_shapes_events_but_not_answers(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    sim.control.api_version("2025-02-24.acacia")
    clock_free = [s for s in sim.account.world.truth("subscription") if s["status"] == "active"]
    sim.control.edit("subscription", clock_free[0]["id"], silent=False)
    (event,) = await events(http, limit=1)
    assert event["api_version"] == "2025-02-24.acacia"
    told = event["data"]["object"]
    assert told["current_period_end"]
    assert "current_period_end" not in told["items"]["data"][0]
    newest = {"Stripe-Version": "2026-10-28.endive"}
    async with http.get(f"/v1/subscriptions/{told['id']}", headers=newest) as answer:
        shown = await answer.json()
    assert "current_period_end" not in shown
    assert shown["items"]["data"][0]["current_period_end"]
    async with http.get(f"/v1/subscriptions/{told['id']}") as answer:
        assert answer.headers["Stripe-Version"] == "2025-02-24.acacia"
        assert "current_period_end" in await answer.json()


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/v1/payment_intents", {"amount": "100", "currency": "usd"}),
        ("/v1/setup_intents", {}),
        ("/v1/checkout/sessions", {"mode": "setup", "currency": "usd"}),
    ],
)
async def test_updates_without_an_event_type_are_silent(
    http: aiohttp.ClientSession, path: str, form: dict[str, str]
) -> None:
    made = await post(http, path, **form)
    before = await events(http, limit=1)
    changed = await post(http, f"{path}/{made['id']}", **{"metadata[a]": "b"})
    assert changed["metadata"] == {"a": "b"}
    assert await events(http, limit=1) == before


async def test_payloads_carry_no_on_request_fields(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    sim.control.burst(100)
    fields = sim.account.world.routes.fields
    for event in await every_event(http):
        found = event["data"]["object"]
        hidden = {f.name for f in fields[found["object"]].values() if f.on_request}
        assert not hidden & found.keys(), event["type"]


async def test_events_of_the_start_show_the_objects_as_they_are(
    http: aiohttp.ClientSession, sim: Running
) -> None:
    found = await every_event(http)
    assert len(found) == sim.account.world.tables["event"].base
    shown = [e["data"]["object"] for e in found if e["type"] == "charge.succeeded"]
    assert shown
    for charge in shown[:5]:
        async with http.get(f"/v1/charges/{charge['id']}") as answer:
            assert await answer.json() == charge
