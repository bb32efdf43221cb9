"""Progress of a sync on the terminal: lists, rows, rates, refusals and time left.

`Meter` samples a `Backfill` and formats plain lines. `showing` keeps them up to date on a terminal, or
prints one now and then without a terminal. Everything goes to stderr; stdout is for results.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pinstripe.concurrency import end
from pinstripe.errors import redact
from pinstripe.service import Service
from pinstripe.sync.heartbeat import TableTally, left_s, tally

_TERMINAL_S = 0.25
_PLAIN_S = 5.0
_WINDOW_S = 5.0
"""Rates are means over this long: shorter ones jump, longer ones lag."""
_RUNNING_LINES = 14
_DONE_LINES = 5
_REFUSED_LINES = 4
_WIDTH = 100

_PHASES = {
    "starting": "loading checkpoints",
    "lists": "reading lists",
    "events": "catching up on events",
    "references": "fetching referenced objects",
    "indexes": "building indexes",
    "done": "done",
}


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    rows: dict[str, int]
    total: int
    requests: int


class Meter:
    """Samples of one service; `lines` for a terminal, `line` for a log."""

    def __init__(self, service: Service, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._service = service
        self._clock = clock
        self._samples: deque[_Sample] = deque()

    def line(self) -> str:
        """All in one line."""
        return self._overall(self._tables())

    def lines(self) -> list[str]:
        """At most 25 lines."""
        tables = self._tables()
        found = [self._overall(tables)]
        mirror = self._service.source.mirror
        if mirror.trouble:
            found.append(f"  Postgres: {mirror.trouble} Retrying.")
        running = sorted((t for t in tables if t.running), key=_by_size)
        done = sorted((t for t in tables if not t.running and not t.refused), key=_by_size)
        found += [self._table(t) for t in running[:_RUNNING_LINES]]
        found += _rest("more pending", running[_RUNNING_LINES:])
        found += [self._table(t) for t in done[:_DONE_LINES] if t.rows]
        found += _rest("more complete", done[_DONE_LINES:])
        found += _refused([t for t in tables if t.refused])
        return found

    def _tables(self) -> list[TableTally]:
        found = tally(self._service.backfill.works)
        now = self._clock()
        sample = _Sample(
            now,
            {t.table: t.rows for t in found},
            self._service.source.mirror.written.total(),
            self._service.stripe.requests.total(),
        )
        self._samples.append(sample)
        while now - self._samples[0].at > _WINDOW_S and len(self._samples) > 1:
            self._samples.popleft()
        return found

    def _overall(self, tables: Sequence[TableTally]) -> str:
        first, last = self._samples[0], self._samples[-1]
        span_s = last.at - first.at
        backfill, stripe = self._service.backfill, self._service.stripe
        parts = [_PHASES.get(backfill.phase, backfill.phase), f"{last.total:,} rows"]
        requests_rate = 0.0
        if span_s > 0:
            requests_rate = (last.requests - first.requests) / span_s
            parts.append(f"{(last.total - first.total) / span_s:,.0f} rows/s")
        parts.append(f"{last.requests:,} requests")
        if span_s > 0:
            parts.append(f"{requests_rate:,.0f} requests/s")
        if limited := stripe.rate_limited.total():
            parts.append(f"{limited:,} x 429")
        if contested := self._service.source.mirror.conflicts:
            parts.append(f"{contested:,} conflicts")
        if backfill.phase == "lists" and span_s > 1 and requests_rate > 0:
            left = left_s(backfill.works, self._service.budget, requests_rate)
            parts.append(f"about {_duration(left)} left")
        return ", ".join(parts)

    def _table(self, line: TableTally) -> str:
        first, last = self._samples[0], self._samples[-1]
        span_s = last.at - first.at
        gained = line.rows - first.rows.get(line.table, 0)
        rate = f"{gained / span_s:,.0f} rows/s" if line.running and span_s > 0 else ""
        state = "done"
        if line.failed:
            state = "failed, see summary"
        elif line.running and line.remaining > 0:
            state = f"about {line.remaining:,.0f} requests left"
        elif line.running:
            state = "pending"
        return f"  {line.table:<40} {line.rows:>12,} rows  {rate:>14}  {state}"


def _by_size(line: TableTally) -> tuple[float, int, str]:
    return (-line.remaining, -line.rows, line.table)


def _rest(what: str, lines: Sequence[TableTally]) -> list[str]:
    if not lines:
        return []
    rows = sum(line.rows for line in lines)
    return [f"  {f'{len(lines)} {what}':<40} {rows:>12,} rows"]


def _refused(lines: Sequence[TableTally]) -> list[str]:
    found = [f"  {line.table:<40} not read: {line.refused}" for line in lines[:_REFUSED_LINES]]
    if len(lines) > _REFUSED_LINES:
        found.append(f"  {len(lines) - _REFUSED_LINES} more not read; see summary")
    return found


def _duration(seconds: float) -> str:
    """In words.

    >>> _duration(42), _duration(95), _duration(7300)
    ('42 s', '1 min 35 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@asynccontextmanager
async def showing(service: Service) -> AsyncIterator[None]:
    """Shows the progress of `service` for as long as the block lasts."""
    meter = Meter(service)
    keep = _on_terminal(meter) if sys.stderr.isatty() else _in_log(meter)
    task = asyncio.create_task(keep, name="progress")
    try:
        yield
    finally:
        await end(task)


async def _in_log(meter: Meter) -> None:
    while True:
        await asyncio.sleep(_PLAIN_S)
        sys.stderr.write(redact(meter.line()) + "\n")
        sys.stderr.flush()


async def _on_terminal(meter: Meter) -> None:
    # Only here: it costs time and memory that a process without a terminal need not pay.
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def text() -> Text:
        # One plain text, not a table: laying a table out four times a second costs 3 % of a core.
        return Text(redact("\n".join(meter.lines())), no_wrap=True, overflow="ellipsis")

    with Live(text(), console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        while True:
            await asyncio.sleep(_TERMINAL_S)
            live.update(text(), refresh=True)
