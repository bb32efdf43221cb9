"""Stores the expands and lists that Stripe refuses, so that a restart does not repeat the requests."""

from __future__ import annotations

import structlog

from pinstripe.client.retry import RefusedExpand
from pinstripe.source.source import Source
from pinstripe.store.cursors import (
    LIST,
    RememberedRefusal,
    drop_due_refusals,
    load_refusals,
    note_refusal,
)

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


async def remember_refusals(source: Source, *, leads: bool) -> None:
    """Applies the refusals that are stored, and stores new ones.

    The process that `leads` drops those that are due for a retry.
    """
    schema = source.mirror.schema

    async def note(refused: RefusedExpand) -> None:
        _log.warning("expand.refused", endpoint=refused.endpoint, property=refused.value)
        found = RememberedRefusal(refused.endpoint, refused.value, refused.reason, refused.remedy)
        async with source.transaction() as connection:
            await note_refusal(connection, schema, found)

    async with source.pool.acquire() as connection:
        if leads:
            await drop_due_refusals(connection, schema)
        known = await load_refusals(connection, schema)
    source.by_parent |= {r.endpoint for r in known if r.what == LIST}
    source.stripe.expands.load(
        RefusedExpand(r.endpoint, r.what, r.reason, r.remedy) for r in known if r.what != LIST
    )
    source.stripe.expands.on_refused = note


async def note_by_parent(source: Source, endpoint: str, reason: str, remedy: str) -> None:
    """Reads this list by parent from now on, until it is retried without one."""
    source.by_parent.add(endpoint)
    _log.warning("list.by_parent", endpoint=endpoint, reason=reason)
    async with source.transaction() as connection:
        await note_refusal(
            connection, source.mirror.schema, RememberedRefusal(endpoint, LIST, reason, remedy)
        )
