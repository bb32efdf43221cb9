"""The meter of the read allowance, with its counts in Postgres."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import date, timedelta

import asyncpg
import pytest
from tests.postgres.writing import SCHEMA, make_schema

from pinstripe.store.daily_counts import load_read_use
from pinstripe.store.migrate import ensure_bookkeeping
from pinstripe.store.pool import Pool, open_pool
from pinstripe.sync.read_quota import QuotaDemand, ReadQuota

_DAY_S = 86400.0
_NOON = 20_000.5 * _DAY_S


@dataclass
class Meter:
    """Allowances on one database, and the clock and counters that they are given."""

    pool: Pool
    requests: Counter[str] = field(default_factory=Counter)
    now: float = 0.0

    def allowance(self, *, livemode: bool = True, hold: bool = False) -> ReadQuota:
        return ReadQuota(
            self.pool,
            SCHEMA,
            self.requests,
            livemode=livemode,
            poll_s=0.5,
            hold=hold,
            clock=lambda: self.now,
            wall_clock=lambda: _NOON + self.now,
        )


@pytest.fixture
async def meter(database: str, pg: asyncpg.Connection) -> AsyncIterator[Meter]:
    await ensure_bookkeeping(pg)
    await make_schema(database, ("charge", "refund"))
    async with await open_pool(database, min_size=1, max_size=2) as pool:
        yield Meter(pool)


async def charges(pg: asyncpg.Connection, count: int) -> None:
    await pg.execute(
        f"INSERT INTO {SCHEMA}.charge (id, status, created, _as_of, _as_of_latest, _synced_at)"
        " SELECT 'ch_' || n, 'succeeded', now(), now(), now(), now()"
        " FROM generate_series(1, $1::int) n",
        count,
    )


async def stored(pg: asyncpg.Connection) -> dict[str, int]:
    rows = await pg.fetch("SELECT kind, sum(count)::int FROM pinstripe.request_count GROUP BY 1")
    return {row[0]: row[1] for row in rows}


async def test_each_request_is_counted_once(meter: Meter, pg: asyncpg.Connection) -> None:
    allowance = meter.allowance()
    meter.requests.update({"GET /v1/events": 5, "GET /v1/charges": 2, "POST /v1/charges": 9})
    await allowance.flush()
    await allowance.flush()
    meter.requests["GET /v1/events"] += 1
    meter.requests["GET /v1/charges/{charge}"] += 3
    assert allowance.status().used == 11  # what is not saved yet is counted too
    await allowance.flush()
    assert await stored(pg) == {"events": 6, "list": 2, "retrieve": 3}
    assert allowance.status().by_kind == {"events": 6, "list": 2, "retrieve": 3}


async def test_counts_of_other_processes_and_earlier_days_count_for_thirty_days(
    meter: Meter,
) -> None:
    first = meter.allowance()
    meter.requests["GET /v1/events"] += 7
    await first.flush()
    meter.now += 29 * _DAY_S
    meter.requests.clear()
    second = meter.allowance()
    await second.flush()
    assert second.status().used == 7
    meter.now += _DAY_S
    await second.flush()
    assert second.status().used == 0


async def test_status_reads_the_use_from_the_database_and_projects_a_whole_day(
    meter: Meter, pg: asyncpg.Connection
) -> None:
    allowance = meter.allowance()
    day = date(1970, 1, 1) + timedelta(days=20_000)
    for requests in (7000, 100, 30):
        meter.requests["GET /v1/events"] += requests
        await allowance.flush()
        meter.now += _DAY_S
    use = await load_read_use(pg, SCHEMA, livemode=True, today=day + timedelta(days=2))
    assert (use.used, use.allowed, use.projected) == (7130, 10_000, 3000)
    assert use.by_kind == {"events": 7130}
    early = await load_read_use(pg, SCHEMA, livemode=True, today=day + timedelta(days=1))
    assert early.projected is None  # yesterday was the first copy
    assert (await load_read_use(pg, SCHEMA, livemode=False)).allowed is None


async def test_what_could_not_be_saved_is_saved_later(meter: Meter, pg: asyncpg.Connection) -> None:
    allowance = meter.allowance()
    meter.requests["GET /v1/events"] += 5
    await pg.execute("ALTER TABLE pinstripe.request_count RENAME TO away")
    await allowance.flush()
    assert allowance.trouble
    await pg.execute("ALTER TABLE pinstripe.away RENAME TO request_count")
    await allowance.flush()
    assert not allowance.trouble
    assert await stored(pg) == {"events": 5}


async def test_a_quiet_live_account_is_read_slowly_and_a_wake_up_fades(meter: Meter) -> None:
    allowance = meter.allowance()
    await allowance.flush()
    slow_s = allowance.poll_interval_s()
    assert 200 < slow_s < 300  # 9,500 looks in 30 days
    assert allowance.status().slowed
    allowance.wake()
    looks = 0
    while (pause_s := allowance.poll_interval_s()) < allowance.plan().look_s:
        assert looks or pause_s == 0.5
        meter.now += pause_s
        looks += 1
    assert 10 < looks < 25


async def test_what_is_read_besides_leaves_less_for_looks(meter: Meter) -> None:
    allowance = meter.allowance()
    await allowance.flush()
    alone_s = allowance.poll_interval_s()
    allowance.demand = lambda: QuotaDemand(heads=0.7, passes=400.0)
    assert allowance.poll_interval_s() == pytest.approx(2 * alone_s, rel=0.01)
    assert allowance.plan().stretch > 100
    assert allowance.plan().pass_s > 86400


async def test_test_mode_and_a_held_rate_are_never_slowed(meter: Meter) -> None:
    for allowance in (meter.allowance(livemode=False), meter.allowance(hold=True)):
        meter.requests["GET /v1/events"] += 50_000
        await allowance.flush()
        assert allowance.poll_interval_s() == 0.5
    held = meter.allowance(hold=True)
    await held.flush()
    assert held.status().held
    assert held.status().over
    test_mode = meter.allowance(livemode=False)
    await test_mode.flush()
    assert not test_mode.status().over


async def test_transactions_raise_the_allowance_and_are_counted_once_an_hour(
    meter: Meter, pg: asyncpg.Connection
) -> None:
    allowance = meter.allowance()
    await allowance.flush()
    assert allowance.status().allowed == 10_000
    await charges(pg, 12_000)
    await allowance.flush()
    assert allowance.status().transactions == 0
    meter.now += 3600
    await allowance.flush()
    assert allowance.status().transactions == 12_000
    assert allowance.status().allowed == 6_000_000
    assert allowance.poll_interval_s() == 0.5


async def test_the_counts_are_saved_when_the_work_ends(
    meter: Meter, pg: asyncpg.Connection
) -> None:
    allowance = meter.allowance()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        task = group.create_task(allowance.run())
        while allowance.transactions is None:  # noqa: ASYNC110 (its first flush)
            await asyncio.sleep(0.01)
        meter.requests["GET /v1/events"] += 3
        task.cancel()
    assert await stored(pg) == {"events": 3}
