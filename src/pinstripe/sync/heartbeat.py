"""Writes this worker's heartbeat to `pinstripe.process` every two seconds.

The gateway, the console and /metrics read it. It also reports the backfill in numbers: each table as the
sum over its lists, and the estimated time left. If Postgres is unreachable the heartbeat is skipped.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import structlog

from pinstripe.client.rate_limit import RateLimiter
from pinstripe.errors import PinstripeError
from pinstripe.mirror import QUEUE_ROWS
from pinstripe.source.source import Source
from pinstripe.store.leases import TableProgress, WorkerHeartbeat, save_heartbeat
from pinstripe.sync.backfill.backfill import Backfill
from pinstripe.sync.backfill.list_stream import ListReader
from pinstripe.sync.follower import Follower
from pinstripe.sync.read_quota import kind_of

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

EVERY_S = 2.0

_PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    rows: int
    requests: int
    by_table: Mapping[str, int]


class HeartbeatWriter:
    """Writes the heartbeat of one process. Rates are means over the time since the last one."""

    def __init__(
        self,
        source: Source,
        budget: RateLimiter,
        backfill: Backfill,
        follower: Follower,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._budget = budget
        self._backfill = backfill
        self._follower = follower
        self._clock = clock
        self._started_at = datetime.now(UTC)
        self._last = self._sample([])

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await self.write()
            await asyncio.sleep(EVERY_S)

    async def write(self) -> None:
        try:
            async with self._source.pool.acquire() as connection:
                await save_heartbeat(connection, self._source.mirror.schema, self.state())
        except PinstripeError as error:
            _log.debug("telling.unheard", error=error.message)

    def state(self) -> WorkerHeartbeat:
        source, seen = self._source, self._follower.poller.stats
        quota = self._follower.read_quota
        phase = self._backfill.phase
        tables = tally(self._backfill.works) if phase != "done" else []
        last, now = self._last, self._sample(tables)
        self._last = now
        span_s = max(now.at - last.at, 0.001)
        asked_per_s = (now.requests - last.requests) / span_s
        left: float | None = None
        if phase == "lists" and asked_per_s > 0:
            left = left_s(self._backfill.works, self._budget, asked_per_s)
        return WorkerHeartbeat(
            version=version("pinstripe"),
            pid=os.getpid(),
            host=socket.gethostname(),
            started_at=self._started_at,
            phase=phase,
            rows=now.rows,
            rows_per_s=round((now.rows - last.rows) / span_s, 1),
            requests=_by_kind(source.stripe.requests),
            requests_per_s=round(asked_per_s, 1),
            rate_limited=_by_kind(source.stripe.rate_limited),
            account_rate=self._budget.rate(),
            queue_rows=source.mirror.queued,
            queue_most=QUEUE_ROWS,
            contested=source.mirror.conflicts.count,
            events=seen.events,
            polls=seen.polls,
            late_events=seen.late,
            memory_bytes=_memory_bytes(),
            cpu_s=round(time.process_time(), 2),
            left_s=None if left is None else round(left, 1),
            tables=[_progress(t, last, span_s) for t in tables],
            allowance=quota.status() if quota is not None and not quota.is_unlimited() else None,
            trouble=source.mirror.trouble or self._follower.trouble,
            remedy=self._follower.remedy,
        )

    def _sample(self, tables: list[TableTally]) -> _Sample:
        return _Sample(
            self._clock(),
            self._source.mirror.written.total(),
            self._source.stripe.requests.total(),
            {t.table: t.rows for t in tables},
        )


def _progress(line: TableTally, last: _Sample, span_s: float) -> TableProgress:
    state = "running" if line.running else "done"
    if line.refused or line.failed:
        state = "failed" if line.failed else "refused"
    gained = line.rows - last.by_table.get(line.table, line.rows)
    return TableProgress(
        line.table,
        line.rows,
        round(max(gained, 0) / span_s, 1),
        round(line.remaining, 1) if line.running else 0.0,
        state,
    )


def _by_kind(requests: Mapping[str, int]) -> dict[str, int]:
    """Return requests by method and kind; those by endpoint are too many to store.

    >>> _by_kind({"GET /v1/events": 2, "GET /v1/charges/{charge}": 1, "POST /v1/refunds": 1})
    {'GET events': 2, 'GET retrieve': 1, 'POST': 1}
    """
    found: Counter[str] = Counter()
    for endpoint, count in requests.items():
        method = endpoint.partition(" ")[0]
        kind = kind_of(endpoint)
        found[method if kind is None else f"{method} {kind}"] += count
    return dict(found)


def _memory_bytes() -> int:
    """Return the resident memory of the process; its peak where the system does not report the present."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@dataclass(slots=True)
class TableTally:
    """One table. `remaining`: estimated requests left."""

    table: str
    rows: int = 0
    remaining: float = 0.0
    running: bool = False
    refused: str = ""
    remedy: str = ""
    failed: bool = False


def tally(works: Iterable[ListReader]) -> list[TableTally]:
    """Return the tables in the order of their first list."""
    found: dict[str, TableTally] = {}
    for work in works:
        line = found.setdefault(work.table, TableTally(work.table))
        line.rows += work.rows
        if not work.finished:
            line.running = True
            line.remaining += work.remaining()
        if work.state == "refused":
            line.refused, line.remedy = work.reason, work.remedy
        line.failed = line.failed or work.state == "failed"
    return list(found.values())


def left_s(works: Sequence[ListReader], budget: RateLimiter, requests_per_s: float) -> float:
    """Return the seconds left at the present rate, no list faster than its endpoint allows."""
    unfinished = [work for work in works if not work.finished]
    longest = max(
        (w.remaining() / (budget.rate(w.endpoint.name) or requests_per_s) for w in unfinished),
        default=0.0,
    )
    return max(sum(w.remaining() for w in unfinished) / requests_per_s, longest)
