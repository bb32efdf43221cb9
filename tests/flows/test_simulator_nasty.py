"""How the simulator refuses, limits and breaks."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator

import aiohttp
import pytest

from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

NOON = 1_790_000_000


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=1_000, until=NOON)) as started:
        yield started


async def refusal(
    http: aiohttp.ClientSession, path: str, *, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str]]:
    """Status and error body."""
    sent = {k.replace("_", "-"): v for k, v in headers.items()}
    async with http.request(method, path, headers=sent) as answer:
        return answer.status, (await answer.json())["error"]


async def test_answers_carry_stripes_headers_and_indentation(
    http: aiohttp.ClientSession,
) -> None:
    async with http.get("/v1/charges?limit=1") as answer:
        text = await answer.text()
    assert answer.headers["Request-Id"].startswith("req_")
    assert answer.headers["Stripe-Version"] == "2026-10-28.endive"
    assert answer.headers["Date"].endswith(" GMT")
    assert answer.headers["Content-Encoding"] == "gzip"
    assert text.startswith('{\n  "object": "list",\n  "data": [\n    {\n      "')


async def test_a_wrong_key_is_401_and_shown_masked(http: aiohttp.ClientSession) -> None:
    status, error = await refusal(http, "/v1/charges", Authorization="Bearer sk_test_wrong9876")
    assert status == 401
    assert error["message"] == "Invalid API Key provided: sk_test_*****9876"
    status, error = await refusal(http, "/v1/charges", Authorization="")
    assert status == 401
    assert error["message"].startswith("You did not provide an API key.")


async def test_a_restricted_key_is_told_the_permission_that_it_lacks(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    sim.control.key("rk_test_reader0001", denied=["charge_read", "customer_write"])
    auth = {"Authorization": "Bearer rk_test_reader0001"}
    status, error = await refusal(http, "/v1/charges", **auth)
    assert status == 403
    assert "Enabling \"Charges and Refunds Read\" ('charge_read')" in error["message"]
    sim.control.nastiness(old_permission_words=True)
    _, error = await refusal(http, "/v1/charges", **auth)
    assert "Having the 'rak_charge_read' permission would allow" in error["message"]
    status, error = await refusal(http, "/v1/customers", method="POST", **auth)
    assert status == 403
    async with http.get("/v1/customers", headers=auth) as answer:
        assert answer.status == 200


async def test_products_that_are_not_enabled_answer_400(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    sim.control.not_enabled(["issuing", "treasury"])
    status, error = await refusal(http, "/v1/issuing/cards")
    assert status == 400
    assert "not set up to use Issuing" in error["message"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/charges/ch_nobody", 404, "resource_missing"),
        ("/v1/charges?expand[]=customer", 400, None),
        ("/v1/charges?expand[]=data.amount", 400, None),
        ("/v1/charges?expand[]=data.a.b.c.d.e", 400, "property_expansion_max_depth"),
        ("/v1/customers/cus_x/tax_ids", 404, "resource_missing"),
        ("/v1/charges?customer=cus_x", 400, "resource_missing"),
    ],
)
async def test_what_is_not_there_is_refused_in_stripes_shape(
    http: aiohttp.ClientSession, path: str, status: int, code: str | None
) -> None:
    found, error = await refusal(http, path)
    assert (found, error.get("code")) == (status, code)
    assert error["type"] == "invalid_request_error"
    assert ("doc_url" in error, "param" in error) == (code is not None, code is not None)
    assert "/req_" in error["request_log_url"]


async def test_unknown_addresses_and_methods_are_404(http: aiohttp.ClientSession) -> None:
    for method, path in (("GET", "/v1/nothing"), ("PUT", "/v1/charges"), ("GET", "/")):
        status, error = await refusal(http, path, method=method)
        assert status == 404
        assert error["message"].startswith(f"Unrecognized request URL ({method}: {path})")


async def test_expansion_reaches_four_levels_and_deleted_customers(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    path = "/v1/charges?limit=100&expand[]=data.customer&expand[]=data.payment_intent.customer"
    async with http.get(path) as answer:
        found = (await answer.json())["data"]
    assert all(isinstance(c["customer"], dict) for c in found)
    assert any(c["customer"].get("deleted") for c in found)
    assert found[0]["payment_intent"]["customer"]["id"] == found[0]["customer"]["id"]


async def test_limits_refuse_with_a_reason_and_are_counted(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    sim.control.limits("live", slack=0.0)

    async def get() -> tuple[int, str]:
        async with http.get("/v1/charges?limit=1") as answer:
            return answer.status, answer.headers.get("Stripe-Rate-Limited-Reason", "")

    found = await asyncio.gather(*(get() for _ in range(40)))
    assert found.count((200, "")) == 25
    assert found.count((429, "endpoint-rate")) == 15
    state = sim.control.state()
    assert state["limited"] == {"endpoint-rate": 15}
    assert state["most_per_second"] == 25


@pytest.mark.parametrize("kind", ["reset_before", "reset_after", "reset_in_body", "cut"])
async def test_broken_connections_break_the_client(
    sim: Running, http: aiohttp.ClientSession, kind: str
) -> None:
    sim.control.fault(kind=kind, path="/v1/charges")
    with pytest.raises(aiohttp.ClientError):
        async with http.get("/v1/charges") as answer:
            await answer.read()
    sim.control.clear_faults()
    async with http.get("/v1/charges") as answer:
        assert answer.status == 200


async def test_garbage_that_calls_itself_gzip_cannot_be_unpacked(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    sim.control.fault(kind="gzip_garbage", path="/v1/charges")
    headers = dict(http.headers)
    async with (
        # Unpacked here: which library aiohttp unpacks with is a setting of the whole process.
        aiohttp.ClientSession(
            sim.url, headers=headers, auth=http.auth, auto_decompress=False
        ) as raw,
        raw.get("/v1/charges") as answer,
    ):
        assert answer.headers["Content-Encoding"] == "gzip"
        with pytest.raises((OSError, EOFError, zlib.error)):
            gzip.decompress(await answer.read())


@pytest.mark.parametrize(
    ("kind", "status"),
    [("error_500", 500), ("error_503", 503), ("error_409", 409), ("rate_limit", 429)],
)
async def test_server_errors_come_as_often_as_asked(
    sim: Running, http: aiohttp.ClientSession, kind: str, status: int
) -> None:
    sim.control.fault(kind=kind, count=2)
    found = []
    for _ in range(3):
        async with http.get("/v1/charges?limit=1") as answer:
            found.append(answer.status)
    assert found == [status, status, 200]


async def test_a_lost_answer_to_a_write_is_replayed_by_its_key(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    before = sim.control.counts()["customer"]
    sim.control.fault(kind="reset_after", count=1, method="POST")
    key = {"Idempotency-Key": "lost"}
    with pytest.raises(aiohttp.ClientError):
        await http.post("/v1/customers", headers=key)
    async with http.post("/v1/customers", headers=key) as answer:
        assert answer.headers["Idempotent-Replayed"] == "true"
    assert sim.control.counts()["customer"] == before + 1


async def test_html_and_half_json_pretend_to_be_fine(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    for kind in ("html", "half_json"):
        sim.control.fault(kind=kind, count=1)
        async with http.get("/v1/charges") as answer:
            assert answer.status == 200
            with pytest.raises((aiohttp.ContentTypeError, ValueError)):
                await answer.json()


async def test_the_control_interface_does_over_http_what_it_does_in_process(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    async with http.post("/_simulator/burst", json={"count": 20}) as answer:
        assert (await answer.json())["result"] > 10
    async with http.get("/_simulator/state") as answer:
        told = (await answer.json())["result"]
    assert sum(told["mutations"].values()) > 10
    async with http.post("/_simulator/nonsense") as answer:
        assert answer.status == 404


async def test_a_deleted_cursor_is_refused(sim: Running, http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/products?limit=3") as answer:
        cursor = (await answer.json())["data"][-1]["id"]
    sim.control.delete("product", cursor)
    async with http.get("/v1/products", params={"starting_after": cursor}) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["param"]) == (
        400,
        "resource_missing",
        "starting_after",
    )


async def test_search_is_behind_what_was_written(sim: Running, http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/customers", data={"email": "find@example.com"}) as answer:
        made = await answer.json()
    query = {"query": 'email:"find@example.com"'}
    async with http.get("/v1/customers/search", params=query) as answer:
        assert (await answer.json())["data"] == []
    sim.control.search_lag(-1)
    async with http.get("/v1/customers/search", params=query) as answer:
        assert [c["id"] for c in (await answer.json())["data"]] == [made["id"]]


async def test_upcoming_invoices_by_get_exist_only_before_basil(
    http: aiohttp.ClientSession,
) -> None:
    old = {"Stripe-Version": "2025-02-24.acacia"}
    async with http.get("/v1/invoices/upcoming?customer=cus_x", headers=old) as answer:
        assert (await answer.json())["error"]["code"] == "resource_missing"
    async with http.get("/v1/invoices/upcoming") as answer:
        assert answer.status == 404
