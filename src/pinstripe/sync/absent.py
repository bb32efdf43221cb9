"""Rows that nothing has shown since a moment, although all lists were read after it: what became of them.

Deleted without a word, deleted while nobody listened, or never shown by any list (an inline price, what
is only referred to). Each is asked for by its id: what Stripe does not have is flagged, the rest renewed.
"""

from __future__ import annotations

from collections.abc import Iterable

from pinstripe.source.account import Source
from pinstripe.source.settle import can_be_asked
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.todo import Todo, add_todos

# Events go from Stripe after 30 days, and stay in the copy.
_KEPT = frozenset({"event", "v2_core_event"})


async def note_absent(
    source: Source, tables: Iterable[str], since: float, *, most: int | None = None
) -> list[Todo]:
    """Notes a request for each such row of these tables, the oldest `most` of each; gives them.

    `since`: Unix seconds on Stripe's clock.
    """
    found: list[Todo] = []
    for table in sorted(set(tables) - _KEPT):
        known = source.wanted[table]
        if not can_be_asked(table):
            continue
        alive = " AND deleted IS NOT TRUE" if known.deletable else ""
        async with source.transaction() as connection:
            rows = await connection.fetch(
                f"SELECT {quote(known.key[0])} FROM {qualified(source.mirror.schema, table)} "
                f"WHERE _as_of_latest < to_timestamp($1){alive} ORDER BY _as_of_latest LIMIT $2",
                since,
                most,
            )
            todos = [Todo("fetch", table, row[0], since=since) for row in rows]
            await add_todos(connection, source.mirror.schema, todos)
        found += todos
    return found
