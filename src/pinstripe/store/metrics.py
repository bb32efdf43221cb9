"""The schema of views that compute metrics from the synced tables (docs/concepts/metrics.md).

    sql/metrics_base.sql   the settings, and small functions
    sql/metrics.sql        each view: its words, its columns, its SELECT

Each SELECT becomes a function with a string for a body, and a view over it. So nothing of the synced tables
depends on a view: a table can be dropped, retyped or never synced, and only the views that read it say so
when they are asked. The functions run with the caller's rights: the schema is open to everyone, the tables
behind it are not. A schema of that name that Pinstripe did not make is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files

import asyncpg
import structlog

from pinstripe.store.ddl import literal, qualified, quote
from pinstripe.store.pool import Connection

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_OURS = "Pinstripe: metrics of the schema "
_HEAD = re.compile(r"--@ (\w+): (.*)")
_COLUMN = re.compile(r"--  (\w+) ([\w\[\]]+): (.*)")


@dataclass(frozen=True, slots=True)
class View:
    """One view. `columns`: (name, type, comment). One whose name begins with an underscore is a step of
    others.
    """

    name: str
    comment: str
    columns: tuple[tuple[str, str, str], ...]
    select: str

    def statements(self, stripe: str, metrics: str) -> list[str]:
        """CREATE of the function and the view, with comments. `stripe`, `metrics`: names of schemas."""
        name = qualified(metrics, self.name)
        returns = ", ".join(f"{quote(c)} {kind}" for c, kind, _ in self.columns)
        body = literal(self.select_in(stripe, metrics))
        made = [
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS TABLE ({returns})"
            f" LANGUAGE sql STABLE PARALLEL SAFE ROWS 1000 AS {body}",
            f"CREATE OR REPLACE VIEW {name} AS SELECT * FROM {name}()",
            f"COMMENT ON VIEW {name} IS {literal(self.comment)}",
        ]
        made += [
            f"COMMENT ON COLUMN {name}.{quote(c)} IS {literal(text)}" for c, _, text in self.columns
        ]
        return made

    def select_in(self, stripe: str, metrics: str) -> str:
        """The SELECT that the view is, for these schemas."""
        return _filled(self.select, stripe, metrics)


def metrics_schema(schema: str) -> str:
    """The schema of the views over the tables of `schema`.

    >>> metrics_schema("stripe"), metrics_schema("shop")
    ('metrics', 'shop_metrics')
    """
    return "metrics" if schema == "stripe" else f"{schema}_metrics"


@cache
def views() -> Sequence[View]:
    """Every view, in the order in which they rest on each other."""
    found: list[View] = []
    for block in re.split(r"^(?=--@ )", _text("metrics.sql"), flags=re.M)[1:]:
        head, *rest = block.rstrip().splitlines()
        named = _HEAD.fullmatch(head)
        if named is None:
            raise ValueError(f"metrics.sql: {head!r} names no view")
        columns = [m.groups() for line in rest if (m := _COLUMN.fullmatch(line))]
        select = "\n".join(line for line in rest if not _COLUMN.fullmatch(line))
        name, comment = named.groups()
        found.append(View(name, comment, tuple((a, b, c) for a, b, c in columns), select))
    return tuple(found)


async def ensure_metrics(connection: Connection, schema: str) -> None:
    """Create the views, or replace those of another version. What prevents it is logged, never raised."""
    metrics = metrics_schema(schema)
    statements = [_filled(_text("metrics_base.sql"), schema, metrics)]
    statements += [one for view in views() for one in view.statements(schema, metrics)]
    digest = sha256(";".join(statements).encode()).hexdigest()[:12]
    mark = f"{_OURS}{schema} ({digest})"
    there = await connection.fetchrow(
        "SELECT pg_catalog.obj_description(n.oid, 'pg_namespace') AS mark"
        " FROM pg_catalog.pg_namespace AS n WHERE n.nspname = $1",
        metrics,
    )
    if there is not None and there["mark"] == mark:
        return
    if there is not None and not str(there["mark"] or "").startswith(f"{_OURS}{schema} ("):
        _log.warning(
            "metrics.left_out", schema=metrics, reason="a schema of that name is not Pinstripe's"
        )
        return
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '2s'")
            # Tables may be missing: a view says so when it is asked.
            await connection.execute("SET LOCAL check_function_bodies = off")
            if there is None:
                await connection.execute(f"CREATE SCHEMA {quote(metrics)}")
            else:
                await _drop_views(connection, metrics)
            await connection.execute(";\n".join(statements))
            await connection.execute(
                f"COMMENT ON SCHEMA {quote(metrics)} IS {literal(mark)};"
                f" GRANT USAGE ON SCHEMA {quote(metrics)} TO PUBLIC;"
                f" GRANT SELECT ON ALL TABLES IN SCHEMA {quote(metrics)} TO PUBLIC"
            )
    except asyncpg.PostgresError as error:
        _log.warning("metrics.left_out", schema=metrics, reason=str(error.args[0]))


async def _drop_views(connection: Connection, metrics: str) -> None:
    """Drop the views and functions of an earlier version, so that columns may change. Fails, and leaves all
    as it is, where views of the user rest on them. The settings stay.
    """
    rows = await connection.fetch(
        "SELECT p.proname::text FROM pg_catalog.pg_proc AS p"
        " WHERE p.pronamespace = $1::text::regnamespace AND p.proretset ORDER BY p.oid DESC",
        quote(metrics),
    )
    names = [row[0] for row in rows]
    if names:
        listed = ", ".join(qualified(metrics, name) for name in names)
        called = ", ".join(f"{qualified(metrics, name)}()" for name in names)
        await connection.execute(f"DROP VIEW IF EXISTS {listed}; DROP FUNCTION {called}")


async def drop_metrics(connection: Connection, schema: str) -> None:
    """Drop the views' schema, settings included, if it is Pinstripe's and nothing else rests on it."""
    metrics = metrics_schema(schema)
    mark = await connection.fetchval(
        "SELECT pg_catalog.obj_description(pg_catalog.to_regnamespace($1)::oid, 'pg_namespace')",
        quote(metrics),
    )
    if not str(mark or "").startswith(f"{_OURS}{schema} ("):
        return
    try:
        async with connection.transaction():
            await _drop_views(connection, metrics)
            name = quote(metrics)
            await connection.execute(
                f"DROP TABLE {name}.settings; DROP AGGREGATE {name}._product(numeric);"
                f" DROP FUNCTION {name}._multiply, {name}._sign, {name}._quantity,"
                f" {name}._without_tax, {name}._tiered; DROP SCHEMA {name}"
            )
    except asyncpg.DependentObjectsStillExistError as error:
        _log.warning("metrics.left", schema=metrics, reason=str(error.args[0]))


def _text(name: str) -> str:
    return files("pinstripe.store").joinpath("sql", name).read_text()


def _filled(text: str, stripe: str, metrics: str) -> str:
    return text.replace("{stripe}", quote(stripe)).replace("{metrics}", quote(metrics))
