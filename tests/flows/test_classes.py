"""Classes of work: what waits behind what, and how many requests an event costs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from tests.flows.harness.account import (
    followed,
    make_schema,
    open_account,
    open_copy,
    quiet,
    until,
)
from tests.flows.harness.truth import differences

from pinstripe.client.rate_limit import RateLimiter, WorkClass
from pinstripe.client.response import Margins
from pinstripe.store.pool import connect
from pinstripe.store.refetch import Refetch, RefetchDone, add_refetches, complete_refetches
from pinstripe.store.status import read_status
from pinstripe.sync.events.poller import EventPoller
from pinstripe.sync.refetch.worker import RefetchWorker
from pinstripe.sync.relist import Intervals, Relist
from pinstripe.sync.upcoming.upcoming import Upcoming
from pinstripe_simulator.account import Settings
from pinstripe_simulator.faults import Fault
from pinstripe_simulator.nastiness import CALM
from pinstripe_simulator.replies import StripeError
from pinstripe_simulator.server import Running, running

pytestmark = pytest.mark.migrated

CUSTOMER = "GET /v1/customers/{customer}"
PREVIEW = "POST /v1/invoices/create_preview"


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=300, future_fields=False, nastiness=CALM)) as simulator:
        yield simulator


def asked(sim: Running) -> Counter[str]:
    return sim.account.meter.requests


@asynccontextmanager
async def running_beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_row_in_doubt_waits_behind_nothing_of_a_lower_class(
    sim: Running, database: str
) -> None:
    """Hundreds of previews and of missing rows are queued, and Stripe answers none of them."""
    await make_schema(database)
    budget = RateLimiter(account_rate=50.0, endpoint_rate=12.5)
    async with (
        open_account(sim.url, sim.key, database, budget=budget) as copy,
        connect(database) as pg,
    ):
        for path in ("/v1/invoices/create_preview", "/v1/products"):
            sim.account.faults.add(Fault("hang", path=path, seconds=60.0))
        upcoming = Upcoming(copy.source)
        refetches = RefetchWorker(copy.source, upcoming=upcoming.refreshers())
        table = "upcoming_subscription_invoice"
        queued = [Refetch("upcoming_subscription", table, f"sub_{n}") for n in range(500)]
        queued += [
            Refetch("fetch", "product", f"prod_{n}", work=WorkClass.SCANS) for n in range(500)
        ]
        await add_refetches(pg, "stripe", queued)
        async with running_beside(refetches.run()):
            await until(lambda: len(refetches) >= 1000)
            keys = [str(c["id"]) for c in sim.control.truth("customer")[:3]]
            doubted = [Refetch("fetch", "customer", key, since=time.time()) for key in keys]
            await add_refetches(pg, "stripe", doubted)
            refetches.add(doubted)
            await until(lambda: "contested" not in refetches.counts())
            assert refetches.counts()["previews"] == refetches.counts()["scans"] == 500
            assert await pg.fetchval("SELECT count(*) FROM stripe.customer") == 3
            (status,) = await read_status(pg)
            assert status.to_ask_by_class == {"previews": 500, "scans": 500}
            assert status.to_ask == 1000


@pytest.mark.parametrize(
    ("work", "before_s"),
    [(WorkClass.RELATED, 0), (WorkClass.CONTESTED, 0), (WorkClass.RELATED, 60)],
)
async def test_what_another_process_queues_during_its_request_is_not_forgotten(
    sim: Running, database: str, work: WorkClass, before_s: int
) -> None:
    """More urgently, or just once more. The notice comes before the response does, by up to a minute."""
    await make_schema(database)
    async with open_account(sim.url, sim.key, database) as copy, connect(database) as pg:
        key = str(sim.control.truth("customer")[0]["id"])
        fetch = Refetch("fetch", "customer", key, since=time.time() - 60, work=work)
        await add_refetches(pg, "stripe", [fetch])
        sim.account.faults.add(Fault("drip", path=f"/v1/customers/{key}", count=1, seconds=1.0))
        refetches = RefetchWorker(copy.source)
        async with running_beside(refetches.run()):
            await until(lambda: sim.account.faults.dealt.get("drip") == 1)
            await add_refetches(pg, "stripe", [replace(fetch, work=WorkClass.CONTESTED)])
            await pg.execute(
                "UPDATE pinstripe.pending SET asked_at = asked_at - make_interval(secs => $1)",
                before_s,
            )
            refetches.poll_now()
            pending = "SELECT count(*) FROM pinstripe.pending"
            async with asyncio.timeout(20):  # The table is read every minute without a notice.
                while await pg.fetchval(pending):  # noqa: ASYNC110 (rows have no event)
                    await asyncio.sleep(0.05)


async def test_refetches_of_one_event_are_completed_without_waiting_for_each_other(
    sim: Running, database: str
) -> None:
    """An event of a product queues the previews of all its subscriptions; many are answered at a time."""
    await make_schema(database)
    table = "upcoming_subscription_invoice"
    queued = [
        Refetch("upcoming_subscription", table, f"sub_{n}", since=1.0, event_id="evt_1")
        for n in range(3)
    ]
    async with connect(database) as pg, connect(database) as other:
        for refetch in queued:
            await add_refetches(pg, "stripe", [refetch])
        done = RefetchDone(queued[0], await pg.fetchval("SELECT clock_timestamp()"))
        async with other.transaction():
            await other.execute("SELECT FROM pinstripe.pending WHERE id <> 'sub_0' FOR UPDATE")
            async with asyncio.timeout(10):
                await complete_refetches(pg, "stripe", [done])
        assert await pg.fetchval("SELECT count(*) FROM pinstripe.pending") == 2


async def test_newest_pages_keep_their_pace_while_a_list_is_read_to_its_end(
    sim: Running, database: str
) -> None:
    async with open_copy(sim, database) as copy:
        source = replace(
            copy.source,
            wanted={t: copy.source.wanted[t] for t in ("customer", "balance_transaction")},
        )
        pace = Intervals(head_s=0.05, tick_s=0.01)
        relist = Relist(source, RefetchWorker(source), copy.budget, intervals=pace)
        relist._passed_at["/v1/customers"] = float("-inf")
        # The first full refresh meets an answer that hangs.
        sim.account.faults.add(Fault("hang", path="/v1/customers", seconds=60.0))
        async with running_beside(relist.run()):
            await until(lambda: relist.refreshing == "/v1/customers")
            sim.account.meter.reset()
            await until(lambda: asked(sim)["GET /v1/balance_transactions"] >= 5)
            assert relist.refreshing == "/v1/customers"


async def test_balance_transactions_of_many_payments_are_a_page_of_their_list(
    sim: Running, database: str
) -> None:
    async with open_copy(sim, database) as copy:
        start = time.time()
        for _ in range(40):
            with suppress(StripeError):  # Some cards are declined.
                sim.control.mutator.deeds.pay()
        sim.account.meter.reset()
        await followed(copy, start)
        single = asked(sim)["GET /v1/balance_transactions/{id}"]
        assert 1 <= asked(sim)["GET /v1/balance_transactions"] + single <= 5
        async with connect(database) as pg:
            named = "SELECT balance_transaction_id FROM stripe.charge"
            keys = {row[0] for row in await pg.fetch(named) if row[0] is not None}
            found = await pg.fetch("SELECT id FROM stripe.balance_transaction")
        assert len(keys) > 10
        assert keys <= {row[0] for row in found}
        assert await differences(database, sim, among={"balance_transaction": keys}) == {}


async def test_an_event_that_says_all_costs_no_request(sim: Running, database: str) -> None:
    async with open_copy(sim, database) as copy:
        start = time.time()
        customers = sim.control.truth("customer")
        for one in customers:
            await copy.source.stripe.post(
                f"/v1/customers/{one['id']}",
                [("metadata[seen]", "yes"), ("name", "Ada")],
                endpoint="POST /v1/customers/{customer}",
            )
        sim.account.meter.reset()
        await followed(copy, start)
        assert {name for name in asked(sim) if "/v1/events" not in name} == set()
        async with connect(database) as pg:
            named = await pg.fetchval("SELECT count(*) FROM stripe.customer WHERE name = 'Ada'")
        assert named == len(customers) > 10


async def test_an_invoice_item_is_fetched_when_an_invoice_takes_it_up_and_not_again(
    sim: Running, database: str
) -> None:
    """Also if the item was made a moment ago, so that a response could be older than its event."""
    one = "GET /v1/invoiceitems/{invoiceitem}"
    margins = Margins(clock_s=0.0, replica_lag_s=1.0)
    async with open_copy(sim, database, margins=margins) as copy:
        post = sim.control.mutator.deeds.post
        owner = post("/v1/customers", {"email": "a@example.com"})["id"]
        start = time.time()
        live, refetches = copy.live(int(start))

        async def applied() -> None:
            await live.read_lookback(start)
            await asyncio.gather(refetches.work_off(), quiet(copy, refetches))

        item = post("/v1/invoiceitems", {"customer": owner, "amount": 25, "currency": "usd"})["id"]
        await applied()
        taking = {"customer": owner, "pending_invoice_items_behavior": "include"}
        invoice = post("/v1/invoices", taking)["id"]
        sim.account.meter.reset()
        await applied()
        assert asked(sim)[one] == 1
        post(f"/v1/invoices/{invoice}", {"description": "of May"}, method="POST")
        post(f"/v1/invoices/{invoice}/finalize", {})
        await applied()
        assert asked(sim)[one] == 1
        async with connect(database) as pg:
            found = await pg.fetchval(
                "SELECT invoice_id FROM stripe.invoice_item WHERE id = $1", item
            )
        assert found == invoice


async def test_while_events_come_thick_an_event_costs_half_a_request_at_most(
    sim: Running, database: str
) -> None:
    """With previews, and polls: 200 changes in a few seconds."""
    await make_schema(database)
    budget = RateLimiter(account_rate=50.0, endpoint_rate=12.5)
    async with open_account(sim.url, sim.key, database, budget=budget) as copy:
        upcoming = Upcoming(copy.source)
        refetches = RefetchWorker(copy.source, upcoming=upcoming.refreshers())
        live = EventPoller(copy.source, refetches, since=int(time.time()), more=upcoming.refetches)
        async with running_beside(live.run()), running_beside(refetches.run()):
            before = sim.control.events()
            sim.account.meter.reset()
            await sim.control.mutate(200, per_second=40)
            made = sim.control.events() - before
            await until(lambda: live.stats.events >= made, timeout_s=60)
            await until(lambda: not len(refetches), timeout_s=60)
            assert sum(asked(sim).values()) <= 0.5 * made
