"""A diagram as Mermaid's `erDiagram`, for Markdown that renders it.

https://mermaid.js.org/syntax/entityRelationshipDiagram.html: an attribute is a type, a name, keys and
a comment; a relation reads "many or none to one or none", because references may be null.
"""

from __future__ import annotations

from collections.abc import Iterator

from pinstripe.catalog.tables import tables
from pinstripe.diagram.graph import Box, Diagram, DiagramRow, Link

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
