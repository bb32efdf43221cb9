"""One page of a list: how it is asked for, and what the answer holds; one object likewise.

Pure. Both kinds of list are known here: v1 goes on after the last id, v2 names its next page itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import msgspec

from pinstripe.catalog.endpoints import ListEndpoint, Param
from pinstripe.client.reply import Reply
from pinstripe.errors import Drifted
from pinstripe.mirror import Truth
from pinstripe.rows.decode import StripeObject, decode
from pinstripe.store.changes import Cause

PAGE = 100
"""Objects of a page: the most that Stripe gives (https://docs.stripe.com/api/pagination)."""


@dataclass(frozen=True, slots=True)
class ListPage:
    """`after` is what the next request starts from: the last id, or in v2 the next page's address."""

    objects: list[StripeObject]
    has_more: bool
    after: str | None


def list_request(
    endpoint: ListEndpoint,
    path: str,
    params: Sequence[Param],
    *,
    after: str | None,
    expand: Sequence[str],
) -> tuple[str, list[Param]]:
    """(path, parameters) of one page of a list, `after` the page before."""
    if endpoint.version == 2 and after is not None:
        return after, []  # A v2 list names its next page itself; `after` holds that address.
    query: list[Param] = [("limit", str(PAGE))] if endpoint.takes_limit else []
    query += params
    if after is not None:
        query.append(("starting_after", after))
    query += [("expand[]", f"data.{item}") for item in expand]
    return path, query


def read_list(reply: Reply, path: str) -> ListPage:
    """The list in `reply`, of v1 (`has_more`) or v2 (`next_page_url`). Raises Drifted if it is none."""
    try:
        body = decode(reply.body)
    except msgspec.DecodeError as error:
        raise Drifted(f"The answer of {path} is not JSON: {error}.") from error
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(data, list):
        raise Drifted(
            f"The answer of {path} is not a list (request {reply.request_id or 'unknown'}).",
            hint="Is this a list in the pinned API version?",
        )
    objects = cast("list[StripeObject]", [o for o in data if isinstance(o, dict)])
    if "next_page_url" in body:
        following = body["next_page_url"]
        return ListPage(objects, following is not None, str(following) if following else None)
    ids = (o.get("id") for o in reversed(objects))
    last = next((key for key in ids if isinstance(key, str)), None)
    return ListPage(objects, body.get("has_more") is True, last)


def read_object(reply: Reply, path: str) -> StripeObject:
    """The object in `reply`."""
    try:
        body = decode(reply.body)
    except msgspec.DecodeError as error:
        raise Drifted(f"The answer of {path} is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise Drifted(f"The answer of {path} is not an object.")
    return cast("StripeObject", body)


def truth_of(reply: Reply, cause: Cause | None = None) -> Truth:
    """When the reply was true. `cause`: what made us ask, for the change feed."""
    return Truth(reply.not_before, reply.not_after, cause)


def spanning(earlier: Truth | None, later: Truth) -> Truth:
    """When both were true, of pages that are applied as one."""
    return later if earlier is None else Truth(min(earlier.lo, later.lo), max(earlier.hi, later.hi))
