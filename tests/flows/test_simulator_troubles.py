"""What Stripe does to its callers now and then, each with its knob: off, up, and by default."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime

import aiohttp
import asyncpg
import pytest
from tests.flows.harness.account import copy, make_schema

from pinstripe.catalog.tables import tables
from pinstripe.store.quarantine import find_lost
from pinstripe_simulator.account import Settings
from pinstripe_simulator.nastiness import CALM, STRIPE, default_nastiness
from pinstripe_simulator.process import SimulatorProcess
from pinstripe_simulator.replica import History
from pinstripe_simulator.server import Running, running

NOON = 1_790_000_000


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=400, until=NOON, nastiness=CALM)) as started:
        yield started


def test_stripes_own_nastiness_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PINSTRIPE_SIMULATOR_NASTINESS")
    assert default_nastiness() == Settings().nastiness == STRIPE
    assert (STRIPE.stale_s, STRIPE.skew_s) == (3.0, 3.0)
    assert 0 < STRIPE.stale_share < 0.01


async def test_a_process_of_its_own_is_as_nasty_as_its_settings() -> None:
    settings = Settings(scale=50, until=NOON, nastiness=STRIPE)
    async with SimulatorProcess(settings) as sim:
        told = await sim.control("nastiness")
    assert told["stale_share"] == STRIPE.stale_share
    assert "/v1/payment_methods" in told["lists_by_customer"]


async def test_a_stale_read_shows_an_object_as_it_was(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    sim.control.nastiness(stale_share=1.0, stale_s=3600.0)
    sim.account.dice.seed(3)
    async with http.post("/v1/customers", data={"name": "first"}) as answer:
        made = await answer.json()
    path = f"/v1/customers/{made['id']}"
    async with http.get(path) as answer:
        assert answer.status == 404  # It had not been made yet.
    async with http.get("/v1/customers?limit=1") as answer:
        assert (await answer.json())["data"][0]["id"] != made["id"]
    sim.control.nastiness(stale_share=0.0)
    async with http.get(path) as answer:
        assert (await answer.json()) == made


async def test_a_stale_read_takes_nothing_from_anybody(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    """After stale reads in the middle of changes, the account is as one that never had any."""
    sim.control.nastiness(stale_share=1.0, stale_s=3600.0)
    for _ in range(20):
        sim.control.burst(15)
        for path in ("/v1/customers", "/v1/subscriptions", "/v1/products", "/v1/charges"):
            async with http.get(f"{path}?limit=100") as answer:
                assert answer.status == 200
    async with running(Settings(scale=400, until=NOON, nastiness=CALM)) as other:
        for _ in range(20):
            other.control.burst(15)
        assert sim.control.counts() == other.control.counts()
        for name in ("customer", "product", "subscription", "coupon"):
            mine, theirs = sim.control.truth(name), other.control.truth(name)
            assert [o["id"] for o in mine] == [o["id"] for o in theirs]
            assert [o.get("status") for o in mine] == [o.get("status") for o in theirs]


async def test_the_event_list_and_writes_are_never_stale(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    sim.control.nastiness(stale_share=1.0, stale_s=3600.0)
    async with http.post("/v1/products", data={"name": "x"}) as answer:
        product = (await answer.json())["id"]
    async with http.post(f"/v1/products/{product}", data={"name": "y"}) as answer:
        assert answer.status == 200
    async with http.get("/v1/events?limit=1") as answer:
        assert (await answer.json())["data"][0]["type"] == "product.updated"


async def test_a_page_behind_a_fresh_cursor_is_never_refused(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    async with http.post("/v1/products", data={"name": "x"}) as answer:
        product = (await answer.json())["id"]
    sim.control.nastiness(stale_share=1.0, stale_s=3600.0)
    async with http.post("/v1/products", data={"name": "z"}) as answer:
        fresh = (await answer.json())["id"]
    async with http.get(f"/v1/products?limit=1&starting_after={fresh}") as answer:
        assert (await answer.json())["data"][0]["id"] == product


def test_only_the_writes_of_the_last_seconds_are_taken_back() -> None:
    now = 0.0
    history = History(lambda: now)
    history.keep_s = 10.0
    values = [0]

    def put(value: int) -> None:
        before = values[0]
        values[0] = value

        def undo() -> object:
            put_back, values[0] = values[0], before
            return lambda: values.__setitem__(0, put_back)

        history.note(undo)  # type: ignore[arg-type]

    for now in (1.0, 2.0, 3.0):
        put(int(now))
    with history.as_of(0.5):
        assert values == [3 - 1]
    with history.as_of(1.5):
        assert values == [1]
    assert values == [3]


async def test_date_and_created_are_two_clocks(sim: Running, http: aiohttp.ClientSession) -> None:
    async def gap() -> float:
        async with http.post("/v1/customers") as answer:
            date = parsedate_to_datetime(answer.headers["Date"]).timestamp()
            created: int = (await answer.json())["created"]
            return date - created

    assert {await gap() for _ in range(20)} <= {0.0, 1.0}
    sim.control.nastiness(skew_s=30.0)
    gaps = {await gap() for _ in range(40)}
    assert min(gaps) < -5
    assert max(gaps) > 5
    assert all(abs(g) <= 32 for g in gaps)
    assert abs(sim.account.clock.now() - time.time()) < 2


@pytest.mark.parametrize("path", ["/v1/payment_methods", "/v1/billing/credit_balance_transactions"])
async def test_some_lists_want_a_customer(
    sim: Running, http: aiohttp.ClientSession, path: str
) -> None:
    async with http.get(path) as answer:
        assert answer.status == 200
    sim.control.nastiness("stripe", stale_share=0.0)
    async with http.get(path) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["param"]) == (400, "parameter_missing", "customer")
    async with http.get("/v1/customers?limit=1") as answer:
        customer = (await answer.json())["data"][0]["id"]
    async with http.get(f"{path}?customer={customer}") as answer:
        assert answer.status == 200


@pytest.mark.migrated
async def test_a_copy_of_the_default_simulator_is_complete_and_misses_no_rows(
    database: str, pg: asyncpg.Connection
) -> None:
    settings = Settings(scale=300, until=NOON, connected=0, nastiness=STRIPE)
    async with running(settings) as sim:
        await make_schema(database)
        assert (await copy(database, sim)).complete
    # Were the lists of two customers to show the same, tables would have fewer rows than were listed.
    assert await find_lost(pg, "stripe", tables(), {}) == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/customers?expand[]=data.cash_balance", "(data.cash_balance)"),
        (
            "/v1/charges?limit=100&expand[]=data.customer.cash_balance",
            "(data.customer.cash_balance)",
        ),
        (
            "/v1/checkout/sessions?expand[]=data.total_details.breakdown",
            "(data.total_details.breakdown)",
        ),
    ],
)
async def test_some_properties_are_not_expanded(
    sim: Running, http: aiohttp.ClientSession, path: str, words: str
) -> None:
    async with http.get(path) as answer:
        assert answer.status == 200
    sim.control.nastiness("stripe", stale_share=0.0)
    async with http.get(path) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error.keys() & {"code", "param", "doc_url"}) == (400, set())
    assert error["message"].startswith(f"This property cannot be expanded {words}")


async def test_any_list_and_any_property_can_be_refused(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    sim.control.nastiness(lists_by_customer=["/v1/charges"], refused_expands=["charge.customer"])
    async with http.get("/v1/charges") as answer:
        assert answer.status == 400
    charge = sim.control.truth("charge")[-1]["id"]
    async with http.get(f"/v1/charges/{charge}?expand[]=customer") as answer:
        assert "(customer)" in (await answer.json())["error"]["message"]


async def test_a_500_tells_not_to_retry(sim: Running, http: aiohttp.ClientSession) -> None:
    sim.control.fault(kind="error_500", count=2)
    async with http.get("/v1/charges") as answer:
        assert "Stripe-Should-Retry" not in answer.headers
    sim.control.nastiness(no_retry_after_500=True)
    async with http.get("/v1/charges") as answer:
        assert (answer.status, answer.headers["Stripe-Should-Retry"]) == (500, "false")


async def test_contention_tells_to_retry_and_gives_no_reason(
    sim: Running, http: aiohttp.ClientSession
) -> None:
    sim.control.limits(lock_share=1.0)
    async with http.post("/v1/customers") as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["type"]) == (
        429,
        "lock_timeout",
        "invalid_request_error",
    )
    assert answer.headers["Stripe-Should-Retry"] == "true"
    assert "Stripe-Rate-Limited-Reason" not in answer.headers


async def test_the_knob_turns_over_http_and_refuses_what_it_does_not_know(
    http: aiohttp.ClientSession,
) -> None:
    async with http.post("/_simulator/nastiness", json={"preset": "stripe", "skew_s": 0}) as answer:
        told = (await answer.json())["result"]
    assert (told["skew_s"], told["stale_s"]) == (0, 3.0)
    for wrong in ({"preset": "worse"}, {"sharpness": 1}, {"stale_share": "often"}):
        async with http.post("/_simulator/nastiness", json=wrong) as answer:
            assert answer.status == 400
