"""The event log of an account: where it is, how far it reaches back, one page of it."""

from __future__ import annotations

from collections.abc import Sequence

from pinstripe.catalog.endpoints import Param
from pinstripe.client.reply import Reply
from pinstripe.source.account import FOLLOW, Source
from pinstripe.store.cursors import Checkpoint

EVENTS = "/v1/events"
RETENTION_S = 30 * 86400
"""Stripe keeps events for 30 days (https://docs.stripe.com/api/events)."""
FOLLOWED = "events"
"""The stream whose `as_of` says up to when all events are applied."""


def followed(until: float) -> Checkpoint:
    """The cursor that says: all events up to this second on Stripe's clock are applied."""
    return Checkpoint(FOLLOWED, "running", position={"table": "event"}, as_of=float(until))


async def ask(
    source: Source, params: Sequence[Param], after: str | None, *, priority: int = FOLLOW
) -> Reply:
    """One page of the event log, `after` the event with that id."""
    asked = list(params) if after is None else [*params, ("starting_after", after)]
    reply = await source.stripe.get(EVENTS, asked, endpoint=f"GET {EVENTS}", priority=priority)
    source.heard(reply)
    return reply
