"""A Stripe with one object of every type, and a name in every text that can hold personal data.

Each refers to the others wherever its type allows, so that most of them belong to the one customer.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from tests.flows.harness.planting_stripe import Json, Planting
from tests.flows.harness.web import answering

from pinstripe.catalog.model import Field, object_types
from pinstripe.catalog.personal import is_free_text, kind_at
from pinstripe.catalog.secrets import is_secret

NAME = "Zebedee Quillfeather"


def people() -> dict[str, Json]:
    """Object name -> object."""
    numbers = count(1)
    return {name: _object(name, numbers) for name, made in object_types().items() if made.has_id}


def id_of(object_name: str) -> str:
    prefix = object_types()[object_name].prefix or "id"
    return f"{prefix}_{re.sub('[._]', '', object_name)}1"


def _object(name: str, numbers: Iterator[int]) -> Json:
    made: Json = {"id": id_of(name), "object": name, "livemode": False}
    for part in object_types()[name].fields:
        if part.name not in made:
            value = _value(part, name, (part.name,), numbers)
            if value is not None:
                made[part.name] = value
    if kind_at(name, ("new_field",)) is not None:
        made["new_field"] = {"anything": f"{NAME} {next(numbers)}.", "number": 1}
    return made


def _value(part: Field, name: str, path: tuple[str, ...], numbers: Iterator[int]) -> Any:
    if is_secret(name, path):
        return None
    if part.name == "created":
        return int(time.time()) - 1000
    target = next((t for t in part.targets if object_types()[t].has_id), None)
    if part.kind == "expandable" or (part.kind == "string" and part.name in object_types()):
        target = target or part.name
        return id_of(target) if target in object_types() else None
    if part.kind == "object":
        inner = {p.name: _value(p, name, (*path, p.name), numbers) for p in part.fields}
        return {key: value for key, value in inner.items() if value is not None}
    if part.kind in ("array", "map") and part.items is not None:
        item = _value(part.items, name, path, numbers)
        if item is None:
            return None
        return [item] if part.kind == "array" else {"anything": item}
    if part.kind == "integer" and "dob" in path:
        return 7
    if part.kind == "string" and is_free_text(part) and kind_at(name, path) is not None:
        return f"{NAME} {next(numbers)}."
    return None


@asynccontextmanager
async def planting_people() -> AsyncIterator[Planting]:
    """The server, for the block."""
    it = Planting(objects=people())
    async with answering(it.answer) as it.url:
        yield it
