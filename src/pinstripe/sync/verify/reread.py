"""Reads lists and single objects once more, by the code of the backfill, into the mirror of a `Source`.

With the mirror of a `Comparer` that compares, and saves nothing; with the real one it repairs, and the
cursors of the lists say that they were read anew. Every list is read from its top.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from pinstripe.catalog.endpoints import ListEndpoint, list_endpoints, singleton_paths
from pinstripe.catalog.model import object_types
from pinstripe.catalog.tables import table_name
from pinstripe.client.client import quote_id
from pinstripe.client.pagination import iter_pages, list_of, read_object
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.mirror import ExpectedVersions
from pinstripe.rows.as_of import as_of_response
from pinstripe.rows.extract import RowSet
from pinstripe.source.source import BACKFILL, Source, retrieve_endpoint
from pinstripe.store.cursors import LEFT_OUT, Checkpoint
from pinstripe.sync.backfill.child_lists import ChildListStream
from pinstripe.sync.backfill.list_stream import ListState, ListStream
from pinstripe.sync.backfill.references import read_singletons
from pinstripe.sync.backfill.scheduler import Scheduler
from pinstripe.sync.verify.compare import Difference, RowKey

Work = ListStream | ChildListStream


@dataclass(slots=True)
class ListRun:
    """Lists that were read, or are being read; `refused` are singletons that cannot be."""

    works: list[Work] = field(default_factory=list)
    refused: list[Checkpoint] = field(default_factory=list)

    def requests(self) -> Counter[str]:
        """By table of what is listed."""
        found: Counter[str] = Counter()
        for work in self.works:
            end = _end(work)
            found[_table_of(work)] += end.requests
        return found

    def ends(self) -> Iterator[tuple[str, Checkpoint]]:
        """(table, how its list ended), for each table that a list shows."""
        for work in self.works:
            for name in work.endpoint.objects:
                yield table_name(name), _end(work)
        for checkpoint in self.refused:
            position = checkpoint.position
            if isinstance(position, dict):
                yield str(position["table"]), checkpoint


async def read_lists(
    source: Source,
    budget: RateLimiter,
    *,
    now: float,
    birth: int,
    only: Collection[str] | None = None,
    found: ListRun | None = None,
) -> ListRun:
    """Reads every list that shows rows of these tables, of all that are synced by default.

    `found` is filled as it goes, for who looks on.
    """
    found = found if found is not None else ListRun()
    names = set(source.wanted if only is None else only)
    for endpoint in list_endpoints():
        shown = [table_name(o) for o in endpoint.objects if table_name(o) in names]
        if not shown:
            continue
        if not endpoint.parent:
            listing = ListState.fresh(endpoint, shown[0], ceiling=int(now), birth=birth)
            found.works.append(ListStream(listing, source))
            continue
        work = ChildListStream(endpoint, shown[0], source, source.pool)
        if work.parent_table not in source.wanted:
            work.state, work.reason = "refused", f"{work.parent_table} is not synced"
            work.code = LEFT_OUT
        found.works.append(work)
    if names & {table_name(o) for o in singleton_paths()}:
        found.refused = await read_singletons(source)
    await Scheduler(budget).run(found.works, more=lambda: ())
    return found


def _end(work: Work) -> Checkpoint:
    return work.final() if isinstance(work, ChildListStream) else work.listing.final()


def _table_of(work: Work) -> str:
    return work.table if isinstance(work, ChildListStream) else work.listing.table


@dataclass(frozen=True, slots=True)
class ReadPath:
    """How a row is read again: by a GET of the object `key` of `table`, or by the list `endpoint`
    under the parent `key`.

    `whole`: what it does not show then is not at Stripe.
    """

    table: str
    key: str
    parent: str = ""
    endpoint: ListEndpoint | None = None
    whole: bool = True

    @property
    def asks(self) -> str:
        """The unit in which Stripe permits or refuses."""
        return self.endpoint.name if self.endpoint is not None else self.table


def path_to(found: Difference) -> ReadPath | None:
    """By its own id if Stripe can, else through what it hangs under; None if nothing shows it."""
    if found.table in {table_name(name) for name in singleton_paths()}:
        return ReadPath(found.table, "", whole=False)
    where = retrieve_endpoint(found.table)
    if where is not None and not where.parent_parameter:
        return ReadPath(found.table, found.key)
    if where is not None:
        parent = _table_at(where.path.partition("/{")[0])
        for table, key in found.parents:
            if table == parent:
                return ReadPath(found.table, found.key, key)
    for endpoint in list_endpoints():
        if endpoint.parent and found.table in map(table_name, endpoint.objects):
            for table, key in found.parents:
                if table == table_name(endpoint.parent):
                    return ReadPath(found.table, key, endpoint=endpoint)
    holders = _holders().get(found.table, {})
    for table, key in found.parents:
        holder = retrieve_endpoint(table) if table in holders else None
        if holder is not None and not holder.parent_parameter:
            return ReadPath(table, key, whole=holders[table])
    return None


async def read(source: Source, way: ReadPath, *, over: ExpectedVersions | None = None) -> None:
    """Reads what the way leads to into the mirror. Raises NotFound if Stripe does not have it."""
    if way.endpoint is not None:
        path, params = way.endpoint.url(way.key, quote_id(way.key))
        request = list_of(source.stripe, way.endpoint, path, params, priority=BACKFILL)
        async for page in iter_pages(request):
            found = source.extract(page.objects, {table_name(way.endpoint.parent): way.key})
            await source.follow_all(found)
            await source.mirror.put(found, as_of_response(page.response), over=over)
        return
    if not way.key:
        await read_singletons(source)
        return
    where = retrieve_endpoint(way.table)
    assert where is not None  # noqa: S101 (`way_to` has seen it)
    response = await source.get_object(where, way.key, way.parent, BACKFILL)
    found = RowSet()
    source.mirror.extractor.object(read_object(response, where.path), found)
    await source.follow_all(found)
    await source.mirror.put(found, as_of_response(response), over=over)


def holds(table: str, place: RowKey) -> bool:
    """Whether objects of `place`'s table hold rows of `table`."""
    return place[0] in _holders().get(table, {})


@cache
def _holders() -> Mapping[str, Mapping[str, bool]]:
    """Table -> tables whose objects hold its objects at their top level; True if in a list."""
    found: dict[str, dict[str, bool]] = {}
    for name, object_type in object_types().items():
        for known in object_type.fields:
            if known.kind in ("list", "resource"):
                for target in known.targets:
                    group = found.setdefault(table_name(target), {})
                    group[table_name(name)] = group.get(table_name(name), False) or (
                        known.kind == "list"
                    )
    return found


@cache
def _table_at(path: str) -> str:
    """The table of what is listed at a path."""
    names = [e.objects[0] for e in list_endpoints() if e.path == path]
    return table_name(names[0]) if names else ""
