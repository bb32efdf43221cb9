"""Answers that are only a hint: their objects are asked for again, in our version, as they are now.

A GET is repeated as the caller made it, with the caller's key: one request, for a list as well. After
a write the objects are retrieved with the sync's key, within its budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from pinstripe.catalog.endpoints import list_endpoints, singleton_paths
from pinstripe.catalog.load import spec
from pinstripe.catalog.parents import parents as parent_types
from pinstripe.catalog.tables import SINGLETONS, table_name, tables
from pinstripe.client.paths import quote_id
from pinstripe.errors import NotFound, Refused
from pinstripe.gateway.answers import (
    Place,
    Unreadable,
    collection_table,
    parents_of,
    read,
    unpack,
)
from pinstripe.gateway.answers_truth import truth_of_exchange
from pinstripe.gateway.hosts import Target
from pinstripe.gateway.syncs import OpenSync
from pinstripe.gateway.upstream import Unanswered, Upstream
from pinstripe.mirror import Truth
from pinstripe.rows.decode import StripeObject
from pinstripe.rows.extract import Found, Row
from pinstripe.source.account import LIVE, retrieve_endpoint
from pinstripe.source.page import read_object, truth_of
from pinstripe.source.settle import bury, has_address
from pinstripe.store.batch import Effect
from pinstripe.store.ddl import qualified
from pinstripe.store.pool import Connection
from pinstripe.store.todo import Todo, add_todos

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

ANSWER_BYTES = 32 * 2**20
"""The largest answer that is read whole. Stripe's pages of 100 objects have up to a few MB."""

_FETCHED_AT_ONCE = 12
"""Requests for one answer before it is passed on; what else is to be requested is noted."""
_SHOWN_S = 5.0
"""How old an answer may be that is written as it is."""
# Would change what is answered, or are about the first answer.
_NOT_REPEATED = frozenset(
    {"stripe-version", "accept-encoding", "if-none-match", "if-modified-since", "range"}
)


async def ask_again(
    upstream: Upstream, sync: OpenSync, target: Target, headers: Sequence[tuple[str, str]]
) -> tuple[Found, Truth] | None:
    """A GET of the caller's in our version; None where Stripe does not answer that with objects."""
    asked = [(n, v) for n, v in headers if n not in _NOT_REPEATED]
    asked += [("stripe-version", sync.mirror.api_version), ("accept-encoding", "gzip")]
    try:
        came = await upstream.send("GET", target.url, asked)
        body, whole = await came.read(ANSWER_BYTES)
        if not whole:
            came.close()
            return None
        if came.status != 200:
            return None
        unpacked = await unpack(body, came.header(b"content-encoding"))
        reading = read(unpacked, sync.mirror.extractor, parents_of(target.path, target.query))
    except (Unanswered, Unreadable):
        return None
    return reading.found, truth_of_exchange(came)


async def fetch_again(
    sync: OpenSync, found: Found, places: Iterable[Place], parents: Mapping[str, str]
) -> bool:
    """Fetches the objects at `places` of an answer that is a hint, those that hold others first.

    An object without an address of its own comes with its parent, or by its parent's list; one that no
    request at all shows is written as the answer has it. Gives whether each is a row now; of those that
    are not, it is noted what is to be requested. Raises what `Stripe.get` and `Mirror.put` raise.
    """
    covered: set[Place] = set()
    asked: dict[Place, Way] = {}
    unreachable: list[Place] = []
    requests = 0
    for place in places:
        if place in covered or place[0] not in sync.mirror.tables:
            continue
        ways = ways_to(sync, found, place, parents)
        if not ways:
            unreachable.append(place)
            continue
        for way in ways if requests < _FETCHED_AT_ONCE else ():
            requests += 1
            covered |= await go(sync, way, place[1])
            if place in covered:
                break
        asked[place] = ways[0]
    await _write_as_shown(sync, found, unreachable)
    # One that Stripe does not show yet is no row either: its reads may run behind its writes.
    left = {place for place in asked if place not in covered}
    missing = await _not_rows(sync, {*asked, *unreachable}) | left
    if missing:
        now = sync.source.now()
        ways_left = [asked[place] for place in sorted(missing) if place in asked]
        todos = [Todo(w.kind, w.table, w.key, w.parent, since=now) for w in ways_left if w.kind]
        async with sync.source.transaction() as connection:
            await add_todos(connection, sync.schema, todos)
    return not missing


