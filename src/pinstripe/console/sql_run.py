"""Runs one statement typed by a user: read-only, with a time limit and a row limit.

The extended protocol accepts one statement only. It runs in a read-only transaction that is rolled
back, as a role that can read one schema and nothing else. A statement that returns no rows is not run
at all, which excludes COPY, DO and SET.

The session is never our own connection with reduced rights: a statement could restore them. The role is
created on first use, with a password that only this process knows. If our user cannot create roles,
`PINSTRIPE_READER_URL` names one that an administrator created.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from pinstripe.errors import Misconfigured, PinstripeError, Unreachable
from pinstripe.store.ddl import quote
from pinstripe.store.pool import close_quietly, connect_dedicated, sqlstate, translated
from pinstripe.store.roles import Limits, renew_reader

STATEMENT_S = 10
MOST_ROWS = 1000
_MOST_CHARS = 1_000_000
"""Of one result on a page; a browser has trouble with more."""

_ROW_BYTES = 1_000_000
"""Of one row. A wider one arrives with its long values cut, each with its length behind it."""

_MOST_SAID = 2000
"""Of an error's words: they may repeat a value of any length."""

_CHUNK = 32
"""Rows in memory at a time: with `_ROW_BYTES`, some 32 MB at most, whatever a statement returns."""

_TYPES = {
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "bool": "boolean",
    "float4": "real",
    "float8": "double",
    "varchar": "varchar",
    "bpchar": "char",
}

_NUMBERS = {"smallint", "integer", "bigint", "numeric", "real", "double", "oid", "money"}


@dataclass(frozen=True, slots=True)
class ResultColumn:
    name: str
    type: str

    @property
    def is_number(self) -> bool:
        return self.type in _NUMBERS


@dataclass(frozen=True, slots=True)
class Result:
    """Rows as text, None for null. `cut`: there are more."""

    columns: tuple[ResultColumn, ...]
    rows: list[tuple[str | None, ...]]
    cut: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a result."""

    columns: tuple[ResultColumn, ...]
    rows: list[tuple[str | None, ...]]


class Failed(PinstripeError):
    """The statement is wrong, or Postgres stopped it. `line` and `column` begin at 1; 0 is unknown."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        code: str = "",
        statement: str = "",
        position: int = 0,
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        before = statement[: max(position - 1, 0)]
        self.line = before.count("\n") + 1 if position else 0
        self.column = len(before) - (before.rfind("\n") + 1) + 1 if position else 0
        lines = statement.splitlines()
        self.excerpt = lines[self.line - 1] if 0 < self.line <= len(lines) else ""


async def run(connection: asyncpg.Connection, statement: str) -> Result:
    """The first rows of a statement. Raises Failed."""
    began = time.perf_counter()
    rows: list[tuple[str | None, ...]] = []
    columns: tuple[ResultColumn, ...] = ()
    chars, cut = 0, False
    async with aclosing(chunks(connection, statement)) as found:
        async for chunk in found:
            columns = chunk.columns
            for row in chunk.rows:
                chars += sum(len(value) for value in row if value)
                cut = len(rows) == MOST_ROWS or chars > _MOST_CHARS
                if cut:
                    break
                rows.append(row)
            if cut:
                break
    return Result(columns, rows, cut, time.perf_counter() - began)


async def chunks(connection: asyncpg.Connection, statement: str) -> AsyncGenerator[Chunk, None]:
    """All rows, some at a time; one chunk without rows if there are none.

    Values become text on the server, which also cuts what is too long: a row of 1 GB never crosses the
    connection. Rows come from a cursor of the server's: neither side holds all of them. Raises Failed.
    """
    try:
        columns, prepared = await _prepared(connection, statement)
        await connection.transaction(readonly=True).start()
        cursor = await prepared.cursor()
        records = await cursor.fetch(_CHUNK)
        yield Chunk(columns, _rows(records))
        while len(records) == _CHUNK:
            records = await cursor.fetch(_CHUNK)
            yield Chunk(columns, _rows(records))
    except asyncpg.PostgresError as error:
        raise _failed(error, statement) from error

    # No rollback here: the session ends with the block that opened it.


