"""All objects of one type: those from the start (computed) and what has happened since (kept).

A position counts from the oldest object: positions below `base` are pure functions of the seed,
later ones were made while the simulator ran. `created` never falls with the position, so newest-
first lists walk positions downwards. Changed, new and deleted objects are kept as compressed JSON
by position.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from isal import isal_zlib

from pinstripe.catalog.model import ObjectType
from pinstripe_simulator.ids import FIRST_NEW, Ids
from pinstripe_simulator.relations import Relation
from pinstripe_simulator.replica import History
from pinstripe_simulator.shape import VARIANTS, Sample
from pinstripe_simulator.timeline import Timeline

StripeObject = dict[str, Any]
"""A Stripe object as it stands in JSON: the one place where a type cannot say more."""

_SQUEEZE_FROM = 600
"""Bytes from which an object is worth compressing; a typical one shrinks to a third."""

_REMEMBERED = 512
"""Ids kept as text, per table."""


_SHARED = (
    *("name", "kind", "base", "ids", "timeline", "make_sample", "links", "aliases", "lists"),
    *("parent", "base_deleted", "unlisted_variants", "_variant", "_samples"),
)
"""What accounts that are made alike have in common."""

_FRESH: Mapping[str, Callable[[], object]] = {
    "by_value": lambda: defaultdict(list),
    "unlisted": set,
    "_added": list,
    **dict.fromkeys(("parent_of", "withheld", "_quoted", "_stored", "_deleted"), dict),
    **dict.fromkeys(("_chosen", "_chosen_id"), dict),
}


class Table:
    """Name, objects and overlay of one type (or of one nested list: `item@quote`)."""

    __slots__ = (*_SHARED, "touched", "part", "history", *_FRESH)

    by_value: dict[tuple[str, str], list[int]]
    """(field, id) -> positions of stored objects that have held it."""
    parent_of: dict[int, str]
    withheld: dict[int, StripeObject]
    """Position -> what the object has and shows on request only."""
    unlisted: set[int]
    """Positions that no list shows though they can be retrieved (inline prices)."""
    _quoted: dict[int, bytes]
    _stored: dict[int, bytes]
    _deleted: dict[int, int]
    _added: list[int]
    _chosen: dict[str, int]
    _chosen_id: dict[int, str]

    def __init__(
        self,
        name: str,
        kind: ObjectType,
        *,
        base: int,
        ids: Ids,
        timeline: Timeline,
        variant: Callable[[int], int] | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.base = base
        self.ids = ids
        self.timeline = timeline
        self.make_sample: Callable[[int], Sample] = _no_sample
        self.links: dict[str, tuple[Relation, str]] = {}
        """field -> (relation of base objects, name of the table that it leads to)."""
        self.aliases: dict[str, tuple[str, ...]] = {}
        """Fields that stand deeper in the object than their name says."""
        self.lists: dict[str, tuple[str, str]] = {}
        """list field -> (child table, the child's field that leads here, "" for the parent link)."""
        self.parent: tuple[Relation, str] | None = None
        self.base_deleted: Callable[[int], bool] = _never
        self.unlisted_variants: frozenset[int] = frozenset()
        self._variant = variant
        self._samples: dict[int, Sample] = {}
        self.part = ""
        """What the account adds to each id."""
        self.history = History()
        """Shared by all tables of an account (see `World`)."""
        self.touched = False
        """Whether anything at all has been changed, added or deleted."""

    def like(self, part: str, history: History) -> Table:
        """The table of another account that is made alike: the same objects from the start, under ids
        that hold `part`, and a life of its own.
        """
        made = Table.__new__(Table)
        for name in _SHARED:
            setattr(made, name, getattr(self, name))
        made.part, made.history, made.touched = part, history, False
        return made

    def __getattr__(self, name: str) -> object:
        """What has happened since the start, made when first needed: of 160 tables an account that sits
        still uses one.
        """
        fresh = _FRESH.get(name)
        if fresh is None:
            raise AttributeError(name)
        made = fresh()
        setattr(self, name, made)
        return made

    # --- positions ---------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """Positions in use, deleted objects included."""
        return self.base + len(self._added)

    def id_at(self, position: int) -> str:
        chosen = self._chosen_id.get(position)
        if chosen is not None:
            return chosen
        if position < self.base:
            return self.ids.encode(position, self.part)
        return self.ids.encode(FIRST_NEW + position - self.base, self.part)

    def quoted(self, position: int) -> bytes:
        """The id as JSON text; the ids of late are remembered, since neighbours share parents."""
        known = self._quoted.get(position)
        if known is not None:
            return known
        if position < self.base:
            made = self.ids.quoted(position, self.part)
        else:
            made = msgspec.json.encode(self.id_at(position))
        if len(self._quoted) >= _REMEMBERED:
            self._quoted.clear()
        self._quoted[position] = made
        return made

    def position(self, id: str) -> int | None:
        """Where `id` is or was; None if there never was such an object."""
        if id in self._chosen:
            return self._chosen[id]
        index = self.ids.decode(id, self.part)
        if index is None:
            return None
        if index >= FIRST_NEW:
            index = index - FIRST_NEW + self.base
            return index if index < self.total else None
        return index if index < self.base else None

    def created_at(self, position: int) -> int:
        if position < self.base:
            return self.timeline.created(position)
        return self._added[position - self.base]

    def rank(self, time: int) -> int:
        """The first position whose object was created at `time` or later."""
        if self.base and time <= self.timeline.created(self.base - 1):
            return self.timeline.rank(time)
        return self.base + bisect_left(self._added, time)

    def gone(self, position: int) -> bool:
        if position < self.base and self.base_deleted(position):
            return position not in self._stored
        return position in self._deleted

    def stored(self, position: int) -> bool:
        """Whether the object at `position` is kept rather than computed."""
        return position in self._stored

    def variant(self, index: int) -> int:
        """Which sample the base object at `index` follows."""
        if self._variant is not None:
            return self._variant(index)
        return spread(index)

    def sample(self, variant: int) -> Sample:
        """What objects of the variant share; made when first needed."""
        made = self._samples.get(variant)
        if made is None:
            made = self._samples[variant] = self.make_sample(variant)
        return made

    def count(self) -> int:
        """Objects that exist now."""
        lost = sum(1 for p in range(self.base) if self.base_deleted(p)) if self._has_dead() else 0
        return self.total - len(self._deleted) - lost

    def _has_dead(self) -> bool:
        return self.base_deleted is not _never

    # --- reading -----------------------------------------------------------------------------

    def blob(self, position: int) -> bytes | None:
        """The stored object, without what is computed on reading, for `unpack`."""
        return self._stored.get(position)

    def kept(self, position: int) -> StripeObject | None:
        """The stored object, without what is computed on reading (lists, embedded objects)."""
        blob = self.blob(position)
        if blob is None:
            return None
        found: StripeObject = msgspec.json.decode(unpack(blob))
        return found

    # --- writing -----------------------------------------------------------------------------

    def add(self, created: int, chosen_id: str = "") -> int:
        """A new position, not before the newest; the caller stores the object there."""
        newest = self.created_at(self.total - 1) if self.total else 0
        self._added.append(max(created, newest))
        self.touched = True
        position = self.total - 1
        before = self._chosen.get(chosen_id)
        if chosen_id:
            self._chosen[chosen_id] = position
            self._chosen_id[position] = chosen_id
        if self.history.keep_s:
            self.history.note(lambda: self._take_back(chosen_id, before))
        return position

    def _take_back(self, chosen_id: str, before: int | None) -> Callable[[], None]:
        """Undoes the newest `add`."""
        position, created = self.total - 1, self._added.pop()
        if chosen_id and before is None:
            self._chosen.pop(chosen_id, None)
        elif before is not None:
            self._chosen[chosen_id] = before

        def again() -> None:
            self._added.append(created)
            if chosen_id:
                self._chosen[chosen_id] = position

        return again

    def _note_place(self, position: int) -> None:
        """Called before what is kept at `position` changes."""
        if self.history.keep_s:
            blob, gone = self._stored.get(position), self._deleted.get(position)
            self.history.note(lambda: self._put(position, blob, gone))

    def _put(self, position: int, blob: bytes | None, gone: int | None) -> Callable[[], None]:
        """Makes `position` hold this; gives what puts back the present."""
        now_blob, now_gone = self._stored.pop(position, None), self._deleted.pop(position, None)
        if blob is not None:
            self._stored[position] = blob
        if gone is not None:
            self._deleted[position] = gone

        def again() -> None:
            self._put(position, now_blob, now_gone)

        return again

    def store(self, position: int, stripped: StripeObject) -> None:
        """Keep `stripped` (lists and embedded objects taken out) as the object at `position`."""
        self.touched = True
        self._note_place(position)
        self._stored[position] = _pack(msgspec.json.encode(stripped))
        for field in (*self.links, "customer", "source", "test_clock"):
            value: object = stripped
            for step in self.aliases.get(field, (field,)):
                value = value.get(step) if isinstance(value, dict) else None
            if isinstance(value, str):
                places = self.by_value[field, value]
                if not places or places[-1] != position:
                    places.append(position)

    def adopt(self, position: int, parent_id: str) -> None:
        """Put a new object under its parent, for tables whose objects do not name theirs."""
        self.parent_of[position] = parent_id
        self.by_value["", parent_id].append(position)

    def delete(self, position: int, at: int) -> None:
        self.withdraw(position, at)
        self._stored.pop(position, None)

    def withdraw(self, position: int, at: int) -> None:
        """Out of sight until `restore`, and then as it was."""
        self.touched = True
        self._note_place(position)
        self._deleted[position] = at

    def restore(self, position: int) -> None:
        """Undoes `withdraw`."""
        self._note_place(position)
        self._deleted.pop(position, None)

    def relation(self, field: str) -> Relation | None:
        """The relation behind `field` ("" is the parent of a nested list)."""
        if field == "":
            return self.parent[0] if self.parent else None
        link = self.links.get(field)
        return link[0] if link else None


def spread(index: int) -> int:
    """An even scatter of indexes over the variants (Knuth's multiplicative hash, top four bits)."""
    return ((index * 0x9E3779B1) & 0xFFFFFFFF) * VARIANTS >> 32


def _no_sample(variant: int) -> Sample:
    raise RuntimeError("the table is not wired")


def _never(position: int) -> bool:
    return False


def _pack(text: bytes) -> bytes:
    return text if len(text) < _SQUEEZE_FROM else isal_zlib.compress(text, 1)


def unpack(blob: bytes) -> bytes:
    """Compact JSON."""
    return blob if blob[:1] == b"{" else isal_zlib.decompress(blob)
