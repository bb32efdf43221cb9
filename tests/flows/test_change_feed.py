"""The change feed of a followed account: each change once, with its columns, its event and its request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import asyncpg
import pytest

from pinstripe.client.response import decode
from pinstripe.config.config import Config
from pinstripe.service import Service, open_service
from pinstripe.sync.follower import Follower
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

TABLES = ("customer", "subscription", "subscription_item", "product", "price", "invoice", "event")


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=200, future_fields=False)) as simulator:
        yield simulator


def config_of(sim: Running, database: str) -> Config:
    return Config(
        api_key=sim.key,
        stripe_url=sim.url,
        database_url=database,
        tables=TABLES,
        rate_limit="none",
        endpoint_rate_limit="none",
        changes=True,
    )


@dataclass
class Following:
    """A service that follows."""

    service: Service
    follower: Follower

    async def write(self, path: str, *params: tuple[str, str]) -> tuple[str, str]:
        """(id, request id) of what a client's write made."""
        response = await self.service.stripe.post(path, params, endpoint=f"POST {path}")
        return str(cast("dict[str, object]", decode(response.body))["id"]), response.request_id

    async def caught_up(self) -> None:
        await self.follower.poller.read_lookback(self.service.account.now - 60.0)
        for _ in range(3):
            await self.follower.refetches.idle()
            await self.service.source.mirror.conflicts.wait_resolved()


@asynccontextmanager
async def following(config: Config) -> AsyncIterator[Following]:
    """From the start of a process to its end; the backfill is done."""
    async with open_service(config) as service:
        follower = await service.follow()
        running_ = asyncio.create_task(follower.run())
        try:
            await service.backfilled(followed=True)
            follower.backfilled()
            yield Following(service, follower)
        finally:
            running_.cancel()
            await asyncio.gather(running_, return_exceptions=True)


async def changes(pg: asyncpg.Connection, key: str) -> list[dict[str, object]]:
    """What the feed tells of a row, in order."""
    rows = await pg.fetch(
        "SELECT kind, changes, event_id, request_id FROM pinstripe.change"
        " WHERE schema = 'stripe' AND id = $1 ORDER BY position",
        key,
    )
    return [{**dict(r), "changes": json.loads(r["changes"])} for r in rows]


def columns_of(change: dict[str, object]) -> dict[str, list[object]]:
    return cast("dict[str, list[object]]", change["changes"])


async def test_each_change_comes_once_with_its_cause_and_restarts_lose_none(
    sim: Running, database: str, pg: asyncpg.Connection
) -> None:
    config = config_of(sim, database)
    requests: list[str] = []
    async with following(config) as first:
        # An event of the window before the start may have been first; the lists tell nothing.
        untold = "SELECT count(*) FROM pinstripe.change WHERE event_id IS NULL"
        assert await pg.fetchval(untold) == 0
        key, made = await first.write("/v1/customers", ("name", "Ada"))
        requests.append(made)
        await first.caught_up()
    # Nobody follows.
    async with open_service(config, leads=False) as beside:
        params = [("name", "Ada Byron")]
        response = await beside.stripe.post(
            f"/v1/customers/{key}", params, endpoint="POST customer"
        )
        requests.append(response.request_id)
    async with following(config) as second:
        await second.caught_up()
        _, changed = await second.write(f"/v1/customers/{key}", ("name", "Ada Lovelace"))
        requests.append(changed)
        await second.caught_up()
    async with following(config) as third:
        await third.caught_up()
    # What Stripe gives on request only is fetched, and comes in an entry of its own.
    found = [c for c in await changes(pg, key) if "name" in columns_of(c)]
    assert [c["kind"] for c in found] == ["insert", "update", "update"]
    assert [c["request_id"] for c in found] == requests
    assert all(str(c["event_id"]).startswith("evt_") for c in found)
    names = [columns_of(c)["name"] for c in found]
    assert names == [[None, "Ada"], ["Ada", "Ada Byron"], ["Ada Byron", "Ada Lovelace"]]


async def test_a_silent_edit_that_a_later_run_finds_is_a_change_without_a_cause(
    sim: Running, database: str, pg: asyncpg.Connection
) -> None:
    config = config_of(sim, database)
    async with following(config):
        key = await pg.fetchval("SELECT id FROM stripe.customer WHERE deleted IS NOT TRUE LIMIT 1")
    sim.control.edit("customer", key, {"description": "edited"}, silent=True)
    await pg.execute("DELETE FROM pinstripe.cursor WHERE stream LIKE '/v1/customers%'")
    async with following(config):
        pass
    found = await changes(pg, key)
    assert [(c["kind"], c["event_id"], c["request_id"]) for c in found] == [("update", None, None)]


async def test_a_sync_that_is_run_once_names_causes_too(
    sim: Running, database: str, pg: asyncpg.Connection
) -> None:
    config = config_of(sim, database)
    async with open_service(config) as service:
        await service.backfilled(followed=False)
        response = await service.stripe.post("/v1/customers", [("name", "Ada")], endpoint="POST c")
        key = str(cast("dict[str, object]", decode(response.body))["id"])
    async with open_service(config) as service:
        await service.backfilled(followed=False)
    found = (await changes(pg, key))[0]
    assert (found["kind"], found["request_id"]) == ("insert", response.request_id)
    assert str(found["event_id"]).startswith("evt_")


async def test_what_an_event_makes_us_fetch_or_take_out_has_its_cause(
    sim: Running, database: str, pg: asyncpg.Connection
) -> None:
    # Events of another version are hints: the object itself is fetched.
    sim.control.api_version("2024-12-18.acacia")
    async with following(config_of(sim, database)) as run:
        key, made = await run.write("/v1/customers", ("name", "Ada"))
        product, _ = await run.write("/v1/products", ("name", "Tea"))
        price = (("currency", "eur"), ("unit_amount", "500"), ("product", product))
        monthly = ("recurring[interval]", "month")
        first, _ = await run.write("/v1/prices", *price, monthly)
        second, _ = await run.write("/v1/prices", *price, monthly)
        subscription, _ = await run.write(
            "/v1/subscriptions",
            ("customer", key),
            ("items[0][price]", first),
            ("items[1][price]", second),
            ("collection_method", "send_invoice"),
            ("days_until_due", "7"),
        )
        await run.caught_up()
        items = [
            r[0]
            for r in await pg.fetch(
                "SELECT id FROM stripe.subscription_item WHERE subscription_id = $1", subscription
            )
        ]
        sim.control.clock(step_s=2.0)
        await run.service.stripe.delete(
            f"/v1/subscription_items/{items[0]}", endpoint="DELETE /v1/subscription_items/{item}"
        )
        await run.caught_up()
    born = (await changes(pg, key))[0]
    assert (born["kind"], born["request_id"]) == ("insert", made)
    assert str(born["event_id"]).startswith("evt_")
    gone = (await changes(pg, items[0]))[-1]
    assert gone["kind"] == "delete"
    assert str(gone["event_id"]).startswith("evt_")
    assert str(gone["request_id"]).startswith("req_")
