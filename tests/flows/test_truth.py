"""Clocks that differ, replicas that are behind, lists that lose members: rows end as Stripe has them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import asyncpg
import pytest
from tests.flows.harness.account import Copy, open_copy, quiet, until
from tests.flows.harness.scripted_stripe import (
    VERSION,
    Answer,
    Object,
    Params,
    ScriptedStripe,
    error,
    scripted_stripe,
)

from pinstripe.catalog.tables import tables
from pinstripe.client.client import list_at
from pinstripe.client.response import AsOf, Cause, Margins, as_of_response
from pinstripe.rows.extract import RowSet
from pinstripe.source.resolve import resolve_from_events
from pinstripe.source.source import LIVE
from pinstripe.store.pool import connect
from pinstripe.store.refetch import (
    Refetch,
    RefetchDone,
    add_refetches,
    complete_refetches,
    load_refetches,
)
from pinstripe.sync.events.poller import EventPoller
from pinstripe.sync.events.reader import EventLogReader
from pinstripe.sync.refetch.worker import RefetchWorker

pytestmark = pytest.mark.migrated

LAG_S = 0.4
MARGINS = Margins(clock_s=3.0, replica_lag_s=LAG_S)
_OLD_VERSION = "2024-06-20"
MISSING = {"error": {"type": "invalid_request_error", "code": "resource_missing", "message": "no"}}


@dataclass
class Following:
    """A copy that follows a scripted Stripe, poll by poll."""

    stripe: ScriptedStripe
    copy: Copy
    live: EventPoller
    refetches: RefetchWorker
    pg: asyncpg.Connection

    async def poll(self) -> None:
        """Apply what is new; what it makes necessary waits."""
        await self.live.read_lookback(time.time() - 3600)

    async def settle(self) -> None:
        """Return when nothing is pending."""
        for _ in range(3):
            await self.refetches.work_off()
            await quiet(self.copy, self.refetches)
        assert await self.pg.fetch("SELECT * FROM pinstripe.pending") == []

    async def page(self, path: str) -> tuple[list[Object], AsOf]:
        """A page of a list as it is now, for a reader that is slow to write it."""
        page = await list_at(self.copy.source.stripe, path, endpoint="x")(None)
        return [dict(obj) for obj in page.objects], as_of_response(page.response)

    async def write(self, objects: Sequence[Object], as_of: AsOf) -> None:
        found = RowSet()
        for obj in objects:
            self.copy.mirror.extractor.object(obj, found)
        await self.copy.mirror.write([(found, as_of)])

    async def alive(self, table: str) -> list[str]:
        dead = "deleted IS TRUE" if tables()[table].deletable else "false"
        rows = await self.pg.fetch(f"SELECT id FROM stripe.{table} WHERE NOT ({dead}) ORDER BY id")
        return [row[0] for row in rows]

    async def name(self) -> str:
        found: str = await self.pg.fetchval("SELECT name FROM stripe.customer")
        return found


@asynccontextmanager
async def following(database: str, *, date_ahead_s: float = 0.0) -> AsyncIterator[Following]:
    async with scripted_stripe() as stripe:
        stripe.date_ahead_s = date_ahead_s
        async with (
            open_copy(stripe, database, margins=MARGINS) as copy,
            connect(database) as connection,
        ):
            live, refetches = copy.live(time.time() - 60)
            yield Following(stripe, copy, live, refetches, connection)


def subscription(items: Sequence[str], *, status: str = "active") -> Object:
    """As Stripe shows it: ten items and the address of the others."""
    url = "/v1/subscription_items?subscription=sub_1"
    data = [
        {"id": i, "object": "subscription_item", "subscription": "sub_1", "metadata": {}}
        for i in items
    ]
    shown = {"object": "list", "data": data[:10], "has_more": len(data) > 10, "url": url}
    return {"id": "sub_1", "object": "subscription", "status": status, "items": shown, "created": 1}


def invoice(lines: Sequence[str], *, total: int = 0) -> Object:
    url = "/v1/invoices/in_1/lines"
    data = [{"id": i, "object": "line_item", "invoice": "in_1", "metadata": {}} for i in lines]
    shown = {"object": "list", "data": data[:10], "has_more": len(data) > 10, "url": url}
    return {"id": "in_1", "object": "invoice", "total": total, "lines": shown, "created": 1}


def customer(name: str) -> Object:
    return {"id": "cus_1", "object": "customer", "name": name, "metadata": {}, "created": 1}


def have_items(stripe: ScriptedStripe, items: Sequence[str]) -> None:
    """From now on the subscription has these items."""
    whole = subscription(items)
    stripe.lists["/v1/subscriptions"] = [whole]
    stripe.lists["/v1/subscription_items"] = [
        {"id": i, "object": "subscription_item", "subscription": "sub_1", "metadata": {}}
        for i in items
    ]


async def test_an_item_removed_from_more_than_ten_is_flagged(database: str) -> None:
    items = [f"si_{n:02}" for n in range(24)]
    async with following(database) as f:
        have_items(f.stripe, items)
        await f.copy.source.fetch("subscription", "sub_1")
        assert await f.alive("subscription_item") == items
        have_items(f.stripe, items[:17] + items[18:])
        f.stripe.event("customer.subscription.updated", f.stripe.lists["/v1/subscriptions"][0])
        await f.poll()
        await f.settle()
        assert await f.alive("subscription_item") == items[:17] + items[18:]


async def test_an_item_added_and_removed_within_one_second_and_two_polls_is_flagged(
    database: str,
) -> None:
    async with following(database) as f:
        now = int(time.time())
        before = subscription(["si_1"], status="trialing")["items"]
        have_items(f.stripe, ["si_1", "si_2"])
        f.stripe.event("customer.subscription.created", subscription(["si_1", "si_2"]), created=now)
        await f.poll()
        have_items(f.stripe, ["si_1"])
        f.stripe.event(
            "customer.subscription.updated",
            subscription(["si_1"]),
            created=now,
            data={
                "object": subscription(["si_1"]),
                "previous_attributes": {"items": {"data": before["data"]}},
            },
        )
        await f.poll()
        await f.settle()
        assert await f.alive("subscription_item") == ["si_1"]


@pytest.mark.parametrize("loading", [True, False])
async def test_a_slow_page_brings_back_no_item_that_an_event_left_out(
    database: str, loading: bool
) -> None:
    async with following(database) as f:
        have_items(f.stripe, ["si_1", "si_2"])
        page, as_of = await f.page("/v1/subscriptions")
        if loading:
            f.copy.mirror.loading |= {"subscription", "subscription_item"}
        have_items(f.stripe, ["si_1"])
        f.stripe.event("customer.subscription.updated", subscription(["si_1"]))
        await f.poll()
        await f.write(page, as_of)
        await f.settle()
        assert await f.alive("subscription_item") == ["si_1"]


@pytest.mark.parametrize("loading", [True, False])
async def test_items_of_an_event_that_comes_late_are_flagged_if_they_were_gone_by_then(
    database: str, loading: bool
) -> None:
    """Added and removed within one second; the event of the addition shows up last."""
    async with following(database) as f:
        if loading:
            f.copy.mirror.loading |= {"subscription", "subscription_item"}
        have_items(f.stripe, [])
        now = int(time.time())
        f.stripe.event("customer.subscription.updated", subscription([]), created=now)
        await f.poll()
        f.stripe.event("customer.subscription.updated", subscription(["si_1"]), created=now)
        f.stripe.events.reverse()
        await f.poll()
        await f.settle()
        assert await f.alive("subscription_item") == []


async def test_items_of_an_event_that_comes_late_are_flagged_if_a_list_did_not_have_them(
    database: str,
) -> None:
    """The later event shows ten of twelve; that there are no others, the list has said."""
    items = [f"si_{n:02}" for n in range(12)]
    async with following(database) as f:
        have_items(f.stripe, items)
        now = int(time.time())
        f.stripe.event("customer.subscription.updated", subscription(items), created=now)
        await f.poll()
        await f.settle()
        late = subscription(["si_gone", *items[10:]])
        f.stripe.event("customer.subscription.updated", late, created=now - 1)
        f.stripe.events.reverse()
        await f.poll()
        await f.settle()
        assert await f.alive("subscription_item") == items


async def test_what_a_write_adds_is_a_row_though_an_event_of_before_was_applied_meanwhile(
    database: str,
) -> None:
    async with following(database) as f:
        asked = await f.pg.fetchval("SELECT clock_timestamp()")
        have_items(f.stripe, ["si_1"])
        f.stripe.event("customer.subscription.updated", subscription(["si_1"]))
        await f.poll()
        have_items(f.stripe, ["si_1", "si_2"])
        answered = replace(as_of_now(), cause=Cause("", "req_1"), known_until=asked)
        await f.write(f.stripe.lists["/v1/subscription_items"][1:], answered)
        assert await f.alive("subscription_item") == ["si_1", "si_2"]
        await f.settle()
        assert await f.alive("subscription_item") == ["si_1", "si_2"]


async def test_a_slow_page_that_is_surely_older_costs_no_request(database: str) -> None:
    async with following(database) as f:
        f.stripe.lists["/v1/invoices"] = [invoice(["il_1"], total=1)]
        f.stripe.event("invoice.updated", invoice(["il_1"], total=1))
        await f.poll()
        await f.settle()
        f.stripe.asked.clear()
        old = AsOf(time.time() - 60, time.time() - 50)
        await f.write([invoice(["il_1", "il_2"])], old)
        await f.settle()
        assert await f.alive("line_item") == ["il_1"]
        assert f.stripe.paths() == []


async def test_a_removed_line_stays_away_whatever_page_comes_late(database: str) -> None:
    async with following(database) as f:
        f.stripe.lists["/v1/invoices"] = [invoice(["il_1", "il_2"], total=2)]
        await f.copy.source.fetch("invoice", "in_1")
        page, as_of = await f.page("/v1/invoices")
        f.stripe.lists["/v1/invoices"] = [invoice(["il_1"], total=1)]
        f.stripe.event("invoice.updated", invoice(["il_1"], total=1))
        await f.poll()
        await f.settle()
        assert await f.alive("line_item") == ["il_1"]
        await f.write(page, as_of)
        await f.settle()
        assert await f.alive("line_item") == ["il_1"]


@pytest.mark.parametrize("later_s", [0, 1])
async def test_entries_of_a_list_by_parent_that_are_gone_are_removed(
    database: str, later_s: int
) -> None:
    def entitled(*ids: str) -> Object:
        data = [{"id": i, "object": "entitlements.active_entitlement"} for i in ids]
        whole = {"object": "list", "data": data, "has_more": False, "url": "/x"}
        f.stripe.answers["/v1/entitlements/active_entitlements"] = lambda _: (200, whole)
        return whole

    async with following(database) as f:
        now = int(time.time())
        for ids, second in ((("ent_1", "ent_2"), now), (("ent_2",), now + later_s)):
            summary = {
                "object": "entitlements.active_entitlement_summary",
                "customer": "cus_1",
                "entitlements": entitled(*ids),
            }
            f.stripe.event(
                "entitlements.active_entitlement_summary.updated", summary, created=second
            )
            await f.poll()
            await f.settle()
        rows = await f.pg.fetch(
            "SELECT id, customer_id FROM stripe.entitlements_active_entitlement"
        )
        assert [tuple(row) for row in rows] == [("ent_2", "cus_1")]


async def test_a_replica_that_is_behind_overwrites_nothing_and_is_asked_again(
    database: str,
) -> None:
    async with following(database) as f:
        await f.write([customer("one")], AsOf(time.time() - 90, time.time() - 80))
        f.stripe.lists["/v1/customers"] = [customer("two")]
        f.stripe.event("customer.updated", customer("two"))
        await f.poll()
        assert await f.name() == "two"
        await f.settle()
        f.stripe.asked.clear()
        stale = replace(as_of_now(), cause=Cause("evt_x", ""))
        await f.write([customer("one")], stale)
        assert await f.name() == "two"
        await f.settle()
        assert await f.name() == "two"
        assert f.stripe.paths() == ["/v1/customers/cus_1"]


async def test_a_hint_that_a_replica_answers_too_early_is_asked_again(database: str) -> None:
    async with following(database) as f:
        await f.write([customer("one")], AsOf(time.time() - 90, time.time() - 80))
        await f.pg.execute("UPDATE stripe.customer SET _synced_at = now() - interval '1 hour'")
        answers = iter(("one", "two"))
        f.stripe.answers["/v1/customers/cus_1"] = lambda _: (200, customer(next(answers, "two")))
        f.stripe.event("customer.updated", customer("two"), api_version="2019-12-03")
        await f.poll()
        await f.settle()
        assert await f.name() == "two"
        assert f.stripe.paths().count("/v1/customers/cus_1") == 2


async def test_a_new_dispute_brings_its_charge_which_has_no_event(database: str) -> None:
    async with following(database) as f:
        charge: Object = {"id": "ch_1", "object": "charge", "disputed": False, "created": 1}
        await f.write([charge], AsOf(time.time() - 90, time.time() - 80))
        f.stripe.lists["/v1/charges"] = [charge | {"disputed": True}]
        f.stripe.event(
            "charge.dispute.created", {"id": "dp_1", "object": "dispute", "charge": "ch_1"}
        )
        await f.poll()
        await f.settle()
        assert await f.pg.fetchval("SELECT disputed FROM stripe.charge") is True


async def test_a_hint_is_not_settled_by_another_event_of_its_second(database: str) -> None:
    """The row holds the second of the hint, but not the hint: a replica that is behind confirms the row."""
    async with following(database) as f:
        now = int(time.time())
        f.stripe.event("customer.updated", customer("one"), created=now)
        await f.poll()
        assert await f.name() == "one"
        answers = iter(("one", "two"))
        f.stripe.answers["/v1/customers/cus_1"] = lambda _: (200, customer(next(answers, "two")))
        hint = {"object": customer("two"), "previous_attributes": {"name": "one"}}
        f.stripe.event(
            "customer.updated", customer("two"), created=now, data=hint, api_version="2019-12-03"
        )
        await f.poll()
        await f.settle()
        assert await f.name() == "two"


@pytest.mark.parametrize(("before", "requests"), [({}, 2), ({"balance": 0}, 1)])
async def test_what_stripe_shows_on_request_only_is_asked_again_unless_the_response_proves_itself(
    database: str, before: dict[str, object], requests: int
) -> None:
    """The row holds what the event said; that proves nothing of what no event has."""
    async with following(database) as f:
        told = {**customer("one"), "balance": 5}
        answers = iter(({"usd": 1}, {"usd": 2}))
        f.stripe.answers["/v1/customers/cus_1"] = lambda _: (
            200,
            {
                **told,
                "cash_balance": None,
                "tax": None,
                "invoice_credit_balance": next(answers, {"usd": 3}),
            },
        )
        f.stripe.event(
            "customer.updated", told, data={"object": told, "previous_attributes": before}
        )
        await f.poll()
        await f.settle()
        row = "SELECT invoice_credit_balance ->> 'usd' FROM stripe.customer"
        assert f.stripe.paths().count("/v1/customers/cus_1") == requests
        assert await f.pg.fetchval(row) == str(requests)
        assert await f.pg.fetchval("SELECT count(*) FROM pinstripe.pending") == 0


async def test_a_creation_that_comes_after_its_deletion_was_looked_up_revives_nothing(
    database: str,
) -> None:
    """The event is a hint: nothing says that this kind of deletion is one. The object had no row."""
    async with following(database) as here:
        install = {"id": "install_1", "object": "apps.install", "created": 1}
        here.stripe.answers["/v1/apps/installs/install_1"] = lambda _: (404, MISSING)
        second = int(time.time()) - 10
        here.stripe.event("apps.install.deleted", install, created=second)
        await here.poll()
        await here.settle()
        here.stripe.event("apps.install.created", install, created=second)
        here.stripe.events.reverse()
        await here.poll()
        await here.settle()
        assert await here.alive("apps_install") == []


async def test_an_event_that_comes_after_a_short_life_was_looked_up_revives_nothing(
    database: str,
) -> None:
    """Created and deleted in one second: the object is looked up, and once more when no replica can be
    behind. That is sure, though by the clocks both may have happened later.
    """
    async with following(database) as here:
        source = {"id": "src_1", "object": "source", "created": 1}
        here.stripe.answers["/v1/sources/src_1"] = lambda _: (404, MISSING)
        second = int(time.time())
        here.stripe.event("customer.source.created", source, created=second)
        here.stripe.event("customer.source.deleted", source, created=second)
        await here.poll()
        await here.settle()
        here.stripe.event("source.failed", source, created=second)
        await here.poll()
        await here.settle()
        assert await here.alive("source") == []


async def test_what_commits_while_the_event_log_is_asked_about_a_row_stands(database: str) -> None:
    """A bank account of an account has no address. Its deletion was written before the look at the log,
    and becomes visible after it.
    """
    bank = {"id": "ba_1", "object": "bank_account", "account": "acct_1", "last4": "0001"}
    then = int(time.time()) - 20
    async with following(database) as here:
        await here.write([bank], AsOf(float(then), then + 1.0))
        here.stripe.event("account.external_account.updated", bank, created=then)
        change = here.pg.transaction()
        await change.start()
        await here.pg.execute(
            "UPDATE stripe.bank_account SET deleted = true, _as_of = to_timestamp($1),"
            " _as_of_latest = to_timestamp($1 + 1), _synced_at = clock_timestamp()",
            then + 5.0,
        )
        asking = asyncio.create_task(resolve_from_events(here.copy.source, "bank_account", "ba_1"))
        async with asyncio.timeout(20), connect(database) as other:
            while not await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await change.commit()
        assert await asking
        assert await here.alive("bank_account") == []


async def test_a_row_that_comes_into_doubt_again_during_the_pause_is_asked_for_after_another(
    database: str,
) -> None:
    """The replica that answers for the first doubt may be behind the second."""
    async with following(database) as here:
        states: list[tuple[float, str]] = [(0.0, "first")]

        def behind(_: Params) -> Answer:
            shown = [name for at, name in states if at <= time.monotonic() - LAG_S]
            return 200, customer(shown[-1])

        here.stripe.answers["/v1/customers/cus_1"] = behind

        async def doubt(name: str, as_of: float) -> None:
            """Stripe has this state now; a response shows it, whose time tells nothing."""
            states.append((time.monotonic(), name))
            await here.write([customer(name)], AsOf(as_of - 60.0, as_of + 60.0))

        now = time.time()
        await here.write([customer("first")], AsOf(now - 60.0, now + 60.0))
        await asyncio.sleep(LAG_S)
        await doubt("second", now)
        await asyncio.sleep(0.75 * LAG_S)
        await doubt("third", now)
        await here.copy.mirror.conflicts.wait_resolved()
        assert await here.name() == "third"
        assert await here.pg.fetch("SELECT * FROM pinstripe.pending") == []


@pytest.mark.parametrize("before_s", [0, 60])
async def test_what_another_process_queues_without_a_word_is_fetched_within_ten_seconds(
    database: str, before_s: int
) -> None:
    """A gateway that reads back what a caller read says nothing to the process that follows; its commit may
    have waited.
    """
    async with following(database) as f:
        f.stripe.lists["/v1/customers"] = [customer("new")]
        running = asyncio.create_task(f.refetches.run())
        await asyncio.sleep(0.3)  # It has read the table.
        async with f.pg.transaction():
            await add_refetches(f.pg, "stripe", [Refetch("fetch", "customer", "cus_1", since=1.0)])
            await f.pg.execute(
                "UPDATE pinstripe.pending SET asked_at = asked_at - make_interval(secs => $1)",
                before_s,
            )
        async with asyncio.timeout(10.0):
            while await f.pg.fetchval("SELECT count(*) FROM stripe.customer") == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("is_doubted_first", [False, True])
async def test_a_response_that_is_sure_of_an_event_settles_no_doubt_beside_it(
    database: str, is_doubted_first: bool
) -> None:
    """A replica that has the event may be behind what the doubt is about; a restart forgets the doubt."""
    hint = Refetch("fetch", "customer", "cus_1", since=time.time() - 60.0, event_id="evt_1")
    doubt = Refetch("fetch", "customer", "cus_1", event_id="evt_2")
    async with following(database) as here:
        for one in (doubt, hint) if is_doubted_first else (hint, doubt):
            await add_refetches(here.pg, "stripe", [one])
        answer = RefetchDone(hint, await here.pg.fetchval("SELECT clock_timestamp()"))
        await complete_refetches(here.pg, "stripe", [answer])
        assert answer.is_left
        (left,) = await load_refetches(here.pg, "stripe")
        assert left.refetch.since == 0
        late = RefetchDone(left.refetch, answer.started + timedelta(seconds=LAG_S), LAG_S)
        await complete_refetches(here.pg, "stripe", [late])
        assert await load_refetches(here.pg, "stripe") == []


@pytest.mark.parametrize("date_ahead_s", [-3.0, 2.0, 3.0])
@pytest.mark.parametrize("told", [True, False])
async def test_a_date_that_is_not_the_clock_of_events_drops_no_update(
    database: str, date_ahead_s: float, told: bool
) -> None:
    async with following(database, date_ahead_s=date_ahead_s) as f:
        f.stripe.lists["/v1/customers"] = [customer("one")]
        await f.copy.source.fetch("customer", "cus_1")
        f.stripe.lists["/v1/customers"] = [customer("two")]
        previous = {"name": "one"} if told else None
        data = {"object": customer("two"), "previous_attributes": previous}
        f.stripe.event("customer.updated", customer("two"), data=data)
        f.stripe.asked.clear()
        await f.poll()
        if told:
            # The event says what it changed, and that is what the row holds: no request is needed.
            assert await f.name() == "two"
            assert f.stripe.paths() == ["/v1/events"]
        await f.settle()
        assert await f.name() == "two"


async def test_events_of_one_second_in_two_polls_are_ordered_by_what_they_changed(
    database: str,
) -> None:
    async with following(database) as f:
        now = int(time.time())
        f.stripe.lists["/v1/customers"] = [customer("three")]
        f.stripe.event("customer.created", customer("one"), created=now)
        await f.poll()
        for before, after in (("one", "two"), ("two", "three")):
            data = {"object": customer(after), "previous_attributes": {"name": before}}
            f.stripe.event("customer.updated", customer(after), created=now, data=data)
            await f.poll()
            assert await f.name() == after
        assert set(f.stripe.paths()) == {"/v1/events"}


async def test_a_poll_that_somebody_waits_for_has_new_events_though_date_is_ahead_of_their_clock(
    database: str,
) -> None:
    async with following(database, date_ahead_s=3.0) as f:
        for number in (1, 2, 3):
            f.stripe.event("customer.created", customer("new") | {"id": f"cus_{number}"})
            await f.live._read_late_lookback(0.25, 0.25)
            assert await f.pg.fetchval("SELECT count(*) FROM stripe.customer") == number


async def test_an_event_that_comes_late_within_a_second_undoes_nothing(database: str) -> None:
    """It changed "one" to "two", and a later one, which came first, "two" back to "one"."""
    async with following(database) as f:
        now = int(time.time())
        f.stripe.lists["/v1/customers"] = [customer("one")]
        await f.write([customer("one")], AsOf(time.time() - 90, time.time() - 80))
        back = {"object": customer("one"), "previous_attributes": {"name": "two"}}
        f.stripe.event("customer.updated", customer("one"), created=now, data=back)
        await f.poll()
        there = {"object": customer("two"), "previous_attributes": {"name": "one"}}
        f.stripe.event("customer.updated", customer("two"), created=now, data=there)
        f.stripe.events.reverse()
        await f.poll()
        assert await f.name() == "one"
        await f.settle()
        assert await f.name() == "one"


def as_of_now() -> AsOf:
    """The interval of a read that is answered now."""
    now = time.time()
    return AsOf(now - 1 - MARGINS.clock_s - MARGINS.replica_lag_s, now + 1 + MARGINS.clock_s)


def _older(name: str, **more: object) -> Object:
    """What an event of another version says of the customer before."""
    return {"object": customer(name), **more}


async def test_a_response_that_shows_what_an_event_changed_is_not_asked_for_again(
    database: str,
) -> None:
    async with following(database) as f:
        await f.write([customer("one")], AsOf(time.time() - 90, time.time() - 80))
        await f.pg.execute("UPDATE stripe.customer SET _synced_at = now() - interval '1 hour'")
        f.stripe.lists["/v1/customers"] = [customer("two")]
        data = _older("two", previous_attributes={"name": "one"})
        f.stripe.event("customer.updated", customer("two"), data=data, api_version="2019-12-03")
        await f.poll()
        await f.settle()
        assert await f.name() == "two"
        assert f.stripe.paths().count("/v1/customers/cus_1") == 1


@pytest.mark.parametrize("is_new", [False, True])
async def test_a_response_that_proves_itself_proves_nothing_of_the_rest_of_its_lists(
    database: str, is_new: bool
) -> None:
    """Another replica shows that, and is behind: it has the list as it was, or no such subscription yet."""
    before = [f"si_{n:02}" for n in range(13)]
    after = [*before[:11], "si_12", "si_13"]
    async with following(database) as f:
        have_items(f.stripe, before)
        if not is_new:
            await f.copy.source.fetch("subscription", "sub_1")
            await f.pg.execute("UPDATE stripe.subscription SET _synced_at = now() - interval '1 h'")
        old = f.stripe.lists["/v1/subscription_items"]
        page = {"object": "list", "data": old[10:], "has_more": False, "url": "/x"}
        behind = iter([(404, MISSING) if is_new else (200, page)])
        f.stripe.answers["/v1/subscription_items"] = lambda _: next(behind, None)
        have_items(f.stripe, after)
        now = f.stripe.lists["/v1/subscriptions"][0]
        data = {"object": now, "previous_attributes": {} if is_new else {"status": "trialing"}}
        kind = f"customer.subscription.{'created' if is_new else 'updated'}"
        f.stripe.event(kind, now, data=data, api_version=_OLD_VERSION)
        await f.poll()
        await f.refetches.work_off()
        await f.refetches.drain()  # The list that was not found is owed: the table says so.
        await f.settle()
        assert await f.alive("subscription_item") == after


async def test_a_page_that_takes_long_settles_no_event_that_was_young_when_it_was_asked_for(
    database: str,
) -> None:
    """What is past by the time the page is written was not when a replica that is behind made it."""

    def named(name: str) -> list[Object]:
        return [customer(name) | {"id": f"cus_{n}"} for n in (1, 2)]

    async with following(database, date_ahead_s=0.0) as f:
        await f.write(named("one"), AsOf(time.time() - 90, time.time() - 80))
        await f.pg.execute("UPDATE stripe.customer SET _synced_at = now() - interval '1 hour'")
        f.stripe.lists["/v1/customers"] = named("one")

        def late(_: Params) -> None:
            """It is some seconds later when this page comes, and then Stripe shows what there is."""
            f.stripe.answers.clear()
            f.stripe.date_ahead_s = 4.0
            asyncio.get_running_loop().call_soon(f.stripe.lists.update, {"/v1/customers": now})

        now = named("two")
        for changed in now:
            then = int(time.time()) - 2
            f.stripe.event("customer.updated", changed, created=then, api_version=_OLD_VERSION)
        await f.poll()
        f.stripe.answers["/v1/customers"] = late
        f.stripe.asked.clear()
        await f.settle()
        assert f.stripe.paths()[0] == "/v1/customers"
        rows = await f.pg.fetch("SELECT name FROM stripe.customer")
        assert [row[0] for row in rows] == ["two", "two"]


async def test_another_event_of_its_second_settles_no_hint(database: str) -> None:
    """The row holds the first of two events, and the replica that is asked does not have the second yet."""
    first, last = ({"id": "txr_1", "object": "tax_rate", "description": d} for d in ("one", "two"))
    async with following(database) as f:
        now = int(time.time())
        f.stripe.event("tax_rate.created", first, created=now)
        await f.poll()
        answers = iter((first, last))
        f.stripe.answers["/v1/tax_rates/txr_1"] = lambda _: (200, next(answers, last))
        f.stripe.event("tax_rate.updated", last, created=now, api_version=_OLD_VERSION)
        await f.poll()
        await f.settle()
        assert await f.pg.fetchval("SELECT description FROM stripe.tax_rate") == "two"


async def test_what_was_changed_and_changed_back_within_the_lag_proves_nothing(
    database: str,
) -> None:
    """The replica shows the state before both events, which has the name that the later one gave."""
    async with following(database) as f:
        now = int(time.time())
        first, last = customer("one") | {"email": "a"}, customer("one") | {"email": "b"}
        await f.write([first], AsOf(now - 90, now - 80))
        await f.pg.execute("UPDATE stripe.customer SET _synced_at = now() - interval '1 hour'")
        answers = iter((first, last))
        f.stripe.answers["/v1/customers/cus_1"] = lambda _: (200, next(answers, last))
        for name, before in (("two", "one"), ("one", "two")):
            data = _older(name, previous_attributes={"name": before})
            f.stripe.event(
                "customer.updated", last, created=now, data=data, api_version="2019-12-03"
            )
        await f.poll()
        await f.settle()
        assert await f.pg.fetchval("SELECT email FROM stripe.customer") == "b"


async def _open_while_old(f: Following, holds: str, new: object) -> bool:
    """Work off what is queued; whether something that was queued until now stayed open for as long as the
    query `holds` gives anything but `new`.
    """
    moment = await f.pg.fetchval("SELECT clock_timestamp()")
    working = asyncio.create_task(f.settle())
    always = True
    async with connect(f.copy.url) as reader:
        while True:
            row = await reader.fetchrow(
                f"SELECT ({holds}), EXISTS (SELECT FROM pinstripe.pending WHERE open_since <= $1)",
                moment,
            )
            assert row is not None
            value, is_open = row
            if value == new:
                break
            always = always and is_open
            await asyncio.sleep(0.01)
    await working
    return always


async def test_a_response_that_the_row_contradicts_completes_nothing(database: str) -> None:
    """Whoever waits for the hint would read the row as it was before."""
    async with following(database) as f:
        f.stripe.event("customer.updated", customer("one"))
        await f.poll()
        f.stripe.lists["/v1/customers"] = [customer("two")]
        f.stripe.event("customer.updated", customer("two"), api_version="2019-12-03")
        await f.poll()
        assert await _open_while_old(f, "SELECT name FROM stripe.customer", "two")


async def test_rows_that_a_list_contradicts_are_open_as_long_as_the_list_was(database: str) -> None:
    async with following(database) as f:
        ids = [f"si_{n:02}" for n in range(12)]
        have_items(f.stripe, ids)
        entry = f.stripe.lists["/v1/subscription_items"][11]
        assert isinstance(entry, dict)
        await f.write([entry | {"quantity": 1}], as_of_now())
        entry["quantity"] = 2
        # An old one: no replica is behind it, so the list is read once.
        then = int(time.time()) - 30
        f.stripe.event("customer.subscription.updated", subscription(ids), created=then)
        await f.poll()
        holds = "SELECT quantity FROM stripe.subscription_item WHERE id = 'si_11'"
        assert await _open_while_old(f, holds, 2)


async def test_what_an_event_asks_for_besides_does_not_settle_a_row_in_doubt(database: str) -> None:
    """The event is in doubt, and its object is fetched for what `expand[]` shows: by a replica that is
    behind, and agrees with the row.
    """
    async with following(database) as f:
        now = int(time.time())
        f.stripe.event("customer.updated", customer("one"), created=now)
        await f.poll()
        await f.settle()
        f.stripe.event("customer.updated", customer("two"), created=now)
        answers = iter(("one", "two"))
        f.stripe.answers["/v1/customers/cus_1"] = lambda _: (200, customer(next(answers, "two")))
        await f.poll()
        assert await _open_while_old(f, "SELECT name FROM stripe.customer", "two")


async def test_a_response_that_is_sure_of_an_event_completes_no_later_one(database: str) -> None:
    """Another process queued the object again while this one held the refetch of an older event."""
    async with following(database) as f:
        await f.write([customer("one")], AsOf(time.time() - 90, time.time() - 80))
        await f.pg.execute("UPDATE stripe.customer SET _synced_at = now() - interval '1 hour'")
        held, later = (
            Refetch("fetch", "customer", "cus_1", since=time.time() - ago) for ago in (600.0, 0.0)
        )
        await add_refetches(f.pg, "stripe", [held])
        f.refetches.add([held])
        await add_refetches(f.pg, "stripe", [later])
        answers = iter(("one", "two"))
        f.stripe.answers["/v1/customers/cus_1"] = lambda _: (200, customer(next(answers, "two")))
        await f.refetches.work_off()
        (left,) = await load_refetches(f.pg, "stripe")
        assert left.refetch.since == pytest.approx(later.since, abs=0.001)
        await asyncio.sleep(LAG_S)
        await f.refetches.drain()
        assert await f.name() == "two"
        assert await f.pg.fetch("SELECT * FROM pinstripe.pending") == []


async def test_a_refetch_that_waits_for_its_next_try_is_made_when_another_process_queues_it(
    database: str,
) -> None:
    async with following(database) as f:
        await f.write([customer("one")], AsOf(time.time() - 90, time.time() - 80))
        refetch = Refetch("fetch", "customer", "cus_1", since=time.time() - 60.0)
        await add_refetches(f.pg, "stripe", [refetch])
        await f.pg.execute(
            "UPDATE pinstripe.pending SET attempts = 8, next_try_at = now() + interval '6 hours'"
        )
        f.stripe.lists["/v1/customers"] = [customer("two")]
        working = asyncio.create_task(f.refetches.run())
        await until(lambda: len(f.refetches) == 1)
        await add_refetches(f.pg, "stripe", [refetch])
        f.refetches.poll_now()
        await until(lambda: not len(f.refetches))
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        assert await f.name() == "two"


def _with_item(*, is_old: bool = False) -> Object:
    """An invoice whose line is an invoice item's, as our version and those until basil have it."""
    shown = invoice(["il_1"])
    named = {"invoice_item": "ii_1"}
    more = named if is_old else {"parent": {"invoice_item_details": named}}
    shown["lines"]["data"][0] |= more
    return shown


