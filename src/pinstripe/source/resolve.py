"""Resolves a conflicting row by fetching its object once.

    Conflict -> GET the object -> write it, as newer than what we knew before the GET | mark deleted
             -> no address: read the event log around the row's interval -> newest event
             -> none of our version: read the lists of its owners, or the owners that show it; if it
                names none, or they do not show it, the newest event of any version

What was written a replica's lag before the request is older than the response, whatever the clocks say. A
snapshot that arrives in between is not lost: it conflicts in its turn. Stripe has no address for some
objects (a discount, a card, a hold on reserves). If two of their states share a second, the order of the
event log decides which is newer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from math import ceil, floor

from pinstripe.catalog.embedded import holders
from pinstripe.catalog.endpoints import child_list, has_address, retrieve_endpoint, singleton_path
from pinstripe.catalog.model import spec
from pinstripe.catalog.relations import deletes
from pinstripe.catalog.tables import Column, tables
from pinstripe.client.client import iter_pages, list_at, quote_id
from pinstripe.client.response import AsOf, Cause, StripeObject, as_of_response, read_object
from pinstripe.errors import NotEnabled, NotFound, NotPermitted
from pinstripe.mirror.batch import Conflict, refetch_for
from pinstripe.mirror.change_feed import delete_rows
from pinstripe.mirror.orphans import ENTRIES_GO, children_of
from pinstripe.rows.event import EVENTS, cause_of, created_of, payload
from pinstripe.rows.extract import RowKey, RowSet, key_of
from pinstripe.source.source import CONTESTED, Source
from pinstripe.store.daily_counts import note_contradiction
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.pool import Connection
from pinstripe.store.refetch import Refetch, RefetchDone, complete_refetches, is_queued_by


async def complete(source: Source, answer: RefetchDone) -> None:
    """Marks a refetch as completed, if no commit has done so."""
    if not answer.is_noted:
        async with source.transaction() as connection:
            await complete_refetches(connection, source.mirror.schema, [answer])


async def resolve(source: Source, row: Conflict) -> bool:
    """Resolves a conflict with one request; False if Stripe cannot decide it.

    Completes its refetch, unless a replica may have been behind another conflict of the row, a later one.
    """
    if row.parent_table:
        answer = source.done(refetch_for(row), await source.pool.time(), is_told=False)
        await _read_set(source, row, answer)
        await complete(source, answer)
        return True
    started, before = await source.row_version(row.table, row.key)
    answer = source.done(refetch_for(row), started, is_told=False)
    answered = await refetch_row(
        source, row.table, row.key, started=answer.started, cause=row.cause, answers=[answer]
    )
    is_stale = before == await source.version(row.table, row.key)
    async with source.transaction() as connection:
        await note_contradiction(connection, source.mirror.schema, is_stale=is_stale)
    await complete(source, answer)
    return answered is not None


async def _read_set(source: Source, row: Conflict, answer: RefetchDone) -> None:
    """Reads all that a parent has, by the list under it, or else with the parent itself."""
    if answer.refetch.kind == "children":
        await read_children(source, answer.refetch, answer.started)
    else:
        await refetch_row(
            source,
            row.parent_table,
            row.key,
            started=answer.started,
            cause=row.cause,
            answers=[answer],
        )


async def read_children(source: Source, refetch: Refetch, started: datetime) -> bool:
    """Mirrors the children of `refetch.table` under the parent `refetch.id`, to the end of the list; False
    if the parent is gone, and its list with it.

    `started`: a moment before, on Postgres's clock. Raises what `Source.read` raises.
    """
    endpoint = child_list(refetch.table, refetch.parent)
    if endpoint is None:
        return False
    path, params = endpoint.url(refetch.id, quote_id(refetch.id))
    with suppress(NotFound):
        await source.read(
            endpoint,
            path,
            params,
            parents={endpoint.parent_table: refetch.id},
            priority=refetch.work_class,
            cause=refetch.cause,
            known_until=started - source.replica_lag,
        )
        return True
    return False


async def refetch_row(
    source: Source,
    table: str,
    key: str,
    *,
    started: datetime,
    parent: str = "",
    cause: Cause | None = None,
    answers: Sequence[RefetchDone] = (),
    priority: int = CONTESTED,
) -> RowSet | None:
    """Replaces the row by what Stripe has now, or marks the row as deleted.

    Returns the rows that its own response has, if there is one; None if nothing at Stripe shows the object.
    `started`: a moment before, on Postgres's clock: what was known a while before that is replaced whatever
    the clocks say. `parent`: the id it is retrieved under, if known. `answers`: refetches that the commit
    completes.
    """
    try:
        if singleton_path(table):
            await _read_singleton(source, table, started=started, cause=cause, answers=answers)
            return RowSet()
        parent = parent or await _parent(source, table, key)
        found = await source.fetch(
            table,
            key,
            parent=parent,
            started=started,
            priority=priority,
            cause=cause,
            answers=answers,
        )
        if found is not None:
            return found
    except NotFound as gone:
        await mark_deleted(
            source, table, key, started=started, gone=gone, cause=cause, answers=answers
        )
        return RowSet()
    owners = await _owners(source, table, key)
    if await resolve_from_events(source, table, key, any_version=not owners):
        return RowSet()
    row = (table, key)
    said = [await _is_shown(source, row, o, started=started, priority=priority) for o in owners]
    # An account that its platform does not control shows no bank accounts: `external_accounts` in
    # https://docs.stripe.com/api/accounts/object. Of discounts a customer shows one.
    if any(said):
        return RowSet()
    is_told = bool(owners) and await resolve_from_events(source, table, key, any_version=True)
    return RowSet() if is_told else None


async def _is_shown(
    source: Source, row: RowKey, owner: Refetch, *, started: datetime, priority: int
) -> bool:
    """Read an owner; whether that shows the object, or says what all of its table are. One that is gone
    says nothing: what it had may have events all the same.
    """
    table, key = row
    with suppress(NotFound):
        if owner.kind == "children":
            return await read_children(source, owner, started)
        found = await source.fetch(owner.table, owner.id, started=started, priority=priority)
        return found is not None and (
            key in found.rows.get(table, ())
            or any(cut.child_table == table for cut in found.lists)
            or any(table in children_of(told) for told in found.sets)
        )
    return False


async def _owners(source: Source, table: str, key: str) -> list[Refetch]:
    """What shows the object of a row without an address, by the owners that the row names."""
    known, place = source.wanted[table], qualified(source.mirror.schema, table)
    async with source.pool.acquire() as connection:
        found = await connection.fetchrow(
            f"SELECT * FROM {place} WHERE {quote(known.key[0])} = $1", key
        )
    return shown_by(source, table, lambda c: found[c.name]) if found is not None else []


def shown_by(source: Source, table: str, value: Callable[[Column], object]) -> list[Refetch]:
    """The refetches that show an object without an address: the lists under the owners that it names, or
    the owners themselves. `value`: that of a column.
    """
    found: list[Refetch] = []
    for column in source.wanted[table].columns:
        owner = column.references[0] if len(column.references) == 1 else ""
        key = value(column) if owner in source.wanted and len(column.path) <= 1 else None
        if column.is_derived or not isinstance(key, str):
            continue
        kind = tables()[owner].object_type
        if child_list(table, kind) is not None:
            found.append(Refetch("children", table, key, kind))
        elif owner in holders().get(table, ()) and has_address(owner):
            found.append(Refetch("fetch", owner, key))
    return found


async def mark_deleted(
    source: Source,
    table: str,
    key: str,
    *,
    started: datetime,
    gone: NotFound | None = None,
    cause: Cause | None = None,
    answers: Sequence[RefetchDone] = (),
) -> None:
    """Marks the row of an object that Stripe does not have (any more) as deleted, or removes it.

    `started`: a moment before the request, on Postgres's clock. `gone`: Stripe's response. An object
    without a row is left without, unless an event was about it: another one that comes late, of its
    creation, would bring it back to life.
    """
    known, is_told = source.wanted[table], False
    known_until = started - source.replica_lag
    for answer in answers:
        if answer.proves(None):
            answer.lag_s = 0.0
        elif not source.is_past(answer.refetch.since):
            answer.lag_s = source.stripe.margins.replica_lag_s
            if not await is_queued_by(
                source.pool, source.mirror.schema, answer.refetch, known_until
            ):
                continue  # It may not have been made yet.
        is_told = is_told or (answer.refetch.kind == "fetch" and bool(answer.refetch.event_id))
    if not (known.deletable or table in ENTRIES_GO):
        return
    if await source.version(table, key) is None and not (known.deletable and is_told):
        return
    found = RowSet()
    if not known.deletable:

        async def remove(connection: Connection) -> None:
            older = f"t.{quote(known.key[0])} = $1 AND t._synced_at <= $2"
            schema = source.mirror.schema
            await delete_rows(connection, schema, known, older, key, known_until, cause=cause)

        await source.mirror.write([], effect=remove, completed=answers)
        return
    source.mirror.extractor.object({"id": key, "object": known.object_type, "deleted": True}, found)
    # By Stripe's time if the response has one: our clock may be behind.
    said_at = gone.said_at if gone is not None else None
    lo, hi = said_at or (source.now() - 1.0, source.now())
    parts = [(found, AsOf(lo, hi, cause, known_until))]
    await source.mirror.write(parts, completed=answers)


async def _read_singleton(
    source: Source,
    table: str,
    *,
    started: datetime,
    cause: Cause | None,
    answers: Sequence[RefetchDone],
) -> None:
    path = singleton_path(table)
    response = await source.stripe.get(path, endpoint=f"GET {path}", priority=CONTESTED)
    source.observe_clock(response)
    found = RowSet()
    source.mirror.extractor.object(read_object(response, path), found)
    parts = [(found, as_of_response(response, cause, started=started))]
    await source.mirror.write(parts, completed=answers)


async def _parent(source: Source, table: str, key: str) -> str:
    """The id of the parent that the object is retrieved under, from its row; "" if there is none."""
    where = retrieve_endpoint(table)
    if where is None or not where.parent_parameter:
        return ""
    known = source.wanted[table]
    name = where.parent_parameter.removesuffix("_id") + "_id"
    if not any(c.name == name for c in known.columns):
        return ""
    async with source.pool.acquire() as connection:
        found: str | None = await connection.fetchval(
            f"SELECT {quote(name)} FROM {qualified(source.mirror.schema, table)} "
            f"WHERE {quote(known.key[0])} = $1",
            key,
        )
    return found or ""


_MOST_TYPES = 20
"""Event types that one request may name (https://docs.stripe.com/api/events/list)."""


async def resolve_from_events(
    source: Source, table: str, key: str, *, any_version: bool = False
) -> bool:
    """Replaces the row, as it is now, by the newest event of its interval.

    Returns False if no event of our version (or of `any_version`) carries the object, or there is no row.
    """
    known = source.wanted[table]
    async with source.pool.acquire() as connection:
        span = await connection.fetchrow(
            "SELECT extract(epoch FROM _as_of)::float8, extract(epoch FROM _as_of_latest)::float8, "
            f"_synced_at FROM {qualified(source.mirror.schema, table)} WHERE {quote(known.key[0])} = $1",
            key,
        )
    if span is None:
        return False
    try:
        event = await _newest(source, table, key, floor(span[0]), ceil(span[1]))
    except (NotPermitted, NotEnabled):
        return False
    if event is None:
        return False
    obj, is_ours = payload(event), event.get("api_version") == source.mirror.api_version
    if known.deletable and deletes(str(event.get("type"))):
        obj = {**(obj if is_ours else {"id": key, "object": obj["object"]}), "deleted": True}
    elif not (is_ours or any_version):
        return False
    found = RowSet()
    source.mirror.extractor.object(obj, found)
    second = float(created_of(event))
    # The order of the list decides within a second. A version that was written meanwhile, or whose commit
    # came after our look, is of another interval: the list was not asked about that.
    await source.mirror.write([(found, AsOf(second, second + 1.0, cause_of(event), span[2]))])
    return True


async def _newest(
    source: Source, table: str, key: str, since: int, until: int
) -> StripeObject | None:
    """The newest event of the object in this time, by Stripe's order."""
    params = [("created[gte]", str(since)), ("created[lte]", str(until))]
    params += [("types[]", name) for name in _types(source.wanted[table].object_type)]
    request = list_at(source.stripe, EVENTS, params, endpoint=f"GET {EVENTS}", priority=CONTESTED)
    async for page in iter_pages(request):
        for event in page.objects:
            obj = payload(event)
            name = str(obj.get("object"))
            if name == source.wanted[table].object_type and key_of(name, obj) == key:
                return event
    return None


def _types(name: str) -> Sequence[str]:
    """The event types that carry this object type; empty (no filter) if they are too many for a request."""
    found = [e.name for e in spec().events if name in e.carries]
    return found if len(found) <= _MOST_TYPES else ()
