"""The context of one page: session, sync, response, and whether its endpoint is called; log in and out.

Every endpoint of the console is called through `PageGuard`. It admits callers by the policy of
`gateway.http.auth`, redirects others to the login page, checks the token of each form before the endpoint
runs, and finds the sync that the path names. The admin token is never kept: `Login` replaces it by a
session.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from starlette.datastructures import FormData
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response

from pinstripe.console.sessions import Session, Sessions, drop_cookie, set_cookie
from pinstripe.console.templating import HEADERS, Notice, Pages, path_of
from pinstripe.errors import PinstripeError
from pinstripe.gateway.deps import Gateway
from pinstripe.gateway.http.auth import Auth
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.gateway.syncs import StoredSync

_FORM_BYTES = 256 * 1024
"""The largest form: a long statement for the SQL box."""


@dataclass(slots=True)
class PageContext:
    """What an endpoint gets. `sync` is the one that the address names; "" section is the overview."""

    request: Request
    gateway: Gateway
    pages: Pages
    session: Session
    section: str
    syncs: Sequence[StoredSync]
    chosen: StoredSync | None
    """The sync that the path names; None on pages of the whole service."""
    form: FormData = field(default_factory=FormData)
    """Of a POST; its token has been checked."""

    @property
    def sync(self) -> StoredSync:
        """The same, for endpoints whose route has `{sync}`."""
        assert self.chosen is not None  # noqa: S101 (`PageGuard` has found it)
        return self.chosen

    def named(self, name: str) -> str:
        """A part of the path, decoded."""
        return str(self.request.path_params[name])

    def text(self, name: str, default: str = "") -> str:
        """A field of the form, or of the query of a GET; without what surrounds it."""
        given = self.form if self.request.method == "POST" else self.request.query_params
        value = given.get(name, default)
        return value.strip() if isinstance(value, str) else default

    def page(
        self, template: str, *, messages: Sequence[Notice] = (), status: int = 200, **shown: object
    ) -> Response:
        """The page, with the frame around it."""
        return self.pages.page(
            template,
            session=self.session,
            section=self.section,
            sync=self.chosen,
            syncs=self.syncs,
            platforms=bool(self.gateway.parts.syncs.platforms),
            messages=messages,
            status=status,
            **shown,
        )

    def redirect(self, section: str, *more: str) -> Response:
        """To another page, after a form was taken."""
        return go(path_of(self.chosen.id if self.chosen is not None else "", section, *more))

    def error_page(self, error: PinstripeError, *, status: int = 503) -> Response:
        told = Notice(error.message, error.hint, "bad")
        return self.page(
            "message.html", title="Something went wrong", messages=[told], status=status
        )

    def not_found(self, what: str) -> Response:
        """There is no such thing."""
        told = Notice(what, kind="warn")
        return self.page("message.html", title="Not found", messages=[told], status=404)


PageEndpoint = Callable[[PageContext], Awaitable[Response]]
Wrapped = Callable[[Request], Awaitable[Response]]


class PageGuard:
    """Lets visitors in. One for the console."""

    def __init__(self, pages: Pages, sessions: Sessions, access: Auth) -> None:
        self.pages = pages
        self.sessions = sessions
        self.access = access
        access.session = self._is_logged_in

    def _is_logged_in(self, request: HTTPConnection) -> bool:
        session = self.sessions.of(request)
        return session is not None and session.logged_in

    def __call__(self, endpoint: PageEndpoint, section: str = "") -> Wrapped:
        """Return `endpoint` as a Starlette endpoint. The path parameter `sync`, if any, names the sync."""

        async def wrapped(request: Request) -> Response:
            gateway: Gateway = request.app.state.gateway
            try:
                self.access.check_page(request)
            except HTTPError as no:
                return self._refused(no)
            session = self.sessions.of(request)
            if not self.access.is_open and (session is None or not session.logged_in):
                return self._to_login(request)
            new = session is None
            session = session or self.sessions.begin(logged_in=False)
            response = await self._answer(endpoint, request, gateway, session, section)
            if new:
                set_cookie(response, session, secure=self.is_secure(request))
            return response

        return wrapped

    def is_secure(self, request: Request) -> bool:
        """Whether the browser came over HTTPS, as far as we can know."""
        gateway: Gateway = request.app.state.gateway
        return request.url.scheme == "https" or gateway.parts.public_url.startswith("https:")

    async def read_form(self, request: Request, session: Session | None) -> FormData | None:
        """Return the form of a POST; None if its token is not of this session, or if it is too large."""
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > _FORM_BYTES:
            return None
        form = await request.form(max_files=0, max_fields=200, max_part_size=_FORM_BYTES)
        return form if self.sessions.is_genuine(session, form.get("csrf")) else None

    async def _answer(
        self,
        endpoint: PageEndpoint,
        request: Request,
        gateway: Gateway,
        session: Session,
        section: str,
    ) -> Response:
        visit = PageContext(request, gateway, self.pages, session, section, (), None)
        try:
            if request.method == "POST":
                form = await self.read_form(request, session)
                if form is None:
                    return self._stale(visit)
                visit.form = form
            visit.syncs = await gateway.parts.control.list()
            wanted = request.path_params.get("sync")
            if wanted is not None:
                visit.chosen = next((s for s in visit.syncs if s.id == wanted), None)
                if visit.chosen is None:
                    return visit.not_found(f'There is no sync "{wanted}".')
            return await endpoint(visit)
        except HTTPError as no:
            told = Notice(no.message, no.hint, "bad")
            return visit.page("message.html", title="Error", messages=[told], status=no.status)
        except PinstripeError as error:
            return visit.error_page(error)

    def _to_login(self, request: Request) -> Response:
        wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        if request.method != "GET" or request.headers.get("accept") == "text/event-stream":
            return Response("Log in first.\n", 401, HEADERS, media_type="text/plain")
        return go(f"/login?next={quote(wanted, safe='')}" if wanted != "/" else "/login")

    def _refused(self, no: HTTPError) -> Response:
        text = f"{no.message}\n{no.hint}\n"
        return Response(text, no.status, HEADERS, media_type="text/plain")

    def _stale(self, visit: PageContext) -> Response:
        told = Notice(
            "The form was rejected: it was loaded before you logged in, or it is too large.",
            "Go back, reload the page and submit it again.",
            "warn",
        )
        return visit.page("message.html", title="Please try again", messages=[told], status=403)


def go(path: str) -> Response:
    """To another page of ours by GET."""
    return RedirectResponse(path, 303, HEADERS)


def local_path(wanted: str) -> str:
    """`wanted` if it is a path of ours, else the start: a login must not lead elsewhere.

    >>> local_path("/syncs/a?b=c"), local_path("//evil.example"), local_path("https://evil.example")
    ('/syncs/a?b=c', '/', '/')
    """
    plain = wanted.startswith("/") and not wanted.startswith(("//", "/\\"))
    return wanted if plain and wanted.isprintable() and "\\" not in wanted else "/"


class Login:
    """The page that asks for the token, and the button that ends the session."""

    def __init__(self, guard: PageGuard) -> None:
        self._guard = guard

    async def show(self, request: Request) -> Response:
        """Return the form, or a redirect if no token is required."""
        wanted = local_path(request.query_params.get("next", "/"))
        if self._guard.access.is_open or self._guard.access.session(request):
            return go(wanted)
        return self._form(request, self._guard.sessions.of(request), wanted)

    async def enter(self, request: Request) -> Response:
        """Takes the token. A wrong one is answered late."""
        sessions, access = self._guard.sessions, self._guard.access
        session = sessions.of(request)
        try:
            access.check_page(request)
            form = await self._guard.read_form(request, session)
            if form is None:
                told = Notice("The form has expired. Please try again.", kind="warn")
                return self._form(request, None, "/", told, status=403)
            wanted = local_path(str(form.get("next", "/")))
            good = await access.accepts(str(form.get("token", "")).strip())
        except HTTPError as no:
            told = Notice(no.message, no.hint, "bad")
            return self._form(request, session, "/", told, status=no.status)
        if not good:
            told = Notice("Wrong admin token.", "It is the value of PINSTRIPE_ADMIN_TOKEN.", "bad")
            return self._form(request, session, wanted, told, status=401)
        if session is not None:
            sessions.end(session)
        response = go(wanted)
        begun = sessions.begin(logged_in=True)
        set_cookie(response, begun, secure=self._guard.is_secure(request))
        return response

    async def leave(self, request: Request) -> Response:
        """Ends the session."""
        session = self._guard.sessions.of(request)
        if session is None:
            return go("/login")
        if await self._guard.read_form(request, session) is None:
            text = "The page has expired. Reload it, then log out.\n"
            return Response(text, 403, HEADERS, media_type="text/plain")
        self._guard.sessions.end(session)
        response = go("/login")
        drop_cookie(response)
        return response

    def _form(
        self,
        request: Request,
        session: Session | None,
        wanted: str,
        *messages: Notice,
        status: int = 200,
    ) -> Response:
        # This form carries a token too, against login CSRF.
        asking = session or self._guard.sessions.begin(logged_in=False)
        page = self._guard.pages.page(
            "login.html",
            session=asking,
            section="login",
            messages=messages,
            status=status,
            wanted=wanted,
        )
        if asking is not session:
            set_cookie(page, asking, secure=self._guard.is_secure(request))
        return page
