"""Orphans: rows that a complete nested list no longer contains, such as a removed subscription item.

All entries of a complete list were just written or confirmed, so they are known to be as new as the
snapshot. A row of the same parent that is surely older is gone. Rows of tables that have `deleted` are
flagged; others (lines of draft invoices) are deleted, since Stripe keeps nothing of them either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache

from pinstripe.catalog.tables import Table, object_type_of, table_name, tables
from pinstripe.mirror.upsert import key_text
from pinstripe.rows.as_of import Cause
from pinstripe.rows.extract import Row
from pinstripe.rows.layout import TAIL, Shapes
from pinstripe.store.confirmations import key_hash, of_keys
from pinstripe.store.ddl import literal, qualified, quote
from pinstripe.store.pool import Connection


@dataclass(frozen=True, slots=True)
class CompleteList:
    """A list whose end was reached, in a snapshot of [lo, hi). `cause`: what made Stripe change it."""

    lo: float
    hi: float
    cause: Cause | None = None


Parents = dict[str, CompleteList]
"""By the id of the parent whose list it is."""

ENTRIES_GO = frozenset({"entitlements_active_entitlement", "line_item"})
"""Not deletable at Stripe, but removed when a subscription ends or a draft invoice changes."""


@cache
def children_of(place: str) -> tuple[str, ...]:
    """Return the tables whose rows the list at "table.field" can lose; none if lists share their rows."""
    table, _, name = place.partition(".")
    fields = object_type_of(tables()[table]).fields
    lists = [f for f in fields if f.kind == "list"]
    found: list[str] = []
    for field in lists:
        for target in field.targets if field.name == name else ():
            child = table_name(target)
            shared = sum(target in f.targets for f in lists) > 1
            if child in tables() and not shared and may_go(tables()[child], table):
                found.append(child)
    return tuple(found)


def may_go(child: Table, parent: str) -> bool:
    """Return whether rows of this child table can disappear from a list of their parent."""
    can_go = child.deletable or child.name in ENTRIES_GO
    return parent_column(child, parent) is not None and can_go


@cache
def parent_column(child: Table, parent: str) -> str | None:
    """Return the column of `child` that names its parent; None if none or several do."""
    named = [c.name for c in child.columns if c.references == (parent,) and len(c.path) <= 1]
    return named[0] if len(named) == 1 else None


async def find_orphans(
    connection: Connection, schema: str, lists: Sequence[tuple[Table, str, Parents]]
) -> list[tuple[Table, Mapping[str, CompleteList]]]:
    """Return the orphans of each child table that has any: key -> the list that proves it.

    `lists`: child tables, each with its parent's table and the parents whose lists were complete.
    """
    texts: list[str] = []
    values: list[object] = []
    for child, parent, owners in lists:
        column = parent_column(child, parent)
        if column is None:
            continue
        alive = " AND c.deleted IS NOT TRUE" if _flag(child) >= 0 else ""
        at = len(values)
        texts.append(
            f"SELECT '{child.name}', '{parent}', c.{quote(child.key[0])}, c.{quote(column)} "
            f"FROM {qualified(schema, child.name)} c "
            f"JOIN unnest(${at + 1}::text[], ${at + 2}::float8[]) AS p (id, lo) "
            f"ON c.{quote(column)} = p.id WHERE c._as_of_latest <= to_timestamp(p.lo){alive} "
            f"AND NOT EXISTS (SELECT FROM ("
            f"{of_keys(literal(schema), literal(child.name), f'to_timestamp(${at + 3}::float8)')}"
            f") k WHERE k.key = {key_hash(key_text(child, 'c'))} "
            f"AND k.as_of_latest > to_timestamp(p.lo))"
        )
        moments = [proof.lo for proof in owners.values()]
        values += [list(owners), moments, min(moments)]
    if not texts:
        return []
    gone: dict[tuple[str, str], dict[str, CompleteList]] = {}
    owners_of = {(child.name, parent): owners for child, parent, owners in lists}
    for child_name, parent, key, owner in await connection.fetch(
        " UNION ALL ".join(texts), *values
    ):
        gone.setdefault((child_name, parent), {})[key] = owners_of[child_name, parent][owner]
    return [(c, gone[c.name, parent]) for c, parent, _ in lists if (c.name, parent) in gone]


async def not_in_list(
    connection: Connection, schema: str, child: Table, owner: tuple[str, str], listed: Set[str]
) -> list[str]:
    """Return the keys of a parent's rows (its table, its key) that are not among `listed`.

    They may still exist: the list may be older than they are.
    """
    column = parent_column(child, owner[0])
    if column is None:
        return []
    alive = " AND c.deleted IS NOT TRUE" if _flag(child) >= 0 else ""
    key = f"c.{quote(child.key[0])}"
    rows = await connection.fetch(
        f"SELECT {key} FROM {qualified(schema, child.name)} c "
        f"WHERE c.{quote(column)} = $1 AND {key} <> ALL ($2::text[]){alive} ORDER BY 1",
        owner[1],
        list(listed),
    )
    return [row[0] for row in rows]


def tombstones(
    child: Table, shapes: Shapes, keys: Mapping[str, CompleteList]
) -> dict[str, Row] | None:
    """Return rows that flag these keys as deleted; None if the table has no `deleted`."""
    at = _flag(child)
    if at < 0:
        return None
    shape = shapes.number(child.name, (child.key[0], "deleted"))
    found: dict[str, Row] = {}
    for key, proof in keys.items():
        row: Row = [None] * (len(child.columns) + TAIL)
        row[0], row[at], row[-2], row[-1] = key, True, True, shape
        row[-5], row[-4] = proof.lo, proof.hi
        found[key] = row
    return found


def gone(child: Table) -> str:
    """Return the condition that picks rows by key, for `delete_rows`. $1: the keys."""
    return f"t.{quote(child.key[0])} = ANY($1::text[])"


def _flag(child: Table) -> int:
    names: Sequence[str] = [c.name for c in child.columns if c.read == "deleted"]
    return [c.name for c in child.columns].index(names[0]) if names else -1
