"""Fetches lists and objects from Stripe into the mirror.

    Source.read / fetch / follow -> StripeClient -> rows -> Mirror

Backfill, event poller, refetches and the gateway share it: the account's client, the mirror, the wanted
tables, and the priorities (`FOLLOW`, `LIVE`, `BACKFILL`, `REFERENCES`). Nested lists are read to their end
before the row around them is written. One that the key may not read stops nothing (`refusals`). Versions of
rows are read before Stripe is asked; concurrent reads are one statement.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import NamedTuple

import structlog

from pinstripe.catalog.endpoints import (
    ListEndpoint,
    Param,
    RetrieveEndpoint,
    by_parent,
    endpoint_of,
    expand_of,
    retrieve_endpoint,
)
from pinstripe.catalog.model import spec
from pinstripe.catalog.relations import parent_of as listed_under
from pinstripe.catalog.relations import parent_parameter
from pinstripe.catalog.tables import NAMED_UNDER, Table, tables
from pinstripe.client.client import StripeClient, iter_pages, list_at, list_of, quote_id, split_url
from pinstripe.client.rate_limit import WorkClass
from pinstripe.client.response import (
    AsOf,
    Cause,
    ListPage,
    Response,
    StripeObject,
    as_of_response,
    read_object,
)
from pinstripe.concurrency import Coalescer, for_each
from pinstripe.errors import (
    Drifted,
    LostLease,
    NotFound,
    NotPermitted,
    PinstripeError,
    Refused,
    Unreachable,
    WrongKey,
)
from pinstripe.mirror import Mirror, Part
from pinstripe.mirror.batch import Effect
from pinstripe.mirror.upsert import EVENT_S
from pinstripe.rows.extract import MemberSet, RowKey, RowSet, TruncatedList
from pinstripe.store.confirmations import key_hash, of_keys
from pinstripe.store.cursors import Checkpoint, save_checkpoints
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.pool import Connection, Pool
from pinstripe.store.refetch import PREVIEW_KINDS, Refetch, RefetchDone, add_refetches, note_trouble

UnreadableLists = dict[str, "UnreadableList"]
"""By the endpoint's name."""


@dataclass(frozen=True, slots=True)
class UnreadableList:
    """One kind of nested list that the key may not read, with the first example."""

    truncated: TruncatedList
    error: Refused


_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

FOLLOW = WorkClass.EVENTS
"""Priority of the event log: before everything else."""

CONTESTED = WorkClass.CONTESTED
"""Priority of rows whose present state only Stripe knows."""

LIVE = WorkClass.RELATED
"""Priority of what events make necessary besides."""

BACKFILL = WorkClass.SCANS

REFERENCES = 20

SCAN = 30
"""Of the slow scan: what nobody waits for."""

TAKEN_UP = "invoice_item"
"""The table whose objects change when an invoice takes them up, with the event of that invoice alone."""

_FOLLOWED_AT_ONCE = 6
"""Nested lists of one page that are read concurrently."""

_MAX_PAGES = 1000
"""Pages of one nested list: 100,000 entries, far more than any object of Stripe's is allowed to have."""

_OWED_S = 15.0
"""Pause before the first retry of a failed request."""


_HUNG_S = 10.0
"""A read by primary key that takes longer has met a server that is gone without closing the connection."""


class VersionAt(NamedTuple):
    """Postgres's clock, and the version (`_synced_at`) of a row, None if there is none.

    A response to a request that is sent after the read answers everything that was asked for before `at`;
    it is newer than the version only if that is older than a replica may lag.
    """

    at: datetime
    version: datetime | None


