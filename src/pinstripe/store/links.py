"""Columns that rows of other tables give: `charge.invoice_id` stands in `invoice_payment` today.

    BEGIN, locks -> rows are written -> link -> COMMIT      a batch of the mirror
    link_all                                                after the initial load, and after a migration

`catalog.moved` says which rows decide (`Rows`). They and the column commit together. Two transactions that
write one row and the row that decides it would not see each other: each first locks its ids (by hash, on
rows of `pinstripe.lock`), so the later one sees both. Rows of a table in its initial load wait
for `link_all`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache

import structlog

from pinstripe.catalog.moved import Rows
from pinstripe.catalog.tables import Column, Table, tables
from pinstripe.errors import Drifted
from pinstripe.store import confirmations
from pinstripe.store.ddl import literal, qualified, quote
from pinstripe.store.pool import Connection, translated
from pinstripe.store.session import account_of

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Known = Mapping[str, Table]

_ORDINARY = "coalesce(d.deleted, false) = false AND "


@cache
def linked_columns(table: Table) -> tuple[Column, ...]:
    """The columns of `table` that rows of other tables give."""
    return tuple(c for c in table.all_columns if c.moved is not None and c.moved.rows)


@cache
def linked_tables() -> frozenset[str]:
    return frozenset(t.name for t in tables().values() if linked_columns(t))


class Links:
    """The linked columns of a schema with these tables."""

    def __init__(self, schema: str, known: Known) -> None:
        self._schema = schema
        self._known = known
        usable = {name: _usable(known[name], known) for name in linked_tables() & known.keys()}
        self._columns = {name: columns for name, columns in sorted(usable.items()) if columns}
        self._deciding = [
            (name, r) for name, cs in self._columns.items() for c in cs for r in _synced(c, known)
        ]
        """(table with a linked column, what decides it)."""
        self._texts: dict[str, tuple[str, str]] = {}
        """By table with linked columns: the SELECT and the UPDATE of `link`."""
        self.ids = self._ids()
        """By table of both kinds, places in its rows: those of the ids that a link goes by."""
        self.unlinked = {name: self._unlinked(known[name]) for name in self.ids}
        """By table of both kinds: (tables to link, SQL of an array of ids to link their rows by) of the row
        `t`, just written. The write returns the ids, mostly none: then no statement for links follows.
        """

    def _ids(self) -> dict[str, list[int]]:
        found: dict[str, set[str]] = {name: set() for name in self._columns}
        for name, rows in self._deciding:
            found[name] |= {self._known[name].key[0], rows.match[1]}
            found.setdefault(rows.table, set()).add(rows.match[0])
            if rows.then is not None:
                then = self._known[rows.then.table]
                found.setdefault(then.name, set()).add(then.key[0])
                found[rows.table].add(rows.take)
        return {
            name: [at for at, c in enumerate(self._known[name].columns) if c.name in ids]
            for name, ids in found.items()
        }

    def _unlinked(self, table: Table) -> list[tuple[list[str], str]]:
        key, found = quote(table.key[0]), []
        if columns := self._columns.get(table.name):
            differ = " OR ".join(_may_differ(self._schema, c, self._known) for c in columns)
            found.append(([table.name], f"CASE WHEN {differ} THEN ARRAY[t.{key}] END"))
        ids, bearing, targets = set(), set(), set()
        for name, rows in self._deciding:
            if rows.table == table.name:
                ids.add(rows.match[0])
                bearing |= {rows.match[0], rows.take, *(one.lstrip("-") for one in rows.order)}
            elif rows.then is not None and rows.then.table == table.name:
                ids.add(table.key[0])
                bearing.add(rows.then.take)
            else:
                continue
            targets.add(name)
        if table.deletable:
            bearing.add("deleted")
        if targets:
            same = " AND ".join(
                f"d.{n} IS NOT DISTINCT FROM t.{n}" for n in sorted(map(quote, bearing))
            )
            was, now = (", ".join(f"{row}.{quote(one)}" for one in sorted(ids)) for row in "dt")
            # The statement that writes a row still sees it as it was: `d`.
            before = f"FROM {qualified(self._schema, table.name)} d WHERE d.{key} = t.{key}"
            changed = f"SELECT CASE WHEN {same} THEN '{{}}' ELSE ARRAY[{was}, {now}] END {before}"
            found.append((sorted(targets), f"coalesce(({changed}), ARRAY[{now}])"))
        return found

    def _affected(self, table: Table) -> str:
        """SELECT of the keys of `table` for the ids $1: of its own, or of others that a link goes by."""
        given, key = "ANY (ARRAY(SELECT unnest($1::text[])))", quote(table.key[0])
        found = {"SELECT unnest($1::text[])": None}
        for rows in (rows for name, rows in self._deciding if name == table.name):
            their, own = map(quote, rows.match)
            source = f"SELECT o.{key} FROM {qualified(self._schema, table.name)} o"
            if own != key:
                found[f"{source} WHERE o.{own} = {given}"] = None
            if rows.then is not None:
                joined = f"{qualified(self._schema, rows.table)} d ON d.{their} = o.{own}"
                found[f"{source} JOIN {joined} WHERE d.{quote(rows.take)} = {given}"] = None
        return " UNION ALL ".join(found)

    async def link(
        self, connection: Connection, table: str, ids: Collection[str]
    ) -> list[tuple[str, str]]:
        """Give linked columns of `table` their values, in the rows to which these ids lead.

        Returns (key, changes as JSON: column -> [before, after]) of each row that changed. A SELECT finds
        them, since few do, and an UPDATE opens all indexes of the table.
        """
        if table not in self._texts:
            self._texts[table] = self._link_texts(self._known[table])
        changed, update = self._texts[table]
        rows = await connection.fetch(changed, list(ids))
        if rows:
            await connection.execute(update, *zip(*(row[2:] for row in rows), strict=True))
        return [(row[0], row[1]) for row in rows]

    def _link_texts(self, table: Table) -> tuple[str, str]:
        columns = self._columns[table.name]
        arrays = ", ".join(f"${n}::text[]" for n, _ in enumerate(columns, start=2))
        taken = ", ".join(("key", *(quote(c.name) for c in columns)))
        typed = ", ".join(f"{quote(c.name)}::{c.type} AS {quote(c.name)}" for c in columns)
        source = f"(SELECT key, {typed} FROM unnest($1::text[], {arrays}) AS a ({taken})) AS v"
        changed = _changed_text(self._schema, self._known, table, columns, self._affected(table))
        return changed, _set_text(self._schema, table, columns, source)


async def link_all(
    connection: Connection, schema: str, known: Known, changed: Collection[str]
) -> None:
    """Like `link`, for all rows of the tables that `changed` bears on. In a transaction: it locks them.

    No writer may have these tables open meanwhile: what it has written and not committed is not seen.
    """
    for name in sorted(linked_tables() & known.keys()):
        columns = _usable(known[name], known)
        rows = [r for c in columns for r in _synced(c, known)]
        names = sorted({name} | {one.table for r in rows for one in (r, r.then) if one})
        if not columns or set(changed).isdisjoint(names):
            continue
        if account_of(schema):
            # The other accounts of the platform go on: writers of this one take the lock too (`Writer`).
            await confirmations.lock_sets(connection, schema, notes=True)
        else:
            locked = ", ".join(qualified(schema, one) for one in names)
            await connection.execute(f"LOCK TABLE {locked} IN SHARE ROW EXCLUSIVE MODE")
        given = _given(schema, known, known[name], columns)
        text = _set_text(schema, known[name], columns, given)
        try:
            with translated():
                async with connection.transaction():
                    await connection.execute(f"{text} AND {_differ(columns)}")
        except Drifted as error:  # As in a batch: the columns keep their values.
            _log.warning("links.not_linked", table=name, error=error.message)


def _usable(table: Table, known: Known) -> tuple[Column, ...]:
    """The linked columns that something gives a value: a deciding table that is synced, or `was`."""
    return tuple(c for c in linked_columns(table) if link_of("", c, known))


def _rows(column: Column) -> tuple[Rows, ...]:
    return column.moved.rows if column.moved is not None else ()


def _synced(column: Column, known: Known) -> list[Rows]:
    """The rows that decide, of tables that are synced."""
    return [r for r in _rows(column) if r.table in known and (not r.then or r.then.table in known)]


def _changed_text(
    schema: str, known: Known, table: Table, columns: Sequence[Column], keys: str
) -> str:
    """SELECT of (key, changes, key, value of each linked column) of the rows of which one changes.

    The values are text: Postgres has dates after the year 9999, Python has not.

    `keys`: a SELECT of the rows to consider. In an ARRAY, of which Postgres does not know the length when
    it plans, so that it keeps the plan: to plan anew for each write took 1 to 4 ms.
    """
    where = f" WHERE t.{quote(table.key[0])} = ANY (ARRAY({keys}))"
    found = _given(schema, known, table, columns, where)
    values = ", ".join(f"v.{quote(c.name)}::text" for c in columns)
    changes = " || ".join(map(_change, columns))
    return f"SELECT v.key, ({changes})::text, v.key, {values} FROM {found} WHERE {_differ(columns)}"


def _given(
    schema: str, known: Known, table: Table, columns: Sequence[Column], where: str = ""
) -> str:
    """The rows `v` of (key, for each column what other rows give and what it holds).

    OFFSET 0 has each value computed once.
    """
    values = ", ".join(
        f"{_value(schema, c, known)} AS {quote(c.name)}, t.{quote(c.name)} AS {quote('was ' + c.name)}"
        for c in columns
    )
    source = f"{qualified(schema, table.name)} t{where}"
    return f"(SELECT t.{quote(table.key[0])} AS key, {values} FROM {source} OFFSET 0) v"


def _differ(columns: Sequence[Column]) -> str:
    after = ", ".join(f"v.{quote(c.name)}" for c in columns)
    before = ", ".join(f"v.{quote('was ' + c.name)}" for c in columns)
    return f"ROW({before}) IS DISTINCT FROM ROW({after})"


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


def link_of(schema: str, column: Column, known: Known) -> str | None:
    """What a linked column of the row `t` has to hold, as SQL; None where nothing gives it a value."""
    usable = column.moved is not None and (column.moved.was or _synced(column, known))
    return _value(schema, column, known) if usable else None


def linked_value(schema: str, column: Column, known: Known) -> str | None:
    """What rows of the tables `known` say of a column that Stripe sends too, as SQL on the row `t`. Where
    several rows could give it, the one that gave what the row holds counts.
    """
    if len(_synced(column, known)) < len(_rows(column)):
        return None
    values = [_picked(schema, rows, held=f"t.{quote(column.name)}") for rows in _rows(column)]
    return f"coalesce({', '.join(values)})" if values else None


def _value(schema: str, column: Column, known: Known) -> str:
    """What the object says of it today, else the deciding rows, else what an older version said, else, if
    not all tables that decide are synced, what they gave it when they were.
    """
    held, rows = f"t.{quote(column.name)}", _synced(column, known)
    values = [_picked(schema, one) for one in rows]
    if column.path:
        # Not the rows first: a charge may have two disputes, and names one of them.
        values.insert(0, held)
    elif column.moved is not None:
        values += [_earlier(column, place) for place in column.moved.was]
    if len(rows) < len(_rows(column)):
        values.append(held)
    return f"coalesce({', '.join(values)})"


def _may_differ(schema: str, column: Column, known: Known) -> str:
    """Whether the row `t` holds something else than `_value`, or rows that decide differ: to sort those
    takes Postgres longer than all the rest.
    """
    held, rows = f"t.{quote(column.name)}", _synced(column, known)
    found = [_picked(schema, one, unlike=held) for one in rows]
    if column.path:
        found.insert(0, f"CASE WHEN {held} IS NOT NULL THEN false END")
    elif column.moved is not None:
        was = [_earlier(column, place) for place in column.moved.was]
        found += [f"CASE WHEN {w} IS NOT NULL THEN {w} IS DISTINCT FROM {held} END" for w in was]
    found.append("false" if len(rows) < len(_rows(column)) else f"{held} IS NOT NULL")
    return f"coalesce({', '.join(found)})"


def _earlier(column: Column, place: str) -> str:
    """The value of a field that an older API version had, from `_extra`; null if it is of another type."""
    path = literal(f"{{{place.replace('.', ',')}}}")
    node, text = f"(t._extra #> {path})", f"(t._extra #>> {path})"
    if column.read == "id":
        return f"CASE jsonb_typeof({node}) WHEN 'string' THEN {text} ELSE {node} ->> 'id' END"
    # Unix seconds of 12 digits are in a year that timestamptz knows.
    moment = f"to_timestamp({text}::double precision)"
    return f"CASE WHEN {text} ~ '^-?[0-9]{{1,12}}$' THEN {moment} END"


def _picked(schema: str, rows: Rows, *, held: str = "", unlike: str = "") -> str:
    """The value of the first row that decides; `held`: SQL of a value that is preferred. With `unlike`:
    whether one of them gives another value than that, null if none decides.
    """
    their, own = rows.match
    taken, source = f"d.{quote(rows.take)}", f"{qualified(schema, rows.table)} d"
    if rows.then is not None:
        then = tables()[rows.then.table]
        source += f" JOIN {qualified(schema, then.name)} e ON e.{quote(then.key[0])} = {taken}"
        taken = f"e.{quote(rows.then.take)}"
    alive = _ORDINARY if tables()[rows.table].deletable else ""
    source += f" WHERE d.{quote(their)} = t.{quote(own)} AND {alive}{taken} IS NOT NULL"
    if unlike:
        return f"(SELECT bool_or({taken} IS DISTINCT FROM {unlike}) FROM {source})"
    down = {name: " DESC NULLS LAST" if name[0] == "-" else "" for name in rows.order}
    order = ", ".join(f"d.{quote(name.lstrip('-'))}{way}" for name, way in down.items())
    if held:
        order = f"({taken} IS NOT DISTINCT FROM {held}) DESC, {order}"
    return f"(SELECT {taken} FROM {source} ORDER BY {order} LIMIT 1)"
