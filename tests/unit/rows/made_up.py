"""Objects made up from the catalog's types: every kind of field, and what a hostile Stripe might send.

Hypothesis chooses the seed, the type and how odd the object is; a plain `Random` does the rest, because
an invoice has thousands of choices and drawing each from hypothesis takes seconds an object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from hypothesis import strategies as st
from tests.unit.rows.rebuild import Json

from pinstripe.catalog.model import Field, object_types
from pinstripe.catalog.tables import (
    SINGLETONS,
    table_of_object,
    tables,
)

TEXTS = (
    "",
    "plain",
    "with 'quotes' \" and \\ backslash",
    "\t\n\r",
    "␀ shown",
    "😀 \U0010ffff",
    "ÅÄÖ é",
    "\\N",
    "{not,an,array}",
    "null",
    "nan",
    "1_000",
    "١٢",
    "2024-13-45T00:00:00Z",
)
NUMBERS = (0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 10**30, 253402300800)
FLOATS = (0.0, 0.1, -1.5, 1e22, 5e-324, 1.7976931348623157e308, 123456789.123456789)
DECIMALS = ("0", "12.50", "-0.000000000001", "99999999999999999999.99", "1e5", "+1", "NaN", "")
ISO = ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.123456Z", "2026-01-02T03:04:05.123456789Z")
WITH_TABLE = tuple(sorted(table_of_object()))


def makers() -> st.SearchStrategy[Maker]:
    """A maker, ready to make; what it makes is decided by its seed."""
    return st.builds(
        Maker,
        st.integers(0, 2**32).map(Random),
        st.sampled_from((0.0, 0.02, 0.2)),
    )


@dataclass
class Maker:
    """Makes objects. `oddness` is the share of values that are not what the catalog says."""

    random: Random
    oddness: float = 0.0
    _made: int = field(default=0)

    def __repr__(self) -> str:
        return f"Maker(oddness={self.oddness}, state={hash(self.random.getstate())})"

    def object(self, name: str, *, depth: int = 2, parent: tuple[str, str] | None = None) -> Json:
        """An object of type `name`; `parent` is (table, id) where it stands in a list of that."""
        object_type = object_types()[name]
        obj: dict[str, Json] = {}
        if object_type.has_id:
            obj["id"] = self._id(name)
        obj["object"] = name
        link = _link(name, parent)
        for known in object_type.fields:
            if known.name in ("id", "object"):
                continue
            if SINGLETONS.get(name) == known.name:
                obj[known.name] = self._id(known.name)
            elif known.name == link and parent is not None:
                obj[known.name] = parent[1]
            elif depth > 0 or known.kind not in ("list", "array", "object"):
                self._put(obj, known, depth, obj.get("id", name))
        self._surprise(obj)
        if object_type.deletable and self.random.random() < 0.1:
            obj["deleted"] = self.random.random() < 0.9
        items = list(obj.items())
        self.random.shuffle(items)
        return dict(items)

    def _put(self, obj: dict[str, Json], known: Field, depth: int, owner: str) -> None:
        luck = self.random.random()
        if luck < 0.15:
            return
        if luck < 0.3:
            obj[known.name] = None
        elif self.random.random() < self.oddness:
            obj[known.name] = self.anything()
        else:
            obj[known.name] = self._value(known, depth, owner)

    def _value(self, known: Field, depth: int, owner: str) -> Json:
        match known.kind:
            case "expandable" | "resource":
                return self._reference(known, depth)
            case "list":
                return self._list(known, depth, owner)
            case "object":
                inner: dict[str, Json] = {}
                for sub in known.fields:
                    self._put(inner, sub, depth, owner)
                self._surprise(inner)
                return inner
            case "array":
                few = range(self.random.randint(0, 2))
                return [self._value(known.items, depth, owner) for _ in few] if known.items else []
            case "map":
                return {t: self.scalar() for t in self.random.sample(TEXTS, 2)}
            case "any":
                return self.anything()
            case kind:
                return self.random.choice(_POOLS[kind])

    def _reference(self, known: Field, depth: int) -> Json:
        """An id, the whole object, or what is left of a deleted one."""
        targets = [t for t in known.targets if t in table_of_object()]
        luck = self.random.random()
        if not targets or luck < 0.5:
            return self._id(targets[0] if targets else "obj")
        target = self.random.choice(targets)
        if luck < 0.6 and object_types()[target].has_id:
            return {"id": self._id(target), "object": target, "deleted": True}
        return self.object(target, depth=depth - 1) if depth > 0 else self._id(target)

    def _list(self, known: Field, depth: int, owner: str) -> Json:
        targets = [t for t in known.targets if t in table_of_object()]
        entries: list[Json] = []
        table = next((t for t in self._tables_with(known) if targets), "")
        if depth > 0 and targets:
            for _ in range(self.random.randint(0, 3)):
                target = self.random.choice(targets)
                entries.append(self.object(target, depth=depth - 1, parent=(table, owner)))
        found = {"object": "list", "data": entries, "has_more": self.random.random() < 0.5}
        return found | {"url": f"/v1/somewhere/{owner}"}

    def _tables_with(self, known: Field) -> list[str]:
        """The tables whose objects have just this list."""
        return [
            table_of_object()[t.name]
            for t in object_types().values()
            if t.name in table_of_object() and _holds(t.fields, known)
        ]

    def _surprise(self, obj: dict[str, Json]) -> None:
        if self.random.random() < self.oddness:
            obj[self.random.choice(("new", "select", 'a"b', "😀", "_x", "|"))] = self.anything()

    def scalar(self) -> Json:
        pool = self.random.choice((TEXTS, NUMBERS, FLOATS, DECIMALS, ISO, (True, False, None)))
        return self.random.choice(pool)

    def anything(self) -> Json:
        """Any JSON value, Stripe objects and lists among them."""
        luck = self.random.random()
        if luck < 0.6:
            return self.scalar()
        if luck < 0.7:
            return self.random.choice(([], {}, [None], ["a", 1], {"object": "list", "data": []}))
        if luck < 0.8:
            return [self.scalar() for _ in range(3)]
        if luck < 0.9:
            return {"a": self.scalar(), "object": self.random.choice(("nobody", 1, None))}
        whole = {"id": self._id("customer"), "object": "customer", "name": self.scalar()}
        return self.random.choice((whole, [whole], {"object": "list", "data": [whole]}))

    def _id(self, name: str) -> str:
        self._made += 1
        prefix = object_types()[name].prefix if name in object_types() else ""
        return f"{prefix or 'obj'}_{self._made}"


_POOLS: Mapping[str, tuple[Json, ...]] = {
    "string": TEXTS,
    "integer": NUMBERS,
    "number": (*FLOATS, *NUMBERS),
    "decimal": DECIMALS,
    "boolean": (True, False),
    "time": (0, 1_700_000_000, -1, 2**40, 10**18),
    "time_ms": (0, 1_700_000_000_123, 10**20),
    "time_iso": ISO,
}


def _holds(fields: tuple[Field, ...], wanted: Field) -> bool:
    return any(f is wanted or _holds(f.fields, wanted) for f in fields)


def _link(name: str, parent: tuple[str, str] | None) -> str | None:
    """The field by which an entry of a list names its parent, if it has one."""
    if parent is None:
        return None
    columns = tables()[table_of_object()[name]].columns
    return next(
        (c.path[0] for c in columns if parent[0] in c.references and len(c.path) == 1), None
    )
