"""Turns an annotation of the SDK into a `Field`. An annotation it does not know stops it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from pinstripe.catalog.model import Field, Kind
from tools.catalog import overrides
from tools.catalog.source import Place, UnknownShape, attributes, object_name, resolve
from tools.catalog.times import integer_kind, string_kind

_SCALARS: dict[str, Kind] = {
    "bool": "boolean",
    "float": "number",
    "Decimal": "decimal",
    "datetime": "time_iso",
    "Any": "any",
    "object": "any",
}


@dataclass(frozen=True)
class Reader:
    """Reads the properties of one object type; `owner` is its `object` name."""

    owner: str
    objects: dict[tuple[str, str], str]
    """(module, class) -> object name, of every object type."""

    def fields(self, place: Place, path: tuple[str, ...] = ()) -> tuple[Field, ...]:
        """The properties of the class at the end of `place`."""
        return tuple(
            self._property(place, (*path, _plain_name(name)), annotation, doc)
            for name, annotation, doc in attributes(place.scope[-1])
        )

    def _property(
        self, place: Place, path: tuple[str, ...], annotation: ast.expr, doc: str
    ) -> Field:
        shape = self._shape(place, path, annotation, doc)
        dotted = ".".join((self.owner, *path))
        if dotted in overrides.ON_REQUEST:
            shape["on_request"] = True
        if dotted in overrides.REFERENCES:
            shape["targets"] = overrides.REFERENCES[dotted]
        return Field(name=path[-1], **shape)

    def _shape(
        self, place: Place, path: tuple[str, ...], node: ast.expr, doc: str
    ) -> dict[str, Any]:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.Name):
            return self._named(place, path, node.id, doc)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            return self._subscripted(place, path, node.value.id, node.slice, doc)
        if isinstance(node, ast.BinOp):  # "Literal[...]|str"
            return self._union(place, path, [node.left, node.right], doc)
        raise UnknownShape(f"{place}.{path[-1]}: {ast.unparse(node)}")

    def _named(self, place: Place, path: tuple[str, ...], name: str, doc: str) -> dict[str, Any]:
        if name == "int":
            return {"kind": integer_kind(self.owner, path[-1], doc)}
        if name == "str":
            return {"kind": string_kind(self.owner, path[-1], doc)}
        if name in _SCALARS:
            return {"kind": _SCALARS[name]}
        if name == "UntypedStripeObject":
            return {"kind": "any"}
        try:
            target = resolve(name, place)
        except UnknownShape:
            raise UnknownShape(f"{place}.{path[-1]}: {name}") from None
        whole = self._object_of(target)
        if whole is not None:
            return {"kind": "resource", "targets": (whole,)}
        fields = self.fields(target, path)
        return {"kind": "object", "fields": fields} if fields else {"kind": "any"}

    def _subscripted(
        self, place: Place, path: tuple[str, ...], head: str, inner: ast.expr, doc: str
    ) -> dict[str, Any]:
        if head == "Optional":
            return self._shape(place, path, inner, doc) | {"nullable": True}
        if head == "Literal":
            return _literal(inner)
        if head == "Union":
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return self._union(place, path, parts, doc)
        if head == "ExpandableField":
            return {"kind": "expandable", "targets": self._targets(place, inner)}
        if head == "ListObject":
            return {"kind": "list", "targets": self._targets(place, inner)}
        if head in ("List", "UntypedStripeObject", "Dict"):
            value = inner.elts[1] if isinstance(inner, ast.Tuple) else inner
            item = Field(name="", **self._shape(place, path, value, doc))
            return {"kind": "array" if head == "List" else "map", "items": item}
        raise UnknownShape(f"{place}.{path[-1]}: {head}[...]")

    def _union(
        self, place: Place, path: tuple[str, ...], parts: list[ast.expr], doc: str
    ) -> dict[str, Any]:
        """`Literal[...] | str` is an open enum; a union of object types is polymorphic."""
        shapes = [self._shape(place, path, part, doc) for part in parts]
        kinds = {shape["kind"] for shape in shapes}
        if kinds == {"string"}:
            return {"kind": "string", "enum": tuple(v for s in shapes for v in s.get("enum", ()))}
        if kinds == {"resource"}:
            return {"kind": "resource", "targets": tuple(t for s in shapes for t in s["targets"])}
        raise UnknownShape(f"{place}.{path[-1]}: union of {sorted(kinds)}")

    def _targets(self, place: Place, node: ast.expr) -> tuple[str, ...]:
        shape = self._shape(place, ("?",), node, "")
        if shape["kind"] == "resource":
            return tuple(shape["targets"])
        # An inline class behind ExpandableField (charge.outcome.rule) has no table of its own.
        return ()

    def _object_of(self, place: Place) -> str | None:
        if len(place.scope) != 1:
            return None
        cls = place.scope[-1]
        known = self.objects.get((place.module.name, cls.name))
        return known or (object_name(cls) if cls.name in place.module.classes else None)


def _plain_name(name: str) -> str:
    """`from_` and `object_` are `from` and `object` at Stripe."""
    return name[:-1] if name.endswith("_") else name


def _literal(inner: ast.expr) -> dict[str, Any]:
    values = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    constants = [v.value for v in values if isinstance(v, ast.Constant)]
    if all(isinstance(c, bool) for c in constants):
        return {"kind": "boolean"}
    if all(isinstance(c, int) for c in constants):
        return {"kind": "integer"}
    return {"kind": "string", "enum": tuple(str(c) for c in constants)}
