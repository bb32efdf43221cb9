"""Views in the shape of other products' tables: they hold what those hold, and follow the catalog."""

from __future__ import annotations

import asyncio
import json
from datetime import date, timedelta
from pathlib import Path

import asyncpg
import pytest
from tests.postgres.writing import SCHEMA, make_schema, writing

from pinstripe.catalog.tables import tables
from pinstripe.client.response import StripeObject
from pinstripe.config.config import COMPAT, read_config
from pinstripe.errors import Misconfigured
from pinstripe.store.compat import set_compat, shapes, view_columns
from pinstripe.store.migrate import effective_tables
from pinstripe.store.roles import drop_reader, renew_reader

LEAST = {"fivetran": 0.95, "supabase": 0.89, "sigma": 0.95}
EXAMPLES = json.loads((Path(__file__).parents[1] / "data" / "examples.json").read_text())


@pytest.mark.parametrize("product", COMPAT)
def test_most_columns_of_the_product_are_there(product: str) -> None:
    shape = shapes()[product]
    there = sum(len([*view_columns(shape, v, tables()[v.table])]) for v in shape.views.values())
    assert there / sum(len(v.columns) for v in shape.views.values()) >= LEAST[product]


async def test_the_views_hold_what_the_rows_hold(database: str) -> None:
    names = ["charge", "customer", "balance_transaction"]
    await make_schema(database, names)
    async with writing(database, *names) as w:
        await set_compat(w.pg, SCHEMA, w.writer._tables, COMPAT)
        address = {"city": "Oslo", "country": "NO"}
        charge: StripeObject = {
            "id": "ch_1",
            "object": "charge",
            "amount": 5,
            "created": 1_790_000_000,
        }
        charge["billing_details"] = {"address": address, "email": "a@example.com"}
        fees = [{"amount": 3, "type": "stripe_fee"}, {"amount": 2, "type": "tax"}]
        movement: StripeObject = {
            "id": "txn_1",
            "object": "balance_transaction",
            "fee_details": fees,
        }
        await w.put((charge, 0, 1), (movement, 0, 1))
        there = await w.pg.fetchrow("SELECT * FROM stripe_fivetran.charge")
        assert there is not None
        assert (there["billing_detail_address_city"], there["amount"]) == ("Oslo", 5)
        fee = await w.pg.fetch('SELECT "index", amount FROM stripe_fivetran.fee ORDER BY 1')
        assert [tuple(row) for row in fee] == [(0, 3), (1, 2)]
        row = await w.pg.fetchrow("SELECT created, paid FROM stripe_supabase.charges")
        assert row is not None
        assert (row["created"], row["paid"]) == (1_790_000_000, None)


async def test_each_column_of_each_view_can_be_read(database: str) -> None:
    """With a row in every table: each cast, element and join is evaluated."""
    await make_schema(database, list(tables()))
    async with writing(database, *tables()) as w:
        await set_compat(w.pg, SCHEMA, tables(), COMPAT)
        await w.put(*((obj, 0, 1) for obj in EXAMPLES.values()))
        for product in COMPAT:
            made = await _views_of(w.pg, f"stripe_{product}")
            assert made == sorted(shapes()[product].views)
            for view in made:
                await w.pg.fetch(f'SELECT * FROM stripe_{product}."{view}"')
            lone = await w.pg.fetchval(
                "SELECT count(*) FROM information_schema.columns WHERE table_schema = $1",
                f"stripe_{product}",
            )
            shape = shapes()[product]
            assert lone == sum(
                len([*view_columns(shape, v, tables()[v.table])]) for v in shape.views.values()
            )


async def _views_of(pg: asyncpg.Connection[asyncpg.Record], schema: str) -> list[str]:
    rows = await pg.fetch("SELECT viewname::text FROM pg_views WHERE schemaname = $1", schema)
    return sorted(row[0] for row in rows)


