"""One row: every column, since when it is true, what it refers to and what refers to it, what changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from starlette.responses import Response

from pinstripe.console.events import columns_of
from pinstripe.console.row_links import (
    Inward,
    dashboard_url,
    load_inward,
    load_missing,
)
from pinstripe.console.rows_cells import cell
from pinstripe.console.tables_shape import Shape, load_shape
from pinstripe.console.visit import Visit
from pinstripe.errors import Unreachable
from pinstripe.store.change_pages import Wanted, changes_before, newest_position
from pinstripe.store.ddl import BOOKKEEPING, literal, qualified, quote
from pinstripe.store.event_pages import EventFilter, EventLine, has_events, list_events
from pinstripe.store.pool import Connection

_CHANGES = 20
_EVENTS = 10
_EVENTS_S = 0.5
"""The event log has no index on the object: it is looked through for so long."""
_INWARD_S = 3.0
_LAST = 2**63 - 1
_PLAIN = {"text", "bigint", "numeric", "boolean", "jsonb", "text[]", "timestamptz"}


@dataclass(frozen=True, slots=True)
class Truth:
    """When the row was true, on Stripe's clock, and when it was written, on Postgres's."""

    earliest: datetime | None
    latest: datetime | None
    written: datetime | None
    api_version: str | None
    partial: bool


async def show(visit: Visit) -> Response:
    """One row."""
    sync = visit.sync
    assert sync is not None  # noqa: S101 (its route names it)
    name, key = visit.named("table"), visit.named("key").replace("\0", "")
    async with visit.gateway.reads.connection() as connection:
        shape = await load_shape(connection, sync.schema, name)
        if shape is None:
            return visit.nothing(f'There is no table "{name}" in this schema.')
        values = await _load(connection, shape, key)
        if values is None:
            reasons = await load_missing(connection, sync.schema, [(name, key)])
            return visit.nothing(_absent(name, key, reasons.get((name, key))))
        cells = [cell(shape, column, values, whole=True) for column in shape.columns]
        pointed = [(r.table, r.id) for c in cells for r in c.references if r.table is not None]
        missing = await load_missing(connection, sync.schema, pointed)
        wanted = Wanted(name, key)
        changes = await changes_before(
            connection, sync.schema, _LAST, wanted=wanted, limit=_CHANGES
        )
        feed = bool(changes) or await newest_position(connection, sync.schema) > 0
    inward, unasked = await _inward(visit, shape, key)
    own = [c for c in cells if c.column.name not in BOOKKEEPING or c.column.name == "_extra"]
    return visit.page(
        "row.html",
        shape=shape,
        key=key,
        title=_title(values),
        deleted=values.get("deleted") is True,
        cells=[c for c in own if c.kind != "null"],
        nulls=[c.column for c in own if c.kind == "null"],
        truth=_truth(values),
        missing=missing,
        inward=inward,
        unasked=unasked,
        changes=[(change, columns_of(change)) for change in changes],
        feed=feed,
        events=await _events(visit, shape, key),
        dashboard=None if shape.table.virtual else dashboard_url(sync, name, key),
        sql=f"SELECT *\nFROM {qualified(sync.schema, name)}\n"
        f"WHERE {quote(shape.key)} = {literal(key)};",
    )


async def _load(connection: Connection, shape: Shape, key: str) -> dict[str, object] | None:
    """The row's values by column; types that we do not know come as text."""
    selected = ", ".join(
        quote(c.name) if c.type in _PLAIN else f"{quote(c.name)}::text"
        for c in shape.columns.values()
    )
    record = await connection.fetchrow(
        f"SELECT {selected} FROM {qualified(shape.schema, shape.table.name)}"
        f" WHERE {quote(shape.key)} = $1",
        key,
    )
    return None if record is None else dict(zip(shape.columns, record, strict=True))


async def _inward(
    visit: Visit, shape: Shape, key: str
) -> tuple[list[Inward] | None, Sequence[tuple[str, str]]]:
    """None where it took too long."""
    try:
        async with visit.gateway.reads.connection(longest_s=_INWARD_S) as connection:
            return await load_inward(connection, shape, key)
    except Unreachable:
        return None, ()


async def _events(visit: Visit, shape: Shape, key: str) -> list[EventLine] | None:
    """The newest that tell of the row; None where looking for them took too long."""
    if shape.table.virtual or "event" not in shape.here:
        return []
    try:
        async with visit.gateway.reads.connection(longest_s=_EVENTS_S) as connection:
            if not await has_events(connection, shape.schema):
                return []
            return await list_events(
                connection, shape.schema, EventFilter(object_id=key), limit=_EVENTS
            )
    except Unreachable:
        return None


def _truth(values: dict[str, object]) -> Truth:
    def moment(name: str) -> datetime | None:
        value = values.get(name)
        return value if isinstance(value, datetime) else None

    version = values.get("_api_version")
    return Truth(
        moment("_as_of"),
        moment("_as_of_latest"),
        moment("_synced_at"),
        version if isinstance(version, str) else None,
        values.get("_partial") is True,
    )


def _title(values: dict[str, object]) -> str:
    """What people call the row: its name, number or address; "" if it has none."""
    for column in ("name", "number", "nickname", "email", "description"):
        value = values.get(column)
        if isinstance(value, str) and value.strip():
            return value if len(value) <= 120 else value[:120] + "…"
    return ""


def _absent(name: str, key: str, reason: str | None) -> str:
    told = f'There is no row "{key}" in {name}.'
    return f"{told} {reason}" if reason else told
