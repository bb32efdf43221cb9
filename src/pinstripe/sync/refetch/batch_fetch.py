"""Many objects of one type to be fetched: a page of their list answers for up to a hundred of them.

A thousand invoices of one night, or an import of customers, would be a request each, of which Stripe lets
few be made a second. Objects that are to be fetched at the same time were mostly made at the same time, and
a list can be asked for what was made between two moments. What it does not show (what is deleted or hidden)
is asked for by its id.
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
from pinstripe.rows.as_of import as_of_response
from pinstripe.rows.extract import RowSet
from pinstripe.source.source import LIVE, Source
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.refetch import Refetch, RefetchDone

LEAST = 8
"""So many objects a page are worth a list: it shows others too, that nobody asked for."""
_PAGES = 4


@dataclass(frozen=True, slots=True)
class BatchFetch:
    """Rows to be fetched with some `pages` of `endpoint`: all were made in the seconds [first, last].

    `versions`: of each row, as it was at the moment `at` of Postgres's clock, by key.
    """

    endpoint: ListEndpoint
    first: int
    last: int
    pages: int
    versions: Mapping[str, datetime]
    at: datetime


def can_batch(table: str) -> bool:
    """Whether a list shows these objects by when they were made, as a whole each."""
    return table in _lists()


async def find_batch(
    source: Source, refetch: Refetch, waiting: Collection[str]
) -> BatchFetch | None:
    """What can be fetched together with the row of `todo`; None if that is not worth it.

    `waiting`: keys of the same table that are to be fetched too.
    """
    table = source.wanted[refetch.table]
    statement = _neighbours(source.mirror.schema, table)
    async with source.pool.acquire() as connection:
        rows = await connection.fetch(statement, refetch.id, _PAGES * PAGE)
    # As many pages as pay.
    for pages in range(_PAGES, 0, -1):
        mine = [row for row in rows[: pages * PAGE] if row[0] == refetch.id or row[0] in waiting]
        if len(mine) >= LEAST * pages:
            versions = {row[0]: row[2] for row in mine}
            return BatchFetch(
                _lists()[refetch.table], mine[0][1], mine[-1][1], pages, versions, rows[0][3]
            )
    return None


async def fetch_batch(source: Source, batch: BatchFetch, refetches: Sequence[Refetch]) -> set[str]:
    """Mirrors the pages, and crosses out what they answer; gives the keys that they showed.

    `todos`: those of the bunch's rows. Raises what `Stripe.get` and `Mirror.put` raise.
    """
    endpoint = batch.endpoint
    window = [("created[gte]", str(batch.first)), ("created[lte]", str(batch.last))]
    todo_of = {refetch.id: refetch for refetch in refetches}
    shown: set[str] = set()
    pages = 0
    request = list_of(source.stripe, endpoint, endpoint.path, window, priority=LIVE)
    async for page in iter_pages(request):
        pages += 1
        source.observe_clock(page.response)
        # Of the others events tell: what this page says of them may be older, and would be contested.
        mine = {str(o["id"]): o for o in page.objects if o.get("id") in todo_of}
        if mine:
            await _put(source, batch, mine, page.response, todo_of)
        shown |= mine.keys()
        if pages == batch.pages:
            break
    return shown


async def _put(
    source: Source,
    batch: BatchFetch,
    objects: Mapping[str, StripeObject],
    response: Response,
    todo_of: Mapping[str, Refetch],
) -> None:
    table = table_name(batch.endpoint.objects[0])
    parts: list[Part] = []
    for key, obj in objects.items():
        found, cause = RowSet(), todo_of[key].cause
        source.mirror.extractor.object(obj, found)
        await source.follow_all(found, priority=LIVE, cause=cause)
        parts.append((found, as_of_response(response, cause)))
    await source.mirror.put_parts(
        parts,
        over={(table, key): batch.versions[key] for key in objects},
        answers=[RefetchDone(todo_of[key], batch.at) for key in objects],
    )


@cache
def _lists() -> Mapping[str, ListEndpoint]:
    """By table: the list of all its objects, where it can be cut by the time of their making."""
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
    """The row $1, and those made with it and next, $2 in all: (key, second, version, Postgres's clock)."""
    key, name = quote(table.key[0]), qualified(schema, table.name)
    return (
        f"SELECT {key}, floor(extract(epoch FROM created))::bigint, _synced_at, clock_timestamp() "
        f"FROM {name} WHERE created >= (SELECT created FROM {name} WHERE {key} = $1) "
        f"ORDER BY created, {key} <> $1 LIMIT $2"
    )
