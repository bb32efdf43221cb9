"""The change feed: which rows changed, in which columns, and which event or request caused it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from urllib.parse import urlencode

from starlette.responses import Response

from pinstripe.console import templating
from pinstripe.console.events import columns_of
from pinstripe.console.page_context import PageContext
from pinstripe.console.templating import Pages, path_of
from pinstripe.gateway.deps import Gateway
from pinstripe.store.changes import ChangeFilter, changes_before

_PAGE = 50
_KEPT = 200
_LAST = 2**63 - 1


class Changes:
    """The page `/syncs/{sync}/changes`."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def show(self, visit: PageContext) -> Response:
        """Return a page of the feed, newest first. The first page is updated live."""
        assert visit.sync is not None  # noqa: S101 (its route names it)
        wanted = _wanted(visit)
        before = visit.text("before")
        position = min(int(before), _LAST) if before.isdecimal() and before.isascii() else _LAST
        async with visit.gateway.reads.connection() as connection:
            found = await changes_before(
                connection, visit.sync.schema, position, wanted=wanted, limit=_PAGE + 1
            )
        shown = found[:_PAGE]
        query = {n: visit.text(n) for n in ("table", "id") if visit.text(n)}
        more = {**query, "before": str(shown[-1].position)} if len(found) > _PAGE else None
        return visit.page(
            "changes.html",
            changes=[(change, columns_of(change)) for change in shown],
            query=query,
            live=f"{path_of(visit.sync.id, 'changes')}/live?{urlencode(query)}",
            is_first=not before,
            more=f"?{urlencode(more)}" if more else None,
        )

    async def live(self, visit: PageContext) -> Response:
        """Stream new changes."""
        assert visit.sync is not None  # noqa: S101 (its route names it)
        pieces = self._news(visit.gateway, visit.sync.id, visit.sync.schema, _wanted(visit))
        return templating.stream(visit.gateway, pieces)

    async def _news(
        self, gateway: Gateway, sync_id: str, schema: str, wanted: ChangeFilter
    ) -> AsyncIterator[bytes]:
        async with aclosing(gateway.feed.follow(schema, after=None, wanted=wanted)) as entries:
            async for entry in entries:
                if entry is None:
                    yield templating.ALIVE
                    continue
                html = self._pages.piece(
                    "changes_rows.html",
                    changes=[(entry.change, columns_of(entry.change))],
                    sync_id=sync_id,
                )
                yield templating.prepend("changes", html, keep=_KEPT)


def _wanted(visit: PageContext) -> ChangeFilter:
    return ChangeFilter(visit.text("table").replace("\0", ""), visit.text("id").replace("\0", ""))
