"""Writes the objects of a proxied response to Postgres before the caller gets it, within bounded time.

    response -> parsed -> current or stale: written from the response
                       -> refetch: requested again in our API version, then written

An error never turns a success of Stripe's into a failure: it becomes a `MirrorResult`, which the caller
sees in a header, and is mended afterwards. Each response is mirrored in a task of its own, which goes
on when the caller disconnects or the patience is over.

A GET whose response cannot be written is repeated with the caller's key; after a write the objects are
retrieved with the sync's key, within its rate limit. `DeferredFetches` remembers what could not be
written (a full queue, a full disk) up to a bound; objects beyond it arrive by their events.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Literal

import structlog

from pinstripe.catalog.endpoints import (
    has_address,
    list_endpoints,
    retrieve_endpoint,
    singleton_paths,
)
from pinstripe.catalog.model import object_types, spec
from pinstripe.catalog.relations import parents as parent_types
from pinstripe.catalog.relations import reported
from pinstripe.catalog.tables import SINGLETONS, table_name, tables
from pinstripe.client.client import quote_id
from pinstripe.client.response import AsOf, Cause, StripeObject, as_of_response, read_object
from pinstripe.client.transport import TooLarge, Unreadable
from pinstripe.concurrency import backoff, cancel
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
    Trust,
    agrees,
    as_of_exchange,
    collections,
    is_preview,
    measured_response,
    parents_of,
    places_of,
    read_aside,
    unpack,
)
from pinstripe.gateway.proxy.response_cache import ResponseCache
from pinstripe.gateway.proxy.upstream import (
    MIRRORED,
    Target,
    Upstream,
    UpstreamError,
    UpstreamResponse,
)
from pinstripe.gateway.syncs import OpenSync, PatientVersions, Syncs
from pinstripe.mirror import LIVE_LANE, QUEUE_ROWS
from pinstripe.mirror.batch import Effect
from pinstripe.rows.extract import Row, RowKey, RowSet
from pinstripe.source.resolve import mark_deleted
from pinstripe.source.source import LIVE
from pinstripe.store.platforms.sweep import owe_refetch
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
"""The patience while a commit of an earlier response is still pending."""

_MOST_OPEN = 500
"""Responses being mirrored, beyond which objects are fetched later: the rate limit is the bottleneck."""


@dataclass(frozen=True, slots=True)
class MirrorResult:
    """Whether a response's objects are in Postgres. `reason` is empty for "yes"."""

    mirrored: Mirrored
    reason: Reason = ""
    sync: OpenSync | None = None


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """What decides how its response is mirrored.

    `known_until`: of a write, a moment before it was sent, on Postgres's clock: what we had written until
    then is older.
    """

    method: str
    target: Target
    headers: Sequence[tuple[str, str]] = field(repr=False)
    credentials: Credentials | None
    known_until: datetime | None = None

    @property
    def writes(self) -> bool:
        return self.method not in ("GET", "HEAD", "OPTIONS")


