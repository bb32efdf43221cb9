"""The simulator as Stripe was seen to be: each test holds one thing read off recorded answers.

`tests/flows/test_simulator_troubles.py` has what Stripe does to its callers now and then.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest

from pinstripe_simulator.account import Settings
from pinstripe_simulator.beyond_types import EXTRA
from pinstripe_simulator.nastiness import CALM
from pinstripe_simulator.server import Running, running

NOON = 1_790_000_000


@dataclass(frozen=True)
class Came:
    """An answer: its JSON is `o`, the error in it `error`."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def o(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.o["error"]
        return found


class Caller:
    """Sends single requests to a simulator."""

    def __init__(self, sim: Running, http: aiohttp.ClientSession) -> None:
        self.sim, self._http = sim, http

    async def get(self, path: str, **headers: str) -> Came:
        return await self._send("GET", path, None, headers)

    async def post(self, path: str, form: dict[str, Any] | None = None, **headers: str) -> Came:
        return await self._send("POST", path, form or {}, headers)

    async def delete(self, path: str, **headers: str) -> Came:
        return await self._send("DELETE", path, None, headers)

    async def search(self, query: str, **more: str) -> Came:
        where = "/v1/charges/search?" + urlencode({"query": query, "limit": "10", **more})
        return await self._send("GET", where, None, {})

    async def made(self, path: str, form: dict[str, Any] | None = None) -> Any:
        came = await self.post(path, form)
        assert came.status == 200, came
        return came.o

    async def _send(
        self, method: str, path: str, form: dict[str, Any] | None, headers: dict[str, str]
    ) -> Came:
        sent = {"Authorization": f"Bearer {self.sim.key}"}
        sent |= {k.replace("_", "-"): v for k, v in headers.items()}
        async with self._http.request(method, path, data=form, headers=sent) as answer:
            told = {k.lower(): v for k, v in answer.headers.items()}
            return Came(answer.status, told, await answer.read())


@pytest.fixture
async def stripe() -> AsyncIterator[Caller]:
    async with (
        running(Settings(scale=400, until=NOON, nastiness=CALM)) as sim,
        aiohttp.ClientSession(sim.url) as http,
    ):
        yield Caller(sim, http)


# --- lists -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "shown"), [("101", 100), ("0", 1), ("-7", 1), ("100", 100)])
async def test_a_limit_outside_1_to_100_is_clamped(stripe: Caller, limit: str, shown: int) -> None:
    for n in range(101):
        stripe.sim.control.mutator.deeds.post("/v1/customers", {"email": f"{n}@example.com"})
    came = await stripe.get(f"/v1/customers?limit={limit}")
    assert (came.status, len(came.o["data"])) == (200, shown)


async def test_a_deleted_customer_serves_as_a_cursor_both_ways(stripe: Caller) -> None:
    first, middle, last = [(await stripe.made("/v1/customers"))["id"] for _ in range(3)]
    await stripe.delete(f"/v1/customers/{middle}")
    after = await stripe.get(f"/v1/customers?limit=1&starting_after={middle}")
    before = await stripe.get(f"/v1/customers?limit=1&ending_before={middle}")
    assert [c["id"] for c in after.o["data"] + before.o["data"]] == [first, last]


async def test_both_cursors_at_once_are_a_400_without_code(stripe: Caller) -> None:
    a, b = [(await stripe.made("/v1/customers"))["id"] for _ in range(2)]
    came = await stripe.get(f"/v1/customers?starting_after={b}&ending_before={a}")
    assert came.status == 400
    assert came.error["message"].startswith("Received both starting_after and ending_before")
    assert not {"code", "param", "doc_url"} & came.error.keys()


@pytest.mark.parametrize("cursor", ["starting_after", "ending_before"])
async def test_an_unknown_cursor_is_named_with_its_parameter(stripe: Caller, cursor: str) -> None:
    came = await stripe.get(f"/v1/customers?{cursor}=cus_aaa")
    assert (came.status, came.error["code"], came.error["param"]) == (
        400,
        "resource_missing",
        cursor,
    )
    assert came.error["message"] == "No such customer: 'cus_aaa'"


