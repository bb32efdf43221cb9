"""The one door: rows and cursor in one commit, order, trouble, and contested rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

import asyncpg
import pytest
from tests.postgres.writing import SCHEMA, T0, VERSION, make_schema

from pinstripe.catalog.tables import tables
from pinstripe.client.response import AsOf
from pinstripe.errors import Drifted, Unwritable
from pinstripe.mirror import QUEUE_ROWS, Mirror, open_mirror
from pinstripe.mirror import mirror as mirror_module
from pinstripe.mirror.batch import BATCH_ROWS, LIVE_LANE, Conflict, Effect, Job, Queue
from pinstripe.rows.extract import RowSet
from pinstripe.store.cursors import Checkpoint, load_checkpoints
from pinstripe.store.pool import Connection, connect

_NAMES = ("customer", "product")


@dataclass
class Steps:
    """Progress of a stream that counts."""

    stream: str = "/v1/customers"
    committed: list[object] = field(default_factory=list)

    def checkpoint(self, steps: Sequence[object]) -> Checkpoint:
        position = {"table": "customer", "steps": [*self.committed, *steps]}
        return Checkpoint(self.stream, "running", position=position)

    def commit(self, steps: Sequence[object]) -> None:
        self.committed += steps


def customers(mirror: Mirror, *keys: str, **fields: object) -> RowSet:
    found = RowSet()
    for key in keys:
        mirror.extractor.object({"id": key, "object": "customer", **fields}, found)
    return found


def during(lo: float, hi: float) -> AsOf:
    return AsOf(T0 + lo, T0 + hi)


@pytest.fixture
async def mirror(database: str) -> AsyncIterator[Mirror]:
    await make_schema(database, _NAMES)
    chosen = {n: tables()[n] for n in _NAMES}
    async with open_mirror(database, SCHEMA, chosen, api_version=VERSION) as opened:
        yield opened


async def written(pg: Connection) -> tuple[int, object]:
    """(rows, position) as another session sees them."""
    cursors = await load_checkpoints(pg, SCHEMA)
    position = cursors["/v1/customers"].position if cursors else None
    return await pg.fetchval(f"SELECT count(*) FROM {SCHEMA}.customer"), position


async def test_rows_and_cursor_become_visible_together(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    seen: list[tuple[int, object]] = []

    async def look(_: Connection) -> None:
        seen.append(await written(pg))

    found = customers(mirror, "cus_1", "cus_2")
    steps = Steps()
    await mirror.write([(found, during(0, 1))], lane="a", progress=steps, step=1, effect=look)
    assert seen == [(0, None)]
    assert await written(pg) == (2, {"table": "customer", "steps": [1]})
    assert steps.committed == [1]


async def test_a_connection_lost_before_the_commit_leaves_neither_and_is_tried_again(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    seen: list[tuple[int, object]] = []

    async def die_once(connection: Connection) -> None:
        seen.append(await written(pg))
        if len(seen) == 1:
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    found = customers(mirror, "cus_1")
    steps = Steps()
    await mirror.write([(found, during(0, 1))], lane="a", progress=steps, step=1, effect=die_once)
    assert seen == [(0, None), (0, None)]
    assert await written(pg) == (1, {"table": "customer", "steps": [1]})
    assert steps.committed == [1]


async def test_what_comes_after_the_end_is_given_up_at_once(database: str) -> None:
    await make_schema(database, _NAMES)
    chosen = {n: tables()[n] for n in _NAMES}
    async with open_mirror(database, SCHEMA, chosen, api_version=VERSION) as mirror:
        pass
    durable = await mirror.enqueue([(customers(mirror, "cus_1"), during(0, 1))], lane=LIVE_LANE)
    assert durable.cancelled(), "no writer would ever take it"


async def test_a_server_that_ends_sessions_is_waited_out(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    steps = Steps()
    pages = [
        asyncio.create_task(
            mirror.write(
                [(customers(mirror, *(f"cus_{n}_{k}" for k in range(100))), during(0, 1))],
                lane="a",
                progress=steps,
                step=n,
            )
        )
        for n in range(60)
    ]
    for page in pages[::20]:
        await page
        await pg.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    await asyncio.gather(*pages)
    assert steps.committed == list(range(60))
    assert await written(pg) == (6_000, {"table": "customer", "steps": list(range(60))})
    assert mirror.trouble == ""


async def test_a_session_that_ends_in_the_middle_of_a_copy_does_not_hang_its_writer(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    wide = {f"key_{n}": "x" * 400 for n in range(10)}
    killed = 0

    async def kill_copies() -> None:
        nonlocal killed
        while killed < 5:
            killed += await pg.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND query LIKE 'COPY%' AND state = 'active'"
            )

    async def put(page: int) -> None:
        found = customers(mirror, *(f"cus_{page}_{n}" for n in range(1_000)), metadata=wide)
        await mirror.write([(found, during(0, 1))])

    async with asyncio.timeout(60):
        killer = asyncio.create_task(kill_copies())
        pages = 0
        while not killer.done():
            await put(pages)
            pages += 1
    assert await pg.fetchval(f"SELECT count(*) FROM {SCHEMA}.customer") == 1_000 * pages


async def test_calls_of_one_lane_commit_in_order(mirror: Mirror, pg: asyncpg.Connection) -> None:
    streams = [Steps(f"s{n}") for n in range(5)]
    waiting = [
        mirror.write(
            [(customers(mirror, f"cus_{n}", balance=n), during(n, n + 1))],
            lane=streams[n % 5].stream,
            progress=streams[n % 5],
            step=n,
        )
        for n in range(200)
    ]
    await asyncio.gather(*waiting)
    for number, stream in enumerate(streams):
        assert stream.committed == list(range(number, 200, 5))


async def test_a_row_that_postgres_refuses_is_left_out_and_owed_and_its_stream_goes_on(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    bad, good = Steps("bad"), Steps("good")

    async def page(progress: Steps, key: str, step: int, **fields: object) -> None:
        parts = [(customers(mirror, key, **fields), during(0, 1))]
        await mirror.write(parts, lane="one", progress=progress, step=step)

    results = await asyncio.gather(
        page(bad, "cus_1", 1),
        page(good, "cus_2", 1),
        page(bad, "cus_3", 2, name="nul \0"),
        page(good, "cus_4", 2),
        page(bad, "cus_5", 3),
        return_exceptions=True,
    )
    assert all(result is None for result in results)
    cursors = await load_checkpoints(pg, SCHEMA)
    assert cursors["bad"].position == {"table": "customer", "steps": [1, 2, 3]}
    assert cursors["good"].position == {"table": "customer", "steps": [1, 2]}
    keys = await pg.fetchval(f"SELECT array_agg(id ORDER BY id) FROM {SCHEMA}.customer")
    assert keys == ["cus_1", "cus_2", "cus_4", "cus_5"]
    for place in ("pending WHERE code = 'quarantined'", "quarantine"):
        assert await pg.fetchval(f"SELECT array_agg(id) FROM pinstripe.{place}") == ["cus_3"]


async def test_an_effect_that_fails_breaks_its_stream_and_no_other(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    bad, good = Steps("bad"), Steps("good")

    async def fail(connection: Connection) -> None:
        await connection.execute("SELECT 1 / 0")

    async def page(progress: Steps, key: str, step: int, effect: Effect | None) -> None:
        parts = [(customers(mirror, key), during(0, 1))]
        await mirror.write(parts, lane="one", progress=progress, step=step, effect=effect)

    results = await asyncio.gather(
        page(bad, "cus_1", 1, fail),
        page(good, "cus_2", 1, None),
        page(bad, "cus_3", 2, None),
        return_exceptions=True,
    )
    assert [type(r) for r in results] == [Drifted, type(None), Drifted]
    keys = await pg.fetchval(f"SELECT array_agg(id ORDER BY id) FROM {SCHEMA}.customer")
    assert keys == ["cus_2"]


async def test_a_read_only_database_is_told_to_everyone(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    name = await pg.fetchval("SELECT current_database()")
    await pg.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    with pytest.raises(Unwritable):
        await mirror.write([(customers(mirror, "cus_1"), during(0, 1))])


async def test_contested_rows_are_settled_one_get_at_a_time(
    mirror: Mirror, pg: asyncpg.Connection
) -> None:
    asked: list[str] = []
    answer = asyncio.Event()

    async def settle(row: Conflict) -> bool:
        asked.append(row.key)
        await answer.wait()
        now = await pg.fetchval("SELECT clock_timestamp()")
        as_of = replace(during(5, 6), known_until=now)
        await mirror.write([(customers(mirror, row.key, name="settled"), as_of)])
        return True

    mirror.conflicts.resolve = settle
    await mirror.write([(customers(mirror, "cus_1", name="a"), during(5, 6))])
    for name in "bcdef":
        await mirror.write([(customers(mirror, "cus_1", name=name), during(5.1, 6.1))])
    assert asked == ["cus_1"]
    answer.set()
    await mirror.conflicts.wait_resolved()
    # One that was under way, and one for all that came meanwhile.
    assert asked == ["cus_1", "cus_1"]
    assert mirror.conflicts.count == 5
    assert await pg.fetchval(f"SELECT name FROM {SCHEMA}.customer") == "settled"


async def test_the_queue_is_bounded(mirror: Mirror, database: str) -> None:
    async with connect(database) as other:
        lock = other.transaction()
        await lock.start()
        await other.execute(f"LOCK TABLE {SCHEMA}.customer IN ACCESS EXCLUSIVE MODE")
        waiting: list[asyncio.Future[None]] = []
        queued = 0
        while queued < QUEUE_ROWS:
            found = customers(mirror, *(f"cus_{queued + n}" for n in range(500)))
            waiting.append(await mirror.enqueue([(found, during(0, 1))], lane="a"))
            queued += 500
        one_more = asyncio.create_task(mirror.write([(customers(mirror, "cus_x"), during(0, 1))]))
        given_up = asyncio.create_task(mirror.write([(customers(mirror, "cus_y"), during(0, 1))]))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not one_more.done()
        given_up.cancel()
        await lock.rollback()
        await asyncio.gather(*waiting)
        await one_more
    assert mirror.queued == 0


_WRITERS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'resting' ORDER BY pid"


@pytest.mark.parametrize("copy_ends", [True, False])
async def test_a_writer_of_lists_keeps_no_session_that_it_does_not_need(
    database: str, pg: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, copy_ends: bool
) -> None:
    """The stages and plans of a first copy are held by Postgres for as long as the session lives."""
    monkeypatch.setattr(mirror_module, "_IDLE_S", 600.0 if copy_ends else 0.2)
    await make_schema(database, _NAMES)
    chosen = {n: tables()[n] for n in _NAMES}
    async with open_mirror(
        database, SCHEMA, chosen, api_version=VERSION, session_name="resting"
    ) as opened:
        await opened.write([(customers(opened, "cus_1"), during(0, 1))], lane=LIVE_LANE)
        live = await pg.fetch(_WRITERS)
        await opened.write([(customers(opened, "cus_2"), during(0, 1))])
        assert len(live) == 1
        if copy_ends:
            assert len(await pg.fetch(_WRITERS)) == 2
            opened.rest()
            await opened.write([(customers(opened, "cus_3"), during(0, 1))])
        async with asyncio.timeout(20):
            while await pg.fetch(_WRITERS) != live:  # noqa: ASYNC110 (what it reads has no event)
                await asyncio.sleep(0.02)
        await opened.write([(customers(opened, "cus_4"), during(0, 1))])
        assert await pg.fetchval("SELECT count(*) FROM stripe.customer") == 3 + copy_ends


async def test_a_block_that_is_left_waits_for_nobody(database: str) -> None:
    await make_schema(database, _NAMES)
    chosen = {n: tables()[n] for n in _NAMES}
    never = asyncio.Event()

    async def settle(row: Conflict) -> bool:
        await never.wait()
        return True

    async with asyncio.timeout(10):
        async with open_mirror(database, SCHEMA, chosen, api_version=VERSION) as mirror:
            mirror.conflicts.resolve = settle
            await mirror.write([(customers(mirror, "cus_1", name="a"), during(5, 6))])
            await mirror.write([(customers(mirror, "cus_1", name="b"), during(5, 6))])
            waiting = await mirror.enqueue([(customers(mirror, "cus_2"), during(5, 6))])
    assert waiting.done()


async def test_small_jobs_keep_to_one_writer_and_a_second_helps_once_a_batch_waits() -> None:
    queue, loop = Queue(3), asyncio.get_running_loop()

    def add(lane: str, rows: int) -> None:
        queue.add(Job([], None, None, loop.create_future(), rows, lane, None, ()))

    add(LIVE_LANE, 5000)
    for number in range(5):
        add(f"small {number}", 10)
    assert len(await queue.take(1)) == 5
    add("large", BATCH_ROWS)
    add("second", 10)
    assert [job.lane for job in await queue.take(1)] == ["large"]
    assert [job.lane for job in await queue.take(2)] == ["second"]
    assert [job.lane for job in await queue.take(0)] == [LIVE_LANE]
