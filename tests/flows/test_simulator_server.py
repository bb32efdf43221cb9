"""The simulator as a process, its webhooks, and its test clocks."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time

import aiohttp
from aiohttp import web

from pinstripe_simulator.account import Settings
from pinstripe_simulator.process import SimulatorProcess
from pinstripe_simulator.server import running

NOON = 1_790_000_000


async def test_a_process_of_its_own_shows_the_same_account_as_one_in_this_process() -> None:
    settings = Settings(scale=500, until=NOON, seed=7)
    async with (
        SimulatorProcess(settings) as there,
        running(settings) as here,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {there.key}"}) as http,
    ):
        texts = []
        for url in (there.url, here.url):
            async with http.get(f"{url}/v1/invoices?limit=100") as answer:
                texts.append(await answer.text())
        assert texts[0] == texts[1]
        assert await there.control("counts") == here.control.counts()
        assert await there.control("burst", count=5) > 0


async def test_webhooks_are_signed_and_retried_until_accepted() -> None:
    received: list[tuple[str, bytes]] = []
    enough = asyncio.Event()

    async def accept(request: web.Request) -> web.Response:
        received.append((request.headers["Stripe-Signature"], await request.read()))
        if len(received) > 1:
            enough.set()
        return web.Response(status=500 if len(received) == 1 else 200)

    app = web.Application()
    app.router.add_post("/hook", accept)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with running(Settings(scale=100, until=NOON, connected=False)) as sim:
        headers = {"Authorization": f"Bearer {sim.key}"}
        async with aiohttp.ClientSession(sim.url, headers=headers) as http:
            form = {"url": f"http://127.0.0.1:{port}/hook", "enabled_events[]": "customer.created"}
            async with http.post("/v1/webhook_endpoints", data=form) as answer:
                secret = (await answer.json())["secret"]
            async with http.post("/v1/customers", data={"name": "é"}) as answer:
                customer = await answer.json()
            async with asyncio.timeout(5):
                await enough.wait()
    await runner.cleanup()
    header, payload = received[1]
    stamp, _, digest = header.removeprefix("t=").partition(",v1=")
    expected = hmac.new(secret.encode(), f"{stamp}.".encode() + payload, hashlib.sha256)
    assert digest == expected.hexdigest()
    assert json.loads(payload)["data"]["object"] == customer
    assert received[0][1] == payload


async def test_advancing_a_test_clock_renews_what_lives_on_it() -> None:
    async with running(Settings(scale=300, until=NOON, connected=False)) as sim:
        headers = {"Authorization": f"Bearer {sim.key}"}
        async with aiohttp.ClientSession(sim.url, headers=headers) as http:

            async def post(path: str, **form: str | int) -> dict[str, str]:
                async with http.post(path, data=form) as answer:
                    made: dict[str, str] = await answer.json()
                    assert answer.status == 200, made
                return made

            now = int(time.time())
            clock = await post("/v1/test_helpers/test_clocks", frozen_time=now)
            customer = await post("/v1/customers", test_clock=clock["id"])
            card = await post("/v1/payment_methods/pm_card_visa/attach", customer=customer["id"])
            product = await post("/v1/products", name="x")
            price = await post(
                "/v1/prices",
                product=product["id"],
                unit_amount=500,
                currency="usd",
                **{"recurring[interval]": "month"},
            )
            made = await post(
                "/v1/subscriptions",
                customer=customer["id"],
                default_payment_method=card["id"],
                **{"items[0][price]": price["id"]},
            )
            await post(
                f"/v1/test_helpers/test_clocks/{clock['id']}/advance",
                frozen_time=now + 70 * 86_400,
            )
            async with http.get("/v1/subscriptions") as answer:
                plain = [s["id"] for s in (await answer.json())["data"]]
            async with http.get(f"/v1/subscriptions?test_clock={clock['id']}") as answer:
                (clocked,) = (await answer.json())["data"]
            async with http.get(f"/v1/invoices?subscription={made['id']}") as answer:
                invoices = (await answer.json())["data"]
    assert made["id"] not in plain
    assert clocked["items"]["data"][0]["current_period_end"] > now + 70 * 86_400
    assert [i["billing_reason"] for i in invoices] == [
        "subscription_cycle",
        "subscription_cycle",
        "subscription_create",
    ]
    assert {i["status"] for i in invoices} == {"paid"}