async def test_the_payments_of_an_invoice_have_no_count_and_an_address_that_leads_nowhere(
    stripe: Caller,
) -> None:
    invoice = (await stripe.get("/v1/invoices?limit=1&expand[]=data.payments")).o["data"][0]
    assert invoice["payments"]["url"] == "/v1/invoices/payments"
    assert "total_count" not in invoice["payments"]
    assert "total_count" in invoice["lines"]
    assert (await stripe.get("/v1/invoices/payments")).status == 404


# --- headers, by kind of answer ----------------------------------------------------------------


async def test_a_401_names_no_request_and_no_version(stripe: Caller) -> None:
    came = await stripe.get("/v1/customers", Authorization="Bearer sk_test_wrong000000")
    assert came.status == 401
    assert came.headers["www-authenticate"] == 'Bearer realm="Stripe"'
    assert not {"request-id", "stripe-version"} & came.headers.keys()
    assert came.error.keys() == {"message", "type"}
    assert "date" in came.headers


async def test_a_wrong_account_names_no_request_and_no_version(stripe: Caller) -> None:
    came = await stripe.get("/v1/customers", Stripe_Account="acct_nobody")
    assert (came.status, came.error["code"]) == (403, "account_invalid")
    assert not {"request-id", "stripe-version"} & came.headers.keys()
    assert "request_log_url" not in came.error


async def test_a_malformed_version_comes_back_as_it_was_sent(stripe: Caller) -> None:
    came = await stripe.get("/v1/customers", Stripe_Version="not-a-version")
    assert came.status == 400
    assert came.error.keys() == {"message", "type"}
    assert came.headers["stripe-version"] == "not-a-version"
    assert "request-id" in came.headers


async def test_a_preview_behind_the_version_is_understood(stripe: Caller) -> None:
    version = "2026-10-28.preview; some_beta=v1"
    came = await stripe.get("/v1/customers", Stripe_Version=version)
    assert (came.status, came.headers["stripe-version"]) == (200, version)


async def test_outdated_versions_are_noticed(stripe: Caller) -> None:
    old = await stripe.get("/v1/customers", Stripe_Version="2020-08-27")
    assert "2020-08-27" in old.headers["stripe-notice"]
    assert "stripe-notice" not in (await stripe.get("/v1/customers")).headers


async def test_a_write_under_a_key_says_what_it_ran_under(stripe: Caller) -> None:
    came = await stripe.post("/v1/customers", Idempotency_Key="one")
    assert came.headers["idempotency-key"] == "one"
    assert came.headers["original-request"] == came.headers["request-id"]
    assert came.headers["stripe-should-retry"] == "false"
    again = await stripe.post("/v1/customers", Idempotency_Key="one")
    assert again.headers["original-request"] == came.headers["request-id"]
    assert again.headers["idempotent-replayed"] == "true"
    gone = await stripe.delete(f"/v1/customers/{came.o['id']}", Idempotency_Key="two")
    assert gone.headers["idempotency-key"] == "two"
    assert "original-request" not in gone.headers
    assert "original-request" not in (await stripe.post("/v1/customers")).headers


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/customers", "with the same parameters they were first used with."),
        (
            "/v1/products",
            "the same endpoint they were first used for ('/v1/products' vs '/v1/customers').",
        ),
    ],
)
async def test_a_key_is_good_for_one_request(stripe: Caller, path: str, words: str) -> None:
    await stripe.post("/v1/customers", {"name": "Ada"}, Idempotency_Key="k1")
    came = await stripe.post(path, {"name": "Bob"}, Idempotency_Key="k1")
    assert (came.status, came.error["type"]) == (400, "idempotency_error")
    assert words in came.error["message"]
    assert "Try using a key other than 'k1'" in came.error["message"]