@dataclass(frozen=True, slots=True)
class Way:
    """One request that shows an object: `fetch` of (table, key), its parent's id beside it where the
    path has one; or `children`, the list of `table` under the object `key` of the type `parent`.
    Without a kind: `path`, of what exists once in an account.
    """

    kind: Literal["fetch", "children"] | None
    table: str
    key: str
    parent: str = ""
    path: str = ""


def ways_to(
    sync: OpenSync, found: Found, place: Place, parents: Mapping[str, str]
) -> Sequence[Way]:
    """The requests that may show the object at `place`, the surest first.

    `parents`: ids by table that path and query of the request name.
    """
    table, key = place
    object_type = tables()[table].object_type
    if object_type in singleton_paths():
        return [Way(None, table, key, path=singleton_paths()[object_type])]
    where = retrieve_endpoint(table)
    if where is not None and not where.parent_parameter:
        return [Way("fetch", table, key)]
    above = {**_parents_in(sync, found, place), **dict(parents)}
    if where is not None:
        owner = above.get(collection_table(where.path[: where.path.index("/{")]) or "")
        return [Way("fetch", table, key, owner)] if owner else []
    ways = [
        Way("children", table, above[table_name(e.parent)], e.parent)
        for e in list_endpoints()
        if e.parent and object_type in e.objects and table_name(e.parent) in above
    ]
    holders = {table_name(name) for name in parent_types(spec()).get(object_type, ())}
    if object_type in SINGLETONS:
        holders.add(SINGLETONS[object_type])
    ways += [Way("fetch", t, above[t]) for t in sorted(holders & set(above)) if _is_plain(t)]
    return ways


def first_ways(
    sync: OpenSync, found: Found, places: Iterable[Place], parents: Mapping[str, str]
) -> Iterator[Way]:
    """The surest request for each object that any request shows."""
    for place in places:
        if place[0] in sync.mirror.tables:
            yield from ways_to(sync, found, place, parents)[:1]


def _is_plain(table: str) -> bool:
    where = retrieve_endpoint(table)
    return where is not None and not where.parent_parameter


def _parents_in(sync: OpenSync, found: Found, place: Place) -> dict[str, str]:
    """Ids by table of the objects that the row at `place` says it belongs to."""
    table, key = place
    row = found.rows.get(table, {}).get(key)
    if row is None:
        return {}
    columns = sync.mirror.tables[table].columns
    return {
        column.references[0]: value
        for column, value in zip(columns, row, strict=False)
        if len(column.references) == 1 and len(column.path) <= 1 and isinstance(value, str)
    }


async def go(sync: OpenSync, way: Way, key: str | None = None) -> set[Place]:
    """Makes the request and mirrors what it shows; gives the rows. What Stripe refuses shows nothing.

    `key`: the object that a list is read for; to its end without one.
    """
    try:
        if way.kind == "children":
            return await _list_children(sync, way, key)
        if way.kind is None:
            reply = await sync.source.stripe.get(
                way.path, endpoint=f"GET {way.path}", priority=LIVE
            )
            found = sync.source.extract([read_object(reply, way.path)], {})
            await sync.mirror.put(found, truth_of(reply))
            return _places_in(found)
        return await fetch_one(sync, (way.table, way.key), parent=way.parent)
    except Refused as error:
        _log.info("proxy.unfetched", table=way.table, id=way.key, error=error.message)
        return set()


