"""The pages of the console, as a browser without JavaScript gets them."""

from __future__ import annotations

import pytest
from tests.flows.console.conftest import Console

from pinstripe.store.cursors import RememberedRefusal, note_refusal
from pinstripe.store.pool import connect

SECTIONS = ("", "/events", "/changes", "/connect", "/keys")


@pytest.mark.parametrize("section", SECTIONS)
async def test_every_section_answers_with_a_page(console: Console, section: str) -> None:
    async with console.client() as http:
        answer = await http.get(f"/syncs/default{section}")
    assert answer.status_code == 200
    assert answer.text.startswith("<!doctype html>")
    assert 'aria-current="page"' in answer.text


@pytest.mark.parametrize("path", ["/no/such", "/api/none", "/syncs/default/none"])
async def test_an_unknown_path_is_a_page_for_browsers_and_json_for_programs(
    console: Console, path: str
) -> None:
    accept = "text/html,application/xhtml+xml,*/*;q=0.8"
    async with console.client(locked=True) as http:
        page = await http.get(path, headers={"Accept": accept})
        plain = await http.get(path)
        posted = await http.post(path, headers={"Accept": accept})
    assert page.status_code == plain.status_code == posted.status_code == 404
    assert page.text.startswith("<!doctype html>")
    assert '<a href="/">' in page.text
    assert "default" not in page.text
    assert page.headers["cache-control"] == "no-store"
    assert plain.json()["error"]["code"] == posted.json()["error"]["code"] == "not_found"


async def test_what_stripe_refuses_in_part_is_shown_everywhere(console: Console) -> None:
    refusal = RememberedRefusal(
        "GET /v1/customers", "data.cash_balance", "This property cannot be expanded."
    )
    async with connect(console.database) as connection:
        await note_refusal(connection, console.schema, refusal)
    try:
        async with console.client() as http:
            page = (await http.get("/syncs/default")).text
            status = (await http.get("/api/syncs/default/status")).json()
            metrics = await http.get("/metrics")
            while 'requests_refused{sync="default"} 1.0' not in metrics.text:
                metrics = await http.get("/metrics")  # The board is a second old at most.
    finally:
        async with connect(console.database) as connection:
            await connection.execute("DELETE FROM pinstripe.refusal")
    assert "Refused in part" in page
    assert "This property cannot be expanded." in page
    assert status["refusals"] == [
        {
            "endpoint": "GET /v1/customers",
            "what": "data.cash_balance",
            "reason": "This property cannot be expanded.",
            "remedy": "",
        }
    ]
