"""What one commit writes: rows in rounds, checkpoints, effects. Collected here, run by `write`."""

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
"""What else belongs into the transaction. It may be run again, if the transaction is."""

_NONE: Mapping[tuple[str, str], datetime] = {}


@dataclass(frozen=True, slots=True)
class Conflict:
    """A row that an equally old snapshot of other content claims; one GET decides.

    `version` is the row's `_synced_at`: what is fetched from now on is newer than this version.
    `cause`: what made Stripe change the object, as the snapshot knew it.
    """

    table: str
    key: str
    version: datetime
    cause: Cause | None = None


def refetch_for(contested: Conflict) -> Refetch:
    """What the contested row makes us ask of Stripe."""
    cause = contested.cause or Cause()
    return Refetch(
        "fetch",
        contested.table,
        contested.key,
        request_id=cause.request_id,
        event_id=cause.event_id,
    )


@dataclass(slots=True)
class Batch:
    """What one commit writes; rows of tables that are not in `tables` are left out.

    Rounds: a key that comes twice with other content waits for the next round. `whole`: (child table,
    parent table) -> the parents whose lists were shown to their end, and when; tables that are being
    `loading`, copied for the first time, have nothing that could have gone.
    """

    api_version: str
    tables: Mapping[str, Table]
    loading: Collection[str] = ()
    whole: dict[tuple[str, str], Parents] = field(default_factory=dict)
    rounds: list[dict[str, dict[str, Row]]] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    completed: list[RefetchDone] = field(default_factory=list)
    causes: list[dict[tuple[str, str], Cause]] = field(default_factory=list)
    rows: int = 0
    _last: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(
        self,
        found: RowSet,
        lo: float,
        hi: float,
        over: Mapping[tuple[str, str], datetime] = _NONE,
        *,
        cause: Cause | None = None,
    ) -> None:
        """Adds rows that are true for a moment in [lo, hi), Unix seconds on Stripe's clock.

        `over`: versions of rows (table, key) that were seen before the snapshot was asked for.
        `cause`: what the change feed names as the reason.
        """
        for place, key in found.complete_lists:
            for child in children_of(place):
                if child in self.tables and child not in self.loading:
                    owners = self.whole.setdefault((child, place.partition(".")[0]), {})
                    owners[key] = CompleteList(lo, hi, cause)
        for table, group in found.rows.items():
            if table in self.tables:
                for key, row in group.items():
                    row[-3] = over.get((table, key)) if over else None
                    self._add(table, key, row, lo, hi, cause=cause)
        for table, key, row in found.variants:
            if table in self.tables:
                row[-3] = over.get((table, key)) if over else None
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
