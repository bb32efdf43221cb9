"""Brings a schema to the catalog: creates, adds and fills; never drops a column, never changes a type.

    reserve -> lease -> migrate -> backfill -> create_indexes ... drop_copy

A migration is one transaction. New columns of existing tables are filled from `_extra`, which keeps the
fields that an older catalog did not know; lists of tables that cannot be filled so are read again. Only
the holder of the lease migrates, because a standby may run another version. Indexes are built after the
first backfill, alone or beside writers. `drop_copy` takes the lease first and drops tables of the catalog
only: views and tables of the user stay, and the schema with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.resources import files

import asyncpg
import structlog

from pinstripe.catalog.tables import Column, Table, tables
from pinstripe.catalog.tables import tables as catalog
from pinstripe.errors import Drifted, Misconfigured, Unreachable
from pinstripe.store import ddl
from pinstripe.store.compat import set_compat
from pinstripe.store.forget_secrets import forget_secrets, known_tables
from pinstripe.store.leases import Lease
from pinstripe.store.links import link_all, linked_columns
from pinstripe.store.locks import held_by, holders_in, lock_row, make_locks
from pinstripe.store.lost_tables import forget_streams
from pinstripe.store.pool import Connection, check_server, connect, translated
from pinstripe.store.syncs import load_syncs

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_LOCK_S = 2
"""How long DDL waits for a lock: later sessions queue behind it, readers too."""

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
    """Yield transactions for DDL until one gets its locks. Each waits `_LOCK_S` only, so that an idle
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
    try:
        with translated():
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_S}s'")
                await lock_row(connection, "migration")
                yield
        done.done = True
    except Unreachable as error:
        if error.fault is None or error.fault.sqlstate != "55P03":
            raise
        holders = await holders_in(connection, ["pinstripe", schema])
        if last:
            raise held_by(error, holders) from error
        _log.warning("migrate.waits", schema=schema, held_by=holders)


async def migrate(
    connection: Connection,
    schema: str,
    tables: Mapping[str, Table],
    *,
    sdk_version: str,
    api_version: str,
) -> Migration:
    """Make `schema` hold all `tables`. Raises Misconfigured if it has tables of another owner."""
    await ensure_bookkeeping(connection)
    async for attempt in _patiently(connection, schema):
        done = Migration()
        async with attempt:
            existing = await _columns(connection, schema)
            _refuse_foreign(schema, tables, existing)
            await _create_schema(connection, schema)
            missing = [t for name, t in tables.items() if name not in existing]
            await _create(connection, schema, missing)
            done.created = [t.name for t in missing]
            for name, table in tables.items():
                if name in existing:
                    await _extend(connection, schema, table, existing[name], done)
            await _register(connection, schema, sdk_version, api_version)
            # A table that was dropped is empty now, whatever its cursors say.
            await forget_streams(connection, schema, [*done.relist, *done.created])
            now = await _columns(connection, schema)
            await _link_new(connection, schema, now, done)
    searched = {t.name: t for t in known_tables(now, {**catalog(), **tables})}
    await forget_secrets(connection, schema, searched, is_new=not set(existing) & set(searched))
    return done


async def effective_tables(
    connection: Connection, schema: str, tables: Mapping[str, Table]
) -> dict[str, Table]:
    """Return `tables` without the columns that have another type in the database.

    A migration never retypes a column: its values go to `_extra` until the user does.
    """
    existing = await _columns(connection, schema)
    return {
        name: replace(
            table,
            columns=_of_type(table.columns, existing.get(name, {})),
            derived=_of_type(table.derived, existing.get(name, {})),
        )
        for name, table in tables.items()
    }


def _of_type(columns: Iterable[Column], existing: Mapping[str, str]) -> tuple[Column, ...]:
    return tuple(c for c in columns if existing.get(c.name, c.type) == c.type)


async def _link_new(
    connection: Connection, schema: str, now: Mapping[str, Mapping[str, str]], done: Migration
) -> None:
    """Fill new columns that rows of other tables give. Tables made just now have no rows yet."""
    whole = {
        n: t for n, t in catalog().items() if {c.name for c in t.all_columns} <= {*now.get(n, ())}
    }
    linked = {n for n, t in whole.items() for c in linked_columns(t) if (n, c.name) in done.added}
    if linked:
        await link_all(connection, schema, whole, linked)


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
        " AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
        schema,
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


async def _create(connection: Connection, schema: str, missing: Iterable[Table]) -> None:
    statements: list[str] = []
    for table in missing:
        statements.append(ddl.create_table(schema, table))
        statements += ddl.comments(schema, table)
    if statements:
        await connection.execute("\n".join(statements))