async def _list_children(sync: OpenSync, way: Way, key: str | None) -> set[Place]:
    endpoint = next(
        e
        for e in list_endpoints()
        if e.parent == way.parent and tables()[way.table].object_type in e.objects
    )
    path, params = endpoint.url(way.key, quote_id(way.key))
    shown: set[str] = set()

    async def enough(_: Sequence[StripeObject]) -> bool:
        return key in shown

    above = {table_name(endpoint.parent): way.key}
    await sync.source.read(
        endpoint, path, params, parents=above, priority=LIVE, enough=enough, shown=shown
    )
    return {(way.table, key) for key in shown}


async def _write_as_shown(sync: OpenSync, found: Found, places: Iterable[Place]) -> None:
    """Rows of types that no request shows (a portal session): the answer is all that there will be.

    Their fields may stand elsewhere in our version; those that our tables know under the same name are
    columns, the others are in `_extra`. Never older than a row that is there: only what is missing.
    """
    rows: dict[str, dict[str, Row]] = {}
    for table, key in places:
        row = found.rows.get(table, {}).get(key)
        if row is not None:
            rows.setdefault(table, {})[key] = row
    if rows:
        now = sync.source.now()
        await sync.mirror.put(Found(rows=rows), Truth(now - _SHOWN_S, now))


async def _not_rows(sync: OpenSync, places: Iterable[Place]) -> set[Place]:
    """Those that are not in their tables."""
    keys: dict[str, list[str]] = {}
    for table, key in places:
        if table in sync.mirror.tables:
            keys.setdefault(table, []).append(key)
    missing: set[Place] = set()
    async with sync.pool.acquire() as connection:
        for table, wanted in keys.items():
            rows = await connection.fetch(
                f"SELECT id FROM {qualified(sync.schema, table)} WHERE id = ANY($1)", wanted
            )
            missing |= {(table, key) for key in {*wanted} - {row[0] for row in rows}}
    return missing


def _places_in(found: Found) -> set[Place]:
    return {(name, each) for name, group in found.rows.items() for each in group}


def follow_up(sync: OpenSync, found: Found, truth: Truth) -> Effect | None:
    """Notes what a write's answer shows in part, in the transaction that writes the rest.

    Objects whose lists it cut at ten, and those that it names as they were at another time.
    """
    owners = {(cut.parent_table, cut.parent_id) for cut in found.lists}
    wanted = [p for p in sorted(owners) if p[0] and retrieve_endpoint(p[0]) is not None]
    named = [p for p in sorted(found.elsewhere) if p[0] in sync.mirror.tables and has_address(p[0])]
    if not wanted and not named:
        return None
    todos = [Todo("fetch", table, key, since=truth.hi) for table, key in wanted]
    todos += [Todo("relate", table, key, since=truth.hi) for table, key in named]

    async def note(connection: Connection) -> None:
        await add_todos(connection, sync.schema, todos)

    return note


async def fetch_one(sync: OpenSync, place: Place, *, parent: str = "") -> set[Place]:
    """Retrieves one object and mirrors it; gives the rows that it held. One that is gone is flagged.

    `parent` is the id that stands before its own in the path. Raises Refused where the sync's key may
    not read it.
    """
    table, key = place
    where = retrieve_endpoint(table)
    if where is None or (where.parent_parameter and not parent):
        return set()
    source = sync.source
    version = await source.version(table, key)
    try:
        reply = await source.get_object(where, key, parent, LIVE)
    except NotFound:
        await bury(source, table, key, over=version)
        return {place}
    above = {collection_table(where.path[: where.path.index("/{")]) or "": parent} if parent else {}
    found = source.extract([read_object(reply, where.path)], above)
    await source.follow_all(found, priority=LIVE)
    over = {place: version} if version is not None else None
    await sync.mirror.put(found, truth_of(reply), over=over)
    return _places_in(found)
