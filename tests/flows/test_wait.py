"""Waiting: what is written to Stripe and waited for is what SQL reads then."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.flows.harness.api_service import config_of, served
from tests.flows.harness.histories import OLD
from tests.flows.harness.waiting import gateway, made_customer, renamed, syncing

from pinstripe.client.response import Margins
from pinstripe.gateway.http.auth import Auth
from pinstripe.gateway.wait.waiter import fetch_event
from pinstripe.serving.registry import GatewaySyncSpec, SyncOpener
from pinstripe.store.pool import connect
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

pytestmark = pytest.mark.migrated

SMALL = Settings(scale=300, future_fields=False)


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(SMALL) as simulator:
        yield simulator


async def test_a_plain_wait_brings_what_was_written_before_it(sim: Running, database: str) -> None:
    async with gateway(sim, database) as here, syncing(sim, database):
        key, _ = await made_customer(here.stripe, "Ada")
        answer = await here.wait()
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["ok"] is True
        assert body["as_of"].endswith("Z")
        row = await here.account.row("customer", key)
        assert row is not None
        assert row["name"] == "Ada"


async def test_a_wait_for_a_request_brings_what_that_request_wrote(
    sim: Running, database: str
) -> None:
    async with gateway(sim, database) as here, syncing(sim, database):
        key, _ = await made_customer(here.stripe, "Ada")
        request = await renamed(here.stripe, key, "Grace")
        answer = await here.http.post(f"/wait/stripe/default?request={request}")
        assert answer.status_code == 200, answer.text
        row = await here.account.row("customer", key)
        assert row is not None
        assert row["name"] == "Grace"
        assert await here.waits.request_applied(here.account.sync, request, 5.0) is True
        assert await here.waits.request_applied(here.account.sync, "req_none", 0.2) is False


async def test_a_wait_for_an_object_needs_nobody_who_syncs(sim: Running, database: str) -> None:
    async with gateway(sim, database) as here:
        key, _ = await made_customer(here.stripe, "Ada")
        answer = await here.wait(f"object={key}")
        assert answer.status_code == 200, answer.text
        await here.stripe.delete(f"/v1/customers/{key}", endpoint="DELETE /v1/customers/{customer}")
        answer = await here.wait(f"object={key}")
        assert answer.status_code == 200, answer.text
        row = await here.account.row("customer", key)
        assert row is not None
        assert row["deleted"] is True


async def test_a_wait_for_an_object_brings_the_rows_inside_of_it(
    sim: Running, database: str
) -> None:
    """Each change comes so soon after the last that the clocks do not tell which is newer."""
    async with gateway(sim, database) as here:
        made = sim.control.members("subscription", "subscription_item", add=4)
        owner, (kept, *others) = made["owner"][0], made["added"]
        read: list[tuple[object, object]] = []
        for n, other in enumerate(others):
            assert (await here.wait(f"object={owner}")).status_code == 200
            sim.control.edit("subscription_item", kept, {"quantity": 100 + n})
            assert (await here.wait(f"object={owner}")).status_code == 200
            row = await here.account.row("subscription_item", kept)
            sim.control.delete("subscription_item", other, silent=True)
            assert (await here.wait(f"object={owner}")).status_code == 200
            gone = await here.account.row("subscription_item", other)
            assert row is not None
            assert gone is not None
            read.append((row["quantity"], gone["deleted"]))
    assert read == [(100 + n, True) for n in range(len(others))]


async def test_what_is_new_is_not_called_unknown_where_a_replica_is_behind(
    sim: Running, database: str
) -> None:
    async with gateway(sim, database) as here:
        sim.control.nastiness("calm", stale_share=1.0, stale_s=0.15)
        for _ in range(3):
            key, _ = await made_customer(here.stripe, "Ada")
            answer = await here.wait(f"object={key}")
            assert answer.status_code == 200, answer.text
            assert await here.account.row("customer", key) is not None


async def test_a_wait_for_an_event_ends_when_it_is_applied(sim: Running, database: str) -> None:
    async with gateway(sim, database) as here, syncing(sim, database):
        key, _ = await made_customer(here.stripe, "Ada")
        log = await here.stripe.get(
            "/v1/events", [("limit", "1")], endpoint="GET /v1/events", priority=0
        )
        event = json.loads(log.body)["data"][0]["id"]
        answer = await here.wait(f"event={event}")
        assert answer.status_code == 200, answer.text
        assert await here.account.row("customer", key) is not None


async def test_an_event_from_before_the_sync_brings_its_object(sim: Running, database: str) -> None:
    log = sim.account.world.tables["event"]
    old = json.loads(json.dumps(next(iter(sim.account.world.truth("event")))))
    assert log.total
    async with gateway(sim, database) as here, syncing(sim, database):
        answer = await here.wait(f"event={old['id']}")
        assert answer.status_code == 200, answer.text


async def test_how_old_an_event_is_goes_by_stripes_clock(sim: Running, database: str) -> None:
    event = next(str(e["id"]) for e in sim.account.world.truth("event"))
    async with gateway(sim, database) as here:
        source = here.account.sync.source
        source.clock_ahead_s = -86400.0  # As if the machine's were so far behind.
        await fetch_event(here.account.sync, event)
        assert abs(source.clock_ahead_s) < 5.0


_HOPELESS = [
    ("event=evt_none", 404, "not_found"),
    ("object=cus_none", 404, "not_found"),
    ("object=gold", 400, "bad_request"),
    ("object=cus_1&type=custmer", 400, "bad_request"),
    ("object=ba_1", 400, "bad_request"),
    ("object=cbtxn_1", 400, "bad_request"),
    ("object=", 400, "bad_request"),
    ("type=product", 400, "bad_request"),
    ("request=evt_1", 400, "bad_request"),
    ("timeout=-1", 400, "bad_request"),
    ("timeout=301", 400, "bad_request"),
    ("timeout=nan", 400, "bad_request"),
    ("settle=x", 400, "bad_request"),
    ("previews=maybe", 400, "bad_request"),
    ("timeout=1&timeout=2", 400, "bad_request"),
    ("objct=cus_1", 400, "bad_request"),
]


async def test_what_cannot_come_true_is_said_at_once(sim: Running, database: str) -> None:
    async with gateway(sim, database) as here:
        for query, status, code in _HOPELESS:
            answer = await here.wait(query)
            assert (answer.status_code, query) == (status, query), answer.text
            assert answer.json()["error"]["code"] == code
        for path in ("/wait/paypal/default", "/wait/stripe/other"):
            answer = await here.http.get(path)
            assert answer.status_code == 404
            assert answer.json()["error"]["hint"]


async def test_without_anybody_who_syncs_the_wait_says_so(sim: Running, database: str) -> None:
    async with gateway(sim, database) as here:
        answer = await here.wait("timeout=0.5")
        assert answer.status_code == 504
        body = answer.json()
        assert body["ok"] is False
        assert body["error"]["code"] == "not_syncing"
        assert [m["what"] for m in body["missing"]] == ["poll"]
        answer = await here.wait("timeout=0.3&request=req_1")
        assert answer.json()["missing"] == [{"what": "request", "id": "req_1"}]


async def test_no_plain_wait_ends_before_the_first_copy_is_complete(
    sim: Running, database: str
) -> None:
    async with (
        gateway(sim, database, settle_s=0.1) as here,
        syncing(sim, database, complete=False) as follower,
    ):
        assert (await here.wait("timeout=1")).status_code == 504
        key, request = await made_customer(here.stripe, "Ada")
        # An exact wait needs no complete copy: all that it names is in the event list.
        assert (await here.wait(f"request={request}&timeout=10")).status_code == 200
        assert (await here.wait("timeout=1")).status_code == 504
        assert await here.account.row("customer", key) is not None
        follower.backfilled()
        assert (await here.wait("timeout=10")).status_code == 200


async def test_a_wait_polls_at_once_however_seldom_the_poller_does(
    sim: Running, database: str
) -> None:
    async with gateway(sim, database) as here, syncing(sim, database, poll_s=25.0) as follower:
        polls = follower.poller.stats.polls
        for _ in range(4):
            assert (await here.wait("timeout=8")).status_code == 200
        assert follower.poller.stats.polls - polls >= 2


async def test_a_sync_of_one_account_takes_the_header_of_an_account_and_not_the_parameter(
    sim: Running, database: str
) -> None:
    async with gateway(sim, database) as here, syncing(sim, database):
        answer = await here.wait("account=acct_1")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
        named = {"Stripe-Account": "acct_1"}  # A part of the caller's credentials, as at Stripe.
        waited = await here.http.get("/wait/stripe/default", headers=named)
        assert waited.status_code == 200


async def test_a_thousand_waiters_share_a_few_looks(sim: Running, database: str) -> None:
    async with gateway(sim, database) as here, syncing(sim, database) as follower:
        assert (await here.wait()).status_code == 200
        polls, rings = follower.poller.stats.polls, here.requester.requests_sent["stripe"]
        answers = await asyncio.gather(*(here.wait() for _ in range(1000)))
        assert {a.status_code for a in answers} == {200}
        assert follower.poller.stats.polls - polls <= 12
        assert here.requester.requests_sent["stripe"] - rings <= 50


async def test_what_is_still_to_be_asked_of_stripe_holds_the_wait_up(
    sim: Running, database: str
) -> None:
    async with gateway(sim, database) as here, syncing(sim, database):
        assert (await here.wait()).status_code == 200
        async with connect(database) as pg:
            # So old that nobody takes it for new and does it.
            await pg.execute(
                'INSERT INTO pinstripe.pending (schema, kind, "table", id, since, asked_at)'
                " VALUES ('stripe', 'upcoming_customer', 'upcoming_customer_invoice', 'x', now(),"
                " now() - interval '1 hour')"
            )
            answer = await here.wait("timeout=1")
            assert answer.status_code == 504
            assert answer.json()["missing"] == [
                {"what": "pending", "tables": {"upcoming_customer_invoice": 1}}
            ]
            assert (await here.wait("previews=false")).status_code == 200


async def test_an_exact_wait_does_not_end_while_postgres_refuses_its_row(
    sim: Running, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinstripe.mirror.mirror.PROBE_S", 1.0)
    check = "ALTER TABLE stripe.customer {} CONSTRAINT no_such_name"
    async with gateway(sim, database) as here, syncing(sim, database), connect(database) as pg:
        await pg.execute(check.format("ADD") + " CHECK (name <> 'bad')")
        key, request = await made_customer(here.stripe, "bad")
        log = await here.stripe.get("/v1/events", [("limit", "1")], endpoint="GET /v1/events")
        event = json.loads(log.body)["data"][0]["id"]
        for name, value in (("request", request), ("event", event)):
            answer = await here.wait(f"{name}={value}&timeout=2")
            assert answer.status_code == 504, answer.text
            missing = {"what": "pending", "id": value, "tables": {"customer": 1}}
            assert answer.json()["missing"] == [missing]
        answer = await here.wait(f"object={key}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert (await here.wait()).status_code == 200, "the row is in nobody else's way"
        await pg.execute(check.format("DROP"))
        for query in (f"object={key}", f"request={request}"):
            answer = await here.wait(query)
            assert answer.status_code == 200, answer.text
        row = await here.account.row("customer", key)
        assert row is not None
        assert row["name"] == "bad"


async def test_late_events_are_waited_for_where_the_settling_time_covers_them(
    sim: Running, database: str
) -> None:
    sim.control.late_events(share=0.5, delay_s=0.3)
    async with gateway(sim, database) as here, syncing(sim, database):
        key, _ = await made_customer(here.stripe, "0")
        for n in range(1, 6):
            await renamed(here.stripe, key, str(n))
            sim.control.burst(10)
            answer = await here.wait("settle=0.7")
            assert answer.status_code == 200, answer.text
            row = await here.account.row("customer", key)
            assert row is not None
            assert row["name"] == str(n)


async def test_the_events_of_a_write_that_come_a_little_late_are_waited_for_with_it(
    sim: Running, database: str
) -> None:
    sim.control.late_events(share=0.5, delay_s=0.2)
    paid = {"amount": 100, "currency": "usd", "payment_method": "pm_card_visa", "confirm": "true"}
    form = [(name, str(value)) for name, value in paid.items()]
    applied = "SELECT count(*) FROM pinstripe.applied_event WHERE request_id = $1"
    async with (
        gateway(sim, database, settle_s=0.5) as here,
        syncing(sim, database),
        connect(database) as pg,
    ):
        for _ in range(6):
            path = "/v1/payment_intents"
            made = (await here.stripe.post(path, form, endpoint=f"POST {path}")).request_id
            assert await here.waits.request_applied(here.account.sync, made, 10.0) is True
            told = [e["request"] for e in map(dict, sim.account.world.truth("event"))]
            count = sum(isinstance(r, dict) and r["id"] == made for r in told)
            assert await pg.fetchval(applied, made) == count > 1


async def test_a_request_whose_events_were_applied_long_ago_is_no_more_waited_for(
    sim: Running, database: str
) -> None:
    """As a replay for an idempotency key names it, up to a day later."""
    async with gateway(sim, database) as here, syncing(sim, database, complete=False) as follower:
        _, request = await made_customer(here.stripe, "Ada")
        assert (await here.wait(f"request={request}")).status_code == 200
        async with connect(database) as pg:
            await pg.execute("DELETE FROM pinstripe.applied_event")
            await pg.execute("UPDATE stripe.event SET created = created - interval '1 hour'")
        # As long as the first copy is not complete its lists may not have what the request did.
        assert (await here.wait(f"request={request}&timeout=1")).status_code == 504
        follower.backfilled()
        answer = await here.wait(f"request={request}&timeout=10")
        assert answer.status_code == 200, answer.text


async def test_exact_waits_never_lead_to_a_stale_read(sim: Running, database: str) -> None:
    """Twenty writers, events late and out of order."""
    sim.control.late_events(share=0.2, delay_s=0.5)
    stale: list[str] = []
    async with gateway(sim, database) as here, syncing(sim, database), connect(database) as pg:
        lock = asyncio.Lock()

        async def name_of(key: str) -> str | None:
            async with lock:
                found: str | None = await pg.fetchval(
                    "SELECT name FROM stripe.customer WHERE id = $1", key
                )
                return found

        async def write(writer: int) -> None:
            key, _ = await made_customer(here.stripe, "new")
            for n in range(8):
                name = f"{writer} {n}"
                request = await renamed(here.stripe, key, name)
                query = f"object={key}" if n % 2 else f"request={request}"
                answer = await here.wait(query)
                if answer.status_code != 200 or await name_of(key) != name:
                    stale.append(f"{name} after {query}: {answer.text}")

        await asyncio.gather(*(write(n) for n in range(20)))
    assert stale == []


async def test_an_exact_wait_outlasts_a_replica_that_is_behind(sim: Running, database: str) -> None:
    """Events are in another version, so each asks for its object, and every read shows the account as it
    was up to a second before. The row of the change before is so young that most answers contradict it.
    """
    margins = Margins(clock_s=0.0, replica_lag_s=1.0)
    sim.account.api_version = OLD
    sim.control.nastiness("calm", stale_share=1.0, stale_s=1.0)
    read: list[str | None] = []
    async with gateway(sim, database) as here, syncing(sim, database, margins=margins):
        key, request = await made_customer(here.stripe, "0")
        for n in range(1, 5):
            answer = await here.wait(f"request={request}")
            assert answer.status_code == 200, answer.text
            row = await here.account.row("customer", key)
            read.append(row["name"] if row is not None else None)
            request = await renamed(here.stripe, key, str(n))
    assert read == ["0", "1", "2", "3"]


async def test_a_connection_that_is_gone_without_a_word_holds_no_later_wait_up(
    sim: Running, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinstripe.gateway.wait.waiter._HUNG_S", 0.3)
    async with gateway(sim, database) as here, syncing(sim, database):
        _, request = await made_customer(here.stripe, "Ada")
        assert (await here.wait(f"request={request}")).status_code == 200
        async with here.account.sync.pool.acquire() as connection:
            pid = await connection.fetchval("SELECT pg_backend_pid()")
        os.kill(pid, signal.SIGSTOP)
        try:
            answer = await here.wait(f"request={request}&timeout=15")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert answer.status_code == 200, answer.text


async def test_who_waits_with_a_key_of_stripes_before_a_sync_is_open_is_told_to_come_again(
    sim: Running, database: str
) -> None:
    """A 401 would say that the key is wrong, and callers give up; nobody learns which syncs there are."""
    async with gateway(sim, database) as here:
        here.endpoint._allows = Auth(wait_token="w" * 40).allows_wait
        here.account.syncs.expected = frozenset({"default"})
        key = {"Authorization": f"Bearer {sim.key}"}
        opened = here.account.sync
        here.account.syncs.remove("default")
        for name in ("default", "nobodys"):
            answer = await here.http.get(f"/wait/stripe/{name}", headers=key)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        here.account.syncs.add(opened)
        for name in ("default", "nobodys"):
            answer = await here.http.get(f"/wait/stripe/{name}", headers=key)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")


async def test_requests_are_heard_again_after_a_connection_is_gone_without_a_word(
    sim: Running, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinstripe.sync.events.poller._HUNG_S", 0.3)
    hears = (
        "SELECT pid FROM pg_stat_activity"
        " WHERE query ~ '(SELECT rung|WITH heard)' AND pid <> pg_backend_pid()"
        " AND datname = current_database()"
    )
    async with gateway(sim, database) as here, syncing(sim, database), connect(database) as pg:
        assert (await here.wait()).status_code == 200
        pid = await pg.fetchval(hears)
        os.kill(pid, signal.SIGSTOP)
        try:
            answer = await here.wait("timeout=20")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert answer.status_code == 200, answer.text


async def test_what_is_lost_at_the_end_of_a_wait_is_read_again(sim: Running, database: str) -> None:
    async with gateway(sim, database) as here, connect(database) as pg:
        key, _ = await made_customer(here.stripe, "Ada")
        # What comes last is the moment, which stands there.
        await pg.execute("BEGIN; LOCK TABLE pinstripe.cursor IN ACCESS EXCLUSIVE MODE")
        waiting = asyncio.create_task(here.wait(f"object={key}"))
        cut = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        async with asyncio.timeout(10):
            while not await pg.fetchval(cut):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await pg.execute("ROLLBACK")
        answer = await waiting
        assert answer.status_code == 200, answer.text


async def test_listening_goes_on_after_a_lost_connection(sim: Running, database: str) -> None:
    async with gateway(sim, database) as here, syncing(sim, database):
        for _ in range(2):
            answer = await here.wait("timeout=15")
            assert answer.status_code == 200, answer.text
            async with connect(database) as pg:
                await pg.fetch(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
        key, _ = await made_customer(here.stripe, "Ada")
        answer = await here.wait("timeout=15")
        assert answer.status_code == 200, answer.text
        assert await here.account.row("customer", key) is not None


async def test_notifications_that_got_lost_are_covered_by_a_look_at_the_row(
    sim: Running, database: str
) -> None:
    async with gateway(sim, database) as here, syncing(sim, database):
        assert (await here.wait()).status_code == 200
        async with connect(database) as pg:
            # As a ring whose NOTIFY nobody got; and its answer is read from the row likewise.
            number = await pg.fetchval("UPDATE pinstripe.bell SET rung = rung + 1 RETURNING rung")
            async with asyncio.timeout(10):
                # The row is what is tested here, not what wakes whom.
                while await pg.fetchval("SELECT heard FROM pinstripe.bell") < number:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)


async def test_a_wait_outlasts_that_its_sync_is_opened_anew(
    sim: Running, database: str, tmp_path: Path
) -> None:
    """As when its settings change, or a secret of a webhook."""
    config = config_of(sim, database, tmp_path)
    async with gateway(sim, database) as here:
        syncs = here.account.syncs
        syncs.remove("default")
        opener = SyncOpener(syncs)
        try:
            await opener.want({"default": GatewaySyncSpec(config, database)})
            first = await syncs.opened("default", 10.0)
            waiting = asyncio.create_task(here.wait("timeout=20"))
            async with asyncio.timeout(10):
                while not here.requester.requests_sent["stripe"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            await opener.want({"default": GatewaySyncSpec(config, database, ("whsec_new",))})
            assert await syncs.opened("default", 10.0) is not first
            async with syncing(sim, database):
                answer = await waiting
            assert answer.status_code == 200, answer.text
        finally:
            await opener.want({})


async def test_a_sync_whose_tables_are_not_open_yet_is_waited_for_and_not_denied(
    sim: Running, database: str, tmp_path: Path
) -> None:
    async with served(config_of(sim, database, tmp_path)) as here:
        answer = await here.http.get("/wait/stripe/default?timeout=0.5")
        unknown = await here.http.get("/wait/stripe/none?timeout=0.5")
    assert answer.status_code == 504, answer.text
    assert answer.json()["ok"] is False
    assert answer.json()["error"]["code"] in ("unavailable", "not_running")
    assert unknown.status_code == 404
