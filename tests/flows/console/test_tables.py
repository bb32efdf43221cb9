"""The console's tables, rows and single rows, as a browser without JavaScript gets them."""

from __future__ import annotations

import re
from urllib.parse import quote

import httpx
import pytest
from tests.flows.console.conftest import Console

from pinstripe.catalog.domains import DOMAINS
from pinstripe.store.pool import connect

TABLES = "/syncs/default/tables"
ODD = "a/b c"
HOSTILE = "<script>alert(1)</script> \"'&\u202e \U0001f600"


async def page(http: httpx.AsyncClient, path: str, *, status: int = 200) -> str:
    """The text of a page; `path` goes on from the tables."""
    answer = await http.get(TABLES + path)
    assert answer.status_code == status, answer.text
    return answer.text


def keys(html: str) -> list[str]:
    """The rows of a list, in their order."""
    return re.findall(r'<th scope="row" class="mono"><a href="[^"]*">([^<]*)</a>', html)


async def test_all_tables_stand_under_their_domains(console: Console) -> None:
    async with console.client() as http:
        html = await page(http, "")
    for domain in DOMAINS.values():
        assert domain.title in html
    assert f'href="{TABLES}/customer"' in html


async def test_the_switch_leaves_tables_without_rows_out(console: Console) -> None:
    async with console.client() as http:
        html = await page(http, "?rows=some")
    assert f'href="{TABLES}/customer"' in html
    assert 'class="none"' not in html


async def test_a_table_shows_columns_references_and_stripes_own_page(console: Console) -> None:
    async with console.client() as http:
        html = await page(http, "/charge")
    assert f'<a href="{TABLES}/customer">customer</a>' in html
    assert "https://docs.stripe.com/api/charges" in html
    assert "timestamptz" in html
    assert "refund.charge_id" in html


@pytest.mark.parametrize("path", ["/nonsense", "/nonsense/rows", "/charge/rows/ch_nowhere"])
async def test_what_is_not_there_is_said_so(console: Console, path: str) -> None:
    async with console.client() as http:
        assert "There is no" in await page(http, path, status=404)


async def test_pages_of_rows_hold_every_row_once(console: Console) -> None:
    async with connect(console.database) as connection:
        there = await connection.fetch("SELECT id FROM stripe.event WHERE created IS NOT NULL")
    seen: list[str] = []
    path = "/event/rows"
    async with console.client() as http:
        while path:
            html = await page(http, path)
            seen += keys(html)
            more = re.search(r'rel="next" href="([^"]+)"', html)
            path = f"/event/rows{more[1].replace('&amp;', '&')}" if more else ""
    assert len(seen) == len(set(seen))
    assert {r["id"] for r in there} <= set(seen)


@pytest.mark.parametrize(
    ("filters", "where"),
    [
        ("column=amount&is=gt&value=50000", "amount > 50000"),
        ("column=status&is=eq&value=succeeded", "status = 'succeeded'"),
        ("column=status&is=ne&value=succeeded", "status IS DISTINCT FROM 'succeeded'"),
        ("column=currency&is=has&value=S", "currency ILIKE '%s%'"),
        ("column=customer_id&is=null&value=", "customer_id IS NULL"),
        ("column=paid&is=eq&value=true", "paid"),
        ("column=metadata&is=has&value=%7B%7D", "metadata @> '{}'"),
        ("column=created&is=gt&value=2020-01-31", "created > '2020-01-31'"),
        (
            "column=amount&is=lt&value=90000&column=paid&is=eq&value=yes",
            "amount < 90000 AND paid",
        ),
    ],
)
async def test_a_filter_shows_the_rows_that_fit(console: Console, filters: str, where: str) -> None:
    async with connect(console.database) as connection:
        wanted = await connection.fetch(
            f"SELECT id FROM stripe.charge WHERE ({where}) AND created IS NOT NULL"
            " ORDER BY created DESC, id DESC LIMIT 50"
        )
    async with console.client() as http:
        html = await page(http, f"/charge/rows?{filters}")
    assert keys(html) == [r["id"] for r in wanted]


@pytest.mark.parametrize(
    "filters",
    [
        "column=amount&is=gt&value=much",
        "column=created&is=gt&value=yesterday",
        "column=metadata&is=eq&value=%7B",
        "column=metadata&is=gt&value=1",
        "column=amount&is=gt&value=99999999999999999999",
        "column=nonsense&is=eq&value=1",
        "column=amount&is=nonsense&value=1",
    ],
)
async def test_a_filter_that_cannot_be_is_told_and_shows_no_rows(
    console: Console, filters: str
) -> None:
    async with console.client() as http:
        html = await page(http, f"/charge/rows?{filters}")
    assert 'class="notice warn"' in html
    assert keys(html) == []


