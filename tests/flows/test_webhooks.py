"""Webhooks of the simulator, signed as Stripe signs: they ring, and write nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.flows.harness.account import until
from tests.flows.harness.gateway_account import serving
from tests.flows.harness.waiting import gateway, made_customer, syncing

from pinstripe.gateway.syncs import OpenSync
from pinstripe.store.pool import connect
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running
from pinstripe_simulator.webhooks import signature

pytestmark = pytest.mark.migrated

SECRET = "whsec_for_tests"


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=300, future_fields=False)) as simulator:
        yield simulator


def headers(payload: bytes, secret: str = SECRET, at: float | None = None) -> dict[str, str]:
    return {"Stripe-Signature": signature(secret, payload, int(at or time.time()))}


async def test_a_delivery_of_the_simulator_rings_and_the_change_arrives(
    sim: Running, database: str
) -> None:
    sim.control.webhooks(twice_share=0.5)
    async with (
        gateway(sim, database) as here,
        # It would look by itself only after a minute.
        syncing(sim, database, poll_s=60.0) as follower,
        serving(here.app) as url,
    ):
        await until(lambda: follower.poller.stats.polls > 1)
        made = await here.stripe.post(
            "/v1/webhook_endpoints",
            [("url", f"{url}/webhooks/stripe/default"), ("enabled_events[]", "*")],
            endpoint="POST /v1/webhook_endpoints",
        )
        secret = made.body.split(b'"secret": "', 1)[1].split(b'"', 1)[0].decode()
        here.account.syncs.add(_with_secret(here.account.sync, secret))
        key, _ = await made_customer(here.stripe, "Ada")
        async with asyncio.timeout(10):
            while await here.account.row("customer", key) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await until(lambda: here.webhooks.count["accepted"] > 0)
        assert sim.control.webhooks()["failed"] == 0


def _with_secret(sync: OpenSync, secret: str) -> OpenSync:
    return replace(sync, webhook_secrets=("whsec_old", secret))


async def test_what_is_not_signed_is_refused_and_rings_nobody(sim: Running, database: str) -> None:
    async with gateway(sim, database, secrets=(SECRET,)) as here:
        address, payload = "/webhooks/stripe/default", b'{"id": "evt_1"}'
        cases = [
            (address, payload, {}, 400, "bad_signature"),
            (address, payload, headers(payload, "whsec_other"), 400, "bad_signature"),
            (address, payload, headers(payload, at=time.time() - 400), 400, "old_signature"),
            (address, payload + b" ", headers(payload), 400, "bad_signature"),
            ("/webhooks/stripe/other", payload, headers(payload), 400, "bad_signature"),
            ("/webhooks/stripe/other", payload, {}, 400, "bad_signature"),
            (address, b"x" * (2 << 20), {}, 413, "too_large"),
        ]
        for path, body, given, status, code in cases:
            answer = await here.http.post(path, content=body, headers=given)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        # Nothing that a stranger gets tells whether there is such a sync.
        for body, given in ((payload, {}), (payload, headers(payload, "whsec_other")), (b"", {})):
            told = [
                await here.http.post(f"/webhooks/stripe/{name}", content=body, headers=given)
                for name in ("default", "other")
            ]
            assert told[0].content == told[1].content
            assert told[0].status_code == told[1].status_code == 400
        assert here.requester.requests_sent["stripe"] == 0
        good = await here.http.post(address, content=payload, headers=headers(payload))
        assert good.status_code == 200
        await until(lambda: here.requester.requests_sent["stripe"] == 1)


async def test_a_flood_of_replays_is_a_few_rings_and_no_row(sim: Running, database: str) -> None:
    async with gateway(sim, database, secrets=(SECRET,)) as here:
        payload = b'{"id": "evt_1", "object": "event", "data": {"object": {"id": "cus_1"}}}'
        given = headers(payload)
        began = time.monotonic()
        for _ in range(20):
            answers = await asyncio.gather(
                *(
                    here.http.post("/webhooks/stripe/default", content=payload, headers=given)
                    for _ in range(50)
                )
            )
            assert {a.status_code for a in answers} == {200}
        took_s = time.monotonic() - began
        assert here.webhooks.count["accepted"] == 1000
        assert here.requester.requests_sent["stripe"] <= took_s / 0.05 + 2
        async with connect(database) as pg:
            assert await pg.fetchval("SELECT count(*) FROM stripe.event") == 0
            assert await pg.fetchval("SELECT count(*) FROM pinstripe.applied_event") == 0


async def test_a_delivery_is_answered_while_postgres_is_away(sim: Running, database: str) -> None:
    async with gateway(sim, database, secrets=(SECRET,)) as here:
        payload = b"{}"
        async with connect(database) as pg:
            await pg.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        answer = await here.http.post(
            "/webhooks/stripe/default", content=payload, headers=headers(payload)
        )
        assert answer.status_code == 200
