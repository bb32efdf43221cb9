"""The table `pinstripe.change`: writes and reads the change feed; `retention` trims it.

    mirror.change_feed -> write_changes -> NOTIFY -> changes_after (pages by position)
    SELECT * FROM pinstripe.change WHERE schema = 'stripe' AND position > $1 ORDER BY position

Positions grow in the order of commits, so a reader that has read up to one never misses an earlier one.
What counts as a change is decided by `mirror.change_feed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec

from pinstripe.store.locks import lock_row
from pinstripe.store.pool import Connection

CHANNEL = "pinstripe_change"
"""NOTIFY channel; the payload is `schema position`, of the last change of a transaction."""
ChangeKind = Literal["insert", "update", "delete"]


class Change(msgspec.Struct, frozen=True):
    """One change of a row."""

    position: int
    """Grows in the order of commits: whoever has read up to one never misses an earlier one."""
    table: str
    id: str
    kind: ChangeKind
    changes: msgspec.Raw
    """{column: [before, after]} of the columns that differ."""
    event_id: str | None
    request_id: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """Which changes: of one table, of one row, or all ("")."""

    table: str = ""
    id: str = ""

    def takes(self, change: Change) -> bool:
        return self.table in ("", change.table) and self.id in ("", change.id)


@dataclass(frozen=True, slots=True)
class NewChange:
    """A change that is not written yet. `changes` is JSON; no event or request is ""."""

    table: str
    id: str
    kind: ChangeKind
    changes: str
    event_id: str
    request_id: str


_COLUMNS = 'position, "table", id, kind, changes::text, event_id, request_id, at'


_WRITE = f"""
WITH written AS (
  INSERT INTO pinstripe.change (schema, "table", id, kind, changes, event_id, request_id)
  SELECT $1, u.tab, u.id, u.kind, u.changes::jsonb, nullif(u.event, ''), nullif(u.request, '')
  FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
    WITH ORDINALITY AS u (tab, id, kind, changes, event, request, n) ORDER BY u.n
  RETURNING position)
SELECT pg_notify('{CHANNEL}', $1 || ' ' || max(position)) FROM written
"""


async def write_changes(connection: Connection, schema: str, changes: Sequence[NewChange]) -> None:
    """Write these changes and notify. The last step of the transaction: other writers wait for its end."""
    # Positions are drawn in the order of commits only if no other transaction commits in between.
    await lock_row(connection, "change")
    await connection.execute(
        _WRITE,
        schema,
        [c.table for c in changes],
        [c.id for c in changes],
        [c.kind for c in changes],
        [c.changes for c in changes],
        [c.event_id for c in changes],
        [c.request_id for c in changes],
    )


async def changes_after(
    connection: Connection, schema: str, position: int, *, wanted: ChangeFilter, limit: int
) -> list[Change]:
    """Return changes after `position`, oldest first."""
    return await _page(
        connection, schema, position, wanted, f"> $4 ORDER BY position LIMIT {limit}"
    )


async def changes_before(
    connection: Connection, schema: str, position: int, *, wanted: ChangeFilter, limit: int
) -> list[Change]:
    """Return changes before `position`, newest first."""
    ordered = f"< $4 ORDER BY position DESC LIMIT {limit}"
    return await _page(connection, schema, position, wanted, ordered)


async def changes_of_event(connection: Connection, schema: str, event_id: str) -> list[Change]:
    """Return the changes that one event caused, in order; at most 200."""
    return await _fetch(
        connection, "schema = $1 AND event_id = $2 ORDER BY position LIMIT 200", schema, event_id
    )


async def newest_position(connection: Connection, schema: str) -> int:
    """Return the position of the schema's last change; 0 if there is none."""
    found: int | None = await connection.fetchval(
        "SELECT position FROM pinstripe.change WHERE schema = $1 ORDER BY position DESC LIMIT 1",
        schema,
    )
    return found or 0


async def _page(
    connection: Connection, schema: str, position: int, wanted: ChangeFilter, rest: str
) -> list[Change]:
    return await _fetch(
        connection,
        f"schema = $1 AND ($2 = '' OR \"table\" = $2) AND ($3 = ''"
        f" OR (id = $3 AND left(id, 500) = left($3, 500))) AND position {rest}",
        schema,
        wanted.table,
        wanted.id,
        position,
    )


async def _fetch(connection: Connection, where: str, *values: object) -> list[Change]:
    rows = await connection.fetch(f"SELECT {_COLUMNS} FROM pinstripe.change WHERE {where}", *values)
    return [
        Change(r[0], r[1], r[2], r[3], msgspec.Raw(r[4].encode()), r[5], r[6], r[7]) for r in rows
    ]
