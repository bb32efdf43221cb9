"""Read-only transactions for HTTP endpoints: few connections, each for a bounded time.

While the pool is missing (Postgres has not started) or Postgres is down, a read raises `Unreachable` within
that time, and the gateway goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pinstripe.errors import Unreachable
from pinstripe.store.pool import Connection, Pool, sqlstate

_LONGEST_S = 10.0
_QUERY_CANCELED = "57014"
_READ_ONLY = "SET LOCAL transaction_read_only = on; SET LOCAL statement_timeout = "


class Reads:
    """`pool` gives None while there is no database."""

    def __init__(self, pool: Callable[[], Pool | None]) -> None:
        self._pool = pool

    @asynccontextmanager
    async def connection(self, *, longest_s: float = _LONGEST_S) -> AsyncIterator[Connection]:
        """One read-only transaction whose statements take `longest_s` each at most."""
        pool = self._pool()
        if pool is None:
            raise Unreachable(
                "The database is not there yet.", hint="It starts, or cannot be reached; try again."
            )
        try:
            # Around the block too: a server that hangs does not enforce its statement timeout.
            async with asyncio.timeout(longest_s + 1.0), pool.transaction() as connection:
                await connection.execute(f"{_READ_ONLY}{int(longest_s * 1000)}")
                yield connection
        except TimeoutError as error:
            raise Unreachable(
                f"Postgres did not answer within {longest_s:.0f} s.", hint="Try again later."
            ) from error
        except Unreachable as error:
            if sqlstate(error) != _QUERY_CANCELED:
                raise
            raise Unreachable(
                f"The database took longer than {longest_s:.0f} s to answer.",
                hint="Ask for less: a later `since`, one type or one table.",
            ) from error