async def _prepared(
    connection: asyncpg.Connection, statement: str
) -> tuple[tuple[ResultColumn, ...], PreparedStatement]:
    """Return the columns of a statement, and what returns their values as bounded text."""
    # The statement by itself first: its errors have the user's own positions.
    prepared = await connection.prepare(statement)
    if prepared.get_parameters():
        raise Failed("The statement has parameters ($1).", hint="Replace them with literal values.")
    columns = tuple(
        ResultColumn(a.name, _TYPES.get(a.type.name, a.type.name))
        for a in prepared.get_attributes()
    )
    if not columns:
        raise Failed(
            "The statement returns no rows and was not run.",
            hint="Only statements that read are allowed: SELECT, WITH, VALUES, TABLE, EXPLAIN, SHOW.",
        )
    if _NO_SUBQUERY.match(statement):
        return columns, prepared
    # A semicolon that ends the statement cannot stand in a subquery.
    ended = _END.sub("", statement)
    for text in dict.fromkeys((statement, ended)):
        with suppress(asyncpg.PostgresSyntaxError):
            return columns, await connection.prepare(_bounded(text, len(columns)))
    raise Failed(
        "The statement cannot be read as a query.",
        hint="Only statements that read are allowed: SELECT, WITH, VALUES, TABLE, EXPLAIN, SHOW.",
    )


_NO_SUBQUERY = re.compile(r"(\s|--[^\n]*\n|/\*.*?\*/)*(explain|show)\b", re.IGNORECASE | re.DOTALL)
"""Their results are short texts, and they cannot stand within another statement."""

_END = re.compile(r";(\s|;|--[^\n]*(\n|\Z)|/\*.*?\*/)*\Z", re.DOTALL)


def _bounded(statement: str, width: int) -> str:
    """Return a query for the rows of `statement` as text; long values of rows that are too wide are cut."""
    names = [f"c{n}" for n in range(width)]
    most = _ROW_BYTES // 4 // width
    texts = ", ".join(f"(q.{n})::pg_catalog.text AS {n}" for n in names)
    total = " + ".join(f"coalesce(pg_catalog.octet_length({n}), 0)" for n in names)
    shown = ", ".join(
        f"CASE WHEN total <= {_ROW_BYTES} OR pg_catalog.octet_length({n}) <= {most} THEN {n} "
        f"ELSE pg_catalog.left({n}, {most}) || "
        f"pg_catalog.format('... (%s bytes)', pg_catalog.octet_length({n})) END"
        for n in names
    )
    # OFFSET 0 keeps the planner from computing each text twice.
    return (
        f"SELECT {shown} FROM (SELECT *, {total} AS total FROM (SELECT {texts} FROM (\n{statement}\n)"
        f" AS q ({', '.join(names)}) OFFSET 0) AS t OFFSET 0) AS u"
    )


def _failed(error: asyncpg.PostgresError, statement: str) -> Failed:
    code = error.sqlstate or ""
    said = str(getattr(error, "message", None) or error)[:_MOST_SAID]
    told = (getattr(error, "detail", None), getattr(error, "hint", None))
    hints = [str(hint)[:_MOST_SAID] for hint in told if hint]
    if code == "57014":
        said = f"The statement took longer than {STATEMENT_S} s and was canceled."
        hints = [
            "Narrow the query: a shorter period, fewer rows, or a condition on an indexed column."
        ]
    if code == "42601" and "multiple commands" in said:
        hints = ["Run one statement at a time."]
    position = str(getattr(error, "position", None) or "")
    return Failed(
        said,
        hint=" ".join(hints),
        code=code,
        statement=statement,
        position=int(position) if position.isdecimal() else 0,
    )


