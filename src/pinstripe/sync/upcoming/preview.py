"""Requests one preview of an upcoming invoice, with all its lines, and keeps its rows.

Until acacia `GET /v1/invoices/upcoming`, from basil on `POST /v1/invoices/create_preview`, which changes
nothing (https://docs.stripe.com/changelog/basil/2025-03-31/invoice-preview-api-deprecations).

One row and its lines are one state, written and removed together. Lines have no lasting ids: they are keyed
by owner and position. Which preview is newer is decided for the row, by the guarded upsert or by its
version; the lines follow in the same transaction. Functions that take a connection run in the mirror's
transaction. When to request a preview is up to `upcoming`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pinstripe.catalog.endpoints import endpoint_of
from pinstripe.catalog.tables import Table
from pinstripe.client.client import Params, iter_pages, list_at, split_url
from pinstripe.client.response import AsOf, Response, StripeObject, as_of_response, read_object
from pinstripe.errors import (
    Drifted,
    LostLease,
    NotEnabled,
    NotFound,
    NotPermitted,
    PinstripeError,
    Refused,
    WrongKey,
)
from pinstripe.mirror.change_feed import delete_rows
from pinstripe.rows.extract import Extractor, RowSet
from pinstripe.source.source import Source
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.pool import Connection

Owner = Literal["customer", "subscription"]

_BASIL = "2025-03-31"

_OLD = "/v1/invoices/upcoming"

_NEW = "/v1/invoices/create_preview"

# https://docs.stripe.com/error-codes: nothing is due, in three wordings.
_NOTHING = frozenset(
    {
        "invoice_upcoming_none",
        "invoice_no_customer_line_items",
        "invoice_no_subscription_line_items",
    }
)


@dataclass(frozen=True, slots=True)
class Preview:
    """A previewed invoice. `invoice` is without its `lines` and without temporary ids.

    `unread`: why lines are missing, if they go on and cannot be read to their end.
    """

    invoice: StripeObject
    lines: tuple[StripeObject, ...]
    as_of: AsOf
    unread: PinstripeError | None = None


def has_rollup(api_version: str) -> bool:
    """Whether Stripe itself finds the next invoice over all subscriptions of a customer.

    >>> has_rollup("2025-02-24.acacia"), has_rollup("2025-03-31.basil")
    (True, False)
    """
    return api_version[:10] < _BASIL


async def request_preview(
    source: Source, owner: Owner, owner_id: str, *, priority: int
) -> Preview | None:
    """Return the next invoice of a customer or a subscription; None if nothing is due.

    Raises NotPermitted or NotEnabled if the key may not preview at all, another Refused if Stripe cannot
    compute this one.
    """
    try:
        response = await _ask(source, [(owner, owner_id)], priority)
    except (NotPermitted, NotEnabled, WrongKey):
        raise
    except NotFound:
        # `invoice_upcoming_none`; or the owner itself is gone.
        return None
    except Refused as error:
        if error.code in _NOTHING:
            return None
        raise
    source.observe_clock(response)
    body = read_object(response, _NEW)
    lines, unread = await _lines(source, body, owner_id, priority)
    invoice = {key: value for key, value in body.items() if key not in ("id", "lines")}
    shown = tuple(_without_ids(line) for line in lines)
    return Preview(invoice, shown, as_of_response(response), unread)


async def _ask(source: Source, params: Params, priority: int) -> Response:
    if has_rollup(source.mirror.api_version):
        return await source.stripe.get(_OLD, params, endpoint=f"GET {_OLD}", priority=priority)
    return await source.stripe.post(
        _NEW, params, endpoint=f"POST {_NEW}", repeatable=True, priority=priority
    )


async def _lines(
    source: Source, body: StripeObject, owner_id: str, priority: int
) -> tuple[list[StripeObject], PinstripeError | None]:
    """Return all lines; or those that could be read, and why not the others.

    A list truncated at ten is read again from its start: ids of lines are temporary. The preview at its
    address stays the same for 72 hours, so the pages fit together.
    """
    cut = body.get("lines")
    if not isinstance(cut, dict) or not isinstance(cut.get("data"), list):
        return [], None
    url = cut.get("url")
    shown = [line for line in cut["data"] if isinstance(line, dict)]
    if cut.get("has_more") is not True:
        return shown, None
    if not isinstance(url, str):
        return shown, _unfinished(owner_id, "without an address")
    path, params = split_url(url)
    endpoint = endpoint_of(path)
    found: list[StripeObject] = []
    try:
        request = list_at(source.stripe, path, params, endpoint=endpoint, priority=priority)
        async for page in iter_pages(request):
            found += page.objects
    except (WrongKey, LostLease):
        raise
    except PinstripeError as error:
        return max(found, shown, key=len), _unfinished(owner_id, error.message)
    return found, None


def _unfinished(owner_id: str, why: str) -> Drifted:
    return Drifted(
        f"The lines of the upcoming invoice of {owner_id} go on, but cannot be read: {why}.",
        hint="The row stands with the lines that could be read, and its _extra says so; it is tried again.",
    )


def _without_ids(line: StripeObject) -> StripeObject:
    """Return `line` without its id and that of the preview, which differ in every response."""
    kept = {key: value for key, value in line.items() if key != "id"}
    invoice = kept.get("invoice")
    if isinstance(invoice, str) and invoice.startswith("upcoming_in"):
        kept["invoice"] = None
    return kept


LINES = "upcoming_invoice_line_item"

TABLE_OF: Mapping[Owner, str] = {
    "customer": "upcoming_customer_invoice",
    "subscription": "upcoming_subscription_invoice",
}


def preview_rows(preview: Preview, owner: Owner, owner_id: str, extractor: Extractor) -> RowSet:
    """Return the rows of a preview, the lines keyed `<owner id>:<position>`."""
    found = RowSet()
    # What the key contains already has no column of its own.
    invoice = {name: value for name, value in preview.invoice.items() if name != owner}
    parents: dict[str, str] = {owner: owner_id}
    extractor.virtual(TABLE_OF[owner], invoice, owner_id, found, parents=parents)
    for position, line in enumerate(preview.lines):
        extractor.virtual(LINES, line, f"{owner_id}:{position}", found, parents=parents)
    return found


@dataclass(frozen=True, slots=True)
class UpcomingRow:
    """Where the upcoming invoice of one owner is stored. `tables` are those that are synced."""

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

    async def first_previewed(
        self, connection: Connection, subscriptions: Sequence[str]
    ) -> str | None:
        """Return the first of the subscriptions that has a preview; None if none has."""
        found: str | None = await connection.fetchval(
            "SELECT u.id FROM unnest($1::text[]) WITH ORDINALITY AS u (id, place)"
            f" JOIN {qualified(self.schema, TABLE_OF['subscription'])} p ON p.subscription_id = u.id"
            " ORDER BY u.place LIMIT 1",
            subscriptions,
        )
        return found

    async def shown(self, connection: Connection) -> str | None:
        """Return the subscription whose preview the row is, "" if of none; None if there is no row."""
        found: str | None = await connection.fetchval(
            "SELECT coalesce(parent_subscription_details ->> 'subscription', '') FROM " + self._row,
            self.owner_id,
        )
        return found

    async def settle_lines(self, connection: Connection, keys: Collection[str]) -> bool:
        """Delete lines that are not the row's own, after the upsert of a preview with lines of these keys.

        False if the row holds another preview that is not older: then this one was not written.
        """
        won: bool | None = await connection.fetchval(
            f"SELECT xmin = pg_current_xact_id()::xid FROM {self._row}", self.owner_id
        )
        if won:
            await self._delete_lines(connection, "id <> ALL ($2::text[])", list(keys))
        else:
            # Lines of this preview that the newer one does not have were inserted by the same transaction.
            mine = "xmin = pg_current_xact_id()::xid"
            older = f"_as_of_latest <= (SELECT _as_of FROM {self._row})"
            await self._delete_lines(connection, f"{mine} AND {older}")
        return bool(won)

    async def note_unread(self, connection: Connection, *, is_unread: bool) -> None:
        """Have `_extra` report as Stripe does that the lines go on, if not all of them could be read."""
        change = "nullif(_extra - 'lines', '{}') WHERE _extra ? 'lines' AND"
        if is_unread:
            change = """coalesce(_extra, '{}') || '{"lines": {"has_more": true}}' WHERE"""
        await connection.execute(
            f"UPDATE {qualified(self.schema, self.table)} SET _extra = {change} {self._is_row}",
            self.owner_id,
        )

    async def remove(self, connection: Connection, before: datetime) -> bool:
        """Nothing is upcoming: delete row and lines, unless the row was written since `before`.

        False if it was.
        """
        await delete_rows(
            connection,
            self.schema,
            self.tables[self.table],
            f"{self._is_row} AND _synced_at <= $2",
            self.owner_id,
            before,
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