class ResponseMirror:
    def __init__(
        self,
        syncs: Syncs,
        accounts: AccountResolver,
        upstream: Upstream,
        *,
        versions: PatientVersions,
        patience_s: float,
    ) -> None:
        self.later = DeferredFetches(self._fetch_later)
        self._syncs = syncs
        self._accounts = accounts
        self._upstream = upstream
        self._cache = ResponseCache(versions)
        self._patience_s = patience_s
        self.held = 0
        """Bytes of the bodies that are being mirrored."""
        self._open: set[asyncio.Task[MirrorResult]] = set()
        self._stuck: set[str] = set()

    async def mirror(
        self, request: ProxyRequest, response: UpstreamResponse, body: bytes
    ) -> MirrorResult:
        """Return when the response's objects are in Postgres, or the patience is over."""
        if request.target.host not in MIRRORED:
            return MirrorResult("no", "host")
        if is_preview(request.target.path):
            return MirrorResult("no", "preview")
        if request.credentials is None:
            return MirrorResult("no", "unknown-account")
        sync = self._accounts.known(request.credentials)
        task = asyncio.create_task(self._mirror_or_reason(request, response, body))
        self._open.add(task)
        self.held += len(body)
        task.add_done_callback(partial(self._done, len(body)))
        stuck = sync is not None and (sync.mirror.trouble or sync.id in self._stuck)
        done, _ = await asyncio.wait((task,), timeout=_STUCK_S if stuck else self._patience_s)
        if done:
            return task.result()
        # Whose key it is may have been found meanwhile, or Stripe takes long to say so.
        sync = self._accounts.known(request.credentials)
        return MirrorResult("later", "postgres", sync) if sync else MirrorResult("no", "stripe")

    def _done(self, size: int, task: asyncio.Task[MirrorResult]) -> None:
        self._open.discard(task)
        self.held -= size

    async def close(self, *, grace_s: float = 5.0) -> None:
        """Let running tasks end within `grace_s`, then cancel them."""
        tasks = list(self._open)
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        await cancel(*tasks)

    async def _mirror_or_reason(
        self, request: ProxyRequest, response: UpstreamResponse, body: bytes
    ) -> MirrorResult:
        sync: OpenSync | None = None
        try:
            assert request.credentials is not None  # noqa: S101 (`mirror` looked)
            sync = await self._accounts.sync_of(request.credentials)
            if sync is None:
                return MirrorResult("no", "unknown-account")
            return await self._mirror_body(sync, request, response, body)
        except TooLarge:
            return MirrorResult("no", "too-large", sync)
        except Unreadable:
            return MirrorResult("no", "unreadable", sync)
        except PinstripeError as error:
            _log.warning("proxy.unmirrored", path=request.target.path, error=error.message)
            return MirrorResult("later" if sync is not None else "no", "stripe", sync)
        except Exception:
            # A bug of ours must not cost the caller the response that Stripe has sent.
            _log.exception("proxy.failed", method=request.method, path=request.target.path)
            return MirrorResult("no", "internal", sync)

    async def _mirror_body(
        self, sync: OpenSync, request: ProxyRequest, response: UpstreamResponse, body: bytes
    ) -> MirrorResult:
        path = request.target.path
        if response.header(b"date"):
            sync.source.observe_clock(measured_response(response, sync.source.stripe.margins))
        unpacked = await unpack(body, response.header(b"content-encoding"))
        digest = b""
        if not request.writes and is_ours(sync, response):
            digest = self._cache.digest(sync, request.target, unpacked)
            if await self._cache.holds(sync, digest):
                return MirrorResult("yes", "", sync)
        parents = parents_of(path, request.target.query)
        parsed = await read_aside(unpacked, sync.mirror.extractor, parents)
        if any(mode != sync.livemode for mode in parsed.modes):
            return MirrorResult("no", "other-mode", sync)
        if not any(table in sync.mirror.tables for table in parsed.row_set.rows):
            return MirrorResult("no", "no-objects", sync)
        outcome = await self._write_parsed(sync, request, response, parsed, digest)
        if outcome.mirrored == "yes" and not sync.mirror.tables.keys() >= parsed.tables:
            # Nested objects are rows; the object itself, or what is listed, has no table.
            self._cache.forget(digest)
            return MirrorResult("no", "no-objects", sync)
        return outcome

    async def _write_parsed(
        self,
        sync: OpenSync,
        request: ProxyRequest,
        response: UpstreamResponse,
        parsed: ParsedResponse,
        digest: bytes,
    ) -> MirrorResult:
        trust = trust_of(sync, request, response, parsed)
        if trust == "refetch":
            return await self._refetched(sync, request, parsed)
        lag_s = LAG_S if trust == "stale" else 0.0
        cause = (
            Cause("", response.header(b"request-id").decode("latin-1")) if request.writes else None
        )
        as_of = as_of_exchange(
            response,
            sync.source.stripe.margins,
            writes=request.writes,
            lag_s=lag_s,
            cause=cause,
            known_until=request.known_until,
        )
        effect = None
        if request.writes:
            effect = follow_up(sync, parsed.row_set, as_of)
        elif digest and trust == "current":
            effect = self._cache.effect(sync, digest, parsed.row_set, as_of)
        outcome = await self._put(sync, request, parsed.row_set, as_of, effect=effect)
        if effect is not None and digest and outcome.mirrored != "yes":
            self._cache.forget(digest)
        return outcome

    async def _refetched(
        self, sync: OpenSync, request: ProxyRequest, parsed: ParsedResponse
    ) -> MirrorResult:
        """Request the objects of a response that may not be written."""
        places = list(parsed.places())
        if not request.writes:
            again = await repeat_request(self._upstream, sync, request.target, request.headers)
            if again is not None:
                outcome = await self._put(sync, request, *again)
                # What our version does not show at this place (a customer's sources) is fetched.
                places = [(t, k) for t, k in places if k not in again[0].rows.get(t, {})]
                if outcome.mirrored != "yes" or not places:
                    return outcome
            elif parsed.top is None:
                return MirrorResult("no", "version", sync)
        parents = parents_of(request.target.path, request.target.query)
        if len(self._open) > _MOST_OPEN:
            self.later.add(sync.id, surest_ways(sync, parsed.row_set, places, parents))
            return MirrorResult("later", "version", sync)
        try:
            told = {parsed.top: parsed.answered} if request.writes and parsed.top else {}
            whole = await fetch_again(sync, parsed.row_set, places, parents, told)
        except (Unreachable, Unwritable):
            self.later.add(sync.id, surest_ways(sync, parsed.row_set, places, parents))
            return MirrorResult("later", "stripe", sync)
        return MirrorResult("yes", "", sync) if whole else MirrorResult("later", "version", sync)

    async def _put(
        self,
        sync: OpenSync,
        request: ProxyRequest,
        row_set: RowSet,
        as_of: AsOf,
        *,
        effect: Effect | None = None,
    ) -> MirrorResult:
        """Write the rows, and wait until conflicts are resolved."""
        mirror = sync.mirror
        if mirror.queued >= QUEUE_ROWS:
            # The write queue is full.
            self.later.add(sync.id, _retrievable(sync, request, row_set))
            return MirrorResult("later", "postgres", sync)
        durable = await mirror.enqueue(
            [(row_set, as_of)], lane=LIVE_LANE if request.writes else "", effect=effect
        )
        await self._committed(sync, durable)
        error = None if durable.cancelled() else durable.exception()
        if isinstance(error, Drifted):
            _log.warning("proxy.drifted", path=request.target.path, error=error.message)
            return MirrorResult("no", "internal", sync)
        if error is not None or durable.cancelled():  # Cancelled: the sync is being closed.
            self.later.add(sync.id, _retrievable(sync, request, row_set))
            return MirrorResult("later", "postgres", sync)
        if mirror.quarantine.refuses(row_set):
            return MirrorResult(
                "later", "postgres", sync
            )  # Without a row that Postgres refuses; it is owed.
        if not await _is_settled(sync, row_set):
            return MirrorResult("later", "stripe", sync)
        return MirrorResult("yes", "", sync)

    async def _committed(self, sync: OpenSync, durable: asyncio.Future[None]) -> None:
        """Wait for a commit; mark the sync as stuck while it takes longer than the patience."""
        done, _ = await asyncio.wait((durable,), timeout=self._patience_s)
        if done:
            return
        self._stuck.add(sync.id)
        try:
            await asyncio.wait((durable,))
        finally:
            self._stuck.discard(sync.id)

    async def _fetch_later(self, sync_id: str, way: Way) -> None:
        sync = await self._syncs.reach(sync_id)
        if sync is not None:
            await execute(sync, way)
            # A replica may be behind the write that this is about.
            await owe(sync, [way])


