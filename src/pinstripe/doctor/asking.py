"""One small request, and what Stripe made of it: the doctor's only way to ask.

An answer that is no is a finding here, not an error. What ends an examination (a key that Stripe does
not know) is for the caller to see, who knows which request was the first.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from pinstripe.client.paths import Params
from pinstripe.client.refusal import NO_PERMISSION, Permission, permission_of
from pinstripe.client.reply import Reply
from pinstripe.client.retry import http_time
from pinstripe.client.session import Stripe
from pinstripe.doctor.clock import ClockDifference
from pinstripe.doctor.findings import ResourceState
from pinstripe.errors import (
    NotEnabled,
    NotPermitted,
    PinstripeError,
    Refused,
    Unreachable,
)

PRIORITY = 5
"""After what is live, before a backfill: somebody waits for the report."""


@dataclass(frozen=True, slots=True)
class Said:
    """What came of one request. `reply` where Stripe answered, else the words and the remedy."""

    state: ResourceState
    reply: Reply | None = None
    message: str = ""
    remedy: str = ""
    lacking: Permission = NO_PERMISSION
    error: PinstripeError | None = None


@dataclass(slots=True)
class Asker:
    """Asks, counts, and reads Stripe's clock off every answer. `heard` is called after each."""

    stripe: Stripe
    heard: Callable[[], None] = lambda: None
    wall_clock: Callable[[], float] = time.time
    clock: ClockDifference = field(default_factory=ClockDifference)

    async def get(self, path: str, params: Params = (), *, endpoint: str) -> Said:
        """A GET. Raises nothing of Stripe's."""
        return await self._said(
            lambda: self.stripe.get(path, params, endpoint=endpoint, priority=PRIORITY)
        )

    async def post(self, path: str, params: Params, *, endpoint: str) -> Said:
        """A POST that changes nothing. Raises nothing of Stripe's."""
        return await self._said(
            lambda: self.stripe.post(
                path, params, endpoint=endpoint, repeatable=True, priority=PRIORITY
            )
        )

    async def _said(self, ask: Callable[[], Awaitable[Reply]]) -> Said:
        asked = self.wall_clock()
        try:
            reply = await ask()
        except (Refused, Unreachable) as error:
            return said_no(error)
        finally:
            self.heard()
        stamped = http_time(reply.headers.get("date"))
        if stamped is not None:
            self.clock.heard(stamped, resolution=1.0, asked=asked, came=self.wall_clock())
        return Said("readable", reply)


def said_no(error: PinstripeError) -> Said:
    """An answer that is none, or no."""
    state: ResourceState = "failed"
    if isinstance(error, NotPermitted):
        state = "not_permitted"
    elif isinstance(error, NotEnabled):
        state = "not_enabled"
    elif isinstance(error, Refused):
        state = "refused"
    lacking = permission_of(error.message) if state == "not_permitted" else NO_PERMISSION
    return Said(state, None, error.message, error.hint, lacking, error)
