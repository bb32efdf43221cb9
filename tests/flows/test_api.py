"""The API over real HTTP: what it says of a copy is what the database and Stripe say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.flows.harness.api_service import SMALL, ApiService, Sent, api_service, sent

from pinstripe.store.pool import connect
from pinstripe_simulator.server import Running, running

# One copy for all: making it takes longer than any of them.
pytestmark = pytest.mark.asyncio(loop_scope="module")
HERE = "/api/syncs/default"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sim() -> AsyncIterator[Running]:
    async with running(SMALL) as simulator:
        yield simulator


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(
    sim: Running,
    postgres_url: str,
    migrated_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[ApiService]:
    directory: Path = tmp_path_factory.mktemp("service")
    async with connect(postgres_url) as admin:
        await admin.execute(f"CREATE DATABASE api TEMPLATE {migrated_template} STRATEGY file_copy")
    async with api_service(sim, postgres_url.replace("/pinstripe?", "/api?"), directory) as service:
        yield service
    async with connect(postgres_url) as admin:
        await admin.execute("DROP DATABASE api WITH (FORCE)")


async def told(here: ApiService, path: str, **query: object) -> Any:
    answer = await here.http.get(path, params={k: str(v) for k, v in query.items()})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def rows(here: ApiService, query: str) -> list[tuple[object, ...]]:
    async with connect(here.config.database_url or "") as connection:
        return [tuple(row) for row in await connection.fetch(query)]


async def test_a_sync_is_shown_without_its_key(sim: Running, here: ApiService) -> None:
    answer = await here.http.get("/api/syncs")
    (sync,) = answer.json()["syncs"]
    assert (sync["id"], sync["schema"], sync["stored"]) == ("default", "stripe", False)
    assert sync["account_id"] == sim.account.id
    assert sim.key not in answer.text
    assert sync["key_hint"].endswith(sim.key[-4:])
    assert sync["addresses"]["wait"] == f"{here.url}/wait/stripe/default"


async def test_status_counts_what_the_tables_hold(here: ApiService) -> None:
    status = await told(here, f"{HERE}/status")
    tables = {t["table"]: t for t in status["tables"]}
    [(customers,)] = await rows(here, "SELECT count(*) FROM stripe.customer")
    assert (tables["customer"]["rows"], tables["customer"]["exact"]) == (customers, True)
    assert tables["customer"]["state"] == "done"
    assert tables["customer"]["fresh_by"] == "events"
    assert status["phase"] == "done"
    one = await told(here, f"{HERE}/status", table="charge")
    assert [t["table"] for t in one["tables"]] == ["charge"]


async def test_lag_is_small_while_events_are_followed(here: ApiService) -> None:
    async with asyncio.timeout(30):
        # The first looks come while the machine still does what a first copy leaves behind.
        while (lag := await told(here, f"{HERE}/lag"))["lag_s"] >= 3:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
    assert lag["lag_s"] >= 0
    assert lag["as_of"].endswith("Z")
    assert lag["samples"]


async def test_budget_shows_what_the_process_asked(here: ApiService) -> None:
    budget = await told(here, f"{HERE}/budget")
    assert budget["requests"]["GET list"] > 50
    assert budget["account_rate"] is None
    assert budget["allowance"] is None  # Test mode has none.


async def test_permissions_carry_the_words_of_stripe(here: ApiService) -> None:
    async with connect(here.config.database_url or "") as connection:
        await connection.execute(
            "INSERT INTO pinstripe.cursor (schema, stream, state, position, reason, remedy,"
            " permission) VALUES"
            " ('stripe', 'GET /v1/none', 'refused', '{\"table\": \"charge\"}',"
            " 'Having the ''rak_charge_read'' permission would help.', 'Give it.',"
            " 'rak_charge_read')"
        )
        found = await told(here, f"{HERE}/permissions")
        await connection.execute("DELETE FROM pinstripe.cursor WHERE stream = 'GET /v1/none'")
    refused = {r["stream"]: r for r in found["refused"]}
    mine = refused["GET /v1/none"]
    assert (mine["table"], mine["permission"], mine["remedy"]) == (
        "charge",
        "rak_charge_read",
        "Give it.",
    )


async def test_pages_of_events_show_each_event_once_newest_first(
    sim: Running, here: ApiService
) -> None:
    sim.control.burst(30)
    await brought(here, sim)
    seen: list[str] = []
    after = ""
    while True:
        page = await told(here, f"{HERE}/events", limit=7, starting_after=after)
        seen += [event["id"] for event in page["events"]]
        if not page["has_more"]:
            break
        after = seen[-1]
    there = await rows(here, "SELECT id FROM stripe.event ORDER BY created DESC, id DESC")
    assert seen == [row[0] for row in there]


async def test_events_are_found_by_type_object_and_second(here: ApiService) -> None:
    [(kind, thing, created)] = await rows(
        here,
        "SELECT type, data_object ->> 'id', extract(epoch FROM created)::bigint"
        " FROM stripe.event ORDER BY created DESC LIMIT 1",
    )
    family = str(kind).partition(".")[0]
    for query in ({"type": f"{family}.*"}, {"type": kind}, {"object": thing}, {"since": created}):
        page = await told(here, f"{HERE}/events", limit=500, **query)
        assert any(e["object_id"] == thing for e in page["events"])
    page = await told(here, f"{HERE}/events", type="no_such.*")
    assert page["events"] == []


async def test_an_event_has_its_object_and_is_applied(here: ApiService) -> None:
    page = await told(here, f"{HERE}/events", limit=1)
    line = page["events"][0]
    event = await told(here, f"{HERE}/events/{line['id']}")
    assert event["object"]["id"] == line["object_id"]
    assert event["applied"] is True
    answer = await here.http.get(f"{HERE}/events/evt_none")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_event")


async def test_changes_can_be_worked_off_or_looked_back_at(sim: Running, here: ApiService) -> None:
    sim.control.burst(20)
    await brought(here, sim)
    forward: list[int] = []
    after = 0
    while page := (await told(here, f"{HERE}/changes", after=after, limit=9)):
        forward += [c["position"] for c in page["changes"]]
        if not page["has_more"]:
            break
        after = page["next"]
    there = await rows(here, "SELECT position FROM pinstripe.change ORDER BY position")
    assert forward == [row[0] for row in there][: len(forward)]
    back = await told(here, f"{HERE}/changes", before=forward[-1], limit=5)
    positions = [c["position"] for c in back["changes"]]
    assert positions == forward[-6:-1][::-1]


async def test_a_stream_of_changes_is_resumed_where_it_broke_off(
    sim: Running, here: ApiService
) -> None:
    got: list[Sent] = []
    async with here.http.stream("GET", f"{HERE}/changes/stream") as answer:
        entries = sent(answer)
        begin = await anext(entries)
        assert begin.event == "position"
        sim.control.burst(10)
        got.append(await anext(entries))
    sim.control.burst(10)
    await brought(here, sim)
    [(last,)] = await rows(here, "SELECT max(position) FROM pinstripe.change")
    headers = {"Last-Event-ID": got[-1].id}
    async with here.http.stream("GET", f"{HERE}/changes/stream", headers=headers) as answer:
        entries = sent(answer)
        await anext(entries)
        while not got[-1].id or int(got[-1].id) < int(str(last)):
            got.append(await anext(entries))
    there = await rows(
        here,
        'SELECT position, "table", id FROM pinstripe.change'
        f" WHERE position > {int(begin.id)} AND position <= {last} ORDER BY position",
    )
    assert [(e.data["position"], e.data["table"], e.data["id"]) for e in got] == there


async def test_many_readers_of_changes_share_one_listener(sim: Running, here: ApiService) -> None:
    async def first() -> tuple[int, int]:
        """Where the stream began, and the position of its first change."""
        async with here.http.stream("GET", f"{HERE}/changes/stream?table=customer") as answer:
            entries = sent(answer)
            begin = int((await anext(entries)).id)
            ready.release()
            return begin, int((await anext(entries)).id)

    async def listeners() -> int:
        [(count,)] = await rows(
            here,
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = 'pinstripe changes' AND datname = current_database()",
        )
        return int(str(count))

    await brought(here, sim)
    ready = asyncio.Semaphore(0)
    readers = [asyncio.create_task(first()) for _ in range(20)]
    async with asyncio.timeout(20):
        for _ in readers:
            await ready.acquire()
        while not (listening := await listeners()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        sim.control.edit("customer", silent=False)
        got = [await reader for reader in readers]
    assert listening == 1
    there = await rows(here, "SELECT position FROM pinstripe.change WHERE \"table\" = 'customer'")
    positions = sorted(int(str(row[0])) for row in there)
    assert got == [(begin, next(p for p in positions if p > begin)) for begin, _ in got]


async def test_the_live_stream_shows_every_sync(here: ApiService) -> None:
    async with here.http.stream("GET", "/api/live") as answer:
        entries = sent(answer)
        first, second = await anext(entries), await anext(entries)
    assert [s["id"] for s in first.data["syncs"]] == ["default"]
    assert second.data["syncs"][0]["at"] > first.data["syncs"][0]["at"]
    assert second.data["syncs"][0]["ready"] is True
    async with here.http.stream("GET", f"{HERE}/live") as answer:
        assert (await anext(sent(answer))).data["process"]["phase"] == "done"


async def test_ready_while_followed_and_metrics_say_so(here: ApiService) -> None:
    answer = await here.http.get("/readyz")
    assert answer.status_code == 200, answer.text
    names = [check["name"] for check in answer.json()["checks"]]
    assert names == ["database", "sync:default"]
    assert (await here.http.get("/healthz")).json()["ok"] is True
    text = (await here.http.get("/metrics")).text
    assert 'pinstripe_sync_ready{sync="default"} 1.0' in text
    assert 'pinstripe_rows{sync="default",table="customer"}' in text
    assert "pinstripe_lag_seconds" in text


async def test_the_proxy_is_counted_by_outcome(sim: Running, here: ApiService) -> None:
    headers = {"Authorization": f"Bearer {sim.key}"}
    answer = await here.http.get("/v1/customers?limit=1", headers=headers)
    assert answer.status_code == 200
    gone = await here.http.get("/v1/customers/cus_none", headers=headers)
    assert gone.status_code == 404
    async with asyncio.timeout(10):
        while True:
            text = (await here.http.get("/metrics")).text
            if 'method="GET",outcome="4xx"' in text:
                break
            await asyncio.sleep(0.3)
    assert 'pinstripe_proxy_requests_total{method="GET",outcome="2xx"}' in text
    assert 'pinstripe_proxy_seconds_bucket{kind="read",le="+Inf"}' in text


async def test_a_browser_may_not_show_what_stripe_serves_as_a_page(
    sim: Running, here: ApiService
) -> None:
    headers = {"Authorization": f"Bearer {sim.key}", "Sec-Fetch-Dest": "document"}
    answer = await here.http.get("/v1/customers", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_a_page")


async def test_a_sync_is_added_paused_resumed_and_removed(sim: Running, here: ApiService) -> None:
    options = {
        "id": "second",
        "api_key": sim.key,
        "stripe_url": sim.url,
        "settings": {"tables": "customer,event"},
        "webhook_secrets": ["whsec_abcdefgh12345678"],
    }
    added = await here.http.post("/api/syncs", json=options)
    assert added.status_code == 201, added.text
    assert (added.json()["account_id"], added.json()["webhook_secrets"]) == (sim.account.id, 1)
    again = await here.http.post("/api/syncs", json=options)
    assert (again.status_code, again.json()["error"]["code"]) == (400, "misconfigured")
    paused = await here.http.post("/api/syncs/second/pause")
    assert paused.json()["paused"] is True
    resumed = await here.http.post("/api/syncs/second/resume")
    assert resumed.json()["paused"] is False
    changed = await here.http.patch("/api/syncs/second", json={"settings": {"tables": "customer"}})
    assert changed.json()["settings"] == {"tables": "customer"}
    everything = json.dumps([a.json() for a in (added, again, paused, resumed, changed)])
    assert sim.key not in everything
    assert "abcdefgh12345678" not in everything
    removed = await here.http.delete("/api/syncs/second")
    assert (removed.status_code, removed.content) == (204, b"")
    gone = await here.http.get("/api/syncs/second")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "unknown_sync")
    fixed = await here.http.delete(HERE)
    assert fixed.status_code == 400


async def test_a_wrong_key_is_told_from_a_wrong_request(sim: Running, here: ApiService) -> None:
    options = {"id": "third", "api_key": "sk_test_" + "x" * 24, "stripe_url": sim.url}
    answer = await here.http.post("/api/syncs", json=options)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wrong_key"), answer.text


async def test_tables_of_the_catalog_have_columns_and_references(here: ApiService) -> None:
    tables = (await told(here, "/api/tables"))["tables"]
    assert len(tables) > 140
    charge = await told(here, "/api/tables/charge")
    columns = {c["name"]: c for c in charge["columns"]}
    assert columns["customer_id"]["references"] == ["customer"]


async def brought(here: ApiService, sim: Running) -> None:
    """Returns when all events of the simulator are in the tables."""
    newest = {str(e["id"]) for e in sim.account.world.truth("event")}
    async with asyncio.timeout(20):
        while True:
            there = await rows(here, "SELECT id FROM pinstripe.applied_event")
            known = {str(row[0]) for row in await rows(here, "SELECT id FROM stripe.event")}
            if newest <= known and there:
                return
            await asyncio.sleep(0.05)
