"""A sample turned into bytes with holes: rendering an object is one `%` over a tuple.

A page of a hundred charges must cost about a millisecond, so nothing is encoded twice: the text
between the holes is formatted once per (type, variant, indent) as Stripe prints it (two spaces),
and a filler is called once per object however many holes it fills.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import itemgetter
from typing import Generic, TypeVar

import msgspec

from pinstripe_simulator.shape import Sample

World = TypeVar("World")
Filler = Callable[[World, int, int], bytes]
"""(objects of the account, index, created) -> the JSON text of the value."""

_HOLE = re.compile(rb'"\\u0001([^\\"]+)\\u0002"|\\u0003')
_ID_INSIDE = "id-inside"


def pretty(value: object, indent: int = 0) -> bytes:
    """JSON as Stripe prints it, for a place that is already `indent` spaces deep."""
    return reindent(msgspec.json.format(msgspec.json.encode(value), indent=2), indent)


def reindent(text: bytes, indent: int) -> bytes:
    return text.replace(b"\n", b"\n" + b" " * indent) if indent else text


class Template(Generic[World]):
    """One (type, variant, indent), for all accounts that are made alike. `fill(name, indent)`
    resolves each hole's name when compiled.
    """

    def __init__(
        self, sample: Sample, indent: int, fill: Callable[[str, int], Filler[World]]
    ) -> None:
        text = pretty(sample, indent).replace(b"%", b"%%")
        fillers: list[Filler[World]] = []
        known: dict[tuple[str, int], int] = {}
        order: list[int] = []
        parts: list[bytes] = []
        done = 0
        for found in _HOLE.finditer(text):
            parts += (text[done : found.start()], b"%b")
            done = found.end()
            name = found.group(1).decode() if found.group(1) else _ID_INSIDE
            deep = _depth(text, found.start()) if ":" in name else 0
            at = known.setdefault((name, deep), len(known))
            if at == len(fillers):
                fillers.append(fill(name, deep))
            order.append(at)
        parts.append(text[done:])
        self._text = b"".join(parts)
        self._fillers = fillers
        self._order = itemgetter(*order, *order[:1]) if order else None
        if order:  # itemgetter of one name gives no tuple: one more hole that prints nothing.
            self._text += b"%.0b"

    def render(self, world: World, index: int, created: int) -> bytes:
        if self._order is None:
            return self._text % ()
        made: bytes = self._text % self._order([f(world, index, created) for f in self._fillers])
        return made


def _depth(text: bytes, at: int) -> int:
    """How deep the line around `at` is indented."""
    start = text.rfind(b"\n", 0, at) + 1
    line = text[start:at]
    return len(line) - len(line.lstrip(b" "))
