"""Runs everything that keeps an account fresh: poller, refetch worker, relist, previews, and work of days.

Poller and refetch worker run from the start, beside the backfill. Lists are read again and previews filled
once the backfill is done, and so are scheduled verifications and erasures. Those two are looked for once a
minute, so that a restart neither repeats nor forgets one: the database says when the last verification
ended and which customers were deleted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta

import structlog

from pinstripe.client.rate_limit import RateLimiter
from pinstripe.errors import PinstripeError
from pinstripe.source.source import Source
from pinstripe.store import confirmations
from pinstripe.store.daily_counts import load_read_use
from pinstripe.store.erasures import erase, schedule_deleted
from pinstripe.store.events import forget_applied
from pinstripe.store.retention import Retention
from pinstripe.store.status import estimate_rows
from pinstripe.store.verifications import next_verification, plan_verification
from pinstripe.sync.events.poller import EventPoller, PollIntervals
from pinstripe.sync.read_quota import ReadQuota
from pinstripe.sync.refetch.worker import RefetchWorker
from pinstripe.sync.relist import Intervals, Relist
from pinstripe.sync.upcoming.upcoming import Upcoming
from pinstripe.sync.verify.verify import VerifyOptions, open_verify

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)
_RETRY_S = 30.0
_TRIM_S = 3600.0
_LOOK_S = 60.0
_REST = 100.0
"""Looking for deleted customers takes a hundredth of the time at most, however many there are."""
_PAGE = 100
_SINGLE = 3000
"""GETs of single rows and of short lists that a verification sends beside its pages, at most about."""
_MOST_SHARE = 0.5
"""Of the read allowance: the other half is for following the account."""


class Follower:
    """The live side of one account."""

    def __init__(
        self,
        source: Source,
        budget: RateLimiter,
        *,
        since: float,
        pace: PollIntervals | None = None,
        intervals: Intervals | None = None,
        previews: bool = True,
        read_quota: ReadQuota | None = None,
        retention: Retention | None = None,
    ) -> None:
        """`since`: the second on Stripe's clock up to which all events are applied.

        `retention`: what is deleted once it is old; None: nothing.
        """
        self.read_quota = read_quota
        self._source = source
        self._retention = retention
        self._backfilled = asyncio.Event()
        self.besides: list[Callable[[], Coroutine[None, None, None]]] = []  # After the backfill.
        self.upcoming = Upcoming(source) if previews else None
        refreshers = self.upcoming.refreshers() if self.upcoming is not None else {}
        self.refetches = RefetchWorker(source, upcoming=refreshers)
        more = self.upcoming.refetches if self.upcoming is not None else None
        self.poller = EventPoller(
            source,
            self.refetches,
            since=since,
            pace=pace,
            more=more,
            interval_s=read_quota.poll_interval_s if read_quota is not None else None,
            awake=read_quota.wake if read_quota is not None else None,
            complete=self._backfilled.is_set,
        )
        self.relist = Relist(
            source,
            self.refetches,
            budget,
            since=since,
            intervals=intervals,
            plan=read_quota.plan if read_quota is not None else None,
        )
        if read_quota is not None:
            read_quota.demand = self.relist.demand
        source.mirror.on_healed = self._on_healed

    @property
    def trouble(self) -> str:
        """Return what is wrong now; "" if nothing is."""
        return self.poller.stats.trouble or self.refetches.trouble

    @property
    def remedy(self) -> str:
        return self.poller.stats.remedy

    def backfilled(self) -> None:
        """The initial load is complete: parts that need it may begin."""
        self._backfilled.set()

    def _on_healed(self) -> None:
        self.refetches.poll_now()
        self.relist.watch_now()

    async def run(self) -> None:
        """Run until cancelled. A part that fails ends the others."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.refetches.run())
            group.create_task(self.poller.run())
            if self.poller.request_listener is not None:
                group.create_task(self.poller.request_listener.run())
            group.create_task(self._later())
            if self.read_quota is not None:
                group.create_task(self.read_quota.run())
            if self._retention is not None:
                group.create_task(self._trim(self._retention))

    async def _trim(self, retention: Retention) -> None:
        """Delete what is too old, once an hour."""
        while True:
            try:
                async with self._source.pool.acquire() as connection:
                    await retention.trim(connection, self._source.mirror.schema)
            except PinstripeError as error:
                _log.warning("retention.trouble", error=error.message)
            await asyncio.sleep(_TRIM_S)

    async def _later(self) -> None:
        await self._backfilled.wait()
        self._source.mirror.rest()
        await self._insist(self.poller.note_listed)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fill())
            group.create_task(self.relist.run())
            for work in self.besides:
                group.create_task(work())

    async def _fill(self) -> None:
        """Request the preview of every owner once. Later, events refresh them, and old ones are
        refilled.
        """
        if self.upcoming is None:
            return
        await self._insist(self.upcoming.fill)
        while True:
            await asyncio.sleep(self.upcoming.filling.oldest_s() / 2)
            await self._insist(self.upcoming.filling.refill)

    async def _insist(self, work: Callable[[], Awaitable[None]]) -> None:
        """Retry until it succeeds."""
        while True:
            try:
                await work()
            except PinstripeError as error:
                _log.warning("upcoming.trouble", error=error.message)
                await asyncio.sleep(_RETRY_S)
            else:
                return


