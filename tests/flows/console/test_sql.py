"""The SQL box: what it shows, and what nobody can do with it."""

from __future__ import annotations

import asyncio
import contextlib
import html
import re

import httpx
import pytest
from tests.flows.console.conftest import Console

from pinstripe.console.sql import EXAMPLES
from pinstripe.store.pool import connect

SQL = "/syncs/default/sql"


async def token(http: httpx.AsyncClient) -> str:
    """What the forms of this browser carry."""
    found = re.search(r'name="csrf" value="([^"]+)"', (await http.get(SQL)).text)
    assert found is not None
    return found[1]


async def said(console: Console, statement: str, path: str = SQL) -> httpx.Response:
    """What the box answers."""
    async with console.client() as http:
        form = {"csrf": await token(http), "statement": statement}
        return await http.post(path, data=form)


async def test_a_result_is_typed_and_linked(console: Console) -> None:
    page = (await said(console, "SELECT id, amount FROM charge ORDER BY created LIMIT 2")).text
    assert "2 rows" in page
    assert "bigint" in page
    assert 'href="/syncs/default/tables/charge/rows/ch_' in page


async def test_more_rows_than_are_shown_are_said_to_be(console: Console) -> None:
    page = (await said(console, "SELECT g FROM generate_series(1, 5000) AS g")).text
    assert "1,000 rows" in page
    assert "truncated" in page


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM charge",
        "DELETE FROM charge RETURNING id",
        "WITH gone AS (DELETE FROM charge RETURNING id) SELECT * FROM gone",
        "SELECT 1; DELETE FROM charge",
        "CREATE TABLE stripe.mine AS SELECT 1",
        "DO $$ BEGIN RESET ROLE; DELETE FROM stripe.charge; END $$",
        "COPY charge TO STDOUT",
        "COMMIT",
        "SET ROLE postgres",
        "SELECT set_config('role', 'postgres', false)",
        "SELECT * FROM pinstripe.stored_sync",
        "SELECT pg_read_file('/etc/hostname')",
        "SELECT $1::int",
        "SELECT nextval('pinstripe.change_position_seq')",
    ],
)
async def test_the_box_only_reads_and_only_its_schema(console: Console, statement: str) -> None:
    async with connect(console.database) as connection:
        before = await connection.fetchval("SELECT count(*) FROM stripe.charge")
    page = (await said(console, statement)).text
    assert 'class="notice bad"' in page
    assert 'aria-label="Result"' not in page
    async with connect(console.database) as connection:
        assert await connection.fetchval("SELECT count(*) FROM stripe.charge") >= before


async def test_it_is_a_role_of_its_own(console: Console) -> None:
    page = (await said(console, "SELECT session_user, current_user")).text
    assert page.count("pinstripe_console_console_stripe") == 2


async def test_an_error_points_at_its_place(console: Console) -> None:
    page = (await said(console, "SELECT *\nFROM chargee")).text
    assert "line 2, character 6" in page
    assert "relation &#34;chargee&#34; does not exist" in page


async def test_an_error_that_repeats_a_long_value_is_cut(console: Console) -> None:
    answer = await said(console, "SELECT repeat('x', 20000000)::int")
    assert "invalid input syntax for type integer" in answer.text
    assert len(answer.content) < 200_000


