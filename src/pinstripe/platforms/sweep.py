"""Looks at the accounts of a platform, each at its own pace: is there an event that is not applied?

    claim -> GET /v1/events?limit=1 for each -> nothing new: its next turn
                                             -> something new: a poll is requested

A look opens nothing: it costs one request, and a part of a statement. Every worker sweeps, with its share
of the budget, over accounts that no other one has claimed. Looks run apart from each other, so an account
whose answers hang delays none. Polls, previews and first copies are the tasks' (`platforms.tasks`).

`discover` finds the accounts: `GET /v1/accounts`, newest first. Webhooks name new ones sooner; this is the
net. That an account is gone is not read off the list: Stripe answers its own requests with a 403 then
(`WrongAccount`). https://docs.stripe.com/api/accounts/list
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from pinstripe.client.client import StripeClient, iter_pages, list_at
from pinstripe.client.rate_limit import WorkClass
from pinstripe.client.response import read_list
from pinstripe.concurrency import cancel
from pinstripe.errors import PinstripeError, WrongAccount
from pinstripe.rows.event import EVENTS, created_of
from pinstripe.store.platforms import sweep
from pinstripe.store.platforms.stored import revoke_accounts
from pinstripe.store.platforms.sweep import Found, Look
from pinstripe.store.pool import Pool

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_TICK_S = 0.5
_MOST = 24
"""Looks under way: at a rate of one a second, too, each is over before its claim is."""
_PAUSE_S = 2.0


@dataclass(slots=True)
class Sweep:
    """The sweep of one platform in this worker. `client_of` gives a client that acts for an account."""

    pool: Pool
    platform_id: str
    schema: str
    client_of: Callable[[str], StripeClient]
    _looks: set[asyncio.Task[None]] = field(default_factory=set)
    _seen: list[Found] = field(default_factory=list)
    _found: list[Found] = field(default_factory=list)

    async def run(self) -> None:
        """Sweep until cancelled."""
        try:
            while True:
                try:
                    await self.tick()
                except PinstripeError as error:
                    _log.warning("sweep.trouble", platform=self.platform_id, error=error.message)
                    await asyncio.sleep(_PAUSE_S)
                await asyncio.sleep(_TICK_S)
        finally:
            await cancel(*self._looks)

    async def tick(self) -> None:
        """Write down what was seen, and begin the looks that are due."""
        await self._flush()
        room = _MOST - len(self._looks)
        if room <= 0:
            return
        async with self.pool.acquire() as connection:
            due = await sweep.claim_looks(connection, self.platform_id, room)
        for look in due:
            if look.is_owed:
                self._found.append(Found(look.account_id, None, 0.0, 0.0))
            else:
                task = asyncio.create_task(self._look(look), name=f"look {look.account_id}")
                self._looks.add(task)
                task.add_done_callback(self._looks.discard)
        if self._found:
            await self._flush()

    async def _look(self, look: Look) -> None:
        try:
            response = await self.client_of(look.account_id).get(
                EVENTS, [("limit", "1")], endpoint=f"GET {EVENTS}", priority=WorkClass.HEADS
            )
            events = read_list(response, EVENTS).objects
        except PinstripeError as error:
            await self._failed(look.account_id, error)
            return
        newest = str(events[0].get("id")) if events else None
        newest_at = float(created_of(events[0])) if events else 0.0
        seen = Found(look.account_id, newest, newest_at, response.not_before)
        is_new = newest is not None and newest != look.newest_event
        (self._found if is_new else self._seen).append(seen)

    async def _failed(self, account_id: str, error: PinstripeError) -> None:
        try:
            async with self.pool.transaction() as connection:
                if isinstance(error, WrongAccount) and await revoke_accounts(
                    connection, self.platform_id, [account_id], error.message
                ):
                    _log.warning("account.revoked", account=account_id, reason=error.message)
                else:
                    await sweep.failed(connection, self.platform_id, account_id, error)
        except PinstripeError as untold:
            _log.debug("sweep.untold", error=untold.message)  # It is claimed again soon.

    async def _flush(self) -> None:
        seen, found = self._seen, self._found
        if not seen and not found:
            return
        self._seen, self._found = [], []
        # What is lost with an error is claimed again in half a minute.
        async with self.pool.transaction() as connection:
            requested = sorted({s.account_id for s in (*seen, *found) if s.as_of})
            await sweep.count_looks(connection, self.schema, requested)
            if seen:
                await sweep.looked(connection, self.platform_id, seen)
            if found:
                await sweep.found(connection, self.platform_id, self.schema, found)


_ACCOUNTS = "/v1/accounts"


async def discover(stripe: StripeClient, pool: Pool, platform_id: str, schema: str) -> list[str]:
    """Add the accounts that are new, or that authorised the platform again; return their ids.

    Raises what a request raises: NotEnabled where the key's account is no platform.
    """
    request = list_at(stripe, _ACCOUNTS, endpoint=f"GET {_ACCOUNTS}", priority=WorkClass.HEADS)
    found: list[str] = []
    async for page in iter_pages(request, on_lost_cursor="restart"):
        ids = [str(obj["id"]) for obj in page.objects if isinstance(obj.get("id"), str)]
        async with pool.transaction() as connection:
            found += await sweep.welcome(connection, platform_id, schema, ids)
    if found:
        _log.info("platform.accounts", platform=platform_id, new=len(found))
    return found
