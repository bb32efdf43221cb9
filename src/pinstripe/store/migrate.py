"""Brings a schema to the catalog: creates, adds and fills; never drops a column, never changes a type.

    reserve -> lease -> migrate -> backfill -> create_indexes ... drop_copy

New tables come in one transaction, new columns in one for each table: that takes a lock which readers wait
for, for some milliseconds. The columns are then filled, page by page, from `_extra`, which keeps the
fields that an older catalog did not know, and derived ones from the row; lists of tables that cannot be
filled so are read again. A migration that is killed goes on at the next start (`pinstripe.filling`). Only
the holder of the lease migrates, because a standby may run another version. Indexes are built after the
first backfill, alone or beside writers. `drop_copy` takes the lease first and drops tables of the catalog
only: views and tables of the user stay, and the schema with them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Container, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.resources import files

import asyncpg
import structlog

from pinstripe.catalog.tables import NAMED_UNDER, Column, Table, table_name, tables
from pinstripe.catalog.tables import tables as catalog
from pinstripe.errors import Drifted, Misconfigured, Unreachable
from pinstripe.rows.converters import Value, compile_derived, places_in_row
from pinstripe.store import ddl
from pinstripe.store.compat import set_compat
from pinstripe.store.leases import Lease
from pinstripe.store.links import link_all, linked_columns
from pinstripe.store.locks import held_by, holders_in, lock_row, make_locks
from pinstripe.store.metrics import drop_metrics, ensure_metrics
from pinstripe.store.pool import Connection, check_server, connect, translated
from pinstripe.store.quarantine import forget_streams
from pinstripe.store.rewrite import forget_secrets, known_tables
from pinstripe.store.session import (
    ACCOUNT,
    NAME_BYTES,
    SCOPES_OF,
    SETTING,
    account_of,
    partitions_of,
    relations,
    views_of,
)
from pinstripe.store.syncs import load_syncs

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_LOCK_MS = 500
"""How long DDL waits for a lock: later sessions queue behind it, readers too."""

_TURN_S = 60
"""How long a migration waits for another one: nobody queues behind that lock but migrations."""

_FILL_ROWS = 2000
"""Rows filled in one transaction: their locks are held for some tens of milliseconds."""

_TRIES = 30
_PAUSE_S = 1.0

_MADE_BY_ANOTHER = (
    asyncpg.DuplicateSchemaError,
    asyncpg.DuplicateTableError,
    asyncpg.UniqueViolationError,  # of the catalogs: two concurrent CREATE ... IF NOT EXISTS
)


@dataclass(slots=True)
class Migration:
    """What was done. `relist`: tables whose rows may lack values, so that their lists are read again."""

    created: list[str] = field(default_factory=list)
    added: list[tuple[str, str]] = field(default_factory=list)
    retyped: list[tuple[str, str]] = field(default_factory=list)
    relist: list[str] = field(default_factory=list)


async def ensure_bookkeeping(connection: Connection) -> None:
    """Create `pinstripe.*` where it is missing. Raises Misconfigured if the server is unfit."""
    await check_server(connection)
    text = files("pinstripe.store").joinpath("sql", "bookkeeping.sql").read_text()
    await _make_locks(connection)
    async for attempt in _patiently(connection, "pinstripe"):
        async with attempt:
            await connection.execute(text)


async def _make_locks(connection: Connection) -> None:
    """Create the lock table. Two processes may run this together, since there is no row to lock yet."""
    with translated():
        while not await connection.fetchval("SELECT to_regclass('pinstripe.lock') IS NOT NULL"):
            with suppress(*_MADE_BY_ANOTHER):
                async with connection.transaction():
                    await _create_schema(connection, "pinstripe")
                    await make_locks(connection)


async def _patiently(
    connection: Connection, schema: str
) -> AsyncIterator[AbstractAsyncContextManager[None]]:
    """Yield transactions for DDL until one gets its locks. Each waits `_LOCK_MS` only, so that an idle
    transaction of another session delays us and not every reader.
    """
    for attempt in range(_TRIES):
        done = _Done()
        yield _migrating(connection, schema, done, last=attempt == _TRIES - 1)
        if done.done:
            return
        await asyncio.sleep(_PAUSE_S)


@dataclass(slots=True)
class _Done:
    done: bool = False


@asynccontextmanager
async def _migrating(
    connection: Connection, schema: str, done: _Done, *, last: bool
) -> AsyncIterator[None]:
    is_begun = False
    try:
        with translated():
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{_TURN_S}s'")
                await lock_row(connection, "migration")
                await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_MS}ms'")
                is_begun = True
                yield
        done.done = True
    except Unreachable as error:
        if error.fault is None or error.fault.sqlstate != "55P03":
            raise
        holders = await holders_in(connection, ["pinstripe", schema])
        if last or not is_begun:
            raise held_by(error, holders) from error
        _log.warning("migrate.waits", schema=schema, held_by=holders)


async def migrate(
    connection: Connection,
    schema: str,
    tables: Mapping[str, Table],
    *,
    sdk_version: str,
    api_version: str,
    metrics: bool = True,
    partitions: int = 0,
) -> Migration:
    """Make `schema` hold all `tables`, and the schema beside it the views of `store.metrics`.

    `partitions`: see `ddl.create_table`. Raises Misconfigured if it has tables of another owner.
    """
    await ensure_bookkeeping(connection)
    async for attempt in _patiently(connection, schema):
        done = Migration()
        async with attempt:
            existing = await _columns(connection, schema)
            _refuse_foreign(schema, tables, existing)
            _refuse_new_key(schema, tables, existing)
            await _create_schema(connection, schema)
            if partitions:
                await _create_schema(connection, partitions_of(schema))
            missing = [t for name, t in tables.items() if name not in existing]
            await _create(connection, schema, missing, partitions)
            done.created = [t.name for t in missing]
            await _register(connection, schema, sdk_version, api_version)
            # A table that was dropped is empty now, whatever its cursors say.
            await forget_streams(connection, schema, done.created)
    await _stop_computing(connection, schema)
    for name, table in tables.items():
        there = existing.get(name, table.types)
        if not there.keys() >= table.types.keys():
            await _extend(connection, schema, table, done)
        if not _is_there(table, there):
            retyped = [c for c, kind in table.types.items() if there.get(c, kind) != kind]
            done.retyped += [(name, column) for column in retyped]
    await _name_parents(connection, schema, existing)
    await _make_views(connection, schema, tables)
    await _fill(connection, schema, tables, done)
    now = await _columns(connection, schema) if done.created or done.added else existing
    await _forget_secrets(connection, schema, tables, now, before=existing)
    if metrics:
        await ensure_metrics(connection, schema)
    return done


async def _name_parents(connection: Connection, schema: str, there: Container[str]) -> None:
    """Put the parent before the names of `NAMED_UNDER`, of which earlier versions had one row for all
    parents; the lists are read again.
    """
    for kind, holder in NAMED_UNDER.items():
        name, parent = table_name(kind), f"{holder}_id"
        if name not in there:
            continue
        try:
            with translated():
                async with connection.transaction():
                    status = await connection.execute(
                        f"UPDATE {ddl.qualified(schema, name)} SET id = {parent} || '/' || id"
                        f" WHERE id = lower(id) AND strpos(id, '/') = 0 AND {parent} IS NOT NULL"
                    )
                    if status != "UPDATE 0":
                        await forget_streams(connection, schema, [name])
        except Drifted as error:  # A trigger of the user, say: they stay beside the right ones.
            _log.warning("migrate.not_renamed", table=name, error=error.message)


async def _forget_secrets(
    connection: Connection,
    schema: str,
    tables: Mapping[str, Table],
    now: Mapping[str, Mapping[str, str]],
    *,
    before: Container[str],
) -> None:
    """Clean the tables of the catalog that stand in the schema, synced or not. `before`: those that did."""
    known = {name: ddl.as_there(table, now.get(name, ())) for name, table in catalog().items()}
    searched = {t.name: t for t in known_tables(now, {**known, **tables})}
    is_new = not any(name in before for name in searched)
    await forget_secrets(connection, schema, searched, is_new=is_new)


async def migrate_platform(
    connection: Connection,
    schema: str,
    tables: Mapping[str, Table],
    *,
    sdk_version: str,
    api_version: str,
    partitions: int | None = None,
    foreign_keys: bool = False,
) -> Migration:
    """Like `migrate`, for the tables of many accounts, with their indexes and the views by account.

    `partitions`: see `ddl.create_table`; None for those that the platform was stored with. `foreign_keys`:
    see `set_foreign_keys`.
    """
    if len(schema.encode()) > NAME_BYTES:
        raise Misconfigured(
            f'The name of the schema "{schema}" is too long for a platform.',
            hint=f"Choose another one with --schema, of at most {NAME_BYTES} bytes.",
        )
    if partitions is None:
        await ensure_bookkeeping(connection)
        partitions = await connection.fetchval(
            "SELECT partitions FROM pinstripe.platform WHERE schema = $1", schema
        )
    by_account = {name: ddl.with_account(table) for name, table in tables.items()}
    done = await migrate(
        connection,
        schema,
        by_account,
        sdk_version=sdk_version,
        api_version=api_version,
        metrics=False,
        partitions=partitions or 0,
    )
    for name in {name for name, _ in done.added} & by_account.keys():
        await create_indexes(connection, schema, by_account[name])
    await set_foreign_keys(connection, schema, by_account, wanted=foreign_keys)
    return done


async def make_tenant_views(
    connection: Connection, schema: str, account_id: str, target: str
) -> list[str]:
    """Make the schema `target` with a view of each table, of one account's rows, and return their names.

    Readers of `target` need no right to the tables. The views have the columns that the tables of a sync
    have; repeat it after a migration for those that are new.
    """
    existing = await _columns(connection, schema)
    names = [name for name in catalog() if name in existing]
    async for attempt in _patiently(connection, target):
        async with attempt:
            await _create_schema(connection, target)
            for name in names:
                columns = [column for column in existing[name] if column != ACCOUNT]
                await connection.execute(ddl.tenant_view(schema, name, columns, account_id, target))
    return names


async def _make_views(connection: Connection, schema: str, tables: Mapping[str, Table]) -> None:
    """Of a platform, make the views by account that are missing, or that lack a column of their table."""
    if not any(map(ddl.is_by_account, tables.values())):
        return
    views = views_of(schema)
    async for attempt in _patiently(connection, schema):
        async with attempt:
            await _create_schema(connection, views)
            there, existing = await _columns(connection, views), await _columns(connection, schema)
            for name, table in tables.items():
                shown = _present(table, existing.get(name, {}))
                wanted = {*ddl.VIEW_SYSTEM, *ddl.BOOKKEEPING, *(c.name for c in shown.all_columns)}
                if there.get(name, {}).keys() != wanted:
                    if name in there:
                        await connection.execute(f"DROP VIEW {ddl.qualified(views, name)}")
                    await connection.execute(ddl.create_view(schema, shown))


def _present(table: Table, existing: Mapping[str, str]) -> Table:
    """The table with those of its columns that exist, of whatever type."""
    columns = tuple(c for c in table.columns if c.name in existing)
    return replace(
        table, columns=columns, linked=tuple(c for c in table.linked if c.name in existing)
    )


async def effective_tables(
    connection: Connection, schema: str, tables: Mapping[str, Table]
) -> dict[str, Table]:
    """Return `tables` without the columns that have another type in the database.

    A migration never retypes a column: its values go to `_extra` until the user does.
    """
    existing = await _columns(connection, schema)
    return {name: _effective(table, existing.get(name, {})) for name, table in tables.items()}


def _effective(table: Table, existing: Mapping[str, str]) -> Table:
    def typed(columns: Iterable[Column]) -> tuple[Column, ...]:
        return tuple(c for c in columns if existing.get(c.name, c.type) == c.type)

    if not existing or _is_there(table, existing):
        return table
    return replace(table, columns=typed(table.columns), linked=typed(table.linked))


def _is_there(table: Table, existing: Mapping[str, str]) -> bool:
    """Whether the database has each column, with the type of the catalog."""
    return table.types.items() <= existing.items()


async def _create_schema(connection: Connection, schema: str) -> None:
    """Only where it is missing: CREATE ... IF NOT EXISTS wants the right to create all the same."""
    there = await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", ddl.quote(schema))
    if not there:
        await connection.execute(f"CREATE SCHEMA {ddl.quote(schema)}")


async def _columns(connection: Connection, schema: str) -> dict[str, dict[str, str]]:
    """Table -> column -> type, of all tables and views in the schema."""
    rows = await connection.fetch(
        "SELECT c.relname, a.attname, format_type(a.atttypid, NULL) FROM pg_attribute a"
        " JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = $1 AND a.attnum > 0 AND NOT a.attisdropped"
        " AND c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY c.relname, a.attnum",
        relations(schema),
    )
    found: dict[str, dict[str, str]] = {}
    for table, column, kind in rows:
        short = "timestamptz" if kind == "timestamp with time zone" else kind
        found.setdefault(table, {})[column] = short
    return found


def _refuse_foreign(
    schema: str, tables: Mapping[str, Table], existing: Mapping[str, Mapping[str, str]]
) -> None:
    foreign = sorted(
        name
        for name in tables
        if name in existing and not {"_as_of", "_extra"} <= set(existing[name])
    )
    if foreign:
        some = ", ".join(foreign[:5]) + (" ..." if len(foreign) > 5 else "")
        raise Misconfigured(
            f'The schema "{schema}" holds tables that Pinstripe did not make: {some}.',
            hint="Choose another schema with --schema, or move these tables away.",
        )


async def _create(
    connection: Connection, schema: str, missing: Iterable[Table], partitions: int
) -> None:
    statements: list[str] = []
    for table in missing:
        statements.append(ddl.create_table(schema, table, partitions=partitions))
        statements += ddl.comments(schema, table)
        if ddl.is_by_account(table):
            # Some account is always beyond its first backfill: there is no better time.
            statements += [text for _, text in ddl.indexes(schema, table)]
    if statements:
        await connection.execute("\n".join(statements))


def _refuse_new_key(
    schema: str, tables: Mapping[str, Table], existing: Mapping[str, Mapping[str, str]]
) -> None:
    for name, table in tables.items():
        there = set(existing.get(name, ()))
        if there and (
            (ACCOUNT in there) != ddl.is_by_account(table) or not set(table.key) <= there
        ):
            raise Drifted(
                f'The key of "{schema}"."{name}" differs from the catalog.',
                hint="Choose another schema with --schema and sync anew.",
            )


async def _extend(connection: Connection, schema: str, table: Table, done: Migration) -> None:
    """Add the columns that the table lacks, and note in the same transaction that they are to be filled."""
    async for attempt in _patiently(connection, schema):
        async with attempt:
            existing = (await _columns(connection, schema)).get(table.name, {})
            added = [c for c in table.all_columns if c.name not in existing]
            names = sorted(c.name for c in added)
            if added:
                await connection.execute(ddl.add_columns(schema, table, added))
                await connection.execute(_NOTE_ADDED, schema, table.name, names)
            for statement in ddl.comments(schema, table, only=names):
                await connection.execute(statement)
    done.added += [(table.name, c.name) for c in added]


_COMPUTED = """
SELECT format('ALTER TABLE %I.%I ALTER COLUMN %I DROP EXPRESSION', $1::text, c.relname, a.attname)
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN unnest($2::text[], $3::text[]) AS d ("table", name) ON d."table" = c.relname AND d.name = a.attname
WHERE c.relnamespace = pg_catalog.to_regnamespace(quote_ident($1)) AND c.relkind IN ('r', 'p')
  AND a.attgenerated = 's'
