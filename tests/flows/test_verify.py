"""`verify` against the simulator: it finds exactly what is wrong, mends it, and cries no wolf."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.flows.harness.command import pinstripe
from tests.flows.harness.histories import Histories, lively_types

from pinstripe.catalog.tables import table_of_object
from pinstripe.config.config import Config
from pinstripe.service import Service, open_service
from pinstripe.store.verifications import load_certificate
from pinstripe.sync.events.poller import PollIntervals
from pinstripe.sync.follower import Follower
from pinstripe.sync.verify.compare import Difference, Report
from pinstripe.sync.verify.recheck import Repairs
from pinstripe.sync.verify.verify import VerifyOptions, open_verify
from pinstripe_simulator.account import Settings
from pinstripe_simulator.auth import Key
from pinstripe_simulator.replies import StripeError
from pinstripe_simulator.server import Running, running

pytestmark = pytest.mark.migrated

EXAMPLES = int(os.environ.get("VERIFY_EXAMPLES", "3"))
SECRET = "rk_test_thekeyofthistest123456"
PAID_OUT = ("payout", "balance_transaction", "payout_balance_transaction", "event")
LISTED = ("charge", "customer", "test_helpers_test_clock", "event")
CHANGING = (
    *("customer", "coupon", "product", "plan", "charge", "refund", "dispute", "tax_rate"),
    *("promotion_code", "payout", "terminal_reader", "test_helpers_test_clock", "event"),
)
# Not before it has noted something: until then nothing is lost with it.
CUT = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE application_name = 'pinstripe verify' AND query LIKE '%stage%'"
)
LONG_AGO = "now() - interval '1 day'"


@asynccontextmanager
async def copied(
    database: str, *, scale: int = 300, tables: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Running, Service]]:
    """A simulated account and its complete copy."""
    async with running(Settings(scale=scale)) as sim:
        sim.account.doors.keys[SECRET] = Key(SECRET)
        config = Config(
            api_key=SECRET,
            stripe_url=sim.url,
            database_url=database,
            tables=tables,
            rate_limit="none",
            endpoint_rate_limit="none",
            deep=True,
        )
        async with open_service(config) as service:
            outcome = await service.backfilled(followed=False)
            assert outcome.complete
            yield sim, service


async def verified(
    service: Service,
    *,
    repair: bool = False,
    unlisted: int | None = 200,
    followed: bool = False,
    grace_s: float = 0.0,
) -> Report:
    options = VerifyOptions(repair=repair, unlisted=unlisted, followed=followed, grace_s=grace_s)
    async with open_verify(
        service.database.url,
        service.source,
        service.budget,
        options,
        account_created=service.account.birth,
    ) as run:
        return await run.run()


def said(report: Report) -> dict[tuple[str, str], str]:
    """(table, id) -> kind, of all that remains."""
    return {d.place: d.kind for t in report.tables.values() for d in t.remaining}


def mended(report: Report) -> dict[tuple[str, str], str]:
    return {d.place: d.kind for t in report.tables.values() for d in t.repaired}


async def ids(pg: asyncpg.Connection, table: str, count: int, where: str = "true") -> list[str]:
    rows = await pg.fetch(
        f"SELECT id FROM stripe.{table} WHERE {where} ORDER BY id DESC LIMIT {count}"
    )
    assert len(rows) == count, f"{table} has too few rows"
    return [row[0] for row in rows]


async def age(pg: asyncpg.Connection, *tables: str) -> None:
    """Puts the rows' knowledge back in time, as if they had been synced yesterday."""
    for table in tables:
        await pg.execute(
            f"UPDATE stripe.{table} SET _as_of = {LONG_AGO}, _as_of_latest = {LONG_AGO}"
        )


async def test_a_fresh_copy_has_no_differences_and_gets_a_certificate(
    database: str, pg: asyncpg.Connection
) -> None:
    async with copied(database) as (_, service):
        first = await verified(service)
        second = await verified(service)
        certificate = await load_certificate(pg, "stripe")
    assert said(first) == {}
    assert first.differences == 0
    assert {t.state for t in first.tables.values()} == {"verified"}
    assert first.tables["charge"].rows == first.tables["charge"].listed > 0
    assert first.digest == second.digest
    assert certificate is not None
    assert certificate.digest == second.digest
    assert certificate.differences == 0
    assert certificate.tables["charge"]["rows"] == first.tables["charge"].rows


