"""Converts the values of an object into columns: one function per kind of column, and a compiled fast path.

A converter writes what fits into the row and returns what does not (another type than the catalog says, a
number that Postgres cannot hold, an unknown field). The rest goes to `_extra`, so nothing is lost and no
odd value fails its page. Converters are called with non-null values only; `layout` chooses them.

`Extractor` calls one closure per field. For the objects that fill lists, all fields have the types of the
catalog: the compiled function checks just that, field by field in straight code, and returns None at the
first difference, so that the generic path takes over. It saves a third of the CPU time per object; a
property test holds both paths to the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache, partial
from types import CodeType
from typing import Any

import msgspec

from pinstripe.catalog.model import Field
from pinstripe.catalog.moved import Moved
from pinstripe.catalog.tables import Column, Read, Table
from pinstripe.rows.secrets import (
    free_json_without_secrets,
    has_free_keys,
    holds_objects,
    json_without_secrets,
    may_hold,
    names_secrets,
    without_secret_text,
)

Value = Any

Fill = Callable[[Value, "list[Value]"], Value]

Make = Callable[[Value, "list[tuple[str, Value]]"], "list[Value] | None"]
"""(object, where to note fields that may hold objects) -> row without key, or None: not this way."""

Derive = Callable[[Value, "list[Value]"], None]
"""(object, row): fills columns whose values stand in other fields of the object."""

Take = Callable[[Value], Value]
"""A value that is not null -> what the column holds; None if it is of another type."""

Places = Sequence[tuple[Sequence[str], Take]]
"""Where a column's value may stand, the first that has one counts: the steps, and how it is read there."""

Quick = tuple[str, Sequence[Column], Sequence[int], Fill, bool, bool]
"""One top-level key: (key, columns, their places in the row, generic fill, may hold objects, free text)."""

_CHECKS: dict[Read, str] = {
    "text": "v.__class__ is not str",
    "boolean": "v.__class__ is not bool",
    "integer": "v.__class__ is not int or not -9223372036854775808 <= v < 9223372036854775808",
    "time": "v.__class__ is not int or not -10000000000 < v <= 253402300799",
}


def compile_layout(fields: Sequence[Quick], width: int) -> Make:
    """The function for objects with just these keys; rows are `width` values long."""
    names: dict[str, object] = {"without_secret_text": without_secret_text}
    lines = [f"def make(o, nested):\n    row = [None] * {width}"]
    for number, (key, columns, places, fill, may_nest, is_free) in enumerate(fields):
        lines.append(f"    v = o[{key!r}]\n    if v is not None:")
        lines += [f"        {line}" for line in _field(number, columns, places)]
        if is_free and len(columns) == 1 and columns[0].read == "text":
            # Every recognisable secret contains a "_": a cheap test for most texts.
            lines.append(f"        if '_' in v: row[{places[0]}] = without_secret_text(v)")
        names[f"fill{number}"] = fill
        if may_nest:
            lines.append("        if v.__class__ is not str and v:")
            lines.append(f"            nested.append(({key!r}, v))")
    lines.append("    return row")
    # The text is made of the catalog's names alone, quoted by repr().
    exec(_compiled("\n".join(lines)), names)  # noqa: S102
    make: Make = names["make"]  # type: ignore[assignment]
    return make


@lru_cache(maxsize=8192)
def _compiled(text: str) -> CodeType:
    """A gateway has many syncs, and most objects of their accounts have the same keys."""
    return compile(text, "<layout>", "exec")


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


def compile_derived(columns: Iterable[tuple[int, Column, Places]]) -> Derive | None:
    """The function that fills these columns, at their places in the row; None if no field gives a value.

    Straight code, with one look-up for a step that several places share: an invoice line has nine such
    columns.
    """
    trees: dict[int, _Branch] = {}
    for at, column, places in columns:
        for rank, (steps, take) in enumerate(places):
            # A later place counts only where the ones before it, or the field itself, have no value.
            branch = trees.setdefault(rank + bool(column.path), _Branch())
            for step in steps:
                branch = branch.inside.setdefault(step, _Branch())
            branch.takes.append((at, take))
    names: dict[str, object] = {}
    lines = ["def derive(v0, row):"]
    for rank, tree in sorted(trees.items()):
        lines += _branch_lines(tree, names, 0, is_first=rank == 0)
    if not trees:
        return None
    exec(_compiled("\n".join(lines)), names)  # noqa: S102
    derive: Derive = names["derive"]  # type: ignore[assignment]
    return derive