async def test_queries_as_stripe_publishes_them_for_sigma_read_the_views(database: str) -> None:
    """As https://docs.stripe.com/data/query-transactions and -billing-data do it: payouts with what is
    in them, the brand of a card, products through items, metadata as rows, discounts by a split list.
    """
    at = 1_790_000_000
    card: StripeObject = {"brand": "mastercard", "last4": "4444", "exp_month": 7}
    charge: StripeObject = {"id": "ch_1", "object": "charge", "amount": 900, "created": at}
    charge |= {"captured": True, "balance_transaction": "txn_1", "metadata": {"channel": "web"}}
    charge["payment_method_details"] = {"type": "card", "card": card}
    movement: StripeObject = {"id": "txn_1", "object": "balance_transaction", "net": 850}
    movement |= {"source": "ch_1", "created": at + 60, "type": "charge", "currency": "usd"}
    payout: StripeObject = {"id": "po_1", "object": "payout", "amount": 850, "arrival_date": at}
    payout |= {"type": "bank_account", "automatic": True, "status": "paid"}
    transfer: StripeObject = {"id": "tr_1", "object": "transfer", "amount": 5, "created": at}
    product: StripeObject = {"id": "prod_1", "object": "product", "name": "A thing"}
    price: StripeObject = {"id": "price_1", "object": "price", "product": "prod_1"}
    price |= {"tiers": [{"up_to": 5, "unit_amount": 10}, {"up_to": None, "unit_amount": 8}]}
    item: StripeObject = {"id": "si_1", "object": "subscription_item", "price": "price_1"}
    item |= {"subscription": "sub_1", "quantity": 2}
    held: StripeObject = {"id": "sub_1", "object": "subscription", "status": "active"}
    held["discounts"] = ["di_1", "di_2"]
    discounts: list[StripeObject] = [
        {"id": f"di_{n}", "object": "discount", "source": {"coupon": f"co_{n}"}} for n in (1, 2)
    ]
    objects = (charge, movement, payout, transfer, product, price, item, held, *discounts)
    await make_schema(database, list(tables()))
    async with writing(database, *tables()) as w:
        await set_compat(w.pg, SCHEMA, tables(), ["sigma"])
        await w.put(*((obj, 0, 1) for obj in objects))
        await w.pg.execute(
            "INSERT INTO stripe.payout_balance_transaction (balance_transaction_id, payout_id,"
            " _as_of, _as_of_latest, _synced_at) VALUES ('txn_1', 'po_1', now(), now(), now())"
        )
        await w.pg.execute("SET search_path = stripe_sigma; SET timezone = 'UTC'")
        rows = await w.pg.fetch(
            "SELECT transfers.id, balance_transactions.net, charges.card_brand, charges.card_exp_month,"
            " charges.captured_at - charges.created AS waited, date(transfers.date) AS day"
            " FROM transfers JOIN balance_transactions"
            " ON balance_transactions.automatic_transfer_id = transfers.id"
            " LEFT JOIN charges ON charges.id = balance_transactions.source_id"
            " WHERE transfers.type = 'bank_account'"
        )
        assert [tuple(row) for row in rows] == [
            ("po_1", 850, "MasterCard", 7, timedelta(seconds=60), date(2026, 9, 21))
        ]
        kinds = await w.pg.fetch("SELECT id, type, amount FROM transfers ORDER BY id")
        assert [tuple(r) for r in kinds] == [
            ("po_1", "bank_account", 850),
            ("tr_1", "stripe_account", 5),
        ]
        sold = await w.pg.fetchrow(
            "SELECT products.name, i.quantity, i.price_product_id FROM subscriptions"
            " JOIN subscription_items i ON i.subscription_id = subscriptions.id"
            " JOIN products ON products.id = i.price_product_id"
            " WHERE subscriptions.status = 'active'"
        )
        assert tuple(sold or ()) == ("A thing", 2, "prod_1")
        known = await w.pg.fetchrow("SELECT charge_id, key, value FROM charges_metadata")
        assert tuple(known or ()) == ("ch_1", "channel", "web")
        coupons = await w.pg.fetch(
            "SELECT discounts.coupon_id FROM subscriptions"
            " CROSS JOIN unnest(string_to_array(subscriptions.discounts, ',')) AS t (discount_id)"
            " JOIN discounts ON discounts.id = t.discount_id ORDER BY 1"
        )
        assert [row[0] for row in coupons] == ["co_1", "co_2"]
        tiers = await w.pg.fetch("SELECT price_id, upto, amount FROM price_tiers ORDER BY amount")
        assert [tuple(row) for row in tiers] == [("price_1", None, 8), ("price_1", "5", 10)]