@pytest.mark.parametrize("version", ["", _OLD_VERSION])
@pytest.mark.parametrize("is_taken_out", [False, True])
async def test_an_item_that_an_invoice_takes_up_or_lets_go_is_so_though_a_replica_is_behind(
    database: str, is_taken_out: bool, version: str
) -> None:
    """It has no event of its own."""
    async with following(database) as f:
        states: list[Object] = [
            {"id": "ii_1", "object": "invoiceitem", "invoice": owner, "created": 1}
            for owner in (("in_1", None) if is_taken_out else (None, "in_1"))
        ]
        await f.write([states[0]], AsOf(time.time() - 90, time.time() - 80))
        await f.pg.execute("UPDATE stripe.invoice_item SET _synced_at = now() - interval '1 hour'")
        answers = iter(states)
        f.stripe.answers["/v1/invoiceitems/ii_1"] = lambda _: (200, next(answers, states[1]))
        f.stripe.lists["/v1/invoices"] = [invoice([]) if is_taken_out else _with_item()]
        told, before = _with_item(is_old=bool(version)), {"total": 1}
        if is_taken_out:
            told, before = invoice([]), {"lines": told["lines"]}
        data = {"object": told, "previous_attributes": before}
        more = {"api_version": version} if version else {}
        f.stripe.event("invoice.updated", told, data=data, **more)
        await f.poll()
        await f.settle()
        owner = await f.pg.fetchval("SELECT invoice_id FROM stripe.invoice_item")
        assert owner == states[1]["invoice"]


