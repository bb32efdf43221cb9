"""The rows of an upcoming invoice: one row and its lines are one state, written and removed as one.

Lines have no lasting ids: they are keyed by owner and position. Which preview is newer is decided for the
row, by the one guarded upsert or by its version; the lines follow it in the same transaction. All
functions that take a connection run in the mirror's transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from pinstripe.catalog.tables import Table
from pinstripe.rows.extract import Extractor, Found
from pinstripe.store.changes import delete_rows
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.pool import Connection
from pinstripe.sync.upcoming_preview import Owner, Preview

LINES = "upcoming_invoice_line_item"

TABLE_OF: Mapping[Owner, str] = {
    "customer": "upcoming_customer_invoice",
    "subscription": "upcoming_subscription_invoice",
}


def found_in(preview: Preview, owner: Owner, owner_id: str, extractor: Extractor) -> Found:
    """The rows of a preview, the lines keyed `<owner id>:<position>`."""
    found = Found()
    # What the key says already has no column of its own.
    invoice = {name: value for name, value in preview.invoice.items() if name != owner}
    parents: dict[str, str] = {owner: owner_id}
    extractor.virtual(TABLE_OF[owner], invoice, owner_id, found, parents=parents)
    for position, line in enumerate(preview.lines):
        extractor.virtual(LINES, line, f"{owner_id}:{position}", found, parents=parents)
    return found


@dataclass(frozen=True, slots=True)
class Place:
    """Where the upcoming invoice of one owner stands. `tables` are those that are synced."""

    schema: str
    tables: Mapping[str, Table]
    owner: Owner
    owner_id: str

    @property
    def table(self) -> str:
        return TABLE_OF[self.owner]

    @property
    def _is_row(self) -> str:
        return f"{quote(f'{self.owner}_id')} = $1"

    @property
    def _row(self) -> str:
        return f"{qualified(self.schema, self.table)} WHERE {self._is_row}"

    @property
    def _is_line(self) -> str:
        return f"{quote(f'upcoming_{self.owner}_id')} = $1"

    async def versions(self, connection: Connection) -> dict[tuple[str, str], datetime]:
        """`_synced_at` of the row and its lines. What is asked for from now on is newer than these."""
        found: dict[tuple[str, str], datetime] = {}
        row = await connection.fetchval(f"SELECT _synced_at FROM {self._row}", self.owner_id)
        if row is not None:
            found[self.table, self.owner_id] = row
        if LINES in self.tables:
            lines = await connection.fetch(
                f"SELECT id, _synced_at FROM {qualified(self.schema, LINES)} WHERE {self._is_line}",
                self.owner_id,
            )
            found |= {(LINES, key): version for key, version in lines}
        return found

    async def settle_lines(self, connection: Connection, keys: Collection[str]) -> bool:
        """After the upsert of a preview with lines of these keys: leaves only lines of the row's own.

        False if the row holds another preview, which is not older: then this one came to nothing.
        """
        won: bool | None = await connection.fetchval(
            f"SELECT xmin = pg_current_xact_id()::xid FROM {self._row}", self.owner_id
        )
        if won:
            await self._delete_lines(connection, "id <> ALL ($2::text[])", list(keys))
        else:
            # Lines of ours that the newer preview does not have were inserted a moment ago.
            await self._delete_lines(
                connection, f"_as_of_latest <= (SELECT _as_of FROM {self._row})"
            )
        return bool(won)

    async def note_unread(self, connection: Connection, *, is_unread: bool) -> None:
        """Has `_extra` say as Stripe does that the lines go on, if not all of them could be read."""
        change = "nullif(_extra - 'lines', '{}') WHERE _extra ? 'lines' AND"
        if is_unread:
            change = """coalesce(_extra, '{}') || '{"lines": {"has_more": true}}' WHERE"""
        await connection.execute(
            f"UPDATE {qualified(self.schema, self.table)} SET _extra = {change} {self._is_row}",
            self.owner_id,
        )

    async def remove(self, connection: Connection, seen: datetime | None) -> bool:
        """Nothing is upcoming: removes row and lines, if the row is still the version that was seen.

        False if it is another one, written since Stripe was asked.
        """
        if seen is not None:
            await delete_rows(
                connection,
                self.schema,
                self.tables[self.table],
                f"{self._is_row} AND _synced_at = $2",
                self.owner_id,
                seen,
            )
        if await connection.fetchval(f"SELECT true FROM {self._row}", self.owner_id):
            return False
        await self._delete_lines(connection, "true")
        return True

    async def _delete_lines(self, connection: Connection, which: str, *values: object) -> None:
        table = self.tables.get(LINES)
        if table is not None:
            where = f"{self._is_line} AND {which}"
            await delete_rows(connection, self.schema, table, where, self.owner_id, *values)