async def trim_once(source: Source, retention: Retention, *, window_s: float) -> None:
    """Delete what is too old, after a run that no process follows. `window_s`: that of the events."""
    now, schema = source.now(), source.mirror.schema
    async with source.transaction() as connection:
        await forget_applied(connection, schema, now - 2 * window_s)
        await confirmations.forget(connection, schema, now=now, passes_since=now, scans_since={})
        await confirmations.forget_sets(connection, schema, source.mirror.loading)
    async with source.pool.acquire() as connection:
        await retention.trim(connection, schema)


async def erase_deleted(source: Source, *, after_days: float) -> None:
    """Erase each customer that Stripe has deleted, `after_days` later. Runs until cancelled."""
    while "customer" in source.mirror.tables:
        began = time.monotonic()
        try:
            await erase_due(source, after_days=after_days)
        except PinstripeError as error:
            _log.warning("erasure.trouble", error=error.message)
        await asyncio.sleep(max(_LOOK_S, _REST * (time.monotonic() - began)))


async def erase_due(source: Source, *, after_days: float) -> None:
    """Erase each customer that Stripe has deleted so many days ago; one that Postgres refuses next time."""
    schema = source.mirror.schema
    async with source.pool.acquire() as connection:
        for customer in await schedule_deleted(connection, schema, after_days=after_days):
            try:
                await erase(connection, schema, customer, reason="deleted")
            except PinstripeError as error:
                if not error.is_of_rows:
                    raise
                _log.warning("erasure.refused", customer=customer, error=str(error))


async def verify_on_schedule(
    source: Source,
    budget: RateLimiter,
    url: str,
    *,
    every: timedelta | None,
    livemode: bool,
    account_created: int,
) -> None:
    """Verify when the last verification is `every` old. Runs until cancelled; None: only says so.

    The first one is due that long after the sync was created. Where it would take more than half of the
    read allowance, none is made, and `status` says why.
    """
    schema = source.mirror.schema
    while True:
        try:
            note = await why_not(source, livemode=livemode) if every is not None else "Turned off."
            async with source.pool.acquire() as connection:
                due = await next_verification(connection, schema, every or timedelta())
                await plan_verification(connection, schema, None if note else due, note)
                now = await connection.fetchval("SELECT clock_timestamp()")
            if not note and now >= due:
                options = VerifyOptions(followed=True)
                async with open_verify(
                    url, source, budget, options, account_created=account_created
                ) as run:
                    report = await run.run()
                _log.info("verify.done", schema=schema, differences=report.differences)
        except PinstripeError as error:
            _log.warning("verify.trouble", error=error.message)
        await asyncio.sleep(_LOOK_S)


async def why_not(source: Source, *, livemode: bool, rows: int | None = None) -> str:
    """Return why a verification costs too many requests; "" if it does not. `rows`: how many there are."""
    schema = source.mirror.schema
    async with source.pool.acquire() as connection:
        use = await load_read_use(connection, schema, livemode=livemode)
        if rows is None:
            rows = sum((await estimate_rows(connection, [schema]))[schema].values())
    cost = rows // _PAGE + _SINGLE
    if use.allowed is None or use.used + cost <= use.allowed * _MOST_SHARE:
        return ""
    return (
        f"The read allowance is short: about {cost:,} requests of {use.allowed:,} in 30 days, of which "
        f"{use.used:,} are used. Run `pinstripe verify` when it suits you."
    )