async def test_what_was_done_to_rows_behind_our_back_is_found_exactly_and_repaired(
    database: str, pg: asyncpg.Connection
) -> None:
    async with copied(database) as (_, service):
        charges = await ids(pg, "charge", 2)
        lines = await ids(pg, "line_item", 3)
        invoices = await ids(pg, "invoice", 1)
        customers = await ids(pg, "customer", 1, "deleted IS NOT TRUE")
        attempts = await ids(pg, "setup_attempt", 1)
        renewed = await ids(pg, "subscription", 1, "current_period_end IS NOT NULL")
        hidden = await pg.fetchval(
            "SELECT c.id FROM stripe.customer c JOIN stripe.charge h ON h.customer_id = c.id"
            " WHERE c.deleted ORDER BY 1 LIMIT 1"
        )
        assert hidden is not None, "a charge names a customer that no list shows"
        wanted = {
            ("customer", hidden): "missing",
            ("subscription", renewed[0]): "stale",
            **{("charge", key): "missing" for key in charges},
            ("setup_attempt", attempts[0]): "missing",
            ("line_item", lines[0]): "missing",
            ("line_item", lines[1]): "stale",
            ("line_item", "il_invented"): "extra",
            ("invoice", invoices[0]): "stale",
            ("customer", customers[0]): "wrongly_deleted",
            ("product", "prod_invented"): "extra",
            ("balance", "balance"): "missing",
        }
        await age(pg, "line_item", "invoice", "customer")
        await pg.execute("DELETE FROM stripe.charge WHERE id = ANY($1)", charges)
        await pg.execute("DELETE FROM stripe.setup_attempt WHERE id = $1", attempts[0])
        await pg.execute("DELETE FROM stripe.customer WHERE id = $1", hidden)
        await pg.execute("DELETE FROM stripe.balance")
        await pg.execute("DELETE FROM stripe.line_item WHERE id = $1", lines[0])
        await pg.execute("UPDATE stripe.line_item SET amount = 4242 WHERE id = $1", lines[1])
        await pg.execute(
            "UPDATE stripe.invoice SET total = 4242, metadata = '{\"x\": 1}' WHERE id = $1",
            invoices[0],
        )
        await pg.execute("UPDATE stripe.customer SET deleted = true WHERE id = $1", customers[0])
        # It stands in the subscription's items, and other rows give it to this one.
        unlink = "UPDATE stripe.subscription SET current_period_end = now() WHERE id = $1"
        await pg.execute(unlink, renewed[0])
        await pg.execute(
            "INSERT INTO stripe.line_item (id, invoice_id, _as_of, _as_of_latest, _synced_at)"
            f" SELECT 'il_invented', invoice_id, {LONG_AGO}, {LONG_AGO}, now()"
            " FROM stripe.line_item WHERE id = $1",
            lines[2],
        )
        await pg.execute(
            "INSERT INTO stripe.product (id, _as_of, _as_of_latest, _synced_at)"
            f" VALUES ('prod_invented', {LONG_AGO}, {LONG_AGO}, now())"
        )
        found = await verified(service)
        repaired = await verified(service, repair=True)
        after = await verified(service)
        flagged = await pg.fetchval("SELECT deleted FROM stripe.product WHERE id = 'prod_invented'")
    assert said(found) == wanted
    stale = {d.key: d.columns for d in found.tables["invoice"].remaining}
    assert set(stale[invoices[0]]) == {"total", "metadata"}
    assert mended(repaired) == wanted
    assert said(repaired) == said(after) == {}
    assert flagged is True


