"""Positions of boxes and lines. The only module that imports the layout library, `graphlay`.

A line leaves the side of a box at the row of the reference and arrives at the key of another. The
library is deterministic. Several layouts are computed, and the easiest to follow is kept.

Sizes are in pixels and even, so that middles are whole numbers and lines run straight. Text is
monospaced, so its width is known without the browser: such fonts are 0.55 to 0.61 of their size wide,
and the widest is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Final, TypeAlias

from pinstripe.diagram.graph import Box, Diagram, DiagramRow, Link
from pinstripe.errors import Misconfigured

try:
    import graphlay
except ImportError:  # No wheel for this platform: all but the drawing works.
    graphlay = None  # type: ignore[assignment]

Point: TypeAlias = tuple[float, float]

Options: TypeAlias = Mapping[str, object]

MARGIN = 16.0
_GAP = 26.0
_ROW_WIDTH = 1100.0
_MANY_BOXES = 60
"""From here on one way to lay out is enough: trying several would take seconds."""

_CROSSING = 60.0
"""A crossing is as bad as a line that is longer by this."""

_SPACING: Final = {"layer_gap": 56.0, "node_gap": _GAP, "dummy_gap": 10.0, "port_gap": 8.0}

_CALM: Final = {
    "spacing": _SPACING,
    "effort": "fast",
    # What polishing costs grows with the square of the lines: half the time, the same lengths.
    "tuning": {
        "routing": {"port_relax_rounds": 4, "overlap_repair_rounds": 2},
        "order": {"kick_rounds": 0},
    },
}

_TRIED: Final[tuple[Options, ...]] = (
    {"spacing": _SPACING, "effort": "thorough"},
    {"spacing": _SPACING, "effort": "thorough", "cycles": {"strategy": "follow_flow"}},
)


@dataclass(frozen=True, slots=True)
class Placed:
    """A box and where its upper left corner is."""

    box: Box
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Route:
    """A link and the corners of its line, from its source to its target."""

    link: Link
    points: tuple[Point, ...]
    label_at: Point | None = None


@dataclass(frozen=True, slots=True)
class Drawing:
    """A diagram with a place for everything, in pixels, beginning at (0, 0)."""

    diagram: Diagram
    width: float
    height: float
    boxes: tuple[Placed, ...]
    routes: tuple[Route, ...]
    effort: float
    """What following its lines costs a reader: their length, and a piece more for each crossing."""


@lru_cache(maxsize=256)
def draw(diagram: Diagram) -> Drawing:
    """The drawing of `diagram`; kept, because diagrams are values."""
    if not diagram.boxes:
        return Drawing(diagram, 2 * MARGIN, 2 * MARGIN, (), (), effort=0.0)
    ways = _TRIED if len(diagram.boxes) < _MANY_BOXES else (_CALM,)
    found = []
    for options in ways:
        first = _draw(diagram, options, frozenset())
        found.append(first)
        # Lines that ran against the stream went all the way around both boxes. They may as well
        # leave on the left and arrive on the right.
        against = frozenset(i for i, r in enumerate(first.routes) if _runs_back(r, first))
        if against:
            found.append(_draw(diagram, options, against))
    return min(found, key=lambda drawing: drawing.effort)


def _runs_back(route: Route, drawing: Drawing) -> bool:
    at = {placed.box.name: placed.x for placed in drawing.boxes}
    return at[route.link.source] > at[route.link.target]


def _draw(diagram: Diagram, options: Options, against: frozenset[int]) -> Drawing:
    joined = {name for link in diagram.links for name in (link.source, link.target)}
    together = [box for box in diagram.boxes if box.name in joined]
    alone = [box for box in diagram.boxes if box.name not in joined]
    if graphlay is None:
        raise Misconfigured(
            "The diagram cannot be drawn: the library that lays it out, graphlay, is not installed.",
            hint="Install it (pip install graphlay) and restart; everything else works without it.",
        )
    laid = graphlay.layout(_graph(together, diagram.links, against), options=options)
    dx, dy = MARGIN - laid.bounds["min"]["x"], MARGIN - laid.bounds["min"]["y"]
    placed = [
        Placed(
            box,
            round(node["center"]["x"] - node["size"]["width"] / 2 + dx, 1),
            round(node["center"]["y"] - node["size"]["height"] / 2 + dy, 1),
            *size_of(box),
        )
        for box, node in zip(together, laid.nodes, strict=True)
    ]
    routes = tuple(
        Route(
            link,
            tuple(_moved(point, dx, dy) for point in edge["points"]),
            _moved(edge["label_anchor"], dx, dy) if edge.get("label_anchor") else None,
        )
        for link, edge in zip(diagram.links, laid.edges, strict=True)
    )
    width, height = _moved(laid.bounds["max"], dx, dy) if together else (MARGIN, MARGIN - _GAP)
    placed += _rows(alone, max(width, _ROW_WIDTH), height + _GAP)
    told = laid.metrics() if together else {"total_edge_length": 0, "crossings": 0}
    return Drawing(
        diagram,
        max(width, *(p.x + p.width for p in placed)) + MARGIN,
        max(height, *(p.y + p.height for p in placed)) + MARGIN,
        tuple(placed),
        routes,
        effort=float(told["total_edge_length"] + _CROSSING * told["crossings"]),
    )


def _rows(boxes: list[Box], width: float, top: float) -> list[Placed]:
    """What no line leads to, in rows below the rest: the flattest first, as words in a line."""
    placed: list[Placed] = []
    x, y, tallest = MARGIN, top, 0.0
    for box in sorted(boxes, key=lambda b: size_of(b)[1]):
        wide, high = size_of(box)
        if x > MARGIN and x + wide > width:
            x, y, tallest = MARGIN, y + tallest + _GAP, 0.0
        placed.append(Placed(box, x, y, wide, high))
        x, tallest = x + wide + _GAP, max(tallest, high)
    return placed


def _graph(together: list[Box], links: tuple[Link, ...], against: frozenset[int]) -> graphlay.Graph:
    graph = graphlay.Graph()
    boxes = {box.name: box for box in together}
    for box in together:
        width, height = size_of(box)
        graph.node(box.name, width=width, height=height)
    for i, link in enumerate(links):
        source, target = boxes[link.source], boxes[link.target]
        fields: dict[str, object] = {"reverse_for_ranking": i in against}
        if source.kind != "domain":
            away, near = ("left", "right") if i in against else ("right", "left")
            fields["source_port"] = _port(source, link.row, away)
            fields["target_port"] = _port(target, landing(target), near)
        if link.count > 1:
            fields["label_size"] = dict(zip(("width", "height"), label_size(link), strict=True))
        index = graph.edge(link.source, link.target)
        graph.edges[index].update(fields)
    return graph


def _moved(point: Mapping[str, float], dx: float, dy: float) -> Point:
    return round(point["x"] + dx, 1), round(point["y"] + dy, 1)


def _port(box: Box, row: int | None, side: str) -> dict[str, object]:
    """The library counts from -1 (top) to 1 (bottom) along a side."""
    height = size_of(box)[1]
    return {"offset": {"side": side, "t": 2 * port_of(box, row) / height - 1}}


HEAD = 30.0
ROW = 20.0
FOOT = 6.0
MORE = 18.0
"""The line at the foot that counts what is left out."""

PAD = 10.0
MARK = 14.0
"""The room for the mark of a key or a reference, left of a row's text."""