@dataclass(slots=True)
class _Branch:
    """A value somewhere in an object: the columns that it gives, and what stands inside it."""

    takes: list[tuple[int, Take]] = field(default_factory=list)
    inside: dict[str, _Branch] = field(default_factory=dict)


def _branch_lines(
    branch: _Branch, names: dict[str, object], depth: int, *, is_first: bool
) -> Iterator[str]:
    indent, value, inner = "    " * (depth + 1), f"v{depth}", f"v{depth + 1}"
    for at, take in branch.takes:
        name = f"take{len(names)}"
        names[name] = take
        is_open = "" if is_first else f" and row[{at}] is None"
        yield f"{indent}if {value} is not None{is_open}: row[{at}] = {name}({value})"
    for step, found in branch.inside.items():
        if step.isdigit():
            yield f"{indent}if {value}.__class__ is list and len({value}) > {step}:"
            yield f"{indent}    {inner} = {value}[{step}]"
        else:
            yield f"{indent}if {value}.__class__ is dict:"
            yield f"{indent}    {inner} = {value}.get({step!r})"
        yield from _branch_lines(found, names, depth + 1, is_first=is_first)


def places_of(column: Column, fields: Container[str]) -> Places:
    """Where the value of a column that Stripe has moved may stand, in an object with these fields."""
    moved = column.moved
    if moved is None or moved.rows:
        return ()
    found = [(place.split("."), True) for place in moved.places]
    found += [(place.split("."), False) for place in moved.was]
    return [
        (steps[:-1] if is_now and moved.sum else steps, _take(column, moved, is_now=is_now))
        for steps, is_now in found
        if steps[0] in fields
    ]


def places_in_row(table: Table, column: Column) -> Places:
    """Like `places_of`, in a row of the table as JSON: the first step is a column."""
    if column.moved is None:
        return ()
    found = []
    for steps, take in places_of(column, column.moved.fields):
        path = tuple(steps)
        holders = [c for c in table.columns if c.path and c.path == path[: len(c.path)]]
        if holders:
            holder = max(holders, key=lambda c: len(c.path))
            found.append(((holder.name, *path[len(holder.path) :]), take))
        else:
            found.append((("_extra", *path), take))
    return found


def _take(column: Column, moved: Moved, *, is_now: bool) -> Take:
    """How the value is read at a place of today's object, or of an earlier version's."""
    if is_now and moved.equals:
        return lambda value: value == moved.equals if type(value) is str else None
    if is_now and moved.words:
        words = dict(moved.words)
        return lambda value: words.get(value, value) if type(value) is str else None
    if is_now and moved.sum:
        return partial(_total, moved.places[0].rpartition(".")[2])
    if column.read in ("id", "json", "text", "integer"):
        return {"id": _id, "json": json_without_secrets, "text": _text, "integer": _integer}[
            column.read
        ]
    fits, is_decimal = _FITS[column.read], column.read == "decimal"
    return lambda value: (
        None if not fits(value) else repr(value) if is_decimal and type(value) is not str else value
    )


def _id(value: Value) -> Value:
    key = value.get("id") if type(value) is dict else value
    return key if type(key) is str else None


def _text(value: Value) -> Value:
    return without_secret_text(value) if type(value) is str else None


def _integer(value: Value) -> Value:
    """An integer, also where Stripe sends a decimal number of it."""
    if type(value) is str and _WHOLE.fullmatch(value):
        value = int(value.partition(".")[0])
    return value if _is_integer(value) else None


def _total(name: str, value: Value) -> Value:
    """The sum of one field of all elements of an array; None of none."""
    found = [item.get(name) for item in value if type(item) is dict] if type(value) is list else ()
    amounts = [amount for amount in found if type(amount) is int]
    total = sum(amounts)
    return total if amounts and _is_integer(total) else None


