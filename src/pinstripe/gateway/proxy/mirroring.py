"""What came through the proxy is put into Postgres before it is passed on, within bounded time.

A Stripe success is never turned into an error here: whatever goes wrong is told as an `Outcome`, which
the caller sees in a header, and is mended afterwards. The work runs in a task of its own, so that it
goes on when the caller hangs up or the time is over.

Answers that are only a hint: their objects are asked for again, in our version, as they are now.

A GET is repeated as the caller made it, with the caller's key: one request, for a list as well. After
a write the objects are retrieved with the sync's key, within its budget.

Rows whose answer could not be kept: they are fetched again when Postgres can be written to.

Where an answer itself waits for a writer (`Mirror` waits out a lost connection), nothing is needed
here. This is for what comes beyond: a full queue, a full disk. Only the requests that show them are
remembered, a few dozen bytes each, up to a bound; what exceeds it comes by its events.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import structlog

from pinstripe.catalog.endpoints import list_endpoints, singleton_paths
from pinstripe.catalog.model import spec
from pinstripe.catalog.relations import parents as parent_types
from pinstripe.catalog.tables import SINGLETONS, table_name, tables
from pinstripe.client.client import quote_id
from pinstripe.client.decode import StripeObject
from pinstripe.client.pagination import read_object
from pinstripe.errors import (
    Drifted,
    Misconfigured,
    NotFound,
    PinstripeError,
    Refused,
    Unreachable,
    Unwritable,
)
from pinstripe.gateway.proxy.accounts import AccountResolver, Credentials
from pinstripe.gateway.proxy.objects import (
    LAG_S,
    ParsedResponse,
    TooLarge,
    Trust,
    Unreadable,
    as_of_exchange,
    collection_table,
    is_preview,
    parents_of,
    read,
    unpack,
)
from pinstripe.gateway.proxy.request import MIRRORED, Target
from pinstripe.gateway.proxy.response_cache import ExpectedVersions, ResponseCache
from pinstripe.gateway.proxy.upstream import Upstream, UpstreamError, UpstreamResponse
from pinstripe.gateway.syncs import OpenSync, Syncs
from pinstripe.mirror import LIVE_LANE, QUEUE_ROWS
from pinstripe.mirror.batch import Effect
from pinstripe.rows.as_of import AsOf, Cause, as_of_response
from pinstripe.rows.extract import Row, RowKey, RowSet
from pinstripe.source.resolve import has_address, mark_deleted
from pinstripe.source.source import LIVE, retrieve_endpoint
from pinstripe.store.pool import Connection
from pinstripe.store.refetch import Refetch, add_refetches

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Mirrored = Literal["yes", "no", "later"]

Reason = Literal[
    "",
    "no-objects",
    "preview",
    "host",
    "unknown-account",
    "other-mode",
    "version",
    "unreadable",
    "postgres",
    "stripe",
    "too-large",
    "internal",
]

_STUCK_S = 0.05
"""How long is waited for a Postgres that kept an earlier answer for longer than the patience."""

_MOST_OPEN = 500
"""Answers under way at once, beyond which objects are fetched later: the sync's budget is behind."""


@dataclass(frozen=True, slots=True)
class MirrorResult:
    """What became of an answer's objects. `reason` is empty for "yes"."""

    mirrored: Mirrored
    reason: Reason = ""
    sync: OpenSync | None = None


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """What decides how its response is mirrored. `expected`: row versions before it was sent."""

    method: str
    target: Target
    headers: Sequence[tuple[str, str]] = field(repr=False)
    credentials: Credentials | None
    expected: Mapping[RowKey, datetime]

    @property
    def writes(self) -> bool:
        return self.method not in ("GET", "HEAD", "OPTIONS")


