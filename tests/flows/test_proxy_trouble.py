"""Stripe's answer is never lost: with Postgres away, slow or full, callers who hang up, a reader beside."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from tests.flows.harness.account import open_copy, quiet
from tests.flows.harness.gateway_account import GatewayAccount, gateway_account, serving
from tests.flows.harness.recording_stripe import raw
from tests.flows.test_proxy import SMALL, front

from pinstripe.gateway.proxy.mirroring import Way
from pinstripe.gateway.proxy.proxy import open_proxy
from pinstripe.gateway.proxy.upstream import hosts_at
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.pool import connect
from pinstripe.sync.events.poller import EventPoller, PollIntervals
from pinstripe.sync.refetch.worker import RefetchWorker
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import running

pytestmark = pytest.mark.migrated


async def appears(account: GatewayAccount, key: str, name: str) -> None:
    """Returns when the customer's row has this name."""
    async with asyncio.timeout(20):
        while (row := await account.row("customer", key)) is None or row["name"] != name:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_slow_postgres_holds_nobody_for_longer_than_the_patience(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database, patience_s=0.3) as it:
        _, first, _ = await it.ask("POST", "/v1/customers", {"name": "before"})
        async with connect(database) as blocker:
            await blocker.execute("BEGIN; LOCK TABLE stripe.customer IN ACCESS EXCLUSIVE MODE")
            began = monotonic()
            path = f"/v1/customers/{first['id']}"
            status, changed, response = await it.ask("POST", path, {"name": "during"})
            took_s = monotonic() - began
            assert (status, changed["name"]) == (200, "during")
            assert response.headers["pinstripe-mirrored"] == "later"
            assert response.headers["pinstripe-reason"] == "postgres"
            assert took_s < 2.0
            began = monotonic()
            made = [await it.ask("POST", "/v1/customers", {"name": "more"}) for _ in range(5)]
            assert monotonic() - began < 5 * 0.3, "once it is known to be stuck nobody waits long"
            assert {r.headers["pinstripe-mirrored"] for _, _, r in made} == {"later"}
            await blocker.execute("ROLLBACK")
        await appears(it.account, first["id"], "during")
        for _, each, _ in made:
            await appears(it.account, each["id"], "more")


async def test_postgres_may_go_and_come_back_without_an_answer_lost() -> None:
    with TemporaryDirectory(prefix="pinstripe-tests-") as directory:
        server = EmbeddedPostgres(Path(directory) / "postgres", fsync=False)
        await server.start()
        try:
            async with running(SMALL) as sim, front(sim, server.url, patience_s=0.3) as it:
                _, first, _ = await it.ask("POST", "/v1/customers", {"name": "before"})
                await server.stop()
                asked = [
                    it.ask("POST", "/v1/customers", {"name": f"during {n}"}) for n in range(20)
                ]
                path = f"/v1/customers/{first['id']}"
                asked.append(it.ask("POST", path, {"name": "after"}))
                answers = await asyncio.gather(*asked)
                assert {status for status, _, _ in answers} == {200}
                assert {r.headers["pinstripe-mirrored"] for _, _, r in answers} == {"later"}
                status, _, _ = await it.ask("GET", path)
                assert status == 200
                await server.start()
                for _, body, _ in answers:
                    await appears(it.account, body["id"], body["name"])
                _, last, response = await it.ask("POST", "/v1/customers", {"name": "last"})
                assert await it.account.row("customer", last["id"]) is not None
                assert response.headers["pinstripe-mirrored"] == "yes"
        finally:
            await server.stop()


async def test_a_postgres_that_refuses_to_write_gets_the_rows_when_it_takes_them(
    database: str,
) -> None:
    name = urlsplit(database).path[1:]

    async def set_read_only(switch: str) -> None:
        async with connect(database) as admin:
            await admin.execute("SET default_transaction_read_only = off")
            await admin.execute(
                f"ALTER DATABASE {name} SET default_transaction_read_only = {switch}"
            )
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    async with running(SMALL) as sim, front(sim, database, patience_s=1.0) as it:
        await it.ask("GET", "/v1/products?limit=1")
        await set_read_only("on")
        _, made, response = await it.ask("POST", "/v1/customers", {"name": "kept"})
        assert response.headers["pinstripe-mirrored"] == "later"
        await set_read_only("off")
        await appears(it.account, made["id"], "kept")


