"""The docs that can be generated are, and what the others point at is there."""

from __future__ import annotations

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest
from tests.house.tree import ROOT, dotted, files, modules, shown
from tools.docs.__main__ import generate, stale
from tools.docs.tables import table_pages

from pinstripe.catalog.domains import domain_of
from pinstripe.catalog.tables import Table, tables

# A page for each feature that Pinstripe exists for.
FEATURES = (
    "concepts/backfill.md",
    "concepts/live.md",
    "how-to/upcoming-invoices.md",
    "concepts/schema.md",
    "reference/tables/index.md",
    "reference/diagram/index.md",
    "how-to/proxy.md",
    "how-to/wait.md",
    "how-to/restricted-keys.md",
    "how-to/console.md",
    "how-to/verify.md",
    "how-to/personal-data.md",
)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def test_the_generated_pages_are_fresh() -> None:
    assert stale(generate()) == [], "run `make docs`"


def test_the_examples_in_docstrings_hold() -> None:
    with_examples = [dotted(path) for path in modules("src") if ">>> " in path.read_text()]
    failed = {n: doctest.testmod(import_module(n)).failed for n in with_examples}
    assert {name for name, count in failed.items() if count} == set()


def test_every_link_between_pages_leads_somewhere() -> None:
    pages = [p for p in files() if p.suffix == ".md"]
    anchors = {p: set(map(_anchor, re.findall(r"^#+ (.+)$", p.read_text(), re.M))) for p in pages}
    dead = [f"{shown(p)}: {target}" for p in pages for target in _dead(p, anchors)]
    assert dead == []


def test_each_feature_is_two_clicks_from_the_first_page() -> None:
    clicks = _clicks(ROOT / "docs" / "index.md")
    far = [name for name in FEATURES if clicks.get(ROOT / "docs" / name, 9) > 2]
    assert far == []


def test_every_page_for_a_person_is_two_clicks_from_the_first_page() -> None:
    clicks = _clicks(ROOT / "docs" / "index.md")
    pages = [p for folder in ("how-to", "concepts") for p in (ROOT / "docs" / folder).glob("*.md")]
    assert [shown(p) for p in sorted(pages) if clicks.get(p, 9) > 2] == []


def _clicks(first: Path) -> dict[Path, int]:
    """How many links lead from a page to each page that it leads to."""
    clicks, at = {first: 0}, [first]
    for page in at:
        for target in LINK.findall(page.read_text()):
            path = (page.parent / target.partition("#")[0]).resolve()
            if path.suffix == ".md" and path.exists() and path not in clicks:
                clicks[path] = clicks[page] + 1
                at.append(path)
    return clicks


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
