"""Erases the personal data of a customer: rows, events, the change feed; and remembers that it is so.

    erase -> note the objects -> wait for open transactions -> clean rows, events, feed -> certificate

The objects of a customer are found by references, in both directions: what refers to the customer or to
one of their objects (a refund to a charge), and what only they refer to (the card of a charge). They are
noted first, in `pinstripe.erased`, and every writer looks at the count of erasures before it commits
(`check_erasures`). So a snapshot that was fetched earlier, or comes years later, brings nothing back.

Out of reach: dead rows until VACUUM, the WAL, standbys and backups; see `scrub`.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import structlog

from pinstripe.catalog.personal import review
from pinstripe.catalog.tables import LOGS, Column, Table, table_of_object
from pinstripe.errors import ErasedMeanwhile, Misconfigured, Unreachable
from pinstripe.rows.personal import ERASER, NOBODYS, OWNED, Erased, is_shared
from pinstripe.store.changes import NewChange, write_changes
from pinstripe.store.ddl import like, literal, qualified, quote
from pinstripe.store.pool import Connection, translated
from pinstripe.store.rewrite import existing_tables, rewrite, rewrite_feed
from pinstripe.store.session import SCOPES_OF, schema_of

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_IDS = 1000
_WAIT_S = 60.0
_NAMED_IN_TEXT = frozenset({"related_customer"})
"""Texts that hold the id of a customer under another name than the object's."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """The certificate. `rows`: rows erased so far, by table, with "event" and "change" among them."""

    customer: str
    objects: int
    rows: Mapping[str, int] = field(default_factory=dict)


async def check_erasures(connection: Connection, *, schema: str, erased: Erased) -> None:
    """For `Mirror.always`: raises ErasedMeanwhile after loading erasures that `erased` does not know."""
    version = await connection.fetchval(
        "SELECT erasures FROM pinstripe.sync WHERE schema = $1", schema
    )
    if (version or 0) != erased.version:
        await load_erased(connection, schema, erased)
        raise ErasedMeanwhile("A customer was erased meanwhile.")


async def load_erased(connection: Connection, schema: str, erased: Erased) -> None:
    """Load the ids of all erased objects."""
    with translated():
        rows = await connection.fetch(
            "SELECT s.erasures, e.id FROM pinstripe.sync s LEFT JOIN pinstripe.erased e USING (schema)"
            " WHERE s.schema = $1",
            schema,
        )
    erased.ids.update(row[1] for row in rows if row[1] is not None)
    erased.version = rows[0][0] if rows else 0


async def note_erased(
    connection: Connection, *, schema: str, places: Sequence[tuple[str, str]]
) -> None:
    """Remember rows as an erased customer's, and have every writer load them. Part of a transaction."""
    await connection.execute(
        'INSERT INTO pinstripe.erased (schema, "table", id)'
        " SELECT $1, u.t, u.i FROM unnest($2::text[], $3::text[]) AS u (t, i) ON CONFLICT DO NOTHING",
        schema,
        [table for table, _ in places],
        [key for _, key in places],
    )
    await connection.execute(
        "UPDATE pinstripe.sync SET erasures = erasures + 1 WHERE schema = $1", schema
    )


async def find_objects(connection: Connection, schema: str, customer: str) -> dict[str, set[str]]:
    """The rows of a customer, table -> keys, events left out. Reads only.

    Raises Misconfigured if the schema knows no such customer.
    """
    there = await existing_tables(connection, schema)
    tables = {
        name: table
        for name, table in there.items()
        if table.object_type not in review().types.names and name not in LOGS | NOBODYS
    }
    found: dict[str, set[str]] = {}
    fresh = {("customer", customer)}
    if "event" in there:
        fresh |= await _detached(connection, schema, tables, customer)
    while fresh:
        for name, key in fresh:
            found.setdefault(name, set()).add(key)
        # One id can be the key of rows in several tables: a subscription's, and its upcoming invoice's.
        more = await _referred(connection, schema, tables, fresh)
        ids = sorted({key for _, key in fresh})
        for table in tables.values():
            keys = await _referring(connection, schema, table, ids)
            more |= {(table.name, key) for key in keys}
        fresh = {(name, key) for name, key in more if key not in found.get(name, ())}
    for name, key in await _gone(connection, schema, found):
        if name in tables:
            found.setdefault(name, set()).add(key)
    await _check_known(connection, schema, tables, found, customer)
    return found


