"""The diagram's pages and files."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from tests.flows.console.conftest import Console

from pinstripe.catalog.domains import DOMAINS

DIAGRAM = "/syncs/default/diagram"


async def test_it_begins_with_the_domains_and_leads_on(console: Console) -> None:
    async with console.client() as http:
        html = (await http.get(DIAGRAM)).text
        billing = (await http.get(f"{DIAGRAM}/billing")).text
        invoice = (await http.get(f"{DIAGRAM}/billing/invoice")).text
    for name in DOMAINS:
        assert f'href="{DIAGRAM}/{name}"' in html
    assert f'href="{DIAGRAM}/billing/invoice"' in billing
    assert 'href="/syncs/default/tables/invoice"' in invoice
    assert f'href="{DIAGRAM}/core/customer"' in invoice


async def test_tables_without_rows_can_be_left_out(console: Console) -> None:
    async with console.client() as http:
        every = (await http.get(f"{DIAGRAM}/core")).text
        filled = (await http.get(f"{DIAGRAM}/core?rows=some")).text
    assert 'id="box-ephemeral_key"' in every
    assert 'id="box-ephemeral_key"' not in filled
    assert f'href="{DIAGRAM}/core/customer?rows=some"' in filled


async def test_it_goes_to_the_table_that_is_looked_for(console: Console) -> None:
    async with console.client() as http:
        answer = await http.get(f"{DIAGRAM}?find=payment+intent&rows=some")
        nothing = await http.get(f"{DIAGRAM}?find=nonsense")
    assert answer.headers["location"] == f"{DIAGRAM}/payments/payment_intent?rows=some"
    assert nothing.status_code == 404


async def test_a_download_is_a_file_of_its_own(console: Console) -> None:
    async with console.client() as http:
        svg = await http.get(f"{DIAGRAM}/billing/invoice?form=svg")
        mermaid = await http.get(f"{DIAGRAM}/billing?form=mermaid")
    assert svg.headers["content-disposition"] == 'attachment; filename="invoice.svg"'
    assert ElementTree.fromstring(svg.text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "erDiagram" in mermaid.text


@pytest.mark.parametrize("path", ["/nonsense", "/core/invoice", "/core/nonsense"])
async def test_there_is_no_diagram_of_what_is_not_there(console: Console, path: str) -> None:
    async with console.client() as http:
        assert (await http.get(DIAGRAM + path)).status_code == 404


async def test_its_style_sheet_is_served_as_one(console: Console) -> None:
    async with console.client() as http:
        answer = await http.get("/static/diagram.css")
    assert answer.headers["content-type"].startswith("text/css")
    assert ".erd" in answer.text
