"""Pages that stay up to date, in a real browser: one that nobody sees gives its connection back."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, Page, Request, Route, expect
from tests.flows.console.conftest import Console
from tests.flows.console.test_tables_in_browser import watched

pytestmark = pytest.mark.asyncio(loop_scope="module")  # As `chromium`.

STATE = "[data-live-state]"
SEEN = """seen => {
  Object.defineProperty(document, 'hidden', { configurable: true, get: () => !seen });
  document.dispatchEvent(new Event('visibilitychange'));
}"""


async def live(page: Page) -> None:
    """Returns when the page says that it is up to date."""
    await expect(page.locator(STATE)).to_have_text("live", timeout=20_000)


async def test_a_page_that_nobody_sees_gives_its_connection_back(
    console: Console, chromium: Browser
) -> None:
    asked: list[str] = []

    def note(request: Request) -> None:
        if request.resource_type == "eventsource":
            asked.append(request.url)

    async with watched(chromium, console) as page:
        await page.clock.install()
        page.on("request", note)
        await page.goto("/syncs/default")
        await live(page)
        await page.evaluate(SEEN, False)
        await page.clock.fast_forward(5_000)
        await page.evaluate(SEEN, True)
        await live(page)  # A short look elsewhere costs nothing.
        assert len(asked) == 1
        await page.evaluate(SEEN, False)
        await page.clock.fast_forward(31_000)
        await expect(page.locator(STATE)).to_have_text("", timeout=20_000)
        await page.evaluate(SEEN, True)
        await live(page)
        assert len(asked) == 2


async def test_a_page_that_lost_the_service_says_so_and_comes_back(
    console: Console, chromium: Browser
) -> None:
    """A proxy in front answers 502 meanwhile, or the session is over: browsers give up at both."""
    context = await chromium.new_context(base_url=console.url)
    page = await context.new_page()
    await page.clock.install()

    async def away(route: Route) -> None:
        await route.fulfill(status=502, body="away")

    await page.route("**/syncs/default/live", away)
    await page.goto("/syncs/default")
    await expect(page.locator(STATE)).to_have_text("disconnected", timeout=20_000)
    await expect(page.locator("main")).to_have_class("stale")
    await page.unroute("**/syncs/default/live", away)
    async with page.expect_navigation():
        await page.clock.fast_forward(5_000)
    await live(page)
    await expect(page.locator("main")).not_to_have_class("stale")
    await context.close()


async def test_a_list_that_was_hidden_shows_what_came_meanwhile(
    console: Console, chromium: Browser
) -> None:
    async with watched(chromium, console) as page:
        await page.clock.install()
        await page.goto("/syncs/default/events")
        await live(page)
        await page.evaluate(SEEN, False)
        await page.clock.fast_forward(31_000)
        await expect(page.locator(STATE)).to_have_text("", timeout=20_000)
        made = await console.stripe("/v1/products", name="made while nobody looked")
        async with console.client() as http:
            waited = await http.get("/wait/stripe/default", params={"object": str(made["id"])})
            assert waited.json()["ok"] is True, waited.text
            # Its event comes after it.
            waited = await http.get("/wait/stripe/default")
            assert waited.json()["ok"] is True, waited.text
        async with page.expect_navigation():
            await page.evaluate(SEEN, True)
        await expect(page.locator("body")).to_contain_text(str(made["id"]), timeout=20_000)
