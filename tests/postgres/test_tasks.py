"""The tasks of platforms in Postgres: made once, requested in the transaction that needs them."""

from __future__ import annotations

import asyncio
from importlib.metadata import distribution
from pathlib import Path
from typing import cast

import asyncpg
import pytest

from pinstripe.errors import Drifted
from pinstripe.platforms.worker import Worker, engine
from pinstripe.store.migrate import ensure_bookkeeping
from pinstripe.store.platforms.tasks import (
    DISCOVER,
    SCHEMA,
    drop_tasks,
    ensure_tasks,
    request_discovery,
    request_tasks,
    take_up_stalled,
    waiting_tasks,
)
from pinstripe.store.pool import connect

SCOPE = "stripe@acct_1"
FOLDER = Path(str(distribution("procrastinate").locate_file("procrastinate/sql/migrations")))
MIGRATIONS = sorted(FOLDER.glob("*.sql"))
_FETCH = f"SELECT id, task_name, lock FROM {SCHEMA}.procrastinate_fetch_job_v2(NULL, $1)"


@pytest.fixture
async def tasks(pg: asyncpg.Connection) -> asyncpg.Connection:
    await ensure_bookkeeping(pg)
    await ensure_tasks(pg)
    return pg


async def fetch(connection: asyncpg.Connection) -> asyncpg.Record | None:
    """Take the next job as a worker does; None if there is none."""
    worker = await connection.fetchval(f"SELECT {SCHEMA}.procrastinate_register_worker_v1()")
    row = await connection.fetchrow(_FETCH, worker)
    assert row is not None
    return row if row["id"] is not None else None


async def test_the_engine_connects_by_the_url_of_another_program_and_sets_its_sessions(
    database: str, pg: asyncpg.Connection
) -> None:
    name = await pg.fetchval("SELECT current_database()")
    theirs = {
        "datestyle": "German",
        "default_transaction_isolation": "serializable",
        "idle_session_timeout": "1s",
        "standard_conforming_strings": "off",
    }
    for key, value in theirs.items():
        await pg.execute(f"ALTER DATABASE {name} SET {key} = '{value}'")
    app = engine(f"{database}&pgbouncer=true&schema=public", cast("Worker", None))
    shown = ", ".join(f"current_setting('{key}') AS {key}" for key in theirs)
    async with asyncio.timeout(20), app.open_async():
        found = await app.connector.execute_query_one_async(f"SELECT {shown}")
    assert list(found.values()) == ["ISO, MDY", "read committed", "0", "on"]


async def test_several_processes_make_the_schema_at_once(database: str) -> None:
    async def make() -> None:
        async with connect(database) as connection:
            await ensure_bookkeeping(connection)
            await ensure_tasks(connection)

    await asyncio.gather(*(make() for _ in range(4)))
    async with connect(database) as connection:
        assert await waiting_tasks(connection) == {}


async def test_an_older_schema_gets_the_migrations_that_it_lacks(pg: asyncpg.Connection) -> None:
    await ensure_bookkeeping(pg)
    old, new = MIGRATIONS[:-2], MIGRATIONS[-2:]
    async with pg.transaction():
        await pg.execute(f"CREATE SCHEMA {SCHEMA}; SET LOCAL search_path = {SCHEMA}, pg_catalog")
        for migration in old:
            await pg.execute(migration.read_text())
        await pg.execute(f"COMMENT ON SCHEMA {SCHEMA} IS '{old[-1].name} old'")
    before = await _functions(pg)
    await ensure_tasks(pg)
    assert {"procrastinate_retry_job_v2", "request_job"} <= await _functions(pg) - before, new
    assert await request_tasks(pg, "poll", [SCOPE]) == 1


async def test_a_schema_of_a_newer_procrastinate_is_refused(tasks: asyncpg.Connection) -> None:
    await tasks.execute(f"COMMENT ON SCHEMA {SCHEMA} IS '99.00.00_01_x.sql 12345678'")
    with pytest.raises(Drifted, match="newer"):
        await ensure_tasks(tasks)


async def test_a_task_is_requested_with_the_transaction(tasks: asyncpg.Connection) -> None:
    transaction = tasks.transaction()
    await transaction.start()
    await request_tasks(tasks, "poll", [SCOPE])
    await transaction.rollback()
    assert await waiting_tasks(tasks) == {}
    assert await request_tasks(tasks, "poll", [SCOPE]) == 1
    assert await waiting_tasks(tasks) == {"poll": 1}


async def test_one_waiting_task_of_a_kind_is_enough(tasks: asyncpg.Connection) -> None:
    assert await request_tasks(tasks, "poll", [SCOPE, SCOPE, "stripe@acct_2"]) == 2
    assert await request_tasks(tasks, "poll", [SCOPE]) == 0
    assert await request_tasks(tasks, "backfill", [SCOPE]) == 1
    assert await waiting_tasks(tasks) == {"poll": 2, "backfill": 1}


async def test_a_running_task_does_not_stand_for_a_new_one(tasks: asyncpg.Connection) -> None:
    await request_tasks(tasks, "poll", [SCOPE])
    assert await fetch(tasks) is not None
    assert await request_tasks(tasks, "poll", [SCOPE]) == 1
    assert await fetch(tasks) is None, "the account has a task under way"


