"""Templates, their filters, security headers, and live updates of open pages.

Everything a template writes is escaped. The content security policy allows scripts and styles from our
own files only. No page is cached, since it contains rows.

Live updates are server-sent events that `static/console.js` applies:

    event: replace   {"id": ..., "html": ...}              replaces the element's content
    event: prepend   {"id": ..., "html": ..., "keep": n}   adds before it; keeps its first n children
    event: end                                             no more updates

A stream ends when the gateway stops; the browser then reconnects.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response, StreamingResponse

from pinstripe.console.sessions import Session
from pinstripe.gateway.api.events import MEDIA, MOST_STREAMS, counted
from pinstripe.gateway.deps import Gateway
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.gateway.syncs import StoredSync

HERE = Path(__file__).parent
STATIC = HERE / "static"

SECTIONS = (
    ("", "Overview"),
    ("insights", "Insights"),
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
    # Not "no-referrer": then browsers send forms with `Origin: null`, which we reject.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice at the top of a page. `kind`: "good", "warn", "bad" or ""."""

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
            activity=activity,
            number=number,
            span=span,
            size=size,
            clock=clock,
            moment=moment,
            ago=ago,
            badge=badge,
        )
        self._environment.globals.update(
            asset=self.asset,
            path_of=path_of,
            mode_badge=mode_badge,
            sparkline=sparkline,
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
        session: Session | None = None,
        section: str = "",
        sync: StoredSync | None = None,
        syncs: Sequence[StoredSync] = (),
        platforms: bool = False,
        messages: Sequence[Notice] = (),
        status: int = 200,
        **shown: object,
    ) -> HTMLResponse:
        """Return a whole page. `shown` are the template's variables."""
        token = session.csrf if session is not None else ""
        html = self._environment.get_template(template).render(
            session=session,
            section=section,
            sync=sync,
            syncs=syncs,
            platforms=platforms,
            messages=messages,
            csrf=lambda: Markup('<input type="hidden" name="csrf" value="{}">').format(token),
            **shown,
        )
        kept = {"Cache-Control": "no-store", **HEADERS}
        return HTMLResponse(html, status_code=status, headers=kept)

    def piece(self, template: str, **shown: object) -> str:
        """Return a fragment, as sent to open pages."""
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


_STEPS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))

STATES = {
    "done": "good",
    "running": "blue",
    "starting": "blue",
    "found": "",
    "paused": "warn",
    "refused": "warn",
    "failed": "bad",
    "stopped": "bad",
}
"""State -> the colour of its badge."""


ACTIVITIES = {
    "backfilling": "initial sync",
    "following": "syncing",
    "elsewhere": "synced elsewhere",
}
"""Activity of a sync in the API -> label, where they differ."""


def activity(name: str) -> str:
    return ACTIVITIES.get(name, name)


def number(value: float | None) -> str:
    """Digits in groups of three.

    >>> number(1234567), number(0.25), number(None)
    ('1,234,567', '0.25', '–')
    """
    if value is None:
        return "–"
    return f"{value:,.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value:,}"


def span(seconds: float | None) -> str:
    """A length of time, short.

    >>> span(0.0412), span(3.2), span(75), span(7300), span(200000), span(None)
    ('41 ms', '3.2 s', '1 min 15 s', '2 h 1 min', '2 d 7 h', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    rest = round(seconds)
    for (size, unit), (lower, lower_unit) in zip(_STEPS, (*_STEPS[1:], (1.0, "s")), strict=True):
        if rest >= size:
            more = int(rest % size // lower)
            return f"{int(rest // size)} {unit}" + (f" {more} {lower_unit}" if more else "")
    return f"{rest} s"


def size(count: int) -> str:
    """Bytes, as people read them.

    >>> size(0), size(8192), size(1_300_000), size(2_500_000_000)
    ('0', '8 kB', '1.3 MB', '2.5 GB')
    """
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= step:
            value = count / step
            return f"{value:.1f} {unit}" if value < 10 and step > 10**3 else f"{value:.0f} {unit}"
    return str(count)


def moment(value: datetime | float | None) -> Markup:
    """Return a `<time>` in UTC, with local time on hover."""
    if value is None:
        return Markup('<span class="faint">–</span>')
    at = value if isinstance(value, datetime) else datetime.fromtimestamp(value, UTC)
    at = at.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(timespec="milliseconds"), at.strftime("%Y-%m-%d %H:%M:%S")
    )


def clock(value: datetime) -> Markup:
    """Return the time of day, with the date on hover."""
    at = value.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(timespec="milliseconds"), at.strftime("%H:%M:%S")
    )


def ago(value: datetime | float | None, now: float | None = None) -> Markup:
    """How long since, with the moment itself behind it."""
    if value is None:
        return Markup('<span class="faint">–</span>')
    at = value if isinstance(value, datetime) else datetime.fromtimestamp(value, UTC)
    since = (time.time() if now is None else now) - at.timestamp()
    return Markup('<time datetime="{}">{} ago</time>').format(
        at.astimezone(UTC).isoformat(timespec="milliseconds"), span(max(since, 0.0))
    )


def badge(text: str, colour: str | None = None) -> Markup:
    """A state in its colour."""
    chosen = STATES.get(text, "") if colour is None else colour
    return Markup('<span class="badge {}">{}</span>').format(chosen, text)


def mode_badge(livemode: bool | None) -> Markup:
    if livemode is None:
        return Markup("")
    return badge("live mode", "live") if livemode else badge("test mode", "test")


def sparkline(values: list[float], *, ceiling: float | None = None) -> Markup:
    """A line of the values, oldest first, as SVG that stretches to its place."""
    if len(values) < 2:
        return Markup('<p class="faint small">Not enough data yet.</p>')
    top = max(*values, ceiling or 0.0) or 1.0
    points = [
        f"{n * 100 / (len(values) - 1):.2f},{29 - 27 * min(v, top) / top:.2f}"
        for n, v in enumerate(values)
    ]
    line = "M" + " L".join(points)
    return Markup(
        '<svg class="spark" viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true">'
        '<path class="area" d="{0} L100,30 L0,30 Z"/><path d="{0}"/></svg>'
    ).format(line)


END = b"event: end\ndata: over\n\n"
"""Nothing will follow: the browser is not to come back."""

ALIVE = b": \n\n"
"""Sent when there is nothing to send, so that nothing between takes the line for dead."""


def replace(element: str, html: str) -> bytes:
    """New content for the element of this id."""
    return _event(b"replace", {"id": element, "html": html})


def prepend(element: str, html: str, *, keep: int) -> bytes:
    """More content, on top of the element of this id."""
    return _event(b"prepend", {"id": element, "html": html, "keep": keep})


def _event(name: bytes, told: dict[str, object]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, msgspec.json.encode(told))


def stream(gateway: Gateway, pieces: AsyncIterator[bytes]) -> Response:
    """The answer that goes on. Raises HTTPError where too many are open."""
    if gateway.meters.streams >= MOST_STREAMS:
        raise HTTPError(
            503, "too_many_streams", f"{MOST_STREAMS} pages are open.", hint="Close some of them."
        )
    headers = {**HEADERS, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(counted(gateway, pieces), media_type=MEDIA, headers=headers)