def _rows(records: Sequence[asyncpg.Record]) -> list[tuple[str | None, ...]]:
    return [tuple(record) for record in records]


_STATEMENTS, _DOWNLOADS = 5, 3
"""Places: so many run side by side. The role may have twice as many sessions."""
PLACE_S = 10.0
"""The longest wait for one."""

_LIMITS = Limits(connections=2 * (_STATEMENTS + _DOWNLOADS), statement_s=10)
_LOGIN_REFUSED = {"28P01", "28000"}

_MAY_WRITE = """
SELECT rolsuper OR has_schema_privilege(current_user, $1, 'CREATE')
  OR EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = to_regnamespace($2)
             AND c.relkind IN ('r', 'p') AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE'))
FROM pg_roles WHERE rolname = current_user
"""


@dataclass(frozen=True, slots=True)
class SqlTarget:
    """The schema to read. `database_url` is our own login; `reader_url` a role created by others, ""
    for none.
    """

    schema: str
    database_url: str | None = field(repr=False)
    reader_url: str = field(default="", repr=False)


class Readers:
    """The read-only roles of this process, by schema."""

    def __init__(self) -> None:
        self._urls: dict[str, str] = {}
        self._making = asyncio.Lock()
        self._statements = asyncio.Semaphore(_STATEMENTS)
        self._downloads = asyncio.Semaphore(_DOWNLOADS)

    @asynccontextmanager
    async def connection(
        self, place: SqlTarget, *, statement_s: int, downloads: bool = False
    ) -> AsyncIterator[asyncpg.Connection]:
        """Open a session whose statements are limited to `statement_s`. Downloads have their own places.

        Raises Misconfigured, with the remedy in its hint, if no role is available; Unreachable if no place
        gets free.
        """
        async with _taken(self._downloads if downloads else self._statements):
            connection = await self._connect(place)
            try:
                with translated():
                    if place.reader_url:
                        await _check_reads_only(connection, place.schema)
                    await connection.execute(
                        f"SET search_path = {quote(place.schema)}; "
                        "SET default_transaction_read_only = on; "
                        f"SET statement_timeout = '{statement_s}s'; "
                        "SET idle_in_transaction_session_timeout = '60s'; SET lock_timeout = '5s'"
                    )
                yield connection
            finally:
                await close_quietly(connection)

    async def _connect(self, place: SqlTarget) -> asyncpg.Connection:
        if place.reader_url:
            return await _open(place.reader_url)
        known = self._urls.get(place.schema)
        if known is not None:
            try:
                return await _open(known)
            except PinstripeError as error:
                # Another process reset the password, or the role was dropped.
                if sqlstate(error) not in _LOGIN_REFUSED:
                    raise
        async with self._making:
            if self._urls.get(place.schema) == known:
                self._urls[place.schema] = await _renewed(place)
            return await _open(self._urls[place.schema])


@asynccontextmanager
async def _taken(places: asyncio.Semaphore) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(PLACE_S):
            await places.acquire()
    except TimeoutError:
        raise Unreachable(
            "As many statements or downloads as are allowed are under way.",
            hint="Try again when one has ended.",
        ) from None
    try:
        yield
    finally:
        places.release()


async def _renewed(place: SqlTarget) -> str:
    if not place.database_url:
        raise Unreachable("The database is not available yet.", hint="Try again in a few seconds.")
    reader = await renew_reader(place.database_url, place.schema, purpose="console", limits=_LIMITS)
    return reader.url


async def _open(url: str) -> asyncpg.Connection:
    return await connect_dedicated(url, application_name="pinstripe console")


async def _check_reads_only(connection: asyncpg.Connection, schema: str) -> None:
    if await connection.fetchval(_MAY_WRITE, schema, quote(schema)):
        raise Misconfigured(
            "The role in PINSTRIPE_READER_URL can write, so the SQL page does not use it.",
            hint="Use a read-only role: `pinstripe reader create` creates one.",
        )
