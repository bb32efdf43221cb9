"""Objects that rows refer to and that Stripe does not have, or does not show: `pinstripe.missing`."""

from __future__ import annotations

from collections.abc import Sequence

from pinstripe.rows.extract import RowKey
from pinstripe.store.pool import Connection

_LOAD = """
SELECT m."table", m.id, m.reason FROM pinstripe.missing m
JOIN unnest($2::text[], $3::text[]) AS w ("table", id) ON w."table" = m."table" AND w.id = m.id
  AND left(m.id, 500) = left(w.id, 500)
WHERE m.schema = $1
"""


async def load_missing(
    connection: Connection, schema: str, rows: Sequence[RowKey]
) -> dict[RowKey, str]:
    """Return the reason for each of the `rows` that is missing."""
    if not rows:
        return {}
    names, keys = [row[0] for row in rows], [row[1] for row in rows]
    return {(r[0], r[1]): r[2] for r in await connection.fetch(_LOAD, schema, names, keys)}
