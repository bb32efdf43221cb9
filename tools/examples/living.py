"""Living objects in place of the examples' placeholders.

A placeholder in a path is of the type that the path says, one in a body of the type that its prefix
says. Candidates come from the simulator's own truth, newest first: an action often fits only
objects in one state, so a request is tried with several.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from pinstripe.catalog.model import Operation, spec
from pinstripe_simulator.routes import Routes
from tools.examples.recipes import RECIPES
from tools.examples.wire import Wire

_PLACEHOLDER = re.compile(r"[a-z_]+_(?:x{4,}|123\d?)\w*\Z")
_BRACES = re.compile(r"\{[^}]+\}")
_MOST = 24
"""Objects tried for one placeholder in a path."""

# Prefixes of the examples that the catalog does not know, or knows for another type.
_PREFIXES = {
    "acct": "account",
    "clock": "test_helpers.test_clock",
    "cs_test": "checkout.session",
    "il": "line_item",
    "in": "invoice",
    "sec": "product",
}
# Placeholders that do not look like ids, in examples of Issuing.
_WORDS = {
    ("card", "foo"): "issuing.card",
    ("physical_bundle", "pb_xyz"): "issuing.physical_bundle",
}


class Living:
    """Finds ids in the simulator behind `wire`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._routes = Routes(spec())
        self._by_prefix = {o.prefix: o.name for o in spec().objects if o.prefix} | _PREFIXES

    def requests(self, method: str, target: str, body: str) -> Iterator[tuple[str, str]]:
        """Targets (path and query) and bodies to try, the likeliest first."""
        path, _, query = target.partition("?")
        for living in self._paths(method, path):
            asked = f"?{self._form(path, query)}" if query else ""
            yield living + asked, self._form(path, body)

    def _paths(self, method: str, path: str) -> Iterator[str]:
        match = self._routes.match(method, path)
        if match is None or not match.path_values:
            yield path
            return
        template = match.operation.path
        recipe = RECIPES.get(f"{method} {template}")
        if recipe is not None:
            yield _filled(template, recipe(self._wire))
            return
        places = [template[: found.end()] for found in _BRACES.finditer(template)]
        types = [self._type(place, match.operation) for place in places]
        if len(places) == 1:
            yield from (_filled(template, [id]) for id in self._ids(types[0])[:_MOST])
        else:
            yield from (_filled(template, ids) for ids in self._families(places, types))

    def _type(self, place: str, operation: Operation) -> str:
        """The type that stands at the end of `place`: by its own address, its name, the answer."""
        owner = self._routes.owner.get(_BRACES.sub("{}", place))
        name = place[place.rindex("{") + 1 : -1]
        if owner is not None:
            return owner
        answer = self._routes.child(operation)
        other = name in self._routes.objects and not answer.endswith(f".{name}")
        return name if other else answer

    def _ids(self, type_name: str) -> list[str]:
        """Of all objects of the type, newest first."""
        return [str(o["id"]) for o in reversed(self._wire.truth(type_name))] or ["nobody"]

    def _families(self, places: list[str], types: list[str]) -> Iterator[list[str]]:
        """Parents with their children, so that the one hangs under the other."""
        tried = 0
        for parent in self._ids(types[0]):
            above = _filled(places[1].rpartition("/")[0], [parent])
            for child in self._wire.listed(above)[:2]:
                yield [parent, child]
                tried += 1
            if tried >= _MOST:
                return
        if not tried:
            firsts = [self._ids(name)[:3] for name in types]
            yield from (list(ids) for ids in product(*firsts))

    # --- bodies ------------------------------------------------------------------------------

    def _form(self, path: str, form: str) -> str:
        if not form:
            return form
        pairs = parse_qsl(form, keep_blank_values=True)
        return urlencode([(name, self._value(path, name, value)) for name, value in pairs])

    def _value(self, path: str, name: str, value: str) -> str:
        prefix = re.sub(r"_(?:x{4,}|123\d?)\w*\Z", "", value)
        type_name = self._by_prefix.get(prefix) if _PLACEHOLDER.match(value) else None
        if (name, value) in _WORDS and "/issuing/" in path:
            type_name = _WORDS[name, value]
        for found in reversed(self._wire.truth(type_name)) if type_name else ():
            if _fits(str(type_name), found):
                return str(found["id"])
        return value


def _filled(template: str, ids: list[str]) -> str:
    values = iter(ids)
    return _BRACES.sub(lambda _: quote(next(values), safe=""), template)


def _fits(type_name: str, found: dict[str, Any]) -> bool:
    """Whether an object can be referred to by new ones."""
    if type_name == "price":
        return bool(found.get("active")) and found.get("type") == "recurring"
    if type_name == "charge":
        return bool(found.get("paid")) and not found.get("refunded")
    if type_name == "subscription":
        return found.get("status") == "active"
    if type_name == "customer":
        return found.get("test_clock") is None
    return True
