"""The parts of a gateway: `Deps` from outside, `Gateway` with what the API adds.

`Deps` is the seam: the service layer fills it and passes it to `app.GatewayApp`; nothing in it opens a
connection. `Gateway` adds database reads, the status board, the shared change stream and the counters. It
is `request.app.state.gateway` for every route, including those of the console.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from pinstripe.gateway.http.auth import Auth
from pinstripe.gateway.http.metrics import Meters, Metrics
from pinstripe.gateway.live.change_stream import ChangeStream
from pinstripe.gateway.live.status_board import StatusBoard
from pinstripe.gateway.syncs import Reads, SyncControl, Syncs
from pinstripe.store.pool import Pool

Handler = Callable[[Request], Awaitable[Response]]
"""An endpoint as Starlette knows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deps:
    """Given from outside. `pool` and `database_url` give None while there is no database.

    `proxy` gets every path of a Stripe host, untouched. `wait` answers `/wait/{kind}/{id}` and asks
    `access.allows_wait` itself; `webhook` answers `/webhooks/stripe/{id}` and checks the signature.
    """

    syncs: Syncs
    control: SyncControl
    access: Auth
    proxy: ASGIApp
    wait: Handler
    webhook: Handler
    pool: Callable[[], Pool | None]
    database_url: Callable[[], str | None]
    public_url: str = ""
    """As users reach the gateway; "" if that is not known: then as the request came."""
    reader_url: str = field(default="", repr=False)
    """Of a role that may only read, for the SQL box; "" to make one where it is needed."""


class Gateway:
    """All of it, joined. `run` it beside the server, or let the app's lifespan do so."""

    def __init__(self, parts: Deps) -> None:
        self.parts = parts
        self.reads = Reads(parts.pool)
        self.board = StatusBoard(parts.control, self.reads)
        self.feed = ChangeStream(self.reads, parts.database_url)
        self.meters = Meters()
        self.metrics = Metrics(self.board, self.reads, self.meters)
        self.closing = False

    def close(self) -> None:
        """Ends the streams, so that a server that shuts down need not wait for their readers."""
        self.closing = True
        self.feed.close()
        self.board.close()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.board.run(), name="board")
            group.create_task(self.feed.run(), name="feed")
