"""Whose turn it is: by activity, once each, and what is due later."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import pytest

from pinstripe.errors import Unreachable
from pinstripe.store.migrate import ensure_bookkeeping
from pinstripe.store.platforms import sweep
from pinstripe.store.platforms.stored import add_accounts, revoke_accounts
from pinstripe.store.platforms.sweep import Found
from pinstripe.store.platforms.tasks import ensure_tasks, waiting_tasks
from pinstripe.store.pool import connect

PLATFORM, SCHEMA = "shops", "shops"
A, B, C = "acct_a", "acct_b", "acct_c"
_PLATFORM = """
INSERT INTO pinstripe.platform (id, schema, api_key, key_hint, stripe_url, account_id, livemode)
VALUES ('shops', 'shops', '', '', '', 'acct_p', false)
"""


@pytest.fixture
async def platform(pg: asyncpg.Connection) -> asyncpg.Connection:
    await ensure_bookkeeping(pg)
    await ensure_tasks(pg)
    await pg.execute(_PLATFORM)
    await add_accounts(pg, PLATFORM, [A, B, C])
    await pg.execute("UPDATE pinstripe.platform_account SET next_look_at = clock_timestamp()")
    return pg


async def due_in_s(connection: asyncpg.Connection, account: str) -> float:
    found: float = await connection.fetchval(
        "SELECT extract(epoch FROM next_look_at - clock_timestamp())::float8"
        " FROM pinstripe.platform_account WHERE account_id = $1",
        account,
    )
    return found


async def test_an_account_is_claimed_by_one_worker(
    platform: asyncpg.Connection, database: str
) -> None:
    async with connect(database) as other:
        claimed = [
            *await sweep.claim_looks(platform, PLATFORM, 2),
            *await sweep.claim_looks(other, PLATFORM, 10),
        ]
    assert sorted(look.account_id for look in claimed) == [A, B, C]
    # A worker that is killed costs what it held no more than that.
    assert max([await due_in_s(platform, account) for account in (A, B, C)]) <= 30
    assert await sweep.claim_looks(platform, PLATFORM, 10) == []


async def test_what_is_due_is_found_without_reading_all_accounts(
    platform: asyncpg.Connection,
) -> None:
    await add_accounts(platform, PLATFORM, [f"acct_{n}" for n in range(3000)])
    await platform.execute(
        "INSERT INTO pinstripe.platform_task (scope, task, due_at) SELECT schema, 'relist',"
        " clock_timestamp() + interval '1 day' FROM pinstripe.sync WHERE schema LIKE '%@%'"
    )
    await platform.execute("ANALYZE pinstripe.platform_account, pinstripe.platform_task")
    read = (
        "SELECT sum(seq_scan + idx_tup_fetch + seq_tup_read) FROM pg_stat_xact_user_tables"
        " WHERE relname IN ('platform_account', 'platform_task')"
    )
    async with platform.transaction():
        assert len(await sweep.claim_looks(platform, PLATFORM, 10)) == 3
        assert await sweep.request_due(platform, 10) == 0
        assert await platform.fetchval(read) < 30


async def test_the_pace_follows_the_age_of_the_newest_event(platform: asyncpg.Connection) -> None:
    now = time.time()
    seen = [
        Found(A, "evt_1", now - 1, now),
        Found(B, "evt_2", now - 2000, now),
        Found(C, "evt_3", now - 1e6, now),
    ]
    await sweep.looked(platform, PLATFORM, seen)
    assert 4 < await due_in_s(platform, A) < 6
    assert 85 < await due_in_s(platform, B) < 115
    assert 265 < await due_in_s(platform, C) < 335


async def test_the_one_that_is_late_by_most_of_its_pace_goes_first(
    platform: asyncpg.Connection,
) -> None:
    for account, idle, late in ((A, "1 s", "10 s"), (B, "10 days", "60 s"), (C, "1 s", "20 s")):
        await platform.execute(
            "UPDATE pinstripe.platform_account SET last_event_at = now() - $2::text::interval,"
            " next_look_at = now() - $3::text::interval WHERE account_id = $1",
            account,
            idle,
            late,
        )
    order = [(await sweep.claim_looks(platform, PLATFORM, 1))[0].account_id for _ in range(3)]
    assert order == [C, A, B]


async def test_something_new_requests_a_poll_that_is_owed_until_it_is_done(
    platform: asyncpg.Connection,
) -> None:
    async with platform.transaction():
        await sweep.found(platform, PLATFORM, SCHEMA, [Found(A, "evt_9", time.time(), time.time())])
    assert await waiting_tasks(platform) == {"poll": 1}
    await sweep.failed(platform, PLATFORM, A, Unreachable("away"))
    await platform.execute("UPDATE pinstripe.platform_account SET next_look_at = now()")
    owed = {look.account_id: look for look in await sweep.claim_looks(platform, PLATFORM, 9)}
    assert (owed[A].is_owed, owed[B].is_owed, owed[A].newest_event) == (True, False, "evt_9")
    for news in ("meanwhile", ""):
        begun = await sweep.account_standing(platform, PLATFORM, A)
        assert begun is not None
        assert begun.is_owed
        if news:
            assert await sweep.wake(platform, PLATFORM, SCHEMA, A)
        await sweep.polled(
            platform,
            PLATFORM,
            A,
            f"{SCHEMA}@{A}",
            newest_event="evt_9",
            newest_at=int(time.time()),
            as_of=time.time(),
            events=3,
            again_s=None,
            owed_at=begun.owed_at,
        )
        await platform.execute("UPDATE pinstripe.platform_account SET next_look_at = now()")
        again = {look.account_id: look for look in await sweep.claim_looks(platform, PLATFORM, 9)}
        assert again[A].is_owed == bool(news)


async def test_a_wake_that_commits_while_a_poll_is_noted_stays_owed(
    platform: asyncpg.Connection, database: str
) -> None:
    begun = await sweep.account_standing(platform, PLATFORM, A)
    assert begun is not None
    async with connect(database) as waking, connect(database) as watching:
        async with waking.transaction():
            assert await sweep.wake(waking, PLATFORM, SCHEMA, A)
            done = sweep.polled(
                platform,
                PLATFORM,
                A,
                f"{SCHEMA}@{A}",
                newest_event="evt_9",
                newest_at=int(time.time()),
                as_of=time.time(),
                events=1,
                again_s=None,
                owed_at=begun.owed_at,
            )
            noting = asyncio.create_task(done)
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while not await watching.fetchval(waits):  # noqa: ASYNC110 (a lock has no event)
                await asyncio.sleep(0.02)
        await noting
        again = await sweep.account_standing(waking, PLATFORM, A)
    assert again is not None
    assert again.is_owed


async def test_failures_pause_longer_and_longer(platform: asyncpg.Connection) -> None:
    pauses = []
    for _ in range(3):
        await sweep.failed(platform, PLATFORM, A, Unreachable("away"))
        pauses.append(round(await due_in_s(platform, A)))
    assert pauses == [5, 10, 20]
    for _ in range(10):
        await sweep.failed(platform, PLATFORM, A, Unreachable("away"))
    assert round(await due_in_s(platform, A)) == 300  # As of an idle account, and no longer.
    pace = await sweep.sweep_pace(platform, PLATFORM)
    assert (pace.active, pace.troubled) == (4 - 1, 1)


async def test_a_task_that_was_put_off_is_requested_when_its_time_has_come(
    platform: asyncpg.Connection,
) -> None:
    await sweep.put_off(platform, "relist", [f"{SCHEMA}@{A}"], 3600.0)
    await sweep.put_off(platform, "backfill", [f"{SCHEMA}@{A}", f"{SCHEMA}@{B}"], 0.0)
    await revoke_accounts(platform, PLATFORM, [B], "gone")
    async with platform.transaction():
        assert await sweep.request_due(platform, 100) == 1
    assert await waiting_tasks(platform) == {"backfill": 1}
    async with platform.transaction():
        assert await sweep.request_due(platform, 100) == 0, "it is not requested twice"


async def test_a_refusal_revokes_no_account_that_was_named_since(
    platform: asyncpg.Connection,
) -> None:
    """It may be one of before the account authorized the platform again, whose webhook has it polled."""
    async with platform.transaction():
        assert await sweep.wake(platform, PLATFORM, SCHEMA, A)
    assert await revoke_accounts(platform, PLATFORM, [A, B], "gone") == [B]
    later = "UPDATE pinstripe.platform_account SET woken_at = woken_at - interval '5 s'"
    await platform.execute(later)
    assert await revoke_accounts(platform, PLATFORM, [A], "gone") == [A]
    assert await add_accounts(platform, PLATFORM, [A]) == [A]
    assert await revoke_accounts(platform, PLATFORM, [A], "a poll that began before") == []
    # The next response tells, five seconds later.
    await sweep.failed(platform, PLATFORM, A, Unreachable("refused"))
    assert 4 < await due_in_s(platform, A) < 6
    assert await revoke_accounts(platform, PLATFORM, [A], "gone") == []
    # However often somebody waits for it.
    await sweep.failed(platform, PLATFORM, A, Unreachable("refused"))
    assert await revoke_accounts(platform, PLATFORM, [A], "gone") == [A]


async def test_a_paused_platform_requests_nothing(platform: asyncpg.Connection) -> None:
    await sweep.put_off(platform, "backfill", [f"{SCHEMA}@{A}"], 0.0)
    await platform.execute("UPDATE pinstripe.platform SET paused = true")
    async with platform.transaction():
        assert await sweep.request_due(platform, 100) == 0


async def test_a_webhook_wakes_an_account_that_is_known_and_active(
    platform: asyncpg.Connection,
) -> None:
    async with platform.transaction():
        assert await sweep.wake(platform, PLATFORM, SCHEMA, A)
        assert not await sweep.wake(platform, PLATFORM, SCHEMA, "acct_unknown")
    assert await waiting_tasks(platform) == {"poll": 1}
    async with platform.transaction():
        added = await sweep.welcome(platform, PLATFORM, SCHEMA, [A, "acct_unknown"])
    assert added == ["acct_unknown"]
    assert await waiting_tasks(platform) == {"poll": 1, "backfill": 1}
