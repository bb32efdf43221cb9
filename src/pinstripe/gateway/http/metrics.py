"""`/metrics` for Prometheus: the gateway's own counters, and the status of each sync.

    requests -> Meters (counters)  \
                                     registry -> text, kept for 2 s
    status board, row estimates    /

`app` and `middleware` count where requests come in, so that the proxy, waits and webhooks need not. A
scrape reads the status board, and queries the database every 15 s at most. Labels are ids of syncs, names
of our tables, and small closed sets: nothing that a caller sends can make a new one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pinstripe.catalog.tables import tables
from pinstripe.client.rate_limit import WorkClass
from pinstripe.errors import PinstripeError
from pinstripe.gateway.live.status_board import StatusBoard, SyncStatus
from pinstripe.gateway.syncs import Reads
from pinstripe.store.platforms.status import PlatformsStatus, read_platforms
from pinstripe.store.status import estimate_rows
from pinstripe.store.verifications import load_verified

MEDIA = "text/plain; version=0.0.4; charset=utf-8"

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

MIRRORED = ("yes", "no", "later")

_METHODS = frozenset(("GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS"))

_KEPT_S = 2.0

_ROWS_KEPT_S = 15.0

_ROWS_S = 3.0
"""The longest that row estimates may take."""

Rows = Mapping[str, Mapping[str, int]]
"""Schema -> table -> about how many rows."""


class Meters:
    """The gateway's own counters since the process began, in the `registry` of one gateway."""

    def __init__(self) -> None:
        # A `_created` sample for each counter would double the text.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=False)
        self.proxied = self._counter(
            "proxy_requests", "Requests through the proxy", "method", "outcome"
        )
        """`outcome`: "2xx" ... "5xx", or "broken" if no response began or it did not end."""
        self.mirrored = self._counter(
            "proxy_mirrored", "Answers by what became of their objects", "mirrored"
        )
        """By the value of `Pinstripe-Mirrored`."""
        self.proxy_s = Histogram(
            "pinstripe_proxy_seconds",
            "From a request's head to its answer's, Stripe's own time included",
            ["kind"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.proxying = self._gauge("proxy_requests_open", "Requests in the proxy now")
        self.waiting = self._gauge("waiters", "Calls that wait now")
        self.waits = self._counter("waits", "Waits by class of status", "status")
        self.webhooks = self._counter("webhooks", "Webhooks by class of status", "status")
        self.streams = 0
        self._gauge("streams", "Streams that are open now").set_function(lambda: self.streams)
        self.api = self._counter("api_requests", "Requests to the API and the pages", "status")
        for value in MIRRORED:
            self.mirrored.labels(value)
        for kind in ("read", "write"):
            self.proxy_s.labels(kind)

    def proxy_answered(self, method: str, status: int | None, mirrored: str | None) -> None:
        """Count one request of the proxy. `status` is None without a whole response."""
        outcome = status_class(status) if status is not None else "broken"
        self.proxied.labels(method if method in _METHODS else "other", outcome).inc()
        if mirrored in MIRRORED:
            self.mirrored.labels(mirrored).inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"pinstripe_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"pinstripe_{name}", text, registry=self.registry)


class Metrics(Collector):
    """The text of one gateway. Collects the status of each sync beside what `meters` count."""

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
        self._registry = meters.registry
        self._registry.register(self)
        self._clock = clock
        self._lock = asyncio.Lock()
        self._text = b""
        self._made_at = -float("inf")
        self._rows: Rows = {}
        self._verified: Mapping[str, tuple[float, int]] = {}
        self._platforms: PlatformsStatus | None = None
        self._rows_at = -float("inf")

    async def text(self) -> bytes:
        """The text of a scrape, at most `_KEPT_S` old."""
        async with self._lock:
            if self._clock() - self._made_at > _KEPT_S:
                syncs = await self._board.fresh(within_s=_KEPT_S)
                if self._clock() - self._rows_at > _ROWS_KEPT_S:
                    await self._estimate([live.schema for live in syncs.values()])
                self._text = generate_latest(self._registry)
                self._made_at = self._clock()
            return self._text

    def collect(self) -> Iterator[Metric]:
        up = _gauge_of("database_up", "Whether the database answered at the last look")
        up.add_metric([], not self._board.trouble)
        yield up
        syncs = self._board.syncs
        yield from _statuses(syncs)
        yield from _processes(syncs)
        age = _gauge_of("verified_age_seconds", "Since the last verification ended", "sync")
        drift = _gauge_of("verified_differences", "Differences that it left", "sync")
        for sync_id, live in syncs.items():
            if live.schema in self._verified:
                age.add_metric([sync_id], self._verified[live.schema][0])
                drift.add_metric([sync_id], self._verified[live.schema][1])
        yield from (age, drift)
        if self._platforms is not None:
            yield from _platforms(self._platforms)
        family = _gauge_of("rows", "Rows of a table, estimated", "sync", "table")
        for sync_id, live in syncs.items():
            for table, count in self._rows.get(live.schema, {}).items():
                if table in tables():
                    family.add_metric([sync_id, table], count)
        yield family

    async def _estimate(self, schemas: list[str]) -> None:
        """Keeps the last estimates if the database does not answer."""
        try:
            async with self._reads.connection(longest_s=_ROWS_S) as connection:
                self._rows = await estimate_rows(connection, schemas)
                self._verified = await load_verified(connection, schemas)
                self._platforms = await read_platforms(connection)
        except PinstripeError:
            return
        self._rows_at = self._clock()


def status_class(status: int) -> str:
    """All that a label may say of a status.

    >>> status_class(204)
    '2xx'
    """
    return f"{status // 100}xx"


_CLASSES = tuple(work.name.lower() for work in WorkClass if work is not WorkClass.EVENTS)
"""Of pending requests; events have none."""


def _statuses(syncs: Mapping[str, SyncStatus]) -> Iterator[Metric]:
    """What the database says of each sync."""
    lag = _gauge_of("lag_seconds", "How long ago the copy was surely true", "sync")
    ready = _gauge_of("sync_ready", "First copy complete, followed, nothing wrong", "sync")
    paused = _gauge_of("sync_paused", "Paused by its user", "sync")
    to_ask = _gauge_of("open_requests", "Requests to Stripe that events made necessary", "sync")
    by_class = _gauge_of(
        "open_requests_by_class",
        "The same by class of work, the most urgent first",
        "sync",
        "class",
    )
    owed = _gauge_of("owed_requests", "Requests to Stripe that met trouble and stay owed", "sync")
    held = _gauge_of("quarantined", "Rows and tables that Postgres refuses to hold", "sync")
    refused = _gauge_of("lists_refused", "Lists that Stripe refuses", "sync")
    partly = _gauge_of(
        "requests_refused", "Properties that Stripe does not expand, lists read by parent", "sync"
    )
    failed = _gauge_of("lists_failed", "Lists that met trouble and are tried again", "sync")
    restarts = _counter_of("process_restarts", "Restarts of the sync's process", "sync")
    ahead = _gauge_of("date_ahead_seconds", "Most that Date was ahead of created", "sync")
    behind = _gauge_of("date_behind_seconds", "Most that Date was behind created", "sync")
    doubted = _gauge_of("contradictions", "Snapshots in doubt, of the last 30 days", "sync")
    stale = _gauge_of("stale_reads", "Those of them that showed an older state", "sync")
    for sync_id, live in syncs.items():
        if live.lag_s is not None:
            lag.add_metric([sync_id], live.lag_s)
        ready.add_metric([sync_id], live.ready)
        paused.add_metric([sync_id], live.paused)
        to_ask.add_metric([sync_id], live.to_ask)
        for name in _CLASSES:
            by_class.add_metric([sync_id, name], live.to_ask_by_class.get(name, 0))
        owed.add_metric([sync_id], live.owed)
        held.add_metric([sync_id], live.quarantined)
        refused.add_metric([sync_id], live.refused)
        partly.add_metric([sync_id], live.partly_refused)
        failed.add_metric([sync_id], live.failed)
        restarts.add_metric([sync_id], live.restarts)
        ahead.add_metric([sync_id], live.clocks.date_ahead_s)
        behind.add_metric([sync_id], live.clocks.date_behind_s)
        doubted.add_metric([sync_id], live.clocks.contradictions)
        stale.add_metric([sync_id], live.clocks.stale)
    yield from (lag, ready, paused, to_ask, by_class, owed, held, refused, partly, failed, restarts)
    yield from (ahead, behind, doubted, stale)


def _processes(syncs: Mapping[str, SyncStatus]) -> Iterator[Metric]:
    """What the workers' heartbeats say."""
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
        heartbeat = live.process
        if heartbeat is None:
            continue
        for kind, count in sorted(heartbeat.requests.items()):
            asked.add_metric([sync_id, kind], count)
        for kind, count in sorted(heartbeat.rate_limited.items()):
            limited.add_metric([sync_id, kind], count)
        if heartbeat.account_rate is not None:
            rate.add_metric([sync_id], heartbeat.account_rate)
        queue.add_metric([sync_id], heartbeat.queue_rows)
        written.add_metric([sync_id], heartbeat.rows)
        events.add_metric([sync_id], heartbeat.events)
        polls.add_metric([sync_id], heartbeat.polls)
        memory.add_metric([sync_id], heartbeat.memory_bytes)
        cpu.add_metric([sync_id], heartbeat.cpu_s)
        if heartbeat.allowance is not None:
            used.add_metric([sync_id], heartbeat.allowance.used)
            allowed.add_metric([sync_id], heartbeat.allowance.allowed)
    yield from (asked, limited, rate, queue, written, events, polls, memory, cpu, used, allowed)


def _platforms(found: PlatformsStatus) -> Iterator[Metric]:
    """What the database says of each platform."""
    accounts = _gauge_of("platform_accounts", "Accounts by state", "platform", "state")
    oldest = _gauge_of("platform_oldest_look_seconds", "Since the oldest look", "platform")
    pace = _gauge_of("platform_looks_per_second", "Looks a second that are due", "platform")
    late = _gauge_of("platform_late_accounts", "Accounts whose look is late", "platform")
    for one in found.platforms:
        for state in ("active", "revoked", "troubled"):
            accounts.add_metric([one.id, state], getattr(one.accounts, state))
        if one.oldest_look_s is not None:
            oldest.add_metric([one.id], one.oldest_look_s)
        pace.add_metric([one.id], one.looks_per_s)
        late.add_metric([one.id], one.late)
    workers = _gauge_of("workers", "Live workers of platforms")
    workers.add_metric([], len(found.workers))
    tasks = _gauge_of("tasks", "Tasks of platforms that wait or run", "task")
    for name, count in sorted(found.tasks.items()):
        tasks.add_metric([name], count)
    yield from (accounts, oldest, pace, late, workers, tasks)


def _gauge_of(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pinstripe_{name}", text, labels=labels)


def _counter_of(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"pinstripe_{name}", text, labels=labels)