Known = Callable[[Value], "str | None"]
"""The table in which a value becomes a row of its own; None if it does not."""

ToJson = Callable[[Value], str]

_BIGINT = 1 << 63

_NUMERIC = 10**999

# The last second of the year 9999. Postgres knows later ones; no driver for Python can read them, so one
# `created` in milliseconds would end what reads it. Unix seconds beyond stay in `_extra`.
MAX_SECONDS = 253_402_300_799

# What `numeric` gives back as it was sent. Exponents, leading zeros and "NaN" are not among it.
_WHOLE = re.compile(r"-?[0-9]{1,19}(?:\.0{1,12})?")

_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,999})(?:\.[0-9]{1,999})?")

# RFC 3339 as far as timestamptz holds it: microseconds.
_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:Z|[+-][0-9]{2}:[0-9]{2})"
)

# What a list says of itself: it follows from the rows of its entries.
_LIST_META = frozenset(
    {"object", "data", "has_more", "url", "total_count", "next_page_url", "previous_page_url"}
)

_encode = msgspec.json.Encoder().encode


def fill_secret(value: Value, row: list[Value]) -> Value:
    """A secret: its columns stay null."""
    return None


def to_json(field: Field | None, *, opaque: bool) -> ToJson:
    """How a value of `field` becomes JSON without secrets. `opaque`: they have been taken out before."""
    if opaque:
        return _to_json
    if has_free_keys(field):
        return free_json_without_secrets
    if names_secrets(field):
        return json_without_secrets
    return _objects_searched if holds_objects(field) else _searched


def _to_json(value: Value) -> str:
    return _encode(value).decode()


def _searched(value: Value) -> str:
    text = _encode(value).decode()
    # The shortest that has one is {"secret":"…"}; most maps are empty.
    return json_without_secrets(value) if len(text) > 12 and may_hold(text) else text


def _objects_searched(value: Value) -> str:
    text = _searched(value)
    return json_without_secrets(value) if '"object":' in text else text


def fill_json(at: int, write: ToJson) -> Fill:
    """For a column that holds a value as JSON."""

    def fill(value: Value, row: list[Value]) -> Value:
        row[at] = write(value)
        return None

    return fill


def fill_text(at: int) -> Fill:
    """For a text that may be anything, so that a secret may stand in it."""

    def fill(value: Value, row: list[Value]) -> Value:
        if type(value) is not str:
            return value
        row[at] = without_secret_text(value) if "_" in value else value
        return None

    return fill


def fill_texts(at: int) -> Fill:
    """As `fill_text`, for an array of them."""

    def fill(value: Value, row: list[Value]) -> Value:
        if not _is_texts(value):
            return value
        row[at] = [without_secret_text(item) for item in value]
        return None

    return fill


def fill_scalar(read: Read, at: int) -> Fill:
    """For a column that takes one value unchanged."""
    fits = _FITS[read]
    as_text = read in ("number", "decimal")

    def fill(value: Value, row: list[Value]) -> Value:
        if not fits(value):
            return value
        row[at] = repr(value) if as_text and type(value) is not str else value
        return None

    return fill


def fill_reference(
    at: int,
    object_at: int,
    tables: Collection[str],
    type_of: Callable[[str], str | None],
    known: Known,
    *,
    present: bool = True,
) -> Fill:
    """An id, or the object itself: the id goes into the row, the object becomes a row of its own.

    `object_at` is the place of the object's type, -1 without such a column: then an object of
    another table than `tables` could not be found again by its id, and is kept whole. `type_of` gives
    the type behind an id, None where its prefix does not decide. Not `present`: the object stands there
    as it was at another time, makes no row, and is kept whole.
    """

    def fill(value: Value, row: list[Value]) -> Value:
        if type(value) is str:
            row[at] = value
            if object_at >= 0:
                row[object_at] = type_of(value)
            return None
        if type(value) is not dict or type(value.get("id")) is not str:
            return value
        row[at] = value["id"]
        name = value.get("object")
        if object_at >= 0 and type(name) is str:
            row[object_at] = name
        table = known(value)
        found = present and table is not None and (object_at >= 0 or table in tables)
        return None if found else value

    return fill


