"""The SQL page: runs one statement that reads, and shows its rows or returns them as CSV.

A statement is sent in a form, so no URL and no log contains it. It is canceled when the client
disconnects. CSV is written in chunks and is safe to open in a spreadsheet. The examples offered are
complete, fast statements whose tables all exist.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Container, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import asyncpg
import msgspec
from starlette.responses import Response, StreamingResponse

from pinstripe.catalog.relations import types_of
from pinstripe.catalog.tables import table_of_object
from pinstripe.console import sql_run
from pinstripe.console.page_context import PageContext
from pinstripe.console.rows import Reference
from pinstripe.console.sql_run import Failed, Readers, Result, SqlTarget, chunks
from pinstripe.console.templating import HEADERS, HERE, Notice
from pinstripe.errors import PinstripeError, Unreachable
from pinstripe.gateway.http.middleware import disconnected, unless
from pinstripe.store.pool import translated
from pinstripe.store.syncs import load_table_names

_NAMES = """
SELECT c.relname::text, array_agg(a.attname::text ORDER BY a.attnum)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm')
GROUP BY 1 ORDER BY 1
"""

_GRACE_S = 5.0
"""Beyond a statement's own limit: for connecting, and for a server that does not keep its limit."""

_LONGEST_S = 900.0
"""Of a download, however slowly it is read."""

_ID = 80


