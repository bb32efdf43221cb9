"""Extracts the rows of a Stripe object: its own, and those of everything nested in it. Pure.

    rows = RowSet()
    Extractor().object({"id": "ch_1", "object": "charge", "customer": {"id": "cus_1", ...}}, rows)
    rows.rows   # {"charge": {"ch_1": [...]}, "customer": {"cus_1": [...]}}

Nothing is lost except secrets (`rows.secrets`): what the catalog does not know, or what has another type
than it says, is in `_extra`. An absent key makes no column, so the database keeps what it has. The interval
in which the rows are true is the caller's to know (`mirror`). Only compiled layouts are kept between calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cache

import msgspec

from pinstripe.catalog.embedded import EmbeddedPlace, places_in
from pinstripe.catalog.model import ObjectType, object_types
from pinstripe.catalog.relations import source_type
from pinstripe.catalog.tables import (
    NAMED_UNDER,
    PAYOUT_LINES,
    SINGLETONS,
    Table,
    table_of_object,
    tables,
)
from pinstripe.client.response import StripeObject
from pinstripe.rows.converters import Value
from pinstripe.rows.layout import TAIL, Layout, Plan, Shapes
from pinstripe.rows.personal import Erased, Personal
from pinstripe.rows.secrets import without_secrets

Row = list[Value]
"""The values of all columns of a table, and the `TAIL`."""

RowKey = tuple[str, str]
"""(table, key) of a row."""

# Objects whose content is a copy of another object at another time. Not looked into.
_OPAQUE = frozenset({"event", "v2.core.event"})

_NOWHERE = EmbeddedPlace()
"""For a place that is not known to hold the present state of an object."""

_MOST_LAYOUTS = 4096
"""Of one table: only an account with thousands of shapes of one type gets there, and starts over."""

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class TruncatedList:
    """A nested list with more pages: `GET url?starting_after=last_id` is the next.

    `field`: the list's field of the parent, `shown`: the ids of its first page; both empty if the list read
    to its end will not be a `MemberSet`.
    """

    url: str
    parent_table: str
    parent_id: str
    child_table: str
    last_id: str
    count: int
    field: str = ""
    shown: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class MemberSet:
    """All entries of one list of a parent: `members` are the ids of all that it shows.

    `field`: the list's field of the parent; "" for a list by parent, of objects of the tables `children`.
    """

    parent_table: str
    parent_id: str
    field: str
    members: frozenset[str]
    children: tuple[str, ...] = ()


@dataclass(slots=True)
class RowSet:
    """The result of an extraction. `rows`: table -> key -> row.

    `sets` are the lists that were shown to their end. `variants` are rows of a key that is in `rows`
    already, with other columns. `elsewhere` names the objects (table, key) that are not shown as they are
    now: they have no row here. `befores` make the rows that an object of an event had before it.
    `unknown` counts objects of types that have no table, `drift` (table, field) that the catalog does not
    know.
    """

    rows: dict[str, dict[str, Row]] = field(default_factory=dict)
    sets: list[MemberSet] = field(default_factory=list)
    variants: list[tuple[str, str, Row]] = field(default_factory=list)
    elsewhere: set[tuple[str, str]] = field(default_factory=set)
    lists: list[TruncatedList] = field(default_factory=list)
    befores: dict[RowKey, Callable[[], list[Row]]] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)
    drift: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, table: str, key: str, row: Row) -> None:
        group = self.rows.setdefault(table, {})
        earlier = group.setdefault(key, row)
        if earlier is not row and earlier[-1] != row[-1]:
            self.variants.append((table, key, row))

    def places(self) -> Iterator[tuple[str, str, Row]]:
        """(table, key, row) of all rows."""
        for table, group in self.rows.items():
            for key, row in group.items():
                yield table, key, row
        yield from self.variants

    def count(self) -> int:
        return sum(map(len, self.rows.values())) + len(self.variants)


class Extractor:
    """Compiled layouts for every table. One per process is enough, but for its `erased` objects, which are
    those of one account.
    """

    def __init__(
        self, effective: Mapping[str, Table] | None = None, *, personal: Personal | None = None
    ) -> None:
        """`effective`: the tables as the database has them, if that differs. `personal`: what becomes of
        personal data; without it all is kept.
        """
        self.shapes = Shapes()
        self.erased = Erased()
        self._personal = personal
        self._tables = {**tables(), **(effective or {})}
        self._table_of = table_of_object()
        self._plans: dict[str, Plan] = {}
        self._types: Mapping[str, ObjectType] = object_types()

    def for_account(self) -> Extractor:
        """Return an extractor for another account, on the same layouts and shapes."""
        other = copy(self)
        other.erased = Erased()
        return other

    def object(
        self,
        obj: StripeObject,
        found: RowSet,
        *,
        parents: Mapping[str, str] | None = None,
        embedded: bool = False,
    ) -> str | None:
        """Adds the rows of `obj` and its nested objects to `found`; returns its key, None if it has none.

        `parents` are ids by table, for objects that were met in a list under a parent. `embedded`:
        it stands in a field of another object, which shows it even when it has been deleted (the
        plan of a subscription item): so it is no proof that it lives.
        """
        name = obj.get("object")
        table = self._table_of.get(name) if isinstance(name, str) else None
        if table is None:
            found.unknown[str(name)] += 1
        key = key_of(str(name), obj) if table is not None else None
        if table is None or key is None:
            # No row of its own (an alert that was triggered); what it holds may have one.
            places = places_in(str(name))
            for step, item in obj.items():
                self._nested(item, "", "", places.get(step, _NOWHERE), found)
            return None
        row = self._row(table, obj, key, parents or {}, found, embedded=embedded)
        found.add(table, key, row)
        if parents and name == "balance_transaction" and "payout" in parents:
            self.virtual(PAYOUT_LINES, {"id": key}, key, found, parents=parents)
        return key

    def virtual(
        self, table: str, obj: StripeObject, key: str, found: RowSet, *, parents: Mapping[str, str]
    ) -> None:
        """The row of a table that Stripe has no object for: the object's values under a key of ours."""
        found.add(table, key, self._row(table, obj, key, parents, found))

    def _row(
        self,
        table: str,
        obj: StripeObject,
        key: str,
        parents: Mapping[str, str],
        found: RowSet,
        *,
        embedded: bool = False,
    ) -> Row:
        plan = self._plans.get(table) or self._plan(self._tables[table])
        if obj.get("object") in _OPAQUE:
            # Whole objects stand in it, and parts of them under names that do not say of what.
            obj = without_secrets(obj)
        here = tuple(p for p in plan.parent_columns if p in parents) if parents else ()
        layout = _layout(plan, obj, here, embedded=embedded)
        nested: list[tuple[str, Value]] = []
        row = layout.make(obj, nested) if layout.make is not None else None
        if row is None:
            nested.clear()
            row = self._generic(table, layout, obj, nested, found)
        if layout.derive is not None:
            layout.derive(obj, row)
        row[0], row[-2], row[-1] = key, layout.partial, layout.shape
        if layout.deleted_at >= 0:
            row[layout.deleted_at] = obj.get("deleted") is True
        for at, parent_table in layout.parents:
            row[at] = parents[parent_table]
        if layout.source is not None:
            source_at, object_at, type_at = layout.source
            if row[object_at] is None and row[source_at] is not None:
                row[object_at] = source_type(row[source_at], row[type_at])
        if self._personal is not None:
            self._personal.clean(plan.table, row)
        if nested:
            object_name = str(obj.get("object"))
            if object_name not in _OPAQUE:
                for step_key, value in nested:
                    self._nested(value, table, key, plan.places.get(step_key, _NOWHERE), found)
                    if step_key in plan.lists:
                        _note_members(value, (table, key, step_key), found)
        return row

    def _generic(
        self,
        table: str,
        layout: Layout,
        obj: StripeObject,
        nested: list[tuple[str, Value]],
        found: RowSet,
    ) -> Row:
        """The row of an object that differs from the catalog: what does not fit goes to `_extra`."""
        row: Row = [None] * (layout.width + TAIL)
        extra: dict[str, Value] = {}
        for step in layout.steps:
            value = obj[step.key]
            if value is None:
                continue
            rest = step.fill(value, row)
            if rest is not None:
                extra[step.key] = rest
                found.drift[table, step.key] += 1
            if step.nested and type(value) is not str:
                nested.append((step.key, value))
        for unknown in layout.unknown:
            extra[unknown] = obj[unknown]
            found.drift[table, unknown] += 1
            if type(obj[unknown]) in (dict, list):
                nested.append((unknown, obj[unknown]))
        if extra:
            # Under its type: what is secret by its place in the object is so in `_extra` too.
            kind = {"object": obj.get("object")}
            kept = without_secrets({**kind, **extra})
            row[layout.width] = _encode({key: kept[key] for key in extra}).decode()
        return row

    def _nested(
        self, value: Value, table: str, key: str, place: EmbeddedPlace, found: RowSet
    ) -> None:
        """Finds objects at any depth of `value`, which stands at `place` of the row `key` of `table`."""
        if type(value) is list:
            for item in value:
                if type(item) in (dict, list):
                    self._nested(item, table, key, place, found)
            return
        if type(value) is not dict:
            return
        name = value.get("object")
        known = self._known(value)
        if place.present and name == "list" and type(value.get("data")) is list:
            self._list(value, table, key, found)
        elif known is not None and place.present:
            parents = {table: key} if name in SINGLETONS else None
            self.object(value, found, parents=parents, embedded=True)
        elif known is not None:
            found.elsewhere.add((known, str(key_of(str(name), value))))
        else:
            for step, item in value.items():
                # Metadata is the user's, whatever it looks like.
                if type(item) in (dict, list) and step != "metadata":
                    self._nested(item, table, key, place.inside.get(step, _NOWHERE), found)

    def _list(self, value: Value, table: str, key: str, found: RowSet) -> None:
        last, child = "", ""
        owner = self._tables.get(table)
        preview = owner if owner is not None and owner.virtual else None
        for entry in value["data"]:
            if type(entry) is not dict:
                continue
            child = self._table_of.get(str(entry.get("object")), "")
            if preview is not None and child == "line_item" and type(entry.get("id")) is str:
                # A line of what is not invoiced yet is no invoice line.
                child, last = "upcoming_invoice_line_item", entry["id"]
                whose = preview.key[0].removesuffix("_id")
                self.virtual(child, entry, last, found, parents={whose: key})
            else:
                last = self.object(entry, found, parents={table: key}) or last
        # A list that shows nothing and goes on is read from its top.
        if value.get("has_more") is True and (last or not value["data"]):
            url = _address(value, key)
            found.lists.append(TruncatedList(url, table, key, child, last, len(value["data"])))

    def _plan(self, table: Table) -> Plan:
        object_type = self._types[table.object_type]
        known = _nothing if table.object_type in _OPAQUE else self._known
        plan = Plan(
            table,
            object_type,
            self._types,
            known=known,
            shapes=self.shapes,
            opaque=table.object_type in _OPAQUE,
        )
        self._plans[table.name] = plan
        return plan

    def _known(self, value: Value) -> str | None:
        """The table in which this becomes a row of its own, or None."""
        if type(value) is not dict:
            return None
        name = value.get("object")
        table = self._table_of.get(name) if type(name) is str else None
        return table if table is not None and key_of(str(name), value) is not None else None


