"""A simulated account with a copy of it, for tests of the live side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import tables
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.retry import Patience
from pinstripe.mirror import Mirror, open_mirror
from pinstripe.source.resolve import resolve
from pinstripe.source.source import Source
from pinstripe.store.migrate import migrate
from pinstripe.store.pool import Pool, connect, open_pool
from pinstripe.sync.events.poller import EventPoller, PollIntervals
from pinstripe.sync.refetch.worker import RefetchWorker


class Account(Protocol):
    """What answers as Stripe."""

    @property
    def url(self) -> str: ...
    @property
    def key(self) -> str: ...


@dataclass(slots=True)
class Copy:
    """A copy under way."""

    url: str
    mirror: Mirror
    source: Source
    budget: RateLimiter

    def live(
        self, since: float, *, pace: PollIntervals | None = None
    ) -> tuple[EventPoller, RefetchWorker]:
        refetches = RefetchWorker(self.source)
        return EventPoller(
            self.source, refetches, since=since, pace=pace or PollIntervals(poll_s=0.05)
        ), refetches


@asynccontextmanager
async def open_copy(
    sim: Account, url: str, *, patience: Patience | None = None
) -> AsyncIterator[Copy]:
    """Tables, connections and a client for `sim`; nothing is copied yet."""
    known = tables()
    async with connect(url) as connection:
        await migrate(
            connection,
            "stripe",
            known,
            sdk_version=spec().sdk_version,
            api_version=spec().api_version,
        )
    budget = RateLimiter(account_rate=None, endpoint_rate=None)
    key = ApiKey.parse(sim.key)
    pool: Pool
    async with (
        StripeClient(
            key,
            api_version=spec().api_version,
            budget=budget,
            base_url=sim.url,
            patience=patience,
        ) as stripe,
        await open_pool(url, min_size=1, max_size=4) as pool,
        open_mirror(url, "stripe", known, api_version=spec().api_version) as mirror,
    ):
        source = Source(stripe, mirror, known, pool)
        mirror.resolve = partial(resolve, source)
        yield Copy(url, mirror, source, budget)


async def quiet(copy: Copy, refetches: RefetchWorker) -> None:
    """Returns when nothing that was asked for is open."""
    for _ in range(3):
        await refetches.idle()
        await copy.mirror.wait_resolved()


async def until(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    """Waits for `condition()` to be true, looking often."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what is looked at has no event)
            await asyncio.sleep(0.02)
