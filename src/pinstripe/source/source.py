"""Fetches lists and objects from Stripe into the mirror.

    Source.read / fetch / follow -> StripeClient -> rows -> Mirror

Backfill, event poller, refetches and the gateway share it: the account's client, the mirror, the wanted
tables, and the priorities (`FOLLOW`, `LIVE`, `BACKFILL`, `REFERENCES`). Nested lists are read to their end
before the row around them is written. A nested list that the key may not read stops nothing; a cursor of
its own holds the gap, in Stripe's words, and the next run retries its `probe`:

    {"table": "refund", "inside": "charge", "probe": "/v1/charges/ch_1/refunds"}
"""

from __future__ import annotations

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
from pinstripe.client.pagination import iter_pages, list_at, list_of, read_object, split_url
from pinstripe.client.response import Response
from pinstripe.concurrency import for_each
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
    """One kind of nested list that the key may not read, with the first example."""

    truncated: TruncatedList
    error: Refused


def checkpoints(gaps: UnreadableLists) -> list[Checkpoint]:
    """The cursors that record the gaps."""
    return [
        ended_by(
            gap.error,
            _stream(name),
            {
                "table": gap.truncated.child_table,
                "inside": gap.truncated.parent_table,
                "probe": gap.truncated.url,
            },
        )
        for name, gap in gaps.items()
    ]


_PROBED_AT_ONCE = 8


async def closed_gaps(
    stripe: StripeClient, saved: Iterable[Checkpoint], *, priority: int
) -> Mapping[str, str]:
    """Stream -> table around it, of the gaps of earlier runs that can be read now. Raises WrongKey."""
    found: dict[str, str] = {}

    async def probe(cursor: Checkpoint) -> None:
        position = cursor.position
        if not isinstance(position, dict) or "probe" not in position:
            return
        path, fixed = split_url(str(position["probe"]))
        try:
            await stripe.get(
                path, [*fixed, ("limit", "1")], endpoint=f"GET {cursor.stream}", priority=priority
            )
        except NotFound:
            pass  # The object around it is gone, but the key was accepted.
        except PinstripeError as error:
            if isinstance(error, WrongKey):
                raise
            return  # Still refused, or unreachable: the next run retries.
        found[cursor.stream] = str(position["inside"])

    await for_each(list(saved), probe, limit=_PROBED_AT_ONCE)
    return found


def _stream(name: str) -> str:
    return name.removeprefix("GET ")


_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

FOLLOW = 0
"""Priority of the event log: before everything else."""

LIVE = 4
"""Priority of refetches that events cause."""

BACKFILL = 10

REFERENCES = 20

SCAN = 30
"""Of the slow scan, and of lists that are read again: what nobody waits for."""

_FOLLOWED_AT_ONCE = 6
"""Nested lists of one page that are read concurrently."""

_MAX_PAGES = 1000
"""Pages of one nested list: 100,000 entries, far more than any object of Stripe's is allowed to have."""

_OWED_S = 15.0
"""Pause before the first retry of a failed request."""


