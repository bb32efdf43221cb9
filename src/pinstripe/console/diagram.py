"""The diagram: all domains, the tables of one, or one table with its neighbours.

The catalog says what is drawn; the database says only which tables have rows. The first layout of a
diagram takes a while, so it runs in a thread and is cached. The page works without JavaScript, which
adds zoom and panning (`static/diagram.js`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Literal
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from pinstripe.catalog.domains import DOMAINS, domain_by_table
from pinstripe.catalog.tables import tables
from pinstripe.console.page_context import PageContext, go
from pinstripe.console.templating import HEADERS, path_of
from pinstripe.diagram.graph import Detail, Diagram, around, of_domain, overview
from pinstripe.diagram.layout import draw
from pinstripe.diagram.render import Links, stylesheet, to_mermaid, to_svg
from pinstripe.errors import PinstripeError
from pinstripe.store.pool import Connection

_FILLED = """
SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND pg_relation_size(c.oid) > 0
"""
_DETAILS: dict[Detail, str] = {"keys": "references", "short": "key columns", "full": "all columns"}


@dataclass(frozen=True, slots=True)
class DiagramView:
    """Which diagram: of all ("", ""), of a domain, or around a table; and how much of it."""

    domain: str
    table: str
    detail: Detail
    only_filled: bool

    def query(self, **changed: str) -> str:
        """The address's query, with some of it changed; "" takes a name out."""
        kept = {"rows": "some" if self.only_filled else "", "detail": self.detail, **changed}
        usual = {"detail": "short"}
        chosen = {n: v for n, v in kept.items() if v and usual.get(n) != v}
        return f"?{urlencode(chosen)}" if chosen else ""

    @property
    def name(self) -> str:
        """Of a file that holds it."""
        return self.table or self.domain or "domains"


async def show(visit: PageContext) -> Response:
    """The page with the diagram; the same as a file with `?form=svg` or `?form=mermaid`."""
    if wanted := visit.text("find"):
        return _found(visit, wanted)
    place = _place(visit)
    if (place.domain and place.domain not in DOMAINS) or (place.table and not _fits(place)):
        return visit.not_found(f'There is no diagram for "{place.table or place.domain}".')
    filled = await _filled(visit) if place.only_filled else None
    diagram = _diagram(place, filled)
    form = visit.text("form")
    if form == "mermaid":
        return _file(to_mermaid(diagram), f"{place.name}.mmd", "text/plain; charset=utf-8")
    drawing = await asyncio.to_thread(draw, diagram)
    if form == "svg":
        return _file(to_svg(drawing), f"{place.name}.svg", "image/svg+xml")
    root = path_of(visit.sync.id, "diagram")
    links = Links(
        table=f"{root}/{{domain}}/{{name}}{place.query()}", domain=f"{root}/{{name}}{place.query()}"
    )
    return visit.page(
        "diagram.html",
        place=place,
        domain=DOMAINS.get(place.domain),
        diagram=diagram,
        # Its text is escaped where the SVG is built.
        svg=Markup(to_svg(drawing, links, styled=False)),  # noqa: S704
        mermaid=to_mermaid(diagram),
        details=_DETAILS,
        style=style_address(),
        names=sorted(tables()),
        domains=DOMAINS,
        domain_by_table=domain_by_table(),
    )


async def style(_: Request) -> Response:
    """The style sheet of all diagrams."""
    kept = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(stylesheet(), headers={**HEADERS, **kept}, media_type="text/css")


@cache
def style_address() -> str:
    """Return the style sheet's URL, which changes with its content so that browsers can cache it."""
    return f"/static/diagram.css?v={sha256(stylesheet().encode()).hexdigest()[:10]}"


def _place(visit: PageContext) -> DiagramView:
    names = visit.request.path_params
    asked = visit.text("detail")
    detail: Detail = next((d for d in _DETAILS if d == asked), "short")
    return DiagramView(
        str(names.get("domain", "")),
        str(names.get("table", "")),
        detail,
        visit.text("rows") == "some",
    )


def _fits(place: DiagramView) -> bool:
    domain = domain_by_table().get(place.table)
    return domain is not None and domain.name == place.domain


def _diagram(place: DiagramView, filled: frozenset[str] | None) -> Diagram:
    if place.table:
        return around(place.table, filled=filled, detail=place.detail)
    if place.domain:
        return of_domain(place.domain, filled=filled, detail=place.detail)
    return overview(filled=filled)


async def _filled(visit: PageContext) -> frozenset[str] | None:
    """Return the tables with rows; None if the database is unreachable: then all are drawn."""
    try:
        async with visit.gateway.reads.connection() as connection:
            return await _load_filled(connection, visit.sync.schema)
    except PinstripeError:
        return None


async def _load_filled(connection: Connection, schema: str) -> frozenset[str]:
    rows = await connection.fetch(_FILLED, schema)
    return frozenset(row[0] for row in rows) & frozenset(tables())


def _found(visit: PageContext, wanted: str) -> Response:
    """To the table or domain that is called like this."""
    kept = _place(visit).query()
    table = best(wanted)
    if table is not None:
        return go(path_of(visit.sync.id, "diagram", domain_by_table()[table].name, table) + kept)
    word = wanted.lower()
    domain = next((d for d in DOMAINS.values() if word in (d.name, d.title.lower())), None)
    if domain is not None:
        return go(path_of(visit.sync.id, "diagram", domain.name) + kept)
    return visit.not_found(f'No table matches "{wanted}".')


def best(wanted: str) -> str | None:
    """Return the table of that name, else the shortest name that contains it.

    >>> best("Invoice"), best("payment intent"), best("nonsense")
    ('invoice', 'payment_intent', None)
    """
    word = wanted.strip().lower().replace(" ", "_").replace(".", "_")
    names = [n for n in tables() if word in n]
    return min(names, key=lambda n: (n != word, not n.startswith(word), len(n), n), default=None)


def _file(
    text: str, name: str, kind: Literal["text/plain; charset=utf-8", "image/svg+xml"]
) -> Response:
    headers = {
        # A standalone file: it contains its style, and nothing else may run or load.
        **HEADERS,
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
        "Cache-Control": "no-store",
        "Content-Disposition": f'attachment; filename="{name}"',
    }
    return Response(text, headers=headers, media_type=kind)
