"""Writes batches of rows: COPY into a stage, one guarded upsert per table and shape, one commit.

    Batch -> COPY into stages -> insert, widen, update, complete -> conflicts, confirmations -> sets
          -> links -> refetches, checkpoints, effects -> COMMIT

A `Writer` has one session (`StageTables`) of its own, or takes one for each transaction from those that the
accounts of a platform share. Rows of many tables and the checkpoints that cover them become visible in one
transaction or not at all. All writers take tables and keys in one order, so two of them
never deadlock. `write_apart` leaves out the rows that Postgres refuses, which it finds by halving.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Self

import asyncpg
import structlog
from asyncpg.prepared_stmt import PreparedStatement

from pinstripe.catalog.tables import Table
from pinstripe.errors import PinstripeError
from pinstripe.mirror.batch import Batch, Befores, Conflict, doubt, refetch_for
from pinstripe.mirror.change_feed import Causes, Recorder, delete_rows
from pinstripe.mirror.orphans import (
    Doubt,
    SetFact,
    find_removed,
    find_unlisted,
    gone,
    parents_of,
    tombstones,
)
from pinstripe.mirror.quarantine import Parted, RefusedRow, left_out, note_parted
from pinstripe.mirror.upsert import (
    EVENT_S,
    STAGE_EXTRA,
    chained,
    complete,
    create_stage,
    insert,
    stage,
    stage_name,
    unwritten,
    update,
    widen,
)
from pinstripe.rows.extract import Row, RowKey
from pinstripe.rows.layout import Shapes
from pinstripe.store import confirmations
from pinstripe.store.confirmations import Confirmation
from pinstripe.store.cursors import save_checkpoints
from pinstripe.store.links import Links
from pinstripe.store.locks import PREPARE, WAIT_S, begin, naming_holders, server_pid
from pinstripe.store.platforms.sweep import owe_refetch
from pinstripe.store.pool import cancel_on_disconnect, connect_dedicated, translated
from pinstripe.store.quarantine import why
from pinstripe.store.refetch import add_refetches, complete_refetches
from pinstripe.store.session import Session, account_of

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_MOST_STAGES = 160
_MOST_STATEMENTS = 512
_DEAD_ROWS = 3000
_HOPELESS = 16
"""After this many rows refused one by one and none written, the table counts as refusing."""
_LO, _HI, _KNOWN = -5, -4, -3
"""Places of a row's interval, and of the moment (Postgres's clock) until which Stripe knew what we wrote:
such a row is most likely there, and an update finds it."""

_Statement = tuple[str, str, int]
"""(kind, table, shape): "insert" (shape -1), "widen", "update", "complete" or "unwritten"; "insert and
link" and "update and link" return what `Links.unlinked` says."""
_StageMark = tuple[OrderedDict[str, int], dict[str, int]]


