"""Reads Stripe's lists, page after page: the only page loop of the product.

    request(cursor) -> page -> request(cursor of the page) -> page ... -> the end, or Drifted

`list_at` and `list_of` make the request function of a path or of a `ListEndpoint`; `iter_pages` calls it
until the list ends. v1 goes on after the last id, v2 names the address of its next page. A list that would
never end raises Drifted, and a cursor whose object was deleted meanwhile starts the list again if the
caller wants that. The event log reader and the backfill request pages in an order of their own; they share
`read_list`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, cast

import msgspec

from pinstripe.catalog.endpoints import ListEndpoint, Param
from pinstripe.client.client import Params, StripeClient
from pinstripe.client.response import Response, StripeObject, decode, decode_odd
from pinstripe.errors import Drifted, NotFound

PAGE = 100
"""Objects of a page: the most that Stripe gives (https://docs.stripe.com/api/pagination)."""

_LONGEST_ID = 5000
"""Stripe's ids are shorter than that (https://docs.stripe.com/upgrades#what-changes-does-stripe-consider)."""

_MAX_RESTARTS = 3


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a list. `after` is the next page's cursor: the last id, or in v2 that page's address.

    `is_first`: the list began, or began again, with it.
    """

    path: str
    response: Response = field(repr=False)
    objects: list[StripeObject] = field(repr=False)
    has_more: bool
    after: str | None
    is_first: bool = False


RequestPage = Callable[[str | None], Awaitable[ListPage]]
"""Requests the page after a cursor; None is the first page."""


class PageIds(NamedTuple):
    """The ids of a page in the list's order, and whether more follow.

    An entry without a usable id is None: it cannot be told from others, nor paged from.
    """

    ids: tuple[str | None, ...]
    has_more: bool

    @property
    def after(self) -> str | None:
        """The cursor of the next page: the last entry that has an id."""
        return next((key for key in reversed(self.ids) if key is not None), None)


class _Entry(msgspec.Struct):
    id: str | None = None


class _List(msgspec.Struct):
    data: list[_Entry]
    has_more: bool = False


_decoder = msgspec.json.Decoder(_List)


async def iter_pages(
    request: RequestPage,
    *,
    after: str | None = None,
    on_lost_cursor: Literal["raise", "restart"] = "raise",
) -> AsyncIterator[ListPage]:
    """The pages of a list from `after` on (exclusive), in Stripe's order.

    A cursor object that was deleted meanwhile raises `NotFound` with `param="starting_after"`, or starts
    the list again from its first page, up to three times. Raises `Drifted` where the list does not come to
    an end, and what `request` raises.
    """
    cursor, passed, restarts = after, {after}, 0
    while True:
        try:
            page = await request(cursor)
        except NotFound as error:
            is_lost = cursor is not None and error.param == "starting_after"
            if not is_lost or on_lost_cursor == "raise":
                raise
            restarts += 1
            if restarts > _MAX_RESTARTS:
                raise Drifted(
                    f"A list lost its cursor {restarts} times: {error.message}"
                ) from error
            cursor, passed = None, {None}
            continue
        yield replace(page, is_first=cursor is None)
        if not page.has_more:
            return
        cursor = page.after
        if cursor is None or cursor in passed:
            raise Drifted(
                f"The list {page.path} says that it goes on, but not from where (request "
                f"{page.response.request_id or 'unknown'}).",
                hint="Its pages cannot be followed; report it with the request id.",
            )
        passed.add(cursor)


def list_at(
    stripe: StripeClient, path: str, params: Params = (), *, endpoint: str, priority: int = 0
) -> RequestPage:
    """Requests pages of the v1 list at a path. `endpoint` is the rate limiter's name for it."""

    async def request(after: str | None) -> ListPage:
        query = [*params, ("limit", str(PAGE))]
        if after is not None:
            query.append(("starting_after", after))
        return read_list(await stripe.get(path, query, endpoint=endpoint, priority=priority), path)

    return request


def list_of(
    stripe: StripeClient,
    endpoint: ListEndpoint,
    path: str,
    params: Sequence[Param],
    *,
    priority: int,
) -> RequestPage:
    """Requests pages of one list of an endpoint, with what is to be expanded in it."""

    async def request(after: str | None) -> ListPage:
        where, query = list_request(endpoint, path, params, after=after, expand=endpoint.expand)
        response = await stripe.get(where, query, endpoint=endpoint.name, priority=priority)
        return read_list(response, path)

    return request


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


def split_url(url: str) -> tuple[str, list[Param]]:
    """(path, parameters) of an address that Stripe gives, such as a nested list's `url`.

    >>> split_url("/v1/invoices/upcoming/lines?customer=cus_1")
    ('/v1/invoices/upcoming/lines', [('customer', 'cus_1')])
    """
    path, _, query = url.partition("?")
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    return path, [(name, value) for name, _, value in pairs]


def read_list(response: Response, path: str) -> ListPage:
    """The page in `response`, of v1 (`has_more`) or v2 (`next_page_url`). Raises Drifted for others."""
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
        after = str(following) if following else None
        return ListPage(path, response, objects, following is not None, after)
    ids = (o.get("id") for o in reversed(objects))
    last = next((key for key in ids if isinstance(key, str)), None)
    return ListPage(path, response, objects, body.get("has_more") is True, last)


def read_ids(response: Response, path: str) -> PageIds:
    """The ids of a page, several times cheaper than `read_list`. Raises Drifted if it is no list."""
    try:
        page = _decoder.decode(response.body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        odd = _read_odd(response)
        if odd is not None:
            return odd
        raise Drifted(
            f"The answer of {path} is not a list (request {response.request_id or 'unknown'}): "
            f"{error}.",
            hint="Is this path a list in the pinned API version?",
        ) from error
    return PageIds(tuple(entry.id for entry in page.data), page.has_more)


def _read_odd(response: Response) -> PageIds | None:
    """A page with an odd entry: no object, an id that is no text, or text that is not Unicode."""
    body = decode_odd(response.body)
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(data, list):
        return None
    ids = [entry.get("id") if isinstance(entry, dict) else None for entry in data]
    usable = (i if isinstance(i, str) and len(i) < _LONGEST_ID else None for i in ids)
    return PageIds(tuple(usable), body.get("has_more") is True)


def read_object(response: Response, path: str) -> StripeObject:
    """The object in `response`. Raises Drifted if it is none."""
    try:
        body = decode(response.body)
    except msgspec.DecodeError as error:
        raise Drifted(f"The answer of {path} is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise Drifted(f"The answer of {path} is not an object.")
    return cast("StripeObject", body)
