"""How an object with given keys becomes the values of one row: compiled once, used for every such object.

Objects of one type come with the same keys in the same order, page after page. A `Layout` belongs to one
such sequence of keys: the columns that are present, and one small function per key that fills them. An
absent key is not a null: its columns are left out, and the database keeps what it has.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from pinstripe.catalog.embedded import places_in
from pinstripe.catalog.model import Field, ObjectType
from pinstripe.catalog.relations import embedded_lists, type_of
from pinstripe.catalog.tables import (
    SINGLETONS,
    Column,
    Table,
    has_table,
    inline,
    table_name,
    tables,
)
from pinstripe.rows.converters import (
    Derive,
    Fill,
    Known,
    Make,
    Quick,
    Value,
    compile_derived,
    compile_layout,
    fill_inline,
    fill_json,
    fill_json_with_lists,
    fill_list,
    fill_reference,
    fill_references,
    fill_scalar,
    fill_secret,
    fill_text,
    fill_texts,
    places_of,
    to_json,
)

TAIL = 6
"""Values of each row behind its columns: `_extra`; for the writer to fill in, the two ends of its interval
and the moment (Postgres's clock) until which Stripe knew what we wrote; whether it is partial; the number
of its shape."""


@dataclass(slots=True)
class Step:
    """One top-level key: `fill` writes its columns; `nested`: it may contain objects."""

    key: str
    fill: Fill
    nested: bool


class Shapes:
    """Numbers the shapes: which columns of a table an object has values for. A row carries the number."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, tuple[str, ...]], int] = {}
        self._columns: list[tuple[str, ...]] = []
        # A long response is read in a thread.
        self._lock = threading.Lock()

    def number(self, table: str, columns: tuple[str, ...]) -> int:
        with self._lock:
            found = self._numbers.setdefault((table, columns), len(self._columns))
            if found == len(self._columns):
                self._columns.append(columns)
            return found

    def columns(self, number: int) -> tuple[str, ...]:
        return self._columns[number]


@dataclass(slots=True)
class Layout:
    """For one sequence of keys: the shape, the steps, and the keys that the catalog does not know.

    `width` is that of the whole table: a row has a place for every column, present or not. `partial`:
    it lacks columns that Stripe gives on request only, so their values are not known yet. `source`: the
    places of a balance transaction's source, of that source's type, and of the `type` that may tell it.
    `derive` fills columns whose values stand in other fields (`catalog.moved`).
    """

    shape: int
    make: Make | None = None
    steps: list[Step] = field(default_factory=list)
    unknown: tuple[str, ...] = ()
    width: int = 0
    deleted_at: int = -1
    partial: bool | None = None
    parents: tuple[tuple[int, str], ...] = ()
    source: tuple[int, int, int] | None = None
    derive: Derive | None = None


class Plan:
    """All layouts of one table, by the keys of the object: `rows.extract` looks them up."""

    def __init__(
        self,
        table: Table,
        object_type: ObjectType,
        types: Mapping[str, ObjectType],
        *,
        known: Known,
        shapes: Shapes,
        opaque: bool = False,
    ) -> None:
        """`opaque`: nothing in such objects becomes a row, and their secrets are taken out before."""
        self.table = table
        self._opaque = opaque
        self._shapes = shapes
        self._at = {c.name: i for i, c in enumerate(table.columns)}
        self._owner = table_name(table.object_type)
        self._types = types
        self._known = known
        self._fields = {f.name: _as_inline(f, types) for f in object_type.fields}
        self.places = places_in(table.object_type)
        self._singletons = {f.name for f in object_type.fields if set(f.targets) & set(SINGLETONS)}
        self._by_key: dict[str, list[Column]] = {}
        for column in table.columns:
            if column.path:
                self._by_key.setdefault(column.path[0], []).append(column)
        # Sub-keys that may be missing without being null: left out unless expanded.
        self.optional_inline = tuple(
            (outer.name, inner.name)
            for outer in self._fields.values()
            if outer.kind == "object" and not outer.on_request
            for inner in outer.fields
            if inner.on_request
        )
        self.lists = frozenset(f.name for f in self._fields.values() if f.kind == "list")
        self.parent_columns = {c.references[0]: c.name for c in table.columns if c.read == "parent"}
        self.layouts: dict[tuple[str, ...], Layout] = {}

    def compile(
        self, obj: Mapping[str, Value], parents: tuple[str, ...], *, silent: bool
    ) -> Layout:
        """Return a new layout for objects with these keys; `parents` are the parent tables known here.

        `silent`: whether the object is deleted is not said of the row.
        """
        columns = [c for c in self.table.columns if not (silent and c.read == "deleted")]
        present = [c for c in columns if self._present(c, obj, parents)]
        names = {c.name for c in present}
        partial = any(c.on_request and c.name not in names for c in self.table.columns)
        layout = Layout(
            shape=self._shapes.number(self.table.name, tuple(c.name for c in present)),
            width=len(self.table.columns),
            deleted_at=self._at.get("deleted", -1),
            partial=True if partial else None,
            parents=tuple((self._at[self.parent_columns[p]], p) for p in parents),
            source=self._source(names),
        )
        unknown: list[str] = []
        quick: list[Quick] = []
        for key in obj:
            known_field = self._fields.get(key)
            filled = [c for c in self._by_key.get(key, ()) if c.name in names]
            holds_none = known_field is not None and known_field.kind in ("list", "object")
            if not filled and not holds_none:
                unknown.append(key)
                continue
            fill = self._fill(known_field, filled)
            nests = (
                key in self._singletons
                or any(c.read in ("id", "ids") for c in filled)
                or (known_field is not None and self._nests(known_field))
            )
            layout.steps.append(Step(key, fill, nests))
            if fill is not fill_secret:
                free = _is_free_text(known_field)
                quick.append((key, filled, [self._at[c.name] for c in filled], fill, nests, free))
        layout.derive = compile_derived(
            (self._at[c.name], c, places_of(c, obj)) for c in present if c.moved is not None
        )
        layout.unknown = tuple(unknown)
        if not unknown:
            layout.make = compile_layout(quick, layout.width + TAIL)
        return layout

    def _source(self, names: Collection[str]) -> tuple[int, int, int] | None:
        if self.table.name != "balance_transaction" or not {"source_id", "type"} <= set(names):
            return None
        return self._at["source_id"], self._at["source_object"], self._at["type"]

    def _present(self, column: Column, obj: Mapping[str, Value], parents: tuple[str, ...]) -> bool:
        if column.read == "deleted":
            return True
        if column.read == "parent":
            return bool(column.references) and column.references[0] in parents
        if column.name == "id":
            return True
        if column.moved is not None and not column.moved.fields.isdisjoint(obj):
            return True
        if column.is_derived or column.path[0] not in obj:
            return False
        if column.path in self.optional_inline:
            value = obj[column.path[0]]
            return value is None or (type(value) is dict and column.path[1] in value)
        return True

    def _fill(self, known_field: Field | None, columns: Sequence[Column]) -> Fill:
        if known_field is not None and known_field.kind == "object" and known_field.fields:
            by_sub: dict[str, Fill] = {}
            for sub in known_field.fields:
                path = (known_field.name, sub.name)
                mine = [c for c in columns if c.path == path]
                if mine or sub.kind == "list":
                    by_sub[sub.name] = self._fill_columns(sub, mine)
            return fill_inline(by_sub)
        return self._fill_columns(known_field, columns)

    def _fill_columns(self, known_field: Field | None, columns: Sequence[Column]) -> Fill:
        if known_field is not None and known_field.kind == "list":
            return fill_list(self._children(known_field), self._known)
        first = columns[0]
        at = self._at[first.name]
        if first.secret:
            return fill_secret
        if first.read == "id":
            other = next((self._at[c.name] for c in columns if c.read == "object"), -1)
            types = frozenset(tables()[name].object_type for name in first.references)
            by_prefix = partial(type_of, targets=types)
            present = self._is_present(first.path)
            return fill_reference(
                at, other, first.references, by_prefix, self._known, present=present
            )
        if first.read == "ids":
            return fill_references(at, first.references, self._known)
        if first.read == "json":
            return self._fill_json(known_field, at)
        if first.read == "text" and _is_free_text(known_field):
            return fill_text(at)
        if first.read == "texts":
            return fill_texts(at)
        return fill_scalar(first.read, at)

    def _is_present(self, path: tuple[str, ...]) -> bool:
        """Whether an object at this place is in its present state, and so has a row of its own."""
        places = self.places
        for step in path[:-1]:
            places = places[step].inside if step in places else {}
        return path[-1] in places and places[path[-1]].present

    def _fill_json(self, known_field: Field | None, at: int) -> Fill:
        write = to_json(known_field, opaque=self._opaque)
        inside = [
            (path, self._children(listed))
            for listed, path in embedded_lists(known_field.fields if known_field else ())
        ]
        if inside:
            return fill_json_with_lists(at, inside, self._known, write)
        return fill_json(at, write)

    def _children(self, known_list: Field) -> frozenset[str]:
        """The tables whose rows say that they stand in a list of this one."""
        named = (tables().get(table_name(target)) for target in known_list.targets)
        return frozenset(
            table.name
            for table in named
            if table is not None
            and any(
                self._owner in c.references and len(c.path) <= 1 and not c.is_derived
                for c in table.columns
            )
        )

    def _nests(self, known_field: Field) -> bool:
        """Whether an object with a table may stand anywhere in this field."""
        if known_field.kind in ("expandable", "resource", "list"):
            return True
        if known_field.kind == "array" and known_field.items is not None:
            return self._nests(known_field.items)
        if known_field.kind == "map" and known_field.items is not None:
            return self._nests(known_field.items)
        return known_field.kind == "object" and any(self._nests(f) for f in known_field.fields)


def _is_free_text(known_field: Field | None) -> bool:
    """Whether a text stands there of which the catalog does not know all that it can be."""
    return known_field is None or not (known_field.enum or known_field.name == "id")


def _as_inline(known_field: Field, types: Mapping[str, ObjectType]) -> Field:
    """Embedded objects without a table of their own are flattened like inline ones."""
    if known_field.kind != "resource":
        return known_field
    with_table = [t for t in known_field.targets if has_table(types[t])]
    if not with_table or set(with_table) <= set(SINGLETONS):
        return inline(known_field, types)
    return known_field
