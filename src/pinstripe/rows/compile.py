"""The quick way from an object to a row: one function per layout, written out and compiled.

The generic way (`Extractor`) calls one closure per field. For the objects that lists are full of, all
fields have the types that the catalog says; the function made here checks just that, field by field
in straight code, and gives up (None) at the first that differs, so that the generic way takes over.
A property test holds both ways to the same rows. It is worth it: a third of the CPU per object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pinstripe.catalog.tables import Column, Read
from pinstripe.rows.secrets import without_secret_text

Value = Any
Fill = Callable[[Value, "list[Value]"], Value]
Make = Callable[[Value, "list[tuple[str, Value]]"], "list[Value] | None"]
"""(object, where to note fields that may hold objects) -> row without key, or None: not this way."""

Quick = tuple[str, Sequence[Column], Sequence[int], Fill, bool, bool]
"""One top-level key: (key, columns, their places in the row, generic fill, may hold objects, free text)."""

_CHECKS: dict[Read, str] = {
    "text": "v.__class__ is not str",
    "boolean": "v.__class__ is not bool",
    "integer": "v.__class__ is not int or not -9223372036854775808 <= v < 9223372036854775808",
    "time": "v.__class__ is not int or not -10000000000 < v <= 9224318015999",
}


def compile_layout(fields: Sequence[Quick], width: int) -> Make:
    """The function for objects with just these keys; rows are `width` values long."""
    names: dict[str, object] = {"without_secret_text": without_secret_text}
    lines = [f"def make(o, nested):\n    row = [None] * {width}"]
    for number, (key, columns, places, fill, may_nest, is_free) in enumerate(fields):
        lines.append(f"    v = o[{key!r}]\n    if v is not None:")
        lines += [f"        {line}" for line in _field(number, columns, places)]
        if is_free and len(columns) == 1 and columns[0].read == "text":
            # Anything that is a secret by its look has a "_": a cheap test for most texts.
            lines.append(f"        if '_' in v: row[{places[0]}] = without_secret_text(v)")
        names[f"fill{number}"] = fill
        if may_nest:
            lines.append("        if v.__class__ is not str and v:")
            lines.append(f"            nested.append(({key!r}, v))")
    lines.append("    return row")
    # The text is made of the catalog's names alone, quoted by repr().
    exec(compile("\n".join(lines), "<layout>", "exec"), names)  # noqa: S102
    make: Make = names["make"]  # type: ignore[assignment]
    return make


def _field(number: int, columns: Sequence[Column], places: Sequence[int]) -> list[str]:
    """The lines for a value that is not null."""
    general = [f"if fill{number}(v, row) is not None:", "    return None"]
    if len(columns) != 1:
        return general
    read, at = columns[0].read, places[0]
    if len(columns[0].path) != 1:
        return general
    if read in _CHECKS:
        return [f"if {_CHECKS[read]}:", "    return None", f"row[{at}] = v"]
    if read == "id":
        return ["if v.__class__ is str:", f"    row[{at}] = v", f"el{general[0]}", general[1]]
    return general
