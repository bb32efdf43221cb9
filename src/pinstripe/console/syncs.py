"""Syncs and platforms: their lists, the form that adds a sync, pause, resume, remove, and accounts.

`/welcome` is the same form for a service without syncs. A key is passed to `SyncControl` and nowhere else:
no page shows it again, not even a form that was rejected.
"""

from __future__ import annotations

import re
from typing import get_args
from urllib.parse import urlencode

from starlette.responses import Response

from pinstripe.console.keys import KeyChecks
from pinstripe.console.page_context import PageContext, go
from pinstripe.console.templating import Notice
from pinstripe.errors import PinstripeError
from pinstripe.gateway.api.syncs import AccountsQuery, StateFilter, find_platform, read_accounts
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.gateway.syncs import NewSync
from pinstripe.store.platforms.status import read_platforms

_ID = re.compile(r"[a-z0-9-]{1,40}")
_STEPS = ("paused", "resumed", "removed", "added")


class Stored:
    """The pages `/syncs` and `/welcome`, and the buttons on them."""

    def __init__(self, examinations: KeyChecks) -> None:
        self._examinations = examinations

    async def show(self, visit: PageContext) -> Response:
        """All syncs, and the form for one more."""
        done, name = visit.text("done"), visit.text("id")
        known = done in _STEPS and _ID.fullmatch(name)
        told = [Notice(f"{name} was {done}.", kind="good")] if known else []
        return visit.page("stored.html", messages=told, given={})

    async def welcome(self, visit: PageContext) -> Response:
        """The first page of a service without syncs."""
        if visit.syncs:
            return go("/")
        return visit.page("welcome.html", given={})

    async def add(self, visit: PageContext) -> Response:
        """Verify the key with Stripe and start the sync. Errors are shown above the same form."""
        first = not visit.syncs
        given = {n: visit.text(n) for n in ("id", "schema", "account", "tables", "stripe_url")}
        options = NewSync(
            id=given["id"] or "main",
            api_key=visit.text("key"),
            schema=given["schema"] or None,
            stripe_account=given["account"] or None,
            stripe_url=given["stripe_url"],
            settings={"tables": given["tables"]} if given["tables"] else {},
        )
        try:
            sync = await visit.gateway.parts.control.add(options)
        except PinstripeError as error:
            told = Notice(error.message, error.hint, "bad")
            page = "welcome.html" if first else "stored.html"
            return visit.page(page, messages=[told], status=400, given=given)
        self._examinations.begin(visit.gateway, sync)
        return go(f"/syncs/{sync.id}/keys?new=1")

    async def pause(self, visit: PageContext) -> Response:
        await visit.gateway.parts.control.pause(visit.sync.id)
        return go(f"/syncs?done=paused&id={visit.sync.id}")

    async def resume(self, visit: PageContext) -> Response:
        await visit.gateway.parts.control.resume(visit.sync.id)
        return go(f"/syncs?done=resumed&id={visit.sync.id}")

    async def remove(self, visit: PageContext) -> Response:
        """Only with its name typed: with its tables, rows are gone for good."""
        if visit.text("typed") != visit.sync.id:
            told = Notice(f"{visit.sync.id} was not removed.", "Type its ID to confirm.", "warn")
            return visit.page("stored.html", messages=[told], status=400, given={})
        await visit.gateway.parts.control.remove(
            visit.sync.id, drop_tables=bool(visit.text("drop"))
        )
        return go(f"/syncs?done=removed&id={visit.sync.id}")


_PAGE = 50
_LONGEST = 100


async def show_platforms(visit: PageContext) -> Response:
    """All platforms, the workers and the tasks."""
    async with visit.gateway.reads.connection() as connection:
        found = await read_platforms(connection)
    return visit.page("platforms.html", found=found)


async def show_platform(visit: PageContext) -> Response:
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
