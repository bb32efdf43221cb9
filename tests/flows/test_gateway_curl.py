"""curl against the whole service, as a reader of the docs tries it: what it shows is in SQL at once."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.flows.harness.serving import SECRET, env_of, served

from pinstripe.catalog.secrets import SECRET_NAMES
from pinstripe.catalog.tables import tables
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import running

pytestmark = [
    pytest.mark.migrated,
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl"),
]
PLAIN = ("text", "boolean", "bigint")


@dataclass(frozen=True)
class Curl:
    """curl with the account's key, and the database that its answers must be in."""

    url: str
    pg: asyncpg.Connection

    async def run(self, *words: str) -> tuple[int, Any]:
        """(status, JSON)."""
        process = await asyncio.create_subprocess_exec(
            *("curl", "-sS", "-u", f"{SECRET}:", "-w", "\n%{http_code}", *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        body, _, status = out.decode().rpartition("\n")
        return int(status), json.loads(body)

    async def good(self, *words: str) -> Any:
        """What a request answers that goes well; its object is a row, with the same values."""
        status, body = await self.run(*words)
        assert status == 200, body
        for each in body["data"] if body["object"] == "list" else [body]:
            await self.is_a_row(each)
        return body

    async def is_a_row(self, obj: dict[str, Any]) -> None:
        name = obj["object"].replace(".", "_")
        row = await self.pg.fetchrow(f'SELECT * FROM stripe."{name}" WHERE id = $1', obj["id"])
        assert row is not None, obj["id"]
        for column in tables()[name].columns:
            told = obj.get(column.name)
            if column.type in PLAIN and column.path == (column.name,) and _is_plain(told):
                kept = None if column.name in SECRET_NAMES else told
                assert row[column.name] == kept, (obj["id"], column.name)


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | bool)


async def test_curl_reads_and_writes_and_sql_says_the_same_at_once(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    picture = tmp_path / "receipt.png"
    picture.write_bytes(b"\x89PNG" + bytes(range(256)) * 1500)
    settings = Settings(scale=60, keys=(SECRET,), future_fields=False)
    async with running(settings) as sim:
        # However busy the machine is: what comes later than that would be said in a header.
        patient = {"PINSTRIPE_MIRROR_PATIENCE": "60"}
        env = {**env_of(sim, database), "PINSTRIPE_TABLES": "*", **patient}
        async with served(env) as service:
            await service.until_state(served=True)
            curl = Curl(service.url, pg)
            await _sells(curl, f"{service.url}/v1")
            await _looks(curl, f"{service.url}/api.stripe.com/v1")
            files = f"{service.url}/files.stripe.com/v1/files"
            sent = await curl.good(
                files, "-F", "purpose=dispute_evidence", "-F", f"file=@{picture}"
            )
            assert sent["size"] == picture.stat().st_size


async def _sells(curl: Curl, api: str) -> None:
    """A subscription, a payment that is given back, an invoice of one's own."""
    good = curl.good
    product = await good(f"{api}/products", "-d", "name=Gold")
    price = await good(
        f"{api}/prices",
        *("-d", f"product={product['id']}", "-d", "unit_amount=2000", "-d", "currency=usd"),
        *("-d", "recurring[interval]=month"),
    )
    payer = await good(f"{api}/customers", "--data-urlencode", "name=Ada & Söhne")
    attach = f"{api}/payment_methods/pm_card_visa/attach"
    card = await good(attach, "-d", f"customer={payer['id']}")
    default = f"invoice_settings[default_payment_method]={card['id']}"
    await good(f"{api}/customers/{payer['id']}", "-d", default)
    made = await good(
        f"{api}/subscriptions",
        *("-d", f"customer={payer['id']}", "-d", f"items[0][price]={price['id']}"),
        *("-d", "expand[]=latest_invoice"),
    )
    await curl.is_a_row(made["latest_invoice"])
    await curl.is_a_row(made["items"]["data"][0])
    intent = await good(
        f"{api}/payment_intents",
        *("-d", "amount=900", "-d", "currency=usd", "-d", f"customer={payer['id']}"),
        *("-d", f"payment_method={card['id']}", "-d", "confirm=true", "-d", "off_session=true"),
    )
    await good(f"{api}/refunds", "-d", f"payment_intent={intent['id']}", "-d", "amount=100")
    await good(f"{api}/invoices", "-d", f"customer={payer['id']}")
    await good("-X", "DELETE", f"{api}/subscriptions/{made['id']}")


async def _looks(curl: Curl, api: str) -> None:
    """Pages, packed; search; what is expanded; errors; a request sent twice."""
    page = await curl.good("--compressed", f"{api}/customers?limit=3")
    after = page["data"][-1]["id"]
    further = await curl.good("--compressed", f"{api}/customers?limit=3&starting_after={after}")
    assert not {o["id"] for o in further["data"]} & {o["id"] for o in page["data"]}
    query = ("-G", f"{api}/customers/search", "--data-urlencode", "query=name:'Ada & Söhne'")
    assert (await curl.run(*query))[0] == 200
    invoices = await curl.good("-g", f"{api}/invoices?limit=2&expand[]=data.customer")
    await curl.is_a_row(invoices["data"][0]["customer"])
    status, body = await curl.run(f"{api}/customers/cus_nobody")
    assert (status, body["error"]["code"]) == (404, "resource_missing")
    once = ("-H", "Idempotency-Key: only-once", "-d", "name=Once", f"{api}/customers")
    assert (await curl.good(*once))["id"] == (await curl.good(*once))["id"]
