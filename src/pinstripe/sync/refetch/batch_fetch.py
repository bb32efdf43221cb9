"""Fetches many objects of one type by pages of their list: one page answers for up to a hundred of them.

A thousand invoices of one night, or the balance transactions of a busy second, would each be a request,
and Stripe limits requests a second. Objects queued together were mostly created together, and a list can be
requested for a span of time. Objects that the list does not show (deleted or hidden) are fetched by their
id.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from pinstripe.catalog.endpoints import PAGE, ListEndpoint, list_endpoints, retrieve_endpoints
from pinstripe.catalog.tables import Table, tables
from pinstripe.client.client import iter_pages, list_of
from pinstripe.client.response import Response, StripeObject, as_of_response
from pinstripe.mirror import Part
from pinstripe.mirror.upsert import EVENT_S
from pinstripe.rows.extract import RowSet
from pinstripe.source.source import Source
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.pool import Connection
from pinstripe.store.refetch import Refetch, RefetchDone

LEAST = 2
"""Wanted objects that make one page worthwhile: it is one request instead of two."""
_LEAST_OF_MORE = 8
"""Wanted objects a page that make several pages worthwhile: they also show others."""
_PAGES = 4
_MOST = 1000
"""Waiting objects that are considered together."""
_NONE = float("-inf")
_BEFORE_S, _AFTER_S = 5, 1
"""An object without a row was created about when the event that names it was: seconds around that."""


@dataclass(frozen=True, slots=True)
class BatchFetch:
    """Objects to fetch with some `pages` of `endpoint`: all were created in the seconds [first, last].

    `told`: by id of each object the second of the event that its row holds, -inf if it holds none or has no
    row; as of the moment `at` of Postgres's clock.
    """

    endpoint: ListEndpoint
    first: int
    last: int
    pages: int
    told: Mapping[str, float]
    at: datetime


def can_batch(table: str) -> bool:
    """Whether a list shows these objects whole, by when they were created."""
    return table in _lists()


async def find_batch(
    source: Source, refetch: Refetch, waiting: Mapping[str, Refetch]
) -> BatchFetch | None:
    """Return what can be fetched together with the object of `refetch`; None if that is not worthwhile.

    `waiting`: refetches of the same table that are queued too, by id.
    """
    table = source.wanted[refetch.table]
    wanted = {refetch.id: refetch} | dict(list(waiting.items())[:_MOST])
    async with source.pool.acquire() as connection:
        found, at = await _wanted(connection, source.mirror.schema, table, wanted)
        if refetch.id not in found or len(found) < LEAST:
            return None
        mine = found[refetch.id][0]
        rows = await connection.fetch(
            _neighbours(source.mirror.schema, table), float(mine), _PAGES * PAGE
        )
    near = _Near.of([row[0] for row in rows], mine)
    for pages in range(_PAGES, 0, -1):
        first, last, count = _window(sorted(s for s, _ in found.values()), mine, near, pages)
        if count >= (LEAST if pages == 1 else _LEAST_OF_MORE * pages):
            inside = {k: told for k, (s, told) in found.items() if first <= s <= last}
            if None in inside.values():
                first, last = first - _BEFORE_S, last + _AFTER_S
            told = {k: _NONE if second is None else second for k, second in inside.items()}
            return BatchFetch(_lists()[table.name], first, last, pages, told, at)
    return None


async def _wanted(
    connection: Connection, schema: str, table: Table, refetches: Mapping[str, Refetch]
) -> tuple[dict[str, tuple[int, float | None]], datetime]:
    """Return id -> (second of its creation, that of the event that its row holds), and Postgres's clock.

    The second is -inf if the row holds none, None if there is no row.

    Without objects that have their row and need no more, and those of which no time is known.
    """
    key, name = quote(table.key[0]), qualified(schema, table.name)
    rows = await connection.fetch(
        "SELECT u.id, floor(extract(epoch FROM t.created))::bigint, CASE WHEN t._synced_at IS NULL "
        f"THEN NULL WHEN t._as_of_latest <= t._as_of + make_interval(secs => {EVENT_S}) "
        "THEN extract(epoch FROM t._as_of)::float8 ELSE '-infinity' END, clock_timestamp() "
        f"FROM unnest($1::text[]) AS u (id) LEFT JOIN {name} t ON t.{key} = u.id",
        list(refetches),
    )
    found: dict[str, tuple[int, float | None]] = {}
    for row in rows:
        refetch = refetches[row[0]]
        second = row[1] if row[2] is not None else int(refetch.since)
        if second and (row[2] is None or refetch.kind == "fetch"):
            found[row[0]] = (second, row[2])
    return found, rows[0][3]


@dataclass(frozen=True, slots=True)
class _Near:
    """The seconds, in order, in which the rows between `lowest` and `highest` were created."""

    seconds: Sequence[int]
    lowest: float
    highest: float

    @classmethod
    def of(cls, seconds: Sequence[int], mine: int) -> _Near:
        """`seconds`: those of up to `_PAGES` pages before the second `mine`, and as many after."""
        ordered, limit = sorted(seconds), _PAGES * PAGE
        before = bisect_left(ordered, mine)
        is_cut_before, is_cut_after = before == limit, len(ordered) - before == limit
        lowest = ordered[0] if is_cut_before else float("-inf")
        return cls(ordered, lowest, ordered[-1] if is_cut_after else float("inf"))

    def count(self, first: int, last: int) -> float:
        """Return how many rows were created in these seconds; infinite if that is not known."""
        if first < self.lowest or last > self.highest:
            return float("inf")
        return bisect_right(self.seconds, last) - bisect_left(self.seconds, first)


def _window(wanted: Sequence[int], mine: int, near: _Near, pages: int) -> tuple[int, int, int]:
    """Return (first, last, count): the seconds around `mine` in which most are wanted, and how many.

    `wanted`: seconds of creation of the wanted objects, in order. Not more rows than so many `pages` hold.
    """
    best, most = (mine, mine, 1), pages * PAGE
    end = at = bisect_left(wanted, mine)
    for start in range(at + 1):
        while end + 1 < len(wanted) and near.count(wanted[start], wanted[end + 1]) <= most:
            end += 1
        fits = near.count(wanted[start], wanted[end]) <= most
        if fits and end - start + 1 > best[2]:
            best = (wanted[start], wanted[end], end - start + 1)
    return best


async def fetch_batch(
    source: Source, batch: BatchFetch, refetches: Sequence[Refetch]
) -> Mapping[str, RefetchDone]:
    """Mirror the pages and complete the refetches that they answer; return these by id.

    `refetches`: those of the objects in the batch. Raises what `StripeClient.get` and the mirror raise.
    """
    endpoint = batch.endpoint
    window = [("created[gte]", str(batch.first)), ("created[lte]", str(batch.last))]
    # Before the request: what is past by the time its answer is written may have been young then.
    answers = {
        one.id: source.done(one, batch.at, is_told=batch.told[one.id] >= one.told_from)
        for one in refetches
    }
    priority = min(refetch.work_class for refetch in refetches)
    shown: dict[str, RefetchDone] = {}
    pages = 0
    request = list_of(source.stripe, endpoint, endpoint.path, window, priority=priority)
    async for page in iter_pages(request):
        pages += 1
        source.observe_clock(page.response)
        # Of the others events tell: what this page says of them may be older, and would be contested.
        mine = {str(o["id"]): o for o in page.objects if o.get("id") in answers}
        if mine:
            shown |= await _put(source, mine, page.response, answers)
        if pages == batch.pages or len(shown) == len(answers):
            break
    return shown


async def _put(
    source: Source,
    objects: Mapping[str, StripeObject],
    response: Response,
    answers: Mapping[str, RefetchDone],
) -> dict[str, RefetchDone]:
    parts: list[Part] = []
    completed = {key: answers[key] for key in objects}
    for key, answer in completed.items():
        found, refetch = RowSet(), answer.refetch
        source.mirror.extractor.object(objects[key], found)
        as_of = as_of_response(response, refetch.cause, started=answer.started)
        await source.follow_all(found, priority=refetch.work_class, as_of=as_of)
        answer.is_cut = bool(found.lists)
        parts.append((found, as_of))
    await source.mirror.write(parts, completed=list(completed.values()))
    return completed


@cache
def _lists() -> Mapping[str, ListEndpoint]:
    """By table: the list of all its objects, if it can be filtered by time of creation."""
    found: dict[str, ListEndpoint] = {}
    for endpoint in list_endpoints():
        cut = endpoint.created and endpoint.takes_limit and endpoint.version == 1
        if not cut or endpoint.parent or endpoint.params or len(endpoint.objects) != 1:
            continue
        table = tables()[endpoint.tables[0]]
        one = retrieve_endpoints().get(table.object_type)
        is_dated = any(c.name == "created" for c in table.columns)
        if is_dated and one is not None and set(one.expand) <= set(endpoint.expand):
            found.setdefault(table.name, endpoint)
    return found


def _neighbours(schema: str, table: Table) -> str:
    """The seconds in which the rows around the second $1 were created: $2 before it, and $2 after."""
    second, name = "floor(extract(epoch FROM created))::bigint", qualified(schema, table.name)
    return (
        f"(SELECT {second} FROM {name} WHERE created < to_timestamp($1) ORDER BY created DESC LIMIT $2)"
        f" UNION ALL (SELECT {second} FROM {name} WHERE created >= to_timestamp($1) "
        "ORDER BY created LIMIT $2)"
    )
