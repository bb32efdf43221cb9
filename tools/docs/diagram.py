"""The diagram as pages: the domains, and the tables of each."""

from __future__ import annotations

from pinstripe.catalog.domains import DOMAINS, domains
from pinstripe.diagram.graph import Diagram, of_domain, overview
from pinstripe.diagram.layout import draw
from pinstripe.diagram.render import to_svg
from tools.docs.markdown import table


def diagram_pages() -> dict[str, str]:
    """File name below `docs/reference/diagram` -> text, of pages and pictures."""
    pages = {"index.md": _index(), "overview.svg": _picture(overview())}
    for name, domain in DOMAINS.items():
        pages[f"{name}.svg"] = _picture(of_domain(name))
        pages[f"{name}.md"] = "\n\n".join(
            (
                f"# {domain.title}: diagram",
                domain.about,
                f"[All domains](index.md) · [Its tables in words](../tables/{name}.md) · "
                f"[The picture alone]({name}.svg)",
                f"![The tables of {domain.title} and their references]({name}.svg)",
            )
        )
    return pages


def _index() -> str:
    rows = [
        (f"[{d.title}]({name}.md)", str(len(domains()[name])), d.about)
        for name, d in DOMAINS.items()
    ]
    return "\n\n".join(
        (
            "# Diagram",
            "The tables by domain, and how many references there are between two domains. How to read "
            "and to draw it: [the diagram](../../how-to/diagram.md).",
            "![All domains and the references between them](overview.svg)",
            table(("Domain", "Tables", "What it holds"), rows),
        )
    )


def _picture(diagram: Diagram) -> str:
    return to_svg(draw(diagram))
