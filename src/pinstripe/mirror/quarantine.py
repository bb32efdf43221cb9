"""What Postgres refuses at present: the mirror leaves it out and retries it every `PROBE_S`.

A refused row is kept in memory and retried without a request to Stripe. Once Postgres accepts it, its
refetch becomes due, because the object may have changed meanwhile. Beyond `MOST_HELD` rows, the others are
fetched once a day, and when the last row of their table that was kept is healed. A table that refuses every
row is not written at all: some of its rows are kept as probes, and what is left out is owed row by row or,
beyond `_MOST_OWED` rows, by reading its lists again. The names are in the database (`store.quarantine`),
the rows only in memory: a restart retries everything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pinstripe.catalog.tables import Table
from pinstripe.client.response import AsOf, Cause
from pinstripe.errors import DatabaseFault, Drifted
from pinstripe.mirror.batch import Batch, Conflict, Job
from pinstripe.mirror.orphans import children_of
from pinstripe.rows.extract import Row, RowSet
from pinstripe.store.pool import Connection
from pinstripe.store.quarantine import MOST_HELD, UNHELD_S, Why, note_refused, owe_fetches

PROBE_S = 10.0
"""Seconds between two retries of what is refused."""
_MOST_OWED = 1000
"""Rows of a table that are owed one by one; beyond it, its lists are read again."""
_SAMPLES = 16
PROBED = 15
"""Fewer than what makes a table count as refusing all rows: these were refused before."""
_HELD_BYTES = 1_000_000
LARGEST_BYTES = 200_000_000
"""Postgres stores a text of up to 1 GB, a jsonb of 256 MB, and accepts messages of 1 GB."""
_HELD_S = 10 * 365 * 86400.0
"""A row held in memory is not fetched before Postgres accepts it."""

Place = tuple[str, str]


TOO_LARGE = Why(
    DatabaseFault("54000", "row"),
    "The row is larger than Postgres takes.",
    "Make the object smaller at Stripe; it is fetched again once a day.",
)


def left_out(table: str) -> Drifted:
    """What a row is refused with that the table does not have, though no statement failed."""
    error = Drifted(
        f'The table "{table}" did not take the row, without an error.',
        hint="A trigger of your own leaves rows out by returning NULL: have it return NEW, or drop it.",
    )
    error.fault = DatabaseFault("02000", "row", table=table)
    return error


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that was left out of a commit, with its interval in the tail."""

    table: str
    key: str
    row: Row
    why: Why
    cause: Cause | None = None

    @property
    def can_be_held(self) -> bool:
        """Whether it is small enough to be kept in memory and retried without Stripe."""
        return size_of(self.row) <= _HELD_BYTES


@dataclass(slots=True)
class Parted:
    """What a batch was written without. `tables`: those that refused every row."""

    conflicts: list[Conflict] = field(default_factory=list)
    rows: list[RefusedRow] = field(default_factory=list)
    tables: dict[str, Why] = field(default_factory=dict)
    left_out: list[RefusedRow] = field(default_factory=list)
    """The rows of those tables."""
    owners: list[tuple[str, str]] = field(default_factory=list)
    """(table, key) of parents whose orphans could not be removed."""


def size_of(row: Row) -> int:
    """Return the number of characters in its texts."""
    return sum(len(value) for value in row if isinstance(value, str))


def take_too_large(batch: Batch) -> list[RefusedRow]:
    """Take the rows out of the batch that are too large for Postgres, and return them."""
    found: list[RefusedRow] = []
    for one_round in batch.rounds:
        for table, group in one_round.items():
            for key in [k for k, row in group.items() if size_of(row) > LARGEST_BYTES]:
                found.append(RefusedRow(table, key, group.pop(key), TOO_LARGE))
    return found


@dataclass(slots=True)
class HeldTable:
    """A table that refuses every row. `samples`: rows to retry; `owed`: keys of rows left out; `owners`:
    parents whose members in it could not be removed.
    """

    why: Why
    owners: set[Place] = field(default_factory=set)
    samples: deque[RefusedRow] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    owed: set[str] = field(default_factory=set)
    relist: bool = False

    @property
    def is_gone(self) -> bool:
        """Whether the table or a column of it has to be created again."""
        return self.why.is_gone


