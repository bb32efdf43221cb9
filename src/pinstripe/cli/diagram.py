"""`pinstripe schema erd`: a diagram of the catalog, without any database."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pinstripe.catalog.tables import tables
from pinstripe.config import Config
from pinstripe.diagram.content import around, of_domain, of_tables, overview
from pinstripe.diagram.layout import draw as lay_out
from pinstripe.diagram.mermaid import to_mermaid
from pinstripe.diagram.model import Detail, Diagram
from pinstripe.diagram.svg import to_svg
from pinstripe.errors import Misconfigured


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be drawn, how, and where to."""

    domain: str | None
    table: str | None
    detail: Detail
    format: Literal["svg", "mermaid"] | None
    output: Path | None


def draw(config: Config, wish: Wish) -> None:
    """Writes the diagram to the file, or to stdout."""
    diagram = _wanted(config, wish)
    text = to_mermaid(diagram) if _is_mermaid(wish) else to_svg(lay_out(diagram))
    if wish.output is None:
        sys.stdout.write(text)
        return
    try:
        wish.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Misconfigured(
            f"Cannot write {wish.output}: {error.strerror}.", hint="Name another file: --output."
        ) from error
    sys.stderr.write(f"{diagram.title}: {wish.output}\n")


def _wanted(config: Config, wish: Wish) -> Diagram:
    chosen = frozenset(config.choose_tables(tables()))
    some = chosen if len(chosen) < len(tables()) else None
    if wish.domain is not None and wish.table is not None:
        raise Misconfigured(
            "A diagram is of one domain or around one table.", hint="Leave out --domain or --table."
        )
    if wish.domain is not None:
        return of_domain(wish.domain, filled=some, detail=wish.detail)
    if wish.table is not None:
        return around(wish.table, filled=some, detail=wish.detail)
    if some is not None:
        return of_tables(some, detail=wish.detail)
    return overview()


def _is_mermaid(wish: Wish) -> bool:
    if wish.format is not None:
        return wish.format == "mermaid"
    return wish.output is not None and wish.output.suffix in (".mmd", ".mermaid")
