"""Writes batches of rows: COPY into a stage, one guarded upsert per table and shape, one commit.

A `Writer` owns one connection. Everything of a `Batch` (rows of many tables and the checkpoints that
vouch for them) becomes visible in one transaction, or nothing does. Tables and keys are taken in one
order by every writer, so that two of them never wait for each other in a circle.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from pinstripe.catalog.tables import Table
from pinstripe.rows.extract import Found, Shape
from pinstripe.rows.compile import Value
from pinstripe.store.cursors import Checkpoint, save_checkpoints
from pinstripe.store.ddl import quote
from pinstripe.store.pool import connect_dedicated, translated
from pinstripe.store.upsert import STAGE_EXTRA, contested, create_stage, stage_name, upsert

_MOST_STAGES = 48
_MOST_STATEMENTS = 256

Record = list[Value]
"""Values of a shape, then `_extra`, `_lo`, `_hi`, `_group`: as `rows` made it, the tail filled in here."""


@dataclass(frozen=True, slots=True)
class Contested:
    """A row that an equally old snapshot of other content claims; one GET decides.

    `known_until` is the Unix second on Stripe's clock up to which the row's content is known.
    """

    table: str
    key: str
    known_until: float


@dataclass(slots=True)
class Batch:
    """What one commit writes; rows of tables that are not in `tables` are left out.

    Rounds: a key that comes twice with other content waits for the next round.
    """

    api_version: str
    tables: Mapping[str, Table]
    rounds: list[dict[Shape, dict[str, Record]]] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    rows: int = 0
    _last: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, found: Found, lo: float, hi: float) -> None:
        """Adds rows that are true for a moment in [lo, hi), Unix seconds on Stripe's clock."""
        for shape, group in found.groups.items():
            if shape[0] in self.tables:
                for key, values in group.items():
                    self._add(shape, key, values, lo, hi)
        for shape, key, values, moment in found.frozen:
            if shape[0] in self.tables:
                self._add(shape, key, values, float(moment), moment + 1.0)

    def _add(self, shape: Shape, key: str, row: Record, lo: float, hi: float) -> None:
        place = (shape[0], key)
        at = self._last.get(place, -1)
        if at >= 0:
            earlier = self.rounds[at].get(shape, {}).get(key)
            if earlier is not None and earlier[:-3] == row[:-3]:
                earlier[-3], earlier[-2] = max(lo, earlier[-3]), max(hi, earlier[-2])
                return
        at += 1
        if at == len(self.rounds):
            self.rounds.append({})
        row[-3], row[-2] = lo, hi
        self.rounds[at].setdefault(shape, {})[key] = row
        self._last[place] = at
        self.rows += 1


class Writer:
    """One connection that writes. Not for two tasks at once."""

    def __init__(self, url: str, schema: str, tables: Mapping[str, Table]) -> None:
        self._url = url
        self._schema = schema
        self._tables = tables
        self._connection: asyncpg.Connection | None = None
        # Least recently used first, both.
        self._stages: OrderedDict[str, None] = OrderedDict()
        self._statements: OrderedDict[Shape, PreparedStatement] = OrderedDict()

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
        self._statements.clear()
        if connection is not None and not connection.is_closed():
            connection.terminate()

    async def write(self, batch: Batch) -> list[Contested]:
        """Commits the batch; gives the rows that could not be decided by time.

        A lost connection leaves nothing written (Unreachable) and is made anew by the next call.
        """
        try:
            connection = await self._connected()
            with translated():
                async with connection.transaction():
                    contests = await self._rounds(connection, batch)
                    await save_checkpoints(connection, self._schema, batch.checkpoints)
                return contests
        except BaseException:
            # Cancelled or failed halfway: what the session holds is not known.
            await self.close()
            raise

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            await self.close()
            self._connection = await connect_dedicated(self._url)
        return self._connection

    async def _rounds(self, connection: asyncpg.Connection, batch: Batch) -> list[Contested]:
        found: list[Contested] = []
        number = 0
        for one_round in batch.rounds:
            for shape in sorted(one_round):
                number += 1
                group = one_round[shape]
                found += await self._upsert(connection, shape, group, number, batch.api_version)
        return found

    async def _upsert(
        self,
        connection: asyncpg.Connection,
        shape: Shape,
        group: Mapping[str, Record],
        number: int,
        api_version: str,
    ) -> list[Contested]:
        table = self._tables[shape[0]]
        stage = await self._stage(connection, table)
        records = [group[key] for key in sorted(group)]
        for record in records:
            record[-1] = number
        await connection.copy_records_to_table(
            stage,
            records=records,
            columns=[*shape[1], *STAGE_EXTRA],
        )
        statement = await self._statement(connection, shape)
        await statement.fetch(api_version, number)
        if statement.get_statusmsg() == f"INSERT 0 {len(group)}":
            return []
        rows = await connection.fetch(contested(self._schema, table, shape[1]), number)
        return [Contested(table.name, str(row[0]), float(row[-1])) for row in rows]

    async def _stage(self, connection: asyncpg.Connection, table: Table) -> str:
        name = stage_name(table)
        if name not in self._stages:
            # Every stage of the session is truncated at every commit, used or not.
            if len(self._stages) >= _MOST_STAGES:
                oldest, _ = self._stages.popitem(last=False)
                await connection.execute(f"DROP TABLE pg_temp.{quote(oldest)}")
                self._statements = OrderedDict(
                    (s, p) for s, p in self._statements.items() if f"stage_{s[0]}"[:63] != oldest
                )
            await connection.execute(create_stage(table))
            self._stages[name] = None
        self._stages.move_to_end(name)
        return name

    async def _statement(self, connection: asyncpg.Connection, shape: Shape) -> PreparedStatement:
        statement = self._statements.get(shape)
        if statement is None:
            text = upsert(self._schema, self._tables[shape[0]], shape[1])
            statement = await connection.prepare(text)
            self._statements[shape] = statement
            if len(self._statements) > _MOST_STATEMENTS:
                self._statements.popitem(last=False)
        self._statements.move_to_end(shape)
        return statement