def is_ours(sync: OpenSync, response: UpstreamResponse) -> bool:
    """Whether the response is in the API version of the tables."""
    return response.header(b"stripe-version") == sync.mirror.api_version.encode()


def trust_of(
    sync: OpenSync, request: ProxyRequest, response: UpstreamResponse, parsed: ParsedResponse
) -> Trust:
    """Return how far the response can be trusted."""
    replayed = response.header(b"idempotent-replayed").lower() == b"true"
    if replayed or not (is_ours(sync, response) or parsed.deleted):
        return "refetch"
    return "stale" if request.target.path.endswith("/search") else "current"


def _retrievable(sync: OpenSync, request: ProxyRequest, row_set: RowSet) -> list[Way]:
    places = [(table, key) for table, group in row_set.rows.items() for key in group]
    parents = parents_of(request.target.path, request.target.query)
    return list(surest_ways(sync, row_set, places, parents))


ANSWER_BYTES = 32 * 2**20
"""The largest response that is read whole. Stripe's pages of 100 objects have up to a few MB."""

_FETCHED_AT_ONCE = 12
"""Requests for one response before it is sent on; the others are queued as refetches."""

_UNFETCHABLE_AGE_S = 5.0
"""The age that rows get which are written from the response for lack of a request."""

# Would change what is answered, or are about the first answer, or about a body, which is not sent again.
_NOT_REPEATED = frozenset(
    {
        *("stripe-version", "accept-encoding", "if-none-match", "if-modified-since", "range"),
        "content-length",
    }
)


