"""Reads the generated catalog. Cached: the data never changes while a process runs."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import msgspec

from pinstripe.catalog.model import EventType, ObjectType, Operation, Spec


@cache
def spec() -> Spec:
    """The whole catalog as generated from the newest `stripe` package."""
    head = msgspec.json.decode(_read("spec.json"), type=dict[str, str])
    return Spec(
        api_version=head["api_version"],
        sdk_version=head["sdk_version"],
        objects=msgspec.json.decode(_read("objects.json"), type=tuple[ObjectType, ...]),
        operations=msgspec.json.decode(_read("operations.json"), type=tuple[Operation, ...]),
        events=msgspec.json.decode(_read("events.json"), type=tuple[EventType, ...]),
    )


@cache
def object_types() -> dict[str, ObjectType]:
    """Object types by their `object` name."""
    return {t.name: t for t in spec().objects}


def _read(name: str) -> bytes:
    return files("pinstripe.catalog").joinpath("data", name).read_bytes()
