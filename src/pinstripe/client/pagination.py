"""A list of Stripe's, page after page.

Follows `has_more` by the id of the last object. Decodes ids and `has_more` only: what the objects
are, `mirror` finds out from the same bytes. A list that would never end is an error, not a hang.

One page of a list: how it is asked for, and what the answer holds; one object likewise.

Pure. Both kinds of list are known here: v1 goes on after the last id, v2 names its next page itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import msgspec

from pinstripe.catalog.endpoints import ListEndpoint, Param
from pinstripe.client.client import Params, StripeClient
from pinstripe.client.decode import StripeObject, decode
from pinstripe.client.response import Response, decode_odd
from pinstripe.errors import Drifted


class Page(NamedTuple):
    """One page: the answer as it came, the ids in the list's order, and whether more follow.

    `ids` has None for an entry without a sensible one: it cannot be told from others, nor paged from.
    """

    response: Response
    ids: tuple[str | None, ...]
    has_more: bool


class _Entry(msgspec.Struct):
    id: str | None = None


class _List(msgspec.Struct):
    data: list[_Entry]
    has_more: bool = False


_decoder = msgspec.json.Decoder(_List)

_LONGEST_ID = 5000
"""Stripe's ids are shorter than that (https://docs.stripe.com/upgrades#what-changes-does-stripe-consider)."""


async def iter_pages(
    stripe: StripeClient,
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
        response = await stripe.get(path, asked, endpoint=endpoint, priority=priority)
        page = read_page(response, path)
        yield page
        if not page.has_more:
            return
        cursor = last_id(page.ids)
        if cursor is None or cursor in seen:
            raise Drifted(
                f"The list {path} says that it goes on, but not from where (request "
                f"{response.request_id or 'unknown'}).",
                hint="Its pages cannot be followed; report it with the request id.",
            )


def last_id(ids: Sequence[str | None]) -> str | None:
    """From where the next page goes on: the last entry that has an id."""
    return next((key for key in reversed(ids) if key is not None), None)


def read_page(response: Response, path: str) -> Page:
    """`reply` read as one page of the list at `path`."""
    try:
        found = _decoder.decode(response.body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        page = _read_odd(response)
        if page is not None:
            return page
        raise Drifted(
            f"The answer of {path} is not a list (request {response.request_id or 'unknown'}): "
            f"{error}.",
            hint="Is this path a list in the pinned API version?",
        ) from error
    return Page(response, tuple(entry.id for entry in found.data), found.has_more)


def _read_odd(response: Response) -> Page | None:
    """A page with an entry that is odd (no object, an id that is no text, text that is none)."""
    body = decode_odd(response.body)
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(data, list):
        return None
    ids = [entry.get("id") if isinstance(entry, dict) else None for entry in data]
    sensible = (i if isinstance(i, str) and len(i) < _LONGEST_ID else None for i in ids)
    return Page(response, tuple(sensible), body.get("has_more") is True)


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


def read_list(response: Response, path: str) -> ListPage:
    """The list in `reply`, of v1 (`has_more`) or v2 (`next_page_url`). Raises Drifted if it is none."""
    try:
        body = decode(response.body)
    except msgspec.DecodeError as error:
        raise Drifted(f"The answer of {path} is not JSON: {error}.") from error
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(data, list):
        raise Drifted(
            f"The answer of {path} is not a list (request {response.request_id or 'unknown'}).",
            hint="Is this a list in the pinned API version?",
        )
    objects = cast("list[StripeObject]", [o for o in data if isinstance(o, dict)])
    if "next_page_url" in body:
        following = body["next_page_url"]
        return ListPage(objects, following is not None, str(following) if following else None)
    ids = (o.get("id") for o in reversed(objects))
    last = next((key for key in ids if isinstance(key, str)), None)
    return ListPage(objects, body.get("has_more") is True, last)


def read_object(response: Response, path: str) -> StripeObject:
    """The object in `reply`."""
    try:
        body = decode(response.body)
    except msgspec.DecodeError as error:
        raise Drifted(f"The answer of {path} is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise Drifted(f"The answer of {path} is not an object.")
    return cast("StripeObject", body)