async def repeat_request(
    upstream: Upstream, sync: OpenSync, target: Target, headers: Sequence[tuple[str, str]]
) -> tuple[RowSet, AsOf] | None:
    """Repeat the caller's GET in our API version; None if the response holds no objects."""
    our_headers = [(n, v) for n, v in headers if n not in _NOT_REPEATED]
    our_headers += [("stripe-version", sync.mirror.api_version), ("accept-encoding", "gzip")]
    try:
        response = await upstream.send("GET", target.url, our_headers)
        body, whole = await response.read(ANSWER_BYTES)
        if not whole:
            response.close()
            return None
        if response.status != 200:
            return None
        unpacked = await unpack(body, response.header(b"content-encoding"))
        parents = parents_of(target.path, target.query)
        parsed = await read_aside(unpacked, sync.mirror.extractor, parents)
    except (UpstreamError, Unreadable):
        return None
    lag_s = LAG_S if target.path.endswith("/search") else 0.0
    return parsed.row_set, as_of_exchange(response, sync.source.stripe.margins, lag_s=lag_s)


async def fetch_again(
    sync: OpenSync,
    row_set: RowSet,
    places: Iterable[RowKey],
    parents: Mapping[str, str],
    told: Mapping[RowKey, StripeObject],
) -> bool:
    """Fetches the objects at `places` of an answer that is a hint, those that hold others first.

    `told`: what a write answered; a replica may show what was before it. An object without an address of
    its own comes with its parent, or by its parent's list; one that no request at all shows is written as
    the answer has it. Gives whether each is a row now; of those that are not, it is noted what is to be
    requested. Raises what `StripeClient.get` and `Mirror.write` raise.
    """
    covered: set[RowKey] = set()
    first_way: dict[RowKey, Way] = {}
    unreachable: list[RowKey] = []
    requests = 0
    for place in places:
        if place in covered or place[0] not in sync.mirror.tables:
            continue
        ways = ways_to(sync, row_set, place, parents)
        if not ways:
            unreachable.append(place)
            continue
        for way in ways if requests < _FETCHED_AT_ONCE else ():
            requests += 1
            covered |= await execute(sync, way, place[1], told.get(place))
            if place in covered:
                break
        first_way[place] = ways[0]
    await _write_unfetchable(sync, row_set, unreachable)
    # One that Stripe does not show yet is no row either: its reads may run behind its writes.
    left = {place for place in first_way if place not in covered}
    missing = await _not_rows(sync, {*first_way, *unreachable}) | left
    await owe(sync, [first_way[place] for place in sorted(missing) if place in first_way])
    return not missing


