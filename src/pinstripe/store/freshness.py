"""How far each table is known to be true by something else than events: its newest rows, a full pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pinstripe.store.pool import Connection


@dataclass(frozen=True, slots=True)
class Freshness:
    """`known_to` is a Unix second on Stripe's clock; `how` one of "newest", "due", "pass"."""

    table: str
    how: str
    known_to: float


async def note_freshness(
    connection: Connection, schema: str, tables: Sequence[str], how: str, known_to: float
) -> None:
    """Says that these tables were read `how`, and are true so far."""
    await connection.execute(
        'INSERT INTO pinstripe.freshness (schema, "table", how, known_to)'
        " SELECT $1, t, $3, to_timestamp($4) FROM unnest($2::text[]) AS t"
        ' ON CONFLICT (schema, "table", how) DO UPDATE'
        " SET known_to = EXCLUDED.known_to, updated_at = now()",
        schema,
        list(tables),
        how,
        known_to,
    )


async def load_freshness(connection: Connection, schema: str) -> list[Freshness]:
    """Everything noted of a schema."""
    rows = await connection.fetch(
        'SELECT "table", how, extract(epoch FROM known_to)::float8 FROM pinstripe.freshness'
        " WHERE schema = $1",
        schema,
    )
    return [Freshness(*row) for row in rows]