class Sql:
    """The pages below `/syncs/{sync}/sql`."""

    def __init__(self) -> None:
        self._readers = Readers()

    async def show(self, visit: PageContext) -> Response:
        """The empty box, or an example in it."""
        return await _page(visit, "")

    async def names(self, visit: PageContext) -> Response:
        """Tables and their columns, for completing words: {table: [column, ...]}."""
        async with visit.gateway.reads.connection() as connection:
            rows = await connection.fetch(_NAMES, visit.sync.schema)
        body = msgspec.json.encode({row[0]: row[1] for row in rows})
        headers = {**HEADERS, "Cache-Control": "no-store"}
        return Response(body, headers=headers, media_type="application/json")

    async def run(self, visit: PageContext) -> Response:
        """A statement's rows; or an example put into the box, which is not run."""
        statement = _statement(visit)
        chosen = visit.text("example")
        if chosen:
            return await _page(visit, chosen)
        if not statement.strip():
            return await _page(visit, "", messages=[Notice("Enter a statement.")])
        try:
            work = self._result(visit, statement)
            result = await unless(disconnected(visit.request.receive), work)
        except Failed as failed:
            return await _page(visit, statement, failed=failed)
        except PinstripeError as error:
            return await _page(visit, statement, trouble=error)
        if result is None:
            return _gone()
        return await _page(visit, statement, result=result)

    async def csv(self, visit: PageContext) -> Response:
        """The same statement's rows as a file."""
        statement = _statement(visit)
        lines = self._lines(visit, statement)
        try:
            # Fetch the first lines before the response starts, so that errors can be reported.
            first = await unless(disconnected(visit.request.receive), anext(lines))
        except Failed as failed:
            return await _page(visit, statement, failed=failed)
        except PinstripeError as error:
            return await _page(visit, statement, trouble=error)
        if first is None:
            return _gone()
        headers = {
            **HEADERS,
            "Cache-Control": "no-store",
            "Content-Disposition": 'attachment; filename="rows.csv"',
        }
        body = _after(first, lines)
        return StreamingResponse(body, headers=headers, media_type="text/csv; charset=utf-8")

    async def _result(self, visit: PageContext, statement: str) -> Result:
        limit = sql_run.STATEMENT_S
        async with (
            _within(sql_run.PLACE_S + limit + _GRACE_S),
            self._readers.connection(_place(visit), statement_s=limit) as connection,
        ):
            with translated():
                return await sql_run.run(connection, statement)

    async def _lines(self, visit: PageContext, statement: str) -> AsyncGenerator[str, None]:
        limit = STATEMENT_S
        clock = asyncio.get_running_loop().time
        began = clock()
        async with self._readers.connection(
            _place(visit), statement_s=limit, downloads=True
        ) as connection:
            with translated():
                async with aclosing(lines(connection, statement)) as found:
                    # A reader that takes little at a time gives its place back in the end.
                    while clock() - began < _LONGEST_S:
                        async with _within(limit + _GRACE_S):
                            text = await anext(found, None)
                        if text is None:
                            return
                        yield text
                    raise _late()


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    """Raises Unreachable beyond: a server that hangs does not keep its own limit."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise _late() from error


def _late() -> Unreachable:
    return Unreachable(
        "Postgres did not respond in time.", hint="Other queries may be running. Try again."
    )


def _place(visit: PageContext) -> SqlTarget:
    parts = visit.gateway.parts
    return SqlTarget(visit.sync.schema, parts.database_url(), parts.reader_url)


async def _page(
    visit: PageContext,
    statement: str,
    *,
    messages: list[Notice] | None = None,
    result: Result | None = None,
    failed: Failed | None = None,
    trouble: PinstripeError | None = None,
) -> Response:
    async with visit.gateway.reads.connection() as connection:
        here = await load_table_names(connection, visit.sync.schema)
    return visit.page(
        "sql.html",
        messages=messages or (),
        # An invalid statement is a normal result of this page.
        status=503 if trouble is not None else 200,
        statement=statement,
        result=result,
        failed=failed,
        trouble=trouble,
        tables=sorted(here),
        examples=examples(here),
        reference=lambda value: _reference(value, here),
        most=sql_run.MOST_ROWS,
        most_csv=MOST_ROWS,
        longest_s=sql_run.STATEMENT_S,
    )


def _reference(value: str, here: set[str]) -> Reference | None:
    """Return the table of an id in a result, if its prefix is known and the table exists."""
    if "_" not in value or len(value) > _ID or not value.isascii():
        return None
    found = {table_of_object().get(kind) for kind in types_of(value)} & here
    return Reference(value, found.pop()) if len(found) == 1 else None


def _statement(visit: PageContext) -> str:
    return visit.text("statement").replace("\r\n", "\n").replace("\0", "")


async def _after(first: str, lines: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    async with aclosing(lines):
        yield first
        async for text in lines:
            yield text


def _gone() -> Response:
    """Nobody reads it."""
    return Response(status_code=499, headers=HEADERS)


STATEMENT_S = 60
MOST_ROWS = 100_000
_SPECIAL = re.compile(r'[,"\r\n]|^\s|\s$')

# Text that a spreadsheet reads as a formula; and numbers, which are allowed.
_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")

_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE)


async def lines(connection: asyncpg.Connection, statement: str) -> AsyncGenerator[str, None]:
    """The header, then the rows, up to `MOST_ROWS`. Raises `sql_run.Failed`, mostly at the first."""
    sent: int | None = None
    async with aclosing(chunks(connection, statement)) as found:
        async for chunk in found:
            head = line([c.name for c in chunk.columns]) if sent is None else ""
            sent = sent or 0
            rows = chunk.rows[: MOST_ROWS - sent]
            sent += len(rows)
            yield head + "".join(line(row) for row in rows)
            if sent >= MOST_ROWS:
                return


def line(values: Sequence[str | None]) -> str:
    r"""Return one record. Null is empty, an empty text is "".

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


@dataclass(frozen=True, slots=True)
class Example:
    """`tables` are those that it reads."""

    title: str
    tables: tuple[str, ...]
    statement: str


def _example(text: str) -> Example:
    head, _, statement = text.partition("\n")
    title, _, names = head.removeprefix("-- ").partition(": ")
    return Example(title, tuple(names.split(", ")), statement)


EXAMPLES = [_example(t) for t in (HERE / "examples.sql").read_text().strip().split("\n\n")[1:]]


def examples(here: Container[str]) -> list[Example]:
    """Return the examples whose tables all exist."""
    return [e for e in EXAMPLES if all(t in here for t in e.tables)]
