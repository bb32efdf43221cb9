"""Asking Stripe for lists and objects and putting what comes into the mirror.

What backfill, catching up and settling share: the account's `Stripe`, the `Mirror`, which tables are
wanted, and the order in which requests are served (`LIVE` before `BACKFILL`).

Nested lists that the key may not read: the rows around them are copied, and the gap is told.

A charge may be readable and its refunds not. The list of charges then goes on, and a cursor of its own
says what is missing, in Stripe's words:

    {"table": "refund", "inside": "charge", "probe": "/v1/charges/ch_1/refunds"}

The next run asks the probe; if it is answered, the lists of the table around it are read anew.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache

import structlog

from pinstripe.catalog.endpoints import (
    ListEndpoint,
    Param,
    RetrieveEndpoint,
    expand_of,
    retrieve_endpoints,
)
from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import Table, tables
from pinstripe.client.client import StripeClient, quote_id
from pinstripe.client.decode import StripeObject
from pinstripe.client.pagination import PAGE, list_request, read_list, read_object
from pinstripe.client.response import Response
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
from pinstripe.mirror import Mirror
from pinstripe.mirror.batch import Effect
from pinstripe.rows.as_of import Cause, as_of_response
from pinstripe.rows.extract import RowKey, RowSet, TruncatedList
from pinstripe.source.row_versions import RowVersions, VersionAt
from pinstripe.store.cursors import Checkpoint, ended_by, save_checkpoints
from pinstripe.store.pool import Connection, Pool
from pinstripe.store.refetch import Refetch, RefetchDone, add_refetches, note_trouble

UnreadableLists = dict[str, "UnreadableList"]
"""By the endpoint's name."""


@dataclass(frozen=True, slots=True)
class UnreadableList:
    """One kind of nested list that cannot be read, and the first one that showed it."""

    cut: TruncatedList
    error: Refused


def checkpoints(gaps: UnreadableLists) -> list[Checkpoint]:
    """What the database says of the gaps."""
    return [
        ended_by(
            gap.error,
            _stream(name),
            {
                "table": gap.cut.child_table,
                "inside": gap.cut.parent_table,
                "probe": gap.cut.url,
            },
        )
        for name, gap in gaps.items()
    ]


async def closed_gaps(
    stripe: StripeClient, saved: Iterable[Checkpoint], *, priority: int
) -> Mapping[str, str]:
    """Stream -> table around it, of the gaps of earlier runs that can be read now."""
    found: dict[str, str] = {}
    for cursor in saved:
        position = cursor.position
        if not isinstance(position, dict) or "probe" not in position:
            continue
        path, _, query = str(position["probe"]).partition("?")
        fixed = [(k, v) for k, _, v in (pair.partition("=") for pair in query.split("&") if pair)]
        try:
            await stripe.get(
                path, [*fixed, ("limit", "1")], endpoint=f"GET {cursor.stream}", priority=priority
            )
        except NotFound:
            pass  # The object around it is gone, but the key was let in.
        except PinstripeError as error:
            if isinstance(error, WrongKey):
                raise
            continue  # It is refused still, or in trouble: the next run tries again.
        found[cursor.stream] = str(position["inside"])
    return found


def _stream(name: str) -> str:
    return name.removeprefix("GET ")


_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

FOLLOW = 0
"""The event log: whatever else waits, what happens is seen at once."""

LIVE = 4
"""What events make us ask for."""

BACKFILL = 10

REFERENCES = 20

_FOLLOWED_AT_ONCE = 6
"""Nested lists of one page read at the same time."""

_MOST_PAGES = 1000
"""Pages of one nested list: 100,000 entries, far more than any object of Stripe's is allowed to have."""

_MOST_RESTARTS = 3

_OWED_S = 15.0
"""When what met trouble for the first time is tried again."""


