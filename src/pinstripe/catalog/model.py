"""Stripe's object types, operations and event types as values, and their cached loader.

    tools/catalog (source of the `stripe` package) -> catalog/data/*.json -> spec()

Nothing here knows tables or SQL: `catalog.tables` makes tables of object types, and `catalog.endpoints`
selects what to list.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

Kind = Literal[
    "string",  # enums too: see `enum`
    "integer",
    "number",  # a JSON float
    "decimal",  # a decimal number in a JSON string
    "boolean",
    "time",  # Unix seconds
    "time_ms",  # Unix milliseconds
    "time_iso",  # RFC 3339, in v2 objects
    "expandable",  # an id, or the whole object where it was expanded; `targets` says of what
    "resource",  # one whole object with an `object` field of its own; `targets` says of what
    "list",  # {"object": "list", "data": [...], "has_more": ..., "url": ...}; `targets`
    "object",  # an inline object; `fields`
    "array",  # `items`
    "map",  # keys chosen by the user or by Stripe; `items` is the type of the values
    "any",
]


class Field(msgspec.Struct, frozen=True, omit_defaults=True):
    """One property of an object type, of an inline object, or one request parameter.

    `nullable` is the SDK's `Optional`: null or absent. `on_request` marks what Stripe leaves out
    unless `expand[]` names it. `targets` are `object` names ("customer", "checkout.session").
    """

    name: str
    kind: Kind
    nullable: bool = False
    on_request: bool = False
    enum: tuple[str, ...] = ()
    fields: tuple[Field, ...] = ()
    items: Field | None = None
    targets: tuple[str, ...] = ()
    doc: str = ""
    """First sentence of ours or empty; never Stripe's prose."""


def field_at(fields: Sequence[Field], path: Sequence[str]) -> Field | None:
    """Return the description of the value at this path below these fields; None if the catalog has none."""
    found: Field | None = None
    for name in path:
        found = next((f for f in fields if f.name == name), None)
        if found is None:
            return None
        fields = found.fields
    return found


class ObjectType(msgspec.Struct, frozen=True, omit_defaults=True):
    """One type of Stripe object, named by the value of its `object` field.

    `deletable`: a `{"id", "object", "deleted": true}` variant exists. `prefix` is the id prefix
    seen in examples ("ch" for charges), "" where ids are chosen by the user or unknown.
    """

    name: str
    fields: tuple[Field, ...]
    has_id: bool = True
    deletable: bool = False
    singleton: bool = False
    prefix: str = ""


class Operation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One named HTTP operation.

    `path` is Stripe's, with parameters in braces: `/v1/accounts/{account}/persons/{person}`.
    `returns` are the object names it answers with (of the list's entries for `list`, `search`).
    `params` are the query (GET) or body (POST) parameters, without path parameters;
    a required one has `nullable=False`. `created` takes kind "time" with sub-fields gt, gte, lt, lte.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    kind: Literal["list", "search", "retrieve", "create", "update", "delete", "action"]
    returns: tuple[str, ...] = ()
    params: tuple[Field, ...] = ()
    base: Literal["api", "files", "meter_events", "connect"] = "api"


class EventType(msgspec.Struct, frozen=True, omit_defaults=True):
    """One value of `event.type` and the `object` names that `data.object` can hold.

    `deletes`: Stripe has deleted what it carries. None where the name suggests it but was not reviewed.
    """

    name: str
    carries: tuple[str, ...] = ()
    deletes: bool | None = False


class Spec(msgspec.Struct, frozen=True):
    """The whole catalog. `api_version` is the version that the SDK pins ("2026-10-28.endive")."""

    api_version: str
    sdk_version: str
    objects: tuple[ObjectType, ...]
    operations: tuple[Operation, ...]
    events: tuple[EventType, ...]


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
