"""Reads Stripe's lists, page after page: the only page loop of the product.

    request(cursor) -> page -> request(cursor of the page) -> page ... -> the end, or Drifted

`list_at` and `list_of` make the request function of a path or of a `ListEndpoint`; `iter_pages` calls it
until the list ends. v1 goes on after the last id, v2 names the address of its next page. A list that would
never end raises Drifted, and a cursor whose object was deleted meanwhile starts the list again if the
caller wants that. The event log reader and the backfill request pages in an order of their own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Literal

from pinstripe.catalog.endpoints import PAGE, ListEndpoint, Param, list_request
from pinstripe.client.client import Params, StripeClient
from pinstripe.client.response import ListPage, read_list
from pinstripe.errors import Drifted, NotFound

_MAX_RESTARTS = 3


RequestPage = Callable[[str | None], Awaitable[ListPage]]
"""Requests the page after a cursor; None is the first page."""


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


def split_url(url: str) -> tuple[str, list[Param]]:
    """(path, parameters) of an address that Stripe gives, such as a nested list's `url`.

    >>> split_url("/v1/invoices/upcoming/lines?customer=cus_1")
    ('/v1/invoices/upcoming/lines', [('customer', 'cus_1')])
    """
    path, _, query = url.partition("?")
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    return path, [(name, value) for name, _, value in pairs]
