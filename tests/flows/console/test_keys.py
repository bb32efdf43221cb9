"""Keys and the first run: a key is given, examined at once, and what it may read is shown."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, expect
from tests.flows.console.conftest import Console
from tests.flows.console.test_security import token_in
from tests.flows.harness.api_service import ApiService, served

from pinstripe.config.config import Config

LIMITED = "rk_test_thisisthesecretoftheconsole123"
UNKNOWN = "sk_test_unknown0000000000000000"
HERE = "/syncs/default/keys"


async def restrict(console: Console, *denied: str) -> None:
    """Makes `LIMITED` a key that may do everything but this."""
    async with httpx.AsyncClient(trust_env=False) as http:
        sent = {"secret": LIMITED, "denied": list(denied)}
        answer = await http.post(f"{console.simulator}/_simulator/key", json=sent)
        assert answer.status_code == 200, answer.text


@asynccontextmanager
async def empty_service(console: Console, directory: Path) -> AsyncIterator[ApiService]:
    """A service that has no sync yet, on the database where the copy is."""
    config = Config(
        database_url=console.database,
        data_dir=directory,
        port=0,
        rate_limit="none",
        endpoint_rate_limit="none",
    )
    async with served(config) as service:
        try:
            yield service
        finally:
            await service.http.delete("/api/syncs/shop")


async def report(http: httpx.AsyncClient, path: str) -> str:
    """The page, as soon as the examination is over."""
    async with asyncio.timeout(30):
        while "Checking key" in (page := (await http.get(path)).text):
            assert '<meta http-equiv="refresh"' in page
            await asyncio.sleep(0.1)
    return page


async def test_a_key_is_examined_on_demand_and_the_report_is_kept(console: Console) -> None:
    async with console.client() as http:
        page = (await http.get(HERE)).text
        begun = await http.post(f"{HERE}/examine", data={"csrf": token_in(page)})
        assert (begun.status_code, begun.headers["location"]) == (303, HERE)
        page = await report(http, HERE)
        assert "The key can read everything this sync needs." in page
        assert "Check again" in page
        assert re.search(r"Billing.*?(\d+) of \1", page, re.DOTALL)
        over = await http.get(f"{HERE}/live")
        # A page that was made just before the end gets the report all the same, and no more.
        assert over.text.count("event: replace") == 1
        assert over.text.rstrip().endswith("event: end\ndata: over")


async def test_the_first_run_takes_a_key_and_examines_it_at_once(
    console: Console, tmp_path: Path
) -> None:
    await restrict(console)
    async with empty_service(console, tmp_path) as service:
        http = service.http
        assert (await http.get("/")).headers["location"] == "/welcome"
        form = {
            "csrf": token_in((await http.get("/welcome")).text),
            "id": "shop",
            "schema": "stripe",
            "key": LIMITED,
            "stripe_url": console.simulator,
        }
        refused = await http.post("/syncs", data={**form, "key": UNKNOWN})
        assert refused.status_code == 400
        assert console.simulator in refused.text
        taken = await http.post("/syncs", data=form)
        assert (taken.status_code, taken.headers["location"]) == (303, "/syncs/shop/keys?new=1")
        page = (await http.get(taken.headers["location"])).text
        assert "Key accepted" in page
        assert "Checking key" in page
        assert 'data-live="/syncs/shop/keys/live"' in page
        assert 'href="/syncs/shop"' in page
        assert LIMITED not in page


async def test_what_a_key_lacks_is_named_and_another_key_takes_its_place(
    console: Console, tmp_path: Path
) -> None:
    await restrict(console, "charge_read", "event_read")
    async with empty_service(console, tmp_path) as service:
        http = service.http
        options = {
            "id": "shop",
            "schema": "stripe",
            "api_key": LIMITED,
            "stripe_url": console.simulator,
            "settings": {"rate_limit": "none", "endpoint_rate_limit": "none"},
        }
        assert (await http.post("/api/syncs", json=options)).status_code == 201
        token = token_in((await http.get("/syncs/shop/keys")).text)
        await http.post("/syncs/shop/keys/examine", data={"csrf": token})
        page = await report(http, "/syncs/shop/keys")
        assert "charge_read" in page
        assert "event_read" in page

        wrong = await http.post("/syncs/shop/keys/change", data={"csrf": token, "key": UNKNOWN})
        assert wrong.status_code == 400
        changed = {"csrf": token, "key": console.key}
        assert (await http.post("/syncs/shop/keys/change", data=changed)).status_code == 303
        page = await report(http, "/syncs/shop/keys")
        assert "charge_read" not in page
        for key in (LIMITED, UNKNOWN, console.key):
            assert key not in wrong.text + page


@pytest.mark.asyncio(loop_scope="module")  # As `chromium`.
@pytest.mark.parametrize("width", [390, 1280])
async def test_in_a_browser_the_report_comes_by_itself(
    console: Console, chromium: Browser, width: int
) -> None:
    page = await chromium.new_page(viewport={"width": width, "height": 844})
    await page.goto(f"{console.url}{HERE}")
    await page.get_by_role("button", name="Check").click()
    await expect(page.locator(".tiles")).to_be_visible(timeout=20_000)
    await expect(page.locator("[data-live-state]")).not_to_contain_text(
        "reconnecting", timeout=9000
    )
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    await page.close()
