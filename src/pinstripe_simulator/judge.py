"""Decides which positions a list shows, making as few objects as it can.

A computed object is judged by its sample first: most conditions compare with something that all
objects of a variant share, so that verdict is kept per variant. Where objects of a variant differ,
ids and a few other fields are computed alone; the whole object is made only if nothing else helps.
"""

from __future__ import annotations

import msgspec

from pinstripe_simulator.objects import Objects
from pinstripe_simulator.shape import Sample
from pinstripe_simulator.table import StripeObject, Table
from pinstripe_simulator.visibility import Condition


class Judge:
    """Shows what fulfils every condition in `wanted` and is not hidden for good."""

    def __init__(self, objects: Objects, table: Table, wanted: list[Condition]) -> None:
        self._objects = objects
        self._table = table
        self._wanted = wanted
        self._verdicts: dict[int, bool | None] = {}

    def shows(self, position: int) -> bool:
        """Whether the object at `position` belongs in the list."""
        table = self._table
        if table.gone(position):
            return False
        if not self._wanted:
            return True
        if position in table.unlisted:
            return False
        if position >= table.base or (table.touched and table.stored(position)):
            kept = _Kept(self._objects, table, position)
            return all(c(kept) for c in self._wanted)
        variant = table.variant(position)
        if variant in table.unlisted_variants:
            return False
        if variant not in self._verdicts:
            self._verdicts[variant] = self._verdict(table.sample(variant))
        verdict = self._verdicts[variant]
        if verdict is None:
            computed = _Computed(self._objects, table, position)
            return all(c(computed) for c in self._wanted)
        return verdict

    def _verdict(self, sample: Sample) -> bool | None:
        """True or False for all objects of the variant, None where they differ."""
        probe = _Probe(sample)
        unsure = False
        for condition in self._wanted:
            probe.met_hole = False
            shown = condition(probe)
            if not shown and not probe.met_hole:
                return False
            unsure = unsure or probe.met_hole
        return None if unsure else True


class _Probe:
    """A sample that notes whether a condition looked at something that differs."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self.met_hole = False

    def get(self, key: str) -> object:
        value = self._sample.get(key)
        if _has_hole(value):
            self.met_hole = True
        return value


class _Computed:
    """An object from the start, field by field."""

    def __init__(self, objects: Objects, table: Table, position: int) -> None:
        self._objects = objects
        self._table = table
        self._position = position
        self._sample = table.sample(table.variant(position))
        self._whole: StripeObject | None = None

    def get(self, key: str) -> object:
        value = self._sample.get(key)
        if not _has_hole(value):
            return value
        name = value[1:-1] if isinstance(value, str) else ""
        cheap = name.startswith("ref:") or name in ("entry-type", "source", "id")
        if cheap and self._whole is None:
            fill = self._objects.filler(self._table, name, 0)
            found: object = msgspec.json.decode(fill(self._objects, self._position, 0))
            return found
        if self._whole is None:
            self._whole = self._objects.load(self._table, self._position)
        return self._whole.get(key)


class _Kept:
    """A stored object; what is computed on reading is computed if asked for."""

    def __init__(self, objects: Objects, table: Table, position: int) -> None:
        self._objects = objects
        self._table = table
        self._position = position
        self._kept = table.kept(position) or {}

    def get(self, key: str) -> object:
        if key in self._table.lists or (key == "status" and "available_on" in self._kept):
            return self._objects.load(self._table, self._position).get(key)
        return self._kept.get(key)


def _has_hole(value: object) -> bool:
    if isinstance(value, str):
        return value.startswith("\x01") or "\x03" in value
    if isinstance(value, dict):
        return any(_has_hole(v) for v in value.values())
    if isinstance(value, list):
        return any(_has_hole(v) for v in value)
    return False
