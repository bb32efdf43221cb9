"""The console that its tests share: a copied and followed simulated account, served over real HTTP.

`console` is made once a worker, in a loop and thread of its own, so that tests use whatever loop they
like. `console.url` asks for no token; `console.locked_url` serves the same for who shows `ADMIN`. The sync
goes on: a test that writes through the proxy (`console.stripe`) sees events and changes come.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
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


@pytest.fixture(scope="session")
def console(
    postgres_url: str, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Console]:
    ready = threading.Event()
    made: list[Console] = []
    loop = asyncio.new_event_loop()
    ending = asyncio.Event()

    async def run() -> None:
        try:
            async with _serve(
                postgres_url, migrated_template, tmp_path_factory.mktemp("console")
            ) as console:
                made.append(console)
                ready.set()
                await ending.wait()
        finally:
            ready.set()

    task = loop.create_task(run())
    thread = threading.Thread(target=loop.run_until_complete, args=(task,), name="console")
    thread.start()
    assert ready.wait(START_S)
    if made:
        yield made[0]
        loop.call_soon_threadsafe(ending.set)
    thread.join()
    loop.close()
    task.result()


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """A real browser; the test is skipped where there is none."""
    if not HAS_CHROMIUM:
        pytest.skip(f"no Chromium at {CHROMIUM}")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()