async def test_an_item_that_an_invoice_takes_up_and_lets_go_is_looked_up_after_a_restart(
    database: str,
) -> None:
    """The first was to be looked at once more, and the second came before that."""
    then = time.time() - 60.0
    taken, let_go = (Refetch("relate", "invoice_item", "ii_1", by, then) for by in ("in_1", ""))
    async with following(database) as f:
        item: Object = {"id": "ii_1", "object": "invoiceitem", "invoice": "in_1", "created": 1}
        await f.write([item], AsOf(then - 30.0, then - 20.0))
        await f.pg.execute("UPDATE stripe.invoice_item SET _synced_at = now() - interval '1 hour'")
        f.stripe.lists["/v1/invoiceitems"] = [item | {"invoice": None}]
        for one in (taken, let_go):
            await add_refetches(f.pg, "stripe", [one])
        await f.refetches.drain()
        assert await f.pg.fetchval("SELECT invoice_id FROM stripe.invoice_item") is None
        assert await f.pg.fetch("SELECT * FROM pinstripe.pending") == []


@pytest.mark.parametrize(
    ("version", "others"), [(VERSION, 0), (_OLD_VERSION, 0), (_OLD_VERSION, 1)]
)
async def test_items_behind_the_tenth_line_of_an_invoice_name_it_too(
    database: str, version: str, others: int
) -> None:
    """Also where an event of another version has the invoice fetched, alone or with others."""

    def item(number: int, owner: str | None) -> Object:
        return {"id": f"ii_{number}", "object": "invoiceitem", "invoice": owner, "created": 1}

    shown = invoice([f"il_{number}" for number in range(12)])
    lines: list[Object] = [
        {
            "id": f"il_{number}",
            "object": "line_item",
            "invoice": "in_1",
            "parent": {"invoice_item_details": {"invoice_item": f"ii_{number}"}},
        }
        for number in range(12)
    ]
    shown["lines"]["data"] = lines[:10]
    async with following(database) as f:
        await f.write([item(n, None) for n in range(12)], AsOf(time.time() - 90, time.time() - 80))
        made = {"created": int(time.time())}
        more = [invoice([]) | {"id": f"in_{2 + n}"} for n in range(others)]
        f.stripe.lists["/v1/invoices"] = [one | made for one in (shown, *more)]
        f.stripe.lists["/v1/invoices/in_1/lines"] = lines
        f.stripe.lists["/v1/invoiceitems"] = [item(n, "in_1") for n in range(12)]
        for one in f.stripe.lists["/v1/invoices"]:
            f.stripe.event("invoice.created", one, api_version=version)
        await f.poll()
        await f.settle()
        left = "SELECT id FROM stripe.invoice_item WHERE invoice_id IS DISTINCT FROM 'in_1'"
        assert await f.pg.fetch(left) == []


