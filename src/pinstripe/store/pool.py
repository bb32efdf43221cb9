"""Connections to Postgres: a pool, one for a block, one to keep.

What comes out of `connect` and of a `Pool`'s blocks is one of our errors (see `translate`). A
connection from `connect_dedicated` is bare: put `translated()` around its statements.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from pinstripe.errors import Misconfigured, Unreachable
from pinstripe.store import session
from pinstripe.store.session import open_session
from pinstripe.store.translate import (
    connecting,
    is_transient,
    sqlstate,
    translate,
    translated,
)

__all__ = [
    "MINIMUM_VERSION",
    "Connection",
    "Pool",
    "ServerFacts",
    "check_server",
    "check_sessions",
    "connect",
    "connect_dedicated",
    "hang_up",
    "is_transient",
    "open_pool",
    "sqlstate",
    "translate",
    "translated",
]

MINIMUM_VERSION = 13
"""Older ones are out of support, and lack what the statements use."""

Connection: TypeAlias = asyncpg.Connection | PoolConnectionProxy
"""What a block gets: of its own (`connect`) or out of a pool."""


@dataclass(frozen=True)
class ServerFacts:
    """What a server and the rights of our user allow."""

    version: str
    writable: bool
    superuser: bool
    can_create_schema: bool
    database: str


class Pool:
    """Connections that are ready. A thin coat over asyncpg's pool that translates its errors."""

    def __init__(self, pool: asyncpg.Pool, url: str, name: str) -> None:
        self._pool = pool
        self._url = url
        self._name = name

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        """A connection for the block, and `translated()` around it: keep other I/O outside."""
        with translated():
            async with self._pool.acquire() as connection:
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """As `acquire`, in one transaction: committed at the block's end, rolled back on error."""
        async with self.acquire() as connection, connection.transaction():
            yield connection

    def own(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """A connection outside of the pool for a long block: for who listens. See `connect`."""
        return connect(self._url, application_name=self._name)

    @property
    def size(self) -> int:
        """Connections that are open now."""
        return self._pool.get_size()

    @property
    def idle(self) -> int:
        """Those of them that nobody uses."""
        return self._pool.get_idle_size()

    async def close(self, *, timeout_s: float = 10.0) -> None:
        """Waits for connections in use, then cuts them off."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


async def open_pool(
    url: str,
    *,
    min_size: int,
    max_size: int,
    application_name: str = "pinstripe",
    init: Callable[[asyncpg.Connection], Awaitable[None]] | None = None,
) -> Pool:
    """A pool, to be closed: it is an async context manager.

    `init` gets each new connection once.
    """
    with connecting(url):
        pool = await asyncpg.create_pool(
            url,
            min_size=min_size,
            max_size=max_size,
            connect=partial(open_session, application_name=application_name),
            init=init,  # type: ignore[arg-type]  # any awaitable does
            reset=_as_it_is,
        )
    return Pool(pool, url, application_name)


@asynccontextmanager
async def connect(
    url: str, *, application_name: str = "pinstripe"
) -> AsyncIterator[asyncpg.Connection]:
    """One connection for the block, outside of any pool."""
    connection = await connect_dedicated(url, application_name=application_name)
    try:
        with translated():
            yield connection
    finally:
        await hang_up(connection)


async def connect_dedicated(url: str, *, application_name: str = "pinstripe") -> asyncpg.Connection:
    """A connection that the caller owns and ends (`hang_up`); wrap its use in `translated()`.

    It keeps every prepared statement that it is given: upserts of wide tables are long, and
    preparing one costs milliseconds.
    """
    with connecting(url):
        return await open_session(
            url,
            application_name=application_name,
            statement_cache_size=512,
            max_cacheable_statement_size=0,
        )


async def hang_up(connection: asyncpg.Connection, *, timeout_s: float = 5.0) -> None:
    """Closes a connection; without a goodbye if the server is gone or does not answer."""
    try:
        with translated():
            async with asyncio.timeout(timeout_s):
                await connection.close()
    except Unreachable:
        connection.terminate()


async def check_sessions(url: str) -> None:
    """Raises Misconfigured where a pooler does not let sessions last. Writes and sets nothing."""
    with connecting(url):
        await session.check_sessions(url)


async def check_server(connection: Connection) -> ServerFacts:
    """What may be done here; `Misconfigured` if the server is too old or the database not in UTF-8."""
    with translated():
        row = await connection.fetchrow(
            """
            SELECT current_setting('server_version_num')::int / 10000 AS major,
                   split_part(current_setting('server_version'), ' ', 1) AS version,
                   current_setting('server_encoding') AS encoding,
                   NOT pg_is_in_recovery()
                       AND current_setting('default_transaction_read_only') = 'off' AS writable,
                   (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
                   has_database_privilege(current_database(), 'CREATE') AS can_create_schema,
                   current_database()::text AS database
            """
        )
    assert row is not None  # noqa: S101 (a SELECT without FROM has one row)
    if row["major"] < MINIMUM_VERSION:
        raise Misconfigured(
            f"The server is Postgres {row['version']}; Pinstripe needs {MINIMUM_VERSION} or newer.",
            hint="Use a newer server, or none: without DATABASE_URL Pinstripe brings its own.",
        )
    if row["encoding"] != "UTF8":
        raise Misconfigured(
            f'The database "{row["database"]}" is in the encoding {row["encoding"]}, which cannot hold '
            "every text of Stripe's. Nothing was written.",
            hint="Make one that can: CREATE DATABASE ... WITH ENCODING 'UTF8' TEMPLATE template0.",
        )
    return ServerFacts(
        version=row["version"],
        writable=row["writable"],
        superuser=row["superuser"],
        can_create_schema=row["can_create_schema"],
        database=row["database"],
    )


async def _as_it_is(_: asyncpg.Connection) -> None:
    """What was open is rolled back by now. Nothing else is to be undone: who listens, or changes its
    session otherwise, has a connection of its own. (A RESET for each use costs as much as a small read.)
    """
