"""What a person sees while a sync runs."""

from __future__ import annotations

import asyncio
import os
import pty
import re

import pytest
from tests.flows.harness.account import until

from pinstripe.cli.summary import Meter, showing
from pinstripe.config.config import Config
from pinstripe.service import open_service
from pinstripe.store.status import read_status
from pinstripe_simulator.account import Settings
from pinstripe_simulator.auth import Key
from pinstripe_simulator.server import Running, running

pytestmark = pytest.mark.migrated

SECRET = "rk_test_thisisarestrictedkey1234"


def config_of(sim: Running, database: str) -> Config:
    return Config(
        api_key=SECRET,
        stripe_url=sim.url,
        database_url=database,
        rate_limit="none",
        endpoint_rate_limit="none",
    )


async def test_a_run_is_shown_in_25_lines_with_rates_and_what_was_refused(database: str) -> None:
    moments = iter(range(1000))
    async with running(Settings(scale=300)) as sim:
        sim.account.doors.keys[SECRET] = Key(SECRET, denied=frozenset({"charge_read"}))
        config = config_of(sim, database)
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


@pytest.mark.parametrize(("denied", "rows"), [({"charge_read"}, 40), (set(), 6)])
async def test_nothing_of_the_progress_stays_on_a_terminal_after_ctrl_c(
    database: str, monkeypatch: pytest.MonkeyPatch, denied: set[str], rows: int
) -> None:
    """Neither where the last line is as wide as the terminal, nor where it has fewer rows than lines."""
    master, slave = pty.openpty()
    shown = bytearray()
    asyncio.get_running_loop().add_reader(master, lambda: shown.extend(os.read(master, 65536)))
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "LINES": str(rows)}.items():
        monkeypatch.setenv(name, value)
    async with running(Settings(scale=300)) as sim:
        sim.account.doors.keys[SECRET] = Key(SECRET, denied=frozenset(denied))
        config = config_of(sim, database)
        with os.fdopen(slave, "w") as terminal:
            async with open_service(config) as service:
                await service.backfill.run()
                monkeypatch.setattr("sys.stderr", terminal)
                async with showing(service):
                    await until(lambda: shown.count(b"done, ") > 1)
                    os.write(master, b"\x03")
                    await until(lambda: b"^C" in shown)
                terminal.write("The end\n")
                terminal.flush()
                await until(lambda: b"The end" in shown)
                monkeypatch.undo()
    asyncio.get_running_loop().remove_reader(master)
    os.close(master)
    assert [line for line in _screen(shown.decode(), rows) if line] == ["The end"]


def _screen(written: str, rows: int, columns: int = 80) -> list[str]:
    """What a terminal shows of it, with what it has scrolled away."""
    lines = [""] * rows
    row, column, top = 0, 0, 0
    for code, letter, sign in re.findall(r"\x1b\[([?0-9;]*)([A-Za-z])|([^\x1b])", written):
        if letter == "A":
            row = max(row - int(code or 1), top)
        elif letter == "K":
            lines[row] = ""
        elif sign == "\r":
            column = 0
        elif sign:
            if sign == "\n" or column == columns:
                row, column = row + 1, 0
            if row == top + rows:
                top += 1
                lines.append("")
            if sign != "\n":
                lines[row] = lines[row][:column].ljust(column) + sign + lines[row][column + 1 :]
                column += 1
    return lines