class _TableRefused(Exception):
    """Postgres refuses every row of the table."""

    def __init__(self, error: PinstripeError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class _Round:
    table: str
    rows: Mapping[str, Mapping[str, Row]]
    causes: Causes
    api_version: str


@dataclass(slots=True)
class _Tally:
    """The results of one table so far."""

    conflicts: list[Conflict] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    written: int = 0

    def refuse(self, of: _Round, group: Mapping[str, Row], error: PinstripeError) -> None:
        """Note the one row of the group as refused. Raises _TableRefused after `_HOPELESS` of them."""
        for key, row in group.items():
            cause = of.causes.get((of.table, key))
            self.refused.append(RefusedRow(of.table, key, row, why(error), cause))
        if not self.written and len(self.refused) >= _HOPELESS:
            raise _TableRefused(error)


class StageTables:
    """One session with its stage tables and prepared statements. Not for two tasks at once.

    `account`: of a platform, for which the session works from the next transaction on. The stages and
    statements are the same for all of them.

    A stage is a temp table that takes rows by COPY. It is emptied by DELETE, and by TRUNCATE, which takes
    1.5 ms, only after `_DEAD_ROWS` dead rows. The least recently used stages and statements are dropped.
    """

    def __init__(
        self,
        url: str,
        *,
        session_name: str,
        account: str = "",
        on_connected: Callable[[asyncpg.Connection], Awaitable[None]] | None = None,
    ) -> None:
        self.account = account
        self.pid = 0
        """The server process of the session, once it is connected."""
        self._url = url
        self._session_name = session_name
        self._on_connected = on_connected
        self._connection: Session | None = None
        self._dead: OrderedDict[str, int] = OrderedDict()
        """Table -> dead rows that its stage still holds; least recently used first."""
        self._filled: dict[str, int] = {}
        """Tables whose stage holds rows of the current transaction, and how many."""
        self._statements: OrderedDict[_Statement, PreparedStatement] = OrderedDict()

    async def connection(self) -> asyncpg.Connection:
        """Return the session, which works for the account. Raises Unreachable."""
        session = await self.connected()
        with translated():
            await session.work_for(self.account)
        return session

    async def connected(self) -> Session:
        """Return the session, connected again if it was lost. Raises Unreachable."""
        if self._connection is None or self._connection.is_closed():
            self.close()
            connection = await connect_dedicated(self._url, application_name=self._session_name)
            try:
                with translated():
                    self.pid = await server_pid(connection)
                    await connection.execute(f"SET lock_timeout = '{WAIT_S}s'; {PREPARE}")
                    if self._on_connected is not None:
                        await self._on_connected(connection)
            except BaseException:
                connection.terminate()
                raise
            self._connection = connection
        return self._connection

    @asynccontextmanager
    async def transaction(self, ids: Iterable[str] = ()) -> AsyncIterator[asyncpg.Connection]:
        """A transaction for the block: its end empties the stages and commits, in one round trip.

        `ids`: what it locks first, see `locks.begin`.
        A failure or a cancellation ends the session, since its state is unknown then.
        """
        try:
            connection = await self.connected()
            with translated():
                async with cancel_on_disconnect(connection):
                    # Not `connection.transaction()`: its ROLLBACK on a session that the server has
                    # ended raises an error of its own, which hides the first.
                    await begin(connection, self.account, ids)
                    yield connection
                    emptying = [self._emptying(table) for table in list(self._filled)]
                    await connection.execute("; ".join([*emptying, "COMMIT"]))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drop the session; `connection` opens a new one."""
        connection, self._connection = self._connection, None
        self._dead.clear()
        self._filled.clear()
        self._statements.clear()
        if connection is not None and not connection.is_closed():
            connection.terminate()

    async def fill(
        self, connection: asyncpg.Connection, table: Table, rows: Collection[Row]
    ) -> None:
        """Replace the content of the table's stage by these rows."""
        name = table.name
        if name not in self._dead:
            if len(self._dead) >= _MOST_STAGES:
                await self._drop_oldest(connection)
            await connection.execute(create_stage(table, by_account=bool(self.account)))
            self._dead[name] = 0
        self._dead.move_to_end(name)
        if name in self._filled:
            await connection.execute(self._emptying(name))
        self._filled[name] = len(rows)
        await connection.copy_records_to_table(
            stage_name(name),
            schema_name="pg_temp",
            records=rows,
            columns=[*(c.name for c in table.columns), *STAGE_EXTRA],
        )

    async def run(
        self,
        connection: asyncpg.Connection,
        wanted: _Statement,
        text: Callable[[_Statement], str],
        *values: object,
    ) -> tuple[int, list[asyncpg.Record]]:
        """Run a statement, prepared once; return the number of rows that it wrote, and what it returns."""
        rows = await self.fetch(connection, wanted, text, *values)
        status = self._statements[wanted].get_statusmsg() or "0"
        return int(status.rpartition(" ")[2]), rows

    async def fetch(
        self,
        connection: asyncpg.Connection,
        wanted: _Statement,
        text: Callable[[_Statement], str],
        *values: object,
    ) -> list[asyncpg.Record]:
        """Run a statement, prepared once; return the rows that it returns."""
        statement = self._statements.get(wanted)
        if statement is None:
            statement = self._statements[wanted] = await connection.prepare(text(wanted))
            if len(self._statements) > _MOST_STATEMENTS:
                self._statements.popitem(last=False)
        self._statements.move_to_end(wanted)
        return await statement.fetch(*values)

    def mark(self) -> _StageMark:
        """Return what `go_back` needs after a rollback to a savepoint made now."""
        return OrderedDict(self._dead), dict(self._filled)

    def go_back(self, mark: _StageMark) -> None:
        """Forget what was made since `mark`: the rollback has removed it."""
        self._dead, self._filled = OrderedDict(mark[0]), dict(mark[1])
        self._statements.clear()

    def _emptying(self, table: str) -> str:
        dead = self._dead[table] + self._filled.pop(table)
        is_many = dead > _DEAD_ROWS
        self._dead[table] = 0 if is_many else dead
        return f"{'TRUNCATE' if is_many else 'DELETE FROM'} {stage(table)}"

    async def _drop_oldest(self, connection: asyncpg.Connection) -> None:
        oldest, _ = self._dead.popitem(last=False)
        self._filled.pop(oldest, None)
        await connection.execute(f"DROP TABLE {stage(oldest)}")
        for wanted in [s for s in self._statements if s[1] == oldest]:
            del self._statements[wanted]


class SharedStages:
    """Up to `size` sessions that many writers share; each has one for the length of a transaction."""

    def __init__(self, url: str, *, session_name: str, size: int) -> None:
        self._places = asyncio.Semaphore(size)
        self._make = partial(StageTables, url, session_name=session_name)
        self._idle: list[StageTables] = []
        self._links: Links | None = None

    def links(self, schema: str, tables: Mapping[str, Table]) -> Links:
        """What links the rows of these tables, which are the same for all that share the sessions."""
        self._links = self._links or Links(schema, tables)
        return self._links

    @asynccontextmanager
    async def take(self, account: str) -> AsyncIterator[StageTables]:
        """A session that works for this account of a platform, or for "" none. Waits until one is free."""
        async with self._places:
            # The last one given back: its stages are the most likely to be there.
            stages = self._idle.pop() if self._idle else self._make()
            stages.account = account
            try:
                yield stages
            finally:
                self._idle.append(stages)

    def close(self) -> None:
        """End the idle sessions. The next `take` opens a new one."""
        for stages in self._idle:
            stages.close()


class Writer:
    """Writes to one schema, or for one account of a platform. Not for two tasks at once."""

    def __init__(
        self,
        url: str,
        schema: str,
        tables: Mapping[str, Table],
        shapes: Shapes,
        *,
        recorder: Recorder | None = None,
        session_name: str = "pinstripe",
        shared: SharedStages | None = None,
    ) -> None:
        """`recorder` records the change feed, if it is on; it belongs to this writer alone.

        `shared`: sessions that are used instead of one of its own.
        """
        self._url = url
        self._schema = schema
        self._tables = tables
        self._shapes = shapes
        self._recorder = recorder
        self._sessions = shared or SharedStages(url, session_name=session_name, size=1)
        self._links = self._sessions.links(schema, tables)
        self._is_shared = shared is not None
        self._stages: StageTables
        """The session of the present transaction."""
        self.failed_at = ""
        """The table at which the last write failed; "" if it failed elsewhere."""
        self._at = ""
        self._befores: Mapping[RowKey, Befores] = {}
        self._loading: Collection[str] = ()
        self._unlinked: dict[str, set[str]] = {}
        """By table: ids of the rows whose links may change by what this transaction wrote."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the session, if it is the writer's own. The next `write` opens a new one."""
        if not self._is_shared:
            self._sessions.close()

    async def write(self, batch: Batch) -> list[Conflict]:
        """Commit the batch; return the rows that are in conflict.

        A lost connection raises Unreachable and leaves nothing written; the next call connects again.
        """
        parted = Parted()
        async with self._transaction(batch, parted) as connection:
            parted.conflicts = await self._rounds(connection, batch)
            parted.conflicts += await self._apply_sets(connection, batch.sets)
            for table in sorted(self._unlinked):
                await self._link(connection, table, batch)
        return parted.conflicts

    async def write_apart(self, batch: Batch) -> Parted:
        """Like `write`, without the rows that Postgres refuses, which it finds by halving.

        They are noted in the same commit, with their refetches. Slow: for a batch that was refused.
        """
        parted = Parted()
        async with self._transaction(batch, parted) as connection:
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            for table in sorted(batch.names):
                await self._table_apart(connection, table, batch, parted)
            await self._apply_sets_apart(connection, batch, parted)
            await self._link_apart(connection, batch)
        return parted

    @asynccontextmanager
    async def _transaction(self, batch: Batch, parted: Parted) -> AsyncIterator[asyncpg.Connection]:
        """A transaction in which the block writes the rows; the rest of the batch and the commit follow."""
        self._at, self._befores = "", batch.befores
        self._loading, self._unlinked = batch.loading, {}
        children = [fact.child for fact in batch.sets]
        try:
            async with self._sessions.take(account_of(self._schema)) as self._stages:
                await self._stages.connected()
                async with naming_holders(self._url, self._stages.pid):
                    with self._recorder.transaction() if self._recorder else nullcontext():
                        async with self._stages.transaction(self._link_ids(batch)) as connection:
                            await self._lock_sets(connection, batch)
                            yield connection
                            self._at = ""
                            await self._finish(connection, batch, parted)
                            # A deferred constraint refuses a row at the commit: `write_apart` finds which.
                            self._at = min([*batch.names, *children], default="")
                        for answer in batch.completed:
                            answer.is_noted = True
        except BaseException:
            self.failed_at = self._at
            raise

    def _link_ids(self, batch: Batch) -> set[str]:
        """Return the ids by which rows that the batch writes or removes may be linked with others."""
        ids = self._links.ids
        found = {fact.parent_id for fact in batch.sets if fact.child in ids}
        for name, group in batch.written(ids).items():
            for row in group.values():
                found.update(row[at] for at in ids[name] if type(row[at]) is str)
        return found

    async def _link(self, connection: asyncpg.Connection, table: str, batch: Batch) -> None:
        self._at = table
        rows = await self._links.link(connection, table, self._unlinked[table])
        if self._recorder is None:
            return
        for key, changes in rows:
            causes = (of[table, key] for of in batch.causes if (table, key) in of)
            self._recorder.linked(table, key, changes, next(causes, None))

    async def _link_apart(self, connection: asyncpg.Connection, batch: Batch) -> None:
        """Like `_link` for all tables. Where Postgres refuses it, the columns keep their values."""
        for table in sorted(self._unlinked):
            try:
                async with self._savepoint(connection):
                    await self._link(connection, table, batch)
            except PinstripeError as error:
                if not error.is_of_rows:
                    raise
                _log.warning("mirror.not_linked", table=table, error=error.message)

    async def _finish(self, connection: asyncpg.Connection, batch: Batch, parted: Parted) -> None:
        conflicts = parted.conflicts
        # Queued in the same commit: a crash before the GET must not lose the conflict.
        contested = [refetch_for(c) for c in conflicts]
        await add_refetches(connection, self._schema, contested)
        if contested:  # The gateway may end before it has fetched them.
            await owe_refetch(connection, self._schema)
        await complete_refetches(connection, self._schema, batch.completed, contested=contested)
        if parted.rows or parted.tables:
            await note_parted(connection, self._schema, parted)
        if batch.checkpoints:
            await save_checkpoints(connection, self._schema, batch.checkpoints)
        for effect in batch.effects:
            await effect(connection)
        if self._recorder is not None:
            await self._recorder.write(connection)

    async def _rounds(self, connection: asyncpg.Connection, batch: Batch) -> list[Conflict]:
        found: list[Conflict] = []
        # Table by table, and all rounds of one before the next: two writers take their locks in the
        # same order then. (The keys of a later round are locked by the first already.)
        for table in sorted(batch.names):
            for one_round, causes in zip(batch.rounds, batch.causes, strict=True):
                group = one_round.get(table)
                if group:
                    found += await self._upsert(connection, table, group, batch.api_version, causes)
        return found

    async def _table_apart(
        self, connection: asyncpg.Connection, name: str, batch: Batch, parted: Parted
    ) -> None:
        """Write all rounds of one table without its refused rows, or without the whole table."""
        tally = _Tally()
        try:
            async with self._savepoint(connection):
                for one_round, causes in zip(batch.rounds, batch.causes, strict=True):
                    keys = sorted(one_round.get(name, ()))
                    of = _Round(name, one_round, causes, batch.api_version)
                    await self._half(connection, of, keys, tally)
        except _TableRefused as refused:
            reason = why(refused.error)
            parted.tables[name] = reason
            parted.left_out += [
                RefusedRow(name, key, row, reason, causes.get((name, key)))
                for one_round, causes in zip(batch.rounds, batch.causes, strict=True)
                for key, row in one_round.get(name, {}).items()
            ]
        else:
            parted.conflicts += tally.conflicts
            parted.rows += tally.refused

    async def _half(
        self, connection: asyncpg.Connection, of: _Round, keys: Sequence[str], tally: _Tally
    ) -> None:
        """Write these rows; if they are refused, one half and then the other, down to single rows."""
        if not keys:
            return
        group = {key: of.rows[of.table][key] for key in keys}
        try:
            async with self._savepoint(connection):
                tally.conflicts += await self._upsert(
                    connection, of.table, group, of.api_version, of.causes
                )
        except PinstripeError as error:
            if not error.is_of_rows:
                raise
            if error.fault is not None and error.fault.scope == "table":
                raise _TableRefused(error) from error
            if len(keys) == 1:
                tally.refuse(of, group, error)
                return
        else:
            tally.written += len(keys)
            return
        middle = len(keys) // 2
        for half in (keys[:middle], keys[middle:]):
            await self._half(connection, of, half, tally)

    async def _apply_sets_apart(
        self, connection: asyncpg.Connection, batch: Batch, parted: Parted
    ) -> None:
        """Like `_apply_sets`, child by child. The parent of a refused row is owed a refetch instead."""
        without = {row.table for row in parted.rows} | set(parted.tables)
        for child in sorted({fact.child for fact in batch.sets}):
            facts = [fact for fact in batch.sets if fact.child == child]
            if child in without:
                parted.owners += [(fact.parent, fact.parent_id) for fact in facts]
                continue
            try:
                async with self._savepoint(connection):
                    parted.conflicts += await self._apply_sets(connection, facts)
            except PinstripeError as error:
                if not error.is_of_rows:
                    raise
                parted.tables[child] = why(error)
                parted.owners += [(fact.parent, fact.parent_id) for fact in facts]

    @asynccontextmanager
    async def _savepoint(self, connection: asyncpg.Connection) -> AsyncIterator[None]:
        """A savepoint for the block. If Postgres refuses rows, what the block wrote is rolled back, and the
        stages that it made are gone too. Any other error ends the transaction.
        """
        await connection.execute("SAVEPOINT apart")
        stages = self._stages.mark()
        recorded = self._recorder.mark() if self._recorder is not None else 0
        try:
            with translated():
                yield
        except (PinstripeError, _TableRefused) as error:
            if isinstance(error, _TableRefused) or error.is_of_rows:
                await connection.execute("ROLLBACK TO SAVEPOINT apart; RELEASE SAVEPOINT apart")
                self._stages.go_back(stages)
                if self._recorder is not None:
                    self._recorder.go_back(recorded)
            raise
        await connection.execute("RELEASE SAVEPOINT apart")

    async def _lock_sets(self, connection: asyncpg.Connection, batch: Batch) -> None:
        """Order this transaction with those that note sets, or insert rows that sets may exclude."""
        notes = any(fact.is_of_event or fact.cause is not None for fact in batch.sets)
        inserts = any(map(parents_of, batch.names))
        # Rows that wait for `link_all`: in a platform it cannot lock their tables against all accounts.
        waits = account_of(self._schema) and not batch.names.isdisjoint(self._links.ids)
        if notes or inserts or waits:
            await confirmations.lock_sets(connection, self._schema, notes=notes)

    async def _apply_sets(
        self, connection: asyncpg.Connection, facts: Sequence[SetFact]
    ) -> list[Conflict]:
        """Flag or delete the rows that complete lists no longer have; return the sets in doubt."""
        conflicts: list[Conflict] = []
        noted = [fact for fact in facts if fact.is_of_event]
        for child, parent in sorted({(fact.child, fact.parent) for fact in facts}):
            self._at, table = child, self._tables[child]
            mine = [fact for fact in facts if (fact.child, fact.parent) == (child, parent)]
            keys, doubted = await find_unlisted(connection, self._schema, table, parent, mine)
            conflicts += map(doubt, doubted)
            if not keys:
                continue
            noted += keys.values()
            flags = tombstones(table, self._shapes, keys)
            if flags is not None:
                causes = {(child, key): proof.cause for key, proof in keys.items() if proof.cause}
                conflicts += await self._upsert(connection, child, flags, "", causes)
                continue
            for cause in sorted({proof.cause for proof in keys.values()}, key=str):
                dead = [key for key, proof in keys.items() if proof.cause == cause]
                await delete_rows(connection, self._schema, table, gone(table), dead, cause=cause)
        if noted:
            sets = [(fact.child, fact.parent_id, fact.lo, fact.hi) for fact in noted]
            await confirmations.note_sets(connection, self._schema, sets)
        return conflicts

    async def _upsert(
        self,
        connection: asyncpg.Connection,
        name: str,
        group: Mapping[str, Row],
        version: str,
        causes: Causes,
    ) -> list[Conflict]:
        """Write rows of one table from the stage; return the conflicts, rows and sets."""
        table = self._tables[name]
        self._at = name
        await self._fill(connection, table, group)
        doubts: list[Doubt] = []
        if parents_of(name):
            left_out, doubts = await find_removed(connection, self._schema, table, causes)
            if left_out:
                group = {key: row for key, row in group.items() if key not in left_out}
                await self._fill(connection, table, group)
        found: list[str] = []
        if group:  # Else all of it was older than a set that does not have it.
            found = await self._write_stage(connection, table, group, version, causes)
        if found:
            replaced = await self._chained(connection, table, group, found)
            again = {key: [*group[key]] for key in replaced}
            for key, at in replaced.items():
                again[key][_KNOWN] = at
            if again:
                await self._fill(connection, table, again)
                await self._write_stage(connection, table, again, version, causes)
            found = [key for key in found if key not in again]
        conflicts = [Conflict(name, key, causes.get((name, key))) for key in found]
        return [*conflicts, *map(doubt, doubts)]

    async def _fill(
        self, connection: asyncpg.Connection, table: Table, group: Mapping[str, Row]
    ) -> None:
        await self._stages.fill(connection, table, [group[key] for key in sorted(group)])

    async def _write_stage(
        self,
        connection: asyncpg.Connection,
        table: Table,
        group: Mapping[str, Row],
        version: str,
        causes: Causes,
    ) -> list[str]:
        """Write the rows of the stage, which are those of `group`; return the keys in conflict."""
        name, recorder = table.name, self._recorder
        if recorder is not None and not recorder.wants(name, group, causes):
            recorder = None
        known = await recorder.before(connection, table) if recorder else 0
        shapes = sorted({row[-1] for row in group.values()})
        left = len(group)
        is_widened = False
        if recorder is None and all(row[_KNOWN] is not None for row in group.values()):
            is_widened = True
            await self._widen(connection, name, shapes, group)
            left -= await self._update(connection, name, shapes, version)
        if left:
            left -= await self._run(connection, ("insert", name, -1), version)
        if recorder and known < left:
            known += await recorder.raced(connection, table)
        if left:
            if not is_widened:
                await self._widen(connection, name, shapes, group)
            left -= await self._update(connection, name, shapes, version)
        for shape in shapes if left else ():
            if complete(self._schema, table, self._shapes.columns(shape)) is not None:
                left -= await self._run(connection, ("complete", name, shape), shape)
        found = await self._unwritten(connection, name, shapes) if left else []
        if recorder:
            await recorder.after(connection, table, causes)
            await recorder.forget(connection, known)
        return found

    async def _chained(
        self,
        connection: asyncpg.Connection,
        table: Table,
        group: Mapping[str, Row],
        conflicts: Sequence[str],
    ) -> dict[str, datetime]:
        """Return those of the rows in conflict, with their versions, that hold what an object had right
        before an event of the stage: the event is what came next.
        """
        befores = {
            key: rows
            for key in conflicts
            if (make := self._befores.get((table.name, key))) is not None
            and group[key][_HI] - group[key][_LO] <= EVENT_S
            and (rows := make())
        }
        found: dict[str, datetime] = {}
        for number in range(max(map(len, befores.values()), default=0)):
            stage = [r[number] for k, r in befores.items() if number < len(r) and k not in found]
            await self._stages.fill(connection, table, stage)
            for shape in sorted({row[-1] for row in stage}):
                text = chained(self._schema, table, self._shapes.columns(shape))
                found |= {row[0]: row[-1] for row in await connection.fetch(text, shape)}
        return found

    async def _unwritten(
        self, connection: asyncpg.Connection, name: str, shapes: Sequence[int]
    ) -> list[str]:
        """Note the rows that the stage confirms; return those in conflict. One left out raises Drifted."""
        conflicts: list[str] = []
        found: list[Confirmation] = []
        for shape in shapes:
            wanted = ("unwritten", name, shape)
            for key, keys, lo, hi in await self._stages.fetch(
                connection, wanted, self._text, shape
            ):
                if lo is None:
                    raise left_out(name)
                if keys is None:
                    conflicts.append(key)
                else:
                    found.append(Confirmation(name, lo, hi, keys))
        if found:
            await confirmations.note(connection, self._schema, found)
        return conflicts

    async def _widen(
        self,
        connection: asyncpg.Connection,
        name: str,
        shapes: Sequence[int],
        group: Mapping[str, Row],
    ) -> None:
        """Have rows that were confirmed lately, and that the stage differs from, say so."""
        since = min(row[_LO] for row in group.values())
        if not await confirmations.is_any(connection, self._schema, name, since):
            return
        for shape in shapes:
            await self._run(connection, ("widen", name, shape), shape, self._schema, since)

    async def _update(
        self, connection: asyncpg.Connection, name: str, shapes: Sequence[int], version: str
    ) -> int:
        """Update from the stage; return the number of rows. Running it again changes nothing more."""
        return sum([await self._run(connection, ("update", name, s), version, s) for s in shapes])

    async def _run(
        self, connection: asyncpg.Connection, wanted: _Statement, *values: object
    ) -> int:
        """Run a statement on one table; return the number of rows that it wrote."""
        kind, name, shape = wanted
        may_link = name in self._links.unlinked and name not in self._loading
        if may_link and kind in ("insert", "update"):
            wanted = (f"{kind} and link", name, shape)
        count, rows = await self._stages.run(connection, wanted, self._text, *values)
        for row in rows:
            for (others, _), ids in zip(self._links.unlinked[name], row, strict=True):
                for other in others if ids else ():
                    self._unlinked.setdefault(other, set()).update(ids)
        return count

    def _text(self, wanted: _Statement) -> str:
        kind, name, shape = wanted
        table = self._tables[name]
        if kind.endswith(" and link"):
            text = self._text((kind.removesuffix(" and link"), name, shape))
            return f"{text}\nRETURNING {', '.join(ids for _, ids in self._links.unlinked[name])}"
        if kind == "insert":
            return insert(self._schema, table)
        columns = self._shapes.columns(shape)
        if kind == "update":
            return update(self._schema, table, columns)
        if kind == "widen":
            return widen(self._schema, table, columns)
        if kind == "unwritten":
            return unwritten(self._schema, table, columns)
        return complete(self._schema, table, columns) or ""
