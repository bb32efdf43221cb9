"""The database that tests share: one embedded server a worker, an empty database a test.

`database` is the URL of a fresh, empty database; `pg` one connection to it. The server is the
product's own (`EmbeddedPostgres`), without fsync: what a test writes may be lost.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest

from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.pool import connect

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of the worker's server; its own database `pinstripe` stays empty.

    It lives in a loop of its own, beside those of the tests.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="postgres")
    thread.start()
    with TemporaryDirectory(prefix="pinstripe-tests-") as directory:
        server = EmbeddedPostgres(Path(directory) / "postgres", fsync=False)
        try:
            asyncio.run_coroutine_threadsafe(server.start(), loop).result()
            yield server.url
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[str]:
    """The URL of an empty database that is this test's alone."""
    name = f"test_{next(_numbers)}"
    async with connect(postgres_url) as admin:
        # By file copy: 14 ms instead of 140, as long as nothing is synced to disk.
        await admin.execute(f"CREATE DATABASE {name} STRATEGY file_copy")
    yield postgres_url.replace("/pinstripe?", f"/{name}?")
    async with connect(postgres_url) as admin:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def pg(database: str) -> AsyncIterator[asyncpg.Connection]:
    """One connection to `database`."""
    async with connect(database) as connection:
        yield connection
