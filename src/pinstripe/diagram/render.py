"""A diagram as SVG, with selectable text, titles for screen readers, links for the keyboard; or as Mermaid.

The SVG works alone as a file, or in a page (`styled=False`). Nothing in it runs, and all text is escaped.
The style sheet has light and dark colours, with one hue for each domain. A file contains it. A page serves
`stylesheet()` from its own URL, because a strict content security policy forbids inline styles. A script
may set the class `pointing` on the drawing and `near` on the lines of one table (`data-from`, `data-to`).

Mermaid's `erDiagram` is for Markdown that renders it
(https://mermaid.js.org/syntax/entityRelationshipDiagram.html): an attribute is a type, a name, keys and a
comment; a relation reads "many or none to one or none", because references may be null.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from itertools import pairwise

from pinstripe.catalog.domains import DOMAINS, domain_by_table
from pinstripe.catalog.tables import tables
from pinstripe.diagram.graph import Box, Diagram, DiagramRow, Link
from pinstripe.diagram.layout import (
    HEAD,
    MARK,
    PAD,
    Drawing,
    Placed,
    Point,
    Route,
    more_text,
    name_text,
    note_text,
    row_middle,
)

_CORNER = 6.0
_TIP = 7.0
_MARKS = {"key": "◆", "reference": "→", "column": "", "table": "→"}


@dataclass(frozen=True, slots=True)
class Links:
    """Where names lead: patterns with `{name}`, of a table also `{domain}`; "" for no link."""

    table: str = ""
    domain: str = ""

    def to_table(self, name: str) -> str:
        return self.table.replace("{name}", name).replace("{domain}", domain_by_table()[name].name)

    def to_domain(self, name: str) -> str:
        return self.domain.replace("{name}", name)


NOWHERE = Links()


def to_svg(drawing: Drawing, links: Links = NOWHERE, *, styled: bool = True) -> str:
    """The text of an SVG. `styled`: with its own style sheet, to stand alone."""
    diagram = drawing.diagram
    width, height = _n(drawing.width), _n(drawing.height)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="erd" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-labelledby="erd-title erd-about">',
        f'<title id="erd-title">{escape(diagram.title)}</title>',
        f'<desc id="erd-about">{escape(diagram.about)}</desc>',
    ]
    if styled:
        parts.append(f"<style>{alone()}{''.join(_highlights(drawing))}</style>")
    parts.append(f'<rect class="paper" width="{width}" height="{height}"/>')
    parts += ['<g class="links">', *(_route(r, drawing) for r in drawing.routes), "</g>"]
    parts += ['<g class="boxes">', *(_box(b, links) for b in drawing.boxes), "</g>", "</svg>"]
    return "\n".join(parts) + "\n"


def _box(placed: Placed, links: Links) -> str:
    box = placed.box
    classes = f"box d-{box.domain}{' main' if box.main else ''}"
    inner = "".join(_domain(placed, links) if box.kind == "domain" else _card(placed, links))
    at = f"translate({_n(placed.x)} {_n(placed.y)})"
    return f'<g class="{classes}" id="box-{box.name}" transform="{at}">{inner}</g>'


def _card(placed: Placed, links: Links) -> Iterator[str]:
    """A table or a group: a head with its name, a line for each row, a foot that counts the rest."""
    box, width = placed.box, placed.width
    where = links.to_table(box.name) if box.kind == "table" else links.to_domain(box.domain)
    yield f'<rect class="card" width="{_n(width)}" height="{_n(placed.height)}" rx="6"/>'
    head = (
        f"<title>{escape(box.about)}</title>"
        f'<path class="head" d="M.5 {HEAD:g}V6a5.5 5.5 0 0 1 5.5-5.5H{_n(width - 6)}'
        f'a5.5 5.5 0 0 1 5.5 5.5V{HEAD:g}z"/>'
        f'<text class="title" x="{PAD:g}" y="19.5">{escape(box.title)}</text>'
    )
    yield _linked(head, where) if where else f"<g>{head}</g>"
    yield f'<path class="edge" d="M.5 {HEAD:g}H{_n(width - 0.5)}"/>'
    for i, row in enumerate(box.rows):
        yield from _row(row, _n(row_middle(i) + 3.8), width, links)
    if box.hidden:
        y = row_middle(len(box.rows)) + 3.8
        yield f'<text class="more" x="{_n(PAD + MARK)}" y="{_n(y)}">{more_text(box)}</text>'


def _row(row: DiagramRow, y: str, width: float, links: Links) -> Iterator[str]:
    if _MARKS[row.kind]:
        yield f'<text class="mark" x="{PAD:g}" y="{y}">{_MARKS[row.kind]}</text>'
    shortened = row.name != name_text(row)
    title = f"<title>{escape(row.name)}</title>" if shortened else ""
    weight = ' class="key"' if row.kind == "key" else ""
    name = f'<text{weight} x="{_n(PAD + MARK)}" y="{y}">{title}{escape(name_text(row))}</text>'
    if row.kind == "table" and links.table:
        name = _linked(name, links.to_table(row.name.partition(".")[0]))
    yield name
    if row.note:
        several = f"<title>{' or '.join(row.references)}</title>" if len(row.references) > 1 else ""
        note = f'<text class="note" x="{_n(width - PAD)}" y="{y}">{several}{note_text(row)}</text>'
        to = links.to_table(row.references[0]) if links.table and len(row.references) == 1 else ""
        # Not on the way of the Tab key, which goes from table to table.
        yield _linked(note, to, ' tabindex="-1"') if to else note


def _linked(inner: str, where: str, attributes: str = "") -> str:
    return f'<a href="{escape(where)}"{attributes}>{inner}</a>'


def _domain(placed: Placed, links: Links) -> Iterator[str]:
    box, width, height = placed.box, placed.width, placed.height
    inner = (
        f"<title>{escape(box.about)}</title>"
        f'<rect class="card" width="{_n(width)}" height="{_n(height)}" rx="8"/>'
        f'<rect class="head" x="1" y="1" width="{_n(width - 2)}" height="{_n(height - 2)}" rx="7"/>'
        f'<path class="edge" d="M1.5 9V{_n(height - 9)}"/>'
        f'<text class="title" x="{_n(PAD * 1.6)}" y="26">{escape(box.title)}</text>'
        f'<text class="count" x="{_n(PAD * 1.6)}" y="44">{escape(box.rows[0].name)}</text>'
    )
    where = links.to_domain(box.name)
    yield _linked(inner, where) if where else inner


def _route(route: Route, drawing: Drawing) -> str:
    """A line with rounded corners, a dot where it begins and a tip where it arrives."""
    link, points = route.link, route.points
    (x, y), (ex, ey) = points[0], points[-1]
    before = points[-2]
    tip = _tip(before, (ex, ey))
    row = drawing.diagram.box(link.source).rows[link.row].name if link.row is not None else ""
    said = f"{link.source}{'.' if row else ''}{row} → {link.target}"
    if link.count > 1:
        said = f"{link.count} references between {link.source} and {link.target}"
    line = f'<path class="wire" d="{_rounded([*points[:-1], _short_of(before, (ex, ey))])}"/>'
    dot = f'<circle cx="{_n(x)}" cy="{_n(y)}" r="2.6"/>'
    label = ""
    if route.label_at is not None:
        lx, ly = route.label_at
        label = f'<text class="number" x="{_n(lx)}" y="{_n(ly + 3.6)}">{link.count}</text>'
    return (
        f'<g class="link" data-from="{link.source}" data-to="{link.target}">'
        f"<title>{escape(said)}</title>{line}{dot}{tip}{label}</g>"
    )


def _rounded(points: list[Point]) -> str:
    """A path through the points whose corners are round."""
    (x, y), *rest = points
    path = [f"M{_n(x)} {_n(y)}"]
    for here, after in pairwise(rest):
        before = points[points.index(here) - 1]
        r = min(_CORNER, _length(before, here) / 2, _length(here, after) / 2)
        (ax, ay), (bx, by) = _towards(here, before, r), _towards(here, after, r)
        path.append(f"L{_n(ax)} {_n(ay)}Q{_n(here[0])} {_n(here[1])} {_n(bx)} {_n(by)}")
    path.append(f"L{_n(rest[-1][0])} {_n(rest[-1][1])}")
    return "".join(path)


def _tip(before: Point, end: Point) -> str:
    bx, by = _towards(end, before, _TIP)
    dx, dy = (end[1] - by) / _TIP * 3.4, (end[0] - bx) / _TIP * 3.4
    return (
        f'<path class="tip" d="M{_n(end[0])} {_n(end[1])}L{_n(bx + dx)} {_n(by - dy)}'
        f'L{_n(bx - dx)} {_n(by + dy)}z"/>'
    )


def _short_of(before: Point, end: Point) -> Point:
    return _towards(end, before, _TIP - 1)


def _towards(start: Point, goal: Point, distance: float) -> Point:
    length = _length(start, goal) or 1.0
    share = distance / length
    return start[0] + (goal[0] - start[0]) * share, start[1] + (goal[1] - start[1]) * share


def _length(a: Point, b: Point) -> float:
    return float(((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) ** 0.5)


def _highlights(drawing: Drawing) -> Iterator[str]:
    """Pointing at a box fades the lines that do not end there; in CSS, so that nothing runs."""
    for name in sorted({n for r in drawing.routes for n in (r.link.source, r.link.target)}):
        near = f":not([data-from={name}],[data-to={name}])"
        yield f".erd:has(#box-{name}:is(:hover,:focus-within)) .link{near}{{opacity:.12}}\n"


def _n(value: float) -> str:
    """A number as short as can be: 12.0 is 12."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


