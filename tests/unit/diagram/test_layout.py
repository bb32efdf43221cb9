"""Where things stand: nothing overlaps, lines meet the rows they belong to, and nothing is left to luck."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time

import pytest

from pinstripe.catalog.domains import DOMAINS
from pinstripe.catalog.tables import tables
from pinstripe.diagram.graph import Diagram, around, of_domain, of_tables, overview
from pinstripe.diagram.layout import (
    Drawing,
    Placed,
    Point,
    draw,
    landing,
    name_text,
    note_text,
    port_of,
    text_width,
)
from pinstripe.diagram.render import to_svg

DIAGRAMS = {
    "overview": overview(),
    **{name: of_domain(name) for name in DOMAINS},
    **{name: around(name) for name in ("account", "charge", "customer", "invoice", "event")},
    "issuing in full": of_domain("issuing", detail="full"),
}
drawn = pytest.mark.parametrize("diagram", DIAGRAMS.values(), ids=DIAGRAMS.keys())


@drawn
def test_boxes_do_not_overlap_and_stand_within_the_picture(diagram: Diagram) -> None:
    drawing = draw(diagram)
    no_overlap(drawing)
    for placed in drawing.boxes:
        assert placed.x >= 0
        assert placed.y >= 0
        assert placed.x + placed.width <= drawing.width
        assert placed.y + placed.height <= drawing.height


def no_overlap(drawing: Drawing) -> None:
    for a, b in itertools.combinations(drawing.boxes, 2):
        apart = a.x + a.width <= b.x or b.x + b.width <= a.x
        assert apart or a.y + a.height <= b.y or b.y + b.height <= a.y, (a.box.name, b.box.name)


@drawn
def test_lines_leave_at_the_row_of_the_reference_and_arrive_at_the_key(diagram: Diagram) -> None:
    drawing = draw(diagram)
    at = {placed.box.name: placed for placed in drawing.boxes}
    for route in drawing.routes:
        source, target = at[route.link.source], at[route.link.target]
        if source.box.kind == "domain":
            assert _on_a_side(route.points[0], source)
            assert _on_a_side(route.points[-1], target)
            continue
        x, y = route.points[0]
        assert y == pytest.approx(source.y + port_of(source.box, route.link.row), abs=0.3)
        assert _on_a_side((x, y), source)
        x, y = route.points[-1]
        assert y == pytest.approx(target.y + port_of(target.box, landing(target.box)), abs=0.3)
        assert _on_a_side((x, y), target)


def _on_a_side(point: Point, box: Placed) -> bool:
    x, y = point
    sideways = min(abs(x - box.x), abs(x - box.x - box.width)) < 0.3
    return sideways and box.y <= y <= box.y + box.height


@drawn
def test_lines_run_straight_and_through_no_box(diagram: Diagram) -> None:
    drawing = draw(diagram)
    for route in drawing.routes:
        for (ax, ay), (bx, by) in itertools.pairwise(route.points):
            assert min(abs(ax - bx), abs(ay - by)) < 0.3
            for box in drawing.boxes:
                left, right = sorted((ax, bx))
                top, bottom = sorted((ay, by))
                outside = right <= box.x + 1 or left >= box.x + box.width - 1
                outside = outside or bottom <= box.y + 1 or top >= box.y + box.height - 1
                assert outside, (route.link, box.box.name)


@drawn
def test_names_and_notes_have_room_in_their_row(diagram: Diagram) -> None:
    for placed in draw(diagram).boxes:
        for row in placed.box.rows:
            both = text_width(name_text(row), 11) + text_width(note_text(row), 11)
            assert both < placed.width - 20
        assert text_width(placed.box.title, 12.5) < placed.width


def test_few_lines_cross() -> None:
    crossings = {name: _crossings(draw(of_domain(name))) for name in DOMAINS}
    crossings["overview"] = _crossings(draw(overview()))
    # Treasury alone has 85: each of its seven flows refers to its transaction, and that to each of them.
    assert crossings.pop("treasury") <= 95
    assert sum(crossings.values()) <= 60


def _crossings(drawing: Drawing) -> int:
    """How often a level piece of one line meets an upright piece of another, away from their ends."""
    level: list[tuple[int, Point, Point]] = []
    upright: list[tuple[int, Point, Point]] = []
    for number, route in enumerate(drawing.routes):
        for a, b in itertools.pairwise(route.points):
            (level if abs(a[1] - b[1]) < 0.3 else upright).append((number, a, b))
    return sum(
        one != other
        and min(a[0], b[0]) + 1 < c[0] < max(a[0], b[0]) - 1
        and min(c[1], d[1]) + 1 < a[1] < max(c[1], d[1]) - 1
        for one, a, b in level
        for other, c, d in upright
    )


def test_the_same_diagram_is_drawn_the_same_in_every_process() -> None:
    program = (
        "import hashlib; from pinstripe.diagram.graph import of_domain;"
        "from pinstripe.diagram.layout import draw; from pinstripe.diagram.render import to_svg;"
        "print(hashlib.sha256(to_svg(draw(of_domain('billing'))).encode()).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_a_diagram_is_laid_out_once() -> None:
    diagram = of_domain("issuing")
    assert draw(diagram) is draw(of_domain("issuing"))


def test_all_tables_at_once_can_be_drawn_in_seconds() -> None:
    begun = time.process_time()
    drawing = draw(of_tables(tables(), detail="keys"))
    assert len(drawing.boxes) == len(tables())
    assert time.process_time() - begun < 9  # 1.1 s on an idle core
    no_overlap(drawing)


def test_an_empty_diagram_is_an_empty_picture() -> None:
    assert "<svg" in to_svg(draw(of_domain("tax", filled=frozenset())))