async def test_the_account_that_was_acted_on_comes_back(stripe: Caller) -> None:
    other = next(iter(stripe.sim.account.connected))
    assert (await stripe.get("/v1/customers", Stripe_Account=other)).headers[
        "stripe-account"
    ] == other
    assert "stripe-account" not in (await stripe.get("/v1/customers")).headers


async def test_bodies_end_and_begin_as_stripes_do(stripe: Caller) -> None:
    await stripe.made("/v1/customers")
    for path in ("/v1/customers?limit=2", "/v1/customers/{}", "/v1/charges?limit=1", "/v1/balance"):
        listed = (await stripe.get("/v1/customers?limit=1")).o["data"][0]["id"]
        came = await stripe.get(path.format(listed))
        assert came.body.endswith(b"}"), path
        for found in came.o.get("data", [came.o]):
            keys = list(found)
            assert keys[:2] == ["id", "object"] or keys[0] == "object", path
    assert (await stripe.get("/v1/customers/nope")).body.endswith(b"}\n")


async def test_keys_of_an_error_are_in_order(stripe: Caller) -> None:
    came = await stripe.get("/v1/customers/nope")
    assert list(came.error) == sorted(came.error)


# --- what is missing, refused, not enabled -----------------------------------------------------


@pytest.mark.parametrize(
    ("path", "word", "param"),
    [
        ("payment_intents", "payment_intent", "intent"),
        ("setup_intents", "setupintent", "intent"),
        ("plans", "plan", "plan"),
        ("customers", "customer", "id"),
        ("charges", "charge", "id"),
        ("payment_methods", "PaymentMethod", "payment_method"),
        ("prices", "price", "price"),
    ],
)
async def test_what_is_missing_is_named_as_stripe_names_it(
    stripe: Caller, path: str, word: str, param: str
) -> None:
    came = await stripe.get(f"/v1/{path}/x")
    assert (came.status, came.error["message"], came.error["param"]) == (
        404,
        f"No such {word}: 'x'",
        param,
    )


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_slash_behind_a_collection_is_no_address(stripe: Caller, method: str) -> None:
    send = stripe.get if method == "GET" else stripe.post
    came = await send("/v1/customers/")
    assert came.status == 404
    assert came.error["message"].startswith(f"Unrecognized request URL ({method}: /v1/customers/)")
    assert "to list objects, remove the trailing slash." in came.error["message"]


async def test_a_product_that_is_not_enabled_is_a_400_in_lists_and_a_plain_404_alone(
    stripe: Caller,
) -> None:
    card = (await stripe.get("/v1/issuing/cards?limit=1")).o["data"][0]["id"]
    stripe.sim.control.not_enabled(["issuing"])
    listed, alone = (
        await stripe.get("/v1/issuing/cards"),
        await stripe.get(f"/v1/issuing/cards/{card}"),
    )
    assert listed.status == 400
    assert "not set up to use Issuing" in listed.error["message"]
    assert (alone.status, alone.error["code"]) == (404, "resource_missing")


@pytest.mark.parametrize("denied", ["plan_read", "price_read"])
async def test_a_missing_permission_is_named_with_its_title_and_a_link(
    stripe: Caller, denied: str
) -> None:
    stripe.sim.control.key("rk_test_reader0000", denied=[denied])
    auth = {"Authorization": "Bearer rk_test_reader0000"}
    came = await stripe.get("/v1/prices", **auth)
    words = came.error["message"]
    assert came.status == 403
    assert "Enabling \"Prices Read\" ('plan_read') permissions on this key would allow" in words
    assert "https://dashboard.stripe.com/b/acct_" in words
    stripe.sim.control.nastiness(old_permission_words=True)
    came = await stripe.get("/v1/prices", **auth)
    assert "Having the 'rak_price_read' permission would allow" in came.error["message"]


