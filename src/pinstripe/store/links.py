"""Columns that rows of other tables give: `charge.invoice_id` stands in `invoice_payment` today.

    BEGIN, locks -> rows are written -> link -> COMMIT      a batch of the mirror
    link_all                                                after the initial load, and after a migration

`catalog.moved` says which rows decide (`Rows`). They and the column commit together. Two transactions that
write one row and the row that decides it would not see each other: each first locks its ids (by hash, on
rows of `pinstripe.lock`), so the later one sees both. Rows of a table in its initial load wait
for `link_all`.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache

from pinstripe.catalog.moved import Rows
from pinstripe.catalog.tables import Column, Table, tables
from pinstripe.store import confirmations
from pinstripe.store.ddl import literal, qualified, quote
from pinstripe.store.pool import Connection
from pinstripe.store.session import account_of

Keys = Mapping[str, Collection[str]]
"""Table -> keys of its rows."""

_ORDINARY = "coalesce(d.deleted, false) = false AND "


@cache
def linked_columns(table: Table) -> tuple[Column, ...]:
    """The columns of `table` that rows of other tables give."""
    return tuple(c for c in table.all_columns if c.moved is not None and c.moved.rows)


@cache
def linked_tables() -> frozenset[str]:
    return frozenset(t.name for t in tables().values() if linked_columns(t))


@cache
def lock_columns() -> Mapping[str, frozenset[str]]:
    """Table -> its columns with the ids that a link goes by."""
    found: dict[str, set[str]] = {}
    for table in tables().values():
        for column in linked_columns(table):
            for rows in column.moved.rows if column.moved else ():
                found.setdefault(table.name, {table.key[0]}).add(rows.match[1])
                found.setdefault(rows.table, set()).add(rows.match[0])
                if rows.then is not None:
                    found.setdefault(rows.then.table, set()).add(tables()[rows.then.table].key[0])
                    found[rows.table].add(rows.take)
    return {name: frozenset(columns) for name, columns in found.items()}


def lock_numbers(ids: Iterable[str]) -> set[int]:
    """Return what stands for these ids among the locks that a transaction begins with."""
    return {zlib.crc32(one.encode()) for one in ids}


class Links:
    """The linked columns of a schema with these tables."""

    def __init__(self, schema: str, known: Mapping[str, Table]) -> None:
        self._schema = schema
        self._known = known
        self._columns = {
            name: _usable(known[name], known) for name in linked_tables() & known.keys()
        }
        self._names = {n: {n, *_deciders(cs)} for n, cs in sorted(self._columns.items()) if cs}
        self._texts: dict[tuple[str, ...], str] = {}
        self.changes = {n: _changes(schema, self._columns[n]) for n in self._names}
        """By table with linked columns: SQL of whether one of them changes in the row `t`. An UPDATE
        returns it, so that most writes need no statement for links.
        """

    def affected(self, written: Keys) -> list[str]:
        """Return the tables whose rows may change because these were written."""
        return [n for n, names in self._names.items() if not written.keys().isdisjoint(names)]

    async def link(
        self, connection: Connection, table: str, written: Keys
    ) -> list[tuple[str, str]]:
        """Give linked columns of `table` their values: in rows written, and where these decide.

        Returns (key, changes as JSON: column -> [before, after]) of each row that changed. A SELECT finds
        them, since few do, and an UPDATE opens all indexes of the table.
        """
        names = sorted(name for name in self._names[table] if written.get(name))
        if not names:
            return []
        of = (table, *names)
        if of not in self._texts:
            known = self._known[table]
            keys = " UNION ALL ".join(_affected(self._schema, known, self._columns[table], names))
            self._texts[of] = _changed_text(self._schema, known, self._columns[table], keys)
        rows = await connection.fetch(self._texts[of], *(list(written[n]) for n in names))
        if rows:
            columns = self._columns[table]
            arrays = ", ".join(f"${n}::text[]" for n, _ in enumerate(columns, start=2))
            taken = ", ".join(("key", *(quote(c.name) for c in columns)))
            typed = ", ".join(f"{quote(c.name)}::{c.type} AS {quote(c.name)}" for c in columns)
            source = f"(SELECT key, {typed} FROM unnest($1::text[], {arrays}) AS a ({taken})) AS v"
            text = _set_text(self._schema, self._known[table], columns, source)
            await connection.execute(text, *zip(*(row[2:] for row in rows), strict=True))
        return [(row[0], row[1]) for row in rows]


async def link_all(
    connection: Connection,
    schema: str,
    known: Mapping[str, Table],
    changed: Collection[str],
) -> None:
    """Like `link`, for all rows of the tables that `changed` bears on. In a transaction: it locks them.

    No writer may have these tables open meanwhile: what it has written and not committed is not seen.
    """
    for name in sorted(linked_tables() & known.keys()):
        columns = _usable(known[name], known)
        names = sorted({name, *_deciders(columns)})
        if not columns or set(changed).isdisjoint(names):
            continue
        if account_of(schema):
            # The other accounts of the platform go on: writers of this one take the lock too (`Writer`).
            await confirmations.lock_sets(connection, schema, notes=True)
        else:
            locked = ", ".join(qualified(schema, one) for one in names)
            await connection.execute(f"LOCK TABLE {locked} IN SHARE ROW EXCLUSIVE MODE")
        given = _given(schema, known[name], columns)
        text = _set_text(schema, known[name], columns, given)
        await connection.execute(f"{text} AND {_differ(columns)}")


def _usable(table: Table, known: Mapping[str, Table]) -> tuple[Column, ...]:
    """The linked columns whose deciding tables are synced too."""
    return tuple(c for c in linked_columns(table) if _is_usable(c, known))


def _is_usable(column: Column, known: Mapping[str, Table]) -> bool:
    return known.keys() >= set(_deciders([column]))


def _deciders(columns: Sequence[Column]) -> list[str]:
    """The tables whose rows decide, each once, in a fixed order."""
    found = {
        name
        for c in columns
        if c.moved is not None
        for r in c.moved.rows
        for name in (r.table, *((r.then.table,) if r.then else ()))
    }
    return sorted(found)


def _changed_text(schema: str, table: Table, columns: Sequence[Column], keys: str) -> str:
    """SELECT of (key, changes, key, value of each linked column) of the rows of which one changes.

    The values are text: Postgres has dates after the year 9999, Python has not.

    `keys`: a SELECT of the rows to consider. In an ARRAY, of which Postgres does not know the length when
    it plans, so that it keeps the plan: to plan anew for each write took 1 to 4 ms.
    """
    found = _given(schema, table, columns, f" WHERE t.{quote(table.key[0])} = ANY (ARRAY({keys}))")
    values = ", ".join(f"v.{quote(c.name)}::text" for c in columns)
    changes = " || ".join(map(_change, columns))
    return f"SELECT v.key, ({changes})::text, v.key, {values} FROM {found} WHERE {_differ(columns)}"


def _given(schema: str, table: Table, columns: Sequence[Column], where: str = "") -> str:
    """The rows `v` of (key, for each column what other rows give and what it holds).

    OFFSET 0 has each value computed once.
    """
    values = ", ".join(
        f"{_value(schema, c)} AS {quote(c.name)}, t.{quote(c.name)} AS {quote('was ' + c.name)}"
        for c in columns
    )
    source = f"{qualified(schema, table.name)} t{where}"
    return f"(SELECT t.{quote(table.key[0])} AS key, {values} FROM {source} OFFSET 0) v"


def _differ(columns: Sequence[Column]) -> str:
    after = ", ".join(f"v.{quote(c.name)}" for c in columns)
    before = ", ".join(f"v.{quote('was ' + c.name)}" for c in columns)
    return f"ROW({before}) IS DISTINCT FROM ROW({after})"


def _changes(schema: str, columns: Sequence[Column]) -> str:
    held = ", ".join(f"t.{quote(c.name)}" for c in columns)
    given = ", ".join(_value(schema, c) for c in columns)
    return f"ROW({held}) IS DISTINCT FROM ROW({given})"


def _set_text(schema: str, table: Table, columns: Sequence[Column], source: str) -> str:
    """UPDATE of the linked columns from the rows `v` of `source`.

    A row of this transaction keeps its `_synced_at`; any other one gets a new one, since it changes now.
    """
    sets = ", ".join(f"{quote(c.name)} = v.{quote(c.name)}" for c in columns)
    return (
        f"UPDATE {qualified(schema, table.name)} AS t SET {sets}, _synced_at = "
        f"CASE WHEN t._synced_at >= now() THEN t._synced_at ELSE clock_timestamp() END\n"
        f"FROM {source} WHERE t.{quote(table.key[0])} = v.key"
    )


def _change(column: Column) -> str:
    name, was = f"v.{quote(column.name)}", f"v.{quote('was ' + column.name)}"
    pair = f"jsonb_build_object({literal(column.name)}, jsonb_build_array({was}, {name}))"
    return f"CASE WHEN {was} IS DISTINCT FROM {name} THEN {pair} ELSE '{{}}' END"


def linked_value(schema: str, column: Column, known: Mapping[str, Table]) -> str | None:
    """What rows of the tables `known` say of a column that Stripe sends too, as SQL on the row `t`. Where
    several rows could give it, the one that gave what the row holds counts.
    """
    if column.moved is None or not _is_usable(column, known):
        return None
    values = [_picked(schema, rows, held=f"t.{quote(column.name)}") for rows in column.moved.rows]
    return f"coalesce({', '.join(values)})" if values else None


def _value(schema: str, column: Column) -> str:
    """What the object says of it today, else the deciding rows, else what an older version said."""
    if column.moved is None:
        return "NULL"
    values = [_picked(schema, rows) for rows in column.moved.rows]
    if column.path:
        # Not the rows first: a charge may have two disputes, and names one of them.
        values.insert(0, f"t.{quote(column.name)}")
    else:
        values += [_earlier(column, place) for place in column.moved.was]
    return f"coalesce({', '.join(values)})"


def _earlier(column: Column, place: str) -> str:
    """The value of a field that an older API version had, from `_extra`; null if it is of another type."""
    path = literal(f"{{{place.replace('.', ',')}}}")
    node, text = f"(t._extra #> {path})", f"(t._extra #>> {path})"
    if column.read == "id":
        return f"CASE jsonb_typeof({node}) WHEN 'string' THEN {text} ELSE {node} ->> 'id' END"
    # Unix seconds of 12 digits are in a year that timestamptz knows.
    moment = f"to_timestamp({text}::double precision)"
    return f"CASE WHEN {text} ~ '^-?[0-9]{{1,12}}$' THEN {moment} END"


def _picked(schema: str, rows: Rows, *, held: str = "") -> str:
    """The value of the first row that decides; `held`: SQL of a value that is preferred."""
    their, own = rows.match
    taken, source = f"d.{quote(rows.take)}", f"{qualified(schema, rows.table)} d"
    if rows.then is not None:
        then = tables()[rows.then.table]
        source += f" JOIN {qualified(schema, then.name)} e ON e.{quote(then.key[0])} = {taken}"
        taken = f"e.{quote(rows.then.take)}"
    order = ", ".join(
        f"d.{quote(name.lstrip('-'))}{' DESC NULLS LAST' if name[0] == '-' else ''}"
        for name in rows.order
    )
    if held:
        order = f"({taken} IS NOT DISTINCT FROM {held}) DESC, {order}"
    alive = _ORDINARY if tables()[rows.table].deletable else ""
    return (
        f"(SELECT {taken} FROM {source} WHERE d.{quote(their)} = t.{quote(own)} AND {alive}"
        f"{taken} IS NOT NULL ORDER BY {order} LIMIT 1)"
    )


def _affected(
    schema: str, table: Table, columns: Sequence[Column], names: Sequence[str]
) -> Iterator[str]:
    """SELECTs of the keys of `table` on which rows of the tables `names` bear. $1, $2, ...: their keys."""
    at = {name: f"unnest(${i + 1}::text[])" for i, name in enumerate(names)}
    key = table.key[0]
    if table.name in at:
        yield f"SELECT {at[table.name]}"
    ways = {(r.match, r.table, r.take, r.then) for c in columns if c.moved for r in c.moved.rows}
    for (their, own), name, take, then in sorted(ways, key=repr):
        chosen = [(quote(tables()[name].key[0]), name)]
        if then is not None:
            chosen.append((quote(take), then.table))
        for column, by in chosen:
            source = f"{qualified(schema, name)} d"
            taken = f"d.{quote(their)}"
            if own != key:
                source += f" JOIN {qualified(schema, table.name)} o ON o.{quote(own)} = {taken}"
                taken = f"o.{quote(key)}"
            if by in at:
                yield f"SELECT {taken} FROM {source} WHERE d.{column} = ANY (ARRAY(SELECT {at[by]}))"
