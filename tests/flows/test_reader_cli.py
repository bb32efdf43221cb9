"""`pinstripe reader`, as a user runs it."""

from __future__ import annotations

import json

import asyncpg
from tests.flows.harness.command import pinstripe
from tests.postgres.writing import make_schema

from pinstripe.store.pool import connect


async def test_a_reader_is_made_given_a_new_password_and_dropped(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_schema(database, ["customer"])
    env = {"DATABASE_URL": database}
    made = await pinstripe("reader", "create", env=env)
    assert made.code == 0, made.text
    url = made.out.strip()
    assert url.startswith("postgresql://pinstripe_reader_")
    assert "shown only once" in made.err
    async with connect(url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM stripe.customer") == 0

    again = await pinstripe("reader", "create", env=env)
    assert again.code == 2
    assert "pinstripe reader rotate" in again.err
    rotated = await pinstripe("reader", "rotate", "--json", env=env)
    told = json.loads(rotated.out)
    assert told["url"] != url
    assert told["password"] in told["url"]

    dropped = await pinstripe("reader", "drop", "--json", env=env)
    assert json.loads(dropped.out) == {"dropped": True}
    assert await pg.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = $1", told["role"]) == 0


async def test_without_tables_there_is_nobody_to_read_them(database: str) -> None:
    ended = await pinstripe("reader", "create", env={"DATABASE_URL": database})
    assert ended.code == 2
    assert 'There is no schema "stripe"' in ended.err