class ResponseMirror:
    """The mirror of what is answered. `waiting`: answers whose rows are not in Postgres yet."""

    def __init__(
        self,
        syncs: Syncs,
        callers: AccountResolver,
        upstream: Upstream,
        *,
        versions: ExpectedVersions,
        patience_s: float,
    ) -> None:
        self.later = DeferredFetches(syncs, self._fetch_later)
        self._syncs = syncs
        self._callers = callers
        self._upstream = upstream
        self._unchanged = ResponseCache(versions)
        self._patience_s = patience_s
        self._open: set[asyncio.Task[MirrorResult]] = set()
        self._stuck: set[str] = set()

    @property
    def waiting(self) -> int:
        return len(self._open) + len(self.later)

    async def mirror(
        self, asked: ProxyRequest, came: UpstreamResponse, body: bytes
    ) -> MirrorResult:
        """Returns when the answer's objects are in Postgres, or the patience is over."""
        if asked.target.host not in MIRRORED:
            return MirrorResult("no", "host")
        if is_preview(asked.target.path):
            return MirrorResult("no", "preview")
        if asked.credentials is None:
            return MirrorResult("no", "unknown-account")
        sync = self._callers.known(asked.credentials)
        task = asyncio.create_task(self._guarded(asked, came, body))
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        stuck = sync is not None and (sync.mirror.trouble or sync.id in self._stuck)
        done, _ = await asyncio.wait((task,), timeout=_STUCK_S if stuck else self._patience_s)
        return task.result() if done else MirrorResult("later", "postgres", sync)

    async def close(self, *, grace_s: float = 5.0) -> None:
        """Lets what is under way end, for so long."""
        tasks = list(self._open)
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _guarded(
        self, asked: ProxyRequest, came: UpstreamResponse, body: bytes
    ) -> MirrorResult:
        sync: OpenSync | None = None
        try:
            assert asked.credentials is not None  # noqa: S101 (`mirror` looked)
            sync = await self._callers.sync_of(asked.credentials)
            if sync is None:
                return MirrorResult("no", "unknown-account")
            return await self._kept(sync, asked, came, body)
        except TooLarge:
            return MirrorResult("no", "too-large", sync)
        except Unreadable:
            return MirrorResult("no", "unreadable", sync)
        except PinstripeError as error:
            _log.warning("proxy.unmirrored", path=asked.target.path, error=error.message)
            return MirrorResult("later" if sync is not None else "no", "stripe", sync)
        except Exception:
            # The outermost ring around what is ours: Stripe has answered, and that comes first.
            _log.exception("proxy.failed", method=asked.method, path=asked.target.path)
            return MirrorResult("no", "internal", sync)

    async def _kept(
        self, sync: OpenSync, asked: ProxyRequest, came: UpstreamResponse, body: bytes
    ) -> MirrorResult:
        path = asked.target.path
        unpacked = await unpack(body, came.header(b"content-encoding"))
        digest = b""
        if not asked.writes and is_ours(sync, came):
            digest = self._unchanged.digest(sync, asked.target, unpacked)
            if await self._unchanged.holds(sync, digest):
                return MirrorResult("yes", "", sync)
        parents = parents_of(path, asked.target.query)
        reading = read(unpacked, sync.mirror.extractor, parents)
        if any(mode != sync.livemode for mode in reading.modes):
            return MirrorResult("no", "other-mode", sync)
        if not any(table in sync.mirror.tables for table in reading.found.rows):
            return MirrorResult("no", "no-objects", sync)
        outcome = await self._mirrored(sync, asked, came, reading, digest)
        is_wanted = reading.top is None or reading.top[0] in sync.mirror.tables
        if outcome.mirrored == "yes" and not (reading.whole and is_wanted):
            # What it holds are rows; what was answered has no table.
            self._unchanged.forget(digest)
            return MirrorResult("no", "no-objects", sync)
        return outcome

    async def _mirrored(
        self,
        sync: OpenSync,
        asked: ProxyRequest,
        came: UpstreamResponse,
        reading: ParsedResponse,
        digest: bytes,
    ) -> MirrorResult:
        standing = trust_of(sync, asked, came, reading)
        if standing == "hint":
            return await self._asked_again(sync, asked, came, reading)
        lag_s = LAG_S if standing == "lagging" else 0.0
        cause = Cause("", came.header(b"request-id").decode("latin-1")) if asked.writes else None
        truth = as_of_exchange(came, lag_s=lag_s, cause=cause)
        effect = None
        if asked.writes:
            effect = follow_up(sync, reading.found, truth)
        elif digest and standing == "now":
            effect = self._unchanged.effect(sync, digest, reading.found, truth)
        outcome = await self._put(sync, asked, reading.found, truth, effect=effect)
        if effect is not None and digest and outcome.mirrored != "yes":
            self._unchanged.forget(digest)
        return outcome

    async def _asked_again(
        self, sync: OpenSync, asked: ProxyRequest, came: UpstreamResponse, reading: ParsedResponse
    ) -> MirrorResult:
        """Objects that may not be written as they are shown."""
        places = list(reading.places())
        if not asked.writes:
            again = await repeat_request(self._upstream, sync, asked.target, asked.headers)
            if again is not None:
                outcome = await self._put(sync, asked, *again)
                # What our version does not show at this place (a customer's sources) is fetched.
                places = [(t, k) for t, k in places if k not in again[0].rows.get(t, {})]
                if outcome.mirrored != "yes" or not places:
                    return outcome
            elif reading.top is None:
                return MirrorResult("no", "version", sync)
        parents = parents_of(asked.target.path, asked.target.query)
        if len(self._open) > _MOST_OPEN:
            self.later.add(sync.id, first_ways(sync, reading.found, places, parents))
            return MirrorResult("later", "version", sync)
        try:
            whole = await fetch_again(sync, reading.found, places, parents)
        except (Unreachable, Unwritable):
            self.later.add(sync.id, first_ways(sync, reading.found, places, parents))
            return MirrorResult("later", "stripe", sync)
        return MirrorResult("yes", "", sync) if whole else MirrorResult("later", "version", sync)

    async def _put(
        self,
        sync: OpenSync,
        asked: ProxyRequest,
        found: RowSet,
        truth: AsOf,
        *,
        effect: Effect | None = None,
    ) -> MirrorResult:
        """Writes the rows, and waits for those that are contested."""
        mirror = sync.mirror
        if mirror.queued >= QUEUE_ROWS:
            # Postgres takes nothing, and this is all that may be held in memory.
            self.later.add(sync.id, _retrievable(sync, asked, found))
            return MirrorResult("later", "postgres", sync)
        if not asked.writes:
            await mirror.room(found)
        durable = mirror.submit(
            found,
            truth,
            lane=LIVE_LANE if asked.writes else "",
            over=asked.expected or None,
            effect=effect,
        )
        await self._watched(sync, durable)
        if durable.cancelled():
            return MirrorResult("later", "postgres", sync)  # The sync is being closed.
        error = durable.exception()
        if isinstance(error, Drifted):
            _log.warning("proxy.drifted", path=asked.target.path, error=error.message)
            return MirrorResult("no", "internal", sync)
        if error is not None:
            self.later.add(sync.id, _retrievable(sync, asked, found))
            return MirrorResult("later", "postgres", sync)
        if mirror.is_refused(found):
            return MirrorResult(
                "later", "postgres", sync
            )  # Without a row that Postgres refuses; it is owed.
        conflicts = mirror.resolving(found)
        if conflicts:
            await asyncio.wait(conflicts)
            if not all(
                not t.cancelled() and t.exception() is None and t.result() for t in conflicts
            ):
                return MirrorResult("later", "stripe", sync)
        return MirrorResult("yes", "", sync)

    async def _watched(self, sync: OpenSync, durable: asyncio.Future[None]) -> None:
        """Waits for a commit; one that takes longer than the patience marks the sync as stuck."""
        done, _ = await asyncio.wait((durable,), timeout=self._patience_s)
        if done:
            return
        self._stuck.add(sync.id)
        try:
            await asyncio.wait((durable,))
        finally:
            self._stuck.discard(sync.id)

    async def _fetch_later(self, sync_id: str, way: Way) -> None:
        sync = self._syncs.get(sync_id)
        if sync is not None:
            await go(sync, way)