# --- objects -----------------------------------------------------------------------------------


@pytest.mark.parametrize("type_name", sorted(EXTRA))
async def test_keys_that_no_type_has_are_always_sent(stripe: Caller, type_name: str) -> None:
    path = stripe.sim.account.world.routes.top_lists[type_name].path
    every = "&status=all" if type_name == "subscription" else ""
    found = (await stripe.get(f"{path}?limit=100{every}")).o["data"]
    assert found
    for one in found:
        assert EXTRA[type_name].keys() <= one.keys()


async def test_a_subscription_shows_the_plan_and_quantity_of_its_only_item(stripe: Caller) -> None:
    found = (await stripe.get("/v1/subscriptions?limit=100&status=all")).o["data"]
    single = [s for s in found if s["items"]["total_count"] == 1]
    assert single
    assert len(single) < len(found)
    for one in found:
        items = one["items"]["data"]
        expected = (items[0]["plan"], items[0].get("quantity")) if one in single else (None, None)
        assert (one["plan"], one["quantity"]) == expected


async def test_a_changed_quantity_shows_in_the_subscription_and_its_event(stripe: Caller) -> None:
    listed = (await stripe.get("/v1/subscriptions?limit=100")).o["data"]
    found = next(s for s in listed if s["items"]["total_count"] == 1)
    form = {"items[0][id]": found["items"]["data"][0]["id"], "items[0][quantity]": 7}
    changed = await stripe.made(f"/v1/subscriptions/{found['id']}", form)
    event = (await stripe.get("/v1/events?limit=1&type=customer.subscription.updated")).o["data"][0]
    assert changed["quantity"] == event["data"]["object"]["quantity"] == 7
    assert event["data"]["previous_attributes"]["quantity"] == found["quantity"]


async def test_inner_objects_are_there_with_nulls_inside(stripe: Caller) -> None:
    customer = await stripe.made("/v1/customers")
    assert customer["invoice_settings"]["default_payment_method"] is None
    form = {"type": "card", "card[token]": "tok_visa", "billing_details[name]": "Ada"}
    details = (await stripe.made("/v1/payment_methods", form))["billing_details"]
    assert details["name"] == "Ada"
    assert set(details["address"].values()) == {None}


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        (
            "/v1/payment_intents",
            "amount_details automatic_payment_methods client_secret last_payment_error next_action"
            " payment_method_options processing shipping transfer_data",
        ),
        (
            "/v1/checkout/sessions",
            "after_expiration consent consent_collection customer_details phone_number_collection"
            " payment_method_options shipping_cost total_details",
        ),
    ],
)
async def test_a_type_with_many_inner_objects_has_each_key(
    stripe: Caller, path: str, keys: str
) -> None:
    """Stripe's published examples have them, null where nothing was set."""
    form = {"amount": "100", "currency": "usd"} if "intents" in path else {"mode": "payment"}
    made = await stripe.made(path, form)
    listed = (await stripe.get(f"{path}?limit=100")).o["data"]
    for one in (made, *listed):
        assert {*keys.split()} <= one.keys()


