"""Views of payments, fees and payouts against sums of Stripe's objects that know nothing of them."""

from __future__ import annotations

import time
from random import Random

import pytest
from tests.flows.harness.account import copying
from tests.flows.harness.lives import EMPTY
from tests.flows.harness.money import Money, Reckoning, columns_of, names
from tests.flows.test_payouts import lines_at_stripe

from pinstripe.catalog.tables import PAYOUT_LINES, tables
from pinstripe.store.pool import connect
from pinstripe_simulator.server import running

pytestmark = pytest.mark.migrated

TYPES = ("charge", "refund", "dispute", "invoice", "credit_note", "payout", "balance_transaction")


@pytest.mark.parametrize(
    ("seed", "zone"), [(1, "UTC"), (2, "Pacific/Auckland"), (3, "America/Los_Angeles")]
)
async def test_what_was_paid_and_paid_out_adds_up(database: str, seed: int, zone: str) -> None:
    async with running(EMPTY) as sim:
        Money(sim, Random(seed)).live(until=time.time(), days=200)
        objects = {t: list(sim.account.world.truth(t)) for t in TYPES}
        reckoning = Reckoning(objects, lines_at_stripe(sim), zone)
        chosen = {name: tables()[name] for name in (*TYPES, PAYOUT_LINES)}
        async with copying(database, sim, chosen=chosen) as backfill:
            await backfill.run()
    wrong: dict[str, object] = {}
    async with connect(database) as pg:
        await pg.execute("UPDATE metrics.settings SET time_zone = $1", zone)
        for view in names():
            key, numbers = columns_of(view)
            rows = await pg.fetch(f"SELECT * FROM metrics.{view}")
            found = {tuple(r[k] for k in key): tuple(r[n] for n in numbers) for r in rows}
            wanted = getattr(reckoning, view)()
            assert len(found) == len(rows)
            assert wanted, view
            differ = {
                k: (found.get(k), wanted.get(k))
                for k in found.keys() | wanted.keys()
                if found.get(k) != wanted.get(k)
            }
            if differ:
                wrong[view] = differ
    assert wrong == {}