def fill_references(at: int, tables: Collection[str], known: Known) -> Fill:
    """An array of ids; some may be whole objects."""

    def fill(value: Value, row: list[Value]) -> Value:
        if type(value) is not list:
            return value
        ids = [
            item if type(item) is str else item.get("id") if type(item) is dict else None
            for item in value
        ]
        if not all(type(item) is str for item in ids):
            return value
        row[at] = ids
        lost = any(type(item) is dict and known(item) not in tables for item in value)
        return value if lost else None

    return fill


def fill_list(tables: Collection[str], known: Known) -> Fill:
    """A list: its entries are rows of `tables`, which carry their parent. No column."""

    def fill(value: Value, row: list[Value]) -> Value:
        if type(value) is not dict or value.get("object") != "list":
            return value
        entries = value.get("data")
        if type(entries) is not list or not all(known(entry) in tables for entry in entries):
            return value
        return {k: v for k, v in value.items() if k not in _LIST_META and v is not None} or None

    return fill


def fill_json_with_lists(
    at: int, lists: Sequence[tuple[tuple[str, ...], Collection[str]]], known: Known, write: ToJson
) -> Fill:
    """JSON with lists deeper inside, by path: of their entries, which are rows of their own, the ids stay.

    A copy of an entry would go stale: what it embeds (a price) changes without its owner.
    """

    def fill(value: Value, row: list[Value]) -> Value:
        for path, tables in lists:
            value = _with_ids(value, path, tables, known)
        row[at] = write(value)
        return None

    return fill


def _with_ids(value: Value, path: Sequence[str], tables: Collection[str], known: Known) -> Value:
    """`value`, with ids for entries in the list at `path`; as it was, if that is no list of rows."""
    if type(value) is not dict:
        return value
    if path:
        inner = value.get(path[0])
        shown = _with_ids(inner, path[1:], tables, known)
        return value if shown is inner else {**value, path[0]: shown}
    entries = value.get("data")
    if value.get("object") != "list" or type(entries) is not list:
        return value
    if not entries or not all(known(entry) in tables for entry in entries):
        return value
    return {**value, "data": [entry["id"] for entry in entries]}


def fill_inline(fills: dict[str, Fill]) -> Fill:
    """A nested object, one level down: a sub-key that is missing in a present object is null."""

    def fill(value: Value, row: list[Value]) -> Value:
        if type(value) is not dict:
            return value
        extra: dict[str, Value] | None = None
        for key, item in value.items():
            if item is None:
                continue
            sub = fills.get(key)
            rest = item if sub is None else sub(item, row)
            if rest is not None:
                extra = {} if extra is None else extra
                extra[key] = rest
        return extra

    return fill


def _is_text(value: Value) -> bool:
    return type(value) is str


def _is_boolean(value: Value) -> bool:
    return type(value) is bool


def _is_integer(value: Value) -> bool:
    return type(value) is int and -_BIGINT <= value < _BIGINT


def _is_seconds(value: Value) -> bool:
    return type(value) is int and -(10**10) < value <= MAX_SECONDS


def _is_milliseconds(value: Value) -> bool:
    return type(value) is int and -(10**13) < value <= MAX_SECONDS * 1000


def _is_number(value: Value) -> bool:
    if type(value) is str:
        return _DECIMAL.fullmatch(value) is not None
    if type(value) is float:
        return -1e308 < value < 1e308
    return type(value) is int and -_NUMERIC < value < _NUMERIC


def _is_rfc3339(value: Value) -> bool:
    if type(value) is not str or not _RFC3339.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:  # the 30th of February
        return False
    return True


def _is_texts(value: Value) -> bool:
    return type(value) is list and all(type(item) is str for item in value)


_FITS: dict[Read, Callable[[Value], bool]] = {
    "text": _is_text,
    "integer": _is_integer,
    "number": _is_number,
    "decimal": _is_number,
    "boolean": _is_boolean,
    "time": _is_seconds,
    "time_ms": _is_milliseconds,
    "time_iso": _is_rfc3339,
    "texts": _is_texts,
    "deleted": _is_boolean,
}