UNION ALL
SELECT format('DROP FUNCTION %s CASCADE', p.oid::regprocedure) FROM pg_catalog.pg_proc p
WHERE p.pronamespace = pg_catalog.to_regnamespace(quote_ident($1))
  AND p.proname = ANY ($4::text[]) AND p.prorettype = 'pg_catalog.trigger'::regtype
"""


async def _stop_computing(connection: Connection, schema: str) -> None:
    """Make ordinary columns of those that earlier versions had Postgres compute, GENERATED or by a trigger.

    They keep their values, and no table is rewritten.
    """
    derived = [(t.name, c.name) for t in catalog().values() for c in t.columns if c.is_derived]
    functions = sorted({ddl.within_63(f"{table}_derived") for table, _ in derived})
    names = ([table for table, _ in derived], [column for _, column in derived], functions)
    if not await connection.fetch(_COMPUTED, relations(schema), *names):
        return
    async for attempt in _patiently(connection, schema):
        async with attempt:
            for (statement,) in await connection.fetch(_COMPUTED, relations(schema), *names):
                await connection.execute(statement)


_NOTE_ADDED = """
INSERT INTO pinstripe.filling AS f (schema, "table", columns) VALUES ($1, $2, $3)
ON CONFLICT (schema, "table") DO UPDATE SET columns = f.columns || EXCLUDED.columns, after = ''
"""


async def _fill(
    connection: Connection, schema: str, tables: Mapping[str, Table], done: Migration
) -> None:
    """Fill the columns that this migration added, and those that an earlier one left."""
    with translated():
        rows = await connection.fetch(
            'SELECT "table" FROM pinstripe.filling WHERE schema = $1 ORDER BY 1', schema
        )
        names = [row[0] for row in rows if row[0] in tables]
        if not names:
            return
        existing = await _columns(connection, schema)
    for name in names:
        effective = _effective(tables[name], existing.get(name, {}))
        while await _fill_page(connection, schema, tables[name], effective):
            pass
    await _end_filling(connection, schema, names, done)


async def _end_filling(
    connection: Connection, schema: str, names: list[str], done: Migration
) -> None:
    """Fill the columns that rows of other tables give, now that those are filled themselves."""
    now = await _columns(connection, schema)
    whole = {
        n: t for n, t in catalog().items() if {c.name for c in t.all_columns} <= {*now.get(n, ())}
    }
    is_platform = any(ACCOUNT in columns for columns in now.values())
    if is_platform:
        await _link_accounts(connection, schema, whole, names)
    with translated():
        async with connection.transaction():
            rows = await connection.fetch(
                'DELETE FROM pinstripe.filling WHERE schema = $1 AND "table" = ANY ($2::text[])'
                ' RETURNING "table", columns, is_lacking',
                schema,
                names,
            )
            if not is_platform:
                await link_all(connection, schema, whole, _linked(whole, rows))
            lacking = sorted(row[0] for row in rows if row[2])
            await forget_streams(connection, schema, lacking)
    done.relist += lacking


def _linked(whole: Mapping[str, Table], filled: Iterable[asyncpg.Record]) -> set[str]:
    """Those of the tables that were filled, (name, columns, ...), where rows of others give a column."""
    return {
        name
        for name, columns, *_ in filled
        if name in whole and {*columns} & {c.name for c in linked_columns(whole[name])}
    }


async def _link_accounts(
    connection: Connection, schema: str, whole: Mapping[str, Table], names: Sequence[str]
) -> None:
    """Of a platform, fill those columns account by account, in a transaction each."""
    with translated():
        filled = await connection.fetch(
            'SELECT "table", columns FROM pinstripe.filling'
            ' WHERE schema = $1 AND "table" = ANY ($2::text[])',
            schema,
            names,
        )
        scopes = await connection.fetch(
            f"SELECT schema FROM {SCOPES_OF} AS s WHERE schema <> $1 ORDER BY 1", schema
        )
        linked = _linked(whole, filled)
        for (scope,) in scopes if linked else ():
            async with connection.transaction():
                await connection.execute(
                    "SELECT pg_catalog.set_config($1, $2, true)", SETTING, account_of(scope)
                )
                await link_all(connection, scope, whole, linked)


async def _fill_page(connection: Connection, schema: str, table: Table, effective: Table) -> bool:
    """Fill the next rows by key; False after the last. The position moves in the same transaction.

    `effective`: the table as it stands there.
    """
    name, place = ddl.qualified(schema, table.name), (schema, table.name)
    with translated():
        async with connection.transaction():
            found = await connection.fetchrow(
                "SELECT columns, after FROM pinstripe.filling"
                ' WHERE schema = $1 AND "table" = $2 FOR UPDATE',
                *place,
            )
            if found is None:
                return False
            after = _key_from(table, found[1])
            end = await connection.fetchval(ddl.page_end(schema, table, _FILL_ROWS), after)
            if end is None:
                return False
            columns = [c for c in table.columns if c.name in found[0] and not c.is_derived]
            rows = ddl.on_page(table, after, end)
            count = await connection.fetchval(f"SELECT count(*) FROM {name} WHERE {rows}")
            fewest = await _move_all(connection, name, columns, rows) if columns else count
            if not await _derive_rows(connection, schema, effective, rows):
                fewest = 0
            await connection.execute(
                "UPDATE pinstripe.filling SET after = $3, is_lacking = is_lacking OR $4"
                ' WHERE schema = $1 AND "table" = $2',
                *place,
                "/".join(end),
                fewest < count,
            )
            return True


def _key_from(table: Table, text: str) -> list[str]:
    """The key whose values are joined by slashes, which an account's id does not have; '' is before all."""
    found = text.split("/", len(table.key) - 1)
    return found + [""] * (len(table.key) - len(found))


