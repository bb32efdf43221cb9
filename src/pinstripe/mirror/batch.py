"""What one transaction writes: rows in rounds, checkpoints, effects. `writer` runs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field

from pinstripe.catalog.endpoints import child_list
from pinstripe.catalog.tables import Table, tables
from pinstripe.mirror.orphans import Doubt, SetFact, children_of
from pinstripe.mirror.upsert import EVENT_S
from pinstripe.rows.as_of import AsOf, Cause
from pinstripe.rows.extract import Row, RowKey, RowSet
from pinstripe.store.cursors import Checkpoint
from pinstripe.store.pool import Connection
from pinstripe.store.refetch import Refetch, RefetchDone, RefetchKind

Effect = Callable[[Connection], Awaitable[None]]
"""A further step of the transaction. It runs again if the transaction is retried."""

Befores = Callable[[], Sequence[Row]]
"""Makes the rows that an object had before a change, the latest first."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A row that overlaps in time with a snapshot of other content; one GET decides.

    With a `parent_table`, a set in doubt: the rows of `table` under the parent `key`. `cause`: what made
    Stripe change it, as far as the snapshot has it.
    """

    table: str
    key: str
    cause: Cause | None = None
    parent_table: str = ""


def doubt(found: Doubt | SetFact) -> Conflict:
    """Return the conflict of a set in doubt."""
    return Conflict(found.child, found.parent_id, found.cause, found.parent)


def refetch_for(conflict: Conflict) -> Refetch:
    """Return the refetch that resolves a conflict; of a set, the list under its parent, or the parent."""
    cause = conflict.cause or Cause()
    kind: RefetchKind = "fetch"
    table, parent = conflict.parent_table or conflict.table, ""
    if conflict.parent_table:
        owner = tables()[conflict.parent_table].object_type
        if child_list(conflict.table, owner) is not None:
            kind, table, parent = "children", conflict.table, owner
    return Refetch(
        kind,
        table,
        conflict.key,
        parent,
        request_id=cause.request_id,
        event_id=cause.event_id,
    )


@dataclass(slots=True)
class Batch:
    """What one commit writes; rows of tables that are not in `tables` are left out.

    Rounds: a key that comes twice with other content waits for the next round. `sets`: what lists say that
    were complete. In tables in their initial load (`loading`) only those count that something caused.
    `befores`: what the objects of events were before them.
    """

    api_version: str
    tables: Mapping[str, Table]
    loading: Collection[str] = ()
    sets: list[SetFact] = field(default_factory=list)
    befores: dict[RowKey, Befores] = field(default_factory=dict)
    rounds: list[dict[str, dict[str, Row]]] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    completed: list[RefetchDone] = field(default_factory=list)
    causes: list[dict[tuple[str, str], Cause]] = field(default_factory=list)
    rows: int = 0
    owed: frozenset[str] = frozenset()
    """Tables whose rows it owes instead of writing them."""
    _last: dict[tuple[str, str], int] = field(default_factory=dict)

    def written(self, names: Container[str]) -> dict[str, dict[str, Row]]:
        """Return the rows of these tables by table and key, without tables in their initial load."""
        found: dict[str, dict[str, Row]] = {}
        for one_round in self.rounds:
            for table, group in one_round.items():
                if table in names and table not in self.loading:
                    found.setdefault(table, {}).update(group)
        return found

    def add(self, row_set: RowSet, as_of: AsOf) -> None:
        """Add rows that were true at a moment in the interval `as_of`."""
        cause = as_of.cause
        for told in row_set.sets:
            for child in children_of(told):
                if child in self.tables and (cause is not None or child not in self.loading):
                    self.sets.append(
                        SetFact(
                            child,
                            told.parent_table,
                            told.parent_id,
                            told.members,
                            as_of.lo,
                            as_of.hi,
                            cause,
                            as_of.known_until,
                        )
                    )
        self.befores |= row_set.befores
        for table, group in row_set.rows.items():
            if table in self.tables:
                for key, row in group.items():
                    self._add(table, key, row, as_of)
        for table, key, row in row_set.variants:
            if table in self.tables:
                self._add(table, key, row, as_of)

    def _add(self, table: str, key: str, row: Row, as_of: AsOf) -> None:
        at = self._last.get((table, key), -1)
        lo, hi, known, cause = as_of.lo, as_of.hi, as_of.known_until, as_of.cause
        if at >= 0:
            earlier = self.rounds[at][table][key]
            # A response that agrees with an event says no more: the event's moment is known better.
            is_event = earlier[-4] - earlier[-5] <= EVENT_S < hi - lo
            if earlier[-1] == row[-1] and earlier[:-5] == row[:-5]:
                if not is_event or lo >= earlier[-4]:
                    earlier[-5], earlier[-4] = max(lo, earlier[-5]), max(hi, earlier[-4])
                    earlier[-3] = known or earlier[-3]
                if cause is not None:
                    self.causes[at].setdefault((table, key), cause)
                return
        at += 1
        if at == len(self.rounds):
            self.rounds.append({})
            self.causes.append({})
        row[-5], row[-4], row[-3] = lo, hi, known
        self.rounds[at].setdefault(table, {})[key] = row
        if cause is not None:
            self.causes[at][table, key] = cause
        self._last[table, key] = at
        self.rows += 1
