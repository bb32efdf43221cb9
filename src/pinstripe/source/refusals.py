"""Joins what the client learns of refused expands with bookkeeping, so that it outlives the process."""

from __future__ import annotations

import structlog

from pinstripe.client.expands import RefusedExpand
from pinstripe.source.source import Source
from pinstripe.store.refusals import (
    LIST,
    Refusal,
    drop_due_refusals,
    load_refusals,
    note_refusal,
)

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


async def remember_refusals(source: Source, *, leads: bool) -> None:
    """What was refused lately is not asked for yet, and what is refused from now on is noted.

    The process that `leads` forgets those whose time has come, and so tries them again.
    """
    schema = source.mirror.schema

    async def note(refused: RefusedExpand) -> None:
        _log.warning("expand.refused", endpoint=refused.endpoint, property=refused.value)
        found = Refusal(refused.endpoint, refused.value, refused.reason, refused.remedy)
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
    """From now on this list is read by parent, and asked for without one when its time has come."""
    source.by_parent.add(endpoint)
    _log.warning("list.by_parent", endpoint=endpoint, reason=reason)
    async with source.transaction() as connection:
        await note_refusal(
            connection, source.mirror.schema, Refusal(endpoint, LIST, reason, remedy)
        )