async def _derive_rows(connection: Connection, schema: str, table: Table, where: str) -> bool:
    """Give the derived columns of these rows their values, from the rows themselves.

    False, and nothing is changed, if Postgres refuses one: the lists bring the values, and leave it out.
    """
    columns = [c for c in table.columns if c.is_derived]
    places = ((n, c, places_in_row(table, c)) for n, c in enumerate(columns))
    derive = compile_derived(places)
    if derive is None:
        return True
    name = ddl.qualified(schema, table.name)
    values: list[dict[str, object]] = []
    # A decimal keeps its digits: it stands in a string in Stripe's objects too.
    decimals = (c.name for c in table.columns if c.type == "numeric")
    digits = ", ".join(f"{ddl.literal(one)}, t.{ddl.quote(one)}::text" for one in decimals)
    for (text,) in await connection.fetch(
        f"SELECT (to_jsonb(t) || jsonb_build_object({digits}))::text FROM {name} t "
        f"WHERE {where} FOR NO KEY UPDATE"
    ):
        row = json.loads(text)
        found: list[Value] = [None] * len(columns)
        derive(row, found)
        made = {key: row[key] for key in table.key}
        for column, value in zip(columns, found, strict=True):
            is_json = column.type == "jsonb" and value is not None
            made[column.name] = json.loads(value) if is_json else value
        values.append(made)
    types = [f"{ddl.quote(key)} text" for key in table.key]
    types += [f"{ddl.quote(c.name)} {c.type}" for c in columns]
    sets = ", ".join(f"{ddl.quote(c.name)} = v.{ddl.quote(c.name)}" for c in columns)
    ours, theirs = (", ".join(f"{row}.{ddl.quote(c.name)}" for c in columns) for row in "tv")
    same = " AND ".join(f"t.{ddl.quote(key)} = v.{ddl.quote(key)}" for key in table.key)
    text = (
        f"UPDATE {name} AS t SET {sets} "
        f"FROM jsonb_to_recordset($1::jsonb) AS v ({', '.join(types)}) "
        f"WHERE {same} AND ROW({ours}) IS DISTINCT FROM ROW({theirs})"
    )
    try:
        with translated():
            async with connection.transaction():
                await connection.execute(text, json.dumps(values))
    except Drifted as error:
        _log.warning("migrate.not_derived", table=table.name, error=error.message)
        return False
    return True


