"""What our user may do in a database: tried, in a transaction that is rolled back.

Catalogs tell of rights; only trying tells of a full disk, an event trigger, or a server that is read-only
for a reason of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import asyncpg

from pinstripe.catalog.tables import tables
from pinstripe.doctor.findings import Finding
from pinstripe.errors import PinstripeError
from pinstripe.store.ddl import quote
from pinstripe.store.pool import translated

_BOOKKEEPING = "pinstripe"
_WRONG, _UNWRITABLE = 2, 5
_HOWTO = "See the how-to on your own Postgres."

# Only tables of our names: what others keep beside them is theirs.
_STANDING = """
    SELECT n.nspname AS schema,
           count(c.oid) FILTER (WHERE NOT pg_has_role(c.relowner, 'USAGE')) AS of_others,
           count(c.oid) FILTER (WHERE n.nspname <> 'pinstripe' AND NOT EXISTS (
               SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = '_as_of'
           )) AS strange
    FROM pg_namespace n
    LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind = 'r'
        AND (n.nspname = 'pinstripe' OR c.relname = ANY($2::text[]))
    WHERE n.nspname = ANY($1::text[])
    GROUP BY n.nspname
"""


@dataclass(frozen=True, slots=True)
class _Trial:
    """Statements that must all pass, what it means if so, and what helps if not."""

    about: str
    statements: tuple[str, ...]
    passed: str
    failed: str
    remedy: str


async def try_rights(
    connection: asyncpg.Connection, schema: str, *, writable: bool
) -> list[Finding]:
    """Schemas, tables, temporary tables. Not `writable`, nothing is tried: nothing could pass."""
    if not writable:
        return []
    rows = await connection.fetch(_STANDING, _both(schema), list(tables()))
    standing = [row["schema"] for row in rows]
    missing = [name for name in _both(schema) if name not in standing]
    trials = [_temporary()]
    if missing:
        trials.append(_new_schema(missing))
    trials += [_table_in(name) for name in standing]
    found = [await _try(connection, trial) for trial in trials]
    for row in rows:
        found += _of_tables(row["schema"], of_others=row["of_others"], strange=row["strange"])
    return found


def _of_tables(schema: str, *, of_others: int, strange: int) -> Iterator[Finding]:
    if of_others:
        yield Finding(
            "ownership",
            "problem",
            f'{of_others} tables in the schema "{schema}" belong to another user: they cannot be '
            "extended.",
            f"Sync as their owner, or REASSIGN OWNED. {_HOWTO}",
            _UNWRITABLE,
        )
    if strange:
        yield Finding(
            "strange tables",
            "problem",
            f'{strange} tables in the schema "{schema}" have names of ours, but Pinstripe did not make '
            "them.",
            "Choose another schema with --schema, or move these tables away.",
            _WRONG,
        )


def _both(schema: str) -> list[str]:
    return [_BOOKKEEPING, schema]


def _temporary() -> _Trial:
    name = _unused()
    return _Trial(
        "temporary tables",
        (f"CREATE TEMP TABLE {name} (a int) ON COMMIT DELETE ROWS",),
        "temporary tables can be made",
        "Temporary tables cannot be made",
        "GRANT TEMPORARY ON DATABASE ... TO our user.",
    )


def _new_schema(missing: list[str]) -> _Trial:
    name = _unused()
    return _Trial(
        "schemas",
        (f"CREATE SCHEMA {name}", *_filling(f"{name}.trial")),
        f"schemas and tables can be made ({' and '.join(missing)} will be)",
        f"The schemas {' and '.join(missing)} cannot be made",
        f"GRANT CREATE ON DATABASE ... TO our user. {_HOWTO}",
    )


def _table_in(schema: str) -> _Trial:
    return _Trial(
        f"tables in {schema}",
        _filling(f"{quote(schema)}.{_unused()}"),
        f'tables can be made and written in "{schema}"',
        f'Tables cannot be made or written in the schema "{schema}"',
        f"GRANT CREATE, USAGE ON SCHEMA {quote(schema)} TO our user. {_HOWTO}",
    )


def _filling(table: str) -> tuple[str, ...]:
    """A table, a row and an index: what a sync does, as small as can be."""
    return (
        f"CREATE TABLE {table} (id text PRIMARY KEY, at timestamptz)",
        f"INSERT INTO {table} VALUES ('a', now()) ON CONFLICT (id) DO NOTHING",
        f"CREATE INDEX ON {table} (at)",
    )


async def _try(connection: asyncpg.Connection, trial: _Trial) -> Finding:
    transaction = connection.transaction()
    await transaction.start()
    try:
        with translated():
            for statement in trial.statements:
                await connection.execute(statement)
    except PinstripeError as error:
        lacks_right = error.fault is not None and error.fault.sqlstate == "42501"
        remedy = trial.remedy if lacks_right else error.hint
        return Finding(
            trial.about, "problem", f"{trial.failed}. {error.message}", remedy, _UNWRITABLE
        )
    finally:
        await transaction.rollback()
    return Finding(trial.about, "ok", trial.passed)


def _unused() -> str:
    """A name that nobody has taken."""
    return f"pinstripe_check_{secrets.token_hex(6)}"