@dataclass(slots=True)
class Source:
    """One account at Stripe and its mirror. `wanted`: the tables that are synced.

    `clock_ahead_s`: how far Stripe's clock is ahead of ours, by the last response. `unreadable_lists`:
    nested lists that the key may not read. `unread`: by table, why nested lists of single objects were not
    read; `notes_owed`: whether a refetch is noted in the database for each of them.
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
    since: Mapping[str, int] = field(default_factory=dict)
    """By table, the Unix second of the oldest objects that are listed; older ones come by reference."""
    _row_versions: RowVersions = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._row_versions = RowVersions(self.pool, self.mirror.schema, self.wanted)

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

    def observe_clock(self, response: Response) -> None:
        """Sets `clock_ahead_s` from a response."""
        self.clock_ahead_s = response.not_after - 0.5 - time.time()

    async def version(self, table: str, key: str) -> datetime | None:
        """`_synced_at` of a row, None if there is none. A response to a later request is newer."""
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
        self, truncated: TruncatedList, *, priority: int = BACKFILL, cause: Cause | None = None
    ) -> int:
        """Reads a nested list to its end; returns the number of requests.

        Raises what `StripeClient.get` raises, and Drifted if the list does not come to an end.
        """
        path, fixed = split_url(truncated.url)
        fixed += [("expand[]", f"data.{item}") for item in _expand_of(truncated.child_table)]
        request = list_at(self.stripe, path, fixed, endpoint=endpoint_of(path), priority=priority)
        requests = 0
        async for page in iter_pages(
            request, after=truncated.last_id or None, on_lost_cursor="restart"
        ):
            requests += 1
            found = self.extract(page.objects, {truncated.parent_table: truncated.parent_id})
            await self.mirror.write([(found, as_of_response(page.response, cause))])
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
    ) -> float:
        """Mirrors a list from its top, to its end or until a page is `enough`.

        Returns when the first page was true, on Stripe's clock. The ids of all pages are added to `shown`.
        A cursor object that was deleted meanwhile restarts the list. Raises what `StripeClient.get` raises.
        """
        began = 0.0
        request = list_of(self.stripe, endpoint, path, params, priority=priority)
        async for page in iter_pages(request, on_lost_cursor="restart"):
            self.observe_clock(page.response)
            began = began or page.response.not_before
            if shown is not None:
                shown.update(str(obj.get("id")) for obj in page.objects)
            found = self.extract(page.objects, parents or {})
            await self.follow_all(found, priority=priority, cause=cause)
            await self.mirror.write([(found, as_of_response(page.response, cause))])
            if page.has_more and enough is not None and await enough(page.objects):
                break
        return began

    async def follow_all(
        self, found: RowSet, *, priority: int = BACKFILL, cause: Cause | None = None
    ) -> int:
        """Reads every truncated nested list in `found` to its end; returns the number of requests."""
        requests = 0

        async def follow(truncated: TruncatedList) -> None:
            nonlocal requests
            requests += await self._follow_one(truncated, priority, cause)

        wanted = [truncated for truncated in found.lists if self._is_wanted(truncated)]
        await for_each(wanted, follow, limit=_FOLLOWED_AT_ONCE)
        return requests

    async def _follow_one(
        self, truncated: TruncatedList, priority: int, cause: Cause | None
    ) -> int:
        name = endpoint_of(truncated.url.partition("?")[0])
        if name in self.unreadable_lists:
            return 0
        try:
            return await self.follow(truncated, priority=priority, cause=cause)
        except NotFound:
            return 0  # The parent is gone, and an event reports that.
        except (NotPermitted, NotEnabled) as error:
            if name not in self.unreadable_lists:
                _log.warning("nested.refused", endpoint=name, reason=error.message)
            self.unreadable_lists[name] = UnreadableList(truncated, error)
            return 0
        except (LostLease, WrongKey):
            raise
        except PinstripeError as error:
            if error.fault is not None:
                raise  # Postgres failed, not Stripe.
            await self._owe_nested(truncated, error, cause)
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
        over: datetime | None = None,
        priority: int = LIVE,
        cause: Cause | None = None,
        answers: Sequence[RefetchDone] = (),
    ) -> bool:
        """Fetches one object and mirrors it; returns False if Stripe cannot retrieve this type by id.

        `over`: the row's version before the request. `cause`: what led to it. `answers`: refetches that the
        commit completes. Raises NotFound if Stripe does not have the object (any more).
        """
        where = retrieve_endpoint(table)
        if where is None or (where.parent_parameter and not parent):
            return False
        response = await self.get_object(where, key, parent, priority)
        found = RowSet()
        self.mirror.extractor.object(read_object(response, where.path), found)
        await self.follow_all(found, priority=priority, cause=cause)
        expected = {(table, key): over} if over is not None else {}
        parts = [(found, as_of_response(response, cause))]
        await self.mirror.write(parts, expected=expected, completed=answers)
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

    def _is_wanted(self, truncated: TruncatedList) -> bool:
        return truncated.child_table == "" or truncated.child_table in self.wanted


def retrieve_endpoint(table: str) -> RetrieveEndpoint | None:
    """How the objects of a table are fetched; None if they cannot be, as previews."""
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
    """The operation behind a path, by the rate limiter's name.

    >>> endpoint_of("/v1/invoices/in_1/lines")
    'GET /v1/invoices/{invoice}/lines'
    """
    for pattern, template in _templates():
        if pattern.match(path):
            return f"GET {template}"
    return f"GET {path}"
