"""Puts a Stripe object together again from rows alone: the proof that nothing is lost.

Written from the rules of the schema (docs/concepts/schema.md), not from how rows are made: a column
stands at its `path`, a reference is looked up in the table that it names, the entries of a list are the
rows that carry the parent's id, and `_extra` lies over all of it. Whether a reference was expanded and
what was absent is not in the rows, so the rebuilding is shown the original as a pattern (`like`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from pinstripe.catalog.model import object_types
from pinstripe.catalog.relations import embedded_lists
from pinstripe.catalog.secrets import SECRET_NAMES, SECRET_PLACES
from pinstripe.catalog.tables import NAMED_UNDER, Column, Table, table_of_object, tables
from pinstripe.rows.extract import Extractor, Row, RowSet
from pinstripe.rows.layout import TAIL

Json = Any
"""Any JSON value of an object."""

LIST_META = frozenset({"object", "url", "has_more", "total_count"})


@dataclass
class Kept:
    """One row by column name, as far as its shapes went, and its `_extra`."""

    values: dict[str, Json] = field(default_factory=dict)
    extra: dict[str, Json] = field(default_factory=dict)


@dataclass
class Replica:
    """The rows that Postgres would hold after `found` was written."""

    rows: dict[tuple[str, str], Kept] = field(default_factory=dict)

    def rebuild(self, table: Table, key: str, like: Json) -> Json:
        """The object in the row `key` of `table`."""
        kept = self.rows.get((table.name, key))
        if kept is None:
            return None
        built: dict[str, Json] = {"object": table.object_type}
        for column in table.columns:
            if column.path and column.name in kept.values and column.read != "object":
                value = self._value(table, column, kept, _at(like, column.path))
                if value is not None:
                    _put(built, column.path, value)
        for name, entries in self._lists(table, key, like):
            _put(built, name, entries)
        if table.object_type in NAMED_UNDER:
            built["id"] = key.rpartition("/")[2]
        return _over(built, kept.extra)

    def _value(self, table: Table, column: Column, kept: Kept, like: Json) -> Json:
        value = kept.values[column.name]
        if value is None:
            return None
        if column.read == "json":
            return self._entries(json.loads(value), like)
        if column.read in ("number", "decimal"):
            return Decimal(value)
        if column.read == "id":
            named = kept.values.get(column.name.removesuffix("_id") + "_object")
            return self._referred(value, column, named, like)
        if column.read == "ids":
            patterns = like if isinstance(like, list) else []
            pairs = zip(value, patterns, strict=False)
            return [self._referred(item, column, None, pattern) for item, pattern in pairs]
        return value

    def _entries(self, value: Json, like: Json) -> Json:
        """JSON with objects where a list deeper inside holds ids of rows."""
        if not isinstance(value, dict) or not isinstance(like, dict):
            return value
        if value.get("object") != "list" or not isinstance(value.get("data"), list):
            return {k: self._entries(v, like.get(k)) for k, v in value.items()}
        patterns = by_id(like) or {}
        entries: list[Json] = []
        for item in value["data"]:
            table = next((t for t, key in self.rows if key == item), None)
            pattern = patterns.get(item) if isinstance(item, str) else None
            found = table is not None and isinstance(item, str)
            entries.append(self.rebuild(tables()[str(table)], item, pattern) if found else item)
        return {**value, "data": entries}

    def _referred(self, key: str, column: Column, named: str | None, like: Json) -> Json:
        """The id, or the object behind it where an object stood."""
        if not isinstance(like, dict):
            return key
        known = table_of_object().get(named or "")
        targets = (known,) if known else column.references
        for target in targets:
            if (target, key) in self.rows:
                return self.rebuild(tables()[target], key, like)
        return key

    def _lists(self, table: Table, key: str, like: Json) -> Iterator[tuple[tuple[str, ...], Json]]:
        """(path, list) of each list, its entries under their ids: rows have no order."""
        for listed, path in embedded_lists(object_types()[table.object_type].fields):
            patterns = by_id(_at(like, path))
            if len(path) > 2 or patterns is None:
                continue
            entries: dict[str, Json] = {}
            for child in (tables()[table_of_object()[t]] for t in listed.targets):
                for column in child.columns:
                    if table.name in column.references and len(column.path) <= 1:
                        for (name, row_key), kept in list(self.rows.items()):
                            if name == child.name and kept.values.get(column.name) == key:
                                pattern = patterns.get(row_key)
                                entries[row_key] = self.rebuild(child, row_key, pattern)
            yield path, {"data": entries}


def replica(extractor: Extractor, found: RowSet) -> Replica:
    """`found` as rows by name."""
    kept = Replica()
    for table, group in found.rows.items():
        for key, row in group.items():
            _keep(kept.rows, extractor, table, key, row)
    for table, key, row in found.variants:
        _keep(kept.rows, extractor, table, key, row)
    return kept


def _keep(
    rows: dict[tuple[str, str], Kept], extractor: Extractor, table: str, key: str, row: Row
) -> None:
    columns = tables()[table].columns
    assert len(row) == len(columns) + TAIL
    kept = rows.setdefault((table, key), Kept())
    shape = set(extractor.shapes.columns(row[-1]))
    for column, value in zip(columns, row, strict=False):
        if column.name in shape:
            kept.values[column.name] = value
        else:
            # Of an embedded object is not known whether it lives; a new row needs an answer.
            silent = column.read == "deleted" and value is False
            assert value is None or silent, f"{table}.{column.name} is outside of its shape"
    if row[len(columns)] is not None:
        kept.extra.update(json.loads(row[len(columns)]))


def leaves(value: Json, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Json]]:
    """(path, value) of all that is said: no nulls, no list meta; an empty object says nothing.

    Nor secrets, which are in no row (tests/unit/rows/test_secrets.py).
    """
    entries = by_id(value)
    if entries is not None:
        value = {k: v for k, v in value.items() if k not in LIST_META} | {"data": entries}
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in SECRET_NAMES:
                yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value:
        for at, item in enumerate(value):
            yield from leaves(item, (*path, str(at)))
    elif value is not None:
        yield path, value


def without_secret_places(value: Json, places: tuple[tuple[str, ...], ...] = ()) -> Json:
    """`value` without the fields that are secrets in objects of one type only."""
    if isinstance(value, list):
        return [without_secret_places(item) for item in value]
    if not isinstance(value, dict):
        return value
    name = value.get("object")
    places = SECRET_PLACES.get(name, ()) if isinstance(name, str) else places
    return {
        key: without_secret_places(item, tuple(p[1:] for p in places if p[0] == key))
        for key, item in value.items()
        if (key,) not in places
    }


def lost(original: Json, rebuilt: Json) -> list[tuple[str, Json, Json]]:
    """(path, what stood there, what came back) of every leaf that did not come back equal."""
    return [
        (".".join(path), value, _leaf(rebuilt, path))
        for path, value in leaves(without_secret_places(original))
        if not _equal(value, _leaf(rebuilt, path))
    ]


def by_id(value: Json) -> dict[str, Json] | None:
    """The entries of a Stripe list by id; None for all else."""
    if not isinstance(value, dict) or value.get("object") != "list":
        return None
    entries = value.get("data")
    if not isinstance(entries, list):
        return None
    if not all(isinstance(e, dict) and isinstance(e.get("id"), str) for e in entries):
        return None
    return {e["id"]: e for e in entries}


def _equal(value: Json, back: Json) -> bool:
    if isinstance(back, Decimal):
        return not isinstance(value, bool) and Decimal(str(value)) == back
    if isinstance(back, datetime):
        return isinstance(value, str) and datetime.fromisoformat(value) == back
    if type(value) is float and type(back) is int:  # jsonb writes 1e22 out
        return value == float(back)
    return type(value) is type(back) and bool(value == back)


def _leaf(value: Json, path: tuple[str, ...]) -> Json:
    for step in path:
        entries = by_id(value)
        if step == "data" and entries is not None:
            value = entries
        elif isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _at(value: Json, path: tuple[str, ...]) -> Json:
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _put(built: dict[str, Json], path: tuple[str, ...], value: Json) -> None:
    for step in path[:-1]:
        built = built.setdefault(step, {})
    built[path[-1]] = value


def _over(below: Json, above: Mapping[str, Json]) -> Json:
    """`above` laid over `below`: objects are joined, all else is replaced."""
    if not isinstance(below, dict):
        return above
    return below | {
        key: _over(below.get(key), value) if isinstance(value, dict) else value
        for key, value in above.items()
    }