def is_ours(sync: OpenSync, came: UpstreamResponse) -> bool:
    """Whether the answer is in the version of the tables."""
    return came.header(b"stripe-version") == sync.mirror.api_version.encode()


def trust_of(
    sync: OpenSync, asked: ProxyRequest, came: UpstreamResponse, reading: ParsedResponse
) -> Trust:
    """How far the answer may be taken at its word."""
    replayed = came.header(b"idempotent-replayed").lower() == b"true"
    if replayed or not (is_ours(sync, came) or reading.deleted):
        return "hint"
    return "lagging" if asked.target.path.endswith("/search") else "now"


def _retrievable(sync: OpenSync, asked: ProxyRequest, found: RowSet) -> list[Way]:
    places = [(table, key) for table, group in found.rows.items() for key in group]
    parents = parents_of(asked.target.path, asked.target.query)
    return list(first_ways(sync, found, places, parents))


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


async def repeat_request(
    upstream: Upstream, sync: OpenSync, target: Target, headers: Sequence[tuple[str, str]]
) -> tuple[RowSet, AsOf] | None:
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
    except (UpstreamError, Unreadable):
        return None
    return reading.found, as_of_exchange(came)


async def fetch_again(
    sync: OpenSync, found: RowSet, places: Iterable[RowKey], parents: Mapping[str, str]
) -> bool:
    """Fetches the objects at `places` of an answer that is a hint, those that hold others first.

    An object without an address of its own comes with its parent, or by its parent's list; one that no
    request at all shows is written as the answer has it. Gives whether each is a row now; of those that
    are not, it is noted what is to be requested. Raises what `Stripe.get` and `Mirror.put` raise.
    """
    covered: set[RowKey] = set()
    asked: dict[RowKey, Way] = {}
    unreachable: list[RowKey] = []
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
        refetches = [
            Refetch(w.kind, w.table, w.key, w.parent, since=now) for w in ways_left if w.kind
        ]
        async with sync.source.transaction() as connection:
            await add_refetches(connection, sync.schema, refetches)
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
    sync: OpenSync, found: RowSet, place: RowKey, parents: Mapping[str, str]
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
    sync: OpenSync, found: RowSet, places: Iterable[RowKey], parents: Mapping[str, str]
) -> Iterator[Way]:
    """The surest request for each object that any request shows."""
    for place in places:
        if place[0] in sync.mirror.tables:
            yield from ways_to(sync, found, place, parents)[:1]


