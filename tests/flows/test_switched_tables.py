"""Tables that lacked events for a time are read again: switched off and on, or forbidden and allowed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import asyncpg
import pytest
from tests.flows.harness.account import make_schema, open_account
from tests.flows.harness.scripted_stripe import (
    Answer,
    Object,
    Params,
    ScriptedStripe,
    error,
    scripted_stripe,
)

from pinstripe.catalog.tables import tables
from pinstripe.config.config import Config
from pinstripe.service import open_service
from pinstripe.store.pool import connect
from pinstripe.sync.backfill.backfill import Backfill

ALL = ("customer", "event", "product")
AWAY_S = 400
"""So long ago ended the last run: more than a run reads of the events before it."""


def customer(name: str, number: int = 1) -> Object:
    return {"id": f"cus_{number}", "object": "customer", "name": name, "created": number}


@dataclass
class Runs:
    """One account, copied by one run after another."""

    stripe: ScriptedStripe
    database: str
    pg: asyncpg.Connection

    @asynccontextmanager
    async def _opened(self, names: Collection[str]) -> AsyncIterator[Backfill]:
        chosen = {name: tables()[name] for name in names}
        await make_schema(self.database, chosen=chosen)
        async with open_account(
            self.stripe.url, self.stripe.key, self.database, chosen=chosen
        ) as copy:
            yield Backfill(copy.source, copy.pool, copy.budget, now=time.time())

    async def run(self, names: Collection[str] = ALL) -> None:
        """A run that syncs these tables."""
        async with self._opened(names) as backfill:
            assert (await backfill.run()).complete

    async def begin(self) -> None:
        """A run that is killed before it has read a list."""
        async with self._opened(ALL) as backfill:
            await backfill.prepare()

    async def run_a_while_ago(self, names: Collection[str] = ALL) -> None:
        await self.run(names)
        ago = f"- interval '{AWAY_S} s'"
        await self.pg.execute(f"UPDATE pinstripe.cursor SET as_of = as_of {ago}")
        for name in names:
            columns = ", ".join(
                f"{c} = {c} {ago}" for c in ("_as_of", "_as_of_latest", "_synced_at")
            )
            await self.pg.execute(f"UPDATE stripe.{name} SET {columns}")

    def rename(self, name: str, **more: object) -> None:
        """Stripe renames the customer, a while before the next run, and tells of it."""
        self.stripe.lists["/v1/customers"] = [customer(name)]
        second = int(time.time()) - AWAY_S * 3 // 4
        self.stripe.event("customer.updated", customer(name), created=second, **more)

    async def name(self) -> str:
        found: str = await self.pg.fetchval("SELECT name FROM stripe.customer WHERE id = 'cus_1'")
        assert await self.pg.fetch("SELECT * FROM pinstripe.pending") == []
        return found


@asynccontextmanager
async def runs(database: str) -> AsyncIterator[Runs]:
    async with scripted_stripe() as stripe, connect(database) as connection:
        stripe.date_ahead_s = 0.0
        stripe.lists["/v1/customers"] = [customer("one"), customer("gone", 2)]
        product = {"id": "prod_1", "object": "product", "created": 5}
        stripe.event("product.created", product, created=int(time.time()) - 9000)
        yield Runs(stripe, database, connection)


async def test_a_table_that_is_switched_off_and_on_has_what_changed_meanwhile(
    database: str,
) -> None:
    async with runs(database) as it:
        await it.run_a_while_ago()
        it.rename("two")  # And the other customer is deleted.
        await it.run(("event", "product"))
        assert await it.name() == "one"
        await it.run()
        assert await it.name() == "two"
        assert await it.pg.fetchval("SELECT deleted FROM stripe.customer WHERE id = 'cus_2'")
        it.stripe.asked.clear()
        await it.run()
        assert "/v1/customers" not in it.stripe.paths()


@pytest.mark.parametrize("how", ["switched on", "emptied"])
async def test_the_event_log_is_read_again_without_losing_how_far_events_are_applied(
    database: str, how: str
) -> None:
    async with runs(database) as it:
        await it.run_a_while_ago(ALL if how == "emptied" else ("customer", "product"))
        if how == "emptied":
            await it.pg.execute("TRUNCATE stripe.event")
        it.rename("two")
        await it.run()
        assert await it.name() == "two"
        assert await it.pg.fetchval("SELECT count(*) FROM stripe.event") == 2


async def test_what_rows_refer_to_in_a_table_that_is_switched_on_is_fetched(database: str) -> None:
    """No list has a deleted customer, and the charge that names it is not read again."""
    gone = {"id": "cus_gone", "object": "customer", "deleted": True}
    async with runs(database) as it:
        charge = {"id": "ch_1", "object": "charge", "created": 1, "customer": "cus_gone"}
        it.stripe.lists["/v1/charges"] = [charge]
        it.stripe.answers["/v1/customers/cus_gone"] = lambda _: (200, gone)
        config = Config(
            api_key=it.stripe.key,
            stripe_url=it.stripe.url,
            database_url=database,
            rate_limit="none",
            endpoint_rate_limit="none",
        )
        for names in (("charge", "event"), ("charge", "customer", "event")):
            async with open_service(replace(config, tables=names)) as service:
                assert (await service.backfilled(followed=False)).complete
        assert await it.pg.fetchval("SELECT deleted FROM stripe.customer WHERE id = 'cus_gone'")


async def test_a_second_run_finds_what_has_no_events_edited_and_deleted_however_old_it_is(
    database: str,
) -> None:
    names = ("event", "shipping_rate", "terminal_location")
    rate = {"id": "shr_1", "object": "shipping_rate", "created": 1, "active": True}
    places = [{"id": f"tml_{n}", "object": "terminal.location"} for n in (1, 2)]
    async with runs(database) as it:
        it.stripe.lists["/v1/shipping_rates"] = [rate]
        it.stripe.lists["/v1/terminal/locations"] = places
        await it.run_a_while_ago(names)
        it.stripe.lists["/v1/shipping_rates"] = [{**rate, "active": False}]
        it.stripe.lists["/v1/terminal/locations"] = places[:1]
        await it.run(names)
        assert await it.pg.fetchval("SELECT active FROM stripe.shipping_rate") is False
        deleted = "SELECT array_agg(id) FROM stripe.terminal_location WHERE deleted"
        assert await it.pg.fetchval(deleted) == ["tml_2"]


LACKS = (
    "The provided key lacks a permission. Enabling \"Customers Read\" ('customer_read') "
    "permissions on this key would allow this request to continue."
)


def refused(_: Params) -> Answer:
    return error(403, LACKS)


async def test_what_changed_while_a_key_might_not_read_events_is_found_once_it_may(
    database: str,
) -> None:
    """Though the first run of which that is true is killed."""
    async with runs(database) as it:
        await it.run_a_while_ago()
        it.rename("two")  # And the other customer is deleted.
        it.stripe.answers["/v1/events"] = refused
        await it.run()
        assert await it.name() == "one"
        del it.stripe.answers["/v1/events"]
        await it.begin()
        await it.run()
        assert await it.name() == "two"
        assert await it.pg.fetchval("SELECT deleted FROM stripe.customer WHERE id = 'cus_2'")


async def test_what_a_key_might_not_fetch_for_an_event_is_read_once_it_may(database: str) -> None:
    """The event is of another version, so its object has to be fetched."""
    async with runs(database) as it:
        await it.run_a_while_ago()
        it.rename("two", api_version="2019-12-03")
        it.stripe.answers["/v1/customers/cus_1"] = refused
        await it.run()
        assert await it.name() == "one"
        del it.stripe.answers["/v1/customers/cus_1"]
        await it.run()
        assert await it.name() == "two"
