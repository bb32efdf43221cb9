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
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal

import asyncpg

from pinstripe.errors import Misconfigured, PinstripeError, Unreachable
from pinstripe.store.ddl import quote
from pinstripe.store.pool import close_quietly, connect_dedicated, sqlstate, translated
from pinstripe.store.roles import Limits, renew_reader

STATEMENT_S = 10

MOST_ROWS = 1000

_MOST_CHARS = 4_000_000
"""Of one result on a page; a browser has trouble with more."""

_CHUNK = 200

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
    """A column of a result."""

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

    Rows come from a cursor of the server's: neither side holds all of them. Raises Failed.
    """
    transaction = connection.transaction(readonly=True)
    try:
        await transaction.start()
        prepared = await connection.prepare(statement)
        if prepared.get_parameters():
            raise Failed(
                "The statement has parameters ($1).", hint="Replace them with literal values."
            )
        columns = tuple(
            ResultColumn(a.name, _TYPES.get(a.type.name, a.type.name))
            for a in prepared.get_attributes()
        )
        if not columns:
            raise Failed(
                "The statement returns no rows and was not run.",
                hint="Only statements that read are allowed: SELECT, WITH, VALUES, TABLE, EXPLAIN, SHOW.",
            )
        cursor = await prepared.cursor()
        records = await cursor.fetch(_CHUNK)
        yield Chunk(columns, _texts(records))
        while len(records) == _CHUNK:
            records = await cursor.fetch(_CHUNK)
            yield Chunk(columns, _texts(records))
    except asyncpg.PostgresError as error:
        raise _failed(error, statement) from error
    except (asyncpg.UnsupportedClientFeatureError, ValueError, OverflowError) as error:
        # A value that the driver cannot represent: a year BC, a type of an extension.
        raise Failed(
            f"A value cannot be displayed: {error}.", hint="Cast the column to text: column::text."
        ) from error

    # No rollback here: the session ends with the block that opened it.


def _failed(error: asyncpg.PostgresError, statement: str) -> Failed:
    code = error.sqlstate or ""
    said = str(getattr(error, "message", None) or error)
    hints = [str(h) for h in (getattr(error, "detail", None), getattr(error, "hint", None)) if h]
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


def _texts(records: Sequence[asyncpg.Record]) -> list[tuple[str | None, ...]]:
    return [tuple(text_of(value) for value in record) for record in records]


def text_of(value: object) -> str | None:
    """A value much as psql shows it.

    >>> text_of(True), text_of([1, None]), text_of(b"a"), text_of(Decimal("1E+3"))
    ('true', '{1,NULL}', '\\\\x61', '1000')
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, list):
        return "{" + ",".join("NULL" if v is None else text_of(v) or "" for v in value) + "}"
    if isinstance(value, asyncpg.Record):
        return "(" + ",".join(text_of(v) or "" for v in value.values()) + ")"
    return str(value)


_AT_ONCE = 5
"""Statements and downloads that run side by side; the role may have twice as many sessions."""

_LIMITS = Limits(connections=2 * _AT_ONCE, statement_s=10)

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
        self._places = asyncio.Semaphore(_AT_ONCE)

    @asynccontextmanager
    async def connection(
        self, place: SqlTarget, *, statement_s: int
    ) -> AsyncIterator[asyncpg.Connection]:
        """Open a session whose statements are limited to `statement_s`.

        Raises Misconfigured, with the remedy in its hint, if no role is available.
        """
        async with self._places:
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
