"""What goes through the proxy is in Postgres before its answer is, and comes back as Stripe sent it."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import aiohttp
import pytest
import yarl
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.flows.harness.gateway_account import GatewayAccount, gateway_account, serving

from pinstripe.client.api_key import ApiKey
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.errors import Misconfigured
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.gateway.proxy.proxy import Proxy, open_proxy
from pinstripe.gateway.proxy.upstream import hosts_at
from pinstripe.gateway.syncs import OpenSync, open_sync
from pinstripe.store.pool import connect
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

pytestmark = pytest.mark.migrated

SMALL = Settings(scale=60)


@dataclass
class Front:
    """A proxy in front of a simulated account, and a client of it."""

    account: GatewayAccount
    proxy: Proxy
    url: str
    client: aiohttp.ClientSession
    rung: list[str] = field(default_factory=list)

    async def ask(
        self, method: str, path: str, params: dict[str, str] | None = None, **headers: str
    ) -> tuple[int, Any, aiohttp.ClientResponse]:
        """(status, JSON body, response)."""
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.request(
            method,
            yarl.URL(self.url + path, encoded=True),
            data=params,
            headers={**self.account.bearer, **told},
        ) as response:
            return response.status, json.loads(await response.read()), response


@asynccontextmanager
async def front(
    sim: Running, database: str, *, without: str = "", patience_s: float = 20.0, **options: Any
) -> AsyncIterator[Front]:
    """A proxy whose answers wait for Postgres as long as a busy machine may need."""
    rung: list[str] = []

    async def ring(sync: OpenSync) -> None:
        rung.append(sync.id)

    async with (
        gateway_account(sim, database, without=without) as account,
        open_proxy(
            account.syncs,
            hosts=hosts_at(sim.url),
            request_sync=ring,
            patience_s=patience_s,
            **options,
        ) as proxy,
        serving(proxy) as url,
        aiohttp.ClientSession() as client,
    ):
        yield Front(account, proxy, url, client, rung)


async def test_an_object_is_a_row_before_its_answer_comes(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        status, made, response = await it.ask("POST", "/v1/customers", {"email": "a@example.com"})

        row = await it.account.row("customer", made["id"])
        assert status == 200
        assert response.headers["pinstripe-mirrored"] == "yes"
        assert response.headers["pinstripe-sync"] == "default"
        assert row is not None
        assert row["email"] == "a@example.com"

        _, _, _ = await it.ask("POST", f"/v1/customers/{made['id']}", {"email": "b@example.com"})
        row = await it.account.row("customer", made["id"])
        assert row is not None
        assert row["email"] == "b@example.com"

        status, _, response = await it.ask("DELETE", f"/v1/customers/{made['id']}")
        row = await it.account.row("customer", made["id"])
        assert response.headers["pinstripe-mirrored"] == "yes"
        assert row is not None
        assert row["deleted"] is True
        await asyncio.sleep(0)
        assert set(it.rung) == {"default"}


async def test_lists_searches_and_what_is_nested_in_them_are_rows(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        _, page, response = await it.ask(
            "GET", "/v1/invoices?limit=5&expand[]=data.customer&expand[]=data.payments"
        )
        assert response.headers["pinstripe-mirrored"] == "yes"
        for invoice in page["data"]:
            assert await it.account.row("invoice", invoice["id"]) is not None
            assert await it.account.row("customer", invoice["customer"]["id"]) is not None
            for line in invoice["lines"]["data"]:
                assert await it.account.row("line_item", line["id"]) is not None

        customer = page["data"][0]["customer"]
        query = f"email:'{customer['email']}'".replace("'", "%27").replace("@", "%40")
        _, found, response = await it.ask("GET", f"/v1/customers/search?query={query}")
        assert found["object"] == "search_result"
        assert response.headers["pinstripe-mirrored"] in ("yes", "no")
        for each in found["data"]:
            assert await it.account.row("customer", each["id"]) is not None


async def test_what_is_not_synced_is_not_called_a_row_for_what_stands_in_it(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database, without="subscription") as it:
        path = "/v1/subscriptions?limit=1&expand[]=data.customer"
        _, page, listed = await it.ask("GET", path)
        one = page["data"][0]
        _, _, shown = await it.ask("GET", f"/v1/subscriptions/{one['id']}?expand[]=customer")
        assert await it.account.row("customer", one["customer"]["id"]) is not None
        for response in (listed, shown):
            assert response.headers["pinstripe-mirrored"] == "no"
            assert response.headers["pinstripe-reason"] == "no-objects"
        _, _, kept = await it.ask("GET", "/v1/customers?limit=1")
        assert kept.headers["pinstripe-mirrored"] == "yes"


async def test_a_second_write_within_the_same_second_wins_at_once(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        _, made, _ = await it.ask("POST", "/v1/customers", {"name": "0"})
        for number in range(1, 30):
            path = f"/v1/customers/{made['id']}"
            _, _, response = await it.ask("POST", path, {"name": str(number)})
            row = await it.account.row("customer", made["id"])
            assert row is not None
            assert (row["name"], response.headers["pinstripe-mirrored"]) == (str(number), "yes")
        assert it.account.sync.mirror.conflicts.count == 0


async def test_what_two_writers_contest_is_settled_before_their_answers(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        _, made, _ = await it.ask("POST", "/v1/customers", {"name": "0"})
        path = f"/v1/customers/{made['id']}"

        async def write(number: int) -> None:
            # Another field each, so that every write is in every later state.
            name = f"metadata[k{number}]"
            _, _, response = await it.ask("POST", path, {name: "set"})
            assert response.headers["pinstripe-mirrored"] == "yes"
            row = await it.account.row("customer", made["id"])
            assert row is not None
            assert json.loads(row["metadata"])[f"k{number}"] == "set"

        for round_ in range(4):
            await asyncio.gather(*(write(round_ * 8 + n) for n in range(8)))


async def test_another_version_is_passed_on_and_ours_is_written(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        old = {"Stripe_Version": "2024-06-20"}
        _, page, response = await it.ask("GET", "/v1/subscriptions?limit=3&status=all", None, **old)
        assert response.headers["stripe-version"] == "2024-06-20"
        assert "current_period_end" in page["data"][0]
        assert response.headers["pinstripe-mirrored"] == "yes"
        for each in page["data"]:
            row = await it.account.row("subscription", each["id"])
            assert row is not None
            assert row["_extra"] is None or "current_period_end" not in row["_extra"]
            item = each["items"]["data"][0]["id"]
            item_row = await it.account.row("subscription_item", item)
            assert item_row is not None
            assert item_row["current_period_end"] is not None

        path = f"/v1/subscriptions/{page['data'][0]['id']}"
        _, _, response = await it.ask("POST", path, {"metadata[a]": "b"}, **old)
        row = await it.account.row("subscription", page["data"][0]["id"])
        assert response.headers["pinstripe-mirrored"] == "yes"
        assert row is not None
        assert json.loads(row["metadata"])["a"] == "b"
        assert row["_api_version"] == it.account.sync.mirror.api_version


async def test_a_search_in_another_version_overwrites_nothing_that_is_newer(database: str) -> None:
    """Its index may be behind by an hour, in any version."""
    async with running(SMALL) as sim, gateway_account(sim, database) as account:
        truth = next(iter(sim.account.world.truth("customer")))
        key = str(truth["id"])
        await account.sync.source.fetch("customer", key)

        async def stripe(request: Request) -> Response:
            if request.url.path == "/v1/account":
                return JSONResponse({"id": sim.account.id, "object": "account"})
            old = {**truth, "name": "from before"}
            headers = {
                "Stripe-Version": request.headers["stripe-version"],
                "Date": formatdate(time.time() + 60, usegmt=True),
            }
            return JSONResponse({"object": "search_result", "data": [old]}, headers=headers)

        async with (
            serving(Starlette(routes=[Route("/v1/{path:path}", stripe)])) as upstream,
            open_proxy(account.syncs, hosts=hosts_at(upstream), patience_s=10.0) as proxy,
            serving(proxy) as url,
            aiohttp.ClientSession(headers=account.bearer) as client,
        ):
            for version in (account.sync.mirror.api_version, "2024-06-20"):
                path = f"{url}/v1/customers/search?query=x"
                async with client.get(path, headers={"Stripe-Version": version}) as answer:
                    assert answer.headers["pinstripe-mirrored"] == "yes"
                row = await account.row("customer", key)
                assert row is not None
                assert row["name"] == truth["name"]


@pytest.mark.parametrize(
    ("kind", "has"), [("payment_intent", True), ("treasury.financial_account", False)]
)
async def test_a_read_from_before_a_write_does_not_make_it_mirrored(
    database: str, kind: str, has: bool
) -> None:
    """Neither's edit has an event: nothing else would bring it. One has no `metadata` at all before."""
    async with running(SMALL) as sim, front(sim, database) as it:
        key = next(str(o["id"]) for o in sim.control.truth(kind) if ("metadata" in o) is has)
        table = kind.replace(".", "_")
        path, old = f"/v1/{kind.replace('.', '/')}s/{key}", {"Stripe_Version": "2024-06-20"}
        await it.ask("GET", path)
        await asyncio.sleep(1.0)  # Else what a replica shows has this second's object.
        sim.control.nastiness("calm", stale_share=1.0, stale_s=3.0)
        _, _, response = await it.ask("POST", path, {"metadata[a]": "b"}, **old)
        assert response.headers["pinstripe-mirrored"] == "later"
        async with connect(database) as connection:
            owed = await connection.fetch('SELECT kind, "table", id FROM pinstripe.pending')
        assert ("fetch", table, key) in map(tuple, owed)
        sim.control.nastiness("calm")
        _, _, response = await it.ask("POST", path, {"metadata[a]": "c"}, **old)
        assert response.headers["pinstripe-mirrored"] == "yes"
        row = await it.account.row(table, key)
        assert row is not None
        assert json.loads(row["metadata"])["a"] == "c"


