"""Every page of the console on one screen: path, endpoint, section of the navigation."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pinstripe.console import connect, diagram, insights, row, rows, syncs, tables
from pinstripe.console.events import Changes, Events
from pinstripe.console.keys import KeyChecks, Keys
from pinstripe.console.overview import Overview
from pinstripe.console.page_context import Login, PageGuard
from pinstripe.console.sessions import Sessions
from pinstripe.console.sql import Sql
from pinstripe.console.syncs import Stored
from pinstripe.console.templating import Notice, Pages, static
from pinstripe.gateway.http.auth import Auth


def console_routes(access: Auth) -> list[Route]:
    """For `gateway.app.GatewayApp`; from then on `access` knows the console's sessions."""
    pages = Pages()
    let_in, examinations = PageGuard(pages, Sessions(), access), KeyChecks()
    login, overview, events, changes = Login(let_in), Overview(pages), Events(pages), Changes(pages)
    keys, stored, sql = Keys(pages, examinations), Stored(examinations), Sql()
    return [
        Route("/static/diagram.css", diagram.style),
        Route("/static/{name}", static),
        Route("/login", login.show, methods=["GET"]),
        Route("/login", login.enter, methods=["POST"]),
        Route("/logout", login.leave, methods=["POST"]),
        Route("/", let_in(overview.start)),
        Route("/welcome", let_in(stored.welcome, "syncs")),
        Route("/platforms", let_in(syncs.show_platforms, "platforms")),
        Route("/platforms/{platform}", let_in(syncs.show_platform, "platforms")),
        Route("/syncs", let_in(stored.show, "syncs"), methods=["GET"]),
        Route("/syncs", let_in(stored.add, "syncs"), methods=["POST"]),
        Route("/syncs/{sync}/pause", let_in(stored.pause, "syncs"), methods=["POST"]),
        Route("/syncs/{sync}/resume", let_in(stored.resume, "syncs"), methods=["POST"]),
        Route("/syncs/{sync}/remove", let_in(stored.remove, "syncs"), methods=["POST"]),
        Route("/syncs/{sync}", let_in(overview.show)),
        Route("/syncs/{sync}/live", let_in(overview.live)),
        Route("/syncs/{sync}/insights", let_in(insights.show, "insights")),
        Route("/syncs/{sync}/events", let_in(events.show, "events")),
        Route("/syncs/{sync}/events/live", let_in(events.live)),
        Route("/syncs/{sync}/events/{event}", let_in(events.one, "events")),
        Route("/syncs/{sync}/changes", let_in(changes.show, "changes")),
        Route("/syncs/{sync}/changes/live", let_in(changes.live)),
        Route("/syncs/{sync}/find", let_in(tables.find, "tables")),
        Route("/syncs/{sync}/tables", let_in(tables.show, "tables")),
        Route("/syncs/{sync}/tables/{table}", let_in(tables.one, "tables")),
        Route("/syncs/{sync}/tables/{table}/rows", let_in(rows.show, "tables")),
        # A key may hold slashes: users name products and coupons as they like.
        Route("/syncs/{sync}/tables/{table}/rows/{key:path}", let_in(row.show, "tables")),
        Route("/syncs/{sync}/sql", let_in(sql.show, "sql"), methods=["GET"]),
        Route("/syncs/{sync}/sql", let_in(sql.run, "sql"), methods=["POST"]),
        Route("/syncs/{sync}/sql/csv", let_in(sql.csv, "sql"), methods=["POST"]),
        Route("/syncs/{sync}/sql/names", let_in(sql.names, "sql")),
        Route("/syncs/{sync}/diagram", let_in(diagram.show, "diagram")),
        Route("/syncs/{sync}/diagram/{domain}", let_in(diagram.show, "diagram")),
        Route("/syncs/{sync}/diagram/{domain}/{table}", let_in(diagram.show, "diagram")),
        Route("/syncs/{sync}/connect", let_in(connect.show, "connect")),
        Route("/syncs/{sync}/connect/reader", let_in(connect.make, "connect"), methods=["POST"]),
        Route("/syncs/{sync}/connect/remove", let_in(connect.drop, "connect"), methods=["POST"]),
        Route("/syncs/{sync}/keys", let_in(keys.show, "keys")),
        Route("/syncs/{sync}/keys/live", let_in(keys.live)),
        Route("/syncs/{sync}/keys/examine", let_in(keys.check_key, "keys"), methods=["POST"]),
        Route("/syncs/{sync}/keys/change", let_in(keys.change, "keys"), methods=["POST"]),
    ]


class UnknownPath:
    """The app for what no route matches: a page for browsers, without anything of a sync's."""

    def __init__(self) -> None:
        self._pages = Pages()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        if request.method != "GET" or "text/html" not in request.headers.get("accept", ""):
            raise HTTPException(404)  # Programs get the one error shape.
        told = Notice("There is no page at this address.", kind="warn")
        page = self._pages.page("message.html", title="Not found", messages=[told], status=404)
        await page(scope, receive, send)