async def test_an_address_of_fivetran_s_has_its_lines(database: str) -> None:
    """`shipping_address_line_1` there is `line1` in Stripe's object: it was null for every row."""
    await make_schema(database, ["charge"])
    async with writing(database, "charge") as w:
        await set_compat(w.pg, SCHEMA, w.writer._tables, ["fivetran"])
        charge: StripeObject = {"id": "ch_1", "object": "charge"}
        charge["shipping"] = {"address": {"line1": "Main Street 1"}, "name": "Ann"}
        await w.put((charge, 0, 1))
        line = await w.pg.fetchval("SELECT shipping_address_line_1 FROM stripe_fivetran.charge")
        assert line == "Main Street 1"


async def test_an_object_that_stripe_does_not_have_is_null(database: str) -> None:
    """`pause_collection IS NULL` found no subscription: all had `{}`."""
    await make_schema(database, ["subscription", "charge"])
    async with writing(database, "subscription", "charge") as w:
        await set_compat(w.pg, SCHEMA, w.writer._tables, ["supabase"])
        paused: StripeObject = {"id": "sub_2", "object": "subscription", "status": "active"}
        paused["pause_collection"] = {"behavior": "void", "resumes_at": None}
        plain: StripeObject = {"id": "sub_1", "object": "subscription", "pause_collection": None}
        by: StripeObject = {"type": "wechat", "wechat": {"location": None}}
        charge: StripeObject = {"id": "ch_1", "object": "charge", "payment_method_details": by}
        await w.put((plain, 0, 1), (paused, 0, 1), (charge, 0, 1))
        rows = await w.pg.fetch(
            "SELECT id, pause_collection::text FROM stripe_supabase.subscriptions ORDER BY id"
        )
        assert [tuple(row) for row in rows] == [("sub_1", None), ("sub_2", '{"behavior": "void"}')]
        # More columns than one function takes arguments.
        details = "SELECT payment_method_details ->> 'type' FROM stripe_supabase.charges"
        assert await w.pg.fetchval(details) == "wechat"


async def test_a_column_of_another_type_costs_its_view_alone(database: str) -> None:
    """As one that the user made a text: what reads parts of its JSON cannot be made, the rest goes on."""
    names = ["charge", "customer"]
    await make_schema(database, names)
    async with writing(database, *names) as w:
        column = "stripe.charge ALTER COLUMN billing_details_address"
        await w.pg.execute(f"ALTER TABLE {column} TYPE text")
        known = await effective_tables(w.pg, SCHEMA, w.writer._tables)
        await set_compat(w.pg, SCHEMA, known, ["fivetran"])
        assert await _views_of(w.pg, "stripe_fivetran") == ["customer"]


async def test_a_view_does_without_the_tables_that_are_not_synced(database: str) -> None:
    names = ["charge", "transfer"]
    await make_schema(database, names)
    async with writing(database, *names) as w:
        await set_compat(w.pg, SCHEMA, w.writer._tables, ["sigma"])
        assert await _views_of(w.pg, "stripe_sigma") == [
            "charges",
            "charges_metadata",
            "transfers",
            "transfers_metadata",
        ]
        # Without balance transactions nobody knows when a charge was captured, so no column says it.
        columns = await w.pg.fetchval(
            "SELECT array_agg(column_name::text) FROM information_schema.columns"
            " WHERE table_schema = 'stripe_sigma' AND table_name = 'charges'"
        )
        assert "captured" in columns
        assert "captured_at" not in columns