async def test_a_replayed_answer_does_not_bring_back_an_old_state(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        once = {"Idempotency_Key": "k-1"}
        _, made, _ = await it.ask("POST", "/v1/customers", {"name": "first"}, **once)
        path = f"/v1/customers/{made['id']}"
        await it.ask("POST", path, {"name": "second"})

        _, again, response = await it.ask("POST", "/v1/customers", {"name": "first"}, **once)

        row = await it.account.row("customer", made["id"])
        assert response.headers["idempotent-replayed"] == "true"
        assert again["name"] == "first"
        assert row is not None
        assert row["name"] == "second"


async def test_an_unknown_account_is_passed_through_and_told(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        it.account.syncs.remove("default")
        status, made, response = await it.ask("POST", "/v1/customers", {"name": "x"})
        assert status == 200
        assert response.headers["pinstripe-mirrored"] == "no"
        assert response.headers["pinstripe-reason"] == "unknown-account"
        assert await it.account.row("customer", made["id"]) is None
        assert it.proxy.callers.lookups == 0


async def test_a_wrong_key_is_stripes_to_refuse_and_never_looked_up(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        for number in range(5):
            wrong = {"Authorization": f"Bearer sk_test_invented{number:020d}"}
            status, body, response = await it.ask("GET", "/v1/customers", None, **wrong)
            assert (status, body["error"]["type"]) == (401, "invalid_request_error")
            assert response.headers["pinstripe-mirrored"] == "no"
        status, _, _ = await it.ask("GET", "/v1/customers", Authorization="")
        assert status == 401
        assert it.proxy.callers.lookups == 0


async def test_invented_keys_that_wait_delay_nobody_elses_key(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        sim.control.latency(fixed_s=0.4)

        async def wait_with(number: int) -> bool:
            key = f"Bearer sk_test_invented{number:020d}".encode()
            return await it.proxy.callers.may_use([(b"authorization", key)], it.account.sync)

        flood = [asyncio.create_task(wait_with(number)) for number in range(60)]
        async with asyncio.timeout(2):  # One after the other they take 3 s and more.
            _, _, response = await it.ask("GET", "/v1/products?limit=1")
        assert response.headers["pinstripe-mirrored"] == "yes"
        outcomes = await asyncio.gather(*flood, return_exceptions=True)
        refused = [o for o in outcomes if isinstance(o, HTTPError)]
        assert {no.status for no in refused} == {429}
        assert len(refused) == 60 - 32
        assert True not in outcomes


def _many_rows() -> bytes:
    entries = [{"id": f"cus_{n}", "object": "customer", "livemode": False} for n in range(10_001)]
    return json.dumps({"object": "list", "data": entries}).encode()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"object": "list", "data": [' + b" " * (64 * 2**20) + b"]}", id="bytes"),
        pytest.param(_many_rows(), id="rows"),
    ],
)
async def test_an_answer_that_unpacks_to_too_much_is_passed_on_as_it_is(
    database: str, body: bytes
) -> None:
    bomb = gzip.compress(body)

    async def stripe(request: Request) -> Response:
        if request.url.path == "/v1/account":
            return JSONResponse({"id": sim.account.id, "object": "account"})
        return Response(bomb, headers={"Content-Encoding": "gzip"}, media_type="application/json")

    async with (
        running(SMALL) as sim,
        gateway_account(sim, database) as account,
        serving(Starlette(routes=[Route("/v1/{path:path}", stripe)])) as upstream,
        open_proxy(account.syncs, hosts=hosts_at(upstream)) as proxy,
        serving(proxy) as url,
        aiohttp.ClientSession(auto_decompress=False) as client,
        client.get(f"{url}/v1/customers", headers=account.bearer) as answer,
    ):
        assert await answer.read() == bomb
        assert answer.headers["pinstripe-mirrored"] == "no"
        assert answer.headers["pinstripe-reason"] == "too-large"


async def test_the_content_of_a_file_is_no_object(database: str) -> None:
    forged = {"id": "cus_1", "object": "customer", "livemode": False, "name": "forged"}
    async with running(SMALL) as sim, gateway_account(sim, database) as account:
        version = account.sync.mirror.api_version

        async def stripe(request: Request) -> Response:
            if request.url.path == "/v1/account":
                return JSONResponse({"id": sim.account.id, "object": "account"})
            return JSONResponse(forged, headers={"Stripe-Version": version})

        async with (
            serving(Starlette(routes=[Route("/v1/{path:path}", stripe)])) as upstream,
            open_proxy(account.syncs, hosts=hosts_at(upstream)) as proxy,
            serving(proxy) as url,
            aiohttp.ClientSession(headers=account.bearer) as client,
        ):
            path = f"{url}/files.stripe.com/v1/files/file_1/contents"
            async with client.get(path) as answer:
                assert await answer.json() == forged
                assert answer.headers["pinstripe-reason"] == "no-objects"
        assert await account.row("customer", "cus_1") is None


async def test_a_read_with_a_body_in_another_version_is_repeated_without_it(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        old = {"Stripe_Version": "2024-06-20"}
        path = "/v1/customers?limit=1"
        _, page, response = await it.ask("GET", path, {"a": "b"}, **old)
        assert response.headers["pinstripe-mirrored"] == "yes"
        assert await it.account.row("customer", page["data"][0]["id"]) is not None


async def test_a_key_is_looked_up_once_and_basic_is_bearer(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        await asyncio.gather(*(it.ask("GET", "/v1/products?limit=1") for _ in range(10)))
        basic = aiohttp.encode_basic_auth(sim.key, "")
        _, _, response = await it.ask("GET", "/v1/products?limit=2", Authorization=basic)
        assert response.headers["pinstripe-mirrored"] == "yes"
        assert it.proxy.callers.lookups == 1
        assert sim.key not in repr(vars(it.proxy.callers))


async def test_whose_key_it_is_comes_from_a_200_and_never_from_the_words_of_an_error(
    database: str,
) -> None:
    """Stripe's 403 names an account, but an error says what the request has named."""
    async with running(SMALL) as sim, front(sim, database) as it:
        sim.control.key("rk_test_narrow0000000000", allowed=["customer_write", "customer_read"])
        narrow = {"Authorization": "Bearer rk_test_narrow0000000000"}
        _, made, response = await it.ask("POST", "/v1/customers", {"name": "n"}, **narrow)
        assert response.headers["pinstripe-mirrored"] == "no"
        assert response.headers["pinstripe-reason"] == "unknown-account"
        assert await it.account.row("customer", made["id"]) is None

        sim.control.key("rk_test_wide000000000000")
        wide = {"Authorization": "Bearer rk_test_wide000000000000"}
        _, made, response = await it.ask("POST", "/v1/customers", {"name": "w"}, **wide)
        assert response.headers["pinstripe-mirrored"] == "yes"


async def test_the_very_key_of_a_sync_is_known_though_it_may_not_read_its_account(
    database: str,
) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        sim.control.key(sim.key, allowed=["customer_write", "customer_read"])
        _, made, response = await it.ask("POST", "/v1/customers", {"name": "n"})
        assert response.headers["pinstripe-mirrored"] == "yes"
        assert await it.account.row("customer", made["id"]) is not None
        other = next(iter(sim.account.connected))
        _, made, response = await it.ask(
            "POST", "/v1/customers", {"name": "theirs"}, Stripe_Account=other
        )
        assert response.headers["pinstripe-mirrored"] == "no"


async def test_a_connected_account_has_tables_of_its_own(database: str) -> None:
    async with running(SMALL) as sim:
        other = next(iter(sim.account.connected))
        async with (
            front(sim, database) as it,
            gateway_account(
                sim,
                database,
                sync_id="other",
                schema="other",
                syncs=it.account.syncs,
                account=other,
            ) as second,
        ):
            _, made, response = await it.ask(
                "POST", "/v1/customers", {"name": "theirs"}, Stripe_Account=other
            )
            assert response.headers["pinstripe-sync"] == "other"
            assert await second.row("customer", made["id"]) is not None
            assert await it.account.row("customer", made["id"]) is None

            bearer = f"Bearer {sim.key}".encode()
            theirs = [(b"authorization", bearer), (b"stripe-account", other.encode())]
            assert await it.proxy.callers.may_use(theirs, second.sync)
            assert not await it.proxy.callers.may_use(theirs, it.account.sync)

            status, _, response = await it.ask(
                "GET", "/v1/customers", Stripe_Account="acct_somebodyElse"
            )
            assert status == 403
            assert response.headers["pinstripe-mirrored"] == "no"


@pytest.mark.parametrize("other", ["account_id = 'acct_other'", "livemode = true"])
async def test_the_key_of_another_account_or_mode_opens_no_tables(
    database: str, other: str
) -> None:
    """A wait would write what it fetches with it between the rows that are there."""
    async with running(SMALL) as sim, gateway_account(sim, database) as account:
        async with connect(database) as pg:
            await pg.execute(f"UPDATE pinstripe.sync SET {other}")
        with pytest.raises(Misconfigured, match="holds"):
            async with open_sync(
                "again",
                database,
                "stripe",
                ApiKey.parse(account.key),
                budget=RateLimiter(account_rate=None, endpoint_rate=None),
                stripe_url=sim.url,
            ):
                pass


async def test_previews_and_answers_without_objects_are_not_written(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        _, page, _ = await it.ask("GET", "/v1/subscriptions?limit=1&status=active")
        before = await it.account.count("invoice")
        options = {"subscription": page["data"][0]["id"]}
        _, preview, response = await it.ask("POST", "/v1/invoices/create_preview", options)
        assert preview["object"] == "invoice"
        assert response.headers["pinstripe-reason"] == "preview"
        assert await it.account.count("invoice") == before

        status, _, response = await it.ask("GET", "/v1/customers/cus_nobody")
        assert status == 404
        assert response.headers["pinstripe-reason"] == "no-objects"


async def test_an_uploaded_file_is_a_row(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        for size in (10, 900_000):
            form = aiohttp.FormData()
            form.add_field("purpose", "dispute_evidence")
            form.add_field("file", b"x" * size, filename="a.png", content_type="image/png")
            async with it.client.post(
                f"{it.url}/files.stripe.com/v1/files", data=form, headers=it.account.bearer
            ) as response:
                made = json.loads(await response.read())
                assert response.status == 200, made
                assert response.headers["pinstripe-mirrored"] == "yes"
            row = await it.account.row("file", made["id"])
            assert row is not None
            assert row["size"] == size


async def test_objects_of_the_other_mode_are_never_written(database: str) -> None:
    async with running(Settings(scale=60, livemode=True)) as sim, front(sim, database) as it:
        # The key says test, the objects say live.
        _, page, response = await it.ask("GET", "/v1/customers?limit=3")
        assert page["data"][0]["livemode"] is True
        assert response.headers["pinstripe-reason"] == "other-mode"
        assert await it.account.count("customer") == 0


async def test_a_write_waits_for_its_events_if_asked_to(database: str) -> None:
    asked: list[tuple[str, str, float]] = []

    async def wait(sync: OpenSync, request_id: str, timeout_s: float) -> bool:
        asked.append((sync.id, request_id, timeout_s))
        return len(asked) < 3

    async with running(SMALL) as sim, front(sim, database, wait_for_request=wait) as it:
        hold = {"Pinstripe_Wait": "true", "Idempotency_Key": "k-2"}
        _, _, first = await it.ask("POST", "/v1/customers", {"name": "x"}, **hold)
        _, _, again = await it.ask("POST", "/v1/customers", {"name": "x"}, **hold)
        _, _, third = await it.ask("POST", "/v1/customers", {"name": "y"}, Pinstripe_Wait="7")
        _, _, get = await it.ask("GET", "/v1/customers", Pinstripe_Wait="true")
        _, _, bad = await it.ask("POST", "/v1/customers/cus_no", {"name": "y"}, Pinstripe_Wait="1")
        told = {"1": 1.0, "2.5": 2.5, "0": None, "nan": None, "1e9": 300.0, "soon": None}
        for given in told:
            await it.ask("POST", "/v1/customers", {"name": "z"}, Pinstripe_Wait=given)

    request_id = first.headers["request-id"]
    assert asked[0] == ("default", request_id, 30.0)
    assert asked[1] == ("default", request_id, 30.0), "a replay speaks of the first request"
    assert asked[2][2] == 7.0
    assert [wait_s for _, _, wait_s in asked[3:]] == [s for s in told.values() if s is not None]
    assert [r.headers.get("pinstripe-waited") for r in (first, again, third)] == [
        "yes",
        "yes",
        "no",
    ]
    assert "pinstripe-waited" not in get.headers
    assert "pinstripe-waited" not in bad.headers


async def test_lists_that_an_answer_cut_are_noted_to_be_read(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        _, made, _ = await it.ask("POST", "/v1/customers", {"name": "many"})
        _, invoice, _ = await it.ask("POST", "/v1/invoices", {"customer": made["id"]})
        for number in range(12):
            line = {"customer": made["id"], "invoice": invoice["id"], "amount": str(100 + number)}
            await it.ask("POST", "/v1/invoiceitems", {**line, "currency": "usd"})
        _, cut, response = await it.ask(
            "POST", f"/v1/invoices/{invoice['id']}", {"description": "long"}
        )
        assert cut["lines"]["has_more"] is True
        assert response.headers["pinstripe-mirrored"] == "yes"
        async with it.account.sync.pool.acquire() as connection:
            noted = await connection.fetch('SELECT kind, "table", id FROM pinstripe.pending')
        assert ("fetch", "invoice", invoice["id"]) in [tuple(row) for row in noted]


async def test_a_declined_payment_leaves_its_intent(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        options = {
            "amount": "500",
            "currency": "usd",
            "payment_method": "pm_card_chargeDeclined",
            "confirm": "true",
        }
        status, body, response = await it.ask("POST", "/v1/payment_intents", options)
        assert status == 402, body
        intent = body["error"].get("payment_intent")
        if isinstance(intent, dict):
            assert response.headers["pinstripe-mirrored"] == "yes"
            assert await it.account.row("payment_intent", intent["id"]) is not None


async def test_what_is_read_again_and_again_is_written_once(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        _, page, _ = await it.ask("GET", "/v1/customers?limit=1")
        key = page["data"][0]["id"]
        path = f"/v1/customers/{key}"
        versions = set()
        for _ in range(6):
            _, _, response = await it.ask("GET", path)
            assert response.headers["pinstripe-mirrored"] == "yes"
            row = await it.account.row("customer", key)
            assert row is not None
            versions.add(row["_synced_at"])
        assert len(versions) <= 3

        # Changed at Stripe and back again, while Postgres heard of something between.
        first = page["data"][0]["name"]
        sim.control.edit("customer", key, {"name": "between"})
        await it.ask("GET", path)
        sim.control.edit("customer", key, {"name": first})
        await it.ask("GET", path)
        row = await it.account.row("customer", key)
        assert row is not None
        assert row["name"] == first
