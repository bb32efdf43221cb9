"""For rows that no list returns: the tables whose objects contain them, which must be synced too."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from pinstripe.catalog.embedded import present_in
from pinstripe.catalog.endpoints import expand_of, retrieve_endpoints
from pinstripe.catalog.model import object_types
from pinstripe.catalog.tables import table_of_object, tables


@cache
def holders() -> Mapping[str, frozenset[str]]:
    """Table -> the tables whose objects hold its objects in their present state, in our responses."""
    found: dict[str, set[str]] = {}
    table_of = table_of_object()
    for name in object_types():
        expanded = set(expand_of((name,)))
        for path, item in present_in(name):
            if item.kind == "expandable" and path not in expanded:
                continue
            for target in item.targets:
                if target in table_of and name in table_of:
                    found.setdefault(table_of[target], set()).add(table_of[name])
    return {table: frozenset(owners) for table, owners in found.items()}


@cache
def carriers() -> Mapping[str, frozenset[str]]:
    """Table -> the tables that yield its rows: they hold them, or name an id that can be fetched."""
    fetched = {
        table_of_object()[name]
        for name, where in retrieve_endpoints().items()
        if name in table_of_object() and not where.parent_parameter
    }
    found = {table: set(owners) for table, owners in holders().items()}
    for table in tables().values():
        for column in table.columns if not table.virtual else ():
            for target in () if column.is_derived else column.references:
                if target in fetched:
                    found.setdefault(target, set()).add(table.name)
    return {table: frozenset(owners - {table}) for table, owners in found.items()}
