"""Writes batches of rows: COPY into a stage, one guarded upsert per table and shape, one commit.

A `Writer` owns one connection. Everything of a `Batch` (rows of many tables and the checkpoints that
vouch for them) becomes visible in one transaction, or nothing does. Tables and keys are taken in one
order by every writer, so that two of them never wait for each other in a circle.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Self

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from pinstripe.catalog.tables import Table
from pinstripe.rows.extract import Row
from pinstripe.rows.layout import Shapes
from pinstripe.store.batch import Batch, Contested, question_of
from pinstripe.store.changes import Causes, Recorder, delete_rows
from pinstripe.store.cursors import save_checkpoints
from pinstripe.store.ddl import quote
from pinstripe.store.lost import until_lost
from pinstripe.store.pool import connect_dedicated, translated
from pinstripe.store.todo import add_todos, cross_out
from pinstripe.store.upsert import (
    STAGE_EXTRA,
    complete,
    contested,
    create_stage,
    insert,
    stage_name,
    update,
)
from pinstripe.store.vanish import gone, tombstones, vanished

_MOST_STAGES = 48
_MOST_STATEMENTS = 256
_DEAD_ROWS = 3000
_OVER = -3
"""Where a row says which version of it was seen before: then it is there, and an update finds it."""

_Statement = tuple[str, str, int]
"""(kind, table, shape): "insert" (shape -1), "update" or "complete"."""


class Writer:
    """One connection that writes. Not for two tasks at once."""

    def __init__(
        self,
        url: str,
        schema: str,
        tables: Mapping[str, Table],
        shapes: Shapes,
        *,
        recorder: Recorder | None = None,
        session_name: str = "pinstripe",
    ) -> None:
        """`recorder`: notes the changes, if the feed is on; it is this writer's alone."""
        self._url = url
        self._schema = schema
        self._tables = tables
        self._shapes = shapes
        self._recorder = recorder
        self._session_name = session_name
        self._connection: asyncpg.Connection | None = None
        # Least recently used first, both. The number: dead rows that a stage still holds.
        self._stages: OrderedDict[str, int] = OrderedDict()
        self._filled: dict[str, int] = {}
        """Stages that hold rows of the transaction under way, and how many."""
        self._statements: OrderedDict[_Statement, PreparedStatement] = OrderedDict()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Lets the connection go. The next `write` makes a new one."""
        connection, self._connection = self._connection, None
        self._stages.clear()
        self._filled.clear()
        self._statements.clear()
        if connection is not None and not connection.is_closed():
            connection.terminate()

    async def write(self, batch: Batch) -> list[Contested]:
        """Commits the batch; gives the rows that could not be decided by time.

        A lost connection leaves nothing written (Unreachable) and is made anew by the next call.
        """
        try:
            connection = await self._connected()
            with translated(), self._recorder.transaction() if self._recorder else nullcontext():
                async with until_lost(connection):
                    return await self._transaction(connection, batch)
        except BaseException:
            # Cancelled or failed halfway: what the session holds is not known.
            await self.close()
            raise

    async def _transaction(self, connection: asyncpg.Connection, batch: Batch) -> list[Contested]:
        # Not `connection.transaction()`: its ROLLBACK over a session that the server has ended fails
        # in its own way and hides why. What fails here ends with the connection.
        await connection.execute("BEGIN")
        contests = await self._rounds(connection, batch)
        await self._vanish(connection, batch)
        # Noted in the same commit: a crash before the GET must not lose the question.
        await add_todos(connection, self._schema, [question_of(c) for c in contests])
        await cross_out(connection, self._schema, batch.answers)
        await save_checkpoints(connection, self._schema, batch.checkpoints)
        for effect in batch.effects:
            await effect(connection)
        if self._recorder is not None:
            await self._recorder.write(connection)
        # With the commit, in one round trip.
        await connection.execute("; ".join([*map(self._emptying, list(self._filled)), "COMMIT"]))
        for answer in batch.answers:
            answer.is_noted = True
        return contests

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            await self.close()
            self._connection = await connect_dedicated(
                self._url, application_name=self._session_name
            )
        return self._connection

    async def _rounds(self, connection: asyncpg.Connection, batch: Batch) -> list[Contested]:
        found: list[Contested] = []
        # Table by table, and all rounds of one before the next: two writers take their locks in the
        # same order then. (A later round speaks of keys that the first has locked already.)
        for table in sorted({name for one_round in batch.rounds for name in one_round}):
            for one_round, causes in zip(batch.rounds, batch.causes, strict=True):
                group = one_round.get(table)
                if group:
                    found += await self._upsert(connection, table, group, batch.api_version, causes)
        return found

    async def _vanish(self, connection: asyncpg.Connection, batch: Batch) -> None:
        """Flags or deletes rows that a list shown to its end no longer has."""
        lists = [
            (self._tables[c], parent, batch.whole[c, parent]) for c, parent in sorted(batch.whole)
        ]
        for table, keys in await vanished(connection, self._schema, lists):
            child = table.name
            flags = tombstones(table, self._shapes, keys)
            if flags is not None:
                causes = {(child, key): proof.cause for key, proof in keys.items() if proof.cause}
                await self._upsert(connection, child, flags, batch.api_version, causes)
                continue
            for cause in sorted({proof.cause for proof in keys.values()}, key=str):
                mine = [key for key, proof in keys.items() if proof.cause == cause]
                await delete_rows(connection, self._schema, table, gone(table), mine, cause=cause)

    async def _upsert(
        self,
        connection: asyncpg.Connection,
        name: str,
        group: Mapping[str, Row],
        version: str,
        causes: Causes,
    ) -> list[Contested]:
        table = self._tables[name]
        stage = await self._stage(connection, table)
        if stage in self._filled:
            await connection.execute(self._emptying(stage))
        self._filled[stage] = len(group)
        await connection.copy_records_to_table(
            stage,
            records=[group[key] for key in sorted(group)],
            columns=[*(c.name for c in table.columns), *STAGE_EXTRA],
        )
        recorder = self._recorder_for(name, group, causes)
        known = await recorder.before(connection, table) if recorder else 0
        shapes = sorted({row[-1] for row in group.values()})
        left = len(group)
        if recorder is None and all(row[_OVER] is not None for row in group.values()):
            left -= await self._update(connection, name, shapes, version)
        if left:
            left -= await self._run(connection, ("insert", name, -1), version)
        if recorder and known < left:
            known += await recorder.raced(connection, table)
        found: list[Contested] = []
        if left:
            left -= await self._update(connection, name, shapes, version)
        for shape in shapes if left else ():
            if complete(self._schema, table, self._shapes.columns(shape)) is not None:
                left -= await self._run(connection, ("complete", name, shape), shape)
        for shape in shapes if left else ():
            text = contested(self._schema, table, self._shapes.columns(shape))
            rows = await connection.fetch(text, shape)
            found += [Contested(name, row[0], row[-1], causes.get((name, row[0]))) for row in rows]
        if recorder:
            await recorder.after(connection, table, causes)
            await recorder.forget(connection, known)
        return found

    async def _update(
        self, connection: asyncpg.Connection, name: str, shapes: Sequence[int], version: str
    ) -> int:
        """Updates from the stage; gives the number of rows. Running it again changes nothing more."""
        return sum([await self._run(connection, ("update", name, s), version, s) for s in shapes])

    def _recorder_for(self, table: str, keys: Collection[str], causes: Causes) -> Recorder | None:
        recorder = self._recorder
        return recorder if recorder is not None and recorder.wants(table, keys, causes) else None

    def _emptying(self, stage: str) -> str:
        """Empties the stage: by DELETE, and now and then by TRUNCATE, which costs 1.5 ms a time."""
        dead = self._stages[stage] + self._filled.pop(stage)
        is_many = dead > _DEAD_ROWS
        self._stages[stage] = 0 if is_many else dead
        return f"{'TRUNCATE' if is_many else 'DELETE FROM'} pg_temp.{quote(stage)}"

    async def _stage(self, connection: asyncpg.Connection, table: Table) -> str:
        name = stage_name(table)
        if name not in self._stages:
            if len(self._stages) >= _MOST_STAGES:
                oldest, _ = self._stages.popitem(last=False)
                self._filled.pop(oldest, None)
                await connection.execute(f"DROP TABLE pg_temp.{quote(oldest)}")
                self._statements = OrderedDict(
                    (s, p)
                    for s, p in self._statements.items()
                    if stage_name(self._tables[s[1]]) != oldest
                )
            await connection.execute(create_stage(table))
            self._stages[name] = 0
        self._stages.move_to_end(name)
        return name

    async def _run(
        self, connection: asyncpg.Connection, wanted: _Statement, *values: object
    ) -> int:
        """Runs a statement, prepared once; gives the number of rows that it wrote."""
        statement = self._statements.get(wanted)
        if statement is None:
            text = self._text(wanted)
            statement = self._statements[wanted] = await connection.prepare(text)
            if len(self._statements) > _MOST_STATEMENTS:
                self._statements.popitem(last=False)
        self._statements.move_to_end(wanted)
        await statement.fetch(*values)
        return int((statement.get_statusmsg() or "0").rpartition(" ")[2])

    def _text(self, wanted: _Statement) -> str:
        kind, name, shape = wanted
        table = self._tables[name]
        if kind == "insert":
            return insert(self._schema, table)
        columns = self._shapes.columns(shape)
        if kind == "update":
            return update(self._schema, table, columns)
        return complete(self._schema, table, columns) or ""
