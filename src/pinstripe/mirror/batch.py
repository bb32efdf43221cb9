"""What one transaction writes: rows in rounds, checkpoints, effects. `writer` runs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pinstripe.catalog.tables import Table
from pinstripe.mirror.orphans import CompleteList, Parents, children_of
from pinstripe.rows.as_of import Cause
from pinstripe.rows.extract import Row, RowSet
from pinstripe.store.cursors import Checkpoint
from pinstripe.store.pool import Connection
from pinstripe.store.refetch import Refetch, RefetchDone

Effect = Callable[[Connection], Awaitable[None]]
"""A further step of the transaction. It runs again if the transaction is retried."""

_NONE: Mapping[tuple[str, str], datetime] = {}


@dataclass(frozen=True, slots=True)
class Conflict:
    """A row that overlaps in time with a snapshot of other content; one GET decides.

    `version` is the row's `_synced_at`: a response requested from now on is newer than that version.
    `cause`: what made Stripe change the object, as far as the snapshot has it.
    """

    table: str
    key: str
    version: datetime
    cause: Cause | None = None


def refetch_for(conflict: Conflict) -> Refetch:
    """Return the refetch that resolves a conflict."""
    cause = conflict.cause or Cause()
    return Refetch(
        "fetch",
        conflict.table,
        conflict.key,
        request_id=cause.request_id,
        event_id=cause.event_id,
    )


@dataclass(slots=True)
class Batch:
    """What one commit writes; rows of tables that are not in `tables` are left out.

    Rounds: a key that comes twice with other content waits for the next round. `complete_lists`: (child
    table, parent table) -> the parents whose lists were complete, and when. Tables in their initial load
    (`loading`) have no orphans.
    """

    api_version: str
    tables: Mapping[str, Table]
    loading: Collection[str] = ()
    complete_lists: dict[tuple[str, str], Parents] = field(default_factory=dict)
    rounds: list[dict[str, dict[str, Row]]] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    completed: list[RefetchDone] = field(default_factory=list)
    causes: list[dict[tuple[str, str], Cause]] = field(default_factory=list)
    rows: int = 0
    _last: dict[tuple[str, str], int] = field(default_factory=dict)

    def written(self) -> dict[str, dict[str, Row]]:
        """Return the rows by table and key, without tables in their initial load."""
        found: dict[str, dict[str, Row]] = {}
        for one_round in self.rounds:
            for table, group in one_round.items():
                if table not in self.loading:
                    found.setdefault(table, {}).update(group)
        return found

    def add(
        self,
        row_set: RowSet,
        lo: float,
        hi: float,
        expected: Mapping[tuple[str, str], datetime] = _NONE,
        *,
        cause: Cause | None = None,
    ) -> None:
        """Add rows that were true at a moment in [lo, hi), Unix seconds on Stripe's clock.

        `expected`: versions of rows (table, key) read before the snapshot was requested.
        `cause`: the reason that the change feed names.
        """
        for place, key in row_set.complete_lists:
            for child in children_of(place):
                if child in self.tables and child not in self.loading:
                    parents = self.complete_lists.setdefault((child, place.partition(".")[0]), {})
                    parents[key] = CompleteList(lo, hi, cause)
        for table, group in row_set.rows.items():
            if table in self.tables:
                for key, row in group.items():
                    row[-3] = expected.get((table, key)) if expected else None
                    self._add(table, key, row, lo, hi, cause=cause)
        for table, key, row in row_set.variants:
            if table in self.tables:
                row[-3] = expected.get((table, key)) if expected else None
                self._add(table, key, row, lo, hi, cause=cause)

    def _add(
        self, table: str, key: str, row: Row, lo: float, hi: float, *, cause: Cause | None
    ) -> None:
        at = self._last.get((table, key), -1)
        if at >= 0:
            earlier = self.rounds[at][table][key]
            if earlier[-1] == row[-1] and earlier[:-5] == row[:-5]:
                earlier[-5], earlier[-4] = max(lo, earlier[-5]), max(hi, earlier[-4])
                earlier[-3] = row[-3] or earlier[-3]
                if cause is not None:
                    self.causes[at].setdefault((table, key), cause)
                return
        at += 1
        if at == len(self.rounds):
            self.rounds.append({})
            self.causes.append({})
        row[-5], row[-4] = lo, hi
        self.rounds[at].setdefault(table, {})[key] = row
        if cause is not None:
            self.causes[at][table, key] = cause
        self._last[table, key] = at
        self.rows += 1