def _is_plain(table: str) -> bool:
    where = retrieve_endpoint(table)
    return where is not None and not where.parent_parameter


def _parents_in(sync: OpenSync, found: RowSet, place: RowKey) -> dict[str, str]:
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


async def go(sync: OpenSync, way: Way, key: str | None = None) -> set[RowKey]:
    """Makes the request and mirrors what it shows; gives the rows. What Stripe refuses shows nothing.

    `key`: the object that a list is read for; to its end without one.
    """
    try:
        if way.kind == "children":
            return await _list_children(sync, way, key)
        if way.kind is None:
            response = await sync.source.stripe.get(
                way.path, endpoint=f"GET {way.path}", priority=LIVE
            )
            found = sync.source.extract([read_object(response, way.path)], {})
            await sync.mirror.put(found, as_of_response(response))
            return _places_in(found)
        return await fetch_one(sync, (way.table, way.key), parent=way.parent)
    except Refused as error:
        _log.info("proxy.unfetched", table=way.table, id=way.key, error=error.message)
        return set()


async def _list_children(sync: OpenSync, way: Way, key: str | None) -> set[RowKey]:
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


async def _write_as_shown(sync: OpenSync, found: RowSet, places: Iterable[RowKey]) -> None:
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
        await sync.mirror.put(RowSet(rows=rows), AsOf(now - _SHOWN_S, now))


