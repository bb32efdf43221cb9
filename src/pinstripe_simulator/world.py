"""The account's objects as one whole: find, read, count, change.

Behaviours change objects through `World.save`, `World.make` and `World.remove` only, so that
lists, nested lists, filters and the truth that tests compare with all see the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from copy import copy

from pinstripe.catalog.model import Spec
from pinstripe_simulator.build import Plan, build_tables
from pinstripe_simulator.clock import Clock
from pinstripe_simulator.objects import Objects
from pinstripe_simulator.replica import History
from pinstripe_simulator.routes import Routes
from pinstripe_simulator.table import StripeObject, Table


class World:
    """All tables of one account. `clock` gives Unix seconds on Stripe's side of the wire."""

    def __init__(self, spec: Spec, plan: Plan, clock: Clock) -> None:
        self.routes = Routes(spec)
        self.plan = plan
        self._clock = clock
        tables = build_tables(self.routes, plan)
        self._named: dict[str, list[str]] = {}
        for table in tables.values():
            self._named.setdefault(table.kind.name, []).append(table.name)
        self._begin(tables)
        for table in tables.values():
            table.history = self.history
        self.objects = Objects(tables, self.routes, self.now)

    def like(self, part: str, same: Collection[str], *, clock: Clock | None = None) -> World:
        """Another account that is made alike, in a fraction of a millisecond: its ids hold `part`, but
        for those of the types in `same`. `clock`: its own, if it has one.
        """
        made = copy(self)
        made._clock = clock or self._clock
        history = History(made._clock.now)
        made._begin(
            {
                name: table.like("" if table.kind.name in same else part, history)
                for name, table in self.tables.items()
            },
            history,
        )
        made.objects = self.objects.like(made.tables, made.now)
        return made

    def _begin(self, tables: dict[str, Table], history: History | None = None) -> None:
        self.now = self._clock.seconds
        self.tables = tables
        self.history = history or History(self._clock.now)
        self.unsettled: deque[tuple[int, str]] = deque()
        """Charges captured as `automatic_async` that have no balance transaction yet, each with
        the second in which it comes."""
        self.settle_s = 0

    def tables_of(self, type_name: str) -> list[Table]:
        """The table of a type; several where nested lists share it."""
        return [self.tables[name] for name in self._named.get(type_name, ())]

    def find(self, type_name: str, id: str) -> tuple[Table, int] | None:
        """Where the object of that type and id is or was."""
        for table in self.tables_of(type_name):
            position = table.position(id)
            if position is not None:
                return table, position
        return None

    def get(self, type_name: str, id: str) -> StripeObject | None:
        """The object, or None if it does not exist (any more)."""
        found = self.find(type_name, id)
        if found is None or found[0].gone(found[1]):
            return None
        return self.objects.load(*found)

    def truth(self, type_name: str) -> Iterator[StripeObject]:
        """Every object of the type as a retrieve would show it, oldest first."""
        for table in self.tables_of(type_name):
            for position in range(table.total):
                if not table.gone(position):
                    yield self.objects.load(table, position)

    def counts(self) -> dict[str, int]:
        """Objects per type that exist now."""
        return {name: sum(table.count() for table in self.tables_of(name)) for name in self._named}

    def make(self, table: Table, *, id: str = "", parent: str = "") -> tuple[int, str]:
        """Position and id of a new object, which the caller must `save`."""
        position = table.add(self.now(), id)
        if parent:
            table.adopt(position, parent)
        return position, table.id_at(position)

    def save(self, table: Table, position: int, changed: StripeObject) -> None:
        """Keep `changed` as the object at `position`; what it shows on request only, apart."""
        fields = self.routes.fields[table.kind.name]
        kept = self.objects.strip(table, changed)
        for name in [n for n in kept if n in fields and fields[n].on_request]:
            table.withheld.setdefault(position, {})[name] = kept.pop(name)
        table.store(position, kept)

    def withheld(self, type_name: str, id: str) -> StripeObject:
        """What the object was given and shows on request only (tiers of a price)."""
        found = self.find(type_name, id)
        return found[0].withheld.get(found[1], {}) if found is not None else {}

    def remove(self, table: Table, position: int) -> None:
        """The object at `position` no longer exists."""
        table.delete(position, self.now())
