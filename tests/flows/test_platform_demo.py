"""`pinstripe demo --platform` as a user runs it. A part of `make soak`: it copies 50 accounts."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.flows.harness.command import started

pytestmark = pytest.mark.skipif("SOAK_SECONDS" not in os.environ, reason="make soak runs it")

_CONSOLE = re.compile(r"Console:\s+(http://\S+)/platforms")


async def test_the_demo_copies_fifty_accounts_with_two_workers_and_ends_in_order(
    tmp_path: Path,
) -> None:
    words = ("demo", "--platform", "--data-dir", str(tmp_path), "--port", "0")
    async with started(*words) as process, asyncio.timeout(400):
        said = ""
        while not _CONSOLE.search(said):
            line = (await process.stdout.readline()).decode()
            assert line, said
            said += line
        found = _CONSOLE.search(said)
        key = re.search(r"key: (sk_test_\w+)", said)
        assert found
        assert key
        async with httpx.AsyncClient(base_url=found[1], timeout=60, trust_env=False) as http:

            async def platforms() -> dict[str, Any]:
                told: dict[str, Any] = (await http.get("/api/platforms")).json()
                return told

            async def is_copied() -> bool:
                told = await platforms()
                there = told["platforms"][0]["accounts"]["active"]
                return there == 51 and not told["tasks"].get("backfill")

            while not await is_copied():  # noqa: ASYNC110 (other processes)
                await asyncio.sleep(0.5)
            assert len((await platforms())["workers"]) == 2
            page = (await http.get("/api/platforms/shops/accounts?limit=1")).json()
            account = page["accounts"][0]["account_id"]
            made = await http.post(
                "/v1/customers",
                data={"name": "Ada"},
                headers={"Authorization": f"Bearer {key[1]}", "Stripe-Account": account},
            )
            assert made.headers["pinstripe-mirrored"] == "yes"
            waited = await http.get(f"/wait/stripe/shops?account={account}&timeout=60")
            assert waited.json()["ok"], waited.text
            assert f"{account}" in (await http.get("/platforms/shops")).text
        os.kill(process.pid, signal.SIGINT)
        assert await process.wait() == 0