class Quarantine:
    """The refused rows and tables of one mirror."""

    def __init__(self) -> None:
        self.tables: dict[str, HeldTable] = {}
        self.rows: dict[Place, RefusedRow] = {}
        self.places: set[Place] = set()
        """All refused rows, kept in memory or not."""
        self.healed: set[Place] = set()
        """Refused rows that were written since."""
        self.late: set[str] = set()
        """Tables that were healed while a batch without their rows was on its way: what it owes is due."""

    def __bool__(self) -> bool:
        return bool(self.tables or self.places or self.late)

    def forget(self) -> None:
        """Forget everything, so that it is tried again."""
        self.tables.clear()
        self.rows.clear()
        self.places.clear()
        self.healed.clear()
        self.late.clear()

    def take(self, parted: Parted) -> None:
        """Add what a write refused."""
        for table, reason in parted.tables.items():
            held = self.tables.setdefault(table, HeldTable(reason))
            held.why = reason
            held.owners |= set(parted.owners)
            # Of a table that is gone every row is lost: its lists are read again.
            held.relist = held.relist or held.is_gone
        for row in parted.left_out:
            self._leave_out(row)
        for row in parted.rows:
            place = (row.table, row.key)
            self.places.add(place)
            self.healed.discard(place)
            if row.can_be_held and (place in self.rows or len(self.rows) < MOST_HELD):
                self.rows[place] = row

    def open_tables(self, tables: Mapping[str, Table]) -> Mapping[str, Table]:
        """Return the tables that are written."""
        if not self.tables:
            return tables
        return {name: table for name, table in tables.items() if name not in self.tables}

    def left_out_of(self, jobs: Iterable[Job]) -> list[RefusedRow]:
        """Return the rows of these jobs in refused tables that are not owed yet."""
        if not self.tables:
            return []
        new: list[RefusedRow] = []
        for job in jobs:
            for row_set, as_of in job.parts:
                for table, key, row in _rows_of(row_set, self.tables):
                    row[-5], row[-4], row[-3] = as_of.lo, as_of.hi, as_of.known_until
                    refused = RefusedRow(table, key, row, self.tables[table].why, as_of.cause)
                    # A refetch that this commit completes has to be queued again.
                    if self._leave_out(refused) or job.completed:
                        new.append(refused)
        return new

    def owners_of(self, jobs: Iterable[Job]) -> list[tuple[str, str, Why, float]]:
        """Return the parents of sets in refused tables, as `owe_fetches` takes them: which members are gone
        is not known once the table is healed.
        """
        found: list[tuple[str, str, Why, float]] = []
        for job in jobs if self.tables else ():
            for told in (told for row_set, _ in job.parts for told in row_set.sets):
                for held in (self.tables.get(child) for child in children_of(told)):
                    if held is not None and not held.relist:
                        held.owners.add((told.parent_table, told.parent_id))
                        found.append((told.parent_table, told.parent_id, held.why, UNHELD_S))
        return found

    def _leave_out(self, row: RefusedRow) -> bool:
        """Return whether the row is newly owed one by one."""
        held = self.tables[row.table]
        if row.can_be_held:
            held.samples.append(row)
        if row.key in held.owed or held.relist:
            return False
        if len(held.owed) >= _MOST_OWED:
            held.relist = True
            return False
        held.owed.add(row.key)
        return True

    def written(self, batch: Batch) -> None:
        """Note a written batch: those of its rows that were refused before are healed."""
        self.late |= batch.owed - self.tables.keys()
        if not self.places:
            return
        for one_round in batch.rounds:
            for table, group in one_round.items():
                self.healed |= {(table, key) for key in group if (table, key) in self.places}

    def to_probe(self) -> list[RefusedRow]:
        """Return rows to retry now; the next call returns others, if there are many."""
        chosen = list(self.rows)[:PROBED]
        for place in chosen:  # To the end of the line.
            self.rows[place] = self.rows.pop(place)
        return [self.rows[place] for place in chosen]

    def due_with(self, table: str, held: HeldTable) -> dict[str, list[str] | None]:
        """Return what a healed table makes due, as `store.quarantine.release` takes it: table -> keys."""
        due: dict[str, list[str] | None] = {table: None}
        for owner, key in sorted(held.owners - self.places):
            keys = due.setdefault(owner, []) if owner not in self.tables else None
            if keys is not None:
                keys.append(key)
        return due

    def take_healed(self) -> dict[str, list[str]]:
        """Remove and return the healed rows: table -> keys.

        With the last row of a table that was kept in memory those that were not: nothing else retries them.
        """
        found: dict[str, list[str]] = {}
        for table, key in self.healed:
            self.places.discard((table, key))
            self.rows.pop((table, key), None)
            found.setdefault(table, []).append(key)
        unkept = found.keys() - {table for table, _ in self.rows}
        for table, key in [place for place in self.places if place[0] in unkept]:
            self.places.discard((table, key))
            found[table].append(key)
        self.healed.clear()
        return found

    def refuses(self, row_set: RowSet) -> bool:
        """Return whether a write of these rows left one of them out."""
        if not self:
            return False
        return any(
            table in self.tables or any(self._is_left_out((table, key)) for key in group)
            for table, group in row_set.rows.items()
        )

    def _is_left_out(self, place: Place) -> bool:
        return place in self.places and place not in self.healed


def probe(rows: Iterable[RefusedRow], api_version: str, tables: Mapping[str, Table]) -> Batch:
    """Return a batch that retries refused rows."""
    batch = Batch(api_version, tables)
    for row in rows:
        row_set = RowSet(rows={row.table: {row.key: list(row.row)}})
        batch.add(row_set, AsOf(row.row[-5], row.row[-4], row.cause, row.row[-3]))
    return batch


async def note_parted(connection: Connection, schema: str, parted: Parted) -> None:
    """Note what was refused, in the transaction that writes the rest."""
    entries = [(r.table, r.key, r.why, False) for r in parted.rows]
    entries += [(table, "", w, w.is_gone) for table, w in parted.tables.items()]
    await note_refused(connection, schema, entries)
    await owe_rows(connection, schema, [*parted.rows, *parted.left_out])
    if parted.owners:
        # Due by time, not by what heals: an entry that could not go may keep only its own removal back.
        reasons = [r.why for r in (*parted.rows, *parted.left_out)] or list(parted.tables.values())
        due = [(t, k, reasons[0], UNHELD_S) for t, k in set(parted.owners)]
        await owe_fetches(connection, schema, due)


async def owe_rows(connection: Connection, schema: str, rows: Sequence[RefusedRow]) -> None:
    """Queue a refetch for each of these rows, due once Postgres accepts it."""
    entries = [(r.table, r.key, r.why, _HELD_S if r.can_be_held else UNHELD_S) for r in rows]
    causes = {(r.table, r.key): r.cause for r in rows if r.cause is not None}
    await owe_fetches(connection, schema, entries, causes)


def _rows_of(row_set: RowSet, tables: Container[str]) -> Iterator[tuple[str, str, Row]]:
    for table, group in row_set.rows.items():
        if table in tables:
            for key, row in group.items():
                yield table, key, row
    for table, key, row in row_set.variants:
        if table in tables:
            yield table, key, row
