"""Connect: what stands on the page is pasted, literally, and works."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from html import unescape

import httpx
import pytest
from tests.flows.console.conftest import DATABASE_PASSWORD, Console
from tests.flows.console.test_security import log_in, token_in
from tests.flows.harness.api_service import ADMIN

from pinstripe.console.connect import PASSWORD
from pinstripe.store.pool import connect

NODE_MODULES = os.environ.get("PINSTRIPE_NODE_MODULES", "")
HERE = "/syncs/default/connect"


def snippet(page: str, name: str) -> str:
    found = re.search(rf'<pre id="{name}"[^>]*>(.*?)</pre>', page, re.DOTALL)
    assert found is not None, name
    return unescape(found[1])


async def run(*argv: str, key: str = "") -> str:
    """What it prints; it must end well."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={
            **{n: v for n, v in os.environ.items() if not n.lower().endswith("_proxy")},
            "STRIPE_API_KEY": key,
            "NODE_PATH": NODE_MODULES,
        },
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def pressed(http: httpx.AsyncClient, button: str) -> httpx.Response:
    token = token_in((await http.get(HERE)).text)
    return await http.post(f"{HERE}/{button}", data={"csrf": token})


async def test_the_reader_is_shown_once_rotated_and_removed(console: Console) -> None:
    async with console.client() as http:
        first = await pressed(http, "reader")
        assert first.status_code == 200, first.text
        assert first.headers["cache-control"] == "no-store"
        assert DATABASE_PASSWORD not in first.text
        url = snippet(first.text, "database-url")
        async with connect(url) as reader:
            assert await reader.fetchval("SELECT count(*) FROM stripe.customer") > 0
        password = re.search(r":([^:@/]+)@", url)
        assert password is not None

        later = (await http.get(HERE)).text
        assert password[1] not in later
        assert snippet(later, "database-url") == url.replace(password[1], PASSWORD)
        assert "Reset password" in later

        second = await pressed(http, "reader")
        assert snippet(second.text, "database-url") != url
        assert password[1] not in second.text

        assert "The read-only user was deleted" in (await pressed(http, "remove")).text
        assert "Create read-only user" in (await http.get(HERE)).text


@pytest.mark.skipif(shutil.which("psql") is None, reason="needs psql")
async def test_the_psql_line_reads_a_table(console: Console) -> None:
    async with console.client() as http:
        page = (await pressed(http, "reader")).text
        printed = await run("bash", "-c", snippet(page, "psql"))
        assert re.search(r"count\s+-+\s+\d+", printed), printed
        await pressed(http, "remove")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("locked", [False, True])
async def test_the_curl_lines_write_and_wait(console: Console, locked: bool) -> None:
    async with console.client(locked=locked) as http:
        if locked:
            await log_in(http, ADMIN)
        page = (await http.get(HERE)).text
    written = await run("bash", "-c", snippet(page, "curl"), key=console.key)
    head, _, body = written.replace("\r\n", "\n").partition("\n\n")
    assert "pinstripe-mirrored: yes" in head.lower()
    made = json.loads(body)["id"]
    async with connect(console.database) as pg:
        assert await pg.fetchval("SELECT email FROM stripe.customer WHERE id = $1", made)
    waited = json.loads(await run("bash", "-c", snippet(page, "wait-all"), key=console.key))
    assert waited["ok"] is True
    line = snippet(page, "wait-object").replace("cus_...", made)
    assert json.loads(await run("bash", "-c", line, key=console.key))["ok"] is True


async def test_the_python_snippet_writes_a_row(console: Console) -> None:
    async with console.client() as http:
        page = (await http.get(HERE)).text
    made = (await run(sys.executable, "-c", snippet(page, "python"), key=console.key)).strip()
    async with connect(console.database) as pg:
        assert await pg.fetchval("SELECT email FROM stripe.customer WHERE id = $1", made)
    compile(snippet(page, "sqlalchemy"), "sqlalchemy", "exec")


@pytest.mark.skipif(
    not NODE_MODULES or shutil.which("node") is None,
    reason="needs node, and PINSTRIPE_NODE_MODULES with stripe in it",
)
async def test_the_node_snippet_writes_a_row(console: Console) -> None:
    async with console.client() as http:
        page = (await http.get(HERE)).text
    made = (await run("node", "-e", snippet(page, "node"), key=console.key)).strip()
    async with connect(console.database) as pg:
        assert await pg.fetchval("SELECT email FROM stripe.customer WHERE id = $1", made)


async def test_the_page_says_where_the_database_listens_and_what_to_do(console: Console) -> None:
    async with console.client() as http:
        page = (await http.get(HERE)).text
    assert "listens on a Unix socket only" in page
    assert snippet(page, "tunnel").startswith("ssh -N -L 15432:/")
    assert snippet(page, "webhook-url") == f"{console.url}/webhooks/stripe/default"
    assert snippet(page, "proxy-prefix") == f"{console.url}/api.stripe.com"
