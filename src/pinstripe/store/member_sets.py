"""The table `pinstripe.member_set`: when the list of a parent was last known whole.

    a set that an event showed, or that took rows out -> `note`
    a row of an older page comes later -> `newer_than`: no row, if the set did not have it

A row that is gone without a trace (a line of a draft), or that was never there, has no interval that an
older page could be compared with. Its parent's set has one. Writers that note sets and writers that insert
members wait for each other (`lock`): else neither would see what the other has not committed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pinstripe.store.confirmations import KEPT_S
from pinstripe.store.ddl import literal, scope_value
from pinstripe.store.pool import Connection


async def lock_sets(connection: Connection, schema: str, *, notes: bool) -> None:
    """Wait, until the end of the transaction, for writers that note sets; with `notes`, for those that
    insert members too. To be called before any row is locked.
    """
    strength = "NO KEY UPDATE" if notes else "SHARE"
    await connection.execute(f"SELECT FROM pinstripe.sync WHERE schema = $1 FOR {strength}", schema)


async def note_sets(
    connection: Connection, schema: str, sets: Sequence[tuple[str, str, float, float]]
) -> None:
    """Note sets, in the transaction that applies them: (table of the children, parent's id, lo, hi)."""
    latest: dict[tuple[str, str], tuple[float, float]] = {}
    for child, parent, lo, hi in sets:
        known = latest.get((child, parent), (lo, hi))
        latest[child, parent] = (max(lo, known[0]), max(hi, known[1]))
    places = sorted(latest)
    await connection.execute(
        "INSERT INTO pinstripe.member_set AS m (schema, child, parent_id, as_of, as_of_latest)"
        " SELECT $1, u.child, u.parent, to_timestamp(u.lo), to_timestamp(u.hi)"
        " FROM unnest($2::text[], $3::text[], $4::float8[], $5::float8[]) AS u (child, parent, lo, hi)"
        " ON CONFLICT (schema, child, left(parent_id, 500), hashtextextended(parent_id, 0)) DO UPDATE"
        " SET as_of = greatest(m.as_of, EXCLUDED.as_of),"
        " as_of_latest = greatest(m.as_of_latest, EXCLUDED.as_of_latest),"
        " noted_at = clock_timestamp()",
        schema,
        [child for child, _ in places],
        [parent for _, parent in places],
        [latest[place][0] for place in places],
        [latest[place][1] for place in places],
    )


def newer_than(schema: str, child: str, parent: str) -> str:
    """Return SQL that joins to staged rows `s` the set `m` of their parent that they are not surely newer
    than.

    `parent`: SQL of the parent's id. What was noted before `s._known` is older than the row.
    """
    return (
        f"pinstripe.member_set m ON m.schema = {scope_value(schema)} AND m.child = {literal(child)} "
        f"AND left(m.parent_id, 500) = left({parent}, 500) "
        f"AND hashtextextended(m.parent_id, 0) = hashtextextended({parent}, 0) "
        f"AND m.as_of_latest > to_timestamp(s._lo) AND (m.noted_at <= s._known) IS NOT TRUE"
    )


async def forget_sets(connection: Connection, schema: str, loading: Collection[str]) -> None:
    """Delete sets that no page under way can contradict. Those of tables that are `loading` stay."""
    await connection.execute(
        "DELETE FROM pinstripe.member_set WHERE schema = $1 AND child <> ALL ($2::text[])"
        " AND noted_at < clock_timestamp() - make_interval(secs => $3)",
        schema,
        list(loading),
        KEPT_S,
    )