@pytest.mark.parametrize("fresh", [True, False])
async def test_every_wrong_state_that_a_copy_was_ever_left_in_is_found_and_repaired(
    database: str, pg: asyncpg.Connection, fresh: bool
) -> None:
    """Planted without a follower: whatever changes at Stripe is missed. `fresh`: the rows claim to be
    true of just now, as those do that a replica answered.
    """
    async with copied(database, scale=120) as (sim, service):
        planted: set[tuple[str, str]] = set()
        sets = [k for k in sim.control.sets.kinds.values() if k.may_go]
        owners: dict[tuple[str, str], str] = {}
        for kind in sets:
            holder, member = kind.owner.kind.name, kind.child.kind.name
            lists = [f for f, (child, _) in kind.owner.lists.items() if child == kind.child.name]
            shown = sim.account.world.routes.fields[holder]
            lists = [f for f in lists if not shown[f].on_request]
            # An account that does not show its bank accounts has none to us.
            every = reversed(list(sim.account.world.truth(holder)))
            owner = next(o for o in every if all(f in o for f in lists))
            told = sim.control.members(holder, member, str(owner["id"]), add=12)
            owners[holder, member] = told["owner"][0]
        sim.control.clock(step_s=60.0)  # What happened a moment ago may not have been shown yet.
        assert said(await verified(service, repair=True, unlisted=None)) == {}
        for (holder, member), key in owners.items():
            told = sim.control.members(holder, member, key, add=1, remove=3)
            planted |= {(table_of_object()[member], k) for k in told["added"] + told["removed"]}
        for name in ("plan", "coupon", "product"):
            stale, dead = await ids(pg, name, 2, "deleted IS NOT TRUE")
            for key in (stale, dead):
                sim.control.recreate(name, key, {"metadata": {"made": "again"}})
                planted.add((name, key))
            await pg.execute(f"UPDATE stripe.{name} SET deleted = true WHERE id = $1", dead)
        customer, edited = await ids(pg, "customer", 2, "deleted IS NOT TRUE")
        sim.control.delete("customer", customer)
        sim.control.edit("customer", edited, silent=False)
        item, *_ = await ids(pg, "subscription_item", 1, "deleted IS NOT TRUE")
        await pg.execute("UPDATE stripe.subscription_item SET quantity = 77 WHERE id = $1", item)
        await pg.execute(
            "INSERT INTO stripe.subscription_item"
            " (id, subscription_id, _as_of, _as_of_latest, _synced_at)"
            " SELECT id || 'would', subscription_id, _as_of, _as_of_latest, now()"
            " FROM stripe.subscription_item WHERE id = $1",
            item,
        )
        planted |= {("customer", customer), ("customer", edited)}
        planted |= {("subscription_item", item), ("subscription_item", f"{item}would")}
        sim.control.clock(step_s=60.0)
        if fresh:
            now = sim.account.clock.now()
            for table in {table for table, _ in planted}:
                await pg.execute(
                    f"UPDATE stripe.{table} SET _as_of = to_timestamp($1::float8 - 1),"
                    " _as_of_latest = to_timestamp($1::float8)",
                    now,
                )
            sim.control.clock(step_s=60.0)
        found = await verified(service, unlisted=None)
        repaired = await verified(service, repair=True, unlisted=None)
        sim.control.clock(step_s=60.0)
        after = await verified(service, unlisted=None)
    unseen, left = planted - set(said(found)), planted - set(mended(repaired))
    assert not unseen, sorted(unseen)
    assert not left, sorted(left)
    assert said(repaired) == said(after) == {}


async def test_an_extra_row_whose_table_has_no_flag_is_reported_and_left_to_people(
    database: str, pg: asyncpg.Connection
) -> None:
    async with copied(database, tables=("charge", "event")) as (_, service):
        await pg.execute(
            "INSERT INTO stripe.charge (id, _as_of, _as_of_latest, _synced_at)"
            f" VALUES ('ch_invented', {LONG_AGO}, {LONG_AGO}, now())"
        )
        report = await verified(service, repair=True)
    assert said(report) == {("charge", "ch_invented"): "extra"}
    assert report.differences == 1


async def test_silent_edits_and_deletions_at_stripe_are_found_and_repaired(
    database: str, pg: asyncpg.Connection
) -> None:
    tables = ("payment_intent", "coupon", "customer", "shipping_rate", "event")
    async with copied(database, tables=tables) as (sim, service):
        await age(pg, *tables)
        wanted = {
            ("payment_intent", sim.control.edit("payment_intent")): "stale",
            ("shipping_rate", sim.control.edit("shipping_rate")): "stale",
            ("coupon", sim.control.delete("coupon", silent=True)): "extra",
            ("customer", sim.control.delete("customer", silent=True)): "extra",
        }
        found = await verified(service)
        repaired = await verified(service, repair=True)
        after = await verified(service)
    assert said(found) == wanted
    assert mended(repaired) == wanted
    assert said(after) == {}


