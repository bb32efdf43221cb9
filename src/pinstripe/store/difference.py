"""Rows that are not as Stripe showed them, as values.

A difference is a suspicion until `sync.suspects` has looked again. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Literal

import asyncpg

from pinstripe.catalog.tables import Table
from pinstripe.rows.extract import Row

Place = tuple[str, str]
"""(table, key)."""

Kind = Literal["missing", "stale", "extra", "wrongly_deleted", "partial"]
"""`partial`: the row says itself that it lacks what Stripe gives on request only."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One row that is not as Stripe showed it. `version` is the row's `_synced_at`, None if there is none.

    `shown` tells contents apart that Stripe showed at different times ("" where it has no object);
    `created` is the object's own, Unix seconds. `parents` are (table, key) of what it hangs under.
    """

    table: str
    key: str
    kind: Kind
    columns: tuple[str, ...] = ()
    version: datetime | None = None
    shown: str = ""
    created: int | None = None
    parents: tuple[Place, ...] = ()

    @property
    def place(self) -> Place:
        return (self.table, self.key)


def difference(table: Table, row: Row, record: asyncpg.Record) -> Difference:
    key, version, told, asked, is_partial, undeleted = record
    kind: Kind = "stale"
    columns = (*told, *asked)
    if version is None:
        kind, columns = "missing", ()
    elif undeleted:
        kind = "wrongly_deleted"
    elif table.deletable and "deleted" in told:
        kind = "extra"
    elif is_partial and not told:
        kind = "partial"
    at = {c.name: i for i, c in enumerate(table.columns)}
    created = row[at["created"]] if "created" in at else None
    about = relations(table)
    return Difference(
        table.name,
        key,
        kind,
        columns,
        version,
        blake2b(repr(row[:-5]).encode(), digest_size=12).hexdigest(),
        created if isinstance(created, int) else None,
        parents_of(about, [row[at[name]] for _, name in about]),
    )


def relations(table: Table) -> list[tuple[str, str]]:
    """(target, column) of the references of one id each."""
    return [
        (target, c.name)
        for c in table.columns
        for target in c.references
        if c.type == "text" and c.name not in table.key
    ]


def parents_of(about: Sequence[tuple[str, str]], values: Sequence[object]) -> tuple[Place, ...]:
    pairs = zip(about, values, strict=True)
    return tuple((target, str(value)) for (target, _), value in pairs if value is not None)
