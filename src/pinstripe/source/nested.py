"""Nested lists that the key may not read: the rows around them are copied, and the gap is told.

A charge may be readable and its refunds not. The list of charges then goes on, and a cursor of its own
says what is missing, in Stripe's words:

    {"table": "refund", "inside": "charge", "probe": "/v1/charges/ch_1/refunds"}

The next run asks the probe; if it is answered, the lists of the table around it are read anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pinstripe.client.session import Stripe
from pinstripe.errors import NotFound, PinstripeError, Refused, WrongKey
from pinstripe.rows.extract import CutList
from pinstripe.store.cursors import Checkpoint, ended_by

Gaps = dict[str, "Gap"]
"""By the endpoint's name."""


@dataclass(frozen=True, slots=True)
class Gap:
    """One kind of nested list that cannot be read, and the first one that showed it."""

    cut: CutList
    error: Refused


def checkpoints(gaps: Gaps) -> list[Checkpoint]:
    """What the database says of the gaps."""
    return [
        ended_by(
            gap.error,
            _stream(name),
            {
                "table": gap.cut.child_table,
                "inside": gap.cut.parent_table,
                "probe": gap.cut.url,
            },
        )
        for name, gap in gaps.items()
    ]


async def closed_gaps(
    stripe: Stripe, saved: Iterable[Checkpoint], *, priority: int
) -> Mapping[str, str]:
    """Stream -> table around it, of the gaps of earlier runs that can be read now."""
    found: dict[str, str] = {}
    for cursor in saved:
        position = cursor.position
        if not isinstance(position, dict) or "probe" not in position:
            continue
        path, _, query = str(position["probe"]).partition("?")
        fixed = [(k, v) for k, _, v in (pair.partition("=") for pair in query.split("&") if pair)]
        try:
            await stripe.get(
                path, [*fixed, ("limit", "1")], endpoint=f"GET {cursor.stream}", priority=priority
            )
        except NotFound:
            pass  # The object around it is gone, but the key was let in.
        except PinstripeError as error:
            if isinstance(error, WrongKey):
                raise
            continue  # It is refused still, or in trouble: the next run tries again.
        found[cursor.stream] = str(position["inside"])
    return found


def _stream(name: str) -> str:
    return name.removeprefix("GET ")
