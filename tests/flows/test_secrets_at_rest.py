"""Secrets pass through to the caller and rest nowhere: in no dump, no file, no line of the log."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import asyncpg
from tests.flows.harness.command import dumped, pinstripe
from tests.flows.harness.planting_stripe import WORD, Planting, planting
from tests.flows.harness.serving import SECRET, served

from pinstripe.catalog.endpoints import retrieve_endpoints
from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import table_of_object


async def test_no_secret_rests_anywhere_after_copy_events_proxy_and_verify(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    """The planted words are looked for in a dump, in the data directory and in the log at its finest."""
    async with planting() as stripe:
        env = {
            "STRIPE_API_KEY": SECRET,
            "STRIPE_API_BASE": stripe.url,
            "DATABASE_URL": database,
            "PINSTRIPE_TABLES": ",".join(_tables(stripe)),
            "PINSTRIPE_DATA_DIR": str(tmp_path),
            "PINSTRIPE_CHANGES": "true",
            "PINSTRIPE_LOG": "debug",
            "PINSTRIPE_RATE_LIMIT": "none",
            "PINSTRIPE_ENDPOINT_RATE_LIMIT": "none",
        }
        async with served(env) as service:
            await service.until("default: following")
            headers = {"Authorization": f"Bearer {SECRET}"}
            passed = 0
            for name, obj in stripe.objects.items():
                paths = [
                    ("POST", o.path)
                    for o in spec().operations
                    if o.kind == "create" and o.returns == (name,) and "{" not in o.path
                ]
                if name in retrieve_endpoints():
                    path = retrieve_endpoints()[name].path
                    paths.append(("GET", path[: path.index("{")] + str(obj["id"])))
                for method, path in paths:
                    async with service.http.request(
                        method, f"{service.url}{path}?client_secret={WORD}", headers=headers
                    ) as answer:
                        text = await answer.text()
                    if answer.status == 200:
                        assert text == json.dumps(obj, indent=2)
                        passed += WORD in text
            assert passed > 20
            async with asyncio.timeout(30):
                applied = "SELECT count(*) FROM pinstripe.applied_event"
                while await pg.fetchval(applied) < 10:  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(0.05)
            service.process.terminate()
            out, err = await service.process.communicate()
            said = service.said + out.decode() + err.decode()
        verified = await pinstripe("verify", "--all", env=env)
        said += verified.text

    assert await pg.fetchval("SELECT count(*) FROM stripe.payment_intent") == 1
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.change") > 5
    assert WORD not in said, [line for line in said.splitlines() if WORD in line][:5]
    dump = await dumped(database)
    assert "pi_1" in dump
    assert WORD not in dump, [line[:300] for line in dump.splitlines() if WORD in line][:5]
    for folder, _, files in os.walk(tmp_path):
        for file in files:
            assert WORD.encode() not in (Path(folder) / file).read_bytes()


def _tables(stripe: Planting) -> list[str]:
    """The tables of what it shows, and the events."""
    known = table_of_object()
    return sorted({"event", *(known[name] for name in stripe.objects if name in known)})
