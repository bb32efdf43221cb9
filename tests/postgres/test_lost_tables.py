"""Tables that another role emptied are found while Pinstripe runs."""

from __future__ import annotations

import asyncpg
from tests.postgres.writing import SCHEMA, make_schema

from pinstripe.store.cursors import Checkpoint, save_checkpoints
from pinstripe.store.quarantine import find_lost, relisted

_NAMES = ("customer", "product")


async def flushed(pg: asyncpg.Connection, statement: str) -> None:
    """Run the statement, and have Postgres's statistics know of it."""
    await pg.execute(statement)
    await pg.execute("SELECT pg_stat_force_next_flush()")


async def test_a_table_whose_rows_were_all_deleted_is_found_before_it_is_vacuumed(
    pg: asyncpg.Connection, database: str
) -> None:
    await make_schema(database, _NAMES)
    for name in _NAMES:
        # Autovacuum would truncate the table, which is found in any case.
        await pg.execute(f"ALTER TABLE stripe.{name} SET (autovacuum_enabled = off)")
        await flushed(
            pg,
            f"INSERT INTO stripe.{name} (id, _as_of, _as_of_latest, _synced_at)"
            " SELECT 'x_' || n, now(), now(), now() FROM generate_series(1, 500) n",
        )
        done = Checkpoint(f"/v1/{name}s", "done", {"table": name}, rows=500)
        await save_checkpoints(pg, SCHEMA, [done])
    assert await find_lost(pg, SCHEMA, _NAMES, {}) == []
    await flushed(pg, "DELETE FROM stripe.product WHERE id < 'x_2'")
    await flushed(pg, "DELETE FROM stripe.customer")
    assert await find_lost(pg, SCHEMA, _NAMES, {}) == [("customer", False)]
    # Emptied once more, just as its lists have been read again.
    await relisted(pg, SCHEMA, "customer", 400)
    assert await find_lost(pg, SCHEMA, _NAMES, {}) == [("customer", False)]
    await relisted(pg, SCHEMA, "customer", 0)
    assert await find_lost(pg, SCHEMA, _NAMES, {}) == [], "Stripe has none any more"


async def test_rows_that_end_or_grow_old_are_not_missed(
    pg: asyncpg.Connection, database: str
) -> None:
    """We delete old events (`--event-days`), and lines that an invoice has no more."""
    names = ("event", "line_item")
    await make_schema(database, names)
    for name in names:
        await flushed(
            pg,
            f"INSERT INTO stripe.{name} (id, _as_of, _as_of_latest, _synced_at)"
            " SELECT 'x_' || n, now(), now(), now() FROM generate_series(1, 100) n",
        )
    assert await find_lost(pg, SCHEMA, names, dict.fromkeys(names, 500)) == []
    await flushed(pg, "DELETE FROM stripe.event")
    assert await find_lost(pg, SCHEMA, names, {}) == [], "there never were any"
    assert await find_lost(pg, SCHEMA, names, dict.fromkeys(names, 500)) == [("event", False)]
