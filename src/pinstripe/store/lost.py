"""A lost connection ends what is done on it, at once.

asyncpg tells whoever waits for an answer. A COPY that waits to send more is told nothing: it waits for
ever for a socket that is gone (seen with asyncpg 0.32 where a session ended in the middle of one).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from pinstripe.errors import Unreachable


@asynccontextmanager
async def until_lost(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """The block raises Unreachable as soon as `connection` is gone, wherever it waits."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 (a coroutine runs in a task)
    inside, lost = True, False

    def on_lost(_: object) -> None:
        nonlocal lost
        if inside:
            lost = True
            task.cancel()

    connection.add_termination_listener(on_lost)
    try:
        yield
    except asyncio.CancelledError as error:
        if lost and task.uncancel() == 0:
            raise Unreachable(
                "The connection to Postgres broke off.",
                hint="The work is tried again when the server is back.",
            ) from error
        raise
    finally:
        inside = False
        connection.remove_termination_listener(on_lost)
