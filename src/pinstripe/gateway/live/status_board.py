"""Caches the status of all syncs for the API, the console and /metrics, with the lag of the last hour.

    stored syncs + summaries + heartbeats -> SyncStatus, by id -> watchers

One task updates it: every second while it is watched, every ten seconds otherwise, however many watch.
Its content is at most that old; `update` refreshes it now, and concurrent calls share one update.
`not_ready` decides why a copy is not ready to be read. It is pure.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

import msgspec
import structlog

from pinstripe.concurrency import Coalescer, wait_for
from pinstripe.errors import PinstripeError
from pinstripe.gateway.syncs import Reads, StoredSync, SyncControl
from pinstripe.store.daily_counts import Clocks
from pinstripe.store.leases import STALE_S, WorkerHeartbeat, load_heartbeats
from pinstripe.store.status import SyncSummary, load_summaries, moment

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_WATCHED_S = 1.0
_UNWATCHED_S = 10.0
_LAG_SAMPLES = 360
_UPDATE_S = 3.0
"""The longest that an update waits for Postgres."""


class LagSample(msgspec.Struct, frozen=True):
    """One point of the hour. `lag_s` is null where it was not known."""

    at: datetime
    lag_s: float | None


class SyncStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The status of one sync at one moment."""

    id: str
    schema: str
    at: datetime
    activity: str
    """What its worker does: starting, backfilling, following, waiting, failed, paused, elsewhere."""
    since: datetime
    ready: bool
    """The first copy is complete, events are followed, and nothing is wrong."""
    reason: str
    """Why it is not ready; "" if it is."""
    remedy: str
    as_of: datetime | None
    """All events up to this moment of Stripe's clock are applied."""
    lag_s: float | None
    """How long ago that is."""
    to_ask: int
    """Pending requests to Stripe that events made necessary."""
    to_ask_by_class: Mapping[str, int]
    """The same by class of work: contested, related, previews, scans."""
    owed: int
    """Those of them that failed."""
    quarantined: int
    """Rows and tables that Postgres refuses to hold."""
    refused: int
    """Lists that Stripe refuses."""
    partly_refused: int
    """Properties that Stripe does not expand, and lists that it only answers by parent."""
    failed: int
    """Lists that failed and are retried."""
    clocks: Clocks
    """How far Stripe's clocks were apart, and how often a read was stale."""
    paused: bool
    served: bool
    pid: int | None
    restarts: int
    process: WorkerHeartbeat | None
    """The worker's heartbeat; null if it is older than ten seconds."""


