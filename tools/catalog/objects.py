"""Object types and event types out of the SDK's resource classes."""

from __future__ import annotations

import ast

from pinstripe.catalog.model import EventType, Field, ObjectType
from tools.catalog import overrides
from tools.catalog.annotations import Reader
from tools.catalog.source import (
    Place,
    UnknownShape,
    attributes,
    module,
    object_classes,
)


def object_types() -> tuple[ObjectType, ...]:
    """Every object type, by name. An override that matches nothing stops it."""
    places = object_classes()
    names = {(p.module.name, p.scope[-1].name): name for name, p in places.items()}
    types = tuple(_object_type(name, place, names) for name, place in sorted(places.items()))
    _check_overrides(types)
    return types


def class_names() -> dict[tuple[str, str], str]:
    """(module, class) -> object name."""
    return {(p.module.name, p.scope[-1].name): name for name, p in object_classes().items()}


def _object_type(name: str, place: Place, names: dict[tuple[str, str], str]) -> ObjectType:
    fields = Reader(name, names).fields(place)
    own = {f.name for f in fields}
    sent = overrides.ALWAYS_SENT.get(name, ())
    if listed := own & {f.name for f in sent}:
        raise UnknownShape(f"{name}: the SDK knows {sorted(listed)} now; drop it from ALWAYS_SENT")
    bases = {ast.unparse(base).split("[")[0] for base in place.scope[-1].bases}
    return ObjectType(
        name=name,
        fields=(*(f for f in fields if f.name != "deleted"), *sent),
        has_id="id" in own,
        deletable=_deletable(name, own, bases),
        singleton="SingletonAPIResource" in bases,
        prefix=overrides.PREFIXES.get(name, ""),
    )


def _deletable(name: str, own: set[str], bases: set[str]) -> bool:
    if name in overrides.NOT_DELETABLE:
        return False
    return name in overrides.DELETABLE or "deleted" in own or "DeletableAPIResource" in bases


def event_types(types: tuple[ObjectType, ...]) -> tuple[EventType, ...]:
    """Every value that the SDK lists for `event.type`."""
    event = module("stripe._event").classes["Event"]
    annotation = next(a for n, a, _ in attributes(event) if n == "type")
    known = {t.name for t in types}
    names = _strings(annotation)
    if stale := (overrides.DELETIONS | overrides.NO_DELETIONS) - set(names):
        raise UnknownShape(f"overrides that match nothing: {sorted(stale)}")
    return tuple(EventType(n, _carries(n, known), _deletes(n)) for n in sorted(names))


def _deletes(event: str) -> bool | None:
    if event in overrides.DELETIONS:
        return True
    is_open = event.endswith(".deleted") and event not in overrides.NO_DELETIONS
    return None if is_open else False


def _strings(annotation: ast.expr) -> list[str]:
    return [
        node.value
        for node in ast.walk(annotation)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def _carries(event: str, known: set[str]) -> tuple[str, ...]:
    for prefix, carried in overrides.EVENT_CARRIES.items():
        if event.startswith(prefix):
            if carried == ("issuing.",):
                return ("issuing." + event.removeprefix("issuing_").rsplit(".", 1)[0],)
            return carried
    parts = event.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        if name in known:
            return (name,)
    raise UnknownShape(f"event {event}: what does it carry? Add it to EVENT_CARRIES")


def _check_overrides(types: tuple[ObjectType, ...]) -> None:
    paths: set[str] = set()
    for object_type in types:
        _collect(object_type.name, object_type.fields, paths)
    stale = (overrides.ON_REQUEST | set(overrides.REFERENCES)) - paths
    named = (
        set(overrides.ALWAYS_SENT)
        | set(overrides.PREFIXES)
        | overrides.DELETABLE
        | overrides.NOT_DELETABLE
    )
    stale |= named - {t.name for t in types}
    if stale:
        raise UnknownShape(f"overrides that match nothing: {sorted(stale)}")


def _collect(prefix: str, fields: tuple[Field, ...], paths: set[str]) -> None:
    for field in fields:
        path = f"{prefix}.{field.name}"
        paths.add(path)
        _collect(path, field.fields, paths)