async def test_a_waiting_task_is_not_taken_before_the_new_work_is_committed(
    tasks: asyncpg.Connection, database: str
) -> None:
    """Else the task runs, does not see the work, and nothing is left to do it."""
    await request_tasks(tasks, "poll", [SCOPE])
    async with connect(database) as other:
        async with other.transaction():
            assert await request_tasks(other, "poll", [SCOPE]) == 0
            assert await fetch(tasks) is None
        assert await fetch(tasks) is not None


async def test_a_waited_for_poll_goes_first(tasks: asyncpg.Connection) -> None:
    await request_tasks(tasks, "poll", ["stripe@acct_1", "stripe@acct_2"])
    await request_tasks(tasks, "poll", ["stripe@acct_2"], priority=40)
    first = await fetch(tasks)
    assert first is not None
    assert first["lock"] == "stripe@acct_2"


async def test_the_transaction_that_requests_wakes_the_workers(
    tasks: asyncpg.Connection, database: str
) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with connect(database) as listener:
        await listener.add_listener(
            "procrastinate_queue_v1#live", lambda *x: heard.put_nowait(x[3])
        )
        for _ in range(2):  # The second finds the task waiting.
            await request_tasks(tasks, "poll", [SCOPE])
            async with asyncio.timeout(10):
                assert "job_inserted" in await heard.get()


@pytest.mark.parametrize("left_by", ["a dead worker", "a live one"])
async def test_a_task_that_nobody_works_at_is_fetched_again(
    tasks: asyncpg.Connection, left_by: str
) -> None:
    """A live worker leaves one where the session is cut in which the task was to end."""
    await tasks.execute(
        "INSERT INTO pinstripe.sync (schema, api_version, sdk_version) VALUES ($1, '', '')", SCOPE
    )
    await tasks.execute(
        "INSERT INTO pinstripe.lease VALUES ($1, 'it', 1, now() + interval '15 s')", SCOPE
    )
    await request_tasks(tasks, "poll", [SCOPE])
    assert await fetch(tasks) is not None
    await tasks.execute(f"UPDATE {SCHEMA}.procrastinate_events SET at = now() - interval '1 hour'")
    assert await take_up_stalled(tasks) == [], "it works"
    if left_by == "a dead worker":
        await tasks.execute(
            f"UPDATE {SCHEMA}.procrastinate_workers SET last_heartbeat = now() - interval '16 s'"
        )
    else:
        await tasks.execute("UPDATE pinstripe.lease SET expires_at = to_timestamp(0)")
    await request_tasks(tasks, "poll", [SCOPE])
    assert await take_up_stalled(tasks) == [("poll", SCOPE)]
    assert await waiting_tasks(tasks) == {"poll": 1}, "one of a kind is enough"
    assert await fetch(tasks) is not None
    assert await take_up_stalled(tasks) == [], "it has just begun"
    await tasks.execute(f"UPDATE {SCHEMA}.procrastinate_jobs SET worker_id = NULL")
    assert await take_up_stalled(tasks) == [("poll", SCOPE)]
    assert await fetch(tasks) is not None


async def test_a_look_for_accounts_that_has_ended_unsaid_keeps_no_later_one_from_it(
    tasks: asyncpg.Connection,
) -> None:
    await request_discovery(tasks)
    assert await fetch(tasks) is not None
    later = f"UPDATE {SCHEMA}.procrastinate_events SET at = at - interval '31 minutes'"
    await tasks.execute(later)
    assert await take_up_stalled(tasks) == [], "it may have many accounts"
    await tasks.execute(later)
    assert await take_up_stalled(tasks) == [(DISCOVER, "")]
    assert await fetch(tasks) is not None


async def test_no_function_looks_into_the_schemas_of_others(tasks: asyncpg.Connection) -> None:
    """A role that may create in `public` must not have its operators or tables taken for ours."""
    loose = await tasks.fetch(
        "SELECT proname FROM pg_proc WHERE pronamespace = $1::regnamespace AND NOT"
        " coalesce(proconfig, '{}') @> ARRAY['search_path=pinstripe_tasks, pg_catalog, pg_temp']",
        SCHEMA,
    )
    assert loose == []
    await tasks.execute("CREATE TABLE public.procrastinate_jobs (id int); SET search_path = public")
    assert await request_tasks(tasks, "poll", [SCOPE]) == 1
    assert await tasks.fetchval("SELECT count(*) FROM public.procrastinate_jobs") == 0


async def test_the_tasks_of_a_removed_platform_are_dropped(tasks: asyncpg.Connection) -> None:
    await request_tasks(tasks, "poll", ["stripe@acct_1", "stripe2@acct_1", "stripe"])
    await drop_tasks(tasks, "stripe")
    left = await tasks.fetch(f"SELECT lock FROM {SCHEMA}.procrastinate_jobs ORDER BY 1")
    assert [row[0] for row in left] == ["stripe", "stripe2@acct_1"]


async def _functions(connection: asyncpg.Connection) -> set[str]:
    rows = await connection.fetch(
        "SELECT proname FROM pg_proc WHERE pronamespace = $1::regnamespace", SCHEMA
    )
    return {row[0] for row in rows}