async def owe(sync: OpenSync, ways: Iterable[Way]) -> None:
    """Queue these requests: made now, and once more when no replica can be behind."""
    now = sync.source.now()
    refetches = [Refetch(w.kind, w.table, w.key, w.parent, since=now) for w in ways if w.kind]
    if refetches:
        async with sync.source.transaction() as connection:
            await add_refetches(connection, sync.schema, refetches)
            await owe_refetch(connection, sync.schema)


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
    sync: OpenSync, row_set: RowSet, place: RowKey, parents: Mapping[str, str]
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
    above = {**_parents_in(sync, row_set, place), **dict(parents)}
    if where is not None:
        owner = above.get(collections().get(where.path[: where.path.index("/{")], ""))
        return [Way("fetch", table, key, owner)] if owner else []
    ways = [
        Way("children", table, above[e.parent_table], e.parent)
        for e in list_endpoints()
        if e.parent and object_type in e.objects and e.parent_table in above
    ]
    holders = {table_name(name) for name in parent_types(spec()).get(object_type, ())}
    if object_type in SINGLETONS:
        holders.add(SINGLETONS[object_type])
    ways += [Way("fetch", t, above[t]) for t in sorted(holders & set(above)) if has_address(t)]
    return ways


def surest_ways(
    sync: OpenSync, row_set: RowSet, places: Iterable[RowKey], parents: Mapping[str, str]
) -> Iterator[Way]:
    """The surest request for each object that any request shows."""
    for place in places:
        if place[0] in sync.mirror.tables:
            yield from ways_to(sync, row_set, place, parents)[:1]


def _parents_in(sync: OpenSync, row_set: RowSet, place: RowKey) -> dict[str, str]:
    """Ids by table of the objects that the row at `place` says it belongs to."""
    table, key = place
    row = row_set.rows.get(table, {}).get(key)
    if row is None:
        return {}
    columns = sync.mirror.tables[table].columns
    return {
        column.references[0]: value
        for column, value in zip(columns, row, strict=False)
        if len(column.references) == 1
        and len(column.path) <= 1
        and isinstance(value, str)
        and not column.is_derived
    }


async def execute(
    sync: OpenSync, way: Way, key: str | None = None, told: StripeObject | None = None
) -> set[RowKey]:
    """Makes the request and mirrors what it shows; gives the rows. What Stripe refuses shows nothing.

    `key`: the object that a list is read for; to its end without one. `told`: see `fetch_one`.
    """
    try:
        if way.kind == "children":
            return await _list_children(sync, way, key)
        if way.kind is None:
            response = await sync.source.stripe.get(
                way.path, endpoint=f"GET {way.path}", priority=LIVE
            )
            row_set = sync.source.extract([read_object(response, way.path)], {})
            await sync.mirror.write([(row_set, as_of_response(response))])
            return _places_in(row_set)
        return await fetch_one(sync, (way.table, way.key), parent=way.parent, told=told)
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

    above = {endpoint.parent_table: way.key}
    await sync.source.read(
        endpoint, path, params, parents=above, priority=LIVE, enough=enough, shown=shown
    )
    return {(way.table, key) for key in shown}


async def _write_unfetchable(sync: OpenSync, row_set: RowSet, places: Iterable[RowKey]) -> None:
    """Rows of types that no request shows (a portal session): the answer is all that there will be.

    Their fields may stand elsewhere in our version; those that our tables know under the same name are
    columns, the others are in `_extra`. Never older than a row that is there: only what is missing.
    """
    rows: dict[str, dict[str, Row]] = {}
    for table, key in places:
        row = row_set.rows.get(table, {}).get(key)
        if row is not None:
            rows.setdefault(table, {})[key] = row
    if rows:
        now = sync.source.now()
        await sync.mirror.write([(RowSet(rows=rows), AsOf(now - _UNFETCHABLE_AGE_S, now))])


async def _not_rows(sync: OpenSync, places: Iterable[RowKey]) -> set[RowKey]:
    """Those that are not in their tables."""
    mirrored = {place for place in places if place[0] in sync.mirror.tables}
    return mirrored - (await sync.source.row_versions(mirrored)).keys()


def _places_in(row_set: RowSet) -> set[RowKey]:
    return {(name, each) for name, group in row_set.rows.items() for each in group}