@pytest.mark.parametrize("is_known", [False, True])
async def test_an_object_without_an_address_does_not_stay_as_an_event_of_another_version_shows_it(
    database: str, is_known: bool
) -> None:
    """Until clover a discount held its coupon; now its source names it. Its customer shows it."""

    def discount(**more: object) -> Object:
        return {"id": "di_1", "object": "discount", "customer": "cus_1", **more}

    ours = discount(source={"type": "coupon", "coupon": "co_1"})
    old = discount(coupon={"id": "co_1", "object": "coupon"})
    async with following(database) as f:
        f.stripe.lists["/v1/customers"] = [customer("one") | {"discount": ours}]
        if is_known:
            await f.copy.source.fetch("customer", "cus_1")
        f.stripe.event("customer.discount.created", old, api_version=_OLD_VERSION)
        await f.poll()
        await f.settle()
        row = await f.pg.fetchrow("SELECT source_coupon_id, _extra FROM stripe.discount")
        assert row is not None
        assert tuple(row) == ("co_1", None)


@pytest.mark.parametrize(
    ("event", "obj"),
    [
        ("reserve.plan.updated", {"object": "reserve.plan"}),
        ("account.external_account.updated", {"object": "bank_account", "account": "acct_1"}),
        ("source.transaction.updated", {"object": "source_transaction", "source": "src_1"}),
        ("customer.discount.updated", {"object": "discount", "customer": "cus_1"}),
    ],
)
async def test_what_nothing_shows_in_our_version_is_as_the_newest_event_of_another_has_it(
    database: str, event: str, obj: Object
) -> None:
    """A reserve plan has neither an address nor an owner, this account shows no bank accounts, the source
    is gone, and the customer shows another discount.
    """
    async with following(database) as f:
        gone = error(404, "No such source: 'src_1'", "resource_missing")
        f.stripe.answers["/v1/sources/src_1/source_transactions"] = lambda _: gone
        f.stripe.lists["/v1/accounts"] = [{"id": "acct_1", "object": "account"}]
        other = {"id": "di_2", "object": "discount", "customer": "cus_1"}
        f.stripe.lists["/v1/customers"] = [customer("one") | {"discount": other}]
        second, table = int(time.time()), str(obj["object"]).replace(".", "_")
        for number in range(3):
            changed = {"id": "one", **obj, "metadata": {"n": str(number)}, "status": str(number)}
            changed["checkout_session"] = str(number)
            f.stripe.event(event, changed, created=second, api_version=_OLD_VERSION)
            if number != 1:
                await f.poll()
        await f.settle()
        row = await f.pg.fetchrow(f"SELECT * FROM stripe.{table} WHERE id = 'one'")
        assert row is not None
        column = next(c for c in ("metadata", "status", "checkout_session") if c in row)
        assert row[column] in ("2", '{"n": "2"}')


