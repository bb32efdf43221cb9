"""The overview: the status of each sync, live while the page is open.

Pieces of the page are rendered once for each refresh of the status board and sent to every open page:
fifty open pages cost one query and one rendering a second. Totals of rows are Postgres's estimates;
nothing is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from starlette.responses import Response

from pinstripe.console import templating
from pinstripe.console.page_context import PageContext, go
from pinstripe.console.templating import Pages, path_of
from pinstripe.errors import PinstripeError
from pinstripe.gateway.deps import Gateway
from pinstripe.gateway.live.status_board import SyncStatus
from pinstripe.store.cursors import Checkpoint, RememberedRefusal, load_checkpoints, load_refusals
from pinstripe.store.events import EventFilter, EventLine, has_events, list_events
from pinstripe.store.pool import Connection
from pinstripe.store.status import estimate_rows

_NEWEST = 8


@dataclass(slots=True)
class _Drawn:
    """The rendered pieces of one sync's page, as of one refresh."""

    at: object = None
    pieces: dict[str, str] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Overview:
    """The pages `/` and `/syncs/{sync}`, and the stream behind the second."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._drawn: dict[str, _Drawn] = {}

    async def start(self, visit: PageContext) -> Response:
        """All syncs; straight to the one if there is only one, and to the first steps without any."""
        if not visit.syncs:
            return go("/platforms" if visit.gateway.parts.syncs.platforms else "/welcome")
        if len(visit.syncs) == 1:
            return go(path_of(visit.syncs[0].id))
        board = await visit.gateway.board.fresh()
        lags = {
            i: [s.lag_s for s in visit.gateway.board.lags(i) if s.lag_s is not None] for i in board
        }
        return visit.page("overview_all.html", board=board, lags=lags)

    async def show(self, visit: PageContext) -> Response:
        """One sync."""
        board = await visit.gateway.board.fresh()
        live = board[visit.sync.id]
        pieces = await self._draw(visit.gateway, live)
        refused: list[Checkpoint] = []
        partly: Sequence[RememberedRefusal] = ()
        try:
            async with visit.gateway.reads.connection() as connection:
                refused = await _refused(connection, live.schema)
                partly = await load_refusals(connection, live.schema, is_due=True)
        except PinstripeError:
            pass  # The pieces show the error.
        return visit.page("overview.html", pieces=pieces, refused=refused, partly=partly)

    async def live(self, visit: PageContext) -> Response:
        """The stream of pieces that have changed."""
        return templating.stream(visit.gateway, self._pieces(visit.gateway, visit.sync.id))

    async def _pieces(self, gateway: Gateway, sync_id: str) -> AsyncIterator[bytes]:
        sent: dict[str, str] = {}
        async with aclosing(gateway.board.watch()) as looks:
            async for board in looks:
                live = board.get(sync_id)
                if live is None:
                    return
                pieces = await self._draw(gateway, live)
                for name, html in pieces.items():
                    if sent.get(name) != html:
                        yield templating.replace(name, html)
                sent = pieces
                yield templating.ALIVE

    async def _draw(self, gateway: Gateway, live: SyncStatus) -> dict[str, str]:
        """The pieces as of `live`; drawn by the first who asks."""
        drawn = self._drawn.setdefault(live.id, _Drawn())
        async with drawn.lock:
            if drawn.at != live.at:
                drawn.pieces = await self._draw_anew(gateway, live)
                drawn.at = live.at
            return drawn.pieces

    async def _draw_anew(self, gateway: Gateway, live: SyncStatus) -> dict[str, str]:
        rows: int | None = None
        events: list[EventLine] | None = None
        try:
            async with gateway.reads.connection(longest_s=2.0) as connection:
                tables = await estimate_rows(connection, [live.schema])
                rows = sum(tables[live.schema].values())
                events = []
                if await has_events(connection, live.schema):
                    newest = EventFilter()
                    events = await list_events(connection, live.schema, newest, limit=_NEWEST)
        except PinstripeError:
            pass  # The board reports it.
        samples = gateway.board.lags(live.id)
        shown: dict[str, object] = {
            "live": live,
            "process": live.process,
            "rows": rows,
            "events": events,
            "lags": [s.lag_s for s in samples if s.lag_s is not None],
        }
        return {
            name: self._pages.piece(f"overview_{name}.html", **shown)
            for name in ("standing", "progress", "reader", "newest")
        }


async def _refused(connection: Connection, schema: str) -> list[Checkpoint]:
    """The lists that cannot be read, those that are tried again first."""
    cursors = await load_checkpoints(connection, schema)
    found = [c for c in cursors.values() if c.state in ("refused", "failed")]
    return sorted(found, key=lambda c: (c.state != "failed", c.table))
