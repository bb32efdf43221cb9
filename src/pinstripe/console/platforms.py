"""Platforms: how the work on their accounts goes, and the accounts with a search, a filter and pages."""

from __future__ import annotations

from typing import get_args
from urllib.parse import urlencode

from starlette.responses import Response

from pinstripe.console.page_context import PageContext
from pinstripe.gateway.api.platforms import (
    AccountsQuery,
    StateFilter,
    find_platform,
    read_accounts,
)
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.store.platforms.status import read_platforms

_PAGE = 50
_LONGEST = 100


async def show(visit: PageContext) -> Response:
    """All platforms, the workers and the tasks."""
    async with visit.gateway.reads.connection() as connection:
        found = await read_platforms(connection)
    return visit.page("platforms.html", found=found)


async def one(visit: PageContext) -> Response:
    """One platform and a page of its accounts."""
    query = _query(visit)
    async with visit.gateway.reads.connection() as connection:
        try:
            platform = await find_platform(connection, visit.named("platform"))
        except HTTPError as no:
            return visit.not_found(no.message)
        page = await read_accounts(connection, platform.id, query)
    given = {n: v for n in ("search", "state") if (v := str(getattr(query, n)))}
    more = f"?{urlencode({**given, 'after': page.next})}" if page.next else None
    return visit.page(
        "platform.html",
        platform=platform,
        accounts=page.accounts,
        query=query,
        states=get_args(StateFilter)[1:],
        first=f"?{urlencode(given)}" if query.after else None,
        more=more,
    )


def _query(visit: PageContext) -> AccountsQuery:
    """What the address asks for; a state that there is not is none."""
    state = visit.text("state")
    known: dict[str, StateFilter] = {name: name for name in get_args(StateFilter)}
    return AccountsQuery(
        search=visit.text("search")[:_LONGEST],
        state=known.get(state, ""),
        after=visit.text("after")[:_LONGEST],
        limit=_PAGE,
    )
