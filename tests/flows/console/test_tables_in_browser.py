"""Tables, rows, SQL and diagram in a real browser: hostile values are text, keys and zoom work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest
from playwright.async_api import Browser, Page
from tests.flows.console.conftest import Console

pytestmark = pytest.mark.asyncio(loop_scope="module")  # As `chromium`.

HOSTILE = (
    "<script>document.title='taken'</script><img src=x onerror=alert(1)> \"'`{{7*7}} \u202e\u2066"
)
LONG = "long " * 90
PAGES = (
    "tables",
    "tables/customer",
    "tables/customer/rows",
    "tables/customer/rows?columns=all",
    "sql",
    "diagram",
    "diagram/billing",
    "diagram/core/customer",
)


@asynccontextmanager
async def watched(browser: Browser, console: Console, width: int = 1280) -> AsyncIterator[Page]:
    """A page that may neither open a dialog nor complain."""
    wrong: list[str] = []
    context = await browser.new_context(
        base_url=console.url, viewport={"width": width, "height": 844}
    )
    page = await context.new_page()
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    yield page
    await context.close()
    assert wrong == []


async def test_hostile_values_are_seen_as_text_on_every_page(
    console: Console, chromium: Browser
) -> None:
    made = await console.stripe("/v1/customers", name=HOSTILE, description=LONG, email="")
    row = f"tables/customer/rows/{made['id']}"
    async with watched(chromium, console) as page:
        for path in (*PAGES, row):
            answer = await page.goto(f"/syncs/default/{path}")
            assert answer is not None
            assert answer.status == 200
            assert await page.title() != "taken"
        assert HOSTILE in str(await page.text_content("h1"))


@pytest.mark.parametrize("width", [390, 1280])
async def test_a_long_id_makes_no_page_wider(
    console: Console, chromium: Browser, width: int
) -> None:
    made = f"p/{width}{'x' * 300}"
    await console.stripe("/v1/products", id=made, name="W" * 200, description=LONG * 10)
    rows = "/syncs/default/tables/product/rows"
    async with watched(chromium, console, width) as page:
        for path in (f"{rows}/{quote(made, safe='')}", f"{rows}?column=id&is=eq&value={made}"):
            await page.goto(path)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
        # The other columns are seen beside it.
        key = page.locator("table.rows tbody th")
        assert await key.evaluate("e => e.getBoundingClientRect().width") < 400


async def test_no_page_is_wider_than_a_phone(console: Console, chromium: Browser) -> None:
    async with watched(chromium, console, width=360) as page:
        for path in (*PAGES, "tables/charge/rows"):
            await page.goto(f"/syncs/default/{path}")
            wide = await page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 360, path


async def test_the_sql_box_works_by_keyboard(console: Console, chromium: Browser) -> None:
    async with watched(chromium, console) as page:
        await page.goto("/syncs/default/sql#sql=SELECT%201%20AS%20one")
        assert await page.input_value("textarea") == "SELECT 1 AS one"
        await page.focus("textarea")
        await page.fill("textarea", "SELECT id FROM customer ORDER BY creat")
        await page.wait_for_selector("[data-sql-names] [data-name=created]")
        await page.keyboard.press("Control+Space")
        assert (await page.input_value("textarea")).endswith("ORDER BY created")
        await page.keyboard.type(" LIMIT 3")
        await page.keyboard.press("Control+Enter")
        await page.wait_for_selector("table.result tbody tr:nth-child(3)")


async def test_the_diagram_zooms_and_leads_on(console: Console, chromium: Browser) -> None:
    async with watched(chromium, console) as page:
        await page.goto("/syncs/default/diagram/billing")
        wide = "document.querySelector('svg.erd').width.baseVal.value"
        before = await page.evaluate(wide)
        await page.click("[data-by='1']")
        larger = await page.evaluate(wide)
        assert larger > before
        await page.focus("[data-diagram]")
        await page.keyboard.press("0")
        assert await page.evaluate(wide) < larger
        await page.hover("#box-subscription .title")
        assert await page.locator(".erd.pointing .link.near").count() > 0
        await page.click("#box-subscription a")
        await page.wait_for_url("**/diagram/billing/subscription")


async def test_typing_narrows_the_tables(console: Console, chromium: Browser) -> None:
    async with watched(chromium, console) as page:
        await page.goto("/syncs/default/tables")
        await page.fill("main input[type=search]", "subscription_sch")
        rows = page.locator("tr[data-text]:visible")
        assert await rows.count() == 1
        assert await page.locator("tr.group:visible").count() == 1