async def test_an_emptied_table_is_read_again_by_its_list_and_not_object_by_object(
    database: str, pg: asyncpg.Connection
) -> None:
    async with copied(database, scale=4000, tables=("charge", "event")) as (sim, service):
        charges = sim.control.counts()["charge"]
        await pg.execute("DELETE FROM stripe.charge")
        asked = service.stripe.requests.total()
        report = await verified(service, repair=True)
        asked = service.stripe.requests.total() - asked
        rows = await pg.fetchval("SELECT count(*) FROM stripe.charge")
    assert charges > 200
    assert rows == charges
    assert report.differences == 0
    assert report.repaired == charges
    assert asked < charges / 4


async def test_missing_lines_of_a_payout_are_found_though_no_object_is_one_and_repaired(
    database: str, pg: asyncpg.Connection
) -> None:
    async with copied(database, scale=2000, tables=PAID_OUT) as (_, service):
        rows = "SELECT balance_transaction_id FROM stripe.payout_balance_transaction"
        lines = [row[0] for row in await pg.fetch(rows)]
        await pg.execute("DELETE FROM stripe.payout_balance_transaction")
        found = await verified(service)
        await verified(service, repair=True)
        repaired = [row[0] for row in await pg.fetch(rows)]
    assert lines
    assert said(found) == {("payout_balance_transaction", line): "missing" for line in lines}
    assert sorted(repaired) == sorted(lines)


async def test_lists_that_the_key_may_not_read_are_unverified_and_not_clean(database: str) -> None:
    async with copied(database, tables=LISTED) as (sim, service):
        sim.account.doors.keys[SECRET] = Key(SECRET, denied=frozenset({"charge_read"}))
        report = await verified(service)
        certificate_tables = report.tables
    assert report.differences == 0
    assert certificate_tables["charge"].state == "unverified"
    assert "charge_read" in certificate_tables["charge"].reason
    assert certificate_tables["charge"].unchecked == certificate_tables["charge"].rows > 0
    assert certificate_tables["customer"].state == "verified"


_GIVE_AWAY = """
DO $$ DECLARE r record; BEGIN
  CREATE ROLE verifying LOGIN;
  EXECUTE format('GRANT CREATE ON DATABASE %I TO verifying', current_database());
  FOR r IN SELECT oid::regnamespace::text AS name FROM pg_namespace
    WHERE nspname IN ('stripe', 'pinstripe') LOOP
    EXECUTE 'ALTER SCHEMA ' || r.name || ' OWNER TO verifying';
  END LOOP;
  FOR r IN SELECT oid::regclass::text AS name FROM pg_class WHERE relkind = 'r'
    AND relnamespace IN ('stripe'::regnamespace, 'pinstripe'::regnamespace) LOOP
    EXECUTE 'ALTER TABLE ' || r.name || ' OWNER TO verifying';
  END LOOP;
END $$
"""


async def test_a_table_that_may_not_be_read_is_unverified_and_stops_no_other(
    database: str, pg: asyncpg.Connection
) -> None:
    await pg.execute(_GIVE_AWAY)
    try:
        owned = database.replace("postgres@", "verifying@")
        async with copied(owned, tables=("customer", "product", "price")) as (_, service):
            gone = await ids(pg, "customer", 1)
            await pg.execute("DELETE FROM stripe.customer WHERE id = $1", gone[0])
            await age(pg, "customer", "product", "price")
            await pg.execute("REVOKE ALL ON stripe.product FROM verifying")
            report = await verified(service)
        assert said(report) == {("customer", gone[0]): "missing"}
        product = report.tables["product"]
        assert (product.state, product in report.unproven) == ("unverified", True)
        assert "GRANT SELECT" in product.remedy
    finally:
        await pg.execute("DROP OWNED BY verifying CASCADE")
        await pg.execute("DROP ROLE verifying")


async def test_rows_that_no_list_shows_are_sampled_and_a_wrong_one_has_all_of_them_checked(
    database: str, pg: asyncpg.Connection
) -> None:
    async with copied(database, tables=("charge", "event")) as (_, service):
        for number in range(5):
            await pg.execute(
                "INSERT INTO stripe.charge (id, _as_of, _as_of_latest, _synced_at)"
                f" VALUES ($1, {LONG_AGO}, {LONG_AGO}, now())",
                f"ch_invented_{number}",
            )
        none = await verified(service, unlisted=0)
        one = await verified(service, unlisted=1)
    assert none.tables["charge"].state == "partly"
    assert none.tables["charge"].unchecked == 5
    assert none.differences == 0
    assert one.differences == 5
    assert one.tables["charge"].state == "verified"