async def test_what_is_typed_never_becomes_sql(console: Console) -> None:
    text = "x' OR '1'='1"
    async with console.client() as http:
        html = await page(http, f"/charge/rows?column=status&is=eq&value={quote(text)}")
        assert keys(html) == []
        html = await page(http, f"/charge/rows?sort={quote('id; DROP TABLE x')}")
        assert keys(html)
        await page(http, f"/{quote('charge; DROP', safe='')}/rows", status=404)


async def test_all_columns_are_shown_when_asked_for(console: Console) -> None:
    async with console.client() as http:
        html = await page(http, "/charge/rows?columns=all")
    assert "billing_details_address" in html
    assert "_synced_at" in html


async def test_a_key_may_hold_slashes_and_spaces(console: Console) -> None:
    await console.stripe("/v1/products", id=ODD, name="Odd")
    async with console.client() as http:
        listed = await page(http, "/product/rows?column=name&is=eq&value=Odd")
        path = f"{TABLES}/product/rows/a%2Fb%20c"
        assert f'href="{path}"' in listed
        html = (await http.get(path)).text
    assert "<bdi>Odd</bdi>" in html
    assert "&#39;a/b c&#39;" in html


async def test_hostile_values_are_text(console: Console) -> None:
    made = await console.stripe("/v1/customers", name=HOSTILE, description=HOSTILE)
    async with console.client() as http:
        row = await page(http, f"/customer/rows/{made['id']}")
        rows = await page(http, "/customer/rows")
    for html in (row, rows):
        assert "<script>alert" not in html
        assert "&lt;script&gt;alert(1)" in html


async def test_a_row_links_both_ways_and_tells_its_changes(console: Console) -> None:
    made = await console.stripe("/v1/customers", name="Before")
    await console.stripe(f"/v1/customers/{made['id']}", name="After")
    item = await console.stripe(
        "/v1/invoiceitems", customer=str(made["id"]), amount="1250", currency="usd"
    )
    async with console.client() as http:
        customer = await page(http, f"/customer/rows/{made['id']}")
        other = await page(http, f"/invoice_item/rows/{item['id']}")
    assert f'href="{TABLES}/customer/rows/{made["id"]}"' in other
    assert "= 12.50 USD" in other
    assert "1,250 usd" not in re.sub("<[^>]*>", "", other)  # That would be another amount.
    assert f"invoice_item/rows?column=customer_id&amp;is=eq&amp;value={made['id']}" in customer
    assert re.search(r"<strong>name</strong>.*Before.*After", customer)
    assert "Freshness" in customer


@pytest.mark.parametrize(
    ("wanted", "place"),
    [
        ("charge", "/charge"),
        ("cus_none", "/customer/rows/cus_none"),
        ("ada@example.com", "/customer/rows?column=email&is=eq&value=ada%40example.com"),
    ],
)
async def test_find_leads_to_a_table_an_id_and_an_email(
    console: Console, wanted: str, place: str
) -> None:
    async with console.client() as http:
        answer = await http.get("/syncs/default/find", params={"q": wanted})
    assert (answer.status_code, answer.headers["location"]) == (303, TABLES + place)


async def test_find_leads_to_an_id_that_its_owner_chose_and_says_what_is_not_there(
    console: Console,
) -> None:
    await console.stripe("/v1/coupons", id="find me/10", percent_off="10", duration="once")
    async with console.client() as http:
        found = await http.get("/syncs/default/find", params={"q": "find me/10"})
        nothing = await http.get("/syncs/default/find", params={"q": "<i>nothing"})
    assert found.headers["location"] == f"{TABLES}/coupon/rows/find%20me%2F10"
    assert nothing.status_code == 404
    assert "&lt;i&gt;nothing" in nothing.text


async def test_a_column_that_somebody_added_is_shown(console: Console) -> None:
    async with connect(console.database) as connection:
        await connection.execute("ALTER TABLE stripe.coupon ADD COLUMN mine int DEFAULT 7")
    try:
        async with console.client() as http:
            html = await page(http, "/coupon/rows?columns=all")
            coupon = keys(html)[0]
            row = await page(http, f"/coupon/rows/{quote(coupon, safe='')}")
    finally:
        async with connect(console.database) as connection:
            await connection.execute("ALTER TABLE stripe.coupon DROP COLUMN mine")
    assert "mine" in html
    assert "mine" in row
