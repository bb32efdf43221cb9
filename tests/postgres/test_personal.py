"""Erasing a customer beside writers that know nothing of it, and policies that change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

import asyncpg
import pytest
from tests.postgres.writing import SCHEMA, T0, VERSION, make_schema

from pinstripe.catalog.personal import Policy
from pinstripe.catalog.tables import tables
from pinstripe.client.response import AsOf
from pinstripe.errors import Misconfigured
from pinstripe.mirror import Mirror, open_mirror
from pinstripe.mirror.change_feed import delete_rows
from pinstripe.rows.extract import RowSet
from pinstripe.rows.personal import Personal
from pinstripe.store.erasures import erase, find_objects, schedule_deleted
from pinstripe.store.pool import Connection, connect
from pinstripe.store.rewrite import apply_policy, check_policy

NAMES = (
    *("account", "charge", "customer", "dispute", "event", "file", "invoice", "payment_method"),
    *("product", "refund", "subscription", "tax_id", "upcoming_subscription_invoice"),
)
CHOSEN = {name: tables()[name] for name in NAMES}
PREVIEWS = tables()["upcoming_subscription_invoice"]


def opened(url: str, *, changes: bool = False) -> AbstractAsyncContextManager[Mirror]:
    return open_mirror(url, SCHEMA, CHOSEN, api_version=VERSION, changes=changes)


async def put(mirror: Mirror, at: float, *objects: Mapping[str, object]) -> None:
    found = RowSet()
    for obj in objects:
        mirror.extractor.object(dict(obj), found)
    await mirror.write([(found, AsOf(T0 + at, T0 + at + 1))])


async def preview(mirror: Mirror, subscription: str, customer: str, name: str) -> None:
    invoice: dict[str, object] = {"object": "invoice", "customer": customer}
    invoice["customer_name"] = name
    found, parents = RowSet(), {"subscription": subscription}
    mirror.extractor.virtual(PREVIEWS.name, invoice, subscription, found, parents=parents)
    await mirror.write([(found, AsOf(T0, T0 + 1))])


def anna(**fields: object) -> dict[str, object]:
    return {"id": "cus_1", "object": "customer", "name": "Anna", "balance": 1, **fields}


OBJECTS: tuple[dict[str, object], ...] = (
    anna(),
    {"id": "cus_2", "object": "customer", "name": "Bert"},
    {"id": "ch_1", "object": "charge", "customer": "cus_1", "payment_method": "pm_1",
     "billing_details": {"name": "Anna"}, "amount": 5},
    {"id": "pm_1", "object": "payment_method", "billing_details": {"name": "Anna"}},
    {"id": "re_1", "object": "refund", "charge": "ch_1", "description": "for Anna"},
    {"id": "ch_2", "object": "charge", "customer": "cus_2", "description": "for Bert"},
    {"id": "prod_1", "object": "product", "name": "Anna's tea", "metadata": {"by": "cus_1"}},
    {"id": "evt_1", "object": "event", "type": "refund.updated", "created": 1,
     "data": {"object": {"id": "re_1", "object": "refund", "description": "for Anna"}}},
)  # fmt: skip


async def everything(pg: asyncpg.Connection) -> str:
    tables_there = await pg.fetch(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
        " WHERE schemaname IN ('stripe', 'pinstripe')"
    )
    rows = [await pg.fetch(f"SELECT t::text FROM {name[0]} t") for name in tables_there]
    return "\n".join(row[0] for group in rows for row in group)


async def test_an_erasure_reaches_what_refers_to_the_customer_and_what_only_they_refer_to(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_schema(database, NAMES)
    async with opened(database, changes=True) as mirror:
        await put(mirror, 0, *OBJECTS)
        await put(mirror, 5, anna(name="Anna B", balance=2))
    async with connect(database) as connection:
        made = await erase(connection, SCHEMA, "cus_1", reason="requested")
    assert {t: n for t, n in made.rows.items() if t != "change"} == {
        "charge": 1,
        "customer": 1,
        "event": 1,
        "payment_method": 1,
        "refund": 1,
    }
    text = await everything(pg)
    assert "Anna" not in text.replace("Anna's tea", "")
    assert "Bert" in text
    assert await pg.fetchval("SELECT amount FROM stripe.charge WHERE id = 'ch_1'") == 5
    last = await pg.fetchval(
        "SELECT changes::text FROM pinstripe.change WHERE id = 'cus_1' ORDER BY position DESC LIMIT 1"
    )
    assert json.loads(last) == {"name": [None, None]}
    assert await pg.fetchval("SELECT rows ->> 'refund' FROM pinstripe.erasure") == "1"
    async with connect(database) as connection:
        again = await erase(connection, SCHEMA, "cus_1", reason="requested")
    assert again == made  # The certificate of both: what `scrub` goes by.


async def test_what_many_customers_share_leads_from_one_to_no_other(
    database: str, pg: asyncpg.Connection
) -> None:
    """A tax id of the account's own is on each invoice, a file can be evidence in many disputes."""

    def billed(n: int, customer: str, charge: str) -> tuple[dict[str, object], ...]:
        name = {"cus_1": "Anna", "cus_2": "Bert"}[customer]
        evidence = {"refund_policy": "file_1", "customer_name": name}
        return (
            {"id": f"in_{n}", "object": "invoice", "customer": customer, "customer_name": name,
             "account_tax_ids": ["txi_1"]},
            {"id": f"dp_{n}", "object": "dispute", "charge": charge, "evidence": evidence},
        )  # fmt: skip

    await make_schema(database, NAMES)
    own = {"id": "txi_1", "object": "tax_id", "value": "DE123"}
    async with opened(database) as mirror:
        await put(mirror, 0, *OBJECTS, own, {"id": "file_1", "object": "file"})
        await put(mirror, 0, *billed(1, "cus_1", "ch_1"), *billed(2, "cus_2", "ch_2"))
        async with connect(database) as connection:
            await erase(connection, SCHEMA, "cus_1", reason="requested")
        await put(mirror, 9, *billed(3, "cus_2", "ch_2"), *billed(4, "cus_1", "ch_1"))
    names = await pg.fetch(
        "SELECT id, customer_name FROM stripe.invoice"
        " UNION ALL SELECT id, evidence_customer_name FROM stripe.dispute"
    )
    assert {row[0]: row[1] for row in names} == {
        **{"in_1": None, "dp_1": None, "in_2": "Bert", "dp_2": "Bert"},
        **{"in_3": "Bert", "dp_3": "Bert", "in_4": None, "dp_4": None},
    }
    assert await pg.fetchval("SELECT description FROM stripe.charge WHERE id = 'ch_2'")
    assert await pg.fetchval("SELECT value FROM stripe.tax_id") == "DE123"


