"""Sets: what the complete list of a parent says of rows that it does not show, such as a removed item.

    a member that the set does not show:  surely older than the set -> gone
                                          surely newer              -> stays
                                          neither                   -> the set is requested once more
    a row that is new, of a parent whose set was noted (`store.confirmations`) and did not have it:
                                          surely older than the set -> not inserted
                                          neither                   -> the set is requested once more

A set comes from a list inside an object, from such a list that was followed to its end, or from a list by
parent. Rows of tables that have `deleted` are flagged; others (lines of draft invoices) are deleted, since
Stripe keeps nothing of them either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from pinstripe.catalog.endpoints import list_endpoints
from pinstripe.catalog.tables import Table, object_type_of, table_name, tables
from pinstripe.client.response import Cause
from pinstripe.mirror.upsert import EVENT_S, key_text, same_row, stage, stored
from pinstripe.rows.extract import MemberSet, Row, RowKey
from pinstripe.rows.layout import TAIL, Shapes
from pinstripe.store.confirmations import key_hash, newer_than, of_keys
from pinstripe.store.ddl import literal, qualified, quote, scope_value
from pinstripe.store.pool import Connection


@dataclass(frozen=True, slots=True)
class SetFact:
    """The members in one child table of one parent's list, as a snapshot of [lo, hi) showed them.

    `cause`, `known_until`: see `AsOf`.
    """

    child: str
    parent: str
    parent_id: str
    members: frozenset[str]
    lo: float
    hi: float
    cause: Cause | None = None
    known_until: datetime | None = None

    @property
    def is_of_event(self) -> bool:
        return self.hi - self.lo <= EVENT_S


@dataclass(frozen=True, slots=True)
class Doubt:
    """A set that has to be requested once more: of the child table, the parent's table and its id.

    `cause`: of the row that contradicts it. In its initial load a set without one is not applied.
    """

    child: str
    parent: str
    parent_id: str
    cause: Cause | None = None


ENTRIES_GO = frozenset({"entitlements_active_entitlement", "line_item"})
"""Not deletable at Stripe, but removed when a subscription ends or a draft invoice changes. (The items of a
draft quote are replaced too, but share their table with those that it computes.)"""


def children_of(told: MemberSet) -> tuple[str, ...]:
    """Return the tables whose rows this list can lose; none if lists of the parent share their rows."""
    if not told.field:
        return tuple(
            c for c in told.children if c in tables() and may_go(tables()[c], told.parent_table)
        )
    return _nested_children(told.parent_table, told.field)


@cache
def _nested_children(table: str, name: str) -> tuple[str, ...]:
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


@cache
def list_field(parent: str, child: str) -> str:
    """Return the field of a parent's objects that lists the rows of `child`; "" if none or several do."""
    known = tables().get(parent)
    fields = object_type_of(known).fields if known is not None else ()
    named = [f.name for f in fields if f.kind == "list" and child in map(table_name, f.targets)]
    return named[0] if len(named) == 1 else ""


@cache
def parents_of(child: str) -> tuple[tuple[str, str], ...]:
    """Return (table, column of `child`) of the parents whose lists can lose rows of `child`."""
    listed = {
        table.name
        for table in tables().values()
        for field in object_type_of(table).fields
        if field.kind == "list" and child in _nested_children(table.name, field.name)
    }
    listed |= {
        endpoint.parent_table
        for endpoint in list_endpoints()
        if endpoint.parent and child in endpoint.tables
    }
    known = tables()[child]
    return tuple(
        (parent, column)
        for parent in sorted(listed)
        if may_go(known, parent) and (column := parent_column(known, parent)) is not None
    )


def may_go(child: Table, parent: str) -> bool:
    """Return whether rows of this child table can disappear from a list of their parent."""
    can_go = child.deletable or child.name in ENTRIES_GO
    return parent_column(child, parent) is not None and can_go


def parent_column(child: Table, parent: str) -> str | None:
    """Return the column of `child` that names its parent; None if none or several do."""
    named = [
        c.name
        for c in child.columns
        if c.references == (parent,) and len(c.path) <= 1 and not c.is_derived
    ]
    return named[0] if len(named) == 1 else None


