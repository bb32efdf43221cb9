"""What others have written stands on the pages as text, in a real browser: nothing of it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Dialog, Page, expect
from tests.flows.console.conftest import Console

pytestmark = pytest.mark.asyncio(loop_scope="module")  # As `chromium`.

SCRIPT = "<script>alert('name')</script>"
IMAGE = '"><img src=x onerror=alert(1)>'
NAMES = (
    SCRIPT,
    IMAGE,
    "'; DROP TABLE customer; --",
    "{{ 7 * 7 }}{% raw %}",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnorw\N{POP DIRECTIONAL FORMATTING}",
    "x" * 4000,
    "</pre></code></td></table><h1>big</h1>",
)


class Watched:
    """A page, and what it complained of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("dialog", self._dialog)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))

    async def _dialog(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        await dialog.dismiss()

    def _said(self, message: ConsoleMessage) -> None:
        # A page that is not found is told in the log too: here they are looked for on purpose.
        if message.type in ("error", "warning") and "404" not in message.text:
            self.complaints.append(f"{message.type}: {message.text}")


@pytest_asyncio.fixture(loop_scope="module")
async def watched(chromium: Browser) -> AsyncIterator[Watched]:
    page = await chromium.new_page(viewport={"width": 390, "height": 844})
    watched = Watched(page)
    yield watched
    assert watched.complaints == []
    await page.close()


async def test_hostile_words_are_text_on_every_page(console: Console, watched: Watched) -> None:
    page = watched.page
    here = f"{console.url}/syncs/default"
    await page.goto(f"{here}/changes")
    await expect(page.locator("[data-live-state]")).to_have_text("live")
    product_id = f"{IMAGE}/a b"
    await console.stripe("/v1/products", name=SCRIPT, id=product_id)
    for name in NAMES:
        made = await console.stripe("/v1/customers", name=name, description=name)
    # What is added to an open page is put there by script.
    await expect(page.locator("#changes")).to_contain_text(SCRIPT)
    await expect(page.locator("#changes")).to_contain_text(IMAGE)

    await page.goto(f"{here}/events?object={quote(product_id)}")
    await expect(page.locator("#events")).to_contain_text(product_id, timeout=10_000)
    await page.locator("#events a").first.click()
    await expect(page.locator("#object")).to_contain_text(SCRIPT)

    for path in (
        here,
        f"{here}/changes?id={quote(product_id)}",
        f"{here}/tables/product/rows/{quote(product_id, safe='')}",
        f"{here}/tables/customer/rows/{made['id']}",
        f"{here}/tables/customer/rows",
    ):
        await page.goto(path)
        await page.wait_for_load_state("load")
        assert await page.locator("main img, main script").count() == 0
        assert "big" not in await page.locator("h1").all_inner_texts()
        if "/tables/" not in path:
            assert await page.evaluate("document.documentElement.scrollWidth") <= 390, path


async def test_what_the_address_says_is_text_too(console: Console, watched: Watched) -> None:
    page, word = watched.page, quote(IMAGE + SCRIPT, safe="")
    for path in (
        f"/syncs/{word}",
        f"/syncs?done=removed&id={word}",
        f"/syncs/default/events?type={word}&object={word}&request={word}&since={word}",
        f"/syncs/default/events/{word}",
        f"/syncs/default/changes?table={word}&id={word}&before={word}",
        f"/syncs/default/tables/{word}",
        f"/syncs/default/tables/customer/rows/{word}",
        f"/syncs/default/keys?new={word}",
        f"/login?next={word}",
    ):
        await page.goto(f"{console.url}{path}")
        assert await page.locator("img, main script").count() == 0, path