def extractor_for(effective: Mapping[str, Table], *, personal: Personal | None) -> Extractor:
    """An extractor of one account. Where nothing differs from the catalog, all accounts of the process
    share its layouts: a first copy makes some 330 of them, a tenth of its CPU time.
    """
    if personal is None and effective.items() <= tables().items():
        return _of_catalog().for_account()
    return Extractor(effective, personal=personal)


@cache
def _of_catalog() -> Extractor:
    return Extractor()


def _layout(plan: Plan, obj: StripeObject, parents: tuple[str, ...], *, embedded: bool) -> Layout:
    """The layout for an object with these keys; `parents` are the parent tables known here.

    `embedded`: where nothing says that it is deleted, that is not said of the row either.
    """
    silent = embedded and "deleted" not in obj
    key = (*obj, "|" if silent else "||", *parents)
    for outer, inner in plan.optional_inline:
        value = obj.get(outer, False)
        if value is None or (type(value) is dict and inner in value):
            key = (*key, f"{outer}.{inner}")
    found = plan.layouts.get(key)
    if found is None:
        if len(plan.layouts) > _MOST_LAYOUTS:
            plan.layouts.clear()
        found = plan.layouts[key] = plan.compile(obj, parents, silent=silent)
    return found


def _nothing(_: Value) -> str | None:
    """The skipped contents of an object: nothing becomes a row."""
    return None


