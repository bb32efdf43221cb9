"""The schema `metrics`: beside the tables, in nobody's way, and replaced by newer versions."""

from __future__ import annotations

import asyncpg
import pytest

from pinstripe.store.metrics import drop_metrics, ensure_metrics, views
from pinstripe.store.pool import connect
from pinstripe.store.roles import renew_reader

pytestmark = pytest.mark.migrated


async def test_tables_can_be_dropped_under_the_views(pg: asyncpg.Connection) -> None:
    await pg.execute("DROP TABLE stripe.charge")
    await pg.execute("ALTER TABLE stripe.price ALTER COLUMN unit_amount TYPE numeric")
    assert await pg.fetch("SELECT * FROM metrics.mrr") == []
    with pytest.raises(asyncpg.UndefinedTableError, match=r"stripe\.charge"):
        await pg.fetch("SELECT * FROM metrics.payment_by_day")


async def test_a_reader_reads_the_views_and_a_stranger_does_not(
    pg: asyncpg.Connection, database: str
) -> None:
    reader = await renew_reader(database, "stripe", expect=False)
    await pg.execute(f'SET ROLE "{reader.role}"')
    for view in views():
        await pg.fetch(f'SELECT * FROM metrics."{view.name}"')
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await pg.execute("UPDATE metrics.settings SET paused = true")
    await pg.execute("RESET ROLE; CREATE ROLE nobody_much")
    await pg.execute("SET ROLE nobody_much")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await pg.fetch("SELECT * FROM metrics.mrr")
    await pg.execute(
        f'RESET ROLE; DROP OWNED BY "{reader.role}"; DROP ROLE "{reader.role}"; DROP ROLE nobody_much'
    )


async def test_another_version_replaces_the_views_and_keeps_the_settings(
    pg: asyncpg.Connection, database: str
) -> None:
    await pg.execute("UPDATE metrics.settings SET time_zone = 'Asia/Tokyo'")
    await pg.execute(
        "COMMENT ON SCHEMA metrics IS 'Pinstripe: metrics of the schema stripe (older)'"
    )
    await pg.execute("DROP VIEW metrics.failed_payment")
    async with connect(database) as connection:
        await ensure_metrics(connection, "stripe")
    assert await pg.fetchval("SELECT time_zone FROM metrics.settings") == "Asia/Tokyo"
    assert await pg.fetch("SELECT * FROM metrics.failed_payment") == []


async def test_a_schema_of_someone_else_is_left_alone(
    pg: asyncpg.Connection, database: str
) -> None:
    await pg.execute(
        "DROP SCHEMA metrics CASCADE; CREATE SCHEMA metrics; CREATE TABLE metrics.mrr (a int)"
    )
    async with connect(database) as connection:
        await ensure_metrics(connection, "stripe")
        await drop_metrics(connection, "stripe")
    assert await pg.fetch("SELECT a FROM metrics.mrr") == []


async def test_it_goes_with_its_schema(pg: asyncpg.Connection, database: str) -> None:
    async with connect(database) as connection:
        await drop_metrics(connection, "stripe")
    assert await pg.fetchval("SELECT to_regnamespace('metrics')") is None
