"""Webhooks: signed deliveries to endpoints on this machine, at least once and in no order.

An endpoint made with `connect` receives the events of all connected accounts, each with its
`account`; any other endpoint those of the platform itself
(https://docs.stripe.com/connect/webhooks).
Only endpoints made while the simulator runs, with an address on the loopback, are served; nothing ever
leaves the machine. Signed as Stripe signs: `t=...,v1=` and the HMAC-SHA256 of `t.payload`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from urllib.parse import urlsplit

import aiohttp

from pinstripe_simulator.table import StripeObject
from pinstripe_simulator.template import pretty
from pinstripe_simulator.world import World

log = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_AT_ONCE = 8
_WAITS_S = (0.0, 0.2, 1.0, 5.0)
"""Before each attempt; Stripe goes on for three days, a test does not."""
_TIMEOUT = aiohttp.ClientTimeout(total=10)


@dataclass
class Delivery:
    """How badly deliveries behave: shares of events sent twice, and delay up to `jitter_s`."""

    twice_share: float = 0.0
    jitter_s: float = 0.0


class Webhooks:
    """Sends the account's events. `secrets` maps endpoint ids to signing secrets; `connect` holds the ids
    of the Connect endpoints.
    """

    def __init__(
        self,
        world: World,
        secrets: dict[str, str],
        connect: set[str],
        *,
        now: Callable[[], int],
        seed: int,
    ) -> None:
        self._world = world
        self._secrets = secrets
        self._connect = connect
        self._now = now
        self._dice = Random(f"{seed}/webhooks")  # noqa: S311 - a dice, not a secret
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._session: aiohttp.ClientSession | None = None
        self.delivery = Delivery()
        self.delivered = 0
        self.failed = 0

    def hear(self, event: StripeObject, account: str = "") -> None:
        """Start the deliveries of a new event; `account`: the connected one that it is of."""
        if account:
            event = {**event, "account": account}
        for endpoint in self._endpoints(str(event["type"]), connect=bool(account)):
            copies = 2 if self._dice.random() < self.delivery.twice_share else 1
            for _ in range(copies):
                wait = self.delivery.jitter_s * self._dice.random()
                task = asyncio.create_task(self._deliver(endpoint, event, wait))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _endpoints(self, name: str, *, connect: bool) -> list[StripeObject]:
        table = self._world.tables["webhook_endpoint"]
        found = []
        for position in range(table.base, table.total):
            endpoint = None if table.gone(position) else table.kept(position)
            if endpoint is None or endpoint.get("status") != "enabled":
                continue
            if (endpoint["id"] in self._connect) != connect:
                continue
            wanted = endpoint.get("enabled_events") or []
            here = urlsplit(str(endpoint.get("url"))).hostname in _LOOPBACK
            if here and ("*" in wanted or name in wanted):
                found.append(endpoint)
        return found

    async def _deliver(self, endpoint: StripeObject, event: StripeObject, wait: float) -> None:
        payload = pretty(event)
        for attempt_wait in _WAITS_S:
            await asyncio.sleep(wait + attempt_wait)
            headers = {
                "Content-Type": "application/json; charset=utf-8",
                "Stripe-Signature": signature(
                    self._secrets.get(str(endpoint["id"]), ""), payload, self._now()
                ),
            }
            try:
                async with (
                    self._gate,
                    self._client().post(
                        str(endpoint["url"]), data=payload, headers=headers
                    ) as answer,
                ):
                    if answer.status < 300:
                        self.delivered += 1
                        return
            except (aiohttp.ClientError, TimeoutError) as error:
                log.debug("webhook.failed url=%s error=%s", endpoint["url"], error)
        self.failed += 1

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        return self._session

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None


def signature(secret: str, payload: bytes, now: int) -> str:
    """The value of `Stripe-Signature`.

    >>> signature("whsec_x", b"{}", 1)[:7]
    't=1,v1='
    """
    signed = b"%d." % now + payload
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return f"t={now},v1={digest}"
