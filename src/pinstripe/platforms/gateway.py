"""The accounts of platforms for a gateway: opened when a request names one, closed when none does any more.

    proxy, /wait -> `open`: is it the platform's? -> `open_account` on shared sessions -> an `OpenSync`
    webhook      -> `wake_soon` -> one transaction for all accounts of the last moment: their polls as tasks

A gateway holds no lease and runs no task. What it needs of 10,000 accounts is one row each, read when a
request names it; only some hundred are open at a time, however many there are.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

import structlog

from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient
from pinstripe.concurrency import backoff, cancel
from pinstripe.config.config import Config
from pinstripe.errors import PinstripeError, Unreachable
from pinstripe.gateway.syncs import OpenSync, Syncs, account_sync_id
from pinstripe.platforms.account import OpenPlatform, open_account, open_platform
from pinstripe.service import budget_for, chosen_tables, personal_of, stripe_for
from pinstripe.store.platforms.sweep import account_standing, wake, welcome
from pinstripe.store.session import scope_of

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_RETRY_S = (0.25, 0.5, 1.0, 2.0, 5.0)
_MOST_OPEN = 300
"""Beyond it the accounts that were used least lately are closed."""
_USED_S = 60.0
"""An account that was used so lately may have a response that is still being mirrored."""
_IDLE_S = 300.0
_CHECKED_S = 5.0
"""How old the knowledge may be that an account is the platform's, or is not."""
_MOST_ABSENT = 10_000
_WAKE_SPACING_S = 0.05
_MOST_WOKEN = 100
"""Accounts that one transaction wakes."""
_POOLED, _WRITING = 4, 2


@dataclass(frozen=True, slots=True)
class PlatformSpec:
    """What the gateway needs of one platform; in `config` the rates are the gateway's share."""

    id: str
    account_id: str
    livemode: bool
    config: Config
    webhook_secrets: tuple[str, ...] = field(default=(), repr=False)


@dataclass(slots=True)
class _Open:
    """An open account. Times are of the monotonic clock."""

    sync: OpenSync
    closing: asyncio.Event
    used_at: float
    checked_at: float