async def test_a_row_in_doubt_without_an_address_or_events_is_settled_by_its_parents_list(
    database: str,
) -> None:
    async with following(database) as f:
        attempt = {"id": "setatt_1", "object": "setup_attempt", "setup_intent": "seti_1"}
        done = attempt | {"status": "succeeded", "created": 1}
        f.stripe.lists["/v1/setup_attempts"] = [done]
        await f.write([attempt | {"status": "processing", "created": 1}], as_of_now())
        await f.write([done], as_of_now())
        await f.settle()
        assert await f.pg.fetchval("SELECT status FROM stripe.setup_attempt") == "succeeded"


async def test_events_of_one_second_are_applied_together_though_they_stand_on_two_pages(
    database: str,
) -> None:
    """Whoever waits for a request sees all that it did once one of its events is applied."""
    async with following(database) as f:
        now = int(time.time())
        await f.poll()
        for n in range(150):  # The newest hundred are the first page.
            request = {"id": "req_x" if n in (49, 50, 51) else f"req_{n}", "idempotency_key": None}
            shown = customer(str(n)) | {"id": f"cus_{n}"}
            f.stripe.event("customer.updated", shown, created=now - 1 + n // 100, request=request)
        seen: list[int] = []

        async def apply(
            events: Sequence[Object], listed_at: AsOf, *, as_of: float | None = None
        ) -> None:
            await f.live.apply(events, listed_at, as_of=as_of)
            rows = await f.pg.fetch(
                "SELECT FROM pinstripe.applied_event WHERE request_id = 'req_x'"
            )
            seen.append(len(rows))

        reader = EventLogReader(f.copy.source, f.live._applied)
        await reader.window(now - 60, priority=LIVE, apply=apply)
        assert seen == [0, 3]


async def test_the_balance_of_a_customer_has_another_name_in_old_versions(database: str) -> None:
    async with following(database) as f:
        await f.write([customer("one")], AsOf(time.time() - 90, time.time() - 80))
        f.stripe.lists["/v1/customers"] = [customer("one") | {"balance": 5}]
        entry = {"id": "cbtxn_1", "object": "customer_balance_transaction", "customer": "cus_1"}
        f.stripe.lists["/v1/customers/cus_1/balance_transactions"] = [entry | {"created": 1}]
        old = customer("one") | {"account_balance": 5}
        data = {"object": old, "previous_attributes": {"account_balance": 0}}
        f.stripe.event("customer.updated", old, api_version="2018-02-28", data=data)
        await f.poll()
        await f.settle()
        assert await f.alive("customer_balance_transaction") == ["cbtxn_1"]
