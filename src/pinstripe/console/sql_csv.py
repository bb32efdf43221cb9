"""A result as CSV, a chunk at a time, safe to open in a spreadsheet. Pure but for the rows' source."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import asyncpg

from pinstripe.console.sql_run import ResultColumn, chunks

STATEMENT_S = 60
MOST_ROWS = 100_000

_SPECIAL = re.compile(r'[,"\r\n]|^\s|\s$')
# What a spreadsheet takes for a formula, and numbers, which it may.
_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE)


async def lines(connection: asyncpg.Connection, statement: str) -> AsyncGenerator[str, None]:
    """The header, then the rows, up to `MOST_ROWS`. Raises `sql_run.Failed`, mostly at the first."""
    sent: int | None = None
    async with aclosing(chunks(connection, statement)) as found:
        async for chunk in found:
            head = _header(chunk.columns) if sent is None else ""
            sent = sent or 0
            rows = chunk.rows[: MOST_ROWS - sent]
            sent += len(rows)
            yield head + "".join(line(row) for row in rows)
            if sent >= MOST_ROWS:
                return


def _header(columns: Sequence[ResultColumn]) -> str:
    return line([c.name for c in columns])


def line(values: Sequence[str | None]) -> str:
    r"""One record. Null is nothing, an empty text is "".

    >>> line(["a", None, "", 'say "x", y', "=1+1", "-5"])
    'a,,"","say ""x"", y",\'=1+1,-5\r\n'
    """
    return ",".join(field(v) for v in values) + "\r\n"


def field(value: str | None) -> str:
    """One value; an apostrophe before what a spreadsheet would run."""
    if value is None:
        return ""
    if _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        value = f"'{value}"
    if not value or _SPECIAL.search(value):
        return '"' + value.replace('"', '""') + '"'
    return value
