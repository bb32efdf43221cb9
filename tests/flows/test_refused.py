"""What Stripe refuses beside whole objects costs itself, is remembered, and is asked for again.

And what "complete" means: not where a key may read nothing, an account is the wrong one, or a table was
never asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest
from tests.flows.harness.command import Ended, pinstripe
from tests.flows.harness.scripted_stripe import (
    Answer,
    Params,
    ScriptedStripe,
    error,
    expands,
    scripted_stripe,
)

NO_PERMISSION = (
    "The provided key 'rk_test_***' does not have the required permissions for this endpoint. "
    "Having the 'rak_x_read' permission would allow this request to continue."
)


@pytest.fixture
async def stripe() -> AsyncIterator[ScriptedStripe]:
    async with scripted_stripe() as made:
        yield made


async def once(stripe: ScriptedStripe, database: str, tables: str, *words: str) -> Ended:
    env = {
        "STRIPE_API_KEY": stripe.key,
        "STRIPE_API_BASE": stripe.url,
        "DATABASE_URL": database,
        "PINSTRIPE_TABLES": tables,
        "PINSTRIPE_RATE_LIMIT": "none",
        "PINSTRIPE_ENDPOINT_RATE_LIMIT": "none",
    }
    return await pinstripe("sync", "--once", *words, env=env)


def refusing(path: str, refused: str, said: Answer) -> object:
    def hook(asked: str, params: Params) -> Answer | None:
        return said if asked == path and refused in expands(params) else None

    return hook


@pytest.mark.parametrize(
    "said",
    [
        error(400, "This property cannot be expanded (data.sources)."),
        error(400, "This property cannot be expanded (sources). Try expanding 'x' instead."),
        error(400, "This property cannot be expanded."),
        error(403, NO_PERMISSION),
    ],
)
async def test_a_refused_expand_costs_that_property_and_is_remembered(
    stripe: ScriptedStripe, database: str, pg: asyncpg.Connection, said: Answer
) -> None:
    path = "/v1/customers"
    stripe.lists[path] = [{"id": f"cus_{n}", "object": "customer", "created": n} for n in (2, 1)]
    stripe.hooks.append(refusing(path, "data.sources", said))  # type: ignore[arg-type]
    ended = await once(stripe, database, "customer")
    assert ended.code == 0, ended.text
    assert "without data.sources" in ended.text
    assert await pg.fetchval("SELECT count(*) FROM stripe.customer") == 2
    shown = [e for p, params in stripe.asked if p == path for e in [expands(params)]]
    assert "data.tax" in shown[-1], "the others are still asked for"
    assert "data.sources" not in shown[-1]
    stripe.asked.clear()
    await pg.execute("DELETE FROM pinstripe.cursor")
    await once(stripe, database, "customer")
    assert not [p for p, params in stripe.asked if "data.sources" in expands(params)]
    # When its time has come it is asked for again.
    stripe.hooks.clear()
    await pg.execute("UPDATE pinstripe.refusal SET next_try_at = now()")
    await pg.execute("DELETE FROM pinstripe.cursor")
    ended = await once(stripe, database, "customer")
    assert [p for p, params in stripe.asked if "data.sources" in expands(params)]
    assert "without data.sources" not in ended.text
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.refusal") == 0


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/payment_methods", "payment_method"),
        ("/v1/billing/credit_balance_transactions", "billing.credit_balance_transaction"),
    ],
)
async def test_a_list_that_wants_a_customer_is_read_by_customer_and_asked_again_later(
    stripe: ScriptedStripe, database: str, pg: asyncpg.Connection, path: str, name: str
) -> None:
    table = name.replace(".", "_")
    stripe.lists["/v1/customers"] = [
        {"id": f"cus_{n}", "object": "customer", "created": n} for n in (3, 2, 1)
    ]
    stripe.lists[path] = [
        {"id": f"x_{n}", "object": name, "created": n, "customer": f"cus_{n}"} for n in (2, 1)
    ]

    def wants_customer(asked: str, params: Params) -> Answer | None:
        if asked != path or "customer" in dict(params):
            return None
        return error(400, "Missing required param: customer.", "parameter_missing", "customer")

    def free() -> int:
        return sum(p == path and "customer" not in dict(q) for p, q in stripe.asked)

    stripe.hooks.append(wants_customer)
    ended = await once(stripe, database, f"customer,{table}")
    assert ended.code == 0, ended.text
    assert "read by parent instead" in ended.text
    assert await pg.fetchval(f"SELECT count(*) FROM stripe.{table}") == 2
    assert free() == 1
    stripe.asked.clear()
    ended = await once(stripe, database, f"customer,{table}")
    assert ended.code == 0, ended.text
    assert free() == 0
    stripe.hooks.clear()
    await pg.execute("UPDATE pinstripe.refusal SET next_try_at = now()")
    ended = await once(stripe, database, f"customer,{table}")
    assert ended.code == 0, ended.text
    assert free() >= 1
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.refusal") == 0


async def test_discounts_come_with_what_names_them(
    stripe: ScriptedStripe, database: str, pg: asyncpg.Connection
) -> None:
    def shown(path: str, params: Params) -> Answer | None:
        if "data.discounts" not in expands(params) or path not in stripe.lists:
            return None
        data = [
            {**o, "discounts": [{"id": d, "object": "discount"} for d in o["discounts"]]}
            for o in stripe.lists[path]
        ]
        return 200, {"object": "list", "data": data, "has_more": False, "url": path}

    for number, (path, name) in enumerate(
        {
            "/v1/subscriptions": "subscription",
            "/v1/invoices": "invoice",
            "/v1/invoiceitems": "invoiceitem",
            "/v1/quotes": "quote",
        }.items()
    ):
        stripe.lists[path] = [
            {"id": f"x_{number}", "object": name, "created": 1, "discounts": [f"di_{number}"]}
        ]
    stripe.hooks.append(shown)
    ended = await once(stripe, database, "discount,subscription,invoice,invoice_item,quote")
    assert ended.code == 0, ended.text
    rows = await pg.fetch("SELECT id FROM stripe.discount ORDER BY id")
    assert [row[0] for row in rows] == ["di_0", "di_1", "di_2", "di_3"]


GUESTS = {
    "/v1/payment_intents": {"id": "pi_1", "object": "payment_intent", "payment_method": "pm_1"},
    "/v1/setup_intents": {"id": "seti_1", "object": "setup_intent", "mandate": "mandate_1"},
}


@pytest.mark.parametrize("is_free", [True, False])
async def test_what_no_list_has_comes_with_the_pages_that_name_it(
    stripe: ScriptedStripe, database: str, pg: asyncpg.Connection, *, is_free: bool
) -> None:
    """A guest's payment method is no customer's. `is_free`: the list of all leaves it out, else refuses."""

    def shown(path: str, params: Params) -> Answer | None:
        if path == "/v1/payment_methods" and not is_free:
            return error(400, "Missing required param: customer.", "parameter_missing", "customer")
        data = dict(GUESTS.get(path, {}), created=1)
        for name in ("payment_method", "mandate"):
            if f"data.{name}" in expands(params) and name in data:
                data[name] = {"id": data[name], "object": name, "type": "card"}
        return (
            (200, {"object": "list", "data": [data], "has_more": False}) if path in GUESTS else None
        )

    stripe.lists["/v1/charges"] = [
        {"id": "ch_1", "object": "charge", "created": 1, "payment_method": "pm_1"}
    ]
    stripe.hooks.append(shown)
    tables = "customer,charge,payment_intent,setup_intent"
    ended = await once(stripe, database, f"{tables},payment_method,mandate")
    assert ended.code == 0, ended.text
    assert not [path for path, _ in stripe.asked if "/pm_" in path or "/mandate_" in path]
    assert await pg.fetchval("SELECT id FROM stripe.payment_method") == "pm_1"
    assert await pg.fetchval("SELECT payment_method_id FROM stripe.payment_intent") == "pm_1"
    assert await pg.fetchval("SELECT id FROM stripe.mandate") == "mandate_1"
    stripe.asked.clear()
    await pg.execute("DELETE FROM pinstripe.cursor")
    ended = await once(stripe, database, tables)
    assert ended.code == 0, ended.text
    asked = {e for path, params in stripe.asked if path in GUESTS for e in expands(params)}
    assert not asked & {"data.payment_method", "data.mandate"}, "nobody wants these tables"


@pytest.mark.parametrize(
    "said",
    [
        error(403, "Only Stripe Connect platforms can work with other accounts."),
        error(403, "The provided key does not have access to account 'acct_1'.", "account_invalid"),
        error(400, "You cannot access the connected accounts of your platform's accounts."),
    ],
)
async def test_a_wrong_account_ends_it_with_the_setting_named(
    stripe: ScriptedStripe, database: str, said: Answer
) -> None:
    stripe.hooks.append(lambda _, __: said)
    ended = await once(stripe, database, "customer", "--stripe-account=acct_1")
    assert ended.code == 2
    assert "--stripe-account" in ended.err
    assert "omplete" not in ended.text
    assert len(stripe.asked) == 1


async def test_a_key_that_may_read_nothing_is_not_complete(
    stripe: ScriptedStripe, database: str
) -> None:
    stripe.hooks.append(lambda _, __: error(403, NO_PERMISSION))
    ended = await once(stripe, database, "customer,charge,person,account", "--json")
    assert ended.code == 4
    assert "NOT complete" in ended.err
    assert json.loads(ended.out)["complete"] is False


ORDINARY = {
    "/v1/test_helpers/test_clocks": "This endpoint is only available in testmode. Try your test keys.",
    "/v1/forwarding/requests": "Your account is not authorized to send Forwarding requests in livemode.",
    "/v1/climate/orders": "Account not eligible for Climate Orders",
    "/v1/treasury/financial_accounts": "Unrecognized request URL (GET: /v1/treasury/fin...).",
}


async def test_an_ordinary_account_of_live_mode_is_complete(
    stripe: ScriptedStripe, database: str, pg: asyncpg.Connection
) -> None:
    stripe.lists["/v1/customers"] = [{"id": "cus_1", "object": "customer", "created": 1}]
    stripe.hooks.append(lambda p, _: error(400, ORDINARY[p]) if p in ORDINARY else None)
    names = "test_helpers_test_clock,forwarding_request,climate_order,treasury_financial_account"
    ended = await once(stripe, database, f"customer,{names}")
    assert ended.code == 0, ended.text
    rows = await pg.fetch("SELECT stream FROM pinstripe.cursor WHERE state = 'refused'")
    assert {row[0] for row in rows} == set(ORDINARY)
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.cursor WHERE state = 'failed'") == 0
    assert await pg.fetchval("SELECT id FROM stripe.customer") == "cus_1"


async def test_an_event_that_ages_out_while_the_log_is_copied_ends_nothing(
    stripe: ScriptedStripe, database: str, pg: asyncpg.Connection
) -> None:
    newest = int(time.time()) - 10 * 86400
    for n in range(130, 0, -1):
        obj = {"id": f"cus_{n}", "object": "customer"}
        stripe.event("customer.updated", obj, id=f"evt_{n}", created=newest - n)

    def aged(path: str, params: Params) -> Answer | None:
        if path != "/v1/events" or dict(params).get("starting_after") != "evt_100":
            return None
        return error(400, "evt_100 is no longer available: it's aged out of our retention policy.")

    stripe.hooks.append(aged)
    ended = await once(stripe, database, "event")
    assert ended.code == 0, ended.text
    assert await pg.fetchval("SELECT count(*) FROM stripe.event") == 130


DETACHED = "A source must be attached to a customer to be used as a `payment_method`."
LEFT = "The key does not have access to account 'acct_00'."
GONE = {
    "payment_method": ("payment_method", "src", error(400, DETACHED, "", "payment_method")),
    "account": ("on_behalf_of", "acct", error(403, LEFT, "account_invalid")),
}


@pytest.mark.parametrize("table", GONE)
async def test_one_object_that_may_not_be_fetched_keeps_no_other_away(
    stripe: ScriptedStripe, database: str, pg: asyncpg.Connection, table: str
) -> None:
    field, prefix, said = GONE[table]
    ids = [f"{prefix}_{n:02}" for n in range(60)]
    stripe.lists["/v1/charges"] = [
        {"id": f"ch_{n}", "object": "charge", "created": 1000 - n, field: key}
        for n, key in enumerate(ids)
    ]

    def shown(path: str, _: Params) -> Answer | None:
        key = path.rpartition("/")[2]
        if key == ids[0]:
            return said
        return (200, {"id": key, "object": table}) if key in ids else None

    stripe.hooks.append(shown)
    ended = await once(stripe, database, f"charge,{table}")
    assert ended.code == 0, ended.text
    rows = await pg.fetch(f"SELECT id FROM stripe.{table} WHERE id = ANY ($1)", ids)
    assert len(rows) == 59
    assert await pg.fetchval("SELECT id FROM pinstripe.missing") == ids[0]
    assert len([path for path in stripe.paths() if path.endswith(ids[0])]) == 1


async def test_a_table_that_nothing_was_asked_for_is_named_and_not_complete(
    stripe: ScriptedStripe, database: str
) -> None:
    ended = await once(stripe, database, "customer,line_item", "--json")
    assert ended.code == 4
    line = next(t for t in json.loads(ended.out)["tables"] if t["table"] == "line_item")
    assert line["status"] == "unasked"
    assert "invoice" in line["remedy"]
    assert "Not requested" in ended.err


@pytest.mark.parametrize(
    "done",
    [
        "DROP TABLE stripe.customer",
        "TRUNCATE stripe.customer",
        "DELETE FROM stripe.line_item",
        "DROP TABLE stripe.line_item",
        "DROP SCHEMA stripe CASCADE",
    ],
)
async def test_a_table_that_was_emptied_or_dropped_by_hand_is_said_and_read_again(
    stripe: ScriptedStripe, database: str, pg: asyncpg.Connection, done: str
) -> None:
    line = {"id": "il_1", "object": "line_item"}
    lines = {"object": "list", "data": [line], "has_more": False, "url": "/v1/invoices/in_1/lines"}
    stripe.lists["/v1/customers"] = [{"id": "cus_1", "object": "customer", "created": 1}]
    stripe.lists["/v1/invoices"] = [
        {"id": "in_1", "object": "invoice", "created": 1, "lines": lines}
    ]
    tables = ("customer", "invoice", "line_item")
    assert (await once(stripe, database, ",".join(tables))).code == 0
    await pg.execute(done)
    ended = await once(stripe, database, ",".join(tables))
    assert ended.code == 0, ended.text
    assert "read again" in ended.err
    for name in tables:
        assert await pg.fetchval(f"SELECT count(*) FROM stripe.{name}") == 1, name
    stripe.asked.clear()
    ended = await once(stripe, database, ",".join(tables))
    assert "read again" not in ended.err
    assert "/v1/customers" not in stripe.paths()


@pytest.mark.parametrize(
    "url", ["@127.0.0.1:1/x", "https://evil.test/x", "/v1/customers", "/v1/invoices/lines", None]
)
async def test_a_nested_list_whose_address_leads_elsewhere_is_read_where_it_is(
    stripe: ScriptedStripe, database: str, pg: asyncpg.Connection, url: str | None
) -> None:
    lines = [
        {"id": f"il_{n:02}", "object": "line_item", "amount": n, "invoice": "in_2"}
        for n in range(12)
    ]
    stripe.lists["/v1/invoices/in_2/lines"] = lines
    shown = {"object": "list", "data": lines[:10], "has_more": True, "url": url}
    stripe.lists["/v1/invoices"] = [
        {"id": f"in_{n}", "object": "invoice", "created": n, **({"lines": shown} if n == 2 else {})}
        for n in (3, 2, 1)
    ]
    ended = await once(stripe, database, "invoice,line_item")
    assert ended.code == 0, ended.text
    assert await pg.fetchval("SELECT count(*) FROM stripe.invoice") == 3
    assert await pg.fetchval("SELECT count(*) FROM stripe.line_item") == 12


async def test_a_nested_list_that_shows_nothing_and_goes_on_is_read(
    stripe: ScriptedStripe, database: str, pg: asyncpg.Connection
) -> None:
    path = "/v1/invoices/in_1/lines"
    stripe.lists[path] = [
        {"id": f"il_{n}", "object": "line_item", "amount": n, "invoice": "in_1"} for n in range(3)
    ]
    lines = {"object": "list", "data": [], "has_more": True, "url": path}
    stripe.lists["/v1/invoices"] = [
        {"id": "in_1", "object": "invoice", "created": 1, "lines": lines}
    ]
    ended = await once(stripe, database, "invoice,line_item")
    assert ended.code == 0, ended.text
    assert await pg.fetchval("SELECT count(*) FROM stripe.line_item WHERE invoice_id = 'in_1'") == 3


async def test_an_index_that_a_limit_of_the_server_forbids_is_left_out_and_told(
    stripe: ScriptedStripe, database: str, pg: asyncpg.Connection
) -> None:
    name = await pg.fetchval("SELECT current_database()")
    await pg.execute(f"ALTER DATABASE {name} SET temp_file_limit = 0")
    await pg.execute(f"ALTER DATABASE {name} SET maintenance_work_mem = '64kB'")
    stripe.lists["/v1/customers"] = [
        {"id": f"cus_{n:05}", "object": "customer", "created": n} for n in range(6000, 0, -1)
    ]
    ended = await once(stripe, database, "customer,event")
    assert ended.code == 0, ended.text
    assert "temp_file_limit" in ended.text
    assert await pg.fetchval("SELECT count(*) FROM stripe.customer") == 6000


async def test_half_an_emoji_in_the_account_stops_nothing(
    stripe: ScriptedStripe, database: str, pg: asyncpg.Connection
) -> None:
    account = {"id": "acct_1Odd", "object": "account", "business_profile": {"name": "cut \ud83d"}}
    stripe.answers["/v1/account"] = lambda _: (200, account)
    stripe.lists["/v1/customers"] = [{"id": "cus_1", "object": "customer", "created": 1}]
    ended = await once(stripe, database, "account,customer")
    assert ended.code == 0, ended.text
    assert await pg.fetchval("SELECT account_id FROM pinstripe.sync") == "acct_1Odd"
    assert await pg.fetchval("SELECT business_profile_name FROM stripe.account") == "cut \ufffd"


@pytest.mark.parametrize("odd", [b"1e400", b"NaN", b"7" * 5000])
async def test_an_event_with_a_number_that_nothing_holds_stops_no_other(
    odd: bytes, stripe: ScriptedStripe, database: str, pg: asyncpg.Connection
) -> None:
    def log(_: Params) -> Answer:
        page = {"object": "list", "data": stripe.events, "has_more": False, "url": "/v1/events"}
        return 200, json.dumps(page, indent=2).encode().replace(b'"ODD"', odd)

    shown = {"id": "cus_1", "object": "customer", "created": 1, "balance": "ODD"}
    stripe.event("customer.created", shown)
    stripe.event("customer.created", {"id": "cus_2", "object": "customer", "created": 2})
    stripe.answers["/v1/events"] = log
    ended = await once(stripe, database, "customer,event")
    assert ended.code == 0, ended.text
    assert await pg.fetchval("SELECT array_agg(id ORDER BY id) FROM stripe.event") == [
        *("evt_00001", "evt_00002")
    ]


async def test_contention_on_one_object_for_ever_costs_its_nested_list_alone(
    stripe: ScriptedStripe, database: str, pg: asyncpg.Connection
) -> None:
    first = {"id": "il_1", "object": "line_item", "amount": 1, "invoice": "in_2"}
    path = "/v1/invoices/in_2/lines"
    stripe.lists["/v1/invoices"] = [
        {"id": f"in_{n}", "object": "invoice", "created": n} for n in (3, 2, 1)
    ]
    shown = {"object": "list", "data": [first], "has_more": True, "url": path}
    stripe.lists["/v1/invoices"][1]["lines"] = shown
    stripe.hooks.append(
        lambda asked, _: error(429, "In use.", "lock_timeout") if asked == path else None
    )
    ended = await once(stripe, database, "invoice,line_item")
    assert ended.code == 4, ended.text
    assert await pg.fetchval("SELECT count(*) FROM stripe.invoice") == 3
