"""`pinstripe wait` as a user runs it."""

from __future__ import annotations

import json

import pytest
from tests.flows.harness.command import pinstripe
from tests.flows.harness.gateway_account import serving
from tests.flows.harness.waiting import gateway, made_customer

from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import running

pytestmark = pytest.mark.migrated


async def test_the_command_waits_and_says_what_came_of_it(database: str) -> None:
    async with (
        running(Settings(scale=300, future_fields=False)) as sim,
        gateway(sim, database) as here,
        serving(here.app) as url,
    ):
        key, _ = await made_customer(here.stripe, "Ada")
        done = await pinstripe("wait", "--object", key, "--url", url, "--json")
        assert (done.code, json.loads(done.out)["ok"]) == (0, True), done.text
        assert await here.account.row("customer", key) is not None

        late = await pinstripe("wait", "--timeout", "0.2", "--url", url)
        assert late.code == 1
        assert "No process syncs" in late.err
        assert "a poll of Stripe's events" in late.err

        wrong = await pinstripe("wait", "--object", "gold", "--url", url)
        assert wrong.code == 2
        assert "type" in wrong.err
    away = await pinstripe("wait", "--url", url)
    assert away.code == 3
    assert "does not respond" in away.err