async def test_what_is_left_for_later_waits_for_a_sync_that_is_being_opened_anew(
    database: str,
) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        syncs, sync = it.account.syncs, it.account.sync
        key = next(str(o["id"]) for o in sim.account.world.truth("customer"))
        syncs.expected = frozenset({"default"})
        syncs.remove("default")
        it.proxy.answers.later.add("default", [Way("fetch", "customer", key)])
        await asyncio.sleep(0.2)
        syncs.add(sync)
        async with asyncio.timeout(10):
            while await it.account.row("customer", key) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_what_is_owed_for_a_write_is_of_stripes_time_whatever_the_machine_says(
    database: str,
) -> None:
    """Of a second that is past, one read is enough, which a replica that is behind may answer."""
    async with running(SMALL) as sim, front(sim, database) as it, connect(database) as pg:
        it.account.sync.source.clock_ahead_s = -3600.0
        _, page, _ = await it.ask("GET", "/v1/payment_intents?limit=1")
        sim.control.fault(kind="reset_after", count=1, method="POST")
        path = f"/v1/payment_intents/{page['data'][0]['id']}"
        await it.ask("POST", path, {"metadata[a]": "b"})
        async with asyncio.timeout(10):
            while (since := await pg.fetchval("SELECT max(since) FROM pinstripe.pending")) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert abs(since.timestamp() - time.time()) < 10