async def test_a_download_is_complete_and_safe_in_a_spreadsheet(console: Console) -> None:
    statement = "SELECT g AS n, '=1+1' AS f, NULL AS nothing FROM generate_series(1, 3000) AS g"
    answer = await said(console, statement, f"{SQL}/csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    lines = answer.text.split("\r\n")
    assert lines[:2] == ["n,f,nothing", "1,'=1+1,"]
    assert len(lines) == 1 + 3000 + 1


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT repeat('x', 10000000) FROM generate_series(1, 200)",
        "SELECT array_agg(g) FROM generate_series(1, 2000000) AS g",
        "SELECT jsonb_build_object('a', repeat('é', 5000000)), g FROM generate_series(1, 50) AS g",
    ],
    ids=["texts", "array", "jsonb"],
)
async def test_a_large_value_arrives_cut_with_its_length(console: Console, statement: str) -> None:
    answer = await said(console, statement)
    assert 'aria-label="Result"' in answer.text
    assert len(answer.content) < 12_000_000
    lines = (await said(console, f"{statement} LIMIT 1", f"{SQL}/csv")).text
    assert "bytes)" in lines
    assert len(lines) < 1_100_000


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("SELECT 1 AS n; -- done", "1"),
        ("SELECT ';--x' AS n", ";--x"),
        ("VALUES (true);", "true"),
        ("(SELECT 7)", "7"),
        ("SELECT 1 AS n, 1 AS n", "1"),
        ("SELECT '4000-01-01 BC'::date", "4000-01-01 BC"),
        ("SELECT ROW(1, 'a b')", '(1,"a b")'),
        ("/* what */ EXPLAIN SELECT 1", "Result"),
        ("SHOW server_encoding", "UTF8"),
        ("SELECT pg_sleep(0)::text || 'slept'", "slept"),
        ("SELECT NULL::record, pg_sleep(0)", "NULL"),
    ],
)
async def test_every_form_of_query_is_read(console: Console, statement: str, value: str) -> None:
    page = (await said(console, statement)).text
    assert 'aria-label="Result"' in page, page
    assert html.escape(value, quote=True).replace("&quot;", "&#34;") in page or value == "NULL"


async def test_a_download_that_fails_is_a_page(console: Console) -> None:
    answer = await said(console, "SELECT nothing", f"{SQL}/csv")
    assert answer.headers["content-type"].startswith("text/html")
    assert "line 1, character 8" in answer.text


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.title)
async def test_every_example_runs(console: Console, example: object) -> None:
    statement = getattr(example, "statement", "")
    page = (await said(console, statement)).text
    assert 'aria-label="Result"' in page


async def test_whoever_goes_away_ends_the_statement(console: Console) -> None:
    running = (
        "SELECT count(*) FROM pg_stat_activity WHERE strpos(query, $1) > 0 AND state = 'active' "
        "AND pid <> pg_backend_pid()"
    )
    statement = "SELECT pg_sleep(9) AS gone_away"
    task = asyncio.create_task(said(console, statement))
    async with connect(console.database) as connection, asyncio.timeout(8):
        while not await connection.fetchval(running, statement):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        task.cancel()
        while await connection.fetchval(running, statement):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_downloads_that_nobody_reads_take_no_place_from_statements(console: Console) -> None:
    large = "SELECT repeat('x', 100000) FROM generate_series(1, 10000)"
    opened = (
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
        " AND usename LIKE 'pinstripe_console%'"
    )
    async with console.client() as http, contextlib.AsyncExitStack() as downloads:
        form = {"csrf": await token(http), "statement": large}
        requests = [
            asyncio.create_task(
                downloads.enter_async_context(http.stream("POST", f"{SQL}/csv", data=form))
            )
            for _ in range(6)
        ]
        async with asyncio.timeout(30), connect(console.database) as connection:
            while await connection.fetchval(opened) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            assert "1 row" in (await said(console, "SELECT 1")).text
            await asyncio.wait(requests)
        answers = [request.result() for request in requests]
        refused = [a for a in answers if not a.headers["content-type"].startswith("text/csv")]
        assert len(refused) == 3
        assert "under way" in (await refused[0].aread()).decode()
    assert "1 row" in (await said(console, "SELECT 1")).text


async def test_a_dropped_role_is_made_anew(console: Console) -> None:
    assert "1 row" in (await said(console, "SELECT 1")).text
    async with connect(console.database) as connection:
        await connection.execute("ALTER ROLE pinstripe_console_console_stripe PASSWORD 'another'")
    assert "1 row" in (await said(console, "SELECT 1")).text


async def test_a_statement_without_the_forms_token_is_not_run(console: Console) -> None:
    async with console.client() as http:
        await token(http)
        answer = await http.post(SQL, data={"statement": "SELECT 1"})
    assert answer.status_code == 403


async def test_names_for_completing_are_those_of_the_schema(console: Console) -> None:
    async with console.client() as http:
        names = (await http.get(f"{SQL}/names")).json()
    assert "customer_id" in names["charge"]
    assert "stored_sync" not in names