_BASE = """
.erd{--paper:#fff;--card:#fff;--ink:#1b2230;--soft:#5b6678;--rule:#d5dbe5;--line:#8b97aa;--glow:#4353ff;
 background:var(--paper);color:var(--ink);font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,
 "DejaVu Sans Mono","Liberation Mono",monospace;font-size:11px}
.erd text{fill:var(--ink)}
.erd .paper{fill:var(--paper)}
.erd .card{fill:var(--card);stroke:var(--rule)}
.erd .head{fill:hsl(var(--hue) 62% 93%)}
.erd .edge{fill:none;stroke:hsl(var(--hue) 60% 48%);stroke-width:3}
.erd .title{font-size:12.5px;font-weight:600}
.erd .note,.erd .more,.erd .count{fill:var(--soft)}
.erd .note{text-anchor:end}
.erd .key{font-weight:600}
.erd .mark{fill:hsl(var(--hue) 45% 45%)}
.erd .main .card{stroke:var(--glow);stroke-width:2}
.erd .wire{fill:none;stroke:var(--line);stroke-width:1.3}
.erd .link circle,.erd .tip{fill:var(--line)}
.erd .number{font-size:10.5px;fill:var(--soft);text-anchor:middle;paint-order:stroke;
 stroke:var(--paper);stroke-width:4px}
.erd a{text-decoration:none;outline:none}
.erd .box:hover .card,.erd .box:has(:focus-visible) .card{stroke:var(--glow);stroke-width:1.8}
.erd a:hover text{text-decoration:underline}
.erd.pointing .link:not(.near){opacity:.12}
.erd .link:hover .wire{stroke:var(--glow);stroke-width:2.2}
"""