@dataclass(slots=True)
class Source:
    """One account at Stripe and its mirror. `wanted`: the tables that are synced.

    `clock_ahead_s`: how far Stripe's clock is ahead of ours, by the last response. `unreadable_lists`:
    nested lists that the key may not read; `on_unreadable` notes them. `unread`: by table, why nested lists
    of single objects were not read; `notes_owed`: whether all of these are noted in the database.
    """

    stripe: StripeClient
    mirror: Mirror
    wanted: Mapping[str, Table]
    pool: Pool
    fence: Effect | None = None
    clock_ahead_s: float = 0.0
    unreadable_lists: UnreadableLists = field(default_factory=dict)
    on_unreadable: Callable[[], Awaitable[None]] | None = None
    by_parent: set[str] = field(default_factory=set)
    """Names of endpoints that Stripe refuses without a parent."""
    unread: dict[str, PinstripeError] = field(default_factory=dict)
    notes_owed: bool = True
    since: Mapping[str, int] = field(default_factory=dict)
    """By table, the Unix second of the oldest objects that are listed; older ones come by reference."""
    _versions: Coalescer[tuple[RowKey, ...], tuple[datetime, dict[RowKey, datetime]]] = field(
        init=False, repr=False
    )

    def __post_init__(self) -> None:
        self._versions = Coalescer(self._read_versions)
        self.mirror.conflicts.pause_s = self.stripe.margins.replica_lag_s

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A transaction beside the mirror's: it commits only while this process holds the lease."""
        async with self.pool.transaction() as connection:
            yield connection
            if self.fence is not None:
                await self.fence(connection)

    async def save(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Saves cursors that cover no rows of their own."""
        async with self.transaction() as connection:
            await save_checkpoints(connection, self.mirror.schema, checkpoints)

    async def owe(
        self, refetch: Refetch, error: PinstripeError, *, pause_s: float = _OWED_S
    ) -> None:
        """Notes a failed request as a refetch, so that the cursor of the rest may advance."""
        async with self.transaction() as connection:
            await add_refetches(connection, self.mirror.schema, [refetch])
            await note_trouble(connection, self.mirror.schema, refetch, error, pause_s)

    def now(self) -> float:
        """The present on Stripe's clock, Unix seconds, to about a second."""
        return time.time() + self.clock_ahead_s

    def is_past(self, since: float) -> bool:
        """Whether what is asked from now on is surely of a later moment than the event of this second."""
        margins = self.stripe.margins
        return self.now() - margins.clock_s - margins.replica_lag_s >= since + EVENT_S + 1.0

    def done(self, refetch: Refetch, started: datetime, *, is_told: bool) -> RefetchDone:
        """What a response from now on proves of the refetch. `is_told`: the row holds the event already.

        A conflict that an earlier process left names no second: nothing says that it is past. That the row
        holds the event says nothing of what only `expand[]` shows: no event has it. What is related changes
        no more, but for `TAKEN_UP`.
        """
        is_past = self.is_past(refetch.since)
        is_related = refetch.kind == "relate"
        is_sure = (is_related and refetch.table != TAKEN_UP) or refetch.kind in PREVIEW_KINDS
        is_sure |= refetch.since > 0 and (is_past or (is_told and not is_related))
        where = retrieve_endpoint(refetch.table) if refetch.table in self.wanted else None
        hides = refetch.kind == "fetch" and not is_past and where is not None and where.expand
        lag_s = 0.0 if is_sure and not hides else self.replica_lag.total_seconds()
        return RefetchDone(refetch, started, lag_s, is_told=is_sure)

    def in_force(self, endpoint: ListEndpoint) -> ListEndpoint:
        """Return the list, or the list by parent that replaces it if Stripe refuses it without one."""
        other = by_parent(endpoint) if endpoint.name in self.by_parent else None
        return other or endpoint

    def tables_of(self, endpoint: ListEndpoint) -> list[str]:
        """The tables of what it lists, as far as they are synced."""
        return [table for table in endpoint.tables if table in self.wanted]

    def observe_clock(self, response: Response) -> None:
        """Sets `clock_ahead_s` from a response that says when it was made."""
        if "date" in response.headers:
            self.clock_ahead_s = response.not_after - 0.5 - time.time()

    async def version(self, table: str, key: str) -> datetime | None:
        """`_synced_at` of a row, None if there is none."""
        return (await self.row_version(table, key)).version

    async def row_version(self, table: str, key: str) -> VersionAt:
        """The version of a row, read after this call, and Postgres's clock. Raises Unreachable."""
        at, versions = await self._versions.get(((table, key),))
        return VersionAt(at, versions.get((table, key)))

    async def row_state(
        self, table: str, key: str, *, since: float
    ) -> tuple[datetime, datetime | None, bool]:
        """Postgres's clock; the version of a row, None if there is none; and whether it holds what an event
        since then said: a response is compared with that then. `table`: "" for no row.
        """
        known = self.wanted.get(table)
        if known is None:
            return await self.pool.time(), None, False
        async with self.pool.acquire() as connection:
            row = await connection.fetchrow(
                "SELECT clock_timestamp(), _synced_at, _as_of >= to_timestamp($2)"
                f" AND _as_of_latest <= _as_of + make_interval(secs => {EVENT_S})"
                f" OR EXISTS (SELECT FROM ({of_keys('$3', '$4', 'to_timestamp($2)')}) c"
                f" WHERE c.key = {key_hash('$1')} AND c.as_of >= to_timestamp($2)"
                f" AND c.as_of_latest <= c.as_of + make_interval(secs => {EVENT_S}))"
                f" FROM (SELECT) AS one LEFT JOIN {qualified(self.mirror.schema, table)} t"
                f" ON t.{quote(known.key[0])} = $1",
                key,
                since,
                self.mirror.schema,
                table,
            )
        assert row is not None  # noqa: S101 (one row is joined)
        return row[0], row[1], bool(row[2]) and since > 0

    async def row_versions(
        self, rows: Iterable[RowKey], *, patience_s: float | None = None
    ) -> dict[RowKey, datetime]:
        """The versions of those `rows` that are in the mirror, read after this call.

        Raises Unreachable, also where Postgres takes longer than `patience_s`.
        """
        mirrored = tuple(row for row in rows if row[0] in self.mirror.tables)
        if not mirrored:
            return {}
        try:
            async with asyncio.timeout(patience_s):
                _, versions = await self._versions.get(mirrored)
        except TimeoutError:
            raise Unreachable(f"Postgres takes longer than {patience_s} s.") from None
        return {row: versions[row] for row in mirrored if row in versions}

    async def _read_versions(
        self, calls: Collection[tuple[RowKey, ...]]
    ) -> dict[tuple[RowKey, ...], tuple[datetime, dict[RowKey, datetime]]]:
        """Read what concurrent calls want, in one statement that begins after all of them."""
        keys: dict[str, set[str]] = {}
        for table, key in (row for rows in calls for row in rows):
            keys.setdefault(table, set()).add(key)
        texts = ["SELECT '', '', clock_timestamp()"]
        for at, table in enumerate(keys, 1):
            name = quote(self.wanted[table].key[0])
            rows = qualified(self.mirror.schema, table)
            texts.append(
                f"SELECT '{table}', {name}, _synced_at FROM {rows} WHERE {name} = ANY(${at})"
            )
        async with self.pool.acquire() as connection, asyncio.timeout(_HUNG_S):
            found = await connection.fetch(" UNION ALL ".join(texts), *map(list, keys.values()))
        versions = {(row[0], row[1]): row[2] for row in found}
        now = versions.pop(("", ""))
        return dict.fromkeys(calls, (now, versions))

    async def known_until(self) -> datetime:
        """The moment on Postgres's clock such that the response to a request from now on shows whatever
        was written until then.
        """
        return await self.pool.time() - self.replica_lag

    @property
    def replica_lag(self) -> timedelta:
        """How old the state that a response shows may be."""
        return timedelta(seconds=self.stripe.margins.replica_lag_s)

    def extract(self, objects: list[dict[str, object]], parents: Mapping[str, str]) -> RowSet:
        found = RowSet()
        for obj in objects:
            self.mirror.extractor.object(obj, found, parents=parents)
        return found

    async def follow(
        self,
        truncated: TruncatedList,
        *,
        priority: int = BACKFILL,
        as_of: AsOf | None = None,
        cause: Cause | None = None,
        known_until: datetime | None = None,
    ) -> int:
        """Reads a nested list to its end; returns the number of requests.

        `as_of`: that of the object around it, which showed the first entries; without it `cause` and
        `known_until` of what is read. Raises what `StripeClient.get` raises, and Drifted if the list does
        not come to an end.
        """
        path, fixed = list_address(truncated)
        fixed += [("expand[]", f"data.{item}") for item in _expand_of(truncated.child_table)]
        request = list_at(self.stripe, path, fixed, endpoint=endpoint_of(path), priority=priority)
        requests = 0
        members = Members.of(truncated, as_of, cause=cause, known_until=known_until)
        async for page in iter_pages(
            request, after=truncated.last_id or None, on_lost_cursor="restart"
        ):
            requests += 1
            found = self.extract(page.objects, {truncated.parent_table: truncated.parent_id})
            await self.mirror.write([(found, members.add(page)), *members.parts(page)])
            if page.has_more and requests >= _MAX_PAGES:
                raise Drifted(
                    f"The list {path} does not come to an end after {requests} pages.",
                    hint="Its next try is noted; report it to Stripe with the object's id.",
                )
        return requests

    async def read(
        self,
        endpoint: ListEndpoint,
        path: str,
        params: Sequence[Param],
        *,
        parents: Mapping[str, str] | None = None,
        priority: int = BACKFILL,
        enough: Callable[[Sequence[StripeObject]], Awaitable[bool]] | None = None,
        cause: Cause | None = None,
        shown: set[str] | None = None,
        known_until: datetime | None = None,
    ) -> float:
        """Mirrors a list from its top, to its end or until a page is `enough`.

        Returns when the first page was true, on Stripe's clock. The ids of all pages are added to `shown`.
        `known_until`: see `AsOf`. A list under one parent that is read to its end says what the parent has.
        A cursor object that was deleted meanwhile restarts the list. Raises what `StripeClient.get` raises.
        """
        began = 0.0
        members = Members.under(endpoint, parents or {}, cause=cause, known_until=known_until)
        request = list_of(self.stripe, endpoint, path, params, priority=priority)
        async for page in iter_pages(request, on_lost_cursor="restart"):
            self.observe_clock(page.response)
            began = began or page.response.not_before
            if shown is not None:
                shown.update(str(obj.get("id")) for obj in page.objects)
            found = self.extract(page.objects, parents or {})
            as_of = members.add(page)
            await self.follow_all(found, priority=priority, as_of=as_of)
            await self.mirror.write([(found, as_of), *members.parts(page)])
            if page.has_more and enough is not None and await enough(page.objects):
                break
        return began

    async def follow_all(
        self, found: RowSet, *, as_of: AsOf, priority: int | Callable[[], int] = BACKFILL
    ) -> int:
        """Reads every truncated nested list in `found` to its end; returns the number of requests.

        `as_of`: that of `found`. `priority` is asked for each list, if it changes meanwhile.
        """
        requests = 0

        async def follow(truncated: TruncatedList) -> None:
            nonlocal requests
            now = priority if isinstance(priority, int) else priority()
            requests += await self._follow_one(truncated, now, as_of)

        wanted = [t for t in found.lists if t.child_table == "" or t.child_table in self.wanted]
        await for_each(wanted, follow, limit=_FOLLOWED_AT_ONCE)
        return requests

    async def _follow_one(self, truncated: TruncatedList, priority: int, as_of: AsOf) -> int:
        name = endpoint_of(list_address(truncated)[0])
        if name in self.unreadable_lists:
            return 0
        try:
            return await self.follow(truncated, priority=priority, as_of=as_of)
        except NotFound as error:  # The parent is gone, or a replica is behind.
            if self.notes_owed:
                await self._owe_nested(truncated, error, as_of.cause)
            return 0
        except NotPermitted as error:
            if name not in self.unreadable_lists:
                _log.warning("nested.refused", endpoint=name, reason=error.message)
            self.unreadable_lists[name] = UnreadableList(truncated, error)
            if self.notes_owed and self.on_unreadable is not None:
                await self.on_unreadable()
            return 0
        except (LostLease, WrongKey):
            raise
        except PinstripeError as error:
            if error.fault is not None:
                raise  # Postgres failed, not Stripe.
            await self._owe_nested(truncated, error, as_of.cause)
            return 0

    async def _owe_nested(
        self, truncated: TruncatedList, error: PinstripeError, cause: Cause | None
    ) -> None:
        """Notes the nested list of one object for a refetch; the others go on."""
        _log.warning(
            "nested.owed", table=truncated.child_table, url=truncated.url, error=error.message
        )
        self.unread[truncated.child_table or truncated.parent_table] = error
        if not self.notes_owed:
            return
        known = cause or Cause()
        refetch = Refetch(
            "nested",
            truncated.child_table,
            truncated.url,
            f"{truncated.parent_table} {truncated.parent_id}",
            request_id=known.request_id,
            event_id=known.event_id,
        )
        await self.owe(refetch, error)

    async def fetch(
        self,
        table: str,
        key: str,
        *,
        parent: str = "",
        started: datetime | None = None,
        priority: int = LIVE,
        cause: Cause | None = None,
        answers: Sequence[RefetchDone] = (),
    ) -> RowSet | None:
        """Fetches one object and mirrors it; returns its rows, None if Stripe cannot retrieve it by its id.

        `started`: a moment before the request, on Postgres's clock. `answers`: refetches that the commit
        completes. Raises NotFound if Stripe does not have the object (any more).
        """
        where = retrieve_endpoint(table)
        if where is None or (where.parent_parameter and not parent):
            return None
        response = await self.get_object(where, key, parent, priority)
        found, obj = RowSet(), read_object(response, where.path)
        self.mirror.extractor.object(obj, found)
        for answer in answers:  # Other replicas, which may be behind, show the rest of its lists.
            if answer.lag_s and not found.lists and answer.proves(obj):
                answer.lag_s = 0.0
        as_of = as_of_response(response, cause, started=started)
        await self.follow_all(found, priority=priority, as_of=as_of)
        await self.mirror.write([(found, as_of)], completed=answers)
        return found

    async def get_object(
        self, where: RetrieveEndpoint, key: str, parent: str, priority: int
    ) -> Response:
        own = key.rpartition("/")[2] if where.object_type in NAMED_UNDER else key
        names = iter([parent, own] if where.parent_parameter else [own])
        path = re.sub(r"{\w+}", lambda _: quote_id(next(names)), where.path)
        params = [("expand[]", item) for item in where.expand]
        response = await self.stripe.get(path, params, endpoint=where.name, priority=priority)
        self.observe_clock(response)
        return response


@dataclass(slots=True)
class Members:
    """Gathers what one list shows, page after page: at its end, all that its parent has.

    `whole` becomes false where the list cannot say that: an entry without an id, or a list of no parent.
    """

    place: MemberSet
    whole: bool
    cause: Cause | None = None
    known_until: datetime | None = None
    as_of: AsOf | None = None
    ids: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        truncated: TruncatedList,
        as_of: AsOf | None,
        *,
        cause: Cause | None = None,
        known_until: datetime | None = None,
    ) -> Members:
        """Of a nested list, whose first entries were shown at `as_of`; None if it is read from its top."""
        place = MemberSet(
            truncated.parent_table, truncated.parent_id, truncated.field, truncated.shown
        )
        if as_of is not None:
            cause, known_until = as_of.cause, as_of.known_until
        ids = set(truncated.shown)
        return cls(place, bool(truncated.field), cause, known_until, as_of, ids)

    @classmethod
    def under(
        cls,
        endpoint: ListEndpoint,
        parents: Mapping[str, str],
        *,
        cause: Cause | None = None,
        known_until: datetime | None = None,
    ) -> Members:
        """Of the list under a parent, the only one of `parents` (table -> id)."""
        table, key = next(iter(parents.items()), ("", ""))
        children = endpoint.tables
        place = MemberSet(table, key, "", frozenset(), children)
        return cls(place, bool(endpoint.parent) and len(parents) == 1, cause, known_until)

    def add(self, page: ListPage) -> AsOf:
        """Add the entries of a page; return its interval."""
        mine = replace(as_of_response(page.response, self.cause), known_until=self.known_until)
        if page.is_first:
            self.ids.clear()
            self.as_of = None
        self.as_of = mine if self.as_of is None else self.as_of.union(mine)
        found = {str(o["id"]) for o in page.objects if isinstance(o.get("id"), str)}
        self.whole = self.whole and len(found) == len(page.objects)
        self.ids |= found
        return mine

    def parts(self, page: ListPage) -> list[Part]:
        """After the last page: the set, to be written with it."""
        if page.has_more or not self.whole or self.as_of is None:
            return []
        return [(RowSet(sets=[replace(self.place, members=frozenset(self.ids))]), self.as_of)]


