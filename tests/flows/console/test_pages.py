"""The pages of the console, as a browser without JavaScript gets them."""

from __future__ import annotations

import pytest
from tests.flows.console.conftest import Console

SECTIONS = ("", "/events", "/changes", "/connect", "/keys")


@pytest.mark.parametrize("section", SECTIONS)
async def test_every_section_answers_with_a_page(console: Console, section: str) -> None:
    async with console.client() as http:
        answer = await http.get(f"/syncs/default{section}")
    assert answer.status_code == 200
    assert answer.text.startswith("<!doctype html>")
    assert 'aria-current="page"' in answer.text
