"""Every object that the simulator shows fits its type in the catalog."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pinstripe.catalog.model import Field
from pinstripe_simulator.account import Account, Settings, make_account
from pinstripe_simulator.beyond_types import EXTRA
from pinstripe_simulator.mutate import Mutator

NOON = 1_790_000_000
SCALARS: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "decimal": str,
    "boolean": bool,
    "time": int,
    "time_ms": int,
    "time_iso": str,
    "expandable": (str, dict),
    "resource": dict,
    "list": dict,
    "map": dict,
}


@pytest.fixture(scope="module")
def account() -> Account:
    return make_account(Settings(scale=2_000, until=NOON, connected=False, future_fields=False))


def misfits(value: object, fields: tuple[Field, ...], path: str) -> Iterator[str]:
    """Where an inline object or a whole one is not what the catalog says."""
    if not isinstance(value, dict):
        yield f"{path}: {value!r} is no object"
        return
    known = {f.name: f for f in fields}
    extra = EXTRA.get(path, {}).keys()
    yield from (f"{path}.{name}: absent" for name in extra - value.keys())
    for name in value.keys() - known.keys() - extra:
        yield f"{path}.{name}: unknown"
    for name, field in known.items():
        if name not in value:
            if not (field.nullable or field.on_request or name == "deleted"):
                yield f"{path}.{name}: absent"
        else:
            yield from misfit(value[name], field, f"{path}.{name}")


def misfit(value: object, field: Field, path: str) -> Iterator[str]:
    if value is None:
        if not field.nullable:
            yield f"{path}: null"
    elif field.kind == "object":
        yield from misfits(value, field.fields, path)
    elif field.kind == "array":
        if not isinstance(value, list):
            yield f"{path}: {value!r} is no array"
        elif field.items is not None:
            for entry in value:
                yield from misfit(entry, field.items, f"{path}[]")
    elif field.kind in SCALARS and not isinstance(value, SCALARS[field.kind]):
        yield f"{path}: {value!r} is no {field.kind}"
    elif field.enum and value not in field.enum:
        yield f"{path}: {value!r} is not in the enum"


def test_objects_from_the_start_fit_their_types(account: Account) -> None:
    found = set()
    for table in account.world.tables.values():
        if table.name == "event":
            continue
        for position in range(min(table.base, 60)):
            text = account.world.objects.text(table, position)
            assert b"\\u0001" not in text, text
            assert b"\\u0003" not in text, text
            whole = account.world.objects.load(table, position)
            found |= set(misfits(whole, table.kind.fields, table.kind.name))
    assert sorted(found) == []


def test_objects_made_and_changed_later_fit_their_types(account: Account) -> None:
    Mutator(account, 5).burst(1_500)
    found = set()
    for table in account.world.tables.values():
        if table.name == "event":
            continue
        for position in range(table.base, table.total):
            if not table.gone(position):
                whole = account.world.objects.load(table, position)
                found |= set(misfits(whole, table.kind.fields, table.kind.name))
    assert sorted(found) == []
