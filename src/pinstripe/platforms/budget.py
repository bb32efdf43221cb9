"""One budget over all workers and accounts: this worker's part of every platform's rates.

    heartbeat -> how many workers live -> `RateLimiter.share` -> the next heartbeat says for whom we made
    room

See `store.platforms.workers` for the rules, and why the sum is never above the rate.

Stripe limits requests for each account (https://docs.stripe.com/rate-limits), and does not say whether
those of a platform for a connected account count for the one or the other. So both hold: all requests of a
platform stay within the platform's rates, and an account that Stripe answers with 429s is slowed alone
(`AccountLimiter`). Only when several accounts meet them together is the platform slowed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from pinstripe.client.rate_limit import Permit, RateLimiter
from pinstripe.concurrency import wait_for
from pinstripe.errors import PinstripeError
from pinstripe.store.platforms import workers
from pinstripe.store.platforms.workers import View
from pinstripe.store.pool import Pool

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_SECOND_S = 1.1
"""Requests count for a second, and timers are late."""

_JOINING_S = 0.25


class Membership:
    """A worker among the others. Run `run` beside the work, and `leave` after its last request."""

    def __init__(
        self,
        pool: Pool,
        name: str,
        *,
        running: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
        beat_s: float = workers.BEAT_S,
        lost_s: float = workers.LOST_S,
        ttl_s: float = workers.TTL_S,
    ) -> None:
        """`running`: how many tasks are under way, for `status`. `clock`: that of the limiters."""
        self.parts = 1
        """Between how many workers the rates are divided."""
        self.number: int | None = None
        self._pool = pool
        self._name = name
        self._running = running
        self._clock = clock
        self._beat_s, self._lost_s, self._ttl_s = beat_s, lost_s, ttl_s
        self._limiters: set[RateLimiter] = set()
        self._seen = 0
        self._until = float("-inf")
        self._clear_at: float | None = None
        """When the others' requests of before they made room count no more."""
        self._soon = asyncio.Event()

    def add(self, limiter: RateLimiter) -> None:
        """Let this limiter of a platform grant this worker's part; nothing before it has one."""
        self._limiters.add(limiter)
        limiter.share(self.parts, until=self._until)

    def remove(self, limiter: RateLimiter) -> None:
        """The platform is gone."""
        self._limiters.discard(limiter)

    @property
    def is_in(self) -> bool:
        """Whether this worker has a share."""
        return self._clock() <= self._until

    async def run(self) -> None:
        """Beat until cancelled. While Postgres is away, the share ends."""
        while True:
            self._soon.clear()
            try:
                await self.beat()
            except PinstripeError as error:
                _log.warning("worker.no_heartbeat", error=error.message)
            await wait_for(self._soon, self._beat_s if self.is_in else _JOINING_S)

    async def beat(self) -> None:
        """Write one heartbeat, and take the share that it shows."""
        asked_at = self._clock()
        async with self._pool.acquire() as connection:
            if self.number is None:
                self.number = self._seen = await workers.join(connection, self._name)
                _log.info("worker.joined", worker=self.number)
            view = await workers.beat(
                connection,
                self.number,
                seen=self._seen,
                running=self._running(),
                lost_s=self._lost_s,
                ttl_s=self._ttl_s,
            )
        if not view.is_member:
            _log.warning("worker.lost", worker=self.number)
            self.number = self._clear_at = None
            self._share(self.parts, float("-inf"))
            self._soon.set()
            return
        if self._has_room(view):
            self._share(max(view.live, 1), asked_at + self._lost_s)
        if view.newest > self._seen:
            # Our rate is lower from here on: the newcomer waits to read so.
            self._seen = view.newest
            self._soon.set()

    def _has_room(self, view: View) -> bool:
        """Whether all older workers have made room for this one, for longer than a second."""
        if view.older_seen is not None and view.older_seen < (self.number or 0):
            return False
        if self._clear_at is None:
            alone = view.older_seen is None
            self._clear_at = self._clock() + (0.0 if alone else _SECOND_S)
        return self._clock() >= self._clear_at

    def _share(self, parts: int, until: float) -> None:
        if parts != self.parts:
            _log.info("worker.share", parts=parts)
        self.parts, self._until = parts, until
        for limiter in self._limiters:
            limiter.share(parts, until=until)

    async def leave(self) -> None:
        """Give the share back. Trouble is passed over: the others notice within seconds."""
        if self.number is None:
            return
        self._share(self.parts, float("-inf"))
        await asyncio.sleep(_SECOND_S)
        try:
            async with self._pool.acquire() as connection:
                await workers.leave(connection, self.number)
        except PinstripeError as error:
            _log.warning("worker.unleft", error=error.message)


_ACCOUNT_SLOTS = 24
"""Requests of one account under way, of the 60 of a worker: one that hangs leaves the others theirs."""

_TOGETHER, _TOGETHER_S = 3, 2.0
"""So many accounts with a 429 within so many seconds: the limit is the platform's."""


class Refusals:
    """The accounts of one platform that met a 429 lately."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at: dict[str, float] = {}

    def add(self, account: str) -> bool:
        """Note a 429 of the account; return whether several accounts have met one."""
        now = self._clock()
        self._at[account] = now
        self._at = {name: at for name, at in self._at.items() if now - at <= _TOGETHER_S}
        return len(self._at) >= _TOGETHER


class AccountLimiter(RateLimiter):
    """The platform's limiter as one account has it: its 429s and its slots are its own."""

    def __init__(
        self,
        platform: RateLimiter,
        account: str,
        refusals: Refusals,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            account_rate=platform.rate(),
            endpoint_rate=None,
            clock=clock,
            max_concurrency=_ACCOUNT_SLOTS,
        )
        self._platform = platform
        self._name = account
        self._refusals = refusals

    async def acquire(self, endpoint: str, *, priority: int = 0) -> Permit:
        """Waits for the account's turn, then for the platform's."""
        own = await super().acquire(endpoint, priority=priority)
        try:
            whole = await self._platform.acquire(endpoint, priority=priority)
        except BaseException:
            own.give_back()
            raise
        return _Both(own, whole)

    def ready_in(self, endpoint: str = "", *, priority: int = 0) -> float:
        """Seconds until neither would wait."""
        return max(
            super().ready_in(endpoint, priority=priority),
            self._platform.ready_in(endpoint, priority=priority),
        )

    def on_rate_limited(self, endpoint: str, code: str, retry_after_s: float | None) -> None:
        """Slows the account down; the platform too if several accounts meet 429s."""
        super().on_rate_limited(endpoint, code, retry_after_s)
        if code != "lock_timeout" and self._refusals.add(self._name):
            self._platform.on_rate_limited(endpoint, code, retry_after_s)


class _Both(Permit):
    """A permit of the account and one of the platform."""

    __slots__ = ("_own", "_whole")

    def __init__(self, own: Permit, whole: Permit) -> None:
        self._own, self._whole = own, whole

    def release(self) -> None:
        self._own.release()
        self._whole.release()

    def give_back(self) -> None:
        self._own.give_back()
        self._whole.give_back()
