"""Reads lists and single objects again, by the code of the backfill, into the mirror of a `Source`.

With the mirror of a `Comparer` it compares and saves nothing. With the real one it repairs, and the cursors
record that the lists were read again. Every list is read from its top.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache

from pinstripe.catalog.endpoints import (
    ListEndpoint,
    has_address,
    list_endpoints,
    retrieve_endpoint,
    singleton_paths,
)
from pinstripe.catalog.model import object_types
from pinstripe.catalog.tables import table_name
from pinstripe.client.client import quote_id
from pinstripe.client.pagination import read_object
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.response import as_of_response
from pinstripe.source.source import BACKFILL, Source
from pinstripe.store.cursors import LEFT_OUT, Checkpoint
from pinstripe.sync.backfill.child_lists import open_list
from pinstripe.sync.backfill.list_stream import ListReader, Scheduler
from pinstripe.sync.backfill.references import read_singletons
from pinstripe.sync.verify.compare import Difference, RowKey


@dataclass(slots=True)
class ListRun:
    """Lists that were read, or are being read; `refused` are singletons that cannot be."""

    works: list[ListReader] = field(default_factory=list)
    refused: list[Checkpoint] = field(default_factory=list)

    def requests(self) -> Counter[str]:
        """By table of what is listed."""
        found: Counter[str] = Counter()
        for work in self.works:
            found[work.table] += work.final().requests
        return found

    def ends(self) -> Iterator[tuple[str, Checkpoint]]:
        """Yield (table, how its list ended), for each table that a list returns."""
        for work in self.works:
            for name in work.endpoint.objects:
                yield table_name(name), work.final()
        for checkpoint in self.refused:
            position = checkpoint.position
            if isinstance(position, dict):
                yield str(position["table"]), checkpoint


async def read_lists(
    source: Source,
    budget: RateLimiter,
    *,
    now: float,
    account_created: int,
    only: Collection[str] | None = None,
    found: ListRun | None = None,
) -> ListRun:
    """Read every list that returns rows of these tables, by default of all that are synced.

    `found` is filled as it goes, for the progress display.
    """
    found = found if found is not None else ListRun()
    names = set(source.wanted if only is None else only)
    for endpoint in list_endpoints():
        shown = [table_name(o) for o in endpoint.objects if table_name(o) in names]
        if not shown:
            continue
        work = open_list(
            endpoint, shown[0], source, source.pool, now=now, account_created=account_created
        )
        parent = table_name(endpoint.parent) if endpoint.parent else None
        if parent is not None and parent not in source.wanted:
            work.end("refused", f"{parent} is not synced", code=LEFT_OUT)
        found.works.append(work)
    if names & {table_name(o) for o in singleton_paths()}:
        found.refused = await read_singletons(source)
    await Scheduler(budget).run(found.works)
    return found


@dataclass(frozen=True, slots=True)
class ReadPath:
    """How a row is read again: by a GET of the object `key` of `table`, or by the list `endpoint` under the
    parent `key`.

    `whole`: what it does not return does not exist at Stripe.
    """

    table: str
    key: str
    parent: str = ""
    endpoint: ListEndpoint | None = None
    whole: bool = True

    @property
    def unit(self) -> str:
        """The unit in which Stripe permits or refuses."""
        return self.endpoint.name if self.endpoint is not None else self.table


def path_to(found: Difference) -> ReadPath | None:
    """By its own id if Stripe can, else through its parent or holder; None if nothing returns it."""
    if found.table in {table_name(name) for name in singleton_paths()}:
        return ReadPath(found.table, "", whole=False)
    if has_address(found.table):
        return ReadPath(found.table, found.key)
    where = retrieve_endpoint(found.table)
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
        if table in holders and has_address(table):
            return ReadPath(table, key, whole=holders[table])
    return None


async def read(source: Source, read_path: ReadPath, *, known_until: datetime | None = None) -> None:
    """Read what the path leads to into the mirror. Raises NotFound if Stripe does not have it.

    `known_until`: see `AsOf`.
    """
    if read_path.endpoint is not None:
        path, params = read_path.endpoint.url(read_path.key, quote_id(read_path.key))
        above = {table_name(read_path.endpoint.parent): read_path.key}
        await source.read(read_path.endpoint, path, params, parents=above, known_until=known_until)
        return
    if not read_path.key:
        await read_singletons(source)
        return
    where = retrieve_endpoint(read_path.table)
    assert where is not None  # noqa: S101 (`path_to` has checked it)
    response = await source.get_object(where, read_path.key, read_path.parent, BACKFILL)
    # Alone it does not name its parent, as it did in the parent's list.
    above = {_table_at(where.path.partition("/{")[0]): read_path.parent} if read_path.parent else {}
    found = source.extract([read_object(response, where.path)], above)
    as_of = replace(as_of_response(response), known_until=known_until)
    await source.follow_all(found, as_of=as_of)
    await source.mirror.write([(found, as_of)])


def holds(table: str, place: RowKey) -> bool:
    """Whether objects of `place`'s table hold rows of `table`."""
    return place[0] in _holders().get(table, {})


@cache
def _holders() -> Mapping[str, Mapping[str, bool]]:
    """Return table -> tables whose objects hold its objects at their top level; True if in a list."""
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
    """Return the table of what is listed at a path."""
    names = [e.objects[0] for e in list_endpoints() if e.path == path]
    return table_name(names[0]) if names else ""
