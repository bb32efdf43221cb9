"""The docs that can be generated are, and what the others point at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.house.tree import ROOT, files, shown
from tools.docs.__main__ import generate, stale
from tools.docs.tables import table_pages

from pinstripe.catalog.domains import domain_of
from pinstripe.catalog.tables import Table, tables

LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def test_the_generated_pages_are_fresh() -> None:
    assert stale(generate()) == [], "run `make docs`"


def test_every_link_between_pages_leads_somewhere() -> None:
    pages = [p for p in files() if p.suffix == ".md"]
    anchors = {p: set(map(_anchor, re.findall(r"^#+ (.+)$", p.read_text(), re.M))) for p in pages}
    dead = [f"{shown(p)}: {target}" for p in pages for target in _dead(p, anchors)]
    assert dead == []


def _dead(page: Path, anchors: dict[Path, set[str]]) -> set[str]:
    """The links of a page that lead nowhere."""
    dead = set()
    for target in set(LINK.findall(page.read_text())):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        gone = not path.exists() or ROOT not in path.parents
        if gone or (anchor and path in anchors and anchor not in anchors[path]):
            dead.add(target)
    return dead


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")


def test_every_table_stands_on_one_page() -> None:
    headings = [
        heading
        for name, text in table_pages().items()
        if name != "index.md"
        for heading in re.findall(r"^## (\w+)$", text, re.M)
    ]
    assert sorted(headings) == sorted(tables())


def test_a_table_that_belongs_nowhere_stops_the_generator() -> None:
    with pytest.raises(ValueError, match="novelty: in which domain"):
        domain_of(Table("novelty", "novelty", ()))
