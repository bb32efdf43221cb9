"""Fetches many objects of one type by pages of their list: one page answers for up to a hundred of them.

A thousand invoices of one night, or an import of customers, would each be a request, and Stripe limits
requests a second. Objects queued together were mostly created together, and a list can be requested for a
span of time. Objects that the list does not show (deleted or hidden) are fetched by their id.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from pinstripe.catalog.endpoints import ListEndpoint, list_endpoints, retrieve_endpoints
from pinstripe.catalog.tables import Table, table_name, tables
from pinstripe.client.decode import StripeObject
from pinstripe.client.pagination import PAGE, iter_pages, list_of
from pinstripe.client.response import Response
from pinstripe.mirror import Part
from pinstripe.mirror.batch import READ_AT
from pinstripe.rows.as_of import as_of_response
from pinstripe.rows.extract import RowSet
from pinstripe.source.source import LIVE, Source
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.refetch import Refetch, RefetchDone

LEAST = 8
"""Wanted objects a page that make a list worthwhile: it also shows others."""
_PAGES = 4


@dataclass(frozen=True, slots=True)
class BatchFetch:
    """Rows to fetch with some `pages` of `endpoint`: all were created in the seconds [first, last].

    `versions`: of each row by key, as of the moment `at` of Postgres's clock.
    """

    endpoint: ListEndpoint
    first: int
    last: int
    pages: int
    versions: Mapping[str, datetime]
    at: datetime


def can_batch(table: str) -> bool:
    """Whether a list shows these objects whole, by when they were created."""
    return table in _lists()


async def find_batch(
    source: Source, refetch: Refetch, waiting: Collection[str]
) -> BatchFetch | None:
    """Return what can be fetched together with the row of `refetch`; None if that is not worthwhile.

    `waiting`: keys of the same table that are queued too.
    """
    table = source.wanted[refetch.table]
    statement = _neighbours(source.mirror.schema, table)
    async with source.pool.acquire() as connection:
        rows = await connection.fetch(statement, refetch.id, _PAGES * PAGE)
    # As many pages as are cheaper than single requests.
    for pages in range(_PAGES, 0, -1):
        mine = [row for row in rows[: pages * PAGE] if row[0] == refetch.id or row[0] in waiting]
        if len(mine) >= LEAST * pages:
            versions = {row[0]: row[2] for row in mine}
            return BatchFetch(
                _lists()[refetch.table], mine[0][1], mine[-1][1], pages, versions, rows[0][3]
            )
    return None


async def fetch_batch(source: Source, batch: BatchFetch, refetches: Sequence[Refetch]) -> set[str]:
    """Mirror the pages and complete the refetches that they answer; return the keys that they showed.

    `refetches`: those of the rows in the batch. Raises what `StripeClient.get` and the mirror raise.
    """
    endpoint = batch.endpoint
    window = [("created[gte]", str(batch.first)), ("created[lte]", str(batch.last))]
    refetch_of = {refetch.id: refetch for refetch in refetches}
    shown: set[str] = set()
    pages = 0
    request = list_of(source.stripe, endpoint, endpoint.path, window, priority=LIVE)
    async for page in iter_pages(request):
        pages += 1
        source.observe_clock(page.response)
        # Of the others events tell: what this page says of them may be older, and would be contested.
        mine = {str(o["id"]): o for o in page.objects if o.get("id") in refetch_of}
        if mine:
            await _put(source, batch, mine, page.response, refetch_of)
        shown |= mine.keys()
        if pages == batch.pages:
            break
    return shown


async def _put(
    source: Source,
    batch: BatchFetch,
    objects: Mapping[str, StripeObject],
    response: Response,
    refetch_of: Mapping[str, Refetch],
) -> None:
    table = table_name(batch.endpoint.objects[0])
    parts: list[Part] = []
    for key, obj in objects.items():
        found, cause = RowSet(), refetch_of[key].cause
        source.mirror.extractor.object(obj, found)
        await source.follow_all(found, priority=LIVE, cause=cause)
        parts.append((found, as_of_response(response, cause)))
    await source.mirror.write(
        parts,
        expected={READ_AT: batch.at} | {(table, key): batch.versions[key] for key in objects},
        completed=[RefetchDone(refetch_of[key], batch.at) for key in objects],
    )


@cache
def _lists() -> Mapping[str, ListEndpoint]:
    """By table: the list of all its objects, if it can be filtered by time of creation."""
    found: dict[str, ListEndpoint] = {}
    for endpoint in list_endpoints():
        cut = endpoint.created and endpoint.takes_limit and endpoint.version == 1
        if not cut or endpoint.parent or endpoint.params or len(endpoint.objects) != 1:
            continue
        table = tables()[table_name(endpoint.objects[0])]
        one = retrieve_endpoints().get(table.object_type)
        is_dated = any(c.name == "created" for c in table.columns)
        if is_dated and one is not None and one.expand == endpoint.expand:
            found.setdefault(table.name, endpoint)
    return found


def _neighbours(schema: str, table: Table) -> str:
    """The row $1 and those created with it and next, $2 in all: (key, second, version, Postgres's
    clock).
    """
    key, name = quote(table.key[0]), qualified(schema, table.name)
    return (
        f"SELECT {key}, floor(extract(epoch FROM created))::bigint, _synced_at, clock_timestamp() "
        f"FROM {name} WHERE created >= (SELECT created FROM {name} WHERE {key} = $1) "
        f"ORDER BY created, {key} <> $1 LIMIT $2"
    )