async def test_a_write_is_mirrored_though_its_caller_hangs_up(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        await it.ask("GET", "/v1/customers?limit=1")
        sim.control.latency(fixed_s=0.2)
        known = {str(o["id"]) for o in sim.account.world.truth("customer")}
        body = b"name=gone"
        head = f"POST /v1/customers HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {sim.key}\r\n"
        head += f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
        await raw(it.url, head.encode() + body, hang_up=True)
        made: list[str] = []
        async with asyncio.timeout(10):
            while not made:
                await asyncio.sleep(0.02)
                ids = [str(o["id"]) for o in sim.account.world.truth("customer")]
                made = [key for key in ids if key not in known]
        await appears(it.account, made[0], "gone")


async def test_the_end_of_the_service_loses_no_answer_and_says_what_may_have_been_done(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinstripe.serving.http_server._END_S", 0.1)
    waits = asyncio.Event()

    async def wait(*_: object) -> bool:
        waits.set()
        await asyncio.Event().wait()
        return True

    async with (
        running(SMALL) as sim,
        gateway_account(sim, database) as account,
        open_proxy(account.syncs, hosts=hosts_at(sim.url), wait_for_request=wait) as proxy,
        aiohttp.ClientSession(headers=account.bearer) as client,
    ):
        async with serving(proxy) as url:
            held = {"Pinstripe-Wait": "true"}
            post = client.post(f"{url}/v1/customers", data={"name": "done"}, headers=held)
            asked = asyncio.create_task(_read(post))
            await waits.wait()
        status, headers, body = await asked
        assert (status, body["name"], headers["pinstripe-mirrored"]) == (200, "done", "yes")
        sim.control.latency(fixed_s=5.0)
        async with serving(proxy) as url:
            asked = asyncio.create_task(_read(client.post(f"{url}/v1/customers")))
            await asyncio.sleep(0.5)  # Until it is on its way.
        status, headers, body = await asked
        assert (status, headers["pinstripe-mirrored"]) == (502, "no")
        assert "may or may not have been done" in body["error"]["message"]


async def _read(asked: Any) -> tuple[int, Mapping[str, str], Any]:
    """(status, headers, JSON body)."""
    async with asked as response:
        return response.status, response.headers, json.loads(await response.read())


async def test_a_stripe_in_trouble_is_told_as_it_is(database: str) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        await it.ask("GET", "/v1/customers?limit=1")
        for kind, told in (("error_500", 500), ("rate_limit", 429), ("reset_after", 502)):
            sim.control.fault(kind=kind, count=1)
            rung = len(it.rung)
            status, body, response = await it.ask("POST", "/v1/customers", {"name": kind})
            assert status == told
            assert body["error"]["message"]
            assert response.headers["pinstripe-mirrored"] == "no"
            await asyncio.sleep(0)
            if kind == "reset_after":
                assert len(it.rung) > rung, "it may have been done: the events will tell"
        sim.control.fault(kind="reset_in_body", count=1)
        status, body, _ = await it.ask("GET", "/v1/customers?limit=2")
        assert (status, body["error"]["type"]) == (502, "api_error")
        sim.control.fault(kind="html", count=1)
        async with it.client.get(f"{it.url}/v1/prices", headers=it.account.bearer) as page:
            assert "html" in page.headers["content-type"]
            assert page.headers["pinstripe-mirrored"] == "no"


async def test_every_read_sees_its_write_with_a_reader_beside(database: str) -> None:
    start = time.time()
    async with (
        running(Settings(scale=60, future_fields=False)) as sim,
        front(sim, database) as it,
        open_copy(sim, database) as copy,
    ):
        sim.control.late_events(0.3, 0.2)
        live, refetches = copy.live(start - 1, pace=PollIntervals(poll_s=0.02))
        beside = [asyncio.create_task(live.run()), asyncio.create_task(refetches.run())]
        stale: list[str] = []
        pool = it.account.sync.pool

        async def write(writer: int) -> None:
            _, made, _ = await it.ask("POST", "/v1/customers", {"name": f"{writer}:new"})
            for number in range(12):
                name = f"{writer}:{number}"
                path = f"/v1/customers/{made['id']}"
                _, _, response = await it.ask("POST", path, {"name": name})
                async with pool.acquire() as connection:
                    seen = await connection.fetchval(
                        "SELECT name FROM stripe.customer WHERE id = $1", made["id"]
                    )
                if seen != name or response.headers["pinstripe-mirrored"] != "yes":
                    stale.append(f"{name}: {seen} {response.headers['pinstripe-mirrored']}")

        await asyncio.gather(*(write(n) for n in range(6)))
        assert stale == []
        await asyncio.sleep(0.5)
        await quiet(copy, refetches)
        truth = {str(o["id"]): o["name"] for o in sim.account.world.truth("customer")}
        async with pool.acquire() as connection:
            rows = await connection.fetch("SELECT id, name FROM stripe.customer")
        assert len(rows) >= 6
        assert {r[0]: r[1] for r in rows} == {r[0]: truth[r[0]] for r in rows}
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)


async def _reader_comes_by(account: GatewayAccount, began: float) -> None:
    """A process that syncs applies the events, and works off what is pending."""
    await asyncio.sleep(0.3)  # What is owed is noted beside the answer.
    refetches = RefetchWorker(account.sync.source)
    await EventPoller(account.sync.source, refetches, since=began).read_lookback(began)
    for _ in range(3):
        await refetches.drain()
        await asyncio.sleep(0.25)  # More than a replica is behind here.
    await account.sync.mirror.conflicts.wait_resolved()
    async with connect(account.url) as connection:
        assert await connection.fetch("SELECT * FROM pinstripe.pending") == []


@pytest.mark.parametrize("kind", ["reset_after", "cut", "reset_in_body", "html"])
@pytest.mark.parametrize("table", ["payment_intent", "shipping_rate"])
async def test_a_write_without_an_event_whose_answer_is_lost_is_looked_up(
    database: str, kind: str, table: str
) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        began = time.time()
        _, page, _ = await it.ask("GET", f"/v1/{table}s?limit=1")
        path = f"/v1/{table}s/{page['data'][0]['id']}"
        sim.control.fault(kind=kind, count=1, method="POST")
        async with it.client.post(
            it.url + path, data={"metadata[a]": "b"}, headers=it.account.bearer
        ) as response:
            assert response.headers["pinstripe-mirrored"] == "no"
        await _reader_comes_by(it.account, began)
        row = await it.account.row(table, page["data"][0]["id"])
        (truth,) = [o for o in sim.control.truth(table) if o["id"] == page["data"][0]["id"]]
        assert row is not None
        assert json.loads(row["metadata"]) == truth["metadata"]


async def test_a_write_whose_answer_is_lost_is_looked_up_though_postgres_is_away_as_well() -> None:
    with TemporaryDirectory(prefix="pinstripe-tests-") as directory:
        server = EmbeddedPostgres(Path(directory) / "postgres", fsync=False)
        await server.start()
        try:
            async with running(SMALL) as sim, front(sim, server.url) as it:
                _, page, _ = await it.ask("GET", "/v1/payment_intents?limit=1")
                key = page["data"][0]["id"]
                await server.stop()
                sim.control.fault(kind="reset_after", count=1, method="POST")
                path = f"/v1/payment_intents/{key}"
                status, _, _ = await it.ask("POST", path, {"metadata[a]": "b"})
                assert status == 502
                await server.start()
                async with asyncio.timeout(30):
                    while True:
                        row = await it.account.row("payment_intent", key)
                        if row is not None and json.loads(row["metadata"]).get("a") == "b":
                            break
                        await asyncio.sleep(0.05)
        finally:
            await server.stop()


async def test_a_write_whose_answer_is_lost_is_looked_up_though_its_key_is_not_known_at_once(
    database: str,
) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        key = next(str(o["id"]) for o in sim.account.world.truth("payment_intent"))
        sim.control.fault(kind="reset_after", count=1, method="POST")
        sim.control.fault(kind="error_500", count=1, path="/v1/account")
        status, _, _ = await it.ask("POST", f"/v1/payment_intents/{key}", {"metadata[a]": "b"})
        assert status == 502
        async with asyncio.timeout(10), connect(database) as pg:
            while not await pg.fetchval("SELECT true FROM pinstripe.pending WHERE id = $1", key):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert it.rung == ["default"]


@pytest.mark.parametrize("how", ["another version", "replayed"])
async def test_a_write_without_an_event_that_is_read_from_a_replica_is_read_once_more(
    database: str, how: str
) -> None:
    async with running(SMALL) as sim, front(sim, database) as it:
        began = time.time()
        _, page, _ = await it.ask("GET", "/v1/payment_intents?limit=1")
        path = f"/v1/payment_intents/{page['data'][0]['id']}"
        await asyncio.sleep(0.3)
        sim.control.nastiness(stale_share=1.0, stale_s=0.18)
        headers = {"Stripe_Version": "2024-06-20"}
        if how == "replayed":
            headers = {"Idempotency_Key": "once"}
            sim.control.fault(kind="reset_after", count=1, method="POST")
            await it.ask("POST", path, {"metadata[a]": "b"}, **headers)
        status, body, _ = await it.ask("POST", path, {"metadata[a]": "b"}, **headers)
        assert (status, body["metadata"]["a"]) == (200, "b")
        await _reader_comes_by(it.account, began)
        row = await it.account.row("payment_intent", page["data"][0]["id"])
        assert row is not None
        assert json.loads(row["metadata"])["a"] == "b"


async def test_the_answer_to_the_deletion_of_a_v2_object_flags_its_row(database: str) -> None:
    """It says what was deleted, and not that it was (`DeletedObject` of the SDK)."""
    async with running(SMALL) as sim, front(sim, database) as it:
        _, page, _ = await it.ask("GET", "/v2/core/event_destinations")
        key = page["data"][0]["id"]
        _, gone, response = await it.ask("DELETE", f"/v2/core/event_destinations/{key}")
        assert gone == {"id": key, "object": "v2.core.event_destination"}
        assert response.headers["pinstripe-mirrored"] == "yes"
        row = await it.account.row("v2_core_event_destination", key)
        assert row is not None
        assert row["deleted"]
