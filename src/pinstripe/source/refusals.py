"""Stores what Stripe refuses in part: expands, lists without a parent, nested lists.

A restart repeats no refused expand and no refused list. A nested list that the key may not read has a
cursor of its own, in Stripe's words, and the next run retries its `probe`:

    {"table": "refund", "inside": "charge", "probe": "/v1/charges/ch_1/refunds"}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

from pinstripe.client.client import StripeClient, split_url
from pinstripe.client.retry import RefusedExpand
from pinstripe.concurrency import for_each
from pinstripe.errors import NotFound, PinstripeError, WrongKey
from pinstripe.source.source import Source, UnreadableLists
from pinstripe.store.cursors import (
    LIST,
    Checkpoint,
    RememberedRefusal,
    ended_by,
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

    async def note_gaps() -> None:
        await source.save(checkpoints(source.unreadable_lists))

    async with source.pool.acquire() as connection:
        known = await load_refusals(connection, schema, drops_due=leads)
    source.by_parent |= {r.endpoint for r in known if r.what == LIST}
    source.stripe.expands.load(
        RefusedExpand(r.endpoint, r.what, r.reason, r.remedy) for r in known if r.what != LIST
    )
    source.stripe.expands.on_refused = note
    source.on_unreadable = note_gaps


async def note_by_parent(source: Source, endpoint: str, reason: str, remedy: str) -> None:
    """Reads this list by parent from now on, until it is retried without one."""
    source.by_parent.add(endpoint)
    _log.warning("list.by_parent", endpoint=endpoint, reason=reason)
    async with source.transaction() as connection:
        await note_refusal(
            connection, source.mirror.schema, RememberedRefusal(endpoint, LIST, reason, remedy)
        )


def checkpoints(gaps: UnreadableLists) -> list[Checkpoint]:
    """The cursors that record the gaps."""
    return [
        ended_by(
            gap.error,
            _stream(name),
            {
                "table": gap.truncated.child_table,
                "inside": gap.truncated.parent_table,
                "probe": gap.truncated.url,
            },
        )
        for name, gap in gaps.items()
    ]


_PROBED_AT_ONCE = 8


async def closed_gaps(
    stripe: StripeClient, saved: Iterable[Checkpoint], *, priority: int
) -> Mapping[str, str]:
    """Stream -> table around it, of the gaps of earlier runs that can be read now. Raises WrongKey."""
    found: dict[str, str] = {}

    async def probe(cursor: Checkpoint) -> None:
        position = cursor.position
        if "probe" not in position:
            return
        path, fixed = split_url(str(position["probe"]))
        try:
            await stripe.get(
                path, [*fixed, ("limit", "1")], endpoint=f"GET {cursor.stream}", priority=priority
            )
        except NotFound:
            pass  # The object around it is gone, but the key was accepted.
        except PinstripeError as error:
            if isinstance(error, WrongKey):
                raise
            return  # Still refused, or unreachable: the next run retries.
        found[cursor.stream] = str(position["inside"])

    await for_each(list(saved), probe, limit=_PROBED_AT_ONCE)
    return found


def _stream(name: str) -> str:
    return name.removeprefix("GET ")
