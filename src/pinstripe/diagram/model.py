"""What a diagram holds, before anyone knows where it will stand.

Values, hashable: a `Diagram` is the key under which its drawing is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BoxKind = Literal[
    "domain",  # a domain in the overview
    "table",  # a table with rows for its columns
    "group",  # several tables of one domain that all stand in one relation to the table shown
]
RowKind = Literal["key", "reference", "column", "table"]
Detail = Literal[
    "keys",  # the key and the references
    "short",  # these and a few important columns
    "full",  # every column
]


@dataclass(frozen=True, slots=True)
class Row:
    """One line in a box. `note` stands at its right: the type, or what it refers to.

    `name` is a column; of a row of kind "table" it is a table and its column, and `note` is empty.
    `references` are all tables that it may refer to; those without a box here are named only.
    """

    name: str
    note: str
    kind: RowKind
    references: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Box:
    """A table, a domain, or a group. `hidden` columns are left out and counted at the foot."""

    name: str
    title: str
    kind: BoxKind
    domain: str
    about: str
    rows: tuple[Row, ...] = ()
    hidden: int = 0
    main: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """References from a row of one box to another box; `row` None means the box as a whole."""

    source: str
    target: str
    row: int | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Diagram:
    """What is shown. `about` is the sentence that stands for the picture where nobody sees it."""

    title: str
    about: str
    boxes: tuple[Box, ...]
    links: tuple[Link, ...]

    def box(self, name: str) -> Box:
        return next(b for b in self.boxes if b.name == name)