@pytest.mark.parametrize("how", ["made", "named"])
async def test_a_card_has_each_key_with_nulls_inside(stripe: Caller, how: str) -> None:
    form = {"type": "card", "card[number]": "4242424242424242", "card[exp_year]": "2031"}
    method = (await stripe.made("/v1/payment_methods", form)) if how == "made" else {}
    form = {"amount": "4400", "currency": "USD", "confirm": "true"}
    form["payment_method"] = method.get("id", "pm_card_visa")
    intent = await stripe.made("/v1/payment_intents", form)
    assert intent["currency"] == "usd"
    assert intent["client_secret"].startswith(f"{intent['id']}_secret_")
    method = (await stripe.get(f"/v1/payment_methods/{intent['payment_method']}")).o
    checks = {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": None}
    assert method["card"]["checks"] == checks
    assert method["card"]["exp_year"] == (2031 if how == "made" else 2030)
    assert method["card"]["networks"]["available"] == ["visa"]
    charge = (await stripe.get(f"/v1/charges/{intent['latest_charge']}")).o
    paid = charge["payment_method_details"]
    assert (paid["type"], paid["card"]["last4"], paid["card"]["checks"]) == ("card", "4242", checks)


async def test_a_new_customer_is_as_stripe_shows_it(stripe: Caller) -> None:
    made = await stripe.made("/v1/customers")
    assert (made["tax_exempt"], made["balance"], made["delinquent"]) == ("none", 0, False)


async def test_a_promotion_code_has_no_currency_options_unless_expanded(stripe: Caller) -> None:
    coupon = await stripe.made("/v1/coupons", {"percent_off": 10, "duration": "once"})
    form = {"promotion[type]": "coupon", "promotion[coupon]": coupon["id"]}
    form["restrictions[first_time_transaction]"] = "true"
    made = await stripe.made("/v1/promotion_codes", form)
    assert "currency_options" not in made["restrictions"]
    for one in (await stripe.get("/v1/promotion_codes?limit=100")).o["data"]:
        assert "currency_options" not in (one["restrictions"] or {})
    came = await stripe.get(
        f"/v1/promotion_codes/{made['id']}?expand[]=restrictions.currency_options"
    )
    assert came.o["restrictions"]["currency_options"] == {}


async def test_what_was_deleted_is_shown_as_no_longer_in_use(stripe: Caller) -> None:
    product = await stripe.made("/v1/products", {"name": "x"})
    coupon = await stripe.made("/v1/coupons", {"percent_off": 10, "duration": "once"})
    await stripe.delete(f"/v1/products/{product['id']}")
    await stripe.delete(f"/v1/coupons/{coupon['id']}")
    events = (await stripe.get("/v1/events?limit=2")).o["data"]
    shown = {e["type"]: e["data"]["object"] for e in events}
    assert shown["product.deleted"]["active"] is False
    assert shown["coupon.deleted"]["valid"] is False


async def test_a_first_metadata_key_was_null_before(stripe: Caller) -> None:
    product = await stripe.made("/v1/products", {"name": "x"})
    await stripe.made(f"/v1/products/{product['id']}", {"metadata[a]": "1"})
    event = (await stripe.get("/v1/events?limit=1&type=product.updated")).o["data"][0]
    assert event["data"]["previous_attributes"]["metadata"] == {"a": None}


async def test_a_deleted_id_can_be_used_again_at_once(stripe: Caller) -> None:
    for name in ("old", "new"):
        await stripe.made("/v1/products", {"id": "gold", "name": name})
        if name == "old":
            await stripe.delete("/v1/products/gold")
    assert (await stripe.get("/v1/products/gold")).o["name"] == "new"
    listed = (await stripe.get("/v1/products?limit=100")).o["data"]
    assert [p["name"] for p in listed if p["id"] == "gold"] == ["new"]


# --- payments ----------------------------------------------------------------------------------


async def test_a_capture_is_booked_later_and_an_event_tells_of_it(stripe: Caller) -> None:
    stripe.sim.control.nastiness(settle_s=60)
    form = {"amount": 4400, "currency": "usd", "payment_method": "pm_card_visa", "confirm": "true"}
    intent = await stripe.made("/v1/payment_intents", form)
    assert intent["capture_method"] == "automatic_async"
    path = f"/v1/charges/{intent['latest_charge']}"
    assert (await stripe.get(path)).o["balance_transaction"] is None
    stripe.sim.control.clock(step_s=61)
    entry = (await stripe.get(path)).o["balance_transaction"]
    assert (await stripe.get(f"/v1/balance_transactions/{entry}")).o["amount"] == 4400
    event = (await stripe.get("/v1/events?limit=1&type=charge.updated")).o["data"][0]
    assert event["data"]["previous_attributes"] == {"balance_transaction": None}
    assert event["request"] == {"id": None, "idempotency_key": None}


async def test_a_capture_that_is_asked_to_be_at_once_is_booked_at_once(stripe: Caller) -> None:
    stripe.sim.control.nastiness(settle_s=60)
    form = {"amount": 4400, "currency": "usd", "payment_method": "pm_card_visa", "confirm": "true"}
    intent = await stripe.made("/v1/payment_intents", form | {"capture_method": "automatic"})
    assert (await stripe.get(f"/v1/charges/{intent['latest_charge']}")).o["balance_transaction"]


async def test_a_decline_holds_the_whole_intent(stripe: Caller) -> None:
    form = {"amount": 4400, "currency": "usd", "confirm": "true"}
    form["payment_method"] = "pm_card_chargeDeclined"
    came = await stripe.post("/v1/payment_intents", form)
    assert (came.status, came.error["code"]) == (402, "card_declined")
    intent = came.error["payment_intent"]
    assert intent == (await stripe.get(f"/v1/payment_intents/{intent['id']}")).o
    assert intent["last_payment_error"]["charge"] == came.error["charge"]
    assert intent["last_payment_error"]["payment_method"]["object"] == "payment_method"


async def test_a_declined_set_up_holds_the_whole_intent(stripe: Caller) -> None:
    form = {"payment_method": "pm_card_chargeDeclined", "confirm": "true"}
    came = await stripe.post("/v1/setup_intents", form)
    assert (came.status, came.error["code"]) == (402, "card_declined")
    intent = came.error["setup_intent"]
    assert intent["status"] == "requires_payment_method"
    assert intent["last_setup_error"]["code"] == "card_declined"
    event = (await stripe.get("/v1/events?limit=1")).o["data"][0]
    assert event["type"] == "setup_intent.setup_failed"


# --- more addresses ----------------------------------------------------------------------------


async def test_a_quote_has_a_pdf(stripe: Caller) -> None:
    quote = (await stripe.get("/v1/quotes?limit=1")).o["data"][0]["id"]
    came = await stripe.get(f"/v1/quotes/{quote}/pdf")
    assert (came.status, came.headers["content-type"]) == (200, "application/pdf")
    assert came.body.startswith(b"%PDF-")
    assert (await stripe.get("/v1/quotes/qt_x/pdf")).status == 404


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ("amount>50000", lambda c: c["amount"] > 50_000),
        ("amount>=50000 AND amount<80000", lambda c: 50_000 <= c["amount"] < 80_000),
        (
            'status:"failed" OR amount<=2000',
            lambda c: c["status"] == "failed" or c["amount"] <= 2000,
        ),
        ('-currency:"usd"', lambda c: c["currency"] != "usd"),
        ("-metadata['order_id']:null", lambda c: c["metadata"].get("order_id")),
        ('metadata["order_id"]:"6735"', lambda c: c["metadata"].get("order_id") == "6735"),
        ('receipt_email~"EXAMPLE"', lambda c: "example" in (c["receipt_email"] or "").lower()),
        ("refunded:'true'", lambda c: c["refunded"]),
    ],
)
async def test_search_finds_what_its_query_says(stripe: Caller, query: str, holds: Any) -> None:
    every = [c["id"] for c in reversed(stripe.sim.control.truth("charge")) if holds(c)]
    assert every
    came = await stripe.search(query)
    found = [c["id"] for c in came.o["data"]]
    while came.o["has_more"]:
        came = await stripe.search(query, page=came.o["next_page"])
        found += [c["id"] for c in came.o["data"]]
    assert found == every