def list_address(truncated: TruncatedList) -> tuple[str, list[Param]]:
    """(path, parameters) of a nested list: those of its `url`, if a list of such objects is there.

    The `url` of an invoice's payments, `/v1/invoices/payments`, is that of an invoice (seen in recorded
    answers). They are listed at `/v1/invoice_payments?invoice=`
    (https://docs.stripe.com/api/invoice-payment/list). An address that leads elsewhere is not used.

    >>> payments = "/v1/invoices/payments"
    >>> list_address(TruncatedList(payments, "invoice", "in_1", "invoice_payment", "inpay_1", 10))
    ('/v1/invoice_payments', [('invoice', 'in_1')])
    >>> list_address(TruncatedList("@evil.test/", "invoice", "in_1", "line_item", "il_1", 10))
    ('/v1/invoices/in_1/lines', [])
    """
    path, fixed = split_url(truncated.url)
    child, parent = tables().get(truncated.child_table), tables().get(truncated.parent_table)
    if child is None or parent is None:
        return path, fixed
    lists = [o for o in spec().operations if o.kind == "list" and child.object_type in o.returns]
    if endpoint_of(path) in {f"GET {o.path}" for o in lists}:
        return path, fixed
    for operation in lists:
        if any(p.name == parent.object_type for p in operation.params):
            return operation.path, [(parent.object_type, truncated.parent_id)]
    for operation in lists:
        if listed_under(operation, {parent.object_type}) == parent.object_type:
            found = re.sub("{.*?}", quote_id(truncated.parent_id), operation.path)
            named = parent_parameter(operation) if found == operation.path else None
            return found, [(named, truncated.parent_id)] if named else []
    return path, fixed


def parent_of(obj: StripeObject) -> str:
    """The id of the object under which this one is retrieved, if it names it."""
    for name in ("account", "customer", "fee", "transfer"):
        value = obj.get(name)
        key = value.get("id") if isinstance(value, dict) else value
        if isinstance(key, str):
            return key
    return ""


@cache
def _expand_of(table: str) -> tuple[str, ...]:
    """What to expand in a nested list of this table's objects."""
    return expand_of((tables()[table].object_type,)) if table in tables() else ()