async def test_an_erasure_reaches_each_row_of_an_id_that_is_a_key_in_several_tables(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_schema(database, NAMES)
    subscription = {"id": "sub_1", "object": "subscription", "latest_invoice": "in_1"}
    invoice = {"id": "in_1", "object": "invoice", "customer": "cus_1"}
    async with opened(database) as mirror:
        await put(mirror, 0, anna(), {**subscription, "customer": "cus_1"}, invoice)
        await preview(mirror, "sub_1", "cus_1", "Anna")
    async with connect(database) as connection:
        made = await erase(connection, SCHEMA, "cus_1", reason="requested")
    assert made.rows == {"customer": 1, PREVIEWS.name: 1}
    assert "Anna" not in await everything(pg)


async def test_an_erasure_reaches_what_the_change_feed_holds_of_rows_that_are_gone(
    database: str, pg: asyncpg.Connection
) -> None:
    """A preview goes when its subscription ends, as it does when the customer is deleted."""

    async def end(connection: Connection) -> None:
        assert await delete_rows(connection, SCHEMA, PREVIEWS, "true") == 2

    await make_schema(database, NAMES)
    async with opened(database, changes=True) as mirror:
        await put(mirror, 0, anna(), {"id": "sub_1", "object": "subscription", "customer": "cus_1"})
        await preview(mirror, "sub_1", "cus_1", "Anna")
        await preview(mirror, "sub_2", "cus_2", "Bert")
        await mirror.write([], effect=end)
    async with connect(database) as connection:
        await erase(connection, SCHEMA, "cus_1", reason="requested")
    text = await everything(pg)
    assert "Anna" not in text
    assert text.count("Bert") == 2


async def test_an_erasure_reaches_a_payment_method_that_was_detached(
    database: str, pg: asyncpg.Connection
) -> None:
    """No row leads to it, if it was never used. Only the event names the customer."""

    def detached(n: int, customer: str, name: str) -> tuple[dict[str, object], ...]:
        method: dict[str, object] = {
            **{"id": f"pm_{n}", "object": "payment_method", "customer": None},
            "billing_details": {"name": name},
        }
        data = {"object": method, "previous_attributes": {"customer": customer}}
        return method, {"id": f"evt_{n}", "object": "event", "created": 1, "data": data}

    await make_schema(database, NAMES)
    async with opened(database) as mirror:
        await put(mirror, 0, anna(), *detached(1, "cus_1", "Anna"), *detached(2, "cus_2", "Bert"))
    async with connect(database) as connection:
        made = await erase(connection, SCHEMA, "cus_1", reason="requested")
    assert made.rows == {"customer": 1, "event": 1, "payment_method": 1}
    text = await everything(pg)
    assert "Anna" not in text
    assert text.count("Bert") == 2


async def test_a_writer_that_was_there_before_brings_nothing_back(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_schema(database, NAMES)
    async with opened(database, changes=True) as mirror:
        await put(mirror, 0, *OBJECTS)
        async with connect(database) as connection:
            await erase(connection, SCHEMA, "cus_1", reason="requested")
        await put(mirror, 9, anna(balance=7), {**OBJECTS[2], "id": "ch_9"}, *OBJECTS[3:5])
        # Nor what refers to an object that came after the erasure.
        await put(
            mirror, 9, {"id": "re_9", "object": "refund", "charge": "ch_9", "description": "Anna"}
        )
    assert "Anna" not in (await everything(pg)).replace("Anna's tea", "")
    assert await pg.fetchval("SELECT balance FROM stripe.customer WHERE id = 'cus_1'") == 7
    assert await pg.fetchval("SELECT count(*) FROM stripe.refund") == 2


async def test_what_rows_of_an_erased_customer_refer_to_is_erased_when_it_comes(
    database: str, pg: asyncpg.Connection
) -> None:
    """The card of a single payment names no customer."""

    def paid(n: int) -> dict[str, object]:
        return {
            "id": f"ch_{n}",
            "object": "charge",
            "customer": "cus_1",
            "payment_method": f"pm_{n}",
        }

    def card(n: int) -> dict[str, object]:
        return {"id": f"pm_{n}", "object": "payment_method", "billing_details": {"name": "Anna"}}

    await make_schema(database, NAMES)
    async with opened(database) as mirror:
        await put(mirror, 0, anna(), paid(1))
        async with connect(database) as connection:
            await erase(connection, SCHEMA, "cus_1", reason="requested")
        await put(mirror, 5, card(1), card(2), paid(2), paid(3))
    async with opened(database) as mirror:
        await put(mirror, 5, card(3), {**card(4), "billing_details": {"name": "Bert"}})
    text = await everything(pg)
    assert "Anna" not in text
    assert "Bert" in text
    assert await pg.fetchval("SELECT count(*) FROM stripe.payment_method") == 4


async def test_each_writer_knows_what_another_has_found_to_be_an_erased_customers(
    database: str, pg: asyncpg.Connection
) -> None:
    """The process that syncs and the one that serves are two."""
    await make_schema(database, NAMES)
    async with opened(database) as one, opened(database) as other:
        await put(one, 0, *OBJECTS)
        async with connect(database) as connection:
            await erase(connection, SCHEMA, "cus_1", reason="requested")
        await put(other, 5, anna(balance=2))
        await put(one, 9, {**OBJECTS[2], "id": "ch_9"})
        await put(
            other, 9, {"id": "re_9", "object": "refund", "charge": "ch_9", "description": "Anna"}
        )
    assert "Anna" not in (await everything(pg)).replace("Anna's tea", "")


async def test_what_is_new_of_an_erased_customers_is_noted_though_its_batch_is_made_again(
    database: str, pg: asyncpg.Connection
) -> None:
    """As it is where somebody else is erased between two batches."""
    await make_schema(database, NAMES)
    async with opened(database) as mirror, connect(database) as connection:
        await put(mirror, 0, *OBJECTS)
        await erase(connection, SCHEMA, "cus_1", reason="requested")
        await put(mirror, 5, anna(balance=2))
        await erase(connection, SCHEMA, "cus_2", reason="requested")
        await put(mirror, 9, {**OBJECTS[2], "id": "ch_9"})
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.erased WHERE id = 'ch_9'") == 1


async def test_an_erasure_waits_for_transactions_that_began_before_it(
    database: str, pg: asyncpg.Connection
) -> None:
    """A writer that looked for erasures before there was one, and commits after."""
    await make_schema(database, NAMES)
    async with opened(database) as mirror:
        await put(mirror, 0, *OBJECTS)
    early = pg.transaction()
    await early.start()
    await pg.execute("UPDATE stripe.charge SET description = 'Anna again' WHERE id = 'ch_1'")
    async with connect(database) as connection, connect(database) as other:
        erasing = asyncio.create_task(erase(connection, SCHEMA, "cus_1", reason="requested"))
        noted = "SELECT erasures FROM pinstripe.sync"
        while await other.fetchval(noted) != 1:  # noqa: ASYNC110 (another session)
            await asyncio.sleep(0.01)
        assert not erasing.done()
        await early.commit()
        await erasing
    assert "Anna" not in (await everything(pg)).replace("Anna's tea", "")


async def test_an_unknown_customer_is_refused_and_a_deleted_one_falls_due(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_schema(database, NAMES)
    async with opened(database) as mirror:
        await put(mirror, 0, *OBJECTS)
        await put(mirror, 5, {"id": "cus_1", "object": "customer", "deleted": True})
    async with connect(database) as connection:
        with pytest.raises(Misconfigured):
            await erase(connection, SCHEMA, "cus_nobody", reason="requested")
        with pytest.raises(Misconfigured):
            await find_objects(connection, SCHEMA, "cus_nobody")
        assert await find_objects(connection, SCHEMA, "cus_2") == {
            "customer": {"cus_2"},
            "charge": {"ch_2"},
        }
        assert await schedule_deleted(connection, SCHEMA, after_days=36500) == []
        await pg.execute("UPDATE pinstripe.erasure SET due_at = now()")
        assert await schedule_deleted(connection, SCHEMA, after_days=36500) == ["cus_1"]
        await erase(connection, SCHEMA, "cus_1", reason="deleted")
        assert await schedule_deleted(connection, SCHEMA, after_days=0) == []


async def test_a_stricter_policy_rewrites_the_rows_and_a_looser_one_reads_the_lists_again(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_schema(database, NAMES)
    async with opened(database, changes=True) as mirror:
        await put(mirror, 0, *OBJECTS)
    await pg.execute(
        "INSERT INTO pinstripe.cursor (schema, stream, state, position)"
        " VALUES ('stripe', 'list charge', 'done', '{\"table\": \"charge\"}')"
    )
    hashing = Personal(Policy.everything("hash"), b"k" * 32)
    dropping = Personal(Policy.everything("drop"))
    async with connect(database) as connection:
        assert await apply_policy(connection, SCHEMA, CHOSEN, hashing) > 5
        hashed = await pg.fetchval("SELECT name FROM stripe.customer WHERE id = 'cus_1'")
        assert hashed == hashing.hashed("Anna")
        assert "Anna" not in (await everything(pg)).replace("Anna's tea", "")
        with pytest.raises(Misconfigured, match="another key"):
            await apply_policy(
                connection, SCHEMA, CHOSEN, Personal(Policy.everything("hash"), b"x" * 32)
            )
        with pytest.raises(Misconfigured, match="another policy"):
            await check_policy(connection, SCHEMA, None)
        await apply_policy(connection, SCHEMA, CHOSEN, dropping)
        assert await pg.fetchval("SELECT count(name) FROM stripe.customer") == 0
        assert await pg.fetchval("SELECT count(*) FROM pinstripe.cursor") == 1
        assert await apply_policy(connection, SCHEMA, CHOSEN, dropping) == 0
        await apply_policy(connection, SCHEMA, CHOSEN, None)
        assert await pg.fetchval("SELECT count(*) FROM pinstripe.cursor") == 0
