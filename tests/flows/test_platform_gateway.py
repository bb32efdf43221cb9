"""The gateway of a platform: proxy and wait by account, and the Connect webhook endpoint."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.flows.harness.account import until
from tests.flows.harness.command import pinstripe
from tests.flows.harness.platform_service import (
    ID,
    PLATFORM,
    SECRET,
    PlatformService,
    platform_service,
)

from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.pool import connect
from pinstripe_simulator.server import Running, running
from pinstripe_simulator.webhooks import signature

T = TypeVar("T")


async def until_true(read: Callable[[], Awaitable[T]], wanted: T) -> None:
    """Read until it is as wanted: other tasks lead there, which tell nobody."""
    async with asyncio.timeout(60):
        while await read() != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.fixture
async def here(database: str, tmp_path: Path) -> AsyncIterator[PlatformService]:
    """A platform with a worker."""
    async with (
        running(PLATFORM) as sim,
        platform_service(sim, database, tmp_path) as service,
    ):
        yield service


@asynccontextmanager
async def opened(sim: Running, database: str, directory: Path) -> AsyncIterator[PlatformService]:
    """A platform for which no worker works, once the gateway has opened its tables."""
    async with platform_service(sim, database, directory, works=False) as service:
        async with asyncio.timeout(60):
            while True:
                answer = await service.http.get("/v1/customers", headers=service.headers())
                if answer.headers["pinstripe-mirrored"] == "yes":
                    break
                await asyncio.sleep(0.05)
        yield service


@pytest.fixture
async def idle(database: str, tmp_path: Path) -> AsyncIterator[PlatformService]:
    async with running(PLATFORM) as sim, opened(sim, database, tmp_path) as service:
        yield service


async def test_a_write_for_an_account_is_a_row_of_that_account_before_the_answer(
    idle: PlatformService,
) -> None:
    one, two, *_ = idle.accounts
    for account in (one, two, ""):
        key, answer = await idle.make_customer(account)
        assert answer.headers["pinstripe-mirrored"] == "yes", dict(answer.headers)
        assert answer.headers["pinstripe-sync"] == f"{ID}@{account or idle.sim.account.id}"
        rows = await idle.rows("customer", key)
        assert [row["_account_id"] for row in rows] == [account or idle.sim.account.id]


async def test_a_platforms_proxy_works_without_postgres_and_writes_the_rows_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinstripe.platforms.gateway._CHECKED_S", 0.0)
    server = EmbeddedPostgres(tmp_path / "postgres", fsync=False)
    await server.start()
    try:
        async with running(PLATFORM) as sim, opened(sim, server.url, tmp_path) as idle:
            account = idle.accounts[0]
            await idle.make_customer(account)
            await server.stop()
            made = [await idle.make_customer(account) for _ in range(3)]
            await server.start()
            said = [
                (a.headers["pinstripe-mirrored"], a.headers["pinstripe-reason"]) for _, a in made
            ]
            assert said == [("later", "postgres")] * 3
            async with asyncio.timeout(30):
                for key, _ in made:
                    while not await idle.rows("customer", key):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
    finally:
        await server.stop()


async def test_accounts_with_the_same_ids_have_each_their_own_row(idle: PlatformService) -> None:
    one, two, *_ = idle.accounts
    for account in (one, two):
        form = {"id": "gold", "name": f"Gold of {account}"}
        answer = await idle.http.post("/v1/products", data=form, headers=idle.headers(account))
        assert answer.headers["pinstripe-mirrored"] == "yes"
    rows = {r["_account_id"]: r["name"] for r in await idle.rows("product", "gold")}
    assert rows == {a: f"Gold of {a}" for a in (one, two)}


async def test_an_account_that_the_platform_lost_is_not_written_any_more(
    idle: PlatformService,
) -> None:
    account = idle.accounts[0]
    await idle.make_customer(account)
    idle.sim.control.deauthorize(account)
    answer = await idle.http.get("/v1/customers", headers=idle.headers(account))
    assert (answer.status_code, answer.headers["pinstripe-mirrored"]) == (403, "no")


async def test_an_account_that_is_new_at_stripe_is_taken_in_by_a_request_for_it(
    idle: PlatformService,
) -> None:
    made = await idle.http.post("/v1/accounts", data={"type": "custom"}, headers=idle.headers())
    account = made.json()["id"]
    _, first = await idle.make_customer(account)
    assert first.headers["pinstripe-mirrored"] == "no"

    async def mirrored() -> str:
        _, answer = await idle.make_customer(account)
        return answer.headers["pinstripe-mirrored"]

    await until_true(mirrored, "yes")


async def test_a_wait_for_an_account_ends_when_its_events_are_applied(
    here: PlatformService,
) -> None:
    one, two, *_ = here.accounts
    ready = await here.wait(one, "timeout=60")
    assert ready.json()["ok"], ready.text
    made = here.sim.control.of(one).mutator.deeds.post("/v1/customers", {"name": "Grace"})
    assert (await here.wait(one)).json()["ok"]
    rows = await here.rows("customer", made["id"])
    assert [row["_account_id"] for row in rows] == [one]
    # The header names the account as well as the parameter.
    other = here.sim.control.of(two).mutator.deeds.post("/v1/customers", {"name": "Joan"})
    answer = await here.http.get(f"/wait/stripe/{ID}", headers={"Stripe-Account": two})
    assert answer.json()["ok"], answer.text
    assert [row["_account_id"] for row in await here.rows("customer", other["id"])] == [two]


async def test_exact_waits_and_pinstripe_wait_work_for_an_account(here: PlatformService) -> None:
    account = here.accounts[1]
    assert (await here.wait(account, "timeout=60")).json()["ok"]
    key, answer = await here.make_customer(account, **{"Pinstripe-Wait": "30"})
    assert answer.headers["pinstripe-waited"] == "yes", dict(answer.headers)
    request = answer.headers["request-id"]
    assert (await here.wait(account, f"request={request}")).json()["ok"]
    assert (await here.wait(account, f"object={key}")).json()["ok"]
    gone = await here.wait(here.accounts[2], f"object={key}")
    assert gone.status_code == 404  # It is another account's.


async def test_the_command_waits_for_an_account(here: PlatformService) -> None:
    words = ("--id", ID, "--account", here.accounts[3], "--url", here.url, "--timeout", "60")
    done = await pinstripe("wait", *words, "--json")
    assert (done.code, json.loads(done.out)["ok"]) == (0, True), done.text
    refused = await pinstripe("wait", *words[:2], "--account", "acct_1Nobody", *words[4:])
    assert "no account 'acct_1Nobody'" in refused.err
    assert "GET /api/platforms/ID/accounts" in refused.err


async def test_without_an_account_the_platforms_own_is_waited_for(here: PlatformService) -> None:
    made = here.sim.control.mutator.deeds.post("/v1/customers", {"name": "Own"})
    assert (await here.wait("", "timeout=60")).json()["ok"]
    rows = await here.rows("customer", made["id"])
    assert [row["_account_id"] for row in rows] == [here.sim.account.id]


async def test_a_wait_says_what_is_in_the_way(idle: PlatformService) -> None:
    answer = await idle.wait(idle.accounts[0], "timeout=0.5")
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "not_syncing"
    nothing = await idle.http.get("/wait/stripe/nothing?account=acct_1")
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (404, "not_found")
    unknown = await idle.wait("acct_1Nobody")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")


async def test_a_stranger_learns_neither_of_accounts_nor_of_platforms(
    database: str, tmp_path: Path
) -> None:
    tokens: dict[str, Any] = {
        "admin_token": "an-admin-token-of-some-length",
        "wait_token": "a-wait-token-of-ours",
    }
    other = "sk_test_ofanotheraccount0000000"
    async with (
        running(PLATFORM) as sim,
        platform_service(sim, database, tmp_path, works=False, **tokens) as here,
    ):
        one = here.accounts[0]
        strangers = {
            (answer.status_code, answer.text)
            for bearer in ("", "invented", other)
            for place in (f"{ID}?account={one}", f"{ID}?account=acct_1Nobody", "nothing", ID)
            for answer in [
                await here.http.get(
                    f"/wait/stripe/{place}",
                    headers={"Authorization": f"Bearer {bearer}"} if bearer else {},
                )
            ]
        }
        assert len(strangers) == 1
        assert next(iter(strangers))[0] == 401

        async def code(account: str, **headers: str) -> str:
            answer = await here.wait(account, "timeout=0.2", **headers)
            return str(answer.json()["error"]["code"])

        # The platform's key is good for the accounts that the platform has, however it names them.
        assert await code(one, **here.headers()) == "not_syncing"
        assert await code(one, **here.headers(one)) == "not_syncing"
        assert await code(here.accounts[1], **here.headers(one)) == "unauthorized"
        assert await code("acct_1Nobody", **here.headers()) == "unauthorized"
        assert (
            await code("acct_1Nobody", Authorization="Bearer a-wait-token-of-ours") == "not_found"
        )


async def polls(here: PlatformService) -> dict[str, int]:
    """Tasks that wait to poll, by account."""
    async with connect(here.database) as pg:
        rows = await pg.fetch(
            "SELECT split_part(lock, '@', 2), count(*) FROM pinstripe_tasks.procrastinate_jobs"
            " WHERE task_name = 'poll' GROUP BY 1"
        )
    return {row[0]: row[1] for row in rows}


async def deliver(here: PlatformService, event: dict[str, object], secret: str = SECRET) -> int:
    payload = json.dumps(event).encode()
    answer = await here.http.post(
        f"/webhooks/stripe/{ID}",
        content=payload,
        headers={"Stripe-Signature": signature(secret, payload, int(time.time()))},
    )
    return answer.status_code


async def test_a_webhook_wakes_the_account_that_it_names_once_however_often_it_comes(
    idle: PlatformService,
) -> None:
    one, two, *_ = idle.accounts
    assert await polls(idle) == {}
    for _ in range(5):
        assert await deliver(idle, {"type": "customer.created", "account": one}) == 200
    assert await deliver(idle, {"type": "customer.created"}) == 200
    own = idle.sim.account.id
    await until_true(lambda: polls(idle), {one: 1, own: 1})
    assert await deliver(idle, {"type": "customer.created", "account": two}, "whsec_wrong") == 400
    assert await deliver(idle, {"type": "customer.created", "account": one}) == 200
    assert await polls(idle) == {one: 1, own: 1}


async def test_a_webhook_with_half_an_emoji_wakes_its_account(idle: PlatformService) -> None:
    one, *_ = idle.accounts
    odd = {"object": {"name": "cut \ud83d"}}
    event: dict[str, object] = {"type": "customer.created", "account": one, "data": odd}
    assert await deliver(idle, event) == 200
    await until_true(lambda: polls(idle), {one: 1})


async def test_a_thin_event_wakes_the_account_of_its_context(idle: PlatformService) -> None:
    one, two, *_ = idle.accounts
    for context in (one, f"org_1/{two}"):
        event = {"object": "v2.core.event", "type": "v1.customer.created"}
        assert await deliver(idle, {**event, "context": context}) == 200
    await until_true(lambda: polls(idle), {one: 1, two: 1})


async def test_a_webhook_of_an_account_that_is_new_takes_it_in(idle: PlatformService) -> None:
    async def states() -> dict[str, str]:
        async with connect(idle.database) as pg:
            rows = await pg.fetch("SELECT account_id, state FROM pinstripe.platform_account")
        return {row[0]: row[1] for row in rows}

    assert "acct_1New" not in await states()
    made: dict[str, object] = {"type": "customer.created"}
    left: dict[str, object]
    left = {"type": "account.application.deauthorized", "account": "acct_1Left"}
    # Of the other mode, of which an endpoint may get events as well.
    other = {**made, "account": "acct_1Other", "livemode": True}
    for event in (left, other, {**made, "account": "acct_1New", "livemode": False}):
        assert await deliver(idle, event) == 200

    async def new() -> str:
        return (await states()).get("acct_1New", "")

    await until_true(new, "active")
    assert not {"acct_1Left", "acct_1Other"} & (await states()).keys()


async def test_the_command_makes_a_connect_endpoint_whose_deliveries_are_taken(
    idle: PlatformService, tmp_path: Path
) -> None:
    env = {"DATABASE_URL": idle.database, "PINSTRIPE_DATA_DIR": str(tmp_path)}
    words = ("webhook", "create", "--sync", ID, "--public-url", idle.url, "--json")
    done = json.loads((await pinstripe(*words, env=env)).out)
    assert (done["created"], done["secret"], done["secret_stored"]) == (True, "", True)
    account = idle.accounts[2]
    idle.sim.control.of(account).mutator.deeds.post("/v1/customers", {})
    # The gateway takes the secret from the database; until then Stripe tries again.
    await until_true(lambda: polls(idle), {account: 1})
    await until(lambda: idle.sim.control.webhooks()["delivered"] == 1)


async def test_a_delivery_of_stripes_brings_the_row_in_the_account_that_it_names(
    here: PlatformService,
) -> None:
    one, two, *_ = here.accounts
    for account in (one, two):
        assert (await here.wait(account, "timeout=60")).json()["ok"]
    made = await here.http.post(
        f"{here.sim.url}/v1/webhook_endpoints",
        data={
            "url": f"{here.url}/webhooks/stripe/{ID}",
            "enabled_events[]": "*",
            "connect": "true",
        },
        headers=here.headers(),
    )
    # The endpoint's secret is known only now.
    here.sim.account.webhook_secrets[made.json()["id"]] = SECRET
    customers = {
        account: here.sim.control.of(account).mutator.deeds.post("/v1/customers", {})["id"]
        for account in (one, two)
    }
    for account, key in customers.items():

        async def owners(key: str = key) -> list[str]:
            return [row["_account_id"] for row in await here.rows("customer", key)]

        await until_true(owners, [account])
    await until(lambda: here.sim.control.webhooks()["delivered"] >= 2)