def follow_up(sync: OpenSync, row_set: RowSet, as_of: AsOf) -> Effect | None:
    """Return an effect that queues refetches for what a write's response holds in part.

    Objects whose lists it cut at ten, and those that it names as they were at another time.
    """
    owners = {(cut.parent_table, cut.parent_id) for cut in row_set.lists}
    wanted = [p for p in sorted(owners) if p[0] and retrieve_endpoint(p[0]) is not None]
    named = [
        p for p in sorted(row_set.elsewhere) if p[0] in sync.mirror.tables and has_address(p[0])
    ]
    if not wanted and not named:
        return None
    refetches = [Refetch("fetch", table, key, since=as_of.hi) for table, key in wanted]
    refetches += [Refetch("relate", table, key, since=as_of.hi) for table, key in named]

    async def note(connection: Connection) -> None:
        await add_refetches(connection, sync.schema, refetches)

    return note


async def owe_silent(sync: OpenSync, path: str, later: DeferredFetches) -> None:
    """Queue fetches of the objects that the path of a write names, if no event tells of their updates: what
    the write did is not known. `later` has them while Postgres is away.
    """
    ways: list[Way] = []
    parent = ""
    for table, key in places_of(path):
        if table in sync.mirror.tables and tables()[table].object_type not in reported():
            ways.append(Way("fetch", table, key, parent))
        parent = key
    try:
        await owe(sync, ways)
    except (Unreachable, Unwritable):
        later.add(sync.id, ways)


async def fetch_one(
    sync: OpenSync, place: RowKey, *, parent: str = "", told: StripeObject | None = None
) -> set[RowKey]:
    """Retrieves one object and mirrors it; gives the rows that it held. One that is gone is flagged.

    `parent` is the id that stands before its own in the path. `told`: what a write of it answered; where
    the read differs from that, it is none of the rows. Raises Refused where the sync's key may not read it.
    """
    table, key = place
    where = retrieve_endpoint(table)
    if where is None or (where.parent_parameter and not parent):
        return set()
    source = sync.source
    started = await source.pool.time()
    try:
        response = await source.get_object(where, key, parent, LIVE)
    except NotFound:
        await mark_deleted(source, table, key, started=started)
        return {place}
    above = {collections().get(where.path[: where.path.index("/{")], ""): parent} if parent else {}
    shown = read_object(response, where.path)
    row_set = source.extract([shown], above)
    as_of = as_of_response(response, started=started)
    await source.follow_all(row_set, priority=LIVE, as_of=as_of)
    await sync.mirror.write([(row_set, as_of)])
    if told is not None and not agrees(
        told, shown, object_types()[tables()[table].object_type].fields
    ):
        return _places_in(row_set) - {place}
    return _places_in(row_set) if await _is_settled(sync, row_set) else set()


async def _is_settled(sync: OpenSync, row_set: RowSet) -> bool:
    """Wait until none of the rows is in conflict; False if Stripe could not decide one."""
    conflicts = sync.mirror.conflicts.resolving(row_set.rows)
    if conflicts:
        await asyncio.wait(conflicts)
    return all(not t.cancelled() and t.exception() is None and t.result() for t in conflicts)


MOST = 100_000

_PAUSE_S = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)

Fetch = Callable[[str, Way], Awaitable[None]]
"""(sync id, request) -> make it and mirror what it shows; nothing for a sync that is gone."""


class DeferredFetches:
    """Requests to make, oldest first. Those beyond the bound are dropped."""

    def __init__(
        self,
        fetch: Fetch,
        *,
        most: int = MOST,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
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
            try:
                await self._fetch(sync_id, way)
                failures = 0
            except (Unreachable, Unwritable, Misconfigured) as error:
                self.add(sync_id, [way])
                if failures == 0:
                    _log.warning("proxy.later", waiting=len(self._ways), error=error.message)
                await self._sleep(backoff(_PAUSE_S, failures))
                failures += 1
            except PinstripeError as error:
                # Stripe refuses, and would again; or the value fits no column.
                _log.warning("proxy.unmirrored", table=way.table, error=error.message)