async def find_unlisted(
    connection: Connection, schema: str, child: Table, parent: str, facts: Sequence[SetFact]
) -> tuple[dict[str, SetFact], list[SetFact]]:
    """Return the rows that are gone (key -> the set that proves it), and the sets that are in doubt."""
    column = parent_column(child, parent)
    if column is None or not facts:
        return {}, []
    alive = " AND c.deleted IS NOT TRUE" if _flag(child) >= 0 else ""
    key = f"c.{quote(child.key[0])}"
    seen_since = of_keys(scope_value(schema), literal(child.name), "to_timestamp($8::float8)")
    rows = await connection.fetch(
        # What was not written since the set was made known is older than it; so is what was true before
        # it, unless a later snapshot has shown it.
        f"SELECT {key}, p.n, (c._synced_at <= p.known OR c._as_of_latest <= to_timestamp(p.lo))"
        f" AND NOT EXISTS (SELECT FROM ({seen_since}) k WHERE k.key = {key_hash(key_text(child, 'c'))}"
        "   AND k.as_of_latest > to_timestamp(p.lo) AND (k.noted_at <= p.known) IS NOT TRUE) "
        "FROM unnest($1::int[], $2::text[], $3::float8[], $4::float8[], $5::timestamptz[])"
        f" AS p (n, id, lo, hi, known) JOIN {qualified(schema, child.name)} c ON c.{quote(column)} = p.id "
        f"WHERE (c._as_of < to_timestamp(p.hi) OR c._synced_at <= p.known){alive} AND NOT EXISTS ("
        f"SELECT FROM unnest($6::int[], $7::text[]) AS m (n, id) WHERE m.n = p.n AND m.id = {key})",
        list(range(len(facts))),
        [f.parent_id for f in facts],
        [f.lo for f in facts],
        [f.hi for f in facts],
        [f.known_until for f in facts],
        [n for n, f in enumerate(facts) for _ in f.members],
        [key for f in facts for key in f.members],
        min(f.lo for f in facts),
    )
    gone: dict[str, SetFact] = {}
    doubted: dict[int, SetFact] = {}
    for found, number, is_gone in rows:
        if is_gone:
            gone[found] = facts[number]
        else:
            doubted[number] = facts[number]
    return gone, [f for f in doubted.values() if f.parent_id]


async def find_removed(
    connection: Connection, schema: str, child: Table, causes: Mapping[RowKey, Cause]
) -> tuple[set[str], list[Doubt]]:
    """Return the staged rows of `child` that must not be inserted, and the sets that are in doubt.

    A read that may be older than the set is not believed; an event is, and the answer to a write, which no
    event caused, until the set is known.
    """
    texts = [
        f"SELECT s.{quote(child.key[0])}, to_timestamp(s._hi) <= m.as_of, "
        f"s._hi - s._lo <= {EVENT_S}, '{parent}', s.{quote(column)} FROM {stage(child.name)} s "
        f"JOIN {newer_than(schema, child.name, f's.{quote(column)}')} "
        f"WHERE NOT EXISTS (SELECT FROM {stored(schema, child)} t WHERE {same_row(schema, child)})"
        for parent, column in parents_of(child.name)
    ]
    left_out: set[str] = set()
    doubts: dict[tuple[str, str], Doubt] = {}
    rows = await connection.fetch(" UNION ALL ".join(texts))
    for key, is_older, is_of_event, parent, parent_id in rows:
        known, cause = doubts.get((parent, parent_id)), causes.get((child.name, key))
        is_of_write = cause is not None and not cause.event_id
        if is_older or not (is_of_event or is_of_write):
            left_out.add(key)
        if not is_older:
            cause = cause or (known.cause if known else None)
            doubts[parent, parent_id] = Doubt(child.name, parent, parent_id, cause)
    return left_out, list(doubts.values())


def tombstones(child: Table, shapes: Shapes, keys: Mapping[str, SetFact]) -> dict[str, Row] | None:
    """Return rows that flag these keys as deleted; None if the table has no `deleted`."""
    at = _flag(child)
    if at < 0:
        return None
    shape = shapes.number(child.name, (child.key[0], "deleted"))
    found: dict[str, Row] = {}
    for key, proof in keys.items():
        row: Row = [None] * (len(child.columns) + TAIL)
        row[0], row[at], row[-2], row[-1] = key, True, True, shape
        row[-5], row[-4], row[-3] = proof.lo, proof.hi, proof.known_until
        found[key] = row
    return found


def gone(child: Table) -> str:
    """Return the condition that picks rows by key, for `delete_rows`. $1: the keys."""
    return f"t.{quote(child.key[0])} = ANY($1::text[])"


def _flag(child: Table) -> int:
    """Return the place of the column `deleted`; -1 if the table has none."""
    return next((at for at, column in enumerate(child.columns) if column.read == "deleted"), -1)
