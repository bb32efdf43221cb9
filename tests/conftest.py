"""The database that tests share: one embedded server a worker, a database a test.

`database` is the URL of a fresh, empty database; `pg` one connection to it. Where the making of tables is
not what is tested, `@pytest.mark.migrated` gives one that has them: a copy costs a sixth of the CPU.
The server is the product's own (`EmbeddedPostgres`), without fsync: what a test writes may be lost.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest
import uvloop
from hypothesis import settings

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import tables
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.migrate import create_indexes, migrate
from pinstripe.store.pool import connect

# The one place where the simulator is made calmer than Stripe is. The product is not yet hardened against
# stale reads, clocks that disagree, and lists and expansions that are refused; tests of those turn on
# what they need by `Settings(nastiness=...)` or by the knob of that name.
os.environ.setdefault("PINSTRIPE_SIMULATOR_NASTINESS", "calm")

# Whatever the machine's setting: the product's processes that tests start, and the test modules, would be
# compiled anew each time, which is half of the CPU time of a start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A busy machine takes longer than any deadline for one example.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

_PLENTY = 8 * 2**30
_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "migrated: the test's database has all tables already")


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run in the loop that `pinstripe` itself runs in, but for those whose strangers go on writing to
    what is closed, which is an error there.
    """
    if "attack" in item.path.parts:
        return {"asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_finish() -> None:
    # As `pinstripe` itself: what stands now stays to the end, so no collection has to walk through it again
    # and again, and the youngest objects are collected rarely.
    gc.set_threshold(50_000, 20, 20)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def server_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop that the worker's server lives in, beside those of the tests."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="postgres")
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="session")
def postgres_url(server_loop: asyncio.AbstractEventLoop) -> Iterator[str]:
    """The URL of the worker's server; its own database `pinstripe` stays empty."""
    with TemporaryDirectory(prefix="pinstripe-tests-", dir=_where_files_are_cheap()) as directory:
        server = EmbeddedPostgres(Path(directory) / "postgres", fsync=False)
        try:
            asyncio.run_coroutine_threadsafe(server.start(), server_loop).result()
            yield server.url
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), server_loop).result()


@pytest.fixture(scope="session")
def migrated_template(postgres_url: str, server_loop: asyncio.AbstractEventLoop) -> str:
    """The name of a database with all tables of the catalog and their indexes, to be copied: made once a
    worker.
    """

    async def make() -> None:
        async with connect(postgres_url) as admin:
            await admin.execute("CREATE DATABASE migrated STRATEGY file_copy")
        async with connect(_named(postgres_url, "migrated")) as connection:
            await migrate(
                connection,
                "stripe",
                tables(),
                sdk_version=spec().sdk_version,
                api_version=spec().api_version,
            )
            # Else every first copy would make them, one by one.
            for table in tables().values():
                await create_indexes(connection, "stripe", table)

    asyncio.run_coroutine_threadsafe(make(), server_loop).result()
    return "migrated"


@pytest.fixture
def database_template(request: pytest.FixtureRequest) -> str:
    """What this test's database is copied from."""
    if request.node.get_closest_marker("migrated") is None:
        return "template1"
    name: str = request.getfixturevalue("migrated_template")
    return name


@pytest.fixture
async def database(postgres_url: str, database_template: str) -> AsyncIterator[str]:
    """The URL of a database that is this test's alone: empty, or with tables if marked `migrated`."""
    name = f"test_{next(_numbers)}"
    async with connect(postgres_url) as admin:
        # By file copy: 14 ms instead of 140, as long as nothing is synced to disk.
        await admin.execute(
            f"CREATE DATABASE {name} TEMPLATE {database_template} STRATEGY file_copy"
        )
    yield _named(postgres_url, name)
    async with connect(postgres_url) as admin:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _where_files_are_cheap() -> str | None:
    """In memory, if there is plenty: on some disks a database of a thousand files takes half a second
    to copy, there 40 ms. The log of one server may grow to 2 GB.
    """
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > _PLENTY:
        return str(memory)
    return None


def _named(url: str, database: str) -> str:
    return url.replace("/pinstripe?", f"/{database}?")


@pytest.fixture
async def pg(database: str) -> AsyncIterator[asyncpg.Connection]:
    """One connection to `database`, with the search path of a user's session."""
    async with connect(database) as connection:
        await connection.execute("RESET search_path")
        yield connection