class StatusBoard:
    """`run` it once beside the server. Without that, `update` refreshes it."""

    def __init__(
        self, control: SyncControl, reads: Reads, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.trouble = ""
        """Why the last update could not read the database; "" if it could."""
        self._control = control
        self._reads = reads
        self._clock = clock
        self._stored: list[StoredSync] = []
        self._syncs: dict[str, SyncStatus] = {}
        self._json: dict[str | None, bytes] = {}
        self._lags: dict[str, deque[LagSample]] = {}
        self._sampled_at = -float("inf")
        self._watchers = 0
        self._closed = False
        self._updated_at = -float("inf")
        self._coalescer: Coalescer[None, None] = Coalescer(self._update)
        self._updated = asyncio.Event()
        self._watched = asyncio.Event()

    @property
    def syncs(self) -> dict[str, SyncStatus]:
        """By id, as of the last update."""
        return self._syncs

    def encoded(self, sync_id: str | None) -> bytes | None:
        """The JSON of one sync, or of all as {"syncs": [...]}; encoded once an update."""
        if sync_id not in self._json:
            if sync_id is None:
                self._json[None] = msgspec.json.encode({"syncs": list(self._syncs.values())})
            elif sync_id in self._syncs:
                self._json[sync_id] = msgspec.json.encode(self._syncs[sync_id])
        return self._json.get(sync_id)

    def lags(self, sync_id: str) -> list[LagSample]:
        """Samples of the last hour, or since the gateway began; oldest first, about ten seconds apart."""
        return list(self._lags.get(sync_id, ()))

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self.update()
                pause_s = _WATCHED_S if self._watchers else _UNWATCHED_S
                # A new watcher does not wait for the slow round to end.
                await wait_for(self._watched, pause_s)
                self._watched.clear()
        finally:
            await self._coalescer.close()

    async def fresh(self, *, within_s: float = 1.0) -> dict[str, SyncStatus]:
        """The status of all syncs, at most `within_s` old. Concurrent calls share one update."""
        if self._clock() - self._updated_at > within_s:
            await self.update()
        return self._syncs

    async def update(self) -> None:
        """Read the status now. An error is kept in `trouble`, not raised."""
        await self._coalescer.get(None)

    async def watch(self) -> AsyncGenerator[dict[str, SyncStatus]]:
        """Yield the status now and after each update; ends when the gateway does."""
        with self._watching():
            yield await self.fresh()
            while not self._closed:
                updated = self._updated
                await updated.wait()
                yield self._syncs

    @contextmanager
    def _watching(self) -> Iterator[None]:
        self._watchers += 1
        self._watched.set()
        try:
            yield
        finally:
            self._watchers -= 1

    def close(self) -> None:
        """Ends every `watch`."""
        self._closed = True
        self._updated.set()

    async def _update(self, _: Collection[None]) -> dict[None, None]:
        summaries: dict[str, SyncSummary] = {}
        processes: dict[str, tuple[WorkerHeartbeat, float]] = {}
        trouble = ""
        stored = self._stored
        try:
            async with asyncio.timeout(_UPDATE_S):
                stored = await self._control.list()
            async with self._reads.connection(longest_s=_UPDATE_S) as connection:
                summaries = await load_summaries(connection)
                processes = await load_heartbeats(connection)
        except (PinstripeError, TimeoutError) as error:
            trouble = getattr(error, "message", "Postgres does not answer.")
            if not self.trouble:
                _log.warning("board.trouble", error=trouble)
        self.trouble, self._stored = trouble, stored
        now = self._clock()
        self._syncs = {
            s.id: _status_of(s, summaries.get(s.schema), processes.get(s.schema), now, trouble)
            for s in stored
        }
        self._json = {}
        self._updated_at = now
        self._sample(now)
        self._updated.set()
        self._updated = asyncio.Event()
        return {None: None}

    def _sample(self, now: float) -> None:
        if now - self._sampled_at < _UNWATCHED_S * 0.9:
            return
        self._sampled_at = now
        self._lags = {
            sync_id: self._lags.get(sync_id, deque(maxlen=_LAG_SAMPLES)) for sync_id in self._syncs
        }
        for sync_id, live in self._syncs.items():
            self._lags[sync_id].append(LagSample(live.at, live.lag_s))


def _status_of(
    sync: StoredSync,
    summary: SyncSummary | None,
    process: tuple[WorkerHeartbeat, float] | None,
    now: float,
    trouble: str,
) -> SyncStatus:
    heartbeat = process[0] if process is not None and process[1] <= STALE_S else None
    summary = summary or SyncSummary(sync.schema)
    as_of, lag_s = summary.as_of, summary.lag_s
    reason, remedy = not_ready(sync, summary, heartbeat, database=trouble)
    return SyncStatus(
        id=sync.id,
        schema=sync.schema,
        at=datetime.fromtimestamp(now, UTC),
        activity=sync.state.activity,
        since=sync.state.since,
        ready=not reason,
        reason=reason,
        remedy=remedy,
        as_of=moment(as_of),
        lag_s=None if lag_s is None else round(lag_s, 3),
        to_ask=summary.to_ask,
        to_ask_by_class=summary.by_class,
        quarantined=summary.quarantined,
        partly_refused=summary.partly_refused,
        clocks=summary.clocks,
        owed=summary.owed,
        refused=summary.refused,
        failed=summary.failed,
        paused=sync.paused,
        served=sync.state.served,
        pid=sync.state.pid,
        restarts=sync.state.restarts,
        process=heartbeat,
    )


SLOWEST_S = 60.0
"""A quiet live account is polled once a minute (docs/how-to/rate-limits.md)."""


def not_ready(
    sync: StoredSync,
    summary: SyncSummary | None,
    heartbeat: WorkerHeartbeat | None,
    *,
    database: str,
) -> tuple[str, str]:
    """Return (reason, remedy) why the copy is not ready; both "" if it is.

    `heartbeat` is None if it is too old. `database`: why Postgres could not be read, or "".
    """
    if database:
        return database, "Check the database; the gateway retries by itself."
    if sync.paused:
        return "Paused.", f"pinstripe syncs resume {sync.id}"
    if sync.state.activity == "failed":
        return sync.state.reason or "It failed.", sync.state.remedy
    if summary is None or summary.lag_s is None:
        return sync.state.reason or "The first copy has not begun.", sync.state.remedy
    if summary.trouble:
        return summary.trouble, summary.remedy
    if summary.running or (heartbeat is not None and heartbeat.phase != "done"):
        return "The first copy is under way.", "Wait for it to end."
    if heartbeat is None and summary.lag_s > STALE_S:
        return (
            sync.state.reason or "No process syncs it.",
            sync.state.remedy or "Start `pinstripe serve` or `pinstripe sync`.",
        )
    poll_s = (
        heartbeat.allowance.poll_s
        if heartbeat is not None and heartbeat.allowance is not None
        else 0.0
    )
    if summary.lag_s > SLOWEST_S + 3 * poll_s:
        return f"Events are {summary.lag_s:.0f} s behind.", "The log of the sync says why."
    return "", ""
