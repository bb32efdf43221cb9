"""Reading the change feed by position: pages for whoever asks, in either direction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec

from pinstripe.store.pool import Connection


class Change(msgspec.Struct, frozen=True):
    """One change of a row."""

    position: int
    """Grows in the order of commits: whoever has read up to one never misses an earlier one."""
    table: str
    id: str
    kind: Literal["insert", "update", "delete"]
    changes: msgspec.Raw
    """{column: [before, after]} of the columns that differ."""
    event_id: str | None
    request_id: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which changes: of one table, of one row, or all ("")."""

    table: str = ""
    id: str = ""

    def takes(self, change: Change) -> bool:
        return self.table in ("", change.table) and self.id in ("", change.id)


_COLUMNS = 'position, "table", id, kind, changes::text, event_id, request_id, at'


async def changes_after(
    connection: Connection, schema: str, position: int, *, wanted: Wanted, limit: int
) -> list[Change]:
    """Behind `position`, oldest first."""
    return await _page(
        connection, schema, position, wanted, f"> $4 ORDER BY position LIMIT {limit}"
    )


async def changes_before(
    connection: Connection, schema: str, position: int, *, wanted: Wanted, limit: int
) -> list[Change]:
    """Before `position`, newest first."""
    ordered = f"< $4 ORDER BY position DESC LIMIT {limit}"
    return await _page(connection, schema, position, wanted, ordered)


async def changes_of_event(connection: Connection, schema: str, event_id: str) -> list[Change]:
    """What one event did to rows, in order; at most 200 of them."""
    return await _fetch(
        connection,
        "schema = $1 AND event_id = $2 ORDER BY position LIMIT 200",
        schema,
        event_id,
    )


async def newest_position(connection: Connection, schema: str) -> int:
    """Of the last change of the schema; 0 if there is none."""
    found: int | None = await connection.fetchval(
        "SELECT position FROM pinstripe.change WHERE schema = $1 ORDER BY position DESC LIMIT 1",
        schema,
    )
    return found or 0


async def _page(
    connection: Connection, schema: str, position: int, wanted: Wanted, rest: str
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