_DARK = """
.erd{--paper:#12161d;--card:#1a2029;--ink:#e6eaf1;--soft:#96a2b4;--rule:#343d4b;--line:#66758a;--glow:#8c9bff}
.erd .head{fill:hsl(var(--hue) 34% 24%)}
.erd .edge{stroke:hsl(var(--hue) 50% 58%)}
.erd .mark{fill:hsl(var(--hue) 50% 66%)}
"""


@cache
def stylesheet() -> str:
    """The whole style sheet. `data-theme` (light, dark) on an ancestor wins over the system's."""
    hues = "".join(f".erd .d-{name}{{--hue:{hue}}}\n" for name, hue in _hues().items())
    chosen = _DARK.replace("\n.erd", '\n[data-theme="dark"] .erd')
    system = _DARK.replace("\n.erd", '\n:root:not([data-theme="light"]) .erd')
    return f"{_BASE.strip()}\n{hues}@media (prefers-color-scheme:dark){{{system}}}{chosen}"


def alone() -> str:
    """As `stylesheet`, for a file of its own, where the drawing is the root and the system decides."""
    hues = "".join(f".erd .d-{name}{{--hue:{hue}}}\n" for name, hue in _hues().items())
    return f"{_BASE.strip()}\n{hues}@media (prefers-color-scheme:dark){{{_DARK}}}"


def _hues() -> dict[str, int]:
    """A hue for each domain, as far from its neighbours as the circle allows."""
    count = len(DOMAINS)
    # Steps of nearly half the circle: domains that stand together in the list look different.
    return {name: round(225 + i * 360 * 7 / count) % 360 for i, name in enumerate(DOMAINS)}


_KEYS = {"key": " PK", "reference": " FK", "column": "", "table": " FK"}


def to_mermaid(diagram: Diagram) -> str:
    """The text of the diagram, ready for a ```mermaid block."""
    lines = ["---", f"title: {diagram.title}", "---", "erDiagram", "    direction LR"]
    for box in diagram.boxes:
        lines += _entity(box)
    lines += [_relation(diagram, link) for link in diagram.links]
    return "\n".join(lines) + "\n"


def _entity(box: Box) -> Iterator[str]:
    if box.kind == "domain":
        yield f'    {box.name}["{box.title}: {box.rows[0].name}"]'
        return
    alias = "" if box.title == box.name else f'["{box.title}"]'
    yield f"    {box.name}{alias} {{"
    for row in box.rows:
        yield f"        {_attribute(box, row)}"
    yield "    }"


def _attribute(box: Box, row: DiagramRow) -> str:
    if row.kind == "table":
        table, _, column = row.name.partition(".")
        return f"{table} {column} FK"
    kind = tables()[box.name].column(row.name).type
    keys = _KEYS[row.kind]
    if row.kind == "key" and row.references:
        keys = " PK, FK"
    comment = f' "{" or ".join(row.references)}"' if row.references else ""
    return f"{kind} {row.name}{keys}{comment}"


def _relation(diagram: Diagram, link: Link) -> str:
    if link.row is None:
        label = f"{link.count} references" if link.count > 1 else "refers to"
        return f'    {link.source} }}o--o{{ {link.target} : "{label}"'
    column = diagram.box(link.source).rows[link.row].name
    return f'    {link.source} }}o--o| {link.target} : "{column}"'
