"""What the tasks of one account do: poll, refetch, backfill, preview, relist, verify.

    take the lease -> open the account -> work -> write down when what is due next -> let the lease go

A task never fails in Procrastinate's eyes. Trouble is written to the account's row and its next try put
off (`store.platforms.sweep`), so that a retry neither blocks other tasks of the account nor meets a waiting
task of its kind. A task that is cancelled, or whose lease another worker has taken, is requested again. A
worker that is killed says nothing: its tasks are taken up as stalled ones (`platforms.worker`), and its
leases expire.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

import structlog

from pinstripe.client.client import StripeClient, meet
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.response import StripeObject
from pinstripe.concurrency import cancel, first_error
from pinstripe.config.config import Config
from pinstripe.errors import FellBehind, LostLease, PinstripeError, WrongAccount
from pinstripe.platforms.account import OpenPlatform, open_account
from pinstripe.platforms.budget import AccountLimiter, Refusals
from pinstripe.service import note_backfilled
from pinstripe.source.source import Source
from pinstripe.store.cursors import READY, Checkpoint, followed
from pinstripe.store.daily_counts import add_requests, utc_today
from pinstripe.store.events import SyncAck, acknowledge, forget_applied
from pinstripe.store.leases import Held, renew_leases, take_lease
from pinstripe.store.platforms import sweep
from pinstripe.store.platforms.stored import SealedPlatform, revoke_accounts
from pinstripe.store.platforms.sweep import Standing
from pinstripe.store.platforms.tasks import TaskName, request_tasks, waits_in
from pinstripe.store.pool import Connection, Pool
from pinstripe.store.refetch import Refetch, next_refetch_s
from pinstripe.store.retention import Retention
from pinstripe.store.session import account_of, schema_of
from pinstripe.store.verifications import plan_verification
from pinstripe.sync.backfill.backfill import Backfill, BackfillResult
from pinstripe.sync.events.poller import EventPoller, PollIntervals
from pinstripe.sync.follower import erase_due, why_not
from pinstripe.sync.read_quota import ReadQuota, by_kind
from pinstripe.sync.refetch.worker import RefetchWorker
from pinstripe.sync.relist import Intervals, Relist
from pinstripe.sync.upcoming.upcoming import Upcoming
from pinstripe.sync.verify.verify import VerifyOptions, open_verify

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_LEASE_S = 15.0
"""Longer than that of a sync: a worker that is short of CPU keeps its accounts."""

_BUSY_S = 2.0
"""Until a task is requested again whose account another worker holds: a lease lasts for seconds."""

_SOON_S = 30.0

_STEP_S = 30.0
"""After so long a first copy, or the filling of previews, gives way, if other long tasks wait."""

_GIVE_WAY_S = 0.4
"""So long at least a poll fetches what its events ask for, before it gives way to the next one."""

_ACTIVE_S = 86_400.0
_RELIST_ACTIVE_S, _RELIST_IDLE_S = 3600.0, 86_400.0
"""Lists without events are read again every hour while an account is active, else once a day."""

_HEAD_S = Intervals().head_s
_LOOK_S = sweep.SLOWEST_S
"""The pace of looks at an account that the read allowance may be too small for."""

_SCAN_S = 60.0
"""After so long a slow scan gives way; it goes on where it was."""

_NO_ROOM_S = 60.0
"""Until a verification is tried again because another one runs in this worker."""
_SHORT_S = 86_400.0

_PAUSED_S = 30.0

T = TypeVar("T")


@dataclass(slots=True)
class WorkedPlatform:
    """One platform in this worker. `looking`: a client with less patience, for the sweep."""

    stored: SealedPlatform
    config: Config
    shared: OpenPlatform
    stripe: StripeClient
    looking: StripeClient
    limiter: RateLimiter
    refusals: Refusals = field(default_factory=lambda: Refusals(time.monotonic))
    running: set[asyncio.Task[object]] = field(default_factory=set)
    """The tasks under way for it."""

    def limiter_of(self, account_id: str) -> AccountLimiter:
        return AccountLimiter(self.limiter, account_id, self.refusals)

    def look_as(self, account_id: str) -> StripeClient:
        """A client of the account, for one look."""
        return self._act(self.looking, account_id, self.limiter_of(account_id))

    def work_as(self, account_id: str, limiter: AccountLimiter) -> StripeClient:
        """A client of the account, for a task."""
        return self._act(self.stripe, account_id, limiter)

    def _act(self, client: StripeClient, account_id: str, limiter: AccountLimiter) -> StripeClient:
        # The platform's own account is that of the key: nothing says that Stripe takes it in the header.
        own = account_id == self.stored.account_id
        return client if own else client.for_account(account_id, limiter)

    async def stop(self) -> None:
        """Cancel the tasks under way: they are requested again."""
        await cancel(*self.running)


@dataclass(slots=True)
class OpenedAccount:
    """One account, open for a task."""

    platform: WorkedPlatform
    account_id: str
    scope: str
    source: Source
    limiter: AccountLimiter
    standing: Standing
    settling: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever makes its refetches: a long task, or the polls beside it."""


