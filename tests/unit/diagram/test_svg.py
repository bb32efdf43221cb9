"""The picture as a file: well-formed, escaped, readable by ear and by keyboard, and not too large."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from pinstripe.catalog.domains import DOMAINS
from pinstripe.catalog.tables import tables
from pinstripe.diagram.graph import Box, Diagram, DiagramRow, around, of_domain, overview
from pinstripe.diagram.layout import draw
from pinstripe.diagram.render import Links, stylesheet, to_svg

SVG = "{http://www.w3.org/2000/svg}"
LINKS = Links(table="/tables/{name}?in={domain}&all=1", domain="/diagram/{name}")


def parsed(diagram: Diagram, links: Links = LINKS, *, styled: bool = True) -> ET.Element:
    return ET.fromstring(to_svg(draw(diagram), links, styled=styled))


@pytest.mark.parametrize("name", list(DOMAINS))
def test_every_domain_is_a_small_well_formed_file(name: str) -> None:
    root = parsed(of_domain(name))
    assert root.tag == f"{SVG}svg"
    assert len(to_svg(draw(of_domain(name)))) < 60_000


def test_it_has_a_title_and_a_description_for_those_who_do_not_see_it() -> None:
    root = parsed(of_domain("billing"))
    named = (root.get("aria-labelledby") or "").split()
    found = {e.get("id"): e.text for e in root if e.tag in (f"{SVG}title", f"{SVG}desc")}
    assert set(named) == set(found)
    assert found["erd-title"] == "Billing"


def test_every_table_leads_where_the_caller_says() -> None:
    root = parsed(of_domain("issuing"))
    heads = {a.get("href") for a in root.iter(f"{SVG}a") if a.get("tabindex") is None}
    assert "/tables/issuing_card?in=issuing&all=1" in heads
    assert len(heads) == len(of_domain("issuing").boxes)
    notes = {a.get("href") for a in root.iter(f"{SVG}a") if a.get("tabindex") == "-1"}
    assert "/tables/account?in=connect&all=1" in notes or notes


def test_domains_and_the_tables_of_a_group_are_links_too() -> None:
    assert {a.get("href") for a in parsed(overview()).iter(f"{SVG}a")} == {
        f"/diagram/{name}" for name in DOMAINS
    }
    leads = {a.get("href") for a in parsed(around("customer")).iter(f"{SVG}a")}
    assert "/tables/invoice?in=billing&all=1" in leads
    assert "/diagram/billing" in leads


def test_without_links_nothing_is_one() -> None:
    assert list(parsed(of_domain("tax"), Links()).iter(f"{SVG}a")) == []


def test_no_link_stands_within_another() -> None:
    for diagram in (overview(), of_domain("payments"), around("customer")):
        for a in parsed(diagram).iter(f"{SVG}a"):
            assert len(list(a.iter(f"{SVG}a"))) == 1


def test_every_column_name_is_text_that_can_be_searched() -> None:
    texts = {"".join(t.itertext()) for t in parsed(of_domain("climate")).iter(f"{SVG}text")}
    for box in of_domain("climate").boxes:
        assert {box.title, *(r.name for r in box.rows)} <= texts


def test_hostile_names_are_only_text() -> None:
    evil = '"><script>alert(1)</script>&'
    row = DiagramRow(evil, "text", "key")
    box = Box("customer", evil, "table", "core", evil, (row,))
    text = to_svg(draw(Diagram(evil, evil, (box,), ())), LINKS)
    assert "<script" not in text
    assert evil in "".join(ET.fromstring(text).itertext())


def test_within_a_page_there_is_neither_style_nor_script() -> None:
    text = to_svg(draw(of_domain("core")), LINKS, styled=False)
    assert "<style" not in text
    assert "style=" not in text
    assert "<script" not in text
    assert not re.search(r"\son\w+=", text)


def test_the_style_sheet_knows_light_and_dark_and_every_domain() -> None:
    css = stylesheet()
    assert "prefers-color-scheme:dark" in css
    assert '[data-theme="dark"]' in css
    assert all(f".d-{name}{{--hue:" in css for name in DOMAINS)
    assert css.count("{") == css.count("}")


def test_the_table_that_is_shown_is_marked() -> None:
    groups = [g.get("class") or "" for g in parsed(around("charge")).iter(f"{SVG}g")]
    assert sum("main" in c.split() for c in groups) == 1
    assert set(tables()) >= {"charge"}
