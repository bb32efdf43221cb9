"""Trouble is not an answer, and one bad thing never stops its neighbours."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest
from tests.flows.harness.account import Copy, open_copy
from tests.flows.harness.scripted_stripe import (
    Answer,
    Params,
    ScriptedStripe,
    error,
    scripted_stripe,
)

from pinstripe.catalog.tables import tables
from pinstripe.client.retry import Patience
from pinstripe.source.refusals import remember_refusals
from pinstripe.source.source import Source
from pinstripe.store.refetch import Refetch, add_refetches
from pinstripe.store.status import SchemaStatus, read_status
from pinstripe.sync.backfill.backfill import Backfill, BackfillResult
from pinstripe.sync.events.poller import EventPoller
from pinstripe.sync.refetch.worker import RefetchWorker
from pinstripe.sync.relist import Intervals, Relist

pytestmark = pytest.mark.migrated

BRIEF = Patience(attempts=2, first_contact=2, base_s=0.001, cap_s=0.001)


@pytest.fixture
async def stripe() -> AsyncIterator[ScriptedStripe]:
    async with scripted_stripe() as stub:
        yield stub


@pytest.fixture
async def copy(stripe: ScriptedStripe, database: str) -> AsyncIterator[Copy]:
    async with open_copy(stripe, database, patience=BRIEF) as opened:
        yield opened


def customer(number: int, **fields: object) -> dict[str, object]:
    return {"id": f"cus_{number}", "object": "customer", "created": 1700000000 + number, **fields}


def invoice(stripe: ScriptedStripe, number: int, lines: int = 12) -> dict[str, object]:
    """An invoice that shows ten of its lines."""
    key = f"in_{number}"
    path = f"/v1/invoices/{key}/lines"
    stripe.lists[path] = [
        {"id": f"il_{number}_{n}", "object": "line_item", "amount": n, "invoice": key}
        for n in range(lines)
    ]
    shown = {"object": "list", "data": stripe.lists[path][:10], "has_more": True, "url": path}
    return {"id": key, "object": "invoice", "created": 1700000000 + number, "lines": shown}


def only(copy: Copy, *names: str) -> Source:
    """The account with these tables alone."""
    wanted = {name: tables()[name] for name in names}
    return Source(copy.source.stripe, copy.mirror, wanted, copy.source.pool)


async def backfill(copy: Copy, *names: str) -> BackfillResult:
    run = Backfill(only(copy, *names), copy.source.pool, copy.budget, now=time.time())
    return await run.run()


async def status(pg: asyncpg.Connection) -> SchemaStatus:
    return (await read_status(pg, schema="stripe"))[0]


async def try_now(pg: asyncpg.Connection) -> None:
    """What is owed need not wait for its next try."""
    await pg.execute("UPDATE pinstripe.pending SET next_try_at = clock_timestamp()")


TROUBLES: dict[str, Answer] = {
    "a 500 that is not to be retried": error(500),
    "a 503 that is no JSON": (503, b"<html>busy</html>"),
    "a 400 that we do not understand": error(400, "Old `id` values cannot be used."),
    "a 402": error(402, "No.", "card_declined"),
    "a 403 without a permission": error(403, "Not from here.", "account_invalid"),
    "a 409 that is not over": error(409, "Another request is in progress."),
    "a body that was cut": (200, b'{\n  "id": "cus_1",\n  "object": "cust'),
    "a page of a captive portal": (404, b"<html>log in</html>"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_trouble_crosses_no_request_out(
    trouble: str, stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    stripe.lists["/v1/customers"] = [customer(1, name="there")]
    stripe.answers["/v1/customers/cus_1"] = lambda _: TROUBLES[trouble]
    await add_refetches(pg, "stripe", [Refetch("fetch", "customer", "cus_1")])
    await RefetchWorker(copy.source).drain()
    owed = (await status(pg)).owed
    assert [(o.table, o.count, o.attempts, o.example) for o in owed] == [
        ("customer", 1, 1, "cus_1")
    ]
    assert owed[0].reason
    assert owed[0].next_try is not None
    assert owed[0].next_try.timestamp() > time.time() - 1
    del stripe.answers["/v1/customers/cus_1"]
    await try_now(pg)
    await RefetchWorker(copy.source).drain()
    assert await pg.fetchval("SELECT name FROM stripe.customer") == "there"
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.pending") == 0


ANSWERS: dict[str, Answer] = {
    "it does not exist": error(404, "No such customer: 'cus_1'", "resource_missing"),
    "it does not exist as a payment method any more": error(
        400, "A source must be attached to a customer to be used as a `payment_method`."
    ),
    "the key may not": error(403, "Having the 'rak_customer_read' permission would allow it."),
    "the key may not, in today's words": error(
        403, "Enabling \"Customers Read\" ('customer_read') permissions on this key would allow it."
    ),
    "not enabled": error(400, "Your account is not set up to use Issuing."),
    "a parameter that is not taken": error(400, "Unknown parameter.", "parameter_unknown"),
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_an_answer_that_is_understood_ends_a_request(
    answer: str, stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    stripe.answers["/v1/customers/cus_1"] = lambda _: ANSWERS[answer]
    await add_refetches(pg, "stripe", [Refetch("fetch", "customer", "cus_1")])
    await RefetchWorker(copy.source).drain()
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.pending") == 0
    refused = await pg.fetch("SELECT state, code, permission, reason FROM pinstripe.cursor")
    if "exist" in answer:
        assert refused == []
    else:
        assert [r["state"] for r in refused] == ["refused"]
        assert refused[0]["code"] in ("not_permitted", "not_enabled", "bad_parameter")
        assert ("may not" in answer) == bool(refused[0]["permission"])


async def test_pauses_between_tries_grow(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    stripe.answers["/v1/customers/cus_1"] = lambda _: error(500)
    await add_refetches(pg, "stripe", [Refetch("fetch", "customer", "cus_1")])
    pauses = []
    for _ in range(12):
        await try_now(pg)
        await RefetchWorker(copy.source).drain()
        pauses.append(
            await pg.fetchval(
                "SELECT ceil(extract(epoch FROM next_try_at - clock_timestamp()))::float8"
                " FROM pinstripe.pending"
            )
        )
    assert pauses == sorted(pauses)
    assert 86_300 < pauses[-1] <= 86_400


def _ping(stripe: ScriptedStripe, path: str) -> Callable[[Params], Answer]:
    def answer(_: Params) -> Answer:
        start = 5 * (stripe.paths().count(path) % 2)
        page = stripe.lists[path][start : start + 5]
        return 200, {"object": "list", "data": page, "has_more": True, "url": path}

    return answer


def _endless(stripe: ScriptedStripe, path: str) -> Callable[[Params], Answer]:
    def answer(_: Params) -> Answer:
        line = {**stripe.lists[path][0], "id": f"il_new_{stripe.paths().count(path)}"}
        return 200, {"object": "list", "data": [line], "has_more": True, "url": path}

    return answer


def _empty(_: ScriptedStripe, path: str) -> Callable[[Params], Answer]:
    return lambda _: (200, {"object": "list", "data": [], "has_more": True, "url": path})


def _fails(answer: Answer) -> Callable[[ScriptedStripe, str], Callable[[Params], Answer]]:
    return lambda stripe, path: lambda query: answer


NESTED: dict[str, Callable[[ScriptedStripe, str], Callable[[Params], Answer]]] = {
    "an unknown 400": _fails(error(400, "Old `id` values cannot be used.")),
    "words as of a product": _fails(error(400, "The lines of this invoice are not available.")),
    "a 404": _fails(error(404, "No such invoice: 'in_60'", "resource_missing", "invoice")),
    "a 500": _fails(error(500)),
    "no list": _fails((200, {"object": "customer"})),
    "a circle": _ping,
    "pages without an end": _endless,
    "empty pages that go on": _empty,
}


@pytest.mark.parametrize("how", NESTED)
async def test_one_nested_list_that_cannot_be_read_is_owed_and_stops_nothing(
    how: str, stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    stripe.lists["/v1/invoices"] = [invoice(stripe, n) for n in range(120, 0, -1)]
    path = "/v1/invoices/in_60/lines"
    stripe.answers[path] = NESTED[how](stripe, path)
    outcome = await backfill(copy, "invoice", "line_item")
    assert outcome.complete
    assert await pg.fetchval("SELECT count(*) FROM stripe.invoice") == 120
    others = "SELECT count(*) FROM stripe.line_item WHERE invoice_id <> 'in_60'"
    assert await pg.fetchval(others) == 119 * 12
    owed = (await status(pg)).owed
    assert [(o.table, o.kind, o.count, o.example) for o in owed] == [
        ("line_item", "nested", 1, path)
    ]
    del stripe.answers[path]
    await try_now(pg)
    await RefetchWorker(copy.source).drain()
    own = "SELECT count(*) FROM stripe.line_item WHERE id LIKE 'il\\_60\\_%'"
    assert await pg.fetchval(own) == 12
    assert (await status(pg)).owed == []


async def test_a_nested_list_that_is_refused_while_following_is_told_and_read_once_it_may_be(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    """Of an event of another version the invoice is fetched, and with it the lines beyond ten."""
    refused = error(403, "Having the 'rak_line_item_read' permission would allow this.")
    stripe.lists["/v1/invoices"] = [invoice(stripe, 1)]
    stripe.answers["/v1/invoices/in_1/lines"] = lambda _: refused
    await remember_refusals(copy.source, leads=True)
    stripe.event("invoice.updated", stripe.lists["/v1/invoices"][0], api_version="2019-12-03")
    refetches = RefetchWorker(copy.source)
    await EventPoller(copy.source, refetches, since=time.time() - 60).poll()
    await refetches.work_off()
    lines = "SELECT count(*) FROM stripe.line_item"
    assert await pg.fetchval(lines) == 10
    (told,) = [t for t in (await status(pg)).tables if t.table == "line_item"]
    assert (told.state, told.permission) == ("refused", "rak_line_item_read")
    del stripe.answers["/v1/invoices/in_1/lines"]
    assert (await backfill(copy, "invoice", "line_item")).complete
    assert await pg.fetchval(lines) == 12


@pytest.mark.parametrize("answer", [error(500), error(400, "No."), (200, b'{"object": "list"}')])
async def test_one_parent_that_cannot_be_read_is_owed_and_stops_nothing(
    answer: Answer, stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    stripe.lists["/v1/customers"] = [{**customer(n), "balance": 1} for n in range(9, 0, -1)]
    for n in range(1, 10):
        key = f"cbtxn_{n}"
        stripe.lists[f"/v1/customers/cus_{n}/balance_transactions"] = [
            {
                "id": key,
                "object": "customer_balance_transaction",
                "created": 1,
                "customer": f"cus_{n}",
            }
        ]
    path = "/v1/customers/cus_5/balance_transactions"
    stripe.answers[path] = lambda _: answer
    outcome = await backfill(copy, "customer", "customer_balance_transaction")
    assert outcome.complete
    assert await pg.fetchval("SELECT count(*) FROM stripe.customer_balance_transaction") == 8
    owed = (await status(pg)).owed
    assert [(o.kind, o.example) for o in owed] == [("children", "cus_5")]
    del stripe.answers[path]
    await try_now(pg)
    await RefetchWorker(copy.source).drain()
    assert await pg.fetchval("SELECT count(*) FROM stripe.customer_balance_transaction") == 9


async def test_a_page_of_the_first_copy_that_met_trouble_is_requested_again(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    stripe.lists["/v1/customers"] = [customer(n) for n in range(150, 0, -1)]
    left = iter(range(3))  # More than the client's own tries.
    stripe.answers["/v1/customers"] = lambda _: error(500) if next(left, None) is not None else None
    assert (await backfill(copy, "customer")).complete
    assert await pg.fetchval("SELECT count(*) FROM stripe.customer") == 150


class Hands:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_list_without_events_that_met_trouble_or_was_refused_is_read_again(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    source, clock = only(copy, "balance_transaction"), Hands()
    txn = {"id": "txn_1", "object": "balance_transaction", "created": int(time.time())}
    stripe.lists["/v1/balance_transactions"] = [txn]
    relist = Relist(source, RefetchWorker(source), copy.budget, intervals=Intervals(), clock=clock)
    path = "/v1/balance_transactions"
    for answer, state, wait_s in (
        (error(500), "failed", 20),
        (error(400, "What?"), "failed", 70),
        (error(403, "Having the 'rak_balance_read' permission would."), "refused", 86_500),
    ):
        stripe.answers[path] = lambda _, answer=answer: answer  # type: ignore[misc]
        await relist.run_due()
        rows = await pg.fetch("SELECT state, next_try_at > now() AS later FROM pinstripe.cursor")
        assert [(r["state"], r["later"]) for r in rows] == [(state, True)]
        asked = len(stripe.asked)
        await relist.run_due()
        assert len(stripe.asked) == asked
        clock.now += wait_s
    del stripe.answers[path]
    await relist.run_due()
    assert await pg.fetchval("SELECT count(*) FROM stripe.balance_transaction") == 1
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.cursor WHERE state <> 'done'") == 0


@pytest.mark.parametrize("state", ["failed", "refused"])
async def test_a_list_that_the_first_copy_could_not_read_goes_on_while_following(
    state: str, stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    source, clock = only(copy, "customer"), Hands()
    stripe.lists["/v1/customers"] = [customer(n) for n in range(150, 0, -1)]
    await pg.execute(
        "INSERT INTO pinstripe.cursor (schema, stream, state, position, reason, code, next_try_at)"
        " VALUES ('stripe', '/v1/customers', $1, $2::jsonb, 'no', 'refused', now() + '1 min')",
        state,
        '{"table": "customer", "ceiling": 1800000000, "todo": [[null, null, "cus_51", 1700000051]]}',
    )
    copy.mirror.loading.add("customer")
    relist = Relist(source, RefetchWorker(source), copy.budget, clock=clock)
    await relist._remember()
    await relist.run_due()
    assert await pg.fetchval("SELECT count(*) FROM stripe.customer") == 0
    clock.now = 61.0
    await relist.run_due()
    rows = await pg.fetchval("SELECT count(*) FROM stripe.customer")
    assert rows == (50 if state == "failed" else 150)
    assert await pg.fetchval("SELECT state FROM pinstripe.cursor") == "done"
    assert await pg.fetchval('SELECT "table" FROM pinstripe.copied') == "customer"
    assert copy.mirror.loading == set()


async def test_what_objects_of_such_a_list_hold_is_loaded_with_it(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    """Else no renewal would show in the subscription, whose period is that of its items."""

    def renewed(until: int) -> dict[str, object]:
        item = {"id": "si_1", "object": "subscription_item", "subscription": "sub_1"}
        data = [{**item, "current_period_end": until}]
        held = {"object": "list", "data": data, "has_more": False, "url": "/v1/subscription_items"}
        return {"id": "sub_1", "object": "subscription", "created": 1700000000, "items": held}

    stripe.date_ahead_s = 0.0
    stripe.lists["/v1/subscriptions"] = [renewed(1800000000)]
    source, clock = only(copy, "subscription", "subscription_item"), Hands()
    await pg.execute(
        "INSERT INTO pinstripe.cursor (schema, stream, state, position, reason, next_try_at)"
        " VALUES ('stripe', '/v1/subscriptions&status=all', 'failed', $1::jsonb, 'no', now())",
        '{"table": "subscription", "ceiling": 1800000000, "todo": [[null, null, null, null]]}',
    )
    copy.mirror.loading.update(source.wanted)
    relist = Relist(source, RefetchWorker(source), copy.budget, clock=clock)
    await relist._remember()
    clock.now = 1.0
    await relist.run_due()
    assert copy.mirror.loading == set()
    rows = await pg.fetch('SELECT "table" FROM pinstripe.copied ORDER BY 1')
    assert [row[0] for row in rows] == ["subscription", "subscription_item"]
    later = int(time.time()) + 10
    stripe.event("customer.subscription.updated", renewed(1900000000), created=later)
    await EventPoller(source, RefetchWorker(source), since=time.time() - 60).poll()
    until = "SELECT extract(epoch FROM current_period_end)::bigint FROM stripe.subscription"
    assert await pg.fetchval(until) == 1900000000


async def test_what_rows_of_such_a_list_refer_to_is_fetched_and_the_copy_is_complete_then(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    """No list has a deleted customer."""
    source, clock = only(copy, "charge", "customer"), Hands()
    gone = {"id": "cus_gone", "object": "customer", "deleted": True}
    stripe.answers["/v1/customers/cus_gone"] = lambda _: (200, gone)
    stripe.lists["/v1/charges"] = [{"id": "ch_1", "object": "charge", "customer": "cus_gone"}]
    await pg.execute(
        "INSERT INTO pinstripe.cursor (schema, stream, state, position, reason, next_try_at)"
        " VALUES ('stripe', '/v1/charges', 'failed', $1::jsonb, 'no', now())",
        '{"table": "charge", "ceiling": 1800000000, "todo": [[null, null, null, null]]}',
    )
    copy.mirror.loading.add("charge")
    relist = Relist(source, RefetchWorker(source), copy.budget, clock=clock)
    await relist._remember()
    clock.now = 1.0
    await relist.run_due()
    assert await pg.fetchval("SELECT deleted FROM stripe.customer WHERE id = 'cus_gone'")
    ready = "SELECT state FROM pinstripe.cursor WHERE stream = 'ready'"
    assert await pg.fetchval(ready) == "done"


ODD_EVENTS: dict[str, object] = {
    "text with half a surrogate": {
        "id": "evt_odd",
        "data": {"object": customer(2, name="cut \ud83d")},
    },
    "an object without an id": {"id": "evt_odd", "data": {"object": {"object": "customer"}}},
    "an id of null": {"id": "evt_odd", "data": {"object": {"object": "customer", "id": None}}},
    "an id that is a number": {
        "id": "evt_odd",
        "data": {"object": {"object": "customer", "id": 7}},
    },
    "an unknown type of object": {
        "id": "evt_odd",
        "data": {"object": {"object": "x.y", "id": "x_1"}},
    },
    "no object": {"id": "evt_odd", "data": {"object": None}},
    "no data": {"id": "evt_odd", "data": None},
    "data that is a list": {"id": "evt_odd", "data": [1]},
    "nothing at all": {},
    "null": None,
    "a text": "evt_odd",
    "no id": {"data": {"object": customer(2)}},
    "no type and no time": {
        "id": "evt_odd",
        "type": None,
        "created": None,
        "data": {"object": customer(2)},
    },
    "a time beyond all years": {
        "id": "evt_odd",
        "created": 10**30,
        "data": {"object": customer(2)},
    },
    "a time before all years": {
        "id": "evt_odd",
        "created": -(10**30),
        "data": {"object": customer(2)},
    },
    "previous attributes of another kind": {
        "id": "evt_odd",
        "data": {"object": customer(2), "previous_attributes": [1, 2]},
    },
    "a request of another kind": {"id": "evt_odd", "request": [1], "data": {"object": customer(2)}},
    "fields of other types": {
        "id": "evt_odd",
        "data": {"object": customer(2, name=[1], address="x", metadata=7, livemode={})},
    },
    "a long id of the object": {
        "id": "evt_odd",
        "data": {"object": {"object": "customer", "id": None, "created": "x"}},
    },
}


@pytest.mark.parametrize("odd", ODD_EVENTS)
async def test_one_odd_event_stops_no_other(
    odd: str, stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    stripe.lists["/v1/customers"] = [customer(2), customer(1, name="before")]
    live = EventPoller(copy.source, RefetchWorker(copy.source), since=time.time() - 60)
    stripe.event("customer.created", customer(1, name="before"))
    stripe.events.insert(0, ODD_EVENTS[odd])
    stripe.event("customer.created", customer(3, name="after"))
    await live.poll()
    names = await pg.fetch("SELECT name FROM stripe.customer WHERE id <> 'cus_2' ORDER BY id")
    assert [row[0] for row in names] == ["before", "after"]
    applied = await pg.fetchval(
        "SELECT count(*) FROM pinstripe.applied_event WHERE id <> 'evt_odd'"
    )
    assert applied == 2
    asked = len(stripe.asked)
    await live.poll()
    assert len(stripe.asked) == asked + 1


async def test_a_capability_is_a_row_of_each_account_that_has_one_of_its_name(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    keys = ("acct_1Mine", "acct_1Theirs")
    stripe.lists["/v1/accounts"] = [{"id": key, "object": "account"} for key in keys]
    for key in keys:
        had = {"id": "transfers", "object": "capability", "account": key, "status": "active"}
        stripe.lists[f"/v1/accounts/{key}/capabilities"] = [had]
    assert (await backfill(copy, "account", "capability")).complete
    rows = await pg.fetch("SELECT id, account_id FROM stripe.capability ORDER BY 1")
    assert [tuple(row) for row in rows] == [(f"{key}/transfers", key) for key in keys]
    lost = {**had, "status": "inactive"}
    stripe.lists["/v1/accounts/acct_1Theirs/capabilities"] = [lost]
    stripe.event("capability.updated", lost, api_version="2019-12-03")
    refetches = RefetchWorker(copy.source)
    await EventPoller(copy.source, refetches, since=time.time() - 60).poll()
    await refetches.work_off()
    await copy.mirror.conflicts.wait_resolved()
    assert "/v1/accounts/acct_1Theirs/capabilities/transfers" in stripe.paths()
    states = await pg.fetch("SELECT status FROM stripe.capability ORDER BY id")
    assert [row[0] for row in states] == ["active", "inactive"]


async def test_an_object_with_an_empty_id_is_no_row_and_nobody_asks_for_it(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    stripe.lists["/v1/customers"] = [customer(2), {**customer(1), "id": ""}]
    assert (await backfill(copy, "customer")).complete
    assert await pg.fetchval("SELECT array_agg(id) FROM stripe.customer") == ["cus_2"]
    why = {"type": "card_error", "payment_method": {"id": "", "object": "payment_method"}}
    failed = {"id": "pi_1", "object": "payment_intent", "last_payment_error": why}
    stripe.event("payment_intent.payment_failed", failed)
    refetches = RefetchWorker(copy.source)
    await EventPoller(copy.source, refetches, since=time.time() - 60).poll()
    assert await pg.fetchval("SELECT count(*) FROM stripe.payment_intent") == 1
    await refetches.work_off()


async def test_bytes_that_are_not_utf_8_become_stand_ins(
    stripe: ScriptedStripe, copy: Copy, pg: asyncpg.Connection
) -> None:
    body = (
        b'{"object": "list", "has_more": false, "url": "/v1/customers", "data": ['
        b'{"id": "cus_1", "object": "customer", "created": 1, "name": "caf\xe9 \xff"},'
        b'{"id": "cus_2", "object": "customer", "created": 1, "name": "good"}]}'
    )
    stripe.answers["/v1/customers"] = lambda _: (200, body)
    assert (await backfill(copy, "customer")).complete
    names = await pg.fetch("SELECT name FROM stripe.customer ORDER BY id")
    assert [row[0] for row in names] == ["caf\ufffd \ufffd", "good"]


async def test_polls_are_closer_and_larger_while_much_happens(
    stripe: ScriptedStripe, copy: Copy
) -> None:
    now = [100.0]
    since = time.time() - 60
    live = EventPoller(copy.source, RefetchWorker(copy.source), since=since, clock=lambda: now[0])
    pauses_s, events = [], (1, 2, 15, 60, 0)
    for count in events:
        now[0] += 0.5
        for number in range(count):
            stripe.event("customer.created", customer(count * 100 + number))
        await live.poll()
        pauses_s.append(live._poll_s())
    assert pauses_s == [pytest.approx(s) for s in (0.25, 0.25, 0.25, 0.1, 0.5)]
    limits = [int(dict(query)["limit"]) for _, query in stripe.asked if query]
    assert limits[-1] > limits[0] == 20
