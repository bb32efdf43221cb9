"""Pages: a template, what it shows, and the headers that keep it to itself.

Everything that a template writes is escaped; scripts and styles come from our own files only, which the
content security policy holds a browser to. No page is kept by caches, since rows are on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from pinstripe.console import words
from pinstripe.console.sessions import Session
from pinstripe.gateway.control import StoredSync

HERE = Path(__file__).parent
STATIC = HERE / "static"

SECTIONS = (
    ("", "Overview"),
    ("tables", "Tables"),
    ("sql", "SQL"),
    ("diagram", "Diagram"),
    ("events", "Events"),
    ("changes", "Changes"),
    ("connect", "Connect"),
    ("keys", "Keys"),
    ("syncs", "Syncs"),
)
"""Of the navigation: path below the sync's own, and label."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": then browsers send forms with `Origin: null`, which is nobody.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True, slots=True)
class Message:
    """Something to be told on top of a page. `kind`: "good", "warn", "bad" or ""."""

    text: str
    hint: str = ""
    kind: str = ""


class Pages:
    """Renders the templates of the console."""

    def __init__(self) -> None:
        self._marks = {
            path.name: sha256(path.read_bytes()).hexdigest()[:10] for path in STATIC.iterdir()
        }
        self._environment = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(
            number=words.number,
            span=words.span,
            size=words.size,
            clock=words.clock,
            moment=words.moment,
            ago=words.ago,
            badge=words.badge,
        )
        self._environment.globals.update(
            asset=self.asset,
            path_of=path_of,
            mode_badge=words.mode_badge,
            sparkline=words.sparkline,
            sections=SECTIONS,
            version=version("pinstripe"),
        )

    def asset(self, name: str) -> str:
        """The address of a static file; it changes with the file, so that browsers may keep it."""
        return f"/static/{name}?v={self._marks[name]}"

    def page(
        self,
        template: str,
        *,
        session: Session | None,
        section: str,
        sync: StoredSync | None,
        syncs: Sequence[StoredSync],
        messages: Sequence[Message] = (),
        status: int = 200,
        **shown: object,
    ) -> HTMLResponse:
        """A whole page. `shown` are the template's own names."""
        token = session.csrf if session is not None else ""
        html = self._environment.get_template(template).render(
            session=session,
            section=section,
            sync=sync,
            syncs=syncs,
            messages=messages,
            csrf=lambda: Markup('<input type="hidden" name="csrf" value="{}">').format(token),
            **shown,
        )
        kept = {"Cache-Control": "no-store", **HEADERS}
        return HTMLResponse(html, status_code=status, headers=kept)

    def piece(self, template: str, **shown: object) -> str:
        """A part of a page, as it is sent to pages that are open."""
        return self._environment.get_template(template).render(**shown)


def path_of(sync_id: str, section: str = "", *more: str) -> str:
    """The address of a section of a sync's pages.

    >>> path_of("default"), path_of("default", "tables", "customer", "a/b")
    ('/syncs/default', '/syncs/default/tables/customer/a%2Fb')
    """
    if section == "syncs" or not sync_id:
        return "/syncs"
    parts = ["", "syncs", sync_id, *filter(None, [section, *more])]
    return "/".join(quote(part, safe="") for part in parts)


async def static(request: Request) -> Response:
    """A file of the package. Only names that are there."""
    name = request.path_params["name"]
    path = next((p for p in STATIC.iterdir() if p.name == name), None)
    if path is None:
        return Response(status_code=404, headers=HEADERS)
    kept = {"Cache-Control": "public, max-age=31536000, immutable"}
    return FileResponse(path, headers={**HEADERS, **kept})
