"""A list of Stripe's, page after page.

Follows `has_more` by the id of the last object. Decodes ids and `has_more` only: what the objects
are, `mirror` finds out from the same bytes. A list that would never end is an error, not a hang.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec

from pinstripe.client.paths import Params
from pinstripe.client.session import Reply, Stripe
from pinstripe.errors import Drifted


class Page(NamedTuple):
    """One page: the answer as it came, the ids in the list's order, and whether more follow."""

    reply: Reply
    ids: tuple[str | None, ...]
    has_more: bool


class _Entry(msgspec.Struct):
    id: str | None = None


class _List(msgspec.Struct):
    data: list[_Entry]
    has_more: bool = False


_decoder = msgspec.json.Decoder(_List)


async def pages(
    stripe: Stripe,
    path: str,
    params: Params = (),
    *,
    endpoint: str,
    limit: int | None = 100,
    starting_after: str | None = None,
    priority: int = 0,
) -> AsyncIterator[Page]:
    """The pages of the list at `path`, from `starting_after` on (exclusive), in Stripe's order.

    `limit` None leaves it out (`report_types` refuses it). Raises what `Stripe.get` raises; a
    cursor object that was deleted meanwhile is `NotFound` with `param="starting_after"`: go on from
    its `created`. Raises `Drifted` if the answer is no list or turns in a circle.
    """
    seen: set[str] = set()
    cursor = starting_after
    while True:
        asked = list(params)
        if limit is not None:
            asked.append(("limit", str(limit)))
        if cursor is not None:
            seen.add(cursor)
            asked.append(("starting_after", cursor))
        reply = await stripe.get(path, asked, endpoint=endpoint, priority=priority)
        page = read_page(reply, path)
        yield page
        if not page.has_more:
            return
        cursor = page.ids[-1] if page.ids else None
        if cursor is None or cursor in seen:
            raise Drifted(
                f"The list {path} says that it goes on, but not from where (request "
                f"{reply.request_id or 'unknown'}).",
                hint="Its pages cannot be followed; report it with the request id.",
            )


def read_page(reply: Reply, path: str) -> Page:
    """`reply` read as one page of the list at `path`."""
    try:
        found = _decoder.decode(reply.body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Drifted(
            f"The answer of {path} is not a list (request {reply.request_id or 'unknown'}): "
            f"{error}.",
            hint="Is this path a list in the pinned API version?",
        ) from error
    return Page(reply, tuple(entry.id for entry in found.data), found.has_more)
