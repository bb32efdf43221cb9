"""Every kind of hand in the database while the account changes; each heals, and nothing is lost."""

from __future__ import annotations

import asyncio
import sys
import time

import httpx

from pinstripe.errors import PinstripeError
from pinstripe.store.pool import connect
from tests.flows.test_quarantine import ROWS, TABLES
from tests.flows.test_soak import Soak, caught_up, soaking, told_of, verified

HURT_S = 3.0
HEALED_S = 60.0

HANDS = {
    # (That one allows a single bad name; here each hand leaves one.)
    **{how: text for how, text in ROWS.items() if how != "a constraint that is deferred"},
    **TABLES,
    "a unique index": (
        "CREATE UNIQUE INDEX one_name ON stripe.customer (name) WHERE name = 'bad'",
        "DROP INDEX stripe.one_name",
    ),
    "an emptied table": ("TRUNCATE stripe.customer", "SELECT 1"),
    "rows deleted": ("DELETE FROM stripe.customer", "SELECT 1"),
    "revoked rights": (
        "REVOKE INSERT, UPDATE ON stripe.customer FROM CURRENT_USER",
        "GRANT INSERT, UPDATE ON stripe.customer TO CURRENT_USER",
    ),
    "a CHECK that nothing passes": (
        "ALTER TABLE stripe.customer ADD CONSTRAINT none CHECK (id = '') NOT VALID",
        "ALTER TABLE stripe.customer DROP CONSTRAINT none",
    ),
    "row-level security": (
        "ALTER TABLE stripe.customer ENABLE ROW LEVEL SECURITY;"
        "ALTER TABLE stripe.customer FORCE ROW LEVEL SECURITY",
        "ALTER TABLE stripe.customer NO FORCE ROW LEVEL SECURITY;"
        "ALTER TABLE stripe.customer DISABLE ROW LEVEL SECURITY",
    ),
}
# Rows of the hands before are in their way.
del HANDS["a foreign key"], HANDS["an index over an expression that fails"]


async def _bad_customer(soak: Soak) -> None:
    async with httpx.AsyncClient(base_url=soak.simulator.url, trust_env=False) as http:
        answer = await http.post(
            "/v1/customers",
            data={"name": "bad"},
            headers={"Authorization": f"Bearer {soak.simulator.key}"},
        )
        assert answer.status_code == 200, answer.text


async def _run(soak: Soak, statement: str) -> None:
    async with connect(soak.server.url) as connection:
        await connection.execute("SET search_path = public, pg_catalog; SET lock_timeout = '20s'")
        await connection.execute(statement)


async def _held(soak: Soak) -> list[str]:
    async with connect(soak.server.url) as connection:
        rows = await connection.fetch('SELECT "table" || id || reason FROM pinstripe.quarantine')
    return [row[0] for row in rows]


async def _customers(soak: Soak) -> int:
    async with connect(soak.server.url) as connection:
        return int(
            await connection.fetchval(
                "SELECT count(*) FROM stripe.customer WHERE deleted IS NOT TRUE"
            )
        )


async def _laid_on(soak: Soak, hand: str) -> float:
    """Do it while the account changes, undo it, and return how many seconds it took to heal."""
    hurt, heal = HANDS[hand]
    before = await _customers(soak)
    await _run(soak, "DROP FUNCTION IF EXISTS refuse CASCADE")  # Of the hand before.
    await _run(soak, hurt)
    await _bad_customer(soak)
    await asyncio.sleep(HURT_S)
    changed = 'SELECT count(*) FROM stripe."event"'
    async with connect(soak.server.url) as connection:
        events = await connection.fetchval(changed)
        for _ in range(100):
            await asyncio.sleep(0.2)
            if await connection.fetchval(changed) > events:
                break
        else:
            raise AssertionError(f"{hand}: everything stands still")
    await _run(soak, heal)
    began = time.monotonic()
    held: object = ""
    while time.monotonic() < began + HEALED_S:
        try:
            held = await _held(soak) or await _customers(soak) <= before
        except PinstripeError as error:
            held = error.message  # The table is not back yet.
        if not held:
            return time.monotonic() - began
        await asyncio.sleep(0.2)
    raise AssertionError(f"{hand}: not healed within {HEALED_S:.0f} s: {held}")


async def test_what_hands_do_heals_within_a_minute_and_loses_nothing() -> None:
    async with soaking() as soak:
        await caught_up(soak)
        await soak.simulator.control("traffic", per_second=10)
        for hand in HANDS:
            took = await _laid_on(soak, hand)
            sys.stdout.write(f"\n{hand}: healed after {took:.1f} s")
        await soak.simulator.control("traffic", per_second=0)
        await caught_up(soak)
        left, output = await verified(soak, "--tables", ",".join(told_of()))
        assert left == 0, output
        assert soak.sync.starts == 1