async def _others_wait(connection: Connection) -> bool:
    return await waits_in(connection, "bulk")


async def _standing(
    connection: Connection, platform: WorkedPlatform, scope: str
) -> Standing | None:
    return await sweep.account_standing(connection, platform.stored.id, account_of(scope), scope)


_Work = Callable[[OpenedAccount], Awaitable[None]]


class Tasks:
    """The tasks of one worker. `find` returns the platform of a schema; None if it is gone or paused."""

    def __init__(
        self, control: Pool, holder: str, find: Callable[[str], Awaitable[WorkedPlatform | None]]
    ) -> None:
        self.running = 0
        self._control = control
        self._holder = holder
        self._find = find
        self._held: set[Held] = set()
        self._verifying = asyncio.Lock()
        """One verification at a time: they may take hours, and first copies need the places."""
        self._works: Mapping[TaskName, _Work] = {
            "poll": self._poll,
            "refetch": self._refetch,
            "backfill": self._backfill,
            "preview": self._preview,
            "relist": self._relist,
            "verify": self._verify,
        }

    async def renew(self) -> None:
        """Renew the leases of the tasks under way."""
        if self._held:
            async with self._control.acquire() as connection:
                await renew_leases(connection, self._held, ttl_s=_LEASE_S)

    async def run(self, task: TaskName, scope: str) -> None:
        """Do one task. Returns also where it failed: that is written down."""
        platform = await self._find(schema_of(scope))
        if platform is None:
            await self._put_off(task, scope, _PAUSED_S)
            return
        self.running += 1
        current = asyncio.current_task()
        if current is not None:
            platform.running.add(current)
        try:
            await self._guarded(platform, task, scope)
        except asyncio.CancelledError:
            # The worker ends. Another one goes on, at once.
            await asyncio.shield(self._put_off(task, scope, 0.0))
            raise
        finally:
            self.running -= 1
            if current is not None:
                platform.running.discard(current)

    async def _guarded(self, platform: WorkedPlatform, task: TaskName, scope: str) -> None:
        began = time.monotonic()
        try:
            async with self._opened(platform, task, scope) as account:
                if account is not None:
                    await self._work(task, account)
        except (PinstripeError, ExceptionGroup) as caught:
            await self._troubled(platform, task, scope, caught)
        else:
            took_s = round(time.monotonic() - began, 3)
            _log.debug("task.done", task=task, scope=scope, seconds=took_s)

    async def _work(self, task: TaskName, account: OpenedAccount) -> None:
        following: asyncio.Task[None] | None = None
        if task not in ("poll", "refetch"):
            following = asyncio.create_task(self._follow(task, account))
        try:
            await self._works[task](account)
        finally:
            if following is not None:
                await cancel(following)

    async def _follow(self, task: TaskName, account: OpenedAccount) -> None:
        """Poll the account, and make its refetches, when that is due, beside a long task of it: the tasks
        for these have to wait.
        """
        pause_s, platform, scope = _GIVE_WAY_S, account.platform, account.scope
        while True:
            await asyncio.sleep(pause_s)
            try:
                async with self._control.acquire() as connection:
                    standing = await _standing(connection, platform, scope)
                if standing is None or standing.followed_to is None or not standing.is_active:
                    continue
                if standing.owes_poll:
                    await self._poll(replace(account, standing=standing))
                elif standing.owes_refetch and task != "backfill" and not account.settling.locked():
                    await self._refetch(account)  # A first copy makes its own.
                pause_s = _GIVE_WAY_S
            except (PinstripeError, ExceptionGroup) as caught:
                pause_s = min(2 * pause_s, _SOON_S)
                with suppress(PinstripeError):
                    await self._troubled(platform, "poll", scope, caught)

    async def _troubled(
        self, platform: WorkedPlatform, task: TaskName, scope: str, caught: Exception
    ) -> None:
        """Write down why a task failed. Raises what is no trouble of an account's."""
        error = first_error(caught) if isinstance(caught, ExceptionGroup) else caught
        if not isinstance(error, PinstripeError):
            raise caught
        if isinstance(error, LostLease):
            await self._put_off(task, scope, _BUSY_S)
        else:
            await self._failed(platform, task, scope, error)

    async def _failed(
        self, platform: WorkedPlatform, task: TaskName, scope: str, error: PinstripeError
    ) -> None:
        stored, account_id = platform.stored, account_of(scope)
        _log.warning("task.failed", task=task, scope=scope, error=error.message)
        async with self._control.transaction() as connection:
            if isinstance(error, WrongAccount) and await revoke_accounts(
                connection, stored.id, [account_id], error.message
            ):
                return
            if isinstance(error, FellBehind):
                await sweep.begin(connection, stored.schema, [account_id])
            else:
                await sweep.failed(connection, stored.id, account_id, error)
                if task != "poll":  # What is owed to a poll stands in the account's row.
                    await sweep.put_off_failed(connection, task, scope)

    async def _put_off(self, task: TaskName, scope: str, later_s: float) -> None:
        async with self._control.acquire() as connection:
            await sweep.put_off(connection, task, [scope], later_s)

    @asynccontextmanager
    async def _opened(
        self, platform: WorkedPlatform, task: TaskName, scope: str
    ) -> AsyncIterator[OpenedAccount | None]:
        """The account with its lease; None if it is not active, or another worker has it."""
        account_id = account_of(scope)
        async with self._control.acquire() as connection:
            standing = await _standing(connection, platform, scope)
            if standing is None or not standing.is_active:
                yield None
                return
            held = await take_lease(connection, scope, self._holder, ttl_s=_LEASE_S)
        if held is None:
            await self._put_off(task, scope, _BUSY_S)
            yield None
            return
        self._held.add(held)
        limiter = platform.limiter_of(account_id)
        stripe = platform.work_as(account_id, limiter)
        try:
            async with open_account(
                platform.shared, account_id, stripe, held=held, rows=standing.rows
            ) as source:
                source.since = platform.config.since_by_table(source.wanted)
                opened = OpenedAccount(platform, account_id, scope, source, limiter, standing)
                async with asyncio.TaskGroup() as group:
                    watching = group.create_task(held.watch())
                    try:
                        yield opened
                    finally:
                        watching.cancel()
        finally:
            self._held.discard(held)
            with suppress(PinstripeError):  # It expires.
                async with self._control.acquire() as connection:
                    await held.let_go(connection)
                    if platform.stored.livemode:
                        counts = by_kind(stripe.requests)
                        await add_requests(connection, scope, utc_today(), counts)

    async def _poll(self, account: OpenedAccount) -> None:
        """Apply what the event list has, acknowledge those that wait for it, and fetch what it asks for."""
        source, scope = account.source, account.scope
        followed_to, asked = account.standing.followed_to, account.standing.asked
        if followed_to is None:
            # The first copy ends with the events meanwhile; what waits is acknowledged by the next poll.
            async with self._control.transaction() as connection:
                await sweep.begin(
                    connection,
                    account.platform.stored.schema,
                    [account.account_id],
                    priority=account.standing.copy_priority,
                )
            return
        window_s = account.platform.config.event_window
        upcoming = Upcoming(source)
        refetches = RefetchWorker(source, upcoming=upcoming.refreshers())
        news = _News(upcoming)
        poller = EventPoller(
            source,
            refetches,
            since=max(followed_to, account.standing.known_to),
            pace=PollIntervals(window_s=window_s, near_window_s=min(60.0, window_s)),
            more=news.refetches,
        )
        newest = await poller.poll_since(followed_to - window_s)
        if asked is not None:
            async with source.pool.acquire() as connection:
                await acknowledge(connection, scope, SyncAck(asked, poller.stats.as_of))
        newest_at = max(float(poller.stats.newest), account.standing.last_event_at)
        stored, others = account.platform.stored, news.accounts - {account.account_id}
        if others:
            async with self._control.transaction() as connection:
                await sweep.welcome(connection, stored.id, stored.schema, sorted(others))
        async with self._control.acquire() as connection:
            await sweep.polled(
                connection,
                stored.id,
                account.account_id,
                scope,
                newest_event=newest,
                newest_at=int(newest_at),
                as_of=poller.stats.as_of,
                events=poller.stats.events,
                again_s=_again_s(newest_at, source.now()),
                owed_at=account.standing.owed_at,
            )
        await self._work_off(account, refetches)

    async def _refetch(self, account: OpenedAccount) -> None:
        upcoming = Upcoming(account.source)
        await self._work_off(account, RefetchWorker(account.source, upcoming=upcoming.refreshers()))

    async def _work_off(self, account: OpenedAccount, refetches: RefetchWorker) -> None:
        """Work the refetch queue off, until another poll is to be made: conflicts and refetches may wait
        for a replica. What is left, as what fails, is a task of its time.
        """
        conflicts = account.source.mirror.conflicts

        async def settle() -> None:
            await asyncio.shield(conflicts.wait_resolved())  # A long task may wait for them too.
            await refetches.drain()
            await asyncio.shield(conflicts.wait_resolved())

        async def gives_way(connection: Connection) -> bool:
            standing = await _standing(connection, account.platform, account.scope)
            return standing is not None and standing.owes_poll and not standing.failures

        async with account.settling:
            settling = asyncio.create_task(settle())
            if await self._is_done(settling, gives_way, every_s=_GIVE_WAY_S):
                settling.result()
        async with account.source.pool.acquire() as connection:
            left_s = await next_refetch_s(connection, account.scope)
        async with self._control.acquire() as connection:
            if left_s is None:
                await sweep.settled(connection, "refetch", account.scope)
            else:
                later_s = max(left_s, _BUSY_S)
                await sweep.put_off(connection, "refetch", [account.scope], later_s)

    async def _backfill(self, account: OpenedAccount) -> None:
        """The first copy, or what an interrupted one left; gives way to others after a while."""
        source = account.source
        met = await meet(source.stripe, source.stripe.key)
        # An idle account is not polled for months: looks tell that nothing has happened.
        followed_to = account.standing.followed_to
        known_to = account.standing.known_to - account.platform.config.event_window
        if followed_to is not None and followed_to < known_to:
            await source.save([followed(known_to)])
        backfill = Backfill(
            source,
            source.pool,
            account.limiter,
            now=met.now,
            account_created=met.birth,
            deep=account.platform.config.deep,
            # Most accounts are small: looking for references at the end takes fewer statements.
            references_beside=False,
        )
        running = asyncio.create_task(backfill.run())
        if not await self._is_done(running, may_stop=lambda: backfill.phase == "lists"):
            first = account.standing.copy_priority
            async with self._control.acquire() as connection:
                await request_tasks(connection, "backfill", [account.scope], priority=first)
            return
        outcome = running.result()
        await note_backfilled(source, outcome)
        await self._plan_after(account, outcome)

    async def _is_done(
        self,
        running: asyncio.Task[T],
        gives_way: Callable[[Connection], Awaitable[bool]] = _others_wait,
        *,
        every_s: float | None = None,
        may_stop: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Wait for long work; False if it gave way, after a while, to what waits."""
        try:
            while not running.done():
                await asyncio.wait((running,), timeout=every_s or _STEP_S)
                if not running.done() and may_stop():
                    async with self._control.acquire() as connection:
                        if await gives_way(connection):
                            break
            return running.done()
        finally:
            await cancel(running)

    async def _plan_after(self, account: OpenedAccount, outcome: BackfillResult) -> None:
        """What follows a first copy: the account is polled at once, and what failed is tried again.

        A list that fails keeps the account from nothing else: its events are applied as they come.
        """
        scope, scopes = account.scope, [account.scope]
        if (
            not outcome.complete
            and outcome.events is not None
            and account.standing.followed_to is None
        ):
            await account.source.save([Checkpoint(READY, "running")])
        async with self._control.transaction() as connection:
            standing = await _standing(connection, account.platform, scope)
            is_followed = standing is not None and standing.followed_to is not None
            if outcome.complete:
                await sweep.settled(connection, "backfill", scope)
            else:
                await sweep.put_off_failed(connection, "backfill", scope)
            if is_followed:
                await sweep.put_off(connection, "poll", scopes, _SOON_S)  # If it is not done below.
            plan = sweep.put_off if outcome.complete else sweep.put_off_first
            await plan(connection, "preview", scopes, 0.0)
            await plan(connection, "relist", scopes, _RELIST_ACTIVE_S)
        _log.info(
            "account.copied",
            scope=scope,
            complete=outcome.complete,
            requests=outcome.requests,
            seconds=round(outcome.seconds, 3),
        )
        if standing is not None and is_followed:
            account.standing = standing
            await self._poll(account)

    async def _preview(self, account: OpenedAccount) -> None:
        """Fill the upcoming invoices once, and refresh those that change without an event."""
        upcoming = Upcoming(account.source)

        async def fill() -> None:
            if upcoming.tables():
                await upcoming.filling.refill()

        running = asyncio.create_task(fill())
        later_s = _STEP_S
        if await self._is_done(running):
            running.result()
            later_s = upcoming.filling.oldest_s() / 2
        async with self._control.acquire() as connection:
            await sweep.put_off(connection, "preview", [account.scope], later_s)

    async def _relist(self, account: OpenedAccount) -> None:
        """Read again the lists that no event reports, as often as the read allowance lets it, and delete
        what is kept no longer.
        """
        source, config = account.source, account.platform.config
        refetches = RefetchWorker(source, upcoming=Upcoming(source).refreshers())
        # Requests are counted when the task ends (`_opened`); here those of before are read.
        quota = ReadQuota(
            source.pool,
            account.scope,
            {},
            livemode=account.platform.stored.livemode,
            poll_s=_LOOK_S,
        )
        await quota.flush()
        plan = partial(quota.beside_looks, _LOOK_S)
        relist = Relist(source, refetches, account.limiter, plan=plan)
        quota.demand = relist.demand
        await relist.run_once()
        scanned = await relist.scan_once(most_s=_SCAN_S)
        if config.erase_deleted_after is not None and "customer" in source.mirror.tables:
            await erase_due(source, after_days=config.erase_deleted_after)
        async with source.transaction() as connection:
            before = source.now() - 2 * config.event_window
            await forget_applied(connection, account.scope, before)
        keep = timedelta(days=config.event_days) if config.event_days else None
        async with source.pool.acquire() as connection:
            await Retention(timedelta(days=config.change_days), keep).trim(
                connection, account.scope
            )
        await self._work_off(account, refetches)
        is_active = time.time() - account.standing.last_event_at < _ACTIVE_S
        usual_s = _RELIST_ACTIVE_S if is_active else _RELIST_IDLE_S
        later_s = max(usual_s, _HEAD_S * plan().stretch) if scanned else _SCAN_S
        async with self._control.acquire() as connection:
            await sweep.put_off(connection, "relist", [account.scope], later_s)
            if every := config.verify_every:
                # Accounts that were added together are not verified together.
                first_s = every.total_seconds() * (0.5 + random.random() / 2)  # noqa: S311
                await sweep.put_off_first(connection, "verify", [account.scope], first_s)

    async def _verify(self, account: OpenedAccount) -> None:
        """Compare all rows of the account with Stripe; `status` has the certificate."""
        platform, every = account.platform, account.platform.config.verify_every
        rows, livemode = account.standing.rows, platform.stored.livemode
        note = (
            await why_not(account.source, livemode=livemode, rows=rows) if every else "Turned off."
        )
        later_s = _SHORT_S
        if every and not note:
            later_s = _NO_ROOM_S
            if not self._verifying.locked():
                async with self._verifying:
                    await self._verify_now(account)
                later_s = every.total_seconds()
        async with self._control.acquire() as connection:
            due = None if note else datetime.now(UTC) + timedelta(seconds=later_s)
            await plan_verification(connection, account.scope, due, note)
            await sweep.put_off(connection, "verify", [account.scope], later_s)

    async def _verify_now(self, account: OpenedAccount) -> None:
        source, shared = account.source, account.platform.shared
        met = await meet(source.stripe, source.stripe.key)
        async with open_verify(
            shared.url,
            source,
            account.limiter,
            VerifyOptions(followed=False),
            account_created=met.birth,
        ) as run:
            report = await run.run()
        _log.info("verify.done", schema=account.scope, differences=report.differences)


class _News:
    """What the events of a poll say beside rows: previews to refresh, and accounts that they name."""

    def __init__(self, upcoming: Upcoming) -> None:
        self.accounts: set[str] = set()
        self._upcoming = upcoming

    async def refetches(self, events: Sequence[StripeObject]) -> list[Refetch]:
        # Events of connected accounts name theirs (https://docs.stripe.com/api/events/object).
        named = (event.get("account") for event in events)
        self.accounts |= {name for name in named if isinstance(name, str)}
        return await self._upcoming.refetches(events)


def _again_s(newest_at: float, now: float) -> float | None:
    """Seconds until the window is to be read again for events that appear late; None if they all have.

    >>> _again_s(100.0, 101.0), _again_s(100.0, 200.0), _again_s(100.0, 900.0), _again_s(0.0, 900.0)
    (59.0, 560.0, None, None)
    """
    due = [newest_at + late_s - now for late_s in sweep.LATE_S]
    return next((left_s for left_s in due if left_s > 0), None) if newest_at else None