async def test_they_go_when_they_are_no_longer_wanted_and_are_made_once(database: str) -> None:
    names = ["charge"]
    known = {n: tables()[n] for n in names}
    await make_schema(database, names)
    async with writing(database, *names) as w:
        await set_compat(w.pg, SCHEMA, known, ["fivetran"])
        place = "SELECT 'stripe_fivetran.charge'::regclass::oid"
        first = await w.pg.fetchval(place)
        await set_compat(w.pg, SCHEMA, known, ["fivetran"])
        assert await w.pg.fetchval(place) == first
        await w.pg.execute("CREATE VIEW public.mine AS SELECT id FROM stripe_fivetran.charge")
        await set_compat(w.pg, SCHEMA, known, [])  # A view of the user rests on it: it stays.
        assert await w.pg.fetchval(place) == first
        await w.pg.execute("DROP VIEW public.mine")
        await set_compat(w.pg, SCHEMA, known, [])
        assert not await w.pg.fetchval("SELECT to_regnamespace('stripe_fivetran') IS NOT NULL")


async def test_a_newer_view_keeps_the_rights_and_the_views_that_rest_on_it(database: str) -> None:
    known = {"charge": tables()["charge"]}
    await make_schema(database, ["charge"])
    async with writing(database, "charge") as w:
        await set_compat(w.pg, SCHEMA, known, ["fivetran", "sigma"])
        # As an earlier version made them: the first with the same columns, the other with fewer.
        old = "'As it was (pinstripe 00000000)'"
        await w.pg.execute(
            "CREATE VIEW public.mine AS SELECT id FROM stripe_fivetran.charge;"
            f"COMMENT ON VIEW stripe_fivetran.charge IS {old}; DROP VIEW stripe_sigma.charges;"
            "CREATE VIEW stripe_sigma.charges AS SELECT id AS former FROM stripe.charge;"
            f"COMMENT ON VIEW stripe_sigma.charges IS {old}; GRANT SELECT ON stripe_sigma.charges"
            " TO pg_monitor WITH GRANT OPTION; GRANT SELECT ON stripe_fivetran.charge TO PUBLIC"
        )
        await set_compat(w.pg, SCHEMA, known, ["fivetran", "sigma"])
        for place, role in (
            ("stripe_fivetran.charge", "public"),
            ("stripe_sigma.charges", "pg_monitor"),
        ):
            assert await w.pg.fetchval(
                "SELECT obj_description($1::regclass) NOT LIKE '%00000000%'"
                " AND has_table_privilege($2, $1, 'SELECT')",
                place,
                role,
            )
        grants = "SELECT relacl::text FROM pg_class WHERE oid = 'stripe_sigma.charges'::regclass"
        assert "pg_monitor=r*/" in await w.pg.fetchval(grants)
        assert await w.pg.fetch("SELECT id FROM public.mine") == []


async def test_a_view_that_is_read_for_long_is_left_for_the_next_start(database: str) -> None:
    known = {"charge": tables()["charge"]}
    await make_schema(database, ["charge"])
    async with writing(database, "charge") as w:
        await set_compat(w.pg, SCHEMA, known, ["fivetran"])
        old = "COMMENT ON VIEW stripe_fivetran.charge IS 'As it was (pinstripe 00000000)'"
        await w.pg.execute(old)
        reading = await asyncpg.connect(database)
        transaction = reading.transaction()
        await transaction.start()
        await reading.execute("SELECT FROM stripe_fivetran.charge")
        told = "SELECT obj_description('stripe_fivetran.charge'::regclass) LIKE '%00000000%'"
        async with asyncio.timeout(20):
            await set_compat(w.pg, SCHEMA, known, ["fivetran"])
        assert await w.pg.fetchval(told)
        await transaction.rollback()
        await reading.close()
        await set_compat(w.pg, SCHEMA, known, ["fivetran"])
        assert not await w.pg.fetchval(told)


async def test_the_reader_reads_them_and_can_be_dropped(database: str) -> None:
    await make_schema(database, ["charge"])
    async with writing(database, "charge") as w:
        await set_compat(w.pg, SCHEMA, w.writer._tables, ["fivetran"])
    reader = await renew_reader(database, SCHEMA, expect=False)
    connection = await asyncpg.connect(reader.url)
    assert await connection.fetch("SELECT id FROM stripe_fivetran.charge") == []
    await connection.close()
    assert await drop_reader(database, SCHEMA)


def test_an_unknown_product_is_refused() -> None:
    with pytest.raises(Misconfigured) as refused:
        read_config({"compat": "fivetran,novelty"}, {})
    assert "fivetran and supabase" in refused.value.hint
