"""The console that its tests share: a copied and followed simulated account, served over real HTTP.

`console` is made once a worker, in a loop and thread of its own, so that tests use whatever loop they
like, and ends with the last test of this folder. `console.url` asks for no token; `console.locked_url`
serves the same for who shows `ADMIN`. The sync goes on: a test that writes through the proxy
(`console.stripe`) sees events and changes come.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright
from tests.flows.harness.api_service import ADMIN, SMALL, api_service, served

from pinstripe.store.pool import connect
from pinstripe_simulator.server import running

CHROMIUM = os.environ.get("PINSTRIPE_CHROMIUM") or "/usr/bin/chromium"
WEBHOOK_SECRET = "whsec_of_the_tests_of_the_console"
DATABASE_PASSWORD = "the-password-of-the-database"
WAIT_TOKEN = "a-wait-token-of-some-length"
HAS_CHROMIUM = Path(CHROMIUM).exists()
START_S = 60.0


@dataclass(frozen=True, slots=True)
class Console:
    """Where it answers, and what no page may show."""

    url: str
    locked_url: str
    key: str
    database: str
    simulator: str
    schema: str = "stripe"

    def client(self, *, locked: bool = False) -> httpx.AsyncClient:
        """A browser of sorts: keeps cookies, follows no redirect by itself."""
        url = self.locked_url if locked else self.url
        return httpx.AsyncClient(base_url=url, timeout=20.0, trust_env=False)

    async def stripe(self, path: str, **form: str) -> dict[str, object]:
        """A write to Stripe through the proxy; its objects are rows when it returns."""
        async with self.client() as http:
            answer = await http.post(
                path, data=form, headers={"Authorization": f"Bearer {self.key}"}
            )
            assert answer.status_code == 200, answer.text
            made: dict[str, object] = answer.json()
            return made


@asynccontextmanager
async def _serve(postgres_url: str, template: str, directory: Path) -> AsyncIterator[Console]:
    async with connect(postgres_url) as admin:
        await admin.execute(f"CREATE DATABASE console TEMPLATE {template} STRATEGY file_copy")
    # The kernel says who we are on the socket; the password is there to be looked for on pages.
    database = postgres_url.replace("/pinstripe?", "/console?").replace(
        "postgres@", f"postgres:{DATABASE_PASSWORD}@"
    )
    assert DATABASE_PASSWORD in database
    secret = (WEBHOOK_SECRET,)
    async with (
        running(SMALL) as sim,
        api_service(sim, database, directory, webhook_secret=secret) as here,
        served(
            replace(here.config, admin_token=ADMIN, wait_token=WAIT_TOKEN, webhook_secret=secret)
        ) as locked,
    ):
        yield Console(here.url, locked.url, sim.key, database, sim.url)
    async with connect(postgres_url) as admin:
        await admin.execute("DROP DATABASE console WITH (FORCE)")


class _Shared:
    """The console of this worker, in a loop and thread of its own, from the first call to `end`."""

    def __init__(self, postgres_url: str, template: str, directory: Path) -> None:
        self._given = postgres_url, template, directory
        self._console: Console | None = None

    def console(self) -> Console:
        if self._console is None:
            self._loop = asyncio.new_event_loop()
            self._ending = asyncio.Event()
            ready: Queue[Console | None] = Queue()
            self._task = self._loop.create_task(self._run(ready))
            self._thread = threading.Thread(
                target=self._loop.run_until_complete, args=(self._task,), name="console"
            )
            self._thread.start()
            self._console = ready.get(timeout=START_S)
            if self._console is None:
                self._join()
        assert self._console is not None
        return self._console

    def end(self) -> None:
        if self._console is not None:
            self._console = None
            self._loop.call_soon_threadsafe(self._ending.set)
            self._join()

    async def _run(self, ready: Queue[Console | None]) -> None:
        try:
            async with _serve(*self._given) as console:
                ready.put(console)
                await self._ending.wait()
        finally:
            ready.put(None)

    def _join(self) -> None:
        """Raises what has ended it, if anything did."""
        self._thread.join()
        self._loop.close()
        self._task.result()


_shared = pytest.StashKey[_Shared]()


@pytest.fixture(scope="session")
def shared_console(
    request: pytest.FixtureRequest,
    postgres_url: str,
    migrated_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[_Shared]:
    shared = _Shared(postgres_url, migrated_template, tmp_path_factory.mktemp("console"))
    request.session.stash[_shared] = shared
    yield shared
    shared.end()


@pytest.fixture
def console(shared_console: _Shared) -> Console:
    return shared_console.console()


@pytest.hookimpl(trylast=True)  # The test's own fixtures end before.
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After the last test of this folder: a sync that goes on takes its share from all later tests."""
    here = Path(__file__).parent
    if _shared in item.session.stash and nextitem is not None and here not in nextitem.path.parents:
        item.session.stash[_shared].end()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """A real browser, one for all tests of a file, which run in the file's loop: a start takes a second of
    CPU. They are skipped where there is none.
    """
    if not HAS_CHROMIUM:
        pytest.skip(f"no Chromium at {CHROMIUM}")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()