async def _move_all(connection: Connection, name: str, columns: Iterable[Column], rows: str) -> int:
    """Move what waited in `_extra` of these rows into the columns; the least that one field moved.

    A value of another type than the column's stays where it is.
    """
    by_path: dict[tuple[str, ...], list[Column]] = {}
    for column in columns:
        by_path.setdefault(column.path, []).append(column)
    moved = [
        await _move(connection, name, path, group, rows) if path else 0
        for path, group in by_path.items()
    ]
    for top in sorted({path[0] for path in by_path if len(path) > 1}):
        key = ddl.literal(top)
        await connection.execute(
            f"UPDATE {name} SET _extra = _extra - {key} "
            f"WHERE {rows} AND _extra -> {key} = '{{}}'::jsonb"
        )
    await connection.execute(
        f"UPDATE {name} SET _extra = NULL WHERE {rows} AND _extra = '{{}}'::jsonb"
    )
    return min(moved, default=0)


async def _move(
    connection: Connection, name: str, path: tuple[str, ...], columns: Iterable[Column], rows: str
) -> int:
    """Fill the columns that read one field; return the number of rows that had it."""
    place = "ARRAY[" + ", ".join(ddl.literal(p) for p in path) + "]::text[]"
    sets = ", ".join(f"{ddl.quote(c.name)} = {_from_extra(c, place)}" for c in columns)
    fits = " AND ".join(_fits(c, place) for c in columns)
    try:
        with translated():
            async with connection.transaction():
                status = await connection.execute(
                    f"UPDATE {name} SET {sets}, _extra = _extra #- {place} "
                    f"WHERE {rows} AND _extra #> {place} IS NOT NULL AND {fits}"
                )
    except Drifted:
        return 0  # A date that is none, a number without measure: all stay where they are.
    return int(status.rpartition(" ")[2])


