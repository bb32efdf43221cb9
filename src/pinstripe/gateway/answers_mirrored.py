"""What came through the proxy is put into Postgres before it is passed on, within bounded time.

A Stripe success is never turned into an error here: whatever goes wrong is told as an `Outcome`, which
the caller sees in a header, and is mended afterwards. The work runs in a task of its own, so that it
goes on when the caller hangs up or the time is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import structlog

from pinstripe.errors import Drifted, PinstripeError, Unreachable, Unwritable
from pinstripe.gateway.answers import (
    LAG_S,
    Reading,
    Standing,
    TooLarge,
    Unreadable,
    is_preview,
    parents_of,
    read,
    unpack,
)
from pinstripe.gateway.answers_fetched import Way, ask_again, fetch_again, first_ways, follow_up, go
from pinstripe.gateway.answers_later import Later
from pinstripe.gateway.answers_truth import truth_of_exchange
from pinstripe.gateway.answers_unchanged import Unchanged
from pinstripe.gateway.callers import Callers, Credentials
from pinstripe.gateway.hosts import MIRRORED, Target
from pinstripe.gateway.proxy_versions import RowVersions, Seen
from pinstripe.gateway.syncs import OpenSync, Syncs
from pinstripe.gateway.upstream import Exchange, Upstream
from pinstripe.mirror import LIVE_LANE, QUEUE_ROWS, Truth
from pinstripe.rows.extract import Found
from pinstripe.store.batch import Effect
from pinstripe.store.changes import Cause

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Mirrored = Literal["yes", "no", "later"]
Reason = Literal[
    "",
    "no-objects",
    "preview",
    "host",
    "unknown-account",
    "other-mode",
    "version",
    "unreadable",
    "postgres",
    "stripe",
    "too-large",
    "internal",
]

_STUCK_S = 0.05
"""How long is waited for a Postgres that kept an earlier answer for longer than the patience."""

_MOST_OPEN = 500
"""Answers under way at once, beyond which objects are fetched later: the sync's budget is behind."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an answer's objects. `reason` is empty for "yes"."""

    mirrored: Mirrored
    reason: Reason = ""
    sync: OpenSync | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """The request, as far as its answer's meaning hangs on it. `seen`: row versions before it was sent."""

    method: str
    target: Target
    headers: Sequence[tuple[str, str]] = field(repr=False)
    shown: Credentials | None
    seen: Seen

    @property
    def writes(self) -> bool:
        return self.method not in ("GET", "HEAD", "OPTIONS")


