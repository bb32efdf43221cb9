"""Which fields can hold personal data, and what a sync does with them: keep, hash or drop.

    policy = Policy.parse(personal_data=("drop", "keep:text"), columns=("hash:customer.email",))
    policy.action("charge", ("billing_details", "email"))    # "drop"

`data/personal.toml` is the review: names of fields by kind, with the reason. Names tell more than types do,
since the same names stand in unknown fields, in metadata of other types and in events. A text whose name
nobody has reviewed is of the kind "unreviewed", and goes with the others.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase, translate
from functools import cache, lru_cache
from importlib.resources import files
from typing import Literal

import msgspec

from pinstripe.catalog.model import Field, object_types
from pinstripe.catalog.tables import Column, Table, tables
from pinstripe.errors import Misconfigured

Action = Literal["keep", "hash", "drop"]
UNREVIEWED = "unreviewed"
"""The kind of a text whose name is not in the review."""
_HARMLESS = "harmless"
_NEEDED = frozenset({"id", "object", "created", "livemode", "status", "type", "deleted"})
"""Columns that the sync itself reads."""
_STRICTNESS: Mapping[Action, int] = {"keep": 0, "hash": 1, "drop": 2}


class _Kind(msgspec.Struct):
    names: tuple[str, ...]
    reason: str


class _Review(msgspec.Struct):
    """The file as it stands."""

    kinds: dict[str, _Kind]
    harmless: _Kind
    whole: _Kind
    types: _Kind
    places: dict[str, str]


@cache
def review() -> _Review:
    text = files("pinstripe.catalog").joinpath("data", "personal.toml").read_text()
    return msgspec.convert(tomllib.loads(text), _Review)


@cache
def kinds() -> Mapping[str, str]:
    """Kind -> reason, in the order of the review."""
    return {name: kind.reason for name, kind in review().kinds.items()} | {
        UNREVIEWED: "Texts that are new in Stripe's API: nobody has read yet what they hold."
    }


@cache
def _by_name() -> Mapping[str, str]:
    """Field name -> kind; `_HARMLESS` for the rest of the review, and for names that hold no free text."""
    names = dict.fromkeys((*review().harmless.names, *review().whole.names), _HARMLESS)
    free: set[str] = set()
    bound: set[str] = set()
    for object_type in object_types().values():
        for part in _parts(object_type.fields):
            (free if is_free_text(part) else bound).add(part.name)
    names |= dict.fromkeys(bound - free, _HARMLESS)
    for kind, named in review().kinds.items():
        names |= dict.fromkeys(named.names, kind)
    return names


def _parts(fields: Iterable[Field]) -> Iterator[Field]:
    for part in fields:
        yield part
        yield from _parts(part.fields)
        if part.items is not None:
            yield from _parts((part.items,))


def is_free_text(part: Field) -> bool:
    """Whether any text may stand there: no word of a fixed set, and no id of another object."""
    text = part.items if part.kind in ("array", "map") and part.items is not None else part
    return text.kind in ("string", "any") and not (text.enum or text.targets or part.targets)


@cache
def _places() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(translate(place)), kind) for place, kind in review().places.items())


@lru_cache(maxsize=1 << 16)
def kind_at(object_name: str, path: tuple[str, ...]) -> tuple[str, int] | None:
    """(kind, number of steps to the field that has it) of a value at `path`; None if it is harmless.

    >>> kind_at("customer", ("address", "city")), kind_at("charge", ("currency",))
    (('address', 1), None)
    """
    if object_name in review().types.names or path[-1] in ("id", "object"):
        return None
    for at in range(1, len(path) + 1):
        dotted = f"{object_name}.{'.'.join(path[:at])}"
        placed = next((kind for pattern, kind in _places() if pattern.match(dotted)), None)
        if placed == _HARMLESS:
            return None
        kind = placed or _by_name().get(path[at - 1])
        if kind is None and at == len(path):
            return UNREVIEWED, at
        if kind is not None and kind != _HARMLESS:
            return kind, at
    return None


def is_whole(name: str) -> bool:
    """Whether a field is harmless with all that stands in it, whatever its keys."""
    return name in review().whole.names


@dataclass(frozen=True, slots=True)
class Policy:
    """What becomes of personal data. `by_kind` has every kind, `by_place` exceptions by object and path."""

    by_kind: Mapping[str, Action] = field(default_factory=dict)
    by_place: Mapping[tuple[str, tuple[str, ...]], Action] = field(default_factory=dict)

    @classmethod
    def parse(cls, *, personal_data: Sequence[str], columns: Sequence[str]) -> Policy:
        """The policy of the settings `personal_data` and `columns`. Raises Misconfigured."""
        by_kind: dict[str, Action] = dict.fromkeys(kinds(), "keep")
        for word in personal_data:
            action, _, kind = word.partition(":")
            if action not in _STRICTNESS or (kind and kind not in by_kind):
                raise Misconfigured(
                    f"--personal-data names {word!r}.",
                    hint="Give keep, hash or drop for all kinds, and then exceptions like keep:text. "
                    f"Kinds: {', '.join(by_kind)}.",
                )
            by_kind |= dict.fromkeys((kind,) if kind else kinds(), action)  # type: ignore[arg-type]
        by_place: dict[tuple[str, tuple[str, ...]], Action] = {}
        for word in columns:
            by_place |= dict.fromkeys(_column_places(word), _column_action(word))
        return cls(by_kind, by_place)

    @classmethod
    def everything(cls, action: Action) -> Policy:
        """The same for all kinds."""
        return cls(dict.fromkeys(kinds(), action))

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is to be done."""
        return not {*self.by_kind.values(), *self.by_place.values()} - {"keep"}

    @property
    def hashes(self) -> bool:
        return "hash" in {*self.by_kind.values(), *self.by_place.values()}

    def action(self, object_name: str, path: tuple[str, ...]) -> Action:
        """What becomes of a text at `path` of such an object."""
        for at in range(1, len(path) + 1):
            placed = self.by_place.get((object_name, path[:at]))
            if placed is not None:
                return placed
        found = kind_at(object_name, path)
        return self.by_kind[found[0]] if found is not None else "keep"

    def is_looser_than(self, other: Policy) -> bool:
        """Whether it keeps something that `other` did not: only Stripe has that then."""
        places = {*self.by_place, *other.by_place}
        pairs = [(self.by_kind[k], other.by_kind.get(k, "keep")) for k in self.by_kind]
        pairs += [(self.action(*place), other.action(*place)) for place in places]
        return any(_STRICTNESS[mine] < _STRICTNESS[theirs] for mine, theirs in pairs)


