"""Log in and out with the admin token, which is never kept: a session replaces it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from pinstripe.console.page_context import PageGuard, go, local_path
from pinstripe.console.sessions import Session, drop_cookie, set_cookie
from pinstripe.console.templating import HEADERS, Notice
from pinstripe.gateway.http.errors import HTTPError


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
            sync=None,
            syncs=(),
            platforms=False,
            messages=messages,
            status=status,
            wanted=wanted,
        )
        if asking is not session:
            set_cookie(page, asking, secure=self._guard.is_secure(request))
        return page