@pytest.mark.parametrize("query", ["", "amount", "amount>x", 'a:"b" AND', "nothing_such:1"])
async def test_a_query_that_cannot_be_read_is_refused(stripe: Caller, query: str) -> None:
    assert (await stripe.search(query)).status == 400


# --- webhook endpoints -------------------------------------------------------------------------


async def test_the_secret_of_a_webhook_endpoint_is_shown_at_its_creation_only(
    stripe: Caller,
) -> None:
    form = {"url": "https://example.com/hook", "enabled_events[]": "*"}
    made = await stripe.made("/v1/webhook_endpoints", form)
    assert made["secret"].startswith("whsec_")
    path = f"/v1/webhook_endpoints/{made['id']}"
    assert "secret" not in await stripe.made(path, {"description": "Ours"})
    assert "secret" not in (await stripe.get(path)).o
    listed = (await stripe.get("/v1/webhook_endpoints?limit=100")).o["data"]
    assert len(listed) > 1
    assert [e["id"] for e in listed if "secret" in e] == []


# --- prices ------------------------------------------------------------------------------------


async def test_tiers_of_a_price_are_shown_on_expand_only(stripe: Caller) -> None:
    product = (await stripe.made("/v1/products", {"name": "Seats"}))["id"]
    form = {"product": product, "currency": "usd", "recurring[interval]": "month"}
    form |= {"billing_scheme": "tiered", "tiers_mode": "graduated"}
    form |= {"tiers[0][up_to]": "5", "tiers[0][unit_amount]": "700", "tiers[0][flat_amount]": "100"}
    form |= {"tiers[1][up_to]": "inf", "tiers[1][unit_amount_decimal]": "0.5"}
    price = await stripe.made("/v1/prices", form)
    assert (price["billing_scheme"], price["tiers_mode"]) == ("tiered", "graduated")
    assert (price["unit_amount"], price["unit_amount_decimal"]) == (None, None)
    told = (await stripe.get("/v1/events?type=price.created&limit=1")).o["data"][0]
    assert (told["data"]["object"]["id"], told["data"]["object"]) == (price["id"], price)
    path = f"/v1/prices/{price['id']}"
    await stripe.made(path, {"nickname": "By the seat"})
    plain, whole = (await stripe.get(path)).o, (await stripe.get(path + "?expand[]=tiers")).o
    tiers = [
        {
            "flat_amount": 100,
            "flat_amount_decimal": "100",
            "unit_amount": 700,
            "unit_amount_decimal": "700",
            "up_to": 5,
        },
        {
            "flat_amount": None,
            "flat_amount_decimal": None,
            "unit_amount": None,
            "unit_amount_decimal": "0.5",
            "up_to": None,
        },
    ]
    assert ("tiers" in plain, whole["tiers"]) == (False, tiers)
    listed = (await stripe.get(f"/v1/prices?product={product}&expand[]=data.tiers")).o["data"]
    assert [p["tiers"] for p in listed] == [tiers]
    assert (await stripe.get(f"/v1/plans/{price['id']}?expand[]=tiers")).o["tiers"] == tiers
    for left_out in ("tiers_mode", "tiers[1][up_to]"):
        came = await stripe.post("/v1/prices", {k: v for k, v in form.items() if k != left_out})
        assert came.status == 400
    customer = (await stripe.made("/v1/customers"))["id"]
    bought = {"customer": customer, "items[0][price]": price["id"], "items[0][quantity]": "9"}
    subscription = await stripe.made("/v1/subscriptions", bought)
    invoice = (await stripe.get(f"/v1/invoices/{subscription['latest_invoice']}")).o
    assert invoice["total"] == 100 + 5 * 700 + 2