def _column_action(word: str) -> Action:
    if word.startswith("-"):
        return "drop"
    return "hash" if word.startswith("hash:") else "keep"


def _column_places(word: str) -> list[tuple[str, tuple[str, ...]]]:
    """(object name, path) of the columns that `-table.column`, `hash:…` or `keep:…` names."""
    name = re.sub(r"^(-|hash:|keep:)", "", word)
    table_name, dot, column_name = name.partition(".")
    if name == word or not dot:
        raise Misconfigured(
            f"--columns names {word!r}.",
            hint="Write -table.column to leave one out, hash:table.column or keep:table.column; "
            "* matches anything.",
        )
    found = [
        (table, column)
        for table in tables().values()
        if fnmatchcase(table.name, table_name)
        for column in table.columns
        if fnmatchcase(column.name, column_name)
    ]
    if not found:
        raise Misconfigured(
            f"There is no column {name!r}.",
            hint="`pinstripe schema ddl` shows all tables with their columns.",
        )
    can = [(t, c) for t, c in found if _can_go(t, c)]
    if not can and not word.startswith("keep:"):
        raise Misconfigured(
            f"The column {name} cannot be left out or hashed: the sync works with it.",
            hint="Keys, references, times of creation, states and types have to stay.",
        )
    return [(t.object_type, c.place) for t, c in can]


def _can_go(table: Table, column: Column) -> bool:
    if column.name in (*table.key, *_NEEDED) or not column.place:
        return False
    return column.read not in ("id", "ids", "object", "parent", "deleted")
