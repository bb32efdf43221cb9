"""Request parameters: Stripe's form encoding, and its strictness about names, integers and enums.

`created[gte]=1&expand[]=data.customer&items[0][price]=p` becomes nested dicts and lists; `check`
holds it against the operation's parameters in the catalog and gives typed values, or Stripe's own
400.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl

from pinstripe.catalog.model import Field, Operation
from pinstripe_simulator.replies import StripeError, refused

Params = dict[str, Any]
"""Nested parameters; like a Stripe object, beyond what types can say."""

_KEY = re.compile(r"\[([^\]]*)\]")
_INTEGER = re.compile(r"-?\d+\Z")
_BOUNDS = ("gt", "gte", "lt", "lte")
_WORDS = ("now", "unchanged", "inf", "auto")
"""What Stripe takes in place of some times and numbers; the catalog types those by the number."""
_TRUE = {"true": True, "false": False}


def parse(text: str) -> Params:
    """Nested parameters from a query string or a form body."""
    return nest(parse_qsl(text, keep_blank_values=True))


def nest(pairs: Iterable[tuple[str, str]]) -> Params:
    """`a[b][]=1` pairs as nested dicts; lists are made where keys are empty or numbers."""
    root: Params = {}
    for name, value in pairs:
        keys = [name.partition("[")[0], *_KEY.findall(name)]
        at = root
        for key, deeper in pairwise(keys):
            inner = at.get(_slot(at, key, deeper))
            if not isinstance(inner, dict):
                inner = {}
                at[_slot(at, key, deeper)] = inner
            at = inner
        at[keys[-1] or str(len(at))] = value
    return {k: _lists(v) for k, v in root.items()}


def _slot(at: Params, key: str, deeper: str) -> str:
    """`a[][b]=1&a[][c]=2` continue the last entry until a key would repeat."""
    if key:
        return key
    last = str(len(at) - 1)
    return last if at and deeper not in at[last] else str(len(at))


def _lists(value: object) -> object:
    if not isinstance(value, dict):
        return value
    inner = {k: _lists(v) for k, v in value.items()}
    if inner and all(k.isdigit() for k in inner):
        return [inner[k] for k in sorted(inner, key=int)]
    return inner


def check(operation: Operation, given: Params) -> Params:
    """Typed values; raises Stripe's 400 for what the operation does not take."""
    known = {p.name: p for p in operation.params}
    # Lists of v2 page by a token that only their `next_page_url` shows.
    paging = operation.kind == "list" and operation.path.startswith("/v2/")
    for name in given:
        if name not in known and name != "expand" and not (paging and name == "page"):
            raise refused(
                f"Received unknown parameter: {name}", code="parameter_unknown", param=name
            )
    for name, field in known.items():
        if not field.nullable and name not in given:
            raise refused(f"Missing required param: {name}.", code="parameter_missing", param=name)
    reading = operation.method == "GET"
    return {
        name: _value(known[name], value, name, reading) if name in known else value
        for name, value in given.items()
    }


def _value(field: Field, value: object, path: str, reading: bool) -> object:
    if value == "":
        if reading:
            raise _empty(path)
        return None if field.kind not in ("string", "map", "any") else value
    ranged = field.kind == "time" or _is_range(field)
    if ranged and isinstance(value, dict):
        return _bounds(value, path)
    if ranged or field.kind == "integer":
        return value if value in _WORDS else _integer(value, path)
    if field.kind == "boolean":
        return _boolean(value, path)
    if field.enum and isinstance(value, str) and value not in field.enum:
        raise _not_one_of(field, value, path)
    if field.kind == "array":
        return _array(field, value, path, reading)
    if field.kind == "object" and field.fields:
        return _object(field, value, path, reading)
    return value


def _is_range(field: Field) -> bool:
    return field.kind == "object" and {f.name for f in field.fields} == set(_BOUNDS)


def _bounds(value: Params, path: str) -> dict[str, int]:
    made: dict[str, int] = {}
    for bound, limit in value.items():
        where = f"{path}[{bound}]"
        if bound not in _BOUNDS:
            raise refused(
                f"Received unknown parameter: {where}", code="parameter_unknown", param=where
            )
        made[bound] = _integer(limit, where)
    return made


def _integer(value: object, path: str) -> int:
    if isinstance(value, str) and _INTEGER.match(value):
        return int(value)
    raise refused(f"Invalid integer: {value}", code="parameter_invalid_integer", param=path)


def _boolean(value: object, path: str) -> bool:
    if isinstance(value, str) and value in _TRUE:
        return _TRUE[value]
    raise refused(f"Invalid boolean: {value}", code="parameter_invalid_boolean", param=path)


def _array(field: Field, value: object, path: str, reading: bool) -> list[object]:
    if not isinstance(value, list):
        raise refused("Invalid array", code="parameter_invalid_array", param=path)
    if field.items is None:
        return list(value)
    items = field.items
    return [_value(items, entry, f"{path}[{n}]", reading) for n, entry in enumerate(value)]


def _object(field: Field, value: object, path: str, reading: bool) -> object:
    if not isinstance(value, dict):
        if value == "all" or isinstance(value, str):
            return value  # A union that the catalog names by its object form.
        raise refused("Invalid object", code="parameter_invalid_object", param=path)
    known = {f.name: f for f in field.fields}
    for name in value:
        if name not in known:
            where = f"{path}[{name}]"
            raise refused(
                f"Received unknown parameter: {where}", code="parameter_unknown", param=where
            )
    return {n: _value(known[n], v, f"{path}[{n}]", reading) for n, v in value.items()}


def _empty(path: str) -> StripeError:
    return refused(
        f"You passed an empty string for '{path}'. We assume empty values are an attempt to unset "
        f"a parameter; however '{path}' cannot be unset. You should remove '{path}' from your "
        "request or supply a non-empty value.",
        code="parameter_invalid_empty",
        param=path,
    )


def _not_one_of(field: Field, value: str, path: str) -> StripeError:
    *first, last = field.enum
    choices = f"{', '.join(first)}, or {last}" if first else last
    return refused(f"Invalid {path}: must be one of {choices}", param=path)
