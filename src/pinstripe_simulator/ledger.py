"""Writing to the account on someone's behalf: every change makes its event.

A `Ledger` belongs to one request (or to Stripe itself). Behaviours make, change and delete objects
through it; the event types, `previous_attributes` and the request behind it follow by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

from pinstripe_simulator.blank import blank
from pinstripe_simulator.events import Cause, EventLog, copy, difference
from pinstripe_simulator.replies import missing, refused
from pinstripe_simulator.table import StripeObject, Table
from pinstripe_simulator.world import World

# What the event of a deletion shows otherwise than the last retrieve (seen in recorded answers).
_ENDED: Mapping[str, StripeObject] = {"product": {"active": False}, "coupon": {"valid": False}}


class Ledger:
    """What one request changes."""

    def __init__(self, world: World, events: EventLog, cause: Cause) -> None:
        self.world = world
        self._events = events
        self._cause = cause

    def now(self) -> int:
        return self.world.now()

    def get(self, type_name: str, id: object, *, param: str = "id") -> StripeObject:
        """The object; Stripe's 404 for the path's own id, 400 for one in a parameter."""
        found = self.world.get(type_name, str(id))
        if found is None:
            raise missing(type_name, str(id), param=param, status=404 if param == "id" else 400)
        return found

    def make(
        self,
        type_name: str,
        values: Mapping[str, object],
        *,
        id: str = "",
        parent: str = "",
        under: str = "",
        event: str = "created",
    ) -> StripeObject:
        """A new object: blank, but for `values`. `parent` is the id, `under` the type it hangs
        under; `event` the verb of the event, "" for none.
        """
        table = self.table(type_name, under)
        before = table.position(id) if id else None
        if before is not None and not table.gone(before):
            raise refused(
                f"{type_name.capitalize()} already exists.",
                code="resource_already_exists",
                param="id",
            )
        position, new_id = self.world.make(table, id=id, parent=parent)
        made = blank(table, position, self.world.objects, self.now())
        made |= {**values, "id": new_id}
        self.world.save(table, position, made)
        whole = self.world.objects.load(table, position)
        if event:
            self.tell(event, whole)
        return whole

    def change(
        self, found: StripeObject, changes: Mapping[str, object], *, event: str = "updated"
    ) -> StripeObject:
        """The object with `changes`; the event tells what was there before."""
        where = self._where(found)
        before = self.world.objects.load(*where)
        after = copy(before) | dict(changes)
        self.world.save(*where, after)
        whole = self.world.objects.load(*where)
        told = difference(before, whole)
        if event and (told or event != "updated"):
            self.tell(event, whole, previous=told if event == "updated" else None)
        return whole

    def delete(self, found: StripeObject, *, event: str = "deleted") -> StripeObject:
        """Stripe's stub; the event carries the object as it was, but no longer in use."""
        table, position = self._where(found)
        whole = self.world.objects.load(table, position)
        self.world.remove(table, position)
        if event:
            self.tell(event, whole | _ENDED.get(table.kind.name, {}))
        return {"id": found["id"], "object": found["object"], "deleted": True}

    def tell(self, verb: str, found: StripeObject, *, previous: StripeObject | None = None) -> None:
        """An event about `found`; nothing where Stripe has none. `verb` or the full type."""
        name = self._events.name(str(found["object"]), verb) or verb
        self._events.add(name, found, previous=previous, cause=self._cause)

    def table(self, type_name: str, under: str = "") -> Table:
        """Where objects of the type are kept; of several tables, the one under `under`."""
        tables = self.world.tables_of(type_name)
        for table in tables:
            if table.parent is not None and table.parent[1] == under:
                return table
        if not tables:
            raise refused(f"The simulator keeps no {type_name}.")
        return tables[0]

    def _where(self, found: StripeObject) -> tuple[Table, int]:
        where = self.world.find(str(found["object"]), str(found["id"]))
        if where is None:
            raise missing(str(found["object"]), str(found["id"]))
        return where
