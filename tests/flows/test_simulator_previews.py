"""Upcoming invoices of the simulator: their lines, and whose they are."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running
from pinstripe_simulator.versions import ACACIA

Object = dict[str, Any]


def post(sim: Running, path: str, params: Object) -> Object:
    return sim.control.mutator.deeds.post(path, params)


def owner_with_items(sim: Running, items: int) -> str:
    owner = str(post(sim, "/v1/customers", {"email": "a@example.com"})["id"])
    for amount in range(items):
        post(sim, "/v1/invoiceitems", {"customer": owner, "amount": amount, "currency": "usd"})
    return owner


@pytest.mark.parametrize("version", [ACACIA, ""])
async def test_lines_beyond_ten_are_listed_under_the_previews_address(version: str) -> None:
    async with running(Settings(scale=100, connected=False)) as sim:
        owner = owner_with_items(sim, 130)
        headers = {"Authorization": f"Bearer {sim.key}"}
        if version:
            headers["Stripe-Version"] = version
        async with aiohttp.ClientSession(sim.url, headers=headers) as http:
            method, path = ("GET", "upcoming") if version else ("POST", "create_preview")
            asked = {"customer": owner}
            async with http.request(
                method,
                f"/v1/invoices/{path}",
                params=asked if version else None,
                data=None if version else asked,
            ) as answer:
                lines = (await answer.json())["lines"]
            assert (len(lines["data"]), lines["has_more"], lines["total_count"]) == (10, True, 130)
            url, amounts, after = lines["url"], [], ""
            join = "&" if "?" in url else "?"
            while True:
                async with http.get(f"{url}{join}limit=100{after}") as answer:
                    page = await answer.json()
                amounts += [line["amount"] for line in page["data"]]
                if not page["has_more"]:
                    break
                after = f"&starting_after={page['data'][-1]['id']}"
    assert sorted(amounts) == list(range(130))


async def test_until_acacia_a_customer_is_invoiced_for_the_subscription_that_ends_first() -> None:
    async with running(Settings(scale=100, connected=False)) as sim:
        owner = owner_with_items(sim, 0)
        product = post(sim, "/v1/products", {"name": "A thing"})["id"]
        for interval, amount in (("year", 900), ("month", 100)):
            price = {"product": product, "unit_amount": amount, "currency": "usd"}
            made = post(sim, "/v1/prices", price | {"recurring": {"interval": interval}})
            items = [{"price": made["id"]}]
            post(sim, "/v1/subscriptions", {"customer": owner, "items": items})
        headers = {"Authorization": f"Bearer {sim.key}", "Stripe-Version": ACACIA}
        async with (
            aiohttp.ClientSession(sim.url, headers=headers) as http,
            http.get("/v1/invoices/upcoming", params={"customer": owner}) as answer,
        ):
            assert (await answer.json())["total"] == 100


async def test_a_subscriptions_discount_comes_by_coupon_or_code_and_is_taken_away() -> None:
    async with running(Settings(scale=100, connected=False)) as sim:
        owner = owner_with_items(sim, 0)
        product = post(sim, "/v1/products", {"name": "A thing"})["id"]
        price = {"product": product, "unit_amount": 1000, "currency": "usd"}
        made = post(sim, "/v1/prices", price | {"recurring": {"interval": "month"}})
        ten = post(sim, "/v1/coupons", {"percent_off": 10, "duration": "forever"})["id"]
        half = post(sim, "/v1/coupons", {"percent_off": 50, "duration": "forever"})["id"]
        promotion = {"promotion": {"type": "coupon", "coupon": half}}
        code = post(sim, "/v1/promotion_codes", promotion)["id"]
        bought = {"customer": owner, "items": [{"price": made["id"]}]}
        bought["discounts"] = [{"coupon": ten}]
        subscription = post(sim, "/v1/subscriptions", bought)
        path = f"/v1/subscriptions/{subscription['id']}"
        (first,) = subscription["discounts"]
        both = {"discounts": [{"discount": first}, {"promotion_code": code}]}
        assert post(sim, path, both)["discounts"][0] == first
        async with aiohttp.ClientSession(
            sim.url, headers={"Authorization": f"Bearer {sim.key}"}
        ) as http:
            asked = {"expand[]": "discounts"}
            async with http.get(path, params=asked) as answer:
                shown = (await answer.json())["discounts"]
            assert [d["promotion_code"] for d in shown] == [None, code]
            for left in ([first], []):
                async with http.delete(f"{path}/discount") as answer:
                    assert (await answer.json())["deleted"] is True
                async with http.get(path) as answer:
                    assert (await answer.json())["discounts"] == left
                async with http.get("/v1/events", params={"limit": "2"}) as answer:
                    told = {event["type"] for event in (await answer.json())["data"]}
                assert told == {"customer.discount.deleted", "customer.subscription.updated"}
            async with http.delete(f"{path}/discount") as answer:
                assert answer.status == 404


async def test_until_acacia_each_active_subscription_has_an_upcoming_invoice() -> None:
    async with running(Settings(scale=400, connected=False)) as sim:
        active = [s for s in sim.control.truth("subscription") if s["status"] == "active"]
        assert len(active) > 5
        headers = {"Authorization": f"Bearer {sim.key}", "Stripe-Version": ACACIA}
        async with aiohttp.ClientSession(sim.url, headers=headers) as http:
            for found in active:
                asked = {"subscription": found["id"]}
                async with http.get("/v1/invoices/upcoming", params=asked) as answer:
                    invoice = await answer.json()
                assert (answer.status, invoice.get("subscription")) == (200, found["id"]), invoice
                assert (invoice["object"], "id" in invoice) == ("invoice", False)
                assert (invoice["attempted"], invoice["attempt_count"]) == (False, 0)
                assert set(invoice["status_transitions"].values()) == {None}
                assert invoice["lines"]["data"]