@pytest.mark.parametrize(
    ("unit", "whole", "amount"), [("unit_amount", 250, 750), ("unit_amount_decimal", None, 8)]
)
async def test_price_data_of_an_invoice_item_makes_a_price_that_no_list_shows(
    stripe: Caller, unit: str, whole: int | None, amount: int
) -> None:
    product = (await stripe.made("/v1/products", {"name": "A thing"}))["id"]
    customer = (await stripe.made("/v1/customers"))["id"]
    exact = str(whole or "2.5")
    given = {"currency": "eur", "product": product, unit: exact}
    form = {f"price_data[{name}]": value for name, value in given.items()}
    item = await stripe.made("/v1/invoiceitems", form | {"customer": customer, "quantity": "3"})
    assert (item["amount"], item["currency"], item["quantity"]) == (amount, "eur", 3)
    details = item["pricing"]["price_details"]
    assert item["pricing"] == {
        "price_details": {"price": details["price"], "product": product},
        "type": "price_details",
        "unit_amount_decimal": exact,
    }
    price = (await stripe.get(f"/v1/prices/{details['price']}")).o
    assert (price["active"], price["unit_amount"], price["type"]) == (False, whole, "one_time")
    for active in ("true", "false"):
        shown = (await stripe.get(f"/v1/prices?active={active}&product={product}")).o["data"]
        assert shown == []
    asked = {"customer": customer, "pending_invoice_items_behavior": "include"}
    (line,) = (await stripe.made("/v1/invoices", asked))["lines"]["data"]
    assert (line["amount"], line["pricing"]) == (amount, item["pricing"])
    form["price_data[product]"] = "prod_other"
    came = await stripe.post("/v1/invoiceitems", form | {"customer": customer})
    assert (came.status, came.error["param"]) == (400, "price_data[product]")