class Answers:
    """The mirror of what is answered. `waiting`: answers whose rows are not in Postgres yet."""

    def __init__(
        self,
        syncs: Syncs,
        callers: Callers,
        upstream: Upstream,
        *,
        versions: RowVersions,
        patience_s: float,
    ) -> None:
        self.later = Later(syncs, self._fetch_later)
        self._syncs = syncs
        self._callers = callers
        self._upstream = upstream
        self._unchanged = Unchanged(versions)
        self._patience_s = patience_s
        self._open: set[asyncio.Task[Outcome]] = set()
        self._stuck: set[str] = set()

    @property
    def waiting(self) -> int:
        return len(self._open) + len(self.later)

    async def mirror(self, asked: Asked, came: Exchange, body: bytes) -> Outcome:
        """Returns when the answer's objects are in Postgres, or the patience is over."""
        if asked.target.host not in MIRRORED:
            return Outcome("no", "host")
        if is_preview(asked.target.path):
            return Outcome("no", "preview")
        if asked.shown is None:
            return Outcome("no", "unknown-account")
        sync = self._callers.known(asked.shown)
        task = asyncio.create_task(self._guarded(asked, came, body))
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        stuck = sync is not None and (sync.mirror.trouble or sync.id in self._stuck)
        done, _ = await asyncio.wait((task,), timeout=_STUCK_S if stuck else self._patience_s)
        return task.result() if done else Outcome("later", "postgres", sync)

    async def close(self, *, grace_s: float = 5.0) -> None:
        """Lets what is under way end, for so long."""
        tasks = list(self._open)
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _guarded(self, asked: Asked, came: Exchange, body: bytes) -> Outcome:
        sync: OpenSync | None = None
        try:
            assert asked.shown is not None  # noqa: S101 (`mirror` looked)
            sync = await self._callers.sync_of(asked.shown)
            if sync is None:
                return Outcome("no", "unknown-account")
            return await self._kept(sync, asked, came, body)
        except TooLarge:
            return Outcome("no", "too-large", sync)
        except Unreadable:
            return Outcome("no", "unreadable", sync)
        except PinstripeError as error:
            _log.warning("proxy.unmirrored", path=asked.target.path, error=error.message)
            return Outcome("later" if sync is not None else "no", "stripe", sync)
        except Exception:
            # The outermost ring around what is ours: Stripe has answered, and that comes first.
            _log.exception("proxy.failed", method=asked.method, path=asked.target.path)
            return Outcome("no", "internal", sync)

    async def _kept(self, sync: OpenSync, asked: Asked, came: Exchange, body: bytes) -> Outcome:
        path = asked.target.path
        unpacked = await unpack(body, came.header(b"content-encoding"))
        digest = b""
        if not asked.writes and is_ours(sync, came):
            digest = self._unchanged.digest(sync, asked.target, unpacked)
            if await self._unchanged.holds(sync, digest):
                return Outcome("yes", "", sync)
        parents = parents_of(path, asked.target.query)
        reading = read(unpacked, sync.mirror.extractor, parents)
        if any(mode != sync.livemode for mode in reading.modes):
            return Outcome("no", "other-mode", sync)
        if not any(table in sync.mirror.tables for table in reading.found.rows):
            return Outcome("no", "no-objects", sync)
        outcome = await self._mirrored(sync, asked, came, reading, digest)
        is_wanted = reading.top is None or reading.top[0] in sync.mirror.tables
        if outcome.mirrored == "yes" and not (reading.whole and is_wanted):
            # What it holds are rows; what was answered has no table.
            self._unchanged.forget(digest)
            return Outcome("no", "no-objects", sync)
        return outcome

    async def _mirrored(
        self, sync: OpenSync, asked: Asked, came: Exchange, reading: Reading, digest: bytes
    ) -> Outcome:
        standing = standing_of(sync, asked, came, reading)
        if standing == "hint":
            return await self._asked_again(sync, asked, came, reading)
        lag_s = LAG_S if standing == "lagging" else 0.0
        cause = Cause("", came.header(b"request-id").decode("latin-1")) if asked.writes else None
        truth = truth_of_exchange(came, lag_s=lag_s, cause=cause)
        effect = None
        if asked.writes:
            effect = follow_up(sync, reading.found, truth)
        elif digest and standing == "now":
            effect = self._unchanged.effect(sync, digest, reading.found, truth)
        outcome = await self._put(sync, asked, reading.found, truth, effect=effect)
        if effect is not None and digest and outcome.mirrored != "yes":
            self._unchanged.forget(digest)
        return outcome

    async def _asked_again(
        self, sync: OpenSync, asked: Asked, came: Exchange, reading: Reading
    ) -> Outcome:
        """Objects that may not be written as they are shown."""
        places = list(reading.places())
        if not asked.writes:
            again = await ask_again(self._upstream, sync, asked.target, asked.headers)
            if again is not None:
                outcome = await self._put(sync, asked, *again)
                # What our version does not show at this place (a customer's sources) is fetched.
                places = [(t, k) for t, k in places if k not in again[0].rows.get(t, {})]
                if outcome.mirrored != "yes" or not places:
                    return outcome
            elif reading.top is None:
                return Outcome("no", "version", sync)
        parents = parents_of(asked.target.path, asked.target.query)
        if len(self._open) > _MOST_OPEN:
            self.later.add(sync.id, first_ways(sync, reading.found, places, parents))
            return Outcome("later", "version", sync)
        try:
            whole = await fetch_again(sync, reading.found, places, parents)
        except (Unreachable, Unwritable):
            self.later.add(sync.id, first_ways(sync, reading.found, places, parents))
            return Outcome("later", "stripe", sync)
        return Outcome("yes", "", sync) if whole else Outcome("later", "version", sync)

    async def _put(
        self,
        sync: OpenSync,
        asked: Asked,
        found: Found,
        truth: Truth,
        *,
        effect: Effect | None = None,
    ) -> Outcome:
        """Writes the rows, and waits for those that are contested."""
        mirror = sync.mirror
        if mirror.queued >= QUEUE_ROWS:
            # Postgres takes nothing, and this is all that may be held in memory.
            self.later.add(sync.id, _retrievable(sync, asked, found))
            return Outcome("later", "postgres", sync)
        if not asked.writes:
            await mirror.room(found)
        durable = mirror.submit(
            found,
            truth,
            lane=LIVE_LANE if asked.writes else "",
            over=asked.seen or None,
            effect=effect,
        )
        await self._watched(sync, durable)
        if durable.cancelled():
            return Outcome("later", "postgres", sync)  # The sync is being closed.
        error = durable.exception()
        if isinstance(error, Drifted):
            _log.warning("proxy.drifted", path=asked.target.path, error=error.message)
            return Outcome("no", "internal", sync)
        if error is not None:
            self.later.add(sync.id, _retrievable(sync, asked, found))
            return Outcome("later", "postgres", sync)
        if mirror.is_refused(found):
            return Outcome(
                "later", "postgres", sync
            )  # Without a row that Postgres refuses; it is owed.
        contests = mirror.settling(found)
        if contests:
            await asyncio.wait(contests)
            if not all(
                not t.cancelled() and t.exception() is None and t.result() for t in contests
            ):
                return Outcome("later", "stripe", sync)
        return Outcome("yes", "", sync)

    async def _watched(self, sync: OpenSync, durable: asyncio.Future[None]) -> None:
        """Waits for a commit; one that takes longer than the patience marks the sync as stuck."""
        done, _ = await asyncio.wait((durable,), timeout=self._patience_s)
        if done:
            return
        self._stuck.add(sync.id)
        try:
            await asyncio.wait((durable,))
        finally:
            self._stuck.discard(sync.id)

    async def _fetch_later(self, sync_id: str, way: Way) -> None:
        sync = self._syncs.get(sync_id)
        if sync is not None:
            await go(sync, way)


def is_ours(sync: OpenSync, came: Exchange) -> bool:
    """Whether the answer is in the version of the tables."""
    return came.header(b"stripe-version") == sync.mirror.api_version.encode()


def standing_of(sync: OpenSync, asked: Asked, came: Exchange, reading: Reading) -> Standing:
    """How far the answer may be taken at its word."""
    replayed = came.header(b"idempotent-replayed").lower() == b"true"
    if replayed or not (is_ours(sync, came) or reading.deleted):
        return "hint"
    return "lagging" if asked.target.path.endswith("/search") else "now"


def _retrievable(sync: OpenSync, asked: Asked, found: Found) -> list[Way]:
    places = [(table, key) for table, group in found.rows.items() for key in group]
    parents = parents_of(asked.target.path, asked.target.query)
    return list(first_ways(sync, found, places, parents))
