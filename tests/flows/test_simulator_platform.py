"""A simulated platform: connected accounts, each with its own objects, log, limits and authorization."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.flows.harness.account import until
from tests.flows.harness.gateway_account import serving
from tests.flows.test_simulator_facts import Caller

from pinstripe_simulator.account import Settings, make_account
from pinstripe_simulator.limits import Meter
from pinstripe_simulator.nastiness import CALM
from pinstripe_simulator.process import SimulatorProcess
from pinstripe_simulator.server import running
from pinstripe_simulator.webhooks import signature

NOON = 1_790_000_000
FIVE = Settings(scale=60, nastiness=CALM, connected=5, connected_scale=100)
USERS_OWN = ("product", "plan", "coupon")


@asynccontextmanager
async def platform(settings: Settings = FIVE) -> AsyncIterator[Caller]:
    async with running(settings) as sim, aiohttp.ClientSession(sim.url) as http:
        yield Caller(sim, http)


async def ids(stripe: Caller, path: str, account: str = "") -> list[str]:
    """Of the whole list."""
    found: list[str] = []
    while True:
        after = f"&starting_after={found[-1]}" if found else ""
        named = {"Stripe_Account": account} if account else {}
        came = await stripe.get(f"{path}?limit=100{after}", **named)
        assert came.status == 200, came.body
        found += [o["id"] for o in came.o["data"]]
        if not came.o["has_more"]:
            return found


async def test_the_list_of_accounts_shows_every_connected_account_and_each_answers_for_itself() -> (
    None
):
    async with platform() as stripe:
        accounts = await ids(stripe, "/v1/accounts")
        assert sorted(accounts) == sorted(stripe.sim.control.accounts())
        assert len(accounts) == 5
        seen: set[str] = set(await ids(stripe, "/v1/charges"))
        for account in accounts:
            own = await stripe.get("/v1/account", Stripe_Account=account)
            assert own.o == (await stripe.get(f"/v1/accounts/{account}")).o
            assert own.headers["stripe-account"] == own.o["id"] == account
            for path in ("/v1/charges", "/v1/events", "/v1/customers"):
                there = set(await ids(stripe, path, account))
                assert there
                assert not there & seen, path
                seen |= there
            assert await ids(stripe, "/v1/accounts", account) == []


async def test_every_list_and_every_object_of_a_connected_account_can_be_read() -> None:
    async with platform() as stripe:
        account = stripe.sim.control.accounts()[2]
        control = stripe.sim.control.of(account)
        for path in (
            "charges",
            "invoices",
            "subscriptions?status=all",
            "prices",
            "payouts",
            "refunds",
        ):
            name, _, query = path.partition("?")
            came = await stripe.get(f"/v1/{name}?limit=100&{query}", Stripe_Account=account)
            kind = came.o["data"][0]["object"]
            truth = {o["id"]: o for o in control.truth(kind)}
            for listed in came.o["data"]:
                assert listed == truth[listed["id"]]
                got = await stripe.get(f"/v1/{name}/{listed['id']}", Stripe_Account=account)
                assert got.o == listed


@pytest.mark.parametrize("which", ["chosen", "all"])
async def test_ids_that_users_choose_are_the_same_in_all_accounts_and_others_are_not(
    which: Any,
) -> None:
    settings = Settings(scale=60, until=NOON, connected=2, connected_few=2, connected_ids=which)
    one, two = make_account(settings).connected.values()
    same = {
        name
        for name in one.world.counts()
        if [o["id"] for o in one.world.truth(name)] == [o["id"] for o in two.world.truth(name)]
    }
    everything = {name for name in one.world.counts() if one.world.counts()[name]}
    if which == "all":
        assert everything <= same
    else:
        assert same >= set(USERS_OWN)
        assert not {"customer", "charge", "event", "price", "invoice"} & same


async def test_an_account_that_is_unknown_or_was_deauthorized_is_refused_in_stripes_words() -> None:
    async with platform() as stripe:
        account = stripe.sim.control.accounts()[1]
        before = await ids(stripe, "/v1/customers", account)
        stripe.sim.control.deauthorize(account)
        for named in (account, "acct_1Nobody"):
            came = await stripe.get("/v1/customers", Stripe_Account=named)
            assert (came.status, came.error["code"]) == (403, "account_invalid")
            assert came.error["message"] == (
                f"The provided key 'sk_test_********************0000' does not have access to account "
                f"'{named}' (or that account does not exist). Application access may have been "
                "revoked."
            )
            assert "request-id" not in came.headers
        assert account not in await ids(stripe, "/v1/accounts")
        assert (await stripe.get(f"/v1/accounts/{account}")).status == 403

        stripe.sim.control.authorize(account)
        assert account in await ids(stripe, "/v1/accounts")
        assert await ids(stripe, "/v1/customers", account) == before


async def test_what_happens_in_one_account_stands_in_no_other_log() -> None:
    async with platform() as stripe:
        one, two, *_ = stripe.sim.control.accounts()
        before = {a: await ids(stripe, "/v1/events", a) for a in ("", one, two)}
        made = await stripe.post("/v1/customers", {"name": "theirs"}, Stripe_Account=one)
        assert (await stripe.get(f"/v1/customers/{made.o['id']}")).status == 404
        assert (await stripe.get(f"/v1/customers/{made.o['id']}", Stripe_Account=two)).status == 404
        after = {a: await ids(stripe, "/v1/events", a) for a in ("", one, two)}
        assert {a for a in after if after[a] != before[a]} == {one}


async def test_what_a_platform_changes_at_an_account_is_an_event_of_that_account() -> None:
    async with platform() as stripe:
        account = stripe.sim.control.accounts()[0]
        platforms = await ids(stripe, "/v1/events")
        for named in ({}, {"Stripe_Account": account}):
            came = await stripe.post(
                f"/v1/accounts/{account}", {"metadata[a]": str(named)}, **named
            )
            assert came.status == 200
            newest = await stripe.get("/v1/events?limit=1", Stripe_Account=account)
            event = newest.o["data"][0]
            assert (event["type"], event["data"]["object"]) == ("account.updated", came.o)
        assert await ids(stripe, "/v1/events") == platforms


def receiving() -> tuple[Starlette, list[tuple[str, bytes]]]:
    """An application, and the signatures and bodies that it receives."""
    received: list[tuple[str, bytes]] = []

    async def take(request: Request) -> Response:
        received.append((request.headers["stripe-signature"], await request.body()))
        return Response()

    return Starlette(routes=[Route("/x", take, methods=["POST"])]), received


async def endpoint(stripe: Caller, url: str, **more: str) -> str:
    """Makes it; its secret."""
    made = await stripe.made("/v1/webhook_endpoints", {"url": url, "enabled_events[]": "*", **more})
    secret: str = made["secret"]
    return secret


async def test_a_connect_endpoint_receives_what_happens_in_all_accounts_and_names_each() -> None:
    (app, received), (own_app, own) = receiving(), receiving()
    async with platform() as stripe, serving(app) as url, serving(own_app) as own_url:
        secret = await endpoint(stripe, f"{url}/x", connect="true")
        await endpoint(stripe, f"{own_url}/x")
        one, two, *_ = stripe.sim.control.accounts()
        await stripe.post("/v1/customers", {"name": "1"}, Stripe_Account=one)
        await stripe.post("/v1/customers", {"name": "2"}, Stripe_Account=two)
        await stripe.post("/v1/customers", {"name": "0"})
        stripe.sim.control.deauthorize(two)
        stripe.sim.control.authorize(two)
        await until(lambda: len(received) >= 4 and len(own) >= 1)
    events = [json.loads(body) for _, body in received]
    came = sorted((e["account"], e["type"], e["data"]["object"]["object"]) for e in events)
    assert came == sorted(
        [
            (one, "customer.created", "customer"),
            (two, "account.application.authorized", "application"),
            (two, "account.application.deauthorized", "application"),
            (two, "customer.created", "customer"),
        ]
    )
    for sent, body in received:
        at = int(sent.split(",")[0].removeprefix("t="))
        assert sent == signature(secret, body, at)
    assert [json.loads(body)["type"] for _, body in own] == ["customer.created"]
    assert "account" not in json.loads(own[0][1])


async def test_an_account_has_limits_of_its_own_and_the_platform_one_for_all_of_them() -> None:
    async with platform() as stripe:
        control = stripe.sim.control
        one, two, *rest = control.accounts()
        for account in (stripe.sim.account, *stripe.sim.account.connected.values()):
            account.meter = Meter(monotonic=lambda: 0.0)  # All of it in one second.
        control.connected_limits(account=3, slack=0)

        async def statuses(*accounts: str) -> list[int]:
            asked = [stripe.get("/v1/events?limit=1", Stripe_Account=a) for a in accounts]
            return sorted(came.status for came in await asyncio.gather(*asked))

        assert await statuses(*[one] * 5) == [200] * 3 + [429] * 2
        assert await statuses(*[two] * 3) == [200] * 3
        state = control.state()
        assert state["connected"] == {"asked": 5, "most_per_second": 3, "limited": 2}
        control.reset_counters()

        control.limits(account=4, slack=0)
        assert await statuses(*rest[:2] * 3) == [200] * 4 + [429] * 2
        assert control.state()["most_per_second"] == 4
        assert control.state()["limited"] == {"global-rate": 2}


async def test_a_fault_of_one_account_leaves_the_others_alone() -> None:
    async with platform() as stripe:
        one, two, *_ = stripe.sim.control.accounts()
        stripe.sim.control.of(one).fault(kind="error_500")
        assert (await stripe.get("/v1/events", Stripe_Account=one)).status == 500
        assert (await stripe.get("/v1/events", Stripe_Account=two)).status == 200
        assert (await stripe.get("/v1/events")).status == 200


async def test_the_control_interface_reaches_a_connected_account_by_its_header() -> None:
    async with platform() as stripe:
        account = stripe.sim.control.accounts()[3]
        came = await stripe.post("/_simulator/events", Stripe_Account=account)
        assert came.o["result"] == stripe.sim.control.of(account).events()
        refused = await stripe.post("/_simulator/events", Stripe_Account="acct_1Nobody")
        assert refused.status == 400


async def test_life_in_small_accounts_ends_in_refusals_at_worst() -> None:
    async with platform(Settings(scale=60, connected=40, connected_scale=100)) as stripe:
        control = stripe.sim.control
        for number, account in enumerate(control.accounts()):
            there = control.of(account)
            assert there.burst(25) > 0, number
            for kind in ("charge", "customer", "subscription", "invoice"):
                assert all(o["id"] for o in there.truth(kind))


async def test_traffic_reaches_many_accounts_and_passes_over_the_deauthorized() -> None:
    async with platform() as stripe:
        control = stripe.sim.control
        gone = control.deauthorize()
        await control.connected_traffic(2_000)
        await until(lambda: all(control.of(a).mutator.done for a in control.accounts()))
        control.deauthorize()
        before = sum(sum(control.of(a).mutator.done.values()) for a in control.accounts())
        await until(
            lambda: (
                sum(sum(control.of(a).mutator.done.values()) for a in control.accounts()) > before
            )
        )
        await control.connected_traffic(0)
        assert gone not in control.accounts()


def test_an_account_costs_memory_only_once_it_is_asked_about_and_little_then() -> None:
    account = make_account(Settings(scale=60, connected=2_000, connected_scale=100))
    connected = account.connected
    every = list(connected)
    assert len(every) == 2_000
    assert not connected.made
    assert connected[every[0]].world.tables["event"].total
    tracemalloc.start()
    try:
        for id in every[1:101]:
            assert connected[id].world.tables["event"].total
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken / 100 < 80_000
    assert len(connected.made) == 101


async def test_a_platform_in_a_process_of_its_own_has_the_same_accounts() -> None:
    async with SimulatorProcess(FIVE) as there:
        assert await there.control("accounts") == list(make_account(FIVE).connected)
        account = (await there.control("accounts"))[0]
        assert await there.control("counts", account=account)