def _fits(column: Column, place: str) -> str:
    """Whether the waiting value has the type that the column wants. Null fits everywhere."""
    node, text = f"(_extra #> {place})", f"(_extra #>> {place})"
    kind = f"jsonb_typeof({node})"
    if column.type == "jsonb":
        return "true"
    if column.read in ("integer", "time", "time_ms"):
        # bigint holds any 18 digits; Unix seconds of 12 digits are in a year that timestamptz knows.
        digits = {"integer": 18, "time": 12, "time_ms": 15}[column.read]
        fits = f"({kind} = 'number' AND {text} ~ '^-?[0-9]{{1,{digits}}}$')"
    elif column.type == "numeric":
        fits = f"({text} ~ '^-?[0-9]+([.][0-9]+)?([eE][-+]?[0-9]{{1,3}})?$')"
    elif column.type == "text[]":
        odd = '$[*] ? (@.type() != "string")'
        fits = f"({kind} = 'array' AND NOT jsonb_path_exists({node}, '{odd}'))"
    else:
        fits = f"{kind} = '{'boolean' if column.type == 'boolean' else 'string'}'"
    return f"({kind} = 'null' OR {fits})"


def _from_extra(column: Column, place: str) -> str:
    """The waiting value as the column wants it; JSON's null becomes SQL's."""
    node, text = f"(_extra #> {place})", f"(_extra #>> {place})"
    if column.read == "object":
        return "NULL"  # A plain id waited there: the next snapshot tells its type.
    if column.read == "time":
        return f"to_timestamp({text}::double precision)"
    if column.read == "time_ms":
        return f"to_timestamp({text}::double precision / 1000)"
    if column.type == "jsonb":
        return f"nullif({node}, 'null'::jsonb)"
    if column.type == "text[]":
        return (
            f"CASE WHEN jsonb_typeof({node}) = 'array' "
            f"THEN ARRAY(SELECT jsonb_array_elements_text({node})) END"
        )
    return f"{text}::{column.type}"