class GatewayAccounts:
    """`gateway.syncs.PlatformAccounts`. Run `run` beside the server."""

    def __init__(self, wanted: PlatformSpec) -> None:
        self.id = wanted.id
        self.account_id = wanted.account_id
        self.livemode = wanted.livemode
        self.webhook_secrets = wanted.webhook_secrets
        self._config = wanted.config
        self._key = ApiKey.parse(wanted.config.api_key or "")
        self._shared: OpenPlatform | None = None
        self._stripe: StripeClient | None = None
        self._accounts: dict[str, _Open] = {}
        self._opening: dict[str, asyncio.Future[OpenSync | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._absent: dict[str, float] = {}
        self._woken: dict[str, bool] = {}
        self._stirred = asyncio.Event()

    def has_key(self, key: bytes) -> bool:
        return secrets.compare_digest(self._key.reveal().encode(), key)

    def opened(self, account_id: str) -> OpenSync | None:
        found = self._accounts.get(account_id)
        if found is None:
            return None
        found.used_at = time.monotonic()
        return found.sync

    async def open(self, account_id: str) -> OpenSync | None:
        now = time.monotonic()
        if now - self._absent.get(account_id, float("-inf")) < _CHECKED_S:
            return None
        found = self._accounts.get(account_id)
        if found is not None and now - found.checked_at >= _CHECKED_S:
            found.checked_at = now
            # Without Postgres nothing new is known: what goes through the proxy is kept until it is back.
            with suppress(Unreachable):
                if not await self._is_active(account_id):
                    found.closing.set()
                    return None
        if found is not None and not found.closing.is_set():
            return self.opened(account_id)
        ready = self._opening.get(account_id)
        if ready is None:
            ready = self._opening[account_id] = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(self._keep(account_id, ready), name=f"account {account_id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(ready)

    def wake_soon(self, account_id: str, *, is_new: bool) -> None:
        self._woken[account_id] = self._woken.get(account_id, False) or is_new
        self._stirred.set()

    async def run(self) -> None:
        """Until cancelled: open, or trying to be."""
        attempt = 0
        while True:
            try:
                async with AsyncExitStack() as stack:
                    await self._begin(stack)
                    attempt = 0
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._wake_all())
                        group.create_task(self._close_unused())
            except* PinstripeError as group_of_errors:
                error = group_of_errors.exceptions[0]
                _log.info("gateway.platform_closed", platform=self.id, reason=str(error))
            await asyncio.sleep(backoff(_RETRY_S, attempt))
            attempt += 1

    async def _begin(self, stack: AsyncExitStack) -> None:
        config = self._config
        self._stripe = await stack.enter_async_context(
            stripe_for(config, self._key, budget_for(config, self._key))
        )
        self._shared = await stack.enter_async_context(
            open_platform(
                config.database_url or "",
                config.schema,
                chosen_tables(config),
                personal=personal_of(config),
                changes=config.changes,
                session_name="pinstripe gateway",
                pooled=_POOLED,
                writing=_WRITING,
            )
        )
        stack.push_async_callback(self._close_all)
        _log.info("gateway.platform_open", platform=self.id, schema=config.schema)

    async def _close_all(self) -> None:
        self._shared = self._stripe = None
        await cancel(*self._tasks)

    async def _is_active(self, account_id: str) -> bool:
        if self._shared is None:
            raise _not_open()
        async with self._shared.pool.acquire() as connection:
            standing = await account_standing(connection, self.id, account_id)
        if standing is not None and standing.is_active:
            return True
        while len(self._absent) >= _MOST_ABSENT:
            del self._absent[next(iter(self._absent))]
        self._absent.pop(account_id, None)
        self._absent[account_id] = time.monotonic()
        return False

    async def _keep(self, account_id: str, ready: asyncio.Future[OpenSync | None]) -> None:
        """Keep an account open until nobody uses it."""
        try:
            if await self._is_active(account_id):
                await self._keep_open(account_id, ready)
            else:
                ready.set_result(None)
        except PinstripeError as error:
            if ready.done():
                _log.warning("account.closed", account=account_id, error=error.message)
            else:
                ready.set_exception(error)
        finally:
            self._opened_or_not(account_id, ready)

    async def _keep_open(self, account_id: str, ready: asyncio.Future[OpenSync | None]) -> None:
        shared, stripe = self._shared, self._stripe
        if shared is None or stripe is None:
            raise _not_open()
        # The platform's own account is that of its key.
        client = stripe if account_id == self.account_id else stripe.for_account(account_id)
        async with open_account(shared, account_id, client, held=None) as source:
            scope, name = scope_of(shared.schema, account_id), account_sync_id(self.id, account_id)
            sync = OpenSync(name, scope, account_id, self.livemode, source)
            now = time.monotonic()
            found = self._accounts[account_id] = _Open(sync, asyncio.Event(), now, now)
            ready.set_result(sync)
            self._opened_or_not(account_id, ready)
            try:
                await found.closing.wait()
            finally:
                if self._accounts.get(account_id) is found:
                    del self._accounts[account_id]

    def _opened_or_not(self, account_id: str, ready: asyncio.Future[OpenSync | None]) -> None:
        if self._opening.get(account_id) is ready:
            del self._opening[account_id]
        if not ready.done():
            ready.set_exception(_not_open())
        ready.exception()  # Retrieved, in case all who waited have left.

    async def _close_unused(self) -> None:
        while True:
            await asyncio.sleep(_USED_S / 6)
            now = time.monotonic()
            by_use = sorted(self._accounts.values(), key=lambda each: each.used_at)
            surplus = max(0, len(by_use) - _MOST_OPEN)
            for number, each in enumerate(by_use):
                unused_s = now - each.used_at
                if unused_s > _IDLE_S or (number < surplus and unused_s > _USED_S):
                    each.closing.set()

    async def _wake_all(self) -> None:
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            while self._woken:
                # In their order: two gateways that wake the same ones do not wait for each other.
                some = sorted(self._woken)[:_MOST_WOKEN]
                woken = {account_id: self._woken.pop(account_id) for account_id in some}
                try:
                    await self._wake(woken)
                except PinstripeError as error:
                    _log.warning("platform.unwoken", platform=self.id, error=error.message)
                    for account_id, is_new in woken.items():
                        self.wake_soon(account_id, is_new=is_new)
                    await asyncio.sleep(_RETRY_S[-1])
            await asyncio.sleep(_WAKE_SPACING_S)

    async def _wake(self, woken: Mapping[str, bool]) -> None:
        if self._shared is None:
            raise _not_open()
        schema = self._shared.schema
        async with self._shared.pool.transaction() as connection:
            for account_id, is_new in woken.items():
                known = await wake(connection, self.id, schema, account_id)
                if not known and is_new:
                    await welcome(connection, self.id, schema, [account_id])
                    self._absent.pop(account_id, None)


def _not_open() -> Unreachable:
    return Unreachable(
        "The tables of this platform are not open here yet.",
        hint="See `pinstripe status` and the logs of `pinstripe serve`.",
    )


async def serve_platform(syncs: Syncs, spec: PlatformSpec) -> None:
    """Keep the platform among those of `syncs`, until cancelled."""
    accounts = syncs.platforms[spec.id] = GatewayAccounts(spec)
    try:
        await accounts.run()
    finally:
        del syncs.platforms[spec.id]