async def test_a_repair_takes_out_no_object_that_was_made_again_since_it_was_missed(
    database: str, pg: asyncpg.Connection
) -> None:
    async with copied(database, tables=("product", "event")) as (_, service):
        (key,) = await ids(pg, "product", 1, "deleted IS NOT TRUE")
        await age(pg, "product")
        write = (
            "UPDATE stripe.product SET _synced_at = now() - $2 * interval '1 minute' WHERE id = $1"
            " RETURNING _synced_at"
        )
        missed, again = [await pg.fetchval(write, key, minutes) for minutes in (60, 1)]
        async with open_verify(
            service.database.url, service.source, service.budget, VerifyOptions(repair=True)
        ) as run:
            parts = (run._source, run._looking, run._comparer, run._rechecker, run._read_lists)
            for version in (missed, again):
                await Repairs(*parts)._mend(Difference("product", key, "extra", version=version))
                flag = await pg.fetchval("SELECT deleted FROM stripe.product WHERE id = $1", key)
                assert flag is (version == again)


async def test_nothing_is_called_wrong_while_the_account_lives_and_is_followed(
    database: str, pg: asyncpg.Connection
) -> None:
    async with copied(database) as (sim, service):
        follower = Follower(
            service.source,
            service.budget,
            since=service.account.now,
            pace=PollIntervals(poll_s=0.1),
            previews=False,
        )
        following = asyncio.create_task(follower.run())
        living = asyncio.create_task(live(sim))
        try:
            await asyncio.sleep(0)
            reports = [await verified(service, followed=True, grace_s=1.0) for _ in range(2)]
        finally:
            for task in (living, following):
                task.cancel()
            await asyncio.gather(living, following, return_exceptions=True)
        heard = follower.poller.stats.events
    assert heard > 20
    assert [said(report) for report in reports] == [{}, {}]


async def live(sim: Running) -> None:
    """Changes that Stripe tells of: what it keeps silent about nobody can know in time."""
    deeds = sim.control.mutator.deeds
    while True:
        for deed in (
            deeds.create_customer,
            deeds.update_customer,
            deeds.update_customer,
            deeds.pay,
            deeds.refund,
            deeds.subscribe,
            deeds.change_subscription,
            deeds.bill,
        ):
            try:
                deed()
            except StripeError:
                continue
            await asyncio.sleep(0.02)


async def test_without_a_follower_only_what_changed_before_the_look_is_reported(
    database: str, pg: asyncpg.Connection
) -> None:
    async with copied(database, tables=("customer", "test_helpers_test_clock")) as (sim, service):
        before, *others = await ids(pg, "customer", 10, "deleted IS NOT TRUE")
        sim.control.edit("customer", before, silent=False)
        sim.control.clock(step_s=5.0)
        living = asyncio.create_task(edit_in_turn(sim, others))
        try:
            report = await verified(service)
        finally:
            living.cancel()
            await asyncio.gather(living, return_exceptions=True)
    assert said(report) == {("customer", before): "stale"}


async def test_whatever_changes_while_it_looks_only_what_was_wrong_before_is_reported(
    database: str,
) -> None:
    """For any drift before the look, and any changes of any types with events during it."""
    async with copied(database, scale=100, tables=CHANGING) as (sim, service):
        loop = asyncio.get_running_loop()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # a seed does not shrink
        )
        @given(seed=st.integers(0, 2**32), drifts=st.integers(0, 12))
        def holds(seed: int, drifts: int) -> None:
            looked = asyncio.run_coroutine_threadsafe(
                _looked(sim, service, Random(seed), drifts), loop
            )
            wrong, before = looked.result(120)
            assert wrong <= before

        await asyncio.to_thread(holds)


