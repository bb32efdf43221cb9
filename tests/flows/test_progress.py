"""What a person sees while a sync runs."""

from __future__ import annotations

import pytest

from pinstripe.cli.summary import Meter
from pinstripe.config.config import Config
from pinstripe.service import open_service
from pinstripe.store.status import read_status
from pinstripe_simulator.account import Settings
from pinstripe_simulator.auth import Key
from pinstripe_simulator.server import running

pytestmark = pytest.mark.migrated

SECRET = "rk_test_thisisarestrictedkey1234"


async def test_a_run_is_shown_in_25_lines_with_rates_and_what_was_refused(database: str) -> None:
    moments = iter(range(1000))
    async with running(Settings(scale=300)) as sim:
        sim.account.doors.keys[SECRET] = Key(SECRET, denied=frozenset({"charge_read"}))
        config = Config(
            api_key=SECRET,
            stripe_url=sim.url,
            database_url=database,
            rate_limit="none",
            endpoint_rate_limit="none",
        )
        async with open_service(config) as service:
            meter = Meter(service, clock=lambda: float(next(moments)))
            async with service.pool.acquire() as connection:
                (began,) = await read_status(connection)
            before = meter.lines()
            await service.backfill.run()
            after = meter.lines()
            later = meter.line()
    states = {table.table: table.state for table in began.tables}
    assert (states["customer"], states["line_item"]) == ("running", "found")
    assert before[0].startswith("loading checkpoints, 0 rows")
    assert after[0].startswith("done, ")
    assert " rows (" in after[0]
    assert len(after) <= 25
    assert any(line.split()[0] == "charge" and "charge_read" in line for line in after)
    assert any("more complete" in line for line in after)
    assert " requests (" in later
    assert max(len(line) for line in after if "not read" not in line) <= 80