async def _register(
    connection: Connection, schema: str, sdk_version: str, api_version: str
) -> None:
    await connection.execute(
        "INSERT INTO pinstripe.sync (schema, api_version, sdk_version) VALUES ($1, $2, $3)"
        " ON CONFLICT (schema) DO UPDATE SET api_version = $2, sdk_version = $3",
        schema,
        api_version,
        sdk_version,
    )


async def reserve(
    connection: Connection, schema: str, *, sdk_version: str, api_version: str
) -> None:
    """A place for the lease of the schema. Where there is one already nothing is touched."""
    if await _is_reserved(connection, schema):
        return
    await ensure_bookkeeping(connection)
    with translated():
        await connection.execute(
            "INSERT INTO pinstripe.sync (schema, api_version, sdk_version) VALUES ($1, $2, $3)"
            " ON CONFLICT (schema) DO NOTHING",
            schema,
            api_version,
            sdk_version,
        )


async def _is_reserved(connection: Connection, schema: str) -> bool:
    with translated():
        there: bool = await connection.fetchval(
            "SELECT to_regclass('pinstripe.sync') IS NOT NULL"
            " AND to_regclass('pinstripe.lease') IS NOT NULL"
        )
        if not there:
            return False
        known: bool = await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pinstripe.sync WHERE schema = $1)", schema
        )
    return known


