"""`/metrics` for Prometheus: the gateway's own counters, and how each sync stands.

A scrape reads the board and at most two queries, and is kept for some seconds: whoever asks more often
gets the same text. Labels are ids of syncs, names of our tables, and small closed sets.

What the gateway counts of its own doings; `metrics` shows it to Prometheus.

Counted where requests come in, in `app`, so that the proxy, waits and webhooks need not know. Labels
come from small closed sets: nothing that a caller sends can make a new one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pinstripe.catalog.tables import tables
from pinstripe.errors import PinstripeError
from pinstripe.gateway.live.reads import Reads
from pinstripe.gateway.live.status_board import Live, StatusBoard
from pinstripe.store.status import estimate_rows

MEDIA = "text/plain; version=0.0.4; charset=utf-8"

_KEPT_S = 2.0

_ROWS_KEPT_S = 15.0

_ROWS_S = 3.0

Rows = Mapping[str, Mapping[str, int]]
"""Schema -> table -> about how many rows."""


class Metrics:
    """The text of one gateway, made anew when it is asked for and old."""

    def __init__(
        self,
        board: StatusBoard,
        reads: Reads,
        meters: Meters,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board = board
        self._reads = reads
        self._meters = meters
        self._clock = clock
        self._lock = asyncio.Lock()
        self._text = b""
        self._made_at = -float("inf")
        self._rows: Rows = {}
        self._rows_at = -float("inf")

    async def text(self) -> bytes:
        async with self._lock:
            if self._clock() - self._made_at > _KEPT_S:
                self._text = await self._make()
                self._made_at = self._clock()
            return self._text

    async def _make(self) -> bytes:
        board, meters = self._board, self._meters
        syncs = await board.fresh(within_s=_KEPT_S)
        if self._clock() - self._rows_at > _ROWS_KEPT_S:
            await self._count([live.schema for live in syncs.values()])
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Shown(lambda: _all(meters, syncs, self._rows, not board.trouble)))
        return generate_latest(registry)

    async def _count(self, schemas: list[str]) -> None:
        """Estimates; what is known stays where the database does not answer."""
        try:
            async with self._reads.connection(longest_s=_ROWS_S) as connection:
                self._rows = await estimate_rows(connection, schemas)
        except PinstripeError:
            return
        self._rows_at = self._clock()


class _Shown(Collector):
    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        return self._collect()


def _all(meters: Meters, syncs: Mapping[str, Live], rows: Rows, up: bool) -> Iterator[Metric]:
    yield _gauge("database_up", "Whether the database answered at the last look", float(up))
    yield from _own(meters)
    yield from _standing(syncs)
    yield from _processes(syncs)
    family = _gauge_of("rows", "Rows of a table, estimated", "sync", "table")
    for sync_id, live in syncs.items():
        for table, count in rows.get(live.schema, {}).items():
            if table in tables():
                family.add_metric([sync_id, table], count)
    yield family


def _own(meters: Meters) -> Iterator[Metric]:
    """What the gateway did."""
    family = _counter_of("proxy_requests", "Requests through the proxy", "method", "outcome")
    for labels, count in sorted(meters.proxied.items()):
        family.add_metric(list(labels), count)
    yield family
    mirrored = _counter_of("proxy_mirrored", "Answers by what became of their objects", "mirrored")
    for label in ("yes", "no", "later"):
        mirrored.add_metric([label], meters.mirrored[label])
    yield mirrored
    taken = HistogramMetricFamily(
        "pinstripe_proxy_seconds",
        "From a request's head to its answer's, Stripe's own time included",
        labels=["kind"],
    )
    for kind, histogram in meters.proxy_s.items():
        taken.add_metric([kind], _buckets(histogram), histogram.sum_s)
    yield taken
    yield _gauge("proxy_requests_open", "Requests in the proxy now", meters.proxying)
    yield _gauge("waiters", "Calls that wait now", meters.waiting)
    waits = _counter_of("waits", "Waits by class of status", "status")
    for label, count in sorted(meters.waits.items()):
        waits.add_metric([label], count)
    yield waits
    webhooks = _counter_of("webhooks", "Webhooks by class of status", "status")
    for label, count in sorted(meters.webhooks.items()):
        webhooks.add_metric([label], count)
    yield webhooks
    yield _gauge("streams", "Streams that are open now", meters.streams)
    api = _counter_of("api_requests", "Requests to the API and the pages", "status")
    for label, count in sorted(meters.api.items()):
        api.add_metric([label], count)
    yield api


def _standing(syncs: Mapping[str, Live]) -> Iterator[Metric]:
    """How each sync stands, of what the database says."""
    lag = _gauge_of("lag_seconds", "How long ago the copy was surely true", "sync")
    ready = _gauge_of("sync_ready", "First copy complete, followed, nothing wrong", "sync")
    paused = _gauge_of("sync_paused", "Paused by its user", "sync")
    to_ask = _gauge_of("open_requests", "Requests to Stripe that events made necessary", "sync")
    owed = _gauge_of("owed_requests", "Requests to Stripe that met trouble and stay owed", "sync")
    held = _gauge_of("quarantined", "Rows and tables that Postgres refuses to hold", "sync")
    refused = _gauge_of("lists_refused", "Lists that Stripe refuses", "sync")
    failed = _gauge_of("lists_failed", "Lists that met trouble and are tried again", "sync")
    restarts = _counter_of("process_restarts", "Restarts of the sync's process", "sync")
    for sync_id, live in syncs.items():
        if live.lag_s is not None:
            lag.add_metric([sync_id], live.lag_s)
        ready.add_metric([sync_id], live.ready)
        paused.add_metric([sync_id], live.paused)
        to_ask.add_metric([sync_id], live.to_ask)
        owed.add_metric([sync_id], live.owed)
        held.add_metric([sync_id], live.quarantined)
        refused.add_metric([sync_id], live.refused)
        failed.add_metric([sync_id], live.failed)
        restarts.add_metric([sync_id], live.restarts)
    yield from (lag, ready, paused, to_ask, owed, held, refused, failed, restarts)


def _processes(syncs: Mapping[str, Live]) -> Iterator[Metric]:
    """What the processes say of themselves."""
    asked = _counter_of("stripe_requests", "Requests to Stripe", "sync", "kind")
    limited = _counter_of("stripe_rate_limited", "Answers of 429", "sync", "kind")
    rate = _gauge_of("budget_requests_per_second", "Requests a second allowed now", "sync")
    queue = _gauge_of("queue_rows", "Rows that wait for Postgres", "sync")
    written = _counter_of("rows_written", "Rows written", "sync")
    events = _counter_of("events", "Events applied", "sync")
    polls = _counter_of("polls", "Looks at the event log", "sync")
    memory = _gauge_of("process_memory_bytes", "Resident memory of the sync's process", "sync")
    cpu = _counter_of("process_cpu_seconds", "CPU of the sync's process", "sync")
    used = _gauge_of("read_allowance_used", "GETs of ours in the last 30 days", "sync")
    allowed = _gauge_of("read_allowance", "GETs that Stripe allows in 30 days", "sync")
    for sync_id, live in syncs.items():
        told = live.process
        if told is None:
            continue
        for kind, count in sorted(told.requests.items()):
            asked.add_metric([sync_id, kind], count)
        for kind, count in sorted(told.rate_limited.items()):
            limited.add_metric([sync_id, kind], count)
        if told.account_rate is not None:
            rate.add_metric([sync_id], told.account_rate)
        queue.add_metric([sync_id], told.queue_rows)
        written.add_metric([sync_id], told.rows)
        events.add_metric([sync_id], told.events)
        polls.add_metric([sync_id], told.polls)
        memory.add_metric([sync_id], told.memory_bytes)
        cpu.add_metric([sync_id], told.cpu_s)
        if told.allowance is not None:
            used.add_metric([sync_id], told.allowance.used)
            allowed.add_metric([sync_id], told.allowance.allowed)
    yield from (asked, limited, rate, queue, written, events, polls, memory, cpu, used, allowed)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulated, as Prometheus wants them."""
    found, total = [], 0
    for bound, count in zip([*map(str, BUCKETS_S), "+Inf"], histogram.counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pinstripe_{name}", text, value=value)


def _gauge_of(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pinstripe_{name}", text, labels=labels)


def _counter_of(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"pinstripe_{name}", text, labels=labels)


BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

MIRRORED = ("yes", "no", "later")

_METHODS = frozenset(("GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS"))


@dataclass(slots=True)
class Histogram:
    """Counts by bucket, not cumulated; the last is what took longer than all of them."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum_s: float = 0.0

    def observe(self, seconds: float) -> None:
        self.sum_s += seconds
        for place, bound in enumerate(BUCKETS_S):
            if seconds <= bound:
                self.counts[place] += 1
                return
        self.counts[-1] += 1


@dataclass(slots=True)
class Meters:
    """Since the process began."""

    proxied: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By method and outcome: "2xx" ... "5xx", or "broken" where no answer began or none ended."""
    mirrored: Counter[str] = field(default_factory=Counter)
    """What `Pinstripe-Mirrored` said: yes, no, later."""
    proxy_s: dict[str, Histogram] = field(
        default_factory=lambda: {"read": Histogram(), "write": Histogram()}
    )
    """From the request's head to the answer's, Stripe's own time included."""
    proxying: int = 0
    waiting: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    """By class of status."""
    webhooks: Counter[str] = field(default_factory=Counter)
    streams: int = 0
    api: Counter[str] = field(default_factory=Counter)

    def proxy_answered(self, method: str, status: int | None, mirrored: str | None) -> None:
        """One request of the proxy is over. `status` is None if nothing was answered."""
        outcome = status_class(status) if status is not None else "broken"
        self.proxied[method if method in _METHODS else "other", outcome] += 1
        if mirrored in MIRRORED:
            self.mirrored[mirrored] += 1


def status_class(status: int) -> str:
    """All that a label may say of a status.

    >>> status_class(204)
    '2xx'
    """
    return f"{status // 100}xx"
