"""The documentation builds as a site, whole and without the network; what it shows is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.house.tree import ROOT

# What a browser fetches by itself; links that a reader may follow are no matter.
_FETCHED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href"}
_IN_STYLE = re.compile(r"(?:@import\s+|url\()[\"']?(?:https?:)?//")


class _Fetched(HTMLParser):
    """Addresses that a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") == "canonical":
            return
        self.addresses += [values.get(_FETCHED.get(tag, "")) or ""]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly: a broken link, or a page that nothing lists, is an error."""
    folder = tmp_path_factory.mktemp("site")
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    docs = ROOT / "docs"
    pages = {p.relative_to(docs).with_suffix(".html") for p in docs.rglob("*.md")}
    made = {p.relative_to(site) for p in site.rglob("*.html")}
    assert {p.with_stem("index") if p.stem == "README" else p for p in pages} == made - {
        Path("404.html")
    }


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    foreign = []
    for path in site.rglob("*.html"):
        parser = _Fetched()
        parser.feed(path.read_text())
        foreign += [a for a in parser.addresses if re.match(r"(?:https?:)?//", a)]
    styles = [p.name for p in site.rglob("*.css") if _IN_STYLE.search(p.read_text())]
    assert (sorted(set(foreign)), styles) == ([], [])
