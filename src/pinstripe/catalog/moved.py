"""Fields that Stripe has moved or dropped, and where their values are today: `moved.json`.

The file is written by hand, since types only know the present. Each entry is one column that SQL written
for an older API version reads (`invoice.subscription_id`), with the reason. `catalog.tables` makes columns
of them. `rows.converters` fills those that follow from the object itself, `store.links` those that rows of
other tables give: nothing here is code for one table.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

MovedRead = Literal["id", "text", "integer", "decimal", "boolean", "time", "json"]
"""How the value is read, a subset of `catalog.tables.Read`."""


class Then(msgspec.Struct, frozen=True):
    """A second step: the row of `table` whose id the first step took, and the column to take there."""

    table: str
    take: str


class Rows(msgspec.Struct, frozen=True):
    """The value stands in rows of `table`: `take` of the first one that refers to this row.

    `match`: (their column, our column). `order`: their columns, "-" for the largest first.
    """

    table: str
    match: tuple[str, str]
    take: str
    order: tuple[str, ...]
    then: Then | None = None


class Moved(msgspec.Struct, frozen=True, omit_defaults=True):
    """One column. The first of `places`, then of `rows`, then of `was` that has a value gives it.

    `places`: dotted paths in today's object, a number for the element of an array; `was`: in objects of
    older API versions, which `_extra` keeps. `equals`: the column says whether the text there is this one.
    `words`: today's words -> those of before. `sum`: of one field of all elements of an array.
    """

    table: str
    column: str
    read: MovedRead
    why: str
    places: tuple[str, ...] = msgspec.field(name="from", default=())
    rows: tuple[Rows, ...] = ()
    was: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    equals: str = msgspec.field(name="is", default="")
    words: tuple[tuple[str, str], ...] = ()
    sum: bool = False

    @property
    def fields(self) -> frozenset[str]:
        """The fields of the object, today's and earlier ones, in which the value may stand."""
        return frozenset(place.partition(".")[0] for place in (*self.places, *self.was))

    @property
    def takes_first(self) -> bool:
        """Whether the column holds one of several values that Stripe has."""
        return any("0" in place.split(".") for place in self.places)


@cache
def moved_columns() -> tuple[Moved, ...]:
    """Every entry of the file."""
    raw = files("pinstripe.catalog").joinpath("moved.json").read_bytes()
    return msgspec.json.decode(raw, type=tuple[Moved, ...])
