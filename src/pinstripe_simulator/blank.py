"""A new object before anything is known of it: the plainest sample, its holes filled."""

from __future__ import annotations

from datetime import UTC, datetime

from pinstripe_simulator.objects import Objects
from pinstripe_simulator.table import StripeObject, Table

_EMPTY_AT_FIRST = ("amount", "fee", "net", "entry-amount")
_SECRETIVE = frozenset({"payment_intent", "setup_intent"})
"""Types that always come with their client secret."""


def blank(table: Table, position: int, objects: Objects, now: int) -> StripeObject:
    """All optional fields null, times now, amounts 0, references none (unless required: then any)."""
    id = table.id_at(position)
    made = {
        key: _fill(value, id, objects, now)
        for key, value in table.sample(0).items()
        if key not in table.lists
    }
    for field, (_, target) in table.links.items():
        if field in made:
            needed = not objects.optional(table, field)
            made[field] = objects.some_id(target, position) if needed else None
    if "metadata" in made:
        made["metadata"] = {}
    if table.kind.name in _SECRETIVE:
        made["client_secret"] = f"{id}_secret_{position:016}"
    return made


def _fill(value: object, id: str, objects: Objects, now: int) -> object:
    if isinstance(value, dict):
        return {k: _fill(v, id, objects, now) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, id, objects, now) for v in value]
    if not isinstance(value, str):
        return value
    if not value.startswith("\x01"):
        return value.replace("\x03", id)
    name = value[1:-1]
    if name == "id":
        return id
    if name.startswith("t+"):
        return now + int(name[2:])
    if name in _EMPTY_AT_FIRST:
        return 0
    if name.startswith("has:"):
        return False
    if name == "ms":
        return now * 1000
    if name == "iso":
        return f"{datetime.fromtimestamp(now, UTC):%Y-%m-%dT%H:%M:%S}.000Z"
    return None