@dataclass(slots=True)
class Source:
    """One account at Stripe and its mirror. `wanted` are the tables that are synced.

    `clock_ahead_s`: how far Stripe's clock is ahead of ours, as the last answer showed it. `gaps`: the
    nested lists that turned out not to be readable. `unread`: by table, why nested lists of single objects
    were not read; `notes_owed`: whether they are noted as owed in the database.
    """

    stripe: StripeClient
    mirror: Mirror
    wanted: Mapping[str, Table]
    pool: Pool
    fence: Effect | None = None
    clock_ahead_s: float = 0.0
    unreadable_lists: UnreadableLists = field(default_factory=dict)
    by_parent: set[str] = field(default_factory=set)
    """Names of endpoints that Stripe refuses without a parent."""
    unread: dict[str, PinstripeError] = field(default_factory=dict)
    notes_owed: bool = True
    _row_versions: RowVersions = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._row_versions = RowVersions(self.pool, self.mirror.schema, self.wanted)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """For what is written beside the mirror: committed only while the lease is ours."""
        async with self.pool.transaction() as connection:
            yield connection
            if self.fence is not None:
                await self.fence(connection)

    async def save(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Saves cursors by themselves, where there are no rows that they vouch for."""
        async with self.transaction() as connection:
            await save_checkpoints(connection, self.mirror.schema, checkpoints)

    async def owe(
        self, refetch: Refetch, error: PinstripeError, *, pause_s: float = _OWED_S
    ) -> None:
        """Notes a request that met trouble: whatever vouches for the rest may go on without it."""
        async with self.transaction() as connection:
            await add_refetches(connection, self.mirror.schema, [refetch])
            await note_trouble(connection, self.mirror.schema, refetch, error, pause_s)

    def now(self) -> float:
        """The present on Stripe's clock, Unix seconds, to about a second."""
        return time.time() + self.clock_ahead_s

    def observe_clock(self, response: Response) -> None:
        """Takes the time from an answer."""
        self.clock_ahead_s = response.not_after - 0.5 - time.time()

    async def version(self, table: str, key: str) -> datetime | None:
        """`_synced_at` of a row, None if there is none. What is asked for after this is newer."""
        return (await self.row_version(table, key)).version

    async def database_time(self) -> datetime:
        """Postgres's clock."""
        async with self.pool.acquire() as connection:
            found: datetime = await connection.fetchval("SELECT clock_timestamp()")
        return found

    async def row_version(self, table: str, key: str) -> VersionAt:
        """The version of a row before Stripe is asked, and Postgres's clock."""
        return await self._row_versions.read(table, key)

    async def row_versions(
        self, rows: Iterable[RowKey], *, patience_s: float | None = None
    ) -> dict[RowKey, datetime]:
        """The versions of those `rows` that are in the mirror. Raises Unreachable (see `RowVersions`)."""
        mirrored = [row for row in rows if row[0] in self.mirror.tables]
        return await self._row_versions.read_many(mirrored, patience_s=patience_s)

    def extract(self, objects: list[dict[str, object]], parents: Mapping[str, str]) -> RowSet:
        found = RowSet()
        for obj in objects:
            self.mirror.extractor.object(obj, found, parents=parents)
        return found

    async def follow(
        self, cut: TruncatedList, *, priority: int = BACKFILL, cause: Cause | None = None
    ) -> int:
        """Reads a nested list to its end; gives the number of requests.

        Raises what `Stripe.get` raises, and Drifted where the list does not come to an end.
        """
        path, _, query = cut.url.partition("?")
        fixed = [(k, v) for k, _, v in (pair.partition("=") for pair in query.split("&") if pair)]
        fixed += [("expand[]", f"data.{item}") for item in _expand_of(cut.child_table)]
        after: str | None = cut.last_id or None
        requests = restarts = 0
        passed = {after}
        while True:
            params = [*fixed, ("limit", str(PAGE))]
            if after is not None:
                params.append(("starting_after", after))
            try:
                response = await self.stripe.get(
                    path, params, endpoint=endpoint_of(path), priority=priority
                )
            except NotFound as error:
                restarts += 1
                if after is None or error.param != "starting_after" or restarts > _MOST_RESTARTS:
                    raise
                # The entry behind the cursor is gone: read the list from its start.
                after, passed = None, {None}
                continue
            requests += 1
            page = read_list(response, path)
            found = self.extract(page.objects, {cut.parent_table: cut.parent_id})
            await self.mirror.put(found, as_of_response(response, cause))
            if not page.has_more:
                return requests
            if page.after in passed or page.after is None or requests >= _MOST_PAGES:
                raise Drifted(
                    f"The list {path} does not come to an end after {requests} pages.",
                    hint="Its next try is noted; report it to Stripe with the object's id.",
                )
            passed.add(page.after)
            after = page.after

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
    ) -> float:
        """Mirrors a list from its top, to its end or until a page is `enough`.

        Gives the moment on Stripe's clock at which the reading began; `shown` takes the ids. A cursor
        object that went meanwhile starts it anew. Raises what `Stripe.get` raises.
        """
        after: str | None = None
        began = 0.0
        restarts = 0
        passed: set[str | None] = {None}
        while True:
            asked, query = list_request(endpoint, path, params, after=after, expand=endpoint.expand)
            try:
                response = await self.stripe.get(
                    asked, query, endpoint=endpoint.name, priority=priority
                )
            except NotFound as error:
                restarts += 1
                if after is None or error.param != "starting_after" or restarts > _MOST_RESTARTS:
                    raise
                after, passed = None, {None}
                continue
            self.observe_clock(response)
            began = began or response.not_before
            page = read_list(response, path)
            if shown is not None:
                shown.update(str(obj.get("id")) for obj in page.objects)
            found = self.extract(page.objects, parents or {})
            await self.follow_all(found, priority=priority, cause=cause)
            await self.mirror.put(found, as_of_response(response, cause))
            if not page.has_more or (enough is not None and await enough(page.objects)):
                return began
            if page.after in passed:
                raise Drifted(
                    f"The list {path} says that it goes on, but not from where.",
                    hint="Its pages cannot be followed; the rest is synced all the same.",
                )
            passed.add(page.after)
            after = page.after

    async def follow_all(
        self, found: RowSet, *, priority: int = BACKFILL, cause: Cause | None = None
    ) -> int:
        """Reads every nested list that `found` holds only the beginning of, some at a time."""
        cuts = iter([cut for cut in found.lists if self._is_wanted(cut)])

        async def worker() -> int:
            return sum([await self._follow_one(cut, priority, cause) for cut in cuts])

        workers = min(_FOLLOWED_AT_ONCE, len(found.lists))
        tasks = [asyncio.create_task(worker()) for _ in range(workers)]
        try:
            return sum(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _follow_one(self, cut: TruncatedList, priority: int, cause: Cause | None) -> int:
        name = endpoint_of(cut.url.partition("?")[0])
        if name in self.unreadable_lists:
            return 0
        try:
            return await self.follow(cut, priority=priority, cause=cause)
        except NotFound:
            return 0  # The object around it is gone, and an event says so.
        except (NotPermitted, NotEnabled) as error:
            if name not in self.unreadable_lists:
                _log.warning("nested.refused", endpoint=name, reason=error.message)
            self.unreadable_lists[name] = UnreadableList(cut, error)
            return 0
        except (LostLease, WrongKey):
            raise
        except PinstripeError as error:
            if error.fault is not None:
                raise  # It is Postgres's trouble.
            await self._owe_nested(cut, error, cause)
            return 0

    async def _owe_nested(
        self, cut: TruncatedList, error: PinstripeError, cause: Cause | None
    ) -> None:
        """One object's nested list cannot be read now: it is owed, and its neighbours go on."""
        _log.warning("nested.owed", table=cut.child_table, url=cut.url, error=error.message)
        self.unread[cut.child_table or cut.parent_table] = error
        if not self.notes_owed:
            return
        known = cause or Cause()
        refetch = Refetch(
            "nested",
            cut.child_table,
            cut.url,
            f"{cut.parent_table} {cut.parent_id}",
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
        over: datetime | None = None,
        priority: int = LIVE,
        cause: Cause | None = None,
        answers: Sequence[RefetchDone] = (),
    ) -> bool:
        """Fetches one object and mirrors it; False where Stripe has no way to retrieve this type.

        `over` is the version of the row that was seen before, `cause` what made us ask, `answers`
        what is crossed out with the commit. Raises NotFound where Stripe does not have it (any more).
        """
        where = retrieve_endpoint(table)
        if where is None or (where.parent_parameter and not parent):
            return False
        response = await self.get_object(where, key, parent, priority)
        found = RowSet()
        self.mirror.extractor.object(read_object(response, where.path), found)
        await self.follow_all(found, priority=priority, cause=cause)
        versions = {(table, key): over} if over is not None else None
        await self.mirror.put(
            found, as_of_response(response, cause), over=versions, answers=answers
        )
        return True

    async def get_object(
        self, where: RetrieveEndpoint, key: str, parent: str, priority: int
    ) -> Response:
        names = iter([parent, key] if where.parent_parameter else [key])
        path = re.sub(r"{\w+}", lambda _: quote_id(next(names)), where.path)
        params = [("expand[]", item) for item in where.expand]
        response = await self.stripe.get(path, params, endpoint=where.name, priority=priority)
        self.observe_clock(response)
        return response

    def _is_wanted(self, cut: TruncatedList) -> bool:
        return cut.child_table == "" or cut.child_table in self.wanted


def retrieve_endpoint(table: str) -> RetrieveEndpoint | None:
    """How the objects of a table are fetched; None for those that cannot, previews among them."""
    known = tables()[table]
    return None if known.virtual else retrieve_endpoints().get(known.object_type)


def parent_of(obj: StripeObject) -> str:
    """The id of the object under which this one is retrieved, if it names it."""
    for name in ("account", "customer", "fee", "transfer"):
        value = obj.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, dict) and isinstance(value.get("id"), str):
            return str(value["id"])
    return ""


@cache
def _expand_of(table: str) -> tuple[str, ...]:
    """What to expand in a nested list of this table's objects."""
    return expand_of((tables()[table].object_type,)) if table in tables() else ()


@cache
def _templates() -> list[tuple[re.Pattern[str], str]]:
    paths = {o.path for o in spec().operations if o.method == "GET"}
    return [(re.compile(re.sub(r"{\w+}", "[^/]+", path) + "$"), path) for path in sorted(paths)]


def endpoint_of(path: str) -> str:
    """The operation behind a path, as the budget names it.

    >>> endpoint_of("/v1/invoices/in_1/lines")
    'GET /v1/invoices/{invoice}/lines'
    """
    for pattern, template in _templates():
        if pattern.match(path):
            return f"GET {template}"
    return f"GET {path}"