GAP = 18.0
"""Between a name and the note at its right."""

TITLE_SIZE, TEXT_SIZE = 12.5, 11.0
_WIDTH_PER_SIZE = 0.615
_LONGEST_NAME, _LONGEST_NOTE = 38, 30
_DOMAIN = (190.0, 58.0)


def size_of(box: Box) -> tuple[float, float]:
    """Width and height of a box, in whole pixels."""
    if box.kind == "domain":
        return _even(max(_DOMAIN[0], text_width(box.title, TITLE_SIZE) + 4 * PAD)), _DOMAIN[1]
    widths = [text_width(box.title, TITLE_SIZE) + 2 * PAD, *map(_row_width, box.rows)]
    if box.hidden:
        widths.append(text_width(more_text(box), TEXT_SIZE) + 2 * PAD + MARK)
    height = HEAD + ROW * len(box.rows) + FOOT + (MORE if box.hidden else 0.0)
    return _even(max(widths)), height


def _even(least: float) -> float:
    return 2.0 * ceil(least / 2)


def row_middle(index: int) -> float:
    """How far below the box's top the middle of a row is."""
    return HEAD + ROW * index + ROW / 2 + FOOT / 2


def port_of(box: Box, row: int | None) -> float:
    """Where a link meets the box's side, from its top."""
    if box.kind == "domain":
        return _DOMAIN[1] / 2
    return HEAD / 2 if row is None else row_middle(row)


def landing(box: Box) -> int | None:
    """The row of a box that references lead to: its key."""
    return 0 if box.rows and box.rows[0].kind == "key" else None


def label_size(link: Link) -> tuple[float, float]:
    """Return the size of the label of a line that bundles several references."""
    return text_width(str(link.count), TEXT_SIZE) + 6, TEXT_SIZE + 3


def name_text(row: DiagramRow) -> str:
    return shortened(row.name, 60 if row.kind == "table" else _LONGEST_NAME)


def note_text(row: DiagramRow) -> str:
    return shortened(row.note, _LONGEST_NOTE)


def more_text(box: Box) -> str:
    return f"{box.hidden} more column{'' if box.hidden == 1 else 's'}"


def shortened(text: str, longest: int) -> str:
    """`text`, with its middle left out if it is longer than `longest` letters.

    >>> shortened("payment_method_options", 15)
    'payment…options'
    """
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[: longest - 1 - half]}…{text[-half:]}"


def text_width(text: str, size: float) -> float:
    return len(text) * size * _WIDTH_PER_SIZE


def _row_width(row: DiagramRow) -> float:
    name, note = name_text(row), note_text(row)
    gap = GAP if note else 0.0
    return 2 * PAD + MARK + text_width(name, TEXT_SIZE) + gap + text_width(note, TEXT_SIZE)