async def erase(connection: Connection, schema: str, customer: str, *, reason: str) -> Erasure:
    """Erase a customer. To repeat it is harmless, and finds what came since.

    Raises Misconfigured if the schema knows no such customer, Unreachable if another session keeps a
    transaction open: what it writes could not be seen.
    """
    found = await find_objects(connection, schema, customer)
    tables = await existing_tables(connection, schema)
    noted = await _note(connection, schema, tables, found)
    await _wait_for_writers(connection, noted)
    # What a writer committed meanwhile.
    for name, keys in (await find_objects(connection, schema, customer)).items():
        found.setdefault(name, set()).update(keys)
    await _note(connection, schema, tables, found)
    with translated():
        old = await connection.fetchval(
            "SELECT rows::text FROM pinstripe.erasure WHERE schema = $1 AND customer_id = $2",
            schema,
            customer,
        )
        rows = await _clean(connection, schema, tables, found) + Counter(json.loads(old or "{}"))
        await connection.execute(
            "INSERT INTO pinstripe.erasure (schema, customer_id, reason, due_at, erased_at, rows)"
            " VALUES ($1, $2, $3, clock_timestamp(), clock_timestamp(), $4::jsonb)"
            " ON CONFLICT (schema, customer_id) DO UPDATE SET erased_at = clock_timestamp(),"
            " rows = excluded.rows",
            schema,
            customer,
            reason,
            json.dumps(rows),
        )
    count = sum(map(len, found.values()))
    _log.info("erasure.done", schema=schema, customer=customer, objects=count)
    return Erasure(customer, count, dict(sorted(rows.items())))


async def schedule_deleted(connection: Connection, schema: str, *, after_days: float) -> list[str]:
    """Note the customers that Stripe has deleted; return those whose erasure is due now."""
    with translated():
        await connection.execute(
            "INSERT INTO pinstripe.erasure (schema, customer_id, reason, due_at)"
            " SELECT $1, id, 'deleted', _as_of + make_interval(secs => $2 * 86400.0)"
            f" FROM {qualified(schema, 'customer')} c WHERE deleted AND NOT EXISTS"
            " (SELECT FROM pinstripe.erasure e WHERE e.schema = $1 AND e.customer_id = c.id)"
            " ON CONFLICT (schema, customer_id) DO NOTHING",
            schema,
            after_days,
        )
        rows = await connection.fetch(
            "SELECT customer_id FROM pinstripe.erasure WHERE schema = $1 AND erased_at IS NULL"
            " AND due_at <= clock_timestamp() ORDER BY due_at",
            schema,
        )
    return [row[0] for row in rows]


async def scrub(connection: Connection, schema: str, tables: Iterable[str]) -> None:
    """Rewrite the files of these tables and of the statistics, so that none holds an old version of a row.

    VACUUM FULL locks each table while it runs. ANALYZE first: the planner's samples hold values.
    """
    there = await existing_tables(connection, schema)
    # The tables themselves, also where the schema is a scope: what stands behind its views.
    names = [qualified(schema_of(schema), name) for name in sorted(set(tables) & set(there))]
    books = ["pinstripe.change", "pinstripe.erased"]
    with translated():
        for name in (*names, *books):
            await connection.execute(f"ANALYZE {name}")
            await connection.execute(f"VACUUM FULL {name}")
        if await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
            await connection.execute("VACUUM FULL pg_catalog.pg_statistic")
            await connection.execute("SELECT pg_switch_wal()")
            await connection.execute("CHECKPOINT")


async def _check_known(
    connection: Connection,
    schema: str,
    tables: Mapping[str, Table],
    found: Mapping[str, set[str]],
    customer: str,
) -> None:
    there = "customer" in tables and await connection.fetchval(
        f"SELECT EXISTS (SELECT FROM {qualified(schema, 'customer')} WHERE id = $1)", customer
    )
    if not there and sum(map(len, found.values())) == 1:
        raise Misconfigured(
            f'The schema "{schema}" has no customer of this id, and no row that refers to one.',
            hint="Give the id of a customer (cus_...), and the schema with --schema.",
        )


def _links(table: Table) -> Iterator[Column]:
    """Columns that hold ids of other objects, of one customer each."""
    for column in table.columns:
        if is_shared(column):
            continue
        if column.references or column.read in ("id", "ids"):
            yield column
        elif column.read == "text" and len(column.path) > 0:
            name = column.path[-1]
            if name in _NAMED_IN_TEXT or name in table_of_object():
                yield column


async def _referring(
    connection: Connection, schema: str, table: Table, ids: Sequence[str]
) -> set[str]:
    """Keys of the rows that refer to one of these ids."""
    texts = [quote(c.name) for c in _links(table) if c.type == "text" and c.name not in table.key]
    lists = [quote(c.name) for c in _links(table) if c.type == "text[]"]
    keyed = [quote(c.name) for c in _links(table) if c.name in table.key]
    tests = [f"{name} = ANY($1)" for name in (*texts, *keyed)] + [f"{n} && $1" for n in lists]
    if not tests:
        return set()
    found: set[str] = set()
    for at in range(0, len(ids), _IDS):
        rows = await connection.fetch(
            f"SELECT {quote(table.key[0])} FROM {qualified(schema, table.name)} "
            f"WHERE {' OR '.join(tests)}",
            list(ids[at : at + _IDS]),
        )
        found |= {row[0] for row in rows}
    return found


