"""One sample object per type and variant, with holes for what differs from object to object.

The catalog's types are walked once per (type, variant); `template.py` turns the sample into bytes
with holes. A hole is a string between two control characters; its name says who fills it: `id`,
`t+60` (created plus seconds), `amount`, `ref:customer` (a field's relation), `any:price` (some
object of that type), `list:lines`, `embed:price`. Sixteen variants a type give the variety: of
nulls, absent keys, enum values, hostile strings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from pinstripe.catalog.model import Field, ObjectType
from pinstripe_simulator import values
from pinstripe_simulator.beyond_types import ALWAYS_THERE, EACH_KEY

JsonValue = object
Sample = dict[str, JsonValue]

VARIANTS = 16
_OPEN, _CLOSE, ID_INSIDE = "\x01", "\x02", "\x03"
_CROWD = 12
"""An object with more optional inner objects than this holds one of them, named by `type`."""
_DEEPEST = 7


def hole(name: str) -> str:
    """The whole JSON value is filled in by `name`."""
    return f"{_OPEN}{name}{_CLOSE}"


@dataclass(frozen=True)
class Scope:
    """What a sample may refer to. `known`: types that have objects; `references`: fields of this
    type that have a relation of their own; `lists`: list fields with children.
    """

    known: Collection[str]
    references: Collection[str]
    lists: Collection[str]
    livemode: bool = False


def sample(kind: ObjectType, variant: int, scope: Scope) -> Sample:
    """The object as Stripe would return it unexpanded, with holes."""
    made = _Walker(kind.name, variant, scope).object(kind.fields, kind.name, depth=0)
    named: Sample = {"id": hole("id")} if kind.has_id else {}
    named["object"] = kind.name
    return named | {k: v for k, v in made.items() if k not in ("id", "object")}


class _Walker:
    def __init__(self, type_name: str, variant: int, scope: Scope) -> None:
        self._type = type_name
        self._variant = variant
        self._scope = scope
        self._makers: dict[str, Callable[[Field, str, int], JsonValue]] = {
            "string": self._string,
            "integer": self._integer,
            "number": lambda f, path, d: values.number(path, self._variant),
            "decimal": lambda f, path, d: values.decimal(self._variant),
            "boolean": self._boolean,
            "time": lambda f, path, d: hole(f"t+{values.time_offset(f.name)}"),
            "time_ms": lambda f, path, d: hole("ms"),
            "time_iso": lambda f, path, d: hole("iso"),
            "expandable": self._expandable,
            "resource": self._resource,
            "list": self._list,
            "object": lambda f, path, d: self.object(f.fields, path, d + 1),
            "array": self._array,
            "map": self._map,
            "any": lambda f, path, d: {},
        }

    def object(self, fields: tuple[Field, ...], path: str, depth: int) -> Sample:
        made: Sample = {}
        optional = [
            f
            for f in fields
            if f.nullable and f.kind in ("object", "any") and f"{path}.{f.name}" not in ALWAYS_THERE
        ]
        chosen = self._crowd(optional) if len(optional) > _CROWD else ""
        for field in fields:
            if field.on_request or field.name == "deleted":
                continue
            if chosen and field in optional:
                if field.name == chosen:
                    made[field.name] = self._make(field, f"{path}.{field.name}", depth)
                elif path in EACH_KEY:
                    made[field.name] = None
                continue
            value = self._maybe(field, f"{path}.{field.name}", depth)
            if value is not _ABSENT:
                made[field.name] = value
        if chosen and "type" in made:
            made["type"] = chosen
        return made

    def _crowd(self, optional: list[Field]) -> str:
        names = [f.name for f in optional]
        if "card" in names and self._variant % 4 != 3:
            return "card"
        return names[self._variant % len(names)]

    def _maybe(self, field: Field, path: str, depth: int) -> JsonValue:
        if not field.nullable or path in ALWAYS_THERE:
            return self._make(field, path, depth)
        at = values.pick(path, self._variant, 100)
        filled = field.name in self._scope.references and depth == 0
        if self._variant == 0 or depth > _DEEPEST:
            return None
        if field.kind == "resource" and field.name not in self._scope.references:
            return None
        limit = 75 if filled else 55 if depth == 0 else 35
        if self._variant == 1 and depth < 2:
            limit = 100
        if at < limit:
            return self._make(field, path, depth)
        return _ABSENT if at > 93 and path.rpartition(".")[0] not in EACH_KEY else None

    def _make(self, field: Field, path: str, depth: int) -> JsonValue:
        return self._makers[field.kind](field, path, depth)

    def _string(self, field: Field, path: str, depth: int) -> JsonValue:
        if field.name == "id" and depth:
            return f"{field.name}_{values.pick(path, self._variant, 10_000):04}"
        if field.name in self._scope.references and depth == 0:
            return hole(f"ref:{field.name}")
        if field.name == "client_secret":
            return f"{ID_INSIDE}_secret_{values.pick(path, self._variant, 10**8):08}"
        if field.name in self._scope.known and not field.enum:
            return hole(f"any:{field.name}")
        return values.text(field, path, self._variant)

    def _integer(self, field: Field, path: str, depth: int) -> JsonValue:
        if values.is_amount(field.name):
            return hole("amount")
        return values.integer(field.name, path, self._variant)

    def _boolean(self, field: Field, path: str, depth: int) -> JsonValue:
        if field.name == "livemode":
            return self._scope.livemode
        return values.pick(path, self._variant, 2) == 1

    def _expandable(self, field: Field, path: str, depth: int) -> JsonValue:
        if field.name in self._scope.references and depth == 0:
            return hole(f"ref:{field.name}")
        known = [t for t in field.targets if t in self._scope.known]
        if known:
            return hole(f"any:{known[self._variant % len(known)]}")
        return None if field.nullable else f"{field.name}_0001"

    def _resource(self, field: Field, path: str, depth: int) -> JsonValue:
        if field.name in self._scope.references and depth == 0:
            return hole(f"embed:{field.name}")
        return None if field.nullable else hole(f"whole:{field.targets[0]}")

    def _list(self, field: Field, path: str, depth: int) -> JsonValue:
        if depth == 0 and field.name in self._scope.lists:
            return hole(f"list:{field.name}")
        url = f"/v1/{self._type.replace('.', '/')}s/{ID_INSIDE}/{field.name}"
        return {"object": "list", "data": [], "has_more": False, "url": url}

    def _array(self, field: Field, path: str, depth: int) -> JsonValue:
        size = values.pick(path, self._variant, 3) if self._variant else 0
        if field.items is None or depth > _DEEPEST or field.items.kind == "resource":
            return []
        return [self._make(field.items, f"{path}[{n}]", depth + 1) for n in range(size)]

    def _map(self, field: Field, path: str, depth: int) -> JsonValue:
        if field.items is not None and field.items.kind == "string":
            return values.metadata(self._variant)
        return {}


class _Absent:
    """No key at all, which is not the same as null."""


_ABSENT = _Absent()
