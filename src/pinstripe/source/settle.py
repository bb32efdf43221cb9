"""What one GET decides: which state of a contested row is the true one, or that the object is gone.

Both write over the version of the row that was seen before Stripe was asked, so a snapshot that came
in between is not lost: it is contested in its turn.
"""

from __future__ import annotations

from datetime import datetime

from pinstripe.errors import NotFound
from pinstripe.mirror import Truth
from pinstripe.rows.extract import Found
from pinstripe.source.account import Source
from pinstripe.store.todo import Todo, todo_done


async def settle(source: Source, table: str, key: str, version: datetime) -> bool:
    """Decides a contested row by one GET, and crosses the question out. For `Mirror.settle`."""
    schema = source.mirror.schema
    async with source.pool.acquire() as connection:
        started = await connection.fetchval("SELECT clock_timestamp()")
    try:
        answered = await source.fetch(table, key, over=version)
    except NotFound:
        await bury(source, table, key, over=version)
        answered = True
    async with source.transaction() as connection:
        await todo_done(connection, schema, Todo("fetch", table, key), started)
    return answered


async def bury(source: Source, table: str, key: str, *, over: datetime | None) -> None:
    """Stripe does not have the object any more: its row is flagged.

    `over` is the version of the row that was seen before Stripe was asked.
    """
    if over is None or not source.wanted[table].deletable:
        return
    found = Found()
    object_type = source.wanted[table].object_type
    source.mirror.extractor.object({"id": key, "object": object_type, "deleted": True}, found)
    now = source.now()
    await source.mirror.put(found, Truth(now - 1.0, now), over={(table, key): over})
