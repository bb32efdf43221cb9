"""Running what somebody typed: one statement that reads, for a while, up to so many rows.

The extended protocol takes one statement only; it runs in a read-only transaction that is rolled back,
as a role that may write nothing. A statement that returns no rows is not run at all: COPY, DO, SET and
their kin have no place here.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal

import asyncpg

from pinstripe.errors import PinstripeError

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
            raise Failed("The statement has parameters ($1).", hint="Write the values into it.")
        columns = tuple(
            ResultColumn(a.name, _TYPES.get(a.type.name, a.type.name))
            for a in prepared.get_attributes()
        )
        if not columns:
            raise Failed(
                "The statement returns no rows, so it was not run.",
                hint="The box only reads: SELECT, WITH, VALUES, TABLE, EXPLAIN, SHOW.",
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
        # A value that the driver cannot hold: a year before Christ, a type of an extension.
        raise Failed(
            f"A value cannot be shown: {error}.", hint="Cast the column to text: column::text."
        ) from error
    # What was read is not rolled back here: the session ends with the block that opened it.


def _failed(error: asyncpg.PostgresError, statement: str) -> Failed:
    code = error.sqlstate or ""
    said = str(getattr(error, "message", None) or error)
    hints = [str(h) for h in (getattr(error, "detail", None), getattr(error, "hint", None)) if h]
    if code == "57014":
        said = f"The statement took longer than it may ({STATEMENT_S} s here) and was stopped."
        hints = ["Ask for less: a shorter time, fewer rows, a condition on an indexed column."]
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
