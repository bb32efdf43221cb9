"""What keeps an account of a platform complete and true beside its events, as it does a single sync."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from tests.flows.harness.serving import LIVE
from tests.flows.harness.workers import (
    PLATFORM,
    SCHEMA,
    acknowledged,
    add_platform,
    command,
    copied,
    eventually,
    news_of,
    working,
)

from pinstripe.catalog.tables import tables
from pinstripe.errors import Misconfigured
from pinstripe.platforms.account import open_platform
from pinstripe.platforms.vault import NewPlatform, PlatformVault
from pinstripe.store.cursors import SCAN_OF
from pinstripe.store.events import request_sync
from pinstripe.store.platforms.stored import add_accounts, load_platforms
from pinstripe.store.platforms.sweep import account_standing, begin, claim_looks
from pinstripe.store.platforms.tasks import TaskName, waiting_tasks
from pinstripe.store.pool import Connection, connect
from pinstripe.store.refetch import Refetch, add_refetches, next_refetch_s
from pinstripe.store.session import scope_of
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

TABLES = "customer,customer_balance_transaction,payment_method,event"
_LIVE = Settings(
    scale=40, connected=1, connected_scale=120, future_fields=False, keys=(LIVE,), livemode=True
)


@asynccontextmanager
async def one_account(
    database: str, directory: Path, *, tables: str
) -> AsyncIterator[tuple[Running, PlatformVault, str]]:
    """A simulated platform with one connected account, stored: (simulator, vault, the account's id)."""
    async with running(Settings(scale=40, connected=1, connected_scale=60)) as sim:
        vault = await add_platform(database, sim, directory, tables=tables)
        (one,) = sim.control.accounts()
        yield sim, vault, one


async def run_now(database: str, task: TaskName, scope: str) -> None:
    """Have the task of the account run, and wait until it has put itself off."""
    async with connect(database) as pg:
        moved = await pg.execute(
            "UPDATE pinstripe.platform_task SET due_at = to_timestamp(0)"
            " WHERE task = $1 AND scope = $2",
            task,
            scope,
        )
    assert moved == "UPDATE 1", task

    async def is_done(connection: Connection) -> bool:
        found: bool = await connection.fetchval(
            "SELECT due_at > clock_timestamp() AND NOT EXISTS (SELECT FROM"
            " pinstripe_tasks.procrastinate_jobs WHERE task_name = $1 AND lock = $2)"
            " FROM pinstripe.platform_task WHERE task = $1 AND scope = $2",
            task,
            scope,
        )
        return found

    await eventually(database, is_done)


async def test_an_account_is_scanned_erased_verified_and_its_reads_are_counted(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    async with running(_LIVE) as sim:
        vault = await add_platform(
            database, sim, tmp_path, tables=TABLES, verify_every="24h", erase_deleted_after="0"
        )
        (one,) = sim.control.accounts()
        scope = scope_of(SCHEMA, one)
        rows = f"SELECT count(*) FROM {SCHEMA}.payment_method WHERE _account_id = $1"
        async with working(vault):
            await copied(database, [one])
            before = await pg.fetchval(rows, one)
            await pg.execute(f"DELETE FROM {SCHEMA}.payment_method WHERE _account_id = $1", one)
            gone = sim.control.of(one).delete("customer")
            assert await news_of(database, one)
            deleted = f"SELECT deleted FROM {SCHEMA}.customer WHERE _account_id = $1 AND id = $2"

            async def is_flagged(connection: Connection) -> bool:
                return bool(await connection.fetchval(deleted, one, gone))

            await eventually(database, is_flagged)
            await run_now(database, "relist", scope)
            # Lists by parent of customers without a sign, which no event and no full list brings.
            scans = await pg.fetch(
                "SELECT position ->> 'rounds' FROM pinstripe.cursor WHERE schema = $1"
                " AND starts_with(stream, $2)",
                scope,
                SCAN_OF,
            )
            assert {row[0] for row in scans} == {"1"}
            assert 0 < await pg.fetchval(rows, one) <= before
            erased = "SELECT erased_at IS NOT NULL FROM pinstripe.erasure WHERE customer_id = $1"
            assert await pg.fetchval(erased, gone)
            await run_now(database, "verify", scope)
            made = "SELECT differences FROM pinstripe.certificate WHERE schema = $1"
            assert [row[0] for row in await pg.fetch(made, scope)] == [0]
            counted = await pg.fetch(
                "SELECT kind, count FROM pinstripe.request_count WHERE schema = $1", scope
            )
            counts = dict(map(tuple, counted))
            assert counts.keys() >= {"events", "list"}
            # What is known of rows without a word in them is dropped once it is of no more use.
            old = "as_of = to_timestamp(1), as_of_latest = to_timestamp(1)"
            assert await pg.execute(f"UPDATE pinstripe.confirmation SET {old}") != "UPDATE 0"
            await run_now(database, "relist", scope)
            kept = "SELECT count(*) FROM pinstripe.confirmation WHERE as_of = to_timestamp(1)"
            assert await pg.fetchval(kept + " AND schema = $1", scope) == 0
            # The allowance is used up: lists are read a day later, and nothing is verified.
            await pg.execute(
                "UPDATE pinstripe.request_count SET count = 9000000 WHERE kind = 'list'"
            )
            await run_now(database, "relist", scope)
            await run_now(database, "verify", scope)
            left = await pg.fetch(
                "SELECT task, extract(epoch FROM due_at - clock_timestamp()) > 80000"
                " FROM pinstripe.platform_task WHERE scope = $1 AND task IN ('relist', 'verify')",
                scope,
            )
            assert sorted(map(tuple, left)) == [("relist", True), ("verify", True)]
            assert await pg.fetchval("SELECT count(*) FROM pinstripe.certificate") == 1


async def test_an_account_is_followed_while_a_long_task_of_it_runs(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    async with one_account(database, tmp_path, tables="customer,product,event") as (
        sim,
        vault,
        one,
    ):
        scope = scope_of(SCHEMA, one)
        async with working(vault):
            await copied(database, [one])
            sim.control.of(one).fault(kind="hang", path="/v1/products", seconds=3600.0)
            due = (
                "UPDATE pinstripe.platform_task SET due_at = to_timestamp(0)"
                " WHERE task = 'relist' AND scope = $1 RETURNING true"
            )

            async def is_due(connection: Connection) -> bool:
                return bool(await connection.fetchval(due, scope))  # It is planned after the copy.

            await eventually(database, is_due)
            relists = (
                "SELECT EXISTS (SELECT FROM pinstripe_tasks.procrastinate_jobs"
                " WHERE task_name = 'relist' AND lock = $1 AND status = 'doing')"
            )

            async def is_relisted(connection: Connection) -> bool:
                return bool(await connection.fetchval(relists, scope))

            await eventually(database, is_relisted)
            gone = sim.control.of(one).delete("customer")
            number = await request_sync(pg, scope, 0.0)
            await acknowledged(database, scope, number, timeout_s=20)
            assert await pg.fetchval(f"SELECT deleted FROM {SCHEMA}.customer WHERE id = $1", gone)
            # What is to be fetched for an event comes too, however slow the responses are.
            sim.control.latency(fixed_s=1.0)
            await add_refetches(pg, scope, [Refetch("fetch", "customer", gone)])
            await pg.execute("UPDATE pinstripe.pending SET asked_at = asked_at - interval '1 hour'")
            await request_sync(pg, scope, 0.0)

            async def is_fetched(connection: Connection) -> bool:
                return await next_refetch_s(connection, scope) is None

            await eventually(database, is_fetched, timeout_s=20)
            assert await pg.fetchval(relists, scope), "it still runs"


async def test_a_poll_waits_for_no_doubt_of_an_earlier_one(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    """A row in doubt is fetched when no replica can be behind it any more: in a minute here."""
    async with one_account(database, tmp_path, tables="customer,event") as (sim, vault, one):
        scope = scope_of(SCHEMA, one)
        lagging = replace(vault, base=replace(vault.base, replica_lag=60.0))
        async with working(lagging):
            await copied(database, [one])
            await pg.execute(
                f"UPDATE {SCHEMA}.customer SET name = 'doubt', _as_of = now() - interval '1 minute',"
                " _as_of_latest = now() + interval '1 minute' WHERE _account_id = $1",
                one,
            )
            sim.control.of(one).delete("customer")
            await request_sync(pg, scope, 0.0)

            async def is_in_doubt(connection: Connection) -> bool:
                return await next_refetch_s(connection, scope) is not None

            await eventually(database, is_in_doubt, timeout_s=20)
            number = await request_sync(pg, scope, 0.0)
            await acknowledged(database, scope, number, timeout_s=20)
            assert await is_in_doubt(pg)


async def test_previews_of_large_accounts_give_way_to_first_copies(
    database: str, pg: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinstripe.platforms.tasks._STEP_S", 0.2)
    tables = "customer,subscription,subscription_item,upcoming_*,event"
    async with running(Settings(scale=40, connected=5, connected_scale=60)) as sim:
        vault = await add_platform(database, sim, tmp_path, tables=tables)
        last, *large = sim.control.accounts()
        sim.control.deauthorize(last)
        for account in large:
            path = "/v1/invoices/create_preview"
            sim.control.of(account).fault(kind="hang", path=path, seconds=3600.0)
        async with working(vault) as worker:

            async def is_full(connection: Connection) -> bool:
                busy: int = await connection.fetchval(
                    "SELECT count(*) FROM pinstripe_tasks.procrastinate_jobs"
                    " WHERE task_name = 'preview' AND status = 'doing'"
                )
                return busy == len(large)

            await eventually(database, is_full)
            sim.control.authorize(last)
            await worker.discover()
            await copied(database, [last], timeout_s=20)


async def test_a_list_that_always_fails_keeps_no_account_from_being_followed(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    async with one_account(database, tmp_path, tables="customer,product,event") as (
        sim,
        vault,
        one,
    ):
        scope = scope_of(SCHEMA, one)
        sim.control.of(one).fault(kind="error_500", path="/v1/products")
        async with working(vault):

            async def is_followed(connection: Connection) -> bool:
                found = await account_standing(connection, PLATFORM, one, scope)
                return found is not None and found.followed_to is not None and found.known_to > 0

            await eventually(database, is_followed)
            ready = "SELECT state FROM pinstripe.cursor WHERE schema = $1 AND stream = 'ready'"
            assert await pg.fetchval(ready, scope) == "running"
            gone = sim.control.of(one).delete("customer")
            # No webhook tells of it.
            await pg.execute("UPDATE pinstripe.platform_account SET next_look_at = now()")

            async def is_flagged(connection: Connection) -> bool:
                deleted = f"SELECT deleted FROM {SCHEMA}.customer WHERE id = $1"
                return bool(await connection.fetchval(deleted, gone))

            await eventually(database, is_flagged, timeout_s=20)
            sim.control.of(one).clear_faults()
            await pg.execute(
                "UPDATE pinstripe.platform_task SET due_at = to_timestamp(0) WHERE task = 'backfill'"
            )
            await copied(database, [one])


async def test_an_account_whose_events_may_not_be_read_is_copied_once(
    database: str, tmp_path: Path
) -> None:
    async with running(Settings(scale=40, connected=1, connected_scale=60)) as sim:
        sim.control.key("rk_test_noEvents", denied=["event_read"])
        restricted = replace(sim, key="rk_test_noEvents")
        vault = await add_platform(database, restricted, tmp_path, tables="customer,event")
        async with working(vault):
            await copied(database, sim.control.accounts())

            async def is_at_rest(connection: Connection) -> bool:
                return await waiting_tasks(connection) == {}

            await eventually(database, is_at_rest, timeout_s=20)


async def test_a_first_copy_goes_first_if_a_caller_waits_and_no_look_is_spent_before_it(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    async with running(Settings(scale=40, connected=0, future_fields=False)) as sim:
        vault = await add_platform(database, sim, tmp_path, tables="customer,event")
        async with connect(database) as connection, connection.transaction():
            await add_accounts(connection, PLATFORM, ["acct_a", "acct_b"])
            await begin(connection, SCHEMA, ["acct_a", "acct_b"])
        assert await claim_looks(pg, PLATFORM, 10) == []
        await request_sync(pg, scope_of(SCHEMA, "acct_b"), 0.0)
        assert await news_of(database, "acct_b")
        sim.control.latency(fixed_s=5.0)  # No first copy is over before the poll has begun.
        async with working(vault):

            async def is_raised(connection: Connection) -> bool:
                found = await connection.fetch(
                    "SELECT lock FROM pinstripe_tasks.procrastinate_jobs"
                    " WHERE task_name = 'backfill' AND priority > 10"
                )
                return [row[0] for row in found] == [scope_of(SCHEMA, "acct_b")]

            await eventually(database, is_raised)


async def test_the_copy_that_a_caller_waits_for_is_first_again_after_it_gave_way(
    database: str, pg: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinstripe.platforms.tasks._STEP_S", 0.2)
    monkeypatch.setattr("pinstripe.platforms.worker._CONCURRENCY", {"live": 32, "bulk": 1})
    async with running(Settings(scale=40, connected=2, connected_scale=60)) as sim:
        vault = await add_platform(database, sim, tmp_path, tables="customer,event")
        waited, other = sim.control.accounts()
        async with connect(database) as connection, connection.transaction():
            await add_accounts(connection, PLATFORM, [other, waited])
            await begin(connection, SCHEMA, [other, waited])
        await request_sync(pg, scope_of(SCHEMA, waited), 0.0)
        sim.control.latency(fixed_s=1.0)
        priorities: dict[int, int] = {}

        async def has_given_way(connection: Connection) -> bool:
            jobs = await connection.fetch(
                "SELECT id, priority FROM pinstripe_tasks.procrastinate_jobs"
                " WHERE task_name = 'backfill' AND lock = $1",
                scope_of(SCHEMA, waited),
            )
            priorities.update({row[0]: row[1] for row in jobs})
            return len(priorities) > 2

        async with working(vault):
            await eventually(database, has_given_way)
        _, *again = sorted(priorities)
        assert all(priorities[job] > 10 for job in again), priorities


async def choose_tables(pg: asyncpg.Connection, names: str) -> None:
    """Have workers that start from now on sync these tables of the platform."""
    await pg.execute(
        "UPDATE pinstripe.platform SET settings = settings || jsonb_build_object('tables', $1::text)",
        names,
    )


async def begin_now(database: str, scope: str) -> None:
    """Have a first copy that is to go on within the hour go on now."""

    async def is_due(connection: Connection) -> bool:
        moved = await connection.execute(
            "UPDATE pinstripe.platform_task SET due_at = to_timestamp(0)"
            " WHERE task = 'backfill' AND scope = $1",
            scope,
        )
        return bool(moved == "UPDATE 1")

    await eventually(database, is_due, timeout_s=20)


async def test_a_table_that_is_switched_off_and_on_has_what_changed_meanwhile(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    async with one_account(database, tmp_path, tables="customer,product,event") as (
        sim,
        vault,
        one,
    ):
        scope = scope_of(SCHEMA, one)

        async with working(vault):
            await copied(database, [one])
        await choose_tables(pg, "product,event")
        async with working(vault):
            gone = sim.control.of(one).delete("customer")
            number = await request_sync(pg, scope, 0.0)
            await acknowledged(database, scope, number)
        deleted = f"SELECT deleted FROM {SCHEMA}.customer WHERE _account_id = $1 AND id = $2"
        assert not await pg.fetchval(deleted, one, gone)
        await choose_tables(pg, "customer,product,event")
        async with working(vault):
            await begin_now(database, scope)

            async def is_flagged(connection: Connection) -> bool:
                return bool(await connection.fetchval(deleted, one, gone))

            await eventually(database, is_flagged, timeout_s=20)


async def test_a_table_that_somebody_drops_is_made_again_and_filled_while_a_worker_runs(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    async with one_account(database, tmp_path, tables="customer,product,event") as (_, vault, one):
        rows = f"SELECT count(*) FROM {SCHEMA}.product WHERE _account_id = $1"
        async with working(vault):
            await copied(database, [one])
            before = await pg.fetchval(rows, one)
            assert before
            await pg.execute(f"DROP TABLE {SCHEMA}.product CASCADE")
            await begin_now(database, scope_of(SCHEMA, one))

            async def is_filled(connection: Connection) -> bool:
                return bool(await connection.fetchval(rows, one) == before)

            await eventually(database, is_filled)


async def test_an_account_that_was_idle_for_a_month_is_not_listed_anew(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    """Looks have told that nothing happened."""
    async with one_account(database, tmp_path, tables="customer,event") as (_, vault, one):
        scope = scope_of(SCHEMA, one)
        async with working(vault):
            await copied(database, [one])
        await pg.execute(
            "UPDATE pinstripe.cursor SET as_of = as_of - interval '40 days' WHERE stream = 'events'"
        )
        await pg.execute("UPDATE pinstripe.platform_account SET owed_at = NULL")
        async with pg.transaction():
            await begin(pg, SCHEMA, [one])

        async def is_settled(connection: Connection) -> bool:
            found = "SELECT FROM pinstripe.platform_task WHERE scope = $1 AND task = 'backfill'"
            return not await connection.fetch(found, scope)

        async with working(vault):
            await eventually(database, is_settled)
        streams = "SELECT stream FROM pinstripe.cursor WHERE schema = $1"
        assert "anew" not in {row[0] for row in await pg.fetch(streams, scope)}


async def test_a_table_that_an_upgrade_brings_is_filled_for_all_accounts(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    async with one_account(database, tmp_path, tables="customer,event") as (sim, vault, one):
        async with working(vault):
            await copied(database, [one])
        await choose_tables(pg, "customer,product,event")
        async with working(vault):
            await begin_now(database, scope_of(SCHEMA, one))
            wanted = sim.control.of(one).counts()["product"]

            async def is_filled(connection: Connection) -> bool:
                rows = f"SELECT count(*) FROM {SCHEMA}.product WHERE _account_id = $1"
                return bool(await connection.fetchval(rows, one) >= wanted)

            await eventually(database, is_filled)


async def test_a_stricter_choice_on_personal_data_reaches_rows_that_no_list_shows(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    async with one_account(database, tmp_path, tables="customer,event") as (sim, vault, one):
        async with working(vault):
            await copied(database, [one])
            gone = sim.control.of(one).delete("customer")
            number = await request_sync(pg, scope_of(SCHEMA, one), 0.0)
            await acknowledged(database, scope_of(SCHEMA, one), number)
        await pg.execute(f"UPDATE {SCHEMA}.customer SET name = 'Ada' WHERE id = $1", gone)
        await vault.remove(PLATFORM, drop_tables=False)
        stricter = {"tables": "customer,event", "personal_data": "drop"}
        async with working(await add_platform(database, sim, tmp_path, **stricter)):
            await copied(database, [one])
        assert await pg.fetchval(f"SELECT count(name) FROM {SCHEMA}.customer") == 0
        assert await pg.fetchval(f"SELECT deleted FROM {SCHEMA}.customer WHERE id = $1", gone)
        # A gateway, or a worker with another key for hashes, writes nothing beside it.
        with pytest.raises(Misconfigured, match="another policy"):
            async with open_platform(database, SCHEMA, tables()):
                pass


async def test_a_platform_that_is_added_again_gets_the_key_and_settings_and_keeps_the_rest(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    async with running(Settings(scale=40, connected=1, connected_scale=60)) as sim:
        vault = await add_platform(database, sim, tmp_path, tables="customer,event")
        (one,) = sim.control.accounts()
        await vault.add_webhook_secret(PLATFORM, "whsec_of_the_platform")
        sim.control.key("sk_test_rolled")
        rolled = replace(sim, key="sk_test_rolled")
        async with working(vault):
            await copied(database, [one])
            of_one = f"SELECT min(id) FROM {SCHEMA}.customer WHERE _account_id = $1"
            customer = await pg.fetchval(of_one, one)
            words = ("--platform", PLATFORM, "--account", one)
            assert (await command(database, tmp_path, "erase", customer, *words)).code == 0
            await add_platform(database, rolled, tmp_path, tables="customer,product,event")
            await begin_now(database, scope_of(SCHEMA, one))
            wanted = sim.control.of(one).counts()["product"]

            async def is_filled(connection: Connection) -> bool:
                rows = f"SELECT count(*) FROM {SCHEMA}.product WHERE _account_id = $1"
                return bool(await connection.fetchval(rows, one) >= wanted)

            await eventually(database, is_filled)
        assert await pg.fetchval("SELECT count(*) FROM pinstripe.erasure") == 1
        (platform,) = await load_platforms(pg)
        assert vault.config_of(platform).api_key == "sk_test_rolled"
        assert vault.webhook_secrets_of(platform) == ("whsec_of_the_platform",)
        # Under the id of another platform nothing is replaced.
        other = NewPlatform(
            PLATFORM, sim.key, schema="b", stripe_url=sim.url, settings={"tables": "coupon"}
        )
        with pytest.raises(Misconfigured, match="already"):
            await vault.add(other)


async def test_status_names_what_no_account_of_a_platform_may_read(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    async with running(Settings(scale=40, connected=1, connected_scale=60)) as sim:
        sim.control.key("rk_test_noCharges", denied=["charge_read"])
        restricted = replace(sim, key="rk_test_noCharges")
        vault = await add_platform(database, restricted, tmp_path, tables="customer,charge,event")
        async with working(vault):
            await copied(database, [sim.account.id, *sim.control.accounts()])
        await pg.execute(
            'INSERT INTO pinstripe.quarantine (schema, "table", id, sqlstate, reason, remedy)'
            " VALUES ($1, 'customer', 'cus_1', '23514', 'A constraint of yours refuses it.', 'Drop it.')",
            scope_of(SCHEMA, sim.account.id),
        )
        said = (await command(database, tmp_path, "status")).out
        assert "  charge is not whole in 2 accounts: " in said
        assert "charge_read" in said
        refused = "customer is not whole in 1 account: A constraint of yours refuses it. Drop it."
        assert refused in said
        told = json.loads((await command(database, tmp_path, "status", "--json")).out)
        assert sorted(row[:2] for row in told["lacking"][PLATFORM]) == [
            ["charge", 2],
            ["customer", 1],
        ]
