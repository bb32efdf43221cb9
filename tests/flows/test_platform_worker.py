"""Workers of a platform against the simulator: copy, follow, join, leave, die."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.flows.harness.command import started
from tests.flows.harness.truth import born_since
from tests.flows.harness.workers import (
    PLATFORM,
    SCHEMA,
    acknowledged,
    add_platform,
    agrees,
    command,
    copied,
    eventually,
    news_of,
    state_of,
    worker_process,
    working,
    wrong_in,
)

from pinstripe.store.events import request_sync
from pinstripe.store.platforms.sweep import begin, sweep_pace
from pinstripe.store.platforms.tasks import DISCOVER
from pinstripe.store.platforms.workers import live_workers
from pinstripe.store.pool import Connection, connect
from pinstripe.store.session import scope_of
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

FEW = Settings(scale=60, connected=2, connected_scale=60, future_fields=False)
SOME = "customer,product,price,subscription*,invoice,charge,refund,payment_intent,coupon,event"
MOST_SESSIONS = 10


def connected(sim: Running, account: str) -> Running:
    return Running(sim.url, sim.account.connected[account], sim.control.of(account), sim.key)


async def test_every_account_is_copied_and_followed_with_few_sessions(
    database: str, tmp_path: Path
) -> None:
    async with running(FEW) as sim:
        vault = await add_platform(database, sim, tmp_path, tables=SOME)
        accounts = [sim.account.id, *sim.control.accounts()]
        one, two = sim.control.accounts()
        async with working(vault):
            await copied(database, accounts)
            for account in accounts:
                one_of = sim if account == sim.account.id else connected(sim, account)
                wrong = await wrong_in(database, sim, account, among=born_since(one_of, 0))
                assert wrong == {}, account
            start = int(time.time())
            await sim.control.of(one).mutate(20)
            changed = born_since(connected(sim, one), start)
            # No webhook tells of it. It was idle for days: its turn would come in five minutes.
            async with connect(database) as pg:
                await pg.execute("UPDATE pinstripe.platform_account SET next_look_at = now()")
            await agrees(database, sim, one, among=changed)
            # A webhook names the other one, and a caller waits for it.
            await sim.control.of(two).mutate(20)
            async with connect(database) as pg:
                number = await request_sync(pg, scope_of(SCHEMA, two), 0.0)
            assert await news_of(database, two)
            await acknowledged(database, scope_of(SCHEMA, two), number)
            changed = born_since(connected(sim, two), start)
            await agrees(database, sim, two, among=changed)
            async with connect(database) as pg:
                sessions = await pg.fetch(
                    "SELECT application_name FROM pg_stat_activity WHERE datname ="
                    " current_database() AND application_name LIKE 'pinstripe %'"
                )
                assert len(sessions) <= MOST_SESSIONS, [row[0] for row in sessions]
                pace = await sweep_pace(pg, PLATFORM)
                assert (pace.active, pace.revoked, pace.troubled) == (3, 0, 0)
        async with connect(database) as pg:
            assert await live_workers(pg) == [], "it has left"


async def test_an_account_that_revokes_stops_and_one_that_authorizes_again_goes_on(
    database: str, tmp_path: Path
) -> None:
    async with running(FEW) as sim:
        vault = await add_platform(database, sim, tmp_path, tables="customer,event")
        one, two = sim.control.accounts()
        async with working(vault) as worker:
            await copied(database, [one, two])
            sim.control.deauthorize(one)
            await news_of(
                database, one
            )  # The poll that ends the first copy may have met it already.

            async def revoked(_: Connection) -> bool:
                return await state_of(database, one) == "revoked"

            await eventually(database, revoked)
            assert not await news_of(database, one), "nothing more is requested for it"
            start = int(time.time())
            await sim.control.of(two).mutate(10)
            await news_of(database, two)
            changed = born_since(connected(sim, two), start, ("customer",))
            await agrees(database, sim, two, among=changed)
            sim.control.authorize(one)
            await sim.control.of(one).mutate(10)
            await worker.discover()
            assert await state_of(database, one) == "active"
            changed = born_since(connected(sim, one), 0, ("customer",))
            await agrees(database, sim, one, among=changed)


@pytest.mark.parametrize("kind", ["error_500", "rate_limit", "hang"])
async def test_an_account_whose_answers_fail_delays_no_other(
    database: str, tmp_path: Path, kind: str
) -> None:
    async with running(FEW) as sim:
        vault = await add_platform(database, sim, tmp_path, tables="customer,event")
        one, two = sim.control.accounts()
        sim.control.of(one).fault(kind=kind, seconds=2.0)
        async with working(vault):
            await copied(database, [two])
            start = int(time.time())
            await sim.control.of(two).mutate(10)
            await news_of(database, two)
            changed = born_since(connected(sim, two), start, ("customer",))
            await agrees(database, sim, two, among=changed)

            async def troubled(pg: Connection) -> bool:
                return (await sweep_pace(pg, PLATFORM)).troubled == 1

            await eventually(database, troubled)
            sim.control.of(one).clear_faults()
            async with connect(database) as pg, pg.transaction():
                await begin(pg, SCHEMA, [one])
            await copied(database, [one])


async def test_the_tasks_of_a_killed_worker_are_taken_up_within_30_seconds(
    database: str, tmp_path: Path
) -> None:
    async with running(FEW) as sim:
        vault = await add_platform(database, sim, tmp_path, tables="customer,event")
        sim.control.latency(fixed_s=1.0)  # So that it is killed in the middle of its tasks.
        async with worker_process(database, tmp_path) as process:

            async def works(pg: Connection) -> bool:
                return any(worker.running for worker in await live_workers(pg))

            await eventually(database, works)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        sim.control.latency()
        async with connect(database) as pg:
            doing = await pg.fetchval(
                "SELECT count(*) FROM pinstripe_tasks.procrastinate_jobs WHERE status = 'doing'"
            )
        assert doing >= 1
        killed_at = time.monotonic()
        async with working(vault):
            await copied(database, [sim.account.id, *sim.control.accounts()])
            assert time.monotonic() - killed_at < 30


async def test_no_task_that_a_dead_worker_had_begun_keeps_the_others_from_its_account(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    """Whatever it died in: also in what takes up the tasks of dead workers."""
    begun = (
        "INSERT INTO procrastinate_jobs (queue_name, task_name, priority, lock, queueing_lock, args,"
        " status, worker_id) SELECT 'live', name, 50, lock, name || ' ' || lock,"
        " jsonb_build_object('scope', lock), 'doing', $1 FROM unnest($2::text[], $3::text[]) u (name, lock)"
    )
    async with running(FEW) as sim:
        vault = await add_platform(database, sim, tmp_path, tables="customer,event")
        async with working(vault):
            await copied(database, [sim.account.id])
        scope = scope_of(SCHEMA, sim.account.id)
        await pg.execute("SET search_path = pinstripe_tasks; DELETE FROM procrastinate_jobs")
        dead = await pg.fetchval(
            "INSERT INTO procrastinate_workers (last_heartbeat) VALUES (to_timestamp(0)) RETURNING id"
        )
        names = {"poll": scope, "stalled": "stalled", DISCOVER: DISCOVER}
        await pg.execute(begun, dead, [*names], [*names.values()])
        async with working(vault):
            number = await request_sync(pg, scope, 0.0)
            await acknowledged(database, scope, number, timeout_s=30)


async def test_one_account_of_a_platform_is_verified(database: str, tmp_path: Path) -> None:
    async with running(FEW) as sim:
        vault = await add_platform(database, sim, tmp_path, tables="customer,event")
        one, two = sim.control.accounts()

        async def verify(account: str, *words: str) -> tuple[int, dict[str, Any]]:
            asked = ("--platform", PLATFORM, "--account", account, "--json", *words)
            ended = await command(database, tmp_path, "verify", *asked)
            return ended.code, json.loads(ended.out)

        async with working(vault):
            await copied(database, [one, two])
            async with connect(database) as pg:
                await pg.execute(
                    f"UPDATE {SCHEMA}.customer SET name = 'wrong', _as_of = to_timestamp(1),"
                    " _as_of_latest = to_timestamp(1)"
                    f" WHERE _account_id = $1 AND id = (SELECT min(id) FROM {SCHEMA}.customer"
                    " WHERE _account_id = $1)",
                    one,
                )
            code, report = await verify(two)
            assert (code, report["differences"]) == (0, 0)
            code, report = await verify(one)
            assert (code, report["differences"]) == (6, 1)
        # Without a worker none gets ten seconds to mend it before the second look.
        code, report = await verify(one, "--repair")
        assert (code, report["repaired"]) == (0, 1)


async def test_a_customer_of_one_account_is_erased_and_stays_so(
    database: str, tmp_path: Path
) -> None:
    async with running(FEW) as sim:
        vault = await add_platform(database, sim, tmp_path, tables="customer,event")
        one, two = sim.control.accounts()
        of_one = "SELECT {} FROM {}.customer WHERE _account_id = $1 AND {}"
        async with working(vault), connect(database) as pg:
            await copied(database, [one, two])
            wanted = of_one.format("min(id)", SCHEMA, "name IS NOT NULL")
            customer = await pg.fetchval(wanted, one)
            named = await pg.fetchval(of_one.format("count(name)", SCHEMA, "true"), two)
            words = (customer, "--platform", PLATFORM, "--account")
            # Of another account it is nobody.
            for account, code in ((two, 2), ("acct_1Nobody", 2), (one, 0)):
                erased = await command(database, tmp_path, "erase", *words, account, "--scrub")
                assert erased.code == code, erased.text
            verified = await command(
                database,
                tmp_path,
                "verify",
                *("--platform", PLATFORM, "--account", one, "--repair", "--json"),
            )
            assert json.loads(verified.out)["differences"] == 0
            kept = await pg.fetch(of_one.format("id, name", SCHEMA, "id = $2"), one, customer)
            assert [tuple(row) for row in kept] == [(customer, None)]
            assert await pg.fetchval(of_one.format("count(name)", SCHEMA, "true"), two) == named


async def test_a_worker_leaves_in_order_at_sigterm(database: str, tmp_path: Path) -> None:
    async with running(FEW) as sim:
        await add_platform(database, sim, tmp_path, tables="customer,event")
        async with worker_process(database, tmp_path) as process:
            await copied(database, [sim.account.id])
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                assert await process.wait() == 0
        async with connect(database) as pg:
            assert await live_workers(pg) == []
            states = await pg.fetch(
                "SELECT status::text, count(*) FROM pinstripe_tasks.procrastinate_jobs GROUP BY 1"
            )
        assert "doing" not in {row[0] for row in states}, json.dumps([tuple(r) for r in states])


async def test_a_worker_without_a_platform_names_how_to_add_one(
    database: str, tmp_path: Path
) -> None:
    words = ("worker", "--data-dir", str(tmp_path))
    async with started(*words, env={"DATABASE_URL": database}) as process:
        async with asyncio.timeout(60):
            lines = [(await process.stderr.readline()).decode() for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert "has joined" in lines[0]
    assert "No platform is stored yet" in lines[1]
    assert "`pinstripe platform add ID`" in lines[1]
    assert process.returncode == 0
