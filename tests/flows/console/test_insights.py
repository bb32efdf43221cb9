"""The insights in a real browser: the numbers are those of the lives behind them, and lead to their SQL."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from urllib.parse import unquote

import pytest
from playwright.async_api import Browser
from tests.flows.console.conftest import Console
from tests.flows.console.test_tables_in_browser import watched
from tests.flows.harness.api_service import ApiService, api_service
from tests.flows.harness.lives import EMPTY, Lives

from pinstripe.console import insights
from pinstripe.console.rows import money
from pinstripe.store.pool import connect
from pinstripe_simulator.behaviours import cycle, money_out
from pinstripe_simulator.server import Running, running

pytestmark = [pytest.mark.migrated, pytest.mark.asyncio(loop_scope="module")]  # As `chromium`.

SHOTS = os.environ.get("PINSTRIPE_SCREENSHOTS", "")


@asynccontextmanager
async def served(
    sim: Running, database: str, directory: Path, **changed: object
) -> AsyncIterator[Console]:
    async with api_service(sim, database, directory, **changed) as here:
        yield _console(here, sim, database)


def _console(here: ApiService, sim: Running, database: str) -> Console:
    return Console(here.url, here.url, sim.key, database, sim.url)


async def test_the_numbers_are_those_of_the_account_and_lead_to_their_sql(
    database: str, tmp_path: Path, chromium: Browser
) -> None:
    async with running(EMPTY) as sim:
        lives = Lives(sim, Random(5))
        lives.live(customers=14, months=7)
        ledger = lives.ledger()
        money_out.reconcile(ledger, money_out.pay_out(ledger, "usd"))
        cycle.payout_arrives(ledger, lives.newest("payout"))
        async with served(sim, database, tmp_path) as console:
            last = max(month for month, _ in lives.worth)
            mrr = sum(w[2] for key, w in lives.worth.items() if key[0] == last and w[1] == "usd")
            async with watched(chromium, console) as page:
                await page.goto("/syncs/default/insights?currency=usd")
                tile = page.locator(".tile", has_text="MRR").first.locator("a")
                assert await tile.text_content() == money(mrr, "usd")
                assert await page.locator("svg.chart").count() >= 3
                assert await page.locator(".key.churn, .key.bad").count() >= 1
                assert "Postgres (" not in str(await page.text_content("main"))
                assert await page.locator("[aria-label='Payments by day'] tbody tr").count() == 30
                assert "ties out" in str(await page.text_content("[aria-label=Payouts]"))
                await _shoot(page, "insights")
                link = str(await tile.get_attribute("href"))
                await page.goto(link)
                assert await page.input_value("textarea") == unquote(link.partition("#sql=")[2])
                await page.click("button.first")
                cell = page.locator("table.result tbody td").first
                assert await cell.text_content() == str(mrr)
                await page.goto("/syncs/default/insights?currency=jpy")
                yen = sum(
                    w[2] for key, w in lives.worth.items() if key[0] == last and w[1] == "jpy"
                )
                if yen:
                    tile = page.locator(".tile", has_text="MRR").first.locator("a")
                    assert await tile.text_content() == f"{yen:,}"
                await page.goto("/syncs/default/insights?currency=usd")
                await page.emulate_media(color_scheme="dark")
                await _shoot(page, "insights-dark")
            async with watched(chromium, console, width=360) as page:
                await page.goto("/syncs/default/insights?currency=usd")
                assert await page.evaluate("document.documentElement.scrollWidth") <= 360
                await _shoot(page, "insights-phone")


async def test_an_empty_account_says_so(database: str, tmp_path: Path, chromium: Browser) -> None:
    async with (
        running(EMPTY) as sim,
        served(sim, database, tmp_path) as console,
        watched(chromium, console) as page,
    ):
        await page.goto("/syncs/default/insights")
        assert "No subscriptions, payments or payouts yet." in str(await page.text_content("main"))
        await _shoot(page, "insights-empty")


async def test_what_is_not_synced_is_named_and_the_rest_is_there(
    database: str, tmp_path: Path, chromium: Browser
) -> None:
    async with connect(database) as pg:
        await pg.execute("DROP TABLE stripe.payout")
    async with (
        running(EMPTY) as sim,
        served(sim, database, tmp_path, tables=("charge",)) as console,
        watched(chromium, console) as page,
    ):
        await page.goto("/syncs/default/insights")
        told = str(await page.text_content("[aria-label=Payouts]"))
        assert "stripe.payout" in told
        assert "is not synced" in told
        assert "None in the last 30 days." in str(
            await page.text_content("[aria-label='Failed payments']")
        )


async def test_what_the_key_may_not_read_is_no_nothing(
    database: str, tmp_path: Path, chromium: Browser
) -> None:
    async with (
        running(EMPTY) as sim,
        connect(database) as pg,
        served(sim, database, tmp_path) as console,
        watched(chromium, console) as page,
    ):
        refused = "UPDATE pinstripe.cursor SET state = 'refused' WHERE stream = '/v1/charges'"
        assert await pg.execute(refused) == "UPDATE 1"
        await page.goto("/syncs/default/insights")
        told = str(await page.text_content("main"))
        assert "Not synced, or only in part: charge." in told
        assert "No subscriptions, payments or payouts yet." not in told


async def test_what_takes_too_long_is_said_without_advice_for_others(
    database: str, tmp_path: Path, chromium: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(insights, "_LONGEST_S", 0.3)
    async with (
        running(EMPTY) as sim,
        connect(database) as pg,
        served(sim, database, tmp_path) as console,
        watched(chromium, console) as page,
        pg.transaction(),
    ):
        await pg.execute("LOCK TABLE stripe.payout")
        await page.goto("/syncs/default/insights")
        told = str(await page.text_content("[aria-label=Payouts]"))
        assert "Canceled after 0 s. Run its SQL" in told
        assert "since" not in str(await page.text_content("main"))
        failed = await page.text_content("[aria-label='Failed payments']")
        assert "None in the last 30 days." in str(failed)


async def _shoot(page: object, name: str) -> None:
    """For people to look at: PINSTRIPE_SCREENSHOTS names a folder."""
    if SHOTS:
        await page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)  # type: ignore[attr-defined]
