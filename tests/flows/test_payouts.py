"""Payouts that tie out: each automatic one equals the sum of its lines, to the cent, in every currency."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from tests.flows.harness.account import copy, open_copy, quiet

from pinstripe.store.pool import connect
from pinstripe_simulator.account import Settings
from pinstripe_simulator.behaviours import charges, cycle, money_out
from pinstripe_simulator.events import STRIPE_ITSELF
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.lists import _paid_out
from pinstripe_simulator.server import Running, running
from pinstripe_simulator.table import StripeObject

pytestmark = pytest.mark.migrated

_DAY_S = 86_400


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=3_000, future_fields=False)) as simulator:
        yield simulator


def ledger_of(sim: Running) -> Ledger:
    return Ledger(sim.account.world, sim.account.events, STRIPE_ITSELF)


def lines_at_stripe(sim: Running) -> set[tuple[str, str]]:
    """(payout, balance transaction) of every automatic payout, as the list at Stripe says it."""
    objects, entries = sim.account.world.objects, sim.account.world.tables["balance_transaction"]
    return {
        (str(payout["id"]), entries.id_at(position))
        for payout in sim.account.world.truth("payout")
        if payout["automatic"]
        for position in _paid_out(objects, entries, str(payout["id"]))
    }


async def links_here(url: str) -> set[tuple[str, str]]:
    async with connect(url) as pg:
        rows = await pg.fetch(
            "SELECT payout_id, balance_transaction_id FROM stripe.payout_balance_transaction"
        )
    return {(row[0], row[1]) for row in rows}


async def statements(url: str) -> dict[str, dict[str, object]]:
    async with connect(url) as pg:
        rows = await pg.fetch("SELECT * FROM metrics.payout_statement")
    return {row["payout_id"]: dict(row) for row in rows}


async def test_a_backfill_links_every_line_of_every_automatic_payout(
    sim: Running, database: str
) -> None:
    assert len(lines_at_stripe(sim)) > 100
    result = await copy(database, sim)
    assert result.complete
    assert await links_here(database) == lines_at_stripe(sim)


def sell(ledger: Ledger, currency: str, amount: int) -> StripeObject:
    """A charge with its fee, booked."""
    values: StripeObject = {"amount": amount, "currency": currency, "status": "succeeded"}
    values |= {"paid": True, "captured": True, "amount_captured": amount, "amount_refunded": 0}
    made = ledger.make("charge", values, event="")
    made = charges._booked(ledger, made, "charge", amount)
    ledger.tell("succeeded", made)
    return made


async def test_events_bring_the_lines_of_new_payouts_in_every_currency_refunds_and_failures_included(
    sim: Running, database: str
) -> None:
    start = time.time()
    async with open_copy(sim, database) as here:
        live, refetches = here.live(start)
        ledger = ledger_of(sim)
        currencies = ("usd", "jpy", "kwd")
        for currency in currencies:
            first = sell(ledger, currency, 10_001)
            sell(ledger, currency, 20_003)
            charges.refund(ledger, first, 3_333, metadata={})
            money_out.open_dispute(ledger, sell(ledger, currency, 5_555))
            sell(ledger, currency, 7_007)
        sim.control.clock(offset_s=3 * _DAY_S)
        made = {currency: money_out.pay_out(ledger, currency) for currency in currencies}
        for payout in made.values():
            money_out.reconcile(ledger, payout)
        failed = cycle.payout_arrives(ledger, made["jpy"])
        money_out.payout_fails(ledger, failed)
        by_hand = sim.account.world.get("payout", str(made["usd"]["id"]))
        assert by_hand is not None
        sim.control.mutator.deeds.post("/v1/payouts", {"amount": 5, "currency": "usd"})
        tasks = [asyncio.create_task(live.run()), asyncio.create_task(refetches.run())]
        try:
            await live.read_lookback(start - 3600)
            await quiet(here, refetches)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    wanted = {
        link for link in lines_at_stripe(sim) if link[0] in {str(p["id"]) for p in made.values()}
    }
    assert len(wanted) > 3 * 6
    assert await links_here(database) == wanted
    found = await statements(database)
    for currency, payout in made.items():
        mine = found[str(payout["id"])]
        assert (mine["currency"], mine["amount"]) == (currency, payout["amount"])
        assert (mine["lines_total"], mine["difference"]) == (payout["amount"], 0)
        assert mine["state"] == ("failed" if currency == "jpy" else "ties out")


async def test_no_list_of_a_manual_payout_is_requested(sim: Running, database: str) -> None:
    await copy(database, sim)
    manual = {str(p["id"]) for p in sim.account.world.truth("payout") if not p["automatic"]}
    assert manual
    found = await statements(database)
    assert {i for i, s in found.items() if s["state"] == "manual"} == manual
    assert all(s["difference"] is None for s in found.values() if s["state"] == "manual")
    assert all(s["difference"] == 0 for s in found.values() if s["state"] != "manual")