def _note_members(value: Value, place: tuple[str, str, str], found: RowSet) -> None:
    """Note the entries of a list inside an object, if all have ids (payloads may leave ids out)."""
    table, key, step = place
    data = value.get("data") if type(value) is dict else None
    if type(data) is not list:
        return
    ids = frozenset(e["id"] for e in data if type(e) is dict and type(e.get("id")) is str)
    if len(ids) < len(data):
        return
    if value.get("has_more") is False:
        found.sets.append(MemberSet(table, key, step, ids))
        return
    for cut in reversed(found.lists):
        if (cut.parent_table, cut.parent_id, cut.url) == (table, key, _address(value, key)):
            cut.field, cut.shown = step, ids
            return


def _address(value: Value, key: str) -> str:
    """The `url` of a list inside the object `key`; what stands for it where the list has none."""
    url = value.get("url")
    return url if isinstance(url, str) and url else f"#{key}"


def key_of(name: str, obj: StripeObject) -> str | None:
    """The primary key of an object; None where it has none (a line item in an event payload), or an empty
    one, by which nobody can ask for it.
    """
    key = obj.get("id")
    if isinstance(key, str) and key:
        return key if name not in NAMED_UNDER else _named_under(obj.get(NAMED_UNDER[name]), key)
    if name in SINGLETONS:
        owner = SINGLETONS[name]
        named = obj.get(owner) if owner else name
        return named if isinstance(named, str) else None
    return None


def _named_under(parent: Value, key: str) -> str:
    """The id of the parent and a name. An id that Stripe has made up has letters of both cases, and no
    other object has it.
    """
    owner = parent.get("id") if type(parent) is dict else parent
    return f"{owner}/{key}" if type(owner) is str and key == key.lower() else key