async def _extend(
    connection: Connection,
    schema: str,
    table: Table,
    existing: Mapping[str, str],
    done: Migration,
) -> None:
    added = [c for c in table.all_columns if c.name not in existing]
    done.retyped += [
        (table.name, c.name) for c in table.all_columns if existing.get(c.name, c.type) != c.type
    ]
    if not added:
        return
    if any(c.name in table.key for c in added):
        raise Drifted(
            f'The key of "{schema}"."{table.name}" differs from the catalog.',
            hint="Choose another schema with --schema and sync anew.",
        )
    # A derived column cannot read one that has another type in the database.
    typed = replace(table, columns=_of_type(table.columns, existing))
    await connection.execute(ddl.add_columns(schema, typed, added))
    for statement in ddl.comments(schema, table, only=[c.name for c in added]):
        await connection.execute(statement)
    filled = await _fill(connection, schema, table, [c for c in added if c in table.columns])
    done.added += [(table.name, c.name) for c in added]
    holds_rows = f"SELECT EXISTS (SELECT FROM {ddl.qualified(schema, table.name)})"
    if not filled and await connection.fetchval(holds_rows):
        done.relist.append(table.name)


async def _fill(connection: Connection, schema: str, table: Table, added: Iterable[Column]) -> bool:
    """Moves what waited in `_extra` into the new columns; True if every row had something for each.

    A value of another type than the column's stays where it is.
    """
    name = ddl.qualified(schema, table.name)
    by_path: dict[tuple[str, ...], list[Column]] = {}
    for column in added:
        by_path.setdefault(column.path, []).append(column)
    rows = await connection.fetchval(f"SELECT count(*) FROM {name}")
    found_all = True
    for path, columns in by_path.items():
        moved = await _move(connection, name, path, columns) if path else 0
        found_all = found_all and moved == rows
    for top in sorted({path[0] for path in by_path if len(path) > 1}):
        key = ddl.literal(top)
        await connection.execute(
            f"UPDATE {name} SET _extra = _extra - {key} WHERE _extra -> {key} = '{{}}'::jsonb"
        )
    await connection.execute(f"UPDATE {name} SET _extra = NULL WHERE _extra = '{{}}'::jsonb")
    return found_all


async def _move(
    connection: Connection, name: str, path: tuple[str, ...], columns: Iterable[Column]
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
                    f"WHERE _extra #> {place} IS NOT NULL AND {fits}"
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
            schema,
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


_ENFORCEABLE = 180000
"""Postgres 18: the first server that takes NOT ENFORCED of a foreign key."""


async def set_foreign_keys(
    connection: Connection, schema: str, tables: Mapping[str, Table], *, wanted: bool
) -> int:
    """Make the foreign keys of `tables`, or drop those that we made; return how many there are then.

    Older servers than Postgres 18 have none: theirs would be checked, and refuse rows.
    """
    if await _server_version(connection) < _ENFORCEABLE:
        return 0
    keys = {t.name: dict(ddl.foreign_keys(schema, t, tables)) for t in tables.values()}
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


async def _server_version(connection: Connection) -> int:
    number: str = await connection.fetchval("SELECT current_setting('server_version_num')")
    return int(number)


async def _unenforced(connection: Connection, schema: str) -> dict[str, set[str]]:
    """Table -> names of its foreign keys that are not enforced."""
    rows = await connection.fetch(
        "SELECT c.relname::text, k.conname::text FROM pg_constraint k"
        " JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = $1 AND k.contype = 'f' AND NOT k.conenforced",
        schema,
    )
    found: dict[str, set[str]] = {}
    for table, name in rows:
        found.setdefault(table, set()).add(name)
    return found


async def create_indexes(connection: Connection, schema: str, table: Table) -> None:
    """The table's indexes. Made when its first backfill is done: that is many times cheaper."""
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
                await connection.execute(f"DROP INDEX {ddl.qualified(schema, name)}")
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
            await connection.execute("DELETE FROM pinstripe.change WHERE schema = $1", schema)
            await connection.execute("DELETE FROM pinstripe.sync WHERE schema = $1", schema)
    except asyncpg.DependentObjectsStillExistError as error:
        raise Misconfigured(
            f'Views or tables of your own rest on the tables of the schema "{schema}"; it was left.',
            hint="Drop those first, or drop all at once: DROP SCHEMA ... CASCADE.",
        ) from error
    try:
        async with connection.transaction():
            await connection.execute(f"DROP SCHEMA IF EXISTS {ddl.quote(schema)}")
    except asyncpg.DependentObjectsStillExistError:
        return  # What is left in it is the user's.