async def _referred(
    connection: Connection,
    schema: str,
    tables: Mapping[str, Table],
    fresh: Set[tuple[str, str]],
    *,
    is_there: bool = True,
) -> set[tuple[str, str]]:
    """(table, key) of what these rows refer to in tables whose rows belong to one customer.

    `is_there`: only rows that are; else also those that may still come, where one table is named.
    """
    found: set[tuple[str, str]] = set()
    for table in tables.values():
        keys = [key for name, key in fresh if name == table.name]
        links = [(c, t) for c in table.columns for t in c.references if t in OWNED]
        for column, target in links if keys else ():
            if (target not in tables) if is_there else (len(column.references) > 1):
                continue
            one = quote(column.name)
            value = f"unnest({one})" if column.type == "text[]" else one
            exists = "r.id IS NOT NULL"
            if is_there:
                key = quote(tables[target].key[0])
                exists = f"EXISTS (SELECT FROM {qualified(schema, target)} o WHERE o.{key} = r.id)"
            rows = await connection.fetch(
                f"SELECT r.id FROM (SELECT {value} AS id FROM {qualified(schema, table.name)}"
                f" WHERE {quote(table.key[0])} = ANY($1)) r WHERE {exists}",
                keys,
            )
            found |= {(target, row[0]) for row in rows}
    return found


async def _detached(
    connection: Connection, schema: str, tables: Container[str], customer: str
) -> set[tuple[str, str]]:
    """(table, key) of what events show to have been the customer's, and to be nobody's now."""
    rows = await connection.fetch(
        "SELECT e #>> '{data_object,object}', e #>> '{data_object,id}' FROM"
        f" (SELECT to_jsonb(t) AS e FROM {qualified(schema, 'event')} t OFFSET 0) t"
        " WHERE e #>> '{data_object,customer}' IS NULL"
        " AND e #>> '{data_previous_attributes,customer}' = $1",
        customer,
    )
    found = {(table_of_object().get(name or "", ""), key) for name, key in rows}
    return {(table, key) for table, key in found if table in tables}


async def _gone(
    connection: Connection, schema: str, found: Mapping[str, set[str]]
) -> list[tuple[str, str]]:
    """(table, key) of deleted rows that referred to these: the change feed has what they held."""
    rows = await connection.fetch(
        f'SELECT DISTINCT "table", id FROM pinstripe.change WHERE schema IN {SCOPES_OF}'
        " AND kind = 'delete' AND EXISTS"
        " (SELECT FROM jsonb_each(changes) c WHERE c.value ->> 0 = ANY($2))",
        schema,
        sorted(set().union(*found.values())),
    )
    return [(name, key) for name, key in rows]


async def _note(
    connection: Connection, schema: str, tables: Mapping[str, Table], found: Mapping[str, set[str]]
) -> str:
    """Remember these rows and what they refer to; return the id of the transaction."""
    places = {(table, key) for table, keys in found.items() for key in keys}
    with translated():
        async with connection.transaction():
            places |= await _referred(connection, schema, tables, places, is_there=False)
            await note_erased(connection, schema=schema, places=list(places))
            noted: str = await connection.fetchval("SELECT pg_current_xact_id()::text")
    return noted


async def _wait_for_writers(connection: Connection, noted: str) -> None:
    """Wait for the transactions that began before the erasure was noted."""
    until = asyncio.get_running_loop().time() + _WAIT_S
    while not await connection.fetchval(
        "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::numeric > $1::text::numeric", noted
    ):
        if asyncio.get_running_loop().time() > until:
            raise Unreachable(
                "A transaction that began before the erasure is still open.",
                hint="End it (see pg_stat_activity), and erase again: nothing but the note of the "
                "erasure is written.",
            )
        await asyncio.sleep(0.05)


async def _clean(
    connection: Connection, schema: str, tables: Mapping[str, Table], found: Mapping[str, set[str]]
) -> Counter[str]:
    counts: Counter[str] = Counter()
    feeds = bool(await connection.fetchval("SELECT EXISTS (SELECT FROM pinstripe.change)"))
    for name, keys in found.items():
        if name not in tables:
            continue
        ordered = sorted(keys)
        for at in range(0, len(ordered), _IDS):
            some = ordered[at : at + _IDS]
            async with connection.transaction():
                changed = await rewrite(
                    connection,
                    schema,
                    tables[name],
                    ERASER,
                    where=f"{quote(tables[name].key[0])} = ANY({_array(some)})",
                )
                counts[name] += len(changed)
                counts["change"] += await rewrite_feed(
                    connection, schema, tables[name], ERASER, keys=some
                )
                if feeds and changed and name not in LOGS:
                    await write_changes(connection, schema, [_change(name, c) for c in changed])
    ids = sorted({key for keys in found.values() for key in keys})
    for name in LOGS & set(tables):
        for at in range(0, len(ids), _IDS):
            patterns = [f'%"{like(key)}"%' for key in ids[at : at + _IDS]]
            where = f"to_jsonb(t)::text LIKE ANY({_array(patterns)})"
            async with connection.transaction():
                counts[name] += len(
                    await rewrite(connection, schema, tables[name], ERASER, where=where)
                )
    return counts


def _change(table: str, changed: tuple[str, Sequence[str]]) -> NewChange:
    """The feed's entry: the columns that are empty now. What they held is nowhere any more."""
    key, columns = changed
    gone = json.dumps({column: [None, None] for column in columns})
    return NewChange(table, key, "update", gone, "", "")


def _array(values: Sequence[str]) -> str:
    return f"ARRAY[{', '.join(map(literal, values))}]::text[]"
