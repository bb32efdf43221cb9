"""`expand[]`: ids become the objects they name, on-request fields appear.

Works on loaded objects along the catalog's types, at most four levels deep, and refuses what
Stripe refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import msgspec

from pinstripe.catalog.model import Field
from pinstripe_simulator.events import copy
from pinstripe_simulator.params import Params
from pinstripe_simulator.replies import refused
from pinstripe_simulator.shape import Scope, sample
from pinstripe_simulator.table import StripeObject
from pinstripe_simulator.world import World

_DEEPEST = 4


def paths_of(params: Params, *, inside_list: bool) -> list[list[str]]:
    """The paths asked for, without the `data.` prefix that lists need."""
    given = params.get("expand", [])
    if isinstance(given, str):
        raise refused("Invalid array", code="parameter_invalid_array", param="expand")
    made: list[list[str]] = []
    for path in given:
        words = str(path).split(".")
        if inside_list:
            if words[0] != "data" or len(words) == 1:
                raise _cannot(str(path))
            words = words[1:]
        if len(words) > _DEEPEST:
            raise refused(
                f"You cannot expand more than {_DEEPEST} levels of a property. (Property: {path})",
                code="property_expansion_max_depth",
                param="expand",
            )
        made.append(words)
    return made


class Expander:
    """Expands in place; `world` finds the objects. `refused` gives the properties that cannot be
    expanded, each as `type.path`.
    """

    def __init__(self, world: World, *, refused: Callable[[], Collection[str]]) -> None:
        self._world = world
        self._refused = refused

    def expand(
        self, found: StripeObject, paths: Sequence[Sequence[str]], *, prefix: str = ""
    ) -> None:
        """`found` with every path expanded; `prefix` is what stood before each in the request."""
        fields = self._world.routes.fields.get(str(found.get("object", "")), {})
        for path in paths:
            self._along(found, fields, path, prefix + ".".join(path), found)

    def check(self, type_name: str, paths: Sequence[Sequence[str]], *, prefix: str = "") -> None:
        """Raises Stripe's 400 for a property of the type that it does not expand."""
        for path in paths:
            self._allow(type_name, path, prefix + ".".join(path))

    def _allow(self, type_name: str, path: Sequence[str], whole: str) -> None:
        refused = self._refused()
        for length in range(1, len(path) + 1) if refused else ():
            if ".".join((type_name, *path[:length])) in refused:
                raise _cannot(whole)

    def _along(
        self,
        at: StripeObject,
        fields: dict[str, Field],
        path: Sequence[str],
        whole: str,
        owner: StripeObject,
    ) -> None:
        if at is owner:
            self._allow(str(owner.get("object", "")), path, whole)
        name, rest = path[0], path[1:]
        field = fields.get(name)
        if field is None:
            raise _cannot(whole)
        value = at.get(name)
        if field.on_request and value is None:
            value = at[name] = self._on_request(field, owner)
        if isinstance(value, list):
            at[name] = [self._entry(field, v, rest, whole, owner) for v in value]
        elif isinstance(value, dict) and value.get("object") == "list":
            for entry in value["data"]:
                if rest and rest[0] == "data" and len(rest) > 1:
                    self.expand(entry, [rest[1:]])
            if rest and rest[0] != "data":
                raise _cannot(whole)
        else:
            at[name] = self._entry(field, value, rest, whole, owner)

    def _entry(
        self, field: Field, value: object, rest: Sequence[str], whole: str, owner: StripeObject
    ) -> object:
        kind = field.items if field.kind == "array" and field.items else field
        if isinstance(value, str) and kind.kind in ("expandable", "resource"):
            value = self._object(kind, value)
        elif (
            kind.kind not in ("expandable", "resource", "object", "list") and not field.on_request
        ) or (kind.kind == "object" and not rest and not field.on_request):
            raise _cannot(whole)
        if rest and isinstance(value, dict):
            if "object" in value and not kind.fields:
                inner = self._world.routes.fields.get(str(value["object"]), {})
                self._along(value, inner, rest, whole, value)
            else:
                self._along(value, {f.name: f for f in kind.fields}, rest, whole, owner)
        elif rest and kind.kind in ("expandable", "resource"):
            self._check(kind, rest, whole)
        return value

    def _check(self, kind: Field, rest: Sequence[str], whole: str) -> None:
        """A null on the way: the rest must still be a field of what could stand there."""
        if kind.targets and not any(
            rest[0] in self._world.routes.fields.get(t, {}) for t in kind.targets
        ):
            raise _cannot(whole)

    def _object(self, kind: Field, id: str) -> object:
        for target in kind.targets:
            found = self._world.find(target, id)
            if found is None:
                continue
            if found[0].gone(found[1]):
                return {"id": id, "object": target, "deleted": True}
            return self._world.objects.load(*found)
        return id

    def _on_request(self, field: Field, owner: StripeObject) -> object:
        type_name = str(owner["object"])
        given = self._world.withheld(type_name, str(owner.get("id")))
        if field.name in given:
            return copy(given[field.name])
        if field.kind == "list" and isinstance(owner.get("id"), str):
            found = self._world.find(type_name, owner["id"])
            if found is not None and field.name in found[0].lists:
                text = self._world.objects.list_inside(found[0], field.name, found[1], 0)
                made: object = msgspec.json.decode(text)
                return made
            url = f"/v1/{type_name.replace('.', '/')}s/{owner['id']}/{field.name}"
            return {"object": "list", "data": [], "has_more": False, "url": url}
        objects = self._world.routes.objects
        kind = objects[type_name]
        single = [t for t in field.targets if t in objects and not objects[t].has_id]
        if field.kind == "resource" and single:
            # Of its own type and without an id: a customer's cash balance.
            whole = _without_holes(sample(objects[single[0]], 0, Scope((), (), ())))
            return {**whole, type_name: owner["id"]} if isinstance(whole, dict) else whole
        shown = msgspec.structs.replace(field, on_request=False, nullable=False)
        alone = msgspec.structs.replace(kind, fields=(shown,), has_id=False)
        return _without_holes(sample(alone, 0, Scope((), (), ()))[field.name])


def _without_holes(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_holes(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_holes(v) for v in value]
    if isinstance(value, str) and value.startswith("\x01"):
        return 0
    return value


def _cannot(path: str) -> Exception:
    """Without code or param, as recorded (gitpod-io/gitpod#13035)."""
    return refused(f"This property cannot be expanded ({path}).")