# --- ids ---------------------------------------------------------------------------------------

_KIN = ("charge", "refund", "dispute", "balance_transaction", "payment_intent", "event")
_ID = re.compile(r'"((?:ch|py|re|pyr|dp|du)_1P\w+)"')


async def test_payments_their_refunds_and_some_disputes_have_prefixes_of_their_own(
    stripe: Caller,
) -> None:
    truth = {name: stripe.sim.control.truth(name) for name in _KIN}
    prefixes = {n: {o["id"].partition("_")[0] for o in truth[n]} for n in _KIN[:3]}
    assert prefixes == {"charge": {"ch", "py"}, "refund": {"re", "pyr"}, "dispute": {"dp", "du"}}
    for refund in truth["refund"]:
        assert refund["id"].startswith("pyr_") == refund["charge"].startswith("py_")
    told = {"ch": "charge", "py": "payment", "re": "refund", "pyr": "payment_refund"}
    for entry in truth["balance_transaction"]:
        if entry["source"] is not None:
            kind = told[entry["source"].partition("_")[0]]
            assert entry["type"] == kind
            assert entry["reporting_category"] == kind.replace("payment_refund", "refund").replace(
                "payment", "charge"
            )
    known = {o["id"] for name in _KIN[:3] for o in truth[name]}
    assert set(_ID.findall(json.dumps(truth))) == known
    for name in _KIN[:3]:
        for found in truth[name]:
            assert (await stripe.get(f"/v1/{name}s/{found['id']}")).o == found


async def test_the_refund_of_a_payment_is_a_pyr_in_all_that_names_it(stripe: Caller) -> None:
    charges = stripe.sim.control.truth("charge")
    payment = next(
        c for c in charges if c["id"].startswith("py_") and c["paid"] and not c["refunded"]
    )
    refund = await stripe.made("/v1/refunds", {"charge": payment["id"]})
    assert refund["id"].startswith("pyr_")
    assert (await stripe.get(f"/v1/refunds/{refund['id']}")).o == refund
    listed = (await stripe.get(f"/v1/refunds?charge={payment['id']}")).o["data"]
    entry = (await stripe.get(f"/v1/balance_transactions/{refund['balance_transaction']}")).o
    assert ([r["id"] for r in listed], entry["source"]) == ([refund["id"]], refund["id"])
    assert (entry["type"], entry["reporting_category"]) == ("payment_refund", "refund")
    card = await stripe.made("/v1/charges", {"amount": 5, "currency": "usd", "source": "tok_visa"})
    again = await stripe.made("/v1/refunds", {"charge": card["id"]})
    assert (card["id"][:3], again["id"][:3]) == ("ch_", "re_")
