"""Any history of any account, answered as badly as Stripe may, ends in Stripe's own state.

`make test` runs one history over every type, every kind of set and every place of foreign objects; `make
soak` runs many (HISTORY_ACCOUNTS, HISTORY_ROUNDS, HISTORY_SEED). They run in a process of their own, whose
clocks are virtual (`harness/random_accounts.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from tests.flows.harness.histories import lively_types, places_of_others
from tests.flows.harness.random_accounts import make_template

from pinstripe.store.pool import connect

ACCOUNTS = os.environ.get("HISTORY_ACCOUNTS", "1")
ROUNDS = os.environ.get("HISTORY_ROUNDS", "1")
SEED = os.environ.get("HISTORY_SEED", "11")


async def _histories(url: str, *words: str) -> tuple[list[dict[str, object]], str]:
    """One result an account, and what the process said."""
    await make_template(url)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.flows.harness.random_accounts",
            url,
            *words,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    finally:
        async with connect(url) as admin:
            await admin.execute("DROP DATABASE virtual WITH (FORCE)")
    return [json.loads(line) for line in out.splitlines()], err.decode()[-3000:]


async def test_any_history_of_any_type_with_events_ends_in_stripes_own_state(
    postgres_url: str,
) -> None:
    words = ["--seed", SEED, "--accounts", ACCOUNTS, "--rounds", ROUNDS]
    told, error = await _histories(postgres_url, *words)
    sys.stdout.write("".join(f"\n{json.dumps(one)}" for one in told))
    assert len(told) == int(ACCOUNTS), error
    assert [one for one in told if one["wrong"]] == []
    assert {one["rounds"] for one in told} == {int(ROUNDS)}


def test_what_histories_draw_from_is_everything() -> None:
    """A type or a place that is left out by a slip would be missed by nobody else."""
    assert len(lively_types()) > 70
    assert {"customer", "subscription", "invoice", "charge", "person"} <= set(lively_types())
    assert "subscription.pending_update.subscription_items" in places_of_others()
