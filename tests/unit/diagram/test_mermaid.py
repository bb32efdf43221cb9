"""The text for Mermaid keeps to its grammar, for every table there is."""

from __future__ import annotations

import re

import pytest

from pinstripe.catalog.domains import DOMAINS, domains
from pinstripe.catalog.tables import tables
from pinstripe.diagram.graph import Diagram, around, of_domain, of_tables, overview
from pinstripe.diagram.render import to_mermaid

NAME = r"[A-Za-z_][A-Za-z0-9_]*"
ENTITY = re.compile(rf'    {NAME}(\["[^"\n]+"\])?( \{{)?')
ATTRIBUTE = re.compile(rf'        {NAME}(\[\])? {NAME}( (PK|FK)(, FK)?)?( "[^"\n]+")?')
RELATION = re.compile(rf'    ({NAME}) \}}o--o[|{{] ({NAME}) : "[^"\n]+"')
HEAD = re.compile(r"---\ntitle: [^\n]+\n---\nerDiagram\n    direction LR\n")


def test_the_overview_and_all_tables_keep_to_the_grammar() -> None:
    check(overview())
    check(of_tables(tables(), detail="full"))


@pytest.mark.parametrize("domain", list(DOMAINS))
def test_every_domain_and_every_table_of_it_keep_to_the_grammar(domain: str) -> None:
    check(of_domain(domain))
    for table in domains()[domain]:
        check(around(table.name, detail="full"))


def check(diagram: Diagram) -> None:
    """Every line is an entity, an attribute or a relation between entities that were told."""
    text = to_mermaid(diagram)
    head = HEAD.match(text)
    assert head
    entities: set[str] = set()
    for line in text[head.end() :].splitlines():
        relation = RELATION.fullmatch(line)
        if relation:
            assert set(relation.groups()) <= entities
        elif ENTITY.fullmatch(line):
            entities.add(re.split(r"[\[ ]", line.strip())[0])
        else:
            assert ATTRIBUTE.fullmatch(line) or line == "    }", line
    assert entities == {b.name for b in diagram.boxes}


def test_keys_and_references_are_marked() -> None:
    text = to_mermaid(of_tables(["charge", "customer"]))
    assert "        text id PK\n" in text
    assert '        text customer_id FK "customer"\n' in text
    assert '    charge }o--o| customer : "customer_id"\n' in text