async def check_tables(connection: Connection, schema: str, wanted: Mapping[str, Table]) -> None:
    """Raises Misconfigured where the schema lacks a table or a column of this version's catalog."""
    with translated():
        rows = await connection.fetch(
            "SELECT c.relname, a.attname FROM pg_attribute a"
            " JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = $1 AND a.attnum > 0 AND NOT a.attisdropped",
            relations(schema),
        )
    there = {(row[0], row[1]) for row in rows}
    lacking = [
        f"{name}.{column.name}"
        for name, table in wanted.items()
        for column in table.all_columns
        if (name, column.name) not in there
    ]
    if lacking:
        some = ", ".join(lacking[:3]) + (" ..." if len(lacking) > 3 else "")
        raise Misconfigured(
            f'The schema "{schema}" lacks what this version knows: {some}.',
            hint="Start `pinstripe sync` of this version: it brings the tables up to date.",
        )


_ENFORCEABLE = 18
"""Postgres 18: the first server that takes NOT ENFORCED of a foreign key."""


async def set_foreign_keys(
    connection: Connection, schema: str, tables: Mapping[str, Table], *, wanted: bool
) -> int:
    """Make the foreign keys of `tables`, or drop those that we made; return how many there are then.

    Older servers than Postgres 18 have none: theirs would be checked, and refuse rows.
    """
    if connection.get_server_version().major < _ENFORCEABLE:
        return 0
    known = (
        tables if wanted else catalog()
    )  # They go from tables that are not synced any more, too.
    keys = {t.name: dict(ddl.foreign_keys(schema, t, known)) for t in known.values()}
    async for attempt in _patiently(connection, schema):
        async with attempt:
            there = await _unenforced(connection, schema)
            for name, clauses in keys.items():
                mine = there.get(name, set())
                changes = [c for key, c in clauses.items() if wanted and key not in mine]
                if not wanted:
                    changes = [
                        f"DROP CONSTRAINT {ddl.quote(key)}" for key in clauses if key in mine
                    ]
                if changes:
                    await connection.execute(
                        f"ALTER TABLE {ddl.qualified(schema, name)} {', '.join(changes)}"
                    )
    return sum(map(len, keys.values())) if wanted else 0


async def _unenforced(connection: Connection, schema: str) -> dict[str, set[str]]:
    """Table -> names of its foreign keys that are not enforced."""
    rows = await connection.fetch(
        "SELECT c.relname::text, k.conname::text FROM pg_catalog.pg_constraint k"
        " JOIN pg_catalog.pg_class c ON c.oid = k.conrelid"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = $1 AND k.contype = 'f' AND NOT k.conenforced",
        schema,
    )
    found: dict[str, set[str]] = {}
    for table, name in rows:
        found.setdefault(table, set()).add(name)
    return found


async def create_indexes(connection: Connection, schema: str, table: Table) -> None:
    """The table's indexes. Made when its first backfill is done: that is many times cheaper.

    The tables of a platform have them from the beginning; so a scope needs none.
    """
    if account_of(schema):
        return
    with translated():
        # In one transaction a table: each commit waits for the disk.
        statements = [text for _, text in ddl.indexes(schema, table)]
        statements += ddl.replaced_indexes(schema, table)
        if statements:
            await connection.execute("\n".join(statements))


