"""Cursors come back as they were saved."""

from __future__ import annotations

import asyncpg
import pytest
from tests.postgres.writing import SCHEMA, make_schema

from pinstripe.errors import Drifted
from pinstripe.store.cursors import Checkpoint, load_checkpoints, save_checkpoints


@pytest.fixture
async def connection(database: str, pg: asyncpg.Connection) -> asyncpg.Connection:
    await make_schema(database, ["customer"])
    return pg


async def test_a_cursor_comes_back_as_it_was_saved(connection: asyncpg.Connection) -> None:
    cursor = Checkpoint(
        "/v1/charges",
        "running",
        position={"table": "charge", "todo": [[None, 5, "ch_ü'\"", 7]]},
        reason="why",
        remedy="what to do",
        rows=1 << 40,
        requests=3,
        seconds=1.5,
        as_of=1_790_000_000.25,
    )
    await save_checkpoints(connection, SCHEMA, [cursor, Checkpoint("other", "done")])
    assert await load_checkpoints(connection, SCHEMA) == {
        "/v1/charges": cursor,
        "other": Checkpoint("other", "done"),
    }


async def test_of_several_for_one_stream_the_last_counts(connection: asyncpg.Connection) -> None:
    await save_checkpoints(connection, SCHEMA, [Checkpoint("s", "running", position={"at": 1})])
    both = [
        Checkpoint("s", "running", position={"at": 2}),
        Checkpoint("s", "done", position={"at": 3}),
    ]
    await save_checkpoints(connection, SCHEMA, both)
    assert await load_checkpoints(connection, SCHEMA) == {"s": both[1]}


async def test_nothing_to_save_is_no_statement(connection: asyncpg.Connection) -> None:
    await save_checkpoints(connection, "no such schema", [])


async def test_a_cursor_belongs_to_a_sync(connection: asyncpg.Connection) -> None:
    with pytest.raises((Drifted, asyncpg.ForeignKeyViolationError)):
        await save_checkpoints(connection, "no such schema", [Checkpoint("s", "done")])