async def _not_rows(sync: OpenSync, places: Iterable[RowKey]) -> set[RowKey]:
    """Those that are not in their tables."""
    mirrored = {place for place in places if place[0] in sync.mirror.tables}
    return mirrored - (await sync.source.row_versions(mirrored)).keys()


def _places_in(found: RowSet) -> set[RowKey]:
    return {(name, each) for name, group in found.rows.items() for each in group}


def follow_up(sync: OpenSync, found: RowSet, truth: AsOf) -> Effect | None:
    """Notes what a write's answer shows in part, in the transaction that writes the rest.

    Objects whose lists it cut at ten, and those that it names as they were at another time.
    """
    owners = {(cut.parent_table, cut.parent_id) for cut in found.lists}
    wanted = [p for p in sorted(owners) if p[0] and retrieve_endpoint(p[0]) is not None]
    named = [p for p in sorted(found.elsewhere) if p[0] in sync.mirror.tables and has_address(p[0])]
    if not wanted and not named:
        return None
    refetches = [Refetch("fetch", table, key, since=truth.hi) for table, key in wanted]
    refetches += [Refetch("relate", table, key, since=truth.hi) for table, key in named]

    async def note(connection: Connection) -> None:
        await add_refetches(connection, sync.schema, refetches)

    return note


async def fetch_one(sync: OpenSync, place: RowKey, *, parent: str = "") -> set[RowKey]:
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
        response = await source.get_object(where, key, parent, LIVE)
    except NotFound:
        await mark_deleted(source, table, key, over=version)
        return {place}
    above = {collection_table(where.path[: where.path.index("/{")]) or "": parent} if parent else {}
    found = source.extract([read_object(response, where.path)], above)
    await source.follow_all(found, priority=LIVE)
    over = {place: version} if version is not None else None
    await sync.mirror.put(found, as_of_response(response), over=over)
    return _places_in(found)


MOST = 100_000

_PAUSE_S = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)

Fetch = Callable[[str, Way], Awaitable[None]]
"""(sync id, request) -> make it and mirror what it shows."""


class DeferredFetches:
    """Requests to make, oldest first. `lost` counts those beyond the bound."""

    def __init__(
        self,
        syncs: Syncs,
        fetch: Fetch,
        *,
        most: int = MOST,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.lost = 0
        self._syncs = syncs
        self._fetch = fetch
        self._most = most
        self._sleep = sleep
        self._ways: OrderedDict[tuple[str, Way], None] = OrderedDict()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ways)

    def add(self, sync_id: str, ways: Iterable[Way]) -> None:
        """Remembers requests for a sync."""
        for way in ways:
            if len(self._ways) >= self._most:
                self.lost += 1
                continue
            self._ways[sync_id, way] = None
        if self._ways:
            self._wake.set()

    async def run(self) -> None:
        """Works until cancelled."""
        failures = 0
        while True:
            if not self._ways:
                self._wake.clear()
                await self._wake.wait()
            (sync_id, way), _ = self._ways.popitem(last=False)
            if self._syncs.get(sync_id) is None:
                continue  # It was removed. Its tables are nobody's here.
            try:
                await self._fetch(sync_id, way)
                failures = 0
            except (Unreachable, Unwritable, Misconfigured) as error:
                self.add(sync_id, [way])
                if failures == 0:
                    _log.warning("proxy.later", waiting=len(self._ways), error=error.message)
                await self._sleep(_PAUSE_S[min(failures, len(_PAUSE_S) - 1)])
                failures += 1
            except PinstripeError as error:
                # Stripe says no, and would again; or the value fits no column.
                _log.warning("proxy.unmirrored", table=way.table, error=error.message)