async def _looked(
    sim: Running, service: Service, dice: Random, drifts: int
) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """(reported, changed before the look), by table and id; then all is repaired, and none is left."""
    kinds = [n for n in lively_types() if table_of_object()[n] in CHANGING and n != "event"]
    earlier, later = Histories(sim), Histories(sim)
    for _ in range(drifts):
        list(earlier.life(dice.choice(kinds), dice, 1))
    sim.control.clock(step_s=600.0)

    async def change() -> None:
        while True:
            for step_s in later.life(dice.choice(kinds), dice, dice.randrange(1, 3)):
                sim.control.clock(step_s=step_s)
            await asyncio.sleep(0.05)

    changing = asyncio.create_task(change())
    try:
        report = await verified(service, unlisted=None)
    finally:
        changing.cancel()
        await asyncio.gather(changing, return_exceptions=True)
    sim.control.clock(step_s=600.0)
    repaired = await verified(service, repair=True, unlisted=None)
    assert {place for place, kind in said(repaired).items() if kind != "extra"} == set()
    wrong = {place for place in said(report) if place[0] != "event"}
    # What happened before the first request was asked is no change during the look.
    for made in (earlier, later):
        made.touched = touched_before(sim, made, report.since)
    return wrong, places(earlier) | places(later)


def touched_before(sim: Running, made: Histories, second: float) -> dict[str, set[str]]:
    """What was touched by then, by type."""
    told = [e for e in sim.account.world.truth("event") if int(str(e["created"])) < second]
    named = {(str(e["data"]["object"]["object"]), str(e["data"]["object"].get("id"))) for e in told}
    return {n: {key for key in keys if (n, key) in named} for n, keys in made.touched.items()}


def places(made: Histories) -> set[tuple[str, str]]:
    return {(table_of_object()[n], key) for n, keys in made.touched.items() for key in keys}


async def edit_in_turn(sim: Running, customers: list[str]) -> None:
    for customer in itertools.cycle(customers):
        sim.control.edit("customer", customer, silent=False)
        await asyncio.sleep(0.005)


async def test_a_lost_connection_is_survived_and_costs_only_the_search_for_extra_rows(
    database: str, pg: asyncpg.Connection
) -> None:
    async with copied(database, tables=LISTED) as (_, service):
        options = VerifyOptions(followed=False)
        async with open_verify(
            service.database.url, service.source, service.budget, options, account_created=0
        ) as run:
            task = asyncio.create_task(run.run())
            while not await pg.fetchval(CUT):  # each turn is a round trip to the server
                pass
            report = await task
    assert said(report) == {}
    assert {t.state for t in report.tables.values()} == {"partly"}
    assert "lost" in report.tables["charge"].reason


async def test_the_command_tells_differences_by_exit_code_and_json_and_status_shows_the_proof(
    database: str, pg: asyncpg.Connection
) -> None:
    secret = "sk_test_thisisthesecretofatest123"
    async with running(Settings(scale=300, keys=(secret,))) as sim:
        env = {
            "STRIPE_API_KEY": secret,
            "STRIPE_API_BASE": sim.url,
            "DATABASE_URL": database,
            "PINSTRIPE_TABLES": "customer,charge,event",
            "PINSTRIPE_RATE_LIMIT": "none",
            "PINSTRIPE_ENDPOINT_RATE_LIMIT": "none",
        }
        # The module's databases have all tables; here there must be none yet.
        await pg.execute("DROP SCHEMA stripe CASCADE; DROP SCHEMA pinstripe CASCADE")
        nothing = await pinstripe("verify", env=env)
        erased = await pinstripe("erase", "cus_1", env=env)
        await pinstripe("sync", "--once", env=env)
        await pg.execute("DELETE FROM pinstripe.lease")
        await pg.execute("UPDATE pinstripe.cursor SET updated_at = now() - interval '1 hour'")
        charge = (await ids(pg, "charge", 1))[0]
        await age(pg, "charge")
        await pg.execute("UPDATE stripe.charge SET amount = 1 WHERE id = $1", charge)
        wrong = await pinstripe("verify", "--json", env=env)
        repaired = await pinstripe("verify", "--repair", env=env)
        status = await pinstripe("status", "--json", env=env)
    assert nothing.code == 2
    assert "Nothing has been synced" in nothing.err
    assert (erased.code, erased.err) == (nothing.code, nothing.err)
    assert wrong.code == 6, wrong.text
    tables = {t["table"]: t for t in json.loads(wrong.out)["tables"]}
    assert tables["charge"]["remaining"] == [{"id": charge, "kind": "stale", "columns": ["amount"]}]
    assert f"stale: {charge} (amount)" in wrong.err
    assert repaired.code == 0, repaired.text
    assert "1 repaired" in repaired.out
    certificate = json.loads(status.out)["syncs"][0]["certificate"]
    assert certificate["differences"] == 0
    assert certificate["repaired"] == 1
    assert secret not in wrong.text + repaired.text + status.text
