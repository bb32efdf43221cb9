"""The live reader against the simulator: whatever happens to the events, the copy ends as Stripe is."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
from tests.flows.harness.account import Copy, open_copy, quiet, until
from tests.flows.harness.truth import born_since, differences

from pinstripe.client.response import AsOf, decode
from pinstripe.store.pool import connect
from pinstripe.sync.events.poller import EventPoller, PollIntervals
from pinstripe.sync.refetch.worker import RefetchWorker
from pinstripe_simulator.account import Settings
from pinstripe_simulator.events import STRIPE_ITSELF
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.server import Running, running

pytestmark = pytest.mark.migrated

SMALL = Settings(scale=300, future_fields=False)


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(SMALL) as simulator:
        yield simulator


@asynccontextmanager
async def following(live: EventPoller, refetches: RefetchWorker) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(live.run()), asyncio.create_task(refetches.run())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def caught_up(live: EventPoller, refetches: RefetchWorker, copy: Copy, sim: Running) -> None:
    """Returns when the list has been read after now, and what it asked for is done."""
    # The latest events show up after twice the delay.
    lateness = sim.account.events.lateness
    await asyncio.sleep(2 * lateness.delay_s + 0.1 if lateness.share else 0)
    await live.read_lookback(time.time() - 3600)
    await quiet(copy, refetches)


async def test_changes_arrive_with_their_events_and_requests(sim: Running, database: str) -> None:
    start = int(time.time())
    async with open_copy(sim, database) as copy:
        live, refetches = copy.live(start)
        async with following(live, refetches):
            await sim.control.mutate(60)
            await caught_up(live, refetches, copy, sim)
        assert await differences(database, sim, among=born_since(sim, start)) == {}
        async with connect(database) as pg:
            events = await pg.fetchval(
                "SELECT count(*) FROM stripe.event WHERE created >= to_timestamp($1)", start
            )
            applied = await pg.fetchval(
                "SELECT count(*) FROM pinstripe.applied_event WHERE created >= to_timestamp($1)",
                start,
            )
            cursor = await pg.fetchrow(
                "SELECT state, as_of FROM pinstripe.cursor WHERE stream = 'events'"
            )
        assert events == applied > 0
        assert cursor is not None
        assert cursor["state"] == "running"
        assert cursor["as_of"].timestamp() >= start


async def test_ties_and_late_events_end_in_the_newest_state(sim: Running, database: str) -> None:
    start = int(time.time())
    sim.control.late_events(share=0.5, delay_s=1.0)
    async with open_copy(sim, database) as copy:
        live, refetches = copy.live(start)
        async with following(live, refetches):
            for _ in range(4):
                sim.control.burst(40)
                await asyncio.sleep(0.3)
            await caught_up(live, refetches, copy, sim)
        assert await differences(database, sim, among=born_since(sim, start)) == {}


async def test_only_what_an_earlier_look_should_have_shown_is_late(
    sim: Running, database: str
) -> None:
    start = int(time.time())
    async with open_copy(sim, database) as copy:
        # Hours of events at once are many pages, and seconds apart: none of them is late.
        for _ in range(8):
            sim.control.burst(40)
            sim.control.clock(step_s=2)
        live, refetches = copy.live(start)
        await live.read_lookback(start)
        sim.control.burst(40)
        sim.control.clock(step_s=4)
        sim.control.burst(40)
        await live.poll()
        assert live.stats.events > 300
        assert live.stats.late == 0
        sim.control.late_events(share=1.0, delay_s=10.0)
        sim.control.burst(20)
        sim.control.late_events()
        sim.control.clock(step_s=4)
        sim.control.burst(5)
        await live.poll()
        assert live.stats.late == 0
        sim.control.clock(step_s=30)
        await live.read_lookback(start)
        assert live.stats.late >= 20
        await refetches.work_off()


async def test_the_old_events_of_a_quiet_account_are_not_applied_again_and_again(
    sim: Running, database: str
) -> None:
    sim.control.clock(offset_s=-3600)
    sim.control.burst(30)
    sim.control.clock(offset_s=0)
    async with open_copy(sim, database) as copy:
        pace = PollIntervals(poll_s=0.05, window_s=1.0, near_window_s=0.5, near_every_s=0.1)
        live, refetches = copy.live(int(time.time()), pace=pace)
        async with following(live, refetches):
            await until(lambda: live.stats.polls > 20)
            await quiet(copy, refetches)
            applied = live.stats.events
            assert 0 < applied <= 100
            sim.account.meter.reset()
            polls = live.stats.polls
            await until(lambda: live.stats.polls > polls + 60)
        # Windows were read again, and what they no longer reach was forgotten, more than once.
        assert live.stats.events == applied
        assert live.stats.late == 0
        assert set(sim.account.meter.requests) == {"GET /v1/events"}


async def test_a_mixed_history_of_versions_leaves_no_null_that_stripe_does_not_have(
    sim: Running, database: str
) -> None:
    start = int(time.time())
    async with open_copy(sim, database) as copy:
        live, refetches = copy.live(start)
        async with following(live, refetches):
            await sim.control.mutate(40)
            sim.control.api_version("2024-12-18.acacia")
            await sim.control.mutate(60)
            await caught_up(live, refetches, copy, sim)
        assert await differences(database, sim, among=born_since(sim, start)) == {}


async def test_cuts_and_restarts_lose_nothing(sim: Running, database: str) -> None:
    start = int(time.time())
    chance = random.Random(7)
    sim.control.late_events(share=0.2, delay_s=0.5)
    for _ in range(5):
        for kind in ("error_500", "reset_before", "cut", "rate_limit"):
            sim.control.fault(kind=kind, share=0.05)
        async with open_copy(sim, database) as copy:
            live, refetches = copy.live(start)
            async with following(live, refetches):
                sim.control.burst(30)
                await asyncio.sleep(chance.uniform(0.05, 0.6))
        sim.control.clear_faults()
    async with open_copy(sim, database) as copy:
        live, refetches = copy.live(start)
        async with following(live, refetches):
            await caught_up(live, refetches, copy, sim)
        assert await differences(database, sim, among=born_since(sim, start)) == {}


async def test_a_deleted_object_is_flagged_and_no_older_event_raises_it(
    sim: Running, database: str
) -> None:
    start = int(time.time())
    async with open_copy(sim, database) as copy:
        live, refetches = copy.live(start)
        customer = await copy.source.stripe.post(
            "/v1/customers", [("name", "Ada")], endpoint="POST /v1/customers"
        )
        key = customer.body.split(b'"id": "', 1)[1].split(b'"', 1)[0].decode()
        async with following(live, refetches):
            await caught_up(live, refetches, copy, sim)
            await copy.source.stripe.delete(
                f"/v1/customers/{key}", endpoint="DELETE /v1/customers/{customer}"
            )
            await caught_up(live, refetches, copy, sim)
            async with connect(database) as pg:
                deleted = await pg.fetchval(
                    "SELECT deleted FROM stripe.customer WHERE id = $1", key
                )
                assert deleted is True
                # A page that was read before, and comes late.
                found = copy.source.extract([{"id": key, "object": "customer", "name": "Ada"}], {})
                await copy.mirror.write([(found, AsOf(start - 60.0, start - 59.0))])
                row = await pg.fetchrow(
                    "SELECT deleted, name FROM stripe.customer WHERE id = $1", key
                )
        assert row is not None
        assert row["deleted"] is True


async def test_a_subscription_item_that_was_removed_is_flagged(sim: Running, database: str) -> None:
    start = int(time.time())
    async with open_copy(sim, database) as copy:

        async def post(path: str, *params: tuple[str, str]) -> dict[str, object]:
            response = await copy.source.stripe.post(path, params, endpoint=f"POST {path}")
            return cast("dict[str, object]", decode(response.body))

        live, refetches = copy.live(start)
        async with following(live, refetches):
            product = str((await post("/v1/products", ("name", "Tea")))["id"])
            price = (("currency", "eur"), ("unit_amount", "500"), ("product", product))
            monthly = ("recurring[interval]", "month")
            first, second = [str((await post("/v1/prices", *price, monthly))["id"]) for _ in "ab"]
            customer = str((await post("/v1/customers", ("name", "Ada")))["id"])
            made = await post(
                "/v1/subscriptions",
                ("customer", customer),
                ("items[0][price]", first),
                ("items[1][price]", second),
                ("collection_method", "send_invoice"),
                ("days_until_due", "7"),
            )
            await caught_up(live, refetches, copy, sim)
            async with connect(database) as pg:
                query = (
                    "SELECT id FROM stripe.subscription_item"
                    " WHERE subscription_id = $1 AND deleted IS NOT TRUE ORDER BY id"
                )
                items = [r["id"] for r in await pg.fetch(query, str(made["id"]))]
                assert len(items) == 2
                await asyncio.sleep(1.1)  # Stripe's clock has whole seconds.
                await copy.source.stripe.delete(
                    f"/v1/subscription_items/{items[0]}",
                    endpoint="DELETE /v1/subscription_items/{item}",
                )
                await caught_up(live, refetches, copy, sim)
                assert [r["id"] for r in await pg.fetch(query, str(made["id"]))] == items[1:]


async def test_what_a_customer_is_no_longer_entitled_to_goes(sim: Running, database: str) -> None:
    start = int(time.time())
    world = sim.account.world
    ledger = Ledger(world, sim.account.events, STRIPE_ITSELF)
    query = (
        "SELECT id FROM stripe.entitlements_active_entitlement WHERE customer_id = $1 ORDER BY id"
    )
    path, kind = "/v1/entitlements/active_entitlements", "entitlements.active_entitlement"
    async with open_copy(sim, database) as copy:

        async def entitled(customer: str) -> list[str]:
            response = await copy.source.stripe.get(
                path, [("customer", customer)], endpoint=f"GET {path}"
            )
            body = cast("dict[str, list[dict[str, str]]]", decode(response.body))
            return sorted(each["id"] for each in body["data"])

        def summary(customer: str, entries: list[object]) -> None:
            listed = {"object": "list", "data": entries, "has_more": False, "url": path}
            name = f"{kind}_summary"
            told = {"object": name, "customer": customer, "entitlements": listed, "livemode": False}
            ledger.tell(f"{name}.updated", told)

        lists = {str(c["id"]): await entitled(str(c["id"])) for c in world.truth("customer")}
        owner, owned = next((c, entries) for c, entries in lists.items() if entries)
        live, refetches = copy.live(start)
        async with following(live, refetches), connect(database) as pg:
            summary(owner, [])  # It shows ten at most: the list itself is asked.
            await caught_up(live, refetches, copy, sim)
            assert [r["id"] for r in await pg.fetch(query, owner)] == owned
            sim.control.delete(kind, owned[0], silent=True)
            await asyncio.sleep(1.1)  # Stripe's clock has whole seconds.
            summary(owner, [world.get(kind, each) for each in owned[1:]])
            await caught_up(live, refetches, copy, sim)
            assert [r["id"] for r in await pg.fetch(query, owner)] == owned[1:]


async def test_a_poll_that_is_cut_within_a_long_stretch_is_made_good_by_the_next(
    sim: Running, database: str
) -> None:
    start = int(time.time())
    async with open_copy(sim, database) as copy:
        live, _ = copy.live(start)
        await live.read_lookback(0)
        before, known = sim.control.events(), live.stats.events
        while sim.control.events() - before < 1500:
            sim.control.burst(100)
        new = sim.control.events() - before
        sim.control.latency(fixed_s=0.05)
        cut = asyncio.create_task(live.poll())
        await until(lambda: live.stats.events > known)
        cut.cancel()
        await asyncio.gather(cut, return_exceptions=True)
        sim.control.latency()
        assert live.stats.events - known < new
        # The top of the list is applied, and what is below is not: this poll must not stop at the top.
        await live.poll()
        assert live.stats.events - known == new


async def test_sweeps_beside_polls_miss_no_event(sim: Running, database: str) -> None:
    start = int(time.time())
    sim.control.late_events(share=0.3, delay_s=2.0)
    async with open_copy(sim, database) as copy:
        live, refetches = copy.live(start, pace=PollIntervals(poll_s=0.02, near_every_s=0.05))
        await live.read_lookback(0)
        async with following(live, refetches):
            for _ in range(10):
                sim.control.burst(20)
                await live.read_lookback(start)
            await asyncio.sleep(2.2)  # Most that is late is now two seconds behind what comes next.
            sim.control.burst(20)
            await caught_up(live, refetches, copy, sim)
        async with connect(database) as pg:
            assert await pg.fetchval("SELECT count(*) FROM stripe.event") == sim.control.events()
        assert await differences(database, sim, among=born_since(sim, start)) == {}
        assert live.stats.late > 0


async def test_postgres_restarts_are_waited_out(sim: Running, database: str) -> None:
    start = int(time.time())
    async with open_copy(sim, database) as copy:
        live, refetches = copy.live(start)
        async with following(live, refetches), connect(database) as pg:
            for _ in range(3):
                sim.control.burst(20)
                await asyncio.sleep(0.1)
                await pg.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            await until(lambda: not live.stats.trouble)
            await caught_up(live, refetches, copy, sim)
        assert await differences(database, sim, among=born_since(sim, start)) == {}
