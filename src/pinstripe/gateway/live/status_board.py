"""The board: how every sync stands now, looked up once for all who watch, and its lag over the last hour.

One task looks: every second while somebody watches, every ten seconds otherwise. Watching costs no query
of its own, however many watch. What is on the board is at most that old; `look` makes it new at once.

Whether a sync's copy is ready to be read, and if not, why not: for health, the board and the console.

Pure: from what its user wants, what the database says, and what its process says of itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import msgspec
import structlog

from pinstripe.concurrency import Coalescer
from pinstripe.errors import PinstripeError
from pinstripe.gateway.live.reads import Reads
from pinstripe.gateway.syncs import StoredSync, SyncControl
from pinstripe.store.heartbeats import STALE_S, WorkerHeartbeat, load_heartbeats
from pinstripe.store.status import SyncSummary, load_summaries

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_WATCHED_S = 1.0

_UNWATCHED_S = 10.0

_LAG_SAMPLES = 360

_LOOK_S = 3.0
"""The board must not stand still for long because Postgres does."""


class LagSample(msgspec.Struct, frozen=True):
    """One point of the hour. `lag_s` is null where it was not known."""

    at: datetime
    lag_s: float | None


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """How one sync stands at one moment."""

    id: str
    schema: str
    at: datetime
    activity: str
    """What its process does: starting, backfilling, following, waiting, failed, paused, elsewhere."""
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
    owed: int
    """Of those requests the ones that met trouble."""
    quarantined: int
    """Rows and tables that Postgres refuses to hold."""
    refused: int
    failed: int
    """Lists that Stripe refuses; lists that met trouble."""
    """Requests that events have made necessary and that are still open."""
    paused: bool
    served: bool
    pid: int | None
    restarts: int
    process: WorkerHeartbeat | None
    """What its process says of itself; null if it said nothing for ten seconds."""


class StatusBoard:
    """`run` it once. Without that, `look` makes one look."""

    def __init__(
        self, control: SyncControl, reads: Reads, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.trouble = ""
        """Why the last look saw nothing of the database; "" if it did."""
        self._control = control
        self._reads = reads
        self._clock = clock
        self._stored: list[StoredSync] = []
        self._syncs: dict[str, Live] = {}
        self._json: dict[str | None, bytes] = {}
        self._lags: dict[str, deque[LagSample]] = {}
        self._sampled_at = -float("inf")
        self._watchers = 0
        self._closed = False
        self._looked_at = -float("inf")
        self._coalescer: Coalescer[None, None] = Coalescer(self._look)
        self._looked = asyncio.Event()
        self._watched = asyncio.Event()

    @property
    def syncs(self) -> dict[str, Live]:
        """By id, as last seen."""
        return self._syncs

    def encoded(self, sync_id: str | None) -> bytes | None:
        """The JSON of one sync, or of all as {"syncs": [...]}; made once a look, whoever is sent it."""
        if sync_id not in self._json:
            if sync_id is None:
                self._json[None] = msgspec.json.encode({"syncs": list(self._syncs.values())})
            elif sync_id in self._syncs:
                self._json[sync_id] = msgspec.json.encode(self._syncs[sync_id])
        return self._json.get(sync_id)

    def lags(self, sync_id: str) -> list[LagSample]:
        """Of the last hour, or since the gateway began; oldest first, about ten seconds apart."""
        return list(self._lags.get(sync_id, ()))

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self.look()
                pause_s = _WATCHED_S if self._watchers else _UNWATCHED_S
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        # A new watcher does not wait for the slow round to end.
                        await self._watched.wait()
                    self._watched.clear()
        finally:
            await self._coalescer.close()

    async def fresh(self, *, within_s: float = 1.0) -> dict[str, Live]:
        """The board, not older than that; one look for all who ask at once."""
        if self._clock() - self._looked_at > within_s:
            await self.look()
        return self._syncs

    async def look(self) -> None:
        """Looks now. Trouble is noted on the board, not raised."""
        await self._coalescer.get(None)

    async def watch(self) -> AsyncGenerator[dict[str, Live]]:
        """The board now, and again after each look; ends when the gateway does."""
        with self._watching():
            yield await self.fresh()
            while not self._closed:
                looked = self._looked
                await looked.wait()
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
        self._looked.set()

    async def _look(self, _: Collection[None]) -> dict[None, None]:
        standings: dict[str, SyncSummary] = {}
        processes: dict[str, tuple[WorkerHeartbeat, float]] = {}
        trouble = ""
        stored = self._stored
        try:
            async with asyncio.timeout(_LOOK_S):
                stored = await self._control.list()
            async with self._reads.connection(longest_s=_LOOK_S) as connection:
                standings = await load_summaries(connection)
                processes = await load_heartbeats(connection)
        except (PinstripeError, TimeoutError) as error:
            trouble = getattr(error, "message", "Postgres does not answer.")
            if not self.trouble:
                _log.warning("board.trouble", error=trouble)
        self.trouble, self._stored = trouble, stored
        now = self._clock()
        self._syncs = {
            s.id: _live(s, standings.get(s.schema), processes.get(s.schema), now, trouble)
            for s in stored
        }
        self._json = {}
        self._looked_at = now
        self._sample(now)
        self._looked.set()
        self._looked = asyncio.Event()
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


def _live(
    sync: StoredSync,
    standing: SyncSummary | None,
    process: tuple[WorkerHeartbeat, float] | None,
    now: float,
    trouble: str,
) -> Live:
    told = process[0] if process is not None and process[1] <= STALE_S else None
    as_of = standing.as_of if standing is not None else None
    lag_s = standing.lag_s if standing is not None else None
    reason, remedy = trouble_of(sync, standing, told, database=trouble)
    return Live(
        id=sync.id,
        schema=sync.schema,
        at=datetime.fromtimestamp(now, UTC),
        activity=sync.state.activity,
        since=sync.state.since,
        ready=not reason,
        reason=reason,
        remedy=remedy,
        as_of=None if as_of is None else datetime.fromtimestamp(as_of, UTC),
        lag_s=None if lag_s is None else round(lag_s, 3),
        to_ask=standing.to_ask if standing is not None else 0,
        quarantined=standing.quarantined if standing is not None else 0,
        owed=standing.owed if standing is not None else 0,
        refused=standing.refused if standing is not None else 0,
        failed=standing.failed if standing is not None else 0,
        paused=sync.paused,
        served=sync.state.served,
        pid=sync.state.pid,
        restarts=sync.state.restarts,
        process=told,
    )


SLOWEST_S = 60.0
"""A quiet live account is looked at once a minute (docs/how-to/rate-limits.md)."""


def trouble_of(
    sync: StoredSync, standing: SyncSummary | None, told: WorkerHeartbeat | None, *, database: str
) -> tuple[str, str]:
    """(reason, remedy) why the copy is not ready; both "" where all is well.

    `told` is None where its process said nothing lately; `database`: why that did not answer, or "".
    """
    if database:
        return database, "See the database; the gateway looks again by itself."
    if sync.paused:
        return "Paused.", f"pinstripe syncs resume {sync.id}"
    if sync.state.activity == "failed":
        return sync.state.reason or "It failed.", sync.state.remedy
    if standing is None or standing.lag_s is None:
        return sync.state.reason or "The first copy has not begun.", sync.state.remedy
    if standing.trouble:
        return standing.trouble, standing.remedy
    if standing.running or (told is not None and told.phase != "done"):
        return "The first copy is under way.", "Wait for it to end."
    if told is None and standing.lag_s > STALE_S:
        return (
            sync.state.reason or "No process syncs it.",
            sync.state.remedy or "Start `pinstripe serve` or `pinstripe sync`.",
        )
    poll_s = told.allowance.poll_s if told is not None and told.allowance is not None else 0.0
    if standing.lag_s > SLOWEST_S + 3 * poll_s:
        return f"Events are {standing.lag_s:.0f} s behind.", "The log of the sync says why."
    return "", ""
