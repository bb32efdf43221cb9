"""Every table of the bookkeeping has a bound, which is written down and kept."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from tests.postgres.writing import SCHEMA, make_schema

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import tables
from pinstripe.store import confirmations
from pinstripe.store.confirmations import Confirmation
from pinstripe.store.erasures import schedule_deleted
from pinstripe.store.events import EventFilter, list_events
from pinstripe.store.migrate import create_indexes, migrate
from pinstripe.store.refetch import load_open_since
from pinstripe.store.retention import BOUNDS, Retention

_WEEK = timedelta(days=7)
_DOCS = Path(__file__).parents[2] / "docs" / "concepts" / "schema.md"


@pytest.fixture(autouse=True)
async def schema(database: str) -> None:
    await make_schema(database, ["event"])


async def count(pg: asyncpg.Connection, table: str) -> int:
    found: int = await pg.fetchval(f"SELECT count(*) FROM {table}")
    return found


async def test_each_table_of_the_bookkeeping_has_a_bound_and_the_docs_say_which(
    pg: asyncpg.Connection,
) -> None:
    rows = await pg.fetch("SELECT tablename::text FROM pg_tables WHERE schemaname = 'pinstripe'")
    assert {row[0] for row in rows} == set(BOUNDS)
    told = _DOCS.read_text()
    assert [t for t, bound in BOUNDS.items() if f"| `{t}` | {bound} |" not in told] == []


async def test_events_are_kept_for_ever_or_for_as_long_as_is_asked(pg: asyncpg.Connection) -> None:
    await pg.execute(
        "INSERT INTO stripe.event (id, created, _as_of, _as_of_latest, _synced_at)"
        " SELECT 'evt_' || n, now() - n * interval '1 day', now(), now(), now()"
        " FROM generate_series(1, 90) n"
    )
    assert await Retention(_WEEK).trim(pg, SCHEMA) == 0
    assert await count(pg, "stripe.event") == 90
    assert await Retention(_WEEK, timedelta(days=40.5)).trim(pg, SCHEMA) == 50
    assert await pg.fetchval("SELECT min(created) > now() - interval '41 days' FROM stripe.event")


async def test_old_counts_and_verifications_go(pg: asyncpg.Connection) -> None:
    await pg.execute(
        "INSERT INTO pinstripe.request_count SELECT 'stripe', current_date - n, 'list', 1"
        " FROM generate_series(0, 99) n;"
        "INSERT INTO pinstripe.certificate (schema, started_at, finished_at, tables, differences,"
        " repaired, digest) SELECT 'stripe', now(), now(), '{}', n, 0, ''"
        " FROM generate_series(1, 130) n"
    )
    await Retention(_WEEK).trim(pg, SCHEMA)
    assert await count(pg, "pinstripe.request_count") == 61
    kept = await pg.fetchrow("SELECT count(*), min(differences) FROM pinstripe.certificate")
    assert kept is not None
    assert tuple(kept) == (100, 31)


async def test_confirmations_are_kept_while_something_older_may_still_come(
    pg: asyncpg.Connection,
) -> None:
    now, hour = 1_790_000_000.0, 3600.0
    many = list(range(50))
    ages = {"old": 5 * hour, "pass": 5 * hour, "late": 3 * hour, "new": 60.0}
    await confirmations.note(
        pg,
        SCHEMA,
        [
            Confirmation(name, now - age - 1, now - age, many if name == "pass" else [1])
            for name, age in ages.items()
        ],
    )
    left = 'SELECT "table" FROM pinstripe.confirmation ORDER BY 1'
    # The events stand at four hours ago: what was seen since then counts against those that come.
    await pg.execute(
        "INSERT INTO pinstripe.cursor (schema, stream, state, as_of)"
        " VALUES ('stripe', 'events', 'running', to_timestamp($1))",
        now - 4 * hour,
    )

    async def forgotten(passes_since: float, scans_since: dict[str, float]) -> list[str]:
        await confirmations.forget(
            pg, SCHEMA, now=now, passes_since=passes_since, scans_since=scans_since
        )
        return [row[0] for row in await pg.fetch(left)]

    scans = {"old": now - 6 * hour, "pass": now - 2 * hour}
    assert await forgotten(now - 6 * hour, scans) == ["late", "new", "old", "pass"]
    assert await forgotten(now - 6 * hour, {}) == ["late", "new", "pass"]
    await pg.execute("UPDATE pinstripe.cursor SET as_of = to_timestamp($1)", now)
    assert await forgotten(now - hour, {}) == ["new"]


async def test_deleted_customers_and_what_they_wait_for_are_found_by_an_index(
    pg: asyncpg.Connection,
) -> None:
    """However many customers and refetches there are."""
    await migrate(
        pg,
        SCHEMA,
        {"customer": tables()["customer"]},
        sdk_version=spec().sdk_version,
        api_version=spec().api_version,
    )
    await pg.execute(
        "INSERT INTO stripe.customer (id, deleted, _as_of, _as_of_latest, _synced_at)"
        " SELECT 'cus_' || n, n % 1000 = 0, now() - interval '2 days', now(), now()"
        " FROM generate_series(1, 20000) n;"
        'INSERT INTO pinstripe.pending (schema, kind, "table", id, since)'
        " SELECT 'stripe', 'fetch', 'customer', 'cus_' || n, now() FROM generate_series(1, 20000) n"
    )
    await create_indexes(pg, SCHEMA, tables()["customer"])
    await pg.execute("ANALYZE stripe.customer, pinstripe.pending")
    read = (
        "SELECT sum(seq_tup_read) FROM pg_stat_xact_user_tables"
        " WHERE relname IN ('customer', 'pending')"
    )
    async with pg.transaction():
        built = await pg.fetchval(read)
        assert len(await schedule_deleted(pg, SCHEMA, after_days=1)) == 20
        _, since = await load_open_since(pg, SCHEMA, [("customer", "cus_7"), ("customer", "x")])
        assert list(since) == [("customer", "cus_7")]
        assert await pg.fetchval(read) == built


async def test_events_of_an_object_or_a_request_are_found_by_an_index(
    pg: asyncpg.Connection,
) -> None:
    await pg.execute(
        "INSERT INTO stripe.event (id, created, request_id, data_object, _as_of, _as_of_latest,"
        " _synced_at) SELECT 'evt_' || n, now() - n * interval '1 s', 'req_' || n,"
        " jsonb_build_object('id', 'cus_' || n % 500), now(), now(), now()"
        " FROM generate_series(1, 20000) n"
    )
    await create_indexes(pg, SCHEMA, tables()["event"])
    await pg.execute("ANALYZE stripe.event")
    read = "SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'event'"
    async with pg.transaction():
        built = await pg.fetchval(read)  # Making the indexes read the table too.
        by_object = await list_events(pg, SCHEMA, EventFilter(object_id="cus_7"), limit=100)
        by_request = await list_events(pg, SCHEMA, EventFilter(request_id="req_77"), limit=100)
        assert await pg.fetchval(read) == built
    assert (len(by_object), len(by_request)) == (40, 1)
