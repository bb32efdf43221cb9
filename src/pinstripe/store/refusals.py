"""Requests that Stripe refused in part: a property of `expand[]`, or a list that needs a parent.

A refusal holds for `AGAIN`, in this process and later ones; then the request is made once more, since
Stripe may have given the account more. The table `pinstripe.refusal` is separate from `code` and
`next_try_at` of `pinstripe.cursor`: those say how a whole stream ended, one row a stream. An expand
belongs to an endpoint that several streams and single GETs use, and a list that needs a parent is read
well: its stream is "done", and only its way differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from pinstripe.store.pool import Connection, translated

AGAIN = timedelta(days=7)
LIST = "list"
"""`what` of a list that is refused as such; else it is a value of `expand[]`."""


@dataclass(frozen=True, slots=True)
class RememberedRefusal:
    """What Stripe refuses beside whole tables. It is requested again after a week."""

    endpoint: str
    """As Stripe names the operation: GET /v1/payment_methods."""
    what: str
    """A property that cannot be expanded; or `list`, which is read by parent instead."""
    reason: str
    """In Stripe's words."""
    remedy: str = ""


async def load_refusals(
    connection: Connection, schema: str, *, is_due: bool = False
) -> Sequence[RememberedRefusal]:
    """Return the refusals that hold; with `is_due` also those that are due for another request."""
    with translated():
        rows = await connection.fetch(
            "SELECT endpoint, what, reason, remedy FROM pinstripe.refusal"
            " WHERE schema = $1 AND ($2 OR next_try_at > clock_timestamp()) ORDER BY endpoint, what",
            schema,
            is_due,
        )
    return [RememberedRefusal(*row) for row in rows]


async def note_refusal(connection: Connection, schema: str, refused: RememberedRefusal) -> None:
    """Note a refusal, for `AGAIN` from now on."""
    with translated():
        await connection.execute(
            "INSERT INTO pinstripe.refusal (schema, endpoint, what, reason, remedy, next_try_at)"
            " VALUES ($1, $2, $3, $4, $5, clock_timestamp() + $6)"
            " ON CONFLICT (schema, endpoint, what) DO UPDATE SET reason = excluded.reason,"
            " remedy = excluded.remedy, checked_at = clock_timestamp(), next_try_at = excluded.next_try_at",
            schema,
            refused.endpoint,
            refused.what,
            refused.reason,
            refused.remedy,
            AGAIN,
        )


async def drop_due_refusals(connection: Connection, schema: str) -> None:
    """Delete the refusals that are due, so that the request is made again."""
    with translated():
        await connection.execute(
            "DELETE FROM pinstripe.refusal WHERE schema = $1 AND next_try_at <= clock_timestamp()",
            schema,
        )