async def create_indexes_beside(connection: Connection, schema: str, table: Table) -> None:
    """Like `create_indexes`, beside writers: slower, and no writer waits.

    Not in a transaction. An index that an interrupted build left invalid is built again.
    """
    if account_of(schema):
        return
    with translated():
        rows = await connection.fetch(
            "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE i.indrelid = $1::regclass",
            ddl.qualified(schema, table.name),
        )
        valid = {row[0]: row[1] for row in rows}
        for name, statement in ddl.indexes(schema, table):
            if valid.get(name):
                continue
            if name in valid:
                # Or all readers would queue behind one that idles in a transaction.
                await connection.execute(f"DROP INDEX CONCURRENTLY {ddl.qualified(schema, name)}")
            await connection.execute(
                statement.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY", 1)
            )
        for statement in ddl.replaced_indexes(schema, table):
            await connection.execute(statement.replace("DROP INDEX", "DROP INDEX CONCURRENTLY", 1))


_WAIT_S = 30.0
"""A process that is stopping needs seconds; the lease of one that died expires."""


async def drop_copy(database_url: str, schema: str) -> None:
    """Take the lease, then drop the schema's tables. Raises Misconfigured if it is still being synced."""
    async with connect(database_url) as connection:
        if schema not in {sync.schema for sync in await load_syncs(connection)}:
            return
    lease = Lease(database_url, schema)
    held = lease.held()
    try:
        async with asyncio.timeout(_WAIT_S):
            await held.__aenter__()
    except TimeoutError:
        who = lease.standing_by.holder if lease.standing_by is not None else "another process"
        raise Misconfigured(
            f'The schema "{schema}" is still being synced ({who}); its tables were left.',
            hint="Stop that process, then drop the schema.",
        ) from None
    try:
        async with connect(database_url) as connection:
            await _drop(connection, schema)
    finally:
        await held.__aexit__(None, None, None)


async def _drop(connection: Connection, schema: str) -> None:
    await drop_metrics(connection, schema)
    try:
        async with connection.transaction():
            ours = await connection.fetch(
                "SELECT tablename::text FROM pg_tables WHERE schemaname = $1"
                " AND tablename = ANY ($2::text[])",
                schema,
                list(tables()),
            )
            await set_compat(connection, schema, {}, ())
            if ours:
                names = (f"{ddl.quote(schema)}.{ddl.quote(row[0])}" for row in ours)
                await connection.execute(f"DROP TABLE {', '.join(names)}")
            await connection.execute(
                "DELETE FROM pinstripe.change WHERE schema = $1 OR starts_with(schema, $1 || '@')",
                schema,
            )
            await connection.execute("DELETE FROM pinstripe.sync WHERE schema = $1", schema)
    except asyncpg.DependentObjectsStillExistError as error:
        raise Misconfigured(
            f'It is removed, but objects of your own rest on tables of the schema "{schema}": they stay.',
            hint=f"Drop all of them: DROP SCHEMA {ddl.quote(schema)} CASCADE; DELETE FROM "
            f"pinstripe.sync WHERE schema = {ddl.literal(schema)};",
        ) from error
    with suppress(asyncpg.DependentObjectsStillExistError):  # What is left in it is the user's.
        async with connection.transaction():
            await connection.execute(f"DROP SCHEMA IF EXISTS {ddl.quote(schema)}")


async def drop_platform(connection: Connection, schema: str) -> None:
    """Drop the tables and views of a platform that is deleted. Raises Misconfigured if others use them."""
    views, partitions = views_of(schema), partitions_of(schema)
    try:
        async with connection.transaction():
            shown = await connection.fetch(
                "SELECT viewname::text FROM pg_views WHERE schemaname = $1", views
            )
            for row in shown:
                await connection.execute(f"DROP VIEW {ddl.qualified(views, row[0])}")
            await connection.execute(f"DROP SCHEMA IF EXISTS {ddl.quote(views)}")
            await _drop(connection, schema)
            await connection.execute(f"DROP SCHEMA IF EXISTS {ddl.quote(partitions)}")
    except asyncpg.DependentObjectsStillExistError as error:
        raise Misconfigured(
            f'It is removed, but objects of your own rest on the views of the schema "{views}": they stay.',
            hint=f"Drop all of them: DROP SCHEMA {ddl.quote(views)}, {ddl.quote(schema)} CASCADE;",
        ) from error
